//! What is seen of a service at one moment, and whether to believe it. A number
//! that is absent, not a number, old, or impossible is told apart here, once, so
//! that the rest sees either a number or nothing. It does not decide what follows.

use super::service::Service;
use super::why::Why;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One number of a source that may have none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reading {
    /// In thousandths, so that averages keep their fraction.
    Known(u64),
    #[default]
    Missing,
    /// There was a value and it can't be one: negative, infinite, beyond all bounds.
    Absurd,
}

/// Beyond this no count and no milliseconds of ours can be: a billion.
const BEYOND_M: u64 = 1_000_000_000_000;

impl Reading {
    /// A whole number.
    pub fn of(n: u64) -> Self {
        Self::of_milli(n.saturating_mul(1000))
    }

    /// A number in thousandths.
    pub fn of_milli(milli: u64) -> Self {
        if milli <= BEYOND_M { Reading::Known(milli) } else { Reading::Absurd }
    }

    /// A number as a source writes it. `-`, an empty text and NaN are missing; text that is no number is absurd.
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        if text.is_empty() || text == "-" {
            return Reading::Missing;
        }
        match text.parse::<f64>() {
            Ok(value) => Self::from_f64(value),
            Err(_) => Reading::Absurd,
        }
    }

    /// A sample of Prometheus, which knows only floats.
    pub fn from_f64(value: f64) -> Self {
        if value.is_nan() {
            return Reading::Missing;
        }
        // A tiny negative comes from the subtraction of two counters; it means none.
        if !(-0.000_001..=1_000_000_000.0).contains(&value) {
            return Reading::Absurd;
        }
        #[allow(clippy::float_arithmetic, reason = "one multiplication is the same on every machine")]
        let milli = value.max(0.0) * 1000.0;
        Reading::Known(milli as u64)
    }

    pub fn known(self) -> Option<u64> {
        match self {
            Reading::Known(milli) => Some(milli).filter(|m| *m <= BEYOND_M),
            Reading::Missing | Reading::Absurd => None,
        }
    }

    /// Rounded down to a whole number.
    pub fn whole(self) -> Option<u32> {
        self.known().and_then(|milli| u32::try_from(milli / 1000).ok())
    }
}

/// What is missing where only a part has spoken: the numbers beside it are at least so much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Gap {
    /// Of so many ready replicas so many said all that was expected of them.
    Replicas { told: u32, of: u32 },
    /// Of so many members whose gateways may carry requests of the service so many answered.
    Gateways { told: u32, of: u32 },
    /// The monitoring system that is configured did not answer, or not with numbers.
    Monitor,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gap::Replicas { told, of } => write!(f, "signals of {told} of {of} replicas"),
            Gap::Gateways { told, of } => write!(f, "counts of {told} of {of} gateways"),
            Gap::Monitor => f.write_str("the monitoring system says nothing"),
        }
    }
}

/// All that is seen at one moment. Counts are since the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signals {
    /// Milliseconds on the source's own clock.
    pub at_ms: u64,
    pub ready: Reading,
    pub starting: Reading,
    /// Of those that start, so many wait for a place.
    #[serde(default)]
    pub unplaced: Reading,
    pub draining: Reading,
    /// Requests that wait for a slot.
    pub queue: Reading,
    /// Requests that are being served.
    pub running: Reading,
    /// Requests that came since the last tick.
    pub arrivals: Reading,
    /// Of what is inside, a part came past whoever counts arrivals: what runs tells how much comes.
    #[serde(default)]
    pub uncounted: bool,
    /// 95th percentile of the time that requests took, milliseconds.
    pub p95_ms: Reading,
    /// Part of language models' KV caches that is in use, 0 to 1.
    #[serde(default)]
    pub kv_cache: Reading,
    /// 95th percentile of the time to an answer's first token, milliseconds.
    #[serde(default)]
    pub first_token_ms: Reading,
    /// What that shall be at most; None where nobody says.
    #[serde(default)]
    pub first_token_within_ms: Option<u64>,
    /// What the numbers lack; None where everybody spoke.
    #[serde(default)]
    pub gap: Option<Gap>,
    /// How old the oldest of the numbers is, in milliseconds; None where none came with an age.
    #[serde(default)]
    pub age_ms: Option<u64>,
}

