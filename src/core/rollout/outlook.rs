//! How far a job's rollout has come, for people and clients.

use super::{Count2, Rollout, Strategy, barred, blocked, is_ready};
use crate::id::{RequestId, Revision, VersionId};
use crate::job::Job;
use crate::reason::{Blocker, Reason};
use crate::state::State;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outlook {
    pub request: RequestId,
    pub revision: Revision,
    pub from: VersionId,
    pub to: VersionId,
    /// In the words of CONVENTIONS.md: running, paused, blocked, failed, cancelled, successful.
    pub status: Arc<str>,
    /// canary, rolling, watching or reverting while it is under way.
    pub phase: Option<Arc<str>>,
    /// Why the former version comes back or came, or would if it might.
    pub why: Option<Reason>,
    /// Why nothing moves, while it is blocked.
    pub blockers: Vec<Blocker>,
    /// Replicas that are wanted; of them on the new version; of those ready; of all ready.
    pub desired: u16,
    pub updated: u16,
    pub updated_ready: u16,
    pub ready: u16,
    pub strategy: Strategy,
    pub rollback: bool,
    pub by: Option<Arc<str>>,
    pub began_ms: u64,
    pub turned_ms: u64,
    /// Log time at which the window under way ends; None where no time ends it, or something else is waited for.
    pub until_ms: Option<u64>,
    pub failures: u16,
    pub counts: Option<Count2>,
}

/// The job's rollout, open or last.
pub fn outlook(state: &State, job: &Job) -> Option<Outlook> {
    let rollout = job.rollout.as_deref()?;
    let blockers = blocked(state, job);
    let forward = !matches!(rollout.course.word(), "failed" | "cancelled");
    let status = match blockers {
        Some(_) if forward => "blocked",
        _ => rollout.course.word(),
    };
    let updated = || job.of_revision(rollout.revision);
    Some(Outlook {
        request: job.request.clone(),
        revision: rollout.revision,
        from: rollout.from.version.clone(),
        to: rollout.to.version.clone(),
        status: status.into(),
        phase: rollout.course.phase().map(Into::into),
        why: rollout.course.why().or_else(|| barred(state, job).map(|barred| barred.why)),
        blockers: blockers.unwrap_or_default(),
        desired: job.desired(),
        updated: updated().count() as u16,
        updated_ready: updated().filter(|r| is_ready(r)).count() as u16,
        ready: job.ready(),
        strategy: rollout.strategy,
        rollback: rollout.rollback,
        by: rollout.by.clone(),
        began_ms: rollout.began_ms,
        turned_ms: rollout.turned_ms,
        until_ms: until(rollout).filter(|until| *until > state.meta().now_ms),
        failures: rollout.failures,
        counts: rollout.counts.as_deref().copied(),
    })
}

fn until(rollout: &Rollout) -> Option<u64> {
    use super::{Course, Part};
    let since = match rollout.course {
        Course::Forward { part: Part::Watch { since_ms }, paused: false } => since_ms,
        Course::Forward { part: Part::Canary, paused: false }
            if rollout.strategy.canary.is_some_and(|canary| canary.auto_promote) =>
        {
            rollout.progress_ms
        }
        _ => return None,
    };
    Some(since.saturating_add(rollout.strategy.window_ms.into()))
}
