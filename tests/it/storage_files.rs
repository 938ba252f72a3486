//! Directories and files: whose they are, damaged ones, checkpoints half made or half received.

use std::path::Path;

use bytes::Bytes;
use neural_fabric::raft::{self, StartError};
use neural_fabric::storage::Error;
use neural_fabric::storage::checkpoint::{self, Incoming};
use neural_fabric::storage::fatal::Fatal;
use neural_fabric::storage::identity::{self, Identity};
use neural_fabric::storage::state_db::StateDb;
use neural_fabric::storage::tables::{Change, Tables};

use crate::harness::{Cluster, tenant};

fn identity_of(cluster: &str, member: u64) -> Identity {
    Identity { cluster: cluster.into(), member }
}

#[test]
fn a_directory_serves_one_member_of_one_cluster() {
    let dir = tempfile::tempdir().unwrap();
    identity::claim(dir.path(), &identity_of("blue", 1)).unwrap();
    identity::claim(dir.path(), &identity_of("blue", 1)).unwrap();
    for other in [identity_of("green", 1), identity_of("blue", 2)] {
        let error = identity::claim(dir.path(), &other).unwrap_err();
        assert!(matches!(error, Error::OtherMember { .. }), "{error}");
        assert!(error.to_string().contains("cluster \"blue\""), "{error}");
    }
}

#[test]
fn a_damaged_identity_names_its_file() {
    let dir = tempfile::tempdir().unwrap();
    identity::claim(dir.path(), &identity_of("blue", 1)).unwrap();
    let path = dir.path().join("identity");
    let whole = std::fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let error = identity::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("identity"), "{error}");
    }
    let mut newer = whole;
    newer[4] = 9;
    std::fs::write(&path, newer).unwrap();
    let error = identity::read(dir.path()).unwrap_err();
    assert!(matches!(error, Error::UnknownFormat { found: 9, .. }), "{error}");
}

#[test]
fn a_directory_is_locked_while_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let held = identity::lock(dir.path()).unwrap();
    assert!(identity::lock(dir.path()).is_err());
    drop(held);
    identity::lock(dir.path()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_refuses_anothers_data_and_damaged_data() {
    let mut cluster = Cluster::start(1).await;
    cluster.stop_seat(0).await;
    // Another cluster's certificate and name on this directory.
    let mut foreign = Cluster::empty(1);
    foreign.name = "test".into();
    foreign.seats[0].dir = std::mem::replace(&mut cluster.seats[0].dir, tempfile::tempdir().unwrap());
    let mut options = foreign.options(0).await;
    options.cluster = "other".into();
    let error = raft::start(options).await.err().expect("refused").to_string();
    assert!(error.contains("cluster \"test\""), "{error}");
    // A table cut short.
    let state = foreign.dir(0).join("state");
    let table = largest(&state.join("1"), "sst");
    let bytes = std::fs::read(&table).unwrap();
    std::fs::write(&table, &bytes[..bytes.len() / 2]).unwrap();
    let error = raft::start(foreign.options(0).await).await.err().expect("refused");
    assert!(matches!(error, StartError::Storage(_)), "{error}");
    assert!(error.to_string().contains("state"), "{error}");
    std::fs::write(&table, bytes).unwrap();
    // The log gone: it must not be made anew, as the vote was in it.
    std::fs::rename(foreign.dir(0).join("raft"), foreign.dir(0).join("away")).unwrap();
    let error = raft::start(foreign.options(0).await).await.err().expect("refused");
    assert!(error.to_string().contains("raft"), "{error}");
}

fn largest(dir: &Path, extension: &str) -> std::path::PathBuf {
    let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let files = files.filter(|p| p.extension().is_some_and(|e| e == extension));
    files.max_by_key(|p| p.metadata().unwrap().len()).expect("a file")
}

fn put(key: &str, value: &str) -> Change {
    Change { table: 2, key: key.into(), value: Some(value.into()) }
}

fn open(dir: &Path, create: bool) -> StateDb {
    StateDb::open(dir, create, Fatal::abort()).unwrap()
}

/// A directory with one row and one checkpoint of it.
async fn with_checkpoint(dir: &Path) -> (StateDb, checkpoint::Snapshot) {
    let db = open(dir, true);
    db.commit(vec![put("a", "1")], Bytes::from_static(b"at 1")).unwrap();
    let draft = db.checkpoint(Bytes::from_static(b"meta")).unwrap();
    db.commit(vec![put("a", "2")], Bytes::from_static(b"at 2")).unwrap();
    let snapshot = db.finish(draft).await.unwrap();
    (db, snapshot)
}

#[tokio::test]
async fn a_checkpoint_holds_what_was_there_when_it_was_begun() {
    let dir = tempfile::tempdir().unwrap();
    let (db, snapshot) = with_checkpoint(dir.path()).await;
    assert_eq!(db.get(2, b"a").unwrap(), Some(b"2".to_vec()));
    let other = tempfile::tempdir().unwrap();
    let receiver = open(other.path(), true);
    receiver.install(snapshot).await.unwrap();
    assert_eq!(receiver.get(2, b"a").unwrap(), Some(b"1".to_vec()));
    assert_eq!(receiver.position().unwrap(), Some(Bytes::from_static(b"at 1")));
    let (_, meta) = receiver.latest().unwrap().expect("kept as its own");
    assert_eq!(meta, Bytes::from_static(b"meta"));
}

#[tokio::test]
async fn a_slow_checkpoint_does_not_take_the_place_of_one_installed_meanwhile() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_sender, newer) = with_checkpoint(other.path()).await;
    let db = open(dir.path(), true);
    db.commit(vec![put("a", "0")], Bytes::from_static(b"at 0")).unwrap();
    let slow = db.checkpoint(Bytes::from_static(b"older")).unwrap();
    db.install(newer).await.unwrap();
    let built = db.finish(slow).await.unwrap();
    let (_, meta) = db.latest().unwrap().expect("the installed one");
    assert_eq!(meta, Bytes::from_static(b"meta"));
    let at = built.dir().to_path_buf();
    drop(built);
    assert!(!at.exists(), "it goes with its last holder");
}

