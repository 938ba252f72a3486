//! Quota and budgets that are kept for each tenant's first waiter, so that later and smaller
//! work can't starve it: for those behind it, it counts as if it held what it waits for. Work
//! that ends before that comes free goes first all the same, and so does what another tenant
//! has of its own. The first waiters for whom nodes are kept keep their quota as well. Kept is
//! only what comes free by itself; what services hold, for an hour.

use super::filter;
use super::keep::{LONGEST_MS, targets};
use super::queue::{Asker, Shape, askers, waits_for_room};
use crate::budget::{Rates, judge};
use crate::id::{JobNo, RequestId, TenantNo};
use crate::job::{Job, JobSpec, Next, Phase};
use crate::quota::{self, Rooms, tree, types};
use crate::reason::{Blocker, Reason};
use crate::sharing::Ask;
use crate::state::State;
use crate::tenant::Tenant;
use crate::trust;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Waiters of one tenant among which its first one is looked for: some wait for what they can never have.
const LOOKED_AT: usize = 256;
/// Waiters of one tenant that have waited for long of which it is looked whether what they lack comes free by itself.
const TRIES: u32 = 2;
/// Jobs of which it is looked at when they end.
const ENDS: usize = 1024;

/// What one waiter keeps from those behind it.
struct Reserve {
    job: JobNo,
    request: RequestId,
    tenant: TenantNo,
    spec: Arc<JobSpec>,
    /// Replicas that count as placed.
    times: u64,
    /// It keeps it from those of this tenant, whose limit is in the way, and those below it.
    scope: TenantNo,
    /// Of its tenant's tree.
    root: TenantNo,
    kept: Kept,
}

enum Kept {
    /// It waits for this; from when on it has it, once somebody has asked: `u64::MAX` where that is not known.
    Quota { from: Option<u64> },
    /// It waits for the end of the window, at the latest. What it would use.
    Budget { ends_ms: u64, rates: Box<(Rates, Rates)> },
    /// It waits for room, and has the quota.
    Room,
}

/// What those keep who are ahead.
#[derive(Default)]
pub(crate) struct Reserves {
    all: Vec<Reserve>,
    /// How many old waiters of each tenant it was asked whether what they lack comes free.
    tries: BTreeMap<TenantNo, u32>,
}

impl Reserves {
    /// What is kept for others from a new job of that tenant, which waits behind all that are as urgent.
    pub fn look_for_new(&mut self, state: &State, spec: &JobSpec) {
        let Some(own) = state.tenant_named(&spec.tenant).filter(|_| state.has_waiters()) else { return };
        self.look_before(state, own.no, spec.priority, JobNo(u64::MAX));
    }

    /// What those keep who are ahead of a job: of its own tenant the earlier ones, of others the more urgent, and as urgent
    /// ones of those that have no more of their share.
    fn look_before(&mut self, state: &State, own: TenantNo, priority: i16, no: JobNo) {
        let (share, mut known) = (quota::dominant_share(state, own), Known::default());
        let urgency = -i32::from(priority);
        for tenant in rivals(state, own) {
            let last = match tenant == own {
                true => (urgency, no),
                false if quota::dominant_share(state, tenant) <= share => (urgency, JobNo(u64::MAX)),
                false => (urgency - 1, JobNo(u64::MAX)),
            };
            self.look(state, &mut known, tenant, last);
        }
    }

    /// The first of the tenant's waiters, up to that one, that waits for what will be free.
    fn look(&mut self, state: &State, known: &mut Known, tenant: TenantNo, (priority, no): (i32, JobNo)) {
        let queue = state.waiting.range((tenant, i32::MIN, JobNo(0))..=(tenant, priority, no));
        let jobs = queue.take(LOOKED_AT).filter_map(|(.., no)| state.job(*no));
        for job in jobs.filter(|job| job.claim.is_none() && trust::withheld(state, job).is_none()) {
            if askers(state, job).any(|asker| known.may_lack(state, &asker) && self.add(state, &asker)) {
                return;
            }
        }
    }

