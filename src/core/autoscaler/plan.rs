//! How many replicas a load wants, for one way of being careful. Pure arithmetic on
//! one moment: what comes, what waits, what is on its way. It does not know signals,
//! and not which way of being careful is the right one.

use super::fleet::Fleet;
use super::recur::OVERDUE;
use super::service::{MOST_REPLICAS, Service, load_m};
use super::staffing::Staffing;
use super::trend::Level;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// A way of being careful.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Care {
    /// Room beyond what randomness asks for, in thousandths of the load.
    pub headroom_m: u64,
    /// What was needed is kept for so long.
    pub hold_ms: u64,
    /// A backlog that outlives a cold start is to be gone so soon after it; 0 leaves it to the load.
    pub clear_ms: u64,
    /// Which of the forecasts by recurrence it believes, if any.
    pub season: Option<usize>,
}

impl Care {
    /// The same without the belief that what is overdue still comes.
    pub fn expecting_no_more(self) -> Self {
        Self { season: self.season.filter(|way| !OVERDUE.contains(way)), ..self }
    }
}

/// What is known of the load at one moment. Rates are thousandths of a request per second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    pub level: Level,
    /// One cold start and one tick from now.
    pub ahead_m: u64,
    /// The same by what recurs, for each margin of time.
    pub season_m: Vec<u64>,
    /// What recurred is overdue for longer than it ever took.
    pub outlived: bool,
    pub service_ms: u64,
    /// Cold start and tick.
    pub lead_ms: u64,
}

/// Which part of the load decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Now,
    Ahead,
    Season,
}

/// The fewest replicas that have the slots.
pub fn replicas_for(service: &Service, staffing: &Staffing, rate_m: u64, service_ms: u64, headroom_m: u64) -> u32 {
    if rate_m == 0 {
        return 0;
    }
    let load = load_m(rate_m, service_ms);
    let load = load.saturating_add(load.saturating_mul(headroom_m) / 1000);
    let slots = staffing.slots_m(load);
    u32::try_from(slots.div_ceil(u64::from(service.slots) * 1000)).unwrap_or(MOST_REPLICAS).min(MOST_REPLICAS)
}

/// The fewest replicas that carry a rate, with nothing to spare.
pub fn carried_by(service: &Service, rate_m: u64, service_ms: u64) -> u32 {
    let replicas = load_m(rate_m, service_ms).div_ceil(u64::from(service.slots) * 1000);
    u32::try_from(replicas).unwrap_or(MOST_REPLICAS).min(service.max)
}

/// What the load itself wants, backlog aside.
pub fn need(service: &Service, staffing: &Staffing, care: &Care, outlook: &Outlook) -> (u32, Driver) {
    // Nothing at all is certain enough.
    let unsure = if outlook.level.now_m == 0 { 0 } else { outlook.level.error_m / 2 };
    let now = outlook.level.now_m.saturating_add(unsure);
    let mut best = (now, Driver::Now);
    if outlook.ahead_m > best.0 {
        best = (outlook.ahead_m, Driver::Ahead);
    }
    if let Some(season) = care.season.and_then(|i| outlook.season_m.get(i)).filter(|s| **s > best.0) {
        best = (*season, Driver::Season);
    }
    (replicas_for(service, staffing, best.0, outlook.service_ms, care.headroom_m), best.1)
}

/// Thousandths of a request per second that one replica serves.
fn pace_m(service: &Service, service_ms: u64) -> u64 {
    (u64::from(service.slots) * 1_000_000 / service_ms.max(1)).max(1)
}

/// Requests, in thousandths, that may wait and still begin in time.
fn patience_m(rate_m: u64, wait_ms: u64) -> u64 {
    (rate_m.saturating_mul(wait_ms) / 2000).max(1000)
}

