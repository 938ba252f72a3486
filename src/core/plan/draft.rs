//! Where the replicas of a new job would go, and why not all of them would: asked by a
//! schedule call and by `nf plan` alike. It commits nothing.

use crate::budget;
use crate::budget::afford::{Offer, affordable, affordable_claim};
use crate::claim::Claim;
use crate::id::{Digest16, NodeNo, RequestId};
use crate::job::{JobSpec, Ran};
use crate::placement::{Limits, Pick, explain, queue, reserve};
use crate::reason::{Blocker, Reason};
use crate::state::{State, WORKLOAD};
use std::collections::BTreeMap;

/// The placer's answer on a job that does not exist yet.
#[derive(Clone, Debug)]
pub struct Draft {
    pub picks: Vec<(u16, Pick)>,
    /// Others who would give way, once the job has waited for so long as the policy says, and the places that they
    /// would leave.
    pub claim: Option<Claim>,
    /// Those who give way do so with the call itself, so the digest covers them. Otherwise they are chosen when the job
    /// has waited for so long as the policy says, from who is there then.
    pub binds_victims: bool,
    /// Waiters ahead keep nodes, or quota cut the number of replicas.
    kept: bool,
    /// For whom the quota or budget is kept that it could have.
    kept_for: Option<RequestId>,
}

impl Draft {
    /// Names what a run does at once: the same places and devices, and the same who give way then, give the same digest.
    pub fn digest(&self) -> Digest16 {
        let mut text = String::new();
        for (replica, pick) in &self.picks {
            text.push_str(&format!("{replica}@{}:{:?};", pick.alloc.node, pick.alloc.shares));
        }
        if let Some(claim) = self.claim.as_ref().filter(|_| self.binds_victims) {
            for placement in &claim.placements {
                let alloc = &placement.alloc;
                text.push_str(&format!("{}@{}:{:?} after ", placement.replica, alloc.node, alloc.shares));
            }
            text.push_str(&format!("{:?}", claim.victims));
        }
        Digest16::of(&[b"plan", text.as_bytes()])
    }

    /// Why the replicas without a place would wait.
    pub fn blockers(&self, state: &State, spec: &JobSpec) -> Vec<Blocker> {
        let waiting = u64::from(spec.replicas) - self.picks.len() as u64;
        if waiting == 0 {
            return Vec::new();
        }
        if let Some(claim) = self.claim.as_ref().filter(|_| self.binds_victims) {
            return vec![explain::claiming(state, claim, &spec.tenant)];
        }
        let tenant = state.tenant_named(&spec.tenant).map(|t| t.no);
        let budget = |prices: &[u128]| budget::judge::blocks_new(state, tenant, spec, &self.picks, prices);
        let mut out = match spec.constraints.topology.required {
            None => explain::blockers_of(state, tenant, (spec, BTreeMap::new()), waiting, budget),
            // The others have to be beside those.
            Some(_) => {
                let (scratch, siblings) = self.booked(state, spec);
                explain::blockers_of(&scratch, tenant, (spec, siblings), waiting, budget)
            }
        };
        let delay_ms = state.meta().placement.preemption.delay_ms;
        out.extend(self.claim.as_ref().map(|claim| explain::patient(state, claim, &spec.tenant, delay_ms)));
        if out.is_empty() {
            out.extend(self.kept_for.as_ref().map(reserve::kept_for));
        }
        if out.is_empty() && self.kept {
            let detail = "the room that is left is kept for jobs that are ahead in the queue".to_owned();
            out.push(Blocker { reason: Reason::Priority, detail, nodes: 0, permanent: false });
        }
        out
    }
}

impl Draft {
    /// The state with the places taken, and on which nodes they are.
    fn booked(&self, state: &State, spec: &JobSpec) -> (State, BTreeMap<NodeNo, u32>) {
        let (mut scratch, mut siblings) = (state.speculative(), BTreeMap::new());
        for (replica, pick) in &self.picks {
            scratch.book(spec, *replica, &pick.alloc);
            *siblings.entry(pick.alloc.node).or_default() += 1;
        }
        (scratch, siblings)
    }
}

/// Where the replicas of a new job would go now, and who would give way. By tables of scores that are made of nothing
/// but the state, so that it comes out alike on every member, whenever it last made its own.
pub fn draft(state: &State, spec: &JobSpec) -> Draft {
    let mut state = state.speculative();
    state.make_rules(WORKLOAD);
    drafted(&state, spec, Victims::Named)
}

/// Whether a new job makes others give way with the call that brings it, and not some time later.
pub(super) fn binds_victims(state: &State) -> bool {
    state.meta().placement.preemption.delay_ms == 0
}

/// Whether others are looked for who would give way: a search of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Victims {
    Named,
    /// A new job has to wait first all the same.
    Left,
}

/// The same by the tables of the state, as they are made now and then.
pub(super) fn drafted(state: &State, spec: &JobSpec, victims: Victims) -> Draft {
    let tenant = state.tenant_named(&spec.tenant).map(|t| t.no);
    let within = |state: &State| queue::within_quota(state, tenant, spec, (0..spec.replicas).collect());
    let (held, mut ahead) = queue::kept_ahead(state, spec.priority);
    let kept = !held.is_empty();
    let limits = Limits { held, ..Limits::default() };
    let free = within(state);
    if !free.is_empty() {
        ahead.look_for_new(state, spec);
    }
    let counted = ahead.counted(state, spec);
    let (on, kept_for) = counted.as_ref().map_or((state, None), |(counted, first)| (counted, Some(first.clone())));
    let wanted = if counted.is_some() { within(on) } else { free.clone() };
    let found = affordable(on, tenant, spec, (&[], Ran::default()), &wanted, &limits);
    let (picks, ask) = match found {
        Offer::Places(picks) => (picks, None),
        // Nobody gives way to who is not next.
        Offer::NoRoom(_) if wanted.is_empty() && !free.is_empty() => (Vec::new(), None),
        Offer::NoRoom(ask) => (Vec::new(), Some(ask)),
        Offer::TooDear => (Vec::new(), None),
    };
    // Also what the quota cut off: it may be in the hands of those who borrowed it. A job of which some replicas
    // have a place now waits for a pass: who borrowed is judged without them.
    let all: Vec<u16> = (0..spec.replicas).collect();
    let ask = ask.filter(|_| victims == Victims::Named);
    let find = |ask: &JobSpec| queue::claim_for(state, ask, &all, &limits);
    let paid = |claim: &Claim| budget::judge::check_new(state, tenant, spec, &claim.placements).is_ok();
    let claim = ask.and_then(|ask| affordable_claim(state, &ask, find, paid));
    let binds_victims = binds_victims(state);
    Draft { picks, claim, binds_victims, kept, kept_for }
}
