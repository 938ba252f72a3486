//! The next moves of every open rollout. A copy of the target version comes up beside the
//! one that it replaces where another node has room and the tenant's quota does, and in its
//! very place where not, so that no rollout needs a GPU to spare. What does not serve costs
//! nothing to replace, and goes first. It reads the state; apply judges what it proposes.

use super::fault::{at_fault, barred};
use super::{Canary, Course, MOST_FAILURES, Part, Rollout, Strategy, Turn, is_ready, takes_over};
use crate::apply::backoff_ms;
use crate::budget::judge;
use crate::command::Command;
use crate::disruption;
use crate::id::Revision;
use crate::job::{Job, Movable, Move, Next, Phase, Replica};
use crate::moves::place_for;
use crate::placement::{explain, siblings};
use crate::reason::{Blocker, Refusal};
use crate::scaling::is_wanted;
use crate::state::State;
use crate::trust;

/// What the next look at one rollout comes to.
enum Look {
    Moves(Vec<Command>),
    Turns(Turn),
    /// Something is on its way, or time has to pass.
    Waits,
    /// Nothing can move.
    Blocked,
}

/// One pass: the next steps of all open rollouts, about `limit` commands.
pub fn pass(state: &State, limit: usize) -> Vec<Command> {
    let mut scratch = state.speculative();
    let mut out = Vec::new();
    for job in state.rollouts() {
        if out.len() >= limit {
            break;
        }
        match look(&mut scratch, job) {
            Look::Moves(moves) => out.extend(moves),
            Look::Turns(turn) => out.extend(job.rollout.as_deref().map(|rollout| Command::TurnRollout {
                job: job.no,
                revision: rollout.revision,
                turn,
            })),
            Look::Waits | Look::Blocked => {}
        }
    }
    out
}

/// Why the rollout of this job does not go on by itself, if nothing can move; None while it can.
pub fn blocked(state: &State, job: &Job) -> Option<Vec<Blocker>> {
    let rollout = job.open_rollout().filter(|_| !job.stopped)?;
    if let Some(closed) = closed(state, job, rollout) {
        return Some(closed);
    }
    let mut scratch = state.speculative();
    matches!(look(&mut scratch, job), Look::Blocked).then(|| {
        let budget = |prices: &[u128]| judge::blocks_copy(state, job, prices);
        let target = job.target_revision();
        let spec = job.spec_of(target);
        let siblings = siblings(&job.replicas, &spec.constraints);
        let mut blockers = explain::blockers_of(state, Some(job.tenant), (spec, siblings), 1, budget);
        if disruption::missing(job) >= disruption::budget(&job.spec).unwrap_or(u16::MAX) {
            blockers.push(disruption::blocker(job, &job.spec.tenant));
        }
        if let Err(refusal) = trust::judge_change(state, job, target, target) {
            explain::put_first(&mut blockers, refusal);
        }
        blockers
    })
}

/// What bars the way back, and why it is wanted.
fn closed(state: &State, job: &Job, rollout: &Rollout) -> Option<Vec<Blocker>> {
    let found = barred(state, job)?;
    let (from, to, mut out) = (&rollout.from.version, &rollout.to.version, Vec::new());
    match rollout.course {
        // Somebody's own word holds it.
        Course::Forward { paused: true, .. } => return None,
        Course::Forward { .. } => {
            let detail = format!("version {to} is at fault; it stays, for version {from} may not come back");
            explain::put_first(&mut out, Refusal::new(found.why, detail));
        }
        _ => {}
    }
    let detail = format!("{}; or keep version {to}: nf rollout promote {}", found.refusal.detail, job.request);
    explain::put_first(&mut out, Refusal { detail, ..found.refusal });
    Some(out)
}

