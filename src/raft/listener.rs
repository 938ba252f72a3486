//! Accepts peers: TLS handshakes in tasks of their own, bounded in time and number, so that slow
//! clients never block the others; where there are too many of them the oldest is given up. It tells when a connection of a known peer ends.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use crate::pqc::Mode;
use crate::pqc::stream::Stream;
use crate::security::join::{Door, Life};
use crate::security::tls::{self, PeerTls, Role};

/// A handshake that takes longer is given up; a peer gives up its side no later.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// Handshakes under way at a time. One more ends the oldest, which had the most time: clients
/// that connect and say nothing keep nobody out.
const HANDSHAKES: usize = 64;
/// Pause after a failed accept, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A worker's connection ends after so long, or with its certificate: the next one is judged anew.
const LONGEST: Duration = Duration::from_secs(3600);

/// What is known of the other end, for each call.
#[derive(Clone)]
pub struct PeerInfo {
    pub cert: Option<CertificateDer<'static>>,
    /// Set by the first call that proves who it is.
    pub member: Arc<OnceLock<u64>>,
}

/// An accepted connection.
pub struct Connection {
    stream: Stream,
    info: PeerInfo,
    ended: mpsc::UnboundedSender<u64>,
    /// When it ends; a member's does not, as its end makes others ask for votes.
    until: Option<Pin<Box<Sleep>>>,
}

/// How long a connection with this certificate may last.
fn allowed(cert: Option<&CertificateDer<'_>>, cluster: &str) -> Option<Duration> {
    if cert.and_then(|cert| tls::holder(cert, cluster)).is_some_and(|(_, role)| role == Role::Server) {
        return None;
    }
    let end = cert.and_then(Life::of_cert).map_or(0, |life| life.end);
    Some(LONGEST.min(Duration::from_secs(end.saturating_sub(UnixTime::now().as_secs()))))
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(member) = self.info.member.get() {
            // Nobody listens any more when the member itself is stopping.
            let _ = self.ended.send(*member);
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;
    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.until.as_mut().is_some_and(|until| until.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Told the key-exchange group of each connection that was accepted.
pub type OnAccept = Arc<dyn Fn(&str) + Send + Sync>;

/// Given each connection that came to another door than the peers'.
/// None of ours ever sees it.
pub type Aside = Arc<dyn Fn(Door, Stream) + Send + Sync>;

/// Accepts until the receiver of connections is dropped. `ended` hears of each peer's lost
/// connection; it holds at most one message per connection.
pub async fn accept(
    listener: TcpListener,
    tls: PeerTls,
    connections: mpsc::Sender<io::Result<Connection>>,
    ended: mpsc::UnboundedSender<u64>,
    on_accept: OnAccept,
    aside: Aside,
) {
    let mut under_way: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = connections.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a peer");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        under_way.retain(|task| !task.is_finished());
        if under_way.len() >= HANDSHAKES
            && let Some(oldest) = under_way.pop_front()
        {
            oldest.abort();
        }
        let (tls, connections, ended) = (tls.clone(), connections.clone(), ended.clone());
        let (on_accept, aside) = (on_accept.clone(), aside.clone());
        let task = tokio::spawn(async move {
            match handshake(stream, &tls).await {
                Ok((door, stream)) => {
                    on_accept(stream.group());
                    if door != Door::Peer {
                        return aside(door, stream);
                    }
                    let cert = stream.cert().cloned();
                    let until = match tls.policy().mode {
                        // No certificate is judged there, so that none can be over.
                        Mode::Off => None,
                        Mode::Hybrid | Mode::Classical => allowed(cert.as_ref(), &tls.cluster),
                    };
                    let until = until.map(|time| Box::pin(tokio::time::sleep(time)));
                    let info = PeerInfo { cert, member: Arc::default() };
                    let connection = Connection { info, stream, ended, until };
                    // The server is stopping when it is refused.
                    let _ = connections.send(Ok(connection)).await;
                }
                Err(error) => tracing::debug!(%error, "a peer's handshake failed"),
            }
        });
        under_way.push_back(task.abort_handle());
    }
}

async fn handshake(stream: TcpStream, tls: &PeerTls) -> io::Result<(Door, Stream)> {
    let shaken = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await;
    shaken.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::join::{Applicant, Wish};
    use crate::security::tls::{Authority, Credentials};
    use tokio::io::AsyncReadExt;
    use tokio_rustls::TlsConnector;

    #[tokio::test]
    async fn a_workers_connection_ends_with_its_certificate() {
        let authority = Authority::create("blue").unwrap();
        let member = PeerTls::new(&authority.issue("blue", "n1").unwrap(), "blue", "n1").unwrap();
        let applicant = Applicant::generate().unwrap();
        let wish = Wish::read(&applicant.request().unwrap()).unwrap();
        let life = Duration::from_secs(3);
        let issuer = authority.issuer("blue").unwrap();
        let cert = issuer.certify(&wish, "blue", "w1", life, UnixTime::now().as_secs()).unwrap();
        let worker = Credentials { authority: authority.cert.clone(), cert, key: applicant.key() };
        let worker = PeerTls::new(&worker, "blue", "w1").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections_in, mut connections) = mpsc::channel(1);
        let (ended, _ended) = mpsc::unbounded_channel();
        let (told, aside): (OnAccept, Aside) = (Arc::new(|_| {}), Arc::new(|_, _| {}));
        let accepting = tokio::spawn(accept(listener, member.clone(), connections_in, ended, told, aside));
        let mut connect = async |by: &PeerTls| {
            let stream = TcpStream::connect(address).await.unwrap();
            let stream = TlsConnector::from(by.client()).connect(member.server_name("n1").unwrap(), stream).await;
            (stream.unwrap(), connections.recv().await.unwrap().unwrap())
        };
        let (_near, mut far) = connect(&worker).await;
        let read = tokio::time::timeout(life * 2, far.read_u8()).await.expect("it ended");
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let (_near, member) = connect(&member).await;
        assert!(member.until.is_none(), "a member's stays");
        accepting.abort();
    }

    #[tokio::test]
    async fn silent_clients_keep_nobody_out() {
        let credentials = Authority::create("blue").unwrap().issue("blue", "n1").unwrap();
        let tls = PeerTls::new(&credentials, "blue", "n1").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections_in, mut connections) = mpsc::channel(1);
        let (ended, _ended) = mpsc::unbounded_channel();
        let accepting =
            tokio::spawn(accept(listener, tls.clone(), connections_in, ended, Arc::new(|_| {}), Arc::new(|_, _| {})));
        let mut silent = Vec::new();
        for _ in 0..HANDSHAKES + 8 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let peer = async {
            let stream = TcpStream::connect(address).await.unwrap();
            let connector = TlsConnector::from(tls.client());
            let stream = connector.connect(tls.server_name("n1").unwrap(), stream).await.unwrap();
            (stream, connections.recv().await.unwrap().unwrap())
        };
        // Sooner than any of the silent ones is given up for its slowness.
        let served = tokio::time::timeout(HANDSHAKE / 2, peer).await;
        assert!(served.is_ok(), "the peer waits for those who say nothing");
        accepting.abort();
    }
}
