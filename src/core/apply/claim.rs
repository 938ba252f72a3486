//! Commands about claims: others give way to a waiting job, and the place is its own as
//! soon as they are gone. It does not choose the victims; it judges them on facts.

use super::{job, moving};
use crate::budget;
use crate::claim::{self, Claim, GaveWay, LASTS_MS, MOST_OPEN, MOST_VICTIMS};
use crate::command::{Answer, Placement};
use crate::disruption;
use crate::event::EventKind;
use crate::id::{JobNo, RequestId, TenantId, TenantNo};
use crate::job::{Allocation, Job, JobSpec, Next, Phase, Replica, Restart};
use crate::quota::tree;
use crate::reason::{Reason, Refusal};
use crate::state::State;
use crate::trust;
use std::collections::{BTreeMap, BTreeSet};

/// Others give way to a job that waits already.
pub(super) fn preempt(state: &mut State, no: JobNo, claim: &Claim) -> Result<Answer, Refusal> {
    let Some(job) = state.job(no).cloned() else { return Ok(Answer::Count(0)) };
    let waits = |p: &Placement| job.replicas.get(usize::from(p.replica)).is_some_and(|r| r.is_waiting());
    if job.stopped || job.claim.is_some() || !claim.placements.iter().all(waits) {
        return Err(bad(format!("job {} does not wait for these places", job.request)));
    }
    let patient: BTreeSet<u16> =
        job.may_evict(state.meta().now_ms, state.meta().placement.preemption.delay_ms).collect();
    if !claim.placements.iter().all(|p| patient.contains(&p.replica)) {
        return Err(bad(format!("job {} has not waited long enough to make others give way", job.request)));
    }
    if !job.is_whole_with(|no| claim.placements.iter().any(|placement| placement.replica == no)) {
        return Err(bad(format!("gang {} would not be whole", job.request)));
    }
    trust::withheld(state, &job).map_or(Ok(()), Err)?;
    judge(state, Some(job.tenant), &job.spec, claim)?;
    job::fit_each(state, Some(job.tenant), |no| job.spec_for(no), &claim.placements, &claim.victims)?;
    job::together(state, &job.spec, &job.replicas, &claim.placements)?;
    let paid = budget::judge::check(state, Some(job.tenant), &job.spec, (&job.replicas, job.ran), &claim.placements);
    paid.map_err(|over| over.refusal())?;
    let before = job.state();
    let claiming = Job { claim: Some(Box::new(claim.clone())), ..(*job).clone() };
    job::save(state, claiming, before, None);
    evict(state, claim, (&job.request, &job.spec.tenant), job.spec.priority);
    // One claim a pass: the next waiter is worth another.
    state.room += 1;
    Ok(Answer::Count(claim.victims.len() as u32))
}

/// The claim of a job that is submitted with it: for replicas that get no place at once.
pub(super) fn judge_new(
    state: &State,
    tenant: Option<TenantNo>,
    spec: &JobSpec,
    placed: &[Placement],
    claim: &Claim,
) -> Result<(), Refusal> {
    if state.meta().placement.preemption.delay_ms > 0 {
        return Err(bad("a new job has not waited yet, and makes nobody give way".to_owned()));
    }
    let both: Vec<Placement> = placed.iter().chain(&claim.placements).cloned().collect();
    job::well_formed(spec, &both)?;
    judge(state, tenant, spec, claim)?;
    budget::judge::check_new(state, tenant, spec, &both).map_err(|over| over.refusal())?;
    job::fits(state, tenant, spec, &both, &claim.victims)?;
    job::together(state, spec, &[], &both)
}

fn bad(detail: String) -> Refusal {
    Refusal::new(Reason::PlanChanged, detail)
}

