//! Who may do what: one gate before REST and gRPC alike, and one table that maps each
//! route to what it asks of its caller. What a call then sees is bounded by [`Who`]:
//! another tenant's object is as absent as one that never was. It does not verify
//! signatures of tokens (`security::jwt` does), nor know what the routes do.

use super::error::{Failure, Problem, codes};
use super::service::Service;
use crate::raft::Replica;
use crate::security::jwt::{Denied, Identity, Role, Verifier};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use nf_core::audit::{Action, Actor, Receipt};
use nf_core::command::{Mode, Note};
use nf_core::id::{NodeName, TenantId};
use nf_core::reason::{Reason, Refusal};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};
use tonic_types::StatusExt;

/// What a route asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing: monitors and documents.
    Open,
    /// A token of any role: people get their tenant's part, machines and admins the whole.
    Any,
    /// To see one's tenant: any role of people.
    Read,
    /// To schedule in one's tenant.
    Operator,
    /// To let versions into production.
    Promoter,
    /// To see what belongs to no tenant: admins, and machines such as a scraper.
    Wide,
    /// To see the nodes: who schedules sees where it can ask to be, admins and machines the whole.
    Places,
    /// To run nodes, quotas and the cluster.
    Admin,
    /// To bring a node in: admins and machines.
    Node,
}

impl Access {
    /// The roles that open it; any one of them does.
    pub fn roles(self) -> &'static [Role] {
        match self {
            Access::Open | Access::Any => &Role::ALL,
            Access::Read => &[Role::Viewer, Role::Operator, Role::Promoter, Role::Admin],
            Access::Operator => &[Role::Operator],
            Access::Promoter => &[Role::Promoter],
            Access::Wide | Access::Node => &[Role::Admin, Role::Node],
            Access::Places => &[Role::Operator, Role::Admin, Role::Node],
            Access::Admin => &[Role::Admin],
        }
    }
}

