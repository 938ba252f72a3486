//! The group and this member: members, leadership, events, health, metrics.

use super::ask::{Ask, Part};
use super::{Answer, fresh, json, schema, watch};
use crate::api::convert::event::EventBody;
use crate::api::convert::node as convert;
use crate::api::service::cluster::{HealthBody, MembersBody, PromoteBody};
use crate::api::service::targets::TargetBody;
use crate::api::service::upgrade::UpgradeBody;
use crate::api::service::whatif::WhatIfBody;
use crate::api::service::{Service, gauges, off_thread};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Events of a page when the caller does not say, and at most.
const PER_PAGE: u64 = 100;
const MAX_PER_PAGE: u64 = 1000;

/// The group as this member sees it.
#[utoipa::path(get, path = "/cluster/members", tag = "cluster",
    responses((status = 200, description = "The members", body = MembersBody)))]
pub async fn members(State(service): State<Service>, mut ask: Ask) -> Answer {
    // It is always this member's own view, all of it; lists are asked for alike all the same.
    ask.call()?;
    ask.page()?;
    ask.finish()?;
    Ok(json(StatusCode::OK, &service.members()))
}

/// Takes a new member in, without a vote.
#[utoipa::path(post, path = "/cluster/members", tag = "cluster", request_body = schema::MemberRequest,
    responses((status = 200, description = "The members", body = MembersBody)))]
pub async fn join(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let wanted = convert::new_member(&ask.json(false).await?)?;
    Ok(json(StatusCode::OK, &service.add_member(&call, wanted).await?))
}

/// Gives a learner a vote.
#[utoipa::path(post, path = "/cluster/members/{member}/promote", tag = "cluster",
    params(("member" = String, Path, description = "Name or number")),
    responses((status = 200, description = "The members", body = MembersBody)))]
pub async fn vote(State(service): State<Service>, Part(member): Part, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    Ok(json(StatusCode::OK, &service.give_vote(&call, &member).await?))
}

/// Takes a member out of the group.
#[utoipa::path(delete, path = "/cluster/members/{member}", tag = "cluster",
    params(("member" = String, Path, description = "Name or number")),
    responses((status = 200, description = "The members", body = MembersBody)))]
pub async fn remove(State(service): State<Service>, Part(member): Part, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    Ok(json(StatusCode::OK, &service.remove_member(&call, &member).await?))
}

/// A snapshot that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotBody {
    /// Log index that it covers.
    pub index: u64,
    pub simulation: bool,
}

/// Takes a snapshot on the member that takes the call.
#[utoipa::path(post, path = "/cluster/snapshot", tag = "cluster",
    responses((status = 200, description = "Taken", body = SnapshotBody)))]
pub async fn snapshot(State(service): State<Service>, ask: Ask) -> Answer {
    ask.finish()?;
    let index = service.snapshot().await?;
    Ok(json(StatusCode::OK, &SnapshotBody { index, simulation: service.simulation() }))
}

/// Ends a rolling upgrade: raises the feature level to the highest one that every member runs.
#[utoipa::path(post, path = "/cluster/upgrade", tag = "cluster", request_body = schema::UpgradeRequest,
    responses((status = 200, description = "Done, or what would be done", body = UpgradeBody)))]
pub async fn upgrade(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let dry_run = convert::dry_run(&ask.json(true).await?)?;
    Ok(json(StatusCode::OK, &service.upgrade(&call, dry_run).await?))
}

/// Moves leadership to a member or region, and returns when it is there.
#[utoipa::path(post, path = "/failover/promote", tag = "cluster", request_body = schema::PromoteRequest,
    responses((status = 200, description = "Done, or what would be done", body = PromoteBody)))]
pub async fn promote(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let wanted = convert::promote(&ask.json(false).await?)?;
    Ok(json(StatusCode::OK, &service.promote(&call, wanted).await?))
}

