//! What must survive a crash of the machine, and what must not be promised before it would.
//!
//! On the model disk, whose unsynced writes a crash throws away, and by reopening RocksDB.

use std::sync::Arc;

use neural_fabric::raft::log_store::LogStore;
use neural_fabric::raft::types::{Entry, EntryPayload, LogId, Payload, Types, Vote};
use neural_fabric::storage::disk::Disk;
use neural_fabric::storage::fatal::Fatal;
use neural_fabric::storage::log_db::LogDb;
use neural_fabric::storage::model::{ModelDisk, Sync};
use openraft::impls::TokioRuntime;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;

type C = Types<TokioRuntime>;
type Store<D> = LogStore<D>;

fn entry(term: u64, index: u64) -> Entry {
    let bytes = format!("entry {term}.{index}").into_bytes();
    Entry { log_id: LogId::new_term_index(term, index), payload: EntryPayload::Normal(Payload::encoded(bytes.into())) }
}

/// Appends and returns what tells when it is durable.
async fn append<D: Disk>(
    log: &mut Store<D>,
    entries: Vec<Entry>,
) -> tokio::sync::oneshot::Receiver<std::io::Result<()>> {
    let (tx, rx) = C::oneshot();
    RaftLogStorage::<C>::append(log, entries, IOFlushed::signal(tx)).await.unwrap();
    rx
}

async fn read<D: Disk>(log: &mut Store<D>, from: u64, to: u64) -> Vec<Entry> {
    RaftLogReader::<C>::try_get_log_entries(log, from..to).await.unwrap()
}

async fn last<D: Disk>(log: &mut Store<D>) -> Option<u64> {
    RaftLogStorage::<C>::get_log_state(log).await.unwrap().last_log_id.map(|id| id.index)
}

#[tokio::test]
async fn entries_are_readable_at_once_but_reported_only_when_durable() {
    let disk = ModelDisk::new(Sync::Driven);
    let mut log = Store::open(Arc::new(disk.clone())).unwrap();
    let mut durable = append(&mut log, vec![entry(1, 0), entry(1, 1)]).await;
    assert_eq!(read(&mut log, 0, 2).await, vec![entry(1, 0), entry(1, 1)]);
    assert!(durable.try_recv().is_err(), "reported before it was synced");
    disk.settle();
    durable.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_crash_loses_what_was_not_synced_and_nothing_else() {
    let disk = ModelDisk::new(Sync::Driven);
    let mut log = Store::open(Arc::new(disk.clone())).unwrap();
    let first = append(&mut log, (0..5).map(|i| entry(1, i)).collect()).await;
    disk.settle();
    first.await.unwrap().unwrap();
    let _lost = append(&mut log, (5..9).map(|i| entry(1, i)).collect()).await;
    let disk = disk.crash(0);
    let mut log = Store::open(Arc::new(disk)).unwrap();
    assert_eq!(last(&mut log).await, Some(4));
    assert_eq!(read(&mut log, 0, 9).await.len(), 5);
}

#[tokio::test]
async fn whatever_survives_a_crash_is_a_prefix_of_what_was_written() {
    // A vote, entries of its term, a truncation and entries of the next term: at whatever write
    // the disk stopped, no entry may be there without what was written before it.
    for survivors in 0..=8 {
        let disk = ModelDisk::new(Sync::Driven);
        let mut log = Store::open(Arc::new(disk.clone())).unwrap();
        let vote = Vote::new_committed(1, 1);
        let mut saving = log.clone();
        let saved = tokio::spawn(async move { RaftLogStorage::<C>::save_vote(&mut saving, &vote).await });
        tokio::task::yield_now().await;
        drop(append(&mut log, (0..4).map(|i| entry(1, i)).collect()).await);
        RaftLogStorage::<C>::truncate_after(&mut log, Some(LogId::new_term_index(1, 1))).await.unwrap();
        drop(append(&mut log, vec![entry(2, 2), entry(2, 3)]).await);
        assert_eq!(disk.unsynced(), 8);
        let disk = disk.crash(survivors);
        saved.abort();
        let mut log = Store::open(Arc::new(disk)).unwrap();
        let vote = RaftLogReader::<C>::read_vote(&mut log).await.unwrap();
        assert_eq!(vote.is_some(), survivors > 0);
        let rows = read(&mut log, 0, 10).await;
        let want: Vec<Entry> = match survivors {
            0 | 1 => vec![],
            n @ 2..=5 => (0..n as u64 - 1).map(|i| entry(1, i)).collect(),
            6 => vec![entry(1, 0), entry(1, 1)],
            7 => vec![entry(1, 0), entry(1, 1), entry(2, 2)],
            _ => vec![entry(1, 0), entry(1, 1), entry(2, 2), entry(2, 3)],
        };
        assert_eq!(rows, want, "{survivors} survivors");
    }
}

#[tokio::test]
async fn a_disk_that_lies_about_syncing_is_told_apart() {
    let disk = ModelDisk::new(Sync::Lying);
    let mut log = Store::open(Arc::new(disk.clone())).unwrap();
    append(&mut log, vec![entry(1, 0)]).await.await.unwrap().unwrap();
    let disk = disk.crash(0);
    let mut log = Store::open(Arc::new(disk)).unwrap();
    assert_eq!(last(&mut log).await, None, "the model must lose what was reported too early");
}

fn open_rocks(dir: &std::path::Path, create: bool) -> (Arc<LogDb>, Store<LogDb>) {
    let disk = LogDb::open(&dir.join("raft"), create, Fatal::abort(), Arc::new(|_| {})).unwrap();
    let disk = Arc::new(disk);
    (disk.clone(), Store::open(disk).unwrap())
}

#[tokio::test]
async fn a_reopened_log_is_the_one_that_was_closed() {
    let dir = tempfile::tempdir().unwrap();
    let vote = Vote::new(4, 2);
    let purged = LogId::new_term_index(1, 3);
    let committed = LogId::new_term_index(2, 15);
    {
        let (disk, mut log) = open_rocks(dir.path(), true);
        append(&mut log, (0..20).map(|i| entry(1, i)).collect()).await.await.unwrap().unwrap();
        RaftLogStorage::<C>::truncate_after(&mut log, Some(LogId::new_term_index(1, 11))).await.unwrap();
        append(&mut log, (12..18).map(|i| entry(2, i)).collect()).await.await.unwrap().unwrap();
        RaftLogStorage::<C>::purge(&mut log, purged).await.unwrap();
        RaftLogStorage::<C>::save_committed(&mut log, Some(committed)).await.unwrap();
        RaftLogStorage::<C>::save_vote(&mut log, &vote).await.unwrap();
        disk.close();
    }
    let (_disk, mut log) = open_rocks(dir.path(), false);
    let state = RaftLogStorage::<C>::get_log_state(&mut log).await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(purged));
    assert_eq!(state.last_log_id, Some(LogId::new_term_index(2, 17)));
    assert_eq!(RaftLogReader::<C>::read_vote(&mut log).await.unwrap(), Some(vote));
    assert_eq!(RaftLogStorage::<C>::read_committed(&mut log).await.unwrap(), Some(committed));
    let want: Vec<_> = (4..12).map(|i| entry(1, i)).chain((12..18).map(|i| entry(2, i))).collect();
    assert_eq!(read(&mut log, 4, 18).await, want);
}