fn look(scratch: &mut State, job: &Job) -> Look {
    let Some(rollout) = job.open_rollout().filter(|_| !job.stopped) else { return Look::Waits };
    let now = scratch.meta().now_ms;
    match rollout.course {
        Course::Back { .. } => match advance(scratch, job, rollout, job.desired(), Turn::Undone) {
            // Nothing is left to change. One that does not serve had its time to, and what it lacks is its own.
            Look::Waits | Look::Blocked if job.is_all(job.revision) && now >= back_by_ms(rollout) => {
                Look::Turns(Turn::Undone)
            }
            look => look,
        },
        Course::Forward { part, paused } => {
            let fault = at_fault(scratch, job);
            if let Some(why) = fault
                && trust::judge_way_back(scratch, job).is_ok()
            {
                // With what the promise was judged from, where it could not go back at once.
                return Look::Turns(Turn::Back { failed: true, why, counts: rollout.counts.clone() });
            }
            if paused {
                return Look::Waits;
            }
            if fault.is_some() {
                return linger(job, rollout, part, now);
            }
            let over = |since: u64| now.saturating_sub(since) >= u64::from(rollout.strategy.window_ms);
            match part {
                Part::Canary => canary(scratch, job, rollout, over),
                Part::Rest => advance(scratch, job, rollout, job.desired(), Turn::Watch),
                // Replicas that came meanwhile, of the former version, follow.
                Part::Watch { since_ms } => match advance(scratch, job, rollout, job.desired(), Turn::Done) {
                    Look::Turns(_) if !over(since_ms) => Look::Waits,
                    look => look,
                },
            }
        }
        Course::Done | Course::Undone { .. } => Look::Waits,
    }
}

fn back_by_ms(rollout: &Rollout) -> u64 {
    rollout.turned_ms.saturating_add(rollout.strategy.ready_ms.into())
}

/// At fault, and no other version may run: what serves is left as it is, and what has ended is tried again, ever more
/// rarely.
fn linger(job: &Job, rollout: &Rollout, part: Part, now: u64) -> Look {
    let wanted = match part {
        Part::Canary => canaries(rollout.strategy.canary, job.desired()),
        _ => job.desired(),
    };
    let pause = backoff_ms(rollout.failures.saturating_sub(MOST_FAILURES));
    let due = |r: &Replica| matches!(r.phase, Phase::Waiting { since_ms, .. } if now >= since_ms.saturating_add(pause));
    let ended = job.replicas.iter().zip(0u16..).filter(|(r, _)| r.revision != rollout.revision && due(r));
    let again = |(r, replica): (&Replica, u16)| {
        let (job, from, revision) = (job.no, r.generation, rollout.revision);
        Command::Renew { job, replica, from, revision, to: None }
    };
    let moves: Vec<Command> = ended.take(missing(job, rollout.revision, wanted)).map(again).collect();
    if moves.is_empty() { Look::Blocked } else { Look::Moves(moves) }
}

fn canary(scratch: &mut State, job: &Job, rollout: &Rollout, over: impl Fn(u64) -> bool) -> Look {
    let wanted = canaries(rollout.strategy.canary, job.desired());
    match advance(scratch, job, rollout, wanted, Turn::Promote) {
        Look::Turns(turn) => {
            let auto = rollout.strategy.canary.is_none_or(|canary| canary.auto_promote);
            match auto && over(rollout.progress_ms) {
                true => Look::Turns(turn),
                false => Look::Waits,
            }
        }
        look => look,
    }
}

/// Replicas that make the first part.
fn canaries(canary: Option<Canary>, desired: u16) -> u16 {
    let percent = canary.and_then(|canary| canary.percent).unwrap_or(0);
    let share = (u32::from(desired) * u32::from(percent)).div_ceil(100);
    (share as u16).max(1).min(desired)
}

/// Towards `wanted` replicas of the target revision; `then` once there are, and all is quiet.
fn advance(scratch: &mut State, job: &Job, rollout: &Rollout, wanted: u16, then: Turn) -> Look {
    let target = job.target_revision();
    let everything = wanted >= job.desired();
    let missing = missing(job, target, wanted);
    let moves = moves(scratch, job, target, &rollout.strategy, missing);
    if !moves.is_empty() {
        return Look::Moves(moves);
    }
    let serving = job.of_revision(target).filter(|r| is_ready(r)).count() >= usize::from(wanted);
    match () {
        () if serving && (!everything || job.is_all(target)) => Look::Turns(then),
        // What is under way, or stops, goes on by itself.
        () if missing == 0 || job.replicas.iter().any(is_under_way) => Look::Waits,
        () => Look::Blocked,
    }
}

/// How many of the wanted replicas have yet to begin to change to `target`.
fn missing(job: &Job, target: Revision, wanted: u16) -> usize {
    let begun = job.of_revision(target).count() + job.replicas.iter().filter(|r| is_coming(r, target)).count();
    usize::from(wanted).saturating_sub(begun)
}

