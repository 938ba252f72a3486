//! What a joining machine is told, tells and is given, over handshakes in memory. They know no group.

use super::*;
use crate::pqc::Policy;
use crate::security::tls::{self, Authority, Credentials, PeerTls, Role};
use rcgen::{CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, KeyPair};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::Acceptor;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

const DAY: Duration = Duration::from_secs(24 * 3600);

type Groups = Vec<&'static dyn SupportedKxGroup>;

fn now() -> u64 {
    UnixTime::now().as_secs()
}

#[test]
fn a_token_is_read_as_it_is_written_and_shows_no_secret() {
    let token = Token::generate().unwrap().of_authority([7; 32]);
    let text = token.text();
    assert_eq!(Token::parse(&format!(" {text}\n")), Ok(token.clone()));
    assert_ne!(Token::generate().unwrap().secret_text(), token.secret_text());
    let shown = format!("{token:?}");
    assert!(shown.contains("<REDACTED>") && !shown.contains(&token.secret_text()), "{shown}");
    let part = |n: usize, with: &str| {
        let mut parts: Vec<&str> = text.split('.').collect();
        parts[n] = with;
        parts.join(".")
    };
    let bad = [part(0, "nfj2"), part(1, "00"), part(2, "AAAA"), part(3, ""), format!("{text}."), "x".repeat(10_000)];
    for bad in bad {
        let told = Token::parse(&bad).unwrap_err();
        assert!(!told.contains(&token.secret_text()), "{told}");
    }
}

#[test]
fn whoever_asks_again_has_the_same_key() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let kept = || Applicant::kept(dir.path()).unwrap().key();
    let (first, path) = (kept(), dir.path().join("joining.key"));
    assert_eq!(kept(), first);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    Applicant::settle(dir.path()).unwrap();
    assert_eq!(std::fs::read_to_string(dir.path().join("member.key")).unwrap(), first);
    assert!(!path.exists());
    assert_ne!(kept(), first, "the next one is another's");
}

/// What `certify` gives a worker, and the key for it.
fn worker(authority: &Authority, cluster: &str, node: &str, life: Duration, at: u64) -> Credentials {
    let applicant = Applicant::generate().unwrap();
    let wish = Wish::read(&applicant.request().unwrap()).unwrap();
    let cert = authority.issuer(cluster).unwrap().certify(&wish, cluster, node, life, at).unwrap();
    Credentials { authority: authority.cert.clone(), cert, key: applicant.key() }
}

fn counts(credentials: &Credentials, cluster: &str, node: &str, at: u64) -> Result<(), tls::Error> {
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
    PeerTls::new(credentials, cluster, node)?.replace(credentials, at)
}

#[test]
fn a_worker_is_certified_by_its_name_and_for_a_day() {
    let (authority, at) = (Authority::create("blue").unwrap(), now());
    let given = worker(&authority, "blue", "w1", DAY, at);
    assert!(counts(&given, "blue", "w1", at).is_ok());
    assert!(counts(&given, "blue", "w2", at).is_err() && counts(&given, "green", "w1", at).is_err());
    let leaf = CertificateDer::from_pem_slice(given.cert.as_bytes()).unwrap();
    assert_eq!(tls::holder(&leaf, "blue"), Some(("w1".to_owned(), Role::Client)));
    let life = Life::of(&given.cert).unwrap();
    assert_eq!((life.begin, life.end), (at - 300, at + 86_400), "a clock may be five minutes behind");
    assert_eq!(life.renew_at(), at - 300 + (86_700 / 3) * 2);
    assert!(counts(&given, "blue", "w1", life.end - 1).is_ok() && counts(&given, "blue", "w1", life.end + 1).is_err());
    let short = Life::of(&worker(&authority, "blue", "w1", Duration::from_secs(30), at).cert).unwrap();
    assert_eq!((short.begin, short.renew_at(), short.end), (at - 3, at + 19, at + 30));
    let long = worker(&authority, "blue", "w1", DAY * 10_000, at);
    let issuer = long.cert.split_once("-----END CERTIFICATE-----\n").unwrap().1;
    assert_eq!(Life::of(&long.cert).unwrap().end, Life::of(issuer).unwrap().end, "no longer than its issuer");
}

#[test]
fn an_issuer_of_no_use_is_known_before_it_signs() {
    let (blue, other, at) = (Authority::create("blue").unwrap(), Authority::create("blue").unwrap(), now());
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for dir in &dirs {
        blue.issuer("blue").unwrap().write(dir.path()).unwrap();
    }
    let issuer = || Issuer::read(dirs[0].path()).unwrap().unwrap();
    assert!(issuer().check(&blue.cert, "blue", at).is_ok());
    assert!(issuer().check(&format!("{}{}", other.cert, blue.cert), "blue", at).is_ok(), "while authorities change");
    assert!(issuer().check(&other.cert, "blue", at).is_err(), "another authority");
    assert!(issuer().check(&blue.cert, "green", at).is_err(), "another group");
    assert!(issuer().check(&blue.cert, "blue", at + 3 * 365 * 86_400).is_err(), "its time is over");
    std::fs::copy(dirs[1].path().join("issuer.key"), dirs[0].path().join("issuer.key")).unwrap();
    let told = issuer().check(&blue.cert, "blue", at).unwrap_err().to_string();
    assert!(told.contains("is not its key"), "{told}");
}

