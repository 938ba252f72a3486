//! Bursts that come again: when they began, how high they were, and from that when
//! the next may begin. It believes in a rhythm from the second burst on; whether that
//! belief pays is judged elsewhere. It does not know replicas.

use super::trend::Level;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Intervals and heights that are remembered.
const REMEMBERED: usize = 8;

/// A burst is at least this many times the usual.
const TIMES: u64 = 2;

/// The usual follows what comes between bursts: slowly up, since a burst is not usual, and quickly down.
const USUAL_MS: u64 = 900_000;
const USUAL_DOWN_MS: u64 = 120_000;

/// Nothing is usual before so much was seen.
const FIRST_MS: u64 = 60_000;

/// Ways to foresee. From the last beginning, and from the last end: as wide as the middle half of what was seen, or as
/// all of it. And from the last end on until it comes: a little before the shortest lull that was seen, after half
/// of them, after three quarters. The longer a burst is overdue, the fewer lulls are left that it costs to be ready in.
pub const WAYS: usize = 7;

/// Those that go on until it comes.
pub const OVERDUE: std::ops::Range<usize> = 4..WAYS;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    Quiet,
    /// Since when, and what has come since, thousandths of a request.
    Burst {
        since_ms: u64,
        count_m: u64,
        high_m: u64,
    },
}

/// What recurs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recurrence {
    seen_ms: u64,
    phase: Phase,
    /// Between bursts, thousandths of a request per second; None before anything was seen.
    usual_m: Option<u64>,
    /// Of the last burst.
    began: Option<u64>,
    ended: Option<u64>,
    /// From beginning to beginning, and from end to beginning.
    intervals: VecDeque<u64>,
    gaps: VecDeque<u64>,
    heights: VecDeque<u64>,
}

impl Default for Recurrence {
    fn default() -> Self {
        Self {
            seen_ms: 0,
            phase: Phase::Quiet,
            usual_m: None,
            began: None,
            ended: None,
            intervals: VecDeque::new(),
            gaps: VecDeque::new(),
            heights: VecDeque::new(),
        }
    }
}

impl Recurrence {
    pub fn push(&mut self, now_ms: u64, dt_ms: u64, count_m: u64, level: &Level) {
        self.seen_ms += dt_ms;
        if self.seen_ms < FIRST_MS {
            return;
        }
        let usual = *self.usual_m.get_or_insert(level.now_m);
        match self.phase {
            Phase::Quiet => {
                let sure = level.now_m.saturating_sub(4 * level.error_m);
                if sure >= usual.saturating_mul(TIMES) && sure > 0 {
                    self.begin(now_ms.saturating_sub(dt_ms), count_m, level.now_m);
                } else {
                    let time = if level.now_m < usual { USUAL_DOWN_MS } else { USUAL_MS };
                    let part = (dt_ms * 1_000_000 / time).min(1_000_000);
                    self.usual_m = Some((usual * (1_000_000 - part) + level.now_m * part) / 1_000_000);
                }
            }
            Phase::Burst { since_ms, count_m: before, high_m } => {
                let (count_m, high_m) = (before.saturating_add(count_m), high_m.max(level.now_m));
                // Over when it has fallen below half of the way down.
                if level.now_m <= usual + (high_m.saturating_sub(usual)) / 2 {
                    let lasted = now_ms.saturating_sub(since_ms + dt_ms).max(1);
                    remember(&mut self.heights, (before.saturating_mul(1000) / lasted).min(high_m));
                    (self.phase, self.ended) = (Phase::Quiet, Some(now_ms.saturating_sub(dt_ms)));
                } else {
                    self.phase = Phase::Burst { since_ms, count_m, high_m };
                    // What lasts for hours is the new usual.
                    if now_ms > since_ms + 8 * USUAL_MS {
                        (self.usual_m, self.phase) = (Some(level.now_m), Phase::Quiet);
                    }
                }
            }
        }
    }

    fn begin(&mut self, since_ms: u64, count_m: u64, high_m: u64) {
        if let Some(before) = self.began.replace(since_ms) {
            remember(&mut self.intervals, since_ms.saturating_sub(before));
        }
        if let Some(ended) = self.ended {
            remember(&mut self.gaps, since_ms.saturating_sub(ended));
        }
        self.phase = Phase::Burst { since_ms, count_m, high_m };
    }

    /// No burst is going on.
    pub fn quiet(&self) -> bool {
        self.phase == Phase::Quiet
    }

