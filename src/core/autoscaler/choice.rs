//! Which way of being careful to take: the cheapest that would have kept the
//! objective; where none would have, the one that would have served most at no more
//! than the plain reactive rule would have cost. It judges by what would have been,
//! never by what a load is called.

use super::plan::{Care, Outlook};
use super::recur::WAYS;

use super::shadow::{Feed, Reference, Shadow};
use super::staffing::Staffing;
use serde::{Deserialize, Serialize};

/// Requests that should begin in time, parts of a million.
const OBJECTIVE_PPM: u64 = 997_000;

/// Of the reference's cost, thousandths, with what was saved so far on top: that settles at 95 %. Less than all,
/// since the model of what would have been is only a model.
const COST_M: u64 = 900;
const MOST_M: u64 = 1_050;

const THRIFT_M: u64 = 850;

/// Before so much was seen, nothing is chosen.
const WARM_UP_MS: u64 = 300_000;

/// An advantage smaller than this is chance, parts of a million.
const CLEAR_PPM: u64 = 10_000;

/// Which forecast is given a chance: from the last beginning, as narrow as it gets. The one after all of these is
/// yesterday's.
const FIRST_TRY: usize = 0;

const HEADROOM_M: u64 = 10;
/// The way that nobody needs leave for: up for what is there, down as soon as it is gone.
const LEAN: usize = CLEARS_MS.len();

const HOLDS_MS: [u64; 7] = [60_000, 15_000, 300_000, 600_000, 1_200_000, 2_400_000, 4_800_000];
const CLEARS_MS: [u64; 2] = [20_000, 0];

/// All ways, the usual one first.
pub fn cares() -> Vec<Care> {
    let mut out = Vec::new();
    for season in std::iter::once(None).chain((0..=WAYS).map(Some)) {
        for hold_ms in HOLDS_MS {
            for clear_ms in CLEARS_MS {
                out.push(Care { headroom_m: HEADROOM_M, hold_ms, clear_ms, season });
            }
        }
    }
    out
}

/// Nobody waits longer than this for a forecast to come true.
const FROZEN_MS: u64 = 1_800_000;

/// What the reference would have paid in so long may be overdrawn, and a hundredth of all it would have paid.
const CREDIT_MS: u64 = 600_000;

/// What kind of moment it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment {
    /// A burst is going on.
    pub burst: bool,
    /// There may be a rhythm that nobody could try: it is given one chance.
    pub untried: bool,
}

/// All ways side by side, and the one that is taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Choice {
    pub shadows: Vec<Shadow>,
    pub reference: Reference,
    chosen: usize,
    seen_ms: u64,
    frozen_ms: u64,
    /// What was really paid, and what the reference would have, from the beginning; replicas times milliseconds.
    paid: u64,
    would_have_paid: u64,
}

impl Choice {
    pub fn new(ready: u32) -> Self {
        let shadows = cares().into_iter().map(|care| Shadow::new(care, ready)).collect();
        let reference = Reference::new(ready);
        Self { shadows, reference, chosen: 0, seen_ms: 0, frozen_ms: 0, paid: 0, would_have_paid: 0 }
    }

    pub fn chosen(&self) -> &Shadow {
        &self.shadows[self.chosen]
    }

    pub fn index(&self) -> u16 {
        u16::try_from(self.chosen).unwrap_or(u16::MAX)
    }

    /// Plays `feed` in all ways, with `replicas` really there, then chooses.
    pub fn step(
        &mut self,
        feed: &Feed,
        staffing: &Staffing,
        outlook: &Outlook,
        floor: u32,
        replicas: u32,
        moment: Moment,
    ) {
        self.seen_ms += feed.dt_ms;
        self.would_have_paid += u64::from(self.reference.stage.fleet.total()) * feed.dt_ms;
        self.paid += u64::from(replicas) * feed.dt_ms;
        for shadow in &mut self.shadows {
            shadow.step(feed, staffing, outlook, floor);
        }
        self.reference.step(feed, outlook);
        // What is done for a forecast costs before it pays, so nobody is judged between the two.
        let expects = self.chosen().care.season.and_then(|way| outlook.season_m.get(way)).is_some_and(|m| *m > 0);
        self.frozen_ms = if moment.burst || expects { self.frozen_ms + feed.dt_ms } else { 0 };
        let frozen = self.frozen_ms > 0 && self.frozen_ms % FROZEN_MS >= feed.dt_ms && !self.overdrawn();
        if self.seen_ms >= WARM_UP_MS && !frozen {
            self.choose();
            if moment.untried {
                self.give_a_chance();
            }
        }
    }

    /// More was paid than the reference would have: there is nothing to try anything with.
    fn overdrawn(&self) -> bool {
        let credit = self.would_have_paid / 100 + self.would_have_paid / (self.seen_ms / CREDIT_MS).max(1);
        self.paid > self.would_have_paid + credit
    }

    /// The same care with a narrow belief in a rhythm.
    fn give_a_chance(&mut self) {
        let care = Care { season: Some(FIRST_TRY), ..self.chosen().care };
        if self.chosen().care.season.is_none() && !self.overdrawn() {
            self.chosen = self.shadows.iter().position(|s| s.care == care).unwrap_or(self.chosen);
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
        // What was saved so far may be spent, and what was overspent is to be made good.
        let saved = i128::from(self.would_have_paid) - i128::from(self.paid);
        let saved_m = saved * 1000 / i128::from(self.would_have_paid.max(1));
        let share =
            u64::try_from((i128::from(COST_M) + saved_m).clamp(THRIFT_M.into(), MOST_M.into())).unwrap_or(COST_M);
        if self.overdrawn() {
            self.chosen = LEAN;
            return;
        }
        let bound = (self.reference.stage.score.cost / 1000 * share).max(score(LEAN).cost);
        let affordable = |i: &usize| score(*i).cost <= bound;
        let served = |i: &usize| (score(*i).attained_ppm() / (CLEAR_PPM / 2), std::cmp::Reverse((score(*i).cost, *i)));
        let best = all.clone().filter(affordable).max_by_key(served).unwrap_or(LEAN);
        let better = score(best).attained_ppm() > score(self.chosen).attained_ppm() + CLEAR_PPM;
        if better || !affordable(&self.chosen) {
            self.chosen = best;
        }
    }
}
