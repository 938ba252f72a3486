//! A device is free for its next replica when it was seen free, and not before.

use super::*;
use nf_core::fault::Fault;
use nf_core::job::Share;
use nf_core::sharing::Kept;

/// One whole device, with what is on it.
async fn on_device(w: &World, holds: &str) -> Want {
    fs::write(w.path("devices.json"), holds).unwrap();
    let mut want = w.shell("exec sleep 300").await;
    want.shares = vec![Share { device: 0, milli: 1_000, kept: Kept::Alone }];
    want
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_waits_until_its_device_is_seen_free() {
    let w = World::new();
    let executor = w.open();
    let want = on_device(&w, r#"{"GPU-7": {"used": 85899345920, "pids": [4711]}}"#).await;
    executor.start(ID, &want);
    let path = w.path("data/logs/n1/r1.0.j1.log");
    let says = |text: &str| fs::read_to_string(&path).is_ok_and(|said| said.contains(text));
    eventually("it says why it waits", || says("GPU-7 is not free: 81920 MiB in use, pid 4711")).await;
    assert!(w.record_there(&want).is_none(), "nothing was started");
    // The process is gone, its memory not yet.
    fs::write(w.path("devices.json"), r#"{"GPU-7": {"used": 85899345920}}"#).unwrap();
    eventually("it says so", || says("81920 MiB in use, no process")).await;
    assert!(w.record_there(&want).is_none());
    fs::write(w.path("devices.json"), r#"{"GPU-7": {"used": 524288000}}"#).unwrap();
    executor.stage_is(1, Stage::Ready).await;
    assert!(held(&w.alarms).is_empty() && w.sees.1.is_empty());
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    assert_eq!(executor.gone().await, stopped());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_in_vain_is_started_elsewhere_and_somebody_is_told() {
    let mut w = World::new();
    w.wait = Duration::from_millis(600);
    let executor = w.open();
    let want = on_device(&w, r#"{"GPU-7": {"pids": [4711]}}"#).await;
    let begun = Instant::now();
    executor.start(ID, &want);
    assert_eq!(executor.gone().await, End::failed(Reason::DeviceFault));
    assert!(begun.elapsed() >= w.wait && w.record_there(&want).is_none());
    let told = w.sees.1.try_recv().unwrap();
    assert_eq!((&*told.uuid, told.fault, told.simulated), ("GPU-7", Fault::Occupied, true));
    assert!(held(&w.alarms)[0].as_ref().unwrap().contains("GPU-7 is not free"));
    fs::remove_file(w.path("devices.json")).unwrap();
    eventually("the alarm ends when it is free after all", || held(&w.alarms).last() == Some(&None)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shares_its_device_waits_for_nobody_and_a_stop_is_heard_while_waiting() {
    let w = World::new();
    let executor = w.open();
    let mut want = on_device(&w, r#"{"GPU-7": {"pids": [4711]}}"#).await;
    executor.start(ID, &want);
    let path = w.path("data/logs/n1/r1.0.j1.log");
    eventually("it waits", || fs::read_to_string(&path).is_ok_and(|said| said.contains("is not free"))).await;
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    assert_eq!(executor.gone().await, stopped());
    executor.forget(ID, want.generation);
    want.generation = Generation(2);
    want.shares[0].milli = 500;
    executor.start(ID, &want);
    executor.stage_is(2, Stage::Ready).await;
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    executor.until("both are gone", |e| e.stages().is_empty().then_some(())).await;
}
