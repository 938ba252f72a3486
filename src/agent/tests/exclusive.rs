//! Replicas that must never run twice, on a node that is cut off, forgotten or started again.

use super::*;

impl World {
    /// One that must never run twice runs beside another, and its node has a lease.
    fn with_exclusive() -> Self {
        let mut world = World::new();
        world.schedule_exclusive();
        world.beat(1);
        world.run(Op::Step);
        world
    }

    fn schedule_exclusive(&mut self) {
        let mut spec = testing::job_spec("t1", Gpus::Milli(400));
        (spec.constraints.exclusive, spec.constraints.restart) = (true, nf_core::job::Restart::OnFailure);
        self.commit(testing::schedule("only-one", spec)).unwrap();
        self.run(Op::Schedule);
        self.tell(0);
    }

    fn schedule_later(&mut self, request: &str) {
        let mut spec = testing::job_spec("t2", Gpus::Milli(400));
        spec.constraints.exclusive = true;
        self.commit(testing::schedule(request, spec)).unwrap();
        self.tell(0);
    }

    /// Beats are answered until then.
    fn beat_until(&mut self, until_ms: u64) {
        self.beat(1);
        while self.now_ms < until_ms {
            self.now_ms = until_ms.min(self.now_ms + 5_000);
            self.beat(1);
        }
    }

    fn conditions(&self) -> Vec<Condition> {
        self.fake.there.lock().unwrap().values().copied().collect()
    }
}

#[test]
fn an_exclusive_replica_ends_before_its_lease_and_runs_again_after_it() {
    const LEASE: u64 = 45_000;
    let budget = KILL_BUDGET.as_millis() as u64;
    let mut world = World::new();
    world.schedule_exclusive();
    world.beat(1);
    let sent = world.now_ms;
    world.run(Op::Step);
    assert_eq!(world.conditions(), [Condition::Alive, Condition::Alive]);
    let stop = sent + LEASE - 2 * budget;
    assert_eq!(world.node.exclusive_until(), Some(stop), "the loop knows when to look again");
    // Cut off: no beat is answered any more. The other job's replica goes on serving.
    world.now_ms = stop - 1;
    world.run(Op::Step);
    assert_eq!(world.conditions(), [Condition::Alive, Condition::Alive]);
    world.now_ms += 1;
    world.run(Op::Step);
    assert_eq!(world.conditions(), [Condition::Stopping, Condition::Alive]);
    assert_eq!(world.node.exclusive_until(), None);
    // Gone, but not by its own will: the group is told a failure, and starts it again.
    world
        .fake
        .turn(0, |c| (c == Condition::Stopping).then_some(Condition::Gone { ok: true, why: Reason::NodeFailure }));
    world.beat(1);
    world.run(Op::Step);
    assert!(
        world
            .reports
            .reports
            .iter()
            .any(|r| { r.kind == nf_core::command::ReportKind::Ended { ok: false, why: Reason::NodeFailure } })
    );
    world.deliver(1, true);
    world.heal();
    assert_eq!(world.state.jobs().values().filter(|job| job.state() == JobState::Running).count(), 2);
}

#[test]
fn an_exclusive_replica_ends_though_the_group_forgot_the_node() {
    let mut world = World::with_exclusive();
    world.node.unknown();
    world.now_ms += 40_000;
    world.run(Op::Step);
    assert_eq!(world.conditions(), [Condition::Stopping, Condition::Alive]);
}

#[test]
fn a_new_start_gives_itself_a_moment_for_its_first_lease() {
    let mut world = World::with_exclusive();
    world.run(Op::Restart { adopts: true });
    world.tell(0);
    world.run(Op::Step);
    assert_eq!(world.conditions(), [Condition::Alive, Condition::Alive], "adopted, not stopped");
    world.now_ms += KILL_BUDGET.as_millis() as u64;
    world.run(Op::Step);
    assert_eq!(world.conditions(), [Condition::Stopping, Condition::Alive], "and no lease came");
}

