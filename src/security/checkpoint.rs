//! Signed checkpoints of the audit trail: where a trail ends, as signed notes by the member that told
//! it: one by ECDSA with that member's certificate, and one by ML-DSA-65 with its [`notary`]'s. A key
//! in an export proves nothing: both count under authorities that the reader holds, and name
//! the same member of the trail's group. It does not know the entries.

use super::notary::{self, Half, Notary};
use super::signing::PublicKey;
use super::tls::{self, PeerTls, Role};
use super::{encoding, note};
use nf_core::audit::{Checkpoint, Hash};
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{CertificateDer, UnixTime};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use webpki::{EndEntityCert, KeyUsage};

/// The longest note, and the most certificates that a reader trusts.
const MAX_NOTE: usize = 4 << 10;
const MAX_AUTHORITIES: usize = 64;

/// A note and who signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The text with its signature, as the format has them.
    pub note: String,
    /// PEM.
    pub certificate: String,
    /// The post-quantum half. Checkpoints of earlier versions have none, nor have those of members without a key for it.
    pub ml_dsa: Option<Half>,
}

/// Signs where a trail ends; None where the process' key is of no kind that signs notes.
pub type Sign = Arc<dyn Fn(&Checkpoint) -> Option<Signed> + Send + Sync>;

/// What is signed: origin, size, root, and the head besides, which the format leaves to us.
fn text(checkpoint: &Checkpoint) -> String {
    let Checkpoint { origin, size, head, root } = checkpoint;
    format!("{origin}.nf/audit\n{size}\n{}\nhead {head}\n", encoding::to_base64(&root.0))
}

fn spki(cert: &CertificateDer<'_>) -> Option<Vec<u8>> {
    Some(EndEntityCert::try_from(cert).ok()?.subject_public_key_info().as_ref().to_vec())
}

/// A signer with this process' keys, whichever they are at that moment; `keys` is where its notary's lies. It signs ends
/// of its own group's trail alone: whatever its state says of itself, its certificate says of which group it is.
///
/// A notary's two files are replaced one after the other. Whatever does not fit, or is another's, changes nothing while
/// the pair that signed before still may: else a checkpoint of that moment would have one half, and an auditor refuse it.
pub fn signer(tls: PeerTls, keys: &Path) -> Sign {
    let (keys, last) = (keys.to_owned(), Mutex::<Option<Notary>>::default());
    Arc::new(move |checkpoint: &Checkpoint| {
        let (text, origin) = (text(checkpoint), &*checkpoint.origin);
        let (cert, signature) = tls.sign(text.as_bytes())?;
        if tls::holder(&cert, origin).is_none_or(|(name, _)| name != tls.name) {
            let (name, cluster) = (&tls.name, &tls.cluster);
            tracing::error!(%name, cluster, origin, "a checkpoint of another group's trail is not signed");
            return None;
        }
        let note = note::write(&text, &tls.name, &spki(&cert)?, &signature);
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let ml_dsa = second(&keys, &mut last, |notary| notary.sign(origin, &tls.name, &text));
        Some(Signed { note, certificate: encoding::to_pem("CERTIFICATE", &cert), ml_dsa })
    })
}

/// The half by ML-DSA: by the notary whose files lie there, else by the last one that could. None where there is none.
fn second(keys: &Path, last: &mut Option<Notary>, sign: impl Fn(&Notary) -> Result<Half, tls::Error>) -> Option<Half> {
    let now = Notary::read(keys).and_then(|now| now.map(|now| sign(&now).map(|half| (now, half))).transpose());
    let error = match now {
        Ok(now) => {
            let (now, half) = now.unzip();
            *last = now;
            return half;
        }
        Err(error) => error,
    };
    let half = last.as_ref().and_then(|before| sign(before).ok());
    let how = if half.is_some() { "the notary's key before it" } else { "ECDSA alone" };
    tracing::warn!(%error, dir = %keys.display(), "a checkpoint of the audit trail is signed by {how}");
    half
}

/// Authorities whose members' word counts.
#[derive(Clone, Debug)]
pub struct Authorities {
    certificates: Vec<CertificateDer<'static>>,
    ml_dsa: Vec<PublicKey>,
    /// Whether one half alone counts.
    both: bool,
}

impl Authorities {
    /// From a PEM file: certificates, and ML-DSA-65 public keys. Where it has one of those, both halves are wanted.
    ///
    /// # Errors
    /// What it is instead.
    pub fn read(pem: &str) -> Result<Self, String> {
        let certificates = tls::certificates(pem, "the authority").map_err(|e| e.to_string())?;
        let ml_dsa = notary::anchors(pem)?;
        match certificates.len() {
            1..=MAX_AUTHORITIES => Ok(Self { certificates, both: !ml_dsa.is_empty(), ml_dsa }),
            n => Err(format!("holds {n} certificates; 1 to {MAX_AUTHORITIES} are wanted")),
        }
    }

