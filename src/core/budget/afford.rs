//! Places that can be paid. To be spread, or near, is a wish: where the best nodes are too
//! dear for what is left of a budget, cheaper ones are tried before a job waits for it.

use super::judge::payable;
use crate::claim::Claim;
use crate::id::{NodeNo, TenantNo};
use crate::job::{Constraints, JobSpec, Ran, Replica};
use crate::placement::{Limits, Pick, filter, place};
use crate::sharing::Ask;
use crate::state::State;
use std::borrow::Cow;

/// Prices that are tried, one below the other.
const STEPS: usize = 8;

/// What became of the search.
pub enum Offer<'a> {
    Places(Vec<(u16, Pick)>),
    /// Nothing has room now. Who looks for somebody to give way, or keeps room, does it for this ask: without what
    /// is too dear.
    NoRoom(Cow<'a, JobSpec>),
    /// There is room, and none that can be paid.
    TooDear,
}

/// Looks for places for the `wanted` replicas; `replicas` is empty for a job that is not there yet.
pub fn affordable<'a>(
    state: &State,
    tenant: Option<TenantNo>,
    spec: &'a JobSpec,
    replicas: (&[Replica], Ran),
    wanted: &[u16],
    limits: &Limits,
) -> Offer<'a> {
    let mut ask = Cow::Borrowed(spec);
    for _ in 0..STEPS {
        let picks = place(state, &ask, wanted, limits.clone());
        let Some(dearest) = picks.iter().map(|(_, pick)| price(state, spec, pick)).max() else {
            return Offer::NoRoom(ask);
        };
        let paid = payable(state, tenant, spec, replicas, picks);
        if !paid.is_empty() {
            return Offer::Places(paid);
        }
        let Some(cheaper) = below(spec, dearest) else { return Offer::TooDear };
        ask = Cow::Owned(cheaper);
    }
    Offer::TooDear
}

/// The claim that `find` makes for the ask, or for it where others are too dear, if it can be paid.
pub fn affordable_claim(
    state: &State,
    ask: &JobSpec,
    find: impl Fn(&JobSpec) -> Option<Claim>,
    is_paid: impl Fn(&Claim) -> bool,
) -> Option<Claim> {
    let mut ask = Cow::Borrowed(ask);
    for _ in 0..STEPS {
        let claim = find(&ask)?;
        if is_paid(&claim) {
            return Some(claim);
        }
        let nodes = claim.placements.iter().map(|placement| placement.alloc.node);
        ask = Cow::Owned(below(&ask, nodes.map(|node| price_on(state, &ask, node)).max()?)?);
    }
    None
}

/// The ask with no place as dear as that for one replica; None where none is cheaper.
fn below(spec: &JobSpec, dearest: u64) -> Option<JobSpec> {
    let most = dearest.checked_sub(1)?.saturating_mul(spec.most_replicas().into());
    let constraints = Constraints { max_cost_per_hour: Some(most), ..spec.constraints.clone() };
    Some(JobSpec { constraints, ..spec.clone() })
}

/// Millionths an hour of a replica on such a node, as a job's own limit counts.
fn price(state: &State, spec: &JobSpec, pick: &Pick) -> u64 {
    price_on(state, spec, pick.alloc.node)
}

fn price_on(state: &State, spec: &JobSpec, node: NodeNo) -> u64 {
    let class = state.capacity().class(node);
    class.map_or(0, |class| filter::cost_per_hour(&class.flavor, &Ask::of(state, spec)))
}
