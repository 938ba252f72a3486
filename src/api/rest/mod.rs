//! REST: the routes, and what they have in common. A handler reads its call,
//! asks the service and shapes the answer; it decides nothing.

mod approvals;
pub mod ask;
mod audit;
mod cluster;
mod consents;
mod defrag;
mod devices;
mod docs;
mod drain;
mod endpoints;
mod join_tokens;
mod nodes;
mod policy;
mod quarantine;
mod rollouts;
mod schedule;
mod schema;
mod services;
mod slo;
mod tenants;
mod tokens;
mod usage;
mod watch;

use super::convert::answer::Freshness;
use super::error::{Failure, Problem};
use super::service::Service;
use crate::telemetry::traces;
use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use nf_core::reason::{Reason, printable};
use serde::Serialize;
use tracing::{Instrument, Span};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Characters of an unknown path that an answer repeats.
const MAX_PATH: usize = 200;
/// What monitors ask for; it is answered from memory, whatever else goes on.
const OBSERVED: [&str; 3] = ["/health", "/health/ready", "/metrics"];

/// What a handler returns.
type Answer = Result<Response, Failure>;

/// All REST routes.
pub fn router(service: Service) -> Router {
    let (routes, openapi) = routes().split_for_parts();
    let docs = docs::Docs::new(openapi);
    routes
        .merge(docs.router())
        .method_not_allowed_fallback(not_allowed)
        .layer(from_fn_with_state(service.clone(), super::auth::guard))
        .layer(from_fn_with_state(service.clone(), counted))
        .with_state(service)
}

/// The OpenAPI document.
pub fn openapi() -> utoipa::openapi::OpenApi {
    docs::complete(routes().into_openapi())
}

fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::with_openapi(docs::Description::openapi())
        .routes(routes!(schedule::post, schedule::list))
        .routes(routes!(schedule::get, schedule::stop))
        .routes(routes!(schedule::logs))
        .routes(routes!(schedule::life))
        .routes(routes!(services::list))
        .routes(routes!(services::resize))
        .routes(routes!(slo::slo))
        .routes(routes!(rollouts::get, rollouts::start))
        .routes(routes!(rollouts::rollback))
        .routes(routes!(rollouts::say))
        .routes(routes!(nodes::resources))
        .routes(routes!(nodes::register_resource))
        .routes(routes!(nodes::register))
        .routes(routes!(nodes::launch))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::cordon))
        .routes(routes!(nodes::uncordon))
        .routes(routes!(drain::drain))
        .routes(routes!(drain::down))
        .routes(routes!(defrag::defrag))
        .routes(routes!(devices::fault))
        .routes(routes!(devices::heal))
        .routes(routes!(endpoints::endpoints))
        .routes(routes!(tenants::list, tenants::create))
        .routes(routes!(tenants::delete))
        .routes(routes!(usage::list))
        .routes(routes!(tenants::quota, tenants::set_quota))
        .routes(routes!(policy::get, policy::set))
        .routes(routes!(policy::try_out))
        .routes(routes!(cluster::members, cluster::join))
        .routes(routes!(cluster::remove))
        .routes(routes!(cluster::what_if))
        .routes(routes!(cluster::vote))
        .routes(routes!(cluster::snapshot))
        .routes(routes!(cluster::upgrade))
        .routes(routes!(cluster::promote))
        .routes(routes!(cluster::events))
        .routes(routes!(cluster::health))
        .routes(routes!(cluster::ready))
        .routes(routes!(cluster::metrics))
        .routes(routes!(cluster::targets))
        .routes(routes!(approvals::list, approvals::approve))
        .routes(routes!(approvals::revoke))
        .routes(routes!(quarantine::list))
        .routes(routes!(quarantine::release))
        .routes(routes!(consents::list, consents::grant))
        .routes(routes!(consents::revoke))
        .routes(routes!(tokens::revoke))
        .routes(routes!(join_tokens::list, join_tokens::create))
        .routes(routes!(join_tokens::drop))
        .routes(routes!(audit::read))
        .routes(routes!(audit::checkpoint))
}

/// A JSON answer.
fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let Ok(bytes) = serde_json::to_vec(body) else {
        return Failure::new(Reason::Internal, "the answer could not be written").into_response();
    };
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A JSON answer to a read, with its freshness in the headers, too.
fn fresh(body: &impl Serialize, read: &Freshness) -> Response {
    let mut response = json(StatusCode::OK, body);
    let headers = response.headers_mut();
    headers.insert("x-nf-index", HeaderValue::from(read.index));
    headers.insert("x-nf-last-contact-ms", HeaderValue::from(read.last_contact_ms));
    if let Some(leader) = read.known_leader {
        headers.insert("x-nf-known-leader", HeaderValue::from(leader));
    }
    response
}

/// A JSON answer about one object, with its entity tag.
fn tagged(body: &impl Serialize, etag: &str) -> Response {
    let mut response = json(StatusCode::OK, body);
    if let Ok(value) = HeaderValue::from_str(&format!("\"{etag}\"")) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// What no route answers: a status for gRPC clients, a problem for the others.
pub async fn not_found(service: Service, method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let grpc = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
    if headers.get(header::CONTENT_TYPE).is_some_and(grpc) {
        return tonic::Status::unimplemented("no such method; reflection lists those that exist").into_http();
    }
    let path = printable(uri.path(), MAX_PATH);
    let failure = Failure::new(Reason::NotFound, format!("no {method} {path}; /docs lists what there is"));
    Problem::from(failure).told_by(service.simulation()).into_response()
}

async fn not_allowed(method: Method, uri: Uri) -> Response {
    let path = printable(uri.path(), MAX_PATH);
    Failure::new(Reason::MethodNotAllowed, format!("{path} does not take {method}; /docs says what it takes"))
        .into_response()
}

/// Counts calls by route, bounds how many are under way, and lets a problem say
/// whether it is told in simulation.
async fn counted(State(service): State<Service>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = request.method().clone();
    let observed = route.as_deref().is_some_and(|route| OBSERVED.contains(&route));
    let span = match &route {
        Some(route) if !observed => traces::call(method.as_str(), route, request.headers()),
        _ => Span::none(),
    };
    let response = match service.enter() {
        Ok(_permit) => next.run(request).instrument(span.clone()).await,
        // How a member does is told also when it is full: then above all.
        Err(_) if observed => next.run(request).await,
        Err(failure) => failure.into_response(),
    };
    // Methods are a closed set here: a route answers few, and others are refused.
    let method = match method {
        Method::GET | Method::POST | Method::PUT | Method::DELETE | Method::HEAD => method,
        _ => Method::OPTIONS,
    };
    let route = route.as_deref().unwrap_or("none");
    let response = Problem::complete(response, service.simulation());
    let code = response.status();
    traces::answered(&span, code);
    service.metrics.http_requests.with_label_values(&[method.as_str(), route, code.as_str()]).inc();
    response
}

/// A path's parameter as a name.
fn path<T>(field: &'static str, text: &str, new: fn(&str) -> Result<T, nf_core::id::NameError>) -> Result<T, Failure> {
    new(text).map_err(|error| nf_core::reason::Refusal::invalid(field, error.to_string()).into())
}
