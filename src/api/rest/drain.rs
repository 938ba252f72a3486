//! `/node/{node_id}/drain` and `/down`: emptying a node, and giving up a dead one.

use super::ask::{Ask, Part};
use super::{Answer, path, schema, tagged};
use crate::api::convert::node as convert;
use crate::api::service::Service;
use crate::api::service::drain::{DrainBody, DrainCall};
use crate::api::service::nodes::NodeBody;
use axum::extract::State;
use nf_core::id::NodeName;

/// Empties a node: each replica gets a replacement elsewhere before it stops.
#[utoipa::path(post, path = "/node/{node_id}/drain", tag = "nodes", request_body = schema::DrainRequest,
    params(("node_id" = String, Path, description = "The node"),
           ("If-Match" = Option<String>, Header, description = "ETag of the node; 409 when its cordon has changed since")),
    responses((status = 200, description = "The node, and what becomes of its replicas", body = DrainBody)))]
pub async fn drain(State(service): State<Service>, Part(id): Part, mut ask: Ask) -> Answer {
    let (call, seen) = (ask.call()?, ask.if_match()?);
    ask.finish()?;
    let node = path("node_id", &id, NodeName::new)?;
    let (reason, drain, dry_run) = convert::drain(&ask.json(true).await?)?;
    let body = service.drain(&call, DrainCall { node, reason, drain, dry_run, seen }).await?;
    Ok(tagged(&body, &body.node.etag))
}

/// Gives up a silent node at once: the caller knows that it is dead.
#[utoipa::path(post, path = "/node/{node_id}/down", tag = "nodes",
    params(("node_id" = String, Path, description = "The node")),
    responses((status = 200, description = "The node", body = NodeBody)))]
pub async fn down(State(service): State<Service>, Part(id): Part, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let node = path("node_id", &id, NodeName::new)?;
    convert::nothing(&ask.json(true).await?)?;
    let body = service.give_up(&call, node).await?;
    Ok(tagged(&body, &body.etag))
}
