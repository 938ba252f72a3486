//! Where the replicas of a new job would go, and why not all of them would: asked by a
//! schedule call and by `nf plan` alike. It commits nothing.

use crate::budget;
use crate::claim::Claim;
use crate::id::Digest16;
use crate::job::JobSpec;
use crate::placement::{self, Limits, Pick, explain, queue};
use crate::reason::{Blocker, Reason};
use crate::state::State;

/// The placer's answer on a job that does not exist yet.
#[derive(Clone, Debug)]
pub struct Draft {
    pub picks: Vec<(u16, Pick)>,
    /// Others who would give way, and the places that they would leave.
    pub claim: Option<Claim>,
    /// Waiters ahead keep nodes, or quota cut the number of replicas.
    kept: bool,
}

impl Draft {
    /// Names the outcome: the same places and devices give the same digest.
    pub fn digest(&self) -> Digest16 {
        let mut text = String::new();
        for (replica, pick) in &self.picks {
            text.push_str(&format!("{replica}@{}:{:?};", pick.alloc.node, pick.alloc.shares));
        }
        if let Some(claim) = &self.claim {
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
        if let Some(claim) = &self.claim {
            return vec![explain::claiming(state, claim)];
        }
        let tenant = state.tenant_named(&spec.tenant).map(|t| t.no);
        let budget = |price| budget::judge::blocks_new(state, tenant, spec, &self.picks, price);
        let mut out = explain::blockers_of(state, tenant, spec, waiting, budget);
        if out.is_empty() && self.kept {
            let detail = "the room that is left is kept for jobs that are ahead in the queue".to_owned();
            out.push(Blocker { reason: Reason::Priority, detail, nodes: 0, permanent: false });
        }
        out
    }
}

/// Where the replicas of a new job would go now.
pub fn draft(state: &State, spec: &JobSpec) -> Draft {
    let tenant = state.tenant_named(&spec.tenant).map(|t| t.no);
    let wanted = queue::within_quota(state, tenant, spec, (0..spec.replicas).collect());
    let held = queue::kept_nodes(state, spec.priority);
    let kept = !held.is_empty();
    let limits = Limits { held, ..Limits::default() };
    let picks = placement::place(state, spec, &wanted, limits.clone());
    let picks = budget::judge::payable(state, tenant, spec, &[], picks);
    // Also what the quota cut off: it may be in the hands of those who borrowed it.
    let all: Vec<u16> = (0..spec.replicas).collect();
    let rest = &all[picks.len()..];
    // A job of which some replicas have a place now waits for a pass: who borrowed is judged without them.
    let claim = if rest.is_empty() || !picks.is_empty() { None } else { make_room(state, spec, &picks, rest, limits) };
    let payable = |claim: &Claim| budget::judge::check_new(state, tenant, spec, &claim.placements).is_ok();
    let claim = claim.filter(payable);
    Draft { picks, claim, kept }
}

/// Others who would give way to the replicas that found no place, beside those that did.
fn make_room(state: &State, spec: &JobSpec, picks: &[(u16, Pick)], rest: &[u16], mut limits: Limits) -> Option<Claim> {
    let mut scratch = state.speculative();
    for (replica, pick) in picks {
        scratch.book(spec, *replica, &pick.alloc);
        *limits.siblings.entry(pick.alloc.node).or_default() += 1;
    }
    queue::claim_for(&scratch, spec, rest, &limits)
}
