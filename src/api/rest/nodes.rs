//! `/resources`, `/node` and `/nodes`.

use super::ask::{Ask, Part};
use super::schedule::{key, same_tenant, schedule_body};
use super::{Answer, fresh, json, path, schema, tagged};
use crate::api::convert::answer::ScheduleBody;
use crate::api::convert::node as convert;
use crate::api::service::Service;
use crate::api::service::list::node_state;
use crate::api::service::nodes::{NodeBody, NodeList, ResourcesAnswer};
use crate::api::service::outlines::OutlineList;
use axum::extract::State;
use axum::http::StatusCode;
use nf_core::id::NodeName;
use nf_core::job::JobState;
use nf_core::reason::Refusal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the cluster has and who holds it.
#[utoipa::path(get, path = "/resources", tag = "resources",
    params(("tenant_id" = Option<String>, Query, description = "List only this tenant's use"),
           ("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale"),
           ("index" = Option<u64>, Query, description = "Answer once the log is past this index"),
           ("wait" = Option<String>, Query, description = "How long to wait for that, such as 10s")),
    responses((status = 200, description = "Total, reserved and free, per node and per tenant", body = ResourcesAnswer)))]
pub async fn resources(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let body = service.resources(&call).await?;
    Ok(fresh(&body, &body.read))
}

/// A node is in the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegisteredBody {
    pub node_id: String,
    pub registered: bool,
    pub simulation: bool,
    pub index: u64,
}

async fn registered(service: Service, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let wanted = convert::registration(&ask.json(true).await?)?;
    let done = service.register_node(&call, wanted).await?;
    let code = if done.new { StatusCode::CREATED } else { StatusCode::OK };
    let body = RegisteredBody {
        node_id: done.name.to_string(),
        registered: true,
        simulation: done.simulation,
        index: done.index,
    };
    Ok(json(code, &body))
}

/// Registers a node, played by the member that takes the call (simulation only).
#[utoipa::path(post, path = "/resources/register", tag = "resources", request_body = schema::RegisterRequest,
    responses((status = 201, description = "New", body = RegisteredBody),
              (status = 200, description = "Known already", body = RegisteredBody)))]
pub async fn register_resource(State(service): State<Service>, ask: Ask) -> Answer {
    registered(service, ask).await
}

/// The same as `/resources/register`.
#[utoipa::path(post, path = "/node/register", tag = "nodes", request_body = schema::RegisterRequest,
    responses((status = 201, description = "New", body = RegisteredBody),
              (status = 200, description = "Known already", body = RegisteredBody)))]
pub async fn register(State(service): State<Service>, ask: Ask) -> Answer {
    registered(service, ask).await
}

/// A job pinned to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LaunchBody {
    /// It has its place; false while it waits.
    pub launched: bool,
    /// Where a simulated replica writes its run file; `{request_id}~0~{tenant_id}.json` beside it while another
    /// tenant's job of that id has this one.
    pub file: String,
    pub request_id: String,
    pub simulation: bool,
    pub schedule: ScheduleBody,
}

/// Commits a job pinned to one node, under the same checks as any other.
#[utoipa::path(post, path = "/node/launch", tag = "nodes", request_body = schema::LaunchRequest,
    responses((status = 201, description = "Has its place", body = LaunchBody),
              (status = 202, description = "Waits for its place", body = LaunchBody)))]
pub async fn launch(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let key = key(&ask.headers)?;
    let (node, mut wanted) = convert::launch(&ask.json(false).await?)?;
    call.who.acts(Some(wanted.spec.tenant.clone()))?;
    same_tenant(&call, &wanted)?;
    if wanted.dry_run {
        return Err(Refusal::invalid("dry_run", "plan it with POST /schedule, constraints.node and dry_run").into());
    }
    let own = || path("node_id", &service.info.node_name, NodeName::new);
    let node = node.or(wanted.spec.constraints.node.take()).map_or_else(own, Ok)?;
    wanted.spec.constraints.node = Some(node);
    let done = service.schedule(&call, wanted, key.as_deref()).await?;
    let launched = done.job.state != JobState::Pending;
    let body = LaunchBody {
        launched,
        file: format!("{}/{}.json", service.info.run_dir.trim_end_matches('/'), done.job.request),
        request_id: done.job.request.to_string(),
        simulation: done.simulation,
        schedule: schedule_body(&done),
    };
    Ok(json(if launched { StatusCode::CREATED } else { StatusCode::ACCEPTED }, &body))
}

/// Nodes, as far as the caller sees them.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum NodesAnswer {
    /// For admins and machines.
    Whole(NodeList),
    /// For operators.
    Outlines(OutlineList),
}

/// All nodes with their devices. Operators, who may ask for a node by its name, get of each its name, state, place,
/// labels and what it has.
#[utoipa::path(get, path = "/nodes", tag = "nodes",
    params(("state" = Option<String>, Query, description = "Only in this state"),
           ("vitals" = Option<bool>, Query, description = "Say how GPUs do now, where their drivers answer"),
           ("per_page" = Option<u64>, Query, description = "Rows of a page, 1 to 1000"),
           ("next_token" = Option<String>, Query, description = "Where the page before ended"),
           ("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale"),
           ("index" = Option<u64>, Query, description = "Answer once the log is past this index"),
           ("wait" = Option<String>, Query, description = "How long to wait for that, such as 10s")),
    responses((status = 200, description = "The nodes, for operators in outline", body = NodesAnswer)))]
pub async fn list(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    let only = ask.text("state")?.map(|text| node_state(&text)).transpose()?;
    let (page, vitals) = (ask.page()?, ask.flag("vitals")?);
    ask.finish()?;
    if vitals {
        call.who.needs_wide()?;
    }
    if !call.who.wide() {
        let body = service.outlines(&call, only, page).await?;
        let read = body.read.clone();
        return Ok(fresh(&NodesAnswer::Outlines(body), &read));
    }
    let body = service.nodes(&call, only, page, vitals).await?;
    let read = body.read.clone();
    Ok(fresh(&NodesAnswer::Whole(body), &read))
}

/// Keeps new work off a node.
#[utoipa::path(post, path = "/node/{node_id}/cordon", tag = "nodes", request_body = schema::CordonRequest,
    params(("node_id" = String, Path, description = "The node"),
           ("If-Match" = Option<String>, Header, description = "ETag of the node; 409 when its cordon has changed since")),
    responses((status = 200, description = "The node", body = NodeBody)))]
pub async fn cordon(State(service): State<Service>, Part(id): Part, mut ask: Ask) -> Answer {
    let (call, seen) = (ask.call()?, ask.if_match()?);
    ask.finish()?;
    let node = path("node_id", &id, NodeName::new)?;
    let reason = convert::cordon(&ask.json(true).await?)?;
    let body = service.cordon(&call, node, Some(reason), seen).await?;
    Ok(tagged(&body, &body.etag))
}

/// Lets new work back onto a node.
#[utoipa::path(post, path = "/node/{node_id}/uncordon", tag = "nodes",
    params(("node_id" = String, Path, description = "The node"),
           ("If-Match" = Option<String>, Header, description = "ETag of the node; 409 when its cordon has changed since")),
    responses((status = 200, description = "The node", body = NodeBody)))]
pub async fn uncordon(State(service): State<Service>, Part(id): Part, mut ask: Ask) -> Answer {
    let (call, seen) = (ask.call()?, ask.if_match()?);
    ask.finish()?;
    let node = path("node_id", &id, NodeName::new)?;
    let body = service.cordon(&call, node, None, seen).await?;
    Ok(tagged(&body, &body.etag))
}
