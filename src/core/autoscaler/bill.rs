//! What a service has cost, beside what two others would have paid for it: the plain
//! reactive rule, and whoever keeps as many replicas as the busiest minute so far needs,
//! always. Nobody should pay more than either. What was saved on the way may be spent;
//! all of it fades alike, so that nobody lives on last week's savings, and who is never in
//! debt by sums that fade is not by plain ones either. It decides nothing.

use super::service::{MOST_REPLICAS, Service};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// What is so long ago counts half.
const HALF_LIFE_MS: u64 = 12 * 3_600_000;
/// The busiest stretch of this length is what a fixed number would be chosen for.
const STRETCH_MS: u64 = 60_000;
/// Savings are spent over so long: a cold start, and the backlog that it leaves.
const SPREAD_MS: i128 = 120_000;
/// Before so much was seen nothing is known of a busiest minute.
const EARLY_MS: u64 = 300_000;
/// Of what the reactive rule would have paid so much may be spent, in thousandths: what it would have is only modelled.
const SHARE_M: u64 = 970;
/// What it would have paid in so long is advanced, since nothing is known at first; less and less of it, down to
/// nothing when so much was seen.
const ADVANCE_MS: u64 = 1_800_000;
const ADVANCED_MS: u64 = 4 * 3_600_000;
/// Who is in debt saves what it would have paid in so long before anything is tried again.
const SAVED_MS: u64 = 300_000;

/// See the module. Costs are replicas times milliseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Bill {
    seen_ms: u64,
    paid: u64,
    /// What the reactive rule would have paid.
    reference: u64,
    /// What neither can do without: the service's least number of replicas.
    floor: u64,
    /// What came in the last minute.
    recent: VecDeque<Came>,
    /// Replicas for the busiest minute so far.
    busiest: u32,
    pays_back: bool,
    rests: bool,
}

/// What came until then, in slots times milliseconds, and how long that took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Came {
    at_ms: u64,
    dt_ms: u64,
    work: u64,
}

/// Since the last look.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    pub now_ms: u64,
    pub dt_ms: u64,
    /// Replicas that there were, and that the reactive rule would have had.
    pub replicas: u32,
    pub reference: u32,
    /// What came, in slots times milliseconds.
    pub work: u64,
    /// How long one request takes.
    pub service_ms: u64,
}

impl Bill {
    /// Of a service of whose past it is known that so many replicas were needed at some time.
    pub fn new(busiest: u32) -> Self {
        Self { busiest, ..Self::default() }
    }

    pub fn pay(&mut self, service: &Service, spent: &Spent) {
        let Spent { now_ms, dt_ms, replicas, reference, work, service_ms } = *spent;
        let lost = (dt_ms.saturating_mul(693_147) / HALF_LIFE_MS).min(500_000);
        let keep = |n: u64| n - u64::try_from(u128::from(n) * u128::from(lost) / 1_000_000).unwrap_or(0);
        self.seen_ms = keep(self.seen_ms).saturating_add(dt_ms);
        self.paid = keep(self.paid).saturating_add(u64::from(replicas) * dt_ms);
        self.reference = keep(self.reference).saturating_add(u64::from(reference) * dt_ms);
        self.floor = keep(self.floor).saturating_add(u64::from(service.min.min(replicas).min(reference)) * dt_ms);
        self.recent.push_back(Came { at_ms: now_ms, dt_ms, work });
        // Requests that take longer are spread over as long as they take: what comes in a minute is not served in one.
        let stretch_ms = STRETCH_MS.max(service_ms);
        while self.recent.front().is_some_and(|came| came.at_ms.saturating_add(stretch_ms) <= now_ms) {
            self.recent.pop_front();
        }
        let work = self.recent.iter().fold(0, |sum: u64, came| sum.saturating_add(came.work));
        // Looks that are far apart, or late, tell of more than the stretch.
        let lasted = self.recent.iter().fold(0, |sum: u64, came| sum.saturating_add(came.dt_ms));
        let replica = u64::from(service.slots).saturating_mul(lasted.max(stretch_ms));
        let needs = u32::try_from(work.div_ceil(replica.max(1))).unwrap_or(MOST_REPLICAS);
        // How long requests take is still a guess: what it makes of them would never be forgotten.
        if !(service.service_guessed && self.seen_ms < EARLY_MS) {
            self.busiest = self.busiest.max(needs.min(service.max));
        }
        self.judge();
    }

