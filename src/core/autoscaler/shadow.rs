//! What would have been: a small model of the service (a line, slots, slow starts)
//! that is fed with the arrivals as they come, once for each way of being careful and
//! once for a plain reactive rule. Their scores say which way pays. It does not know
//! what is really going on.

use super::fleet::Fleet;
use super::plan::{self, Care, Hold, Outlook};
use super::service::{Service, load_m};
use super::staffing::Staffing;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Scores of so long ago count half.
const HALF_LIFE_MS: u64 = 12 * 3_600_000;

/// What came, what began in time, and what it cost; all fade together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    pub all_m: u64,
    pub in_time_m: u64,
    /// Replicas times milliseconds.
    pub cost: u64,
}

impl Score {
    /// In time, parts of a million; all when nothing came.
    pub fn attained_ppm(&self) -> u64 {
        if self.all_m == 0 {
            return 1_000_000;
        }
        u64::try_from(u128::from(self.in_time_m) * 1_000_000 / u128::from(self.all_m)).unwrap_or(0)
    }

    fn fade(&mut self, dt_ms: u64) {
        let lost = (dt_ms.saturating_mul(693_147) / HALF_LIFE_MS).min(500_000);
        let keep = |n: u64| n - u64::try_from(u128::from(n) * u128::from(lost) / 1_000_000).unwrap_or(0);
        (self.all_m, self.in_time_m, self.cost) = (keep(self.all_m), keep(self.in_time_m), keep(self.cost));
    }
}

/// The played service.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stage {
    pub fleet: Fleet,
    pub queue_m: u64,
    pub score: Score,
}

/// What a stage is fed with.
#[derive(Clone, Copy, Debug)]
pub struct Feed<'a> {
    pub service: &'a Service,
    pub now_ms: u64,
    pub dt_ms: u64,
    pub arrivals_m: u64,
    pub service_ms: u64,
    /// Who waits too long leaves.
    pub impatient: bool,
    /// So little was seen that nothing goes down yet.
    pub settling: bool,
}

impl Stage {
    /// Plays what has come since the last time.
    pub fn play(&mut self, feed: &Feed) {
        self.score.fade(feed.dt_ms);
        self.fleet.arrive(feed.now_ms.saturating_sub(feed.dt_ms / 2));
        let pace = u64::from(feed.service.slots) * 1_000_000 / feed.service_ms.max(1) * u64::from(self.fleet.ready);
        let served = pace.saturating_mul(feed.dt_ms) / 1000;
        let before = self.queue_m;
        let mut after = before.saturating_add(feed.arrivals_m).saturating_sub(served);
        let patience = pace.saturating_mul(feed.service.wait_ms) / 1000;
        self.score.all_m = self.score.all_m.saturating_add(feed.arrivals_m);
        self.score.cost += u64::from(self.fleet.total()) * feed.dt_ms;
        if feed.impatient {
            let left = after.saturating_sub(patience);
            after -= left;
            self.score.in_time_m = self.score.in_time_m.saturating_add(feed.arrivals_m.saturating_sub(left));
        } else {
            // The wait changes evenly over the interval; so much of it was within the bound.
            let (low, high) = (before.min(after), before.max(after));
            let part = match (low <= patience, high <= patience) {
                (true, true) => 1000,
                (false, _) => 0,
                (true, false) => (patience - low).saturating_mul(1000) / (high - low),
            };
            self.score.in_time_m = self.score.in_time_m.saturating_add(feed.arrivals_m / 1000 * part);
        }
        self.queue_m = after;
    }

    fn aim(&mut self, feed: &Feed, target: u32, cold_start_ms: u64) {
        let target = if feed.settling { target.max(self.fleet.total()) } else { target };
        self.fleet.resize(target.clamp(feed.service.min, feed.service.max), feed.now_ms + cold_start_ms);
    }
}

/// One way of being careful, and how it would have fared.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shadow {
    pub care: Care,
    pub stage: Stage,
    hold: Hold,
    /// What the load wants, and what the hold makes of it.
    pub need: u32,
    pub held: u32,
}

impl Shadow {
    pub fn new(care: Care, ready: u32) -> Self {
        let stage = Stage { fleet: Fleet::new(ready), ..Stage::default() };
        Self { care, stage, hold: Hold::default(), need: 0, held: 0 }
    }

