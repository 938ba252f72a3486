//! Plans about rollouts that somebody wants: begun, paused, promoted, reverted. A new version
//! is let in as a new job would be; going back to the one before it needs nobody's word.

use super::{Planned, live};
use crate::approval;
use crate::audit::Actor;
use crate::command::Command;
use crate::consent;
use crate::floor;
use crate::id::{RequestId, Revision, TenantId};
use crate::job::Job;
use crate::model_budget;
use crate::quarantine;
use crate::reason::{Reason, Refusal};
use crate::rollout::{self, Course, Next, Part, Rollout, Strategy, Turn};
use crate::state::State;
use crate::trust;

fn conflict<T>(detail: String) -> Result<T, Refusal> {
    Err(Refusal::field(Reason::Conflict, "request_id", detail))
}

pub(super) fn start(
    state: &State,
    request: &RequestId,
    tenant: Option<&TenantId>,
    next: &Next,
    strategy: &Strategy,
    rollback: bool,
    actor: Option<&Actor>,
) -> Result<Planned, Refusal> {
    let job = live(state, request, tenant)?;
    job.can_roll(next, strategy)?;
    let mut next = next.clone();
    let spec = next.spec(&job.spec);
    super::nothing_unproven(state, &spec)?;
    consent::judge(state, &spec)?;
    model_budget::judge(&spec)?;
    quarantine::judge(state, &spec)?;
    // Going back is what an approval is for, where one is asked for; else nothing older comes in.
    if !rollback {
        floor::judge(state, &spec)?;
    }
    if let Some(by) = approval::judge_for(state, &spec, actor)? {
        next.approved_by = Some(by);
        next.asked_by = actor.map(Actor::person);
    }
    if let Some(open) = job.open_rollout() {
        // A retry of the call that began it.
        if next.is_of(&open.to) && open.strategy == *strategy && matches!(open.course, Course::Forward { .. }) {
            return Ok(Planned::default());
        }
        let detail = format!(
            "job {request} goes from {} to {} ({}): one rollout at a time; nf rollout promote or revert ends it",
            open.from.version,
            open.to.version,
            open.course.word()
        );
        return conflict(detail);
    }
    if next.is_of(&job.spec) {
        return conflict(format!("job {request} runs version {} already", next.version));
    }
    let by = actor.map(|actor| actor.subject.clone());
    Planned::one(Command::StartRollout { job: job.no, next: Box::new(next), strategy: *strategy, rollback, by })
}

pub(super) fn turn(
    state: &State,
    request: &RequestId,
    tenant: Option<&TenantId>,
    revision: Option<Revision>,
    turn: &Turn,
) -> Result<Planned, Refusal> {
    let job = live(state, request, tenant)?;
    let open = job.open_rollout().filter(|open| revision.is_none_or(|seen| seen == open.revision));
    let Some(open) = open else {
        // What the group saw of a rollout that is over by now.
        if revision.is_some() {
            return Ok(Planned::default());
        }
        return conflict(format!(
            "job {request} has no rollout under way; nf rollout status {request} says how it ended"
        ));
    };
    if is_so(open, turn) {
        return Ok(Planned::default());
    }
    closed(state, job, open, turn)?;
    if !(*turn == Turn::Promote && rollout::may_be_kept(state, job)) {
        allowed(request, job, open, turn)?;
    }
    Planned::one(Command::TurnRollout { job: job.no, revision: open.revision, turn: turn.clone() })
}

/// Whether it has taken that course already: a retry.
fn is_so(open: &Rollout, turn: &Turn) -> bool {
    match (turn, open.course) {
        (Turn::Pause, Course::Forward { paused, .. }) => paused,
        (Turn::Resume, Course::Forward { paused, .. }) => !paused,
        (Turn::Back { .. }, Course::Back { .. }) => true,
        _ => false,
    }
}

/// What can't be said to a rollout because its former version was taken back.
fn closed(state: &State, job: &Job, open: &Rollout, turn: &Turn) -> Result<(), Refusal> {
    let (from, to) = (&open.from.version, &open.to.version);
    let keep = || format!("or keep version {to}: nf rollout promote {}", job.request);
    match (turn, open.course) {
        (Turn::Back { failed: false, .. }, Course::Forward { .. }) => trust::judge_way_back(state, job)
            .map_err(|refusal| Refusal { detail: format!("{}; {}", refusal.detail, keep()), ..refusal }),
        (Turn::Pause | Turn::Resume, Course::Back { .. }) => match rollout::barred(state, job) {
            Some(barred) => conflict(format!("job {} goes back; {}; {}", job.request, barred.refusal.detail, keep())),
            None => Ok(()),
        },
        // A canary that is promoted goes on as ever.
        (Turn::Promote, Course::Forward { part: Part::Canary, .. }) => Ok(()),
        (Turn::Promote, _) if rollout::barred(state, job).is_some() && !rollout::may_be_kept(state, job) => {
            conflict(format!("version {from} has copies on nodes still; once they are gone, version {to} can be kept"))
        }
        _ => Ok(()),
    }
}

fn allowed(request: &RequestId, job: &Job, open: &Rollout, turn: &Turn) -> Result<(), Refusal> {
    match (turn, open.course) {
        (Turn::Pause | Turn::Resume | Turn::Promote, Course::Back { .. }) => {
            conflict(format!("job {request} goes back to version {}; wait until it is there", open.from.version))
        }
        (Turn::Promote, Course::Forward { part: Part::Rest, .. }) => conflict(format!(
            "job {request} goes to version {} replica by replica ({}); nothing waits for a promotion",
            open.to.version,
            open.course.word()
        )),
        (Turn::Promote, Course::Forward { part: Part::Watch { .. }, .. }) if !job.is_all(open.revision) => {
            conflict(format!("job {request} still has replicas of version {}", open.from.version))
        }
        (Turn::Watch | Turn::Done | Turn::Undone, _) => conflict("the group itself says that".to_owned()),
        _ => Ok(()),
    }
}
