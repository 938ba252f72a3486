//! How long a request really takes, by Little's law: requests in service, over
//! time, divided by requests that were done; and whether those who
//! wait too long leave. It does not decide anything.

use super::service::Service;
use super::signal::Sight;

/// The configured time counts as so many requests.
const PRIOR_DONE_M: u64 = 100_000;

/// What was seen so long ago counts half.
const HALF_LIFE_MS: u64 = 900_000;

/// A learned time is believed up to this factor away from the configured one.
const FARTHEST: u64 = 8;

#[derive(Clone, Debug)]
pub struct ServiceTime {
    configured_ms: u64,
    /// Thousandths of a request times milliseconds.
    busy: u128,
    /// Thousandths of a request.
    done_m: u128,
    /// Running and waiting at the last sight.
    before: Option<(u64, u64)>,
}

impl ServiceTime {
    pub fn new(configured_ms: u64) -> Self {
        let done_m = u128::from(PRIOR_DONE_M);
        Self { configured_ms, busy: done_m * u128::from(configured_ms), done_m, before: None }
    }

    pub fn ms(&self) -> u64 {
        let ms = u64::try_from(self.busy / self.done_m.max(1)).unwrap_or(self.configured_ms);
        ms.clamp((self.configured_ms / FARTHEST).max(1), self.configured_ms * FARTHEST)
    }

    /// A sight without a gap before it. While requests wait, some may give up, and what gave up was not
    /// done: nothing is learned then.
    pub fn seen(&mut self, dt_ms: u64, running_m: u64, queue_m: u64, arrivals_m: u64) {
        let Some((running, queue)) = self.before.replace((running_m, queue_m)) else { return };
        if (queue_m + queue) * 20 > running_m + running || running_m + running == 0 {
            return;
        }
        let Some(done) = (running + queue + arrivals_m).checked_sub(running_m + queue_m) else { return };
        let keep = 1_000_000 - u128::from((dt_ms * 693_000 / HALF_LIFE_MS).min(500_000));
        let floor = u128::from(PRIOR_DONE_M) / 4;
        if self.done_m > floor {
            self.busy = self.busy * keep / 1_000_000;
            self.done_m = (self.done_m * keep / 1_000_000).max(1);
        }
        self.busy += u128::from((running + running_m) / 2) * u128::from(dt_ms);
        self.done_m += u128::from(done);
    }

    /// The thread is lost: what comes next is not compared with what was before.
    pub fn gap(&mut self) {
        self.before = None;
    }
}

/// Whether who waits too long leaves: more went than could have been served.
#[derive(Clone, Debug, Default)]
pub struct Leaving {
    /// Inside and ready at the last sight.
    before: Option<(u64, u32)>,
    times: u32,
}

/// So often it must be seen.
const LEAVING_TIMES: u32 = 3;

impl Leaving {
    pub fn seen(&mut self, service: &Service, service_ms: u64, sight: &Sight) {
        let (Some(queue), Some(running), Some(ready)) = (sight.queue_m, sight.running_m, sight.ready) else {
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
        }
    }

    pub fn told(&self) -> bool {
        self.times >= LEAVING_TIMES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_time_is_learned() {
        let mut time = ServiceTime::new(2_000);
        for _ in 0..1_000 {
            // 10 requests a second of three seconds each.
            time.seen(5_000, 30_000, 0, 50_000);
        }
        assert!(time.ms().abs_diff(3_000) < 30, "{}", time.ms());
    }

    #[test]
    fn what_waits_and_gives_up_teaches_nothing() {
        let mut time = ServiceTime::new(2_000);
        for _ in 0..1_000 {
            time.seen(5_000, 30_000, 20_000, 500_000);
        }
        assert_eq!(time.ms(), 2_000);
    }
}
