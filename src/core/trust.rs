//! Whether replicas may be given places: what let a job in has to hold each time that one of
//! its replicas gets a place, the first or another one. It is asked where places are looked
//! for and once more where they are given (`apply`), so no path goes around it. What ends
//! by itself withholds new places alone; what is taken back also stops what runs (ADR 36).

use crate::approval;
use crate::consent;
use crate::floor;
use crate::id::Revision;
use crate::job::{Job, JobSpec};
use crate::reason::Refusal;
use crate::rollout::{Course, Rollout};
use crate::state::State;

/// Whether what let a version in still counts.
///
/// # Errors
/// What counts no more.
pub fn judge(state: &State, spec: &JobSpec) -> Result<(), Refusal> {
    consent::judge_again(state, spec)?;
    approval::judge_again(state, spec)?;
    floor::judge_again(state, spec)
}

/// Whether a replica of the job that runs `from` may get a place as `to`. On the way back from a
/// version under trial it is enough that the former one's approval was never taken back: that it ran
/// out meanwhile is the rule, and to refuse it would leave what is at fault in its place.
///
/// # Errors
/// What counts no more.
pub fn judge_change(state: &State, job: &Job, from: Revision, to: Revision) -> Result<(), Refusal> {
    let spec = job.spec_of(to);
    let back = |rollout: &Rollout| matches!(rollout.course, Course::Back { .. }) || rollout.revision == from;
    match job.open_rollout().is_some_and(|rollout| to == job.revision && back(rollout)) {
        true => consent::judge_again(state, spec).and_then(|()| approval::judge_back(state, spec)),
        false => judge(state, spec),
    }
}

/// Whether the version from which the job's open rollout came may take its place again.
///
/// # Errors
/// What counts no more.
pub fn judge_way_back(state: &State, job: &Job) -> Result<(), Refusal> {
    let from = job.open_rollout().map_or(job.revision, |rollout| rollout.revision);
    judge_change(state, job, from, job.revision)
}

/// Why no replica of the job gets a place now; None when what let it in still counts. In a rollout
/// that is asked of the versions whose replicas wait.
pub fn withheld(state: &State, job: &Job) -> Option<Refusal> {
    let waits = |revision| job.replicas.iter().any(|r| r.is_waiting() && r.revision == revision);
    let under_trial = job.open_rollout().map(|rollout| rollout.revision).filter(|revision| waits(*revision));
    let former = (under_trial.is_none() || waits(job.revision)).then_some(job.revision);
    former.into_iter().chain(under_trial).find_map(|revision| judge_change(state, job, revision, revision).err())
}

#[cfg(test)]
mod tests;
