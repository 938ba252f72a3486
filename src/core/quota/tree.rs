//! The tree of tenants: what a subtree may hold, who borrows, and whose work goes back
//! first. Each tenant has a nominal number of GPUs; what a subtree does not use, its
//! neighbours may borrow, up to what it lends and they may borrow. A tenant without a
//! parent has nobody to borrow from, so a flat quota is a tree of one.
//!
//! For each tenant, `nominal` is its own plus its children's, and `demand` is what it
//! holds itself plus, for each child, the larger of the child's demand and the part of
//! the child's nominal that is not lent. Demand stays within nominal at a root, and
//! within nominal plus the borrowing limit below it. How much is *borrowed* is a fact; which
//! work it is, is not: any of a borrower's gives way to the owner, the latest first where
//! that is of as much use, until what is left is the borrower's own.
//!
//! Order among tenants: priority, then the smaller dominant share (`queue`), then age.
//! Within a tree, priority makes only work of the same tenant give way; between tenants
//! the quota alone decides, so what an owner was given back can't be taken by force.

pub mod room;

use crate::id::{DeviceType, JobNo, TenantId, TenantNo};
use crate::job::{Allocation, Job, Phase, Replica};
use crate::resources::Resources;
use crate::state::State;
use crate::tenant::Tenant;
use std::collections::BTreeSet;

/// Most tenants from a root to a leaf.
pub const DEPTH: usize = 8;
/// Most tenants in one tree.
pub const MOST: usize = 1024;
/// Jobs of a subtree among which its borrowed ones are looked for, the latest first.
const LATEST: usize = 4096;

/// What is shared out in the tree: all GPUs, or those of one type. Each has sums and limits of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of<'a> {
    Gpus,
    Type(&'a DeviceType),
}

/// What a subtree has and takes, in thousandths of a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub nominal: u64,
    pub demand: u64,
    /// Somebody in it has a limit of this; of all GPUs everybody has one.
    pub named: bool,
}

/// A limit that would be passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Over {
    /// Of whom; the tenant itself or one above it.
    pub tenant: TenantId,
    pub demand: u64,
    pub limit: u64,
    /// The most that the tenant may ever hold.
    pub most: u64,
    /// Even alone it would be too much.
    pub never: bool,
}

/// Nobody above and nobody below: most tenants.
pub fn is_flat(state: &State, tenant: &Tenant) -> bool {
    tenant.quota.parent.is_none() && children(state, tenant).next().is_none()
}

pub fn children<'a>(state: &'a State, tenant: &Tenant) -> impl Iterator<Item = &'a Tenant> + use<'a> {
    let own = tenant.id.clone();
    let from = (own.clone(), TenantNo(0));
    let found = state.children.range(from..).take_while(move |(parent, _)| *parent == own);
    found.filter_map(|(_, no)| state.tenants.get(no).map(|tenant| &**tenant))
}

fn parent<'a>(state: &'a State, tenant: &Tenant) -> Option<&'a Tenant> {
    tenant.quota.parent.as_ref().and_then(|name| state.tenant_named(name)).map(|tenant| &**tenant)
}

/// The tenant and those above it, the root last.
pub fn path<'a>(state: &'a State, tenant: &'a Tenant) -> Vec<&'a Tenant> {
    let mut out = vec![tenant];
    while let Some(above) = out.last().and_then(|last| parent(state, last))
        && out.len() < DEPTH
    {
        out.push(above);
    }
    out
}

/// The tenant above all that share limits with this one.
pub fn root<'a>(state: &'a State, tenant: &'a Tenant) -> &'a Tenant {
    path(state, tenant).last().copied().unwrap_or(tenant)
}

/// What a tenant has of its own: of all GPUs, where it says nothing, those of all types that it names, or
/// the group's default where it has nobody above.
pub fn nominal(state: &State, tenant: &Tenant, of: Of<'_>) -> u64 {
    let quota = &tenant.quota;
    match of {
        Of::Type(kind) => quota.types.get(kind).map_or(0, |share| share.gpu_milli),
        Of::Gpus => quota.gpu_milli.unwrap_or_else(|| match (&quota.parent, quota.types.is_empty()) {
            (None, true) => state.meta().default_gpu_milli,
            _ => quota.types.values().fold(0, |sum, share| sum.saturating_add(share.gpu_milli)),
        }),
    }
}

