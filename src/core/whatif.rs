//! What if there were more nodes: which of the jobs that wait would have a place, and
//! where. The passes over the queue run on a copy of the state that has the nodes, until
//! they place nothing more. Commits nothing.

use crate::apply::apply;
use crate::command::Command;
use crate::id::{Incarnation, JobNo, NodeName, RequestId, TenantId};
use crate::job::Job;
use crate::node::{NodeKind, NodeSpec};
use crate::placement::pass;
use crate::reason::Refusal;
use crate::state::State;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Most nodes that can be added in thought.
pub const MOST: usize = 4096;
/// Passes over the queue, of so many jobs each.
const PASSES: usize = 64;
const PASS: usize = 256;
/// Jobs that are told of one by one.
pub const TOLD: usize = 1000;

/// A job that would get places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetIn {
    pub request: RequestId,
    pub tenant: TenantId,
    /// Replicas that would have a place and have none now.
    pub replicas: u16,
    /// Replicas that would still wait.
    pub waiting: u16,
    /// Where it would be, in the order of names.
    pub nodes: BTreeSet<NodeName>,
}

/// What the nodes would change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WhatIf {
    /// Jobs that wait now.
    pub waiting: u32,
    /// Jobs that would get a place, in the order in which they came; the first [`TOLD`].
    pub let_in: Vec<LetIn>,
    /// How many they are in all.
    pub would_start: u32,
    /// Jobs that would wait all the same.
    pub would_wait: u32,
}

/// Adds the nodes in thought.
///
/// # Errors
/// A node that the group would not take.
pub fn with_nodes(state: &State, nodes: Vec<(NodeName, NodeSpec)>) -> Result<WhatIf, Refusal> {
    if nodes.len() > MOST {
        return Err(Refusal::invalid("nodes", format!("at most {MOST} nodes in all, not {}", nodes.len())));
    }
    let mut scratch = state.speculative();
    for (name, spec) in nodes {
        let (kind, incarnation, spec) = (NodeKind::Worker, Incarnation(1), Arc::new(spec));
        apply(&mut scratch, &Command::Register { name, kind, incarnation, spec })?;
    }
    for _ in 0..PASSES {
        // Who would give way is another question.
        let places = pass::places(&scratch, PASS);
        if places.is_empty() {
            break;
        }
        places.iter().try_for_each(|command| apply(&mut scratch, command).map(drop))?;
    }
    let mut out = WhatIf::default();
    let waiting: BTreeSet<JobNo> = state.waiting.iter().map(|(_, _, no)| *no).collect();
    for (before, after) in waiting.iter().filter_map(|no| Some((state.job(*no)?, scratch.job(*no)?))) {
        out.waiting += 1;
        let (waited, waits) = (missing(before), missing(after));
        if waits == waited {
            out.would_wait += 1;
            continue;
        }
        out.would_start += 1;
        if out.let_in.len() < TOLD {
            out.let_in.push(let_in(&scratch, before, after, waited - waits, waits));
        }
    }
    Ok(out)
}

fn missing(job: &Job) -> u16 {
    job.replicas.iter().filter(|replica| replica.is_waiting()).count() as u16
}

fn let_in(scratch: &State, before: &Job, after: &Job, replicas: u16, waiting: u16) -> LetIn {
    let new = before.replicas.iter().zip(&after.replicas).filter(|(before, _)| before.is_waiting());
    let nodes = new.filter_map(|(_, after)| Some(scratch.node(after.allocation()?.node)?.name.clone())).collect();
    LetIn { request: after.request.clone(), tenant: after.spec.tenant.clone(), replicas, waiting, nodes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Intent;
    use crate::resources::Gpus;
    use crate::tenant::Quota;
    use crate::testing;

    #[test]
    fn who_waits_for_room_would_run_and_who_waits_for_quota_would_not() {
        let mut state = State::new();
        let quota = |gpus: u64| Quota { gpu_milli: Some(gpus * 1000), ..Quota::default() };
        for (tenant, gpus) in [("t1", 64), ("t2", 1)] {
            testing::run(&mut state, Intent::SetQuota { tenant: TenantId::new(tenant).unwrap(), quota: quota(gpus) });
        }
        testing::run(&mut state, testing::register("n1", testing::node_spec(2)));
        for i in 0..5 {
            testing::run(&mut state, testing::schedule(&format!("r{i}"), testing::job_spec("t1", Gpus::Whole(2))));
        }
        testing::run(&mut state, testing::schedule("poor", testing::job_spec("t2", Gpus::Whole(2))));
        let before = (state.hash(), state.meta().clone());
        let node = |name: &str, gpus| (NodeName::new(name).unwrap(), testing::node_spec(gpus));
        let seen = with_nodes(&state, vec![node("new-1", 4), node("new-2", 2)]).unwrap();
        assert_eq!((seen.waiting, seen.would_start, seen.would_wait), (5, 3, 2), "{seen:?}");
        let requests: Vec<&str> = seen.let_in.iter().map(|one| one.request.as_str()).collect();
        assert_eq!(requests, ["r1", "r2", "r3"]);
        assert!(seen.let_in.iter().all(|one| one.replicas == 1 && one.waiting == 0 && one.nodes.len() == 1));
        assert_eq!(before, (state.hash(), state.meta().clone()), "nothing is committed");
        assert_eq!(with_nodes(&state, vec![]).unwrap().would_start, 0);
    }

    #[test]
    fn who_would_make_others_give_way_keeps_nobody_else_from_the_new_nodes() {
        let mut state = State::new();
        let quota = Quota { gpu_milli: Some(64_000), ..Quota::default() };
        testing::run(&mut state, Intent::SetQuota { tenant: TenantId::new("t1").unwrap(), quota });
        testing::run(&mut state, testing::register("n1", testing::node_spec(2)));
        let mut low = testing::job_spec("t1", Gpus::Whole(2));
        low.constraints.preemptible = true;
        testing::run(&mut state, testing::schedule("low", low));
        let mut high = testing::job_spec("t1", Gpus::Whole(2));
        (high.priority, high.constraints.node) = (5, NodeName::new("n1").ok());
        testing::run(&mut state, testing::schedule("high", high));
        testing::run(&mut state, testing::schedule("small", testing::job_spec("t1", Gpus::Whole(1))));
        // By then it may have others give way.
        testing::try_run_at(&mut state, Intent::Tick, 3_600_000).unwrap();
        let evicts = |command: &Command| matches!(command, Command::Preempt { .. });
        assert!(pass::pass(&state, PASS).iter().any(evicts), "the first in the line would");
        let node = (NodeName::new("new-1").unwrap(), testing::node_spec(1));
        let seen = with_nodes(&state, vec![node]).unwrap();
        assert_eq!((seen.waiting, seen.would_start, seen.would_wait), (2, 1, 1), "{seen:?}");
    }
}
