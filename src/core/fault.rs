//! Faults of single devices, and what follows from each: nothing (the application's own
//! doing), or a quarantine, with or without time for a replacement to come up first, and
//! with or without an end by itself. The table is data; it does not know who reads the
//! driver, nor which replica runs where.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What was seen of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Fault {
    /// An error report of NVIDIA's driver, by its number.
    Xid(u16),
    /// Memory errors that could not be corrected were counted.
    Ecc,
    /// The driver does not find it any more.
    Lost,
    /// An operator wants it left alone.
    Hand,
    /// Its agent waited in vain for it to be free for the next replica.
    Occupied,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Xid(number) => write!(f, "Xid{number}"),
            Fault::Ecc => f.write_str("Ecc"),
            Fault::Lost => f.write_str("Lost"),
            Fault::Hand => f.write_str("ByHand"),
            Fault::Occupied => f.write_str("Occupied"),
        }
    }
}

/// What follows from a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The application's own doing, or nothing to act on: it may fail by it, the device is fine.
    Ignore,
    Quarantine {
        /// What runs on it can go on until its replacement is Ready.
        serves: bool,
        /// So long without a new fault and it is taken back; None: an operator has to.
        cool_ms: Option<u64>,
    },
}

const HOUR: u64 = 3_600_000;
/// How long a device is left alone that was not free when a replica wanted it.
const OCCUPIED_MS: u64 = 300_000;
/// Contained: what was hit has failed or goes on, the device can be used after a quiet time.
const CONTAINED: Rule = Rule::Quarantine { serves: true, cool_ms: Some(HOUR) };
/// It works, and needs a reset at the next opportunity, which only somebody at the machine can give.
const RESET_SOON: Rule = Rule::Quarantine { serves: true, cool_ms: None };
/// Nothing on it works as it should.
const BROKEN: Rule = Rule::Quarantine { serves: false, cool_ms: None };

/// What NVIDIA's catalogue of Xid events advises, reduced to what a scheduler can do:
/// docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html. Numbers that are not
/// listed are not acted on, since most of the catalogue is unused or only informs.
const XIDS: &[(u16, &str, Rule)] = &[
    (8, "a channel timed out", Rule::Ignore),
    (13, "exception of the graphics engine, mostly a bad access of the program", Rule::Ignore),
    (31, "page fault, mostly a bad access of the program", Rule::Ignore),
    (43, "the program's channel was stopped", Rule::Ignore),
    (45, "clean-up after a program that ended", Rule::Ignore),
    (68, "exception of the video decoder", Rule::Ignore),
    (109, "time-out of a context switch", Rule::Ignore),
    (46, "the GPU stopped processing", BROKEN),
    (48, "double-bit memory error", BROKEN),
    (61, "breakpoint or warning of the internal micro-controller", BROKEN),
    (62, "halt of the internal micro-controller", BROKEN),
    (63, "a bad page or row was recorded and is remapped at the next reset", RESET_SOON),
    (64, "a bad page or row could not be recorded", BROKEN),
    (74, "error of an NVLink", BROKEN),
    (79, "the GPU has fallen off the bus", BROKEN),
    (92, "many corrected memory errors", CONTAINED),
    (94, "contained memory error: one program was hit", CONTAINED),
    (95, "memory error that was not contained", BROKEN),
    (119, "time-out of the GPU's system processor", BROKEN),
    (120, "error of the GPU's system processor", BROKEN),
    (136, "failed training of a link", BROKEN),
    (140, "memory error that could not be recovered", BROKEN),
    (142, "error of a link inside the module", RESET_SOON),
    (143, "failed start of the GPU", BROKEN),
];

/// What follows from the fault.
pub fn rule(fault: Fault) -> Rule {
    match fault {
        Fault::Xid(number) => XIDS.iter().find(|(no, ..)| *no == number).map_or(Rule::Ignore, |(.., rule)| *rule),
        Fault::Ecc => RESET_SOON,
        Fault::Lost => BROKEN,
        Fault::Hand => Rule::Quarantine { serves: true, cool_ms: None },
        // Whoever starts on it next looks again.
        Fault::Occupied => Rule::Quarantine { serves: true, cool_ms: Some(OCCUPIED_MS) },
    }
}

