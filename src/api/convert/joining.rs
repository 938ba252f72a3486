//! Join tokens at the border: what an admin makes, and what is told of those on record. No
//! secret passes here, in either direction.

use super::answer::{Freshness, time};
use super::json::Object;
use crate::security::join::token_id;
use nf_core::audit::Hash;
use nf_core::id::{Digest16, NodeName};
use nf_core::join::JoinToken;
use nf_core::reason::Refusal;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// How long a token counts when nobody says.
const USUAL_MS: u64 = 3_600_000;

/// What an admin wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub id: Digest16,
    pub secret: [u8; 32],
    pub node: Option<NodeName>,
    pub for_ms: u64,
}

/// A token's id.
///
/// # Errors
/// `InvalidArgument` on `id`.
pub fn id(text: &str) -> Result<Digest16, Refusal> {
    token_id(text).ok_or_else(|| Refusal::invalid("id", "32 lower-case hexadecimal digits"))
}

/// `{"id", "secret_sha256", "node_id"?, "ttl"?}`.
///
/// # Errors
/// The first field at fault.
pub fn wanted(map: &Map<String, Value>) -> Result<Wanted, Refusal> {
    let mut o = Object::top(map);
    let id = id(o.need("id")?.text()?)?;
    let secret = o.need("secret_sha256")?;
    let secret = Hash::parse(secret.text()?).ok_or_else(|| secret.refuse("64 lower-case hexadecimal digits"))?.0;
    let node = o.name("node_id", NodeName::new)?;
    let for_ms = o.get("ttl").map(|f| super::schedule::span(&f)).transpose()?.unwrap_or(USUAL_MS);
    o.finish()?;
    Ok(Wanted { id, secret, node, for_ms })
}

/// A token on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenBody {
    pub id: String,
    /// The only node that may join with it; null: any that is not known yet.
    pub node_id: Option<String>,
    pub created_by: Option<String>,
    pub created_at: String,
    pub expires_at: String,
    /// The node that it let in.
    pub used_by: Option<String>,
    pub used_at: Option<String>,
}

impl JoinTokenBody {
    pub fn new(token: &JoinToken) -> Self {
        Self {
            id: token.id.to_string(),
            node_id: token.node.as_ref().map(NodeName::to_string),
            created_by: token.by.as_ref().map(|by| by.subject.to_string()),
            created_at: time(token.at_ms),
            expires_at: time(token.until_ms),
            used_by: token.used.as_ref().map(|used| used.node.to_string()),
            used_at: token.used.as_ref().map(|used| time(used.at_ms)),
        }
    }
}

/// Tokens by id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenList {
    pub items: Vec<JoinTokenBody>,
    /// For the next page; null on the last one.
    pub next_token: Option<String>,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}
