//! Consents at the border: what is put on record, and what callers are told of it and of
//! the copies that nodes have. It verifies nothing.

use super::answer::{Freshness, time};
use super::json::Object;
use nf_core::audit::Hash;
use nf_core::consent::{Consent, Copy, may_keep};
use nf_core::id::{Label, TenantId};
use nf_core::reason::Refusal;
use nf_core::state::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// `{"tenant_id", "statement"}`: the tenant, and the signed envelope as text.
///
/// # Errors
/// The first field at fault.
pub fn granted(map: &Map<String, Value>) -> Result<(TenantId, String), Refusal> {
    let mut o = Object::top(map);
    let tenant = o.need("tenant_id")?.name(TenantId::new)?;
    let statement = o.need("statement")?.text()?.to_owned();
    o.finish()?;
    Ok((tenant, statement))
}

/// A statement by its SHA-256.
///
/// # Errors
/// `InvalidArgument` on `statement`.
pub fn digest(text: &str) -> Result<[u8; 32], Refusal> {
    let bad = || Refusal::invalid("statement", "the statement's SHA-256 in 64 digits, as nf consent list shows it");
    Hash::parse(text).map(|hash| hash.0).ok_or_else(bad)
}

/// `{"tenant_id", "statement"}`: the tenant, and the statement's SHA-256.
///
/// # Errors
/// The first field at fault.
pub fn named(map: &Map<String, Value>) -> Result<(TenantId, [u8; 32]), Refusal> {
    let (tenant, statement) = granted(map)?;
    Ok((tenant, digest(&statement)?))
}

/// A consent on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsentBody {
    pub tenant_id: String,
    /// SHA-256 of what was signed: what it is revoked by.
    pub statement: String,
    pub data_classes: Vec<String>,
    /// Null: every model of the tenant.
    pub model_id: Option<String>,
    /// Null: every version of the model.
    pub model_version: Option<String>,
    /// By which of the tenant's keys.
    pub key_id: String,
    /// Who put it on record; null where nobody is asked who they are.
    pub granted_by: Option<String>,
    pub granted_at: String,
    pub expires_at: String,
    /// It counts now.
    pub active: bool,
    /// When it ended, by its time or by somebody's word; null while it counts.
    pub ended_at: Option<String>,
}

fn texts(classes: &[Label]) -> Vec<String> {
    classes.iter().map(Label::to_string).collect()
}

impl ConsentBody {
    pub fn new(consent: &Consent, now_ms: u64) -> Self {
        let scope = &consent.scope;
        Self {
            tenant_id: scope.tenant.to_string(),
            statement: Hash(consent.statement).to_string(),
            data_classes: texts(&scope.classes),
            model_id: scope.model.as_ref().map(ToString::to_string),
            model_version: scope.version.as_ref().map(ToString::to_string),
            key_id: consent.key_id.to_string(),
            granted_by: consent.by.as_ref().map(|by| by.subject.to_string()),
            granted_at: time(consent.at_ms),
            expires_at: time(consent.until_ms),
            active: consent.counts(now_ms),
            ended_at: consent.ended_ms.map(time),
        }
    }
}

/// A node that may have a copy of personal data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CopyBody {
    pub node: String,
    pub tenant_id: String,
    pub model_id: String,
    pub model_version: String,
    /// Of the version's manifest.
    pub sha256: String,
    pub data_classes: Vec<String>,
    /// It has to go, and the node has not said yet that it is gone.
    pub purging: bool,
}

impl CopyBody {
    pub fn new(state: &State, copy: &Copy) -> Self {
        let node = state.node(copy.node).map_or_else(|| copy.node.to_string(), |node| node.name.to_string());
        Self {
            node,
            tenant_id: copy.tenant.to_string(),
            model_id: copy.model.to_string(),
            model_version: copy.version.to_string(),
            sha256: Hash(copy.manifest).to_string(),
            data_classes: texts(&copy.classes),
            purging: !may_keep(state, copy),
        }
    }
}

/// Consents, by tenant and time, and the copies of what they are for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConsentList {
    pub items: Vec<ConsentBody>,
    /// For the next page; null on the last one.
    pub next_token: Option<String>,
    /// Nodes that may have copies, those that have to go first.
    pub copies: Vec<CopyBody>,
    /// How many more there are.
    pub copies_left_out: usize,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}
