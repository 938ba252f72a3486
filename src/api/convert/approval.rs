//! Approvals of versions at the border: what a promoter says, and what callers are
//! told. It does not decide whose approval counts.

use super::answer::{Freshness, time};
use super::json::Object;
use nf_core::approval::{Approval, MAX_MS, Version};
use nf_core::audit::Hash;
use nf_core::id::{ModelId, TenantId, VersionId};
use nf_core::quarantine::Release;
use nf_core::reason::Refusal;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// What a promoter wants approved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub of: Version,
    pub manifest: [u8; 32],
    pub for_ms: u64,
}

fn version(o: &mut Object<'_>) -> Result<Version, Refusal> {
    Ok(Version {
        tenant: o.need("tenant_id")?.name(TenantId::new)?,
        model: o.need("model_id")?.name(ModelId::new)?,
        version: o.need("model_version")?.name(VersionId::new)?,
    })
}

/// A digest as `nf model publish` and `nf model pull` print it.
///
/// # Errors
/// `InvalidArgument` on `sha256`.
pub fn digest(text: &str) -> Result<[u8; 32], Refusal> {
    let bad = || Refusal::invalid("sha256", "the manifest's SHA-256 in 64 digits, as nf model publish printed it");
    Hash::parse(text).map(|hash| hash.0).ok_or_else(bad)
}

/// `{"tenant_id", "model_id", "model_version", "sha256", "ttl"?}`.
///
/// # Errors
/// The first field at fault.
pub fn wanted(map: &Map<String, Value>) -> Result<Wanted, Refusal> {
    let mut o = Object::top(map);
    let of = version(&mut o)?;
    let manifest = digest(o.need("sha256")?.text()?)?;
    let for_ms = o.get("ttl").map(|f| super::schedule::span(&f)).transpose()?.unwrap_or(MAX_MS);
    o.finish()?;
    Ok(Wanted { of, manifest, for_ms })
}

/// `{"tenant_id", "model_id", "model_version"}`.
///
/// # Errors
/// The first field at fault.
pub fn named(map: &Map<String, Value>) -> Result<Version, Refusal> {
    let mut o = Object::top(map);
    let of = version(&mut o)?;
    o.finish()?;
    Ok(of)
}

/// `{"tenant_id", "model_id", "model_version", "sha256"}`.
///
/// # Errors
/// The first field at fault.
pub fn released(map: &Map<String, Value>) -> Result<Release, Refusal> {
    let mut o = Object::top(map);
    let of = version(&mut o)?;
    let manifest = digest(o.need("sha256")?.text()?)?;
    o.finish()?;
    Ok(Release { of, manifest })
}

/// An approval on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApprovalBody {
    pub tenant_id: String,
    pub model_id: String,
    pub model_version: String,
    /// Of the manifest that was approved.
    pub sha256: String,
    pub approved_by: String,
    pub approved_at: String,
    pub expires_at: String,
    /// It counts now; false: it has expired.
    pub active: bool,
    /// Under which entries of the audit trail refer to it.
    pub digest: String,
}

impl ApprovalBody {
    pub fn new(approval: &Approval, now_ms: u64) -> Self {
        Self {
            tenant_id: approval.of.tenant.to_string(),
            model_id: approval.of.model.to_string(),
            model_version: approval.of.version.to_string(),
            sha256: Hash(approval.manifest).to_string(),
            approved_by: approval.by.subject.to_string(),
            approved_at: time(approval.at_ms),
            expires_at: time(approval.until_ms),
            active: approval.until_ms > now_ms,
            digest: approval.digest().to_string(),
        }
    }
}

/// Approvals, by tenant, model and version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ApprovalList {
    pub items: Vec<ApprovalBody>,
    /// For the next page; null on the last one.
    pub next_token: Option<String>,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}
