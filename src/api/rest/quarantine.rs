//! `/quarantine`: versions of which the store gave a node other bytes than their manifests say.

use super::ask::Ask;
use super::{Answer, fresh, json, schema};
use crate::api::convert::approval::released;
use crate::api::service::Service;
use crate::api::service::quarantine::QuarantineList;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A version that may be let in again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReleasedBody {
    /// False when it was in no quarantine.
    pub released: bool,
    pub simulation: bool,
    pub index: u64,
}

/// Lets a version be tried again: somebody has looked into what a node found of it with that manifest.
#[utoipa::path(post, path = "/quarantine/release", tag = "models", request_body = schema::ReleaseRequest,
    responses((status = 200, description = "It may be let in again", body = ReleasedBody),
              (status = 409, description = "It is in quarantine with another manifest, which is named")))]
pub async fn release(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let asked = released(&ask.json(false).await?)?;
    let (released, index) = service.release(&call, asked).await?;
    Ok(json(StatusCode::OK, &ReleasedBody { released, simulation: service.simulation(), index }))
}

/// What is in quarantine, and which node found it: new jobs, rollouts and rollbacks of it are refused (409).
#[utoipa::path(get, path = "/quarantine", tag = "models",
    params(("tenant_id" = Option<String>, Query, description = "Only this tenant's"),
           ("per_page" = Option<u64>, Query, description = "Rows of a page, 1 to 1000"),
           ("next_token" = Option<String>, Query, description = "Where the page before ended"),
           ("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale")),
    responses((status = 200, description = "The versions", body = QuarantineList)))]
pub async fn list(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    let page = ask.page()?;
    ask.finish()?;
    let body = service.quarantine(&call, page).await?;
    Ok(fresh(&body, &body.read))
}
