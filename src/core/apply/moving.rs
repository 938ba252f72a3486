//! Commands about replicas that leave where they are: a replacement elsewhere, and a
//! stop without waiting for one. Also what becomes of a replica's two copies when one
//! of them comes up, ends or is lost. Why a replica should move is decided in `moves`.

use super::job::{backoff_ms, ended_by, fits, save, together};
use crate::budget::judge;
use crate::command::{Answer, Placement};
use crate::disruption::{self, Notice};
use crate::event::EventKind;
use crate::id::{Generation, JobNo, NodeNo, Revision};
use crate::job::{Allocation, Job, JobSpec, Movable, Move, Next, Phase, Replica, Restart, Stage};
use crate::reason::{Reason, Refusal};
use crate::state::State;
use crate::trust;

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
    let taken = movable == Movable::Swap && disruption::is_voluntary(why);
    if taken && !disruption::allows(job, &[to.replica]) {
        return changed(OVER);
    }
    trust::judge_change(state, job, replica.revision, replica.revision)?;
    fits(state, Some(job.tenant), job.spec_of(replica.revision), std::slice::from_ref(to), &[])?;
    together(state, &job.spec, &job.replicas, std::slice::from_ref(to))?;
    judge::check_copy(state, job, to.replica, &to.alloc).map_err(|over| over.refusal())?;
    let old = alloc.clone();
    let mut next = replaced(replica, to, why, replica.revision);
    let mut job = (**job).clone();
    announce(state, &job, &next, to.replica, why);
    if movable == Movable::Swap {
        let notice = notice(state, &job, &next.phase, why);
        next.phase = Phase::Stopping { alloc: old, why, then: Next::Again, notice };
    }
    let before = job.state();
    job.replicas[usize::from(to.replica)] = next;
    save(state, job, before, Some(why));
    Ok(Answer::Count(1))
}

const OVER: &str = "as many of its replicas are missing as it lets be missing at once";

/// What a replica in that phase is told that has to stop.
pub(super) fn notice(state: &State, job: &Job, phase: &Phase, why: Reason) -> Option<Notice> {
    let (Phase::Held { alloc, .. } | Phase::Stopping { alloc, .. }) = phase else { return None };
    if state.node(alloc.node).is_none_or(|node| node.any_broken(alloc.devices())) {
        return None;
    }
    disruption::notice(&job.spec, phase, why, &state.meta().placement.preemption, state.meta().now_ms)
}

/// The replica with a second copy on its way, which runs `revision`.
pub(super) fn replaced(replica: &Replica, to: &Placement, why: Reason, revision: Revision) -> Replica {
    let mut next = replica.clone();
    next.newest.0 += 1;
    next.choice.clone_from(&to.why);
    let tries = match next.moving {
        Some(Move::Later { tries, .. }) => tries,
        _ => 0,
    };
    let (generation, alloc) = (next.newest, to.alloc.clone());
    next.moving = Some(Move::Coming { generation, alloc, stage: Stage::Scheduled, why, tries, revision });
    next
}

/// Tells of the replica's move.
pub(super) fn announce(state: &mut State, job: &Job, next: &Replica, replica: u16, why: Reason) {
    let name = |alloc: Option<&Allocation>| Some(state.node(alloc?.node)?.name.clone());
    let Some((from, to)) = name(next.allocation()).zip(name(next.other_allocation())) else { return };
    let (request, tenant, generation) = (job.request.clone(), job.spec.tenant.clone(), next.newest);
    state.emit(EventKind::Move { request, tenant, replica, generation, from, to, why });
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
    if disruption::is_voluntary(why) && !disruption::allows(job, &[replica]) {
        return Err(Refusal::new(Reason::PlanChanged, format!("job {}: {OVER}", job.request)));
    }
    // The members of one gang go one after the other: those that hold their place still go after it has begun.
    if why == Reason::NotEnoughForGang && !job.is_torn(state.meta().now_ms) {
        return Err(Refusal::new(Reason::PlanChanged, format!("gang {} is whole, or may be soon", job.request)));
    }
    let then = if job.spec.movable() == Movable::Never { Next::End } else { Next::Again };
    let notice = notice(state, job, &old.phase, why);
    let phase = Phase::Stopping { alloc: alloc.clone(), why, then, notice };
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
        (Some(Move::Coming { generation, alloc, stage, revision, .. }), Phase::Waiting { since_ms, .. }) => {
            // In a swap the place was held for it until now, and it starts now.
            let at_ms = if spec.movable() == Movable::Swap { *since_ms } else { alloc.at_ms };
            let phase = Phase::Held { alloc: Allocation { at_ms, ..alloc.clone() }, stage: *stage };
            Replica { generation: *generation, phase, moving: None, revision: *revision, ..next }
        }
        // It runs already, and is not wanted any more.
        (Some(Move::Coming { generation, alloc, why, revision, .. }), _) if spec.movable() == Movable::Surge => {
            let (generation, revision) = (*generation, *revision);
            let going = Move::Going { generation, alloc: alloc.clone(), why: *why, revision, notice: None };
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
        Phase::Held { alloc, .. } => Phase::Stopping { alloc, why, then: Next::End, notice: None },
        // It was told how long it has, and keeps that.
        Phase::Stopping { alloc, notice, .. } => Phase::Stopping { alloc, why, then: Next::End, notice },
        ended => ended,
    };
    replica.moving = put_away(spec, replica.moving.take(), why);
}

