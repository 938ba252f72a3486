//! A version as a store has it: what of it a signature must be for, whose key counts for
//! which tenant, and what half of a hybrid pair may not sign.

use super::super::encoding::to_base64;
use super::super::hold::hold_files;
use super::super::sign;
use super::super::*;
use super::forge::{self, Key, MANIFEST, Sample};
use serde_json::json;

fn expect(tenant: &str) -> Expect {
    let (model, version) = ("m1".parse().ok(), "v2".parse().ok());
    Expect { tenant: tenant.parse().ok(), model, version, format: Some("safetensors".into()) }
}

/// The verdict on a version of the store; its files are those of [`forge::model`].
fn admit(sample: &Sample, manifest: &[u8], demand: Demand, expect: &Expect) -> Result<Verdict, Refusal> {
    let files = forge::listed(&forge::model());
    let policy = Policy { keys: &sample.keys, roots: &sample.roots, demand, expect, now: forge::NOW };
    verify(&policy, &Artefact::Version { manifest, files: &files }, &sample.evidence)
}

fn why(verdict: Result<Verdict, Refusal>) -> (Reason, String) {
    let refusal = verdict.expect_err("refused");
    (refusal.reason, refusal.field.unwrap_or_default())
}

/// Signatures over the manifest's bytes by one key, in each format that has room for one.
fn bare(key: &Key) -> Vec<(&'static str, Vec<u8>)> {
    let (public, sig) = (key.public(), to_base64(&key.sign(MANIFEST)));
    if public.kind.post_quantum() {
        return vec![("raw", key.sign(MANIFEST))];
    }
    let digest = artefact::digest(MANIFEST);
    let message = json!({
        "mediaType": forge::media_type("0.3"), "verificationMaterial": forge::hint(&public),
        "messageSignature": {
            "messageDigest": { "algorithm": "SHA2_256", "digest": to_base64(&digest) }, "signature": sig,
        },
    });
    let mut attest = forge::cosign_statement();
    attest["subject"][0]["digest"]["sha256"] = to_hex(&digest).into();
    vec![
        ("detached", format!("{sig}\n").into()),
        ("legacy", json!({ "base64Signature": sig, "cert": "", "rekorBundle": null }).to_string().into()),
        ("message", message.to_string().into()),
        ("DSSE", forge::dsse_bundle(forge::hint(&public), &attest, key).to_string().into()),
    ]
}

/// The same key, given to a tenant, perhaps with its other half beside it.
fn sample(key: &Key, tenant: Option<&str>, other: Option<&Key>, evidence: &[u8]) -> Sample {
    let mut sample = Sample::blob("bare", &[&key.public()], evidence.to_vec());
    tenant.iter().for_each(|tenant| sample.keys.give(&tenant.parse().unwrap()));
    other.iter().for_each(|other| sample.keys.add(other.public()).unwrap());
    sample.keys.pair();
    sample
}

/// Whoever writes the store can change the program and leave each file as it was signed.
#[test]
fn a_statement_is_for_one_manifest_and_so_for_one_program() {
    let good = forge::deploy_sample("deploy", &forge::signers());
    let verdict = admit(&good, MANIFEST, Demand::Hybrid, &expect("t1")).unwrap();
    assert_eq!(verdict.manifest_sha256, Some(to_hex(&forge::manifest_sha256())));
    let shell = String::from_utf8(MANIFEST.to_vec()).unwrap().replace("serve", "/bin/sh");
    let mismatch = |field: &str| (Reason::SignatureBindingMismatch, field.to_owned());
    for demand in [Demand::Classical, Demand::Hybrid, Demand::Strict] {
        assert_eq!(why(admit(&good, shell.as_bytes(), demand, &expect("t1"))), mismatch("manifest_sha256"));
    }
    let other = Expect { format: Some("gguf".into()), ..expect("t1") };
    assert_eq!(why(admit(&good, MANIFEST, Demand::Hybrid, &other)), mismatch("format"));
    assert_eq!(why(admit(&good, MANIFEST, Demand::Hybrid, &expect("t2"))), mismatch("tenant_id"));
}

/// A signature from before there was a manifest would be one for any.
#[test]
fn a_statement_without_a_manifest_admits_nothing_and_verifies_files() {
    let keys = forge::signers();
    let dir = forge::model();
    let statement = Deploy { manifest_sha256: None, ..forge::deploy_statement(forge::listed(&dir)) };
    let mut early = forge::deploy_sample("early", &keys);
    early.evidence = sign::deploy(&statement, &keys).unwrap().into();
    let refused = (Reason::SignatureBindingMismatch, "manifest_sha256".to_owned());
    assert_eq!(why(admit(&early, MANIFEST, Demand::Hybrid, &expect("t1"))), refused);
    assert_eq!(super::judged(&early).unwrap().unbound, ["manifest_sha256"]);
}

