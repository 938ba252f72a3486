//! The autoscaler: signals in, a number of replicas and its reason out. Pure and in
//! integers, so that the same signals give the same decisions for ever, wherever
//! they are played again. It tracks what comes (not how busy replicas are), looks
//! one cold start ahead, goes up at once and down late, and holds when it is not
//! sure of what it sees. It does not know where signals come from, nor what carries
//! its decisions out.

pub mod bill;
pub mod choice;
pub mod day;
pub mod decision;
mod effort;
pub mod fleet;
pub mod joint;
pub mod journal;
pub mod learn;
pub mod learned;
mod past;
pub mod plan;
pub mod promise;
pub mod recur;
#[doc(hidden)]
pub mod replay;
pub mod service;
pub mod settle;
pub mod shadow;
pub mod signal;
mod slowness;
pub mod source;
pub mod staffing;
pub mod steps;
pub mod strain;
pub mod trend;
pub mod why;

pub use decision::{Decision, Inputs};
pub use learned::Learned;
pub use service::{Service, Unusable};
pub use settle::{Limits, Wish};
pub use signal::{Gap, Reading, Signals};
pub use steps::Steps;
pub use why::Why;

use choice::{Choice, Moment};
use day::Day;
use fleet::{ColdStart, Fleet};
use learn::{Leaving, ServiceTime};
use plan::{Care, Driver, Outlook};
use promise::Promise;
use recur::{Recurrence, WAYS};
use serde::{Deserialize, Serialize};
use shadow::Feed;
use signal::{Intake, Sight};
use slowness::Slowness;
use staffing::Staffing;
use steps::Strides;
use trend::Trend;

/// Of a million requests, so many may wait too long by chance alone.
const LATE_PPM: u64 = 4_000;

/// What nobody has counted for so long is not known.
const UNCOUNTED_MS: u64 = 60_000;
/// There a backlog is to be gone so soon after a cold start.
const UNHURRIED_MS: u64 = 120_000;

/// Scales one service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Autoscaler {
    service: Service,
    limits: Limits,
    staffing: Staffing,
    intake: Intake,
    trend: Trend,
    time: ServiceTime,
    cold: ColdStart,
    fleet: Fleet,
    recur: Recurrence,
    day: Day,
    choice: Option<Choice>,
    leaving: Leaving,
    #[serde(default)]
    strides: Strides,
    desired: Option<u32>,
    began_ms: Option<u64>,
    busy_ms: u64,
    #[serde(default)]
    slowness: Slowness,
    #[serde(default)]
    strain: strain::Strain,
    promise: Promise,
    clock_ms: u64,
    arrivals_m: u64,
    /// What came, thousandths a second, when the signals were whole last; None while they are.
    whole_m: Option<u64>,
    /// What waited at the last sight; None: nobody said.
    #[serde(default)]
    waited_m: Option<u64>,
    /// When somebody said last how many came.
    #[serde(default)]
    counted_ms: Option<u64>,
}

impl Autoscaler {
    pub fn new(service: Service) -> Result<Self, Unusable> {
        let service = service.check()?;
        Ok(Self {
            service,
            limits: Limits::default(),
            staffing: Staffing::new(service.service_ms, service.wait_ms, LATE_PPM),
            intake: Intake::default(),
            trend: Trend::default(),
            time: ServiceTime::new(service.service_ms, service.service_guessed),
            cold: ColdStart::new(service.cold_start_ms),
            fleet: Fleet::default(),
            recur: Recurrence::default(),
            day: Day::default(),
            choice: None,
            leaving: Leaving::default(),
            strides: Strides::default(),
            desired: None,
            began_ms: None,
            busy_ms: 0,
            slowness: Slowness::default(),
            strain: strain::Strain::default(),
            promise: Promise::default(),
            clock_ms: 0,
            arrivals_m: 0,
            whole_m: None,
            waited_m: None,
            counted_ms: None,
        })
    }

    pub fn service(&self) -> &Service {
        &self.service
    }

    /// How long a start takes, as far as that has been seen.
    pub fn cold_start_ms(&self) -> u64 {
        self.cold.ms()
    }

    /// So many are wanted now, whoever said so: an earlier decision may have been lost, or
    /// overtaken by somebody else's. The next one starts from here.
    pub fn stands_at(&mut self, replicas: u32) {
        self.desired = Some(replicas);
    }

    /// One look and one decision, within the limits that were said last.
    pub fn step(&mut self, signals: &Signals) -> Decision {
        let wish = self.wish(signals);
        self.decide(wish)
    }

