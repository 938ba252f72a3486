//! The guard of services that have promised nothing: requests take far longer than they
//! did, though replicas look idle enough. It asks for a tenth more replicas, waits for
//! them, and goes on while that helps. What its own last hour was like tells what is
//! slow; how long requests take on average tells little where a few take very long.

use super::effort::Effort;
use super::signal::Sight;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Latency beyond the bound for so many sights in a row is no accident.
const SLOW_SIGHTS: u32 = 3;
/// One latency of each minute of an hour is remembered.
const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const REMEMBERED: usize = 60;
/// Before so many of them nothing is known of what is usual.
const FEW: usize = 5;

/// What is remembered from one look to the next.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Slowness {
    /// When, and the 95th percentile then; oldest first.
    past: VecDeque<(u64, u64)>,
    /// Slow sights on end, and the quickest of them.
    slow: u32,
    quickest_ms: u64,
    effort: Effort,
    /// Until then the last step has not shown what it does.
    patient_until_ms: u64,
    /// Until then what was asked for is kept, and for so long it was.
    kept_until_ms: u64,
    keeps_ms: u64,
    /// Replicas that the last step asked for.
    #[serde(default)]
    asked: u32,
}

/// What the guard looks at, beside the sight.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub at_ms: u64,
    /// Latency that is usual for requests that take so long on average, and what they may wait.
    pub usual_ms: u64,
    pub wait_ms: u64,
    pub replicas: u32,
    pub cold_ms: u64,
}

impl Slowness {
    /// Replicas that it wants; 0 where nothing is slow.
    pub fn wants(&mut self, now: &Now, sight: &Sight) -> u32 {
        let Some(p95) = sight.p95_ms.filter(|p95| *p95 > 0) else { return self.kept(now) };
        // While a backlog is worked off, requests are late and more replicas are on their way.
        if sight.queue_m.is_some_and(|queue| queue > 1000) {
            self.slow = 0;
            return self.kept(now);
        }
        let slow = self.usual().is_some_and(|usual| p95 > usual.max(now.usual_ms).saturating_add(now.wait_ms));
        // Single ones are part of what is usual, and so is what can't be helped.
        if self.slow < SLOW_SIGHTS || !slow || self.effort.is_vain() {
            self.remember(now.at_ms, p95);
        }
        if !slow {
            self.ends();
            return self.kept(now);
        }
        self.quickest_ms = if self.slow == 0 { p95 } else { self.quickest_ms.min(p95) };
        self.slow = self.slow.saturating_add(1);
        if self.slow < SLOW_SIGHTS {
            return self.kept(now);
        }
        self.step(now)
    }

    /// A tenth more, and then a cold start of patience before the next tenth; nothing when that was in vain.
    fn step(&mut self, now: &Now) -> u32 {
        if self.effort.is_vain() {
            return 0;
        }
        if now.at_ms < self.patient_until_ms {
            return self.asked;
        }
        // Missed as soon as it was gone: the next time it stays for twice as long.
        let missed = self.effort.is_new() && now.at_ms < self.kept_until_ms.saturating_add(self.keeps_ms);
        if !self.effort.step(self.quickest_ms) {
            return 0;
        }
        self.keeps_ms = match missed {
            true => self.keeps_ms.saturating_mul(2).min(HOUR_MS),
            false => self.keeps_ms.max(now.cold_ms),
        };
        self.patient_until_ms = now.at_ms.saturating_add(now.cold_ms);
        self.kept_until_ms = now.at_ms.saturating_add(self.keeps_ms);
        self.asked = now.replicas.saturating_add((now.replicas / 10).max(1));
        self.asked
    }

    /// Requests are as quick as they use to be.
    fn ends(&mut self) {
        (self.slow, self.effort) = (0, Effort::default());
    }

    /// What was asked for lately is not taken back at the first quick sight. What others asked for since is.
    fn kept(&self, now: &Now) -> u32 {
        if now.at_ms < self.kept_until_ms { self.asked } else { 0 }
    }

    fn remember(&mut self, at_ms: u64, p95: u64) {
        if self.past.back().is_some_and(|last| at_ms < last.0 + MINUTE_MS) {
            return;
        }
        self.past.push_back((at_ms, p95));
        while self.past.len() > REMEMBERED || self.past.front().is_some_and(|first| first.0 + HOUR_MS < at_ms) {
            self.past.pop_front();
        }
    }

    /// Nine of ten were no slower; None while little was seen.
    fn usual(&self) -> Option<u64> {
        let mut all: Vec<u64> = self.past.iter().map(|past| past.1).collect();
        all.sort_unstable();
        all.get(all.len() * 9 / 10).copied().filter(|_| all.len() >= FEW)
    }
}

#[cfg(test)]
mod tests {
    use super::{Now, Slowness};
    use crate::autoscaler::signal::Sight;
    use crate::autoscaler::{Autoscaler, Reading, Service, Signals};
    use crate::sim::Rng;

    const COLD_MS: u64 = 60_000;
    const QUICK_MS: u64 = 4_000;
    const MINUTE: usize = 12;