#[test]
fn a_request_is_for_one_key() {
    let (authority, applicant) = (Authority::create("blue").unwrap(), Applicant::generate().unwrap());
    let wish = |of: &Applicant| Wish::read(&of.request().unwrap()).unwrap();
    let cert = authority.issuer("blue").unwrap().certify(&wish(&applicant), "blue", "w1", DAY, now()).unwrap();
    let leaf = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
    assert!(wish(&applicant).is_for(&leaf));
    assert!(!wish(&Applicant::generate().unwrap()).is_for(&leaf));
}

#[test]
fn a_stolen_issuer_makes_no_member_and_no_stranger() {
    let authority = Authority::create("blue").unwrap();
    let dir = tempfile::tempdir().unwrap();
    authority.issuer("blue").unwrap().write(dir.path()).unwrap();
    let read = |file: &str| std::fs::read_to_string(dir.path().join(file)).unwrap();
    let forge = |dns: &str| {
        let issuer = KeyPair::from_pem(&read("issuer.key")).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&read("issuer.pem"), issuer).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &issuer).unwrap().pem() + &read("issuer.pem");
        Credentials { authority: authority.cert.clone(), cert, key: key.serialize_pem() }
    };
    assert!(counts(&forge("w1.client.blue.nf"), "blue", "w1", now()).is_ok(), "the forgery itself is sound");
    for (dns, cluster) in [("n1.server.blue.nf", "blue"), ("w1.client.green.nf", "green")] {
        let name = dns.split('.').next().unwrap();
        assert!(counts(&forge(dns), cluster, name, now()).is_err(), "{dns}");
    }
}

#[test]
fn names_in_a_request_count_for_nothing_and_its_key_is_proved() {
    let authority = Authority::create("blue").unwrap();
    let key = KeyPair::generate().unwrap();
    let wishful = CertificateParams::new(vec!["n1.server.blue.nf".to_owned()]).unwrap();
    let request = wishful.serialize_request(&key).unwrap();
    let wish = Wish::read(&request.pem().unwrap()).unwrap();
    let cert = authority.issuer("blue").unwrap().certify(&wish, "blue", "w1", DAY, now()).unwrap();
    let leaf = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
    assert!(!tls::certifies(&leaf, "n1.server.blue.nf") && tls::certifies(&leaf, "w1.client.blue.nf"));

    let mut changed = request.der().to_vec();
    // A byte of the public key: the signature is over it.
    let other = changed.len() / 2;
    changed[other] ^= 1;
    assert!(CertificateSigningRequestParams::from_der(&changed.into()).is_err());
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = CertificateParams::default().serialize_request(&p384).unwrap().pem().unwrap();
    assert!(Wish::read(&p384).unwrap_err().contains("P-256"));
    assert!(Wish::read("").is_err() && Wish::read(&"x".repeat(10_000)).is_err());
}

/// A handshake of somebody who knows no certificate of the group's: how it ended for the client, at which door, and what
/// the member then read.
async fn meet(member: &PeerTls, client: Arc<ClientConfig>) -> (Result<(), String>, Option<Door>, Vec<u8>) {
    meet_as(member, client, "member.nf").await
}

/// The same with the name that the client looks for.
async fn meet_as(
    member: &PeerTls,
    client: Arc<ClientConfig>,
    name: &'static str,
) -> (Result<(), String>, Option<Door>, Vec<u8>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let member = member.clone();
    let serving = tokio::spawn(async move {
        let Ok(start) = LazyConfigAcceptor::new(Acceptor::default(), far).await else { return (None, Vec::new()) };
        let (door, config) = member.greet(&start.client_hello());
        let mut told = Vec::new();
        if let Ok(mut stream) = start.into_stream(config).await {
            let _ = stream.read_to_end(&mut told).await;
            let _ = stream.shutdown().await;
        }
        (Some(door), told)
    });
    let met = async {
        let mut stream = TlsConnector::from(client).connect(ServerName::try_from(name).unwrap(), near).await?;
        stream.write_all(b"the secret").await?;
        // A member that wants a certificate says so after the client is done.
        stream.shutdown().await?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await
    };
    let met = met.await.map(drop).map_err(|e: std::io::Error| e.to_string());
    let (door, told) = serving.await.unwrap();
    (met, door, told)
}