    /// One look, and what it would come to without limits. To be followed by [`Self::decide`].
    pub fn wish(&mut self, signals: &Signals) -> Wish {
        let Some(sight) = self.intake.look(&self.service, signals, self.time.ms()) else {
            return self.hold_on(Why::StaleSignal, signals);
        };
        let now = signals.at_ms;
        self.clock_ms = now;
        self.began_ms.get_or_insert(now);
        self.learn(now, &sight);
        let outlook = self.outlook();
        self.choose(now, &sight, &outlook);
        let Some(choice) = &self.choice else { return self.hold_on(Why::MissingSignal, signals) };
        let (care, need, held) = (choice.chosen().care, choice.chosen().need, choice.held());
        let driver = plan::need(&self.service, &self.staffing, &care, &outlook).1;
        // Where nobody waits for long, there is no backlog to work off. Where nobody counts what comes, nothing goes down
        // again: no more than must be goes up in a hurry.
        let waiting = sight.queue_m.filter(|_| !self.leaving.told());
        let counted = self.counted_ms.is_some_and(|at| now < at.saturating_add(UNCOUNTED_MS));
        let care = Care { clear_ms: if counted { care.clear_ms } else { UNHURRIED_MS }, ..care };
        let backlog =
            waiting.map_or(0, |queue| plan::backlog_need(&self.service, &care, &outlook, &self.fleet, queue, now));
        // Help for a backlog is paid from what was saved; what is on its way already is not called back.
        let backlog = backlog.min(choice.bill.reaches().max(self.fleet.total()));
        let care = choice.index();
        let slow = slowness::Now {
            at_ms: now,
            usual_ms: 3 * outlook.service_ms,
            wait_ms: self.service.wait_ms,
            replicas: self.fleet.total(),
            cold_ms: self.cold.ms(),
        };
        let slow = self.slowness.wants(&slow, &sight);
        let slow =
            slow.max(self.promise.wants(&self.service, &self.fleet, now, &sight, outlook.level.now_m, self.cold.ms()));
        let strain = self.strained(now, &sight);
        let wanted = held.max(backlog).max(slow).max(strain);
        let mut inputs = self.inputs(signals, &sight, &outlook);
        (inputs.need, inputs.held, inputs.backlog, inputs.wanted) = (need, held, backlog, wanted);
        inputs.care = care;
        let why = match driver {
            _ if strain > held.max(backlog).max(slow) => strain::why(&sight),
            _ if slow > held.max(backlog) => Why::LatencyExceeded,
            _ if backlog > held => Why::QueueDepth,
            Driver::Now => Why::QueueDepth,
            Driver::Ahead | Driver::Season => Why::Forecast,
        };
        self.wishes(now, sight.doubt, wanted, why, inputs)
    }

    /// Signals that are no news: everything stays as it is.
    fn hold_on(&mut self, why: Why, signals: &Signals) -> Wish {
        let before = self.desired.unwrap_or_else(|| {
            let seen = signals.ready.whole().unwrap_or(0).saturating_add(signals.starting.whole().unwrap_or(0));
            seen.clamp(self.service.min, self.service.max)
        });
        self.desired = Some(before);
        let inputs = self.inputs(signals, &Sight::default(), &self.outlook());
        Wish::no_news(before, why, inputs)
    }

    fn learn(&mut self, now: u64, sight: &Sight) {
        let arrivals = self.came(sight);
        self.counted_ms = sight.arrivals_m.map(|_| now).or(self.counted_ms);
        self.trend.push(now, sight.dt_ms, arrivals);
        self.recur.push(now, sight.dt_ms, arrivals, &self.trend.level());
        self.day.push(now, arrivals);
        self.arrivals_m = arrivals;
        self.leaving.seen(&self.service, self.time.ms(), sight);
        match (sight.doubt.is_none() && !sight.uncounted, sight.running_m, sight.queue_m) {
            (true, Some(running), Some(queue)) => {
                self.time.seen(sight.dt_ms, running, queue, arrivals, self.leaving.told());
            }
            _ => self.time.gap(),
        }
        self.staffing.follow(self.time.ms());
        if let (Some(ready), Some(starting)) = (sight.ready, sight.starting) {
            self.cold.seen(now, ready);
            self.cold.unplaced(now, sight.unplaced);
            self.fleet.correct(ready, starting, now + self.cold.ms(), now);
        } else {
            self.fleet.arrive(now);
        }
        self.idles(now, sight);
    }

    /// The idle time of whoever may sleep begins anew with each request. What was not seen was neither one nor none: the
    /// clock stands still meanwhile.
    fn idles(&mut self, now: u64, sight: &Sight) {
        let counts = [sight.queue_m, sight.running_m, sight.arrivals_m];
        let unseen = sight.partial || counts.contains(&None);
        if counts.iter().flatten().any(|n| *n > 0) || (unseen && self.busy_ms == 0) {
            self.busy_ms = now;
        } else if unseen {
            self.busy_ms = self.busy_ms.saturating_add(sight.dt_ms);
        }
    }