/// Each route. A route that is not here asks for an admin, so that a new one is never open by mistake;
/// a test holds the table against the OpenAPI document and the descriptors.
pub const TABLE: &[(&str, &str, Access)] = &[
    ("GET", "/health", Access::Open),
    ("GET", "/health/ready", Access::Open),
    ("GET", "/openapi.json", Access::Open),
    ("GET", "/docs", Access::Open),
    ("GET", "/metrics", Access::Any),
    ("GET", "/sd/prometheus", Access::Any),
    ("POST", "/schedule", Access::Operator),
    ("GET", "/schedule", Access::Read),
    ("GET", "/schedule/{request_id}", Access::Read),
    ("DELETE", "/schedule/{request_id}", Access::Operator),
    ("GET", "/schedule/{request_id}/logs", Access::Read),
    ("GET", "/schedule/{request_id}/life", Access::Read),
    ("POST", "/schedule/{request_id}/scale", Access::Operator),
    ("GET", "/rollout/{request_id}", Access::Read),
    ("POST", "/rollout/{request_id}", Access::Operator),
    ("POST", "/rollout/{request_id}/rollback", Access::Operator),
    ("POST", "/rollout/{request_id}/turn/{turn}", Access::Operator),
    ("GET", "/services", Access::Read),
    ("GET", "/slo/{tenant_id}/{model_id}", Access::Read),
    ("GET", "/resources", Access::Read),
    ("POST", "/resources/register", Access::Node),
    ("POST", "/node/register", Access::Node),
    ("POST", "/node/launch", Access::Operator),
    ("POST", "/node/{node_id}/cordon", Access::Admin),
    ("POST", "/node/{node_id}/uncordon", Access::Admin),
    ("POST", "/node/{node_id}/drain", Access::Admin),
    ("POST", "/node/{node_id}/down", Access::Admin),
    ("POST", "/defrag", Access::Admin),
    ("POST", "/node/{node_id}/devices/{device}/fault", Access::Admin),
    ("POST", "/node/{node_id}/devices/{device}/heal", Access::Admin),
    ("GET", "/endpoints", Access::Read),
    ("GET", "/nodes", Access::Places),
    ("GET", "/tenants", Access::Read),
    ("GET", "/usage", Access::Read),
    ("POST", "/tenants", Access::Admin),
    ("DELETE", "/tenants/{tenant_id}", Access::Admin),
    ("GET", "/tenants/{tenant_id}/quota", Access::Read),
    ("PUT", "/tenants/{tenant_id}/quota", Access::Admin),
    ("GET", "/policy/placement", Access::Read),
    ("PUT", "/policy/placement", Access::Admin),
    ("POST", "/policy/placement/try", Access::Admin),
    ("GET", "/cluster/members", Access::Wide),
    // A machine of the group may not bring in another that votes: an admin asks for it.
    ("POST", "/cluster/members", Access::Admin),
    ("DELETE", "/cluster/members/{member}", Access::Admin),
    ("POST", "/cluster/members/{member}/promote", Access::Admin),
    ("POST", "/cluster/what-if", Access::Admin),
    ("POST", "/cluster/snapshot", Access::Admin),
    ("POST", "/cluster/upgrade", Access::Admin),
    ("POST", "/failover/promote", Access::Admin),
    ("GET", "/events", Access::Read),
    ("GET", "/approvals", Access::Read),
    ("POST", "/approvals", Access::Promoter),
    ("POST", "/approvals/revoke", Access::Promoter),
    ("GET", "/quarantine", Access::Read),
    ("POST", "/quarantine/release", Access::Promoter),
    ("GET", "/consents", Access::Read),
    ("POST", "/consents", Access::Promoter),
    ("POST", "/consents/revoke", Access::Promoter),
    ("POST", "/tokens/revoke", Access::Admin),
    ("GET", "/join-tokens", Access::Admin),
    ("POST", "/join-tokens", Access::Admin),
    ("DELETE", "/join-tokens/{id}", Access::Admin),
    ("GET", "/audit", Access::Admin),
    // Says nothing of what was done; machines keep it where the members can't reach.
    ("GET", "/audit/checkpoint", Access::Wide),
    ("RPC", "/neuralfabric.v1.SchedulerService/Schedule", Access::Operator),
    ("RPC", "/neuralfabric.v1.SchedulerService/Plan", Access::Operator),
    ("RPC", "/neuralfabric.v1.SchedulerService/Get", Access::Read),
    ("RPC", "/neuralfabric.v1.SchedulerService/List", Access::Read),
    ("RPC", "/neuralfabric.v1.SchedulerService/Stop", Access::Operator),
    ("RPC", "/neuralfabric.v1.SchedulerService/Scale", Access::Operator),
    ("RPC", "/neuralfabric.v1.SchedulerService/GetRollout", Access::Read),
    ("RPC", "/neuralfabric.v1.SchedulerService/StartRollout", Access::Operator),
    ("RPC", "/neuralfabric.v1.SchedulerService/TurnRollout", Access::Operator),
    ("RPC", "/neuralfabric.v1.SchedulerService/Watch", Access::Read),
    ("RPC", "/neuralfabric.v1.EndpointService/Watch", Access::Read),
    ("RPC", "/neuralfabric.v1.ResourceService/Get", Access::Read),
    ("RPC", "/neuralfabric.v1.ResourceService/RegisterNode", Access::Node),
    ("RPC", "/neuralfabric.v1.ResourceService/ListUsage", Access::Read),
    ("RPC", "/neuralfabric.v1.SecurityService/ApproveVersion", Access::Promoter),
    ("RPC", "/neuralfabric.v1.SecurityService/RevokeApproval", Access::Promoter),
    ("RPC", "/neuralfabric.v1.SecurityService/ListApprovals", Access::Read),
    ("RPC", "/neuralfabric.v1.SecurityService/ReleaseVersion", Access::Promoter),
    ("RPC", "/neuralfabric.v1.SecurityService/ListQuarantine", Access::Read),
    ("RPC", "/neuralfabric.v1.SecurityService/GrantConsent", Access::Promoter),
    ("RPC", "/neuralfabric.v1.SecurityService/RevokeConsent", Access::Promoter),
    ("RPC", "/neuralfabric.v1.SecurityService/ListConsents", Access::Read),
    ("RPC", "/neuralfabric.v1.SecurityService/RevokeToken", Access::Admin),
    ("RPC", "/neuralfabric.v1.SecurityService/ReadAudit", Access::Admin),
    ("RPC", "/neuralfabric.v1.SecurityService/ReadCheckpoint", Access::Wide),
    ("RPC", "/grpc.health.v1.Health/Check", Access::Open),
    ("RPC", "/grpc.health.v1.Health/Watch", Access::Open),
    ("RPC", "/grpc.health.v1.Health/List", Access::Open),
    ("RPC", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Access::Open),
    ("RPC", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Access::Open),
];