#[tokio::test]
async fn what_was_flushed_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (db, _) = with_checkpoint(dir.path()).await;
        db.flush().unwrap();
    }
    let db = open(dir.path(), false);
    assert_eq!(db.position().unwrap(), Some(Bytes::from_static(b"at 2")));
    assert_eq!(db.rows(&|_| true).unwrap().len(), 1);
    assert!(db.latest().unwrap().is_some());
}

#[tokio::test]
async fn a_torn_checkpoint_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = {
        let (_db, snapshot) = with_checkpoint(dir.path()).await;
        snapshot.dir().to_path_buf()
    };
    // A second one, newer, of which a crash left half.
    let half = dir.path().join("snapshots").join("77");
    std::fs::create_dir(&half).unwrap();
    std::fs::copy(path.join("MANIFEST.nf"), half.join("MANIFEST.nf")).unwrap();
    std::fs::create_dir(dir.path().join("snapshots").join("78.tmp")).unwrap();
    let db = open(dir.path(), false);
    let (snapshot, _) = db.latest().unwrap().expect("the whole one");
    assert_eq!(snapshot.dir(), path);
    assert!(!half.exists() && !dir.path().join("snapshots").join("78.tmp").exists());
}

#[tokio::test]
async fn a_checkpoint_with_a_flipped_byte_is_not_installed() {
    let dir = tempfile::tempdir().unwrap();
    let (_db, snapshot) = with_checkpoint(dir.path()).await;
    let table = largest(snapshot.dir(), "sst");
    let mut bytes = std::fs::read(&table).unwrap();
    bytes[10] ^= 1;
    std::fs::remove_file(&table).unwrap();
    std::fs::write(&table, bytes).unwrap();
    let other = tempfile::tempdir().unwrap();
    let receiver = open(other.path(), true);
    receiver.commit(vec![put("old", "1")], Bytes::from_static(b"old")).unwrap();
    assert!(receiver.install(snapshot).await.is_err());
    assert_eq!(receiver.position().unwrap(), Some(Bytes::from_static(b"old")));
    assert_eq!(receiver.get(2, b"old").unwrap(), Some(b"1".to_vec()));
}

#[tokio::test]
async fn an_install_that_was_interrupted_leaves_the_old_rows() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (db, snapshot) = with_checkpoint(dir.path()).await;
        db.flush().unwrap();
        // As a crash leaves it: copied, even renamed, but CURRENT not yet turned.
        checkpoint::copy_into(&snapshot, &dir.path().join("state").join("2")).unwrap();
        checkpoint::copy_into(&snapshot, &dir.path().join("state").join("3.tmp")).unwrap();
    }
    let db = open(dir.path(), false);
    assert_eq!(db.position().unwrap(), Some(Bytes::from_static(b"at 2")));
    let entries = std::fs::read_dir(dir.path().join("state")).unwrap();
    let dirs = entries.filter(|e| e.as_ref().unwrap().path().is_dir()).count();
    assert_eq!(dirs, 1, "the rest of the install is swept away");
}

