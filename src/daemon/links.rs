//! The peer port's two ends for services beside Raft: connecting with this
//! process' keys, and telling who calls from the certificate. It does not know
//! what is said.

use crate::exchange::dial::{Address, Dial, tuned};
use crate::exchange::{Caller, Identify};
use crate::raft::{PeerInfo, Replica};
use crate::security::tls::{self, PeerTls, Role};
use axum::response::IntoResponse;
use hyper_util::rt::TokioIo;
use nf_core::id::NodeName;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, OnceLock};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::{ServiceExt, service_fn};

/// The name in a certificate that plays nodes in simulation.
pub const PLAYER: &str = nf_core::join::PLAYER;

/// Connects with this process' keys.
pub struct TlsDial {
    pub tls: PeerTls,
    /// Members' names by peer address, for callers that know only the address.
    pub names: BTreeMap<String, String>,
}

impl Dial for TlsDial {
    fn channel(&self, to: &Address) -> Result<Channel, String> {
        let name = to.name.clone().or_else(|| self.names.get(&to.peer).cloned());
        let name = name.ok_or_else(|| format!("{}: no member is known at this address", to.peer))?;
        self.tls.server_name(&name).map_err(|e| e.to_string())?;
        let (peer, tls) = (to.peer.clone(), self.tls.clone());
        // The scheme stays http: TLS is ours, below tonic. The name is never resolved.
        let endpoint = tuned(Endpoint::from_static("http://peer.nf"));
        Ok(endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
            let (peer, tls, name) = (peer.clone(), tls.clone(), name.clone());
            async move { Ok::<_, io::Error>(TokioIo::new(tls.connect(&peer, &name).await?)) }
        })))
    }
}

/// Who calls, by the name in its certificate and the group's own list of members.
pub fn identify(cluster: String, replica: Replica) -> Identify {
    Arc::new(move |extensions| {
        let Some(cert) = extensions.get::<PeerInfo>().and_then(|info| info.cert.as_ref()) else {
            return Caller::Stranger;
        };
        let Some((name, role)) = tls::holder(cert, &cluster) else { return Caller::Stranger };
        if name == PLAYER {
            return Caller::Someone;
        }
        let listed = || replica.status().members.iter().any(|member| member.name == name);
        told(&name, role, listed)
    })
}

/// A server's certificate is a member's or nobody's: what it was made for is not a worker.
fn told(name: &str, role: Role, listed: impl FnOnce() -> bool) -> Caller {
    match role {
        Role::Server if listed() => Caller::Member,
        Role::Server => Caller::Stranger,
        Role::Client => NodeName::new(name).map_or(Caller::Stranger, Caller::Node),
    }
}

/// Services that come up after the port they are served on.
#[derive(Clone, Default)]
pub struct Late(Arc<OnceLock<axum::Router>>);

impl Late {
    pub fn routes(&self) -> tonic::service::Routes {
        let late = self.0.clone();
        let serve = move |request: axum::extract::Request| {
            let late = late.clone();
            async move {
                match late.get() {
                    Some(router) => router.clone().oneshot(request).await.into_response(),
                    None => tonic::Status::unavailable("this member is starting").into_http(),
                }
            }
        };
        axum::Router::new().fallback(serve).into()
    }

    pub fn set(&self, routes: tonic::service::Routes) {
        // A second one would be a bug in the order of starting; the first stays.
        let _ = self.0.set(routes.prepare().into_axum_router());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_certificate_is_no_workers() {
        let (yes, no) = (|| true, || false);
        assert!(matches!(told("n1", Role::Server, yes), Caller::Member));
        assert!(matches!(told("spare", Role::Server, no), Caller::Stranger));
        assert!(matches!(told("n1", Role::Client, yes), Caller::Node(_)), "whatever its name, it works");
    }
}
