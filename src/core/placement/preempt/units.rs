//! What may be made to give way to a job, and how much of it together: a service may say how many of its
//! replicas may be missing, and an owner has no more back than was borrowed.

use super::may_use;
use crate::claim;
use crate::disruption::{self, Spare};
use crate::id::{JobNo, NodeNo, TenantNo};
use crate::job::{Allocation, Job, JobSpec, Phase};
use crate::quota::tree::{self, Standing};
use crate::reason::Reason;
use crate::sharing::Ask;
use crate::state::State;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Jobs that may be made to give way, least urgent first, and the latest of each who borrowed.
const MOST_JOBS: usize = 4096;
/// Jobs that are looked at for them.
const LOOKED_AT: usize = 1 << 16;
/// What it costs that an older job gives back what later ones borrowed as well.
const EARLIER: u64 = 3_000;

/// What gives way together.
#[derive(Debug)]
pub(super) struct Unit {
    pub members: Vec<(Arc<Job>, u16)>,
    pub cost: u64,
    pub why: Reason,
    /// It counts against the budget of its job, which is this one.
    pub draws: Option<JobNo>,
    /// What it pays of each debt to the one that it gives way to; empty where it gives way for another reason.
    pub pays: Vec<u64>,
}

/// Whether services' budgets count: to find victims they do; to say whose budget stands in the way they don't.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Budgets {
    Heeded,
    Ignored,
}

/// How much may be taken.
#[derive(Debug, Default)]
pub(super) struct Spares {
    /// Of each service that says so, how many replicas.
    services: BTreeMap<JobNo, usize>,
    /// Of each debt, in thousandths of a GPU.
    debts: Vec<u64>,
}

/// Of whom too much is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Service(JobNo),
    Debt(usize),
}

impl Spares {
    /// Nobody is spared.
    pub fn are_none(&self) -> bool {
        self.services.is_empty() && self.debts.is_empty()
    }

    /// Of whom these units take more than may be taken.
    pub fn over(&self, units: &[Unit], gone: impl IntoIterator<Item = usize>) -> Option<Taken> {
        if self.are_none() {
            return None;
        }
        let mut counts: BTreeMap<JobNo, usize> = BTreeMap::new();
        let mut paid: Vec<(u64, u64)> = vec![(0, u64::MAX); self.debts.len()];
        for unit in gone.into_iter().map(|unit| &units[unit]) {
            if let Some(job) = unit.draws {
                let count = counts.entry(job).or_default();
                *count += 1;
                if *count > self.services[&job] {
                    return Some(Taken::Service(job));
                }
            }
            for ((all, least), part) in paid.iter_mut().zip(&unit.pays).filter(|(_, part)| **part > 0) {
                (*all, *least) = (*all + part, (*least).min(*part));
            }
        }
        let over = |((all, least), debt): (&(u64, u64), &u64)| *all > 0 && all - least >= *debt;
        paid.iter().zip(&self.debts).position(over).map(Taken::Debt)
    }
}

impl Unit {
    pub fn on(&self, node: NodeNo) -> impl Iterator<Item = (&Arc<Job>, u16, &Allocation)> {
        let here = |(job, replica): &'_ (Arc<Job>, u16)| job.replicas[usize::from(*replica)].allocation().is_some();
        self.members.iter().filter(move |member| here(member)).filter_map(move |(job, replica)| {
            let alloc = job.replicas[usize::from(*replica)].allocation()?;
            (alloc.node == node).then_some((job, *replica, alloc))
        })
    }

    /// Whether it counts there.
    pub fn counts(&self, of: Taken) -> bool {
        match of {
            Taken::Service(job) => self.draws == Some(job),
            Taken::Debt(no) => self.pays.get(no).is_some_and(|part| *part > 0),
        }
    }
}

