//! Which way of being careful to take: the cheapest that would have kept the
//! objective; where none would have, the one that would have served most at no more
//! than the plain reactive rule would have cost. It judges by what would have been,
//! never by what a load is called.

use super::plan::{Care, Outlook};
use super::recur::WAYS;
use super::shadow::{Feed, Reference, Shadow};
use super::staffing::Staffing;

/// Requests that should begin in time, parts of a million.
const OBJECTIVE_PPM: u64 = 997_000;

/// Of the reference's cost, thousandths: the model of what would have been is only a model.
const COST_M: u64 = 950;

/// Before so much was seen, nothing is chosen.
const WARM_UP_MS: u64 = 300_000;

/// An advantage smaller than this is chance, parts of a million.
const CLEAR_PPM: u64 = 3_000;

const HEADROOM_M: u64 = 30;
const HOLDS_MS: [u64; 7] = [60_000, 15_000, 300_000, 600_000, 1_200_000, 2_400_000, 4_800_000];
const CLEARS_MS: [u64; 2] = [20_000, 0];

/// All ways, the usual one first.
pub fn cares() -> Vec<Care> {
    let mut out = Vec::new();
    for season in std::iter::once(None).chain((0..WAYS).map(Some)) {
        for hold_ms in HOLDS_MS {
            for clear_ms in CLEARS_MS {
                out.push(Care { headroom_m: HEADROOM_M, hold_ms, clear_ms, season });
            }
        }
    }
    out
}

/// All ways side by side, and the one that is taken.
#[derive(Clone, Debug)]
pub struct Choice {
    pub shadows: Vec<Shadow>,
    pub reference: Reference,
    chosen: usize,
    seen_ms: u64,
    /// What was really paid, and what the reference would have, from the beginning; replicas times milliseconds.
    paid: u64,
    would_have_paid: u64,
}

impl Choice {
    pub fn new(ready: u32) -> Self {
        let shadows = cares().into_iter().map(|care| Shadow::new(care, ready)).collect();
        let reference = Reference::new(ready);
        Self { shadows, reference, chosen: 0, seen_ms: 0, paid: 0, would_have_paid: 0 }
    }

    pub fn chosen(&self) -> &Shadow {
        &self.shadows[self.chosen]
    }

    pub fn index(&self) -> u16 {
        u16::try_from(self.chosen).unwrap_or(u16::MAX)
    }

    pub fn step(&mut self, feed: &Feed, staffing: &Staffing, outlook: &Outlook, floor: u32, replicas: u32) {
        self.seen_ms += feed.dt_ms;
        self.would_have_paid += u64::from(self.reference.stage.fleet.total()) * feed.dt_ms;
        self.paid += u64::from(replicas) * feed.dt_ms;
        for shadow in &mut self.shadows {
            shadow.step(feed, staffing, outlook, floor);
        }
        self.reference.step(feed, outlook);
        if self.seen_ms >= WARM_UP_MS {
            self.choose();
        }
    }

    fn choose(&mut self) {
        let score = |i: usize| self.shadows[i].stage.score;
        let all = 0..self.shadows.len();
        let good = |i: &usize| score(*i).attained_ppm() >= OBJECTIVE_PPM;
        let cheapest = all.clone().filter(good).min_by_key(|i| (score(*i).cost, *i));
        if let Some(best) = cheapest {
            // Half a percent is not worth a change.
            let kept = good(&self.chosen) && score(self.chosen).cost <= score(best).cost / 200 * 201;
            if !kept {
                self.chosen = best;
            }
            return;
        }
        let bound = self.reference.stage.score.cost / 1000 * COST_M;
        let overdrawn = self.paid > self.would_have_paid;
        let affordable = |i: &usize| score(*i).cost <= bound && !(overdrawn && *i >= 2 * CLEARS_MS.len());
        let best = all
            .filter(affordable)
            .max_by_key(|i| (score(*i).attained_ppm() / CLEAR_PPM, std::cmp::Reverse((score(*i).cost, *i))));
        let best = best.unwrap_or(0);
        let better = score(best).attained_ppm() > score(self.chosen).attained_ppm() + CLEAR_PPM;
        if better || !affordable(&self.chosen) {
            self.chosen = best;
        }
    }
}
