//! The agent's leases: each runs from when the beat that earned it was sent, on a
//! clock that also counts while the machine sleeps. A replica may be started only
//! under a lease whose commit index the agent's own knowledge has reached, so that
//! an agent fed by a member that was left behind starts nothing.

use crate::exchange::{BeatAnswer, vouch};

/// Leases remembered that are ahead of the agent's knowledge. Beats come once a
/// second and knowledge follows within milliseconds, so few are ever needed.
const AHEAD: usize = 64;

/// What one node may rely on.
#[derive(Clone, Debug, Default)]
pub struct Lease {
    /// When this start of the agent first looked at the clock.
    since_ms: Option<u64>,
    /// Until when starts are covered, by leases whose commit index is known.
    until_ms: u64,
    /// Until when what runs may run on, by the word of voters that hear no leader.
    vouched_ms: u64,
    /// (commit index, until) of leases whose commit index is not yet known.
    ahead: Vec<(u64, u64)>,
    term: u64,
}

impl Lease {
    /// A beat sent at `sent_ms` was answered.
    pub fn granted(&mut self, sent_ms: u64, answer: &BeatAnswer, known_index: u64) {
        // A leader of an older term cannot grant anything new.
        if answer.term < self.term {
            return;
        }
        self.term = answer.term;
        if self.ahead.len() == AHEAD {
            self.ahead.remove(0);
        }
        self.ahead.push((answer.commit_index, sent_ms.saturating_add(answer.lease_ms)));
        self.known(known_index);
    }

    /// A majority of voters answered at `now_ms` what was asked at `sent_ms`: they hear no leader. That prolongs a lease
    /// and makes none: once it is over, the group may have placed elsewhere what lived by it.
    pub fn vouched(&mut self, sent_ms: u64, now_ms: u64, lease_ms: u64) {
        let in_time = u128::from(now_ms.saturating_sub(sent_ms)) <= vouch::ANSWERED.as_millis();
        if in_time && now_ms < self.until_ms.max(self.vouched_ms) {
            self.vouched_ms = self.vouched_ms.max(sent_ms.saturating_add(lease_ms));
        }
    }

    /// The agent's knowledge is now that of `index`.
    pub fn known(&mut self, index: u64) {
        let until = &mut self.until_ms;
        self.ahead.retain(|(commit, end)| {
            let covered = *commit <= index;
            if covered {
                *until = (*until).max(*end);
            }
            !covered
        });
    }

    /// Whether a replica may be started now.
    pub fn covers_start(&self, now_ms: u64) -> bool {
        now_ms < self.until_ms
    }

    /// When replicas that must never run twice end: killed `budget_ms` before the lease
    /// ends, and told to stop that long before. An agent that has just started knows what
    /// its predecessor was granted only as far as its guard still holds it (`held_ms`); it
    /// gives itself a moment to be granted something.
    pub fn exclusive(&mut self, now_ms: u64, budget_ms: u64, held_ms: Option<u64>) -> Exclusive {
        let since = *self.since_ms.get_or_insert(now_ms);
        let until_ms = self.until_ms.max(self.vouched_ms);
        let proven_ms = (until_ms > 0).then(|| until_ms.saturating_sub(budget_ms));
        let else_ms = since.saturating_add(budget_ms.saturating_mul(2));
        let kill_ms = proven_ms.or(held_ms).unwrap_or(0).max(else_ms);
        Exclusive { stop_ms: kill_ms.saturating_sub(budget_ms), proven_ms }
    }
}

/// Until when a node may run replicas that must never run twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exclusive {
    /// From then on they are told to stop.
    pub stop_ms: u64,
    /// From then on they are killed, as a lease of this start proves.
    pub proven_ms: Option<u64>,
}

