//! `/approvals`: which versions may run in production, by whose word.

use super::ask::Ask;
use super::{Answer, fresh, json, schema};
use crate::api::convert::approval::{self as convert, ApprovalBody, ApprovalList};
use crate::api::service::Service;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A version that was approved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApprovedBody {
    #[serde(flatten)]
    pub approval: ApprovalBody,
    pub simulation: bool,
    pub index: u64,
}

/// An approval that was taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DisapprovedBody {
    /// False when there was none.
    pub revoked: bool,
    pub simulation: bool,
    pub index: u64,
}

/// Lets a version run in production: these bytes, for a while, by another person than whoever then schedules it.
#[utoipa::path(post, path = "/approvals", tag = "models", request_body = schema::ApproveRequest,
    responses((status = 201, description = "On record", body = ApprovedBody)))]
pub async fn approve(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let wanted = convert::wanted(&ask.json(false).await?)?;
    let (approval, index) = service.approve(&call, wanted).await?;
    Ok(json(StatusCode::CREATED, &ApprovedBody { approval, simulation: service.simulation(), index }))
}

/// Takes an approval back: what runs on it is drained and stopped, nothing new starts.
#[utoipa::path(post, path = "/approvals/revoke", tag = "models", request_body = schema::DisapproveRequest,
    responses((status = 200, description = "It counts no more", body = DisapprovedBody)))]
pub async fn revoke(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let of = convert::named(&ask.json(false).await?)?;
    let (revoked, index) = service.disapprove(&call, of).await?;
    Ok(json(StatusCode::OK, &DisapprovedBody { revoked, simulation: service.simulation(), index }))
}

/// What is approved, and until when.
#[utoipa::path(get, path = "/approvals", tag = "models",
    params(("tenant_id" = Option<String>, Query, description = "Only this tenant's"),
           ("per_page" = Option<u64>, Query, description = "Rows of a page, 1 to 1000"),
           ("next_token" = Option<String>, Query, description = "Where the page before ended"),
           ("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale")),
    responses((status = 200, description = "The approvals", body = ApprovalList)))]
pub async fn list(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    let page = ask.page()?;
    ask.finish()?;
    let body = service.approvals(&call, page).await?;
    Ok(fresh(&body, &body.read))
}
