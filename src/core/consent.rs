//! Consents (P1): a tenant lets versions whose manifest says that they hold personal data be
//! kept on nodes, by a signed statement with a scope and an end. Without one nothing of such a
//! version is placed, so nothing is fetched. When the last one ends, by its time or by
//! somebody's word, what ran by it stops, and each node that may have a copy removes it. Which
//! nodes those are is part of the state, so a node that was away learns it when it is back.
//! It does not know keys or envelopes: a statement is verified by the member that takes it.

use crate::audit::{Hash, Person};
use crate::command::Answer;
use crate::id::{Digest16, Label, ModelId, NodeNo, TenantId, VersionId};
use crate::job::{Job, JobSpec, Replica};
use crate::reason::{Reason, Refusal};
use crate::state::{Before, RowKey, State};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The longest that a statement counts.
pub const MAX_MS: u64 = 2 * 366 * 24 * 3_600_000;
/// How long an ended one is remembered, so that it can't be put on record again, and a late caller learns of it.
pub const KEPT_MS: u64 = 30 * 24 * 3_600_000;
/// Consents of one tenant on record. At the cap a new one is refused.
pub const MAX_CONSENTS: usize = 256;
/// Data classes of one version, or of one statement.
pub const MAX_CLASSES: usize = 16;

/// Whether a class of data is about people: `personal`, or one that begins with `personal-`.
pub fn is_personal(class: &Label) -> bool {
    class.as_str() == "personal" || class.as_str().starts_with("personal-")
}

/// What a consent is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    pub tenant: TenantId,
    /// Each by its name: `personal` does not stand for the others.
    pub classes: Vec<Label>,
    /// None: every model of the tenant.
    pub model: Option<ModelId>,
    /// None: every version of the model.
    pub version: Option<VersionId>,
}

impl Scope {
    fn is_for(&self, class: &Label, model: &ModelId, version: &VersionId) -> bool {
        let fits =
            self.model.as_ref().is_none_or(|of| of == model) && self.version.as_ref().is_none_or(|of| of == version);
        fits && self.classes.contains(class)
    }
}

/// A consent on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consent {
    /// SHA-256 of the statement that was signed: what it is known by.
    pub statement: [u8; 32],
    pub scope: Scope,
    pub until_ms: u64,
    /// By which of the tenant's keys.
    pub key_id: Arc<str>,
    /// Who put it on record; None where nobody is asked who they are.
    pub by: Option<Person>,
    pub at_ms: u64,
    /// When it ended, by its time or by somebody's word before.
    pub ended_ms: Option<u64>,
}

impl Consent {
    pub fn key(&self) -> Digest16 {
        key(&self.scope.tenant, &self.statement)
    }

    /// As the audit trail names it.
    pub fn object(tenant: &TenantId, statement: &[u8; 32]) -> String {
        format!("consent/{tenant}/{}", Hash(*statement))
    }

    pub fn counts(&self, now_ms: u64) -> bool {
        self.ended_ms.is_none() && self.until_ms > now_ms
    }

    /// When something is to be done about it: it ends, or it is forgotten.
    fn due_ms(&self) -> u64 {
        self.ended_ms.map_or(self.until_ms, |ended| ended.max(self.until_ms).saturating_add(KEPT_MS))
    }
}

/// The key of a consent's row.
pub fn key(tenant: &TenantId, statement: &[u8; 32]) -> Digest16 {
    Digest16::of(&[b"consent", tenant.as_str().as_bytes(), b"\0", statement])
}

/// Bytes of a version with personal data that a node may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    pub node: NodeNo,
    pub tenant: TenantId,
    pub model: ModelId,
    pub version: VersionId,
    pub manifest: [u8; 32],
    pub classes: Vec<Label>,
    /// The state's `base` when a replica last got a place there: word of a purge before that is void.
    pub placed: u64,
}

/// Names a copy to its node, which knows no other of that number.
pub fn copy_key(tenant: &TenantId, manifest: &[u8; 32]) -> Digest16 {
    Digest16::of(&[b"copy", tenant.as_str().as_bytes(), b"\0", manifest])
}

impl State {
    /// The tenant's consents, counting or ended.
    pub fn consents_of<'a>(&'a self, tenant: &'a TenantId) -> impl Iterator<Item = &'a Arc<Consent>> {
        let (first, last) = (Digest16([0; 16]), Digest16([255; 16]));
        let keys = self.consents_by.range((tenant.clone(), first)..=(tenant.clone(), last));
        keys.filter_map(|(_, key)| self.consents.get(key))
    }

    /// The consent of that key, counting or ended.
    pub fn consent(&self, key: Digest16) -> Option<&Arc<Consent>> {
        self.consents.get(&key)
    }