    /// Plays what came, then decides as the autoscaler would with this care. `floor` is needed now and not held:
    /// it has a time of its own. Of what is held no more than `most` counts.
    pub fn step(&mut self, feed: &Feed, staffing: &Staffing, outlook: &Outlook, floor: u32, most: u32) {
        self.stage.play(feed);
        // Nobody has been there for as long as the service's owner wants to wait: it may sleep.
        let sleeps = floor == 0 && feed.service.min == 0;
        let care = if sleeps && outlook.outlived { self.care.expecting_no_more() } else { self.care };
        let load = plan::need(feed.service, staffing, &care, outlook).0;
        self.need = load.max(floor);
        self.held = self.hold.push(feed.now_ms, load, self.care.hold_ms).max(floor);
        if sleeps {
            self.held = self.need;
        }
        let Stage { fleet, queue_m, .. } = &self.stage;
        let backlog = if feed.impatient {
            0
        } else {
            plan::backlog_need(feed.service, &self.care, outlook, fleet, *queue_m, feed.now_ms)
        };
        let target = self.held.min(most).max(self.need).max(backlog);
        self.stage.aim(feed, target, outlook.lead_ms.saturating_sub(feed.service.tick_ms));
    }
}

/// The plain reactive rule: requests inside over 70 % of a replica's slots, averaged over a minute, or over
/// six seconds when that asks for twice of what is ready (the rule of Knative's autoscaler). What it would
/// have cost is what nobody would call a waste.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reference {
    pub stage: Stage,
    /// Time and requests inside, thousandths.
    inside: VecDeque<(u64, u64)>,
    panic_until_ms: u64,
    panic_most: u32,
}

const STABLE_MS: u64 = 60_000;
const PANIC_MS: u64 = 6_000;
const TARGET_M: u64 = 700;

impl Reference {
    pub fn new(ready: u32) -> Self {
        Self { stage: Stage { fleet: Fleet::new(ready), ..Stage::default() }, ..Self::default() }
    }

    pub fn step(&mut self, feed: &Feed, outlook: &Outlook) {
        self.stage.play(feed);
        if feed.dt_ms == 0 {
            return;
        }
        let rate = feed.arrivals_m.saturating_mul(1000) / feed.dt_ms.max(1);
        let room = feed.service.slots_m(self.stage.fleet.ready);
        let running = if self.stage.queue_m > 0 { room } else { load_m(rate, feed.service_ms).min(room) };
        self.inside.push_back((feed.now_ms, running.saturating_add(self.stage.queue_m)));
        while self.inside.front().is_some_and(|(at, _)| at + STABLE_MS <= feed.now_ms) {
            self.inside.pop_front();
        }
        let over = |span: u64| {
            let recent = self.inside.iter().rev();
            let (sum, n) = recent
                .take_while(|(at, _)| at + span > feed.now_ms)
                .fold((0_u64, 0), |(s, n), i| (s.saturating_add(i.1), n + 1));
            let each = u64::from(feed.service.slots) * TARGET_M * n.max(1);
            u32::try_from(sum.div_ceil(each)).unwrap_or(u32::MAX)
        };
        let ready = self.stage.fleet.ready.max(1);
        let (stable, panic) = (over(STABLE_MS).max(ready / 2), over(PANIC_MS));
        if panic >= 2 * ready {
            self.panic_until_ms = feed.now_ms + STABLE_MS;
        }
        let target = if feed.now_ms < self.panic_until_ms {
            self.panic_most = self.panic_most.max(panic);
            self.panic_most
        } else {
            self.panic_most = 0;
            stable
        };
        self.stage.aim(feed, target, outlook.lead_ms.saturating_sub(feed.service.tick_ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_overdue_for_longer_than_it_ever_took_keeps_nobody_from_sleeping() {
        let (service, staffing) = (Service::default(), Staffing::new(2_000, 2_000, 1_000));
        let feed = Feed {
            service: &service,
            now_ms: 5_000,
            dt_ms: 5_000,
            arrivals_m: 0,
            service_ms: 2_000,
            impatient: false,
            settling: false,
        };
        let held = |way: usize, outlived: bool, floor: u32| {
            let care = Care { headroom_m: 0, hold_ms: 60_000, clear_ms: 0, season: Some(way) };
            let season_m = vec![50_000; 8];
            let outlook = Outlook { season_m, outlived, service_ms: 2_000, lead_ms: 95_000, ..Outlook::default() };
            let mut shadow = Shadow::new(care, 0);
            shadow.step(&feed, &staffing, &outlook, floor, u32::MAX);
            shadow.held
        };
        assert!(held(5, false, 0) > 1, "it may still come");
        assert_eq!(held(5, true, 0), 0);
        assert!(held(5, true, 1) > 1, "somebody is there");
        assert!(held(7, true, 0) > 1, "what came yesterday at this time is not overdue");
    }
}
