//! Whether a version under trial is at fault by what its copies do, and whether the former one may take its place
//! again. Where that was taken back meanwhile, the one at fault stays until somebody says what is to be (ADR 92). What
//! its requests say is judged in `judge`.

use super::{Course, MOST_FAILURES, Rollout, Strategy};
use crate::id::{NodeNo, Revision};
use crate::job::{Allocation, Job, Movable, Move, Phase, Replica, Stage};
use crate::node::NodeState;
use crate::reason::{Reason, Refusal};
use crate::state::State;
use crate::trust;

/// Why the version under trial should go; None while nothing is held against it, and where no version is under trial.
pub(super) fn at_fault(state: &State, job: &Job) -> Option<Reason> {
    let rollout = job.open_rollout().filter(|rollout| matches!(rollout.course, Course::Forward { .. }))?;
    // What is let in no more while it comes is a failure like any other.
    let refused = trust::judge(state, &rollout.to).err().map(|refusal| refusal.reason);
    refused.or_else(|| of_copies(state, job, rollout))
}

/// Why it is no good, whatever its requests say.
fn of_copies(state: &State, job: &Job, rollout: &Rollout) -> Option<Reason> {
    if rollout.failures >= MOST_FAILURES {
        return Some(rollout.last_failure.unwrap_or(Reason::RuntimeFailed));
    }
    let late = |alloc: &Allocation| is_heard(state, alloc.node) && state.meta().now_ms >= due_ms(alloc, rollout);
    let two = job.spec.movable() == Movable::Surge;
    job.replicas.iter().flat_map(|r| starting(r, rollout.revision, two)).any(late).then_some(Reason::ReadyTimeout)
}

/// When the copy should serve, in log time: by its own start, whatever the others did meanwhile, and anew after each
/// word that somebody said.
fn due_ms(alloc: &Allocation, Rollout { turned_ms, strategy: Strategy { ready_ms, .. }, .. }: &Rollout) -> u64 {
    alloc.at_ms.max(*turned_ms).saturating_add(u64::from(*ready_ms))
}

/// What the group has last heard of a silent machine may be old.
fn is_heard(state: &State, node: NodeNo) -> bool {
    state.node(node).is_some_and(|node| !matches!(node.state, NodeState::Suspect | NodeState::Unknown))
}

/// The places of the replica's copies of that revision that have never served. `two`: a replica may have two copies;
/// else the one that comes is not told to start before the other is gone.
fn starting(replica: &Replica, revision: Revision, two: bool) -> impl Iterator<Item = &Allocation> {
    let own = match &replica.phase {
        Phase::Held { alloc, stage } if replica.revision == revision => Some((alloc, *stage)),
        _ => None,
    };
    let other = match &replica.moving {
        Some(Move::Coming { alloc, stage, revision: of, .. }) if two && *of == revision => Some((alloc, *stage)),
        _ => None,
    };
    // One that is not ready any more was once: its program is there.
    let starts = |stage| !matches!(stage, Stage::Ready | Stage::NotReady);
    own.into_iter().chain(other).filter(move |(_, stage)| starts(*stage)).map(|(alloc, _)| alloc)
}

/// A rollout that should go back, or does, and can't.
pub(crate) struct Barred {
    /// Why it should.
    pub(crate) why: Reason,
    /// Why the former version gets no place.
    pub(crate) refusal: Refusal,
}

/// Whether the job's open rollout is one.
pub(crate) fn barred(state: &State, job: &Job) -> Option<Barred> {
    let rollout = job.open_rollout()?;
    let why = match rollout.course {
        Course::Back { why, .. } => why,
        _ => at_fault(state, job)?,
    };
    trust::judge_way_back(state, job).err().map(|refusal| Barred { why, refusal })
}

/// Whether somebody's word makes the version under trial the job's own at once: the former may not come back, and
/// holds no place any more.
pub(crate) fn may_be_kept(state: &State, job: &Job) -> bool {
    let Some(rollout) = job.open_rollout() else { return false };
    let alone = job.replicas.iter().flat_map(Replica::copies).all(|(_, revision, _)| revision == rollout.revision);
    alone && barred(state, job).is_some()
}
