//! How well a service keeps its promise: of the requests that came, how many were
//! answered without a server's error within the latency that was promised. Counted in
//! minutes and hours, so that the last five minutes and the last three days both cost
//! little. It has no clock: whoever counts says what time it is. It does not decide
//! what follows; alert rules and people do.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Promised latency where neither the job nor its model states one, in milliseconds.
pub const LATENCY_MS: u32 = 800;
/// The most that may be promised of errors: more than one in five is none.
pub const MOST_ERRORS_PPM: u32 = 200_000;
/// The promise is one about the 95th percentile, so that of a thousand requests so many
/// shall be good.
pub const OBJECTIVE_PER_MILLE: u64 = 950;

const MILLION: u128 = 1_000_000;
const MINUTE: u64 = 60;
const HOUR: u64 = 3_600;
/// Minutes that are kept: the windows up to six hours are made of them.
const MINUTES: usize = 360;
/// Hours that are kept.
const HOURS: usize = 72;

/// A stretch of time up to now. Of two that burn together, the short one says that it
/// still burns and the long one that it matters (Google's SRE Workbook, chapter 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    FiveMinutes,
    HalfHour,
    Hour,
    SixHours,
    ThreeDays,
}

impl Window {
    pub const ALL: [Window; 5] =
        [Window::FiveMinutes, Window::HalfHour, Window::Hour, Window::SixHours, Window::ThreeDays];

    /// Its name, as in Prometheus' ranges.
    pub fn name(self) -> &'static str {
        match self {
            Window::FiveMinutes => "5m",
            Window::HalfHour => "30m",
            Window::Hour => "1h",
            Window::SixHours => "6h",
            Window::ThreeDays => "3d",
        }
    }

    fn seconds(self) -> u64 {
        match self {
            Window::FiveMinutes => 5 * MINUTE,
            Window::HalfHour => 30 * MINUTE,
            Window::Hour => HOUR,
            Window::SixHours => 6 * HOUR,
            Window::ThreeDays => 72 * HOUR,
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// Answered, and later than promised.
    Slow,
    /// A server's error, or no answer at all.
    Failed,
}

/// Requests of one stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub good: u64,
    pub slow: u64,
    pub failed: u64,
}

impl Count {
    /// Counts one request.
    pub fn take(&mut self, verdict: Verdict) {
        let counter = match verdict {
            Verdict::Good => &mut self.good,
            Verdict::Slow => &mut self.slow,
            Verdict::Failed => &mut self.failed,
        };
        *counter = counter.saturating_add(1);
    }

    /// Both together.
    pub fn and(self, other: Count) -> Count {
        Count {
            good: self.good.saturating_add(other.good),
            slow: self.slow.saturating_add(other.slow),
            failed: self.failed.saturating_add(other.failed),
        }
    }

    pub fn requests(self) -> u64 {
        self.good.saturating_add(self.slow).saturating_add(self.failed)
    }

    /// Requests in a million that were good; None when there were none.
    pub fn attained_ppm(self) -> Option<u64> {
        let good = u128::from(self.good).saturating_mul(MILLION);
        let part = good.checked_div(u128::from(self.requests()))?;
        u64::try_from(part).ok()
    }

    /// Requests in a million that failed; None when there were none.
    pub fn failed_ppm(self) -> Option<u64> {
        let failed = u128::from(self.failed).saturating_mul(MILLION);
        u64::try_from(failed.checked_div(u128::from(self.requests()))?).ok()
    }

    /// Beside what may fail in a million, in thousandths: 1000 is exactly as much.
    pub fn error_burn_milli(self, allowed_ppm: u32) -> Option<u64> {
        Some(self.failed_ppm()?.saturating_mul(1000) / u64::from(allowed_ppm.max(1)))
    }

    /// How many thousandths of the allowed speed the error budget is spent at: 1000 spends it exactly.
    pub fn burn_rate_milli(self) -> Option<u64> {
        let bad = 1_000_000_u64.saturating_sub(self.attained_ppm()?);
        bad.checked_div(1000 - OBJECTIVE_PER_MILLE)
    }

    /// Thousandths of the error budget that are left; below 0 it is overdrawn.
    pub fn budget_left_milli(self) -> Option<i64> {
        Some(1000 - i64::try_from(self.burn_rate_milli()?).ok()?)
    }
}

/// Counts of all windows, in their order.
pub type Windows = [Count; Window::ALL.len()];

/// Slots of equal length, the newest last; those without a request take no room.
#[derive(Clone, Debug, Default)]
struct Ring(VecDeque<(u64, Count)>);

impl Ring {
    fn take(&mut self, slot: u64, keep: usize, verdict: Verdict) {
        // Whoever counts had a clock that ran ahead: kept, these slots would take all that comes
        // until their time comes, and push out those that are past.
        while self.0.back().is_some_and(|(last, _)| *last > slot) {
            self.0.pop_back();
        }
        if self.0.back().is_none_or(|(last, _)| *last != slot) {
            self.0.push_back((slot, Count::default()));
        }
        while self.0.len() > keep {
            self.0.pop_front();
        }
        if let Some((_, count)) = self.0.back_mut() {
            count.take(verdict);
        }
    }

    /// The `many` slots up to `last`.
    fn upto(&self, last: u64, many: u64) -> Count {
        let first = last.saturating_add(1).saturating_sub(many);
        let in_it = self.0.iter().filter(|(slot, _)| (first..=last).contains(slot));
        in_it.fold(Count::default(), |sum, (_, count)| sum.and(*count))
    }
}

