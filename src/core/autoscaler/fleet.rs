//! The replicas of a service as the autoscaler knows them: those that are ready
//! and those that are on their way, with the time they will be ready. It learns
//! from both how long a start takes. It does not know load.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Replicas whose start was decided at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    pub ready_ms: u64,
    pub replicas: u32,
}

/// Batches that are told apart; more are counted with the last.
const BATCHES: usize = 256;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Fleet {
    pub ready: u32,
    coming: VecDeque<Batch>,
}

impl Fleet {
    pub fn new(ready: u32) -> Self {
        Self { ready, coming: VecDeque::new() }
    }

    pub fn starting(&self) -> u32 {
        self.coming.iter().map(|b| b.replicas).sum()
    }

    pub fn total(&self) -> u32 {
        self.ready.saturating_add(self.starting())
    }

    pub fn coming(&self) -> impl Iterator<Item = &Batch> {
        self.coming.iter()
    }

    /// What should be ready by now is ready.
    pub fn arrive(&mut self, now_ms: u64) {
        while let Some(batch) = self.coming.front().filter(|b| b.ready_ms <= now_ms) {
            self.ready = self.ready.saturating_add(batch.replicas);
            self.coming.pop_front();
        }
    }

    /// Begins replicas, or gives up the youngest first.
    pub fn resize(&mut self, target: u32, ready_ms: u64) {
        let total = self.total();
        if target > total {
            let replicas = target - total;
            let full = self.coming.len() >= BATCHES;
            match self.coming.back_mut() {
                Some(last) if last.ready_ms == ready_ms || full => last.replicas += replicas,
                _ => self.coming.push_back(Batch { ready_ms, replicas }),
            }
        }
        let mut over = total.saturating_sub(target);
        while let Some(last) = self.coming.back_mut().filter(|_| over > 0) {
            let gone = last.replicas.min(over);
            last.replicas -= gone;
            over -= gone;
            if last.replicas == 0 {
                self.coming.pop_back();
            }
        }
        self.ready -= over.min(self.ready);
    }

    /// The facts: as many as are seen to be ready and starting. What was expected is bent to them.
    pub fn correct(&mut self, ready: u32, starting: u32, ready_ms: u64, now_ms: u64) {
        self.ready = ready;
        let mut expected = self.starting();
        // The oldest have become ready, or somebody took them away.
        while expected > starting {
            let Some(first) = self.coming.front_mut() else { break };
            let gone = first.replicas.min(expected - starting);
            first.replicas -= gone;
            expected -= gone;
            if first.replicas == 0 {
                self.coming.pop_front();
            }
        }
        if starting > expected {
            self.coming.push_back(Batch { ready_ms, replicas: starting - expected });
        }
        // A start that takes longer than the others is expected at any moment.
        for batch in &mut self.coming {
            batch.ready_ms = batch.ready_ms.max(now_ms + 1);
        }
    }
}

/// How long a start takes, learned from those seen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ColdStart {
    learned_ms: u64,
    /// When replicas that are not ready yet were asked for, or had no place last, oldest first.
    asked: VecDeque<(u64, u32)>,
    last_ready: Option<u32>,
}

impl ColdStart {
    pub fn new(configured_ms: u64) -> Self {
        Self { learned_ms: configured_ms, asked: VecDeque::new(), last_ready: None }
    }

    pub fn ms(&self) -> u64 {
        self.learned_ms
    }

    pub fn asked(&mut self, at_ms: u64, replicas: u32) {
        if replicas > 0 && self.asked.len() < BATCHES {
            self.asked.push_back((at_ms, replicas));
        }
    }

    /// Some that were on their way are not wanted any more: the youngest. So many there were.
    pub fn given_up(&mut self, replicas: u32) -> u32 {
        let mut left = replicas;
        while let Some(last) = self.asked.back_mut().filter(|_| left > 0) {
            let gone = last.1.min(left);
            (last.1, left) = (last.1 - gone, left - gone);
            if last.1 == 0 {
                self.asked.pop_back();
            }
        }
        replicas - left
    }

    /// So many have no place yet, the youngest: a wait for room is no start, however long it lasts.
    pub fn unplaced(&mut self, at_ms: u64, replicas: u32) {
        let waiting = self.given_up(replicas);
        self.asked(at_ms, waiting);
    }

    /// Each replica that is newly ready is the oldest that was asked for.
    pub fn seen(&mut self, at_ms: u64, ready: u32) {
        let mut fresh = ready.saturating_sub(self.last_ready.unwrap_or(ready));
        self.last_ready = Some(ready);
        while let Some(first) = self.asked.front_mut().filter(|_| fresh > 0) {
            let took = at_ms.saturating_sub(first.0);
            let arrived = first.1.min(fresh);
            (first.1, fresh) = (first.1 - arrived, fresh - arrived);
            if first.1 == 0 {
                self.asked.pop_front();
            }
            // One start in eight counts; a single one of a quarter of an hour moves it by two minutes at most.
            let moved = (self.learned_ms * 7 + took) / 8;
            self.learned_ms = moved.min(self.learned_ms + 120_000);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_come_in_order_and_the_youngest_are_given_up_first() {
        let mut fleet = Fleet::new(2);
        fleet.resize(5, 100);
        fleet.resize(7, 200);
        assert_eq!((fleet.total(), fleet.starting()), (7, 5));
        fleet.resize(4, 300);
        assert_eq!((fleet.ready, fleet.starting()), (2, 2));
        fleet.arrive(100);
        assert_eq!((fleet.ready, fleet.starting()), (4, 0));
        fleet.resize(1, 400);
        assert_eq!(fleet.total(), 1);
    }

    #[test]
    fn facts_win_over_what_was_expected() {
        let mut fleet = Fleet::new(2);
        fleet.resize(6, 100);
        fleet.correct(3, 3, 500, 90);
        assert_eq!((fleet.ready, fleet.starting()), (3, 3));
        fleet.correct(3, 5, 500, 120);
        let coming: Vec<_> = fleet.coming().map(|b| (b.ready_ms, b.replicas)).collect();
        assert_eq!(coming, [(121, 3), (500, 2)]);
    }

    #[test]
    fn a_cold_start_is_learned_from_those_seen() {
        let mut cold = ColdStart::new(90_000);
        cold.seen(0, 1);
        for k in 0..40_u64 {
            let now = 1_000_000 * k;
            cold.asked(now, 1);
            cold.seen(now + 30_000, 1 + u32::try_from(k).unwrap() + 1);
        }
        assert!(cold.ms().abs_diff(30_000) < 1_000, "{}", cold.ms());
        cold.asked(50_000_000, 2);
        cold.given_up(2);
        cold.seen(60_000_000, 60);
        assert!(cold.ms() < 31_000);
    }

    #[test]
    fn an_hour_in_the_queue_is_no_cold_start() {
        let mut cold = ColdStart::new(30_000);
        cold.seen(0, 2);
        cold.asked(0, 3);
        // One has a place and starts; two find one an hour later, and are ready half a minute after that.
        for at in (5_000..3_600_000).step_by(5_000) {
            cold.seen(at, if at < 30_000 { 2 } else { 3 });
            cold.unplaced(at, 2);
        }
        cold.seen(3_625_000, 5);
        assert_eq!(cold.ms(), 30_000);
    }
}
