//! Approvals (P3): somebody lets one version of a model, named by the digest of its
//! manifest, into production for one tenant and for a while. It must be another person than who
//! published it: than those whose keys signed it; where nobody has said whose keys these are, than whoever then
//! asks for it to run. It does not know roles: who may approve is asked at the gate.

use crate::audit::{self, Actor, Hash, Person};
use crate::command::{Answer, Mode};
use crate::id::{Digest16, ModelId, TenantId, VersionId};
use crate::job::{JobSpec, Publishers};
use crate::reason::{Reason, Refusal};
use crate::state::{Before, RowKey, State};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The longest that an approval counts; also how long it does when nobody says.
pub const MAX_MS: u64 = 24 * 3_600_000;
/// How long an ended one is remembered, so that a late caller learns that it has ended.
pub const KEPT_MS: u64 = 30 * 24 * 3_600_000;
/// Approvals of one tenant on record. At the cap a new one is refused; an old one is never dropped early.
pub const MAX_APPROVALS: u32 = 10_000;

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
    pub by: Person,
    pub at_ms: u64,
    pub until_ms: u64,
}

impl Approval {
    /// The digest under which entries of the audit trail refer to it.
    pub fn digest(&self) -> Hash {
        let Self { of, manifest, by, at_ms, until_ms } = self;
        let manifest = Hash(*manifest);
        // Names of people hold no control character, so no two approvals are written alike.
        let by = format!("{}\n{}", by.issuer.as_deref().unwrap_or_default(), by.subject);
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
        let (until, tenant) = (approval.until_ms, approval.of.tenant.clone());
        match self.approvals.insert(key, Arc::new(approval)) {
            Some(old) => _ = self.approved_until.remove(&(old.until_ms, key)),
            None => *self.approvals_of.entry(tenant).or_default() += 1,
        }
        self.approved_until.insert((until, key));
        // A waiter may be let in again.
        self.room += 1;
    }

    pub(crate) fn remove_approval(&mut self, key: Digest16) -> Option<Arc<Approval>> {
        self.remember(RowKey::Approval(key), |state| Before::Approval(state.approvals.get(&key).cloned()));
        let old = self.approvals.remove(&key)?;
        self.approved_until.remove(&(old.until_ms, key));
        let left = self.approvals_of.get(&old.of.tenant).map_or(0, |count| count - 1);
        match left {
            0 => _ = self.approvals_of.remove(&old.of.tenant),
            left => _ = self.approvals_of.insert(old.of.tenant.clone(), left),
        }
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
    Ok(Approval { of: of.clone(), manifest, by: actor.person(), at_ms, until_ms })
}

/// The approval that lets `spec` run, if one is asked for: simulation waives it.
///
/// # Errors
/// Why there is none that counts.
pub fn judge<'a>(state: &'a State, spec: &JobSpec) -> Result<Option<&'a Arc<Approval>>, Refusal> {
    let Some(approval) = on_record(state, spec)? else { return Ok(None) };
    if approval.until_ms <= state.meta().now_ms {
        let by = &approval.by.subject;
        return Err(refusal(spec, Reason::ApprovalExpired, |named| {
            format!("the approval of {named} by {by} has expired")
        }));
    }
    Ok(Some(approval))
}

/// The refusal of a version, with the next step.
fn refusal(spec: &JobSpec, reason: Reason, what: impl FnOnce(&str) -> String) -> Refusal {
    let JobSpec { tenant, model, version, .. } = spec;
    let what = what(&format!("version {version} of model {model} for tenant {tenant}"));
    let detail = format!(
        "{what}; another person with the role promoter approves it: nf model approve {model}@{version} --tenant {tenant}"
    );
    Refusal::field(reason, "model_version", detail)
}

/// The approval of exactly these bytes that nobody took back, whether or not its time is over.
fn on_record<'a>(state: &'a State, spec: &JobSpec) -> Result<Option<&'a Arc<Approval>>, Refusal> {
    if state.meta().mode == Mode::Simulation {
        return Ok(None);
    }
    let Some(approval) = state.approval(&spec.tenant, &spec.model, &spec.version) else {
        return Err(refusal(spec, Reason::ApprovalRequired, |named| format!("nobody approved {named}")));
    };
    if Some(approval.manifest) != spec.manifest {
        let by = &approval.by.subject;
        let what = |named: &str| format!("{by} approved other bytes of {named} than the store has");
        return Err(refusal(spec, Reason::ApprovalMismatch, what));
    }
    Ok(Some(approval))
}

