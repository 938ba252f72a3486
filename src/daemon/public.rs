//! The public port's connections: how many there may be, and how long one may take to
//! say what it wants. Whoever connects and says nothing, or says it byte by byte, is
//! let go before it keeps others out; so is who asks for more than it reads. It does not
//! know what is asked.

use crate::api::places::{Caller, Places};
use crate::pqc::{self, Kind, Links, Mismatch, Open, Row, Way};
use crate::security::public::{H2, PublicTls};
use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use nix::sys::resource::{Resource, getrlimit};
use socket2::SockRef;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Sleep;
use tower::util::MapRequest;

/// Connections at a time, where the process may have that many files open.
const MAX_CONNECTIONS: usize = 16_384;
/// How long a connection may take to say things.
#[derive(Clone, Copy)]
struct Patience {
    /// For a new one to say which protocol it speaks.
    greeting: Duration,
    /// For the head of a call, and between two calls.
    head: Duration,
    /// For taking what was sent to it: the kernel ends it when nothing was taken for so long, which also is how one is
    /// found whose machine is gone.
    unread: Duration,
}

/// Clients keep an idle connection for 90 s as a rule: it is theirs to close it.
const PATIENCE: Patience =
    Patience { greeting: Duration::from_secs(10), head: Duration::from_secs(100), unread: Duration::from_secs(60) };
/// Silence after which an HTTP/2 connection is probed, and how long the answer may take.
const PROBE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// What one connection may ask for.
#[derive(Clone, Copy)]
struct Bounds {
    /// Calls at a time of HTTP/2.
    streams: u32,
    /// Calls that a client takes back before they are begun, and calls that it makes us take back: past these
    /// its connection ends (rapid reset, CVE-2023-44487, and MadeYouReset, CVE-2025-8671).
    resets: (usize, usize),
    /// Bytes of the head of a call; of HTTP/2 also how long its pieces may go on.
    head: u32,
}

const BOUNDS: Bounds = Bounds { streams: 128, resets: (20, 128), head: 16 << 10 };
/// One address has at most this part of all connections.
const SHARE: usize = 2;
/// Pause after a failed accept, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What an HTTP/2 connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Half of the files that the process may open: the disk and the group need the others.
fn most_connections() -> usize {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(files / 2).unwrap_or(MAX_CONNECTIONS).clamp(64, MAX_CONNECTIONS)
}

/// Told the key exchange of each connection.
type Told = Arc<dyn Fn(&str) + Send + Sync>;

/// What a public port is made of, beside who answers.
#[derive(Clone)]
pub struct Port {
    patience: Patience,
    bounds: Bounds,
    /// None: plain text, on this machine alone.
    tls: Option<PublicTls>,
    links: Links,
    told: Told,
}

impl Port {
    /// Enters its connections into `links`.
    pub fn new(tls: Option<PublicTls>, links: Links, told: Told) -> Self {
        Self { patience: PATIENCE, bounds: BOUNDS, tls, links, told }
    }

    fn opened(&self, group: String) -> Open {
        (self.told)(&group);
        self.links.opened(Row { kind: Kind::Public, way: Way::In, with: String::new(), group })
    }

    fn builder(&self) -> Builder<TokioExecutor> {
        let mut builder = Builder::new(TokioExecutor::new());
        let Self { patience, bounds, .. } = self;
        builder.http1().timer(TokioTimer::new()).header_read_timeout(patience.head).max_buf_size(bounds.head as usize);
        builder.http2().timer(TokioTimer::new()).keep_alive_interval(PROBE.0).keep_alive_timeout(PROBE.1);
        builder.http2().max_concurrent_streams(bounds.streams).max_header_list_size(bounds.head);
        let (pending, local) = bounds.resets;
        builder.http2().max_pending_accept_reset_streams(pending).max_local_error_reset_streams(local);
        builder
    }
}

