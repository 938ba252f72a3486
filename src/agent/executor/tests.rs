//! The executor with real small processes, each test in a [`World`] of its own.

mod containers;
mod corrupt;
mod dockerd;
mod draining;
mod ended;
mod escapes;
mod granted;
mod keeper;
mod owned;
mod parts;
mod personal;
mod prefetch;
mod saving;
mod simulated;
mod stages;
mod strays;
mod vacant;
mod world;

use super::*;
use crate::agent::faults::{Seen, Sees, channel};
use crate::agent::runtimes::processes::{Family, Identity};
use crate::agent::runtimes::vacancy::{Alarm, Sensor};
use crate::models::{Draft, Process, Ready, publish};
use nf_core::id::{JobNo, ModelId, VersionId};
use nf_core::resources::Gpus;
use nf_core::testing;
use nix::sys::signal::Signal;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;
use world::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_gets_ready_and_is_stopped() {
    let w = World::new();
    let (executor, want) = (w.open(), w.server().await);
    executor.start(ID, &want);
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    let pid = w.record(&want).process.unwrap().pid;

    let environ = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let names: Vec<&str> = environ.split('\0').filter_map(|e| e.split_once('=')).map(|(k, _)| k).collect();
    for name in ["PATH", "HOME", "NF_MODEL", "NF_MODEL_SHA256", "NF_PORT", "EXTRA", "CUDA_VISIBLE_DEVICES"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert!(environ.contains("CUDA_VISIBLE_DEVICES=GPU-7\0") && !names.contains(&"CARGO_TARGET_DIR"), "{environ}");
    let dir = w.path("data/replicas/n1/r1.0.j1.g1");
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(log(&executor, 50).await.contains("hello from m1"));
    assert_eq!(log(&executor, 1).await.lines().count(), 1);
    // Another tenant may have a job of the same request once this one is long over.
    let namesake = ReplicaId { job: JobNo(2), ..ID };
    assert_eq!(log_of(&executor, namesake, 50).await.map_err(|e| e.kind()), Err(io::ErrorKind::NotFound));

    // The model is sick, then well again.
    fs::write(dir.join("sick"), "").unwrap();
    executor.stage_is(1, Stage::NotReady).await;
    fs::remove_file(dir.join("sick")).unwrap();
    executor.stage_is(1, Stage::Ready).await;

    executor.stop(ID, want.generation, Reason::StoppedByUser);
    assert_eq!(executor.actual().replicas[&ID][&want.generation], Condition::Stopping);
    assert_eq!(executor.gone().await, stopped());
    assert_eq!(Identity::of(pid), None);
    executor.forget(ID, want.generation);
    assert_eq!(executor.actual().replicas.len(), 0);
    eventually("its directory and record are removed", || {
        !dir.exists() && !record::path(&w.path("data/records/n1"), ID, want.generation).exists()
    })
    .await;
    assert!(log(&executor, 1).await.contains("StoppedByUser"), "logs outlive the replica");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ignores_term_is_killed() {
    let mut w = World::new();
    w.grace = Duration::from_millis(300);
    let (executor, want) = (w.open(), w.shell("trap '' TERM; echo up; while :; do sleep 1; done").await);
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    let log_path = w.path("data/logs/n1/r1.0.j1.log");
    eventually("the trap is set", || fs::read_to_string(&log_path).is_ok_and(|t| t.contains("up"))).await;
    executor.stop(ID, want.generation, Reason::Preempted);
    assert_eq!(executor.gone().await, End { ok: true, why: Reason::Preempted });
    assert_eq!(w.living(), 0);
    assert!(log(&executor, 9).await.contains("KILL"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_child_survives_however_it_hid() {
    let mut w = World::new();
    w.grace = Duration::from_millis(300);
    // One grandchild in the background, one in a session of its own, both deaf to TERM.
    let script = "trap '' TERM; (setsid sh -c 'trap \"\" TERM; sleep 300; sleep 300' &) ; (sh -c 'sleep 300; sleep 300' &); sleep 300; sleep 300";
    let (executor, want) = (w.open(), w.shell(script).await);
    executor.start(ID, &want);
    eventually("all have started", || w.path("data/records/n1").exists() && w.living() >= 5).await;
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    assert_eq!(executor.gone().await, stopped());
    assert_eq!(w.living(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_is_told_with_its_cause() {
    let w = World::new();
    let executor = w.open();
    for (script, end, says) in [
        ("echo so; (sleep 300 &); exit 7", End::failed(Reason::ExitedNonZero), "exit 7"),
        ("kill -SEGV $$", End::failed(Reason::RuntimeFailed), "signal 11"),
        ("exit 0", End { ok: true, why: Reason::Completed }, "exit 0"),
    ] {
        let _ = fs::remove_dir_all(w.path("store"));
        let want = w.shell(script).await;
        executor.start(ID, &want);
        assert_eq!(executor.gone().await, end);
        assert_eq!(w.living(), 0, "what it left behind goes, too");
        assert!(log(&executor, 2).await.contains(says));
        executor.forget(ID, want.generation);
        eventually("forgotten", || !w.path("data/replicas/n1/r1.0.j1.g1").exists()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_never_gets_ready_is_given_up() {
    let w = World::new();
    let executor = w.open();
    let mut want = w.publish("sleep 300", &["/bin/sh", "{model}"], 1).await;
    executor.start(ID, &want);
    assert_eq!(executor.gone().await, End::failed(Reason::ReadyTimeout));
    assert_eq!(w.living(), 0);
    // And an older launch than one known is refused.
    want.generation = Generation(0);
    executor.start(ID, &want);
    assert_eq!(executor.actual().replicas[&ID].len(), 1);
}

/// The next agent finds the process by its record, pid unchanged, and can stop it.
#[test]
fn a_process_outlives_its_agent_and_is_adopted() {
    let w = World::new();
    let agent = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let first = agent();
    let want = first.block_on(async {
        let (executor, want) = (w.open(), w.server().await);
        executor.start(ID, &want);
        executor.stage_is(1, Stage::Ready).await;
        let second = Executor::open(w.config()).err().expect("one agent at a time");
        assert!(second.to_string().contains("another agent"), "{second}");
        want
    });
    // As a kill would: nothing is told to anyone.
    first.shutdown_timeout(Duration::from_secs(5));
    let process = w.record(&want).process.unwrap();
    assert!(process.lives());

    // A crash between spawn and record: only the key leads to the process.
    let mut record = w.record(&want);
    record.process = None;
    record.save(&w.path("data/records/n1")).unwrap();

    let second = agent();
    second.block_on(async {
        let executor = w.open();
        assert_eq!(executor.stages(), [(ID, Generation(1), Stage::Ready)], "known as ready, no flap");
        executor.start(ID, &want);
        eventually("written down again", || w.record(&want).process == Some(process)).await;
        assert!(TcpStream::connect(("127.0.0.1", want.port.unwrap())).is_ok());
        executor.shutdown_keeping_replicas();
        assert!(process.lives());
    });
    second.shutdown_timeout(Duration::from_secs(5));

    let third = agent();
    third.block_on(async {
        let executor = w.open();
        executor.stop(ID, want.generation, Reason::StoppedByUser);
        assert_eq!(executor.gone().await, stopped());
        assert!(!process.lives());
    });
    third.shutdown_timeout(Duration::from_secs(5));

    let fourth = agent();
    fourth.block_on(async {
        let executor = w.open();
        assert_eq!(executor.gone().await, stopped(), "told until it is forgotten");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_with_the_pid_is_left_alone() {
    let w = World::new();
    let want = w.shell("sleep 300").await;
    drop(w.open());
    let stranger = Stranger(std::process::Command::new("sleep").arg("300").spawn().unwrap());
    let them = Identity::of(stranger.0.id()).unwrap();
    let boot = crate::agent::runtimes::processes::boot_id().unwrap();
    let mut record = Record::new(w.config().node, Launch::of(ID, &want), boot, "/health".into(), 30);
    record.process = Some(Identity { start: them.start - 1, ..them });
    record.save(&w.path("data/records/n1")).unwrap();

    let executor = eventually_open(&w).await;
    assert_eq!(executor.gone().await, End::failed(Reason::RuntimeFailed));
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    assert!(them.lives());

    // The same pid and start of another boot prove nothing.
    record.process = Some(Identity::of(std::process::id()).unwrap());
    record.boot = "another".into();
    record.save(&w.path("data/records/n1")).unwrap();
    executor.shutdown_keeping_replicas();
    assert_eq!(eventually_open(&w).await.gone().await, End::failed(Reason::NodeFailure));
}

/// Opens as soon as the executor before has let go.
async fn eventually_open(w: &World) -> Executor {
    let opened = std::cell::OnceCell::new();
    eventually("the lock is free", || {
        opened.get().is_some() || Executor::open(w.config()).is_ok_and(|e| opened.set(e).is_ok())
    })
    .await;
    opened.into_inner().unwrap()
}

/// A process that is not ours; it ends with the test, however that ends.
struct Stranger(std::process::Child);

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_and_a_taken_port_are_refused() {
    let w = World::new();
    let (executor, mut want) = (w.open(), w.server().await);
    let program = w.path("store/m1/v1/program.py");
    let good = fs::read(&program).unwrap();
    let mut bad = good.clone();
    bad[0] ^= 1;
    fs::set_permissions(&program, std::fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&program, bad).unwrap();
    executor.start(ID, &want);
    assert_eq!(executor.gone().await, End::failed(Reason::ArtifactMismatch));
    assert!(log(&executor, 5).await.contains("file program.py: SHA-256"));
    executor.forget(ID, want.generation);
    fs::write(&program, good).unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (want.generation, want.port) = (Generation(2), Some(listener.local_addr().unwrap().port()));
    executor.start(ID, &want);
    assert_eq!(executor.gone().await, End::failed(Reason::PortTaken));
    executor.forget(ID, want.generation);

    want.generation = Generation(3);
    Arc::make_mut(&mut want.spec).manifest = Some([9; 32]);
    executor.start(ID, &want);
    assert_eq!(executor.gone().await, End::failed(Reason::ModelNotFound), "the version was changed in the store");
    executor.forget(ID, want.generation);

    (want.generation, Arc::make_mut(&mut want.spec).model) = (Generation(4), ModelId::new("other").unwrap());
    executor.start(ID, &want);
    assert_eq!(executor.gone().await, End::failed(Reason::ModelNotFound));
}

fn run_file(path: &Path) -> serde_json::Value {
    fs::read(path).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicas_run_file_gives_way_to_the_job_of_that_name() {
    let w = World::new();
    let executor = w.open();
    let want = |request: &str| {
        let mut want = simulated_want();
        (want.request, want.port) = (RequestId::new(request).unwrap(), None);
        want
    };
    let second = ReplicaId { replica: 1, ..ID };
    let named = ReplicaId { job: JobNo(ID.job.0 + 1), replica: 0 };
    executor.start(named, &want("r1.1"));
    eventually("it has its file", || run_file(&w.path("run/r1.1.json"))["status"] == "running").await;
    executor.start(second, &want("r1"));
    eventually("beside it", || run_file(&w.path("run/r1~1.json"))["job"] == "r1").await;
    assert_eq!(run_file(&w.path("run/r1.1.json"))["job"], "r1.1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_stays_while_its_record_cannot_be_read() {
    let w = World::new();
    drop(w.open());
    let dirs = [w.path("data/replicas/n1/r1.0.j1.g3"), w.path("data/replicas/n1/r1.0.j1.g4")];
    dirs.iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
    fs::write(w.path("data/records/n1/1.0.3.json"), b"{ cut sho").unwrap();
    for _ in 0..2 {
        // Set aside at the first start, remembered at the next.
        eventually_open(&w).await.shutdown_keeping_replicas();
        assert!(dirs[0].exists() && !dirs[1].exists());
        assert!(w.path("data/records/n1/1.0.3.bad").exists());
    }
}

/// A real model through the real executor: `cargo test -p neural-fabric --lib real_model -- --ignored`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs what tests/e2e/fetch_magika.sh fetches"]
async fn a_real_model_labels_rust() {
    let root = std::env::current_dir().unwrap();
    let fetched = std::process::Command::new("sh").arg(root.join("tests/e2e/fetch_magika.sh")).output().unwrap();
    let text = String::from_utf8(fetched.stdout).unwrap();
    let value = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('=')).unwrap();
    let w = World::new();
    fs::create_dir(w.path("in")).unwrap();
    fs::copy(value("model"), w.path("in/model.onnx")).unwrap();
    fs::copy(value("config"), w.path("in/config.min.json")).unwrap();
    let server = fs::read_to_string(root.join("docs/examples/onnx/onnx_server.py")).unwrap();
    let argv = [value("python"), "{file:program.py}", "{model}", "{file:config.min.json}", "{host}", "{port}"];
    let want = w.publish(&server, &argv, 60).await;

    let executor = w.open();
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    let url = format!("http://127.0.0.1:{}", want.port.unwrap());
    let source = fs::read(root.join("src/core/state.rs")).unwrap();
    let client = Probe::client().unwrap();
    let answer = client.post(format!("{url}/infer")).body(source).send().await.unwrap().text().await.unwrap();
    assert!(answer.contains("\"label\": \"rust\""), "{answer}");
    let metrics = client.get(format!("{url}/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("nf_model_request_duration_seconds_count 1.0"), "{metrics}");
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    assert_eq!(executor.gone().await, stopped());
    let log = log(&executor, 20).await;
    assert!(log.contains("drained") && !log.contains("did not end in time"), "{log}");
}
