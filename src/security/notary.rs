//! The post-quantum half of a checkpoint's signature: a member's ML-DSA-65 key, and the word of the
//! group's authority for it. Both are signed notes, since certificates of TLS have no such keys yet. A chain of
//! its own from the reader's anchor to the checkpoint: it leans on no classical signature, so whoever
//! breaks those has one half. It does not know what a checkpoint says.

use super::encoding::{self, base64, to_base64};
use super::signing::mldsa::Parameters;
use super::signing::sign::PrivateKey;
use super::signing::{Kind, PublicKey};
use super::tls::{self, Error};
use super::{Secret, note};
use jiff::Timestamp;
use rustls_pki_types::UnixTime;
use std::path::Path;

const CERT_FILE: &str = "notary.pem";
const KEY_FILE: &str = "notary.key";
/// In [`CERT_FILE`], around the note.
const LABEL: &str = "NEURAL FABRIC NOTARY";
/// The longest note: a key of 1952 bytes and a signature of 3309, in base64.
const MAX_NOTE: usize = 16 << 10;
/// How the first line of a text goes on after its cluster's name.
const ORIGIN: &str = ".nf/";
const KIND: Kind = Kind::MlDsa(Parameters::MlDsa65);

/// The second half of a signature, as it stands beside the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    /// The text with its signature.
    pub note: String,
    /// The authority's word for the key, a note, too.
    pub certificate: String,
}

/// A member's key for it. See the module's text.
pub struct Notary {
    key: Secret,
    certificate: String,
}

fn wrong(what: &'static str) -> impl Fn(String) -> Error {
    move |detail| Error::Pem { what, detail }
}

fn private(what: &'static str, pem: &Secret) -> Result<PrivateKey, Error> {
    let key = PrivateKey::from_pem(what, pem.reveal()).map_err(|e| wrong(what)(e.detail))?;
    match key.public().kind {
        KIND => Ok(key),
        other => Err(wrong(what)(format!("an {} key; {} is wanted", other.name(), KIND.name()))),
    }
}

fn signed(key: &PrivateKey, name: &str, text: &str) -> Result<String, Error> {
    let signature = key.sign(text.as_bytes()).map_err(|e| wrong("an ML-DSA key")(e.detail))?;
    Ok(note::write(text, name, key.public().spki(), &signature))
}

/// A new key of the authority's: the private half as PEM, and the public one.
///
/// # Errors
/// When the system has no randomness.
pub fn authority() -> Result<(Secret, String), Error> {
    let made = PrivateKey::new_ml_dsa().map_err(|e| wrong("an ML-DSA key")(e.detail))?;
    Ok((Secret::new(made.private), made.public))
}

/// The ML-DSA keys among the authorities of a PEM text.
///
/// # Errors
/// A public key there that is none of this kind.
pub fn anchors(pem: &str) -> Result<Vec<PublicKey>, String> {
    let blocks = encoding::pem(pem)?;
    let keys = blocks.iter().filter(|block| block.label == "PUBLIC KEY").map(|block| PublicKey::from_spki(&block.der));
    keys.map(|key| match key? {
        key if key.kind == KIND => Ok(key),
        other => Err(format!("holds a public key that is {}; {} is wanted", other.kind.name(), KIND.name())),
    })
    .collect()
}

/// As whom the authority signs.
fn authority_of(cluster: &str) -> String {
    format!("{cluster}.nf/authority")
}

/// What the authority says of a key.
struct Certificate {
    cluster: String,
    name: String,
    key: PublicKey,
    until: String,
}

impl Certificate {
    fn text(&self) -> String {
        let Self { cluster, name, key, until } = self;
        format!("{cluster}.nf/notary\n{name}\n{}\nuntil {until}\n", to_base64(key.spki()))
    }

    /// Only the spelling that [`Certificate::text`] has counts.
    fn read(note: &str) -> Result<Self, String> {
        let none = || "its notary's certificate is none".to_owned();
        let text = note::text(note).filter(|text| text.len() <= MAX_NOTE).ok_or_else(none)?;
        let [origin, name, key, until] = text.lines().collect::<Vec<_>>()[..] else { return Err(none()) };
        let read = Self {
            cluster: origin.strip_suffix(".nf/notary").ok_or_else(none)?.to_owned(),
            name: name.to_owned(),
            key: PublicKey::from_spki(&base64(key).ok_or_else(none)?)?,
            until: until.strip_prefix("until ").ok_or_else(none)?.to_owned(),
        };
        match read.text() == text && read.key.kind == KIND {
            true => Ok(read),
            false => Err(none()),
        }
    }

    fn lasts(&self, now: UnixTime) -> Result<(), String> {
        let until: Timestamp = self.until.parse().map_err(|_| "its ML-DSA key has no end")?;
        match u64::try_from(until.as_second()).unwrap_or(0) > now.as_secs() {
            true => Ok(()),
            false => Err(format!("its ML-DSA key ended at {}", self.until)),
        }
    }
}

impl Notary {
    /// A new key for member `name`, with the authority's word for it until then.
    ///
    /// # Errors
    /// A key of the authority's that is of no use.
    pub(super) fn certified(above: &Secret, cluster: &str, name: &str, until: String) -> Result<Self, Error> {
        tls::dns_name(cluster, name)?;
        let above = private("ca-ml-dsa.key", above)?;
        let key = Secret::new(PrivateKey::new_ml_dsa().map_err(|e| wrong(KEY_FILE)(e.detail))?.private);
        let public = private(KEY_FILE, &key)?.public().clone();
        let said = Certificate { cluster: cluster.to_owned(), name: name.to_owned(), key: public, until };
        let certificate = signed(&above, &authority_of(cluster), &said.text())?;
        Ok(Self { key, certificate })
    }

