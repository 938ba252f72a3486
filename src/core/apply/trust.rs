//! Commands that take trust back, and what follows for the jobs that ran by it: their replicas
//! are drained and stopped, and wait until they are let in again.

use super::job::save;
use super::moving;
use crate::approval::Version;
use crate::command::{Answer, Mode};
use crate::consent::{self, Consent};
use crate::id::{Digest16, Incarnation, JobNo, NodeNo, Revision, TenantId, TenantNo};
use crate::job::JobSpec;
use crate::reason::{Reason, Refusal};
use crate::state::State;

/// An approval ends by somebody's word, so what ran by it stops.
pub(super) fn disapprove(state: &mut State, of: &Version) -> Result<Answer, Refusal> {
    let known = state.remove_approval(of.key()).is_some();
    let mut stopped = false;
    // Simulation asks for no approval, so none can be missed.
    if state.meta().mode == Mode::Production {
        let theirs = |_: &State, spec: &JobSpec| spec.model == of.model && spec.version == of.version;
        stopped = halt_those(state, &of.tenant, theirs, Reason::ApprovalRequired);
    }
    Ok(Answer::Count(u32::from(known || stopped)))
}

/// A consent ends by somebody's word.
pub(super) fn dissent(state: &mut State, tenant: &TenantId, statement: &[u8; 32]) -> Result<Answer, Refusal> {
    let known = state.consents.get(&consent::key(tenant, statement)).filter(|known| known.ended_ms.is_none());
    let Some(consent) = known.cloned() else { return Ok(Answer::Count(0)) };
    end(state, &consent);
    Ok(Answer::Count(1))
}

/// Ends at most so many consents whose time is over, and forgets those that ended long ago.
pub(super) fn lapse(state: &mut State, most: usize) {
    let now = state.meta().now_ms;
    let due = state.consents_due.iter().take(most).take_while(|(at, _)| *at <= now);
    let due: Vec<_> = due.map(|(_, key)| *key).collect();
    for key in due {
        let Some(consent) = state.consents.get(&key).cloned() else { continue };
        match consent.ended_ms {
            Some(_) => state.remove_consent(key),
            None => end(state, &consent),
        }
    }
}

/// What ran by it alone stops, and nodes look which copies they may keep.
fn end(state: &mut State, consent: &Consent) {
    let tenant = consent.scope.tenant.clone();
    state.put_consent(Consent { ended_ms: Some(state.meta().now_ms), ..consent.clone() });
    let theirs = |state: &State, spec: &JobSpec| consent::judge(state, spec).is_err();
    halt_those(state, &tenant, theirs, Reason::ConsentRevoked);
    consent::touch(state, &tenant);
}

/// A node has removed copies.
pub(super) fn purged(
    state: &mut State,
    node: NodeNo,
    incarnation: Incarnation,
    copies: &[(Digest16, u64)],
) -> Result<Answer, Refusal> {
    // An agent of an earlier start has no say any more.
    if state.node(node).is_none_or(|n| n.incarnation != incarnation) {
        return Ok(Answer::Count(0));
    }
    Ok(Answer::Count(consent::purged(state, node, copies)))
}

/// Stops what runs such a version of the tenant's; says whether there was any.
fn halt_those(state: &mut State, tenant: &TenantId, which: impl Fn(&State, &JobSpec) -> bool, why: Reason) -> bool {
    let Some(tenant) = state.tenant_named(tenant).map(|tenant| tenant.no) else { return false };
    let holding = state.holding.range((tenant, JobNo(0))..=(tenant, JobNo(u64::MAX))).map(|(_, no)| *no);
    let jobs: std::collections::BTreeSet<JobNo> = holding.chain(state.claims.iter().copied()).collect();
    let jobs: Vec<(JobNo, Vec<Revision>)> =
        jobs.into_iter().filter_map(|no| theirs(state, no, tenant, &which)).collect();
    jobs.into_iter().fold(false, |any, (no, revisions)| halt(state, no, &revisions, why) || any)
}

/// Which of the job's revisions are meant: in a rollout it has two, and only what is taken back stops.
fn theirs(
    state: &State,
    no: JobNo,
    tenant: TenantNo,
    which: impl Fn(&State, &JobSpec) -> bool,
) -> Option<(JobNo, Vec<Revision>)> {
    let job = state.job(no).filter(|job| job.tenant == tenant)?;
    let both = [Some(job.revision), job.open_rollout().map(|rollout| rollout.revision)];
    let meant = both.into_iter().flatten().filter(|revision| which(state, job.spec_of(*revision)));
    Some((no, meant.collect())).filter(|(_, meant): &(_, Vec<_>)| !meant.is_empty())
}

/// The job's copies of these revisions stop after their drain; their replicas wait, as far as they may be
/// started again, or go back to the version that is not under trial.
fn halt(state: &mut State, no: JobNo, revisions: &[Revision], why: Reason) -> bool {
    // One that was stopped may be saving its state still.
    let Some(old) = state.job(no).cloned() else { return false };
    let mut job = (*old).clone();
    let before = job.state();
    let meant = |place: u16| old.replicas.get(usize::from(place)).is_some_and(|r| revisions.contains(&r.revision));
    job.claim = job.claim.filter(|claim| !claim.placements.iter().any(|placement| meant(placement.replica)));
    job.replicas.iter_mut().for_each(|replica| moving::halt(&old, replica, revisions, why));
    if job == *old {
        return false;
    }
    // Nodes that were kept for its claim are anybody's again.
    state.room += u64::from(old.claim.is_some() && job.claim.is_none());
    save(state, job, before, Some(why));
    true
}