/// The most that a tenant itself holds until its open claims are met: limits are judged by that.
fn held(state: &State, tenant: TenantNo, of: Of<'_>) -> u64 {
    match of {
        Of::Gpus => super::used(state, tenant).gpu_milli,
        Of::Type(kind) => super::types::used(state, tenant, kind),
    }
}

/// What it holds once all open claims are met, its own and those that its work gives way to: what is borrowed is judged
/// by that, as if each claim were met before the next one is made.
fn settled(state: &State, tenant: TenantNo, of: Of<'_>) -> u64 {
    let held = match of {
        Of::Gpus => state.ledger().tenant(tenant).gpu_milli,
        Of::Type(kind) => state.ledger().of_type(tenant, kind),
    };
    state.claimed.get(&tenant).map_or(held, |claimed| claimed.settled(of, held))
}

fn lent(tenant: &Tenant, of: Of<'_>) -> Option<u64> {
    match of {
        Of::Gpus => tenant.quota.lend_milli,
        Of::Type(kind) => tenant.quota.types.get(kind).and_then(|share| share.lend_milli),
    }
}

/// The sums of a subtree, with so much more for one tenant in it, for its limits.
pub fn sum(state: &State, tenant: &Tenant, of: Of<'_>, more: (TenantNo, u64)) -> Sum {
    sum_of(state, tenant, of, more, held, None)
}

/// The same once all open claims are met.
fn settled_sum(state: &State, tenant: &Tenant, of: Of<'_>, more: (TenantNo, u64)) -> Sum {
    sum_of(state, tenant, of, more, settled, None)
}

/// The same for the tenant and those above it, the root last. Each tenant of the tree is looked at once.
fn sums_above(state: &State, path: &[&Tenant], of: Of<'_>, more: u64, holds: Holds) -> Vec<Sum> {
    let Some(own) = path.first().map(|own| own.no) else { return Vec::new() };
    let mut below = None;
    let sum = |each: &&Tenant| {
        let sum = sum_of(state, each, of, (own, more), holds, below);
        below = Some((each.no, sum));
        sum
    };
    path.iter().map(sum).collect()
}