/// Milliseconds since the machine started, also those that it slept (CLOCK_BOOTTIME).
pub fn boot_ms() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    let at = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had this clock since 2.6.39");
    at.tv_sec() as u64 * 1000 + at.tv_nsec() as u64 / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(term: u64, commit_index: u64) -> BeatAnswer {
        BeatAnswer { term, commit_index, lease_ms: 100, ..BeatAnswer::default() }
    }

    #[test]
    fn it_runs_from_the_sending_of_the_beat() {
        let mut lease = Lease::default();
        assert!(!lease.covers_start(0), "nothing is covered before the first answer");
        lease.granted(1_000, &answer(1, 5), 5);
        assert!(lease.covers_start(1_099) && !lease.covers_start(1_100));
    }

    #[test]
    fn it_needs_knowledge_of_its_commit_index() {
        let mut lease = Lease::default();
        lease.granted(0, &answer(1, 5), 4);
        assert!(!lease.covers_start(10));
        lease.known(5);
        assert!(lease.covers_start(10));
        // A later lease that is ahead of the knowledge takes nothing away.
        lease.granted(50, &answer(1, 9), 5);
        assert!(lease.covers_start(99) && !lease.covers_start(120));
        lease.known(9);
        assert!(lease.covers_start(120));
    }

    #[test]
    fn what_must_not_run_twice_ends_before_it_does() {
        let mut lease = Lease::default();
        let nothing = Exclusive { stop_ms: 1_005, proven_ms: None };
        assert_eq!(lease.exclusive(1_000, 5, None), nothing, "a moment for the first lease");
        assert_eq!(lease.exclusive(2_000, 5, None), nothing, "counted from the start, not from now");
        let held = Exclusive { stop_ms: 1_045, proven_ms: None };
        assert_eq!(lease.exclusive(2_000, 5, Some(1_050)), held, "what the guard still holds was granted before");
        lease.granted(1_002, &answer(1, 5), 4);
        assert_eq!(lease.exclusive(1_003, 5, None), nothing, "its commit index is not known yet");
        lease.known(5);
        let proven = Exclusive { stop_ms: 1_092, proven_ms: Some(1_097) };
        assert_eq!(lease.exclusive(1_003, 5, Some(1_050)), proven);
    }

    #[test]
    fn vouchers_prolong_what_runs_and_start_nothing() {
        let mut lease = Lease::default();
        lease.vouched(0, 10, 100);
        assert_eq!(lease.exclusive(0, 5, None).proven_ms, None, "no lease that they could prolong");
        lease.granted(0, &answer(1, 5), 5);
        lease.vouched(50, 60, 100);
        assert_eq!(lease.exclusive(60, 5, None).proven_ms, Some(145), "from when they were asked");
        assert!(lease.covers_start(99) && !lease.covers_start(100), "a leader's word is needed to start");
        lease.vouched(120, 149, 100);
        assert_eq!(lease.exclusive(149, 5, None).proven_ms, Some(215), "and again, by what was prolonged");
        lease.vouched(210, 220, 100);
        assert_eq!(lease.exclusive(220, 5, None).proven_ms, Some(215), "it was over when they answered");
        lease.granted(230, &answer(1, 5), 5);
        assert_eq!(lease.exclusive(230, 5, None).proven_ms, Some(325));
    }

    #[test]
    fn a_late_voucher_is_worth_nothing() {
        let mut lease = Lease::default();
        lease.granted(0, &BeatAnswer { lease_ms: 45_000, ..answer(1, 5) }, 5);
        lease.vouched(10_000, 13_001, 45_000);
        assert_eq!(lease.exclusive(13_001, 0, None).proven_ms, Some(45_000));
        lease.vouched(10_000, 13_000, 45_000);
        assert_eq!(lease.exclusive(13_000, 0, None).proven_ms, Some(55_000));
    }

    #[test]
    fn a_deposed_leader_grants_nothing() {
        let mut lease = Lease::default();
        lease.granted(0, &answer(3, 5), 5);
        lease.granted(90, &answer(2, 5), 5);
        assert!(!lease.covers_start(150));
    }

    #[test]
    fn the_clock_moves_forward() {
        let first = boot_ms();
        assert!(first > 0 && boot_ms() >= first);
    }
}
