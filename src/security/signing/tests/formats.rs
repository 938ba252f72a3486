//! Every format is accepted, and what it proves is told without a word too much.

use super::super::key::Curve;
use super::super::sign::PrivateKey;
use super::super::{Demand, Expect, KeyRing, Kind};
use super::forge::{self, Key, Sample};
use super::{judged, judged_with};
use nf_core::reason::Reason;

fn expect(tenant: &str, model: &str, version: &str) -> Expect {
    let some = |text: &str| (!text.is_empty()).then_some(text.to_owned());
    Expect {
        tenant: some(tenant).map(|t| t.parse().unwrap()),
        model: some(model).map(|t| t.parse().unwrap()),
        version: some(version).map(|t| t.parse().unwrap()),
        format: None,
    }
}

#[test]
fn every_format_is_accepted() {
    for sample in forge::samples() {
        let verdict = judged(&sample).unwrap_or_else(|e| panic!("{}: {e} ({:?})", sample.name, e.field));
        assert!(!verdict.signatures.is_empty() && !verdict.files.is_empty(), "{}", sample.name);
        assert_eq!(verdict.sha256.len(), 64, "{}", sample.name);
        assert_eq!(verdict.hybrid, sample.name.starts_with("hybrid"), "{}", sample.name);
        assert_eq!(verdict.unbound.is_empty(), sample.name.starts_with("hybrid"), "{}", sample.name);
    }
}

#[test]
fn strict_mode_takes_nothing_but_hybrid() {
    for sample in forge::samples() {
        let verdict = judged_with(&sample, &sample.evidence, Demand::Strict, &Expect::default());
        match sample.name.starts_with("hybrid") {
            true => assert!(verdict.is_ok()),
            false => assert_eq!(verdict.unwrap_err().reason, Reason::HybridSignatureIncomplete, "{}", sample.name),
        }
    }
}

#[test]
fn a_deploy_statement_binds_tenant_model_and_version() {
    let sample = forge::deploy_sample("deploy", &forge::signers());
    let verdict = judged_with(&sample, &sample.evidence, Demand::Hybrid, &expect("t1", "m1", "v2")).unwrap();
    let min = verdict.min_version.as_ref().map(|min| min.to_string());
    let told = [&verdict.tenant_id, &verdict.model_id, &verdict.version, &min];
    assert_eq!(told.map(|t| t.as_deref().unwrap_or_default()), ["t1", "m1", "v2", "v1"]);
    assert_eq!(verdict.files.len(), 3);
    let others = [("t2", "m1", "v2", "tenant_id"), ("t1", "m2", "v2", "model_id"), ("t1", "m1", "v1", "version")];
    for (tenant, model, version, field) in others {
        let refusal = judged_with(&sample, &sample.evidence, Demand::Hybrid, &expect(tenant, model, version));
        let refusal = refusal.unwrap_err();
        assert_eq!((refusal.reason, refusal.field.as_deref()), (Reason::SignatureBindingMismatch, Some(field)));
    }
}

/// Model A's signature does not deploy model B, nor another tenant's.
#[test]
fn model_signing_binds_the_name_and_the_key_binds_the_tenant() {
    let key = Key::p256();
    let mut sample = forge::model_sample("model", &key);
    let with = |sample: &Sample, e: Expect| {
        judged_with(sample, &sample.evidence, Demand::Hybrid, &e).map_err(|r| (r.reason, r.field.unwrap_or_default()))
    };
    let refused = |field: &str| Err((Reason::SignatureBindingMismatch, field.to_owned()));
    assert!(with(&sample, expect("", "m1", "")).is_ok());
    assert_eq!(with(&sample, expect("", "m2", "")).map(drop), refused("model_id"));
    assert_eq!(with(&sample, expect("t1", "m1", "")).map(drop), refused("tenant_id"));
    assert_eq!(with(&sample, expect("", "m1", "v1")).map(drop), refused("version"));
    let mut public = key.public();
    public.tenants.insert("t1".into());
    sample.keys = KeyRing::default();
    sample.keys.add(public).unwrap();
    assert!(with(&sample, expect("t1", "m1", "v1")).is_ok(), "the operator gave this key to t1");
    assert_eq!(with(&sample, expect("t2", "m1", "v1")).map(drop), refused("tenant_id"));
}

