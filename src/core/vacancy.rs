//! When a device is free for its next replica: not when the last one should be gone, but
//! when nobody is seen on it and its memory is back to what the driver itself keeps. How
//! long that is waited for, and what follows. It does not know how a device is asked.

use serde::{Deserialize, Serialize};

/// What a driver keeps of a device grows with its settings: so much more than the least that was ever seen is its own.
const SLACK: u64 = 512 << 20;
/// Taken for the least until something less was seen.
const MOST_BASE: u64 = 512 << 20;
/// Between two looks at a device that is not free, in milliseconds.
const LOOK_MS: u64 = 250;

/// What was seen of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Look {
    /// Bytes in use, whoever uses them.
    pub used: u64,
    /// Processes that have something on it.
    pub pids: Vec<u32>,
}

/// What was learned of a device: the least that was ever in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base(u64);

impl Base {
    /// Before the first look: no more than any driver keeps.
    pub fn unknown() -> Self {
        Self(MOST_BASE)
    }

    /// With one look more.
    pub fn and(self, look: &Look) -> Self {
        if look.pids.is_empty() { Self(self.0.min(look.used)) } else { self }
    }

    /// Whether nobody is on the device.
    pub fn is_free(self, look: &Look) -> bool {
        look.pids.is_empty() && look.used <= self.0.saturating_add(SLACK)
    }
}

/// What a start does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Start,
    /// Look again in so many milliseconds.
    Wait(u64),
    /// Nobody waits longer: an alarm, and another device.
    GiveUp,
}

/// What follows after `waited_ms` of at most `most_ms`, when the last look found all devices free, or not.
pub fn step(free: bool, waited_ms: u64, most_ms: u64) -> Step {
    match most_ms.saturating_sub(waited_ms) {
        _ if free => Step::Start,
        0 => Step::GiveUp,
        left => Step::Wait(left.min(LOOK_MS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(used: u64, pids: &[u32]) -> Look {
        Look { used, pids: pids.to_vec() }
    }

    #[test]
    fn free_is_nobody_and_no_more_than_the_driver_keeps() {
        let base = Base::unknown();
        assert!(base.is_free(&look(0, &[])) && base.is_free(&look(600 << 20, &[])));
        assert!(!base.is_free(&look(0, &[7])), "a process without memory is somebody");
        assert!(!base.is_free(&look(2 << 30, &[])), "memory without a process is somebody's");
        assert!(!base.is_free(&look(u64::MAX, &[])));
    }

    #[test]
    fn the_base_is_the_least_that_was_seen_with_nobody_there() {
        let base = Base::unknown().and(&look(500 << 20, &[])).and(&look(9 << 30, &[])).and(&look(0, &[1]));
        assert_eq!(base, Base(500 << 20));
        assert!(base.is_free(&look(1_000 << 20, &[])) && !base.is_free(&look(1_020 << 20, &[])));
        // An agent that starts beside a full device does not take that for its base.
        assert!(!Base::unknown().and(&look(70 << 30, &[])).is_free(&look(70 << 30, &[])));
    }

    #[test]
    fn the_wait_has_an_end() {
        assert_eq!(step(true, 99, 0), Step::Start);
        assert_eq!((step(false, 0, 1_000), step(false, 900, 1_000)), (Step::Wait(250), Step::Wait(100)));
        assert_eq!((step(false, 1_000, 1_000), step(false, u64::MAX, 1_000)), (Step::GiveUp, Step::GiveUp));
        let (mut waited, mut looks) = (0, 0);
        while let Step::Wait(ms) = step(false, waited, 30_000) {
            (waited, looks) = (waited + ms, looks + 1);
        }
        assert_eq!((waited, looks), (30_000, 120));
    }
}