    /// Keeps what the waiter lacks, if that will be free and its tenant's first one keeps nothing yet. True if it does.
    pub(super) fn add(&mut self, state: &State, asker: &Asker<'_>) -> bool {
        let job = asker.job;
        if self.all.iter().any(|known| known.tenant == job.tenant && !matches!(known.kept, Kept::Room)) {
            return false;
        }
        let times = times(asker);
        let waited = state.meta().now_ms.saturating_sub(job.waits_since().unwrap_or(0));
        let over = judge::blocks(state, job, &[]).filter(|over| !over.never);
        let (scope, kept) = match over {
            Some(over) => {
                let began = over.limit.window.end_ms(job.waits_since().unwrap_or(0));
                let scope = state.tenant_named(&over.tenant).map(|tenant| tenant.no);
                // By then it is the first in a new window: what it lacks still is used by what nobody ends.
                let in_time = state.meta().now_ms < began.saturating_add(LONGEST_MS);
                let rates = Box::new(judge::next(state, job));
                (scope.filter(|_| in_time), Kept::Budget { ends_ms: over.ends_ms, rates })
            }
            None if waited >= LONGEST_MS && self.tries.get(&job.tenant).is_some_and(|tries| *tries >= TRIES) => {
                return false;
            }
            None => {
                let scope = quota::waits_for(state, Some(job.tenant), asker.spec, times);
                let scope = match scope {
                    Some(scope) if waited >= LONGEST_MS => self.comes_free(state, asker, scope).then_some(scope),
                    scope => scope,
                };
                (scope, Kept::Quota { from: None })
            }
        };
        let Some(scope) = scope.filter(|_| may_run(state, asker)) else { return false };
        self.put(state, asker, scope, kept);
        true
    }

    /// Whether what an old waiter lacks comes free by itself. Few of a tenant are looked at for that.
    fn comes_free(&mut self, state: &State, asker: &Asker<'_>, scope: TenantNo) -> bool {
        let tries = self.tries.entry(asker.job.tenant).or_default();
        *tries += 1;
        *tries <= TRIES && comes_free(state, asker.job.tenant, asker.spec, times(asker), scope)
    }

    /// Keeps the quota of a waiter for which nodes are kept.
    pub(super) fn add_for_room(&mut self, state: &State, asker: &Asker<'_>) {
        self.put(state, asker, root(state, asker.job.tenant), Kept::Room);
    }

    fn put(&mut self, state: &State, asker: &Asker<'_>, scope: TenantNo, kept: Kept) {
        let root = root(state, asker.job.tenant);
        let (job, request, spec) = (asker.job.no, asker.job.request.clone(), Arc::clone(asker.spec));
        let (tenant, times) = (asker.job.tenant, times(asker));
        self.all.push(Reserve { job, request, tenant, spec, times, scope, root, kept });
    }

    /// Those that count for such work of the tenant: it would hold what they wait for when that comes free.
    /// `job`: whose work it is, where it is there already.
    pub(super) fn against(
        &mut self,
        state: &State,
        tenant: TenantNo,
        spec: &JobSpec,
        job: Option<JobNo>,
    ) -> Vec<usize> {
        let mut out = Vec::new();
        if self.all.is_empty() {
            return out;
        }
        let root = root(state, tenant);
        for (no, reserve) in self.all.iter_mut().enumerate().filter(|(_, reserve)| reserve.root == root) {
            if job != Some(reserve.job) && reserve.counts_for(state, tenant, spec) && !reserve.comes_after(state, spec)
            {
                out.push(no);
            }
        }
        out
    }

    /// Counts them on a scratch copy as if they ran.
    pub(super) fn count(&self, which: &[usize], state: &mut State) {
        for Reserve { tenant, spec, times, kept, .. } in which.iter().map(|no| &self.all[*no]) {
            match kept {
                Kept::Budget { rates, .. } => state.meter_job(*tenant, &rates.0, &rates.1),
                _ => state.ledger.count(*tenant, &spec.resources, *times, |now, more| now.saturating_add(more)),
            }
        }
    }

    /// Undoes [`Reserves::count`].
    pub(super) fn uncount(&self, which: &[usize], state: &mut State) {
        for Reserve { tenant, spec, times, kept, .. } in which.iter().map(|no| &self.all[*no]) {
            match kept {
                Kept::Budget { rates, .. } => state.meter_job(*tenant, &rates.1, &rates.0),
                _ => state.ledger.count(*tenant, &spec.resources, *times, |now, less| now.saturating_sub(less)),
            }
        }
    }

