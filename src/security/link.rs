//! The two ends of a connection inside the group, in each `PQC_MODE`: members and workers connect and are
//! accepted here and nowhere else, so that both ends know the key exchange, and why there is none. In mode
//! off both say who they are and prove nothing. It does not know who listens, or what is said.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::{Acceptor, ClientHello};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use super::join::Door;
use super::tls::{self, PeerTls};
use crate::pqc::stream::{Inner, Stream};
use crate::pqc::{Kind, Mismatch, Mode, Policy, Row, Side, Way};

/// With what both ends of a plain link begin, before the length of their certificate and the certificate.
const PLAIN: &[u8; 11] = b"nf-plain/1\n";
/// The first byte of what a TLS server refuses by.
const ALERT: u8 = 0x15;
/// The longest certificate that is read from a plain link.
const MAX_CERT: u16 = 16 << 10;
/// For who speaks TLS to a plain link to read that it is one.
const LINGER: Duration = Duration::from_millis(500);

/// Shakes hands as a client, and says it when the ends' modes do not fit.
///
/// # Errors
/// [`Mismatch`] below it then; else as the handshake has it.
pub async fn shake(
    policy: Policy,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    stream: TcpStream,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let shaken = TlsConnector::from(config).connect(name, stream).await;
    shaken.map_err(|error| policy.judge(Side::Group, None, error))
}

/// Shakes hands as a server, and says it when the ends' modes do not fit.
///
/// # Errors
/// As [`shake`].
pub async fn take(
    policy: Policy,
    side: Side,
    stream: TcpStream,
    choose: impl FnOnce(&ClientHello<'_>) -> Arc<ServerConfig>,
) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await;
    let start = start.map_err(|error| policy.judge(side, None, error))?;
    let hello = start.client_hello();
    let (config, offered) = (choose(&hello), hello.named_groups().map(<[_]>::to_vec));
    start.into_stream(config).await.map_err(|error| policy.judge(side, offered.as_deref(), error))
}

impl PeerTls {
    /// Connects to a member at `host:port`. The caller bounds the time.
    ///
    /// # Errors
    /// As the network has it; [`Mismatch`] below it when the two ends' modes do not fit.
    pub async fn connect(&self, addr: &str, member: &str) -> io::Result<Stream> {
        let name = self.server_name(member).map_err(io::Error::other)?;
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let made = match self.policy().mode {
            Mode::Off => {
                stays(stream.peer_addr()?)?;
                self.tell(stream, member).await
            }
            Mode::Hybrid | Mode::Classical => {
                let shaken = shake(self.policy(), self.client(), name, stream).await;
                shaken.map(|stream| {
                    let cert = shown(stream.get_ref().1.peer_certificates());
                    (Inner::Secure(Box::new(stream.into())), cert)
                })
            }
        };
        let (inner, cert) = made.inspect_err(|error| self.refused(Way::Out, &format!("{member} at {addr}"), error))?;
        Ok(self.made(Way::Out, inner, cert, member.to_owned()))
    }

    /// Takes a connection, and says to which door it came. The caller bounds the time.
    ///
    /// # Errors
    /// As [`PeerTls::connect`].
    pub async fn accept(&self, stream: TcpStream) -> io::Result<(Door, Stream)> {
        stream.set_nodelay(true)?;
        let from = stream.peer_addr().map_or_else(|_| String::new(), |from| from.ip().to_string());
        let made = match self.policy().mode {
            Mode::Off => {
                stays(stream.peer_addr()?)?;
                self.hear(stream).await.map(|(inner, cert)| (Door::Peer, inner, cert))
            }
            Mode::Hybrid | Mode::Classical => self.greeted(stream).await,
        };
        let (door, inner, cert) = made.inspect_err(|error| self.refused(Way::In, &from, error))?;
        let name = cert.as_ref().and_then(|cert| tls::holder(cert, &self.cluster)).map(|(name, _)| name);
        Ok((door, self.made(Way::In, inner, cert, name.unwrap_or_default())))
    }

    fn made(&self, way: Way, inner: Inner, cert: Option<CertificateDer<'static>>, with: String) -> Stream {
        let row = Row { kind: Kind::Peer, way, with, group: inner.group() };
        Stream::new(inner, cert, self.links().opened(row))
    }

