//! `/slo`: a service's promise and how it is kept.

use super::ask::{Ask, Part};
use super::{Answer, fresh, path};
use crate::api::service::Service;
use crate::api::service::slo::SloBody;
use axum::extract::State;
use nf_core::id::{ModelId, TenantId};

/// What a service promises, how it kept the promise over five windows, what is left of its error
/// budget, and what the autoscaler would do. Every tenant and model with a job is a service.
#[utoipa::path(get, path = "/slo/{tenant_id}/{model_id}", tag = "services",
    params(("tenant_id" = String, Path, description = "The tenant"),
           ("model_id" = String, Path, description = "The model"),
           ("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale")),
    responses((status = 200, description = "The promise and how it is kept", body = SloBody)))]
pub async fn slo(
    State(service): State<Service>,
    Part((tenant, model)): Part<(String, String)>,
    mut ask: Ask,
) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let (tenant, model) = (path("tenant_id", &tenant, TenantId::new)?, path("model_id", &model, ModelId::new)?);
    call.who.sees(Some(tenant.clone()))?;
    let body = service.slo(&call, &tenant, &model).await?;
    Ok(fresh(&body, &body.read))
}
