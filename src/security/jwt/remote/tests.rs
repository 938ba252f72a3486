//! Keys from an issuer over TLS: what it may say, and what happens while it says nothing.

use super::super::{Grant, Mint, Role};
use super::*;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// An issuer that answers each question with these bytes; with none it hangs up.
struct Issuer {
    url: String,
    ca: String,
    asked: Arc<AtomicUsize>,
    answer: Arc<Mutex<Vec<u8>>>,
}

impl Issuer {
    async fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (ca, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let cert = CertificateDer::from_pem_slice(ca.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Policy::default().provider(Side::World))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/keys?of=nf", listener.local_addr().unwrap().port());
        let (asked, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (count, says) = (asked.clone(), answer.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut question = vec![0; 4096];
                let n = stream.read(&mut question).await.unwrap_or(0);
                assert!(question[..n].starts_with(b"GET /keys?of=nf HTTP/1.0\r\nHost: localhost:"));
                count.fetch_add(1, Ordering::SeqCst);
                let answer = says.lock().unwrap().clone();
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { url, ca, asked, answer }
    }

    fn says(&self, mint: &Mint) {
        let body = mint.jwks().to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        *self.answer.lock().unwrap() = [head.into_bytes(), body.into_bytes()].concat();
    }

    fn is_away(&self) {
        self.answer.lock().unwrap().clear();
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

const NOW: u64 = 1_795_435_200;

fn token(mint: &Mint) -> String {
    let (subject, tenant, id) = ("ada".to_owned(), "t1".to_owned(), "1".to_owned());
    mint.token(&Grant { subject, tenant, roles: vec![Role::Viewer], id, lifetime_s: 600 }, NOW).unwrap()
}

/// What is wrong, as it was told last.
type Told = Arc<Mutex<Option<String>>>;

fn follow(issuer: &Issuer, ca: &str, times: Times) -> (Arc<Verifier>, Told) {
    let remote = Remote::new(&issuer.url, Some(ca), true, times, Policy::default()).unwrap();
    let (verifier, told) = (Arc::new(Verifier::new(Keys::none(), None)), Told::default());
    let tells = told.clone();
    let tell = move |wrong: Option<&str>| *tells.lock().unwrap() = wrong.map(str::to_owned);
    tokio::spawn(remote.run(verifier.clone(), tell));
    (verifier, told)
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn times(fresh: u64, pause: u64, stale: u64) -> Times {
    let ms = Duration::from_millis;
    Times { answer: Duration::from_secs(10), fresh: ms(fresh), pause: ms(pause), stale: ms(stale) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_key_is_asked_for_once_and_not_for_each_token() {
    let (old, new, issuer) = (Mint::generate("i").unwrap(), Mint::generate("i").unwrap(), Issuer::start().await);
    issuer.says(&old);
    let (hour, pause) = (3_600_000, 300);
    let began = Instant::now();
    let (verifier, told) = follow(&issuer, &issuer.ca, times(hour, pause, hour));
    let (of_old, of_new) = (token(&old), token(&new));
    eventually("the keys are there", || verifier.verify(&of_old, NOW).is_ok()).await;
    let missed = || verifier.verify(&of_new, NOW).is_err() && issuer.asked() >= 3;
    eventually("it was asked again, and once more", missed).await;
    assert!(began.elapsed() >= Duration::from_millis(2 * pause), "who guesses keys cannot make us ask faster");
    issuer.says(&new);
    eventually("the new keys are there", || verifier.verify(&of_new, NOW).is_ok()).await;
    assert!(verifier.verify(&of_old, NOW).is_err(), "what the issuer takes back counts no more");
    assert_eq!(*told.lock().unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_outlive_their_issuer_for_a_while_and_no_longer() {
    let (mint, issuer) = (Mint::generate("i").unwrap(), Issuer::start().await);
    issuer.says(&mint);
    let (verifier, told) = follow(&issuer, &issuer.ca, times(20, 20, 1_500));
    let of_mint = token(&mint);
    eventually("the keys are there", || verifier.verify(&of_mint, NOW).is_ok()).await;
    issuer.is_away();
    let before = issuer.asked();
    eventually("it is said that the issuer is away", || told.lock().unwrap().is_some()).await;
    assert!(verifier.verify(&of_mint, NOW).is_ok(), "old keys count meanwhile");
    assert!(issuer.asked() >= before);
    eventually("keys too old count no more", || verifier.verify(&of_mint, NOW).is_err()).await;
    issuer.says(&mint);
    eventually("it is back", || verifier.verify(&of_mint, NOW).is_ok()).await;
    eventually("and all is well", || told.lock().unwrap().is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_pinned_authority_counts_and_nonsense_does_not() {
    let (mint, issuer, other) = (Mint::generate("i").unwrap(), Issuer::start().await, Issuer::start().await);
    issuer.says(&mint);
    let (verifier, told) = follow(&issuer, &other.ca, times(20, 20, 60_000));
    eventually("it is said", || told.lock().unwrap().is_some()).await;
    assert!(verifier.verify(&token(&mint), NOW).is_err());
    assert_eq!(issuer.asked(), 0, "nothing was asked of a stranger");

    let (verifier, told) = follow(&issuer, &issuer.ca, times(20, 20, 60_000));
    eventually("the keys are there", || verifier.verify(&token(&mint), NOW).is_ok()).await;
    for bad in ["HTTP/1.1 302 Found\r\nlocation: https://evil\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n{}", "nonsense"] {
        eventually("all is well", || told.lock().unwrap().is_none()).await;
        *issuer.answer.lock().unwrap() = bad.into();
        eventually("it is said", || told.lock().unwrap().is_some()).await;
        assert!(verifier.verify(&token(&mint), NOW).is_ok(), "the old keys stay: {bad}");
        issuer.says(&mint);
    }
}

#[test]
fn where_keys_may_come_from() {
    let of = |url: &str, ca: Option<&str>, production: bool| {
        Remote::new(url, ca, production, Times::default(), Policy::default()).err().map(|refusal| refusal.detail)
    };
    let says = |url: &str, production: bool, word: &str| {
        let said = of(url, None, production).unwrap_or_default();
        assert!(said.contains(word), "{url}: {said}");
    };
    says("http://127.0.0.1/keys", true, "is http");
    says("http://issuer.example/keys", false, "not on this machine");
    assert_eq!(of("http://127.0.0.1:8/keys", None, false), None);
    says("https://issuer.example/keys", true, "NF_JWKS_CA");
    says("ftp://issuer.example/keys", false, "is ftp");
    says("https://", false, "no URL");
    let ca = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.pem();
    assert_eq!(of("https://issuer.example/keys", Some(&ca), true), None);
    assert!(of("https://u:p@issuer.example/keys", Some(&ca), true).is_some());
    assert!(of("https://issuer.example/keys", Some("nonsense"), true).is_some());
}

#[test]
fn an_answer_is_read_whole_or_not_at_all() {
    let read = |text: &str| body(text.as_bytes()).ok();
    assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), Some(b"{}".to_vec()));
    assert_eq!(read("HTTP/1.0 200\r\na: b\r\n\r\n{}"), Some(b"{}".to_vec()));
    let long = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(MAX_JWKS + 1));
    let head = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "x".repeat(MAX_HEAD));
    for bad in [
        "",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 404 Not Found\r\n\r\n{}",
        "HTTP/2 200\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n{}",
        long.as_str(),
        head.as_str(),
    ] {
        assert_eq!(read(bad), None, "{bad:.60}");
    }
}
