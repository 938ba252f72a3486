//! Makes every format with fresh keys: what a signer's tool would have written.

use super::super::encoding::to_base64;
use super::super::envelope::pae;
use super::super::key::Curve;
use super::super::mldsa::Parameters;
use super::super::sign::PrivateKey;
use super::super::{Artefact, Deploy, KeyRing, Kind, Listed, PublicKey, Roots, artefact, sign, to_hex};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature as lc;
use aws_lc_rs::signature::KeyPair as _;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

/// Noon of 2026-11-24, UTC.
pub const NOW: u64 = 1_795_521_600;
pub const MESSAGE: &[u8] = b"{\"model_id\":\"m1\",\"version\":\"v1\"}\n";

pub enum Key {
    Ecdsa(lc::EcdsaKeyPair),
    Rsa(lc::RsaKeyPair),
    Ed25519(lc::Ed25519KeyPair),
    MlDsa(Parameters, lc::PqdsaKeyPair),
}

impl Key {
    pub fn new(kind: Kind) -> Self {
        match kind {
            Kind::Ecdsa(curve) => Key::Ecdsa(lc::EcdsaKeyPair::generate(Self::scheme(curve)).unwrap()),
            Kind::Rsa => Key::Rsa(lc::RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
            Kind::Ed25519 => Key::Ed25519(lc::Ed25519KeyPair::generate().unwrap()),
            Kind::MlDsa(Parameters::MlDsa65) => {
                Key::MlDsa(Parameters::MlDsa65, lc::PqdsaKeyPair::generate(&lc::ML_DSA_65_SIGNING).unwrap())
            }
            Kind::MlDsa(Parameters::MlDsa87) => {
                Key::MlDsa(Parameters::MlDsa87, lc::PqdsaKeyPair::generate(&lc::ML_DSA_87_SIGNING).unwrap())
            }
        }
    }

    pub fn p256() -> Self {
        Self::new(Kind::Ecdsa(Curve::P256))
    }

    fn scheme(curve: Curve) -> &'static lc::EcdsaSigningAlgorithm {
        match curve {
            Curve::P256 => &lc::ECDSA_P256_SHA256_ASN1_SIGNING,
            Curve::P384 => &lc::ECDSA_P384_SHA384_ASN1_SIGNING,
            Curve::P521 => &lc::ECDSA_P521_SHA512_ASN1_SIGNING,
        }
    }

    pub fn public(&self) -> PublicKey {
        match self {
            Key::Ecdsa(pair) => PublicKey::from_spki(pair.public_key().as_der().unwrap().as_ref()).unwrap(),
            Key::Rsa(pair) => PublicKey::from_spki(AsDer::as_der(pair.public_key()).unwrap().as_ref()).unwrap(),
            Key::Ed25519(pair) => PublicKey::from_ed25519(pair.public_key().as_ref()).unwrap(),
            Key::MlDsa(parameters, pair) => PublicKey::from_ml_dsa(*parameters, pair.public_key().as_ref()).unwrap(),
        }
    }

    /// As each scheme signs by default; RSA as cosign does.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Key::Ecdsa(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Key::Rsa(pair) => Self::rsa(pair, &lc::RSA_PKCS1_SHA256, message),
            Key::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Key::MlDsa(parameters, pair) => {
                let mut out = vec![0; parameters.signature_len()];
                pair.sign(message, &mut out).unwrap();
                out
            }
        }
    }

    pub fn sign_pss(&self, message: &[u8]) -> Vec<u8> {
        let Key::Rsa(pair) = self else { panic!("not an RSA key") };
        Self::rsa(pair, &lc::RSA_PSS_SHA256, message)
    }

    fn rsa(pair: &lc::RsaKeyPair, scheme: &'static lc::RsaSignatureEncoding, message: &[u8]) -> Vec<u8> {
        let mut out = vec![0; pair.public_modulus_len()];
        pair.sign(scheme, &SystemRandom::new(), message, &mut out).unwrap();
        out
    }
}

/// One artefact with one signature file that verifies.
pub struct Sample {
    pub name: &'static str,
    pub keys: KeyRing,
    pub roots: Roots,
    pub evidence: Vec<u8>,
    pub bytes: Vec<u8>,
    /// The artefact is this directory, where there is one.
    pub dir: Option<TempDir>,
}

impl Sample {
    pub fn blob(name: &'static str, keys: &[&PublicKey], evidence: impl Into<Vec<u8>>) -> Self {
        let mut ring = KeyRing::default();
        keys.iter().for_each(|key| ring.add((*key).clone()).unwrap());
        let (evidence, bytes) = (evidence.into(), MESSAGE.to_vec());
        Self { name, keys: ring, roots: Roots::default(), evidence, bytes, dir: None }
    }

    pub fn artefact(&self) -> Artefact<'_> {
        match &self.dir {
            Some(dir) => Artefact::Directory { root: dir.path(), except: None },
            None => Artefact::Bytes { name: "manifest.json", bytes: &self.bytes },
        }
    }
}

pub fn hint(key: &PublicKey) -> Value {
    json!({ "publicKey": { "hint": key.id() }, "tlogEntries": [] })
}

