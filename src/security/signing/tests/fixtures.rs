//! Signatures that real tools made: those of `tests/data/signing`, and a second set
//! that lies outside the repository (`NF_SIGNING_FIXTURES`, or
//! `shared/fixtures/signing` beside it), whose absence is said loudly.

use super::super::{Artefact, Demand, Expect, KeyRing, Policy, Refusal, Roots, Verdict, verify};
use super::forge::NOW;
use super::mutations::all_refused;
use nf_core::reason::Reason;
use std::fs;
use std::path::{Path, PathBuf};

fn fixtures() -> Option<PathBuf> {
    let dir = std::env::var_os("NF_SIGNING_FIXTURES").map_or("../shared/fixtures/signing".into(), PathBuf::from);
    if dir.is_dir() {
        return Some(dir);
    }
    let why = format!("no signatures of real tools at {}; set NF_SIGNING_FIXTURES", dir.display());
    nf_core::testing::skipped(why);
    None
}

/// `key` is a file of keys or, with `roots:` before it, of certificates.
fn judge(dir: &Path, artefact: &str, signature: &str, key: &str) -> Result<Verdict, Refusal> {
    judge_bytes(dir, artefact, &fs::read(dir.join(signature)).unwrap(), key)
}

fn judge_bytes(dir: &Path, artefact: &str, signature: &[u8], key: &str) -> Result<Verdict, Refusal> {
    let (mut keys, mut roots) = (KeyRing::default(), Roots::default());
    match key.strip_prefix("roots:") {
        Some(path) => roots.add_file(path, &fs::read(dir.join(path)).unwrap()).unwrap(),
        None => keys.add_file(key, &fs::read(dir.join(key)).unwrap()).unwrap(),
    }
    let expect = Expect::default();
    let policy = Policy { keys: &keys, roots: &roots, demand: Demand::Hybrid, expect: &expect, now: NOW };
    let path = dir.join(artefact);
    let artefact = match path.is_dir() {
        true => Artefact::Directory { root: &path, except: None },
        false => Artefact::File(&path),
    };
    verify(&policy, &artefact, signature)
}

/// Artefact, signature and key of the repository's own set.
const OWN: [(&str, &str, &str); 17] = [
    ("manifest.json", "manifest.p256.sig", "p256.pub.pem"),
    ("manifest.json", "manifest.p384.sig", "p384.pub.pem"),
    ("manifest.json", "manifest.p521.sig", "p521.pub.pem"),
    ("manifest.json", "manifest.rsa.sig", "rsa.pub.pem"),
    ("manifest.json", "manifest.message.sigstore.json", "p256.pub.pem"),
    ("manifest.json", "manifest.dsse.sigstore.json", "p256.pub.pem"),
    ("model", "model.p256.sig", "p256.pub.pem"),
    ("model", "model.p384.sig", "p384.pub.pem"),
    ("model", "model.p521.sig", "p521.pub.pem"),
    ("model", "model.cert.sig", "roots:root.pem"),
    ("manifest.json", "vault.ecdsa-p256.sig.json", "vault.ecdsa-p256.key.json"),
    ("manifest.json", "vault.ecdsa-p256.jws.sig.json", "vault.ecdsa-p256.key.json"),
    ("manifest.json", "vault.ecdsa-p384.sig.json", "vault.ecdsa-p384.key.json"),
    ("manifest.json", "vault.ecdsa-p384.sha384.sig.json", "vault.ecdsa-p384.key.json"),
    ("manifest.json", "vault.ecdsa-p521.sig.json", "vault.ecdsa-p521.key.json"),
    ("manifest.json", "vault.rsa-2048.sig.json", "vault.rsa-2048.key.json"),
    ("manifest.json", "vault.ed25519.sig.json", "vault.ed25519.key.json"),
];

/// Where that is.
fn own() -> PathBuf {
    PathBuf::from("tests/data/signing")
}

#[test]
fn each_tools_signatures_are_accepted() {
    for (artefact, signature, key) in OWN {
        let verdict = judge(&own(), artefact, signature, key);
        let verdict = verdict.unwrap_or_else(|e| panic!("{signature}: {e} {:?}", e.field));
        println!("{signature}: {} by {}", verdict.format, verdict.signatures[0].algorithm);
        let other = if key == "rsa.pub.pem" { "p256.pub.pem" } else { "rsa.pub.pem" };
        let refusal = judge(&own(), artefact, signature, other).unwrap_err();
        assert_eq!(refusal.reason, Reason::SignatureInvalid, "{signature} with {other}: {refusal}");
    }
}

/// `vault write transit/keys/KEY/config min_decryption_version=2` retires version 1.
#[test]
fn a_rotated_key_of_vault_retires_the_old_signature() {
    let refusal = judge(&own(), "manifest.json", "vault.ecdsa-p256.sig.json", "vault.ecdsa-p256.rotated.key.json");
    assert_eq!(refusal.unwrap_err().reason, Reason::KeyVersionRetired);
}

