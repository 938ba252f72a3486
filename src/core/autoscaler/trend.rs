//! How much comes now, and will come one cold start from now, judged by the last
//! minutes alone. The longest window is taken whose estimate still agrees with
//! those of all shorter ones (the rule of intersecting confidence intervals, Lepski
//! 1990; Goldenshluger and Nemirovski 1997): calm loads are averaged over minutes,
//! a jump is believed within a tick or two. It does not know replicas.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// What came between two sights.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Came {
    /// End of the interval.
    at_ms: u64,
    dt_ms: u64,
    /// Thousandths of a request.
    count_m: u64,
}

/// Lengths of the windows that are compared, milliseconds.
const WINDOWS_MS: [u64; 8] = [4_000, 10_000, 20_000, 40_000, 80_000, 160_000, 320_000, 640_000];

/// Intervals that are remembered; a faster tick sees less far back.
const REMEMBERED: usize = 700;

/// A line is drawn through at least this many intervals and this much time: in less, a jump looks like a line.
const LINE_POINTS: usize = 5;
const LINE_MS: i128 = 75_000;

/// A line whose rest varies so many times as much as chance would is none.
const BENT: i128 = 3;

/// How far apart two estimates may be, in standard errors, in tenths.
const AGREE_TENTHS: u64 = 25;

/// Arrivals vary at least as much as if they were independent, in thousandths.
const CALM_M: u64 = 1000;

/// The most that a single step may say about how much arrivals vary.
const WILD_M: u64 = 9000;

/// Arrivals over the last minutes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trend {
    came: VecDeque<Came>,
    /// Variance over mean of what comes in a tick, in thousandths: 1000 when requests are independent.
    dispersion_m: u64,
}

/// What the last minutes say. Rates are thousandths of a request per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    pub now_m: u64,
    /// Standard error of `now_m`.
    pub error_m: u64,
    /// Change per 1,000 seconds that is certain enough, in thousandths per second.
    pub slope_m: i64,
    /// Over the longest window, whether it agrees or not.
    pub long_m: u64,
    /// The window that was chosen.
    pub window_ms: u64,
}

impl Default for Trend {
    fn default() -> Self {
        Self { came: VecDeque::new(), dispersion_m: CALM_M }
    }
}

impl Trend {
    pub fn push(&mut self, at_ms: u64, dt_ms: u64, count_m: u64) {
        if dt_ms == 0 {
            return;
        }
        if let Some(last) = self.came.back().filter(|last| last.dt_ms == dt_ms) {
            let both = last.count_m + count_m;
            let apart = last.count_m.abs_diff(count_m);
            if both >= 4000 {
                let ratio = u64::try_from(u128::from(apart) * u128::from(apart) / u128::from(both)).unwrap_or(WILD_M);
                // Sixty-four steps remember a few minutes; a jump counts as one wild step.
                self.dispersion_m = (self.dispersion_m * 63 + ratio.min(WILD_M)) / 64;
            }
        }
        self.came.push_back(Came { at_ms, dt_ms, count_m });
        while self.came.len() > REMEMBERED {
            self.came.pop_front();
        }
    }

    pub fn is_empty(&self) -> bool {
        self.came.is_empty()
    }

    /// The estimate, from the shortest window to the longest that agrees.
    pub fn level(&self) -> Level {
        let Some(last) = self.came.back() else { return Level::default() };
        let mut level = Level::default();
        let (mut low, mut high) = (0, u64::MAX);
        let mut agrees = true;
        let mut sums = Sums::default();
        let mut next = self.came.len();
        for length in WINDOWS_MS {
            let from = last.at_ms.saturating_sub(length);
            let before = sums.points;
            let fits = |came: &Came, first: bool| first || came.at_ms.saturating_sub(came.dt_ms) >= from;
            while next > 0 && fits(&self.came[next - 1], next == self.came.len()) {
                next -= 1;
                sums.add(&self.came[next], last.at_ms);
            }
            if sums.points == before {
                continue;
            }
            let estimate = sums.estimate(self.dispersion_m.max(CALM_M));
            level.long_m = estimate.mean_m;
            let reach = estimate.error_m.saturating_mul(AGREE_TENTHS) / 10;
            (low, high) =
                (low.max(estimate.now_m.saturating_sub(reach)), high.min(estimate.now_m.saturating_add(reach)));
            agrees &= low <= high;
            if agrees {
                level.now_m = estimate.now_m;
                level.error_m = estimate.error_m;
                level.slope_m = estimate.slope_m;
                level.window_ms = sums.length_ms();
            }
        }
        level
    }
}

impl Level {
    /// The rate `ahead_ms` from now; never below zero, and not further than the window reaches back.
    pub fn ahead(&self, ahead_ms: u64) -> u64 {
        let change = i128::from(self.slope_m) * i128::from(ahead_ms.min(self.window_ms)) / 1_000_000;
        u64::try_from((i128::from(self.now_m) + change).max(0)).unwrap_or(u64::MAX / 4)
    }
}