pub fn media_type(version: &str) -> String {
    match version {
        "0.3" => "application/vnd.dev.sigstore.bundle.v0.3+json".into(),
        old => format!("application/vnd.dev.sigstore.bundle+json;version={old}"),
    }
}

pub fn message_bundle(version: &str, key: &Key) -> Value {
    let digest = to_base64(super::super::content::Hash::Sha256.of(MESSAGE).as_ref());
    json!({
        "mediaType": media_type(version),
        "verificationMaterial": hint(&key.public()),
        "messageSignature": {
            "messageDigest": { "algorithm": "SHA2_256", "digest": digest },
            "signature": to_base64(&key.sign(MESSAGE)),
        },
    })
}

pub fn dsse(payload_type: &str, payload: &[u8], keys: &[(&str, &Key)]) -> Value {
    let encoded = pae(payload_type, payload);
    let signatures = keys.iter().map(|(id, key)| json!({ "keyid": id, "sig": to_base64(&key.sign(&encoded)) }));
    json!({
        "payload": to_base64(payload), "payloadType": payload_type, "signatures": signatures.collect::<Vec<_>>(),
    })
}

pub fn dsse_bundle(material: Value, payload: &Value, key: &Key) -> Value {
    let payload = serde_json::to_vec_pretty(payload).unwrap();
    json!({
        "mediaType": media_type("0.3"),
        "verificationMaterial": material,
        "dsseEnvelope": dsse("application/vnd.in-toto+json", &payload, &[("", key)]),
    })
}

pub fn cosign_statement() -> Value {
    let digest = to_hex(super::super::content::Hash::Sha256.of(MESSAGE).as_ref());
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "name": "manifest.json", "digest": { "sha256": digest } }],
        "predicateType": "https://cosign.sigstore.dev/attestation/v1",
        "predicate": {},
    })
}

/// A small model on disk.
pub fn model() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tokenizer")).unwrap();
    fs::write(dir.path().join("config.json"), b"{}\n").unwrap();
    fs::write(dir.path().join("model.safetensors"), vec![7; 3000]).unwrap();
    fs::write(dir.path().join("tokenizer/tokenizer.json"), b"[1]").unwrap();
    dir
}

pub fn listed(dir: &TempDir) -> Vec<Listed> {
    Artefact::Directory { root: dir.path(), except: None }.list().unwrap()
}

/// As model_signing writes it.
pub fn model_statement(files: &[Listed]) -> Value {
    let resource = |f: &Listed| json!({ "name": f.name, "algorithm": "sha256", "digest": to_hex(&f.sha256) });
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "name": "m1", "digest": { "sha256": to_hex(&artefact::root(files)) } }],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files", "hash_type": "sha256", "allow_symlinks": false, "ignore_paths": [".git", ".github"],
            },
            "resources": files.iter().map(resource).collect::<Vec<_>>(),
        },
    })
}

pub fn model_sample(name: &'static str, key: &Key) -> Sample {
    let dir = model();
    let statement = model_statement(&listed(&dir));
    let material = json!({ "publicKey": { "hint": key.public().pem_id() }, "tlogEntries": [] });
    let evidence = dsse_bundle(material, &statement, key).to_string();
    Sample { dir: Some(dir), ..Sample::blob(name, &[&key.public()], evidence) }
}

/// An authority and a signer's certificate under it.
pub struct Pki {
    pub root_pem: String,
    pub chain: Vec<Vec<u8>>,
    pub key: Key,
}