    /// Takes checkpoints without the second half, too: those from before there was one.
    pub fn or_classical(self) -> Self {
        Self { both: false, ..self }
    }
}

/// What of a signature was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halves {
    Both,
    /// ECDSA alone: there is no second half, or the reader holds no key to judge it by.
    Classical,
}

impl Halves {
    /// As `nf audit verify` has it.
    pub fn token(self) -> &'static str {
        match self {
            Halves::Both => "hybrid",
            Halves::Classical => "classical",
        }
    }
}

/// Which member signed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    pub member: String,
    pub halves: Halves,
}

/// Who signed the checkpoint, judged at `now`.
///
/// # Errors
/// What does not hold. A second half that is there and can be judged has to hold, whether or not it is wanted.
pub fn verify(
    signed: &Signed,
    checkpoint: &Checkpoint,
    authorities: &Authorities,
    now: UnixTime,
) -> Result<Signer, String> {
    let member = classical(signed, checkpoint, &authorities.certificates, now)?;
    let halves = match &signed.ml_dsa {
        Some(half) if !authorities.ml_dsa.is_empty() => {
            let (text, origin) = (text(checkpoint), &checkpoint.origin);
            notary::verify(half, &text, origin, &member, &authorities.ml_dsa, now)?;
            Halves::Both
        }
        None if authorities.both => {
            return Err(
                "the ML-DSA half of its signature is missing; --classical takes --checkpoint files from before there was \
                 one, and never an export's own end, whose member gets a key by nf tls cert create --role notary"
                    .into(),
            );
        }
        _ => Halves::Classical,
    };
    Ok(Signer { member, halves })
}

/// The member whose ECDSA signature it is.
fn classical(
    signed: &Signed,
    checkpoint: &Checkpoint,
    authorities: &[CertificateDer<'static>],
    now: UnixTime,
) -> Result<String, String> {
    let said = text(checkpoint);
    let line = note::open(&signed.note, &said, MAX_NOTE)?;
    let certs = tls::certificates(&signed.certificate, "its certificate").map_err(|e| e.to_string())?;
    let [cert] = &certs[..] else { return Err("exactly one certificate is wanted beside it".to_owned()) };
    if spki(cert).is_none_or(|spki| note::key_id(&spki) != line.key) {
        return Err("the note was signed by another key than the certificate's".to_owned());
    }
    let bad = |e: webpki::Error| format!("its certificate does not count: {e}");
    let anchors: Result<Vec<_>, _> = authorities.iter().map(|cert| webpki::anchor_from_trusted_cert(cert)).collect();
    let (anchors, provider) = (anchors.map_err(bad)?, aws_lc_rs::default_provider());
    let leaf = EndEntityCert::try_from(cert).map_err(bad)?;
    let algorithms = provider.signature_verification_algorithms.all;
    leaf.verify_for_usage(algorithms, &anchors, &[], now, KeyUsage::server_auth(), None, None).map_err(bad)?;
    match tls::holder(cert, &checkpoint.origin) {
        Some((holder, Role::Server)) if holder == line.name => {}
        _ => return Err(format!("its certificate is not that of member {} of {}", line.name, checkpoint.origin)),
    }
    let schemes = provider.signature_verification_algorithms.mapping.iter();
    let mut ours = schemes.filter(|(scheme, _)| *scheme == SignatureScheme::ECDSA_NISTP256_SHA256);
    // One scheme of TLS 1.2 stands for several curves; a key fits one of them.
    let fits = ours
        .any(|(_, all)| all.iter().any(|one| leaf.verify_signature(*one, said.as_bytes(), &line.signature).is_ok()));
    match fits {
        true => Ok(line.name.to_owned()),
        false => Err("its signature does not verify".to_owned()),
    }
}

/// What a note says, for those who keep notes alone.
///
/// # Errors
/// What it is instead.
pub fn read(note: &str) -> Result<Checkpoint, String> {
    let mut lines = note.lines();
    let mut next = || lines.next().ok_or("a note of four lines is wanted");
    let origin = next()?.strip_suffix(".nf/audit").ok_or("its origin is no audit trail's")?.into();
    let size = next()?.parse().map_err(|_| "its size is no number")?;
    let root = encoding::base64(next()?).and_then(|bytes| bytes.try_into().ok()).ok_or("its root is no SHA-256")?;
    let head = next()?.strip_prefix("head ").and_then(Hash::parse).ok_or("its head is no SHA-256 in hex")?;
    Ok(Checkpoint { origin, size, head, root: Hash(root) })
}

#[cfg(test)]
mod tests;
