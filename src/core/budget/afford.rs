//! Places that can be paid. To be spread, or near, is a wish: where the best nodes are too
//! dear for what is left of a budget, cheaper ones are tried before a job waits for it.

use super::judge::payable;
use crate::id::TenantNo;
use crate::job::{Constraints, JobSpec, Replica};
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
    replicas: &[Replica],
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
        let Some(less) = dearest.checked_sub(1) else { return Offer::TooDear };
        let most = less.saturating_mul(spec.most_replicas().into());
        let constraints = Constraints { max_cost_per_hour: Some(most), ..spec.constraints.clone() };
        ask = Cow::Owned(JobSpec { constraints, ..spec.clone() });
    }
    Offer::TooDear
}

/// Millionths an hour of a replica on such a node, as a job's own limit counts.
fn price(state: &State, spec: &JobSpec, pick: &Pick) -> u64 {
    let class = state.capacity().class(pick.alloc.node);
    class.map_or(0, |class| filter::cost_per_hour(&class.flavor, &Ask::of(state, spec)))
}
