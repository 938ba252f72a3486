//! Where quota is what a job lacks: the cheapest work that gives so much of it back. Of one limit it is the
//! cheapest there is, by dynamic programming over what each unit gives back and costs; several limits are met one
//! after the other. It does not look at nodes.

use super::units::{Spares, Unit};
use crate::id::{DeviceType, TenantNo};
use crate::job::JobSpec;
use crate::quota::tree::{self, Of};
use crate::quota::{self, Lack, types};
use crate::state::State;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Limits that are met one after the other.
const ROUNDS: usize = 16;
/// Sums of the dynamic programming that are kept; beyond it the answer is a good one.
const FRONTIER: usize = 1024;

/// What is lacking, in whose hands.
struct Shortfall {
    of: Lack,
    kind: Option<DeviceType>,
    tenants: BTreeSet<TenantNo>,
    amount: u64,
}

/// Whether, with these gone, the quota allows so many replicas, and nobody borrows more than before by that.
pub(super) fn allows(state: &State, without: &State, tenant: Option<TenantNo>, spec: &JobSpec, times: u64) -> bool {
    quota::allows(without, tenant, &spec.resources, times)
        && types::some_open(without, tenant, spec, times)
        && !tree::borrows_more(state, without, tenant, &spec.resources, times)
}

/// The first limit in the way.
fn shortfall(
    state: &State,
    without: &State,
    tenant: Option<TenantNo>,
    spec: &JobSpec,
    times: u64,
) -> Option<Shortfall> {
    let (own, ask) = (tenant?, &spec.resources);
    let below = |tenant: &crate::tenant::Tenant| tree::subtree(state, tenant).into_iter().collect();
    let of_tree = |kind: Option<DeviceType>, over: tree::Over| {
        let more = ask.gpu.milli().saturating_mul(times);
        let amount = over.demand.saturating_add(more).saturating_sub(over.limit);
        Some(Shortfall { of: Lack::Gpus, kind, tenants: below(state.tenant_named(&over.tenant)?), amount })
    };
    if let Some((of, amount)) = quota::lacks(without, tenant, ask, times) {
        return Some(Shortfall { of, kind: None, tenants: BTreeSet::from([own]), amount });
    }
    if let Some(over) = quota::over_tree(without, tenant, ask, times) {
        return of_tree(None, over);
    }
    let closed = types::closed(without, tenant, spec, times);
    if let Some((kind, over)) = closed.into_iter().min_by_key(|(_, over)| over.demand.saturating_sub(over.limit)) {
        return of_tree(Some(kind), over);
    }
    let (above, of, amount) = tree::borrowed_more(state, without, tenant, ask, times)?;
    let kind = match of {
        Of::Gpus => None,
        Of::Type(kind) => Some(kind.clone()),
    };
    Some(Shortfall { of: Lack::Gpus, kind, tenants: below(above), amount })
}

impl Shortfall {
    /// How much of it the unit gives back.
    fn covered_by(&self, state: &State, unit: &Unit) -> u64 {
        let counted = unit.members.iter().filter(|(job, _)| self.tenants.contains(&job.tenant));
        let each = counted.map(|(job, replica)| match &self.kind {
            None => self.of.of(&job.spec.resources),
            Some(kind) => {
                let alloc = job.replicas[usize::from(*replica)].allocation();
                alloc.map_or(0, |alloc| types::of_type(state, alloc, kind))
            }
        });
        each.fold(0, u64::saturating_add)
    }
}

