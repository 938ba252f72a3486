//! How programs end that nobody watches, and those that do not end at all.

use super::*;
use crate::agent::runtimes::processes::KEY;
use crate::agent::troubles::PROCESS_STUCK;
use nf_core::job::Restart;
use std::sync::atomic::{AtomicBool, Ordering};

/// Goes on until its directory has a file `go`, which is a script then.
const WAITS: &str = "while [ ! -e go ]; do sleep 0.05; done; . ./go";

/// A job that is over when its program says so.
async fn batch(w: &World) -> (Executor, Want, PathBuf) {
    let (executor, mut want) = (w.open(), w.shell(WAITS).await);
    Arc::make_mut(&mut want.spec).constraints.restart = Restart::OnFailure;
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    (executor, want, w.path("data/replicas/n1/r1.0.j1.g1"))
}

async fn say(dir: &Path, script: &str) {
    fs::write(dir.join("new"), script).unwrap();
    fs::rename(dir.join("new"), dir.join("go")).unwrap();
}

const DONE: End = End { ok: true, why: Reason::Completed };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_ended_well_while_no_agent_was_here_has_ended_well() {
    let w = World::new();
    let (executor, want, dir) = batch(&w).await;
    executor.shutdown_keeping_replicas();
    let process = w.record(&want).process.unwrap();
    say(&dir, "(sleep 300 &); exit 0").await;
    eventually("it has ended", || !process.lives()).await;
    let executor = eventually_open(&w).await;
    assert_eq!(executor.gone().await, DONE);
    assert_eq!(w.living(), 0, "what it left behind goes, too");
    executor.shutdown_keeping_replicas();

    // The machine went down after it: it need not run again. Nobody had written down its end.
    let mut record = w.record(&want);
    (record.ended, record.boot) = (None, "another".into());
    record.save(&w.path("data/records/n1")).unwrap();
    assert_eq!(eventually_open(&w).await.gone().await, DONE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_an_adopted_program_ended_is_known() {
    for (script, end) in [
        ("exit 0", DONE),
        ("exit 7", End::failed(Reason::ExitedNonZero)),
        ("kill -KILL $$", End::failed(Reason::RuntimeFailed)),
    ] {
        let w = World::new();
        let (executor, _, dir) = batch(&w).await;
        executor.shutdown_keeping_replicas();
        let executor = eventually_open(&w).await;
        assert_eq!(executor.stages(), [(ID, Generation(1), Stage::Ready)]);
        say(&dir, script).await;
        assert_eq!(executor.gone().await, end, "{script}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_whose_end_counts_is_warned_and_told_to_end_itself() {
    let w = World::new();
    let script = "trap 'echo saved > saved; exit 0' USR1; while :; do sleep 0.05; done";
    let (executor, mut want) = (w.open(), w.shell(script).await);
    Arc::make_mut(&mut want.spec).constraints.restart = Restart::Never;
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    // The trap is set once it sleeps.
    tokio::time::sleep(Duration::from_millis(500)).await;
    executor.leave(&want, Reason::Preempted, 20);
    assert_eq!(executor.gone().await, End { ok: true, why: Reason::Preempted });
    assert_eq!(fs::read_to_string(w.path("data/replicas/n1/r1.0.j1.g1/saved")).unwrap(), "saved\n");
    executor.forget(ID, want.generation);

    want.generation = Generation(2);
    executor.start(ID, &want);
    executor.stage_is(2, Stage::Ready).await;
    let begun = Instant::now();
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    executor
        .until("gone", |e| matches!(e.actual().replicas[&ID][&Generation(2)], Condition::Gone { .. }).then_some(()))
        .await;
    assert!(begun.elapsed() < w.grace, "by TERM, not by KILL");
    assert_eq!(w.living(), 0);
}

/// Plays who survives: processes of the replica that begin as fast as others are killed, a few at a time.
#[allow(clippy::disallowed_methods, reason = "a thread of its own")]
fn multiply(on: &AtomicBool, key: &str) {
    let mut there = Vec::new();
    while on.load(Ordering::SeqCst) {
        if there.len() < 8 {
            there.push(std::process::Command::new("sleep").arg("300").env(KEY, key).spawn().unwrap());
        }
        std::thread::sleep(Duration::from_millis(1));
        there.retain_mut(|one: &mut std::process::Child| one.try_wait().unwrap().is_none());
    }
    for mut one in there {
        // It may have been killed by who ends the replica.
        let _ = one.kill();
        one.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::disallowed_methods, reason = "a thread of its own")]
async fn who_survives_kill_raises_an_alarm_and_the_group_need_not_wait() {
    let mut w = World::new();
    w.grace = Duration::from_millis(200);
    let told: Arc<Mutex<Vec<(&'static str, bool)>>> = Arc::default();
    let to = told.clone();
    let troubles = Troubles::new(move |kind, text: Option<&str>| held(&to).push((kind, text.is_some())));
    let (troubles, kill_after) = (Arc::new(troubles), Duration::from_millis(300));
    let executor = Executor::open(ExecutorConfig { troubles, kill_after, ..w.config() }).unwrap();
    let want = w.shell("while :; do sleep 1; done").await;
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    let (key, hangs) = (w.record(&want).key, Arc::new(AtomicBool::new(true)));
    // New ones come whether or not the old ones are dead, so that one at least is there whenever somebody looks.
    let undead: Vec<_> = (0..4)
        .map(|_| {
            let (on, key) = (hangs.clone(), key.clone());
            std::thread::spawn(move || multiply(&on, &key))
        })
        .collect();
    eventually("another one is there", || w.living() >= 3).await;
    executor.stop(ID, want.generation, Reason::NodeDrain);
    let condition = |e: &Executor| e.actual().replicas[&ID][&want.generation];
    let stuck = Condition::Stuck { ok: true, why: Reason::NodeDrain };
    executor.until("stuck", |e| (condition(e) == stuck).then_some(())).await;
    assert_eq!(*held(&told), [(PROCESS_STUCK, true)]);
    executor.forget(ID, want.generation);
    assert_eq!(condition(&executor), stuck, "it is there still, and holds what it has");
    assert!(Execute::lives(&executor, ID)[0].waits.as_ref().is_some_and(|text| text.contains("survive KILL")));
    let fault = w.sees.1.recv().await.unwrap();
    assert_eq!((&*fault.uuid, fault.fault), ("GPU-7", nf_core::fault::Fault::Occupied));
    hangs.store(false, Ordering::SeqCst);
    assert_eq!(executor.gone().await, End { ok: true, why: Reason::NodeDrain });
    assert_eq!(*held(&told), [(PROCESS_STUCK, true), (PROCESS_STUCK, false)]);
    undead.into_iter().for_each(|one| one.join().unwrap());
}

/// An agent is killed between a replica's end and the removal of its control group, or before anything was in that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_groups_that_nobody_is_in_any_more_go_with_the_next_start() {
    let w = World::new();
    w.open().shutdown_keeping_replicas();
    let (records, boot) = (w.path("data/records/n1"), runtimes::processes::boot_id().unwrap());
    let group = |name: &str| {
        let group = w.path("groups").join(name);
        fs::create_dir_all(group.join("inner")).unwrap();
        group
    };
    let record = |job, group: &Path| {
        let launch = Launch::of(ReplicaId { job: JobNo(job), replica: 0 }, &simulated_want());
        let mut record = Record::new(NodeName::new("n1").unwrap(), launch, boot.clone(), "/health".into(), 30);
        record.cgroup = Some(group.to_owned());
        record
    };
    let (ended, begun) = (group("ended"), group("begun"));
    let mut over = record(1, &ended);
    over.ended = Some(stopped());
    over.save(&records).unwrap();
    record(2, &begun).save(&records).unwrap();
    let executor = eventually_open(&w).await;
    assert!(!ended.exists() && !begun.exists());
    assert_eq!(executor.gone().await, stopped(), "how it ended is told still");
    assert!(!executor.actual().replicas.contains_key(&ReplicaId { job: JobNo(2), replica: 0 }), "it never was");
}
