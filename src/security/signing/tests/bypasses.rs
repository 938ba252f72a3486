//! Each known way around a signature verifier, with the token that refuses it.

use super::super::encoding::to_base64;
use super::super::{Demand, Evidence, Expect, Kind, Refusal, sign};
use super::forge::{self, Key, MESSAGE, Sample};
use super::{judged, judged_with};
use nf_core::reason::Reason;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;

/// What a sample says once its JSON was edited.
fn edited(sample: &Sample, edit: impl FnOnce(&mut Value)) -> Refusal {
    let mut value: Value = serde_json::from_slice(&sample.evidence).unwrap();
    edit(&mut value);
    refusal(sample, value.to_string().as_bytes())
}

fn refusal(sample: &Sample, evidence: &[u8]) -> Refusal {
    match judged_with(sample, evidence, Demand::Hybrid, &Expect::default()) {
        Ok(verdict) => panic!("{} accepted: {verdict:?}", sample.name),
        Err(refusal) => refusal,
    }
}

fn token(refusal: &Refusal) -> (Reason, &str) {
    assert!(refusal.detail.len() > 8, "says nothing: {refusal}");
    (refusal.reason, refusal.field.as_deref().unwrap_or_default())
}

#[test]
fn keys_inside_a_bundle_never_count() {
    let (mine, theirs) = (Key::p256(), Key::p256());
    let ring = [&mine.public()];
    let pem = super::super::encoding::to_pem("PUBLIC KEY", theirs.public().spki());
    // GHSA-fx35-mq7g-6g98: the legacy `cert` outranked --key.
    let legacy = json!({ "base64Signature": to_base64(&theirs.sign(MESSAGE)), "cert": to_base64(pem.as_bytes()) });
    assert_eq!(
        token(&refusal(&Sample::blob("cert", &ring, legacy.to_string()), legacy.to_string().as_bytes())).1,
        "cert"
    );
    // Model Signing 1.0.1 carried the key itself.
    let sample = forge::model_sample("rawBytes", &mine);
    let forged = forge::model_sample("forged", &theirs);
    let mut bundle: Value = serde_json::from_slice(&forged.evidence).unwrap();
    bundle["verificationMaterial"]["publicKey"] = json!({ "rawBytes": to_base64(pem.as_bytes()) });
    let found = refusal(&sample, bundle.to_string().as_bytes());
    assert_eq!(found.reason, Reason::SignatureInvalid);
    let mut honest: Value = serde_json::from_slice(&sample.evidence).unwrap();
    honest["verificationMaterial"]["publicKey"] = json!({ "rawBytes": to_base64(pem.as_bytes()) });
    let verdict = judged_with(&sample, honest.to_string().as_bytes(), Demand::Hybrid, &Expect::default());
    assert_eq!(verdict.unwrap().signatures[0].key_id, mine.public().id(), "ignored, and the configured key counts");
}

#[test]
fn a_hint_chooses_and_never_falls_back() {
    let (a, b) = (Key::p256(), Key::p256());
    let sample = Sample::blob("hint", &[&a.public(), &b.public()], forge::message_bundle("0.3", &a).to_string());
    assert!(judged(&sample).is_ok());
    let hint = "/verificationMaterial/publicKey/hint";
    let field = "verificationMaterial.publicKey.hint";
    let unknown = edited(&sample, |v| *v.pointer_mut(hint).unwrap() = json!(Key::p256().public().id()));
    assert_eq!(token(&unknown), (Reason::SignatureInvalid, field));
    let wrong = edited(&sample, |v| *v.pointer_mut(hint).unwrap() = json!(b.public().id()));
    assert_eq!(wrong.reason, Reason::SignatureInvalid, "b is configured, but did not sign");
    let none = edited(&sample, |v| *v.pointer_mut(hint).unwrap() = json!(""));
    assert_eq!(token(&none), (Reason::SignatureInvalid, field));
}

