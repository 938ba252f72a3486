//! How many slots beyond the load itself keep the wait short when requests come at
//! random: the M/M/c queue (Erlang C), in integers. Requests that take less random
//! times wait less, so this errs on the safe side. It knows neither time nor trend.

use serde::{Deserialize, Serialize};

/// One, in the fixed point of this file.
const ONE: u128 = 1 << 40;

/// Loads of the table: 2^(i/4) requests at once.
const POINTS: usize = 49;

/// Larger loads than the table's last are scaled by the square root.
const FOURTHS: [u64; 4] = [1000, 1189, 1414, 1682];

/// For a load, the slots that must be free beside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Staffing {
    service_ms: u64,
    wait_ms: u64,
    late_ppm: u64,
    /// At load 2^(i/4), in thousandths of a slot.
    margin_m: Vec<u64>,
}

impl Staffing {
    /// So that at most `late_ppm` of a million requests wait longer than `wait_ms`.
    pub fn new(service_ms: u64, wait_ms: u64, late_ppm: u64) -> Self {
        let margin_m = (0..POINTS).map(|i| margin(point_m(i), service_ms, wait_ms, late_ppm)).collect();
        Self { service_ms, wait_ms, late_ppm, margin_m }
    }

    /// The table for another service time; the same one while it has changed by less than an eighth.
    pub fn follow(&mut self, service_ms: u64) {
        if service_ms.abs_diff(self.service_ms) * 8 > self.service_ms {
            *self = Self::new(service_ms, self.wait_ms, self.late_ppm);
        }
    }

    /// Slots to have for a load, both in thousandths.
    pub fn slots_m(&self, load_m: u64) -> u64 {
        load_m.saturating_add(self.margin_at(load_m))
    }

    fn margin_at(&self, load_m: u64) -> u64 {
        if load_m < 1000 {
            // Between nothing at all and one request at once.
            return self.margin_m[0] * load_m / 1000;
        }
        let i = (load_m / 1000).ilog2() as usize * 4;
        let above = (i..i + 5).find(|i| point_m(*i) > load_m).unwrap_or(i + 4).max(1);
        if above >= POINTS {
            let last = POINTS - 1;
            let times = (load_m / point_m(last)).max(1);
            return self.margin_m[last] * (times.isqrt() + 1);
        }
        let (low, high) = (point_m(above - 1), point_m(above));
        let (a, b) = (self.margin_m[above - 1], self.margin_m[above]);
        let part = (load_m.clamp(low, high) - low) * 1000 / (high - low);
        (a * (1000 - part) + b * part) / 1000
    }
}

fn point_m(i: usize) -> u64 {
    FOURTHS[i % 4] << (i / 4)
}

/// The smallest margin for one load: Erlang B by its recursion, then C, then the tail of the wait.
fn margin(load_m: u64, service_ms: u64, wait_ms: u64, late_ppm: u64) -> u64 {
    let load = u128::from(load_m);
    let mut blocked = ONE;
    let mut slots: u128 = 0;
    loop {
        slots += 1;
        let offered = load * blocked / 1000;
        blocked = offered * ONE / (slots * ONE + offered);
        let free_m = (slots * 1000).saturating_sub(load);
        if free_m == 0 {
            continue;
        }
        let busy = load * ONE / (slots * 1000);
        let waits = blocked * ONE / (ONE - busy * (ONE - blocked) / ONE);
        let decay = u64::try_from(free_m * u128::from(wait_ms) * 1024 / (1000 * u128::from(service_ms)));
        let late = waits * exp_neg(decay.unwrap_or(u64::MAX)) / ONE;
        if late * 1_000_000 <= u128::from(late_ppm) * ONE {
            return u64::try_from(free_m).unwrap_or(u64::MAX / 4);
        }
    }
}

/// e^(-x) for x in 1024ths.
fn exp_neg(x: u64) -> u128 {
    // e^-x = 2^-(x·log2 e): the whole part shifts, and a parabola is close enough for the rest.
    let bits = u128::from(x) * 1_477 / 1024;
    let (whole, rest) = (bits / 1024, bits % 1024);
    if whole >= 40 {
        return 0;
    }
    // 2^-f ≈ 1 − 0.6763 f + 0.1763 f², exact at both ends.
    let f = rest * ONE / 1024;
    let fraction = ONE + f * f / ONE * 1763 / 10_000 - f * 6763 / 10_000;
    fraction >> whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_are_those_of_the_textbook() {
        // No wait at all allowed: Erlang C, 100 Erlang, 1 % delayed wants about 124 servers.
        let all = margin(100_000, 2_000, 0, 10_000);
        assert!((22_000..=27_000).contains(&all), "{all}");
        // Two seconds of patience at two seconds a request: a handful of slots.
        let patient = margin(100_000, 2_000, 2_000, 1_000);
        assert!((3_000..=8_000).contains(&patient), "{patient}");
        // A long request gives its slot back late, so patience buys nothing.
        let long = margin(100_000, 60_000, 2_000, 1_000);
        assert!(long > 25_000, "{long}");
    }

    #[test]
    fn more_load_wants_more_slots_and_relatively_less_margin() {
        let staffing = Staffing::new(2_000, 2_000, 1_000);
        let mut before = 0;
        for load in (0..2_000_000).step_by(777) {
            let slots = staffing.slots_m(load);
            assert!(slots >= before.max(load), "{load}: {slots} < {before}");
            before = slots;
        }
        let huge = staffing.slots_m(1_000_000_000_000);
        assert!(huge > 1_000_000_000_000 && huge < 1_100_000_000_000);
    }

    #[test]
    fn the_exponential_is_close() {
        let at = |x| exp_neg(x) * 10_000 / ONE;
        assert_eq!((at(0), at(1 << 20)), (10_000, 0));
        assert!(at(1024).abs_diff(3679) < 40, "{}", at(1024));
        assert!(at(512).abs_diff(6065) < 60, "{}", at(512));
    }
}