/// The judgement on the victims: each may be evicted by such a job, and gangs as a whole. Whether the places are
/// there when they are gone is judged beside it.
fn judge(state: &State, tenant: Option<TenantNo>, spec: &JobSpec, claim: &Claim) -> Result<(), Refusal> {
    if state.claims.len() >= MOST_OPEN
        || claim.placements.is_empty()
        || claim.placements.len() > usize::from(spec.most_replicas())
    {
        return Err(bad("too many claims, or one of nothing".to_owned()));
    }
    let distinct: BTreeSet<_> = claim.victims.iter().map(|v| (v.job, v.replica)).collect();
    if claim.victims.is_empty() || claim.victims.len() > MOST_VICTIMS || distinct.len() < claim.victims.len() {
        return Err(bad(format!("{} victims, of them {} different", claim.victims.len(), distinct.len())));
    }
    let replicas: BTreeSet<u16> = claim.placements.iter().map(|p| p.replica).collect();
    let claimed = claim::nodes(state);
    if replicas.len() < claim.placements.len() || claim.nodes().any(|node| claimed.contains(&node)) {
        return Err(bad("a place is claimed twice".to_owned()));
    }
    let standing = tree::standing(state, tenant, &spec.resources, claim.placements.len() as u64);
    for victim in &claim.victims {
        let job = state.job(victim.job);
        let replica = job.and_then(|job| job.replicas.get(usize::from(victim.replica)));
        let (Some(job), Some(replica)) = (job, replica) else { return Err(bad("a victim is gone".to_owned())) };
        let all = || {
            let held = job.replicas.iter().enumerate().filter(|(_, r)| matches!(r.phase, Phase::Held { .. }));
            held.map(|(i, _)| (job.no, i as u16)).all(|member| distinct.contains(&member))
        };
        let may = claim::may_evict(state, spec, &standing, job, replica) == Some(victim.why)
            && replica.generation == victim.generation;
        if !may || (job.spec.gang && !all()) {
            // Whose it is may be none of the caller's business.
            return Err(bad(format!("job {} does not give way to this one", victim.job)));
        }
    }
    if standing.overpaid(state, &reclaimed(state, claim)).is_some() {
        return Err(bad(format!("tenant {} would have more back than was borrowed", spec.tenant)));
    }
    let without = claim::without(state, &claim.victims);
    if tree::borrows_more(state, &without, tenant, &spec.resources, claim.placements.len() as u64) {
        return Err(bad(format!("tenant {} would borrow more than it does by what it takes", spec.tenant)));
    }
    for no in claim.victims.iter().map(|victim| victim.job).collect::<BTreeSet<_>>() {
        let gone: Vec<u16> = claim.victims.iter().filter(|v| v.job == no).map(|v| v.replica).collect();
        if state.job(no).is_some_and(|job| !disruption::allows(job, &gone)) {
            return Err(bad(format!("job {no} lets fewer of its replicas be missing at once")));
        }
    }
    Ok(())
}

/// The places that are taken because their tenants have only borrowed them: each that of a replica, or those of a gang.
fn reclaimed<'a>(state: &'a State, claim: &Claim) -> Vec<Vec<(&'a Job, &'a Allocation)>> {
    let mut out: BTreeMap<(JobNo, Option<u16>), Vec<_>> = BTreeMap::new();
    for victim in claim.victims.iter().filter(|victim| victim.why == Reason::QuotaReclaimed) {
        let Some(job) = state.job(victim.job) else { continue };
        let Some(alloc) = job.replicas.get(usize::from(victim.replica)).and_then(Replica::allocation) else { continue };
        let alone = (!job.spec.gang).then_some(victim.replica);
        out.entry((job.no, alone)).or_default().push((&**job, alloc));
    }
    out.into_values().collect()
}

