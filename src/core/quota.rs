//! Quotas: what a tenant may hold, and what stands in the way of a request. The
//! same arithmetic serves apply (which refuses) and explanations (which tell).

pub(crate) mod claimed;
pub mod tree;
pub mod types;

use crate::id::{DeviceType, TenantNo};
use crate::job::JobSpec;
use crate::ledger::TenantUse;
use crate::reason::{Blocker, Reason};
use crate::resources::Resources;
use crate::state::State;
use crate::tenant::{Quota, Tenant};
use std::collections::BTreeMap;
use tree::Of;
use tree::room::Room;

/// Most jobs of one tenant that may wait, where its quota does not say.
pub const DEFAULT_WAITING: u32 = 10_000;

/// What a tenant itself may hold so much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// In thousandths.
    Gpus,
    Tpus,
    /// In thousandths.
    Cpus,
    /// In bytes.
    Memory,
}

impl Lack {
    const ALL: [Lack; 4] = [Lack::Gpus, Lack::Tpus, Lack::Cpus, Lack::Memory];

    /// How much of it one replica takes.
    pub fn of(self, ask: &Resources) -> u64 {
        match self {
            Lack::Gpus => ask.gpu.milli(),
            Lack::Tpus => ask.tpu.into(),
            Lack::Cpus => ask.cpu_milli,
            Lack::Memory => ask.memory,
        }
    }
}

/// One limited quantity: what it is called, what is used, asked and allowed.
struct Line {
    what: &'static str,
    used: u64,
    /// None: more than can be counted, and therefore more than any limit.
    ask: Option<u64>,
    limit: Option<u64>,
    unit: fn(u64) -> String,
}

/// Thousandths for people: 1500 is 1.500, 2000 is 2.
pub(crate) fn milli(m: u64) -> String {
    match m % 1000 {
        0 => (m / 1000).to_string(),
        rest => format!("{}.{:03}", m / 1000, rest),
    }
}

fn plain(n: u64) -> String {
    n.to_string()
}

/// The tenant's quota, if it exists.
pub fn quota(state: &State, tenant: TenantNo) -> Option<&Quota> {
    state.tenant(tenant).map(|t| &t.quota)
}

/// The tenant's nominal GPUs in thousandths; the group's default when it has none of its own.
pub fn gpu_limit(state: &State, tenant: TenantNo) -> u64 {
    state.tenant(tenant).map_or(state.meta().default_gpu_milli, |tenant| tree::nominal(state, tenant, Of::Gpus))
}

/// The share of its quota that a tenant uses, in millionths: of that of which it uses most.
pub fn dominant_share(state: &State, tenant: TenantNo) -> u64 {
    let (used, quota) = (used(state, tenant), quota(state, tenant));
    let of = |used: u64, limit: Option<u64>| {
        limit.map_or(0, |limit| (u128::from(used) * 1_000_000 / u128::from(limit.max(1))).min(u64::MAX.into()) as u64)
    };
    let gpu = of(used.gpu_milli, Some(gpu_limit(state, tenant)));
    let rest = quota.map_or([0; 3], |quota| {
        [of(used.cpu_milli, quota.cpu_milli), of(used.memory, quota.memory), of(used.tpu, quota.tpu)]
    });
    rest.into_iter().fold(gpu, u64::max).max(types::dominant(state, tenant))
}

/// The limit of the tree that so many more GPUs would pass; flat tenants have their own line.
pub(crate) fn over_tree(state: &State, tenant: Option<TenantNo>, ask: &Resources, times: u64) -> Option<tree::Over> {
    let tenant = tenant.and_then(|no| state.tenant(no)).filter(|tenant| !tree::is_flat(state, tenant))?;
    let more = ask.gpu.milli().checked_mul(times).filter(|more| *more > 0)?;
    tree::check(state, tenant, Of::Gpus, more).err()
}

/// In a tree the limit of the line is that of the tree.
fn flat_gpu(state: &State, tenant: Option<TenantNo>) -> Option<u64> {
    match tenant.and_then(|no| state.tenant(no)) {
        None => Some(state.meta().default_gpu_milli),
        Some(tenant) => tree::is_flat(state, tenant).then(|| tree::nominal(state, tenant, Of::Gpus)),
    }
}

/// Most jobs of the tenant that may wait at once.
pub fn waiting_limit(quota: &Quota) -> u32 {
    quota.waiting.unwrap_or(DEFAULT_WAITING)
}