/// The data directory was lost, or its incarnation: an earlier agent, or what one left, may run what the group had
/// placed here, for as long as the last lease. What may run twice starts at once.
#[test]
fn a_start_that_lost_its_records_waits_a_lease_before_it_starts_what_must_not_run_twice() {
    const LEASE: u64 = 45_000;
    let budget = KILL_BUDGET.as_millis() as u64;
    let mut world = World::with_exclusive();
    world.fake.forgot.store(true, Ordering::SeqCst);
    world.run(Op::Restart { adopts: false });
    let registered = world.now_ms;
    world.tell(0);
    world.beat(1);
    world.run(Op::Step);
    assert_eq!(world.conditions(), [Condition::Alive], "the default kind alone");
    assert!(world.node.waits());
    // What was placed since this start is in no earlier one's slice.
    world.schedule_later("later");
    world.run(Op::Step);
    assert_eq!(world.conditions().len(), 2);
    // Told to stop meanwhile, it is not said to be gone either: it would start elsewhere.
    let request = RequestId::new("only-one").unwrap();
    world.commit(Intent::Stop { request, tenant: None, why: Reason::StoppedByUser }).unwrap();
    world.tell(0);
    world.beat_until(registered + LEASE + budget - 1);
    world.run(Op::Step);
    let ended = |world: &World| {
        let all = world.reports.reports.iter();
        all.filter(|r| matches!(r.kind, nf_core::command::ReportKind::Ended { .. })).count()
    };
    assert_eq!((world.conditions().len(), ended(&world)), (2, 0));
    world.now_ms += 1;
    world.run(Op::Step);
    assert_eq!(ended(&world), 1, "a lease and the guard's margin after the registration");
    assert!(world.fake.remembers());
}

#[test]
fn after_that_lease_it_starts() {
    let mut world = World::new();
    world.schedule_exclusive();
    world.fake.forgot.store(true, Ordering::SeqCst);
    world.run(Op::Restart { adopts: false });
    world.tell(0);
    world.beat(1);
    world.run(Op::Step);
    assert_eq!(world.conditions(), [Condition::Alive]);
    world.beat_until(world.now_ms + 45_000 + KILL_BUDGET.as_millis() as u64);
    world.run(Op::Step);
    assert_eq!(world.conditions(), [Condition::Alive, Condition::Alive]);
}

/// While no leader answered, voters that had not heard of this start may have vouched for an earlier one.
#[test]
fn where_nobody_led_meanwhile_it_waits_anew() {
    let mut world = World::new();
    world.schedule_exclusive();
    world.fake.forgot.store(true, Ordering::SeqCst);
    world.run(Op::Restart { adopts: false });
    world.tell(0);
    world.beat(1);
    world.now_ms += 30_000;
    let again = world.now_ms;
    let waits = 3_000 + 45_000 + KILL_BUDGET.as_millis() as u64;
    world.beat_until(again + waits - 1);
    world.run(Op::Step);
    assert_eq!(world.conditions(), [Condition::Alive]);
    world.beat_until(again + waits);
    world.run(Op::Step);
    assert_eq!(world.conditions(), [Condition::Alive, Condition::Alive]);
}

#[test]
fn one_that_is_stopping_already_has_no_grace_beyond_its_lease() {
    let mut world = World::with_exclusive();
    let (only, generation) = (ReplicaId { job: JobNo(1), replica: 0 }, Generation(1));
    world.fake.stop(only, generation, Leave { grace_ms: 600_000, ..Leave::now(Reason::NodeDrain) });
    world.run(Op::Step);
    assert!(world.node.exclusive_until().is_some(), "the loop looks again in time");
    world.now_ms += 40_000;
    world.run(Op::Step);
    assert_eq!(world.fake.stops.lock().unwrap().last(), Some(&(only, Reason::NodeFailure)));
}

#[test]
fn a_node_that_the_group_never_knew_has_no_earlier_start_to_wait_for() {
    let mut world = World::new();
    world.schedule_exclusive();
    world.fake.forgot.store(true, Ordering::SeqCst);
    world.node = World::agent(2, &world.fake);
    world.node.registered(world.index, true, world.now_ms);
    world.tell(0);
    world.beat(1);
    world.run(Op::Step);
    assert_eq!(world.conditions(), [Condition::Alive, Condition::Alive]);
    assert!(world.fake.remembers());
}