#[test]
fn shapes_that_are_not_known_are_refused_by_name() {
    let key = Key::p256();
    let sample = forge::model_sample("model", &key);
    let unsupported = |found: Refusal, field: &str| assert_eq!(token(&found), (Reason::SignatureUnsupported, field));
    unsupported(
        edited(&sample, |v| v["mediaType"] = json!("application/vnd.dev.sigstore.bundle.v0.4+json")),
        "mediaType",
    );
    let message = Sample::blob("m", &[&key.public()], forge::message_bundle("0.2", &key).to_string());
    let algorithm = "/messageSignature/messageDigest/algorithm";
    unsupported(
        edited(&message, |v| *v.pointer_mut(algorithm).unwrap() = json!("SHA1")),
        "messageSignature.messageDigest.algorithm",
    );
    for text in [&b"-----BEGIN CERTIFICATE-----"[..], b"not base64!", b"{\"a\":1}", b"\xff\xfe"] {
        unsupported(refusal(&sample, text), "signature");
    }
    assert_eq!(refusal(&sample, b"").reason, Reason::SignatureRequired);
    assert_eq!(refusal(&sample, b" \n").reason, Reason::SignatureRequired);
    assert_eq!(refusal(&sample, &vec![b' '; super::super::MAX_EVIDENCE + 1]).reason, Reason::SignatureInvalid);
    // A mixture of two shapes is neither.
    let mixed = edited(&sample, |v| v["base64Signature"] = json!("AAAA"));
    assert_eq!(mixed.reason, Reason::SignatureInvalid);
    // A second value under the same name.
    let text = String::from_utf8(sample.evidence.clone()).unwrap();
    let twice = text.replacen("\"mediaType\"", "\"mediaType\":\"x\",\"mediaType\"", 1);
    assert!(refusal(&sample, twice.as_bytes()).detail.contains("twice"));
}

/// Sigs of key kinds that a format does not carry say so, instead of "wrong".
#[test]
fn key_kinds_of_other_formats_are_named() {
    let ed25519 = Key::new(Kind::Ed25519);
    let sample = Sample::blob("ed", &[&ed25519.public()], to_base64(&ed25519.sign(MESSAGE)));
    assert_eq!(token(&judged(&sample).unwrap_err()), (Reason::SignatureUnsupported, "key"));
    let sample = Sample::blob("ed", &[&ed25519.public()], forge::message_bundle("0.3", &ed25519).to_string());
    assert_eq!(token(&judged(&sample).unwrap_err()), (Reason::SignatureUnsupported, "key"));
    let rsa = Key::new(Kind::Rsa);
    let mut sample = forge::model_sample("oms", &rsa);
    assert_eq!(token(&judged(&sample).unwrap_err()), (Reason::SignatureUnsupported, "key"));
    sample.keys = Default::default();
    assert_eq!(judged(&sample).unwrap_err().reason, Reason::NoTrustRoot);
}

/// A statement signed by the right key about the right file, which permits nothing.
#[test]
fn statements_count_only_when_they_permit() {
    let key = Key::p256();
    let signed = |change: fn(&mut Value)| {
        let mut statement = forge::cosign_statement();
        change(&mut statement);
        let evidence = forge::dsse_bundle(forge::hint(&key.public()), &statement, &key).to_string();
        judged(&Sample::blob("statement", &[&key.public()], evidence)).map_err(|e| (e.reason, e.field.unwrap()))
    };
    assert!(signed(|_| {}).is_ok());
    let cases: [(fn(&mut Value), Reason, &str); 5] = [
        (
            |s| s["predicateType"] = json!("https://cosign.sigstore.dev/attestation/vuln/v1"),
            Reason::SignatureUnsupported,
            "payload.predicateType",
        ),
        (|s| s["_type"] = json!("https://in-toto.io/Statement/v2"), Reason::SignatureUnsupported, "payload._type"),
        (|s| s["subject"] = json!([]), Reason::SignatureInvalid, "payload.subject"),
        (
            |s| s["subject"][0]["digest"] = json!({ "sha256": "0".repeat(64) }),
            Reason::ArtifactMismatch,
            "manifest.json",
        ),
        (|s| s["subject"][0]["digest"] = json!({ "sha1": "0" }), Reason::SignatureUnsupported, "payload.subject"),
    ];
    for (change, reason, field) in cases {
        assert_eq!(signed(change).map(drop), Err((reason, field.to_owned())));
    }
    let other = forge::dsse("text/plain", b"{}", &[("", &key)]).to_string();
    assert_eq!(token(&refusal(&Sample::blob("t", &[&key.public()], ""), other.as_bytes())).1, "payloadType");
}

