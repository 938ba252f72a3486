//! Whether something may start: what was used, what has to be kept for what runs, and
//! what it would need itself must stay within each limit, of the tenant and of those
//! above it. Work that nobody stops is paid to the end of the window before it starts,
//! and must fit into a whole one, since it will still run in the next. Apply and
//! explanations use the same arithmetic.

use super::meter::{Rates, Two, prices};
use super::{Kind, Limit, Window, midnight};
use crate::bisect;
use crate::command::Placement;
use crate::id::{Revision, TenantId, TenantNo};
use crate::job::{Allocation, Job, JobSpec, Ran, Replica};
use crate::placement::{Pick, filter};
use crate::quota::tree;
use crate::reason::{Blocker, Reason, Refusal};
use crate::sharing::Ask;
use crate::state::State;
use crate::tenant::Tenant;

/// A limit that would be passed. Quantities in units of the meter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Over {
    /// Of whom; the tenant itself or one above it.
    pub tenant: TenantId,
    /// One above it: whose it is, how large and how far used, is not that tenant's to know.
    pub above: bool,
    pub limit: Limit,
    pub used: u128,
    /// Kept for what runs, to the end of the window.
    pub reserved: u128,
    pub ask: u128,
    /// The present window's.
    pub ends_ms: u64,
    /// It is a whole window that would not do, not what is left of this one.
    pub whole: bool,
    /// Even alone it would be too much.
    pub never: bool,
}

/// The tenant itself and those with budgets above it, that its work counts for; most have none, nor has any above.
fn watched(state: &State, tenant: Option<TenantNo>) -> Option<Vec<&Tenant>> {
    let row = tenant.and_then(|no| state.tenant(no))?;
    if row.quota.parent.is_none() && row.quota.budgets.is_none() {
        return None;
    }
    let mut path = tree::path(state, row);
    let has = |tenant: &&Tenant| tenant.quota.budgets.is_some();
    path.iter().any(has).then(|| {
        path.retain(|tenant| has(tenant) || tenant.no == row.no);
        path
    })
}

/// Whether any budget limits the tenant.
pub fn concerns(state: &State, tenant: TenantNo) -> bool {
    watched(state, Some(tenant)).is_some()
}

/// Whether rates may become others. The first of the path is whose they are.
fn judge(state: &State, path: &[&Tenant], before: &Rates, after: &Rates) -> Result<(), Over> {
    let now = state.meta().now_ms;
    for (place, tenant) in path.iter().enumerate() {
        let (meter, Some(budgets)) = (state.meter(tenant.no), &tenant.quota.budgets) else { continue };
        let then = meter.rates.changed(before, after);
        for limit in budgets.limits() {
            let Limit { kind, window, most } = limit;
            let (ends_ms, longest) = (window.end_ms(now), window.longest_ms());
            let over = |used, reserved: u128, needed: u128, whole, never| {
                let ask = needed.saturating_sub(reserved);
                Over { tenant: tenant.id.clone(), above: place > 0, limit, used, reserved, ask, ends_ms, whole, never }
            };
            let (left, used) = (ends_ms - now, meter.used(kind, window));
            let (kept, keeps) = (meter.rates.kept(kind, now, longest), then.kept(kind, now, longest));
            if keeps > kept && keeps > most && lasts_beyond(kind, before, after, (now, left)) {
                return Err(over(0, kept, keeps, true, keeps - kept > most));
            }
            let (reserved, needed) = (meter.rates.reserved(kind, now, left), then.reserved(kind, now, left));
            if needed > reserved && used.saturating_add(needed) > most {
                return Err(over(used, reserved, needed, false, false));
            }
        }
    }
    Ok(())
}

/// Whether what comes may still be there when the next window begins.
fn lasts_beyond(kind: Kind, before: &Rates, after: &Rates, (now_ms, left_ms): (u64, u64)) -> bool {
    let more = |of: fn(&Rates) -> &Two| of(after)[kind as usize].saturating_sub(of(before)[kind as usize]);
    let limited = more(|rates| &rates.limited);
    let tail = after.tail(kind, now_ms).saturating_sub(before.tail(kind, now_ms));
    more(|rates| &rates.floor) > 0 || tail > limited.saturating_mul(left_ms.into())
}

/// Whether replicas of a job may have these places.
///
/// # Errors
/// The first limit that they would pass.
pub fn check(
    state: &State,
    tenant: Option<TenantNo>,
    spec: &JobSpec,
    (replicas, ran): (&[Replica], Ran),
    placements: &[Placement],
) -> Result<(), Over> {
    let Some(path) = watched(state, tenant) else { return Ok(()) };
    places(state, &path, spec, (replicas, ran), &prices(state, placements))
}

