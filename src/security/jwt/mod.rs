//! Tokens of people and machines (JWT, RFC 7519): who is calling, in which tenant,
//! in which roles. Keys come from the configured JWKS alone, and each has one
//! algorithm; what a token says about keys is never followed. A verified token is
//! remembered by its hash until it expires. What a role may do is decided elsewhere.

mod cache;
mod claims;
pub mod issuer;
mod keys;
mod mint;
mod remote;
#[cfg(test)]
mod tests;
mod watch;

pub use claims::{Identity, Role, Roles};
pub use keys::{Algorithm, Keys};
pub use mint::{Grant, Mint};
pub use remote::{Remote, Times};
pub use watch::Watch;

use super::json;
use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use claims::Claims;
use nf_core::reason::{Reason, Refusal};
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::Notify;

/// The longest token.
pub const MAX_TOKEN: usize = 8 << 10;
/// How far the issuer's clock and ours may be apart, in seconds.
pub const LEEWAY: u64 = 30;
/// The longest that a token may live, in seconds.
pub const MAX_LIFETIME: u64 = 24 * 3600;
/// Who our tokens are for.
pub const AUDIENCE: &str = "nf";

/// Why a token was refused: for the log. Callers are told [`Denied::refusal`] alone,
/// so that nobody learns how close a guess was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("longer than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("not three parts of base64url")]
    Shape,
    #[error("its header is not the JSON that is wanted")]
    Header,
    #[error("its header has crit, and no extension is understood here")]
    Critical,
    #[error("its typ is not that of a JWT")]
    Type,
    #[error("no configured key has its kid")]
    UnknownKey,
    #[error("its alg is not the algorithm of its key")]
    Algorithm,
    #[error("its signature does not verify")]
    Signature,
    #[error("its claims lack one that is needed, or one has the wrong type")]
    Claims,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    NotYet,
    #[error("it lives longer than {MAX_LIFETIME} s")]
    Lifetime,
    #[error("it is from another issuer")]
    Issuer,
    #[error("it is for another audience than {AUDIENCE}")]
    Audience,
    #[error("its tenant_id is absent, empty, or no tenant's name")]
    Tenant,
    #[error("it has no jti, so it could not be revoked")]
    NoId,
}

impl Denied {
    /// What the caller is told.
    pub fn refusal(&self) -> Refusal {
        match self {
            Denied::Tenant => Refusal::field(
                Reason::TenantClaimInvalid,
                "tenant_id",
                "the token's tenant_id is absent or no tenant's name; ask its issuer for one with the tenant",
            ),
            // Said of a token that verifies alone, so it tells nothing to who guesses.
            Denied::NoId => Refusal::field(
                Reason::TokenIdRequired,
                "jti",
                "the token has no jti, so it could not be revoked, and production wants one; ask its issuer for it",
            ),
            _ => Refusal::new(Reason::Unauthenticated, "the token is not valid here; get a new one (nf token create)"),
        }
    }
}

/// Verifies tokens. Cheap to share; keys are replaced under it.
pub struct Verifier {
    keys: ArcSwap<Keys>,
    issuer: Option<String>,
    wants_id: bool,
    /// Told when a token names a key that is not known.
    misses: Notify,
}

impl Verifier {
    /// `issuer`: the only one whose tokens count; None: any that holds a configured key.
    pub fn new(keys: Keys, issuer: Option<String>) -> Self {
        Self { keys: ArcSwap::from_pointee(keys), issuer, wants_id: false, misses: Notify::new() }
    }

    /// Takes only tokens that can be revoked, those with a `jti`.
    #[must_use]
    pub fn wanting_ids(self) -> Self {
        Self { wants_id: true, ..self }
    }

    /// Takes other keys. Every remembered token is forgotten with the old ones.
    pub fn replace(&self, keys: Keys) {
        self.keys.store(Arc::new(keys));
    }

    /// Who a token speaks for. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// [`Denied`]; tell the caller its refusal only.
    pub fn verify(&self, token: &str, now: u64) -> Result<Arc<Identity>, Denied> {
        if token.len() > MAX_TOKEN {
            return Err(Denied::TooLong);
        }
        let keys = self.keys.load();
        let hash: [u8; 32] = digest(&SHA256, token.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes");
        if let Some(identity) = keys.cache.get(&hash, now) {
            return Ok(identity);
        }
        let identity = Arc::new(self.examine(&keys, token, now)?);
        // Into the cache of the keys that verified it: with other keys it is gone.
        keys.cache.put(hash, identity.clone(), now);
        Ok(identity)
    }

    fn examine(&self, keys: &Keys, token: &str, now: u64) -> Result<Identity, Denied> {
        let header = header(token)?;
        // RFC 7515 section 4.1.11: who does not understand an extension refuses; we understand none.
        if header.get("crit").is_some() {
            return Err(Denied::Critical);
        }
        let typ = header.get("typ").map(|t| t.as_str().unwrap_or_default().to_ascii_lowercase());
        if typ.is_some_and(|typ| !["jwt", "at+jwt"].contains(&typ.as_str())) {
            return Err(Denied::Type);
        }
        let kid = match header.get("kid") {
            None => None,
            Some(kid) => Some(kid.as_str().ok_or(Denied::Header)?),
        };
        let Some(key) = keys.find(kid) else {
            self.misses.notify_one();
            return Err(Denied::UnknownKey);
        };
        if header.get("alg").and_then(Value::as_str) != Some(key.algorithm.name()) {
            return Err(Denied::Algorithm);
        }
        let claims: Claims = key.decode(token)?;
        let identity = claims.check(self.issuer.as_deref(), now)?;
        match identity.token_id {
            None if self.wants_id => Err(Denied::NoId),
            _ => Ok(identity),
        }
    }

    /// Makes a key, signs a token, and verifies it: a build whose cryptography
    /// does not work must not find out at the first call.
    ///
    /// # Errors
    /// What does not work.
    pub fn self_test() -> Result<(), String> {
        let mint = Mint::generate("self-test")?;
        let keys = Keys::parse("self-test", mint.jwks().to_string().as_bytes()).map_err(|e| e.to_string())?;
        let grant = Grant {
            subject: "self-test".into(),
            tenant: "self-test".into(),
            roles: vec![Role::Viewer],
            id: "self-test".into(),
            lifetime_s: 60,
        };
        let (now, verifier) = (1_000_000, Verifier::new(keys, Some("self-test".into())));
        let token = mint.token(&grant, now)?;
        verifier.verify(&token, now).map_err(|e| e.to_string())?;
        let forged = token.replacen('.', ".e30", 1);
        if verifier.verify(&forged, now).is_ok() {
            return Err("a changed token verifies".into());
        }
        Ok(())
    }
}

/// The first part, read strictly: two `alg` in one header are none.
fn header(token: &str) -> Result<Value, Denied> {
    let mut parts = token.split('.');
    let (first, claims) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if parts.count() != 1 {
        return Err(Denied::Shape);
    }
    // Claims are an object, and `{` begins with these six bits: serde would take an array for a struct, too.
    if !claims.starts_with('e') {
        return Err(Denied::Claims);
    }
    let bytes = super::encoding::base64_url(first).filter(|_| !first.contains('=')).ok_or(Denied::Shape)?;
    match json::parse(&bytes) {
        Ok(header) if header.is_object() => Ok(header),
        _ => Err(Denied::Header),
    }
}
