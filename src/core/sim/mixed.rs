//! What is mixed into everything else, as in a group that is used: versions that hold data about
//! people, consents that come, end and are taken back meanwhile, and budgets over time.

use super::rng::Rng;
use crate::budget::{Budgets, Window};
use crate::consent::{Consent, Scope};
use crate::id::{Digest16, Label, TenantId, VersionId};
use crate::plan::Intent;

/// A version's number says what is in it, as its manifest would: the even ones are about people.
pub fn contents(version: &VersionId) -> (Option<[u8; 32]>, Vec<Label>) {
    let class = match version.as_str() {
        "v2" => "personal",
        "v4" => "personal-health",
        _ => return (None, Vec::new()),
    };
    let digest = Digest16::of(&[version.as_str().as_bytes()]).0;
    let mut manifest = [0; 32];
    manifest[..16].copy_from_slice(&digest);
    (Some(manifest), vec![Label::new(class).expect("a valid name")])
}

/// Whether a version's program keeps to its part of a GPU by itself: that of the third one does.
pub fn limits_itself(version: &VersionId) -> bool {
    version.as_str() == "v3"
}

/// A statement that counts for some seconds, or for days, or that is over before it arrives.
pub fn consent(tenant: TenantId, now_ms: u64, rng: &mut Rng) -> Consent {
    let class = *rng.pick(&["personal", "personal-health"]);
    let classes = vec![Label::new(class).expect("a valid name")];
    let lasts = if rng.chance(400) { 3_600_000 } else { rng.between(200, 8_000) };
    let mut statement = [0; 32];
    statement[..8].copy_from_slice(&rng.below(u64::MAX).to_be_bytes());
    let scope = Scope { tenant, classes, model: None, version: None };
    Consent { statement, scope, until_ms: now_ms + lasts, key_id: "key-1".into(), by: None, at_ms: 0, ended_ms: None }
}

/// A tenant takes one of its statements back.
pub fn dissent(of: &Consent) -> Intent {
    Intent::Dissent { tenant: of.scope.tenant.clone(), statement: of.statement }
}

/// Budgets that some of the jobs fit into: a replica that nobody stops is paid to the end of the day.
pub fn budgets(rng: &mut Rng) -> Option<Box<Budgets>> {
    let mut out = Budgets::default();
    out.gpu_hours[Window::Day as usize] = rng.chance(700).then(|| rng.between(1, 150) * 1000);
    out.gpu_hours[Window::Month as usize] = rng.chance(300).then(|| rng.between(100, 4_000) * 1000);
    out.some()
}