/// Tells the victims to stop; what they hold is theirs until their agents say that they are gone.
pub(super) fn evict(state: &mut State, claim: &Claim, (to, of): (&RequestId, &TenantId), priority: i16) {
    let jobs: BTreeSet<JobNo> = claim.victims.iter().map(|victim| victim.job).collect();
    let at_ms = state.meta().now_ms;
    for no in jobs {
        let Some(old) = state.job(no).cloned() else { continue };
        let before = old.state();
        let gave_way = Some(Box::new(GaveWay { to: to.clone(), of: of.clone(), priority, at_ms }));
        let mut job = Job { gave_way, ..(*old).clone() };
        let then = if job.spec.constraints.restart == Restart::Never { Next::End } else { Next::Again };
        for victim in claim.victims.iter().filter(|victim| victim.job == no) {
            let Some(replica) = job.replicas.get_mut(usize::from(victim.replica)) else { continue };
            let Phase::Held { alloc, .. } = &replica.phase else { continue };
            let node = state.nodes[&alloc.node].name.clone();
            let notice = moving::notice(state, &old, &replica.phase, victim.why);
            replica.phase = Phase::Stopping { alloc: alloc.clone(), why: victim.why, then, notice };
            state.emit(EventKind::GaveWay {
                request: old.request.clone(),
                tenant: old.spec.tenant.clone(),
                replica: victim.replica,
                priority: old.spec.priority,
                node,
                to: to.clone(),
                of: of.clone(),
                to_priority: priority,
                why: victim.why,
            });
        }
        let why = claim.victims.iter().find(|victim| victim.job == no).map(|victim| victim.why);
        job::save(state, job, before, why);
    }
}

/// Gives the places to those whose victims are gone. What can't be met any more of a claim is dropped, and waits like
/// any other.
pub(super) fn settle(state: &mut State) {
    let open: Vec<JobNo> = state.claims.iter().copied().collect();
    for no in open {
        let Some(job) = state.job(no).cloned() else { continue };
        if let Some(claim) = job.claim.as_deref() {
            settle_one(state, &job, claim);
        }
    }
}

fn settle_one(state: &mut State, job: &Job, claim: &Claim) {
    let places = still_there(state, job, claim);
    // A node whose beats are late takes nothing, and is mostly heard of in a moment: its victims go meanwhile.
    let late = |place: &Placement| state.node(place.alloc.node).is_some_and(|node| !node.takes_work());
    let waits = claim.victims.iter().any(|victim| claim::holds(state, victim)) || places.iter().any(late);
    let in_time = state.meta().now_ms.saturating_sub(claim::due_ms(state, claim)) < LASTS_MS;
    let stays_open = waits && in_time && !places.is_empty();
    if stays_open && places.len() == claim.placements.len() {
        return;
    }
    let rest = stays_open.then(|| Box::new(Claim { placements: places.clone(), ..claim.clone() }));
    state.put_job(Job { claim: rest, ..job.clone() });
    state.sum_claims();
    if stays_open || take(state, job, places) < claim.placements.len() {
        // The other nodes are anybody's again.
        state.room += 1;
    }
}

/// The places that its job still waits for, on nodes that take work or will in a moment; of a gang all or none.
fn still_there(state: &State, job: &Job, claim: &Claim) -> Vec<Placement> {
    let waits = |p: &Placement| job.replicas.get(usize::from(p.replica)).is_some_and(Replica::is_waiting);
    let there = |p: &Placement| state.node(p.alloc.node).is_some_and(|node| node.may_take_work());
    let some: Vec<Placement> = claim.placements.iter().filter(|p| waits(p) && there(p)).cloned().collect();
    if job.spec.gang && some.len() < claim.placements.len() { Vec::new() } else { some }
}

/// The job takes these places: all of them, or else each that is still to be had. Returns how many.
fn take(state: &mut State, job: &Job, mut places: Vec<Placement>) -> usize {
    if places.is_empty() {
        return 0;
    }
    let now = state.meta().now_ms;
    places.iter_mut().for_each(|place| place.alloc.at_ms = now);
    if job::place(state, job.no, &places).is_ok() {
        return places.len();
    }
    let alone = if job.spec.gang { &[] } else { &places[..] };
    alone.iter().map(|place| usize::from(job::place(state, job.no, std::slice::from_ref(place)).is_ok())).sum()
}