    /// Writes `notary.pem` and `notary.key` (readable by the owner alone).
    ///
    /// # Errors
    /// With the file.
    pub fn write(&self, dir: &Path) -> Result<(), Error> {
        tls::put_file(&dir.join(CERT_FILE), &encoding::to_pem(LABEL, self.certificate.as_bytes()), 0o644)?;
        tls::put_file(&dir.join(KEY_FILE), self.key.reveal(), 0o600)
    }

    /// Reads what [`Notary::write`] wrote; None where there is none.
    ///
    /// # Errors
    /// With the file.
    pub fn read(dir: &Path) -> Result<Option<Self>, Error> {
        if !dir.join(KEY_FILE).exists() {
            return Ok(None);
        }
        let none =
            || wrong(CERT_FILE)("holds no notary's certificate; nf tls cert create --role notary makes both".into());
        let blocks = encoding::pem(&tls::read_file(&dir.join(CERT_FILE))?).map_err(wrong(CERT_FILE))?;
        let block = blocks.into_iter().find(|block| block.label == LABEL).ok_or_else(none)?;
        let certificate = String::from_utf8(block.der).map_err(|_| none())?;
        Ok(Some(Self { key: Secret::new(tls::read_file(&dir.join(KEY_FILE))?), certificate }))
    }

    /// Signs a text of `cluster`'s as its member `name`.
    ///
    /// # Errors
    /// A key that is of no use, or over, or not the one that its certificate is for; one of another member or cluster;
    /// a text of another cluster.
    pub fn sign(&self, cluster: &str, name: &str, text: &str) -> Result<Half, Error> {
        let key = private(KEY_FILE, &self.key)?;
        let said = Certificate::read(&self.certificate).map_err(wrong(CERT_FILE))?;
        let whose = (said.cluster.as_str(), said.name.as_str());
        if whose != (cluster, name) || said.key.spki() != key.public().spki() {
            let text = format!(
                "it is that of {} of {}, or of another key than {KEY_FILE}; {name} of {cluster} is wanted, and nf tls cert \
                 create --role notary makes both",
                said.name, said.cluster
            );
            return Err(wrong(CERT_FILE)(text));
        }
        if !text.strip_prefix(cluster).is_some_and(|rest| rest.starts_with(ORIGIN)) {
            return Err(wrong(KEY_FILE)(format!("what is to be signed is no text of {cluster}'s")));
        }
        said.lasts(UnixTime::now()).map_err(wrong(CERT_FILE))?;
        Ok(Half { note: signed(&key, name, text)?, certificate: self.certificate.clone() })
    }
}

/// Whether `name` of `cluster` signed `text`, by the word of one of these authorities, at `now`.
///
/// # Errors
/// What does not hold.
pub fn verify(
    half: &Half,
    text: &str,
    cluster: &str,
    name: &str,
    anchors: &[PublicKey],
    now: UnixTime,
) -> Result<(), String> {
    let said = Certificate::read(&half.certificate)?;
    let above = note::open(&half.certificate, &said.text(), MAX_NOTE)?;
    if above.name != authority_of(cluster) {
        return Err(format!("its ML-DSA key is vouched for by {}, not by the authority of {cluster}", above.name));
    }
    let known = anchors.iter().find(|key| note::key_id(key.spki()) == above.key);
    let known = known.ok_or("its ML-DSA key is vouched for by no authority that you hold")?;
    accepts(known, &said.text(), &above.signature, "the authority's ML-DSA signature")?;
    if (said.cluster.as_str(), said.name.as_str()) != (cluster, name) {
        return Err(format!(
            "its ML-DSA key is that of {} of {}, not of member {name} of {cluster}",
            said.name, said.cluster
        ));
    }
    said.lasts(now)?;
    let line = note::open(&half.note, text, MAX_NOTE)?;
    if (line.name, line.key) != (name, note::key_id(said.key.spki())) {
        return Err("its ML-DSA half was signed by another key than its certificate's".to_owned());
    }
    accepts(&said.key, text, &line.signature, "its ML-DSA signature")
}

/// By both verifiers, as everywhere.
fn accepts(key: &PublicKey, text: &str, signature: &[u8], what: &str) -> Result<(), String> {
    match key.accepts_bytes(text.as_bytes(), signature) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("{what} does not verify")),
        Err(refusal) => Err(format!("{what}: {}", refusal.detail)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notary_signs_for_its_own_cluster_and_counts_there_alone() {
        let (above, public) = authority().unwrap();
        let anchors = anchors(&public).unwrap();
        let notary = Notary::certified(&above, "green", "n1", "2999-01-01T00:00:00Z".to_owned()).unwrap();
        let (green, blue) = ("green.nf/audit\n5\n", "blue.nf/audit\n5\n");
        let counts = |half: &Half, text, cluster| verify(half, text, cluster, "n1", &anchors, UnixTime::now());
        let half = notary.sign("green", "n1", green).unwrap();
        assert_eq!(counts(&half, green, "green"), Ok(()));
        for (cluster, name, text) in
            [("blue", "n1", blue), ("blue", "n1", green), ("green", "n1", blue), ("green", "n2", green)]
        {
            let refused = notary.sign(cluster, name, text).unwrap_err().to_string();
            assert!(refused.contains(cluster), "{cluster} {name}: {refused}");
        }
        // One that signs it all the same, with a key of the same authority.
        let key = private(KEY_FILE, &notary.key).unwrap();
        let forged = Half { note: signed(&key, "n1", blue).unwrap(), ..half };
        assert!(counts(&forged, blue, "blue").unwrap_err().contains("green"));
    }
}
