//! `/usage`: GPU-hours and money of each tenant.

use super::ask::Ask;
use super::{Answer, fresh};
use crate::api::service::Service;
use crate::api::service::usage::{self, UsageList};
use axum::extract::State;

/// What tenants have used in the present day, week and month, and in the ones before. A tenant's use
/// contains that of those below it.
#[utoipa::path(get, path = "/usage", tag = "tenants",
    params(("tenant_id" = Option<String>, Query, description = "Only this one"),
           ("window" = Option<String>, Query, description = "Only day, week or month"),
           ("per_page" = Option<u64>, Query, description = "Tenants of a page, 1 to 1000"),
           ("next_token" = Option<String>, Query, description = "Where the page before ended"),
           ("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale")),
    responses((status = 200, description = "A row for each tenant and window", body = UsageList)))]
pub async fn list(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    let page = ask.page()?;
    let window = usage::window(ask.text("window")?.as_deref().unwrap_or_default())?;
    ask.finish()?;
    let body = service.usage(&call, window, page).await?;
    Ok(fresh(&body, &body.read))
}
