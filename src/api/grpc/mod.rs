//! gRPC: the same use cases as REST, plus health and reflection. No JSON here.

mod bounds;
mod endpoint;
mod resource;
mod scheduler;
mod security;

use super::auth::{Slot, Who};
use super::error::Failure;
use super::service::{Call, DEFAULT_DEADLINE, Service};
use crate::raft::Consistency;
use crate::telemetry::traces;
use axum::Router;
use nf_core::id::TenantId;
use nf_core::reason::Reason;
use nf_proto::v1;
use nf_proto::v1::endpoint_service_server::EndpointServiceServer;
use nf_proto::v1::resource_service_server::ResourceServiceServer;
use nf_proto::v1::scheduler_service_server::SchedulerServiceServer;
use nf_proto::v1::security_service_server::SecurityServiceServer;
use prost::Message as _;
use prost_types::{FileDescriptorSet, ServiceDescriptorProto};
use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;
use tonic::Request;
use tracing::Instrument;

/// Largest message that is read, as for REST.
const MAX_MESSAGE: usize = super::convert::json::MAX_BODY;

/// All gRPC routes. Unknown methods are answered by the caller's fallback.
pub fn router(service: Service) -> Router {
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(follow_health(service.clone(), reporter));
    let scheduler = SchedulerServiceServer::new(scheduler::Scheduler(service.clone()));
    let endpoints = EndpointServiceServer::new(endpoint::Endpoints(service.clone()));
    let resources = ResourceServiceServer::new(resource::Resources(service.clone()));
    let security = SecurityServiceServer::new(security::Security(service.clone()));
    let mut routes = tonic::service::Routes::new(health)
        .add_service(scheduler.max_decoding_message_size(MAX_MESSAGE))
        .add_service(endpoints.max_decoding_message_size(MAX_MESSAGE))
        .add_service(resources.max_decoding_message_size(MAX_MESSAGE))
        .add_service(security.max_decoding_message_size(MAX_MESSAGE));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(nf_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("neuralfabric.v1.SchedulerService")
            .with_service_name("neuralfabric.v1.ResourceService")
            .with_service_name("neuralfabric.v1.EndpointService")
            .with_service_name("neuralfabric.v1.SecurityService")
            .with_service_name("grpc.health.v1.Health")
    };
    // Older tools still ask for v1alpha. Our own descriptors are made by the build, so both succeed.
    if let (Ok(v1), Ok(alpha)) = (reflection().build_v1(), reflection().build_v1alpha()) {
        routes = routes.add_service(v1).add_service(alpha);
    }
    let guard = axum::middleware::from_fn_with_state(service, super::auth::guard);
    let bounded = axum::middleware::from_fn_with_state(bounds::Bounds::default(), bounds::bounded);
    let router = routes.prepare().into_axum_router().reset_fallback();
    router.layer(bounded).layer(guard).layer(axum::middleware::from_fn(traced))
}

/// The call as a part of its caller's trace; its path names the method, if it is one of ours.
async fn traced(request: axum::extract::Request, next: axum::middleware::Next) -> axum::response::Response {
    let path = request.uri().path();
    if path.starts_with("/grpc.health.") {
        return next.run(request).await;
    }
    let span = traces::call("RPC", methods().get(path).map_or("other", String::as_str), request.headers());
    let response = next.run(request).instrument(span.clone()).await;
    traces::answered(&span, response.status());
    // What fails before its first message says so in the head; HTTP calls it a success.
    if response.headers().get("grpc-status").is_some_and(|status| status != "0") {
        traces::failed(&span, "Refused");
    }
    response
}

/// The paths of our methods: a stranger's would be names without end.
fn methods() -> &'static BTreeSet<String> {
    static METHODS: OnceLock<BTreeSet<String>> = OnceLock::new();
    METHODS.get_or_init(|| {
        let files = FileDescriptorSet::decode(nf_proto::DESCRIPTORS).unwrap_or_default().file;
        let services = files.iter().flat_map(|file| file.service.iter().map(move |s| (file.package(), s)));
        let of = |(package, service): (&str, &ServiceDescriptorProto)| {
            let path = |method: &str| format!("/{package}.{}/{method}", service.name());
            service.method.iter().map(|method| path(method.name())).collect::<Vec<_>>()
        };
        services.flat_map(of).collect()
    })
}

/// Keeps the health service's word equal to `/health/ready`, until the member ends.
async fn follow_health(service: Service, reporter: tonic_health::server::HealthReporter) {
    const LOOK: Duration = Duration::from_secs(1);
    let names = [
        "",
        "neuralfabric.v1.SchedulerService",
        "neuralfabric.v1.ResourceService",
        "neuralfabric.v1.EndpointService",
        "neuralfabric.v1.SecurityService",
    ];
    let mut watch = service.replica.watch();
    let (mut ticks, mut last) = (tokio::time::interval(LOOK), None);
    loop {
        ticks.tick().await;
        let ready = service.ready().is_ok();
        if last != Some(ready) {
            last = Some(ready);
            let status = match ready {
                true => tonic_health::ServingStatus::Serving,
                false => tonic_health::ServingStatus::NotServing,
            };
            for name in names {
                reporter.set_service_status(name, status).await;
            }
        }
        watch.mark_unchanged();
        if watch.has_changed().is_err() {
            return;
        }
    }
}

/// The call that this is, with its time to live and whom the gate let in.
fn call<T>(request: &Request<T>) -> Result<Call, Failure> {
    let time = request.metadata().get("grpc-timeout").and_then(|value| timeout(value.to_str().ok()?));
    let who = request.extensions().get::<Who>().cloned();
    let who = who.ok_or_else(|| Failure::new(Reason::Internal, "this call passed no gate"))?;
    let slot = request.extensions().get::<Slot>().cloned().unwrap_or_default();
    Ok(Call { slot, ..Call::within(who, time.unwrap_or(DEFAULT_DEADLINE)) })
}

/// `500m`, `10S`, …: at most eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    if !text.is_ascii() || text.len() < 2 || text.len() > 9 {
        return None;
    }
    let (digits, unit) = text.split_at(text.len() - 1);
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

fn consistency(number: i32) -> Result<Consistency, Failure> {
    match v1::Consistency::try_from(number) {
        Ok(v1::Consistency::Stale) => Ok(Consistency::Stale),
        Ok(_) => Ok(Consistency::Linearizable),
        Err(_) => Err(nf_core::reason::Refusal::invalid("consistency", format!("{number} is not known")).into()),
    }
}

fn tenant(text: &str) -> Result<Option<TenantId>, Failure> {
    Ok(super::convert::proto::maybe("tenant_id", text, TenantId::new)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        assert_eq!(timeout("10S"), Some(Duration::from_secs(10)));
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        for bad in ["", "S", "10", "10x", "999999999S", "-1S", "é"] {
            assert_eq!(timeout(bad), None, "{bad}");
        }
    }
}
