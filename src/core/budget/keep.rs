//! Keeping to limits while time passes: when the leader has to look at a tenant, and what
//! it then stops. Only replicas that a service can do without are stopped, a part of them
//! at a time, so that the last of a budget is spent by fewer and fewer.

use super::meter::{Meter, Rates, holds_and_is_wanted};
use super::{Budgets, Limit, START_MS, STOP_MS};
use crate::autoscaler::Why;
use crate::autoscaler::joint::{Means, Wish, share};
use crate::command::Command;
use crate::id::{JobNo, TenantNo};
use crate::job::Job;
use crate::quota::tree;
use crate::scaling::Target;
use crate::state::State;
use crate::tenant::Tenant;
use std::collections::BTreeMap;

/// Tenants that one pass looks at.
const PASS: usize = 256;

/// What is left of a limit for what may be stopped, at the meter's time.
fn rest(limit: Limit, meter: &Meter) -> u128 {
    let left = limit.window.end_ms(meter.at_ms) - meter.at_ms;
    let taken = meter.used(limit.kind, limit.window).saturating_add(meter.rates.kept(limit.kind, meter.at_ms, left));
    limit.most.saturating_sub(taken)
}

/// Whether something has to stop now.
fn is_short(limit: Limit, meter: &Meter) -> bool {
    let left = limit.window.end_ms(meter.at_ms) - meter.at_ms;
    let loose = meter.rates.loose[limit.kind as usize];
    loose > 0 && rest(limit, meter) < loose * u128::from(left.min(STOP_MS))
}

/// When a limit has to be looked at: before it runs short, and when its window is over.
fn look_ms(limit: Limit, meter: &Meter) -> u64 {
    let (k, now, end) = (limit.kind as usize, meter.at_ms, limit.window.end_ms(meter.at_ms));
    let Rates { held, floor, limited, runs, loose, .. } = meter.rates;
    if loose[k] == 0 {
        return end;
    }
    if is_short(limit, meter) {
        return now;
    }
    let left = u128::from(end - now);
    let stop = u128::from(STOP_MS);
    // What is kept to the end is paid already, and what runs is for so long as it may; of what has not begun all is kept.
    let tail = meter.rates.tail(limit.kind, now);
    let kept = floor[k] + if tail >= limited[k] * left { limited[k] } else { runs[k].min(tail) };
    let falls = held[k].saturating_sub(kept);
    let gap = rest(limit, meter) - loose[k] * left.min(stop);
    let (falls, until) = match left > stop {
        true => (falls, left - stop),
        // From here on they need less with every moment, too.
        false => (falls.saturating_sub(loose[k]), left),
    };
    let after = gap.checked_div(falls).map_or(until, |after| (after + 1).min(until));
    now + u64::try_from(after).unwrap_or(0).max(1)
}

/// When the leader has to look at the budgets.
pub(super) fn due_ms(budgets: &Budgets, meter: &Meter) -> Option<u64> {
    budgets.limits().map(|limit| look_ms(limit, meter)).min()
}

/// When the first tenant is due.
pub fn next_ms(state: &State) -> Option<u64> {
    state.budgets_due.get_min().map(|(at, _)| *at)
}

/// Everything that is due: windows that are over, and services that give replicas up.
pub fn pass(state: &State) -> Vec<Command> {
    let now = state.meta().now_ms;
    let due = state.budgets_due.iter().take(PASS).take_while(|(at, _)| *at <= now);
    let tenants: Vec<TenantNo> = due.map(|(_, no)| *no).collect();
    if tenants.is_empty() {
        return Vec::new();
    }
    let mut keep: BTreeMap<JobNo, u32> = BTreeMap::new();
    for tenant in tenants.iter().filter_map(|no| state.tenant(*no)) {
        for (job, most) in cuts(state, tenant) {
            keep.entry(job).and_modify(|known| *known = most.min(*known)).or_insert(most);
        }
    }
    let scale = keep.into_iter().filter_map(|(no, keep)| {
        let job = state.job(no)?;
        let replicas = job.spec.scaling?.min.saturating_add(u16::try_from(keep).ok()?);
        let target = Target { replicas, why: Why::BudgetLimit, inputs: None, seen: None, learned: None };
        (replicas < job.desired()).then_some(Command::Scale { job: no, target })
    });
    std::iter::once(Command::CountUsage { tenants }).chain(scale).collect()
}

/// How many replicas above its least each service below the tenant may keep, where a limit runs short.
fn cuts(state: &State, tenant: &Tenant) -> Vec<(JobNo, u32)> {
    let (meter, mut out) = (state.meter(tenant.no), Vec::new());
    let limits = tenant.quota.budgets.iter().flat_map(|budgets| budgets.limits());
    for limit in limits.filter(|limit| is_short(*limit, &meter)) {
        let services = loose(state, tenant);
        let wish = |(job, count, rates): &(&Job, u32, Rates)| Wish {
            service: job.no.0,
            wanted: *count,
            floor: 0,
            gpu_milli: u64::try_from(rates.loose[limit.kind as usize] / u128::from(*count)).unwrap_or(u64::MAX),
            priority: job.spec.priority.into(),
            weight: 1,
        };
        let wishes: Vec<Wish> = services.iter().map(wish).collect();
        let means = Means {
            gpu_milli: u64::MAX,
            budget_left: Some(rest(limit, &meter)),
            window_left_ms: limit.window.end_ms(meter.at_ms) - meter.at_ms,
            // Whoever goes on is paid as far ahead as one who starts, or it would be cut again at once.
            step_ms: START_MS,
        };
        let grants = share(&wishes, &means);
        out.extend(services.iter().zip(grants).map(|((job, ..), grant)| (job.no, grant.replicas)));
    }
    out
}

/// Services below the tenant with replicas above their least, and how many.
fn loose<'a>(state: &'a State, tenant: &Tenant) -> Vec<(&'a Job, u32, Rates)> {
    let mut out = Vec::new();
    for no in tree::subtree(state, tenant) {
        let jobs = state.holding.range((no, JobNo(0))..=(no, JobNo(u64::MAX)));
        let services = jobs.filter_map(|(_, job)| state.jobs.get(job)).filter(|job| job.spec.scaling.is_some());
        for job in services {
            let rates = Rates::of(state, &job.spec, &job.replicas, job.ran);
            let least = job.spec.scaling.map_or(0, |scaling| scaling.min);
            let held = job.replicas.iter().filter(|replica| holds_and_is_wanted(replica)).count() as u32;
            let count = held.saturating_sub(least.into());
            if count > 0 && rates.loose != [0, 0] {
                out.push((&**job, count, rates));
            }
        }
    }
    out
}
