//! Signatures: one `verify(policy, artefact, evidence)` for every format that users
//! bring. The order is always the same: size, strict JSON, shape, key by its
//! configured id, signature over the exact bytes, and only then what the payload
//! says, whom it binds, and each file. Keys and roots come from configuration
//! alone. It does not know Raft, HTTP or where models are kept; transparency logs
//! are not looked at, as with `cosign verify-blob --key --insecure-ignore-tlog`.
//!
//! liboqs says of itself that it is not recommended for production; [`mldsa`] says
//! what follows.

pub mod artefact;
mod certificate;
pub mod consent;
mod content;
mod der;
mod envelope;
mod evidence;
mod hold;
mod key;
mod keyring;
pub mod mldsa;
mod refusal;
pub mod sign;
pub mod statement;
#[cfg(test)]
mod tests;

use super::{encoding, json};

pub use artefact::{Artefact, Listed, MANIFEST};
pub use certificate::Roots;
pub use encoding::to_hex;
pub use evidence::{Evidence, Format};
pub use hold::Expect;
pub use key::{Kind, PublicKey};
pub use keyring::KeyRing;
pub use statement::Deploy;

use content::{Content, Hash};
use envelope::Signed;
use evidence::Signer;
use key::Padding;
use nf_core::id::VersionId;
use nf_core::reason::{Reason, Refusal};
use refusal::{invalid, mismatch, unsupported};
use serde::Serialize;
use statement::Meaning;
use std::collections::BTreeSet;

/// The longest signature file that is read.
pub const MAX_EVIDENCE: usize = 4 << 20;

/// Where a post-quantum signature is wanted beside the classical one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Demand {
    /// One signature is enough anywhere.
    Classical,
    /// Our own deploy statements need both halves; other tools' formats carry only one, by a key that is of no pair.
    #[default]
    Hybrid,
    /// Everything needs both halves, so that formats which carry one are refused.
    Strict,
}

/// What counts.
pub struct Policy<'a> {
    pub keys: &'a KeyRing,
    pub roots: &'a Roots,
    pub demand: Demand,
    pub expect: &'a Expect,
    /// Seconds since 1970, for certificates.
    pub now: u64,
}

/// One signature that counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SignedBy {
    pub key_id: String,
    pub algorithm: &'static str,
    /// Whether a certificate under a configured root vouched for the key.
    pub certificate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_version: Option<u64>,
}

impl SignedBy {
    fn new(key: &PublicKey, certificate: bool) -> Self {
        Self { key_id: key.id(), algorithm: key.kind.name(), certificate, key_version: key.version }
    }
}

/// What an accepted signature proves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub format: &'static str,
    pub signatures: Vec<SignedBy>,
    /// Both a classical and a post-quantum signature counted.
    pub hybrid: bool,
    /// SHA-256 of the file, or over the files' digests.
    pub sha256: String,
    /// Predicate of the statement, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_version: Option<VersionId>,
    /// SHA-256 of the manifest that a deploy statement is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest_sha256: Option<String>,
    /// The files that the signature covers: only these may be handed on.
    pub files: Vec<Listed>,
    /// What this format leaves open, of tenant_id, model_id, version and manifest_sha256 (the program that runs it).
    pub unbound: Vec<&'static str>,
}

/// Holds evidence against an artefact under a policy.
///
/// # Errors
/// A [`Refusal`] with a token of SECURITY's table, the field at fault, and the next step.
pub fn verify(policy: &Policy<'_>, artefact: &Artefact<'_>, evidence: &[u8]) -> Result<Verdict, Refusal> {
    if policy.keys.is_empty() && policy.roots.is_empty() {
        let text = "no key and no certificate root is configured, so nothing can be trusted; set COSIGN_KEY_PATH or pass --key";
        return Err(Refusal::field(Reason::NoTrustRoot, "key", text));
    }
    let evidence = Evidence::parse(evidence)?;
    match evidence {
        Evidence::Envelope { format, signer, envelope } => {
            let signed = envelope::check(policy, signer, &envelope)?;
            let meaning = statement::read(&envelope.payload_type, &envelope.payload)?;
            of_statement(policy, artefact, format, &signed, meaning)
        }
        Evidence::Blob { format, signature } => {
            let keys: Vec<&PublicKey> = policy.keys.keys().iter().collect();
            of_blob(policy, artefact, format, &keys, Padding::Pkcs1, &signature)
        }
        Evidence::Message { format, signer, hash, digest, signature } => {
            of_message(policy, artefact, format, signer, hash, &digest, &signature)
        }
        Evidence::Vault { version, signature, .. } => {
            let keys = vault_keys(policy.keys, version)?;
            of_blob(policy, artefact, Format::Vault, &keys, Padding::Pss, &signature)
        }
        Evidence::Raw { signature } => {
            let fits = |kind| matches!(kind, Kind::MlDsa(p) if p.signature_len() == signature.len());
            let keys = policy.keys.of(fits);
            if keys.is_empty() {
                let text = "a raw ML-DSA signature, but no configured key is of its parameter set; pass the public key";
                return Err(invalid("key", text));
            }
            of_blob(policy, artefact, Format::Raw, &keys, Padding::Pkcs1, &signature)
        }
    }
}

