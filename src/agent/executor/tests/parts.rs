//! A replica with a part of a GPU gets the limits of whatever keeps it to that.

use super::*;
use crate::agent::runtimes::mps::tests::daemon;
use nf_core::id::DeviceType;
use nf_core::job::Share;
use nf_core::mig::{Shape, Slice};
use nf_core::sharing::{Kept, Part};

fn part(kept: Kept) -> Option<Part> {
    Some(Part { kept, milli: 255, memory: 20 << 30, of: 80 << 30 })
}

/// What the replica's first process was told.
async fn told(executor: &Executor, w: &World, want: &Want) -> String {
    executor.start(ID, want);
    executor.stage_is(1, Stage::Ready).await;
    let pid = w.record(want).process.unwrap().pid;
    let said = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    executor.gone().await;
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mps_has_its_limits_in_the_environment() {
    let w = World::new();
    let executor = w.open();
    let mut want = w.shell("exec sleep 300").await;
    want.part = part(Kept::Mps);
    let mut service = daemon(&w.path("mps"), None).await;
    let environment = told(&executor, &w, &want).await;
    for wanted in [
        format!("CUDA_MPS_PIPE_DIRECTORY={}", w.path("mps").display()),
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=25".into(),
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=20480M".into(),
        "CUDA_VISIBLE_DEVICES=GPU-7".into(),
    ] {
        assert!(environment.split('\0').any(|pair| pair == wanted), "{wanted} in {environment}");
    }
    service.kill().unwrap();
    service.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_daemon_nothing_starts_that_it_should_keep() {
    let w = World::new();
    let executor = w.open();
    let mut want = w.shell("exec sleep 300").await;
    want.part = part(Kept::Mps);
    executor.start(ID, &want);
    assert_eq!(executor.gone().await, End::failed(Reason::FractionNotEnforced));
    assert!(w.record_there(&want).is_none(), "no process was spawned");
    let log = fs::read_to_string(w.path("data/logs/n1/r1.0.j1.log")).unwrap();
    assert!(log.contains("would not be enforced") && log.contains("no MPS control daemon"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_keeps_to_its_part_by_itself_is_told_which() {
    let w = World::new();
    let executor = w.open();
    let script = "printf '%s' \"$1\" > \"$HOME/part\"; exec sleep 300";
    let argv = ["/bin/sh", "{model}", "{gpu_memory_part}"];
    let mut want = w.publish_with(script, &argv, 30, |process| process.limits_gpu = true).await;
    (want.port, want.part) = (None, part(Kept::Runtime));
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    let at = w.path("data/replicas");
    let part = || {
        let found = walk(&at).into_iter().find(|path| path.ends_with("part"))?;
        fs::read_to_string(found).ok().filter(|text| !text.is_empty())
    };
    eventually("it writes what it was told", || part().is_some()).await;
    assert_eq!(part().as_deref(), Some("0.25"));
    let pid = w.record(&want).process.unwrap().pid;
    assert!(!fs::read_to_string(format!("/proc/{pid}/environ")).unwrap().contains("CUDA_MPS"));
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    executor.gone().await;
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).map(|all| all.filter_map(Result::ok).map(|e| e.path()).collect::<Vec<_>>());
    let mut out = Vec::new();
    for path in entries.unwrap_or_default() {
        if path.is_dir() { out.extend(walk(&path)) } else { out.push(path) }
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slice_that_no_driver_has_made_is_no_place_to_start_in() {
    let slice = Slice { shape: Shape::Three, start: 4 };
    for (uuid, starts) in [("GPU-7", false), ("GPU-sim-n1-0", true)] {
        let w = World::new();
        let executor = w.open();
        let mut want = w.shell("exec sleep 300").await;
        want.shares = vec![Share { device: 0, milli: slice.shape.milli(), kept: Kept::Mig(slice) }];
        want.uuids = vec![uuid.into()];
        Arc::make_mut(&mut want.spec).resources.mig_profile = Some(DeviceType::new("3g.40gb").unwrap());
        executor.start(ID, &want);
        if starts {
            executor.stage_is(1, Stage::Ready).await;
            executor.stop(ID, want.generation, Reason::StoppedByUser);
            executor.gone().await;
        } else {
            assert_eq!(executor.gone().await, End::failed(Reason::FractionNotEnforced));
            assert!(w.record_there(&want).is_none(), "no process was spawned");
        }
        let log = fs::read_to_string(w.path("data/logs/n1/r1.0.j1.log")).unwrap();
        let said = if starts {
            "its slice 3g.40gb of GPU-sim-n1-0, from part 4, is only played"
        } else {
            "this agent makes none"
        };
        assert!(log.contains(said), "{log}");
    }
}
