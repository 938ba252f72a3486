//! What quotas and budgets leave for services. Where there is not enough for all that the
//! services of one tree of tenants want, they share it: the least of each, then who lives
//! on its own, then the higher priorities, then who has less. It does not decide what a
//! service wants.

use nf_core::autoscaler::joint::{self, Source};
use nf_core::autoscaler::{Limits, Why, Wish};
use nf_core::budget::rest::{Payer, Rest};
use nf_core::claim;
use nf_core::id::TenantNo;
use nf_core::job::Job;
use nf_core::quota::tree::{self, room::Room};
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
    let mut trees: BTreeMap<TenantNo, Vec<usize>> = BTreeMap::new();
    let mut out = vec![Limits::default(); services.len()];
    for (i, service) in services.iter().enumerate() {
        let path = state.tenant(service.job.tenant).map(|tenant| tree::path(state, tenant)).unwrap_or_default();
        match path.last() {
            // What nobody carries out takes part in nothing: its replicas are what they are.
            Some(_) if service.scaling.advisory => out[i] = share(state, &[service])[0],
            Some(root) => trees.entry(root.no).or_default().push(i),
            None => {}
        }
    }
    for of in trees.into_values() {
        let sharing: Vec<&Wanting<'_>> = of.iter().map(|i| &services[*i]).collect();
        of.iter().zip(share(state, &sharing)).for_each(|(i, limits)| out[*i] = limits);
    }
    out
}

/// What the tree of the services' tenants has for each, beside all that is none of theirs.
fn share(state: &State, services: &[&Wanting<'_>]) -> Vec<Limits> {
    let stock = Stock::of(state, services);
    // Whose signals are in doubt gives nothing up to others, as long as all that have something can keep it.
    let keeps = |s: &&Wanting<'_>| if s.wish.may_fall() { s.scaling.min.into() } else { s.wish.before() };
    let mut wishes: Vec<joint::Wish> = services.iter().map(|s| wish(s, keeps(s))).collect();
    if stock.has(&wishes, |wish| wish.wanted) {
        return vec![Limits::default(); services.len()];
    }
    if !stock.has(&wishes, |wish| wish.floor) {
        wishes = services.iter().map(|s| wish(s, s.scaling.min.into())).collect();
    }
    let limits = |grant: joint::Grant| match grant.cut {
        Some(Why::BudgetLimit) => Limits { budget: Some(grant.replicas), quota: None },
        Some(_) => Limits { quota: Some(grant.replicas), budget: None },
        None => Limits::default(),
    };
    joint::share_from(&wishes, stock).into_iter().map(limits).collect()
}

fn wish(service: &Wanting<'_>, floor: u32) -> joint::Wish {
    let (job, wanted) = (service.job, service.wish.wanted());
    let (service, gpu_milli, priority) = (job.no.0, each(job), job.spec.priority.into());
    joint::Wish { service, wanted, floor: wanted.min(floor), gpu_milli, priority, weight: 1 }
}

/// Thousandths of a GPU of one replica.
fn each(job: &Job) -> u64 {
    job.spec.resources.gpu.milli()
}

/// What the service holds, and what its open claim will, thousandths of a GPU.
fn held(state: &State, job: &Job) -> u64 {
    let copies = job.replicas.iter().flat_map(|replica| replica.allocations()).count();
    let claimed = claim::open(state).filter(|(of, _)| of.no == job.no).map(|(_, claim)| claim.placements.len());
    (copies + claimed.sum::<usize>()) as u64 * each(job)
}

/// What the services of one tree share.
#[derive(Clone)]
struct Stock {
    room: Option<Room>,
    rest: Rest,
    /// Whose, how much of a GPU each time, and who pays.
    of: Vec<(TenantNo, u64, Payer, u32)>,
}

impl Stock {
    fn of(state: &State, services: &[&Wanting<'_>]) -> Self {
        let mut theirs: BTreeMap<TenantNo, u64> = BTreeMap::new();
        services.iter().for_each(|s| *theirs.entry(s.job.tenant).or_default() += held(state, s.job));
        let less = |no: TenantNo| theirs.get(&no).copied().unwrap_or(0);
        let any = services.first().and_then(|s| state.tenant(s.job.tenant));
        let mut rest = Rest::default();
        let of = |s: &&Wanting<'_>| (s.job.tenant, each(s.job), rest.join(state, s.job), u32::from(s.scaling.min));
        let of = services.iter().map(of).collect();
        Self { room: any.map(|tenant| Room::of(state, tenant, less)), rest, of }
    }

    /// Whether there is enough for so many of each.
    fn has(&self, wishes: &[joint::Wish], count: fn(&joint::Wish) -> u32) -> bool {
        let mut stock = self.clone();
        let mut all = wishes.iter().enumerate().flat_map(|(i, wish)| (0..count(wish)).map(move |granted| (i, granted)));
        all.all(|(i, granted)| stock.least(i, granted).is_ok())
    }
}

impl Source for Stock {
    fn least(&mut self, wish: usize, granted: u32) -> Result<(), Why> {
        let (tenant, each, payer, min) = &self.of[wish];
        if self.room.as_ref().is_some_and(|room| !room.has(*tenant, *each)) {
            return Err(Why::QuotaLimit);
        }
        if granted >= *min && !self.rest.pays(payer, granted) {
            return Err(Why::BudgetLimit);
        }
        self.room.iter_mut().for_each(|room| room.take(*tenant, *each));
        self.rest.pay(payer, granted);
        Ok(())
    }

    fn more(&mut self, wish: usize, granted: u32) -> Result<(), Why> {
        self.least(wish, granted)
    }

    fn borrowed(&self, wish: usize) -> u64 {
        let (tenant, each, ..) = self.of[wish];
        self.room.as_ref().map_or(0, |room| room.borrowed(tenant, each))
    }
}