/// Nobody lets their own version through, whichever of the two came first. Its publishers are those who signed it;
/// where the operator says of no key whose it is, whoever asks for it stands for them.
fn not_their_own(approval: &Approval, asker: &Person, spec: &JobSpec) -> Result<(), Refusal> {
    let (model, version) = (&spec.model, &spec.version);
    let said = spec.evidence.as_ref().map_or(&Publishers::Unsaid, |evidence| &evidence.publishers);
    if *said == Publishers::Unsaid && *asker == approval.by {
        return Err(their_own(&approval.by, model, version, "asks for it, too"));
    }
    not_by_its_signer(said, &approval.by, model, version)
}

/// Whether somebody is no signer of the version, by all that is said of its keys.
///
/// # Errors
/// `ApprovalSelf`, or `SignerUnknown` where a key's owner could be anybody.
pub fn not_by_its_signer(
    publishers: &Publishers,
    who: &Person,
    model: &ModelId,
    version: &VersionId,
) -> Result<(), Refusal> {
    match publishers {
        Publishers::Unsaid => Ok(()),
        Publishers::Known(signers) => match signers.iter().any(|signer| signer.is(who)) {
            true => Err(their_own(who, model, version, "signed it, too")),
            false => Ok(()),
        },
        Publishers::Unlisted { key } => {
            let detail = format!(
                "NF_SIGNERS does not say whose key {key} is, which signed version {version} of model {model}, so nobody \
                 can tell whether {} approved what they signed; list the key there below its owner's subject, on every \
                 member, and try again (nf doctor shows the list)",
                who.subject
            );
            Err(Refusal::field(Reason::SignerUnknown, "model_version", detail))
        }
    }
}

/// The refusal of somebody who did both.
fn their_own(who: &Person, model: &ModelId, version: &VersionId, also: &str) -> Refusal {
    let detail = format!(
        "{} approved version {version} of model {model}, and {also}; somebody else must do one of the two",
        who.subject
    );
    Refusal::field(Reason::ApprovalSelf, "model_version", detail)
}

/// The same for somebody who asks: nobody lets their own request through, and a name in
/// the request is no approval.
///
/// # Errors
/// As [`judge`], or `ApprovalSelf`.
pub fn judge_for(state: &State, spec: &JobSpec, actor: Option<&Actor>) -> Result<Option<Arc<str>>, Refusal> {
    let Some(approval) = judge(state, spec)? else { return Ok(None) };
    let Some(actor) = actor else { return Err(nobody()) };
    not_their_own(approval, &actor.person(), spec)?;
    let by = &approval.by.subject;
    if spec.approved_by.as_ref().is_some_and(|said| said != by) {
        let detail = format!("the approval on record is by {by}; leave approved_by out, the answer names them");
        return Err(Refusal::field(Reason::ApprovalMismatch, "approved_by", detail));
    }
    Ok(Some(by.clone()))
}

fn nobody() -> Refusal {
    Refusal::field(Reason::ApprovalRequired, "model_version", "nobody stands behind this request")
}

/// What the plan said of the approval must be so: a job in production names who let it in, and who asked.
pub(crate) fn judge_new(state: &State, spec: &JobSpec) -> Result<(), Refusal> {
    let Some(approval) = judge(state, spec)? else { return Ok(()) };
    if spec.approved_by.as_ref() != Some(&approval.by.subject) {
        let detail = "the request does not name who approved the version; try it again";
        return Err(Refusal::field(Reason::ApprovalMismatch, "approved_by", detail));
    }
    not_their_own(approval, spec.asked_by.as_ref().ok_or_else(nobody)?, spec)
}

/// The same for a job that was let in, each time that one of its replicas is to get a place. Whoever
/// approved it anew may be another person than before, and still not the one who asked for the job.
pub(crate) fn judge_again(state: &State, spec: &JobSpec) -> Result<(), Refusal> {
    let Some(approval) = judge(state, spec)? else { return Ok(()) };
    not_their_own(approval, spec.asked_by.as_ref().ok_or_else(nobody)?, spec)
}

/// The same for the version that a rollout goes back to: it may have run out by its time alone.
pub(crate) fn judge_back(state: &State, spec: &JobSpec) -> Result<(), Refusal> {
    let Some(approval) = on_record(state, spec)? else { return Ok(()) };
    not_their_own(approval, spec.asked_by.as_ref().ok_or_else(nobody)?, spec)
}

pub(crate) fn put(state: &mut State, approval: &Approval) -> Result<Answer, Refusal> {
    let known = state.approvals.contains_key(&approval.of.key());
    let tenant = &approval.of.tenant;
    if !known && state.approvals_of.get(tenant).is_some_and(|count| *count >= MAX_APPROVALS) {
        let detail = format!("tenant {tenant} has {MAX_APPROVALS} approvals on record; revoke some (nf model revoke)");
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
