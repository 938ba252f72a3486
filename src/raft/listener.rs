//! Accepts peers: TLS handshakes in tasks of their own, bounded in time and number, so that one
//! slow client never blocks the others. It tells when a connection of a known peer ends.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes under way at a time; further clients wait in the kernel's queue.
const HANDSHAKES: usize = 64;
/// Pause after a failed accept, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is known of the other end, for each call.
#[derive(Clone)]
pub struct PeerInfo {
    pub cert: Option<CertificateDer<'static>>,
    /// Set by the first call that proves who it is.
    pub member: Arc<OnceLock<u64>>,
}

/// An accepted connection.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    info: PeerInfo,
    ended: mpsc::UnboundedSender<u64>,
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

/// Accepts until the receiver of connections is dropped. `ended` hears of each peer's lost
/// connection; it holds at most one message per connection.
pub async fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    connections: mpsc::Sender<io::Result<Connection>>,
    ended: mpsc::UnboundedSender<u64>,
) {
    let acceptor = TlsAcceptor::from(config);
    let slots = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
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
        let (acceptor, connections, ended) = (acceptor.clone(), connections.clone(), ended.clone());
        tokio::spawn(async move {
            let stream = handshake(stream, &acceptor).await;
            drop(slot);
            match stream {
                Ok(stream) => {
                    let connection = Connection {
                        info: PeerInfo { cert: peer_cert(&stream), member: Arc::default() },
                        stream,
                        ended,
                    };
                    // The server is stopping when it is refused.
                    let _ = connections.send(Ok(connection)).await;
                }
                Err(error) => tracing::debug!(%error, "a peer's handshake failed"),
            }
        });
    }
}

async fn handshake(stream: TcpStream, acceptor: &TlsAcceptor) -> io::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    tokio::time::timeout(HANDSHAKE, acceptor.accept(stream))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn peer_cert(stream: &TlsStream<TcpStream>) -> Option<CertificateDer<'static>> {
    let certs = stream.get_ref().1.peer_certificates()?;
    certs.first().map(|cert| cert.clone().into_owned())
}