#[test]
fn model_signing_refuses_what_it_does_not_implement() {
    let key = Key::p256();
    let dir = forge::model();
    let files = forge::listed(&dir);
    let signed = |change: &dyn Fn(&mut Value)| {
        let mut statement = forge::model_statement(&files);
        change(&mut statement);
        let evidence = forge::dsse_bundle(forge::hint(&key.public()), &statement, &key).to_string();
        let sample = Sample { dir: Some(forge::model()), ..Sample::blob("model", &[&key.public()], evidence) };
        judged(&sample).map(drop).map_err(|e| (e.reason, e.field.unwrap_or_default()))
    };
    assert_eq!(signed(&|_| {}), Ok(()));
    let set =
        |pointer: &'static str, value: Value| move |s: &mut Value| *s.pointer_mut(pointer).unwrap() = value.clone();
    let unsupported: [(&str, Value); 4] = [
        ("/predicate/serialization/method", json!("shards")),
        ("/predicate/serialization/hash_type", json!("blake2b")),
        ("/predicate/serialization/allow_symlinks", json!(true)),
        ("/predicate/resources/0/algorithm", json!("blake2b")),
    ];
    for (pointer, value) in unsupported {
        let (reason, field) = signed(&set(pointer, value)).unwrap_err();
        assert_eq!(reason, Reason::SignatureUnsupported, "{pointer}");
        assert!(field.ends_with(pointer.rsplit('/').next().unwrap()), "{field}");
    }
    let wrong: [(&str, Value, Reason); 5] = [
        ("/subject/0/digest/sha256", json!("0".repeat(64)), Reason::SignatureInvalid),
        ("/predicate/resources/0/digest", json!("A".repeat(64)), Reason::SignatureInvalid),
        ("/predicate/resources/0/name", json!("../config.json"), Reason::ArtifactMismatch),
        ("/predicate/resources/0/name", json!("z"), Reason::ArtifactMismatch),
        ("/predicate/resources/1/name", json!("config.json"), Reason::ArtifactMismatch),
    ];
    for (pointer, value, reason) in wrong {
        assert_eq!(signed(&set(pointer, value)).unwrap_err().0, reason, "{pointer}");
    }
}

/// The bytes on disk: changed, missing, extra, in an ignored path, behind a link.
#[test]
fn a_directory_is_what_was_signed_and_nothing_else() {
    let key = Key::p256();
    let keys = forge::signers();
    for deploy in [false, true] {
        let fresh = || if deploy { forge::deploy_sample("deploy", &keys) } else { forge::model_sample("model", &key) };
        let spoilt = |spoil: &dyn Fn(&std::path::Path)| {
            let sample = fresh();
            assert!(judged(&sample).is_ok());
            spoil(sample.dir.as_ref().unwrap().path());
            let refusal = judged(&sample).unwrap_err();
            assert_eq!(refusal.reason, Reason::ArtifactMismatch, "{refusal}");
            refusal.field.unwrap()
        };
        assert_eq!(spoilt(&|d| fs::write(d.join("model.safetensors"), vec![8; 3000]).unwrap()), "model.safetensors");
        assert_eq!(spoilt(&|d| fs::remove_file(d.join("config.json")).unwrap()), "config.json");
        assert_eq!(spoilt(&|d| fs::write(d.join("extra.bin"), b"x").unwrap()), "extra.bin");
        let hidden = |d: &std::path::Path| {
            fs::create_dir(d.join(".git")).unwrap();
            fs::write(d.join(".git/payload.py"), b"import os").unwrap();
        };
        assert_eq!(spoilt(&hidden), ".git/payload.py", "ignored by the signer's tool, not by us");
        let linked = |d: &std::path::Path| {
            // Even inside the directory.
            fs::remove_file(d.join("config.json")).unwrap();
            symlink("tokenizer/tokenizer.json", d.join("config.json")).unwrap();
        };
        assert_eq!(spoilt(&linked), "config.json");
        let dir_link = |d: &std::path::Path| symlink("/etc", d.join("etc")).unwrap();
        assert_eq!(spoilt(&dir_link), "etc");
        let fifo = |d: &std::path::Path| {
            nix::unistd::mkfifo(&d.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        };
        assert_eq!(spoilt(&fifo), "pipe");
    }
}

#[test]
fn certificates_count_under_a_configured_root_only() {
    use rcgen::{CustomExtension, ExtendedKeyUsagePurpose, KeyUsagePurpose, date_time_ymd};
    let good = forge::pki(|_| {});
    let mut sample = forge::certificate_sample("certificate", &good);
    assert!(judged(&sample).unwrap().signatures[0].certificate);
    let field = "verificationMaterial.certificate";
    sample.roots = Default::default();
    sample.keys.add(Key::p256().public()).unwrap();
    assert_eq!(token(&judged(&sample).unwrap_err()), (Reason::SignatureInvalid, field));
    sample.roots.add_file("other", forge::pki(|_| {}).root_pem.as_bytes()).unwrap();
    assert_eq!(token(&judged(&sample).unwrap_err()), (Reason::SignatureInvalid, field));
    type Spoil = fn(&mut rcgen::CertificateParams);
    let spoilt: [(Spoil, Reason); 5] = [
        (|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth], Reason::SignatureInvalid),
        (|p| p.extended_key_usages = vec![], Reason::SignatureInvalid),
        (|p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment], Reason::SignatureInvalid),
        (|p| p.not_after = date_time_ymd(2026, 1, 1), Reason::SignatureInvalid),
        (
            |p| {
                let oid = [1, 3, 6, 1, 4, 1, 57264, 1, 8];
                p.custom_extensions = vec![CustomExtension::from_oid_content(&oid, vec![12, 1, b'x'])];
            },
            Reason::SignatureUnsupported,
        ),
    ];
    for (i, (spoil, reason)) in spoilt.into_iter().enumerate() {
        let sample = forge::certificate_sample("spoilt", &forge::pki(spoil));
        assert_eq!(token(&judged(&sample).unwrap_err()), (reason, field), "case {i}");
    }
    let bad = forge::certificate_sample("empty", &good);
    let empty = edited(&bad, |v| v["verificationMaterial"]["x509CertificateChain"]["certificates"] = json!([]));
    assert_eq!(empty.reason, Reason::SignatureInvalid);
}