/// Time to save one's state is a courtesy. What stops on a device of the node that is broken has none left.
pub(super) fn hurry(state: &mut State, no: NodeNo) {
    let Some(node) = state.node(no).cloned() else { return };
    let saves = |r: &Replica| {
        let here = r.copy_on(no).filter(|(_, alloc, _)| node.any_broken(alloc.devices()));
        here.map(|(generation, ..)| generation).filter(|generation| r.notice_of(*generation).is_some())
    };
    let mut jobs: Vec<JobNo> =
        state.replicas_on(no).filter(|(.., r)| saves(r).is_some()).map(|(job, ..)| job.no).collect();
    jobs.dedup();
    for no in jobs {
        let mut job = (*state.jobs[&no]).clone();
        let before = job.state();
        for replica in &mut job.replicas {
            if let Some(generation) = saves(replica) {
                cut(replica, generation);
            }
        }
        save(state, job, before, Some(Reason::DeviceFault));
    }
}

/// Its copy of that generation has no time left to save its state.
fn cut(replica: &mut Replica, of: Generation) {
    match (&mut replica.phase, &mut replica.moving) {
        (Phase::Stopping { notice, .. }, _) if of == replica.generation => *notice = None,
        (_, Some(Move::Going { generation, notice, .. })) if of == *generation => *notice = None,
        _ => {}
    }
}

/// Those of the replica's copies that run one of these revisions stop for now, also where they were given time to
/// save their state: nobody owes that to what is not to run at all. It waits for a place afterwards,
/// unless it may not be started again; one of a version under trial goes back to the former where it is.
pub(super) fn halt(job: &Job, replica: &mut Replica, revisions: &[Revision], why: Reason) {
    let other = match &replica.moving {
        Some(Move::Coming { revision, .. } | Move::Going { revision, .. }) => *revision,
        _ => replica.revision,
    };
    if revisions.contains(&other) {
        replica.moving = put_away(&job.spec, replica.moving.take(), why);
        if let Some(Move::Going { notice, .. }) = &mut replica.moving {
            *notice = None;
        }
    }
    if let Phase::Stopping { why: reason, notice: notice @ Some(_), .. } = &mut replica.phase
        && revisions.contains(&replica.revision)
    {
        (*reason, *notice) = (why, None);
    }
    if let Phase::Held { alloc, .. } = &replica.phase
        && revisions.contains(&replica.revision)
    {
        let then = match (job.spec.movable(), &replica.moving) {
            (Movable::Never, _) => Next::End,
            (_, None | Some(Move::Going { .. })) if replica.revision != job.revision => Next::Here(job.revision),
            _ => Next::Again,
        };
        replica.phase = Phase::Stopping { alloc: alloc.clone(), why, then, notice: None };
    }
}

/// What is left of a move that is not wanted any more.
fn put_away(spec: &JobSpec, moving: Option<Move>, why: Reason) -> Option<Move> {
    match moving {
        Some(Move::Coming { generation, alloc, revision, .. }) if spec.movable() == Movable::Surge => {
            Some(Move::Going { generation, alloc, why, revision, notice: None })
        }
        Some(going @ Move::Going { .. }) => Some(going),
        _ => None,
    }
}

/// A replacement has come so far. None when that is no news.
/// The copy that it replaces gets the notice `told`, unless it has one already.
pub(super) fn came(replica: &Replica, to: Stage, told: Option<Notice>) -> Option<Replica> {
    let Some(Move::Coming { generation, alloc, stage, why, tries, revision }) = &replica.moving else { return None };
    if *stage == to {
        return None;
    }
    let mut next = replica.clone();
    match (to, &replica.phase) {
        (Stage::Ready, Phase::Held { alloc: old, .. } | Phase::Stopping { alloc: old, then: Next::Again, .. }) => {
            let notice = match &replica.phase {
                Phase::Stopping { notice, .. } => *notice,
                _ => told,
            };
            let (before, former, old) = (replica.generation, replica.revision, old.clone());
            next.moving = Some(Move::Going { generation: before, alloc: old, why: *why, revision: former, notice });
            (next.generation, next.revision) = (*generation, *revision);
            next.phase = Phase::Held { alloc: alloc.clone(), stage: to };
        }
        _ => {
            let (generation, alloc, revision) = (*generation, alloc.clone(), *revision);
            next.moving = Some(Move::Coming { generation, alloc, stage: to, why: *why, tries: *tries, revision });
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
pub(super) fn lost(job: &Job, replica: &Replica, own: bool, now_ms: u64) -> Replica {
    if !own {
        return Replica { moving: None, ..replica.clone() };
    }
    let revision = match &replica.phase {
        Phase::Stopping { then: Next::Here(revision), .. } => *revision,
        _ => replica.revision,
    };
    let phase = match (&replica.phase, job.spec.constraints.restart) {
        (Phase::Stopping { then: Next::End, why, .. }, _) => ended_by(*why),
        (Phase::Held { .. }, Restart::Never) => Phase::Failed { why: Reason::NodeFailure },
        // The next launch counts the generation up, so the lost one can be told apart when it returns.
        _ => Phase::Waiting { since_ms: now_ms, not_before_ms: 0, last: Some(Reason::NodeFailure) },
    };
    settle(&job.spec, replica, Replica { phase, revision, ..replica.clone() })
}
