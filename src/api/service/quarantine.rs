//! Use cases about versions in quarantine: list them, and let one out after somebody has looked
//! into it. What puts one there is decided in the core.

use super::list::NumberPage;
use super::{Call, Service, freshness};
use crate::api::convert::answer::{Freshness, time};
use crate::api::error::Failure;
use nf_core::approval::Version;
use nf_core::audit::Hash;
use nf_core::command::{Answer, Mode};
use nf_core::plan::Intent;
use nf_core::quarantine::{Quarantine, Release};
use nf_core::reason::Reason;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A version that a node found to be corrupt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuarantineBody {
    pub tenant_id: String,
    pub model_id: String,
    pub model_version: String,
    /// Of the manifest that the bytes were held against.
    pub sha256: String,
    /// Which node found it.
    pub node: String,
    pub found_at: String,
    /// With which new jobs, rollouts and rollbacks of it are refused.
    #[serde(default)]
    pub reason: String,
    /// What lifts it, once somebody has looked at the node and at the store.
    #[serde(default)]
    pub next: String,
}

impl From<&Quarantine> for QuarantineBody {
    fn from(found: &Quarantine) -> Self {
        let Version { tenant, model, version } = &found.of;
        let sha256 = Hash(found.manifest);
        Self {
            reason: Reason::ModelCopyCorrupt.to_string(),
            next: format!("nf model release {model}@{version} --tenant {tenant} --sha256 {sha256}"),
            tenant_id: tenant.to_string(),
            model_id: model.to_string(),
            model_version: version.to_string(),
            sha256: sha256.to_string(),
            node: found.node.to_string(),
            found_at: time(found.at_ms),
        }
    }
}

/// Versions in quarantine, by tenant, model, version and manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QuarantineList {
    pub items: Vec<QuarantineBody>,
    /// For the next page; null on the last one.
    pub next_token: Option<String>,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}

impl Service {
    /// Lets a version be tried again. True when it was in quarantine.
    pub async fn release(&self, call: &Call, asked: Release) -> Result<(bool, u64), Failure> {
        call.who.acts(Some(asked.of.tenant.clone()))?;
        let (answer, index) = self.commit(call, Intent::Release(asked)).await?;
        self.applied_past(index.saturating_sub(1), call.deadline).await;
        Ok((matches!(answer, Answer::Count(lifted) if lifted > 0), index))
    }

    /// What is in quarantine, for one tenant or all.
    pub async fn quarantine(&self, call: &Call, page: NumberPage) -> Result<QuarantineList, Failure> {
        let view = self.read(call).await?;
        let (read, meta) = (freshness(&view), view.state.meta());
        let mine = |of: &Version| call.tenant.as_ref().is_none_or(|tenant| *tenant == of.tenant);
        let mut items: Vec<_> = view.state.quarantines().filter(|found| mine(&found.of)).collect();
        let first = usize::try_from(page.after.unwrap_or(0)).unwrap_or(usize::MAX).min(items.len());
        items.sort_by_cached_key(|found| (found.of.object(), found.manifest));
        items.drain(..first);
        let next_token = (items.len() > page.per_page).then(|| page.token((first + page.per_page) as u64));
        items.truncate(page.per_page);
        let items = items.into_iter().map(|found| QuarantineBody::from(&**found)).collect();
        Ok(QuarantineList { items, next_token, simulation: meta.mode == Mode::Simulation, read })
    }
}