const MODEL: &str = "model-signing/model-tiny";
const WEIGHTS: &str = "model-signing/model-tiny/model.safetensors";
const MANIFEST: &str = "vault/manifest.json";
const P256: &str = "model-signing/test-only-ec-p256.pub.pem";
const OTHER: &str = "model-signing/test-only-other-ec-p256.pub.pem";

/// The same of the second set.
const REAL: [(&str, &str, &str); 16] = [
    (MODEL, "model-signing/model-tiny.p256.sig", P256),
    (MODEL, "model-signing/model-tiny.p384.sig", "model-signing/test-only-ec-p384.pub.pem"),
    (MODEL, "model-signing/model-tiny.cert.sig", "roots:model-signing/pki/test-only-root.pem"),
    (MANIFEST, "cosign-format/manifest.json.sig", "cosign-format/test-only-cosign.pub"),
    (WEIGHTS, "cosign-format/model.safetensors.sig", "cosign-format/test-only-cosign.pub"),
    (MANIFEST, "cosign-format/manifest.msg.sigstore.json", P256),
    (WEIGHTS, "cosign-format/model.safetensors.msg.sigstore.json", P256),
    (MANIFEST, "cosign-format/manifest.dsse.sigstore.json", P256),
    (MANIFEST, "vault/ecdsa-p256.sign-response.json", "vault/ecdsa-p256.key-response.json"),
    (MANIFEST, "vault/ecdsa-p256.sign-response.json", "vault/ecdsa-p256.pub.pem"),
    (MANIFEST, "vault/ecdsa-p256.prehashed.sign-response.json", "vault/ecdsa-p256.key-response.json"),
    (MANIFEST, "vault/rsa-3072.sign-response.json", "vault/rsa-3072.key-response.json"),
    (MANIFEST, "vault/rsa-3072.sign-response.json", "vault/rsa-3072.pub.pem"),
    (MANIFEST, "vault/ed25519.sign-response.json", "vault/ed25519.key-response.json"),
    (MANIFEST, "pqc/ml-dsa-65.liboqs.sig", "pqc/ml-dsa-65.pub.raw"),
    (MANIFEST, "pqc/ml-dsa-87.liboqs.sig", "pqc/ml-dsa-87.pub.raw"),
];

#[test]
fn signatures_of_real_tools_are_accepted() {
    let Some(dir) = fixtures() else { return };
    for (artefact, signature, key) in REAL {
        let verdict =
            judge(&dir, artefact, signature, key).unwrap_or_else(|e| panic!("{signature}: {e} {:?}", e.field));
        println!("{signature}: {} by {}", verdict.format, verdict.signatures[0].algorithm);
    }
}

#[test]
fn signatures_of_real_tools_over_something_else_are_refused() {
    let Some(dir) = fixtures() else { return };
    let cases = [
        (MODEL, "model-signing/model-tiny.p256.sig", OTHER),
        (MODEL, "model-signing/model-tiny.p256.sig", "model-signing/test-only-ec-p384.pub.pem"),
        (MODEL, "model-signing/model-tiny.cert.sig", P256),
        (WEIGHTS, "cosign-format/manifest.json.sig", "cosign-format/test-only-cosign.pub"),
        (MANIFEST, "cosign-format/model.safetensors.msg.sigstore.json", P256),
        (MANIFEST, "cosign-format/manifest.msg.sigstore.json", OTHER),
        (MANIFEST, "vault/ecdsa-p256.sign-response.json", "vault/rsa-3072.key-response.json"),
        (WEIGHTS, "vault/rsa-3072.sign-response.json", "vault/rsa-3072.key-response.json"),
        // Signed with a context, which no signature of ours has.
        (MANIFEST, "pqc/ml-dsa-65.liboqs.ctx.sig", "pqc/ml-dsa-65.pub.raw"),
        (MANIFEST, "pqc/ml-dsa-65.go.ctx.sig", "pqc/ml-dsa-65.go.pub.raw"),
        (MANIFEST, "pqc/ml-dsa-87.go.ctx.sig", "pqc/ml-dsa-87.go.pub.raw"),
    ];
    for (artefact, signature, key) in cases {
        let refusal = judge(&dir, artefact, signature, key).unwrap_err();
        assert_eq!(refusal.reason, Reason::SignatureInvalid, "{signature}: {refusal}");
    }
    let wrong_file = judge(&dir, WEIGHTS, "cosign-format/manifest.dsse.sigstore.json", P256).unwrap_err();
    assert_eq!(wrong_file.reason, Reason::ArtifactMismatch);
}

#[test]
fn a_thousand_mutations_of_each_tools_signature_are_refused() {
    let own = OWN.map(|case| (own(), case));
    let real = fixtures().into_iter().flat_map(|dir| REAL.map(|case| (dir.clone(), case)));
    for (seed, (dir, (artefact, signature, key))) in (1..).zip(own.into_iter().chain(real)) {
        let evidence = fs::read(dir.join(signature)).unwrap();
        all_refused(signature, &evidence, seed, |mutated| judge_bytes(&dir, artefact, mutated, key));
    }
}
