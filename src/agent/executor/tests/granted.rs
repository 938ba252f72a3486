//! Exclusive replicas that a start finds without agent, without guard, and without a word of the group.

use super::*;
use crate::agent::lease::boot_ms;
use crate::agent::runtimes::processes::boot_id;

/// One that an agent and its guard have left.
struct Left {
    w: World,
    want: Want,
    process: Identity,
}

impl Left {
    async fn new() -> Self {
        let w = World::new();
        guard(&w).await;
        let executor = w.open();
        let until_ms = boot_ms() + 120_000;
        executor.guard_until(Some(until_ms));
        let mut want = w.shell("while :; do sleep 0.1; done").await;
        Arc::make_mut(&mut want.spec).constraints.exclusive = true;
        executor.start(ID, &want);
        executor.stage_is(1, Stage::Ready).await;
        let written = || fs::read_to_string(w.path("data/guard/n1/granted")).unwrap_or_default();
        eventually("its lease is written down", || written().ends_with(&format!(" {until_ms:020}\n"))).await;
        let process = w.record(&want).process.unwrap();
        executor.shutdown_keeping_replicas();
        drop(executor);
        // That guard holds it for two minutes, and nobody finds it any more: as if it had been killed.
        fs::rename(w.path("data/guard"), w.path("data/former")).unwrap();
        Self { w, want, process }
    }

    /// What a lease proved, as the agent before would have written it.
    fn granted(&self, boot: &str, until_ms: u64) {
        fs::create_dir_all(self.w.path("data/guard/n1")).unwrap();
        fs::write(self.w.path("data/guard/n1/granted"), format!("{boot} {until_ms:020}\n")).unwrap();
    }

    /// A new start, to which nobody grants a lease, sees it end.
    async fn ends(&self) {
        guard(&self.w).await;
        let executor = self.w.open();
        assert_eq!(executor.actual().replicas[&ID][&self.want.generation], Condition::Alive, "adopted");
        assert_eq!(executor.gone().await, End::failed(Reason::NodeFailure));
        assert!(!self.process.lives());
    }
}

/// A guard on a thread of the test.
async fn guard(w: &World) {
    let dir = w.path("data/guard/n1");
    let own = dir.clone();
    std::thread::spawn(move || crate::agent::guard::run(&own).unwrap());
    eventually("the guard listens", || dir.join("socket").exists()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_lives_as_long_as_a_lease_proved_and_no_longer() {
    let left = Left::new().await;
    let until_ms = boot_ms() + 2_500;
    left.granted(&boot_id().unwrap(), until_ms);
    left.ends().await;
    let late_ms = boot_ms().checked_sub(until_ms).expect("not before its time");
    assert!(late_ms < 10_000, "{late_ms} ms late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_which_nothing_is_written_ends_at_once() {
    let left = Left::new().await;
    left.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_proven_before_the_machine_booted_counts_for_nothing() {
    let left = Left::new().await;
    left.granted("00000000-0000-0000-0000-000000000000", boot_ms() + 120_000);
    left.ends().await;
}