/// The most that the tenant holds until its open claims are met: the places of those come when their victims are gone.
pub fn used(state: &State, tenant: TenantNo) -> TenantUse {
    let held = state.ledger().tenant(tenant);
    state.claimed.get(&tenant).map_or(held, |claimed| claimed.at_most(held))
}

/// Of a tenant that has no quota, nothing but its GPUs is limited.
fn lines(quota: Option<&Quota>, gpu: Option<u64>, used: TenantUse, ask: &Resources, times: u64) -> [Line; 4] {
    [
        Line { what: "GPUs", used: used.gpu_milli, ask: ask.gpu.milli().checked_mul(times), limit: gpu, unit: milli },
        Line {
            what: "TPUs",
            used: used.tpu,
            ask: u64::from(ask.tpu).checked_mul(times),
            limit: quota.and_then(|quota| quota.tpu),
            unit: plain,
        },
        Line {
            what: "CPUs",
            used: used.cpu_milli,
            ask: ask.cpu_milli.checked_mul(times),
            limit: quota.and_then(|quota| quota.cpu_milli),
            unit: milli,
        },
        Line {
            what: "bytes of memory",
            used: used.memory,
            ask: ask.memory.checked_mul(times),
            limit: quota.and_then(|quota| quota.memory),
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
    own_allows(state, tenant, ask, times) && over_tree(state, tenant, ask, times).is_none()
}

/// Whether they stay inside the tenant's own limits, whatever those above it say.
fn own_allows(state: &State, tenant: Option<TenantNo>, ask: &Resources, times: u64) -> bool {
    let quota = tenant.and_then(|no| quota(state, no));
    let used = tenant.map(|no| used(state, no)).unwrap_or_default();
    !lines(quota, flat_gpu(state, tenant), used, ask, times).iter().any(Line::is_over)
}

/// What trees of tenants have room for, each summed up once, for those who ask about many jobs: what is taken meanwhile
/// has to be said.
#[derive(Debug, Default)]
pub(crate) struct Rooms(BTreeMap<TenantNo, Room>);

impl Rooms {
    /// The same as [`allows`].
    pub fn allow(&mut self, state: &State, tenant: TenantNo, ask: &Resources, times: u64) -> bool {
        if !own_allows(state, Some(tenant), ask, times) {
            return false;
        }
        let more = ask.gpu.milli().checked_mul(times).filter(|more| *more > 0);
        let (Some(more), Some(row)) = (more, state.tenant(tenant)) else { return true };
        tree::is_flat(state, row) || self.of(state, row).has(tenant, more)
    }

    /// So many more replicas of the tenant's hold something.
    pub fn take(&mut self, state: &State, tenant: TenantNo, ask: &Resources, times: u64) {
        if let Some(row) = state.tenant(tenant)
            && let Some(room) = self.0.get_mut(&tree::root(state, row).no)
        {
            room.take(tenant, ask.gpu.milli().saturating_mul(times));
        }
    }

    fn of(&mut self, state: &State, tenant: &Tenant) -> &Room {
        let root = tree::root(state, tenant);
        self.0.entry(root.no).or_insert_with(|| Room::of(state, root, |_| 0))
    }
}

/// The first limit of the tenant's own that so many replicas would pass, and how much would have to be given back for
/// them. None where that is not a matter of giving back.
pub fn lacks(state: &State, tenant: Option<TenantNo>, ask: &Resources, times: u64) -> Option<(Lack, u64)> {
    let (quota, used) = (quota(state, tenant?), used(state, tenant?));
    let lines = lines(quota, flat_gpu(state, tenant), used, ask, times);
    let over = Lack::ALL.into_iter().zip(lines).filter(|(_, line)| line.is_over());
    let short = |(of, line): (Lack, Line)| Some((of, line.used.checked_add(line.ask?)?.checked_sub(line.limit?)?));
    over.filter_map(short).find(|(_, short)| *short > 0)
}

/// Whose limit so many replicas wait for, of the tenant or one above it; None where none is in the way, or one that
/// they can never be within.
pub(crate) fn waits_for(state: &State, tenant: Option<TenantNo>, spec: &JobSpec, times: u64) -> Option<TenantNo> {
    let (own, ask) = (tenant?, &spec.resources);
    let lines = lines(quota(state, own), flat_gpu(state, tenant), used(state, own), ask, times);
    let is_never = |line: &Line| {
        let uncounted = line.ask.is_none_or(|ask| line.used.checked_add(ask).is_none());
        uncounted || line.ask.zip(line.limit).is_some_and(|(ask, limit)| ask > limit)
    };
    let over: Vec<&Line> = lines.iter().filter(|line| line.is_over()).collect();
    let (tree, closed) = (over_tree(state, tenant, ask, times), types::closed(state, tenant, spec, times));
    let never = over.iter().any(|line| is_never(line))
        || tree.as_ref().is_some_and(|over| over.never)
        || !closed.is_empty() && closed.iter().all(|(_, over)| over.never);
    if never {
        return None;
    }
    let of_type = || closed.iter().find(|(_, over)| !over.never).map(|(_, over)| &over.tenant);
    let above = || tree.as_ref().map(|over| &over.tenant).or_else(of_type);
    if over.is_empty() { Some(state.tenant_named(above()?)?.no) } else { Some(own) }
}

/// What the quota has against `waiting` replicas of the job: nothing, or one blocker for each limit.
pub fn blockers(state: &State, tenant: Option<TenantNo>, spec: &JobSpec, waiting: u64) -> Vec<Blocker> {
    let quota = tenant.and_then(|no| quota(state, no));
    let used = tenant.map(|no| used(state, no)).unwrap_or_default();
    let times = if spec.gang { waiting } else { 1 };
    let mut out = Vec::new();
    for line in lines(quota, flat_gpu(state, tenant), used, &spec.resources, times) {
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
    out.extend(over_tree(state, tenant, &spec.resources, times).map(|over| of_tree(spec, times, "GPUs", &over)));
    let closed = types::closed(state, tenant, spec, times);
    // Only if all of them can never be had, waiting is of no use.
    let never = closed.iter().all(|(_, over)| over.never);
    out.extend(closed.iter().map(|(kind, over)| {
        let blocker = of_tree(spec, times, &format!("{kind} GPUs"), over);
        Blocker { permanent: never, ..blocker }
    }));
    out
}

/// The types of which it may hold no more, where there are others: those it needs a place on, and on these,
/// whatever room they have, it gets none.
pub fn shut_types(state: &State, tenant: Option<TenantNo>, spec: &JobSpec, waiting: u64) -> Vec<Blocker> {
    let times = if spec.gang { waiting } else { 1 };
    match types::shut(state, tenant, spec, times) {
        (_, false) => Vec::new(), // `blockers` has said so
        (shut, true) => {
            // Never of this type is not never.
            let one = |(kind, over): (DeviceType, tree::Over)| {
                of_tree(spec, times, &format!("{kind} GPUs"), &tree::Over { never: false, ..over })
            };
            shut.into_iter().map(one).collect()
        }
    }
}

/// The blocker that a limit of the tree is. Of one above it a tenant is told that it is in the way, and how much it would
/// still let through: not whose it is, how large, or what others hold of it.
fn of_tree(spec: &JobSpec, times: u64, what: &str, over: &tree::Over) -> Blocker {
    let (ask, tenant) = (milli(spec.resources.gpu.milli().saturating_mul(times)), &spec.tenant);
    let (limit, most) = (milli(over.limit), milli(over.most));
    let detail = match (over.tenant == *tenant, over.never) {
        (true, true) => format!(
            "asks for {ask} {what}, tenant {tenant} may hold {most} in all, so it can never run; ask for less or raise the quota (nf quota set)"
        ),
        (true, false) => format!(
            "asks for {ask} {what}, tenant {tenant} holds or keeps {} of {limit}, with what it may borrow; runs when some of that is released, or is its own and given back",
            milli(over.demand)
        ),
        (false, true) => format!(
            "asks for {ask} {what}, more than a quota above tenant {tenant} ever lets through, so it can never run; ask for less or have that quota raised"
        ),
        (false, false) => format!(
            "asks for {ask} {what}, a quota above tenant {tenant} lets {} more through now, with what may be borrowed; runs when some of that is released, or is its own and given back",
            milli(over.limit.saturating_sub(over.demand))
        ),
    };
    let reason = if over.never { Reason::ExceedsMaxQuota } else { Reason::WaitingForQuota };
    Blocker { reason, detail, nodes: 0, permanent: over.never }
}
