//! Signing deploy statements: one DSSE envelope with an ECDSA P-256 and an ML-DSA
//! signature over the same bytes, and the keys for it. What it signs is verified
//! before it is returned. It does not know files or where keys are kept.

use super::encoding::{self, to_base64, to_pem};
use super::envelope::pae;
use super::key::{Kind, PublicKey};
use super::mldsa::Parameters;
use super::refusal::{config, invalid};
use super::statement::{Deploy, PAYLOAD_TYPE};
use super::{Artefact, Demand, Expect, KeyRing, Policy, Roots, verify};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, ML_DSA_65_SIGNING, ML_DSA_87_SIGNING, PqdsaKeyPair,
};
use nf_core::reason::Refusal;
use serde_json::json;

enum Pair {
    Ecdsa(Box<EcdsaKeyPair>),
    MlDsa(Box<PqdsaKeyPair>),
}

/// A private key that signs deploy statements. Its bytes are never shown.
pub struct PrivateKey {
    pair: Pair,
    public: PublicKey,
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PrivateKey({}, <REDACTED>)", self.public.kind.name())
    }
}

/// A new key as PEM: PKCS#8 for the private half (ML-DSA as its seed, RFC 9881), SPKI for the public one.
pub struct NewKey {
    pub private: String,
    pub public: String,
    pub id: String,
}

fn broken<E>(what: &'static str) -> impl FnOnce(E) -> Refusal {
    move |_| config("key", format!("{what} failed in the cryptographic library"))
}

impl PrivateKey {
    /// Reads one PKCS#8 key in PEM.
    ///
    /// # Errors
    /// `ConfigInvalid` with the file's name, never with its contents.
    pub fn from_pem(name: &str, text: &str) -> Result<Self, Refusal> {
        let blocks = encoding::pem(text).map_err(|e| config(name, e))?;
        let [block] = &blocks[..] else {
            return Err(config(name, format!("holds {} PEM blocks; one PRIVATE KEY is wanted", blocks.len())));
        };
        if block.label != "PRIVATE KEY" {
            let text = "is no PKCS#8 PRIVATE KEY; make one with nf model keygen, or convert it with openssl pkcs8 -topk8 -nocrypt";
            return Err(config(name, text));
        }
        Self::from_pkcs8(name, &block.der)
    }

    fn from_pkcs8(name: &str, der: &[u8]) -> Result<Self, Refusal> {
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der) {
            return Self::new(name, Pair::Ecdsa(Box::new(pair)));
        }
        for algorithm in [&ML_DSA_65_SIGNING, &ML_DSA_87_SIGNING] {
            if let Ok(pair) = PqdsaKeyPair::from_pkcs8(algorithm, der) {
                return Self::new(name, Pair::MlDsa(Box::new(pair)));
            }
        }
        Err(config(name, "is neither an ECDSA P-256 nor an ML-DSA-65 or -87 key; nf model keygen makes both"))
    }

    fn new(name: &str, pair: Pair) -> Result<Self, Refusal> {
        let public = match &pair {
            Pair::Ecdsa(pair) => {
                let spki = pair.public_key().as_der().map_err(broken("reading the public key"))?;
                PublicKey::from_spki(spki.as_ref())
            }
            Pair::MlDsa(pair) => {
                let raw = pair.public_key().as_ref();
                let sets = [Parameters::MlDsa65, Parameters::MlDsa87];
                match sets.into_iter().find(|p| p.key_len() == raw.len()) {
                    Some(parameters) => PublicKey::from_ml_dsa(parameters, raw),
                    None => Err("an ML-DSA key of an unknown parameter set".into()),
                }
            }
        };
        Ok(Self { pair, public: public.map_err(|e| config(name, e))? })
    }

    /// A new ECDSA P-256 key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new_ecdsa() -> Result<NewKey, Refusal> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(broken("making a key"))?;
        let der = pair.to_pkcs8v1().map_err(broken("writing a key"))?;
        Self::told(Self::new("key", Pair::Ecdsa(Box::new(pair)))?, der.as_ref())
    }

    /// A new ML-DSA-65 key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new_ml_dsa() -> Result<NewKey, Refusal> {
        let pair = PqdsaKeyPair::generate(&ML_DSA_65_SIGNING).map_err(broken("making a key"))?;
        let der = pair.to_pkcs8v1().map_err(broken("writing a key"))?;
        Self::told(Self::new("key", Pair::MlDsa(Box::new(pair)))?, der.as_ref())
    }

    fn told(key: Self, private: &[u8]) -> Result<NewKey, Refusal> {
        let public = to_pem("PUBLIC KEY", key.public.spki());
        Ok(NewKey { private: to_pem("PRIVATE KEY", private), public, id: key.public.id() })
    }

    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(in crate::security) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Refusal> {
        match &self.pair {
            Pair::Ecdsa(pair) => {
                let signature = pair.sign(&SystemRandom::new(), message).map_err(broken("signing"))?;
                Ok(signature.as_ref().to_vec())
            }
            Pair::MlDsa(pair) => {
                let mut out = vec![0; pair.algorithm().signature_len()];
                let len = pair.sign(message, &mut out).map_err(broken("signing"))?;
                out.truncate(len);
                Ok(out)
            }
        }
    }
}

/// An envelope around a payload, signed by all keys, and the ring of their public halves.
///
/// # Errors
/// When a key does not sign.
pub(super) fn envelope(payload_type: &str, payload: &[u8], keys: &[PrivateKey]) -> Result<(String, KeyRing), Refusal> {
    let encoded = pae(payload_type, payload);
    let (mut signatures, mut ring) = (Vec::new(), KeyRing::default());
    for key in keys {
        let sig = to_base64(&key.sign(&encoded)?);
        signatures.push(json!({ "keyid": key.public.id(), "sig": sig }));
        ring.add(key.public.clone())?;
    }
    let envelope = json!({ "payload": to_base64(payload), "payloadType": payload_type, "signatures": signatures });
    Ok((format!("{envelope}\n"), ring))
}

/// Signs a statement with all keys; with one ECDSA and one ML-DSA key the envelope is hybrid.
///
/// # Errors
/// When the statement is not valid, or what was signed does not verify.
pub fn deploy(statement: &Deploy, keys: &[PrivateKey]) -> Result<String, Refusal> {
    let (text, ring) = envelope(PAYLOAD_TYPE, &statement.payload()?, keys)?;
    let halves = |wanted: fn(Kind) -> bool| !ring.of(wanted).is_empty();
    let hybrid = halves(Kind::post_quantum) && halves(|k| matches!(k, Kind::Ecdsa(_)));
    let demand = if hybrid { Demand::Strict } else { Demand::Classical };
    let policy = Policy { keys: &ring, roots: &Roots::default(), demand, expect: &Expect::default(), now: 0 };
    let verdict = verify(&policy, &Artefact::Listing(&statement.files), text.as_bytes())?;
    if verdict.signatures.len() != keys.len() {
        return Err(invalid("signatures", "a signature that was just made does not count"));
    }
    Ok(text)
}
