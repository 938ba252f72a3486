//! What each answer of Vault's means, and a Vault that is slow, broken or strange. A real
//! server is asked in tests/integration/test_vault.py.

use super::*;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn at(url: &str) -> Place {
    Place {
        url: url.into(),
        mount: "transit".into(),
        key: "nf-models".into(),
        token: Token::Given(Secret::new("hvs.canary-secret")),
        patience: Duration::from_millis(400),
    }
}

fn vault(url: &str) -> Vault {
    Vault::new(at(url), &Options::default()).unwrap()
}

fn evidence() -> Evidence {
    Evidence::parse(b"vault:v2:MEUCIQD0\n").unwrap()
}

/// A server that gives each question the same bytes and hands back what it was asked.
async fn server(answer: Option<&'static str>) -> (String, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(n) = stream.read(&mut buffer).await {
                    if n == 0 {
                        return;
                    }
                    let _ = tell.send(String::from_utf8_lossy(&buffer[..n]).into_owned());
                    match answer {
                        Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                        None => std::future::pending().await,
                    }
                }
            });
        }
    });
    (url, told)
}

#[test]
fn each_answer_has_one_meaning() {
    let vault = vault("http://127.0.0.1:1");
    let verdict = |status, text: &str| vault.verdict(StatusCode::from_u16(status).unwrap(), text.as_bytes(), 2);
    assert_eq!(verdict(200, r#"{"data":{"valid":true}}"#), Ok(2));
    for (status, text, reason) in [
        (200, r#"{"data":{"valid":false}}"#, Reason::SignatureInvalid),
        (400, r#"{"errors":["invalid signature: no prefix"]}"#, Reason::SignatureInvalid),
        (
            400,
            r#"{"errors":["cannot validate: signature version is disallowed by policy (too old)"]}"#,
            Reason::KeyVersionRetired,
        ),
        (400, r#"{"errors":["signature verification key not found"]}"#, Reason::NoTrustRoot),
        (404, r#"{"errors":["no handler for route"]}"#, Reason::NoTrustRoot),
        // What says neither yes nor no never lets anything pass.
        (200, r#"{"data":{"valid":"true"}}"#, Reason::VerifierUnavailable),
        (200, r#"{"data":{"valid":true},"data":{"valid":true}}"#, Reason::VerifierUnavailable),
        (200, r#"{"valid":true}"#, Reason::VerifierUnavailable),
        (200, "<html>", Reason::VerifierUnavailable),
        (204, "", Reason::VerifierUnavailable),
        (403, r#"{"errors":["permission denied"]}"#, Reason::VerifierUnavailable),
        (429, "", Reason::VerifierUnavailable),
        (500, r#"{"data":{"valid":true}}"#, Reason::VerifierUnavailable),
        (503, r#"{"errors":["Vault is sealed"]}"#, Reason::VerifierUnavailable),
    ] {
        let refusal = verdict(status, text).unwrap_err();
        assert_eq!(refusal.reason, reason, "{status} {text}: {refusal}");
    }
}

proptest! {
    #[test]
    fn no_answer_but_yes_is_a_yes(status in prop::sample::select(vec![200u16, 201, 400, 403, 404, 500, 503]), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let verdict = vault("http://127.0.0.1:1").verdict(StatusCode::from_u16(status).unwrap(), &bytes, 1);
        prop_assert!(verdict.is_err());
        prop_assert!(ring(&bytes).is_err());
    }
}

#[tokio::test]
async fn the_question_holds_the_token_and_neither_errors_nor_debug_do() {
    let (url, mut told) = server(Some("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")).await;
    let vault = vault(&url);
    let refusal = vault.verify(b"manifest", &evidence()).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::VerifierUnavailable, "{refusal}");
    let asked = told.recv().await.unwrap();
    assert!(asked.starts_with("POST /v1/transit/verify/nf-models ") && asked.contains("hvs.canary-secret"), "{asked}");
    let shown = format!("{refusal} {vault:?} {:?} {}", vault.token().unwrap(), vault.health().await.unwrap_err());
    assert!(!shown.contains("canary"), "{shown}");
}

#[tokio::test]
async fn a_vault_that_does_not_answer_verifies_nothing() {
    let long: &'static str = Box::leak(
        format!("HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n{}", "x".repeat(9_000_000)).into_boxed_str(),
    );
    for (answer, says) in [
        (None, "no answer within"),
        (Some("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"data\":{\"valid\":true}}"), "no answer within"),
        (Some("nonsense\r\n\r\n"), "connection broke"),
        (
            Some("HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"),
            "redirects are not followed",
        ),
        (Some("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nok"), "answers 200"),
        (Some(long), "too long"),
    ] {
        let (url, _told) = server(answer).await;
        let refusal = vault(&url).verify(b"m", &evidence()).await.unwrap_err();
        assert_eq!(refusal.reason, Reason::VerifierUnavailable, "{refusal}");
        assert!(refusal.detail.contains(says), "{says}: {refusal}");
    }
    let refusal = vault("http://127.0.0.1:1").verify(b"m", &evidence()).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::VerifierUnavailable, "{refusal}");
    let other = Evidence::parse(b"TUVVQ0lRRDA=").unwrap();
    let refusal = vault("http://127.0.0.1:1").verify(b"m", &other).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::SignatureUnsupported, "{refusal}");
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    let tmp = tempfile::tempdir().unwrap();
    let empty = tmp.path().join("token");
    std::fs::write(&empty, "\n").unwrap();
    let good = || at("https://vault.example:8200/");
    assert!(Vault::new(good(), &Options::default()).is_ok());
    for (place, says) in [
        (Place { url: "ftp://x".into(), ..good() }, "VAULT_ADDR"),
        (Place { url: "https://me:secret@x".into(), ..good() }, "VAULT_ADDR"),
        (Place { url: "https://".into(), ..good() }, "VAULT_ADDR"),
        (Place { key: "../sys/seal".into(), ..good() }, "NF_VAULT_KEY"),
        (Place { key: "a/b".into(), ..good() }, "NF_VAULT_KEY"),
        (Place { mount: "a b".into(), ..good() }, "NF_VAULT_MOUNT"),
        (Place { token: Token::File(tmp.path().join("absent")), ..good() }, "VAULT_TOKEN"),
        (Place { token: Token::File(empty), ..good() }, "VAULT_TOKEN"),
        (Place { token: Token::Given(Secret::new("a\nb: c")), ..good() }, "VAULT_TOKEN"),
    ] {
        let refusal = Vault::new(place, &Options::default()).unwrap_err();
        assert!(refusal.detail.contains(says) && !refusal.detail.contains("secret"), "{says}: {refusal}");
    }
}