/// What a tenant itself holds.
type Holds = fn(&State, TenantNo, Of<'_>) -> u64;

/// The same, where `holds` says what a tenant itself does, and one child's sum may be known.
fn sum_of(
    state: &State,
    tenant: &Tenant,
    of: Of<'_>,
    more: (TenantNo, u64),
    holds: Holds,
    known: Option<(TenantNo, Sum)>,
) -> Sum {
    let own = holds(state, tenant.no, of).saturating_add(if more.0 == tenant.no { more.1 } else { 0 });
    let named = match of {
        Of::Gpus => true,
        Of::Type(kind) => tenant.quota.types.contains_key(kind),
    };
    let start = Sum { nominal: nominal(state, tenant, of), demand: own, named };
    children(state, tenant).fold(start, |all, child| {
        let known = known.filter(|(no, _)| *no == child.no).map(|(_, sum)| sum);
        let sum = known.unwrap_or_else(|| sum_of(state, child, of, more, holds, None));
        Sum {
            nominal: all.nominal.saturating_add(sum.nominal),
            demand: all.demand.saturating_add(sum.demand.max(kept(child, of, sum.nominal))),
            named: all.named || sum.named,
        }
    })
}

/// What others can't have of a subtree's nominal, used or not.
fn kept(tenant: &Tenant, of: Of<'_>, nominal: u64) -> u64 {
    nominal.saturating_sub(lent(tenant, of).unwrap_or(u64::MAX))
}

/// What the demand of a subtree may be.
pub fn limit(tenant: &Tenant, of: Of<'_>, nominal: u64) -> u64 {
    let borrow = match of {
        Of::Gpus => tenant.quota.borrow_milli,
        Of::Type(kind) => tenant.quota.types.get(kind).and_then(|share| share.borrow_milli),
    };
    match tenant.quota.parent {
        None => nominal,
        Some(_) => nominal.saturating_add(borrow.unwrap_or(u64::MAX)),
    }
}

/// Whether the tenant may hold so much more; else the nearest limit in the way, or the narrowest of all where it may
/// never hold so much. A type that nobody in the whole tree names is not limited there.
///
/// # Errors
/// That limit.
pub fn check(state: &State, tenant: &Tenant, of: Of<'_>, more: u64) -> Result<(), Over> {
    let path = path(state, tenant);
    let sums = sums_above(state, &path, of, more, held);
    if sums.last().is_none_or(|root| !root.named) {
        return Ok(());
    }
    let limits: Vec<u64> = path.iter().zip(&sums).map(|(each, sum)| limit(each, of, sum.nominal)).collect();
    let over = |at: &usize| sums[*at].demand > limits[*at];
    let Some(nearest) = (0..path.len()).find(over) else { return Ok(()) };
    let (narrowest, most) = alone(state, &path, of);
    let never = more > most;
    // What can never be is not a matter of waiting for what is nearer.
    let at = if never { narrowest } else { nearest };
    let demand = sums[at].demand.saturating_sub(more);
    Err(Over { tenant: path[at].id.clone(), demand, limit: limits[at], most, never })
}

/// The most that the tenant may ever hold, if nobody else holds anything.
pub fn most(state: &State, tenant: &Tenant, of: Of<'_>) -> u64 {
    alone(state, &path(state, tenant), of).1
}

/// The narrowest place of the path, and how much the tenant may hold for that, if nobody else holds anything: what
/// others do not lend is theirs all the same.
fn alone(state: &State, path: &[&Tenant], of: Of<'_>) -> (usize, u64) {
    let sums = sums_above(state, path, of, 0, |_, _, _| 0);
    if sums.last().is_none_or(|root| !root.named) {
        return (0, u64::MAX);
    }
    // So much of it the places further up do not notice: it is kept for those below anyway.
    let mut unnoticed = 0u64;
    let mut out = (0, u64::MAX);
    for (at, (each, sum)) in path.iter().zip(sums).enumerate() {
        let most = limit(each, of, sum.nominal).saturating_sub(sum.demand).saturating_add(unnoticed);
        if most < out.1 {
            out = (at, most);
        }
        unnoticed = unnoticed.saturating_add(kept(each, of, sum.nominal).saturating_sub(sum.demand));
    }
    out
}

/// What was borrowed from a job's tenant by others, and may be had back: work of these tenants, whichever it is,
/// that holds so much together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debt {
    /// Of all GPUs, or those of a type.
    of: Option<DeviceType>,
    tenants: BTreeSet<TenantNo>,
    /// Thousandths of a GPU above their nominal ones.
    pub excess: u64,
}

impl Debt {
    fn new(of: Of<'_>, tenants: BTreeSet<TenantNo>, excess: u64) -> Self {
        let of = match of {
            Of::Gpus => None,
            Of::Type(kind) => Some(kind.clone()),
        };
        Self { of, tenants, excess }
    }

    /// How much of it such a place of the job would pay, in thousandths of a GPU.
    pub fn paid_by(&self, state: &State, job: &Job, alloc: &Allocation) -> u64 {
        match &self.of {
            _ if !self.tenants.contains(&job.tenant) => 0,
            None => job.spec.resources.gpu.milli(),
            Some(kind) => super::types::of_type(state, alloc, kind),
        }
    }
}

/// Whom a job may make give way, by the standing of its tenant in the tree.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Its tenant has others above or below it.
    in_tree: bool,
    /// What its tenant may have back.
    pub debts: Vec<Debt>,
    /// Jobs that hold that and came last: they go before older ones.
    pub latest: BTreeSet<JobNo>,
}

impl Standing {
    /// Whether less urgent work of another tenant gives way: only among tenants that stand
    /// alone. Within a tree the quota alone decides between tenants, or what an owner was
    /// given back could be taken again by force.
    pub fn reaches(&self, state: &State, victim: TenantNo) -> bool {
        !self.in_tree && state.tenant(victim).is_some_and(|tenant| is_flat(state, tenant))
    }

    /// Whether less urgent work gives way only where it is its own tenant's.
    pub fn in_tree(&self) -> bool {
        self.in_tree
    }

    /// Whether the place pays some of what may be had back.
    pub fn reclaims(&self, state: &State, job: &Job, alloc: &Allocation) -> bool {
        self.debts.iter().any(|debt| debt.paid_by(state, job, alloc) > 0)
    }

    /// Tenants that hold what may be had back.
    pub fn debtors(&self) -> BTreeSet<TenantNo> {
        self.debts.iter().flat_map(|debt| debt.tenants.iter().copied()).collect()
    }

