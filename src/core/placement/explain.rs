//! Why a job waits: every blocker at once, each with how many nodes it rules
//! out and what would lift it. Uses the same checks as the placer.

use super::census::capacity_blockers;
use super::preempt::{self, Budgets};
use super::remedy::Change;
use super::{Limits, place, queue, together};
use crate::budget::{Over, judge, meter};
use crate::claim::{self, Claim};
use crate::disruption;
use crate::id::{NodeNo, TenantId, TenantNo};
use crate::job::{Constraints, Job, JobSpec, Next, Phase, Replica};
use crate::quota;
use crate::reason::{Blocker, Reason, Refusal};
use crate::state::State;
use crate::topology::Topology;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Victims and nodes that a reason names.
const NAMED: usize = 8;

/// The blockers of a waiting job, most blocking first. Empty when it could be placed now.
pub fn blockers(state: &State, job: &Job) -> Vec<Blocker> {
    let now = state.meta().now_ms;
    let waiting = job.replicas.iter().filter(|r| r.is_waiting()).count() as u64;
    if job.stopped || waiting == 0 && !job.replicas.iter().any(stops_to_wait) {
        return Vec::new();
    }
    if waiting == 0 {
        let mut out = vec![Blocker { reason: Reason::Draining, detail: STOPS.into(), nodes: 0, permanent: false }];
        put_withheld(state, job, &mut out);
        return out;
    }
    if let Some(claim) = &job.claim {
        return vec![claiming(state, claim, &job.spec.tenant)];
    }
    let budget = |prices: &[u128]| judge::blocks(state, job, prices);
    let of = |(spec, wanted): (&Arc<JobSpec>, Vec<u16>)| {
        let siblings = super::siblings(&job.replicas, &spec.constraints);
        blockers_of(state, Some(job.tenant), (spec, siblings), wanted.len() as u64, budget)
    };
    let found = job.by_version(waiting_replicas(job)).into_iter().map(of).find(|found| !found.is_empty());
    let mut out = found.unwrap_or_default();
    put_withheld(state, job, &mut out);
    let leaving = job.replicas.iter().filter(|r| r.is_waiting() && r.is_leaving());
    let nodes: Vec<_> =
        leaving.filter_map(|r| Some(state.node(r.other_allocation()?.node)?.name.to_string())).collect();
    if !nodes.is_empty() {
        let detail =
            format!("its former copy is still stopping on {}; it is placed when that is gone", nodes.join(", "));
        out.push(Blocker { reason: Reason::Draining, detail, nodes: 0, permanent: false });
    }
    if job.spec.gang && waiting > 0 && job.replicas.iter().any(stops_to_wait) {
        let detail = "other members of the gang stop where they were; all start together when that is done";
        out.push(Blocker { reason: Reason::Draining, detail: detail.into(), nodes: 0, permanent: false });
    }
    if job.placeable(now).next().is_none()
        && let Some(at) = state.wakes.iter().find(|(_, no)| *no == job.no).map(|(at, _)| *at)
    {
        let seconds = at.saturating_sub(now).div_ceil(1000);
        let detail = format!("a replica failed; its next start is in {seconds} s (nf logs shows why it failed)");
        out.push(Blocker { reason: Reason::Backoff, detail, nodes: 0, permanent: false });
    }
    // A job that nothing else stands in the way of is placed by the next look at the
    // queue, unless that keeps the room for those ahead.
    if out.is_empty() {
        out.extend(super::reserve::blocker(state, job));
    }
    if out.is_empty() {
        let detail = "the room that is left is kept for jobs that are ahead in the queue".to_owned();
        out.push(Blocker { reason: Reason::Priority, detail, nodes: 0, permanent: false });
    }
    out
}

fn waiting_replicas(job: &Job) -> impl Iterator<Item = u16> + '_ {
    job.replicas.iter().enumerate().filter(|(_, replica)| replica.is_waiting()).map(|(no, _)| no as u16)
}

const STOPS: &str = "it stops where it was, and is placed when that is done";

/// It is stopped to wait for another place, by somebody's word or for want of one.
fn stops_to_wait(replica: &Replica) -> bool {
    matches!(&replica.phase, Phase::Stopping { then: Next::Again, .. }) && replica.moving.is_none()
}

/// Puts what withholds every place from the job first.
pub(crate) fn put_withheld(state: &State, job: &Job, blockers: &mut Vec<Blocker>) {
    if let Some(refusal) = crate::trust::withheld(state, job) {
        put_first(blockers, refusal);
    }
}

