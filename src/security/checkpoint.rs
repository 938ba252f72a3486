//! Signed checkpoints of the audit trail: where a trail ends, as a signed note
//! (C2SP signed-note, ECDSA) by the member that told it, with that member's certificate. A key
//! in an export proves nothing: the certificate counts under an authority that the
//! reader holds, and its name is a member's of the trail's group. It does not know the entries.

use super::encoding;
use super::tls::{self, PeerTls, Role};
use nf_core::audit::{Checkpoint, Hash};
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use webpki::{EndEntityCert, KeyUsage};

/// The longest note, and the most certificates that a reader trusts.
const MAX_NOTE: usize = 4 << 10;
const MAX_AUTHORITIES: usize = 64;
/// What a signature's line begins with.
const DASH: &str = "\u{2014} ";

/// A note and who signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The text with its signature, as the format has them.
    pub note: String,
    /// PEM.
    pub certificate: String,
}

/// Signs where a trail ends; None where the process' key is of no kind that signs notes.
pub type Sign = Arc<dyn Fn(&Checkpoint) -> Option<Signed> + Send + Sync>;

/// What is signed: origin, size, root, and the head besides, which the format leaves to us.
fn text(checkpoint: &Checkpoint) -> String {
    let Checkpoint { origin, size, head, root } = checkpoint;
    format!("{origin}.nf/audit\n{size}\n{}\nhead {head}\n", encoding::to_base64(&root.0))
}

/// The first four bytes of the digest of the key: they choose a key and prove nothing.
fn key_id(spki: &[u8]) -> [u8; 4] {
    let digest: [u8; 32] = Sha256::digest(spki).into();
    [digest[0], digest[1], digest[2], digest[3]]
}

fn spki(cert: &CertificateDer<'_>) -> Option<Vec<u8>> {
    Some(EndEntityCert::try_from(cert).ok()?.subject_public_key_info().as_ref().to_vec())
}

/// A signer with this process' key, whichever it is at that moment.
pub fn signer(tls: PeerTls) -> Sign {
    Arc::new(move |checkpoint: &Checkpoint| {
        let text = text(checkpoint);
        let (cert, signature) = tls.sign(text.as_bytes())?;
        let line = [&key_id(&spki(&cert)?)[..], &signature[..]].concat();
        let note = format!("{text}\n{DASH}{} {}\n", tls.name, encoding::to_base64(&line));
        Some(Signed { note, certificate: encoding::to_pem("CERTIFICATE", &cert) })
    })
}

/// Authorities whose members' word counts, from a PEM file.
///
/// # Errors
/// What it is instead.
pub fn authorities(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = tls::certificates(pem, "the authority").map_err(|e| e.to_string())?;
    match read.len() {
        1..=MAX_AUTHORITIES => Ok(read),
        n => Err(format!("holds {n} certificates; 1 to {MAX_AUTHORITIES} are wanted")),
    }
}

