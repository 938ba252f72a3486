//! Floors: the oldest version of a model that may still run for a tenant. A deploy statement
//! may name one (`min_version`), so that an older version with a good signature cannot be
//! brought back by whoever writes the store; the highest that was ever let in counts, and only
//! a rollback that somebody let in goes below it. Order of versions is here, too.

use crate::id::{Digest16, ModelId, TenantId, VersionId};
use crate::job::JobSpec;
use crate::reason::{Reason, Refusal};
use crate::state::{Before, RowKey, State};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::sync::Arc;

/// Floors of one tenant on record. At the cap a version that would make another is refused; none is dropped.
pub const MAX_FLOORS: usize = 10_000;

/// Nothing older runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    pub tenant: TenantId,
    pub model: ModelId,
    pub version: VersionId,
}

impl Floor {
    /// The key of its row.
    pub fn key(&self) -> Digest16 {
        key(&self.tenant, &self.model)
    }
}

// Names hold no NUL, so no two models share a key.
fn key(tenant: &TenantId, model: &ModelId) -> Digest16 {
    Digest16::of(&[b"floor", tenant.as_str().as_bytes(), b"\0", model.as_str().as_bytes()])
}

/// How two versions lie to one another, as Semantic Versioning 2.0.0 orders them, for names of any number of parts:
/// what follows the first `-` comes before what lacks it (`2-rc1` before `2`), parts are split at `.` and `_` and
/// where digits begin or end, digits compare as numbers and all else as ASCII, digits before letters, the shorter
/// before the longer; what follows a `+` counts for nothing.
pub fn order(a: &VersionId, b: &VersionId) -> Ordering {
    let (a, b) = (split(a.as_str()), split(b.as_str()));
    compare(a.0, b.0).then_with(|| match (a.1, b.1) {
        (None, None) => Ordering::Equal,
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (Some(a), Some(b)) => compare(a, b),
    })
}

/// A version, and what says that it comes before that.
fn split(text: &str) -> (&str, Option<&str>) {
    let text = text.split('+').next().unwrap_or_default();
    text.split_once('-').map_or((text, None), |(version, before)| (version, Some(before)))
}

fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (parts(a), parts(b));
    loop {
        let (a, b) = match (a.next(), b.next()) {
            (Some(a), Some(b)) => (a, b),
            (a, b) => return a.is_some().cmp(&b.is_some()),
        };
        match compare_part(a, b) {
            Ordering::Equal => {}
            decided => return decided,
        }
    }
}

/// Runs of digits, and runs of anything else without separators.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(['.', '_', '-']).flat_map(|piece| {
        let mut rest = piece;
        std::iter::from_fn(move || {
            let digits = rest.bytes().next()?.is_ascii_digit();
            let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
            let (part, tail) = rest.split_at(end);
            rest = tail;
            Some(part)
        })
    })
}

fn compare_part(a: &str, b: &str) -> Ordering {
    let number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    match (number(a), number(b)) {
        (true, true) => {
            // Of any length, so no integer holds them.
            let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
            a.len().cmp(&b.len()).then_with(|| a.cmp(b))
        }
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.cmp(b),
    }
}

impl State {
    /// The oldest version of the model that may run for the tenant.
    pub fn floor(&self, tenant: &TenantId, model: &ModelId) -> Option<&VersionId> {
        self.floors.get(&key(tenant, model)).map(|floor| &floor.version)
    }

    /// All that are on record.
    pub fn floors(&self) -> impl Iterator<Item = &Arc<Floor>> {
        self.floors.values()
    }

    pub(crate) fn put_floor(&mut self, floor: Floor) {
        let key = floor.key();
        self.remember(RowKey::Floor(key), |state| Before::Floor(state.floors.get(&key).cloned()));
        self.floors_by.insert((floor.tenant.clone(), key));
        self.floors.insert(key, Arc::new(floor));
    }

    /// A tenant that is gone has no models.
    pub(crate) fn remove_floors(&mut self, tenant: &TenantId) {
        for key in self.floors_of(tenant) {
            self.remember(RowKey::Floor(key), |state| Before::Floor(state.floors.get(&key).cloned()));
            self.floors.remove(&key);
            self.floors_by.remove(&(tenant.clone(), key));
        }
    }

    fn floors_of(&self, tenant: &TenantId) -> Vec<Digest16> {
        let (first, last) = (Digest16([0; 16]), Digest16([u8::MAX; 16]));
        let theirs = self.floors_by.range((tenant.clone(), first)..=(tenant.clone(), last));
        theirs.map(|(_, key)| *key).collect()
    }
}

/// Whether the version may be let in.
///
/// # Errors
/// `VersionTooOld` with the floor, and `TooManyRequests` where no more floors have room.
pub fn judge(state: &State, spec: &JobSpec) -> Result<(), Refusal> {
    let JobSpec { tenant, model, version, .. } = spec;
    if let Some(floor) = state.floor(tenant, model).filter(|floor| order(version, floor).is_lt()) {
        let detail = format!(
            "version {version} of model {model} is older than {floor}, and a signature said that nothing older runs \
             for tenant {tenant} any more; run {floor} or a newer one, or go back with nf model rollback {model}"
        );
        return Err(Refusal::field(Reason::VersionTooOld, "model_version", detail));
    }
    let new = raised(state, spec).is_some() && state.floor(tenant, model).is_none();
    if new && state.floors_of(tenant).len() >= MAX_FLOORS {
        let detail = format!("tenant {tenant} has {MAX_FLOORS} models with a min_version, and no room for another");
        return Err(Refusal::new(Reason::TooManyRequests, detail));
    }
    Ok(())
}

/// The same for one that was let in, each time that one of its replicas is to get a place: a floor that rose since
/// lets what runs go on, and starts nothing. A rollback knew the floor that it went below, and no higher one.
pub(crate) fn judge_again(state: &State, spec: &JobSpec) -> Result<(), Refusal> {
    let floor = state.floor(&spec.tenant, &spec.model);
    match (floor, &spec.below) {
        (Some(floor), Some(known)) if !order(floor, known).is_gt() => Ok(()),
        (Some(_), _) => judge(state, spec),
        (None, _) => Ok(()),
    }
}

/// What a rollback brings back may be older than the floor that there is.
pub(crate) fn go_below(state: &State, spec: &mut JobSpec) {
    spec.below = state.floor(&spec.tenant, &spec.model).cloned();
}

/// The floor as the version's signature raises it; None where it does not.
fn raised<'a>(state: &State, spec: &'a JobSpec) -> Option<&'a VersionId> {
    let wanted = spec.evidence.as_ref()?.min_version.as_ref()?;
    let now = state.floor(&spec.tenant, &spec.model);
    now.is_none_or(|now| order(now, wanted).is_lt()).then_some(wanted)
}

/// The version is let in for good, and with it what its signature says of older ones.
pub(crate) fn raise(state: &mut State, spec: &JobSpec) {
    let Some(version) = raised(state, spec).cloned() else { return };
    state.put_floor(Floor { tenant: spec.tenant.clone(), model: spec.model.clone(), version });
}

#[cfg(test)]
mod tests;