/// What one gateway has seen of one service.
#[derive(Clone, Debug, Default)]
pub struct History {
    minutes: Ring,
    hours: Ring,
}

impl History {
    /// Counts a request that ended at `now`, in seconds since any beginning. What was counted at a
    /// later time, by a clock that was set back since, is forgotten.
    pub fn take(&mut self, now: u64, verdict: Verdict) {
        self.minutes.take(now / MINUTE, MINUTES, verdict);
        self.hours.take(now / HOUR, HOURS, verdict);
    }

    /// Each window up to `now`: its last slot is the one under way, so that news counts at once.
    pub fn windows(&self, now: u64) -> Windows {
        Window::ALL.map(|window| self.window(now, window))
    }

    /// One of them.
    pub fn window(&self, now: u64, window: Window) -> Count {
        match window {
            Window::ThreeDays => self.hours.upto(now / HOUR, window.seconds() / HOUR),
            _ => self.minutes.upto(now / MINUTE, window.seconds() / MINUTE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOON: u64 = 1_800_000_000 / HOUR * HOUR;

    #[test]
    fn a_request_leaves_each_window_when_its_time_is_over() {
        let mut history = History::default();
        history.take(NOON, Verdict::Failed);
        let failed = |after: u64| history.windows(NOON + after).map(|count| count.failed);
        assert_eq!(failed(0), [1, 1, 1, 1, 1]);
        assert_eq!(failed(5 * MINUTE), [0, 1, 1, 1, 1]);
        assert_eq!(failed(30 * MINUTE), [0, 0, 1, 1, 1]);
        assert_eq!(failed(HOUR), [0, 0, 0, 1, 1]);
        assert_eq!(failed(6 * HOUR), [0, 0, 0, 0, 1]);
        assert_eq!(failed(72 * HOUR), [0; 5]);
    }

    #[test]
    fn the_budget_of_a_p95_promise_is_one_request_in_twenty() {
        let count = Count { good: 19, slow: 1, failed: 0 };
        assert_eq!(count.attained_ppm(), Some(950_000));
        assert_eq!((count.burn_rate_milli(), count.budget_left_milli()), (Some(1000), Some(0)));
        let lost = Count { good: 0, slow: 0, failed: 3 };
        assert_eq!((lost.burn_rate_milli(), lost.budget_left_milli()), (Some(20_000), Some(-19_000)));
        assert_eq!((Count::default().attained_ppm(), Count::default().budget_left_milli()), (None, None));
        assert_eq!((lost.failed_ppm(), Count::default().failed_ppm()), (Some(1_000_000), None));
        let some = Count { good: 985, slow: 5, failed: 10 };
        assert_eq!(
            (some.failed_ppm(), some.error_burn_milli(10_000), some.error_burn_milli(2_500)),
            (Some(10_000), Some(1000), Some(4000))
        );
        // What another member says may be any number.
        let most = Count { good: u64::MAX, slow: u64::MAX, failed: u64::MAX };
        assert_eq!((most.and(most).attained_ppm(), most.failed_ppm()), (Some(1_000_000), Some(1_000_000)));
    }

    proptest! {
        /// Against counting everything by hand; clocks may jump far ahead.
        #[test]
        fn windows_count_what_is_in_them(steps in prop::collection::vec((0u64..8_000, 0u8..3), 1..200)) {
            let (mut history, mut now, mut all) = (History::default(), NOON, Vec::new());
            for (step, verdict) in steps {
                now += step;
                let verdict = [Verdict::Good, Verdict::Slow, Verdict::Failed][usize::from(verdict)];
                history.take(now, verdict);
                all.push((now, verdict));
            }
            for (window, count) in Window::ALL.into_iter().zip(history.windows(now)) {
                let slot = if window == Window::ThreeDays { HOUR } else { MINUTE };
                let first = (now / slot + 1) * slot - window.seconds();
                let of = |wanted| all.iter().filter(|(at, v)| *at >= first && *v == wanted).count() as u64;
                let by_hand = Count { good: of(Verdict::Good), slow: of(Verdict::Slow), failed: of(Verdict::Failed) };
                prop_assert_eq!(count, by_hand, "{}", window.name());
            }
            prop_assert!(history.minutes.0.len() <= MINUTES && history.hours.0.len() <= HOURS);
        }

        /// A clock that runs ahead for a while and is set right leaves nothing behind: what came before and
        /// after counts as if it had always been right, as far as there was room for it.
        #[test]
        fn a_clock_that_was_ahead_spoils_nothing(
            before in prop::collection::vec(0u64..1_000, 1..60),
            ahead in 2 * HOUR..1_000_000_000,
            wrong in 1u32..30,
            after in prop::collection::vec(0u64..1_000, 1..60),
        ) {
            let (mut history, mut right, mut now) = (History::default(), History::default(), NOON);
            for step in before {
                now += step;
                history.take(now, Verdict::Good);
                right.take(now, Verdict::Good);
            }
            for _ in 0..wrong {
                history.take(now + ahead, Verdict::Failed);
            }
            prop_assert_eq!(history.windows(now), right.windows(now), "what is later than now is in no window");
            for step in after {
                now += step;
                history.take(now, Verdict::Slow);
                right.take(now, Verdict::Slow);
                prop_assert_eq!(history.windows(now), right.windows(now));
            }
        }

        #[test]
        fn no_time_makes_it_panic(times in prop::collection::vec(any::<u64>(), 1..50)) {
            let mut history = History::default();
            for now in times {
                history.take(now, Verdict::Good);
                history.windows(now);
            }
        }
    }
}
