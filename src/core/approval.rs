//! Approvals (P3): somebody lets one version of a model, named by the digest of its
//! manifest, into production for one tenant and for a while; whoever then asks for it to
//! run must be somebody else. It does not know roles: who may approve is asked at the gate.

use crate::audit::{self, Actor, Hash};
use crate::command::{Answer, Mode};
use crate::id::{Digest16, Generation, ModelId, TenantId, VersionId};
use crate::job::{Job, JobSpec};
use crate::reason::{Reason, Refusal};
use crate::state::{Before, RowKey, State};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The longest that an approval counts; also how long it does when nobody says.
pub const MAX_MS: u64 = 24 * 3_600_000;
/// How long an ended one is remembered, so that a late caller learns that it has ended.
pub const KEPT_MS: u64 = 30 * 24 * 3_600_000;
/// Approvals on record. At the cap a new one is refused; an old one is never dropped early.
pub const MAX_APPROVALS: usize = 100_000;

/// Which version, for whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub tenant: TenantId,
    pub model: ModelId,
    pub version: VersionId,
}

impl Version {
    /// The key of its row.
    pub fn key(&self) -> Digest16 {
        key(&self.tenant, &self.model, &self.version)
    }

    /// As the audit trail names it.
    pub fn object(&self) -> String {
        format!("model/{}/{}@{}", self.tenant, self.model, self.version)
    }
}

// Names hold no NUL, so no two versions share a key.
fn key(tenant: &TenantId, model: &ModelId, version: &VersionId) -> Digest16 {
    let parts = [tenant.as_str(), model.as_str(), version.as_str()].map(str::as_bytes);
    Digest16::of(&[b"approval", parts[0], b"\0", parts[1], b"\0", parts[2]])
}

/// An approval on record; the newest of a version replaces the one before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    pub of: Version,
    /// SHA-256 of the manifest that was approved.
    pub manifest: [u8; 32],
    /// The subject of whoever approved it.
    pub by: Arc<str>,
    pub at_ms: u64,
    pub until_ms: u64,
}

impl Approval {
    /// The digest under which entries of the audit trail refer to it.
    pub fn digest(&self) -> Hash {
        let Self { of, manifest, by, at_ms, until_ms } = self;
        let manifest = Hash(*manifest);
        // The subject may hold anything, so it comes last.
        audit::leaf(format!("approval\n{}\n{manifest}\n{at_ms}\n{until_ms}\n{by}", of.object()).as_bytes())
    }
}

impl State {
    /// The approval of a version, counting or ended.
    pub fn approval(&self, tenant: &TenantId, model: &ModelId, version: &VersionId) -> Option<&Arc<Approval>> {
        self.approvals.get(&key(tenant, model, version))
    }

    /// All that are on record.
    pub fn approvals(&self) -> impl Iterator<Item = &Arc<Approval>> {
        self.approvals.values()
    }

    pub(crate) fn put_approval(&mut self, approval: Approval) {
        let key = approval.of.key();
        self.remember(RowKey::Approval(key), |state| Before::Approval(state.approvals.get(&key).cloned()));
        let until = approval.until_ms;
        if let Some(old) = self.approvals.insert(key, Arc::new(approval)) {
            self.approved_until.remove(&(old.until_ms, key));
        }
        self.approved_until.insert((until, key));
        // A waiter may be let in again.
        self.room += 1;
    }

    pub(crate) fn remove_approval(&mut self, key: Digest16) -> Option<Arc<Approval>> {
        self.remember(RowKey::Approval(key), |state| Before::Approval(state.approvals.get(&key).cloned()));
        let old = self.approvals.remove(&key)?;
        self.approved_until.remove(&(old.until_ms, key));
        Some(old)
    }
}

/// What an intent to approve becomes.
///
/// # Errors
/// When nobody stands behind it, or it would count for too long.
pub(crate) fn approve(
    state: &State,
    of: &Version,
    manifest: [u8; 32],
    for_ms: u64,
    actor: Option<&Actor>,
) -> Result<Approval, Refusal> {
    let Some(actor) = actor else {
        let detail = "this group asks nobody who they are, so an approval would name nobody; set NF_JWKS";
        return Err(Refusal::new(Reason::Forbidden, detail));
    };
    if for_ms == 0 || for_ms > MAX_MS {
        return Err(Refusal::invalid("ttl", "more than nothing, at most 24h"));
    }
    let at_ms = state.meta().now_ms;
    let until_ms = at_ms.saturating_add(for_ms);
    Ok(Approval { of: of.clone(), manifest, by: actor.subject.clone(), at_ms, until_ms })
}