/// Adds the units that cost least in sum, until the quota allows so many replicas.
pub(super) fn free_quota(
    state: &State,
    (tenant, spec, times): (Option<TenantNo>, &JobSpec, u64),
    units: &[Unit],
    spares: &Spares,
    chosen: &mut BTreeSet<usize>,
) -> Option<()> {
    let mut without = state.speculative();
    let give_back = |without: &mut State, unit: usize| {
        units[unit].members.iter().for_each(|(job, replica)| without.give_back(job, *replica));
    };
    chosen.iter().for_each(|unit| give_back(&mut without, *unit));
    for _ in 0..ROUNDS {
        let Some(lack) = shortfall(state, &without, tenant, spec, times) else {
            return allows(state, &without, tenant, spec, times).then_some(());
        };
        let others = (0..units.len()).filter(|unit| !chosen.contains(unit));
        let gives = others.map(|unit| (lack.covered_by(state, &units[unit]), units[unit].cost, unit));
        let gives: Vec<_> = gives.filter(|(amount, ..)| *amount > 0).collect();
        let over = |more: &[usize]| spares.over(units, chosen.iter().chain(more).copied()).is_some();
        let best = cover(&gives, lack.amount)?;
        let more = if over(&best) { one_by_one(gives, lack.amount, over)? } else { best };
        more.iter().for_each(|unit| give_back(&mut without, *unit));
        chosen.extend(more);
    }
    None
}

/// Those that cost least for what they give, leaving out whom too much would be taken of.
fn one_by_one(mut gives: Vec<(u64, u64, usize)>, lack: u64, over: impl Fn(&[usize]) -> bool) -> Option<Vec<usize>> {
    let dear = |(amount, cost, unit): &(u64, u64, usize)| (u128::from(*cost) * 1_000_000 / u128::from(*amount), *unit);
    gives.sort_by_key(dear);
    let (mut out, mut covered) = (Vec::new(), 0u64);
    for (amount, _, unit) in gives {
        out.push(unit);
        if over(&out) {
            out.pop();
            continue;
        }
        covered = covered.saturating_add(amount);
        if covered >= lack {
            return Some(out);
        }
    }
    None
}

/// A sum of some of them: how much it covers, what it costs, the last that was added and the sum before it.
#[derive(Clone, Copy)]
struct Partial {
    covered: u64,
    cost: u64,
    last: Option<(usize, usize)>,
}

/// Of those that give (amount, cost, who), the cheapest that together give `lack`.
fn cover(gives: &[(u64, u64, usize)], lack: u64) -> Option<Vec<usize>> {
    let mut by_amount: BTreeMap<u64, Vec<(u64, Reverse<usize>)>> = BTreeMap::new();
    for (amount, cost, unit) in gives {
        by_amount.entry((*amount).min(lack)).or_default().push((*cost, Reverse(*unit)));
    }
    let mut all = vec![Partial { covered: 0, cost: 0, last: None }];
    let mut front = vec![0usize];
    for (amount, mut alike) in by_amount {
        alike.sort_unstable();
        // Of those that give as much, no more than it takes; of equal cost the latest.
        alike.truncate(usize::try_from(lack.div_ceil(amount)).unwrap_or(usize::MAX));
        for (cost, Reverse(unit)) in alike {
            let with = front.iter().map(|at| {
                let before = all[*at];
                let covered = before.covered.saturating_add(amount).min(lack);
                Partial { covered, cost: before.cost.saturating_add(cost), last: Some((unit, *at)) }
            });
            let with: Vec<Partial> = with.collect();
            let first = all.len();
            all.extend(with);
            front.extend(first..all.len());
            front = cheapest(front, &all);
        }
    }
    let mut at = *front.iter().find(|at| all[**at].covered == lack)?;
    let mut out = Vec::new();
    while let Some((unit, before)) = all[at].last {
        out.push(unit);
        at = before;
    }
    Some(out)
}

/// Without the sums that cover no more than a cheaper one; from the one that covers most on.
fn cheapest(mut front: Vec<usize>, all: &[Partial]) -> Vec<usize> {
    front.sort_by_key(|at| (Reverse(all[*at].covered), all[*at].cost, *at));
    let mut least = u64::MAX;
    front.retain(|at| {
        let better = all[*at].cost < least;
        least = least.min(all[*at].cost);
        better
    });
    if front.len() > FRONTIER {
        // The empty sum is the last.
        let last = front.len() - 1;
        let mut place = 0;
        front.retain(|_| {
            place += 1;
            place % 2 == 1 || place > last
        });
    }
    front
}
