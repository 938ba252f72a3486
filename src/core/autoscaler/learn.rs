//! How long a request really takes, by Little's law: requests in service, over
//! time, divided by requests that were done; and whether those who
//! wait too long leave. It does not decide anything.

use super::service::Service;
use super::signal::Sight;
use serde::{Deserialize, Serialize};

/// The configured time counts as so many requests, a guessed one as so many.
const PRIOR_DONE_M: (u64, u64) = (100_000, 4_000);

/// What was seen so long ago counts half.
const HALF_LIFE_MS: u64 = 900_000;

/// A learned time is believed up to this factor away from the configured one.
const FARTHEST: u64 = 32;

/// The longest that is believed where the configured time is a guess: an hour.
const LONGEST_MS: u64 = 3_600_000;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceTime {
    configured_ms: u64,
    /// What is believed at least, and at most.
    bounds_ms: (u64, u64),
    /// What the configured time counts as, in thousandths of a request.
    prior_m: u64,
    /// Thousandths of a request times milliseconds.
    busy: u128,
    /// Thousandths of a request.
    done_m: u128,
    /// Running and waiting at the last sight.
    before: Option<(u64, u64)>,
}

impl ServiceTime {
    pub fn new(configured_ms: u64, guessed: bool) -> Self {
        let (prior_m, bounds_ms) = match guessed {
            true => (PRIOR_DONE_M.1, (1, LONGEST_MS.max(configured_ms))),
            false => (PRIOR_DONE_M.0, ((configured_ms / FARTHEST).max(1), configured_ms * FARTHEST)),
        };
        let done_m = u128::from(prior_m);
        Self { configured_ms, bounds_ms, prior_m, busy: done_m * u128::from(configured_ms), done_m, before: None }
    }

    pub fn ms(&self) -> u64 {
        // Rounded up: of five milliseconds a half is a tenth.
        let ms = u64::try_from(self.busy.div_ceil(self.done_m.max(1))).unwrap_or(self.configured_ms);
        ms.clamp(self.bounds_ms.0, self.bounds_ms.1)
    }

    /// A sight without a gap before it. Where waiting requests may leave, what left was not done, so nothing
    /// is learned while any wait.
    pub fn seen(&mut self, dt_ms: u64, running_m: u64, queue_m: u64, arrivals_m: u64, leaving: bool) {
        let Some((running, queue)) = self.before.replace((running_m, queue_m)) else { return };
        let both = running + running_m;
        let waiting = (queue_m + queue) * 20 > both;
        // While it fills or empties, the mean of both ends says little about what was between.
        let moving = running.abs_diff(running_m) * 8 > both + 16_000;
        if moving || (waiting && (leaving || queue == 0 || queue_m == 0)) {
            return;
        }
        let Some(done) = (running + queue + arrivals_m).checked_sub(running_m + queue_m) else { return };
        let (mut busy, mut done) = (u128::from(both / 2) * u128::from(dt_ms), u128::from(done));
        // No single sight is worth more than a quarter of all before it.
        let most = self.done_m / 4 + 1;
        if done > most {
            (busy, done) = (busy * most / done, most);
        }
        let keep = 1_000_000 - u128::from((dt_ms * 693_000 / HALF_LIFE_MS).min(500_000));
        let floor = u128::from(self.prior_m) / 4;
        if self.done_m > floor {
            self.busy = self.busy * keep / 1_000_000;
            self.done_m = (self.done_m * keep / 1_000_000).max(1);
        }
        self.done_m += done;
        // What is not believed is not kept either, or it would take as long to be unlearned.
        self.busy = (self.busy + busy).min(self.done_m * u128::from(self.bounds_ms.1));
    }

    /// The thread is lost: what comes next is not compared with what was before.
    pub fn gap(&mut self) {
        self.before = None;
    }
}

/// Whether who waits too long leaves: more went than could have been served.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Leaving {
    /// Inside and ready at the last sight.
    before: Option<(u64, u32)>,
    times: u32,
    /// Time with somebody waiting, since it was seen last.
    patient_ms: u64,
}

/// So often it must be seen.
const LEAVING_TIMES: u32 = 3;
/// Who has waited for so long all together, and nobody left: they are others now.
const PATIENT_MS: u64 = 900_000;

impl Leaving {
    /// A sight of a part says nothing of who left.
    pub fn seen(&mut self, service: &Service, service_ms: u64, sight: &Sight) {
        let whole = sight.doubt.is_none().then_some(());
        let seen = whole.and_then(|()| Some((sight.queue_m?, sight.running_m?, sight.ready?)));
        let Some((queue, running, ready)) = seen else {
            self.before = None;
            return;
        };
        let inside = queue + running;
        let Some((was, had)) = self.before.replace((inside, ready)) else { return };
        let came = was.saturating_add(sight.arrivals_m.unwrap_or(0));
        let gone = came.saturating_sub(inside);
        let slots = service.slots_m(had.max(ready));
        let served = slots.saturating_mul(sight.dt_ms) / service_ms.max(1);
        // Half more than the model says, and everything that ran at once.
        if queue > 1000 && gone > served.saturating_mul(3) / 2 + slots {
            self.times = self.times.saturating_add(1);
            self.patient_ms = 0;
        } else if queue > 1000 {
            self.patient_ms = self.patient_ms.saturating_add(sight.dt_ms);
            if self.patient_ms >= PATIENT_MS {
                *self = Self { before: self.before, ..Self::default() };
            }
        }
    }

