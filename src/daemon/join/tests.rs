//! The side that asks, led past members that are of no help, and the bounds of the side that answers. No group here.

use super::*;
use crate::security::join::{Issuer, Wish};
use crate::security::tls::Authority;
use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::LazyConfigAcceptor;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What a member of these tests answers.
#[derive(Clone, Copy, PartialEq)]
enum Says {
    Status(u16, &'static str),
    /// A certificate that counted a year ago.
    Past,
    Certificate,
}

fn certificate(authority: &Authority, issuer: &Issuer, request: &str, says: Says) -> String {
    let asked: JoinRequest = serde_json::from_str(request).unwrap();
    let now = UnixTime::now().as_secs() - if says == Says::Past { 7 * 24 * 3600 } else { 0 };
    let wish = Wish::read(&asked.request).unwrap();
    let admitted = Admitted {
        cluster: "blue".into(),
        simulation: true,
        certificate: issuer.certify(&wish, "blue", &asked.node, DAY, now).unwrap(),
        authority: authority.cert.clone(),
        members: Vec::new(),
    };
    serde_json::to_string(&admitted).unwrap()
}

/// A member's address. It answers each that asks, as long as the test runs.
async fn member(authority: &Authority, says: Says) -> String {
    let tls = PeerTls::new(&authority.issue("blue", "n1").unwrap(), "blue", "n1").unwrap();
    let (authority, issuer) = (authority.clone(), authority.issuer("blue").unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.unwrap();
            let (_, config) = tls.greet(&start.client_hello());
            let mut stream = start.into_stream(config).await.unwrap();
            let mut asked = String::new();
            while !asked.ends_with('}') {
                let mut some = [0; 4096];
                let read = stream.read(&mut some).await.unwrap();
                assert_ne!(read, 0, "the question was cut");
                asked.push_str(std::str::from_utf8(&some[..read]).unwrap());
            }
            let (status, body) = match says {
                Says::Status(status, reason) => (status, format!(r#"{{"reason":"{reason}","detail":"x"}}"#)),
                says => (200, certificate(&authority, &issuer, asked.split("\r\n\r\n").nth(1).unwrap(), says)),
            };
            let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    address
}

#[tokio::test]
async fn one_members_trouble_is_not_the_others() {
    let authority = Authority::create("blue").unwrap();
    let mut to = Vec::new();
    for says in [Says::Status(429, "TooManyRequests"), Says::Status(501, "NotSupported"), Says::Past, Says::Certificate]
    {
        to.push(member(&authority, says).await);
    }
    let known = tls::key_digest(&tls::certificates(&authority.cert, "x").unwrap()[0]).unwrap();
    let token = Token::generate().unwrap().of_authority(known);
    let dir = tempfile::tempdir().unwrap();
    let (_, credentials) = join(&token, "w1", &to, dir.path(), Policy::default()).await.unwrap();
    assert_eq!(credentials.key, Applicant::kept(dir.path()).unwrap().key());
    let past = join(&token, "w1", &to[2..3], dir.path(), Policy::default()).await;
    assert!(past.is_err(), "a certificate that is over is none");

    let refuses = member(&authority, Says::Status(401, "JoinTokenInvalid")).await;
    let error =
        join(&token, "w1", &[refuses, to.pop().unwrap()], dir.path(), Policy::default()).await.map(drop).unwrap_err();
    assert!(error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == 401), "what the log says all say");
}
