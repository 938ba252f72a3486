//! What becomes of a claim whose nodes or replicas are not all there any more when its victims are gone.

use crate::id::{NodeName, RequestId, TenantId};
use crate::invariants;
use crate::job::{Job, JobSpec};
use crate::node::{Cordon, NodeState};
use crate::placement::preempt::tests::all_gone;
use crate::placement::{Chosen, Policy};
use crate::plan::{Intent, plan};
use crate::resources::Gpus;
use crate::scaling::{Scaling, Target};
use crate::state::State;
use crate::tenant::Quota;
use crate::testing;
use std::sync::Arc;

/// So many nodes of one GPU, each with work that gives way and wants two minutes for it.
fn full(nodes: u16) -> State {
    let mut state = State::new();
    let mut chosen = Chosen::from(Policy::Fragmentation);
    let rules = &mut chosen.preemption;
    (rules.min_run_ms, rules.delay_ms, rules.max_grace_ms) = (0, 0, 120_000);
    testing::run(&mut state, Intent::SetPlacement { chosen, seen: None });
    let quota = Quota { gpu_milli: Some(1_000_000), ..Quota::default() };
    testing::run(&mut state, Intent::SetQuota { tenant: TenantId::new("t1").unwrap(), quota });
    for i in 1..=nodes {
        testing::run(&mut state, testing::register(&format!("n{i}"), testing::node_spec(1)));
        let mut low = testing::job_spec("t1", Gpus::Whole(1));
        (low.constraints.preemptible, low.constraints.checkpoint_ms) = (true, Some(120_000));
        testing::run(&mut state, testing::schedule(&format!("low{i}"), low));
    }
    state
}

fn urgent(replicas: u16) -> JobSpec {
    let mut spec = testing::job_spec("t1", Gpus::Whole(1));
    (spec.priority, spec.replicas) = (5, replicas);
    spec
}

fn job(state: &State, request: &str) -> Arc<Job> {
    state.job_of(&RequestId::new(request).unwrap()).unwrap().clone()
}

fn claimed(state: &State) -> usize {
    job(state, "high").claim.as_ref().map_or(0, |claim| claim.placements.len())
}

/// How many of its replicas have a place.
fn placed(state: &State) -> usize {
    job(state, "high").replicas.iter().filter(|replica| replica.allocation().is_some()).count()
}

/// Whether so many were told to give way.
fn stopping(state: &State) -> usize {
    use crate::job::Phase;
    let stops = |job: &&Arc<Job>| job.replicas.iter().any(|r| matches!(r.phase, Phase::Stopping { .. }));
    state.jobs().values().filter(stops).count()
}

fn turns(state: &mut State, node: &str, to: NodeState) {
    let node = state.node_named(&NodeName::new(node).unwrap()).unwrap();
    let states = vec![(node.no, node.incarnation, to)];
    testing::run(state, Intent::NodeStates(states));
}

fn cordon(state: &mut State, node: &str) {
    let cordon = Cordon { by: "me".into(), reason: "fans".into(), at_ms: 0, drain: None };
    testing::run(state, Intent::Cordon { node: NodeName::new(node).unwrap(), cordon: Some(cordon) });
}

fn claimed_node(state: &State) -> String {
    let claim = job(state, "high").claim.clone().unwrap();
    state.node(claim.placements[0].alloc.node).unwrap().name.to_string()
}

#[test]
fn a_beat_that_is_late_evicts_nobody_else() {
    let mut state = full(2);
    testing::run(&mut state, testing::schedule("high", urgent(1)));
    let node = claimed_node(&state);
    turns(&mut state, &node, NodeState::Suspect);
    assert_eq!((claimed(&state), claimed_node(&state)), (1, node.clone()), "it waits");
    assert_eq!(plan(&state, &Intent::PlaceWaiting).unwrap().commands, []);
    // Also when the victim is gone before the next beat comes.
    all_gone(&mut state);
    assert_eq!((claimed(&state), placed(&state)), (1, 0), "a node that is silent is given nothing");
    turns(&mut state, &node, NodeState::Ready);
    assert_eq!((claimed(&state), placed(&state), stopping(&state)), (0, 1, 0));
    assert_eq!(invariants::check(&state), []);
}

#[test]
fn of_the_nodes_of_a_claim_only_those_are_told_that_are_silent() {
    let mut state = full(3);
    testing::run(&mut state, testing::schedule("high", JobSpec { gang: true, ..urgent(3) }));
    turns(&mut state, "n2", NodeState::Suspect);
    all_gone(&mut state);
    assert_eq!((claimed(&state), placed(&state)), (3, 0));
    let told = crate::placement::explain::blockers(&state, &job(&state, "high"));
    assert!(told[0].detail.contains("and n2 is silent"), "{told:?}");
    assert_eq!(told[0].nodes, 1);
}

#[test]
fn a_node_that_stays_silent_or_is_cordoned_is_claimed_no_more() {
    for silent in [true, false] {
        let mut state = full(1);
        testing::run(&mut state, testing::schedule("high", urgent(1)));
        match silent {
            true => {
                turns(&mut state, "n1", NodeState::Suspect);
                turns(&mut state, "n1", NodeState::Unknown);
            }
            false => cordon(&mut state, "n1"),
        }
        assert_eq!((claimed(&state), placed(&state)), (0, 0), "silent: {silent}");
    }
}

#[test]
fn what_is_still_there_of_a_claim_is_taken() {
    let mut state = full(4);
    testing::run(&mut state, testing::schedule("high", urgent(4)));
    assert_eq!(claimed(&state), 4);
    cordon(&mut state, "n2");
    assert_eq!(claimed(&state), 3, "its node is anybody's again");
    all_gone(&mut state);
    assert_eq!((claimed(&state), placed(&state)), (0, 3));
    assert_eq!(invariants::check(&state), []);
}

#[test]
fn a_service_that_wants_fewer_meanwhile_takes_those_that_it_wants() {
    let mut state = full(3);
    let mut spec = urgent(3);
    spec.scaling = Some(Scaling { min: 1, max: 3, ..Scaling::default() });
    testing::run(&mut state, testing::schedule("high", spec));
    assert_eq!(claimed(&state), 3);
    let target =
        Target { replicas: 2, why: crate::autoscaler::Why::QueueDepth, inputs: None, seen: None, learned: None };
    let request = RequestId::new("high").unwrap();
    testing::run(&mut state, Intent::Scale { request, tenant: None, target });
    assert_eq!(claimed(&state), 2);
    all_gone(&mut state);
    assert_eq!((claimed(&state), placed(&state)), (0, 2));
    assert_eq!(invariants::check(&state), []);
}

#[test]
fn a_gang_takes_all_that_it_claimed_or_nothing() {
    let mut state = full(3);
    testing::run(&mut state, testing::schedule("high", JobSpec { gang: true, ..urgent(3) }));
    assert_eq!(claimed(&state), 3);
    cordon(&mut state, "n2");
    assert_eq!(claimed(&state), 0, "three of two nodes it will never be");
    all_gone(&mut state);
    assert_eq!(placed(&state), 0);
    assert_eq!(invariants::check(&state), []);
}
