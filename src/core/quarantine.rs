//! Quarantine (P7): a version whose bytes a node found to be others in the store than its manifest says, at a
//! deploy or a rollback, is let in no more for that tenant until somebody who may approve versions
//! releases it. What runs goes on, and gets new places: each start is verified on its node, so
//! nothing else ever runs; this keeps a copy that is known to be bad from being tried anew by each call.
//! It does not know files: a node's report says what was found.

use crate::approval::Version;
use crate::audit::Hash;
use crate::command::Answer;
use crate::id::{Digest16, NodeName, TenantId};
use crate::job::JobSpec;
use crate::reason::{Reason, Refusal};
use crate::state::{Before, RowKey, State};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Findings about one tenant's versions on record, from which on nothing of a store is let in for it. None is ever
/// dropped for another's sake: what was let in before may still add to them, each version of it once.
pub const MAX_QUARANTINED: usize = 1_000;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    pub of: Version,
    /// SHA-256 of the manifest that the bytes were held against. A version that is published anew has another one.
    pub manifest: [u8; 32],
    /// Who found it.
    pub node: NodeName,
    pub at_ms: u64,
}

/// A person's word that a version may be tried again: the one with the manifest that they looked at, and no other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub of: Version,
    /// SHA-256 of that manifest.
    pub manifest: [u8; 32],
}

impl Quarantine {
    /// The key of its row.
    pub fn key(&self) -> Digest16 {
        key(&self.of, &self.manifest)
    }
}

// Names hold no NUL, so no two versions share a key. The manifest is a part of it: what is found of one that was
// published anew is no word about the one before.
fn key(of: &Version, manifest: &[u8; 32]) -> Digest16 {
    let parts = [of.tenant.as_str(), of.model.as_str(), of.version.as_str()].map(str::as_bytes);
    Digest16::of(&[b"quarantine", parts[0], b"\0", parts[1], b"\0", parts[2], b"\0", manifest.as_slice()])
}

impl State {
    /// All that are on record.
    pub fn quarantines(&self) -> impl Iterator<Item = &Arc<Quarantine>> {
        self.quarantines.values()
    }

    pub(crate) fn put_quarantine(&mut self, found: Quarantine) {
        let key = found.key();
        self.remember(RowKey::Quarantine(key), |state| Before::Quarantine(state.quarantines.get(&key).cloned()));
        self.quarantines_by.insert((found.of.tenant.clone(), key));
        self.quarantines.insert(key, Arc::new(found));
    }

    fn remove_quarantine(&mut self, key: Digest16) -> bool {
        self.remember(RowKey::Quarantine(key), |state| Before::Quarantine(state.quarantines.get(&key).cloned()));
        let Some(old) = self.quarantines.remove(&key) else { return false };
        self.quarantines_by.remove(&(old.of.tenant.clone(), key));
        true
    }

    fn quarantines_of(&self, tenant: &TenantId) -> Vec<Digest16> {
        let (first, last) = (Digest16([0; 16]), Digest16([u8::MAX; 16]));
        let theirs = self.quarantines_by.range((tenant.clone(), first)..=(tenant.clone(), last));
        theirs.map(|(_, key)| *key).collect()
    }

    /// A tenant that is gone has no versions.
    pub(crate) fn remove_quarantines(&mut self, tenant: &TenantId) {
        for key in self.quarantines_of(tenant) {
            self.remove_quarantine(key);
        }
    }
}

fn version_of(spec: &JobSpec) -> Version {
    Version { tenant: spec.tenant.clone(), model: spec.model.clone(), version: spec.version.clone() }
}

/// Whether the version may be let in, by a job, a rollout or a rollback.
///
/// # Errors
/// `ModelCopyCorrupt` with who found what, and how it is lifted.
pub fn judge(state: &State, spec: &JobSpec) -> Result<(), Refusal> {
    let Some(manifest) = &spec.manifest else { return Ok(()) };
    let Some(found) = state.quarantines.get(&key(&version_of(spec), manifest)) else {
        return has_room(state, &spec.tenant);
    };
    let (JobSpec { tenant, model, version, .. }, node, sha256) = (spec, &found.node, Hash(found.manifest));
    let detail = format!(
        "version {version} of model {model} is in quarantine: the store gave node {node} other bytes than its manifest \
         says, and nothing was started. Keep work off that node (nf node cordon {node}), look at it and at the store, then release the \
         version (nf model release {model}@{version} --tenant {tenant} --sha256 {sha256}), or publish it anew as another one"
    );
    Err(Refusal::field(Reason::ModelCopyCorrupt, "model_version", detail))
}

/// Whether one more version of the tenant's could be found corrupt and still be on record.
fn has_room(state: &State, tenant: &TenantId) -> Result<(), Refusal> {
    let known = state.quarantines_of(tenant).len();
    if known < MAX_QUARANTINED {
        return Ok(());
    }
    let detail = format!(
        "{known} versions of tenant {tenant} are in quarantine, and from {MAX_QUARANTINED} on nothing else of its store is \
         let in; look at the store and at what was found (GET /quarantine), then release versions by their digests (nf model \
         release), or delete the tenant if it is given up"
    );
    Err(Refusal::field(Reason::ModelCopyCorrupt, "tenant_id", detail))
}

/// A node has found it.
pub(crate) fn set(state: &mut State, spec: &JobSpec, node: &NodeName) {
    let Some(manifest) = spec.manifest else { return };
    let (of, at_ms) = (version_of(spec), state.meta().now_ms);
    state.put_quarantine(Quarantine { of, manifest, node: node.clone(), at_ms });
}

/// Somebody has looked into it: what was found of the version with that manifest is lifted.
///
/// # Errors
/// `Conflict` when it is in quarantine with other manifests alone: what they looked at is not what would be let in.
pub(crate) fn release(state: &mut State, asked: &Release) -> Result<Answer, Refusal> {
    if state.remove_quarantine(key(&asked.of, &asked.manifest)) {
        return Ok(Answer::Count(1));
    }
    let found = state.quarantines_of(&asked.of.tenant).into_iter().filter_map(|key| state.quarantines.get(&key));
    let found: Vec<String> =
        found.filter(|found| found.of == asked.of).map(|found| Hash(found.manifest).to_string()).collect();
    if found.is_empty() {
        return Ok(Answer::Count(0));
    }
    let Version { tenant, model, version } = &asked.of;
    let detail = format!(
        "version {version} of model {model} for tenant {tenant} is in quarantine with the manifest {}, and not with {}; \
         look at what was found (GET /quarantine), then release that one by its own digest",
        found.join(" and "),
        Hash(asked.manifest)
    );
    Err(Refusal::field(Reason::Conflict, "sha256", detail))
}

#[cfg(test)]
mod tests;