#[tokio::test]
async fn the_secret_is_told_to_the_right_group_alone() {
    let (blue, red) = (Authority::create("blue").unwrap(), Authority::create("blue").unwrap());
    let member = PeerTls::new(&blue.issue("blue", "n1").unwrap(), "blue", "n1").unwrap();
    let pin = |authority: &Authority| {
        let cert = CertificateDer::from_pem_slice(authority.cert.as_bytes()).unwrap();
        client(tls::key_digest(&cert).unwrap(), Policy::default()).unwrap()
    };
    assert_eq!(member.authority(), tls::key_digest(&CertificateDer::from_pem_slice(blue.cert.as_bytes()).unwrap()));
    assert_eq!(meet(&member, pin(&blue)).await, (Ok(()), Some(Door::Join), b"the secret".to_vec()));
    let (met, door, told) = meet(&member, pin(&red)).await;
    assert!(met.clone().unwrap_err().contains("nothing was sent"), "{met:?}");
    assert_eq!((door, told), (Some(Door::Join), Vec::new()));

    // Who shows the right authority's certificate and has no key of its own under it.
    let impostor = red.issue("blue", "n1").unwrap();
    let both = format!("{}{}", red.cert, blue.cert);
    let impostor = PeerTls::new(&Credentials { authority: both, ..impostor }, "blue", "n1").unwrap();
    let (met, _, told) = meet(&impostor, pin(&blue)).await;
    assert!(met.is_err() && told.is_empty(), "{met:?}");
    // Nor a worker of the group itself.
    let worker = PeerTls::new(&worker(&blue, "blue", "w1", DAY, now()), "blue", "w1").unwrap();
    let by_hand = PeerTls::new(&blue.issue_as("blue", "w1", Role::Client).unwrap(), "blue", "w1").unwrap();
    for poses in [worker, by_hand] {
        let (met, _, told) = meet(&poses, pin(&blue)).await;
        assert!(met.is_err() && told.is_empty(), "{met:?}");
    }
}

/// A client that takes the group's own authority for its root, as a peer does: what it is refused for is not its own
/// doubt. `own` is its certificate, if it has one.
fn insider(authority: &Authority, own: Option<&Credentials>, alpn: &[u8], groups: Groups) -> Arc<ClientConfig> {
    let certificates = |pem: &str| tls::certificates(pem, "x").unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificates(&authority.cert).remove(0)).unwrap();
    let provider = CryptoProvider { kx_groups: groups, ..aws_lc_rs::default_provider() };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        Some(own) => {
            let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(certificates(&own.cert), key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}

#[tokio::test]
async fn without_a_certificate_one_door_opens() {
    let blue = Authority::create("blue").unwrap();
    let member = PeerTls::new(&blue.issue("blue", "n1").unwrap(), "blue", "n1").unwrap();
    let peer = blue.issue("blue", "n2").unwrap();
    let red = Authority::create("blue").unwrap().issue("blue", "n2").unwrap();
    let comes = async |own: Option<&Credentials>, alpn: &[u8]| {
        meet_as(&member, insider(&blue, own, alpn, vec![kx_group::X25519MLKEM768]), "n1.server.blue.nf").await
    };
    for (alpn, door) in [(&b"h2"[..], Door::Peer), (RENEW, Door::Renew)] {
        let (met, at, told) = comes(None, alpn).await;
        let refused = met.unwrap_err();
        assert!(refused.contains("CertificateRequired"), "the member's own word, and not the client's: {refused}");
        assert_eq!((at, told), (Some(door), Vec::new()));
        let (met, at, told) = comes(Some(&red), alpn).await;
        assert!(met.is_err() && told.is_empty(), "by another authority: {met:?}");
        assert_eq!(at, Some(door));
        let (met, at, told) = comes(Some(&peer), alpn).await;
        assert_eq!((met, at, told), (Ok(()), Some(door), b"the secret".to_vec()), "the same client with a certificate");
    }
    let (met, at, told) = comes(None, JOIN).await;
    assert_eq!((met, at, told), (Ok(()), Some(Door::Join), b"the secret".to_vec()), "the one door");
}

#[tokio::test]
async fn no_door_opens_to_a_classical_client() {
    let blue = Authority::create("blue").unwrap();
    let member = PeerTls::new(&blue.issue("blue", "n1").unwrap(), "blue", "n1").unwrap();
    let peer = blue.issue("blue", "n2").unwrap();
    let comes = async |groups: Groups, alpn: &[u8]| {
        meet_as(&member, insider(&blue, Some(&peer), alpn, groups), "n1.server.blue.nf").await.0
    };
    for alpn in [&b"h2"[..], JOIN, RENEW] {
        let classical = vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
        let refused = comes(classical, alpn).await.unwrap_err();
        assert!(refused.contains("HandshakeFailure"), "{refused}");
        assert_eq!(comes(vec![kx_group::X25519MLKEM768], alpn).await, Ok(()), "the same client, hybrid");
    }
}
