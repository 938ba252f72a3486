//! How fast a service's number of replicas may change: in any stretch of time by so many
//! up and so many down. What a load wants is not its business, nor are bounds and limits:
//! a number beyond those changes at once, whatever the steps are.

use super::plan::Hold;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU16;

/// Step limits of a scaling policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Steps {
    /// So many more at most within any `within_ms`; None: as many as are needed, at once.
    pub up: Option<NonZeroU16>,
    /// So many fewer at most.
    pub down: Option<NonZeroU16>,
    /// The stretch of time, in milliseconds.
    pub within_ms: u32,
}

impl Default for Steps {
    fn default() -> Self {
        Self { up: None, down: None, within_ms: 60_000 }
    }
}

/// The numbers that were in force lately.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Strides {
    highest: Hold,
    /// The same of what they lack to the greatest number: its largest is the lowest of them.
    lowest: Hold,
}

impl Strides {
    /// The number nearest to `wanted` that the steps allow from `before`, which is in force now.
    pub fn allow(&mut self, steps: Steps, now_ms: u64, before: u32, wanted: u32) -> u32 {
        let within_ms = steps.within_ms.into();
        let high = self.highest.push(now_ms, before, within_ms);
        let low = u32::MAX - self.lowest.push(now_ms, u32::MAX - before, within_ms);
        // What is in force already stays: somebody may have asked for it.
        let most = steps.up.map_or(u32::MAX, |up| low.saturating_add(up.get().into()).max(before));
        let least = steps.down.map_or(0, |down| high.saturating_sub(down.get().into()).min(before));
        wanted.clamp(least, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn steps(up: u16, down: u16) -> Steps {
        Steps { up: NonZeroU16::new(up), down: NonZeroU16::new(down), within_ms: 60_000 }
    }

    #[test]
    fn each_minute_has_its_step_up_and_its_step_down() {
        let (mut strides, mut now, mut told) = (Strides::default(), 1, Vec::new());
        for wanted in [9; 30].into_iter().chain([1; 80]) {
            now = strides.allow(steps(3, 2), told.len() as u64 * 5_000, now, wanted);
            told.push(now);
        }
        let at = |seconds: usize| told[seconds / 5];
        assert_eq!([0, 55, 65, 125, 130, 145].map(at), [4, 4, 7, 7, 9, 9]);
        assert_eq!([150, 205, 210, 215, 280, 345, 410].map(at), [7, 7, 7, 5, 3, 1, 1]);
    }

    #[test]
    fn without_limits_nothing_is_held_back_and_what_somebody_asked_for_stays() {
        let mut strides = Strides::default();
        assert_eq!([9, 0, 7].map(|wanted| strides.allow(Steps::default(), 0, 3, wanted)), [9, 0, 7]);
        let mut strides = Strides::default();
        assert_eq!(strides.allow(steps(1, 1), 0, 2, 2), 2);
        // Somebody else made it eight.
        assert_eq!(strides.allow(steps(1, 1), 5_000, 8, 9), 8);
        assert_eq!(strides.allow(steps(1, 1), 10_000, 8, 1), 7);
    }

    proptest! {
        /// Against all that was in force, by hand.
        #[test]
        fn no_stretch_of_time_sees_a_longer_stride(
            up in 0u16..4, down in 0u16..4,
            looks in prop::collection::vec((1u64..40_000, 0u32..30), 1..80),
        ) {
            let (mut strides, mut now_ms, mut now) = (Strides::default(), 0, 10);
            let mut past: Vec<(u64, u32)> = Vec::new();
            for (later, wanted) in looks {
                now_ms += later;
                past.push((now_ms, now));
                now = strides.allow(steps(up, down), now_ms, now, wanted);
                for (_, then) in past.iter().filter(|(at, _)| at + 60_000 >= now_ms) {
                    prop_assert!(up == 0 || now <= then + u32::from(up), "{then} to {now}");
                    prop_assert!(down == 0 || now + u32::from(down) >= *then, "{then} to {now}");
                }
            }
        }
    }
}
