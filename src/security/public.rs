//! The public port's certificate and the TLS made of it: TLS 1.3, HTTP/2 and HTTP/1.1, and the key exchange
//! that callers of this process may have. It does not know the group's authority, or who calls.

use std::io;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::link;
use super::tls::{self, Error};
use crate::pqc::{Policy, Side};

/// What HTTP/2 is called in a handshake.
pub const H2: &[u8] = b"h2";

/// Ready for use. Clones share it, so that a certificate that is replaced counts for each connection that
/// is made afterwards.
#[derive(Clone)]
pub struct PublicTls {
    policy: Policy,
    config: Arc<ArcSwap<ServerConfig>>,
}

/// The chain and its key, as PEM.
pub(super) fn read(cert: &Path, key: &Path) -> Result<[String; 2], Error> {
    Ok([tls::read_file(cert)?, tls::read_file(key)?])
}

fn config([cert, key]: [&str; 2], policy: Policy) -> Result<Arc<ServerConfig>, Error> {
    let chain = tls::certificates(cert, "NF_PUBLIC_CERT")?;
    let bad = |e: rustls_pki_types::pem::Error| Error::Pem { what: "NF_PUBLIC_KEY", detail: e.to_string() };
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(bad)?;
    let mut config = ServerConfig::builder_with_provider(policy.provider(Side::World))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Whether the first certificate of the chain is valid at `now`: callers will ask the same.
pub(super) fn lasts(cert: &str, now: UnixTime) -> Result<(), Error> {
    let what = "NF_PUBLIC_CERT";
    let chain = tls::certificates(cert, what)?;
    let leaf = chain.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
    let Some((_, leaf)) = leaf else { return Err(Error::Pem { what, detail: "there is none".to_owned() }) };
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = leaf.validity();
    let detail = match (seconds < validity.not_before.timestamp(), seconds > validity.not_after.timestamp()) {
        (true, _) => format!("it is not valid before {}", validity.not_before),
        (_, true) => format!("it ended on {}; put a new one in its place", validity.not_after),
        _ => return Ok(()),
    };
    Err(Error::Pem { what, detail })
}

impl PublicTls {
    /// Also one that has ended: a member that starts says so by an alarm and serves its group.
    ///
    /// # Errors
    /// What of the two files cannot be used.
    pub fn open(cert: &Path, key: &Path, policy: Policy) -> Result<Self, Error> {
        let [cert, key] = read(cert, key)?;
        Ok(Self { policy, config: Arc::new(ArcSwap::new(config([&cert, &key], policy)?)) })
    }

    /// Takes another certificate for every connection from now on.
    ///
    /// # Errors
    /// What of it cannot be used: then the old one stays.
    pub(super) fn replace(&self, pem: [&str; 2], now: UnixTime) -> Result<(), Error> {
        let made = config(pem, self.policy)?;
        lasts(pem[0], now)?;
        self.config.store(made);
        Ok(())
    }

    /// Shakes hands with a caller. The caller of this bounds the time.
    ///
    /// # Errors
    /// As the network has it; [`crate::pqc::Mismatch`] below it when there is no key exchange in common.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        link::take(self.policy, Side::World, stream, |_| self.config.load_full()).await
    }
}
