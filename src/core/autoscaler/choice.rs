//! Which way of being careful to take: the cheapest that would have kept the
//! objective, as long as the load does not jump; where it does, the one that would have
//! served most for what it costs. It judges by what would have been, never by what a load
//! is called. What can be paid at all is the bill's to say.

use super::bill::{Bill, Spent};
use super::plan::{self, Care, Hold, Outlook};
use super::recur::WAYS;
use super::shadow::{Feed, Reference, Shadow};
use super::staffing::Staffing;
use serde::{Deserialize, Serialize};

/// Requests that should begin in time, parts of a million.
const OBJECTIVE_PPM: u64 = 997_000;
/// A load of which the usual way serves less than this jumps.
const JUMPS_PPM: u64 = 990_000;

/// What a way may cost, in percent of what the reactive rule would have: a little more than is there to be spent,
/// since it is given up while that is owed; and what it may cost meanwhile: so little that a debt is paid back soon, though
/// scores remember cheaper times.
const MOST_PERCENT: u64 = 115;
const REST_PERCENT: u64 = 80;
/// All that the rule would have paid is worth so much: one request in a hundred, a tenth of it.
const WORTH_PPM: u64 = 100_000;
/// Less than this makes no difference, and less than this is not worth a change.
const ALIKE_PPM: i128 = 2_000;
const CLEAR_PPM: i128 = 10_000;

/// Before so much was seen, nothing is chosen.
const WARM_UP_MS: u64 = 300_000;
/// Until then no more than half of the replicas goes within so long.
const HALF_MS: u64 = 30_000;
/// Nobody waits longer than this for a forecast to come true.
const FROZEN_MS: u64 = 1_800_000;

/// Which forecast is given a chance: from the last beginning, as narrow as it gets. The one after all of these is
/// yesterday's.
const FIRST_TRY: usize = 0;

const HEADROOM_M: u64 = 10;
const HOLDS_MS: [u64; 7] = [60_000, 15_000, 300_000, 600_000, 1_200_000, 2_400_000, 4_800_000];
/// Whoever believes in a forecast needs to hold less.
const SEASON_HOLDS: usize = 4;
const CLEARS_MS: [u64; 2] = [20_000, 0];

/// The first of all ways.
const USUAL: usize = 0;
/// The way that nobody needs leave for: up for what is there, down as soon as it is gone.
const LEAN: usize = CLEARS_MS.len();
/// The way of whoever was surprised: what was needed is held for longest.
const PATIENT: usize = (HOLDS_MS.len() - 1) * CLEARS_MS.len();
const PATIENT_MS: u64 = HOLDS_MS[HOLDS_MS.len() - 1];

/// All ways, the usual one first.
pub fn cares() -> Vec<Care> {
    let mut out = Vec::new();
    for season in std::iter::once(None).chain((0..=WAYS).map(Some)) {
        let holds = if season.is_none() { &HOLDS_MS[..] } else { &HOLDS_MS[..SEASON_HOLDS] };
        for &hold_ms in holds {
            for clear_ms in CLEARS_MS {
                out.push(Care { headroom_m: HEADROOM_M, hold_ms, clear_ms, season });
            }
        }
    }
    out
}

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
    shadows: Vec<Shadow>,
    reference: Reference,
    pub bill: Bill,
    chosen: usize,
    seen_ms: u64,
    frozen_ms: u64,
    /// A burst was going on at the last look.
    burst: bool,
    /// What the load needed within the last cold start, and the most of it.
    needs: Hold,
    lately: u32,
    /// Replicas that can be kept though nobody needs them.
    keeps: u32,
    /// When the load fell off a cliff last.
    fell_ms: Option<u64>,
    /// Replicas that there were a moment ago, as long as little was seen.
    #[serde(default)]
    had: Hold,
    /// Half of the most of them.
    #[serde(default)]
    half: u32,
}

impl Choice {
    /// For a service that has so many replicas, and is known to have needed `busiest` of them at some time.
    pub fn new(ready: u32, busiest: u32) -> Self {
        Self {
            shadows: cares().into_iter().map(|care| Shadow::new(care, ready)).collect(),
            reference: Reference::new(ready),
            bill: Bill::new(busiest),
            chosen: USUAL,
            seen_ms: 0,
            frozen_ms: 0,
            burst: false,
            needs: Hold::default(),
            lately: 0,
            keeps: u32::MAX,
            fell_ms: None,
            had: Hold::default(),
            half: 0,
        }
    }

    pub fn chosen(&self) -> &Shadow {
        &self.shadows[self.chosen]
    }

    pub fn index(&self) -> u16 {
        u16::try_from(self.chosen).unwrap_or(u16::MAX)
    }

    /// What the chosen way holds, as far as that can be paid. What is needed is not in question, nor what must not go
    /// yet.
    pub fn held(&self) -> u32 {
        let chosen = self.chosen();
        chosen.held.min(self.keeps.max(self.lately)).max(chosen.need).max(self.half)
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
        let spent = Spent {
            now_ms: feed.now_ms,
            dt_ms: feed.dt_ms,
            replicas,
            reference: self.reference.stage.fleet.total(),
            work: feed.arrivals_m.saturating_mul(feed.service_ms) / 1000,
            service_ms: feed.service_ms,
        };
        self.bill.pay(feed.service, &spent);
        let most = self.bill.busiest().max(self.lately);
        for shadow in &mut self.shadows {
            shadow.step(feed, staffing, outlook, floor, most);
        }
        self.reference.step(feed, outlook);
        self.half = self.half_of(feed.now_ms, replicas, floor);
        let need = plan::need(feed.service, staffing, &Care { season: None, ..self.chosen().care }, outlook).0;
        self.look(feed.now_ms, outlook.lead_ms, need);
        if self.seen_ms >= WARM_UP_MS && !self.is_between(feed.dt_ms, outlook, need, moment) {
            self.choose(feed.now_ms);
            if moment.untried {
                self.give_a_chance();
            }
        }
    }