/// The member that signed the checkpoint, judged at `now`.
///
/// # Errors
/// What does not hold.
pub fn verify(
    signed: &Signed,
    checkpoint: &Checkpoint,
    authorities: &[CertificateDer<'static>],
    now: UnixTime,
) -> Result<String, String> {
    if signed.note.len() > MAX_NOTE {
        return Err(format!("its note is longer than {MAX_NOTE} bytes"));
    }
    let said = text(checkpoint);
    let rest = signed.note.strip_prefix(&said).ok_or("what was signed is not this checkpoint")?;
    let rest = rest.strip_prefix('\n').ok_or("its note has no signature")?;
    let line = rest.strip_prefix(DASH).and_then(|rest| rest.strip_suffix('\n')).ok_or("its note has no signature")?;
    let (name, signature) = line.split_once(' ').ok_or("its note's signature has no name")?;
    let bytes = encoding::base64(signature).ok_or("its note's signature is no base64")?;
    let (id, signature) = bytes.split_at_checked(4).ok_or("its note's signature is too short")?;
    let certs = tls::certificates(&signed.certificate, "its certificate").map_err(|e| e.to_string())?;
    let [cert] = &certs[..] else { return Err("exactly one certificate is wanted beside it".to_owned()) };
    if spki(cert).is_none_or(|spki| key_id(&spki) != id) {
        return Err("the note was signed by another key than the certificate's".to_owned());
    }
    let bad = |e: webpki::Error| format!("its certificate does not count: {e}");
    let anchors: Result<Vec<_>, _> = authorities.iter().map(|cert| webpki::anchor_from_trusted_cert(cert)).collect();
    let (anchors, provider) = (anchors.map_err(bad)?, aws_lc_rs::default_provider());
    let leaf = EndEntityCert::try_from(cert).map_err(bad)?;
    let algorithms = provider.signature_verification_algorithms.all;
    leaf.verify_for_usage(algorithms, &anchors, &[], now, KeyUsage::server_auth(), None, None).map_err(bad)?;
    match tls::holder(cert, &checkpoint.origin) {
        Some((holder, Role::Server)) if holder == name => {}
        _ => return Err(format!("its certificate is not that of member {name} of {}", checkpoint.origin)),
    }
    let schemes = provider.signature_verification_algorithms.mapping.iter();
    let mut ours = schemes.filter(|(scheme, _)| *scheme == SignatureScheme::ECDSA_NISTP256_SHA256);
    // One scheme of TLS 1.2 stands for several curves; a key fits one of them.
    let fits =
        ours.any(|(_, all)| all.iter().any(|one| leaf.verify_signature(*one, said.as_bytes(), signature).is_ok()));
    match fits {
        true => Ok(name.to_owned()),
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
mod tests {
    use super::*;
    use crate::security::tls::{Authority, Credentials};
    use nf_core::audit::{Action, Chain};
    use nf_core::testing;

    fn checkpoint() -> Checkpoint {
        let mut chain = Chain::default();
        for n in 0..5 {
            chain.append(testing::record("ada", Action::JobStop, format!("job/{n}"), n));
        }
        chain.checkpoint("blue")
    }

    fn lab(role: Role) -> (Authority, Sign) {
        let authority = Authority::create("blue").unwrap();
        let made = authority.issue_as("blue", "n1", role).unwrap();
        (authority, signer(PeerTls::new(&made, "blue", "n1").unwrap()))
    }

    #[test]
    fn a_checkpoint_counts_by_the_word_of_a_member_alone() {
        let (authority, sign) = lab(Role::Server);
        let (at, roots) = (checkpoint(), authorities(&authority.cert).unwrap());
        let signed = sign(&at).unwrap();
        assert_eq!(verify(&signed, &at, &roots, UnixTime::now()).as_deref(), Ok("n1"));
        assert_eq!(read(&signed.note), Ok(at.clone()));
        let refused = |signed: &Signed, at: &Checkpoint| verify(signed, at, &roots, UnixTime::now()).unwrap_err();
        for other in [
            Checkpoint { size: 6, ..at.clone() },
            Checkpoint { head: Hash([1; 32]), ..at.clone() },
            Checkpoint { root: Hash([1; 32]), ..at.clone() },
            Checkpoint { origin: "green".into(), ..at.clone() },
        ] {
            assert!(refused(&signed, &other).contains("not this checkpoint"));
        }
        let (_, eve) = lab(Role::Server);
        assert!(refused(&eve(&at).unwrap(), &at).contains("does not count"), "another authority");
        let worker = authority.issue_as("blue", "n1", Role::Client).unwrap();
        let worker = signer(PeerTls::new(&worker, "blue", "n1").unwrap());
        assert!(verify(&worker(&at).unwrap(), &at, &roots, UnixTime::now()).is_err(), "a worker has no say");
        let other: Credentials = authority.issue("blue", "n2").unwrap();
        let other = signer(PeerTls::new(&other, "blue", "n2").unwrap())(&at).unwrap();
        let mixed = Signed { certificate: other.certificate, ..signed.clone() };
        assert!(refused(&mixed, &at).contains("another key"));
        let renamed = Signed { note: signed.note.replace("\u{2014} n1", "\u{2014} n2"), ..signed.clone() };
        assert!(refused(&renamed, &at).contains("not that of member n2"));
        let late = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1 << 33));
        assert!(verify(&signed, &at, &roots, late).is_err(), "an expired certificate");
    }

    #[test]
    fn no_changed_byte_of_a_note_or_its_certificate_counts() {
        let (authority, sign) = lab(Role::Server);
        let (at, roots) = (checkpoint(), authorities(&authority.cert).unwrap());
        let signed = sign(&at).unwrap();
        for place in 0..signed.note.len() {
            let mut note = signed.note.clone().into_bytes();
            note[place] ^= 1;
            let Ok(note) = String::from_utf8(note) else { continue };
            let changed = Signed { note, ..signed.clone() };
            assert!(verify(&changed, &at, &roots, UnixTime::now()).is_err(), "byte {place}");
        }
        for cut in 0..signed.note.len() {
            let Some(note) = signed.note.get(..cut) else { continue };
            let cut = Signed { note: note.to_owned(), ..signed.clone() };
            assert!(verify(&cut, &at, &roots, UnixTime::now()).is_err());
        }
        let none = Signed { certificate: String::new(), ..signed };
        assert!(verify(&none, &at, &roots, UnixTime::now()).is_err());
        assert!(authorities("").is_err() && read("").is_err());
    }
}