    /// A copy of the state with those counted, and for whom the first of them is kept; None where none counts.
    pub fn counted(&mut self, state: &State, spec: &JobSpec) -> Option<(State, RequestId)> {
        let tenant = state.tenant_named(&spec.tenant)?.no;
        let which = self.against(state, tenant, spec, None);
        let first = self.all[*which.first()?].request.clone();
        let mut scratch = state.speculative();
        self.count(&which, &mut scratch);
        Some((scratch, first))
    }
}

/// What is known of the asks of many waiters, on a state that stays as it is: what one lacks, all lack that ask alike.
#[derive(Default)]
struct Known {
    rooms: Rooms,
    /// Lack nothing, or what they can never have.
    in_vain: BTreeSet<(TenantNo, Shape)>,
}

impl Known {
    /// Whether the waiter may lack quota or budget that it will have. A budget each may lack alone.
    fn may_lack(&mut self, state: &State, asker: &Asker<'_>) -> bool {
        let (tenant, times) = (asker.job.tenant, times(asker));
        if judge::concerns(state, tenant) {
            return true;
        }
        let key = (tenant, Shape::of(state, asker));
        if self.in_vain.contains(&key) {
            return false;
        }
        let has = self.rooms.allow(state, tenant, &asker.spec.resources, times)
            && types::some_open(state, Some(tenant), asker.spec, times);
        let lacks = !has && quota::waits_for(state, Some(tenant), asker.spec, times).is_some();
        if !lacks {
            self.in_vain.insert(key);
        }
        lacks
    }
}

impl Reserve {
    /// Whether it is kept from that tenant: also from others below the limit in the way, but for what is their own.
    fn counts_for(&self, state: &State, tenant: TenantNo, spec: &JobSpec) -> bool {
        if tenant == self.tenant {
            return true;
        }
        let Some(row) = state.tenant(tenant) else { return false };
        let path = tree::path(state, row);
        let Some(at) = path.iter().position(|each| each.no == self.scope) else { return false };
        if matches!(self.kept, Kept::Budget { .. }) {
            return true;
        }
        let own = state.tenant(self.tenant).map(|row| tree::path(state, row)).unwrap_or_default();
        let apart = path[..at].iter().filter(|each| own.iter().all(|above| above.no != each.no));
        let more = spec.resources.gpu.milli();
        let within = |each: &Tenant| {
            let sum = tree::sum(state, each, tree::Of::Gpus, (tenant, more));
            sum.demand <= sum.nominal
        };
        !apart.copied().any(within)
    }

    /// Whether it gets what it waits for only when such work, begun now, has ended.
    fn comes_after(&mut self, state: &State, spec: &JobSpec) -> bool {
        let Some(most) = spec.constraints.max_run_ms else { return false };
        let ends = state.meta().now_ms.saturating_add(most);
        match &mut self.kept {
            Kept::Room => false,
            Kept::Budget { ends_ms, .. } => ends <= *ends_ms,
            Kept::Quota { from } => {
                let (tenant, scope, times) = (self.tenant, self.scope, self.times);
                let free = || free_from(state, tenant, &self.spec, times, scope);
                let from = *from.get_or_insert_with(free);
                from < u64::MAX && ends <= from
            }
        }
    }
}

/// For whom what the job could have is kept, if that is why it waits.
pub(super) fn blocker(state: &State, job: &Job) -> Option<Blocker> {
    let mut reserves = Reserves::default();
    reserves.look_before(state, job.tenant, job.spec.priority, JobNo(job.no.0.saturating_sub(1)));
    let (counted, first) = reserves.counted(state, &job.spec)?;
    (waits_for_room(state, job) && !waits_for_room(&counted, job)).then(|| kept_for(&first))
}

/// The reason of who would take what is kept.
pub(crate) fn kept_for(request: &RequestId) -> Blocker {
    let detail = format!("what is left of the quota or budget is kept for job {request}, which is ahead in the queue");
    Blocker { reason: Reason::Priority, detail, nodes: 0, permanent: false }
}

