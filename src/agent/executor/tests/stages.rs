//! A stop at each step of a start: nothing is left of it, and the next start is none the worse.

use super::*;
use nix::sys::stat::Mode;
use std::time::SystemTime;

/// Bytes of a program that takes a moment to be copied and to be hashed.
const LARGE: usize = 48 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_at_any_step_of_a_start_leaves_nothing() {
    let w = World::new();
    let executor = w.open();
    let program = format!("exec sleep 300\n{}", "#".repeat(LARGE));
    let mut want = w.shell(&program).await;
    let order = [Stage::Scheduled, Stage::Downloading, Stage::Verifying, Stage::Starting, Stage::Ready];
    let step = |stage: Stage| order.iter().position(|other| *other == stage).unwrap();
    for wanted in order {
        executor.start(ID, &want);
        // One that is missed is stopped a step later.
        let reached =
            |e: &Executor| e.stages().first().filter(|(_, _, stage)| step(*stage) >= step(wanted)).map(|_| ());
        executor.until(&format!("{wanted:?}"), reached).await;
        executor.stop(ID, want.generation, Reason::StoppedByUser);
        assert_eq!(executor.gone().await, stopped(), "{wanted:?}");
        assert_eq!(w.living(), 0, "{wanted:?}");
        executor.forget(ID, want.generation);
        let left = || fs::read_dir(w.path("data/replicas/n1")).unwrap().count();
        let recorded = || record::path(&w.path("data/records/n1"), ID, want.generation).exists();
        eventually(&format!("nothing is left of {wanted:?}"), || left() == 0 && !recorded()).await;
        want.generation = Generation(want.generation.0 + 1);
    }
}

/// As on a disk that hangs, or in the moment before the work sees that nobody waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_laid_out_still_when_its_replica_is_stopped_is_removed_when_that_is_over() {
    let w = World::new();
    let executor = w.open();
    let mut want = w.shell("exec sleep 300").await;
    // Once, so that its bytes are here.
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    executor.gone().await;
    executor.forget(ID, want.generation);
    want.generation = Generation(2);
    let dir = w.path("data/replicas/n1/r1.0.j1.g2");
    let file = dir.join("model/program.py");
    fs::create_dir_all(dir.join("model")).unwrap();
    // Whoever writes into it waits for somebody who reads.
    nix::unistd::mkfifo(&file, Mode::S_IRWXU).unwrap();
    // Laying out says when a copy was used last, just before it begins to write.
    let cached = fs::read_dir(w.path("data/cache/sha256")).unwrap().next().unwrap().unwrap().path();
    fs::File::open(&cached).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    executor.start(ID, &want);
    eventually("it is laid out", || fs::metadata(&cached).unwrap().modified().unwrap() > SystemTime::UNIX_EPOCH).await;
    executor.stop(ID, want.generation, Reason::ConsentRevoked);
    let begun = Instant::now();
    assert_eq!(executor.gone().await, End { ok: true, why: Reason::ConsentRevoked });
    assert!(begun.elapsed() < Duration::from_secs(5), "its devices are free: nothing of it ever ran");
    executor.forget(ID, want.generation);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(file.exists(), "somebody is at work there");
    let copy = nf_core::reconcile::Purge {
        copy: nf_core::id::Digest16([1; 16]),
        placed: 1,
        tenant: want.spec.tenant.clone(),
        manifest: want.spec.manifest.unwrap(),
    };
    assert!(!executor.purge(&copy), "a copy may yet come");
    let reads = std::thread::spawn(move || {
        let mut open = fs::File::open(&file).unwrap();
        // What it did last would wait for a reader, too. It may have been removed with all the rest by now.
        fs::remove_file(&file).ok();
        io::copy(&mut open, &mut io::sink()).unwrap()
    });
    assert_eq!(reads.join().unwrap(), "exec sleep 300".len() as u64);
    eventually("all of it goes", || !dir.exists()).await;
    executor.until("and the copy", |e| e.purge(&copy).then_some(())).await;
}