/// The bytes of an artefact that a signature over bytes can be for.
fn content<'a>(artefact: &Artefact<'a>) -> Result<Content<'a>, Refusal> {
    match artefact {
        Artefact::Bytes { bytes, .. } => Ok(Content::bytes(bytes)),
        Artefact::Version { manifest, .. } => Ok(Content::bytes(manifest)),
        Artefact::File(path) => Ok(Content::file(path)),
        Artefact::Directory { .. } | Artefact::Listing(_) => {
            let text = "the signature is over one file, and this is a directory; give the file, \
                        or sign the directory with nf model sign or model_signing";
            Err(unsupported("artefact", text))
        }
    }
}

/// Vault's DER or JWS marshalling, told apart by structure, never by trial.
fn vault_signature(key: &PublicKey, signature: &[u8]) -> Vec<u8> {
    match key.kind {
        Kind::Ecdsa(curve) if signature.len() == 2 * curve.size() && !der::is_ecdsa(signature, curve.size()) => {
            der::ecdsa_of_fixed(signature)
        }
        _ => signature.to_vec(),
    }
}

/// The keys that a `vault:vN:` signature may be by.
fn vault_keys(ring: &KeyRing, version: u64) -> Result<Vec<&PublicKey>, Refusal> {
    if let Some(oldest) = ring.oldest_version().filter(|oldest| version < *oldest) {
        let text =
            format!("made with version {version} of the key, and the oldest that counts is {oldest}; sign again");
        return Err(Refusal::field(Reason::KeyVersionRetired, "signature", text));
    }
    let of_version = |key: &&PublicKey| key.version.is_none_or(|v| v == version) && !key.kind.post_quantum();
    let keys: Vec<&PublicKey> = ring.keys().iter().filter(of_version).collect();
    if keys.is_empty() {
        let text = format!("made with version {version} of a key, which is not configured; give its public key");
        return Err(invalid("signature", text));
    }
    Ok(keys)
}

/// A signature over the artefact's bytes, by one of some keys.
fn of_blob(
    policy: &Policy<'_>,
    artefact: &Artefact<'_>,
    format: Format,
    keys: &[&PublicKey],
    padding: Padding,
    signature: &[u8],
) -> Result<Verdict, Refusal> {
    let content = content(artefact)?;
    let mut unfit = None;
    for key in keys {
        let cosign = matches!(format, Format::Detached | Format::Legacy);
        if let Some(refusal) = cosign.then(|| key.only_cosign_kinds(format.name()).err()).flatten() {
            unfit = Some(refusal);
            continue;
        }
        let vault = (format == Format::Vault).then(|| vault_signature(key, signature));
        let signature = vault.as_deref().unwrap_or(signature);
        for hash in key.hashes() {
            if key.accepts(&content, *hash, padding, signature)? {
                let what = format!("a {}", format.name());
                alone(policy, key)?;
                policy.expect.hold_blob(artefact, &key.tenants, &what)?;
                return blob_verdict(policy, artefact, format, &content, SignedBy::new(key, false));
            }
        }
    }
    if let Some(refusal) = unfit.filter(|_| keys.len() == 1) {
        return Err(refusal);
    }
    let text = "is by none of the configured keys over these bytes; check that the artefact is the one that was signed, \
                and that the key is its signer's";
    Err(invalid("signature", text))
}

fn of_message(
    policy: &Policy<'_>,
    artefact: &Artefact<'_>,
    format: Format,
    signer: Signer,
    hash: Hash,
    digest: &[u8],
    signature: &[u8],
) -> Result<Verdict, Refusal> {
    let certificate = matches!(signer, Signer::Chain(_));
    let key = envelope::signer(policy, signer)?;
    key.only_cosign_kinds("Sigstore message")?;
    let content = content(artefact)?;
    if !key.accepts(&content, hash, Padding::Pkcs1, signature)? {
        let text = "does not verify over these bytes with the key that the bundle names; \
                    check that the artefact is the one that was signed";
        return Err(invalid("messageSignature.signature", text));
    }
    // After the signature, since the digest itself is signed by nobody.
    if content.digest(hash)?.as_ref() != digest {
        return Err(mismatch("messageSignature.messageDigest", "is not the digest of the artefact; sign again"));
    }
    alone(policy, &key)?;
    policy.expect.hold_blob(artefact, &key.tenants, "a Sigstore message signature")?;
    blob_verdict(policy, artefact, format, &content, SignedBy::new(&key, certificate))
}