/// What the route asks for.
pub fn access(method: &str, path: &str) -> Access {
    let method = if method == "HEAD" { "GET" } else { method };
    let row = TABLE.iter().find(|(verb, route, _)| *verb == method && *route == path);
    row.map_or(Access::Admin, |(_, _, access)| *access)
}

/// The route's name, if there is one.
fn named(method: &str, path: &str) -> String {
    let row = TABLE.iter().find(|(verb, route, _)| *verb == method && *route == path);
    row.map_or_else(|| "unknown route".to_owned(), |(verb, route, _)| format!("{verb} {route}"))
}

/// Who calls.
#[derive(Clone, Debug)]
pub enum Who {
    /// This group asks nobody (simulation without keys): a call acts as the tenant it names.
    Anyone,
    /// Did not say, on a route that is open to all.
    Stranger,
    Known(Arc<Identity>),
}

/// What a call leaves for its gate: of each the first, which is the one of what was asked.
#[derive(Clone, Debug, Default)]
pub struct Slot(Arc<Left>);

#[derive(Debug, Default)]
struct Left {
    receipt: OnceLock<Receipt>,
    stopped: OnceLock<Box<Note>>,
}

impl Slot {
    /// The receipt of what it changed, for the answer's head.
    pub fn put(&self, receipt: Option<Receipt>) {
        if let Some(receipt) = receipt {
            let _ = self.0.receipt.set(receipt);
        }
    }

    /// What a policy stopped, for the trail.
    pub fn stopped(&self, note: Note) {
        let _ = self.0.stopped.set(Box::new(note));
    }
}

/// The receipt, `seq:hash`, of the entry that a call left in the audit trail.
const RECEIPT: &str = "x-nf-audit";

/// As if it were absent, which for this caller it is.
fn hidden(tenant: &TenantId) -> Failure {
    Refusal::field(Reason::NotFound, "tenant_id", format!("no tenant {tenant}")).into()
}

impl Who {
    /// Sees what belongs to no tenant, and every tenant's.
    pub fn wide(&self) -> bool {
        match self {
            Who::Anyone => true,
            Who::Stranger => false,
            Who::Known(identity) => Access::Wide.roles().iter().any(|role| identity.roles.has(*role)),
        }
    }

    /// Lets through who sees what belongs to no tenant.
    ///
    /// # Errors
    /// `Forbidden`, with the roles that do.
    pub fn needs_wide(&self) -> Result<(), Failure> {
        match self.wide() {
            true => Ok(()),
            false => Err(forbidden(Access::Wide)),
        }
    }

    fn admin(&self) -> bool {
        match self {
            Who::Anyone => true,
            Who::Stranger => false,
            Who::Known(identity) => identity.roles.has(Role::Admin),
        }
    }

    /// Whether a route is open to the caller.
    fn may(&self, access: Access) -> bool {
        match self {
            Who::Anyone => true,
            Who::Stranger => access == Access::Open,
            Who::Known(identity) => access.roles().iter().any(|role| identity.roles.has(*role)),
        }
    }

    /// The caller's name, for people to read.
    pub fn name(&self) -> &str {
        match self {
            Who::Known(identity) => &identity.subject,
            Who::Anyone | Who::Stranger => "operator",
        }
    }