    /// It is quiet for longer than ever between two bursts: perhaps none comes any more.
    pub fn outlived(&self, now_ms: u64, lead_ms: u64) -> bool {
        let (Some(ended), Some(longest)) = (self.ended, self.gaps.iter().max()) else { return false };
        self.quiet() && now_ms > ended + longest + lead_ms / 2
    }

    /// Two bursts were seen: there may be a rhythm, and nobody could try it yet.
    pub fn untried(&self) -> bool {
        self.intervals.len() == 1
    }

    /// The height of a burst that may begin within `lead_ms`, thousandths of a request per second; 0 for none.
    pub fn ahead(&self, now_ms: u64, lead_ms: u64, way: usize) -> u64 {
        let (from, seen) = if way < 2 { (self.began, &self.intervals) } else { (self.ended, &self.gaps) };
        let (Some(from), Phase::Quiet) = (from, self.phase) else { return 0 };
        let mut sorted: Vec<u64> = seen.iter().copied().collect();
        sorted.sort_unstable();
        let n = sorted.len();
        let (Some(first), Some(last)) = (sorted.first(), sorted.last()) else { return 0 };
        let play = match n {
            1 => first / 20,
            _ => (last - first) / 4,
        };
        let never = u64::MAX / 4;
        let (low, high) = match way {
            0 | 2 => (sorted[n / 4], sorted[n - 1 - n / 4]),
            1 | 3 => (*first, *last),
            4 => (first.saturating_sub(play), never),
            5 => (sorted[n / 2], never),
            _ => (sorted[n - 1 - n / 4], never),
        };
        let due = from + low <= now_ms + lead_ms && now_ms <= from + high + lead_ms / 2;
        if due { self.heights.iter().rev().take(3).max().copied().unwrap_or(0) } else { 0 }
    }
}

fn remember(list: &mut VecDeque<u64>, value: u64) {
    list.push_back(value);
    while list.len() > REMEMBERED {
        list.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_burst_is_expected_when_the_last_two_say() {
        let mut recur = Recurrence::default();
        let mut seen = Vec::new();
        for k in 0..1_200_u64 {
            let now = k * 5_000;
            let rate = if now % 1_800_000 >= 1_620_000 { 80_000 } else { 8_000 };
            let level = Level { now_m: rate, error_m: 500, ..Level::default() };
            recur.push(now, 5_000, rate * 5, &level);
            if recur.ahead(now, 95_000, 1) > 70_000 {
                seen.push(now / 1_000);
            }
        }
        // Bursts begin at 1620, 3420, 5220; the third can be foreseen.
        assert!(seen.first().is_some_and(|t| (5_110..5_140).contains(t)), "{seen:?}");
        assert!(seen.iter().all(|t| *t < 5_240), "{seen:?}");
    }

    #[test]
    fn what_is_overdue_is_expected_until_it_comes() {
        let mut recur = Recurrence::default();
        // Three bursts of three minutes, after lulls of 10, 20 and 30 minutes; then none for two hours.
        let bursts = [600_u64, 1_980, 3_960].map(|at| at..at + 180);
        let mut expected: [Vec<u64>; WAYS] = Default::default();
        for now in (0..11_340_u64).step_by(5) {
            let rate = if bursts.iter().any(|burst| burst.contains(&now)) { 80_000 } else { 8_000 };
            let level = Level { now_m: rate, error_m: 500, ..Level::default() };
            recur.push(now * 1000, 5_000, rate * 5, &level);
            if now == 5_800 {
                assert!(!recur.outlived(now * 1000, 95_000), "one lull took half an hour");
            }
            for (way, expected) in expected.iter_mut().enumerate() {
                if now > 4_200 && recur.ahead(now * 1000, 95_000, way) > 0 {
                    expected.push((now - 4_140) / 60);
                }
            }
        }
        let span = |way: usize| Some((*expected[way].first()?, *expected[way].last()?));
        assert_eq!(span(3).map(|span| span.1 < 40), Some(true), "that long it never took: {:?}", span(3));
        let begins = [4, 5, 6].map(|way| span(way).map(|span| span.0));
        assert!(begins.is_sorted() && begins[0] < begins[2], "{begins:?}");
        assert!([4, 5, 6].iter().all(|way| span(*way).is_some_and(|span| span.1 >= 119)), "{:?}", span(4));
        assert!(recur.outlived(11_340_000, 95_000));
    }
}
