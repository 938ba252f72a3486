//! Gangs of which some members hold a place and others find none: two of them could wait for
//! one another for ever. One that has not been whole again within a minute (`job::LONGEST_TORN_MS`) gives its
//! places back and waits as a whole; one at a time, so that the next may be whole by what it left.

use crate::command::Command;
use crate::job::{Job, Next, Phase};
use crate::reason::Reason;
use crate::state::State;
use crate::trust;
use std::cmp::Reverse;

/// Stops what runs of the least urgent and youngest gang that has been torn for too long.
pub(super) fn give_back(state: &State) -> Vec<Command> {
    let now = state.meta().now_ms;
    let gangs = || state.torn.iter().filter_map(|no| state.job(*no));
    if gangs().any(|job| is_giving_back(job)) {
        return Vec::new();
    }
    let torn = gangs().filter(|job| job.is_torn(now) && trust::withheld(state, job).is_none());
    let Some(job) = torn.min_by_key(|job| (job.spec.priority, Reverse(job.no))) else { return Vec::new() };
    let held = job.replicas.iter().enumerate().filter(|(_, r)| matches!(r.phase, Phase::Held { .. }));
    let evict = |(no, replica): (usize, &crate::job::Replica)| Command::Evict {
        job: job.no,
        replica: no as u16,
        from: replica.generation,
        why: Reason::NotEnoughForGang,
    };
    held.map(evict).collect()
}

fn is_giving_back(job: &Job) -> bool {
    let gives =
        |phase: &Phase| matches!(phase, Phase::Stopping { why: Reason::NotEnoughForGang, then: Next::Again, .. });
    job.replicas.iter().any(|replica| gives(&replica.phase))
}