/// Signals that were looked at: what is left is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// Since the last sight; 0 where there was none, and nobody counted what came before.
    pub dt_ms: u64,
    pub ready: Option<u32>,
    pub starting: Option<u32>,
    /// Of those, without a place.
    pub unplaced: u32,
    /// In thousandths, as all below.
    pub queue_m: Option<u64>,
    pub running_m: Option<u64>,
    pub arrivals_m: Option<u64>,
    /// They are not all that came.
    pub uncounted: bool,
    pub p95_ms: Option<u64>,
    /// In use, of a thousand.
    pub kv_m: Option<u64>,
    /// First tokens come later than they shall.
    pub first_late: bool,
    /// Why nothing may go down on this sight.
    pub doubt: Option<Why>,
    /// The numbers are true as far as they go: there may be more, never less.
    pub partial: bool,
}

/// Work that can't have come from anywhere is disbelieved this many times in a row, then taken for true.
const DISBELIEFS: u32 = 3;

/// A gap of more than this many ticks makes a sight stale.
const GAP_TICKS: u64 = 5;

/// Numbers older than this are no news, in milliseconds.
const OLD_MS: u64 = 60_000;

/// A longer interval is not averaged over.
const LONGEST_MS: u64 = 3_600_000;

/// The watch at the door: remembers what it needs to tell whether a number can be.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Intake {
    last_ms: Option<u64>,
    /// Requests in the service at the last sight.
    inside_m: Option<u64>,
    disbelieved: u32,
    /// The last sight was a part.
    partial: bool,
    /// The source has given a latency before, so its absence is a gap.
    tells_p95: bool,
    /// What came a second when it was believed last, in thousandths of a request.
    #[serde(default)]
    rate_m: Option<u64>,
    /// Counts on end that were struck.
    #[serde(default)]
    miscounted: u32,
}

impl Intake {
    /// None when the signals are older than, or as old as, what was seen before. A request takes `service_ms`, as far as
    /// that is known.
    pub fn look(&mut self, service: &Service, signals: &Signals, service_ms: u64) -> Option<Sight> {
        if self.last_ms.is_some_and(|last| signals.at_ms <= last) {
            return None;
        }
        // A source that begins with us has counted nothing yet, which is not the same as a tick in which nothing came;
        // one that did count has done so for about a tick.
        let begins = if signals.arrivals.known().unwrap_or(0) == 0 { 0 } else { service.tick_ms };
        let passed = self.last_ms.map_or(begins, |last| signals.at_ms - last);
        let dt_ms = passed.min(LONGEST_MS);
        self.last_ms = Some(signals.at_ms);
        let old = signals.age_ms.is_some_and(|age| age > OLD_MS);
        let first = signals.first_token_ms.known().zip(signals.first_token_within_ms);
        let mut sight = Sight {
            dt_ms,
            partial: signals.gap.is_some() || old,
            ready: signals.ready.whole(),
            starting: signals.starting.whole(),
            unplaced: signals.unplaced.whole().unwrap_or(0),
            uncounted: signals.uncounted,
            queue_m: signals.queue.known(),
            running_m: signals.running.known(),
            // More than a million a second is nobody's load, and what came over hours says nothing about now.
            arrivals_m: signals.arrivals.known().filter(|m| *m / dt_ms.max(1) <= 1_000_000 && passed == dt_ms),
            // What was so a minute ago asks for nothing.
            p95_ms: signals.p95_ms.known().map(|m| m / 1000).filter(|_| !old),
            kv_m: signals.kv_cache.known().filter(|m| *m <= 1000 && !old),
            first_late: first.is_some_and(|(ms_m, most)| ms_m / 1000 > most && !old),
            doubt: None,
        };
        if [sight.ready, sight.starting].iter().flatten().any(|n| *n > super::service::MOST_REPLICAS) {
            (sight.ready, sight.starting) = (None, None);
        }
        let able_m = able_m(service, &sight, service_ms);
        self.disbelieve_count(service, &mut sight, able_m);
        self.disbelieve(service, &mut sight, able_m);
        let idle = sight.running_m == Some(0) && sight.queue_m == Some(0);
        let silent = self.tells_p95 && signals.p95_ms.known().is_none() && !idle;
        self.tells_p95 |= signals.p95_ms.known().is_some();
        let missing = [sight.queue_m, sight.running_m, sight.arrivals_m].contains(&None)
            || sight.ready.is_none()
            || sight.starting.is_none();
        if missing || silent || signals.gap.is_some() || signals.draining == Reading::Absurd {
            sight.doubt = Some(Why::MissingSignal);
        } else if old || dt_ms > GAP_TICKS * service.tick_ms {
            sight.doubt = Some(Why::StaleSignal);
        }
        Some(sight)
    }