/// Serves until `end` is true; returns when every call under way is answered.
pub async fn serve(port: Port, listener: TcpListener, router: Router, end: watch::Receiver<bool>) {
    let places = Places::new(most_connections(), SHARE);
    let mut stop = end.clone();
    loop {
        let accepted = tokio::select! {
            // An error says that whoever could ask for the end is gone.
            _ = stop.wait_for(|end| *end) => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok((stream, from)) => (stream, from.ip()),
            Err(error) => {
                tracing::warn!(%error, "accepting on the public port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // One too many is told at once, by its end, and asks another member.
        let Some(place) = places.take(from) else {
            tracing::debug!(%from, "a connection too many");
            continue;
        };
        let (port, router, end) = (port.clone(), router.clone(), end.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(&port, stream, Asked { router, from }, end).await {
                tracing::trace!(error, "a public connection");
            }
            drop(place);
        });
    }
    places.empty().await;
}

/// Who answers, and whom.
struct Asked {
    router: Router,
    from: IpAddr,
}

async fn connection(
    port: &Port,
    stream: TcpStream,
    asked: Asked,
    mut end: watch::Receiver<bool>,
) -> Result<(), String> {
    // Small answers must not wait for the acknowledgement of the one before (Nagle).
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    SockRef::from(&stream).set_tcp_user_timeout(Some(port.patience.unread)).map_err(|e| e.to_string())?;
    let patience = port.patience.greeting;
    let Some(tls) = &port.tls else {
        tokio::select! {
            greeted = tokio::time::timeout(patience, greeting(&stream)) => {
                greeted.map_err(|_| "it said nothing")?.map_err(|e| e.to_string())?;
            }
            _ = end.wait_for(|end| *end) => return Ok(()),
        }
        let _open = port.opened(pqc::NONE.to_owned());
        return answer(port.builder(), stream, asked, end).await;
    };
    let stream = tokio::select! {
        shaken = tokio::time::timeout(patience, tls.accept(stream)) => shaken.map_err(|_| "no handshake in time")?,
        _ = end.wait_for(|end| *end) => return Ok(()),
    };
    let stream = stream.map_err(|error| {
        if let Some(mismatch) = Mismatch::of(&error) {
            port.links.refused(Kind::Public, Way::In, &asked.from.to_string(), &mismatch.to_string());
        }
        error.to_string()
    })?;
    let _open = port.opened(pqc::group(stream.get_ref().1));
    // The handshake said which one; who then says nothing is not waited for.
    match stream.get_ref().1.alpn_protocol() == Some(H2) {
        true => answer(port.builder().http2_only(), Prompt::new(stream, PREFACE.len(), patience), asked, end).await,
        false => answer(port.builder().http1_only(), Prompt::new(stream, 1, patience), asked, end).await,
    }
}

async fn answer(
    builder: Builder<TokioExecutor>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    Asked { router, from }: Asked,
    mut end: watch::Receiver<bool>,
) -> Result<(), String> {
    // For those who give each address its share.
    let told = MapRequest::new(router, move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Caller(from));
        request
    });
    let service = TowerToHyperService::new(told);
    let mut serving = std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    tokio::select! {
        served = serving.as_mut() => return served.map_err(|e| e.to_string()),
        _ = end.wait_for(|end| *end) => {}
    }
    serving.as_mut().graceful_shutdown();
    serving.await.map_err(|e| e.to_string())
}

