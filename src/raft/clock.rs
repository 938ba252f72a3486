//! Time, as this member knows it: its own clock, what the others' say, and log time while it leads.
//!
//! The others' clocks ride on answers to votes and pings, so whoever is elected has just heard most
//! of them. What is made of them is `nf_core::clock`'s to say.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nf_core::clock::{Clocks, LogClock};
use nf_core::id::MemberId;
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

/// Microseconds since the machine started, those included in which it slept: a clock that nobody sets.
pub fn boot_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has this clock");
    u64::try_from(now.num_microseconds()).unwrap_or(0)
}

/// See the module.
pub struct GroupClock {
    me: MemberId,
    /// This member's own clock, milliseconds since the epoch.
    wall: Arc<dyn Fn() -> u64 + Send + Sync>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    clocks: Clocks,
    /// Log time, and the term that it is of.
    log: Option<(u64, LogClock)>,
}

impl GroupClock {
    pub fn new(me: MemberId, wall: Arc<dyn Fn() -> u64 + Send + Sync>) -> Self {
        Self { me, wall, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What is under the lock is whole after each of its changes.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this member's own clock says, right or wrong.
    pub fn wall_ms(&self) -> u64 {
        (self.wall)()
    }

    /// A peer that was asked at `asked_us` ([`boot_us`]) has just answered that its clock says `wall_ms`. 0 says nothing.
    pub fn heard(&self, peer: u64, wall_ms: u64, asked_us: u64) {
        if wall_ms > 0 {
            // It said so half way between, as far as anybody knows.
            let at_us = asked_us + boot_us().saturating_sub(asked_us) / 2;
            self.lock().clocks.heard(MemberId(peer), wall_ms, at_us);
        }
    }

    /// What the next entry is stamped with by the leader of `term`, on a state whose last stamp is `last_ms`.
    pub fn stamp(&self, term: u64, last_ms: u64, voters: &[MemberId]) -> u64 {
        let (wall, at_us) = (self.wall_ms(), boot_us());
        let mut inner = self.lock();
        let median = inner.clocks.median(voters, self.me, wall, at_us);
        let (of, log) = inner.log.get_or_insert_with(|| (term, LogClock::begin(last_ms, at_us)));
        if *of < term {
            (*of, *log) = (term, LogClock::begin(last_ms, at_us));
        }
        log.read(median, at_us)
    }

    /// How far this member's clock is off the median of the voters', in milliseconds, and which of the voters are
    /// less than `most` off it. None while too few were heard.
    pub fn judge(&self, voters: &[MemberId], most: u64) -> Option<(u64, Vec<MemberId>)> {
        let (wall, at_us) = (self.wall_ms(), boot_us());
        let inner = self.lock();
        let median = inner.clocks.median(voters, self.me, wall, at_us)?;
        let right = |voter: &&MemberId| {
            let said = inner.clocks.of(**voter, at_us);
            **voter != self.me && said.is_some_and(|said| said.abs_diff(median) < most)
        };
        Some((wall.abs_diff(median), voters.iter().filter(right).copied().collect()))
    }
}
