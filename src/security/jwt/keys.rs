//! The keys that verify tokens, read from a JWKS (RFC 7517). Each key has one
//! algorithm of the allow-list; a token can choose a key by its `kid` and nothing
//! else. It does not know files.

use super::Denied;
use super::cache::Cache;
use super::claims::Claims;
use crate::security::{encoding, json};
use aws_lc_rs::signature as lc;
use jsonwebtoken::{DecodingKey, Validation};
use nf_core::reason::{Reason, Refusal};
use serde_json::Value;

/// The longest JWKS, and the most keys in one.
pub const MAX_JWKS: usize = 256 << 10;
const MAX_KEYS: usize = 64;
const MAX_KID: usize = 256;

/// What may sign tokens: asymmetric alone, so that no verifier can mint one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Es256,
    Es384,
    EdDsa,
    Rs256,
    Ps256,
}

impl Algorithm {
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Es256 => "ES256",
            Algorithm::Es384 => "ES384",
            Algorithm::EdDsa => "EdDSA",
            Algorithm::Rs256 => "RS256",
            Algorithm::Ps256 => "PS256",
        }
    }

    fn library(self) -> jsonwebtoken::Algorithm {
        match self {
            Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
            Algorithm::Es384 => jsonwebtoken::Algorithm::ES384,
            Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
            Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
            Algorithm::Ps256 => jsonwebtoken::Algorithm::PS256,
        }
    }
}

/// One key with its algorithm.
pub(super) struct Key {
    kid: Option<String>,
    pub(super) algorithm: Algorithm,
    key: DecodingKey,
    validation: Validation,
}

impl Key {
    fn new(kid: Option<String>, algorithm: Algorithm, key: DecodingKey) -> Self {
        let mut validation = Validation::new(algorithm.library());
        // Times, issuer and audience are checked by Claims, with one clock, which tests can set.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Self { kid, algorithm, key, validation }
    }

    /// Checks the signature and reads the claims; it checks none of them.
    pub(super) fn decode(&self, token: &str) -> Result<Claims, Denied> {
        use jsonwebtoken::errors::ErrorKind as E;
        let read = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation);
        read.map(|data| data.claims).map_err(|e| match e.kind() {
            E::Json(_) | E::Utf8(_) | E::MissingRequiredClaim(_) | E::InvalidClaimFormat(_) => Denied::Claims,
            E::InvalidAlgorithm => Denied::Algorithm,
            E::InvalidToken => Denied::Shape,
            _ => Denied::Signature,
        })
    }
}

/// A set of keys, with what they have verified.
pub struct Keys {
    keys: Vec<Key>,
    pub(super) cache: Cache,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|k| (&k.kid, k.algorithm))).finish()
    }
}

impl Keys {
    /// Reads a JWKS. Keys for encryption and of other algorithms are passed over, as issuers list them, too.
    ///
    /// # Errors
    /// `ConfigInvalid` naming the file and what is wrong, never with its contents.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, Refusal> {
        let wrong = |text: String| Refusal::field(Reason::ConfigInvalid, name, text);
        if bytes.len() > MAX_JWKS {
            return Err(wrong(format!("longer than {MAX_JWKS} bytes; that is no JWKS")));
        }
        // Errors of the JSON reader name places and names, never values.
        let set = json::parse(bytes).map_err(|e| wrong(format!("no JWKS: {e}")))?;
        let listed = set.get("keys").and_then(Value::as_array);
        let listed = listed.ok_or_else(|| wrong("no JWKS: an object with keys is wanted".into()))?;
        if listed.len() > MAX_KEYS {
            return Err(wrong(format!("{} keys; at most {MAX_KEYS}", listed.len())));
        }
        let mut keys: Vec<Key> = Vec::new();
        for (i, jwk) in listed.iter().enumerate() {
            let Some(key) = key(jwk).map_err(|e| wrong(format!("keys[{i}]: {e}")))? else { continue };
            if keys.iter().any(|k| k.kid == key.kid) {
                return Err(wrong(format!("keys[{i}]: its kid is there before; a kid names one key")));
            }
            keys.push(key);
        }
        match keys.is_empty() {
            true => Err(wrong("no key for ES256, ES384, EdDSA, RS256 or PS256 signatures".into())),
            false => Ok(Self { keys, cache: Cache::default() }),
        }
    }

    /// None at all: no token counts.
    pub fn none() -> Self {
        Self { keys: Vec::new(), cache: Cache::default() }
    }

    /// The key of a token's `kid`; without one, the only key.
    pub(super) fn find(&self, kid: Option<&str>) -> Option<&Key> {
        match (kid, &self.keys[..]) {
            (Some(kid), keys) => keys.iter().find(|key| key.kid.as_deref() == Some(kid)),
            (None, [key]) => Some(key),
            (None, _) => None,
        }
    }
}

