//! How long jobs run: what ended says of it, and what runs still. It knows no future.

use crate::id::{ModelId, TenantNo};
use crate::job::Job;
use crate::sim::Rng;
use crate::state::State;
use imbl::OrdMap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Run times that are remembered of one tenant's model, the newest.
const REMEMBERED: usize = 32;
/// Models of tenants of which run times are remembered.
const MODELS: usize = 1024;

/// A job that has ended: how long it ran, and when that was over, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Over {
    pub ran_ms: u64,
    pub at_ms: u64,
}

/// How long jobs ran, by tenant and model, oldest first. Derived from what ended since this process loaded the state,
/// and not stored: after a restart little is known for a while.
#[derive(Clone, Debug, Default)]
pub struct RunTimes(OrdMap<(TenantNo, ModelId), Arc<Vec<Over>>>);

impl RunTimes {
    /// A job has ended.
    pub(crate) fn learn(&mut self, job: &Job) {
        if !job.ran.ever() {
            return;
        }
        let key = (job.tenant, job.spec.model.clone());
        if self.0.len() >= MODELS && !self.0.contains_key(&key) {
            return;
        }
        let known = Arc::make_mut(self.0.entry(key).or_default());
        if known.len() == REMEMBERED {
            known.remove(0);
        }
        known.push(Over { ran_ms: job.ran.until_ms(job.changed_ms), at_ms: job.changed_ms });
    }
}

/// What is known of run times at one moment, by tenant and model.
pub(super) struct Knowledge(BTreeMap<(TenantNo, ModelId), Known>);

impl Knowledge {
    pub fn new(state: &State, running: &[(Arc<Job>, u16)]) -> Self {
        let now = state.meta().now_ms;
        let mut ages: BTreeMap<(TenantNo, ModelId), Vec<u64>> = BTreeMap::new();
        let mut last = None;
        for (job, _) in running {
            // Replicas of one job say the same.
            if last.replace(job.no) != Some(job.no) {
                ages.entry((job.tenant, job.spec.model.clone())).or_default().push(job.ran.until_ms(now));
            }
        }
        let known = |(key, over): (&(TenantNo, ModelId), &Arc<Vec<Over>>)| {
            (key.clone(), Known::new(over, ages.get(key).map_or(&[], Vec::as_slice), now))
        };
        Self(state.run_times.0.iter().map(known).collect())
    }

    /// How much longer a job that has run for `age` runs, by the `draw`; None when nothing says so.
    pub fn lasts(&self, job: &Job, age: u64, draw: u64) -> Option<u64> {
        if job.spec.scaling.is_some() {
            return None;
        }
        let limit = job.spec.constraints.max_run_ms.map(|most| most.saturating_sub(age));
        match (self.0.get(&(job.tenant, job.spec.model.clone())), limit) {
            (Some(known), limit) => Some((known.draw(age, draw) - age).min(limit.unwrap_or(u64::MAX))),
            // Nothing is known but the limit: any time until then is as likely.
            (None, Some(limit)) => Some(part(limit, draw)),
            (None, None) => None,
        }
    }
}

/// How long jobs of one tenant's model run, from those that ended since the first end that is remembered, and from those
/// that run still: to leave the latter out would be to believe that all run as short as those that are over. The
/// estimator is that of Kaplan and Meier (JASA 53, 1958), in which a job counts from the age that it had when the time
/// that is looked at began.
pub(super) struct Known {
    /// Ascending.
    ends: Vec<Event>,
}

/// How long one ran that ended, and how many were still running after so long.
struct Event {
    ran_ms: u64,
    at_risk: u64,
}

impl Known {
    pub fn new(over: &[Over], running: &[u64], now: u64) -> Self {
        let since = over.iter().map(|one| one.at_ms).min().unwrap_or(now);
        // From which age to which each was seen.
        let ended = over.iter().map(|one| (one.ran_ms.saturating_sub(one.at_ms - since), one.ran_ms));
        let running = running.iter().map(|age| (age.saturating_sub(now.saturating_sub(since)), *age));
        let seen: Vec<(u64, u64)> = ended.chain(running).collect();
        let mut ran: Vec<u64> = over.iter().map(|one| one.ran_ms).collect();
        ran.sort_unstable();
        let event = |(i, ran_ms): (usize, &u64)| {
            let there = seen.iter().filter(|(from, to)| from <= ran_ms && ran_ms <= to).count();
            // Of those that ended at one age each is one less.
            let before = ran[..i].iter().filter(|other| *other == ran_ms).count();
            Event { ran_ms: *ran_ms, at_risk: (there - before).max(1) as u64 }
        };
        let ends = ran.iter().enumerate().map(event).collect();
        Self { ends }
    }

    /// A run time longer than `age`, in all.
    pub fn draw(&self, age: u64, draw: u64) -> u64 {
        let mut rng = Rng::new(draw);
        let longer = &self.ends[self.ends.partition_point(|event| event.ran_ms <= age)..];
        let end = longer.iter().find(|event| rng.below(event.at_risk) == 0);
        // It outlives all that are known: about as long again.
        let last = longer.last().map_or(age, |event| event.ran_ms);
        end.map_or_else(|| last.saturating_add(part(last, rng.bits())), |event| event.ran_ms)
    }
}

/// Some part of it, any as likely.
fn part(of: u64, draw: u64) -> u64 {
    (u128::from(of) * u128::from(draw % 1024) / 1024) as u64
}
