//! Defragmentation: which running replicas, moved elsewhere, leave more of the idle GPU
//! usable for what is asked for. A move costs its service a start, so there are few at a
//! time, each worth its price by itself, and none takes what stands in somebody's way:
//! no replica that would have to stop first, none while a node is drained. The moves are
//! made by the machinery of drains (ADR 12). It reads the state; apply judges. See ADR 39.

use crate::capacity::Class;
use crate::command::Command;
use crate::id::{Generation, JobNo, NodeNo, RequestId, TenantId};
use crate::job::{Allocation, Job, Movable, Move, Phase, Replica, Stage};
use crate::moves;
use crate::node::DrainState;
use crate::placement::worth::{self, DEVICES};
use crate::placement::{Pick, Policy};
use crate::reason::{Reason, Refusal};
use crate::resources::{Gpus, Resources};
use crate::state::State;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Of so many replicas that run, one may be on its way for this reason at a time; and one in a small group.
const PART: usize = 100;
/// Nodes that are looked at, those with the most idle GPU that is of no use first.
const NODES: usize = 2048;
/// Replicas for which another place is looked for.
const TRIES: usize = 256;
/// Thousandths of a GPU that a move has to win.
pub const LEAST: i64 = 50;

/// One replica that should move.
#[derive(Clone, Debug)]
pub struct Step {
    pub job: JobNo,
    pub request: RequestId,
    pub tenant: TenantId,
    pub replica: u16,
    /// Of the copy that leaves.
    pub generation: Generation,
    pub from: NodeNo,
    pub to: Pick,
    /// Thousandths of a GPU that the next request can use, and could not before.
    pub gain_milli: i64,
}

/// What should move now, and what that is good for.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Those that win most first.
    pub steps: Vec<Step>,
    /// Replicas that are on their way already.
    pub under_way: usize,
    /// Thousandths of GPUs that are idle.
    pub idle_milli: u64,
    /// How much of them the next request can use, by expectation over what is asked for.
    pub usable_milli: i64,
}

/// The moves that may be made now.
///
/// # Errors
/// A refusal while a node is drained, or where nothing says what is usable.
pub fn plan(state: &State) -> Result<Plan, Refusal> {
    let open = |node: &&Arc<crate::node::Node>| node.is_draining() && node.drain != DrainState::Drained;
    if let Some(node) = state.nodes().values().find(open) {
        let detail = format!("node {} is being drained; what is in the way of a drain does not move", node.name);
        return Err(Refusal::new(Reason::NodeDrain, detail));
    }
    let rules = &state.rules;
    if rules.chosen.policy != Policy::Fragmentation || rules.worth.is_empty() {
        let detail = format!(
            "places are compared by {}, and little is known of what is asked for: defragmentation needs policy \
             fragmentation and at least {} replicas that live",
            rules.chosen.policy.name(),
            crate::state::WORKLOAD
        );
        return Err(Refusal::new(Reason::Conflict, detail));
    }
    let (running, under_way) = count(state);
    let (idle_milli, usable) = rules.worth.idle(state.capacity());
    let mut out = Plan { under_way, idle_milli, usable_milli: usable / worth::MOST, steps: Vec::new() };
    let most = (running / PART).max(1).saturating_sub(under_way);
    if most > 0 {
        out.steps = choose(state, most);
    }
    Ok(out)
}

/// The moves that may be made now, for the log.
///
/// # Errors
/// As for [`plan`].
pub fn commands(state: &State) -> Result<Vec<Command>, Refusal> {
    let command = |step: Step| Command::Move {
        job: step.job,
        from: step.generation,
        to: step.to.for_replica(step.replica),
        why: Reason::Defragmentation,
    };
    Ok(plan(state)?.steps.into_iter().map(command).collect())
}

/// Replicas that hold a place, and how many of them move for this reason.
fn count(state: &State) -> (usize, usize) {
    let running = state.ledger().nodes.values().map(|used| used.replicas.len()).sum();
    let moves = |replica: &&Replica| {
        let Some(Move::Coming { why, .. } | Move::Going { why, .. }) = &replica.moving else { return false };
        *why == Reason::Defragmentation
    };
    (running, state.jobs().values().map(|job| job.replicas.iter().filter(moves).count()).sum())
}

/// The worth of a node of the class, after `sign` times the replica's share became free.
fn worth_of(state: &State, class: &Class, change: Option<(&Resources, &Allocation)>, sign: i64) -> Option<i64> {
    let count = class.devices.len();
    if count > DEVICES {
        return None;
    }
    let mut free = worth::free_of(&class.devices);
    let mut cpu = class.cpu_milli;
    if let Some((ask, alloc)) = change {
        for share in &alloc.shares {
            let slot = free.get_mut(usize::from(share.device))?;
            *slot = u16::try_from(i64::from(*slot) + sign * i64::from(share.milli)).ok()?;
        }
        cpu = u64::try_from(i64::try_from(cpu).ok()? + sign * i64::try_from(ask.cpu_milli).ok()?).ok()?;
    }
    state.rules.worth.of(class.flavor.hardware, cpu, &free[..count])
}

