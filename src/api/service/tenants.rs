//! Use cases about tenants and quotas. A tenant exists once it is named; these
//! are for those who want it explicit.

use super::nodes::{TenantBody, tenant_body};
use super::{Call, Service, freshness};
use crate::api::convert::answer::{Freshness, whole};
use crate::api::error::Failure;
use nf_core::budget::{Kind, Window};
use nf_core::command::Mode;
use nf_core::id::{Digest16, TenantId, TenantNo};
use nf_core::ledger::TenantUse;
use nf_core::plan::Intent;
use nf_core::reason::{Reason, Refusal};
use nf_core::tenant::{Quota, Share};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Bound;
use utoipa::ToSchema;

/// Limits that a tenant has of its own, in the form in which they are set. Null:
/// none of its own, which for GPUs and waiting jobs means the default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QuotaBody {
    pub gpu: Option<f64>,
    pub tpu: Option<u64>,
    pub cpu: Option<f64>,
    /// Bytes.
    pub mem: Option<u64>,
    /// Most jobs that may wait at once.
    pub waiting: Option<u32>,
    /// The tenant above it in the tree; null: none.
    #[serde(default)]
    pub parent: Option<String>,
    /// Most GPUs beyond `gpu` that it may borrow from its neighbours below the same parent; null: what they don't use.
    #[serde(default)]
    pub borrow: Option<f64>,
    /// Most of its unused GPUs that its neighbours may borrow; null: all.
    #[serde(default)]
    pub lend: Option<f64>,
    /// GPU-hours that it and those below it may use, by window: day, week, month.
    #[serde(default)]
    pub gpu_hours: BTreeMap<String, f64>,
    /// Money, in the unit of the nodes' prices.
    #[serde(default)]
    pub money: BTreeMap<String, f64>,
    /// Limits of single device types, by name.
    #[serde(default)]
    pub device_types: BTreeMap<String, TypeBody>,
    /// It accepts parts of GPUs that nothing keeps anybody to.
    #[serde(default)]
    pub soft_sharing: bool,
}

/// Limits of one device type, in GPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TypeBody {
    pub gpu: f64,
    /// Most beyond `gpu` that it may borrow; null: what others don't use.
    #[serde(default)]
    pub borrow: Option<f64>,
    /// Most of its unused ones that others may borrow; null: all.
    #[serde(default)]
    pub lend: Option<f64>,
}

/// What a tenant holds now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UseBody {
    pub gpu: f64,
    pub tpu: u64,
    pub cpu: f64,
    /// Bytes.
    pub mem: u64,
    /// Jobs that wait.
    pub waiting: u32,
    /// GPUs of each device type of which it holds some.
    #[serde(default)]
    pub device_types: BTreeMap<String, f64>,
}

impl From<TenantUse> for UseBody {
    fn from(used: TenantUse) -> Self {
        Self {
            gpu: whole(used.gpu_milli),
            tpu: used.tpu,
            cpu: whole(used.cpu_milli),
            mem: used.memory,
            waiting: used.waiting,
            device_types: BTreeMap::new(),
        }
    }
}

impl From<&Quota> for QuotaBody {
    fn from(quota: &Quota) -> Self {
        Self {
            gpu: quota.gpu_milli.map(whole),
            tpu: quota.tpu,
            cpu: quota.cpu_milli.map(whole),
            mem: quota.memory,
            waiting: quota.waiting,
            parent: quota.parent.as_ref().map(ToString::to_string),
            borrow: quota.borrow_milli.map(whole),
            lend: quota.lend_milli.map(whole),
            gpu_hours: budgets(quota, Kind::GpuHours),
            money: budgets(quota, Kind::Money),
            device_types: quota.types.iter().map(|(kind, share)| (kind.to_string(), share.into())).collect(),
            soft_sharing: quota.soft_sharing,
        }
    }
}

impl From<&Share> for TypeBody {
    fn from(share: &Share) -> Self {
        Self { gpu: whole(share.gpu_milli), borrow: share.borrow_milli.map(whole), lend: share.lend_milli.map(whole) }
    }
}

fn budgets(quota: &Quota, kind: Kind) -> BTreeMap<String, f64> {
    let limit = |window: Window| Some((window, quota.budgets.as_ref()?.get(kind, window)?));
    let limits = Window::ALL.into_iter().filter_map(limit);
    limits.map(|(window, limit)| (window.name().to_owned(), super::usage::number(kind, limit))).collect()
}

/// All tenants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TenantList {
    pub items: Vec<TenantBody>,
    /// For the next page; null on the last one.
    pub next_token: Option<String>,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}

/// A tenant sees its own limits, and not who is above it: that is another tenant.
pub(super) fn told(call: &Call, mut body: TenantBody) -> TenantBody {
    if !call.who.wide() {
        body.quota.parent = None;
    }
    body
}

impl Service {
    pub async fn tenants(&self, call: &Call, page: super::list::NumberPage) -> Result<TenantList, Failure> {
        let view = self.read(call).await?;
        let state = &view.state;
        let after = page.after.map_or(TenantNo(0), |no| TenantNo(no as u32));
        let rest = state.tenants().range((Bound::Excluded(after), Bound::Unbounded)).map(|(_, t)| t);
        let listed = rest.filter(|t| call.tenant.as_ref().is_none_or(|only| *only == t.id));
        let mut tenants: Vec<_> = listed.take(page.per_page + 1).collect();
        let more = tenants.len() > page.per_page;
        tenants.truncate(page.per_page);
        Ok(TenantList {
            next_token: tenants.last().filter(|_| more).map(|t| page.token(u64::from(t.no.0))),
            items: tenants.into_iter().map(|t| told(call, tenant_body(state, t))).collect(),
            simulation: state.meta().mode == Mode::Simulation,
            read: freshness(&view),
        })
    }

    pub async fn tenant(&self, call: &Call, id: &TenantId) -> Result<TenantBody, Failure> {
        let view = self.read(call).await?;
        let found = view.state.tenant_named(id).map(|t| told(call, tenant_body(&view.state, t)).alone(&view.state));
        found.ok_or_else(|| {
            let detail = format!("no tenant {id}; it exists once a job or a quota names it");
            Refusal::field(Reason::NotFound, "tenant_id", detail).into()
        })
    }

    pub async fn create_tenant(&self, call: &Call, tenant: TenantId) -> Result<u64, Failure> {
        Ok(self.commit(call, Intent::CreateTenant { tenant }).await?.1)
    }

    pub async fn delete_tenant(&self, call: &Call, tenant: TenantId) -> Result<u64, Failure> {
        Ok(self.commit(call, Intent::DeleteTenant { tenant }).await?.1)
    }

    /// `seen`: only if the quota is still that one.
    pub async fn set_quota(
        &self,
        call: &Call,
        tenant: &TenantId,
        quota: Quota,
        seen: Option<Digest16>,
    ) -> Result<TenantBody, Failure> {
        let tenant_id = tenant.clone();
        let intent = match seen {
            None => Intent::SetQuota { tenant: tenant_id, quota },
            Some(seen) => Intent::SetQuotaIf { tenant: tenant_id, quota, seen },
        };
        let (_, index) = self.commit(call, intent).await?;
        self.applied_past(index.saturating_sub(1), call.deadline).await;
        let state = self.replica.applied().state;
        let found = state.tenant_named(tenant).map(|t| tenant_body(&state, t).alone(&state));
        found.ok_or_else(|| Failure::new(Reason::Timeout, "the quota is set; this member has not seen it yet"))
    }
}
