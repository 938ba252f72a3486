//! Faults two at a time: both come back as reasons with their counts, and undoing what
//! the remedy names, and nothing else, lets the job run.

use super::*;
use crate::job::JobState;
use crate::node::Cordon;
use crate::plan::{Intent, draft};
use crate::reason::Reason;
use crate::sim::Rng;
use crate::testing;
use std::collections::BTreeSet;

/// Something that is in the way of a job that asks for two GPUs, and its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Quota,
    Cordoned,
    Down,
}

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

/// Two nodes that could run the job and, with both faults, don't.
fn broken(rng: &mut Rng, faults: [Fault; 2]) -> (State, JobSpec) {
    let mut state = State::new();
    let gpus = rng.between(2, 8) as u16;
    testing::run(&mut state, testing::register("n1", testing::node_spec(gpus)));
    // Others that are full.
    for i in 0..rng.below(6) {
        let name = format!("full{i}");
        testing::run(&mut state, testing::register(&name, testing::node_spec(2)));
        let mut spec = testing::job_spec("other", Gpus::Whole(2));
        spec.constraints.node = Some(node(&name));
        let quota = Quota { gpu_milli: Some(1_000_000), ..Quota::default() };
        testing::run(&mut state, Intent::SetQuota { tenant: spec.tenant.clone(), quota });
        testing::run(&mut state, testing::schedule(&name, spec));
    }
    let spec = testing::job_spec("t1", Gpus::Whole(2));
    for fault in faults {
        let on = state.node_named(&node("n1")).unwrap().clone();
        let intent = match fault {
            Fault::Quota => Intent::SetQuota {
                tenant: spec.tenant.clone(),
                quota: Quota { gpu_milli: Some(1_000), ..Quota::default() },
            },
            Fault::Cordoned => Intent::Cordon {
                node: on.name.clone(),
                cordon: Some(Cordon { by: "me".into(), reason: "fans".into(), at_ms: 0, drain: None }),
            },
            Fault::Down => Intent::NodeStates(vec![(on.no, on.incarnation, NodeState::Down)]),
        };
        testing::run(&mut state, intent);
    }
    (state, spec)
}

fn undo(state: &mut State, change: &Change) {
    let intent = match change {
        Change::Quota { tenant, quota } => Intent::SetQuota { tenant: tenant.clone(), quota: (**quota).clone() },
        Change::Uncordon(node) => Intent::Cordon { node: node.clone(), cordon: None },
        Change::Return(name) => {
            let node = state.node_named(name).unwrap();
            Intent::NodeStates(vec![(node.no, node.incarnation, NodeState::Ready)])
        }
        Change::SoftSharing { .. } | Change::AddNodes { .. } => {
            unreachable!("no hardware is missing, and whole GPUs are asked for")
        }
    };
    testing::run(state, intent);
}

#[test]
fn two_faults_come_back_as_reasons_and_as_what_to_do() {
    let kinds = [
        (Fault::Quota, Reason::ExceedsMaxQuota),
        (Fault::Cordoned, Reason::NodeCordoned),
        (Fault::Down, Reason::NodeDown),
    ];
    for seed in 0..120 {
        let mut rng = Rng::new(seed);
        let (a, b) = (*rng.pick(&kinds), *rng.pick(&kinds));
        let (mut state, spec) = broken(&mut rng, [a.0, b.0]);
        testing::run(&mut state, testing::schedule("r1", spec.clone()));
        let job = state.jobs().values().next_back().unwrap().clone();
        assert_eq!(job.state(), JobState::Pending, "seed {seed}");
        let reasons = super::super::explain::blockers(&state, &job);
        for (fault, reason) in [a, b] {
            let said = reasons.iter().find(|blocker| blocker.reason == reason);
            let count = said.unwrap_or_else(|| panic!("seed {seed}: {fault:?} is not in {reasons:?}")).nodes;
            assert_eq!(count, u32::from(fault != Fault::Quota), "seed {seed}");
        }
        let changes = remedy(&state, &spec, &[0]).unwrap();
        let faults: BTreeSet<Reason> = [a.1, b.1].into();
        assert_eq!(changes.len(), faults.len(), "seed {seed}: {changes:?}");
        for change in &changes {
            assert!(draft(&state, &spec).picks.is_empty(), "seed {seed}: {change} was not needed");
            undo(&mut state, change);
        }
        testing::run(&mut state, Intent::PlaceWaiting);
        assert_eq!(state.job(job.no).unwrap().state(), JobState::Admitted, "seed {seed}: {changes:?}");
    }
}

#[test]
fn hardware_is_proposed_when_nothing_else_helps() {
    let mut state = State::new();
    testing::run(&mut state, testing::register("n1", testing::node_spec(4)));
    let mut spec = testing::job_spec("t1", Gpus::Whole(6));
    spec.replicas = 3;
    let changes = remedy(&state, &spec, &[0, 1, 2]).unwrap();
    let said: Vec<String> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(said, ["raise the quota: nf quota set t1 --gpus 18", "add 3 nodes with 6 × GPU"]);
    changes.iter().for_each(|change| make(&mut state, change));
    assert_eq!(remedy(&state, &spec, &[0, 1, 2]), Some(Vec::new()));
}

#[test]
fn in_a_tree_the_quota_is_raised_by_what_is_missing_above() {
    let mut state = State::new();
    testing::run(&mut state, testing::register("n1", testing::node_spec(8)));
    let id = |name: &str| TenantId::new(name).unwrap();
    let quota = |gpus: u64, parent: Option<&str>| Quota {
        gpu_milli: Some(gpus * 1000),
        parent: parent.map(id),
        ..Quota::default()
    };
    for (name, row) in [("org", quota(0, None)), ("t1", quota(1, Some("org"))), ("t2", quota(2, Some("org")))] {
        testing::run(&mut state, Intent::SetQuota { tenant: id(name), quota: row });
    }
    let spec = testing::job_spec("t1", Gpus::Whole(4));
    let changes = remedy(&state, &spec, &[0]).unwrap();
    assert_eq!(changes, [Change::Quota { tenant: id("t1"), quota: Box::new(quota(2, Some("org"))) }]);
}
