//! Where a replica that has no place was last.

use super::*;

/// Why a replica ended can be read where it ran, when it has no place any more: in its back-off, when it is over, and
/// when its node was given up.
#[test]
fn a_replica_without_a_place_tells_where_it_was_last() {
    let mut state = with_nodes(&[1]);
    let mut spec = job_spec("t1", Gpus::Whole(1));
    run(&mut state, schedule("r1", spec.clone()));
    let last = |state: &State, job: u64| {
        let view = nf_core::view::job(state, state.job(JobNo(job)).unwrap());
        let replica = &view.replicas[0];
        (replica.place.is_some(), replica.last_node.as_ref().map(ToString::to_string))
    };
    assert_eq!(last(&state, 1), (true, None));
    let ended = |job: u64| {
        let kind = ReportKind::Ended { ok: false, why: Reason::ExitedNonZero };
        let reports = vec![Report { job: JobNo(job), replica: 0, generation: Generation(1), kind }];
        let node = nf_core::id::NodeName::new("n1").unwrap();
        Intent::Reports { node, incarnation: Incarnation(1), reports }
    };
    run(&mut state, ended(1));
    assert_eq!(last(&state, 1), (false, Some("n1".into())), "it waits for its next try");
    spec.tenant = TenantId::new("t2").unwrap();
    spec.constraints.restart = Restart::OnFailure;
    run(&mut state, schedule("r2", spec));
    let before = state.job(JobNo(2)).unwrap().replicas[0].clone();
    assert_eq!((before.allocation().map(|alloc| alloc.node), before.last), (Some(NodeNo(1)), None));
    let down = nf_core::node::NodeState::Down;
    run(&mut state, Intent::NodeStates(vec![(NodeNo(1), Incarnation(1), down)]));
    assert_eq!(last(&state, 2), (false, Some("n1".into())), "its log is where it was lost");
}
