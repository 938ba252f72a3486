//! What quotas and budgets leave for services. Where a tenant's quota has not enough for
//! all that its services want, they share it: the least of each, then the higher
//! priorities, then who has less. It does not decide what a service wants.

use nf_core::autoscaler::joint::{self, Means};
use nf_core::autoscaler::{Limits, Wish};
use nf_core::budget::judge::most_replicas;
use nf_core::id::{JobNo, TenantNo};
use nf_core::job::Job;
use nf_core::quota;
use nf_core::scaling::Scaling;
use nf_core::state::State;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A service that was looked at, and what it would have without limits.
pub struct Wanting<'a> {
    pub job: &'a Arc<Job>,
    pub scaling: Scaling,
    pub wish: Wish,
}

/// The limits of each, in their order.
pub fn limits(state: &State, services: &[Wanting<'_>]) -> Vec<Limits> {
    let mut tenants: BTreeMap<TenantNo, Vec<&Wanting<'_>>> = BTreeMap::new();
    // What nobody carries out takes part in nothing: its replicas are what they are.
    for service in services.iter().filter(|s| !s.scaling.advisory && each(s.job) > 0) {
        tenants.entry(service.job.tenant).or_default().push(service);
    }
    let shares: BTreeMap<JobNo, u32> = tenants.into_iter().flat_map(|(no, of)| share(state, no, &of)).collect();
    let limit = |service: &Wanting<'_>| {
        let alone = || within_quota(state, service.job);
        let quota = if service.scaling.advisory { alone() } else { shares.get(&service.job.no).copied() };
        Limits { quota, budget: payable(state, service.job, service.scaling) }
    };
    services.iter().map(limit).collect()
}

/// Thousandths of a GPU of one replica.
fn each(job: &Job) -> u64 {
    job.spec.resources.gpu.milli()
}

/// What the replicas of a service hold, thousandths of a GPU.
fn held(job: &Job) -> u64 {
    job.replicas.iter().filter(|r| r.allocation().is_some()).count() as u64 * each(job)
}

/// What the tenant's quota has room for beside all that is none of theirs; nothing where it is enough.
fn share(state: &State, tenant: TenantNo, services: &[&Wanting<'_>]) -> Vec<(JobNo, u32)> {
    let own: u64 = services.iter().map(|s| held(s.job)).sum();
    let others = state.ledger().tenant(tenant).gpu_milli.saturating_sub(own);
    let room = quota::gpu_limit(state, tenant).saturating_sub(others);
    let sum = |of: &[joint::Wish], count: fn(&joint::Wish) -> u32| {
        of.iter().map(|w| u64::from(count(w)).saturating_mul(w.gpu_milli)).fold(0, u64::saturating_add)
    };
    // Whose signals are in doubt gives nothing up to others, as long as all that have something can keep it.
    let least = |s: &&Wanting<'_>| if s.wish.may_fall() { s.scaling.min.into() } else { s.wish.before() };
    let mut wishes: Vec<joint::Wish> = services.iter().map(|s| wish(s, least(s))).collect();
    if sum(&wishes, |w| w.wanted) <= room {
        return Vec::new();
    }
    if sum(&wishes, |w| w.floor) > room {
        wishes = services.iter().map(|s| wish(s, s.scaling.min.into())).collect();
    }
    let means = Means { gpu_milli: room, budget_left: None, window_left_ms: 0, step_ms: 0 };
    let grants = joint::share(&wishes, &means);
    services.iter().zip(grants).map(|(s, grant)| (s.job.no, grant.replicas)).collect()
}

fn wish(service: &Wanting<'_>, floor: u32) -> joint::Wish {
    let (job, wanted) = (service.job, service.wish.wanted());
    let (service, gpu_milli, priority) = (job.no.0, each(job), job.spec.priority.into());
    joint::Wish { service, wanted, floor: wanted.min(floor), gpu_milli, priority, weight: 1 }
}

/// Replicas that the tenant's GPU quota has room for, those of the job included; None where it needs no GPU.
fn within_quota(state: &State, job: &Job) -> Option<u32> {
    let others = state.ledger().tenant(job.tenant).gpu_milli.saturating_sub(held(job));
    let room = quota::gpu_limit(state, job.tenant).saturating_sub(others);
    room.checked_div(each(job)).map(|n| u32::try_from(n).unwrap_or(u32::MAX))
}

/// Replicas that the budgets pay for; its least are paid in any case.
fn payable(state: &State, job: &Job, scaling: Scaling) -> Option<u32> {
    most_replicas(state, job).map(|most| most.max(scaling.min.into()))
}
