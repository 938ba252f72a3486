//! What another policy would have done: the placements of the last day that still hold are
//! made again, in their order, once by the policy in force and once by the other, on a copy
//! of the state. Both see the same, so what differs is the policies' doing. Commits nothing.

use super::worth::{self, Worth};
use super::{Chosen, Limits, place};
use crate::id::{JobNo, NodeNo};
use crate::job::{Arrangement, Job, Phase};
use crate::state::{State, WORKLOAD};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How far back placements are made again, in milliseconds.
pub const BACK_MS: u64 = 24 * 3_600_000;
/// Most placements that are made again, the newest.
const MOST: usize = 4096;

/// What one policy left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Replicas that found no place.
    pub unplaced: u32,
    /// Thousandths of GPUs that are held.
    pub allocated_milli: u64,
    /// Thousandths of GPUs that are idle where work is taken.
    pub idle_milli: u64,
    /// How much of them the next request can use, by expectation over what is asked for.
    pub usable_milli: i64,
    /// Nodes on which nothing runs.
    pub empty_nodes: u32,
}

/// The two side by side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hindsight {
    /// Placements that were made again.
    pub placements: u32,
    /// Of these, how many end up on another node.
    pub changed: u32,
    pub now: Outcome,
    pub then: Outcome,
}

/// Compares the policy in force with `other` on what was placed in the last day.
pub fn compare(state: &State, other: Chosen) -> Hindsight {
    let mut empty = state.speculative();
    let mut again = placed_since(state, state.meta().now_ms.saturating_sub(BACK_MS));
    again.iter().for_each(|(job, replica)| empty.give_back(job, *replica));
    // Oldest first, as they came.
    again.reverse();
    let yardstick = Worth::new(&empty.mix, &empty.capacity);
    let play = |chosen: Chosen| {
        let mut scratch = empty.clone();
        scratch.meta.placement = chosen;
        scratch.make_rules(WORKLOAD);
        let places = place_again(&mut scratch, &again);
        (outcome(&scratch, &yardstick, &places), places)
    };
    let (now, before) = play(state.meta().placement);
    let (then, after) = play(other);
    let changed = before.iter().zip(&after).filter(|(before, after)| before != after).count() as u32;
    Hindsight { placements: again.len() as u32, changed, now, then }
}

/// Replicas that have held their place since then or later and do not move, the newest first.
fn placed_since(state: &State, since_ms: u64) -> Vec<(Arc<Job>, u16)> {
    let mut out: Vec<(u64, JobNo, u16)> = Vec::new();
    for job in state.holding.iter().filter_map(|(_, no)| state.job(*no)) {
        for (no, replica) in job.replicas.iter().enumerate() {
            if let (Phase::Held { alloc, .. }, None) = (&replica.phase, replica.other_allocation())
                && alloc.at_ms >= since_ms
            {
                out.push((alloc.at_ms, job.no, no as u16));
            }
        }
    }
    out.sort_unstable_by_key(|placed| Reverse(*placed));
    out.truncate(MOST);
    out.into_iter().filter_map(|(_, job, replica)| Some((state.job(job)?.clone(), replica))).collect()
}

fn place_again(scratch: &mut State, again: &[(Arc<Job>, u16)]) -> Vec<Option<NodeNo>> {
    let mut siblings: BTreeMap<JobNo, BTreeMap<NodeNo, u32>> = BTreeMap::new();
    let mut places = Vec::new();
    for (job, replica) in again {
        let mut limits = Limits::default();
        let constraints = &job.spec.constraints;
        if constraints.arrangement != Arrangement::Any || !constraints.topology.is_any() {
            limits.siblings = siblings.get(&job.no).cloned().unwrap_or_default();
        }
        scratch.stand(&job.spec);
        let node = place(scratch, &job.spec, &[*replica], limits).pop().map(|(_, pick)| {
            scratch.book(&job.spec, *replica, &pick.alloc);
            *siblings.entry(job.no).or_default().entry(pick.alloc.node).or_default() += 1;
            pick.alloc.node
        });
        places.push(node);
    }
    places
}

fn outcome(state: &State, yardstick: &Worth, places: &[Option<NodeNo>]) -> Outcome {
    let (idle_milli, usable) = yardstick.idle(&state.capacity);
    let held = |used: &crate::ledger::NodeUse| used.devices.iter().map(|d| u64::from(d.milli)).sum::<u64>();
    Outcome {
        unplaced: places.iter().filter(|place| place.is_none()).count() as u32,
        allocated_milli: state.ledger.nodes.values().map(|used| held(used)).sum(),
        idle_milli,
        usable_milli: usable / worth::MOST,
        empty_nodes: state.ledger.nodes.values().filter(|used| used.replicas.is_empty()).count() as u32,
    }
}

#[cfg(test)]
mod tests;