/// Waits until the client has said enough to tell HTTP/1 from HTTP/2; what comes after is timed by HTTP itself.
async fn greeting(stream: &TcpStream) -> io::Result<()> {
    const LOOK: Duration = Duration::from_millis(10);
    let mut said = [0; PREFACE.len()];
    loop {
        let n = stream.peek(&mut said).await?;
        if n == 0 || n == said.len() || said[..n] != PREFACE[..n] {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A stream whose first bytes come in time: as many as HTTP/2 begins with, or any of HTTP/1, which has times of its own.
struct Prompt<S> {
    stream: S,
    missing: usize,
    late: Pin<Box<Sleep>>,
}

impl<S> Prompt<S> {
    fn new(stream: S, missing: usize, patience: Duration) -> Self {
        Self { stream, missing, late: Box::pin(tokio::time::sleep(patience)) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prompt<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = to.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, to);
        this.missing = this.missing.saturating_sub(to.filled().len() - before);
        match read.is_pending() && this.missing > 0 && this.late.as_mut().poll(cx).is_ready() {
            true => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            false => read,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prompt<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, from)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pqc::{Policy, Side};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    pub fn plain() -> Port {
        Port::new(None, Links::default(), Arc::new(|_| {}))
    }

    #[tokio::test]
    async fn who_says_nothing_is_let_go() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", axum::routing::get(|| async { "here" }));
        let (end, ended) = watch::channel(false);
        let patience = Patience { greeting: Duration::from_millis(200), head: Duration::from_millis(200), ..PATIENCE };
        let port = Port { patience, ..plain() };
        let served = tokio::spawn(serve(port, listener, router, ended));
        for beginning in ["", "P", "GET / HTT"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(beginning.as_bytes()).await.unwrap();
            let mut rest = Vec::new();
            let told = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut rest)).await;
            assert!(told.is_ok(), "{beginning:?} is waited for");
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("here"), "{answer}");
        end.send_replace(true);
        served.await.unwrap();
    }

    #[tokio::test]
    async fn who_asks_for_much_and_takes_nothing_is_let_go() {
        let (told, gone) = tokio::sync::oneshot::channel::<()>();
        let told = Arc::new(std::sync::Mutex::new(Some(told)));
        let endless = move || async move {
            // Goes with the answer, which goes with its connection.
            let held = told.lock().unwrap().take();
            let pieces = futures::stream::repeat_with(move || {
                let _ = &held;
                Ok::<_, io::Error>(bytes::Bytes::from_static(&[0; 64 << 10]))
            });
            axum::body::Body::from_stream(pieces)
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = watch::channel(false);
        let port = Port { patience: Patience { unread: Duration::from_millis(500), ..PATIENCE }, ..plain() };
        let router = Router::new().route("/", axum::routing::get(endless));
        let served = tokio::spawn(serve(port, listener, router, ended));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let gone = tokio::time::timeout(Duration::from_secs(30), gone).await;
        assert!(gone.is_ok(), "it takes nothing and is waited for");
        end.send_replace(true);
        served.await.unwrap();
        drop(stream);
    }

    #[tokio::test]
    async fn each_call_says_from_which_address_it_came() {
        async fn from(request: Request<axum::body::Body>) -> String {
            request.extensions().get::<Caller>().map_or("nowhere".into(), |caller| caller.0.to_string())
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = watch::channel(false);
        let served = tokio::spawn(serve(plain(), listener, Router::new().fallback(from), ended));
        for own in ["127.0.0.1", "127.0.0.2"] {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(format!("{own}:0").parse().unwrap()).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.ends_with(own), "{answer}");
        }
        end.send_replace(true);
        served.await.unwrap();
    }

    /// TLS with a certificate of its own, and a client that knows it.
    fn secure() -> (PublicTls, rustls::ClientConfig) {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let tls = PublicTls::open(&cert, &key, Policy::default()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(Policy::default().provider(Side::World))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (tls, client)
    }

    #[tokio::test]
    async fn who_says_nothing_behind_or_before_a_handshake_is_let_go() {
        let (tls, client) = secure();
        let patience = Patience { greeting: Duration::from_millis(300), head: Duration::from_millis(300), ..PATIENCE };
        let links = Links::default();
        let port = Port { patience, ..Port::new(Some(tls), links.clone(), Arc::new(|_| {})) };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = watch::channel(false);
        let router = Router::new().route("/", axum::routing::get(|| async { "here" }));
        let served = tokio::spawn(serve(port, listener, router, ended));
        let limit = Duration::from_secs(30);
        let mut rest = Vec::new();
        let mut silent = TcpStream::connect(address).await.unwrap();
        let told = tokio::time::timeout(limit, silent.read_to_end(&mut rest)).await;
        assert!(told.is_ok(), "no handshake is waited for");
        for protocol in ["h2", "http/1.1"] {
            let mut config = client.clone();
            config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
            let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
            let connect = async || connector.connect(name.clone(), TcpStream::connect(address).await.unwrap()).await;
            let mut silent = connect().await.unwrap();
            let group = |(row, _): &(Row, u64)| row.kind == Kind::Public && row.group == "X25519MLKEM768";
            let entered = async {
                while !links.open().iter().any(group) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            assert!(tokio::time::timeout(limit, entered).await.is_ok(), "{:?}", links.open());
            let told = tokio::time::timeout(limit, silent.read_to_end(&mut rest)).await;
            assert!(told.is_ok(), "{protocol}: it is waited for");
        }
        end.send_replace(true);
        served.await.unwrap();
        assert!(links.open().is_empty());
    }
}