/// The tenant above all that share limits with this one.
fn root(state: &State, tenant: TenantNo) -> TenantNo {
    let row = state.tenant(tenant).filter(|row| row.quota.parent.is_some());
    row.map_or(tenant, |row| tree::root(state, row).no)
}

/// The tenant, and those that share limits with it.
fn rivals(state: &State, tenant: TenantNo) -> Vec<TenantNo> {
    let row = state.tenant(tenant).filter(|row| !tree::is_flat(state, row));
    row.map_or_else(|| vec![tenant], |row| tree::subtree(state, tree::root(state, row)))
}

fn times(asker: &Asker<'_>) -> u64 {
    if asker.spec.gang { asker.wanted.len() as u64 } else { 1 }
}

/// Whether some node could hold it, once its quota allows: nobody keeps what it can't use.
fn may_run(state: &State, asker: &Asker<'_>) -> bool {
    if asker.spec.gang {
        return !targets(state, asker.job, asker.spec, asker.wanted.len(), &[]).is_empty();
    }
    let ask = Ask::of(state, asker.spec);
    let pinned = asker.spec.constraints.node.as_ref().map(|name| state.node_named(name).map(|node| node.no));
    let mut classes = state.capacity().classes.iter();
    classes.any(|(class, nodes)| {
        let there = pinned.is_none_or(|node| node.is_some_and(|node| nodes.contains(&node)));
        there && class.takes_work() && filter::may_ever_run(&class.flavor, &ask)
    })
}

/// Whether the quota allows so many replicas once all has ended that does by itself, of those below the limit in the way.
fn comes_free(state: &State, tenant: TenantNo, spec: &JobSpec, times: u64, scope: TenantNo) -> bool {
    allows_without(state, tenant, spec, times, &ends(state, scope))
}

/// From when on it does: `u64::MAX` where that is not known.
fn free_from(state: &State, tenant: TenantNo, spec: &JobSpec, times: u64, scope: TenantNo) -> u64 {
    let ends = ends(state, scope);
    // The fewest of them that will do: more never do less.
    let (mut few, mut enough) = (0, ends.len() + 1);
    while few < enough {
        let half = usize::midpoint(few, enough);
        if half > ends.len() || allows_without(state, tenant, spec, times, &ends[..half]) {
            enough = half;
        } else {
            few = half + 1;
        }
    }
    match enough.checked_sub(1) {
        None => state.meta().now_ms,
        Some(last) => ends.get(last).map_or(u64::MAX, |(at, ..)| *at),
    }
}

fn allows_without(state: &State, tenant: TenantNo, spec: &JobSpec, times: u64, gone: &[(u64, &Job, u16)]) -> bool {
    let mut scratch = state.speculative();
    for (_, job, no) in gone {
        let Some(alloc) = job.replicas[usize::from(*no)].allocation() else { continue };
        let Some(node) = state.node(alloc.node) else { continue };
        scratch.ledger.release(job.tenant, (job.no, *no), &job.spec.resources, alloc, &node.spec);
    }
    scratch.claims_changed = true;
    scratch.sum_claims();
    quota::allows(&scratch, Some(tenant), &spec.resources, times)
        && types::some_open(&scratch, Some(tenant), spec, times)
}

/// Replicas of the tenant and those below it that end by themselves, the first first: by when, where that is said.
fn ends(state: &State, scope: TenantNo) -> Vec<(u64, &Job, u16)> {
    let now = state.meta().now_ms;
    let below = state.tenant(scope).map_or_else(|| vec![scope], |row| tree::subtree(state, row));
    let held = below.iter().flat_map(|no| state.holding.range((*no, JobNo(0))..=(*no, JobNo(u64::MAX))));
    let mut out = Vec::new();
    for job in held.take(ENDS).filter_map(|(_, no)| state.job(*no)) {
        for (no, replica) in job.replicas.iter().enumerate() {
            let at = match &replica.phase {
                Phase::Stopping { then: Next::Again | Next::End, .. } => now,
                Phase::Held { .. } if !job.spec.stays() => job.over_at(now).unwrap_or(u64::MAX),
                _ => continue,
            };
            out.push((at, &**job, no as u16));
        }
    }
    out.sort_by_key(|(at, job, no)| (*at, job.no, *no));
    out
}

#[cfg(test)]
mod tests;