    /// The debt that these take more of than there is: without the smallest of them it is paid already. Each is what
    /// gives way together.
    pub fn overpaid(&self, state: &State, gone: &[Vec<(&Job, &Allocation)>]) -> Option<&Debt> {
        self.debts.iter().find(|debt| {
            let paid = |unit: &Vec<(&Job, &Allocation)>| {
                unit.iter().map(|(job, alloc)| debt.paid_by(state, job, alloc)).sum::<u64>()
            };
            overpays(debt.excess, gone.iter().map(paid))
        })
    }
}

/// Whether parts that are paid come to more than the debt, rounded up to a part.
pub fn overpays(excess: u64, parts: impl Iterator<Item = u64>) -> bool {
    let (all, least) = parts
        .filter(|part| *part > 0)
        .fold((0u64, u64::MAX), |(all, least), part| (all.saturating_add(part), least.min(part)));
    all > 0 && all - least >= excess
}

/// The standing of a job of which so many replicas more would hold something. A tenant that is not there
/// yet stands alone.
///
/// Where types have limits, only a job that names the one type it runs on has anything back: it has to be
/// within what its own of all GPUs *and* of that type, so that nobody can take turns by going from one sum
/// to another.
pub fn standing(state: &State, tenant: Option<TenantNo>, ask: &Resources, times: u64) -> Standing {
    let Some(tenant) = tenant.and_then(|no| state.tenant(no)).filter(|tenant| !is_flat(state, tenant)) else {
        return Standing::default();
    };
    let above = path(state, tenant);
    let mut out = Standing { in_tree: true, ..Standing::default() };
    let more = ask.gpu.milli().saturating_mul(times);
    let Some(sums) = sums_of(state, tenant, ask).filter(|_| more > 0) else { return out };
    for pair in above.windows(2) {
        let (below, above) = (pair[0], pair[1]);
        let within = |of: &Of<'_>| {
            let wanted = settled_sum(state, below, *of, (tenant.no, more));
            wanted.demand <= wanted.nominal
        };
        if !sums.iter().all(within) {
            continue;
        }
        for of in sums.iter().copied() {
            for other in children(state, above).filter(|other| other.no != below.no) {
                let borrowed = excess(state, other, of);
                latest(state, &subtree(state, other), of, borrowed, &mut out.latest);
                owed(state, other, of, &mut out.debts);
            }
            let own = settled(state, above.no, of).saturating_sub(nominal(state, above, of));
            latest(state, &[above.no], of, own, &mut out.latest);
            if own > 0 {
                out.debts.push(Debt::new(of, BTreeSet::from([above.no]), own));
            }
        }
    }
    out
}

/// How much a subtree takes above what is its own.
fn excess(state: &State, tenant: &Tenant, of: Of<'_>) -> u64 {
    let Sum { nominal, demand, .. } = settled_sum(state, tenant, of, (tenant.no, 0));
    demand.saturating_sub(nominal)
}

/// What a subtree owes as a whole, and what each in it does: who is within its own keeps that.
fn owed(state: &State, tenant: &Tenant, of: Of<'_>, out: &mut Vec<Debt>) {
    let all = excess(state, tenant, of);
    if all == 0 {
        return;
    }
    let own = settled(state, tenant.no, of).saturating_sub(nominal(state, tenant, of));
    let first = out.len();
    if own > 0 {
        out.push(Debt::new(of, BTreeSet::from([tenant.no]), own));
    }
    children(state, tenant).for_each(|child| owed(state, child, of, out));
    let debtors: BTreeSet<TenantNo> = out[first..].iter().flat_map(|debt| debt.tenants.iter().copied()).collect();
    if out[first..].iter().all(|debt| debt.excess != all || debt.tenants != debtors) {
        out.push(Debt::new(of, debtors, all));
    }
}

/// Whether a claim would let a subtree borrow more than it does: `without` is the state as if the victims were gone.
/// What is taken by force comes out of what is the taker's own, or its tenant's: else two tenants take turns, each
/// evicting its own less urgent work to borrow what the other then has back.
pub fn borrows_more(state: &State, without: &State, tenant: Option<TenantNo>, ask: &Resources, times: u64) -> bool {
    borrowed_more(state, without, tenant, ask, times).is_some()
}

