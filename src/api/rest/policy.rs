//! `/policy/placement`.

use super::ask::Ask;
use super::{Answer, fresh, schema, tagged};
use crate::api::convert::policy as convert;
use crate::api::service::Service;
use crate::api::service::policy::{PolicyBody, TriedBody};
use axum::extract::State;

/// The placement policy that the group goes by.
#[utoipa::path(get, path = "/policy/placement", tag = "policy",
    params(("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale")),
    responses((status = 200, description = "The policy", body = PolicyBody)))]
pub async fn get(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let body = service.placement_policy(&call).await?;
    Ok(tagged(&body, &body.etag))
}

/// Sets the placement policy, all of it; every later decision goes by it.
#[utoipa::path(put, path = "/policy/placement", tag = "policy", request_body = schema::PolicyRequest,
    params(("If-Match" = Option<String>, Header, description = "ETag of the policy; 409 when it has changed since")),
    responses((status = 200, description = "The policy", body = PolicyBody)))]
pub async fn set(State(service): State<Service>, mut ask: Ask) -> Answer {
    let (call, seen) = (ask.call()?, ask.if_match()?);
    ask.finish()?;
    let (chosen, dry_run) = convert::chosen(&ask.json(false).await?)?;
    let body = match dry_run {
        true => service.would_be_placement_policy(&call, chosen).await?,
        false => service.set_placement_policy(&call, chosen, seen).await?,
    };
    Ok(tagged(&body, &body.etag))
}

/// What a placement policy would have made of the last day: its placements made again, and nothing committed.
#[utoipa::path(post, path = "/policy/placement/try", tag = "policy", request_body = schema::PolicyRequest,
    responses((status = 200, description = "The policy in force and the other side by side", body = TriedBody)))]
pub async fn try_out(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let (chosen, _) = convert::chosen(&ask.json(false).await?)?;
    let body = service.try_placement_policy(&call, chosen).await?;
    Ok(fresh(&body, &body.read))
}