    pub fn told(&self) -> bool {
        self.times >= LEAVING_TIMES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autoscaler::Why;

    #[test]
    fn the_real_time_is_learned() {
        let mut time = ServiceTime::new(2_000, false);
        for _ in 0..1_000 {
            // 10 requests a second of three seconds each.
            time.seen(5_000, 30_000, 0, 50_000, false);
        }
        assert!(time.ms().abs_diff(3_000) < 30, "{}", time.ms());
    }

    #[test]
    fn where_the_time_is_a_guess_any_other_is_learned_and_soon() {
        for (real_ms, rate_m) in [(5, 300_000), (35_000, 3_000), (300_000, 200)] {
            let mut time = ServiceTime::new(1_000, true);
            for _ in 0..240 {
                // Little's law: so many are in service at that rate.
                time.seen(5_000, rate_m * real_ms / 1000, 0, rate_m * 5, false);
            }
            assert!(time.ms().abs_diff(real_ms) <= real_ms / 10 + 1, "{real_ms} ms: {} in twenty minutes", time.ms());
        }
        let mut told = ServiceTime::new(1_000, false);
        (0..240).for_each(|_| told.seen(5_000, 60_000, 0, 15_000, false));
        assert!(told.ms().abs_diff(20_000) <= 2_000, "who said so meant something else: {} ms", told.ms());
        (0..240).for_each(|_| told.seen(5_000, 300_000, 0, 15_000, false));
        assert_eq!(told.ms(), 32_000, "but not of another world");
    }

    #[test]
    fn short_requests_that_most_looks_miss_are_learned_too() {
        for (real_ms, rate_m) in [(20, 3_000), (100, 3_000), (100, 400)] {
            let mut time = ServiceTime::new(1_000, true);
            let mut random = 7_u64;
            for _ in 0..720 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // One runs at so many of a million looks.
                let runs = (random >> 33) % 1_000_000 < rate_m * real_ms / 1000 * 1000;
                time.seen(5_000, u64::from(runs) * 1000, 0, rate_m * 5, false);
            }
            assert!(time.ms().abs_diff(real_ms) <= real_ms / 2, "{real_ms} ms: {} in an hour", time.ms());
        }
    }

    #[test]
    fn a_service_that_fills_up_or_is_full_does_not_mislead() {
        let mut time = ServiceTime::new(2_000, false);
        time.seen(15_000, 0, 0, 0, false);
        time.seen(15_000, 320_000, 0, 3_200_000, false);
        assert_eq!(time.ms(), 2_000, "from nothing to everything in one tick");
        for k in 1..100 {
            // 288 slots that are all busy, three seconds each, while the line grows.
            time.seen(15_000, 288_000, k * 320_000, 1_760_000, false);
        }
        assert!(time.ms().abs_diff(3_000) < 60, "{}", time.ms());
    }

    #[test]
    fn impatience_is_believed_until_others_wait() {
        let service = Service { slots: 10, ..Service::default() };
        let sight = |queue: u64, arrivals: u64| Sight {
            dt_ms: 5_000,
            ready: Some(1),
            queue_m: Some(queue * 1000),
            running_m: Some(10_000),
            arrivals_m: Some(arrivals * 1000),
            ..Sight::default()
        };
        let mut leaving = Leaving::default();
        // Two hundred came, and are neither waiting nor served.
        (0..5).for_each(|_| leaving.seen(&service, 2_000, &sight(40, 200)));
        assert!(leaving.told());
        // Nobody waits: that says nothing.
        (0..10_000).for_each(|_| leaving.seen(&service, 2_000, &sight(0, 20)));
        assert!(leaving.told());
        // Who waits now stays.
        (0..170).for_each(|_| leaving.seen(&service, 2_000, &sight(40, 25)));
        assert!(leaving.told());
        (0..20).for_each(|_| leaving.seen(&service, 2_000, &sight(40, 25)));
        assert!(!leaving.told());
        // What is seen of a part is no sign of anything.
        let part = Sight { doubt: Some(Why::MissingSignal), ..sight(40, 200) };
        (0..20).for_each(|_| leaving.seen(&service, 2_000, &part));
        assert!(!leaving.told());
    }

    #[test]
    fn what_waits_and_gives_up_teaches_nothing() {
        let mut time = ServiceTime::new(2_000, false);
        for _ in 0..1_000 {
            time.seen(5_000, 30_000, 20_000, 500_000, true);
        }
        assert_eq!(time.ms(), 2_000);
    }
}
