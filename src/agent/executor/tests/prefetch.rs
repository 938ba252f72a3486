//! A prefetch: files are brought, verified and kept, and nothing runs.

use super::*;

/// The same version, to be brought and not run.
fn only_brought(want: &Want) -> Want {
    let mut prefetch = want.clone();
    Arc::make_mut(&mut prefetch.spec).runtime = Runtime::Prefetch;
    prefetch
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_prefetched_is_there_verified_and_stays_until_it_is_stopped() {
    let w = World::new();
    let started = w.server().await;
    // A cache with room for this version alone.
    let bytes = fs::metadata(w.path("store/m1/v1/program.py")).unwrap().len();
    let executor = Executor::open(ExecutorConfig { model_cache: bytes, ..w.config() }).unwrap();
    let want = only_brought(&started);
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    assert_eq!(w.living(), 0, "nothing runs");
    assert!(TcpStream::connect(("127.0.0.1", want.port.unwrap())).is_err(), "nobody answers");
    assert_eq!(fs::read_dir(w.path("data/cache/sha256")).unwrap().count(), 1);
    assert!(log(&executor, 10).await.contains("fetched 1 files"));
    // Somebody else's version wants the room: what is kept is evicted for nobody, also once the directory is gone.
    fs::remove_dir_all(w.path("data/replicas/n1/r1.0.j1.g1")).unwrap();
    let other = ReplicaId { job: JobNo(2), ..ID };
    fs::remove_dir_all(w.path("store/m1")).unwrap();
    let others = only_brought(&w.publish("another program, of other bytes", &["/bin/sh", "{model}"], 30).await);
    executor.start(other, &others);
    let end = |id: ReplicaId| {
        move |e: &Executor| match e.actual().replicas.get(&id)?.values().next()? {
            Condition::Gone { ok, why } => Some(End { ok: *ok, why: *why }),
            _ => None,
        }
    };
    assert_eq!(executor.until("refused for want of room", end(other)).await, End::failed(Reason::NoCapacity));
    executor.forget(other, others.generation);
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    assert_eq!(executor.gone().await, stopped());
    executor.forget(ID, want.generation);
    // Now it may go.
    let again = Want { generation: Generation(2), ..others };
    executor.start(other, &again);
    executor
        .until("the other one is there", |e| e.stages().contains(&(other, Generation(2), Stage::Ready)).then_some(()))
        .await;
    executor.stop(other, again.generation, Reason::StoppedByUser);
    executor.until("gone", end(other)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefetch_of_other_bytes_than_were_signed_ends_as_a_start_would() {
    let w = World::new();
    let (executor, want) = (w.open(), only_brought(&w.server().await));
    let path = w.path("store/m1/v1/program.py");
    let mut bytes = fs::read(&path).unwrap();
    bytes[0] ^= 1;
    fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, bytes).unwrap();
    executor.start(ID, &want);
    assert_eq!(executor.gone().await, End::failed(Reason::ArtifactMismatch));
}