    fn judge(&mut self) {
        // Of what both pay all the time nothing can be saved, and so nothing is owed.
        let (paid, reference) = (self.paid.saturating_sub(self.floor), self.reference.saturating_sub(self.floor));
        let each_s = |sum: u64| sum / (self.seen_ms / 1000).max(1);
        let early_s = ADVANCED_MS.saturating_sub(self.seen_ms) / 1000;
        let advance = each_s(self.reference).saturating_mul(ADVANCE_MS / 1000 * early_s / (ADVANCED_MS / 1000));
        let saved = if self.rests { each_s(reference).saturating_mul(SAVED_MS / 1000) } else { 0 };
        let may = (reference / 1000).saturating_mul(SHARE_M).saturating_add(advance);
        self.rests = paid.saturating_add(saved) > may;
    }

    /// More was paid than the reactive rule would have: nothing is tried until some of it is saved again.
    pub fn rests(&self) -> bool {
        self.rests
    }

    /// Replicas for the busiest minute so far.
    pub fn busiest(&self) -> u32 {
        if self.seen_ms < EARLY_MS { MOST_REPLICAS } else { self.busiest }
    }

    /// Replicas that can be kept without paying more than for the busiest minute's, all the time. What is owed is
    /// paid back while the load is `low`, by a few replicas fewer: whoever is surprised then has most of them.
    pub fn keeps(&mut self, low: bool) -> u32 {
        let enough = self.a_minute();
        self.pays_back = low && self.left() < if self.pays_back { 2 * enough } else { enough };
        let fewer = if self.pays_back { (self.busiest / 8).max(1) } else { 0 };
        self.busiest().saturating_sub(fewer)
    }

    /// Replicas that can be had for a short while, from what was saved.
    pub fn reaches(&self) -> u32 {
        let more = (self.left() - self.a_minute()).max(0) / SPREAD_MS;
        self.busiest().saturating_add(u32::try_from(more).unwrap_or(MOST_REPLICAS)).min(MOST_REPLICAS)
    }

    fn left(&self) -> i128 {
        i128::from(self.busiest) * i128::from(self.seen_ms) - i128::from(self.paid)
    }

