//! Makes tokens: for `nf dev`, for the first admin token, for tests. A member that
//! only verifies has none of this; the private key stays with whoever mints.

use super::claims::Role;
use super::{AUDIENCE, MAX_LIFETIME};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// An issuer with an ES256 key.
pub struct Mint {
    pair: EcdsaKeyPair,
    issuer: String,
    kid: String,
}

impl std::fmt::Debug for Mint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mint({}, {}, <REDACTED>)", self.issuer, self.kid)
    }
}

/// What a token gives.
#[derive(Clone, Debug)]
pub struct Grant {
    pub subject: String,
    pub tenant: String,
    pub roles: Vec<Role>,
    /// Unique for each token, so that it can be revoked.
    pub id: String,
    /// Seconds, at most [`MAX_LIFETIME`].
    pub lifetime_s: u64,
}

impl Mint {
    /// A new key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate(issuer: &str) -> Result<Self, String> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|e| e.to_string())?;
        Ok(Self::of(issuer, pair))
    }

    /// A key that was kept, as PKCS#8 in DER.
    ///
    /// # Errors
    /// When it is no P-256 key.
    pub fn from_pkcs8(issuer: &str, der: &[u8]) -> Result<Self, String> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der);
        pair.map(|pair| Self::of(issuer, pair)).map_err(|e| format!("no P-256 key in PKCS#8: {e}"))
    }

    /// The key, to keep.
    ///
    /// # Errors
    /// When the library cannot write it.
    pub fn to_pkcs8(&self) -> Result<Vec<u8>, String> {
        self.pair.to_pkcs8v1().map(|document| document.as_ref().to_vec()).map_err(|e| e.to_string())
    }

    fn of(issuer: &str, pair: EcdsaKeyPair) -> Self {
        let point = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, pair.public_key().as_ref());
        let kid = URL_SAFE_NO_PAD.encode(&point.as_ref()[..12]);
        Self { pair, issuer: issuer.to_owned(), kid }
    }

    /// The public half, as members read it.
    pub fn jwks(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.kid, "x": x, "y": y }] })
    }

    /// A token, valid from `now` (seconds since 1970).
    ///
    /// # Errors
    /// When the library cannot sign.
    pub fn token(&self, grant: &Grant, now: u64) -> Result<String, String> {
        let roles: Vec<&str> = grant.roles.iter().map(|role| role.name()).collect();
        self.signed(&json!({
            "iss": self.issuer, "sub": grant.subject, "aud": AUDIENCE, "tenant_id": grant.tenant, "roles": roles,
            "iat": now, "exp": now + grant.lifetime_s.min(MAX_LIFETIME), "jti": grant.id,
        }))
    }

    /// Signs claims as they are.
    pub(super) fn signed(&self, claims: &Value) -> Result<String, String> {
        self.signed_text(&json!({ "typ": "JWT", "alg": "ES256", "kid": self.kid }).to_string(), &claims.to_string())
    }

    /// Signs a header and claims as they are, whatever they are.
    pub(super) fn signed_text(&self, header: &str, claims: &str) -> Result<String, String> {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).map_err(|e| e.to_string())?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }

    #[cfg(test)]
    pub(super) fn kid(&self) -> &str {
        &self.kid
    }
}
