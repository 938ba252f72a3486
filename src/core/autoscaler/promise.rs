//! What a promised latency asks for beyond what the load does. Where requests take
//! longer than was promised while replicas are busy, each of them bears less than was
//! thought: so much a second, and so many replicas more. What takes too long however
//! many there are, more of them don't mend. It does not know why requests are slow.

use super::effort::Effort;
use super::fleet::Fleet;
use super::service::{MOST_REPLICAS, Service};
use super::signal::Sight;
use serde::{Deserialize, Serialize};

/// Latencies beyond the promise in so many sights in a row are no accident.
const LATE_SIGHTS: u32 = 3;
/// What a replica bears is thought to be a tenth more after an hour: requests change.
const RELAXES_MS: u64 = 36_000_000;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Promise {
    /// Requests a second that one replica serves within the promise, in millionths; None: nothing was seen that it
    /// could not.
    bears_u: Option<u64>,
    late: u32,
    /// Until then the last step has not shown what it does.
    until_ms: u64,
    /// The quickest 95th percentile so far.
    quickest_ms: Option<u64>,
    #[serde(default)]
    effort: Effort,
}

impl Promise {
    /// Replicas that the promise asks for while `rate_m` thousandths of a request come a second.
    pub fn wants(
        &mut self,
        service: &Service,
        fleet: &Fleet,
        now: u64,
        sight: &Sight,
        rate_m: u64,
        cold_ms: u64,
    ) -> u32 {
        if service.promise_ms == 0 {
            return 0;
        }
        if let Some(bears) = &mut self.bears_u {
            let relaxed = u128::from(*bears) * u128::from(sight.dt_ms) / u128::from(RELAXES_MS);
            *bears = bears.saturating_add(u64::try_from(relaxed).unwrap_or(u64::MAX));
        }
        if let Some(p95) = sight.p95_ms.filter(|p95| *p95 > 0) {
            self.judge(service, sight, p95);
        }
        // One step at a time: what is on its way is waited for.
        if self.late >= LATE_SIGHTS && now >= self.until_ms && fleet.starting() == 0 {
            self.step(service, fleet.ready, rate_m);
            self.until_ms = now.saturating_add(cold_ms.max(u64::from(LATE_SIGHTS) * service.tick_ms));
        }
        let wanted = self.bears_u.map_or(0, |bears| rate_m.saturating_mul(1000).div_ceil(bears.max(1)));
        u32::try_from(wanted).unwrap_or(MOST_REPLICAS).min(MOST_REPLICAS)
    }

    fn judge(&mut self, service: &Service, sight: &Sight, p95: u64) {
        let quickest = self.quickest_ms.map_or(p95, |quickest| quickest.min(p95));
        self.quickest_ms = Some(quickest);
        let sharing = sharing(service, sight);
        // While a backlog is worked off, requests are late for another reason.
        let late = is_above(service, p95) && sharing == Some(true) && sight.queue_m.is_some_and(|queue| queue <= 1000);
        self.late = if late { self.late.saturating_add(1) } else { 0 };
        // Nobody shares, and never was one quick enough: no number of replicas keeps that.
        if sharing == Some(false) && is_above(service, quickest) && self.bears_u.take().is_some() {
            self.effort.give_up(quickest);
        }
    }

    /// A tenth less for each replica, unless that has been in vain.
    fn step(&mut self, service: &Service, ready: u32, rate_m: u64) {
        let quickest = self.quickest_ms.unwrap_or(0);
        self.effort.step(quickest);
        if !is_above(service, quickest) {
            self.effort.forgive();
        }
        self.bears_u = (!self.effort.is_vain()).then(|| {
            let each = rate_m.saturating_mul(900) / u64::from(ready.max(1));
            self.bears_u.map_or(each, |bears| bears.min(each)).max(1)
        });
    }
}

