//! A connection of this process to somebody, plain or in TLS, that knows its key exchange and is
//! entered among the open ones for as long as it lives. It does not know who connects, or why.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::Open;

/// See the module.
pub struct Stream {
    inner: Inner,
    /// What the other end showed; on a plain link it proves nothing.
    cert: Option<CertificateDer<'static>>,
    open: Open,
}

/// What it is made of.
pub enum Inner {
    Secure(Box<TlsStream<TcpStream>>),
    Plain(TcpStream),
}

impl Inner {
    /// The key exchange, as in "X25519MLKEM768".
    pub fn group(&self) -> String {
        match self {
            Inner::Secure(stream) => super::group(stream.get_ref().1),
            Inner::Plain(_) => super::NONE.to_owned(),
        }
    }
}

impl Stream {
    pub fn new(inner: Inner, cert: Option<CertificateDer<'static>>, open: Open) -> Self {
        Self { inner, cert, open }
    }

    /// The key exchange, as in "X25519MLKEM768".
    pub fn group(&self) -> &str {
        self.open.group()
    }

    pub fn cert(&self) -> Option<&CertificateDer<'static>> {
        self.cert.as_ref()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Secure(stream) => Pin::new(stream).poll_read(cx, to),
            Inner::Plain(stream) => Pin::new(stream).poll_read(cx, to),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Inner::Secure(stream) => Pin::new(stream).poll_write(cx, from),
            Inner::Plain(stream) => Pin::new(stream).poll_write(cx, from),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Inner::Secure(stream) => Pin::new(stream).poll_write_vectored(cx, from),
            Inner::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, from),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.inner {
            Inner::Secure(stream) => stream.is_write_vectored(),
            Inner::Plain(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Secure(stream) => Pin::new(stream).poll_flush(cx),
            Inner::Plain(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
            Inner::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
