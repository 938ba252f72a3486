//! `/consents`: what tenants let be kept on nodes of data about people.

use super::ask::Ask;
use super::{Answer, fresh, json, schema};
use crate::api::convert::consent::{self as convert, ConsentBody, ConsentList};
use crate::api::service::Service;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A consent that was put on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsentedBody {
    #[serde(flatten)]
    pub consent: ConsentBody,
    pub simulation: bool,
    pub index: u64,
}

/// A consent that was taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DissentedBody {
    /// False when none counted.
    pub revoked: bool,
    pub simulation: bool,
    pub index: u64,
}

/// Puts a tenant's signed statement on record: versions with such data may run for it until the statement ends.
#[utoipa::path(post, path = "/consents", tag = "models", request_body = schema::ConsentRequest,
    responses((status = 201, description = "On record", body = ConsentedBody)))]
pub async fn grant(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let (tenant, statement) = convert::granted(&ask.json(false).await?)?;
    let (consent, index) = service.consent(&call, tenant, statement).await?;
    Ok(json(StatusCode::CREATED, &ConsentedBody { consent, simulation: service.simulation(), index }))
}

/// Takes a consent back: what runs by it alone is drained and stopped, and every node removes its copies.
#[utoipa::path(post, path = "/consents/revoke", tag = "models", request_body = schema::DissentRequest,
    responses((status = 200, description = "It counts no more", body = DissentedBody)))]
pub async fn revoke(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let (tenant, statement) = convert::named(&ask.json(false).await?)?;
    let (revoked, index) = service.dissent(&call, tenant, statement).await?;
    Ok(json(StatusCode::OK, &DissentedBody { revoked, simulation: service.simulation(), index }))
}

/// What is on record, and which nodes may have copies of such data.
#[utoipa::path(get, path = "/consents", tag = "models",
    params(("tenant_id" = Option<String>, Query, description = "Only this tenant's"),
           ("per_page" = Option<u64>, Query, description = "Rows of a page, 1 to 1000"),
           ("next_token" = Option<String>, Query, description = "Where the page before ended"),
           ("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale")),
    responses((status = 200, description = "The consents", body = ConsentList)))]
pub async fn list(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    let page = ask.page()?;
    ask.finish()?;
    let body = service.consents(&call, page).await?;
    Ok(fresh(&body, &body.read))
}