    /// How the audit trail names the caller; None where nobody was asked.
    pub fn actor(&self, state: &nf_core::state::State, node: &str) -> Option<Actor> {
        let Who::Known(identity) = self else { return None };
        Some(Actor {
            subject: identity.subject.as_str().into(),
            tenant: Some(identity.tenant.clone()),
            token: identity
                .token_id
                .as_deref()
                .map(|id| Actor::token_hmac(state.trail_key(), &state.meta().cluster, id)),
            node: NodeName::new(node).ok(),
            issuer: Some(identity.issuer.as_str().into()),
        })
    }

    /// The tenant that a read is bound to, when it names one or none.
    ///
    /// # Errors
    /// `NotFound` when it names another tenant than the caller's.
    pub fn sees(&self, named: Option<TenantId>) -> Result<Option<TenantId>, Failure> {
        match self {
            Who::Anyone => Ok(named),
            Who::Known(_) if self.wide() => Ok(named),
            Who::Known(identity) => match named {
                Some(other) if other != identity.tenant => Err(hidden(&other)),
                _ => Ok(Some(identity.tenant.clone())),
            },
            Who::Stranger => Err(unauthenticated()),
        }
    }

    /// The tenant that a change is bound to: the caller's own, unless an admin names another.
    ///
    /// # Errors
    /// As [`Who::sees`].
    pub fn acts(&self, named: Option<TenantId>) -> Result<Option<TenantId>, Failure> {
        match self {
            Who::Known(identity) if self.admin() => Ok(Some(named.unwrap_or_else(|| identity.tenant.clone()))),
            Who::Known(identity) => match named {
                Some(other) if other != identity.tenant => Err(hidden(&other)),
                _ => Ok(Some(identity.tenant.clone())),
            },
            _ => self.sees(named),
        }
    }
}

/// What a caller who may not is told.
fn forbidden(access: Access) -> Failure {
    let names: Vec<&str> = access.roles().iter().map(|role| role.name()).collect();
    let detail = format!("this needs the role {}; nf token create makes a token with it", names.join(" or "));
    Refusal::new(Reason::Forbidden, detail).into()
}

fn unauthenticated() -> Failure {
    Denied::Shape.refusal().into()
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |past| past.as_secs())
}

/// The gate. Without keys it is open in simulation and shut in production.
#[derive(Clone)]
pub struct Gate {
    verifier: Option<Arc<Verifier>>,
    replica: Replica,
}

impl Gate {
    pub fn new(verifier: Option<Arc<Verifier>>, replica: Replica) -> Self {
        Self { verifier, replica }
    }

    /// Whether callers must say who they are.
    pub fn asks(&self) -> bool {
        self.verifier.is_some() || self.replica.applied().state.meta().mode == Mode::Production
    }

    /// Who calls.
    fn known(&self, headers: &HeaderMap, access: Access) -> Result<Who, Failure> {
        if !self.asks() {
            return Ok(Who::Anyone);
        }
        let Some(token) = bearer(headers) else {
            let open = access == Access::Open && !headers.contains_key(header::AUTHORIZATION);
            return if open { Ok(Who::Stranger) } else { Err(unauthenticated()) };
        };
        let verifier = self.verifier.as_ref().ok_or_else(unauthenticated)?;
        let identity = verifier.verify(token, now()).map_err(|denied| {
            // How close it was is for the log alone.
            tracing::debug!(%denied, "a token was refused");
            Failure::from(denied.refusal())
        })?;
        self.still(&identity)?;
        Ok(Who::Known(identity))
    }

    fn still(&self, identity: &Identity) -> Result<(), Failure> {
        let state = self.replica.applied().state;
        match identity.token_id.as_deref().is_some_and(|id| state.is_revoked(id)) {
            true => {
                tracing::debug!("a revoked token was used");
                Err(unauthenticated())
            }
            false => Ok(()),
        }
    }

    /// Whether who opened a stream may still read it: tokens end, and are revoked.
    pub fn counts(&self, who: &Who) -> Result<(), Failure> {
        match who {
            Who::Anyone | Who::Stranger => Ok(()),
            Who::Known(identity) if identity.expires.saturating_add(crate::security::jwt::LEEWAY) <= now() => {
                Err(unauthenticated())
            }
            Who::Known(identity) => self.still(identity),
        }
    }
}

