//! `/defrag`: moves that leave more of the idle GPU usable.

use super::ask::Ask;
use super::{Answer, fresh, schema};
use crate::api::convert::node::dry_run;
use crate::api::service::Service;
use crate::api::service::defrag::DefragBody;
use axum::extract::State;

/// Moves the few running replicas that win most idle GPU for those who ask; each is replaced before it stops.
#[utoipa::path(post, path = "/defrag", tag = "nodes", request_body = schema::DefragRequest,
    responses((status = 200, description = "The moves", body = DefragBody)))]
pub async fn defrag(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let dry_run = dry_run(&ask.json(true).await?)?;
    let body = service.defrag(&call, dry_run).await?;
    Ok(fresh(&body, &body.read))
}
