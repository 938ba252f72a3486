//! Addresses against the rules, and connections that are made, refused and shaken.

use super::address::unwrapped;
use super::*;
use crate::pqc::{Mode, Side};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use proptest::prelude::*;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn what_is_not_public_is_refused_in_every_spelling() {
    let none = Allow::default();
    for bad in [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "100.100.100.200",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::1",
        "2002:a9fe:a9fe::",
        "100::1",
    ] {
        assert!(none.judge("store", ip(bad)).is_err(), "{bad}");
    }
    for good in
        ["1.1.1.1", "172.15.0.1", "172.32.0.1", "100.63.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
    {
        assert_eq!(none.judge("store", ip(good)), Ok(()), "{good}");
    }
}

#[test]
fn what_is_listed_may_be_called_and_nothing_beside_it() {
    let allow = Allow::parse("Minio.internal, 127.0.0.1, 10.1.0.0/16, fd00::/8").unwrap();
    for (host, address) in [
        ("x", "127.0.0.1"),
        ("x", "::ffff:127.0.0.1"),
        ("x", "10.1.2.3"),
        ("x", "fd12::1"),
        ("minio.internal", "192.168.0.4"),
        ("MINIO.internal", "127.0.0.2"),
    ] {
        assert_eq!(allow.judge(host, ip(address)), Ok(()), "{host} {address}");
    }
    for (host, address) in [
        ("x", "127.0.0.2"),
        ("x", "10.2.0.1"),
        ("x", "fc00::1"),
        ("other.internal", "192.168.0.4"),
        // A name can be made to say anything: it never reaches what only an address may list.
        ("minio.internal", "169.254.169.254"),
        ("minio.internal", "0.0.0.0"),
    ] {
        assert!(allow.judge(host, ip(address)).is_err(), "{host} {address}");
    }
    assert_eq!(
        Allow::parse("0.0.0.0/0").unwrap().judge("x", ip("169.254.169.254")),
        Ok(()),
        "whoever lists all, gets all"
    );
    for bad in ["10.0.0.0/33", "::/129", "host/8", "http://host", "a b", "10.0.0.0/-1", "10.0.0.0/"] {
        assert!(Allow::parse(bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn no_list_makes_the_parser_panic(text in "[a-z0-9.:/, -]{0,60}") {
        let _ = Allow::parse(&text);
    }

    #[test]
    fn an_address_is_judged_the_same_however_it_is_wrapped(bits in any::<u32>()) {
        let plain = IpAddr::V4(Ipv4Addr::from_bits(bits));
        let none = Allow::default();
        let [a, b, c, d] = Ipv4Addr::from_bits(bits).octets();
        let pairs = format!("{a:02x}{b:02x}:{c:02x}{d:02x}");
        for wrapped in [format!("::ffff:{pairs}"), format!("64:ff9b::{pairs}"), format!("2002:{pairs}::1")] {
            prop_assert_eq!(unwrapped(ip(&wrapped)), plain);
            prop_assert_eq!(none.judge("x", ip(&wrapped)), none.judge("x", plain));
        }
    }
}

/// A server that answers each request on each connection with the same bytes.
async fn server(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    port
}

fn listed(hosts: &str) -> Options {
    Options { allow: Some(Allow::parse(hosts).unwrap()), ..Options::default() }
}

async fn get(client: &Client<Empty<Bytes>>, url: &str) -> Result<(Group, Bytes), String> {
    let request = Request::get(url).body(Empty::new()).unwrap();
    match client.send(request).await {
        Ok(answer) => {
            let group = answer.extensions().get::<Group>().unwrap().clone();
            Ok((group, answer.into_body().collect().await.unwrap().to_bytes()))
        }
        Err(e) => Err(Fault::below(e.as_ref()).map_or_else(|| format!("unknown: {e}"), |fault| format!("{fault:?}"))),
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

#[tokio::test]
async fn a_server_on_this_machine_is_called_when_it_is_listed() {
    let port = server(OK).await;
    let url = format!("http://127.0.0.1:{port}/x");
    let answer = get(&Client::new(&listed("127.0.0.1")).unwrap(), &url).await.unwrap();
    assert_eq!(answer, (Group("none".into()), Bytes::from("hi")));
    let strict = Client::new(&listed("")).unwrap();
    for host in ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "[::1]"] {
        let error = get(&strict, &format!("http://{host}:{port}/x")).await.unwrap_err();
        assert!(error.contains("Forbidden"), "{host}: {error}");
    }
}

#[tokio::test]
async fn a_name_is_asked_for_once_and_what_was_judged_is_called() {
    let port = server(OK).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    // Good at the first look, the metadata service at each later one.
    let resolve: Resolve = Arc::new(move |_| {
        let first = count.fetch_add(1, Ordering::Relaxed) == 0;
        let address = if first { "127.0.0.1" } else { "169.254.169.254" };
        Box::pin(async move { Ok(vec![address.parse().unwrap()]) })
    });
    let client = Client::resolving(&listed("store.example"), resolve).unwrap();
    let url = format!("http://store.example:{port}/x");
    assert!(get(&client, &url).await.is_ok());
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let other = format!("http://store.example:{}/x", server(OK).await);
    let error = get(&client, &other).await.unwrap_err();
    assert!(error.contains("Forbidden") && error.contains("169.254.169.254"), "{error}");
    // One bad address among good ones.
    let both: Resolve = Arc::new(|_| Box::pin(async { Ok(vec![ip("127.0.0.1"), ip("10.0.0.1"), ip("fe80::1")]) }));
    let error = get(&Client::resolving(&listed("store.example"), both).unwrap(), &url).await.unwrap_err();
    assert!(error.contains("link-local"), "{error}");
}

#[tokio::test]
async fn plain_http_stays_on_this_machine_and_redirects_lead_nowhere() {
    let far: Resolve = Arc::new(|_| Box::pin(async { Ok(vec![ip("93.184.216.34")]) }));
    let error = get(&Client::resolving(&listed(""), far).unwrap(), "http://store.example/").await.unwrap_err();
    assert!(error.contains("Plain"), "{error}");
    let port = server("HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n").await;
    let error =
        get(&Client::new(&listed("127.0.0.1")).unwrap(), &format!("http://127.0.0.1:{port}/")).await.unwrap_err();
    assert!(error.contains("Redirect") && error.contains("169.254.169.254"), "{error}");
}

/// A TLS server with a certificate of its own authority, which it writes to `ca`.
async fn secure(ca: &std::path::Path, policy: Policy) -> u16 {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(ca, cert.pem()).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(policy.provider(Side::World))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut buffer = [0; 1024];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(OK.as_bytes()).await;
        }
    });
    port
}

#[tokio::test]
async fn each_pair_of_modes_has_its_group_and_it_is_told() {
    let tmp = tempfile::tempdir().unwrap();
    let (ca, other) = (tmp.path().join("ca.pem"), tmp.path().join("other.pem"));
    let strict = Policy { mode: Mode::Hybrid, strict: true };
    let (hybrid, classical) = (Policy::from(Mode::Hybrid), Policy::from(Mode::Classical));
    for (server, client, group) in [
        (strict, strict, Some("X25519MLKEM768")),
        (strict, hybrid, Some("X25519MLKEM768")),
        (strict, classical, None),
        (hybrid, strict, Some("X25519MLKEM768")),
        (hybrid, hybrid, Some("X25519MLKEM768")),
        (hybrid, classical, Some("X25519")),
        (classical, strict, None),
        (classical, hybrid, Some("X25519")),
        (classical, classical, Some("X25519")),
    ] {
        let port = secure(&ca, server).await;
        let options = Options { policy: client, authorities: Some(ca.clone()), ..listed("localhost") };
        let answer = get(&Client::new(&options).unwrap(), &format!("https://localhost:{port}/")).await;
        match (answer, group) {
            (Ok(answer), Some(group)) => assert_eq!(answer.0, Group(group.into()), "{server:?}, {client:?}"),
            (Err(text), None) => {
                let next = if client.strict { "unset PQC_STRICT" } else { "let it offer one of ours" };
                let told = text.contains(&format!("PQC_MODE={}", client.mode)) && text.contains(next);
                assert!(told, "{server:?}, {client:?}: {text}");
            }
            (answer, _) => panic!("{server:?}, {client:?}: {:?}", answer.map(|answer| answer.0)),
        }
    }
    let port = secure(&ca, hybrid).await;
    secure(&other, hybrid).await;
    let options = Options { authorities: Some(other), ..listed("localhost") };
    let error = get(&Client::new(&options).unwrap(), &format!("https://localhost:{port}/")).await.unwrap_err();
    assert!(error.contains("TLS"), "{error}");
    let options = Options { authorities: Some(tmp.path().join("absent.pem")), ..Options::default() };
    assert!(Client::<Empty<Bytes>>::new(&options).unwrap_err().contains("absent.pem"));
}
