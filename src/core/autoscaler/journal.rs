//! What the autoscaler was told and what it said, so that it can be played again: a line
//! for the beginning of each service's autoscaler, with all that it knew then, and one
//! for each look. It does not know where lines are kept.

use super::{Autoscaler, Decision, Limits, Signals};
use crate::id::{JobNo, ModelId, TenantId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Of whom a line tells: one job's autoscaler, from the moment it was made, in one leader's term.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Life {
    pub term: u64,
    pub job: JobNo,
    /// Counts the autoscalers that the job has had in the term.
    pub life: u32,
    pub tenant: TenantId,
    pub model: ModelId,
}

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// It begins here, or the file does.
    From { of: Life, scaler: Box<Autoscaler> },
    /// It looked once.
    Look { of: Life, signals: Signals, stands_at: u32, limits: Limits, decision: Box<Decision> },
}

/// A look that came to something else when it was played again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Line of the journal, from 1.
    pub line: usize,
    pub of: Life,
    pub then: Decision,
    pub now: Decision,
}

/// What came of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    pub looks: usize,
    pub services: usize,
    /// Looks whose autoscaler began before the journal does: they can't be played.
    pub without_beginning: usize,
    pub differences: Vec<Difference>,
}

/// Differences that are kept one by one; after the first one of a life the others follow from it.
const DIFFERENCES: usize = 100;

/// Plays a journal, line by line.
#[derive(Default)]
pub struct Replay {
    lives: BTreeMap<Life, Autoscaler>,
    line: usize,
    outcome: Replayed,
}

impl Replay {
    /// The next line.
    pub fn take(&mut self, record: Record) {
        self.line += 1;
        match record {
            // A file that goes on where another one ended begins with what was known then: that changes nothing.
            Record::From { of, scaler } => {
                self.lives.entry(of).or_insert(*scaler);
            }
            Record::Look { of, signals, stands_at, limits, decision } => {
                let Some(scaler) = self.lives.get_mut(&of) else {
                    self.outcome.without_beginning += 1;
                    return;
                };
                self.outcome.looks += 1;
                scaler.limit(limits);
                scaler.stands_at(stands_at);
                let now = scaler.step(&signals);
                if now != *decision && self.outcome.differences.len() < DIFFERENCES {
                    self.outcome.differences.push(Difference { line: self.line, of, then: *decision, now });
                }
            }
        }
    }

    pub fn end(self) -> Replayed {
        Replayed { services: self.lives.len(), ..self.outcome }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autoscaler::{Gap, Reading, Service};
    use crate::sim::Rng;

    fn life(job: u64) -> Life {
        let (tenant, model) = (TenantId::new("t1").unwrap(), ModelId::new("m1").unwrap());
        Life { term: 1, job: JobNo(job), life: 1, tenant, model }
    }

    /// An hour of a service with everything in it: bursts, gaps, limits that change, somebody who asks.
    fn journal(seed: u64) -> Vec<Record> {
        let mut rng = Rng::new(seed);
        let mut scaler = Autoscaler::new(Service::default()).unwrap();
        let mut out = vec![Record::From { of: life(seed), scaler: Box::new(scaler.clone()) }];
        let mut stands_at = 1;
        for k in 1..720_u64 {
            let burst = if k % 120 < 20 { 8 } else { 1 };
            let signals = Signals {
                at_ms: k * 5_000,
                ready: Reading::of(u64::from(stands_at)),
                starting: Reading::of(rng.below(3)),
                unplaced: Reading::of(rng.below(2)),
                uncounted: rng.chance(20),
                draining: Reading::of(0),
                queue: Reading::of(rng.below(4 * burst)),
                running: Reading::of(rng.between(10, 20) * burst),
                arrivals: if rng.chance(20) { Reading::Missing } else { Reading::of(rng.between(40, 60) * burst) },
                p95_ms: Reading::of(rng.between(1_000, 3_000)),
                gap: rng.chance(30).then_some(Gap::Replicas { told: 1, of: 2 }),
                age_ms: Some(rng.below(2_000)),
                ..Signals::default()
            };
            let limits = Limits { quota: rng.chance(100).then_some(5), budget: None };
            scaler.limit(limits);
            scaler.stands_at(stands_at);
            let decision = scaler.step(&signals);
            out.push(Record::Look { of: life(seed), signals, stands_at, limits, decision: Box::new(decision) });
            stands_at = if rng.chance(10) { 3 } else { decision.desired };
            if k == 400 {
                // Here a new file begins.
                out.push(Record::From { of: life(seed), scaler: Box::new(scaler.clone()) });
            }
        }
        out
    }

    fn play(records: impl IntoIterator<Item = Record>) -> Replayed {
        let mut replay = Replay::default();
        records.into_iter().for_each(|record| replay.take(record));
        replay.end()
    }

    #[test]
    fn a_journal_gives_the_same_decisions_from_any_of_its_files_on() {
        let all = journal(3);
        let whole = play(all.clone());
        assert_eq!((whole.looks, whole.services, whole.without_beginning), (719, 1, 0));
        assert_eq!(whole.differences, []);
        let again = all.iter().rposition(|record| matches!(record, Record::From { .. })).unwrap();
        let second = play(all[again..].iter().cloned());
        assert_eq!((second.looks, second.without_beginning, second.differences), (319, 0, vec![]));
        let lost = play(all[1..again].iter().cloned());
        assert_eq!((lost.looks, lost.without_beginning), (0, 400));
    }

    #[test]
    fn another_decision_or_another_signal_is_found() {
        let mut all = journal(5);
        let Record::Look { decision, .. } = &mut all[100] else { panic!("it is a look") };
        decision.desired += 1;
        let found = play(all.clone()).differences;
        assert_eq!(found.iter().map(|d| (d.line, d.then.desired - d.now.desired)).collect::<Vec<_>>(), [(101, 1)]);
        let mut other = journal(5);
        let Record::Look { signals, .. } = &mut other[100] else { panic!("it is a look") };
        signals.queue = Reading::of(900);
        assert_eq!(play(other).differences[0].line, 101);
    }
}
