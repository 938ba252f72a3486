//! Quotas: what a tenant may hold, and what stands in the way of a request. The
//! same arithmetic serves apply (which refuses) and explanations (which tell).

use crate::claim;
use crate::id::TenantNo;
use crate::job::JobSpec;
use crate::ledger::TenantUse;
use crate::reason::{Blocker, Reason};
use crate::resources::Resources;
use crate::state::State;
use crate::tenant::Quota;

/// Most jobs of one tenant that may wait, where its quota does not say.
pub const DEFAULT_WAITING: u32 = 10_000;

/// One limited quantity: what it is called, what is used, asked and allowed.
struct Line {
    what: &'static str,
    used: u64,
    /// None: more than can be counted, and therefore more than any limit.
    ask: Option<u64>,
    limit: Option<u64>,
    unit: fn(u64) -> String,
}

fn milli(m: u64) -> String {
    match m % 1000 {
        0 => (m / 1000).to_string(),
        rest => format!("{}.{:03}", m / 1000, rest),
    }
}

fn plain(n: u64) -> String {
    n.to_string()
}

/// The tenant's quota, if it exists.
pub fn quota(state: &State, tenant: TenantNo) -> Quota {
    state.tenant(tenant).map(|t| t.quota.clone()).unwrap_or_default()
}

/// The tenant's GPU limit in thousandths; the group's default when it has none of its own.
pub fn gpu_limit(state: &State, tenant: TenantNo) -> u64 {
    quota(state, tenant).gpu_milli.unwrap_or(state.meta().default_gpu_milli)
}

/// Most jobs of the tenant that may wait at once.
pub fn waiting_limit(quota: &Quota) -> u32 {
    quota.waiting.unwrap_or(DEFAULT_WAITING)
}

/// What the tenant holds, and what its open claims will.
pub fn used(state: &State, tenant: TenantNo) -> TenantUse {
    let mut used = state.ledger().tenant(tenant);
    for (job, claim) in claim::open(state).filter(|(job, _)| job.tenant == tenant) {
        let (ask, times) = (&job.spec.resources, claim.placements.len() as u64);
        used.gpu_milli += ask.gpu.milli() * times;
        used.tpu += u64::from(ask.tpu) * times;
        used.cpu_milli += ask.cpu_milli * times;
        used.memory += ask.memory * times;
    }
    used
}

fn lines(quota: &Quota, default_gpu_milli: u64, used: TenantUse, ask: &Resources, times: u64) -> [Line; 4] {
    let gpu = quota.gpu_milli.unwrap_or(default_gpu_milli);
    [
        Line {
            what: "GPUs",
            used: used.gpu_milli,
            ask: ask.gpu.milli().checked_mul(times),
            limit: Some(gpu),
            unit: milli,
        },
        Line {
            what: "TPUs",
            used: used.tpu,
            ask: u64::from(ask.tpu).checked_mul(times),
            limit: quota.tpu,
            unit: plain,
        },
        Line {
            what: "CPUs",
            used: used.cpu_milli,
            ask: ask.cpu_milli.checked_mul(times),
            limit: quota.cpu_milli,
            unit: milli,
        },
        Line {
            what: "bytes of memory",
            used: used.memory,
            ask: ask.memory.checked_mul(times),
            limit: quota.memory,
            unit: plain,
        },
    ]
}

impl Line {
    /// Whether the ask passes the limit. A sum that can't be counted does, limit or
    /// not: the ledger has to book it.
    fn is_over(&self) -> bool {
        let sum = self.ask.and_then(|ask| self.used.checked_add(ask));
        self.ask != Some(0) && sum.is_none_or(|sum| self.limit.is_some_and(|limit| sum > limit))
    }
}

/// Whether `times` more replicas of `ask` stay inside the quota. A tenant that
/// does not exist yet is judged as one with none of its own.
pub fn allows(state: &State, tenant: Option<TenantNo>, ask: &Resources, times: u64) -> bool {
    let quota = tenant.map(|no| quota(state, no)).unwrap_or_default();
    let used = tenant.map(|no| used(state, no)).unwrap_or_default();
    !lines(&quota, state.meta().default_gpu_milli, used, ask, times).iter().any(Line::is_over)
}

/// What the quota has against `waiting` replicas of the job: nothing, or one blocker for each limit.
pub fn blockers(state: &State, tenant: Option<TenantNo>, spec: &JobSpec, waiting: u64) -> Vec<Blocker> {
    let quota = tenant.map(|no| quota(state, no)).unwrap_or_default();
    let used = tenant.map(|no| used(state, no)).unwrap_or_default();
    let times = if spec.gang { waiting } else { 1 };
    let mut out = Vec::new();
    for line in lines(&quota, state.meta().default_gpu_milli, used, &spec.resources, times) {
        if !line.is_over() {
            continue;
        }
        let (asked, limit) = (line.ask.unwrap_or(u64::MAX), line.limit.unwrap_or(u64::MAX));
        let (ask, used, shown) = ((line.unit)(asked), (line.unit)(line.used), (line.unit)(limit));
        let never = line.ask.is_none_or(|ask| ask > limit);
        let (reason, detail) = if never {
            (
                Reason::ExceedsMaxQuota,
                format!(
                    "asks for {ask} {what}, tenant {tenant} may hold {shown} in all, so it can never run; ask for less or raise the quota (nf quota set)",
                    what = line.what,
                    tenant = spec.tenant
                ),
            )
        } else {
            (
                Reason::WaitingForQuota,
                format!(
                    "asks for {ask} {what}, tenant {tenant} holds {used} of {shown}; runs when the tenant's own jobs release some or the quota is raised",
                    what = line.what,
                    tenant = spec.tenant
                ),
            )
        };
        out.push(Blocker { reason, detail, nodes: 0, permanent: never });
    }
    out
}
