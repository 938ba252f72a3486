//! `nf model keygen`, `sign` and `verify` as a person meets them: exit codes, texts
//! and JSON, with no member anywhere. The formats themselves are tested beside the
//! verifier.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs `nf model` in a directory; the exit code, stdout and stderr.
fn model(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nf"));
    command.env_clear().env("HOME", dir).env("NO_COLOR", "1").current_dir(dir).arg("model").args(args);
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// A directory with a model, keys, and a hybrid deploy statement in `magika.sig`.
fn signed() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    fs::create_dir(dir.join("magika")).unwrap();
    fs::write(dir.join("magika/model.onnx"), b"weights").unwrap();
    fs::write(dir.join("magika/config.json"), b"{}").unwrap();
    assert_eq!(model(dir, &["keygen", "keys"]).0, 0);
    let (code, out, err) = model(dir, &SIGN);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("2 files") && out.contains("ECDSA P-256 and ML-DSA-65"), "{out}");
    home
}

const KEY: [&str; 2] = ["--key", "keys/signing.pub.pem"];
const SIGN: [&str; 14] = [
    "sign",
    "magika",
    "--tenant",
    "demo",
    "--model",
    "magika",
    "--model-version",
    "v1",
    "--key",
    "keys/ecdsa-p256.key.pem",
    "--key",
    "keys/ml-dsa-65.key.pem",
    "--out",
    "magika.sig",
];

fn verify(dir: &Path, rest: &[&str]) -> (i32, String, String) {
    let args = [&["verify", "magika", "--signature", "magika.sig"][..], &KEY, rest].concat();
    model(dir, &args)
}

#[test]
fn what_was_signed_verifies_and_says_for_whom() {
    let home = signed();
    let (code, out, err) = verify(home.path(), &["--tenant", "demo", "--model", "magika", "--model-version", "v1"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.starts_with("verified") && out.contains("tenant demo, model magika, version v1"), "{out}");
    let (_, json, _) = verify(home.path(), &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["verified"], &json["hybrid"]), (&true.into(), &true.into()));
    assert_eq!(json["files"][0]["name"], "config.json");
    assert_eq!(json["signatures"].as_array().unwrap().len(), 2);
}

#[test]
fn what_was_not_signed_is_exit_six_with_the_reason_first() {
    let home = signed();
    let dir = home.path();
    let (code, out, err) = verify(dir, &["--tenant", "other"]);
    assert!(code == 6 && out.is_empty() && err.starts_with("nf: SignatureBindingMismatch: "), "{code} {err}");
    assert!(err.contains("(field tenant_id)"), "{err}");
    fs::write(dir.join("magika/model.onnx"), b"weightz").unwrap();
    let (code, out, err) = verify(dir, &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["verified"], &json["reason"]), (6, &false.into(), &"ArtifactMismatch".into()), "{err}");
    assert_eq!((&json["field"], &json["alarm"]), (&"model.onnx".into(), &false.into()));
    let half = ["verify", "magika", "--signature", "magika.sig", "--key", "ecdsa.pub.pem"];
    let public = fs::read_to_string(dir.join("keys/signing.pub.pem")).unwrap();
    let end = public.find("-----END PUBLIC KEY-----\n").unwrap() + "-----END PUBLIC KEY-----\n".len();
    fs::write(dir.join("ecdsa.pub.pem"), &public[..end]).unwrap();
    fs::write(dir.join("magika/model.onnx"), b"weights").unwrap();
    let (code, _, err) = model(dir, &half);
    assert!(code == 6 && err.contains("HybridSignatureIncomplete") && err.contains("ML-DSA"), "{code} {err}");
    assert_eq!(model(dir, &[&half[..], &["--pqc-mode", "classical"]].concat()).0, 0);
    assert_eq!(model(dir, &[&half[..], &["--pqc-mode", "classical", "--pqc-strict"]].concat()).0, 6);
}

#[test]
fn a_signature_may_lie_among_the_files_it_is_for() {
    let home = signed();
    let dir = home.path();
    fs::rename(dir.join("magika.sig"), dir.join("magika/magika.sig")).unwrap();
    let args = ["verify", "magika", "--signature", "magika/magika.sig", "--key", "keys/signing.pub.pem"];
    assert_eq!(model(dir, &args).0, 0);
    fs::copy(dir.join("magika/magika.sig"), dir.join("magika/other.sig")).unwrap();
    let (code, _, err) = model(dir, &args);
    assert!(code == 6 && err.contains("other.sig"), "{err}");
}

#[test]
fn settings_that_cannot_be_used_are_exit_two_without_their_contents() {
    let home = signed();
    let dir = home.path();
    let private = fs::read_to_string(dir.join("keys/ecdsa-p256.key.pem")).unwrap();
    let with = |signature, key| model(dir, &["verify", "magika", "--signature", signature, "--key", key]);
    let (code, _, err) = with("magika.sig", "keys/ecdsa-p256.key.pem");
    assert!(code == 2 && err.contains("ConfigInvalid") && err.contains("private key"), "{code} {err}");
    assert!(!err.contains(private.lines().nth(1).unwrap()), "{err}");
    assert_eq!(with("magika.sig", "nowhere.pem").0, 2);
    assert_eq!(with("nowhere.sig", "keys/signing.pub.pem").0, 2);
    assert_eq!(model(dir, &["verify", "nowhere", "--signature", "magika.sig", KEY[0], KEY[1]]).0, 2);
    let (code, _, err) = model(dir, &["verify", "magika", "--signature", "magika.sig"]);
    assert!(code == 2 && err.contains("--key"), "{err}");
    let (code, _, err) = model(dir, &["keygen", "keys"]);
    assert!(code == 5 && err.contains("there already"), "keys are never overwritten: {code} {err}");
}

#[test]
fn private_keys_are_readable_by_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let home = signed();
    for name in ["ecdsa-p256.key.pem", "ml-dsa-65.key.pem"] {
        let mode = fs::metadata(home.path().join("keys").join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
}