/// A replica that may move, and what its node wins by that.
struct Candidate {
    job: Arc<Job>,
    no: u16,
    generation: Generation,
    from: NodeNo,
    /// Rise of its node's worth when it is gone.
    freed: i64,
}

/// The best moves, at most `most`; no node is left twice, and none is both left and gone to, so what they win adds up.
fn choose(state: &State, most: usize) -> Vec<Step> {
    let mut candidates: Vec<Candidate> = poorest(state).into_iter().flat_map(|no| movable_on(state, no)).collect();
    // What a replica takes elsewhere is worth more the larger it is.
    candidates.sort_by_key(|c| (Reverse(c.freed - taken_at_least(c)), c.job.no, c.no));
    candidates.truncate(TRIES);
    let mut scratch = state.speculative();
    let mut found: Vec<(i64, Candidate)> = Vec::new();
    for candidate in candidates {
        scratch.stand(&candidate.job.spec);
        let gain = step(&scratch, &candidate, vec![candidate.from]).map_or(0, |step| step.gain_milli);
        if gain >= LEAST {
            found.push((gain, candidate));
        }
    }
    found.sort_by_key(|(gain, c)| (Reverse(*gain), c.job.no, c.no));
    let (mut left, mut reached) = (BTreeSet::new(), BTreeSet::new());
    let mut out = Vec::new();
    for (_, candidate) in found {
        if out.len() == most {
            break;
        }
        if left.contains(&candidate.from) || reached.contains(&candidate.from) {
            continue;
        }
        let held = left.iter().copied().chain([candidate.from]).collect();
        // Once more: others may have taken the place meanwhile.
        let Some(step) = step(&scratch, &candidate, held).filter(|step| step.gain_milli >= LEAST) else { continue };
        scratch.book(&candidate.job.spec, candidate.no, &step.to.alloc);
        left.insert(step.from);
        reached.insert(step.to.alloc.node);
        out.push(step);
    }
    out
}

/// Nodes by how much of their idle GPU nobody can use, the most first.
fn poorest(state: &State) -> Vec<NodeNo> {
    let wasted = |class: &Class| {
        let idle = class.idle_milli() as i64 * worth::MOST;
        worth_of(state, class, None, 1).map(|worth| idle - worth).filter(|lost| *lost > 0)
    };
    let open = state.capacity().classes.iter().filter(|(class, _)| class.takes_work());
    let mut classes: Vec<_> = open.filter_map(|(class, nodes)| Some((wasted(class)?, nodes))).collect();
    // The sort is stable, so equals stay in the order of their classes.
    classes.sort_by_key(|(lost, _)| Reverse(*lost));
    classes.into_iter().flat_map(|(_, nodes)| nodes.iter().copied()).take(NODES).collect()
}

fn movable_on(state: &State, node: NodeNo) -> Vec<Candidate> {
    let Some(class) = state.capacity().class(node) else { return Vec::new() };
    let Some(before) = worth_of(state, class, None, 1) else { return Vec::new() };
    let candidate = |(job, no, replica): (&Arc<Job>, u16, &Replica)| {
        let alloc = may_move(job, replica, state.meta().now_ms)?;
        let freed = worth_of(state, class, Some((&job.spec.resources, alloc)), 1)? - before;
        Some(Candidate { job: job.clone(), no, generation: replica.generation, from: node, freed })
    };
    state.replicas_on(node).filter_map(candidate).collect()
}

/// What it holds, if it serves there and may serve elsewhere before it stops.
fn may_move<'a>(job: &Job, replica: &'a Replica, now_ms: u64) -> Option<&'a Allocation> {
    let Phase::Held { alloc, stage: Stage::Ready } = &replica.phase else { return None };
    let rests = match &replica.moving {
        None => true,
        Some(Move::Later { until_ms, .. }) => *until_ms <= now_ms,
        Some(Move::Coming { .. } | Move::Going { .. }) => false,
    };
    let spec = &job.spec;
    let may = !job.stopped
        && spec.movable() == Movable::Surge
        && !spec.constraints.stay
        && spec.constraints.node.is_none()
        && spec.resources.gpu != Gpus::None;
    (may && rests).then_some(alloc)
}

/// The worth of what the replica takes elsewhere, were it all the same to everybody.
fn taken_at_least(candidate: &Candidate) -> i64 {
    candidate.job.spec.resources.gpu.milli() as i64 * worth::MOST
}

/// The move of one replica to the best other place that there is.
fn step(state: &State, candidate: &Candidate, held: Vec<NodeNo>) -> Option<Step> {
    let Candidate { job, no, generation, from, freed } = candidate;
    let revision = job.replicas.get(usize::from(*no))?.revision;
    let to = moves::place_for(state, held, job, *no, revision)?;
    let class = state.capacity().class(to.alloc.node)?;
    let before = worth_of(state, class, None, 1)?;
    let after = worth_of(state, class, Some((&job.spec.resources, &to.alloc)), -1)?;
    Some(Step {
        job: job.no,
        request: job.request.clone(),
        tenant: job.spec.tenant.clone(),
        replica: *no,
        generation: *generation,
        from: *from,
        to,
        gain_milli: (freed + after - before) / worth::MOST,
    })
}

#[cfg(test)]
mod tests;