#[tokio::test]
async fn rows_never_come_from_a_checkpoint_that_is_not_kept() {
    // The install ends at either step, as it would in a crash: where the next file should come lies another.
    for (blocked, rows, kept) in [("snapshots/2.tmp", "at 2", "meta"), ("state/2.tmp", "at 2", "newer")] {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sender = open(other.path(), true);
        sender.commit(vec![put("a", "9")], Bytes::from_static(b"at 9")).unwrap();
        let draft = sender.checkpoint(Bytes::from_static(b"newer")).unwrap();
        let newer = sender.finish(draft).await.unwrap();
        {
            let (db, _) = with_checkpoint(dir.path()).await;
            db.flush().unwrap();
            std::fs::write(dir.path().join(blocked), "in the way").unwrap();
            assert!(db.install(newer).await.is_err(), "{blocked}");
        }
        std::fs::remove_file(dir.path().join(blocked)).unwrap();
        let db = open(dir.path(), false);
        assert_eq!(db.position().unwrap(), Some(Bytes::from_static(rows.as_bytes())), "{blocked}");
        let (snapshot, meta) = db.latest().unwrap().expect("one that is whole");
        assert_eq!(meta, Bytes::from_static(kept.as_bytes()), "{blocked}");
        // openraft installs the newest checkpoint when the rows are older.
        db.install(snapshot).await.unwrap();
        assert_eq!(db.latest().unwrap().map(|(_, meta)| meta), Some(meta), "it is not copied once more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_died_while_it_installed_a_checkpoint_starts() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    cluster.agree().await;
    let own = cluster.replica(away).snapshot().await.unwrap();
    cluster.stop_seat(away).await;
    for i in 0..30 {
        cluster.submit(leader, tenant(&format!("t{i}"))).await;
    }
    let newer = cluster.replica(leader).snapshot().await.unwrap();
    assert!(newer > own);
    // As the crash leaves it: received and kept, and the rows still the old ones.
    let kept = std::fs::read_dir(cluster.dir(leader).join("snapshots")).unwrap().map(|e| e.unwrap().path());
    let kept = checkpoint::open(&kept.max().expect("a checkpoint")).unwrap();
    let (draft, to) = (cluster.dir(away).join("snapshots/9.tmp"), cluster.dir(away).join("snapshots/9"));
    checkpoint::copy_into(&kept, &draft).unwrap();
    checkpoint::seal(&draft, &to, kept.manifest().meta.clone()).unwrap();
    cluster.start_seat(away).await;
    assert!(cluster.replica(away).status().applied_index >= newer, "the start finished the install");
    cluster.agree().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_cut_short_of_what_was_applied_is_refused() {
    let mut cluster = Cluster::start(1).await;
    for i in 0..50 {
        cluster.submit(0, tenant(&format!("t{i}"))).await;
    }
    cluster.stop_seat(0).await;
    let wal = largest(&cluster.dir(0).join("raft"), "log");
    let whole = std::fs::read(&wal).unwrap();
    std::fs::write(&wal, &whole[..whole.len() / 5]).unwrap();
    let error = raft::start(cluster.options(0).await).await.err().expect("acknowledged entries are gone");
    assert!(matches!(error, StartError::Storage(_)), "{error}");
    assert!(error.to_string().contains("raft: damaged: the log ends with entry"), "{error}");
}

#[tokio::test]
async fn a_checkpoint_survives_the_wire_and_a_wrong_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let (_db, snapshot) = with_checkpoint(dir.path()).await;
    let manifest = snapshot.manifest().encode();
    let inbox = tempfile::tempdir().unwrap();
    let mut incoming = Incoming::begin(&inbox.path().join("a"), &manifest).unwrap();
    for (number, part) in snapshot.manifest().parts.iter().enumerate() {
        let bytes = std::fs::read(snapshot.path(part)).unwrap();
        for chunk in bytes.chunks(100) {
            incoming.chunk(number, chunk).unwrap();
        }
    }
    let received = incoming.complete().unwrap();
    assert_eq!(received.manifest(), snapshot.manifest());
    let at = received.dir().to_path_buf();
    drop(received);
    assert!(!at.exists(), "a received checkpoint goes with its last holder");

    let short = Incoming::begin(&inbox.path().join("b"), &manifest).unwrap();
    assert!(short.complete().is_err(), "nothing came");
    assert!(!inbox.path().join("b").exists());
    assert!(Incoming::begin(&inbox.path().join("c"), &manifest[..manifest.len() - 1]).is_err());
}
