//! One connection: look the name up once, judge each address, connect to a judged one,
//! shake hands. Bounded in time. It does not know HTTP.

use super::address::{LOOPBACK, unwrapped};
use super::{Allow, Fault, Group, Options, tls};
use crate::pqc::stream::{Inner, Stream};
use crate::pqc::{Kind, Links, Mismatch, Policy, Row, Side, Way};
use futures::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Looking up, connecting and shaking hands may take so long each.
const STEP: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const TRIES: usize = 4;

/// Looks a name up.
pub type Resolve = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// As the system does.
pub fn system() -> Resolve {
    Arc::new(|host| {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.map(|found| found.ip()).collect()) })
    })
}

struct Rules {
    allow: Option<Allow>,
    plain: bool,
    kind: Kind,
    policy: Policy,
    tls: TlsConnector,
    resolve: Resolve,
}

/// Makes connections as the rules say.
#[derive(Clone)]
pub struct Connector {
    rules: Arc<Rules>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    pub fn new(options: &Options, resolve: Resolve) -> Result<Self, String> {
        let tls = TlsConnector::from(tls::client(options)?);
        let Options { kind, policy, plain, .. } = *options;
        let rules = Rules { allow: options.allow.clone(), plain, kind, policy, tls, resolve };
        Ok(Self { rules: Arc::new(rules) })
    }
}

impl Rules {
    async fn connect(&self, uri: &Uri) -> Result<Stream, Fault> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let away = |text: String| Fault::Unreachable { host: host.clone(), text };
        let secure = uri.scheme_str() != Some("http");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let addresses = self.addresses(&host).await?;
        // A wrapped address of this machine leaves it: only what is loopback as it stands stays here.
        let here = |address: &IpAddr| address.to_canonical().is_loopback();
        if !secure && !self.plain && !addresses.iter().all(here) {
            return Err(Fault::Plain { host });
        }
        let mut last = away("has no address".into());
        for address in addresses.into_iter().take(TRIES) {
            let connecting = TcpStream::connect(SocketAddr::new(address, port));
            match tokio::time::timeout(STEP, connecting).await {
                Ok(Ok(stream)) if secure => return self.shake(&host, stream).await,
                Ok(Ok(stream)) => return Ok(self.made(&host, Inner::Plain(stream))),
                Ok(Err(e)) => last = away(format!("port {port}: {e}")),
                Err(_) => last = away(format!("port {port}: no connection within {STEP:?}")),
            }
        }
        Err(last)
    }

    /// The addresses of a host, each of which may be called.
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, Fault> {
        let away = |text: String| Fault::Unreachable { host: host.to_owned(), text };
        let found = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => {
                let found = tokio::time::timeout(STEP, (self.resolve)(host.to_owned())).await;
                found.map_err(|_| away("its name is not answered for".into()))?.map_err(|e| away(e.to_string()))?
            }
        };
        let Some(allow) = &self.allow else { return Ok(found) };
        for address in &found {
            // One bad address among good ones is how a name is turned against its user: all are refused.
            if let Err(kind) = allow.judge(host, *address) {
                let meant = unwrapped(*address);
                let kind = if meant.is_loopback() { LOOPBACK } else { kind };
                return Err(Fault::Forbidden { host: host.to_owned(), address: meant, kind });
            }
        }
        Ok(found)
    }

    async fn shake(&self, host: &str, stream: TcpStream) -> Result<Stream, Fault> {
        let away = |text: String| Fault::Unreachable { host: host.to_owned(), text };
        let name = ServerName::try_from(host.to_owned()).map_err(|e| away(e.to_string()))?;
        let shaken = tokio::time::timeout(STEP, self.tls.connect(name, stream)).await;
        let stream = shaken.map_err(|_| away(format!("no TLS within {STEP:?}")))?;
        let stream = stream.map_err(|error| {
            let error = self.policy.judge(Side::World, None, error);
            if let Some(mismatch) = Mismatch::of(&error) {
                Links::outside().refused(self.kind, Way::Out, host, &mismatch.to_string());
            }
            away(format!("TLS: {error}"))
        })?;
        Ok(self.made(host, Inner::Secure(Box::new(stream.into()))))
    }

    fn made(&self, host: &str, inner: Inner) -> Stream {
        let row = Row { kind: self.kind, way: Way::Out, with: host.to_owned(), group: inner.group() };
        Stream::new(inner, None, Links::outside().opened(row))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = Fault;
    type Future = BoxFuture<'static, Result<Self::Response, Fault>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let rules = self.rules.clone();
        Box::pin(async move { rules.connect(&uri).await.map(TokioIo::new) })
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().extra(Group(self.group().to_owned()))
    }
}