/// `change` may spoil the leaf before it is issued.
pub fn pki(change: impl FnOnce(&mut CertificateParams)) -> Pki {
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root_key = KeyPair::generate().unwrap();
    let root_cert = root.self_signed(&root_key).unwrap();
    let pair = lc::EcdsaKeyPair::generate(&lc::ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let leaf_key = KeyPair::try_from(pair.to_pkcs8v1().unwrap().as_ref()).unwrap();
    let mut leaf = CertificateParams::default();
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    change(&mut leaf);
    let leaf = leaf.signed_by(&leaf_key, &Issuer::new(root, root_key)).unwrap();
    Pki { root_pem: root_cert.pem(), chain: vec![leaf.der().to_vec(), root_cert.der().to_vec()], key: Key::Ecdsa(pair) }
}

pub fn certificate_sample(name: &'static str, pki: &Pki) -> Sample {
    let dir = model();
    let certificates: Vec<_> = pki.chain.iter().map(|der| json!({ "rawBytes": to_base64(der) })).collect();
    let material = json!({ "x509CertificateChain": { "certificates": certificates }, "tlogEntries": [] });
    let evidence = dsse_bundle(material, &model_statement(&listed(&dir)), &pki.key).to_string();
    let mut sample = Sample { dir: Some(dir), ..Sample::blob(name, &[], evidence) };
    sample.roots.add_file("root.pem", pki.root_pem.as_bytes()).unwrap();
    sample
}

/// Of [`MANIFEST`].
pub fn manifest_sha256() -> [u8; 32] {
    super::super::artefact::digest(MANIFEST)
}

/// What a store says of the version.
pub const MANIFEST: &[u8] = br#"{"model_id":"m1","version":"v2","runtime":{"kind":"process","argv":["serve"]}}"#;

pub fn deploy_statement(files: Vec<Listed>) -> Deploy {
    let (tenant, model, version) = ("t1".parse().unwrap(), "m1".parse().unwrap(), "v2".parse().unwrap());
    let min = Some("v1".parse().unwrap());
    Deploy::new(tenant, model, version, "safetensors".into(), min, files).with_manifest(manifest_sha256())
}

/// Both keys of a hybrid signer.
pub fn signers() -> [PrivateKey; 2] {
    let read = |new: sign::NewKey| PrivateKey::from_pem("key", &new.private).unwrap();
    [read(PrivateKey::new_ecdsa().unwrap()), read(PrivateKey::new_ml_dsa().unwrap())]
}

pub fn deploy_sample(name: &'static str, keys: &[PrivateKey]) -> Sample {
    let dir = model();
    let evidence = sign::deploy(&deploy_statement(listed(&dir)), keys).unwrap();
    let publics: Vec<&PublicKey> = keys.iter().map(PrivateKey::public).collect();
    Sample { dir: Some(dir), ..Sample::blob(name, &publics, evidence) }
}

/// A Vault key with version 3, of which version 2 is the oldest that counts.
pub fn vault_sample(name: &'static str, key: &Key, signature: &[u8], jws: bool) -> Sample {
    use base64::Engine;
    let text = match jws {
        true => base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(signature),
        false => to_base64(signature),
    };
    let public = key.public();
    let (kind, told) = match public.kind {
        Kind::Ed25519 => ("ed25519", to_base64(&public.spki()[12..])),
        _ => ("other", super::super::encoding::to_pem("PUBLIC KEY", public.spki())),
    };
    let answer = json!({ "data": {
        "type": kind, "min_decryption_version": 2, "latest_version": 3, "keys": { "3": { "public_key": told } },
    }});
    let mut sample = Sample::blob(name, &[], format!("vault:v3:{text}"));
    sample.keys.add_file("key.json", answer.to_string().as_bytes()).unwrap();
    sample
}

/// One sample of each format and key kind.
pub fn samples() -> Vec<Sample> {
    let curves = [Curve::P256, Curve::P384, Curve::P521].map(|c| Key::new(Kind::Ecdsa(c)));
    let [p256, p384, p521] = &curves;
    let (rsa, ed25519) = (Key::new(Kind::Rsa), Key::new(Kind::Ed25519));
    let pq = [Parameters::MlDsa65, Parameters::MlDsa87].map(|p| Key::new(Kind::MlDsa(p)));
    let detached = |name, key: &Key| Sample::blob(name, &[&key.public()], to_base64(&key.sign(MESSAGE)) + "\n");
    let legacy = json!({ "base64Signature": to_base64(&p256.sign(MESSAGE)), "cert": "", "rekorBundle": null });
    let message =
        |name, version, key: &Key| Sample::blob(name, &[&key.public()], message_bundle(version, key).to_string());
    let raw = |name, key: &Key| Sample::blob(name, &[&key.public()], key.sign(MESSAGE));
    let attest = dsse_bundle(hint(&p256.public()), &cosign_statement(), p256).to_string();
    let der = p256.sign(MESSAGE);
    vec![
        detached("detached P-256", p256),
        detached("detached P-384", p384),
        detached("detached P-521", p521),
        detached("detached RSA", &rsa),
        Sample::blob("cosign bundle", &[&p256.public()], legacy.to_string()),
        message("Sigstore 0.1 message", "0.1", p256),
        message("Sigstore 0.2 message", "0.2", p256),
        message("Sigstore 0.3 message", "0.3", &rsa),
        Sample::blob("Sigstore 0.3 DSSE", &[&p256.public()], attest),
        model_sample("Model Signing P-256", p256),
        model_sample("Model Signing P-384", p384),
        model_sample("Model Signing P-521", p521),
        certificate_sample("Model Signing certificate", &pki(|_| {})),
        vault_sample("Vault ECDSA", p256, &der, false),
        vault_sample("Vault ECDSA jws", p256, &fixed(&der), true),
        vault_sample("Vault RSA", &rsa, &rsa.sign_pss(MESSAGE), false),
        vault_sample("Vault Ed25519", &ed25519, &ed25519.sign(MESSAGE), false),
        raw("raw ML-DSA-65", &pq[0]),
        raw("raw ML-DSA-87", &pq[1]),
        deploy_sample("hybrid deploy statement", &signers()),
    ]
}

/// A DER signature as r‖s.
pub fn fixed(der: &[u8]) -> Vec<u8> {
    use super::super::der::{Reader, SEQUENCE};
    let mut body = Reader::new(Reader::new(der).take(SEQUENCE).unwrap());
    let mut out = Vec::new();
    for _ in 0..2 {
        let part = body.positive().unwrap();
        out.extend(vec![0; 32 - part.len()]);
        out.extend_from_slice(part);
    }
    out
}