/// Jobs that may have to give way to such a job, by who they are and where.
fn jobs(state: &State, spec: &JobSpec, standing: &Standing) -> BTreeSet<JobNo> {
    let own = state.tenant_named(&spec.tenant).map(|tenant| tenant.no);
    let less = |job: &&Arc<Job>| job.spec.constraints.preemptible && job.spec.priority < spec.priority;
    let held_by = |tenant: TenantNo| {
        let all = state.holding.range((tenant, JobNo(0))..=(tenant, JobNo(u64::MAX)));
        all.rev().take(LOOKED_AT).filter_map(|(_, no)| state.job(*no))
    };
    let mut out: BTreeSet<JobNo> = BTreeSet::new();
    if standing.in_tree() {
        let mut jobs: Vec<_> =
            own.into_iter().flat_map(held_by).filter(less).map(|j| (j.spec.priority, j.no)).collect();
        jobs.sort_unstable();
        out.extend(jobs.into_iter().take(MOST_JOBS).map(|(_, no)| no));
    } else {
        let ask = Ask::of(state, spec);
        let mut known: BTreeMap<NodeNo, bool> = BTreeMap::new();
        let mut helps = |job: &Job| {
            // Its tenant's own work may lack it quota, wherever that runs.
            let mut on = job.replicas.iter().filter_map(|replica| replica.allocation());
            Some(job.tenant) == own
                || on.any(|alloc| *known.entry(alloc.node).or_insert_with(|| may_use(state, &ask, alloc.node)))
        };
        let below = (i32::from(spec.priority), JobNo(0));
        let jobs = state.yielding.range(..below).take(LOOKED_AT).filter_map(|(_, no)| state.job(*no));
        let reached = jobs.filter(|job| Some(job.tenant) == own || standing.reaches(state, job.tenant));
        out.extend(reached.filter(|job| helps(job)).take(MOST_JOBS).map(|job| job.no));
    }
    for tenant in standing.debtors() {
        out.extend(held_by(tenant).take(MOST_JOBS).map(|job| job.no));
    }
    out
}

/// All that may be made to give way to such a job, and how much of it together.
pub(super) fn units(state: &State, spec: &JobSpec, standing: &Standing, budgets: Budgets) -> (Vec<Unit>, Spares) {
    let all = jobs(state, spec, standing);
    let jobs = all.into_iter().filter_map(|no| state.job(no));
    let debts = standing.debts.iter().map(|debt| debt.excess).collect();
    let (mut out, mut spares) = (Vec::new(), Spares { services: BTreeMap::new(), debts });
    for job in jobs {
        let spare = if budgets == Budgets::Heeded { disruption::spare(job) } else { Spare::Any };
        match spare {
            Spare::Any => {}
            Spare::Some(more) => _ = spares.services.insert(job.no, more.into()),
            Spare::Nothing => continue,
        }
        let each = candidates(state, spec, standing, job);
        if job.spec.gang {
            out.extend(Unit::gang(job, each));
        } else {
            let bound = spares.services.contains_key(&job.no);
            let single = |one: Candidate| {
                let draws = (bound && disruption::draws(job, one.replica)).then_some(job.no);
                let members = vec![(job.clone(), one.replica)];
                Some(Unit { members, cost: one.cost, why: one.why?, draws, pays: one.pays })
            };
            out.extend(each.into_iter().filter_map(single));
        }
    }
    let spared = |unit: &Unit| unit.draws.is_some_and(|job| spares.services[&job] == 0);
    out.retain(|unit| !unit.members.is_empty() && !spared(unit));
    (out, spares)
}

/// A replica that holds a place, and what it would be if it gave way.
struct Candidate {
    replica: u16,
    /// None: it does not.
    why: Option<Reason>,
    cost: u64,
    pays: Vec<u64>,
}

fn candidates(state: &State, spec: &JobSpec, standing: &Standing, job: &Arc<Job>) -> Vec<Candidate> {
    let now = state.meta().now_ms;
    let each = job.replicas.iter().enumerate().filter_map(|(i, replica)| {
        let Phase::Held { alloc, .. } = &replica.phase else { return None };
        let why = claim::may_evict(state, spec, standing, job, replica);
        let mut cost = claim::cost(now, job, alloc.at_ms);
        let mut pays = Vec::new();
        if why == Some(Reason::QuotaReclaimed) {
            cost += if standing.latest.contains(&job.no) { 0 } else { EARLIER };
            pays = standing.debts.iter().map(|debt: &tree::Debt| debt.paid_by(state, job, alloc)).collect();
        }
        Some(Candidate { replica: i as u16, why, cost, pays })
    });
    each.collect()
}

impl Unit {
    /// A gang is of no use without one of its members.
    fn gang(job: &Arc<Job>, each: Vec<Candidate>) -> Option<Self> {
        let why = each.iter().map(|one| one.why).collect::<Option<Vec<_>>>()?.first().copied()?;
        let cost = each.iter().map(|one| one.cost).sum();
        let mut pays = vec![0; each.first()?.pays.len()];
        each.iter().for_each(|one| pays.iter_mut().zip(&one.pays).for_each(|(all, part)| *all += part));
        let members = each.iter().map(|one| (job.clone(), one.replica)).collect();
        Some(Self { members, cost, why, draws: None, pays })
    }
}