/// The same for a job that is not there yet.
///
/// # Errors
/// The first limit that they would pass.
pub fn check_new(
    state: &State,
    tenant: Option<TenantNo>,
    spec: &JobSpec,
    placements: &[Placement],
) -> Result<(), Over> {
    let Some(path) = watched(state, tenant) else { return Ok(()) };
    places(state, &path, spec, (&waiting(spec), Ran::default()), &prices(state, placements))
}

/// Whether a replica may have a second copy there, and stay there when it takes over.
///
/// # Errors
/// The first limit that it would pass.
pub fn check_copy(state: &State, job: &Job, replica: u16, alloc: &Allocation) -> Result<(), Over> {
    let Some(path) = watched(state, Some(job.tenant)) else { return Ok(()) };
    let own = job.replicas.get(usize::from(replica)).and_then(Replica::allocation);
    let own = own.map_or(0, |own| super::meter::price(state, own));
    let price = super::meter::price(state, alloc);
    let before = Rates::of(state, &job.spec, &job.replicas, job.ran);
    let taken = Rates::with(state, &job.spec, &job.replicas, job.ran, &[(replica, own.max(price))]);
    let after = taken.changed(&Rates::default(), &Rates::copy(&job.spec, price));
    judge(state, &path, &before, &after)
}

/// The limit that stands in the way of a second copy of any replica, at the first of these prices.
pub fn blocks_copy(state: &State, job: &Job, known: &[u128]) -> Option<Over> {
    let path = watched(state, Some(job.tenant))?;
    let price = known.first().copied().unwrap_or_else(|| lowest(state, &job.spec));
    judge(state, &path, &Rates::default(), &Rates::copy(&job.spec, price)).err()
}

fn places(
    state: &State,
    path: &[&Tenant],
    spec: &JobSpec,
    (replicas, ran): (&[Replica], Ran),
    placed: &[(u16, u128)],
) -> Result<(), Over> {
    let before = Rates::of(state, spec, replicas, ran);
    judge(state, path, &before, &Rates::with(state, spec, replicas, ran, placed))
}

fn waiting(spec: &JobSpec) -> Vec<Replica> {
    vec![Replica::waiting(Revision(1), 0); usize::from(spec.replicas)]
}

/// Of the places for a job those that can be paid, the first first; for a gang all or none.
/// `replicas` is empty for one that is not there yet.
pub fn payable(
    state: &State,
    tenant: Option<TenantNo>,
    spec: &JobSpec,
    (replicas, ran): (&[Replica], Ran),
    mut picks: Vec<(u16, Pick)>,
) -> Vec<(u16, Pick)> {
    let Some(path) = watched(state, tenant).filter(|_| !picks.is_empty()) else { return picks };
    let new = if replicas.is_empty() { waiting(spec) } else { Vec::new() };
    let replicas = if replicas.is_empty() { &new } else { replicas };
    let price = |(replica, pick): &(u16, Pick)| (*replica, super::meter::price(state, &pick.alloc));
    let placed: Vec<_> = picks.iter().map(price).collect();
    let paid = |count: u64| places(state, &path, spec, (replicas, ran), &placed[..count as usize]).is_ok();
    let all = picks.len() as u64;
    let few = if spec.gang { all * u64::from(paid(all)) } else { bisect::most(all, paid) };
    picks.truncate(few as usize);
    picks
}

/// The limit that stands in the way of a waiting job's next replica, or of all of a gang, at these
/// prices in their order or, where they are not known, at the lowest there is.
pub fn blocks(state: &State, job: &Job, known: &[u128]) -> Option<Over> {
    let path = watched(state, Some(job.tenant))?;
    places(state, &path, &job.spec, (&job.replicas, job.ran), &first(state, &path, job, known)).err()
}

/// What the job uses now, and what with its next replica, or all of a gang, at the lowest prices there are.
pub(crate) fn next(state: &State, job: &Job) -> (Rates, Rates) {
    let path = watched(state, Some(job.tenant)).unwrap_or_default();
    let placed = first(state, &path, job, &[]);
    (
        Rates::of(state, &job.spec, &job.replicas, job.ran),
        Rates::with(state, &job.spec, &job.replicas, job.ran, &placed),
    )
}