    /// Strikes out a count that can't be: nobody waits, and more came than could be served and is still inside. Where that
    /// is no more than a few times what came before, it is how long requests take that is not known. What waits is no
    /// part of this, so that no burst is ever struck that somebody has to be helped for.
    fn disbelieve_count(&mut self, service: &Service, sight: &mut Sight, able_m: Option<u64>) {
        let Some(rate_m) = sight.arrivals_m.and_then(|came| came.saturating_mul(1000).checked_div(sight.dt_ms)) else {
            return;
        };
        let inside =
            sight.running_m.zip(sight.queue_m.filter(|queue| *queue <= 1000)).map(|(runs, waits)| runs + waits);
        let most = inside
            .zip(able_m)
            .map(|(inside, able)| inside.saturating_add(3 * able).saturating_add(slack_m(service, sight)));
        let jumps = self.rate_m.is_some_and(|before| rate_m > before.saturating_mul(3));
        if jumps && most.is_some_and(|most| sight.arrivals_m > Some(most)) && self.miscounted < DISBELIEFS {
            self.miscounted += 1;
            sight.arrivals_m = None;
        } else {
            (self.miscounted, self.rate_m) = (0, Some(rate_m));
        }
    }

    /// Strikes out what can't be: more work inside than was there and has come since. Where nobody counts what comes,
    /// as much as is served.
    fn disbelieve(&mut self, service: &Service, sight: &mut Sight, able_m: Option<u64>) {
        // What was a part is no measure of the whole.
        if std::mem::replace(&mut self.partial, sight.partial) && !sight.partial {
            self.inside_m = None;
        }
        let (Some(queue), Some(running)) = (sight.queue_m, sight.running_m) else {
            self.inside_m = None;
            return;
        };
        let inside = queue.saturating_add(running);
        let slack = slack_m(service, sight);
        let came = sight.arrivals_m.or(able_m).map(|a| a.saturating_mul(3));
        let possible = self.inside_m.zip(came).map(|(before, came)| before.saturating_add(came).saturating_add(slack));
        match possible {
            Some(most) if inside > most && self.disbelieved < DISBELIEFS => {
                self.disbelieved += 1;
                (sight.queue_m, sight.running_m) = (None, None);
            }
            _ => {
                self.disbelieved = 0;
                self.inside_m = Some(inside);
            }
        }
    }
}

/// Scrapes of two sources are never of the same moment, so bounds are generous.
fn slack_m(service: &Service, sight: &Sight) -> u64 {
    let fleet = sight.ready.unwrap_or(0).saturating_add(sight.starting.unwrap_or(0));
    service.slots_m(fleet.max(4)) + 100_000
}

/// What ready replicas can serve since the last sight, in thousandths of a request; None where it is not known how many
/// there are.
fn able_m(service: &Service, sight: &Sight, service_ms: u64) -> Option<u64> {
    let slots_m = u128::from(service.slots_m(sight.ready?));
    let able = slots_m * u128::from(sight.dt_ms) / u128::from(service_ms.max(1));
    Some(u64::try_from(able).unwrap_or(BEYOND_M).min(BEYOND_M))
}
