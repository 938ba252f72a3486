//! Log time: what a leader stamps entries with, whatever its own clock says.
//!
//! [`Clocks`] gathers what the members' clocks say, and takes their median; [`LogClock`] begins a
//! term at the last stamp or that median, whichever is later, and goes on by time that passed,
//! drawn slowly towards the median: a clock that is wrong, or that somebody sets, moves nothing.
//! Time itself is handed in, in microseconds since some moment; this reads no clock.

use crate::id::MemberId;
use std::collections::BTreeMap;

/// Of the time that passed, how much log time may be drawn to the members' clocks, in percent.
const SLEW_PERCENT: u64 = 5;
/// What a member said of its clock counts for so long; it is asked every two seconds.
const COUNTS_US: u64 = 10_000_000;
/// A member whose clock is further off than this should not lead.
pub const MAX_OFF_MS: u64 = 2_000;

/// What a clock said, and when.
#[derive(Clone, Copy, Debug)]
struct Said {
    wall_ms: u64,
    at_us: u64,
}

impl Said {
    fn now_ms(self, at_us: u64) -> u64 {
        self.wall_ms.saturating_add(at_us.saturating_sub(self.at_us) / 1000)
    }
}

/// The members' clocks, as one of them knows them.
#[derive(Clone, Debug, Default)]
pub struct Clocks(BTreeMap<MemberId, Said>);

impl Clocks {
    /// That member's clock said `wall_ms` at `at_us` of ours.
    pub fn heard(&mut self, member: MemberId, wall_ms: u64, at_us: u64) {
        self.0.insert(member, Said { wall_ms, at_us });
    }

    /// What a voter's clock says now, if it was heard lately.
    pub fn of(&self, member: MemberId, at_us: u64) -> Option<u64> {
        let said = self.0.get(&member)?;
        (at_us.saturating_sub(said.at_us) <= COUNTS_US).then(|| said.now_ms(at_us))
    }

    /// The median of the voters' clocks, `me` among them with `wall_ms`; the lower one of two. None while
    /// most of them were not heard: any fewer may be those that are wrong.
    pub fn median(&self, voters: &[MemberId], me: MemberId, wall_ms: u64, at_us: u64) -> Option<u64> {
        let one = |voter: &MemberId| if *voter == me { Some(wall_ms) } else { self.of(*voter, at_us) };
        let mut said: Vec<u64> = voters.iter().filter_map(one).collect();
        said.sort_unstable();
        (2 * said.len() > voters.len()).then(|| said[(said.len() - 1) / 2])
    }
}

/// One leader's log time, for one term.
#[derive(Clone, Copy, Debug)]
pub struct LogClock {
    now_us: u64,
    at_us: u64,
    /// The members' clocks have been heard in this term.
    anchored: bool,
}

impl LogClock {
    /// At takeover, on a state whose last stamp is `last_ms`.
    pub fn begin(last_ms: u64, at_us: u64) -> Self {
        Self { now_us: last_ms.saturating_mul(1000), at_us, anchored: false }
    }

    /// Milliseconds since the epoch for the next entry. `median`: see [`Clocks::median`]. Never less than before.
    pub fn read(&mut self, median_ms: Option<u64>, at_us: u64) -> u64 {
        let passed = at_us.saturating_sub(self.at_us);
        self.at_us = self.at_us.max(at_us);
        let median = median_ms.map(|ms| ms.saturating_mul(1000));
        let straight = self.now_us.saturating_add(passed);
        let most = passed * SLEW_PERCENT / 100;
        self.now_us = match median {
            // The only leap there is: a group may have been away for days.
            Some(median) if !self.anchored => straight.max(median),
            Some(median) if median > straight => straight.saturating_add(most.min(median - straight)),
            Some(median) => straight - most.min(straight - median),
            None => straight,
        };
        self.anchored |= median.is_some();
        self.now_us / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;
    const YEAR_MS: u64 = 365 * 24 * 3_600_000;
    const EPOCH: u64 = 1_700_000_000_000;

    fn ids(n: u64) -> Vec<MemberId> {
        (1..=n).map(MemberId).collect()
    }

    #[test]
    fn a_clock_that_leaps_a_year_moves_log_time_by_a_twentieth_of_what_passes() {
        let mut clock = LogClock::begin(EPOCH, 0);
        assert_eq!(clock.read(Some(EPOCH + 5_000), SECOND), EPOCH + 5_000, "the group was away");
        let mut now = EPOCH + 5_000;
        for second in 2..=100 {
            let stamp = clock.read(Some(now + YEAR_MS), second * SECOND);
            assert_eq!(stamp - now, 1_050);
            now = stamp;
        }
        // And back, in steps far below a millisecond: slower, but on.
        let before = now;
        for tick in 1..=10_000 {
            let stamp = clock.read(Some(0), 100 * SECOND + tick * 100);
            assert!(stamp >= now);
            now = stamp;
        }
        assert_eq!(now - before, 950);
    }

    #[test]
    fn log_time_begins_at_the_last_stamp_or_at_what_the_members_say() {
        assert_eq!(LogClock::begin(EPOCH, 7).read(Some(EPOCH - 60_000), 7), EPOCH, "never back");
        let mut clock = LogClock::begin(EPOCH, 0);
        assert_eq!(clock.read(None, SECOND), EPOCH + 1_000, "nobody was heard: time passes");
        assert_eq!(clock.read(Some(EPOCH + 90_000), 2 * SECOND), EPOCH + 90_000);
        assert_eq!(clock.read(Some(EPOCH + 990_000), 2 * SECOND), EPOCH + 90_000, "once a term");
    }

    #[test]
    fn one_wrong_clock_of_three_is_outvoted() {
        let (three, me) = (ids(3), MemberId(1));
        let mut clocks = Clocks::default();
        assert_eq!(clocks.median(&three, me, EPOCH + YEAR_MS, 0), None, "ours alone is no majority");
        assert_eq!(clocks.median(&ids(1), me, EPOCH, 0), Some(EPOCH), "but of a group of one it is");
        clocks.heard(MemberId(2), EPOCH, 0);
        assert_eq!(clocks.median(&three, me, EPOCH + YEAR_MS, SECOND), Some(EPOCH + 1_000), "of two the lower");
        clocks.heard(MemberId(3), EPOCH + 10, 0);
        assert_eq!(clocks.median(&three, me, EPOCH + YEAR_MS, SECOND), Some(EPOCH + 1_010));
        assert_eq!(clocks.median(&three, me, EPOCH - YEAR_MS, SECOND), Some(EPOCH + 1_000));
        // Who does not vote has no say, and who is silent for long neither.
        clocks.heard(MemberId(9), EPOCH + YEAR_MS, 0);
        assert_eq!(clocks.median(&three, me, EPOCH, 11 * SECOND), None);
    }
}