/// A page of events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventList {
    pub items: Vec<EventBody>,
    /// For the next page; null when there is nothing newer.
    pub next_token: Option<String>,
    /// For `from` of a later call.
    pub next: u64,
    pub simulation: bool,
}

/// Events from a sequence number on; with `watch=true`, a stream of them.
#[utoipa::path(get, path = "/events", tag = "cluster",
    params(("from" = Option<u64>, Query, description = "First sequence number; with watch, now unless said"),
           ("per_page" = Option<u64>, Query, description = "1 to 1000; 100 unless said"),
           ("next_token" = Option<String>, Query, description = "Where the page before ended"),
           ("tenant_id" = Option<String>, Query, description = "Only this tenant's"),
           ("index" = Option<u64>, Query, description = "With watch: start after this log index"),
           ("watch" = Option<bool>, Query, description = "Server-sent events instead of a page")),
    responses((status = 200, description = "A page of events", body = EventList)))]
pub async fn events(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    let watched = ask.flag("watch")?;
    let from = ask.number("from", u64::MAX)?;
    let per_page = ask.number("per_page", MAX_PER_PAGE)?.filter(|n| *n > 0).unwrap_or(PER_PAGE);
    let from = ask.number("next_token", u64::MAX)?.or(from);
    ask.finish()?;
    if watched {
        let from = watch::start(&service, &ask.headers, from, call.past_index)?;
        return watch::events(&service, &call.who, from, call.tenant).await;
    }
    let (events, next) = service.events(from.unwrap_or(1), per_page as usize, call.tenant.as_ref()).await?;
    let simulation = service.simulation();
    let items = events.iter().map(|event| EventBody::new(event, simulation, call.tenant.as_ref())).collect();
    let more = next < service.replica.applied().state.meta().next_event;
    let next_token = more.then(|| next.to_string());
    Ok(json(StatusCode::OK, &EventList { items, next_token, next, simulation }))
}

/// How this member does; 200 while the process is alive.
#[utoipa::path(get, path = "/health", tag = "health",
    responses((status = 200, description = "Alive", body = HealthBody)))]
pub async fn health(State(service): State<Service>) -> Answer {
    Ok(json(StatusCode::OK, &service.health()))
}

/// Whether calls are better sent here than not.
#[utoipa::path(get, path = "/health/ready", tag = "health",
    responses((status = 200, description = "A leader is known and the lag is bounded", body = HealthBody)))]
pub async fn ready(State(service): State<Service>) -> Answer {
    Ok(json(StatusCode::OK, &service.ready()?))
}

/// The replicas that listen, for Prometheus' `http_sd_configs`.
#[utoipa::path(get, path = "/sd/prometheus", tag = "health",
    params(("tenant_id" = Option<String>, Query, description = "Only this tenant's"),
           ("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale")),
    responses((status = 200, description = "Groups of targets", body = Vec<TargetBody>)))]
pub async fn targets(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let mut response = json(StatusCode::OK, &service.targets(&call).await?);
    // The shape is Prometheus' own and has no room for it.
    let said = if service.simulation() { "true" } else { "false" };
    response.headers_mut().insert("x-nf-simulation", HeaderValue::from_static(said));
    Ok(response)
}

/// Metrics in the Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "health",
    responses((status = 200, description = "Prometheus text format", body = String, content_type = "text/plain")))]
pub async fn metrics(State(service): State<Service>, ask: Ask) -> Answer {
    let only = ask.who.sees(None)?;
    let text = off_thread(move || service.render_metrics()).await?;
    let text = only.map_or_else(|| text.to_string(), |tenant| gauges::part_of(&text, &tenant));
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// What more nodes would change for the jobs that wait; commits nothing.
#[utoipa::path(post, path = "/cluster/what-if", tag = "cluster", request_body = schema::WhatIfRequest,
    responses((status = 200, description = "Who would start", body = WhatIfBody)))]
pub async fn what_if(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let kinds = convert::added(&ask.json(false).await?)?;
    let body = service.what_if(&call, kinds).await?;
    Ok(fresh(&body, &body.read))
}
