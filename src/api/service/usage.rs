//! What tenants have used: GPU-hours and money in the present day, week and month, and in
//! the ones before. The meter is part of the state; this only reads it, up to log time.

use super::list::NumberPage;
use super::{Call, Service, freshness};
use crate::api::convert::answer::{Freshness, time};
use crate::api::error::Failure;
use nf_core::budget::{Kind, Window, judge};
use nf_core::command::Mode;
use nf_core::id::TenantNo;
use nf_core::state::State;
use nf_core::tenant::Tenant;
use serde::{Deserialize, Serialize};
use std::ops::Bound;
use utoipa::ToSchema;

/// One tenant, with those below it, in one window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageBody {
    pub tenant_id: String,
    /// The tenant above it, whose use this is part of.
    pub parent: Option<String>,
    /// day, week or month, in UTC; a week begins on Monday.
    pub window: String,
    pub from: String,
    /// When the window ends.
    pub to: String,
    pub gpu_hours: f64,
    /// Kept for what runs: to the end of the window, or half an hour ahead for what a service can do without.
    pub gpu_hours_reserved: f64,
    pub gpu_hours_limit: Option<f64>,
    /// In the window before.
    pub gpu_hours_before: f64,
    /// In the unit of the nodes' prices.
    pub money: f64,
    pub money_reserved: f64,
    pub money_limit: Option<f64>,
    pub money_before: f64,
}

/// What tenants have used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageList {
    pub items: Vec<UsageBody>,
    /// For the next page; null on the last one.
    pub next_token: Option<String>,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}

/// A quantity as it is told.
pub fn number(kind: Kind, told: u64) -> f64 {
    match kind {
        Kind::GpuHours => told as f64 / 1e3,
        Kind::Money => told as f64 / 1e6,
    }
}

fn usage(state: &State, tenant: &Tenant, window: Window) -> UsageBody {
    let now = state.meta().now_ms;
    let [gpu, money] = judge::standing(state, tenant, window);
    let of = |kind, told| number(kind, told);
    UsageBody {
        tenant_id: tenant.id.to_string(),
        parent: tenant.quota.parent.as_ref().map(ToString::to_string),
        window: window.name().to_owned(),
        from: time(window.start_ms(now)),
        to: time(window.end_ms(now)),
        gpu_hours: of(gpu.kind, gpu.used),
        gpu_hours_reserved: of(gpu.kind, gpu.reserved),
        gpu_hours_limit: gpu.limit.map(|limit| of(gpu.kind, limit)),
        gpu_hours_before: of(gpu.kind, gpu.before),
        money: of(money.kind, money.used),
        money_reserved: of(money.kind, money.reserved),
        money_limit: money.limit.map(|limit| of(money.kind, limit)),
        money_before: of(money.kind, money.before),
    }
}

impl Service {
    /// Each tenant's rows, one for each window; `only` one of them. A page is of so many tenants.
    pub async fn usage(&self, call: &Call, only: Option<Window>, page: NumberPage) -> Result<UsageList, Failure> {
        let view = self.read(call).await?;
        let state = &view.state;
        let after = page.after.map_or(TenantNo(0), |no| TenantNo(no as u32));
        let rest = state.tenants().range((Bound::Excluded(after), Bound::Unbounded)).map(|(_, t)| t);
        let listed = rest.filter(|t| call.tenant.as_ref().is_none_or(|tenant| *tenant == t.id));
        let mut tenants: Vec<_> = listed.take(page.per_page + 1).collect();
        let more = tenants.len() > page.per_page;
        tenants.truncate(page.per_page);
        let windows = || Window::ALL.into_iter().filter(move |window| only.is_none_or(|only| only == *window));
        let wide = call.who.wide();
        let told = move |row: UsageBody| UsageBody { parent: row.parent.filter(|_| wide), ..row };
        let rows = tenants.iter().flat_map(|tenant| windows().map(move |window| told(usage(state, tenant, window))));
        Ok(UsageList {
            items: rows.collect(),
            next_token: tenants.last().filter(|_| more).map(|t| page.token(u64::from(t.no.0))),
            simulation: state.meta().mode == Mode::Simulation,
            read: freshness(&view),
        })
    }
}

/// The window of that name, if one is named.
///
/// # Errors
/// A name that is none.
pub fn window(name: &str) -> Result<Option<Window>, nf_core::reason::Refusal> {
    let bad = || nf_core::reason::Refusal::invalid("window", "day, week or month");
    match name {
        "" => Ok(None),
        name => Window::named(name).map(Some).ok_or_else(bad),
    }
}