/// Puts what is not about nodes before what is.
pub(crate) fn put_first(blockers: &mut Vec<Blocker>, Refusal { reason, detail, .. }: Refusal) {
    blockers.insert(0, Blocker { reason, detail, nodes: 0, permanent: false });
}

/// What would let a waiting job run now, each change in words; empty when nothing is known that would.
pub fn remedy(state: &State, job: &Job) -> Vec<String> {
    let wanted: Vec<u16> = waiting_replicas(job).take(if job.spec.gang { usize::MAX } else { 1 }).collect();
    if job.stopped || job.claim.is_some() || wanted.is_empty() {
        return Vec::new();
    }
    let found = super::remedy::for_job(state, job, &wanted).unwrap_or_default();
    let of_others = |change: &Change| matches!(change, Change::Budget { tenant, .. } if *tenant != job.spec.tenant);
    let told = |change: &Change| match of_others(change) {
        true => {
            "have the budget above this tenant raised; whoever runs the group knows whose it is (nf usage)".to_owned()
        }
        false => change.to_string(),
    };
    found.iter().map(told).collect()
}

/// Whom a claim of the tenant's waits for, as far as they are its own by name.
pub fn claiming(state: &State, claim: &Claim, tenant: &TenantId) -> Blocker {
    let (left, names, mut nodes) = victims(state, claim, tenant);
    if left == 0 {
        // It waits for those of which nobody hears; the others are ready for it.
        nodes.retain(|no| state.node(*no).is_none_or(|node| !node.takes_work()));
    }
    let at = nodes.iter().take(NAMED).filter_map(|no| Some(state.node(*no)?.name.to_string()));
    let at = at.collect::<Vec<_>>().join(", ");
    let left_ms = claim::due_ms(state, claim).saturating_sub(state.meta().now_ms);
    let saving = match left_ms {
        0 => String::new(),
        ms => format!("; they may save their state for {} s more", ms.div_ceil(1000)),
    };
    let detail = match left {
        0 => format!(
            "those that gave way are gone, and {at} is silent at the moment; starts when that is heard of again"
        ),
        _ => format!("{left} replica(s) give way on {at}: {names}{saving}"),
    };
    Blocker { reason: Reason::WaitingForPreemptedJobs, detail, nodes: nodes.len() as u32, permanent: false }
}

/// Who will give way to a job of the tenant's that has to wait a little longer first.
pub fn patient(state: &State, claim: &Claim, tenant: &TenantId, left_ms: u64) -> Blocker {
    let (left, names, nodes) = victims(state, claim, tenant);
    let detail = format!(
        "may preempt in {} s, when it has waited {} s, unless it finds a place by then: {left} replica(s) would give way, by who is there then: {names}",
        left_ms.div_ceil(1000),
        state.meta().placement.preemption.delay_ms.div_ceil(1000)
    );
    Blocker { reason: Reason::PreemptionDelayNotElapsed, detail, nodes: nodes.len() as u32, permanent: false }
}

/// Log time from which a waiting job may make others give way, where that is still to come and somebody might.
pub fn may_evict_from(state: &State, job: &Job) -> Option<u64> {
    let from = job.waits_since()?.saturating_add(state.meta().placement.preemption.delay_ms);
    let could = job.claim.is_none() && !job.stopped && preempt::may_help(state, job);
    (could && from > state.meta().now_ms).then_some(from)
}

/// What stands between a waiting job and the places of others: its patience, the budgets of their services, or that for a
/// gang so many would have to go. Takes a search, so it is for those who ask about one job.
pub fn rivals(state: &State, job: &Job) -> Option<Blocker> {
    if job.claim.is_some() || !preempt::may_help(state, job) {
        return None;
    }
    let (spec, wanted) = job.by_version(job.placeable(state.meta().now_ms)).into_iter().next()?;
    let siblings = super::siblings(&job.replicas, &job.spec.constraints);
    let limits = Limits { held: claim::nodes(state), siblings, ..Limits::default() };
    let ask = super::narrowed(state, spec)?;
    match queue::claim_for(state, &ask, &wanted, &limits) {
        Some(claim) => {
            let from = may_evict_from(state, job)?;
            Some(patient(state, &claim, &job.spec.tenant, from - state.meta().now_ms))
        }
        None => {
            let wanted = if job.spec.gang { &wanted[..] } else { wanted.get(..1)? };
            let Some(claim) = preempt::claim_by(state, &ask, wanted, &limits, Budgets::Ignored) else {
                let detail = preempt::beyond(state, &ask, wanted, &limits)?.detail(wanted.len());
                return Some(Blocker { reason: Reason::NotEnoughForGang, detail, nodes: 0, permanent: false });
            };
            let spared = |job: &&Arc<Job>| {
                let gone: Vec<u16> = claim.victims.iter().filter(|v| v.job == job.no).map(|v| v.replica).collect();
                !disruption::allows(job, &gone)
            };
            let mut jobs = claim.victims.iter().filter_map(|victim| state.job(victim.job));
            jobs.find(spared).map(|spared| disruption::blocker(spared, &job.spec.tenant))
        }
    }
}