/// Latencies are told by the upper ends of buckets that grow by a quarter: this one is above the promise for sure.
fn is_above(service: &Service, p95_ms: u64) -> bool {
    p95_ms > service.promise_ms.saturating_add(service.promise_ms / 4)
}

/// Whether replicas share their time among requests: more of them would help then.
fn sharing(service: &Service, sight: &Sight) -> Option<bool> {
    let (ready, running) = (sight.ready.filter(|ready| *ready > 0)?, sight.running_m?);
    Some(running.saturating_mul(2) >= u64::from(service.slots.min(3)) * 1000 * u64::from(ready))
}

#[cfg(test)]
mod tests {
    use crate::autoscaler::{Autoscaler, Reading, Service, Signals, Why};

    /// Two hours of so many requests a second that take `alone_ms`, and `beside_ms` more for each one beside them.
    /// How many replicas there were at each look, and whether the promise was kept.
    fn play(rate: u64, promise_ms: u64, alone_ms: u64, beside_ms: u64) -> (Vec<u32>, Vec<bool>, Vec<Why>) {
        let service = Service {
            min: 1,
            slots: 32,
            cold_start_ms: 20_000,
            service_guessed: true,
            promise_ms,
            ..Service::default()
        };
        let mut scaler = Autoscaler::new(service).unwrap();
        let (mut replicas, mut kept, mut why) = (vec![1_u32], Vec::new(), Vec::new());
        for k in 1..1_440_u64 {
            // Those of four looks ago are ready.
            let all = *replicas.last().unwrap();
            let ready = replicas[replicas.len().saturating_sub(4)].min(all);
            // By Little's law: n = rate × (alone + (n − 1) × beside), for each replica.
            let rate_m = rate * 1000 / u64::from(ready);
            let share_m = 1_000_000_u64.saturating_sub(rate_m * beside_ms).max(20_000);
            let each_m = (rate_m * alone_ms / 1000) * 1_000_000 / share_m;
            let p95 = alone_ms + each_m.saturating_sub(1000) * beside_ms / 1000;
            let decision = scaler.step(&Signals {
                at_ms: k * 5_000,
                ready: Reading::of(ready.into()),
                starting: Reading::of((all - ready).into()),
                draining: Reading::of(0),
                queue: Reading::of(0),
                running: Reading::of_milli(each_m * u64::from(ready)),
                arrivals: Reading::of(rate * 5),
                p95_ms: Reading::of(p95),
                ..Signals::default()
            });
            replicas.push(decision.desired);
            kept.push(p95 <= promise_ms * 5 / 4);
            why.push(decision.why);
        }
        (replicas, kept, why)
    }

    #[test]
    fn a_promise_that_more_replicas_can_keep_is_kept_and_stays_kept() {
        let (without, ..) = play(12, 0, 300, 50);
        let (replicas, kept, why) = play(12, 400, 300, 50);
        let (last, usual) = (*replicas.last().unwrap(), *without.last().unwrap());
        assert!(last > usual && last <= 6, "{last}, without a promise {usual}: {:?}", &replicas[..60]);
        let late = kept[360..].iter().filter(|kept| !**kept).count();
        assert!(late * 50 <= kept.len() - 360, "{late} late looks: {:?}", &replicas[360..]);
        assert!(why.contains(&Why::LatencyExceeded));
    }

    #[test]
    fn a_promise_that_nothing_can_keep_is_not_paid_for() {
        let (without, ..) = play(12, 0, 900, 50);
        let (replicas, ..) = play(12, 600, 900, 50);
        let (most, usual) = (*replicas.iter().max().unwrap(), *without.iter().max().unwrap());
        assert!(most <= usual + 8, "{most} of {usual}: {:?}", &replicas[..60]);
        assert_eq!(replicas.last(), without.last(), "it gives up: {:?}", &replicas[..60]);
    }

    #[test]
    fn who_is_slow_with_one_request_at_a_time_needs_no_more() {
        assert_eq!(play(1, 600, 900, 50).0, play(1, 0, 900, 50).0);
    }
}