    /// Thousandths of a request that came. Where nothing was heard, as many as before; where a part was heard,
    /// no fewer than when it was all. Where a part was not counted, as many as keep busy what runs: the load is
    /// right then, however long one request takes. Where none was, those and the ones that wait beside who waited before.
    fn came(&mut self, sight: &Sight) -> u64 {
        let usual = |rate_m: u64| rate_m.saturating_mul(sight.dt_ms) / 1000;
        let by_load = |running_m: u64| running_m.saturating_mul(sight.dt_ms) / self.time.ms().max(1);
        let waited = std::mem::replace(&mut self.waited_m, sight.queue_m);
        // Who waits beside a ready replica does so because it is busy, whether or not it says so.
        let full = || sight.ready.filter(|_| sight.queue_m > Some(1000)).map(|ready| self.service.slots_m(ready));
        let busy = || sight.running_m.filter(|running_m| *running_m > 0).or_else(full).or(sight.running_m);
        let longer = || Some(sight.queue_m?.saturating_sub(waited?));
        let seen = match sight.arrivals_m {
            Some(arrivals_m) if !sight.uncounted => Some(arrivals_m),
            Some(_) => sight.running_m.map(by_load),
            None => busy().zip(longer()).map(|(busy_m, longer_m)| by_load(busy_m) + longer_m),
        };
        let whole = sight.arrivals_m.is_some() && !sight.partial;
        match seen {
            None => usual(self.trend.level().now_m),
            Some(seen) if whole => {
                self.whole_m = None;
                seen
            }
            Some(seen) => {
                let whole = *self.whole_m.get_or_insert(self.trend.level().now_m);
                seen.max(usual(whole))
            }
        }
    }

    fn outlook(&self) -> Outlook {
        let level = self.trend.level();
        let lead_ms = self.cold.ms() + self.service.tick_ms;
        let recurring = (0..WAYS).map(|way| self.recur.ahead(self.clock_ms, lead_ms, way));
        let season_m = recurring.chain([self.day.ahead(self.clock_ms, lead_ms, level.now_m)]).collect();
        let outlived = self.recur.outlived(self.clock_ms, lead_ms);
        Outlook { level, ahead_m: level.ahead(lead_ms), season_m, outlived, service_ms: self.time.ms(), lead_ms }
    }

    /// Feeds the models of what would have been, and takes the care that fared best.
    fn choose(&mut self, now: u64, sight: &Sight, outlook: &Outlook) {
        let floor = self.floor(now, sight);
        let replicas = self.fleet.total();
        let first = replicas.max(1).clamp(self.service.min, self.service.max);
        let settling = self.settles(now);
        let known_m = self.day.full().map(|(_, rate_m)| rate_m).max().unwrap_or(0);
        let busiest = plan::carried_by(&self.service, known_m, outlook.service_ms);
        let choice = self.choice.get_or_insert_with(|| Choice::new(first, busiest));
        let feed = Feed {
            service: &self.service,
            now_ms: now,
            dt_ms: sight.dt_ms,
            arrivals_m: self.arrivals_m,
            service_ms: outlook.service_ms,
            impatient: self.leaving.told(),
            settling,
        };
        let moment = Moment { burst: !self.recur.quiet(), untried: self.recur.untried() };
        choice.step(&feed, &self.staffing, outlook, floor, replicas, moment);
    }

    /// It has not looked for long enough to take anything away.
    fn settles(&self, now: u64) -> bool {
        self.began_ms.is_some_and(|began| now < began.saturating_add(self.service.settle_ms))
    }

    /// One replica where anybody is there, or was a short while ago.
    fn floor(&self, now: u64, sight: &Sight) -> u32 {
        let waiting = sight.queue_m.is_some_and(|q| q > 0) || sight.running_m.is_some_and(|r| r > 0);
        let recent = self.busy_ms > 0 && now < self.busy_ms.saturating_add(self.service.idle_ms);
        u32::from(waiting || recent)
    }

    fn inputs(&self, signals: &Signals, sight: &Sight, outlook: &Outlook) -> Inputs {
        Inputs {
            at_ms: signals.at_ms,
            ready: sight.ready,
            starting: sight.starting,
            queue_m: sight.queue_m,
            running_m: sight.running_m,
            arrivals_m: sight.arrivals_m,
            p95_ms: sight.p95_ms,
            kv_m: sight.kv_m,
            first_token_ms: signals.first_token_ms.known().map(|m| m / 1000),
            rate_m: outlook.level.now_m,
            ahead_m: outlook.ahead_m,
            season_m: outlook.season_m.iter().copied().max().unwrap_or(0),
            service_ms: outlook.service_ms,
            cold_start_ms: self.cold.ms(),
            gap: signals.gap,
            ..Inputs::default()
        }
    }
}

#[cfg(test)]
mod tests;
