//! DSSE: which signatures of an envelope count. Every signature is over the
//! pre-authentication encoding of type and payload; a keyid only chooses among
//! configured keys. It does not read the payload.

use super::certificate;
use super::content::Content;
use super::evidence::{Envelope, Signer};
use super::key::{Kind, Padding, PublicKey};
use super::refusal::{invalid, shown, unsupported};
use super::{Policy, SignedBy, incomplete, shared_tenants};
use nf_core::reason::Refusal;
use std::collections::BTreeSet;

/// What DSSE signs instead of the payload (secure-systems-lab/dsse, protocol.md).
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// The signatures of an envelope that counted, by which keys.
pub struct Signed {
    pub by: Vec<SignedBy>,
    keys: Vec<PublicKey>,
    /// keyids that no configured key has.
    unknown: Vec<String>,
}

impl Signed {
    pub fn classical(&self) -> bool {
        self.keys.iter().any(|key| !key.kind.post_quantum())
    }

    /// ECDSA and ML-DSA, both.
    pub fn hybrid(&self) -> bool {
        let ecdsa = self.keys.iter().any(|key| matches!(key.kind, Kind::Ecdsa(_)));
        ecdsa && self.keys.iter().any(|key| key.kind.post_quantum())
    }

    pub fn missing_half(&self) -> String {
        let half = if self.classical() { "the ML-DSA signature" } else { "the ECDSA signature" };
        match self.unknown.first() {
            Some(id) => format!("{half} does not count: no configured key has the id {}", shown(id)),
            None => format!("{half} is not there"),
        }
    }

    /// Model Signing knows no other keys.
    pub fn only_ecdsa(&self) -> Result<(), Refusal> {
        match self.keys.iter().find(|key| !matches!(key.kind, Kind::Ecdsa(_))) {
            Some(key) => {
                let text =
                    format!("Model Signing with a key of {}; supported: ECDSA P-256, P-384, P-521", key.kind.name());
                Err(unsupported("key", text))
            }
            None => Ok(()),
        }
    }

    pub fn keys(&self) -> &[PublicKey] {
        &self.keys
    }

    pub fn tenants(&self) -> BTreeSet<String> {
        shared_tenants(self.keys.iter())
    }
}

/// The one key that a bundle's signer stands for. A hint that nobody configured is
/// refused: trying other keys instead is how bypasses begin.
pub fn signer(policy: &Policy<'_>, signer: Signer) -> Result<PublicKey, Refusal> {
    let field = "verificationMaterial.publicKey.hint";
    match signer {
        Signer::Chain(chain) => certificate::signer(&chain, policy.roots, policy.now),
        Signer::Hint(hint) => policy.keys.named(&hint).cloned().ok_or_else(|| {
            invalid(field, format!("no configured key has the id {}; pass its signer's public key", shown(&hint)))
        }),
        Signer::Unnamed => match policy.keys.keys() {
            [key] => Ok(key.clone()),
            keys => {
                let text =
                    format!("the bundle names no key and {} are configured; pass its signer's alone", keys.len());
                Err(invalid(field, text))
            }
        },
    }
}

/// Whether a key's signature over an envelope counts.
fn accepts(key: &PublicKey, content: &Content<'_>, signature: &[u8]) -> Result<bool, Refusal> {
    if key.kind == Kind::Ed25519 {
        let text = "DSSE by Ed25519 keys is not supported; supported are ECDSA, RSA and ML-DSA";
        return Err(unsupported("key", text));
    }
    for hash in key.hashes() {
        if key.accepts(content, *hash, Padding::Pkcs1, signature)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Checks the signatures of an envelope; `bundle` is the signer that a bundle around it names.
///
/// # Errors
/// When none counts, or one by a configured key is wrong.
pub fn check(policy: &Policy<'_>, bundle: Option<Signer>, envelope: &Envelope) -> Result<Signed, Refusal> {
    let encoded = pae(&envelope.payload_type, &envelope.payload);
    let content = Content::bytes(&encoded);
    match (bundle, &envelope.signatures[..]) {
        (Some(named), [(keyid, signature)]) => {
            let certificate = matches!(named, Signer::Chain(_));
            let key = signer(policy, named)?;
            let other = !keyid.is_empty() && *keyid != key.id() && *keyid != key.pem_id();
            if other || !accepts(&key, &content, signature)? {
                let text = "does not verify with the key that the bundle names; the payload or the signature was changed, \
                            or another key made it";
                return Err(invalid("dsseEnvelope.signatures[0].sig", text));
            }
            Ok(Signed { by: vec![SignedBy::new(&key, certificate)], keys: vec![key], unknown: vec![] })
        }
        (Some(_), _) => Err(invalid("dsseEnvelope.signatures", "a bundle has one signature")),
        (None, [(keyid, signature)]) if keyid.is_empty() => unnamed(policy, &content, signature),
        (None, signatures) => named(policy, &content, signatures),
    }
}

/// One signature without a keyid: any configured key may have made it.
fn unnamed(policy: &Policy<'_>, content: &Content<'_>, signature: &[u8]) -> Result<Signed, Refusal> {
    for key in policy.keys.keys().iter().filter(|key| key.kind != Kind::Ed25519) {
        if accepts(key, content, signature)? {
            let by = vec![SignedBy::new(key, false)];
            return Ok(Signed { by, keys: vec![key.clone()], unknown: vec![] });
        }
    }
    Err(invalid("signatures[0].sig", "is by none of the configured keys over this payload"))
}

/// Signatures with keyids: those of configured keys must all be right.
fn named(policy: &Policy<'_>, content: &Content<'_>, signatures: &[(String, Vec<u8>)]) -> Result<Signed, Refusal> {
    let mut out = Signed { by: vec![], keys: vec![], unknown: vec![] };
    let (mut wrong, mut seen) = (None, BTreeSet::new());
    for (i, (keyid, signature)) in signatures.iter().enumerate() {
        let Some(key) = policy.keys.named(keyid) else {
            out.unknown.push(keyid.clone());
            continue;
        };
        if !seen.insert(key.id()) {
            return Err(invalid(format!("signatures[{i}].keyid"), "the same key signs twice"));
        }
        match accepts(key, content, signature)? {
            true => {
                out.by.push(SignedBy::new(key, false));
                out.keys.push(key.clone());
            }
            false => wrong = Some(i),
        }
    }
    match (wrong, out.by.is_empty()) {
        (None, false) => Ok(out),
        (Some(i), false) => {
            let text = format!("signature {i} does not verify, though another does");
            Err(Refusal { field: Some(format!("signatures[{i}].sig")), ..incomplete(&text) })
        }
        (Some(i), true) => {
            let text = "does not verify over this payload; it was changed, or signed by another key";
            Err(invalid(format!("signatures[{i}].sig"), text))
        }
        (None, true) => {
            let id = out.unknown.first().map(|id| shown(id)).unwrap_or_default();
            let text = format!("no configured key has the id {id}; pass its signer's public key");
            Err(invalid("signatures[0].keyid", text))
        }
    }
}
