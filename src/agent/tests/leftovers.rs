//! What runs on a node that was away, and is wanted no more.

use super::*;

#[test]
fn leftovers_of_a_job_that_was_deleted_an_hour_ago_end() {
    let mut world = World::new();
    world.run(Op::Schedule);
    world.tell(0);
    world.beat(1);
    world.run(Op::Step);
    // The node is away. Its job is deleted, and in the end even that there was one is forgotten.
    world.commit(Intent::NodeStates(vec![(NODE, Incarnation(1), NodeState::Down)])).unwrap();
    let request = RequestId::new("r1").unwrap();
    world.commit(Intent::Stop { request: request.clone(), tenant: None, why: Reason::StoppedByUser }).unwrap();
    world.run(Op::Time(3_600_000));
    assert!(world.state.jobs().is_empty() && world.state.owners(&request).next().is_none());
    world.run(Op::Restart { adopts: true });
    world.tell(0);
    world.run(Op::Step);
    assert!(world.fake.there.lock().unwrap().values().eq(&[Condition::Stopping]), "needs no lease to be ended");
    world.run(Op::Stopped(0));
    world.run(Op::Step);
    assert!(world.fake.there.lock().unwrap().is_empty() && world.reports.is_empty());
}
