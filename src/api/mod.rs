//! The public surface: REST and gRPC on one port, over one set of use cases.
//! It knows the group only through `raft::Replica`, and neither agents nor the
//! controller.

pub mod auth;
pub mod convert;
mod denials;
pub mod error;
pub mod grpc;
pub mod places;
pub mod rest;
pub mod service;

use crate::exchange::{LogQuery, Panorama, Vitals};
use crate::pqc::{Links, Policy};
use crate::raft::Replica;
use crate::security::checkpoint::Sign;
use crate::security::jwt::Verifier;
use crate::security::signing::consent;
use crate::telemetry::Metrics;
use axum::Router;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use nf_core::control::NetworkFault;
use nf_core::id::{NodeNo, TenantId};
use nf_core::node::PortRange;
use nf_core::reason::Refusal;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use service::Service;
pub use service::model::{Resolve, Unresolved};

/// Where logs, and what replicas have been through, come from. The member wires
/// `exchange::Hub::logs` in here.
pub type LogSource = Arc<dyn Fn(LogQuery) -> BoxStream<'static, Result<Bytes, String>> + Send + Sync>;

/// What all members' gateways see now. The member wires `exchange::Hub::sights` in here.
pub type Sights = Arc<dyn Fn() -> BoxFuture<'static, Panorama> + Send + Sync>;

/// How nodes' GPUs do; None: nobody says now. The member wires `exchange::Hub::vitals` in here.
pub type GpuVitals = Arc<dyn Fn() -> BoxFuture<'static, Option<Vec<(NodeNo, Vec<Vitals>)>>> + Send + Sync>;

/// Verifies a tenant's signed statement by that tenant's keys; may block. The member wires its keys in here.
pub type Consenting = Arc<dyn Fn(&TenantId, &[u8]) -> Result<consent::Verified, Refusal> + Send + Sync>;

/// SHA-256 of the public key of the group's authority. The member wires its keys in here.
pub type Authority = Arc<dyn Fn() -> Option<[u8; 32]> + Send + Sync>;

/// What this process says of itself.
#[derive(Clone, Debug)]
pub struct Info {
    pub version: String,
    pub commit: String,
    pub node_name: String,
    /// Address under which replicas of nodes that this member plays are reached.
    pub host: String,
    /// Ports for the replicas of nodes that are registered by hand and played here.
    pub ports: Option<PortRange>,
    /// Where simulated replicas write their run files.
    pub run_dir: String,
    /// Settings that production needs and this process has not.
    pub missing: Vec<String>,
    /// When silent nodes are blamed on the network.
    pub network_fault: NetworkFault,
    /// How often the leader moves replicas to mend fragmentation, where it does.
    pub defrag_every: Option<Duration>,
    pub started: Instant,
    /// Which key exchange its connections have, and which connections there are.
    pub key_exchange: Policy,
    pub links: Vec<Links>,
}

/// What the public surface stands on.
pub struct ApiState {
    pub replica: Replica,
    pub logs: Option<LogSource>,
    /// None where there is no gateway to ask.
    pub sights: Option<Sights>,
    /// None where there is nobody to ask.
    pub vitals: Option<GpuVitals>,
    pub models: Option<Resolve>,
    pub info: Info,
    pub metrics: Metrics,
    /// Who may call; None: anybody, in simulation alone.
    pub auth: Option<Arc<Verifier>>,
    /// Signs the ends of audit trails; None: they go unsigned.
    pub sign: Option<Sign>,
    /// Verifies tenants' consents; None: none counts.
    pub consents: Option<Consenting>,
    /// What join tokens name; None: none are made.
    pub authority: Option<Authority>,
}

/// REST and gRPC on one router. Must be called on a runtime: it starts one small
/// task that ends with the replica.
pub fn router(state: ApiState) -> Router {
    build(Service::new(state))
}

/// The same with the way to models beside it, behind the same gate. `tenant` is the header by
/// which `models` is told whose they are.
pub fn router_with(state: ApiState, models: Router, tenant: &'static str) -> Router {
    let service = Service::new(state);
    let gate = service.clone();
    let guard = move |request, next| auth::guard_models(gate.clone(), tenant, request, next);
    build(service).merge(models.layer(axum::middleware::from_fn(guard)))
}

fn build(service: Service) -> Router {
    let lost = service.clone();
    let fallback = move |method, uri, headers| rest::not_found(lost.clone(), method, uri, headers);
    rest::router(service.clone()).merge(grpc::router(service)).fallback(fallback)
}