/// The fault in words.
pub fn meaning(fault: Fault) -> &'static str {
    match fault {
        Fault::Xid(number) => {
            XIDS.iter().find(|(no, ..)| *no == number).map_or("not in the table", |(_, text, _)| text)
        }
        Fault::Ecc => "memory errors that could not be corrected",
        Fault::Lost => "the driver does not find the device any more",
        Fault::Hand => "left alone by an operator",
        Fault::Occupied => "memory or a process of somebody is on it, and no replica's",
    }
}

/// A device that gets no work, and since when.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Quarantine {
    /// The worst that was seen.
    pub fault: Fault,
    pub since_ms: u64,
    /// When a fault was last seen.
    pub last_ms: u64,
    /// Faults that were reported; those within [`QUIET_MS`] count once.
    pub times: u32,
    /// The fault was made up for a simulated device.
    pub simulated: bool,
}

/// The same fault again within this time is no news.
pub const QUIET_MS: u64 = 60_000;

impl Quarantine {
    /// What runs on the device may wait for its replacement.
    pub fn serves(&self) -> bool {
        matches!(rule(self.fault), Rule::Quarantine { serves: true, .. })
    }

    /// When it ends by itself.
    pub fn ends_ms(&self) -> Option<u64> {
        match rule(self.fault) {
            Rule::Quarantine { cool_ms: Some(cool), .. } => Some(self.last_ms.saturating_add(cool)),
            _ => None,
        }
    }

    /// Whether a fault says more than is known at `now_ms`.
    pub fn is_news(&self, fault: Fault, now_ms: u64) -> bool {
        severity(fault) > severity(self.fault) || now_ms.saturating_sub(self.last_ms) >= QUIET_MS
    }

    /// With one fault more.
    pub fn and(&self, fault: Fault, now_ms: u64) -> Self {
        let worst = if severity(fault) > severity(self.fault) { fault } else { self.fault };
        Self { fault: worst, last_ms: now_ms, times: self.times.saturating_add(1), ..self.clone() }
    }
}

/// The higher the worse; of two that end by themselves the one that takes longer.
fn severity(fault: Fault) -> (u8, u64) {
    match rule(fault) {
        Rule::Ignore => (0, 0),
        Rule::Quarantine { serves: true, cool_ms: Some(cool) } => (1, cool),
        Rule::Quarantine { serves: true, cool_ms: None } => (2, 0),
        Rule::Quarantine { serves: false, .. } => (3, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_applications_do_to_themselves_quarantines_nothing() {
        for xid in [13, 31, 43, 45, 68, 109] {
            assert_eq!(rule(Fault::Xid(xid)), Rule::Ignore, "{xid}");
            assert_ne!(meaning(Fault::Xid(xid)), meaning(Fault::Xid(9999)), "{xid} is listed, not merely unknown");
        }
    }

    #[test]
    fn the_table_is_sound() {
        for (i, (no, text, _)) in XIDS.iter().enumerate() {
            assert!(!text.is_empty() && XIDS[i + 1..].iter().all(|(other, ..)| other != no), "{no}");
        }
        for broken in [Fault::Lost, Fault::Xid(48), Fault::Xid(79), Fault::Xid(95)] {
            assert!(matches!(rule(broken), Rule::Quarantine { serves: false, cool_ms: None }), "{broken}");
        }
    }

    #[test]
    fn the_worst_fault_counts_and_repetition_is_no_news() {
        let first = Quarantine { fault: Fault::Xid(94), since_ms: 0, last_ms: 0, times: 1, simulated: false };
        assert!(!first.is_news(Fault::Xid(94), 59_999) && first.is_news(Fault::Xid(94), 60_000));
        assert!(first.is_news(Fault::Xid(79), 1));
        let both = first.and(Fault::Xid(79), 5).and(Fault::Xid(94), 10);
        assert_eq!((both.fault, both.last_ms, both.times, both.since_ms), (Fault::Xid(79), 10, 3, 0));
        assert_eq!((first.ends_ms(), both.ends_ms()), (Some(3_600_000), None));
    }

    #[test]
    fn of_two_that_pass_the_longer_one_counts() {
        let first = Quarantine { fault: Fault::Occupied, since_ms: 0, last_ms: 0, times: 1, simulated: false };
        assert!(first.is_news(Fault::Xid(94), 1), "though both end by themselves");
        let both = first.and(Fault::Xid(94), 1);
        assert_eq!((both.ends_ms(), both.and(Fault::Occupied, 2).ends_ms()), (Some(3_600_001), Some(3_600_002)));
    }
}