#[tokio::test]
async fn a_torn_last_record_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (_disk, mut log) = open_rocks(dir.path(), true);
        for i in 0..50 {
            append(&mut log, vec![entry(1, i)]).await.await.unwrap().unwrap();
        }
    }
    let wal = wal_of(&dir.path().join("raft"));
    let whole = std::fs::read(&wal).unwrap();
    // Torn: the last bytes never reached the platter.
    std::fs::write(&wal, &whole[..whole.len() - 7]).unwrap();
    {
        let (_disk, mut log) = open_rocks(dir.path(), false);
        assert_eq!(last(&mut log).await, Some(48));
    }
}

#[tokio::test]
async fn damage_in_the_middle_of_the_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (_disk, mut log) = open_rocks(dir.path(), true);
        for i in 0..50 {
            append(&mut log, vec![entry(1, i)]).await.await.unwrap().unwrap();
        }
    }
    let wal = wal_of(&dir.path().join("raft"));
    let mut bytes = std::fs::read(&wal).unwrap();
    // In the content of an entry. A damaged length in the WAL's last block cannot be told from a
    // torn tail, by nobody.
    let text = b"entry 1.25";
    let at = bytes.windows(text.len()).position(|w| w == text).expect("the entry is in the WAL");
    bytes[at] ^= 0xff;
    std::fs::write(&wal, bytes).unwrap();
    let opened = LogDb::open(&dir.path().join("raft"), false, Fatal::abort(), Arc::new(|_| {}));
    let error = opened.err().expect("entries behind the damage were promised").to_string();
    assert!(error.contains("raft"), "{error}");
}

/// The write-ahead log that has content.
fn wal_of(dir: &std::path::Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let logs = files.filter(|p| p.extension().is_some_and(|e| e == "log"));
    logs.max_by_key(|p| p.metadata().unwrap().len()).expect("a WAL")
}