/// The approval that lets `spec` run, if one is asked for: simulation waives it.
///
/// # Errors
/// Why there is none that counts.
pub fn judge<'a>(state: &'a State, spec: &JobSpec) -> Result<Option<&'a Arc<Approval>>, Refusal> {
    if state.meta().mode == Mode::Simulation {
        return Ok(None);
    }
    let named = format!("version {} of model {} for tenant {}", spec.version, spec.model, spec.tenant);
    let next = format!(
        "another person with the role promoter approves it: nf model approve {}@{} --tenant {}",
        spec.model, spec.version, spec.tenant
    );
    let refuse = |reason, what: String| Err(Refusal::field(reason, "model_version", format!("{what}; {next}")));
    let Some(approval) = state.approval(&spec.tenant, &spec.model, &spec.version) else {
        return refuse(Reason::ApprovalRequired, format!("nobody approved {named}"));
    };
    if Some(approval.manifest) != spec.manifest {
        return refuse(
            Reason::ApprovalMismatch,
            format!("{} approved other bytes of {named} than the store has", approval.by),
        );
    }
    if approval.until_ms <= state.meta().now_ms {
        return refuse(Reason::ApprovalExpired, format!("the approval of {named} by {} has expired", approval.by));
    }
    Ok(Some(approval))
}

/// The same for somebody who asks: nobody lets their own request through, and a name in
/// the request is no approval.
///
/// # Errors
/// As [`judge`], or `ApprovalSelf`.
pub fn judge_for(state: &State, spec: &JobSpec, actor: Option<&Actor>) -> Result<Option<Arc<str>>, Refusal> {
    let Some(approval) = judge(state, spec)? else { return Ok(None) };
    let refuse = |reason, field, detail: String| Err(Refusal::field(reason, field, detail));
    match actor {
        None => refuse(Reason::ApprovalRequired, "model_version", "nobody stands behind this request".to_owned()),
        Some(actor) if actor.subject == approval.by => {
            let detail = format!(
                "{} approved version {} of model {}, and asks for it, too; somebody else must do one of the two",
                approval.by, spec.version, spec.model
            );
            refuse(Reason::ApprovalSelf, "model_version", detail)
        }
        Some(_) if spec.approved_by.as_ref().is_some_and(|said| *said != approval.by) => {
            let detail =
                format!("the approval on record is by {}; leave approved_by out, the answer names them", approval.by);
            refuse(Reason::ApprovalMismatch, "approved_by", detail)
        }
        Some(_) => Ok(Some(approval.by.clone())),
    }
}

/// Why a job that waits for its first place gets none: what let it in does not count any more.
/// One that ran goes on, also elsewhere.
pub fn withheld(state: &State, job: &Job) -> Option<Refusal> {
    if state.meta().mode == Mode::Simulation || job.replicas.iter().any(|replica| replica.newest > Generation(0)) {
        return None;
    }
    // In a rollout, of the version that it shall run in the end.
    let spec = job.spec_of(job.target_revision());
    match judge(state, spec) {
        Err(refusal) => Some(refusal),
        // Who asked is not kept with the job, so a later approver may be that person.
        Ok(Some(approval)) if spec.approved_by.as_ref() != Some(&approval.by) => {
            let detail = format!(
                "job {} was let in by somebody else than {}, whose approval is the one on record now; schedule it again",
                job.request, approval.by
            );
            Some(Refusal::field(Reason::ApprovalMismatch, "approved_by", detail))
        }
        Ok(_) => None,
    }
}

pub(crate) fn put(state: &mut State, approval: &Approval) -> Result<Answer, Refusal> {
    let known = state.approvals.contains_key(&approval.of.key());
    if !known && state.approvals.len() >= MAX_APPROVALS {
        let detail = format!("{MAX_APPROVALS} versions are approved already; revoke some (nf model revoke)");
        return Err(Refusal::new(Reason::TooManyRequests, detail));
    }
    state.put_approval(approval.clone());
    Ok(Answer::Count(1))
}

/// Forgets at most so many that ended long ago.
pub(crate) fn forget(state: &mut State, most: usize) {
    let now = state.meta().now_ms;
    let due = state.approved_until.iter().take(most).take_while(|(at, _)| at.saturating_add(KEPT_MS) <= now);
    let due: Vec<_> = due.map(|(_, key)| *key).collect();
    for key in due {
        state.remove_approval(key);
    }
}

#[cfg(test)]
mod tests;
