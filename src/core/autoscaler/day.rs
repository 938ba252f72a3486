//! The same time yesterday: a roll-up of what came in each five minutes of the last
//! day, and what it says about the next cold start. It does not know replicas.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// One roll-up.
pub const ROLL_UP_MS: u64 = 300_000;

/// Who begins so early in a roll-up sees all of it.
const EARLY_MS: u64 = ROLL_UP_MS / 20;

const DAY_MS: u64 = 86_400_000;

/// Roll-ups of a day, and a few more to look ahead of yesterday.
pub(super) const REMEMBERED: usize = (DAY_MS / ROLL_UP_MS) as usize + 4;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Day {
    /// Number of a roll-up since the beginning of time, and what came in it, thousandths.
    past: VecDeque<(u64, u64)>,
    /// The first roll-up that is counted from its beginning: a part would pass for a quiet time.
    #[serde(default)]
    first: Option<u64>,
}

impl Day {
    pub fn push(&mut self, now_ms: u64, count_m: u64) {
        let slot = now_ms.saturating_sub(1) / ROLL_UP_MS;
        if slot < *self.first.get_or_insert(slot + u64::from(now_ms > slot * ROLL_UP_MS + EARLY_MS)) {
            return;
        }
        match self.past.back_mut() {
            Some((last, sum)) if *last == slot => *sum = sum.saturating_add(count_m),
            // The clock was ahead, and is not any more: what is looked up by its time stays in order.
            Some((last, _)) if *last > slot => {}
            _ => self.past.push_back((slot, count_m)),
        }
        while self.past.len() > REMEMBERED {
            self.past.pop_front();
        }
    }

    /// Roll-ups that are over, oldest first: their number, and thousandths of a request per second.
    pub(super) fn full(&self) -> impl Iterator<Item = (u64, u64)> {
        let over = self.past.len().saturating_sub(1);
        self.past.iter().take(over).map(|(slot, sum)| (*slot, sum / (ROLL_UP_MS / 1000)))
    }

    /// What others have seen, oldest first, before anything else comes.
    pub(super) fn recall(&mut self, seen: impl Iterator<Item = (u64, u64)>) {
        self.past = seen.map(|(slot, rate_m)| (slot, rate_m.saturating_mul(ROLL_UP_MS / 1000))).collect();
    }

    /// Thousandths of a request per second a day before `at_ms`; None when nothing is known of then.
    fn yesterday(&self, at_ms: u64) -> Option<u64> {
        let slot = at_ms.checked_sub(DAY_MS)? / ROLL_UP_MS;
        let found = self.past.binary_search_by_key(&slot, |(n, _)| *n).ok()?;
        // The newest one is not full yet.
        (found + 1 < self.past.len()).then(|| self.past[found].1 / (ROLL_UP_MS / 1000))
    }

    /// The most that the next `lead_ms` bring when today goes on from `now_m` as yesterday did from then; 0 for unknown.
    pub fn ahead(&self, now_ms: u64, lead_ms: u64, now_m: u64) -> u64 {
        let Some(then) = self.yesterday(now_ms) else { return 0 };
        let end = now_ms + lead_ms;
        let steps = (0..=lead_ms / ROLL_UP_MS).map(|i| now_ms + i * ROLL_UP_MS).chain([end]);
        let later = steps.filter_map(|at| self.yesterday(at)).max().unwrap_or(0);
        if later <= then {
            return 0;
        }
        // Where today is half or twice of yesterday, so is the rest; more than that is another kind of day.
        let ratio_m = (now_m * 1000 / then.max(1)).clamp(500, 2000);
        later * ratio_m / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_yesterday_is_expected_today() {
        let mut day = Day::default();
        let rate = |at: u64| if (at / 3_600_000) % 24 == 9 { 50 } else { 5 };
        let mut expected = Vec::new();
        for k in 0..(40 * 720_u64) {
            let now = (k + 1) * 5_000;
            day.push(now, rate(now - 1) * 5_000);
            if day.ahead(now, 95_000, rate(now) * 1000) >= 40_000 {
                expected.push(now);
            }
        }
        let nine = (24 + 9) * 3_600_000;
        assert!(expected.first().is_some_and(|at| (nine - 100_000..nine).contains(at)), "{:?}", expected.first());
        assert!(expected.iter().all(|at| (nine - 100_000..=nine + 300_000).contains(at)));
        assert!(day.past.len() <= REMEMBERED);
    }

    #[test]
    fn a_roll_up_that_was_seen_in_part_is_not_told() {
        let full = |from_s: u64| {
            let mut day = Day::default();
            (from_s..=1_000).step_by(5).for_each(|at_s| day.push(at_s * 1000, 35_000));
            day.full().collect::<Vec<_>>()
        };
        assert_eq!(full(5), [(0, 7_000), (1, 7_000), (2, 7_000)]);
        assert_eq!(full(200), [(1, 7_000), (2, 7_000)], "a third of the first would look like a quiet time");
    }

    #[test]
    fn a_clock_that_was_ahead_leaves_what_is_remembered_in_order() {
        let mut day = Day::default();
        for at_ms in [1, ROLL_UP_MS, 4 * ROLL_UP_MS, 2 * ROLL_UP_MS, 5 * ROLL_UP_MS] {
            day.push(at_ms, 1_000);
        }
        assert_eq!(day.past, [(0, 2_000), (3, 1_000), (4, 1_000)]);
    }
}