/// Its copy of the target comes up beside it, or will in its place once it has stopped.
fn is_coming(replica: &Replica, target: Revision) -> bool {
    let beside = matches!(&replica.moving, Some(Move::Coming { revision, .. }) if *revision == target);
    let here = matches!(replica.phase, Phase::Stopping { then: Next::Here(revision), .. } if revision == target);
    (beside || here) && replica.revision != target
}

fn is_under_way(replica: &Replica) -> bool {
    replica.moving.is_some() || matches!(replica.phase, Phase::Stopping { .. })
}

/// At most `most` replicas that begin to change now, within the bounds.
fn moves(scratch: &mut State, job: &Job, target: Revision, strategy: &Strategy, most: usize) -> Vec<Command> {
    let mut budget = Budget::of(job, strategy);
    let mut order: Vec<(usize, &Replica)> = job.replicas.iter().enumerate().collect();
    order.retain(|(_, r)| is_wanted(&r.phase) && r.revision != target);
    order.sort_by_key(|(no, r)| (is_ready(r), *no));
    let mut out = Vec::new();
    for (no, replica) in order {
        if out.len() >= most {
            break;
        }
        let Some(to) = step(scratch, job, no as u16, replica, &mut budget) else { continue };
        out.push(Command::Renew { job: job.no, replica: no as u16, from: replica.generation, revision: target, to });
    }
    out
}

/// What may still begin in this pass.
struct Budget {
    surge: u16,
    /// Replacements are on their way: who waits for a place beside waits for them.
    surging: bool,
    missing: u16,
}

impl Budget {
    fn of(job: &Job, strategy: &Strategy) -> Self {
        let extra = job.replicas.iter().filter(|r| r.other_allocation().is_some()).count() as u16;
        let surge = strategy.surge.saturating_sub(extra);
        let absent = job.desired().saturating_sub(job.ready());
        let most = strategy.unavailable.min(disruption::budget(&job.spec).unwrap_or(u16::MAX));
        Self { surge, surging: strategy.surge > 0 && extra > 0, missing: most.saturating_sub(absent) }
    }
}

/// How the replica changes now: `Some(None)` where it is. None: not now.
#[allow(clippy::option_option, reason = "the outer says whether, the inner where")]
fn step(
    scratch: &mut State,
    job: &Job,
    no: u16,
    replica: &Replica,
    budget: &mut Budget,
) -> Option<Option<crate::command::Placement>> {
    let Phase::Held { alloc, .. } = &replica.phase else {
        return replica.is_waiting().then_some(None);
    };
    match &replica.moving {
        Some(Move::Coming { .. } | Move::Going { .. }) => return None,
        Some(Move::Later { until_ms, .. }) if *until_ms > scratch.meta().now_ms => return None,
        _ => {}
    }
    // Apply would refuse it, and whoever asks is told why it does not go on.
    if trust::judge_change(scratch, job, replica.revision, job.target_revision()).is_err() {
        return None;
    }
    // What has to leave goes first; it changes its version where it comes to.
    let as_next = takes_over(scratch, alloc, job.spec_of(job.target_revision())).is_some();
    if !is_ready(replica) {
        return (as_next || job.goes_back()).then_some(None);
    }
    let stays = as_next || job.goes_back() && super::stays(scratch, alloc);
    if job.spec.movable() == Movable::Surge
        && budget.surge > 0
        && let Some(pick) = place_for(scratch, vec![alloc.node], job, no, job.target_revision())
    {
        budget.surge -= 1;
        budget.surging = true;
        scratch.book(&job.spec, no, &pick.alloc);
        return Some(Some(pick.for_replica(no)));
    }
    if budget.surging || budget.missing == 0 || !stays {
        return None;
    }
    budget.missing -= 1;
    Some(None)
}

/// The share of a service's requests that goes to the new version, in thousandths, while its canary is out:
/// as stated, else that of its replicas. Left to chance, requests that begin alike would all go to one replica.
pub fn share_milli(job: &Job) -> Option<u32> {
    let rollout = job.open_rollout()?;
    let Course::Forward { part: Part::Canary, .. } = rollout.course else { return None };
    let (canary, desired) = (rollout.strategy.canary?, job.desired());
    let of_replicas = || (u32::from(canaries(Some(canary), desired)) * 1_000).checked_div(desired.into());
    canary.percent.map(|percent| u32::from(percent) * 10).or_else(of_replicas)
}
