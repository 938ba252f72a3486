//! A claim: a waiting job has chosen a place that others still hold, and they have
//! been told to give way. The victims and the place are one decision, so nobody is
//! made to stop for a place that somebody else then takes. Here: who may be made to
//! give way to whom, and what that costs. The search is `placement::preempt`.
//!
//! A tenant that is within its nominal quota may also have back what others borrowed
//! of it (`quota::tree`), whatever the priorities.
//!
//! Why it ends: a victim has a strictly lower priority than its rival, so each claim
//! that is met raises the list "work that holds a place, by priority, highest first"
//! in lexical order, and with given jobs that list has an end; and whoever is made to
//! give borrowed quota back would borrow again, and may take nothing from the owner. No claim lets a subtree
//! borrow more than it does, or urgent work of two tenants would take turns in what the other lends. The one place a rival
//! gets is bound to it in the same entry in which its last victim is gone, so it
//! waits again only after it lost that place itself: it failed, its node went Down,
//! or somebody more urgent came. Until one of these happens it evicts nobody twice.

use crate::command::Placement;
use crate::disruption::Notice;
use crate::id::{Generation, JobNo, NodeNo, RequestId, TenantId};
use crate::job::{Allocation, Job, JobSpec, Phase, Replica, Restart};
use crate::quota::tree::Standing;
use crate::reason::Reason;
use crate::state::State;
use serde::{Deserialize, Serialize};

/// Claims that may be open at once.
pub const MOST_OPEN: usize = 32;
/// Replicas that one claim may make give way.
pub const MOST_VICTIMS: usize = 256;
/// A claim whose victims do not go is dropped so long after they had to: their node is in trouble.
pub const LASTS_MS: u64 = 600_000;

/// A replica that has been told to give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Victim {
    pub job: JobNo,
    pub replica: u16,
    pub generation: Generation,
    /// `Preempted`, or `QuotaReclaimed` when its tenant had only borrowed what it holds.
    pub why: Reason,
}

/// The place that a job gets when its victims are gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub placements: Vec<Placement>,
    /// By job and replica.
    pub victims: Vec<Victim>,
    pub at_ms: u64,
}

/// To whom a job last gave way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GaveWay {
    pub to: RequestId,
    /// Whose job that is.
    pub of: TenantId,
    pub priority: i16,
    pub at_ms: u64,
}

/// What a tenant is told instead of the name of a job that is none of its own.
pub const ANOTHERS: &str = "another tenant's";

/// The name of a job, for those who read of it. None: who sees every tenant's.
pub fn named<'a>(job: &'a RequestId, of: &TenantId, reader: Option<&TenantId>) -> &'a str {
    if reader.is_none_or(|reader| reader == of) { job.as_str() } else { ANOTHERS }
}

impl Claim {
    /// Nodes on which nobody else is placed until the claim is settled.
    pub fn nodes(&self) -> impl Iterator<Item = NodeNo> + '_ {
        self.placements.iter().map(|placement| placement.alloc.node)
    }
}

/// Why the replica may be made to give way to a job like `rival` now, if it may.
pub fn may_evict(state: &State, rival: &JobSpec, standing: &Standing, job: &Job, replica: &Replica) -> Option<Reason> {
    let rules = state.meta().placement.preemption;
    let Phase::Held { alloc, .. } = &replica.phase else { return None };
    let safe = state.meta().now_ms.saturating_sub(alloc.at_ms) < rules.min_run_ms;
    // One that moves leaves a place of its own accord already.
    if !rules.enabled || job.stopped || safe || replica.other_allocation().is_some() {
        return None;
    }
    // Between tenants of a tree the quota alone decides.
    let reach = job.spec.tenant == rival.tenant || standing.reaches(state, job.tenant);
    let less = job.spec.constraints.preemptible && job.spec.priority < rival.priority;
    match (reach && less, standing.reclaims(state, job, alloc)) {
        (true, _) => Some(Reason::Preempted),
        (false, true) => Some(Reason::QuotaReclaimed),
        (false, false) => None,
    }
}

/// What is lost when the replica gives way: its start, its urgency, the time it has
/// been of use (a minute counts one, up to a thousand), and, if it is never started
/// again, its work.
pub fn cost(now_ms: u64, job: &Job, alloc_at_ms: u64) -> u64 {
    let urgency = (i64::from(job.spec.priority) + 1000).clamp(0, 2000) as u64;
    let minutes = (now_ms.saturating_sub(alloc_at_ms) / 60_000).min(1000);
    let for_good = if job.spec.constraints.restart == Restart::Never { 10_000 } else { 0 };
    1000 + urgency + minutes + for_good
}

/// The victim's job and the place that it still holds. Also on a scratch copy on which places were given back.
pub(crate) fn held<'a>(state: &'a State, victim: &Victim) -> Option<(&'a Job, &'a Allocation)> {
    let job = state.job(victim.job)?;
    let replica = job.replicas.get(usize::from(victim.replica)).filter(|r| r.generation == victim.generation)?;
    let alloc = replica.allocation()?;
    let booked = state.ledger().node(alloc.node)?.replicas.contains(&(victim.job, victim.replica));
    booked.then_some((&**job, alloc))
}

/// Whether the victim still holds its place.
pub fn holds(state: &State, victim: &Victim) -> bool {
    let replica = state.job(victim.job).and_then(|job| job.replicas.get(usize::from(victim.replica)));
    replica.is_some_and(|r| r.generation == victim.generation && r.allocation().is_some())
}

/// Log time at which the last victim has had all the time that it may take to save its state.
pub fn due_ms(state: &State, claim: &Claim) -> u64 {
    let notice = |victim: &Victim| {
        state.job(victim.job)?.replicas.get(usize::from(victim.replica))?.notice_of(victim.generation)
    };
    let notices = claim.victims.iter().filter_map(notice);
    notices.map(Notice::until_ms).fold(claim.at_ms, u64::max)
}

/// Jobs with an open claim.
pub fn open(state: &State) -> impl Iterator<Item = (&Job, &Claim)> {
    state.claims.iter().filter_map(|no| {
        let job = state.jobs.get(no)?;
        Some((&**job, job.claim.as_deref()?))
    })
}

/// Nodes on which only the claimants are placed, each once.
pub fn nodes(state: &State) -> Vec<NodeNo> {
    let all: std::collections::BTreeSet<NodeNo> = open(state).flat_map(|(_, claim)| claim.nodes()).collect();
    all.into_iter().collect()
}

/// A scratch copy as if the victims held nothing.
pub(crate) fn without(state: &State, gone: &[Victim]) -> State {
    let mut scratch = state.speculative();
    for victim in gone {
        if let Some(job) = state.job(victim.job) {
            scratch.give_back(job, victim.replica);
        }
    }
    scratch
}

#[cfg(test)]
mod tests;
