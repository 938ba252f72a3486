//! Use cases about services: a tenant's model with all its jobs, and the number of
//! its replicas. Every tenant and model with a job is a service. It does not decide
//! how many replicas there are.

use super::jobs::Found;
use super::list::NumberPage;
use super::{Call, Service, freshness};
use crate::api::convert::answer::{Freshness, ScalingBody};
use crate::api::error::Failure;
use nf_core::autoscaler::Why;
use nf_core::command::Mode;
use nf_core::id::{ModelId, RequestId, TenantId};
use nf_core::job::{Job, Phase, Stage};
use nf_core::plan::Intent;
use nf_core::scaling::Target;
use nf_core::state::State;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use utoipa::ToSchema;

/// A tenant's model and what runs of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceBody {
    pub tenant_id: String,
    pub model_id: String,
    pub versions: Vec<String>,
    /// Healthy, Updating, Degraded or ScaledToZero.
    pub state: String,
    /// Replicas that are wanted.
    pub replicas: u32,
    /// Replicas that serve.
    pub ready: u32,
    /// Its live jobs.
    pub jobs: Vec<String>,
    /// Of the first of its jobs that scales; null when none does.
    pub scaling: Option<ScalingBody>,
}

/// Services, by tenant and model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceList {
    pub items: Vec<ServiceBody>,
    /// For the next page; null on the last one.
    pub next_token: Option<String>,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}

impl Service {
    /// All services, or one tenant's.
    pub async fn services(&self, call: &Call, page: NumberPage) -> Result<ServiceList, Failure> {
        let view = self.read(call).await?;
        let simulation = view.state.meta().mode == Mode::Simulation;
        let (read, tenant) = (freshness(&view), call.tenant.clone());
        let mut items = super::off_thread(move || services(&view.state, tenant.as_ref())).await?;
        // By their number in the order of names: there is no other.
        let first = usize::try_from(page.after.unwrap_or(0)).unwrap_or(usize::MAX).min(items.len());
        items.drain(..first);
        let next_token = (items.len() > page.per_page).then(|| page.token((first + page.per_page) as u64));
        items.truncate(page.per_page);
        Ok(ServiceList { items, next_token, simulation, read })
    }

    /// Another number of replicas for a job that scales.
    pub async fn scale(&self, call: &Call, request: &RequestId, replicas: u16) -> Result<Found, Failure> {
        let (tenant, call) = &self.bound(call, request).await?;
        let target = Target { replicas, why: Why::Asked, inputs: None, seen: None, learned: None };
        let intent = Intent::Scale { request: request.clone(), tenant: Some(tenant.clone()), target };
        let reply = self.submit(call, intent).await?;
        reply.result?;
        self.get(call, request).await
    }
}

pub(super) fn services(state: &State, only: Option<&TenantId>) -> Vec<ServiceBody> {
    let mut grouped: BTreeMap<(&TenantId, &ModelId), Vec<&Job>> = BTreeMap::new();
    let theirs = |job: &&Arc<Job>| only.is_none_or(|only| *only == job.spec.tenant) && !job.spec.is_prefetch();
    for job in state.jobs().values().filter(theirs) {
        grouped.entry((&job.spec.tenant, &job.spec.model)).or_default().push(job);
    }
    grouped.into_iter().map(|((tenant, model), jobs)| service(tenant, model, &jobs)).collect()
}

fn service(tenant: &TenantId, model: &ModelId, jobs: &[&Job]) -> ServiceBody {
    let replicas: u32 = jobs.iter().map(|job| u32::from(job.desired())).sum();
    let all = || jobs.iter().flat_map(|job| &job.replicas);
    let ready = all().filter(|r| matches!(r.phase, Phase::Held { stage: Stage::Ready, .. })).count() as u32;
    let failing = all().any(|r| r.restarts > 0 && !matches!(r.phase, Phase::Held { stage: Stage::Ready, .. }));
    let changing = jobs.iter().any(|job| job.open_rollout().is_some());
    let state = match (replicas, ready) {
        (0, _) => "ScaledToZero",
        (wanted, ready) if ready >= wanted && !changing => "Healthy",
        _ if failing => "Degraded",
        _ => "Updating",
    };
    let versions: BTreeSet<String> = jobs.iter().flat_map(|job| running(job)).collect();
    ServiceBody {
        tenant_id: tenant.to_string(),
        model_id: model.to_string(),
        versions: versions.into_iter().collect(),
        state: state.to_owned(),
        replicas,
        ready,
        jobs: jobs.iter().map(|job| job.request.to_string()).collect(),
        scaling: jobs.iter().find_map(|job| job.spec.scaling.as_ref()).map(ScalingBody::from),
    }
}

/// The job's version; both, while it goes from one to another.
fn running(job: &Job) -> impl Iterator<Item = String> {
    let next = job.open_rollout().map(|rollout| rollout.to.version.to_string());
    std::iter::once(job.spec.version.to_string()).chain(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::resources::Gpus;
    use nf_core::testing::{job_spec, node_spec, register, run, schedule};

    #[test]
    fn jobs_of_a_model_are_one_service() {
        let mut state = State::new();
        run(&mut state, register("n1", node_spec(4)));
        run(&mut state, schedule("r1", job_spec("t1", Gpus::Milli(500))));
        run(&mut state, schedule("r2", job_spec("t1", Gpus::Milli(500))));
        run(&mut state, schedule("r3", job_spec("t2", Gpus::Milli(500))));
        let all = services(&state, None);
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].replicas, all[0].ready, all[0].state.as_str()), (2, 0, "Updating"));
        assert_eq!(all[0].jobs, ["r1", "r2"]);
        assert_eq!(services(&state, Some(&TenantId::new("t2").unwrap())).len(), 1);
    }
}