/// One JWK; None when it is not for what we verify.
fn key(jwk: &Value) -> Result<Option<Key>, String> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    if !jwk.is_object() {
        return Err("no object".into());
    }
    if ["d", "p", "q", "dp", "dq", "qi", "k"].iter().any(|name| jwk.get(*name).is_some()) {
        return Err("holds a private or shared key, which a verifier must not have; publish public keys only".into());
    }
    let operations = jwk.get("key_ops").and_then(Value::as_array);
    let verifies = operations.is_none_or(|ops| ops.iter().any(|op| op == "verify"));
    if text("use").is_some_and(|it| it != "sig") || !verifies {
        return Ok(None);
    }
    let natural = match (text("kty"), text("crv")) {
        (Some("EC"), Some("P-256")) => Algorithm::Es256,
        (Some("EC"), Some("P-384")) => Algorithm::Es384,
        (Some("OKP"), Some("Ed25519")) => Algorithm::EdDsa,
        (Some("RSA"), _) => Algorithm::Rs256,
        _ => return Ok(None),
    };
    let algorithm = match (natural, text("alg")) {
        (natural, None) => natural,
        (natural, Some(alg)) if alg == natural.name() => natural,
        (Algorithm::Rs256, Some("PS256")) => Algorithm::Ps256,
        (Algorithm::Rs256, Some(_)) => return Ok(None),
        (natural, Some(_)) => return Err(format!("its alg is not {}, which its curve is for", natural.name())),
    };
    let kid = match jwk.get("kid") {
        None => None,
        Some(kid) => {
            let kid = kid.as_str().filter(|kid| !kid.is_empty() && kid.len() <= MAX_KID);
            Some(kid.ok_or_else(|| format!("its kid is no text of 1 to {MAX_KID} bytes"))?.to_owned())
        }
    };
    Ok(Some(Key::new(kid, algorithm, material(jwk, algorithm)?)))
}

/// The public key itself, checked now so that a broken one is found at start and not at a call.
fn material(jwk: &Value, algorithm: Algorithm) -> Result<DecodingKey, String> {
    let bytes = |name: &str| {
        let text = jwk.get(name).and_then(Value::as_str);
        text.and_then(encoding::base64_url).ok_or_else(|| format!("its {name} is not base64url"))
    };
    match algorithm {
        Algorithm::Es256 | Algorithm::Es384 => {
            let size = if algorithm == Algorithm::Es256 { 32 } else { 48 };
            let (x, y) = (bytes("x")?, bytes("y")?);
            let point = [&[4], &x[..], &y[..]].concat();
            let scheme = match algorithm {
                Algorithm::Es256 => &lc::ECDSA_P256_SHA256_FIXED,
                _ => &lc::ECDSA_P384_SHA384_FIXED,
            };
            if x.len() != size || y.len() != size || lc::ParsedPublicKey::new(scheme, &point).is_err() {
                return Err("x and y are no point of its curve".into());
            }
            Ok(DecodingKey::from_ec_der(&point))
        }
        Algorithm::EdDsa => match bytes("x")? {
            x if x.len() == 32 => Ok(DecodingKey::from_ed_der(&x)),
            _ => Err("x is no Ed25519 key".into()),
        },
        Algorithm::Rs256 | Algorithm::Ps256 => {
            let (n, e) = (bytes("n")?, bytes("e")?);
            let bits = n.iter().skip_while(|b| **b == 0).count() * 8;
            if !(2048..=4096).contains(&bits) || e.is_empty() || e.len() > 4 {
                return Err(format!(
                    "an RSA key of about {bits} bits; 2048 to 4096, with a usual exponent, are supported"
                ));
            }
            Ok(DecodingKey::from_rsa_raw_components(&n, &e))
        }
    }
}
