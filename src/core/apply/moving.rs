//! Commands about replicas that leave where they are: a replacement elsewhere, and a
//! stop without waiting for one. Also what becomes of a replica's two copies when one
//! of them comes up, ends or is lost. Why a replica should move is decided in `moves`.

use super::job::{backoff_ms, ended_by, fits, save};
use crate::budget::judge;
use crate::command::{Answer, Placement};
use crate::event::EventKind;
use crate::id::{Generation, JobNo};
use crate::job::{Job, JobSpec, Movable, Move, Next, Phase, Replica, Restart, Stage};
use crate::reason::{Reason, Refusal};
use crate::state::State;

pub(super) fn replace(
    state: &mut State,
    no: JobNo,
    from: Generation,
    to: &Placement,
    why: Reason,
) -> Result<Answer, Refusal> {
    let Some(job) = state.job(no) else { return Ok(Answer::Count(0)) };
    let changed = |text: &str| Err(Refusal::new(Reason::PlanChanged, format!("job {}: {text}", job.request)));
    let Some(replica) = job.replicas.get(usize::from(to.replica)) else { return changed("has no such replica") };
    let Phase::Held { alloc, .. } = &replica.phase else { return changed("the replica holds no place to leave") };
    let movable = job.spec.movable();
    if job.stopped || movable == Movable::Never || replica.generation != from || replica.other_allocation().is_some() {
        return changed("the replica is not to be moved");
    }
    if alloc.node == to.alloc.node {
        return changed("a replacement goes to another node");
    }
    fits(state, Some(job.tenant), &job.spec, std::slice::from_ref(to), &[])?;
    judge::check_copy(state, job, to.replica, &to.alloc).map_err(|over| over.refusal())?;
    let name = |no| state.node(no).map(|node| node.name.clone());
    let (left, reached) = (name(alloc.node), name(to.alloc.node));
    let old = alloc.clone();
    let mut job = (**job).clone();
    let before = job.state();
    let replica = &mut job.replicas[usize::from(to.replica)];
    replica.newest.0 += 1;
    replica.choice.clone_from(&to.why);
    let tries = match replica.moving {
        Some(Move::Later { tries, .. }) => tries,
        _ => 0,
    };
    let generation = replica.newest;
    let alloc = to.alloc.clone();
    replica.moving = Some(Move::Coming { generation, alloc, stage: Stage::Scheduled, why, tries });
    if movable == Movable::Swap {
        replica.phase = Phase::Stopping { alloc: old, why, then: Next::Again };
    }
    if let (Some(from), Some(to_node)) = (left, reached) {
        let (request, tenant) = (job.request.clone(), job.spec.tenant.clone());
        state.emit(EventKind::Move { request, tenant, replica: to.replica, generation, from, to: to_node, why });
    }
    save(state, job, before, Some(why));
    Ok(Answer::Count(1))
}

pub(super) fn evict(
    state: &mut State,
    no: JobNo,
    replica: u16,
    from: Generation,
    why: Reason,
) -> Result<Answer, Refusal> {
    let Some(job) = state.job(no) else { return Ok(Answer::Count(0)) };
    let Some(old) = job.replicas.get(usize::from(replica)).filter(|r| r.generation == from) else {
        return Ok(Answer::Count(0));
    };
    let Phase::Held { alloc, .. } = &old.phase else { return Ok(Answer::Count(0)) };
    let then = if job.spec.movable() == Movable::Never { Next::End } else { Next::Again };
    let phase = Phase::Stopping { alloc: alloc.clone(), why, then };
    let mut job = (**job).clone();
    let before = job.state();
    job.replicas[usize::from(replica)].phase = phase;
    save(state, job, before, Some(why));
    Ok(Answer::Count(1))
}

/// The replica itself has become `next`, which holds nothing; its replacement, if there
/// is one, takes its part.
pub(super) fn settle(spec: &JobSpec, replica: &Replica, next: Replica) -> Replica {
    match (&replica.moving, &next.phase) {
        (Some(Move::Coming { generation, alloc, stage, .. }), Phase::Waiting { .. }) => {
            let phase = Phase::Held { alloc: alloc.clone(), stage: *stage };
            Replica { generation: *generation, phase, moving: None, ..next }
        }
        // It runs already, and is not wanted any more.
        (Some(Move::Coming { generation, alloc, why, .. }), _) if spec.movable() == Movable::Surge => {
            let going = Move::Going { generation: *generation, alloc: alloc.clone(), why: *why };
            Replica { moving: Some(going), ..next }
        }
        (Some(Move::Coming { .. } | Move::Later { .. }), _) => Replica { moving: None, ..next },
        (Some(Move::Going { .. }) | None, _) => next,
    }
}

/// Nobody wants the replica any more.
pub(super) fn stop(spec: &JobSpec, replica: &mut Replica, why: Reason) {
    replica.phase = match std::mem::replace(&mut replica.phase, Phase::Cancelled) {
        Phase::Waiting { .. } => Phase::Cancelled,
        Phase::Held { alloc, .. } | Phase::Stopping { alloc, .. } => Phase::Stopping { alloc, why, then: Next::End },
        ended => ended,
    };
    replica.moving = match replica.moving.take() {
        Some(Move::Coming { generation, alloc, .. }) if spec.movable() == Movable::Surge => {
            Some(Move::Going { generation, alloc, why })
        }
        Some(going @ Move::Going { .. }) => Some(going),
        _ => None,
    };
}

/// A replacement has come so far. None when that is no news.
pub(super) fn came(replica: &Replica, to: Stage) -> Option<Replica> {
    let Some(Move::Coming { generation, alloc, stage, why, tries }) = &replica.moving else { return None };
    if *stage == to {
        return None;
    }
    let mut next = replica.clone();
    match (to, &replica.phase) {
        (Stage::Ready, Phase::Held { alloc: old, .. } | Phase::Stopping { alloc: old, then: Next::Again, .. }) => {
            next.moving = Some(Move::Going { generation: replica.generation, alloc: old.clone(), why: *why });
            next.generation = *generation;
            next.phase = Phase::Held { alloc: alloc.clone(), stage: to };
        }
        _ => {
            let (generation, alloc) = (*generation, alloc.clone());
            next.moving = Some(Move::Coming { generation, alloc, stage: to, why: *why, tries: *tries });
        }
    }
    Some(next)
}

/// The other copy has ended: a replacement failed, or what was replaced is gone.
pub(super) fn other_ended(replica: &Replica, why: Reason, now: u64) -> Replica {
    let moving = match &replica.moving {
        Some(Move::Coming { tries, .. }) => {
            Some(Move::Later { until_ms: now + backoff_ms(*tries), tries: tries.saturating_add(1), why })
        }
        _ => None,
    };
    Replica { moving, ..replica.clone() }
}

/// The node is lost, and with it whatever copy was there.
pub(super) fn lost(job: &Job, replica: &Replica, own: bool) -> Replica {
    if !own {
        return Replica { moving: None, ..replica.clone() };
    }
    let phase = match (&replica.phase, job.spec.constraints.restart) {
        (Phase::Stopping { then: Next::End, why, .. }, _) => ended_by(*why),
        (Phase::Held { .. }, Restart::Never) => Phase::Failed { why: Reason::NodeFailure },
        // The next launch counts the generation up, so the lost one can be told apart when it returns.
        _ => Phase::Waiting { not_before_ms: 0, last: Some(Reason::NodeFailure) },
    };
    settle(&job.spec, replica, Replica { phase, ..replica.clone() })
}