    /// All that are on record.
    pub fn consents(&self) -> impl Iterator<Item = &Arc<Consent>> {
        self.consents.values()
    }

    /// Copies of personal data on nodes, those that have to go too.
    pub fn copies(&self) -> impl Iterator<Item = &Arc<Copy>> {
        self.copies.values()
    }

    pub(crate) fn copies_on(&self, node: NodeNo) -> impl Iterator<Item = (Digest16, &Arc<Copy>)> {
        let all = (node, Digest16([0; 16]))..=(node, Digest16([255; 16]));
        self.copies.range(all).map(|((_, key), copy)| (*key, copy))
    }

    pub(crate) fn put_consent(&mut self, consent: Consent) {
        let key = consent.key();
        self.remember(RowKey::Consent(key), |state| Before::Consent(state.consents.get(&key).cloned()));
        self.consents_by.insert((consent.scope.tenant.clone(), key));
        let due = consent.due_ms();
        if let Some(old) = self.consents.insert(key, Arc::new(consent)) {
            self.consents_due.remove(&(old.due_ms(), key));
        }
        self.consents_due.insert((due, key));
        // A waiter may be let in.
        self.room += 1;
    }

    pub(crate) fn remove_consent(&mut self, key: Digest16) {
        self.remember(RowKey::Consent(key), |state| Before::Consent(state.consents.get(&key).cloned()));
        if let Some(old) = self.consents.remove(&key) {
            self.consents_due.remove(&(old.due_ms(), key));
            self.consents_by.remove(&(old.scope.tenant.clone(), key));
        }
    }

    pub(crate) fn put_copy(&mut self, copy: Copy) {
        let key = (copy.node, copy_key(&copy.tenant, &copy.manifest));
        self.remember(RowKey::Copy(key.0, key.1), |state| Before::Copy(state.copies.get(&key).cloned()));
        self.copies.insert(key, Arc::new(copy));
    }

    pub(crate) fn remove_copy(&mut self, key: (NodeNo, Digest16)) {
        self.remember(RowKey::Copy(key.0, key.1), |state| Before::Copy(state.copies.get(&key).cloned()));
        self.copies.remove(&key);
        self.ledger.touch(key.0);
    }

    /// The nodes of the job's new copies will fetch what these run: where that is about people, they are
    /// remembered. Asked whenever a job is written, so no path to a place goes around it.
    pub(crate) fn note_copies(&mut self, job: &Job, old: Option<&Job>) {
        for (i, replica) in job.replicas.iter().enumerate() {
            let before = old.and_then(|old| old.replicas.get(i));
            for (generation, revision, alloc) in replica.copies() {
                let spec = job.spec_of(revision);
                let Some(manifest) = about_people(spec) else { continue };
                let known = |old: &Replica| old.copies().any(|(g, _, a)| (g, a.node) == (generation, alloc.node));
                if before.is_some_and(known) {
                    continue;
                }
                self.put_copy(Copy {
                    node: alloc.node,
                    tenant: spec.tenant.clone(),
                    model: spec.model.clone(),
                    version: spec.version.clone(),
                    manifest,
                    classes: spec.data_classes.clone(),
                    placed: self.meta.base,
                });
            }
        }
    }
}

/// The manifest of a version with data about people; None of any other.
pub(crate) fn about_people(spec: &JobSpec) -> Option<[u8; 32]> {
    spec.manifest.filter(|_| spec.data_classes.iter().any(is_personal))
}

/// What was found of a version's consents.
enum Found {
    /// Nothing in it is about people.
    NotAsked,
    Given,
    /// For this class none counts; `ended`: one did.
    Missing {
        class: Label,
        ended: bool,
    },
}

fn look(state: &State, tenant: &TenantId, classes: &[Label], model: &ModelId, version: &VersionId) -> Found {
    let mut found = Found::NotAsked;
    let now = state.meta().now_ms;
    for class in classes.iter().filter(|class| is_personal(class)) {
        let mut theirs = state.consents_of(tenant).filter(|c| c.scope.is_for(class, model, version)).peekable();
        let ended = theirs.peek().is_some();
        if !theirs.any(|consent| consent.counts(now)) {
            return Found::Missing { class: class.clone(), ended };
        }
        found = Found::Given;
    }
    found
}

fn missing(spec: &JobSpec, class: &Label, reason: Reason, what: &str) -> Refusal {
    let JobSpec { tenant, model, version, .. } = spec;
    let detail = format!(
        "version {version} of model {model} holds data of class {class}, and {what} of tenant {tenant} lets it be kept on \
         nodes; sign one (nf consent sign) and put it on record (nf consent grant)"
    );
    Refusal::field(reason, "model_version", detail)
}

