//! Connections to servers that settings name: the model store, Vault. A name is resolved
//! once, its addresses are judged, and one of the judged ones is connected to, so that a
//! name which changes its mind reaches nothing else. Redirects are not followed. Each
//! answer says which key exchange its connection has. It does not know what is asked.

mod address;
mod connect;
mod tls;

#[cfg(test)]
mod tests;

pub use address::Allow;
pub use connect::Resolve;

use crate::pqc::{Kind, Policy};
use connect::Connector;
use http::header::{LOCATION, RANGE};
use http::{Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use std::error::Error;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How long a connection that nobody uses is kept.
const IDLE: Duration = Duration::from_secs(30);

/// How servers may be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Which addresses that are not public may be called. None: any address, for a server that the operator
    /// alone names and nobody can move.
    pub allow: Option<Allow>,
    /// What the connections are for, as lists of them say.
    pub kind: Kind,
    /// Which key exchange they have.
    pub policy: Policy,
    /// Plain http elsewhere than on this machine, as `PQC_MODE=off` says.
    pub plain: bool,
    /// Authorities (PEM) that vouch for servers; None: the system's.
    pub authorities: Option<PathBuf>,
}

/// The key exchange of the connection that an answer came by: "X25519MLKEM768", or "none" for plain http.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group(pub String);

/// Why a server was not reached, or not listened to.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("{host} is at {address}, which is {kind}: nothing is asked there unless it is listed")]
    Forbidden { host: String, address: IpAddr, kind: &'static str },
    #[error("{host}: plain http is for this machine alone; use https")]
    Plain { host: String },
    #[error("the server sends us on to {to}, and redirects are not followed")]
    Redirect { to: String },
    #[error("the server does not give parts of a file")]
    NoRange,
    #[error("{host}: {text}")]
    Unreachable { host: String, text: String },
}

impl Fault {
    /// Whether the rules forbid it, so that trying again is of no use.
    pub fn forbidden(&self) -> bool {
        matches!(self, Fault::Forbidden { .. } | Fault::Plain { .. } | Fault::Redirect { .. })
    }

    /// The fault below other errors.
    pub fn below<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Fault> {
        let mut at = Some(error);
        while let Some(error) = at {
            if let Some(fault) = error.downcast_ref() {
                return Some(fault);
            }
            at = error.source();
        }
        None
    }
}

/// Whether a request that failed can't have reached anybody: no connection was made for it.
pub fn never_came(error: &(dyn Error + 'static)) -> bool {
    let connecting = error.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect);
    connecting || Fault::below(error).is_some_and(|fault| !matches!(fault, Fault::Redirect { .. } | Fault::NoRange))
}

/// A gRPC connection, made when it is needed first, and again when it is lost.
///
/// # Errors
/// A sentence about the address, or the authorities.
pub fn channel(options: &Options, addr: &str) -> Result<tonic::transport::Channel, String> {
    let endpoint = tonic::transport::Endpoint::from_shared(addr.to_owned()).map_err(|e| format!("{addr}: {e}"))?;
    Ok(endpoint.connect_with_connector_lazy(Connector::new(options, connect::system())?))
}

/// Asks servers. Cloning shares its connections.
#[derive(Clone, Debug)]
pub struct Client<B> {
    inner: legacy::Client<Connector, B>,
}

impl<B> Client<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// # Errors
    /// A sentence about the authorities when they cannot be used.
    pub fn new(options: &Options) -> Result<Self, String> {
        Self::resolving(options, connect::system())
    }

    /// With another way to look names up.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn resolving(options: &Options, resolve: Resolve) -> Result<Self, String> {
        let connector = Connector::new(options, resolve)?;
        let inner = legacy::Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).build(connector);
        Ok(Self { inner })
    }

    /// Sends one request. The answer's extensions hold its [`Group`].
    ///
    /// # Errors
    /// [`Fault`], as it is or below the client's own error; also for an answer that sends us elsewhere.
    pub async fn send(&self, request: Request<B>) -> Result<Response<Incoming>, Box<dyn Error + Send + Sync>> {
        let part = request.headers().contains_key(RANGE);
        let answer = self.inner.request(request).await?;
        if answer.status().is_redirection() && answer.status() != StatusCode::NOT_MODIFIED {
            let to = answer.headers().get(LOCATION).map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
            let to = nf_core::reason::printable(&to.unwrap_or_else(|| "nowhere".into()), 100);
            return Err(Fault::Redirect { to }.into());
        }
        if part && answer.status() == StatusCode::OK {
            return Err(Fault::NoRange.into());
        }
        Ok(answer)
    }
}