/// The replicas that would be placed next, and at what prices.
fn first(state: &State, path: &[&Tenant], job: &Job, known: &[u128]) -> Vec<(u16, u128)> {
    let priced = path.iter().filter_map(|tenant| tenant.quota.budgets.as_deref());
    let priced = priced.flat_map(|budgets| budgets.money).any(|limit| limit.is_some());
    let lowest = if priced { lowest(state, &job.spec) } else { 0 };
    let next = job.placeable(state.meta().now_ms).take(if job.spec.gang { usize::MAX } else { 1 });
    next.zip(known.iter().copied().chain(std::iter::repeat(lowest))).collect()
}

/// The same for one that is not there yet, of which some have places.
pub fn blocks_new(
    state: &State,
    tenant: Option<TenantNo>,
    spec: &JobSpec,
    picks: &[(u16, Pick)],
    known: &[u128],
) -> Option<Over> {
    let path = watched(state, tenant)?;
    let mut placed: Vec<_> = picks.iter().map(|(no, pick)| (*no, super::meter::price(state, &pick.alloc))).collect();
    let rest = (0..spec.replicas).filter(|no| picks.iter().all(|(placed, _)| placed != no));
    let rest = rest.take(if spec.gang { usize::MAX } else { 1 });
    let known = known.iter().copied().chain(std::iter::repeat_with(|| lowest(state, spec)));
    placed.extend(rest.zip(known));
    places(state, &path, spec, (&waiting(spec), Ran::default()), &placed).err()
}

/// The lowest price of one replica on any node that could ever hold it.
pub(super) fn lowest(state: &State, spec: &JobSpec) -> u128 {
    let ask = Ask::of(state, spec);
    let mut last = None;
    let mut prices = Vec::new();
    for class in state.capacity().classes.keys() {
        // Classes come in the order of their flavors.
        let same = last.is_some_and(|known| std::sync::Arc::ptr_eq(known, &class.flavor));
        if !same && filter::may_ever_run(&class.flavor, &ask) {
            prices.push(filter::lowest_cost(&class.flavor, &ask));
        }
        last = Some(&class.flavor);
    }
    prices.into_iter().min().unwrap_or(0)
}

impl Over {
    /// For the caller of a plan that apply refuses.
    pub fn refusal(&self) -> Refusal {
        Refusal::new(Reason::PlanChanged, self.detail())
    }

    /// For a job that waits.
    pub fn blocker(&self) -> Blocker {
        Blocker { reason: Reason::BudgetExhausted, detail: self.detail(), nodes: 0, permanent: self.never }
    }

    fn detail(&self) -> String {
        let Limit { kind, window, most } = self.limit;
        let (limit, ask, reserved) = (kind.text(most), kind.text(self.ask), kind.text(self.reserved));
        let (tenant, words, name) = (&self.tenant, kind.words(), window.name());
        if self.above && self.whole {
            return format!(
                "may run for whole {name}s, which takes {ask} {words} of each, more than a budget above its tenant lets through; \
                 give it a maximum run time, or have that budget raised"
            );
        }
        if self.above {
            let left = most.saturating_sub(self.used).saturating_sub(self.reserved);
            return format!(
                "needs {ask} {words} ahead; a budget above its tenant has {} left this {name}; the {name} ends {}",
                kind.text(left),
                midnight(self.ends_ms)
            );
        }
        if self.whole {
            return format!(
                "may run for whole {name}s, which takes {ask} {words} of each; tenant {tenant} has {limit} a {name}, \
                 {reserved} of them for what runs; give it a maximum run time, or raise the budget (nf quota set)"
            );
        }
        format!(
            "needs {ask} {words} ahead; tenant {tenant} has used {} of {limit} this {name} and keeps {reserved} for \
             what runs; the {name} ends {}",
            kind.text(self.used),
            midnight(self.ends_ms)
        )
    }
}

/// Where the meter of a tenant stands in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub kind: Kind,
    pub window: Window,
    /// In units of a limit, as [`Kind::told`].
    pub used: u64,
    /// In the window before.
    pub before: u64,
    /// Kept for what runs.
    pub reserved: u64,
    pub limit: Option<u64>,
}

/// Of each kind in that window, for those who ask.
pub fn standing(state: &State, tenant: &Tenant, window: Window) -> [Standing; 2] {
    let (meter, now) = (state.meter(tenant.no), state.meta().now_ms);
    Kind::ALL.map(|kind| Standing {
        kind,
        window,
        used: kind.told(meter.used(kind, window)),
        before: kind.told(meter.used_before(kind, window)),
        reserved: kind.told(meter.rates.reserved(kind, now, window.end_ms(now) - now)),
        limit: tenant.quota.budgets.as_deref().and_then(|budgets| budgets.get(kind, window)),
    })
}