/// What a backlog wants: nothing when there is none; what there is when that clears it
/// before new replicas could help; else enough to clear it soon after they come.
pub fn backlog_need(
    service: &Service,
    care: &Care,
    outlook: &Outlook,
    fleet: &Fleet,
    queue_m: u64,
    now_ms: u64,
) -> u32 {
    let rate = outlook.level.now_m;
    let patience = patience_m(rate, service.wait_ms);
    if queue_m <= patience {
        return 0;
    }
    let pace = pace_m(service, outlook.service_ms);
    let end = now_ms + outlook.lead_ms;
    let (mut queue, mut at, mut ready) = (i128::from(queue_m), now_ms, fleet.ready);
    let mut cleared = false;
    let steps = fleet.coming().map(|b| (b.ready_ms.min(end), b.replicas)).chain([(end, 0)]);
    for (until, more) in steps {
        let span = until.saturating_sub(at);
        let change = i128::from(rate) - i128::from(ready) * i128::from(pace);
        queue = (queue + change * i128::from(span) / 1000).max(0);
        cleared |= queue <= i128::from(patience);
        (at, ready) = (at.max(until), ready.saturating_add(more));
    }
    let keep = fleet.total();
    if cleared || care.clear_ms == 0 {
        return keep;
    }
    let left = u64::try_from(queue).unwrap_or(u64::MAX / 4_000);
    let wanted = rate.saturating_add(left.saturating_mul(1000) / care.clear_ms);
    let replicas = u32::try_from(wanted.div_ceil(pace)).unwrap_or(MOST_REPLICAS);
    replicas.min(MOST_REPLICAS).max(keep)
}

/// The largest need of the last while: what goes up at once and down late.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Hold {
    /// Needs that nothing later reaches, with the time they were last needed; falling.
    peaks: VecDeque<(u64, u32)>,
}

impl Hold {
    /// Needs of less than a tick ago are always kept, so this is bounded by the ticks of a hold.
    pub fn push(&mut self, now_ms: u64, need: u32, hold_ms: u64) -> u32 {
        while self.peaks.back().is_some_and(|last| last.1 <= need) {
            self.peaks.pop_back();
        }
        self.peaks.push_back((now_ms, need));
        while self.peaks.front().is_some_and(|first| first.0 + hold_ms < now_ms) {
            self.peaks.pop_front();
        }
        self.peaks.front().map_or(need, |first| first.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARE: Care = Care { headroom_m: 0, hold_ms: 60_000, clear_ms: 20_000, season: None };

    fn outlook(rate_m: u64) -> Outlook {
        let level = Level { now_m: rate_m, ..Level::default() };
        Outlook { level, ahead_m: rate_m, season_m: Vec::new(), outlived: false, service_ms: 2_000, lead_ms: 95_000 }
    }

    #[test]
    fn a_load_wants_its_slots_and_a_little_more() {
        let service = Service::default();
        let staffing = Staffing::new(2_000, 2_000, 1_000);
        assert_eq!(need(&service, &staffing, &CARE, &outlook(0)).0, 0);
        // 76 requests a second of two seconds are 152 at once: ten replicas have 160 slots.
        assert_eq!(need(&service, &staffing, &CARE, &outlook(76_000)).0, 10);
        assert_eq!(need(&service, &staffing, &CARE, &outlook(u64::MAX / 8)).0, MOST_REPLICAS);
    }

    #[test]
    fn a_backlog_is_left_alone_when_help_would_come_too_late() {
        let service = Service::default();
        let calm = outlook(8_000);
        let need = |ready, queue_m| backlog_need(&service, &CARE, &calm, &Fleet::new(ready), queue_m, 0);
        assert_eq!(need(2, 1_000), 0, "nobody waits too long");
        assert_eq!(need(4, 100_000), 4, "four replicas clear it in seconds");
        // One replica serves just what comes: the 1,000 are still there after the cold start.
        assert_eq!(need(1, 1_000_000), 8, "8/s that come, 50/s of backlog, 8/s a replica");
    }

    #[test]
    fn a_hold_keeps_the_largest_need_of_the_last_while() {
        let mut hold = Hold::default();
        let held: Vec<u32> =
            [(0, 3), (10, 7), (20, 2), (60, 5), (71, 1), (121, 1), (190, 0)].map(|(t, n)| hold.push(t, n, 60)).into();
        assert_eq!(held, [3, 7, 7, 7, 5, 1, 0]);
    }
}