#[test]
fn vault_versions_count_as_vault_says() {
    let key = Key::p256();
    let sample = forge::vault_sample("vault", &key, &key.sign(MESSAGE), false);
    let text = String::from_utf8(sample.evidence.clone()).unwrap();
    let of = |text: String| refusal(&sample, text.as_bytes());
    assert_eq!(of(text.replace(":v3:", ":v1:")).reason, Reason::KeyVersionRetired);
    assert_eq!(of(text.replace(":v3:", ":v4:")).reason, Reason::SignatureInvalid);
    for bad in [":v03:", ":v:", ":v-1:", ":v0:", ":3:", ":v99999999999999999999:"] {
        assert_eq!(of(text.replace(":v3:", bad)).reason, Reason::SignatureInvalid, "{bad}");
    }
    let answer = json!({ "request_id": "x", "data": { "key_version": 3, "signature": text } }).to_string();
    let accepted = judged_with(&sample, answer.as_bytes(), Demand::Hybrid, &Expect::default()).unwrap();
    assert_eq!(accepted.signatures[0].key_version, Some(3), "Vault's whole answer will do");
}

/// r = s = 0 once verified for any message in more than one library.
#[test]
fn degenerate_ecdsa_values_are_refused() {
    let key = Key::p256();
    let sample = Sample::blob("zero", &[&key.public()], "");
    let zero = [0x30, 6, 2, 1, 0, 2, 1, 0];
    let trailing = [key.sign(MESSAGE), vec![0]].concat();
    for bad in [&zero[..], &trailing, &[0; 64], &[]] {
        let text = to_base64(bad);
        let found = judged_with(&sample, text.as_bytes(), Demand::Hybrid, &Expect::default()).unwrap_err();
        assert!(matches!(found.reason, Reason::SignatureInvalid | Reason::SignatureRequired), "{found}");
    }
    let good = to_base64(&key.sign(MESSAGE));
    assert!(judged_with(&sample, format!("{good}\n").as_bytes(), Demand::Hybrid, &Expect::default()).is_ok());
    for bad in [format!("{good}\n\n"), format!(" {good}"), format!("{good}="), good.replace('=', "")] {
        let same = bad == good;
        assert!(same || judged_with(&sample, bad.as_bytes(), Demand::Hybrid, &Expect::default()).is_err(), "{bad:?}");
    }
}

#[test]
fn one_key_cannot_sign_for_both_halves() {
    let keys = forge::signers();
    let sample = forge::deploy_sample("deploy", &keys);
    let twice = edited(&sample, |v| {
        let first = v["signatures"][0].clone();
        v["signatures"] = json!([first, first]);
    });
    assert_eq!(twice.reason, Reason::SignatureInvalid);
    let empty = edited(&sample, |v| v["signatures"] = json!([]));
    assert_eq!(empty.reason, Reason::SignatureInvalid);
    let many = edited(&sample, |v| {
        let first = v["signatures"][0].clone();
        v["signatures"] = json!(vec![first; 9]);
    });
    assert_eq!(many.reason, Reason::SignatureInvalid);
}

#[test]
fn nothing_is_signed_that_would_not_verify() {
    let keys = forge::signers();
    assert!(sign::deploy(&forge::deploy_statement(vec![]), &keys).is_err());
    let mut unsafe_name = forge::listed(&forge::model());
    unsafe_name[0].name = "../x".into();
    assert!(sign::deploy(&forge::deploy_statement(unsafe_name), &keys).is_err());
    let good = sign::deploy(&forge::deploy_statement(forge::listed(&forge::model())), &keys).unwrap();
    assert!(matches!(Evidence::parse(good.as_bytes()), Ok(Evidence::Envelope { .. })));
}