#[test]
fn a_pulled_directory_is_verified_with_its_manifest() {
    let sample = forge::deploy_sample("deploy", &forge::signers());
    let beside = sample.dir.as_ref().unwrap().path().join("manifest.json");
    std::fs::write(&beside, MANIFEST).unwrap();
    assert!(super::judged(&sample).is_ok());
    std::fs::write(&beside, b"{}").unwrap();
    assert_eq!(super::judged(&sample).unwrap_err().field.as_deref(), Some("manifest.json"));
}

/// t1's signature, copied to where t2's is looked for.
#[test]
fn what_names_no_tenant_counts_for_its_keys_tenant_alone() {
    let pq = Key::new(Kind::MlDsa(mldsa::Parameters::MlDsa65));
    for key in [Key::p256(), pq] {
        for (name, evidence) in bare(&key) {
            let judge = |given, tenant| {
                let sample = sample(&key, given, None, &evidence);
                admit(&sample, MANIFEST, Demand::Hybrid, &expect(tenant))
            };
            assert!(judge(Some("t1"), "t1").is_ok(), "{name}: {:?}", judge(Some("t1"), "t1"));
            let refused = (Reason::SignatureBindingMismatch, "tenant_id".to_owned());
            assert_eq!(why(judge(Some("t1"), "t2")), refused, "{name}");
            assert_eq!(why(judge(None, "t1")), refused, "{name}: nobody's key");
            let shell = sample(&key, Some("t1"), None, &evidence);
            assert!(admit(&shell, b"{}", Demand::Hybrid, &expect("t1")).is_err(), "{name}: another manifest");
        }
    }
}

/// Else one half alone would do, by way of a format that has no room for the other.
#[test]
fn half_of_a_hybrid_pair_signs_nothing_alone() {
    let pq = || Key::new(Kind::MlDsa(mldsa::Parameters::MlDsa65));
    for (key, other) in [(Key::p256(), pq()), (pq(), Key::p256())] {
        for (name, evidence) in bare(&key) {
            let paired = sample(&key, Some("t1"), Some(&other), &evidence);
            let refused = admit(&paired, MANIFEST, Demand::Hybrid, &expect("t1"));
            assert_eq!(why(refused).0, Reason::HybridSignatureIncomplete, "{name}");
            assert!(admit(&paired, MANIFEST, Demand::Classical, &expect("t1")).is_ok(), "{name}");
        }
    }
    let (key, other) = (Key::p256(), pq());
    let mut model = forge::model_sample("model", &key);
    model.keys.give(&"t1".parse().unwrap());
    assert!(admit(&model, MANIFEST, Demand::Hybrid, &expect("t1")).is_ok());
    model.keys.add(other.public()).unwrap();
    model.keys.pair();
    assert_eq!(why(admit(&model, MANIFEST, Demand::Hybrid, &expect("t1"))).0, Reason::HybridSignatureIncomplete);
}

#[test]
fn an_authority_signs_for_the_tenant_that_it_was_given_to() {
    let mut sample = forge::certificate_sample("certificate", &forge::pki(|_| {}));
    let refused = (Reason::SignatureBindingMismatch, "tenant_id".to_owned());
    assert_eq!(why(admit(&sample, MANIFEST, Demand::Hybrid, &expect("t1"))), refused);
    sample.roots.give(&"t1".parse().unwrap());
    assert!(admit(&sample, MANIFEST, Demand::Hybrid, &expect("t1")).is_ok());
    assert_eq!(why(admit(&sample, MANIFEST, Demand::Hybrid, &expect("t2"))), refused);
}

/// Who signed the directory that nf model pull brought signed the program, too.
#[test]
fn model_signing_over_a_manifest_is_for_that_one() {
    let mut files = forge::listed(&forge::model());
    let beside = Listed { name: "manifest.json".into(), size: None, sha256: forge::manifest_sha256() };
    files.insert(1, beside);
    let signed = Meaning::Model { name: "m1".into(), files };
    let there = forge::listed(&forge::model());
    assert!(hold_files(&signed, &Artefact::Version { manifest: MANIFEST, files: &there }).is_ok());
    let refusal = hold_files(&signed, &Artefact::Version { manifest: b"{}", files: &there }).unwrap_err();
    assert_eq!((refusal.reason, refusal.field.as_deref()), (Reason::ArtifactMismatch, Some("manifest.json")));
}