    fn refused(&self, way: Way, with: &str, error: &io::Error) {
        if let Some(mismatch) = Mismatch::of(error) {
            self.links().refused(Kind::Peer, way, with, &mismatch.to_string());
        }
    }

    async fn greeted(&self, stream: TcpStream) -> io::Result<(Door, Inner, Option<CertificateDer<'static>>)> {
        let mut door = Door::Peer;
        // Asked for each connection: keys are replaced while this runs.
        let choose = |hello: &ClientHello<'_>| {
            let (at, config) = self.greet(hello);
            door = at;
            config
        };
        let stream = take(self.policy(), Side::Group, stream, choose).await?;
        let cert = shown(stream.get_ref().1.peer_certificates());
        Ok((door, Inner::Secure(Box::new(stream.into())), cert))
    }

    /// Begins a plain link: says who this is, and hears who the other end says it is.
    async fn tell(&self, mut stream: TcpStream, member: &str) -> io::Result<(Inner, Option<CertificateDer<'static>>)> {
        self.say(&mut stream).await?;
        let cert = heard(&mut stream).await?.map_err(|first| match first {
            ALERT => self.policy().mismatch(Side::Group, "the other end speaks TLS"),
            _ => self.policy().mismatch(Side::Group, "the other end is no plain link of ours"),
        })?;
        let dns = tls::dns_name(&self.cluster, member).map_err(io::Error::other)?;
        match tls::certifies(&cert, &dns) {
            true => Ok((Inner::Plain(stream), Some(cert))),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, format!("the other end is not {dns}"))),
        }
    }

    async fn hear(&self, mut stream: TcpStream) -> io::Result<(Inner, Option<CertificateDer<'static>>)> {
        match heard(&mut stream).await? {
            Ok(cert) => {
                self.say(&mut stream).await?;
                Ok((Inner::Plain(stream), Some(cert)))
            }
            Err(_) => {
                stream.write_all(PLAIN).await?;
                stream.shutdown().await?;
                // What is left unread would take our word away with it.
                let (mut rest, mut away) = ((&mut stream).take(MAX_CERT.into()), tokio::io::sink());
                let _ = tokio::time::timeout(LINGER, tokio::io::copy(&mut rest, &mut away)).await;
                Err(self.policy().mismatch(Side::Group, "the other end speaks TLS, or is none of ours"))
            }
        }
    }

    async fn say(&self, stream: &mut TcpStream) -> io::Result<()> {
        let cert = self.cert();
        let length = u16::try_from(cert.len()).ok().filter(|length| *length <= MAX_CERT);
        let length = length.ok_or_else(|| io::Error::other("the certificate is too long for a plain link"))?;
        stream.write_all(&[&PLAIN[..], &length.to_be_bytes(), &cert].concat()).await
    }
}

/// Plain text never leaves the machine.
fn stays(to: SocketAddr) -> io::Result<()> {
    match to.ip().to_canonical().is_loopback() {
        true => Ok(()),
        false => {
            let text = "PQC_MODE=off is for members and workers of one machine alone";
            Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
        }
    }
}

/// The other end's certificate, or the first byte of something else.
async fn heard(stream: &mut TcpStream) -> io::Result<Result<CertificateDer<'static>, u8>> {
    let mut begun = [0; PLAIN.len()];
    // An alert is shorter: what begins otherwise is not waited for.
    stream.read_exact(&mut begun[..1]).await?;
    if begun[0] != PLAIN[0] {
        return Ok(Err(begun[0]));
    }
    stream.read_exact(&mut begun[1..]).await?;
    if begun != *PLAIN {
        return Ok(Err(begun[0]));
    }
    let length = stream.read_u16().await?;
    if length > MAX_CERT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a certificate that is too long"));
    }
    let mut cert = vec![0; length.into()];
    stream.read_exact(&mut cert).await?;
    Ok(Ok(CertificateDer::from(cert)))
}

fn shown(certs: Option<&[CertificateDer<'_>]>) -> Option<CertificateDer<'static>> {
    certs?.first().map(|cert| cert.clone().into_owned())
}

#[cfg(test)]
mod tests;