/// How many victims are still there, who they are for the tenant, and the claimed nodes. Its own are named; of
/// those of others it learns how many jobs they are, and nothing else.
fn victims(state: &State, claim: &Claim, tenant: &TenantId) -> (usize, String, BTreeSet<NodeNo>) {
    let (mut names, mut others) = (Vec::new(), BTreeSet::new());
    let (mut left, mut own) = (0, 0);
    for victim in &claim.victims {
        let Some(job) = state.job(victim.job).filter(|_| claim::holds(state, victim)) else { continue };
        left += 1;
        if job.spec.tenant != *tenant {
            others.insert(job.no);
            continue;
        }
        own += 1;
        if names.len() < NAMED {
            names.push(format!("{} (priority {}) replica {}", job.request, job.spec.priority, victim.replica));
        }
    }
    let more = (own > names.len()).then(|| format!("{} more", own - names.len()));
    let others = (!others.is_empty()).then(|| others_jobs(others.len()));
    let tail: Vec<String> = more.into_iter().chain(others).collect();
    let all = match (names.is_empty(), tail.is_empty()) {
        (true, _) => tail.join(" and "),
        (false, true) => names.join(", "),
        (false, false) => format!("{} and {}", names.join(", "), tail.join(" and ")),
    };
    (left, all, claim.nodes().collect())
}

/// So many jobs of tenants that are not the reader's.
fn others_jobs(count: usize) -> String {
    match count {
        1 => "1 job of another tenant".to_owned(),
        n => format!("{n} jobs of other tenants"),
    }
}

/// The blockers of `replicas` waiting replicas of a job that need not exist yet.
/// `siblings`: where others of its replicas are. `budget` says which limit stands in the way at these prices, or at the lowest there is.
pub fn blockers_of(
    state: &State,
    tenant: Option<TenantNo>,
    (spec, siblings): (&JobSpec, BTreeMap<NodeNo, u32>),
    replicas: u64,
    budget: impl Fn(&[u128]) -> Option<Over>,
) -> Vec<Blocker> {
    let mut out = quota::blockers(state, tenant, spec, replicas);
    let wanted: Vec<u16> = (0..replicas.min(1024) as u16).collect();
    let limits = Limits { siblings, ..Limits::default() };
    let at_once = &wanted[..wanted.len().min(if spec.gang { usize::MAX } else { 1 })];
    let placed = place(state, spec, at_once, limits.clone());
    let prices: Vec<u128> = placed.iter().map(|(_, pick)| meter::price(state, &pick.alloc)).collect();
    out.extend(budget(&prices).map(|over| over.blocker()));
    if placed.is_empty() {
        let mut room = capacity_blockers(state, spec, replicas);
        if let Some(blocker) = together::blocker(state, spec, replicas, &limits) {
            // What would do anywhere is not too little; it is in the wrong places.
            let free = Constraints { topology: Topology::default(), ..spec.constraints.clone() };
            if place(state, &JobSpec { constraints: free, ..spec.clone() }, at_once, limits).len() == at_once.len() {
                room.retain(|blocker| !matches!(blocker.reason, Reason::NotEnoughForGang | Reason::FragmentedCapacity));
            }
            room.insert(0, blocker);
        }
        out.extend(between_types(state, tenant, spec, replicas, room.is_empty()));
        out.extend(room);
    }
    out.sort_by_key(|b| (!b.permanent, b.reason == Reason::NotEnoughForGang));
    out
}

/// Types of GPU of which the tenant may hold no more; where only those have room, also why the others have none.
fn between_types(
    state: &State,
    tenant: Option<TenantNo>,
    spec: &JobSpec,
    replicas: u64,
    has_room: bool,
) -> Vec<Blocker> {
    let mut out = quota::shut_types(state, tenant, spec, replicas);
    if let Some(open) = super::narrowed(state, spec).filter(|_| has_room && !out.is_empty()) {
        let room = capacity_blockers(state, &open, replicas);
        // A type that is shut may be opened.
        out.extend(room.into_iter().map(|blocker| Blocker { permanent: false, ..blocker }));
    }
    out
}