/// The nearest subtree that would, and by how much.
pub fn borrowed_more<'a>(
    state: &'a State,
    without: &State,
    tenant: Option<TenantNo>,
    ask: &'a Resources,
    times: u64,
) -> Option<(&'a Tenant, Of<'a>, u64)> {
    let row = tenant.and_then(|no| state.tenant(no)).filter(|tenant| !is_flat(state, tenant))?;
    let more = ask.gpu.milli().saturating_mul(times);
    let sums = sums_of(state, row, ask).unwrap_or_else(|| vec![Of::Gpus]);
    path(state, row).into_iter().find_map(|each| {
        sums.iter().find_map(|of| {
            let now = settled_sum(state, each, *of, (row.no, 0));
            let then = settled_sum(without, each, *of, (row.no, more));
            let beyond = then.demand.checked_sub(then.nominal.max(now.demand)).filter(|beyond| *beyond > 0)?;
            Some((each, *of, beyond))
        })
    })
}

/// The sums that a job counts in; None when that depends on where it goes.
fn sums_of<'a>(state: &State, tenant: &Tenant, ask: &'a Resources) -> Option<Vec<Of<'a>>> {
    if !super::types::in_tree(state, tenant) {
        return Some(vec![Of::Gpus]);
    }
    match ask.device_types.as_slice() {
        [only] if sum(state, path(state, tenant).last()?, Of::Type(only), (tenant.no, 0)).named => {
            Some(vec![Of::Gpus, Of::Type(only)])
        }
        [_] => Some(vec![Of::Gpus]),
        _ => None,
    }
}

/// All tenants of a subtree.
pub fn subtree(state: &State, tenant: &Tenant) -> Vec<TenantNo> {
    let mut out = vec![tenant.no];
    let mut next = 0;
    while let Some(no) = out.get(next).copied()
        && out.len() < MOST
    {
        next += 1;
        out.extend(state.tenant(no).into_iter().flat_map(|tenant| children(state, tenant)).map(|child| child.no));
    }
    out
}

/// The latest jobs of these tenants that make up the excess, of those that are not leaving anyway.
fn latest(state: &State, tenants: &[TenantNo], of: Of<'_>, mut excess: u64, out: &mut BTreeSet<JobNo>) {
    if excess == 0 {
        return;
    }
    let jobs_of = |no: &TenantNo| {
        let all = state.holding.range((*no, JobNo(0))..=(*no, JobNo(u64::MAX)));
        all.rev().take(LATEST).map(|(_, job)| *job)
    };
    let mut jobs: Vec<JobNo> = tenants.iter().flat_map(jobs_of).collect();
    jobs.sort_unstable_by_key(|job| std::cmp::Reverse(*job));
    for no in jobs {
        let Some(job) = state.job(no).filter(|_| excess > 0) else { break };
        let stays = |replica: &&Replica| !matches!(replica.phase, Phase::Stopping { .. });
        let holding = job.replicas.iter().filter(stays).flat_map(|replica| replica.allocations());
        let held: u64 = match of {
            Of::Gpus => holding.count() as u64 * job.spec.resources.gpu.milli(),
            Of::Type(kind) => holding.map(|alloc| super::types::of_type(state, alloc, kind)).sum(),
        };
        if held > 0 {
            out.insert(no);
            excess = excess.saturating_sub(held);
        }
    }
}

/// Why the quota's place in the tree is no good, if it is not.
pub fn misplaced(state: &State, tenant: &TenantId, above: &TenantId) -> Option<String> {
    let Some(found) = state.tenant_named(above) else {
        return Some(format!("no tenant {above}; create it first (nf tenant create {above})"));
    };
    let over = path(state, found);
    if over.iter().any(|each| each.id == *tenant) {
        return Some(format!("{above} is {tenant} or below it; a tree has no circles"));
    }
    let depth = state.tenant_named(tenant).map_or(1, |own| height(state, own, DEPTH));
    if over.len() + depth > DEPTH {
        return Some(format!("the tree would be deeper than {DEPTH} tenants"));
    }
    let size = over.last().map_or(0, |root| subtree(state, root).len());
    let own = state.tenant_named(tenant).map_or(1, |own| subtree(state, own).len());
    (size + own > MOST).then(|| format!("the tree would have more than {MOST} tenants"))
}

fn height(state: &State, tenant: &Tenant, most: usize) -> usize {
    if most == 0 {
        return 1;
    }
    1 + children(state, tenant).map(|child| height(state, child, most - 1)).max().unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod tests;