    /// A minute tells little of where a load is going, and one that begins mostly grows: at first, half goes at a time.
    /// Where nobody is there, all of it may.
    fn half_of(&mut self, now_ms: u64, replicas: u32, floor: u32) -> u32 {
        if self.seen_ms >= WARM_UP_MS || floor == 0 {
            return 0;
        }
        self.had.push(now_ms, replicas, HALF_MS).div_ceil(2)
    }

    /// What the load needs beside what it needed a moment ago.
    fn look(&mut self, now_ms: u64, lead_ms: u64, need: u32) {
        self.lately = self.needs.push(now_ms, need, lead_ms);
        self.keeps = self.bill.keeps(self.lately <= self.bill.busiest() / 2);
        if need <= self.lately / 2 && self.lately - need >= 2 {
            self.fell_ms = Some(now_ms);
        }
    }

    /// What is done for a forecast, or kept for what may come, costs before it pays: nobody is judged between the two
    /// but for want of money. The end of a burst is the moment to judge.
    fn is_between(&mut self, dt_ms: u64, outlook: &Outlook, need: u32, moment: Moment) -> bool {
        let ended = std::mem::replace(&mut self.burst, moment.burst) && !moment.burst;
        let expects = self.chosen().care.season.and_then(|way| outlook.season_m.get(way)).is_some_and(|m| *m > 0);
        let held = self.chosen().held.min(self.keeps);
        let holds = held / 2 >= need && held > need.saturating_add(1);
        let waits = !ended && (moment.burst || expects || holds);
        self.frozen_ms = if waits { self.frozen_ms + dt_ms } else { 0 };
        waits && self.frozen_ms % FROZEN_MS >= dt_ms && !self.bill.rests()
    }

    /// The same care with a narrow belief in a rhythm.
    fn give_a_chance(&mut self) {
        let care = Care { season: Some(FIRST_TRY), ..self.chosen().care };
        if self.chosen().care.season.is_none() && !self.bill.rests() {
            self.chosen = self.shadows.iter().position(|s| s.care == care).unwrap_or(self.chosen);
        }
    }

    fn choose(&mut self, now_ms: u64) {
        if self.shadows[USUAL].stage.score.attained_ppm() < JUMPS_PPM {
            return self.choose_worthiest();
        }
        // What fell off a cliff may come back as fast: it is kept as long as that can be paid.
        if self.fell_ms.is_some_and(|at| now_ms < at + PATIENT_MS) && !self.bill.rests() {
            self.chosen = PATIENT;
            return;
        }
        let good = |i: &usize| self.shadows[*i].stage.score.attained_ppm() >= OBJECTIVE_PPM;
        let cost = |i: usize| self.shadows[i].stage.score.cost;
        // Who leaves a backlog to itself was not put to the test by a load that does not jump.
        let helps = |i: &usize| self.shadows[*i].care.clear_ms > 0;
        match (0..self.shadows.len()).filter(helps).filter(good).min_by_key(|i| (cost(*i), *i)) {
            None => self.choose_worthiest(),
            // Half a percent is not worth a change.
            Some(best) if good(&self.chosen) && cost(self.chosen) <= cost(best) / 200 * 201 => {}
            Some(best) => self.chosen = best,
        }
    }

    /// The way that serves most for its cost, of those that can be paid. Of ways that were alike so far the one that
    /// holds longest: the next lull may be longer than all that were seen.
    fn choose_worthiest(&mut self) {
        let score = |i: usize| self.shadows[i].stage.score;
        let reference = self.reference.stage.score.cost;
        let percent = if self.bill.rests() { REST_PERCENT } else { MOST_PERCENT };
        let bound = (reference / 100).saturating_mul(percent).max(score(LEAN).cost);
        let affordable = |i: &usize| score(*i).cost <= bound;
        let worth = |i: usize| {
            let paid = u128::from(score(i).cost) * u128::from(WORTH_PPM) / u128::from(reference.max(1));
            i128::from(score(i).attained_ppm()) - i128::try_from(paid).unwrap_or(i128::MAX)
        };
        let all = || (0..self.shadows.len()).filter(affordable);
        let most = all().map(worth).max().unwrap_or_else(|| worth(LEAN));
        let care = |i: &usize| self.shadows[*i].care;
        let alike = all().filter(|i| worth(*i) + ALIKE_PPM >= most);
        let best = alike.max_by_key(|i| (care(i).hold_ms, care(i).clear_ms, std::cmp::Reverse(*i))).unwrap_or(LEAN);
        if most > worth(self.chosen) + CLEAR_PPM || !affordable(&self.chosen) {
            self.chosen = best;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_where_their_names_say() {
        let cares = cares();
        let of = |i: usize| (cares[i].hold_ms, cares[i].clear_ms, cares[i].season);
        assert_eq!(of(USUAL), (60_000, 20_000, None));
        assert_eq!(of(LEAN), (15_000, 20_000, None));
        assert_eq!(of(PATIENT), (4_800_000, 20_000, None));
        assert_eq!(cares.len(), 14 + (WAYS + 1) * 8);
    }
}