/// Whether the caller of a process without a group's state may read what belongs to no tenant. That a token was
/// revoked is not known there; it ends within a day.
///
/// # Errors
/// As the gate's.
pub fn may_read_all(verifier: &Verifier, headers: &HeaderMap) -> Result<(), Failure> {
    let identity = verifier.verify(bearer(headers).ok_or_else(unauthenticated)?, now());
    let identity = identity.map_err(|denied| Failure::from(denied.refusal()))?;
    match Who::Known(identity).may(Access::Wide) {
        true => Ok(()),
        false => Err(forbidden(Access::Wide)),
    }
}

/// The only token of the only Authorization header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (only, None) = (all.next()?, all.next()) else { return None };
    let (scheme, token) = only.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Before each call: who is it, and may they? Both surfaces go through here.
pub async fn guard(State(service): State<Service>, mut request: Request, next: Next) -> Response {
    let rpc = request.headers().get(header::CONTENT_TYPE);
    let rpc = rpc.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let route = request.extensions().get::<MatchedPath>();
    // The routes of gRPC are its paths; those of REST leave parts open.
    let needed = match route {
        Some(route) if !rpc => access(request.method().as_str(), route.as_str()),
        _ if request.method() == Method::POST => access("RPC", request.uri().path()),
        _ => Access::Admin,
    };
    // In the trail routes have their names of the table: what a caller made up is no kind of its own.
    let what = match route {
        Some(route) if !rpc => named(request.method().as_str(), route.as_str()),
        _ => named("RPC", request.uri().path()),
    };
    let refused = |failure: Failure| {
        service.metrics.auth_refused.with_label_values(&[failure.refusal.reason.token()]).inc();
        if rpc { tonic::Status::from(failure).into_http() } else { failure.into_response() }
    };
    let who = match service.gate.known(request.headers(), needed) {
        Ok(who) => who,
        Err(failure) => return refused(failure),
    };
    if !who.may(needed) {
        tell(&service, &who, &what, Reason::Forbidden);
        return refused(forbidden(needed));
    }
    let slot = Slot::default();
    request.extensions_mut().insert(who.clone());
    request.extensions_mut().insert(slot.clone());
    let mut response = next.run(request).await;
    match (slot.0.stopped.get(), refusal(&response)) {
        // Which version, and by which policy, also where nobody is asked who they are.
        (Some(note), _) => service.denials.tell(actor(&service, &who), Note::clone(note)),
        (None, Some(reason)) => tell(&service, &who, &what, reason),
        (None, None) => {}
    }
    if let Some(value) = slot.0.receipt.get().and_then(|receipt| HeaderValue::from_str(&receipt.to_string()).ok()) {
        response.headers_mut().insert(RECEIPT, value);
    }
    response
}

/// Why a call was refused that the gate had let in, if for a reason of its caller's: each surface leaves its
/// answer's problem, status or reason beside the answer.
fn refusal(response: &Response) -> Option<Reason> {
    let left = response.extensions();
    let reason = match (left.get::<Problem>(), left.get::<tonic::Status>(), left.get::<Reason>()) {
        (Some(problem), ..) => Reason::from_token(&problem.reason)?,
        (None, Some(status), _) => Reason::from_token(&status.get_details_error_info()?.reason)?,
        (None, None, reason) => *reason?,
    };
    (400..500).contains(&codes(reason).http).then_some(reason)
}

/// What requests to models are called in the trail.
const MODELS: &str = "requests to models";

