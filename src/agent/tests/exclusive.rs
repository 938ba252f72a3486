//! Replicas that must never run twice, on a node that is cut off, forgotten or started again.

use super::*;

impl World {
    fn schedule_exclusive(&mut self) {
        let mut spec = testing::job_spec("t1", Gpus::Milli(400));
        (spec.constraints.exclusive, spec.constraints.restart) = (true, nf_core::job::Restart::OnFailure);
        self.commit(testing::schedule("only-one", spec)).unwrap();
        self.run(Op::Schedule);
        self.tell(0);
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
    let mut world = World::new();
    world.schedule_exclusive();
    world.beat(1);
    world.run(Op::Step);
    world.node.unknown();
    world.now_ms += 40_000;
    world.run(Op::Step);
    assert_eq!(world.conditions(), [Condition::Stopping, Condition::Alive]);
}

#[test]
fn a_new_start_gives_itself_a_moment_for_its_first_lease() {
    let mut world = World::new();
    world.schedule_exclusive();
    world.beat(1);
    world.run(Op::Step);
    world.run(Op::Restart { adopts: true });
    world.tell(0);
    world.run(Op::Step);
    assert_eq!(world.conditions(), [Condition::Alive, Condition::Alive], "adopted, not stopped");
    world.now_ms += KILL_BUDGET.as_millis() as u64;
    world.run(Op::Step);
    assert_eq!(world.conditions(), [Condition::Stopping, Condition::Alive], "and no lease came");
}