    #[test]
    fn what_others_asked_for_meanwhile_is_not_kept() {
        let mut guard = Slowness::default();
        let mut look = |at_s: u64, replicas: u32, p95_ms: u64| {
            let now = Now { at_ms: at_s * 1000, usual_ms: 1_000, wait_ms: 100, replicas, cold_ms: COLD_MS };
            guard.wants(&now, &Sight { p95_ms: Some(p95_ms), ..Sight::default() })
        };
        assert!((0..120).all(|k| look(5 * k, 6, 1_000) == 0));
        let asked: Vec<u32> = (120..123).map(|k| look(5 * k, 6, 9_000)).collect();
        assert_eq!(asked, [0, 0, 7], "slow three times on end");
        // A burst takes the service to sixty, and is over.
        assert_eq!(look(620, 60, 1_000), 7, "its own seventh, not the burst's");
        assert_eq!(look(620 + 2 * COLD_MS / 1000, 60, 1_000), 0);
    }

    /// So many looks, five seconds apart, at a load that six replicas carry: how many were wanted at each. How long
    /// requests took, and how old that news is, depends on the look and on how many replicas were ready.
    fn play(looks: usize, mut told: impl FnMut(usize, u32) -> (u64, u64)) -> Vec<u32> {
        let service = Service { min: 1, max: 100, cold_start_ms: COLD_MS, ..Service::default() };
        let mut scaler = Autoscaler::new(service).unwrap();
        let mut wanted = vec![6_u32; 2 * MINUTE];
        for k in 0..looks {
            let all = *wanted.last().unwrap();
            // Whoever was wanted for a cold start is ready.
            let ready = wanted[wanted.len() - MINUTE..].iter().fold(all, |least, n| least.min(*n));
            let (p95_ms, age_ms) = told(k, ready);
            let decision = scaler.step(&Signals {
                at_ms: (k as u64 + 1) * 5_000,
                ready: Reading::of(ready.into()),
                starting: Reading::of((all - ready).into()),
                draining: Reading::of(0),
                queue: Reading::of(0),
                running: Reading::of(76),
                arrivals: Reading::of(190),
                p95_ms: Reading::of(p95_ms),
                age_ms: Some(age_ms),
                ..Signals::default()
            });
            wanted.push(decision.desired);
        }
        wanted.split_off(2 * MINUTE)
    }

    fn rises(wanted: &[u32]) -> usize {
        wanted.windows(2).filter(|two| two[1] > two[0]).count()
    }

    #[test]
    fn a_latency_that_no_replica_mends_is_not_paid_for() {
        for stuck_ms in [15_000, 45_000] {
            let wanted = play(180 * MINUTE, |k, _| (if k < 30 * MINUTE { QUICK_MS } else { stuck_ms }, 0));
            let most = *wanted.iter().max().unwrap();
            assert!((8..=10).contains(&most), "a few steps: {most}");
            assert!(wanted[45 * MINUTE..].iter().all(|n| *n == 6), "{stuck_ms}: {:?}", &wanted[45 * MINUTE..]);
        }
    }

    #[test]
    fn a_latency_of_long_ago_asks_for_nothing() {
        let told = |k: usize, _: u32| if k < 30 * MINUTE { (QUICK_MS, 0) } else { (45_000, 61_000) };
        assert_eq!(play(60 * MINUTE, told).into_iter().max(), Some(6));
    }

    #[test]
    fn a_few_requests_that_take_very_long_are_no_news() {
        for slow_of_ten in [3, 5, 9] {
            let mut rng = Rng::new(slow_of_ten);
            let mut told = |_: usize, _: u32| (if rng.below(10) < slow_of_ten { 30_000 } else { 1_000 }, 0);
            let wanted = play(180 * MINUTE, &mut told);
            assert!(rises(&wanted) <= 1, "{slow_of_ten} of ten: {} times one more", rises(&wanted));
        }
    }

    #[test]
    fn what_more_replicas_mend_they_are_asked_for_and_they_stay_longer_each_time_that_they_were_missed() {
        // Requests stand in one another's way where there are fewer than eight.
        let mut quick = Vec::new();
        let wanted = play(600 * MINUTE, |k, ready| {
            quick.push(k < 30 * MINUTE || ready >= 8);
            (if *quick.last().unwrap() { QUICK_MS } else { 20_000 }, 0)
        });
        assert_eq!(wanted[30 * MINUTE..].iter().max(), Some(&8), "and no more than that");
        let slow = quick[180 * MINUTE..].iter().filter(|quick| !**quick).count();
        assert!(slow * 10 <= 420 * MINUTE, "{slow} slow looks in the last seven hours");
        assert!(rises(&wanted[540 * MINUTE..]) <= 4, "{}", rises(&wanted[540 * MINUTE..]));
    }

    #[test]
    fn what_was_asked_for_is_not_taken_back_before_it_is_there() {
        let slow = 30 * MINUTE..30 * MINUTE + 3;
        let wanted = play(60 * MINUTE, |k, _| (if slow.contains(&k) { 20_000 } else { QUICK_MS }, 0));
        assert_eq!(rises(&wanted), 1);
        assert_eq!(wanted.iter().filter(|n| **n == 7).count(), MINUTE, "a cold start");
    }
}