#[test]
fn a_signature_over_bytes_binds_no_names() {
    for sample in forge::samples().iter().filter(|s| s.dir.is_none()) {
        for e in [expect("t1", "", ""), expect("", "m1", ""), expect("", "", "v1")] {
            let refusal = judged_with(sample, &sample.evidence, Demand::Hybrid, &e).unwrap_err();
            assert_eq!(refusal.reason, Reason::SignatureBindingMismatch, "{}", sample.name);
        }
    }
}

#[test]
fn hybrid_needs_both_halves_and_classical_one() {
    let keys = forge::signers();
    let sample = forge::deploy_sample("deploy", &keys);
    let any = Expect::default();
    for missing in [0, 1] {
        // The signature is not there.
        let mut envelope: serde_json::Value = serde_json::from_slice(&sample.evidence).unwrap();
        envelope["signatures"].as_array_mut().unwrap().remove(missing);
        let stripped = envelope.to_string();
        let refusal = judged_with(&sample, stripped.as_bytes(), Demand::Hybrid, &any).unwrap_err();
        assert_eq!(refusal.reason, Reason::HybridSignatureIncomplete, "{refusal}");
        assert!(judged_with(&sample, stripped.as_bytes(), Demand::Classical, &any).is_ok());
        // Its key is not configured.
        let mut one = Sample::blob("one key", &[keys[1 - missing].public()], sample.evidence.clone());
        one.dir = Some(forge::model());
        assert_eq!(judged(&one).unwrap_err().reason, Reason::HybridSignatureIncomplete);
        // It is there and wrong.
        let mut envelope: serde_json::Value = serde_json::from_slice(&sample.evidence).unwrap();
        let other = forge::deploy_sample("other", &forge::signers());
        let other: serde_json::Value = serde_json::from_slice(&other.evidence).unwrap();
        envelope["signatures"][missing]["sig"] = other["signatures"][missing]["sig"].clone();
        for demand in [Demand::Hybrid, Demand::Classical] {
            let refusal = judged_with(&sample, envelope.to_string().as_bytes(), demand, &any).unwrap_err();
            assert_eq!(refusal.reason, Reason::HybridSignatureIncomplete, "{refusal}");
        }
    }
}

#[test]
fn one_kind_of_key_signs_a_classical_statement() {
    let [ecdsa, _] = forge::signers();
    let sample = forge::deploy_sample("classical", &[ecdsa]);
    assert!(judged_with(&sample, &sample.evidence, Demand::Classical, &Expect::default()).is_ok());
    assert_eq!(judged(&sample).unwrap_err().reason, Reason::HybridSignatureIncomplete);
}

#[test]
fn keys_are_read_from_each_kind_of_file() {
    let new = PrivateKey::new_ecdsa().unwrap();
    let ml_dsa = PrivateKey::new_ml_dsa().unwrap();
    let mut ring = KeyRing::default();
    ring.add_file("both.pem", format!("{}{}", new.public, ml_dsa.public).as_bytes()).unwrap();
    ring.add_file("again.pem", new.public.as_bytes()).unwrap();
    assert_eq!(ring.keys().len(), 2, "a key counts once");
    assert!(ring.named(&new.id).is_some());
    let raw = Key::new(Kind::MlDsa(super::super::mldsa::Parameters::MlDsa87)).public();
    ring.add_file("raw.pub", &raw.spki()[raw.spki().len() - 2592..]).unwrap();
    assert_eq!(ring.keys()[2].id(), raw.id(), "raw and SPKI are the same key");
    let p384 = super::super::encoding::to_pem("PUBLIC KEY", Key::new(Kind::Ecdsa(Curve::P384)).public().spki());
    let sealed = p384.replace("PUBLIC", "ENCRYPTED SIGSTORE PRIVATE");
    let bad = [new.private.as_str(), &sealed, "", "{}", "hello", &p384.replace("PUBLIC KEY", "RSA PUBLIC KEY")];
    for text in bad {
        let refusal = ring.add_file("cosign.pub", text.as_bytes()).unwrap_err();
        assert_eq!((refusal.reason, refusal.field.as_deref()), (Reason::ConfigInvalid, Some("cosign.pub")));
        let body = text.lines().nth(1).unwrap_or("no body");
        assert!(!refusal.detail.contains(body), "a message shows no key: {refusal}");
    }
    assert!(ring.add_file("x", &[0xff; 1951]).is_err() && ring.add_file("x", &vec![b'a'; 5 << 20]).is_err());
    let shown = format!("{:?}", PrivateKey::from_pem("k", &new.private).unwrap());
    assert_eq!(shown, "PrivateKey(ECDSA P-256, <REDACTED>)");
}