    /// What is always left over, so that whoever counts minutes a little differently comes to the same.
    fn a_minute(&self) -> i128 {
        i128::from(self.busiest) * i128::from(STRETCH_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK_MS: u64 = 5_000;

    /// Looks on end, with so many replicas where the rule would have had so many, while the load keeps `busy` of
    /// them busy.
    fn looks(bill: &mut Bill, from_s: u64, to_s: u64, replicas: u32, reference: u32, busy: u64) {
        let service = Service::default();
        for at_s in (from_s + 5..=to_s).step_by(5) {
            let work = busy * u64::from(service.slots) * TICK_MS;
            bill.pay(
                &service,
                &Spent { now_ms: at_s * 1000, dt_ms: TICK_MS, replicas, reference, work, service_ms: 2_000 },
            );
        }
    }

    #[test]
    fn what_was_saved_can_be_spent_and_what_is_owed_is_paid_back_while_it_is_quiet() {
        let mut bill = Bill::default();
        looks(&mut bill, 0, 295, 10, 10, 10);
        assert_eq!((bill.busiest(), bill.reaches()), (MOST_REPLICAS, MOST_REPLICAS), "it is too early to tell");
        looks(&mut bill, 295, 1_200, 10, 10, 10);
        // Ten were paid for all the time: a minute's is owed.
        assert_eq!((bill.keeps(false), bill.keeps(true), bill.reaches()), (10, 9, 10));
        looks(&mut bill, 1_200, 1_700, 9, 10, 0);
        assert_eq!(bill.keeps(true), 9);
        looks(&mut bill, 1_700, 2_500, 9, 10, 0);
        assert_eq!(bill.keeps(true), 10, "it is paid");
        looks(&mut bill, 2_500, 2_700, 1, 10, 0);
        // Nine times 200 seconds were saved, and some before: that is fifteen and more for two minutes.
        assert!((25..=31).contains(&bill.reaches()), "{}", bill.reaches());
    }

    #[test]
    fn who_pays_more_than_the_reactive_rule_rests_until_some_is_saved() {
        let mut bill = Bill::default();
        looks(&mut bill, 0, 3_000, 14, 10, 1);
        assert!(!bill.rests(), "half an hour is advanced, less a part for each that is seen");
        looks(&mut bill, 3_000, 4_500, 14, 10, 1);
        assert!(bill.rests());
        looks(&mut bill, 4_500, 4_800, 5, 10, 1);
        assert!(bill.rests(), "not at once");
        let over_s = (4_800..8_000).step_by(5).find(|at_s| {
            looks(&mut bill, *at_s, at_s + 5, 5, 10, 1);
            !bill.rests()
        });
        let over_s = over_s.expect("it is over some time") + 5;
        // Enough was saved for a few minutes.
        looks(&mut bill, over_s, over_s + 200, 20, 10, 1);
        assert!(!bill.rests());
        looks(&mut bill, over_s + 200, 8_000, 5, 10, 1);
        // After half a day nothing is advanced any more.
        looks(&mut bill, 8_000, 60_000, 9, 10, 1);
        assert!(!bill.rests());
        looks(&mut bill, 60_000, 160_000, 10, 10, 1);
        assert!(bill.rests(), "the whole of it is more than a part");
    }

    #[test]
    fn what_a_guess_makes_of_the_first_minutes_is_not_kept() {
        let look = |bill: &mut Bill, service: &Service, now_ms: u64| {
            let busy = if now_ms <= 120_000 { 90 } else { 10 };
            let work = busy * u64::from(service.slots) * TICK_MS;
            bill.pay(service, &Spent { now_ms, dt_ms: TICK_MS, replicas: 10, reference: 10, work, service_ms: 2_000 });
        };
        for (service_guessed, busiest) in [(true, 10), (false, 90)] {
            let (service, mut bill) = (Service { service_guessed, ..Service::default() }, Bill::default());
            (1..=120).for_each(|n| look(&mut bill, &service, n * TICK_MS));
            assert_eq!(bill.busiest(), busiest);
        }
    }

    #[test]
    fn looks_that_are_far_apart_make_no_busy_minute() {
        let (service, mut bill) = (Service::default(), Bill::default());
        // Always ten: at looks of forty seconds, then one that comes ten minutes late, then of five seconds.
        let mut now_ms = 0;
        for dt_ms in [40_000_u64; 20].into_iter().chain([600_000_u64]).chain([5_000_u64; 20]) {
            now_ms += dt_ms;
            let work = 10 * u64::from(service.slots) * dt_ms;
            bill.pay(&service, &Spent { now_ms, dt_ms, replicas: 10, reference: 10, work, service_ms: 2_000 });
        }
        assert_eq!(bill.busiest(), 10);
    }

    #[test]
    fn requests_that_take_longer_than_a_minute_are_not_served_in_one() {
        let (service, mut bill) = (Service::default(), Bill::default());
        // Those of four minutes come in one of them: ten replicas are busy with them all the time.
        for now_ms in (TICK_MS..=7_200_000).step_by(TICK_MS as usize) {
            let work = if now_ms % 240_000 < 60_000 { 4 * 10 * u64::from(service.slots) * TICK_MS } else { 0 };
            let spent = Spent { now_ms, dt_ms: TICK_MS, replicas: 10, reference: 10, work, service_ms: 240_000 };
            bill.pay(&service, &spent);
        }
        assert_eq!(bill.busiest(), 10);
    }

    #[test]
    fn who_stays_at_the_least_that_the_service_has_owes_nothing() {
        let (service, mut bill) = (Service { min: 2, ..Service::default() }, Bill::default());
        for now_ms in (TICK_MS..=12 * 3_600_000).step_by(TICK_MS as usize) {
            bill.pay(
                &service,
                &Spent { now_ms, dt_ms: TICK_MS, replicas: 2, reference: 2, work: 0, service_ms: 2_000 },
            );
            assert!(!bill.rests(), "{now_ms}");
        }
    }

    /// By sums that never fade, too.
    #[test]
    fn who_keeps_to_it_never_pays_more_than_for_the_busiest_minute() {
        let (service, mut bill) = (Service::default(), Bill::default());
        let (mut paid, mut always) = (0, 0);
        for at_s in (5..=86_400_u64).step_by(5) {
            let busy = if at_s % 1_800 < 900 { 10 } else { 0 };
            let replicas = bill.keeps(busy == 0).min(11);
            let work = busy * u64::from(service.slots) * TICK_MS;
            bill.pay(
                &service,
                &Spent { now_ms: at_s * 1000, dt_ms: TICK_MS, replicas, reference: 14, work, service_ms: 2_000 },
            );
            (paid, always) = (paid + u64::from(replicas) * 5, always + 10 * 5);
            assert!(at_s < 3_600 || paid < always, "{paid} of {always} at {at_s}");
        }
        assert!(paid * 1000 >= always * 995, "and hardly less: {paid} of {always}");
    }
}
