//! `/services`, and the number of a job's replicas.

use super::ask::{Ask, Part};
use super::{Answer, fresh, path, schema};
use crate::api::convert::answer::JobBody;
use crate::api::convert::schedule::scale;
use crate::api::service::Service;
use crate::api::service::services::ServiceList;
use axum::extract::State;
use nf_core::id::RequestId;

/// Lists services: every tenant and model with a job.
#[utoipa::path(get, path = "/services", tag = "services",
    params(("tenant_id" = Option<String>, Query, description = "Only this tenant's"),
           ("per_page" = Option<u64>, Query, description = "Rows of a page, 1 to 1000"),
           ("next_token" = Option<String>, Query, description = "Where the page before ended"),
           ("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale")),
    responses((status = 200, description = "The services", body = ServiceList)))]
pub async fn list(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    let page = ask.page()?;
    ask.finish()?;
    let body = service.services(&call, page).await?;
    Ok(fresh(&body, &body.read))
}

/// Sets the number of replicas of a job that scales, until the autoscaler sees reason for another.
#[utoipa::path(post, path = "/schedule/{request_id}/scale", tag = "services", request_body = schema::ScaleRequest,
    params(("request_id" = String, Path, description = "The job's id"),
           ("tenant_id" = Option<String>, Query, description = "Whose job it is; to be named where several tenants have one of that id")),
    responses((status = 200, description = "The job, with the new number", body = JobBody)))]
pub async fn resize(State(service): State<Service>, Part(id): Part, mut ask: Ask) -> Answer {
    let call = ask.act()?;
    ask.finish()?;
    let request = path("request_id", &id, RequestId::new)?;
    let replicas = scale(&ask.json(false).await?)?;
    let found = service.scale(&call, &request, replicas).await?;
    let body = JobBody::new(&found.job, found.simulation, found.read);
    Ok(fresh(&body, &body.read))
}
