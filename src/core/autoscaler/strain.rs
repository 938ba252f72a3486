//! The guards of language models, which are full before their slots are: a KV cache of
//! which little is left puts requests off or throws work away, and first tokens come
//! late while prompts wait for one another. Either, if it lasts, asks for one replica
//! more, and neither ever for fewer. It does not know where the numbers come from.

use super::Autoscaler;
use super::signal::Sight;
use super::why::Why;
use serde::{Deserialize, Serialize};

/// A cache is full from here on, in thousandths: a longer answer finds no room any more.
const FULL_M: u64 = 900;
/// What is over sooner is none of our business, in milliseconds.
const LASTS_MS: u64 = 30_000;

/// What is remembered from one look to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strain {
    since_ms: Option<u64>,
    /// Until then, what was asked for last is waited for.
    patient_until_ms: u64,
}

/// The reason when a guard decides.
pub(super) fn why(sight: &Sight) -> Why {
    if sight.first_late { Why::LatencyExceeded } else { Why::QueueDepth }
}

impl Autoscaler {
    /// Replicas that the guards want; 0 where there is nothing to guard.
    pub(super) fn strained(&mut self, now: u64, sight: &Sight) -> u32 {
        let total = self.fleet.total();
        if !sight.first_late && sight.kv_m.is_none_or(|kv| kv < FULL_M) {
            self.strain.since_ms = None;
            let kept = now < self.strain.patient_until_ms || would_fill(total, sight);
            return if kept { total } else { 0 };
        }
        let since = *self.strain.since_ms.get_or_insert(now);
        if now < since.saturating_add(LASTS_MS) || now < self.strain.patient_until_ms {
            return total;
        }
        self.strain.patient_until_ms = now.saturating_add(self.cold.ms()).saturating_add(LASTS_MS);
        total.saturating_add(1)
    }
}

/// Whether what is in the caches would fill those of one replica fewer: else it would go and come again for ever.
fn would_fill(total: u32, sight: &Sight) -> bool {
    let used = sight.kv_m.unwrap_or(0).saturating_mul(sight.ready.unwrap_or(0).into());
    total > 1 && used > 0 && used >= FULL_M * u64::from(total - 1)
}

#[cfg(test)]
mod tests {
    use super::super::{Decision, Reading, Service, Signals};
    use super::*;

    /// So many looks at a load for which one replica is enough, by what replicas say besides.
    struct Played {
        scaler: Autoscaler,
        at_ms: u64,
        wanted: u32,
        /// Since then so many are wanted.
        since_ms: u64,
        ready: u32,
    }

    const COLD_MS: u64 = 60_000;

    impl Played {
        fn new(replicas: u32) -> Self {
            let service = Service { min: 1, max: 9, cold_start_ms: COLD_MS, ..Service::default() };
            let scaler = Autoscaler::new(service).unwrap();
            let mut played = Self { scaler, at_ms: 0, wanted: replicas, since_ms: 0, ready: replicas };
            played.looks(24, |_| ());
            played
        }

        fn looks(&mut self, looks: u32, change: impl Fn(&mut Signals)) -> Decision {
            let mut last = None;
            for _ in 0..looks {
                self.at_ms += 5_000;
                let started = self.at_ms >= self.since_ms + COLD_MS;
                self.ready = if started { self.wanted } else { self.ready.min(self.wanted) };
                let mut signals = Signals {
                    at_ms: self.at_ms,
                    ready: Reading::of(self.ready.into()),
                    starting: Reading::of(u64::from(self.wanted - self.ready)),
                    draining: Reading::of(0),
                    queue: Reading::of(0),
                    running: Reading::of(4),
                    arrivals: Reading::of(10),
                    p95_ms: Reading::of(2_000),
                    ..Signals::default()
                };
                change(&mut signals);
                let decision = self.scaler.step(&signals);
                if decision.desired != self.wanted {
                    (self.wanted, self.since_ms) = (decision.desired, self.at_ms);
                }
                last = Some(decision);
            }
            last.unwrap()
        }
    }

    fn cache(milli: u64) -> impl Fn(&mut Signals) {
        move |signals| signals.kv_cache = Reading::of_milli(milli)
    }

    fn first(ms: u64) -> impl Fn(&mut Signals) {
        move |signals| (signals.first_token_ms, signals.first_token_within_ms) = (Reading::of(ms), Some(500))
    }

    #[test]
    fn a_cache_that_stays_full_asks_for_one_more_and_then_waits_for_it() {
        let mut played = Played::new(1);
        assert_eq!(played.looks(4, cache(950)).desired, 1, "a moment is not enough");
        assert_eq!(played.looks(60, cache(890)).desired, 1, "nor what is nearly full");
        let decision = played.looks(7, cache(900));
        assert_eq!((decision.desired, decision.why), (2, Why::QueueDepth), "{decision:?}");
        assert_eq!(decision.inputs.kv_m, Some(900));
        assert_eq!(played.looks(12, cache(900)).desired, 2, "it has not started yet");
        assert_eq!(played.looks(12, cache(900)).desired, 3);
    }

    #[test]
    fn what_relieved_a_cache_is_not_taken_away_again() {
        let mut played = Played::new(1);
        assert_eq!(played.looks(7, cache(950)).desired, 2);
        assert_eq!(played.looks(400, cache(475)).desired, 2, "one alone would be full again");
        assert_eq!(played.looks(400, cache(200)).desired, 1);
        // Where nothing is said of caches, nothing is kept for their sake.
        assert_eq!(Played::new(2).looks(400, |_| ()).desired, 1);
    }

    #[test]
    fn first_tokens_that_stay_late_ask_for_one_more() {
        let mut played = Played::new(1);
        assert_eq!(played.looks(60, first(500)).desired, 1);
        let decision = played.looks(7, first(501));
        assert_eq!((decision.desired, decision.why), (2, Why::LatencyExceeded), "{decision:?}");
        // Where nobody says when they should come, none is late.
        let nobody = |signals: &mut Signals| signals.first_token_ms = Reading::of(60_000);
        assert_eq!(Played::new(1).looks(60, nobody).desired, 1);
    }

    #[test]
    fn what_is_old_or_absurd_asks_for_nothing() {
        let old = |signals: &mut Signals| (signals.kv_cache, signals.age_ms) = (Reading::of_milli(990), Some(61_000));
        assert_eq!(Played::new(1).looks(60, old).desired, 1);
        assert_eq!(Played::new(1).looks(60, cache(91_000)).desired, 1);
    }
}
