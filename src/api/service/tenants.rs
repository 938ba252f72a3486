//! Use cases about tenants and quotas. A tenant exists once it is named; these
//! are for those who want it explicit.

use super::nodes::{TenantBody, tenant_body};
use super::{Call, Service, freshness};
use crate::api::convert::answer::{Freshness, whole};
use crate::api::error::Failure;
use nf_core::command::Mode;
use nf_core::id::TenantId;
use nf_core::plan::Intent;
use nf_core::quota::waiting_limit;
use nf_core::reason::{Reason, Refusal};
use nf_core::tenant::Quota;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Limits of a tenant; null means no limit of that kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QuotaBody {
    /// The group's default when the tenant has none of its own.
    pub gpu: f64,
    /// The GPU limit is the group's default.
    pub default: bool,
    pub tpu: Option<u64>,
    pub cpu: Option<f64>,
    /// Bytes.
    pub mem: Option<u64>,
    /// Most jobs that may wait at once.
    pub waiting: u32,
}

impl QuotaBody {
    pub fn new(quota: &Quota, gpu_milli: u64) -> Self {
        Self {
            gpu: whole(gpu_milli),
            default: quota.gpu_milli.is_none(),
            tpu: quota.tpu,
            cpu: quota.cpu_milli.map(whole),
            mem: quota.memory,
            waiting: waiting_limit(quota),
        }
    }
}

/// All tenants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TenantList {
    pub tenants: Vec<TenantBody>,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}

impl Service {
    pub async fn tenants(&self, call: &Call) -> Result<TenantList, Failure> {
        let view = self.read(call).await?;
        let state = &view.state;
        let listed = state.tenants().values().filter(|t| call.tenant.as_ref().is_none_or(|only| *only == t.id));
        Ok(TenantList {
            tenants: listed.map(|t| tenant_body(state, t)).collect(),
            simulation: state.meta().mode == Mode::Simulation,
            read: freshness(&view),
        })
    }

    pub async fn tenant(&self, call: &Call, id: &TenantId) -> Result<TenantBody, Failure> {
        let view = self.read(call).await?;
        let found = view.state.tenant_named(id).map(|t| tenant_body(&view.state, t));
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

    pub async fn set_quota(&self, call: &Call, tenant: &TenantId, quota: Quota) -> Result<TenantBody, Failure> {
        let (_, index) = self.commit(call, Intent::SetQuota { tenant: tenant.clone(), quota }).await?;
        self.applied_past(index.saturating_sub(1), call.deadline).await;
        let state = self.replica.applied().state;
        let found = state.tenant_named(tenant).map(|t| tenant_body(&state, t));
        found.ok_or_else(|| Failure::new(Reason::Timeout, "the quota is set; this member has not seen it yet"))
    }
}
