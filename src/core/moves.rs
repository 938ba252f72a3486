//! Moves: which replicas have to leave where they are, where each goes, and what stands
//! in its way. A replacement comes up first wherever that makes sense, so the replica
//! never misses a request; where there is no room for one nothing is stopped, unless
//! the operator said so. It reads the state; apply judges what it proposes. See ADR 12.

use crate::claim;
use crate::command::Command;
use crate::id::{NodeName, NodeNo, RequestId};
use crate::job::{Copy, Job, Movable, Move, Phase, Replica};
use crate::node::{Cordon, DrainState, Node};
use crate::placement::{self, Limits, Pick, explain, place_one};
use crate::quota;
use crate::reason::{Blocker, Reason};
use crate::state::State;

/// Replicas of one node that an outlook explains; the others are counted.
pub const EXPLAINED: usize = 32;

/// What to do about a replica that has to leave.
enum Step {
    /// A replacement there.
    Replace(Pick),
    /// It stops without one.
    Evict,
    /// It is on its way: there is a replacement, or it stops already.
    UnderWay,
    /// Nothing can be done for it now.
    Stay,
}

/// One pass: the next steps of everything that has to leave, at most `limit` replicas,
/// and how far each drain has come.
pub fn pass(state: &State, limit: usize) -> Vec<Command> {
    let leaving: Vec<_> = state.nodes().values().filter(|node| node.is_draining()).cloned().collect();
    if leaving.is_empty() {
        return Vec::new();
    }
    let mut scratch = state.speculative();
    let mut out = Vec::new();
    for node in &leaving {
        let (mut held, mut moves) = (0u32, 0u32);
        for (job, no, replica) in state.replicas_on(node.no) {
            held += 1;
            if out.len() >= limit {
                // The next pass goes on; until then it is not said to be blocked.
                moves += 1;
                continue;
            }
            let why = Reason::NodeDrain;
            match step(&scratch, node, job, replica, no) {
                Step::Replace(pick) => {
                    scratch.book(&job.spec, no, &pick.alloc);
                    let to = pick.for_replica(no);
                    out.push(Command::Move { job: job.no, from: replica.generation, to, why });
                    moves += 1;
                }
                Step::Evict => {
                    out.push(Command::Evict { job: job.no, replica: no, from: replica.generation, why });
                    moves += 1;
                }
                Step::UnderWay => moves += 1,
                Step::Stay => {}
            }
        }
        let to = match (held, moves) {
            (0, _) => DrainState::Drained,
            (_, 0) => DrainState::Blocked,
            _ => DrainState::Draining,
        };
        if node.drain != to {
            out.push(Command::SetDrain { node: node.no, to });
        }
    }
    out
}

/// Whether a pass could find something to do.
pub fn wanted(state: &State) -> bool {
    state.nodes().values().any(|node| node.is_draining() && node.drain != DrainState::Drained)
}

/// The next deadline of a drain that has not ended.
pub fn next_deadline_ms(state: &State) -> Option<u64> {
    let open = state.nodes().values().filter(|node| node.drain != DrainState::Drained);
    open.filter_map(|node| node.cordon.as_ref()?.deadline_ms()).min()
}

fn step(state: &State, node: &Node, job: &Job, replica: &Replica, no: u16) -> Step {
    let now = state.meta().now_ms;
    let Some((_, _, Copy::Own(Phase::Held { .. }))) = replica.copy_on(node.no) else { return Step::UnderWay };
    let (over, force) = node.cordon.as_ref().map_or((false, false), |cordon| {
        let over = cordon.deadline_ms().is_some_and(|deadline| deadline <= now);
        (over, cordon.drain.is_some_and(|drain| drain.force))
    });
    if over {
        return Step::Evict;
    }
    match &replica.moving {
        Some(Move::Coming { .. } | Move::Going { .. }) => return Step::UnderWay,
        Some(Move::Later { until_ms, .. }) if *until_ms > now => return Step::UnderWay,
        _ => {}
    }
    match place_for(state, node.no, job, no) {
        Some(pick) => Step::Replace(pick),
        None if force => Step::Evict,
        None => Step::Stay,
    }
}

/// A place elsewhere for a second copy, inside the tenant's quota.
fn place_for(state: &State, node: NodeNo, job: &Job, no: u16) -> Option<Pick> {
    let movable = job.spec.movable() != Movable::Never;
    if !movable || !quota::allows(state, Some(job.tenant), &job.spec.resources, 1) {
        return None;
    }
    let others = job.replicas.iter().enumerate().filter(|(i, _)| *i != usize::from(no));
    let others: Vec<Replica> = others.map(|(_, replica)| replica.clone()).collect();
    let siblings = placement::siblings(&others, job.spec.constraints.arrangement);
    let mut held = claim::nodes(state);
    held.push(node);
    place_one(state, &job.spec, &Limits { held, siblings, skip_ports: 0 })
}

/// What a drain would do, or is doing, about one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    pub request: RequestId,
    pub replica: u16,
    /// Where its replacement is, or would be.
    pub to: Option<NodeName>,
    /// It is stopped before there is a replacement.
    pub stops_first: bool,
    /// Already begun.
    pub under_way: bool,
    /// Why it stays where it is.
    pub blockers: Vec<Blocker>,
}

/// What becomes of each replica on a node that is (in `state`) to be drained, at most [`EXPLAINED`].
pub fn outlook(state: &State, node: NodeNo) -> Vec<Outlook> {
    let Some(row) = state.node(node).cloned() else { return Vec::new() };
    let mut scratch = state.speculative();
    let mut out = Vec::new();
    for (job, no, replica) in state.replicas_on(node).take(EXPLAINED) {
        let name = |no| scratch.node(no).map(|node| node.name.clone());
        let swap = job.spec.movable() == Movable::Swap;
        let blank = Outlook {
            request: job.request.clone(),
            replica: no,
            to: None,
            stops_first: swap,
            under_way: false,
            blockers: Vec::new(),
        };
        let look = match step(&scratch, &row, job, replica, no) {
            Step::Replace(pick) => {
                let to = name(pick.alloc.node);
                scratch.book(&job.spec, no, &pick.alloc);
                Outlook { to, ..blank }
            }
            Step::Evict => Outlook { stops_first: true, ..blank },
            Step::UnderWay => {
                let elsewhere = replica.allocations().map(|alloc| alloc.node).find(|no| *no != node);
                Outlook { to: elsewhere.and_then(name), under_way: true, ..blank }
            }
            Step::Stay => Outlook { stops_first: false, blockers: blockers(&scratch, job), ..blank },
        };
        out.push(look);
    }
    out
}

/// The state as it would be with that cordon on the node; None when there is no such node.
pub fn with_cordon(state: &State, node: &NodeName, cordon: Cordon) -> Option<State> {
    let node = state.node_named(node)?.clone();
    let cordon = Cordon { at_ms: state.meta().now_ms, ..cordon };
    let mut scratch = state.speculative();
    scratch.put_node(Node { cordon: Some(cordon), drain: DrainState::Draining, ..(*node).clone() });
    Some(scratch)
}

fn blockers(state: &State, job: &Job) -> Vec<Blocker> {
    if job.spec.movable() == Movable::Never {
        let detail = "its restart policy forbids a second start, so it stays until it ends; a deadline, or --force, \
                      stops it for good";
        return vec![Blocker { reason: Reason::BadConstraints, detail: detail.into(), nodes: 0, permanent: true }];
    }
    explain::blockers_of(state, Some(job.tenant), &job.spec, 1)
}