fn blob_verdict(
    policy: &Policy<'_>,
    artefact: &Artefact<'_>,
    format: Format,
    content: &Content<'_>,
    by: SignedBy,
) -> Result<Verdict, Refusal> {
    if policy.demand == Demand::Strict {
        return Err(incomplete("this format carries one signature, and every signature must be hybrid here"));
    }
    let sha256: [u8; 32] = content.digest(Hash::Sha256)?.as_ref().try_into().expect("SHA-256 has 32 bytes");
    let name = artefact.name().unwrap_or_default();
    Ok(Verdict {
        format: format.name(),
        signatures: vec![by],
        hybrid: false,
        sha256: to_hex(&sha256),
        predicate: None,
        tenant_id: None,
        model_id: None,
        version: None,
        min_version: None,
        manifest_sha256: None,
        files: vec![Listed { name, size: None, sha256 }],
        unbound: vec!["tenant_id", "model_id", "version"],
    })
}

/// A key of a hybrid pair signs nothing alone where both halves are wanted: who stripped one half off, or broke the
/// classical one, could else go around the other by way of a format that has room for one signature.
fn alone(policy: &Policy<'_>, key: &PublicKey) -> Result<(), Refusal> {
    if policy.demand == Demand::Classical || !key.paired {
        return Ok(());
    }
    let text = format!("the key {} is half of a hybrid pair, and signs nothing alone here", key.id());
    Err(incomplete(&text))
}

fn incomplete(detail: &str) -> Refusal {
    let text = format!("{detail}; sign with both keys (nf model sign), and let both public keys be configured");
    Refusal::field(Reason::HybridSignatureIncomplete, "signatures", text)
}

fn of_statement(
    policy: &Policy<'_>,
    artefact: &Artefact<'_>,
    format: Format,
    signed: &Signed,
    meaning: Meaning,
) -> Result<Verdict, Refusal> {
    let (hybrid, ours) = (signed.hybrid(), matches!(meaning, Meaning::Deploy(_)));
    let wanted = match policy.demand {
        Demand::Classical => false,
        Demand::Hybrid => ours,
        Demand::Strict => true,
    };
    if wanted && !hybrid {
        return Err(incomplete(&signed.missing_half()));
    }
    if matches!(meaning, Meaning::Model { .. }) {
        signed.only_ecdsa()?;
    }
    if !hybrid {
        signed.keys().iter().try_for_each(|key| alone(policy, key))?;
    }
    policy.expect.hold(&meaning, artefact, &signed.tenants())?;
    hold::hold_files(&meaning, artefact)?;
    let mut verdict = Verdict {
        format: format.name(),
        signatures: signed.by.clone(),
        hybrid,
        sha256: String::new(),
        predicate: None,
        tenant_id: None,
        model_id: None,
        version: None,
        min_version: None,
        manifest_sha256: None,
        files: Vec::new(),
        unbound: Vec::new(),
    };
    match meaning {
        Meaning::Deploy(deploy) => {
            verdict.sha256 = deploy.files_root;
            verdict.predicate = Some(statement::DEPLOY.into());
            verdict.tenant_id = Some(deploy.tenant_id.to_string());
            verdict.model_id = Some(deploy.model_id.to_string());
            verdict.version = Some(deploy.version.to_string());
            verdict.min_version = deploy.min_version;
            verdict.unbound.extend(deploy.manifest_sha256.is_none().then_some("manifest_sha256"));
            verdict.manifest_sha256 = deploy.manifest_sha256.map(|digest| to_hex(&digest.0));
            verdict.files = deploy.files;
        }
        Meaning::Model { name, files } => {
            verdict.sha256 = to_hex(&artefact::root(&files));
            verdict.predicate = Some(statement::MODEL_SIGNING.into());
            verdict.model_id = Some(name);
            verdict.unbound = vec!["tenant_id", "version"];
            verdict.unbound.extend((!files.iter().any(|file| file.name == MANIFEST)).then_some("manifest_sha256"));
            verdict.files = files;
        }
        Meaning::Blob { predicate, .. } => {
            let file = artefact.whole()?;
            verdict.sha256 = to_hex(&file.sha256);
            verdict.files = vec![file];
            verdict.predicate = Some(predicate);
            verdict.unbound = vec!["tenant_id", "model_id", "version"];
        }
    }
    Ok(verdict)
}

/// A set of tenants shared by all keys.
fn shared_tenants<'a>(mut keys: impl Iterator<Item = &'a PublicKey>) -> BTreeSet<String> {
    let first = keys.next().map(|key| key.tenants.clone()).unwrap_or_default();
    keys.fold(first, |shared, key| shared.intersection(&key.tenants).cloned().collect())
}
