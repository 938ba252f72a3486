//! The next moves of every open rollout. A copy of the target version comes up beside the
//! one that it replaces where another node has room and the tenant's quota does, and in its
//! very place where not, so that no rollout needs a GPU to spare. What does not serve costs
//! nothing to replace, and goes first. It reads the state; apply judges what it proposes.

use super::{Canary, Course, MOST_FAILURES, Part, Rollout, Strategy, Turn, is_ready, takes_over};
use crate::budget::judge;
use crate::command::Command;
use crate::disruption;
use crate::id::Revision;
use crate::job::{Job, Movable, Move, Phase, Replica};
use crate::moves::place_for;
use crate::placement::{explain, siblings};
use crate::reason::{Blocker, Reason};
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
    job.open_rollout().filter(|_| !job.stopped)?;
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

fn look(scratch: &mut State, job: &Job) -> Look {
    let Some(rollout) = job.open_rollout().filter(|_| !job.stopped) else { return Look::Waits };
    let now = scratch.meta().now_ms;
    match rollout.course {
        Course::Back { .. } => advance(scratch, job, rollout, job.desired(), Turn::Undone),
        Course::Forward { part, paused } => {
            // What is let in no more while it comes is a failure like any other.
            let refused = trust::judge(scratch, &rollout.to).err().map(|refusal| refusal.reason);
            if let Some(why) = refused.or_else(|| fault(job, rollout, now)) {
                return Look::Turns(Turn::Back { failed: true, why, counts: None });
            }
            if paused {
                return Look::Waits;
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

/// Why the new version is no good, whatever its requests say.
fn fault(job: &Job, rollout: &Rollout, now: u64) -> Option<Reason> {
    if rollout.failures >= MOST_FAILURES {
        return Some(rollout.last_failure.unwrap_or(Reason::RuntimeFailed));
    }
    let starts = |r: &Replica| {
        let own = r.revision == rollout.revision && matches!(r.phase, Phase::Held { .. }) && !is_ready(r);
        own || matches!(&r.moving, Some(Move::Coming { revision, .. }) if *revision == rollout.revision)
    };
    let late = now.saturating_sub(rollout.progress_ms) >= u64::from(rollout.strategy.ready_ms);
    (late && job.replicas.iter().any(starts)).then_some(Reason::ReadyTimeout)
}

/// Towards `wanted` replicas of the target revision; `then` once there are, and all is quiet.
fn advance(scratch: &mut State, job: &Job, rollout: &Rollout, wanted: u16, then: Turn) -> Look {
    let target = job.target_revision();
    let everything = wanted >= job.desired();
    let begun = job.of_revision(target).count() + job.replicas.iter().filter(|r| is_coming(r, target)).count();
    let missing = usize::from(wanted).saturating_sub(begun);
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

fn is_coming(replica: &Replica, target: Revision) -> bool {
    matches!(&replica.moving, Some(Move::Coming { revision, .. }) if *revision == target) && replica.revision != target
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