/// Before each request to a model: a caller reaches the models of one tenant. Which one stands
/// in a header or in the path, as the gateway reads them; a token decides it for its holder, and is
/// not shown to the model. `name` is the header.
pub async fn guard_models(service: Service, name: &'static str, mut request: Request, next: Next) -> Response {
    let headers = request.headers();
    let refused = |failure: Failure| {
        service.metrics.auth_refused.with_label_values(&[failure.refusal.reason.token()]).inc();
        failure.into_response()
    };
    let who = match service.gate.known(headers, Access::Read) {
        Ok(Who::Anyone) => return next.run(request).await,
        Ok(who) if who.may(Access::Read) => who,
        Ok(who) => {
            tell(&service, &who, MODELS, Reason::Forbidden);
            return refused(forbidden(Access::Read));
        }
        Err(failure) => return refused(failure),
    };
    let in_path = request.uri().path().strip_prefix("/serve/").and_then(|rest| rest.split('/').next());
    let in_header = headers.get(name).map(|value| value.to_str().unwrap_or_default());
    // Each that is named must be the caller's; what is no name at all the gateway refuses itself.
    for named in [in_path, in_header].into_iter().flatten() {
        let Ok(tenant) = TenantId::new(named) else {
            return refused(Refusal::invalid("tenant", "no tenant's name").into());
        };
        if let Err(failure) = who.acts(Some(tenant)) {
            tell(&service, &who, MODELS, failure.refusal.reason);
            return refused(failure);
        }
    }
    let named = in_path.or(in_header).and_then(|named| TenantId::new(named).ok());
    let Ok(Some(tenant)) = who.acts(named) else { return refused(unauthenticated()) };
    let Ok(value) = HeaderValue::from_str(tenant.as_str()) else { return refused(unauthenticated()) };
    request.headers_mut().insert(name, value);
    request.headers_mut().remove(header::AUTHORIZATION);
    // A request may wake a service that sleeps: the trail says whose it was.
    if let Some(actor) = actor(&service, &who) {
        request.extensions_mut().insert(actor);
    }
    let response = next.run(request).await;
    if let Some(reason) = refusal(&response) {
        tell(&service, &who, MODELS, reason);
    }
    response
}

/// Refusals of somebody known are in the audit trail.
fn tell(service: &Service, who: &Who, what: &str, reason: Reason) {
    if let Some(actor) = actor(service, who) {
        service.denials.tell(Some(actor), Note::refused(Action::Call, what, reason));
    }
}

fn actor(service: &Service, who: &Who) -> Option<Actor> {
    who.actor(&service.replica.applied().state, &service.info.node_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_its_row_and_every_row_its_route() {
        let document = serde_json::to_value(super::super::rest::openapi()).unwrap();
        let mut routes: Vec<(String, String)> = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                routes.push((method.to_uppercase(), path.clone()));
            }
        }
        routes.extend([("GET".into(), "/openapi.json".into()), ("GET".into(), "/docs".into())]);
        let files = <prost_types::FileDescriptorSet as prost::Message>::decode(nf_proto::DESCRIPTORS).unwrap();
        for file in files.file.iter().filter(|file| file.package() == "neuralfabric.v1") {
            for service in &file.service {
                let methods =
                    service.method.iter().map(|m| format!("/{}.{}/{}", file.package(), service.name(), m.name()));
                routes.extend(methods.map(|path| ("RPC".to_owned(), path)));
            }
        }
        let rows = |method: &str, path: &str| TABLE.iter().filter(|(m, p, _)| *m == method && *p == path).count();
        for (method, path) in &routes {
            assert_eq!(rows(method, path), 1, "{method} {path}");
        }
        for (method, path, _) in TABLE {
            let ours = !path.starts_with("/grpc.");
            assert_eq!(routes.iter().any(|(m, p)| m == method && p == path), ours, "{method} {path}");
        }
        assert_eq!(access("PATCH", "/schedule"), Access::Admin, "what is not there asks for the most");
    }

    #[test]
    fn one_bearer_token_or_none() {
        let with = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            }
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(with(&["Bearer a.b.c"]).as_deref(), Some("a.b.c"));
        assert_eq!(with(&["bearer  a.b.c "]).as_deref(), Some("a.b.c"));
        for none in [&[][..], &["a.b.c"], &["Basic a"], &["Bearer a", "Bearer b"]] {
            assert_eq!(with(none), None, "{none:?}");
        }
    }
}