/// Sums for a line through rates, weighted by the length of each interval.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    points: usize,
    w: i128,
    wx: i128,
    wy: i128,
    wxx: i128,
    wxy: i128,
    wyy: i128,
    count_m: u64,
    /// The lowest and the highest rate.
    low_m: u64,
    high_m: u64,
}

struct Estimate {
    now_m: u64,
    mean_m: u64,
    error_m: u64,
    slope_m: i64,
}

impl Sums {
    fn add(&mut self, came: &Came, now_ms: u64) {
        let w = i128::from(came.dt_ms);
        // The middle of the interval, before now.
        let x = -(i128::from(now_ms) - i128::from(came.at_ms)) - w / 2;
        let y = i128::from(came.count_m) * 1000 / w.max(1);
        let rate = unsigned(y);
        self.low_m = if self.points == 0 { rate } else { self.low_m.min(rate) };
        self.high_m = self.high_m.max(rate);
        self.points += 1;
        self.w += w;
        self.wx += w * x;
        self.wy += w * y;
        self.wxx += w * x * x;
        self.wxy += w * x * y;
        self.wyy += w * y * y;
        self.count_m = self.count_m.saturating_add(came.count_m);
    }

    fn length_ms(&self) -> u64 {
        u64::try_from(self.w).unwrap_or(0)
    }

    fn estimate(&self, dispersion_m: u64) -> Estimate {
        let w = self.w.max(1);
        let mean = self.wy / w;
        let noise = (u128::from(dispersion_m) * u128::from(self.count_m.max(1000))).isqrt();
        let error = i128::try_from(noise).unwrap_or(i128::MAX / 4096) * 1000 / w;
        let plain = |mean: i128, error: i128| Estimate {
            now_m: unsigned(mean),
            mean_m: unsigned(mean),
            error_m: unsigned(error),
            slope_m: 0,
        };
        let spread = w * self.wxx - self.wx * self.wx;
        if self.points < LINE_POINTS || self.w < LINE_MS || spread <= 0 {
            return plain(mean, error);
        }
        // Per 1,000 seconds, that is a million milliseconds.
        let cross = w * self.wxy - self.wx * self.wy;
        let slope = cross * 1_000_000 / spread;
        let left = self.wyy - self.wy * self.wy / w - cross / w * slope / 1_000_000;
        let points = i128::try_from(self.points).unwrap_or(1);
        let expected = points * i128::from(dispersion_m) * mean.max(1) * 1000;
        if left > expected * BENT {
            return plain(mean, error);
        }
        // Of a line over w: error · √12 / w.
        let slope_error = error * 3_464_000 / w;
        if slope.abs() <= 2 * slope_error {
            return plain(mean, error);
        }
        let sure = slope - slope.signum() * slope_error;
        let now = mean - slope * (self.wx / w) / 1_000_000;
        Estimate {
            // A line that leaves what was seen has met a bend.
            now_m: unsigned(now).clamp(self.low_m, self.high_m),
            mean_m: unsigned(mean),
            error_m: unsigned(error * 2),
            slope_m: i64::try_from(sure).unwrap_or(0),
        }
    }
}

fn unsigned(n: i128) -> u64 {
    u64::try_from(n.max(0)).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Rng;

    /// About `mean` of something that varies as independent requests do: the sum of many coins.
    fn about(rng: &mut Rng, mean: u64) -> u64 {
        (0..mean * 2).filter(|_| rng.chance(500)).count() as u64
    }

    #[test]
    fn calm_is_averaged_over_minutes() {
        let (mut trend, mut rng) = (Trend::default(), Rng::new(7));
        for k in 1..=120_u64 {
            trend.push(k * 5_000, 5_000, about(&mut rng, 100) * 1000);
        }
        let level = trend.level();
        assert!(level.window_ms >= 300_000, "{level:?}");
        assert!(level.now_m.abs_diff(20_000) < 600 && level.ahead(90_000).abs_diff(20_000) < 1_200, "{level:?}");
    }

    #[test]
    fn a_jump_is_believed_at_once() {
        let (mut trend, mut rng) = (Trend::default(), Rng::new(7));
        for k in 1..=60_u64 {
            trend.push(k * 5_000, 5_000, about(&mut rng, 50) * 1000);
        }
        trend.push(305_000, 5_000, 500_000);
        let level = trend.level();
        assert!(level.now_m > 80_000, "{level:?}");
    }

    #[test]
    fn a_ramp_is_followed_ahead() {
        let (mut trend, mut rng) = (Trend::default(), Rng::new(7));
        for k in 1..=120_u64 {
            trend.push(k * 5_000, 5_000, about(&mut rng, 50 + k) * 1000);
        }
        let level = trend.level();
        // 170 per tick now, one more each tick: 34/s now, 37.6/s in 90 seconds.
        assert!(level.now_m.abs_diff(34_000) < 1_500, "{level:?}");
        assert!(level.ahead(90_000) > 35_500 && level.ahead(90_000) < 40_000, "{level:?} {}", level.ahead(90_000));
    }

    #[test]
    fn nothing_seen_says_nothing() {
        assert_eq!(Trend::default().level(), Level::default());
    }
}
