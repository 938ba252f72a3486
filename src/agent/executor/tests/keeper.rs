//! The keeper of logs, as an agent has it beside itself.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keeper_that_ends_is_replaced_though_nothing_new_is_started() {
    let w = World::new();
    // One that ends at once, and says why: it knows no such option.
    let executor = Executor::open(ExecutorConfig { guard: "/bin/cat".into(), ..w.config() }).unwrap();
    let said = w.path("data/logs/n1/keeper.log");
    let starts = || fs::read_to_string(&said).map_or(0, |text| text.matches("--records").count());
    kept::watch_keeper(&executor.shared, Duration::from_millis(20));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(starts(), 0, "nobody's log is written");
    let want = w.shell("exec sleep 300").await;
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    let before = starts();
    eventually("it is started again", || starts() >= before + 2).await;
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    assert_eq!(executor.gone().await, stopped());
    executor.shutdown_keeping_replicas();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let left = starts();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(starts(), left, "whose agent is going needs none from it");
}
