//! Copies that are not what their manifests say: who is told of which node, and what becomes of the replica.

use super::*;
use crate::agent::troubles::MODEL_COPY_CORRUPT;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_copy_is_an_alarm_that_names_node_and_place_and_the_disks_own_is_fetched_anew() {
    let w = World::new();
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let to = told.clone();
    let troubles = Troubles::new(move |kind, text: Option<&str>| {
        assert_eq!(kind, MODEL_COPY_CORRUPT);
        held(&to).push(text.expect("it stays on").to_owned());
    });
    let executor = Executor::open(ExecutorConfig { troubles: Arc::new(troubles), ..w.config() }).unwrap();
    let mut want = w.server().await;
    let kept = |text: &str| {
        let path = text.rsplit_once("kept at ").unwrap().1;
        fs::read(path).unwrap()
    };
    let tamper = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[0] ^= 1;
        fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(path, &bytes).unwrap();
        bytes
    };
    // The cached copy: as if it had been here for a while.
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    executor.stop(ID, want.generation, Reason::NodeDrain);
    executor.gone().await;
    executor.forget(ID, want.generation);
    let cached = fs::read_dir(w.path("data/cache/sha256")).unwrap().next().unwrap().unwrap().path();
    let bad = tamper(&cached);
    want.generation = Generation(2);
    executor.start(ID, &want);
    executor.stage_is(2, Stage::Ready).await;
    let text = held(&told).last().unwrap().clone();
    assert!(text.starts_with("node n1: ") && text.contains("this node's disk") && text.contains("m1 v1"), "{text}");
    assert!(kept(&text) == bad);
    let said = log(&executor, 10).await;
    assert!(said.contains("fetched again") && !said.contains("quarantine/"), "a tenant learns no path of ours: {said}");
    executor.stop(ID, want.generation, Reason::NodeDrain);
    executor.gone().await;
    executor.forget(ID, want.generation);
    // The store's.
    fs::remove_file(&cached).unwrap();
    fs::remove_dir_all(w.path("data/cache/quarantine")).unwrap();
    let bad = tamper(&w.path("store/m1/v1/program.py"));
    want.generation = Generation(3);
    executor.start(ID, &want);
    assert_eq!(executor.gone().await, End::failed(Reason::ArtifactMismatch));
    let text = held(&told).last().unwrap().clone();
    assert!(text.contains("the store gave other bytes") && kept(&text) == bad, "{text}");
}