/// Whether the consent that `spec` needs is on record: Ok(true) when it needs one.
///
/// # Errors
/// `ConsentRequired` when none counts.
pub fn judge(state: &State, spec: &JobSpec) -> Result<bool, Refusal> {
    match look(state, &spec.tenant, &spec.data_classes, &spec.model, &spec.version) {
        Found::NotAsked => Ok(false),
        Found::Given => Ok(true),
        Found::Missing { class, ended } => {
            let what = if ended { "no consent that still counts" } else { "no consent" };
            Err(missing(spec, &class, Reason::ConsentRequired, what))
        }
    }
}

/// The same for a job that was let in, each time that one of its replicas is to get a place.
pub(crate) fn judge_again(state: &State, spec: &JobSpec) -> Result<(), Refusal> {
    match look(state, &spec.tenant, &spec.data_classes, &spec.model, &spec.version) {
        Found::NotAsked | Found::Given => Ok(()),
        Found::Missing { class, .. } => {
            Err(missing(spec, &class, Reason::ConsentRevoked, "no consent that still counts"))
        }
    }
}

/// Whether the node may keep the copy.
pub fn may_keep(state: &State, copy: &Copy) -> bool {
    !matches!(look(state, &copy.tenant, &copy.classes, &copy.model, &copy.version), Found::Missing { .. })
}

/// What an intent to put a statement on record becomes.
///
/// # Errors
/// When its scope says nothing, or it counts for too long or no more.
pub(crate) fn grant(state: &State, said: &Consent, by: Option<Person>) -> Result<Consent, Refusal> {
    let at_ms = state.meta().now_ms;
    if said.scope.classes.is_empty() || said.scope.classes.len() > MAX_CLASSES {
        return Err(Refusal::invalid("data_classes", format!("1 to {MAX_CLASSES} classes of data")));
    }
    if said.scope.version.is_some() && said.scope.model.is_none() {
        return Err(Refusal::invalid("model_version", "a version without its model"));
    }
    if said.until_ms <= at_ms || said.until_ms > at_ms.saturating_add(MAX_MS) {
        return Err(Refusal::invalid("expires_at", "in the future, at most two years from now"));
    }
    Ok(Consent { by, at_ms, ended_ms: None, ..said.clone() })
}

/// Judged where it binds: a statement that was taken back stays so.
pub(crate) fn put(state: &mut State, consent: &Consent) -> Result<Answer, Refusal> {
    let tenant = &consent.scope.tenant;
    match state.consents.get(&consent.key()) {
        Some(known) if known.ended_ms.is_some() => {
            let detail = "this statement was taken back, or has ended; sign a new one (nf consent sign)";
            return Err(Refusal::field(Reason::ConsentRevoked, "statement", detail));
        }
        Some(_) => return Ok(Answer::Count(0)),
        None => {}
    }
    if state.consents_of(tenant).count() >= MAX_CONSENTS {
        let detail =
            format!("tenant {tenant} has {MAX_CONSENTS} consents on record; one statement may name several classes");
        return Err(Refusal::new(Reason::TooManyRequests, detail));
    }
    let tenant = tenant.clone();
    state.put_consent(consent.clone());
    touch(state, &tenant);
    Ok(Answer::Count(1))
}

/// Nodes that may have copies of the tenant look again: some may have to go, or may stay after all.
pub(crate) fn touch(state: &mut State, tenant: &TenantId) {
    let nodes: std::collections::BTreeSet<NodeNo> =
        state.copies().filter(|copy| copy.tenant == *tenant).map(|copy| copy.node).collect();
    nodes.into_iter().for_each(|node| state.ledger.touch(node));
}

/// When the next one ends or is forgotten; nothing happens by itself while no entry is written.
pub fn next_due_ms(state: &State) -> Option<u64> {
    state.consents_due.get_min().map(|(at, _)| *at)
}

/// A node says that it has removed copies; each with the `placed` of the order. How many that were.
pub(crate) fn purged(state: &mut State, node: NodeNo, copies: &[(Digest16, u64)]) -> u32 {
    let mut count = 0;
    for (key, placed) in copies {
        let Some(copy) = state.copies.get(&(node, *key)).cloned() else { continue };
        if copy.placed == *placed && !may_keep(state, &copy) && !is_in_use(state, node, &copy) {
            state.remove_copy((node, *key));
            count += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests;

/// A replica there may still have it open, whatever the node says.
fn is_in_use(state: &State, node: NodeNo, copy: &Copy) -> bool {
    let mut copies = state.replicas_on(node).flat_map(|(job, _, replica)| replica.copies().map(move |c| (job, c)));
    copies.any(|(job, (_, revision, alloc))| {
        let spec = job.spec_of(revision);
        alloc.node == node && spec.tenant == copy.tenant && spec.manifest == Some(copy.manifest)
    })
}
