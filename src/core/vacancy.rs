//! When a device is free for its next replica: not when the last one should be gone, but
//! when nobody is seen on it and its memory is back to what the driver itself keeps. How
//! long that is waited for, and what follows. It does not know how a device is asked.

use serde::{Deserialize, Serialize};

/// What a driver keeps of a device grows with its settings: so much more than the least that was seen is its own.
const SLACK: u64 = 512 << 20;
/// Before anything was seen nobody can tell what a driver keeps from what somebody left. So much may be its own, and on
/// large devices a part of the memory: tables and error correction grow with it.
const UNSEEN: u64 = 1 << 30;
const UNSEEN_PART: u64 = 32;
/// Between two looks at a device that is not free, in milliseconds.
const LOOK_MS: u64 = 250;

/// What was seen of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Look {
    /// Bytes in use, whoever uses them.
    pub used: u64,
    /// Bytes that it has in all; 0: not known.
    pub total: u64,
    /// Processes that have something on it.
    pub pids: Vec<u32>,
}

/// What a device has in use with nobody on it: the least that was ever seen. None before the first look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base(Option<u64>);

impl Base {
    /// With one look more.
    pub fn and(self, look: &Look) -> Self {
        match look.pids.is_empty() {
            true => Self(Some(self.0.map_or(look.used, |least| least.min(look.used)))),
            false => self,
        }
    }

    /// Bytes that may be in use on a device that nobody is on, if that has so many in all.
    pub fn most(self, total: u64) -> u64 {
        self.0.map_or(UNSEEN.max(total / UNSEEN_PART), |least| least.saturating_add(SLACK))
    }

    /// Whether nobody is on the device.
    pub fn is_free(self, look: &Look) -> bool {
        look.pids.is_empty() && look.used <= self.most(look.total)
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

    const MIB: u64 = 1 << 20;

    fn look(mib: u64, pids: &[u32]) -> Look {
        Look { used: mib * MIB, total: 0, pids: pids.to_vec() }
    }

    #[test]
    fn free_is_nobody_and_no_more_than_the_driver_keeps() {
        let base = Base::default();
        assert!(base.is_free(&look(0, &[])) && base.is_free(&look(600, &[])));
        assert!(!base.is_free(&look(0, &[7])), "a process without memory is somebody");
        assert!(!base.is_free(&look(2048, &[])), "memory without a process is somebody's");
        assert!(!base.is_free(&Look { used: u64::MAX, ..Look::default() }));
    }

    #[test]
    fn the_base_is_the_least_that_was_seen_with_nobody_there() {
        let base = Base::default().and(&look(500, &[])).and(&look(9000, &[])).and(&look(0, &[1]));
        assert_eq!(base, Base(Some(500 * MIB)));
        assert!(base.is_free(&look(1_000, &[])) && !base.is_free(&look(1_020, &[])));
    }

    #[test]
    fn what_is_left_of_a_replica_is_seen_once_its_device_was_seen_without() {
        assert!(Base::default().is_free(&look(900, &[])), "at the first look it could be the driver's own");
        let base = Base::default().and(&look(3, &[]));
        assert!(!base.is_free(&look(903, &[])), "900 MiB that nobody has");
    }

    #[test]
    fn a_driver_that_keeps_much_of_a_large_device_holds_nobody_up() {
        let large = |mib| Look { total: 192 << 30, ..look(mib, &[]) };
        assert!(Base::default().is_free(&large(5 << 10)));
        let base = Base::default().and(&large(5 << 10));
        assert!(base.is_free(&large((5 << 10) + 500)) && !base.is_free(&large((5 << 10) + 900)));
        // An agent that starts beside a full device does not take that for its base.
        assert!(!Base::default().is_free(&large(7 << 10)));
        assert!(!Base::default().is_free(&Look { total: 80 << 30, ..look(70 << 10, &[]) }));
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
