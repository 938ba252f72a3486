//! `/node/{node_id}/devices/{device}`: faults of single devices, and taking one back.

use super::ask::{Ask, Part};
use super::{Answer, path, schema, tagged};
use crate::api::convert::node as convert;
use crate::api::service::Service;
use crate::api::service::nodes::NodeBody;
use axum::extract::State;
use nf_core::id::NodeName;

/// Leaves a device alone, for a fault that is made up (simulated nodes) or by the caller's word.
#[utoipa::path(post, path = "/node/{node_id}/devices/{device}/fault", tag = "nodes",
    request_body = schema::FaultRequest,
    params(("node_id" = String, Path, description = "The node"),
           ("device" = String, Path, description = "Its number on the node, or its uuid")),
    responses((status = 200, description = "The node", body = NodeBody)))]
pub async fn fault(State(service): State<Service>, Part((id, device)): Part<(String, String)>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let node = path("node_id", &id, NodeName::new)?;
    let fault = convert::fault(&ask.json(true).await?)?;
    let body = service.fault(&call, node, &device, fault).await?;
    Ok(tagged(&body, &body.etag))
}

/// Takes a device back that was in quarantine.
#[utoipa::path(post, path = "/node/{node_id}/devices/{device}/heal", tag = "nodes",
    params(("node_id" = String, Path, description = "The node"),
           ("device" = String, Path, description = "Its number on the node, or its uuid")),
    responses((status = 200, description = "The node", body = NodeBody)))]
pub async fn heal(State(service): State<Service>, Part((id, device)): Part<(String, String)>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let node = path("node_id", &id, NodeName::new)?;
    convert::nothing(&ask.json(true).await?)?;
    let body = service.heal(&call, node, &device).await?;
    Ok(tagged(&body, &body.etag))
}
