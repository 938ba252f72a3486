//! `/tenants` and their quotas.

use super::ask::{Ask, Part};
use super::{Answer, fresh, json, path, schema, tagged};
use crate::api::convert::node as convert;
use crate::api::service::Service;
use crate::api::service::nodes::TenantBody;
use crate::api::service::tenants::TenantList;
use axum::extract::State;
use axum::http::StatusCode;
use nf_core::id::TenantId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A change that is committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoneBody {
    pub tenant_id: String,
    pub ok: bool,
    pub simulation: bool,
    pub index: u64,
}

/// All tenants with quota and use.
#[utoipa::path(get, path = "/tenants", tag = "tenants",
    params(("tenant_id" = Option<String>, Query, description = "Only this one"),
           ("per_page" = Option<u64>, Query, description = "Rows of a page, 1 to 1000"),
           ("next_token" = Option<String>, Query, description = "Where the page before ended"),
           ("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale")),
    responses((status = 200, description = "The tenants", body = TenantList)))]
pub async fn list(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    let page = ask.page()?;
    ask.finish()?;
    let body = service.tenants(&call, page).await?;
    Ok(fresh(&body, &body.read))
}

/// Creates a tenant. One that exists stays as it is.
#[utoipa::path(post, path = "/tenants", tag = "tenants", request_body = schema::TenantRequest,
    responses((status = 201, description = "It exists", body = DoneBody)))]
pub async fn create(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let tenant = convert::tenant(&ask.json(false).await?)?;
    let index = service.create_tenant(&call, tenant.clone()).await?;
    Ok(json(StatusCode::CREATED, &done(&service, &tenant, index)))
}

fn done(service: &Service, tenant: &TenantId, index: u64) -> DoneBody {
    DoneBody { tenant_id: tenant.to_string(), ok: true, simulation: service.simulation(), index }
}

/// Deletes a tenant that has no live jobs.
#[utoipa::path(delete, path = "/tenants/{tenant_id}", tag = "tenants",
    params(("tenant_id" = String, Path, description = "The tenant")),
    responses((status = 200, description = "It is gone", body = DoneBody)))]
pub async fn delete(State(service): State<Service>, Part(id): Part, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let tenant = path("tenant_id", &id, TenantId::new)?;
    let index = service.delete_tenant(&call, tenant.clone()).await?;
    Ok(json(StatusCode::OK, &done(&service, &tenant, index)))
}

/// A tenant's quota and use.
#[utoipa::path(get, path = "/tenants/{tenant_id}/quota", tag = "tenants",
    params(("tenant_id" = String, Path, description = "The tenant")),
    responses((status = 200, description = "Quota and use", body = TenantBody)))]
pub async fn quota(State(service): State<Service>, Part(id): Part, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let tenant = path("tenant_id", &id, TenantId::new)?;
    call.who.sees(Some(tenant.clone()))?;
    let body = service.tenant(&call, &tenant).await?;
    Ok(tagged(&body, &body.etag))
}

/// Sets a tenant's quota, all of it; the tenant exists from then on.
#[utoipa::path(put, path = "/tenants/{tenant_id}/quota", tag = "tenants", request_body = schema::QuotaRequest,
    params(("tenant_id" = String, Path, description = "The tenant"),
           ("If-Match" = Option<String>, Header, description = "ETag of the quota; 409 when it has changed since")),
    responses((status = 200, description = "Quota and use", body = TenantBody)))]
pub async fn set_quota(State(service): State<Service>, Part(id): Part, mut ask: Ask) -> Answer {
    let (call, seen) = (ask.call()?, ask.if_match()?);
    ask.finish()?;
    let tenant = path("tenant_id", &id, TenantId::new)?;
    let quota = convert::quota(&ask.json(false).await?)?;
    let body = service.set_quota(&call, &tenant, quota, seen).await?;
    Ok(tagged(&body, &body.etag))
}
