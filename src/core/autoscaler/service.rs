//! What the autoscaler is told about a service before any load comes: how many
//! requests a replica serves at once, how long one takes, how long a replica takes
//! to start, and between which numbers it may move. It does not know any signal.

use super::steps::Steps;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The most replicas a service may ask for; a larger maximum is a slip of the pen.
pub const MOST_REPLICAS: u32 = 100_000;

/// A service as its owner describes it. Times are milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// How often signals come.
    pub tick_ms: u64,
    /// From a decision to a ready replica, as configured; the real time is learned.
    pub cold_start_ms: u64,
    pub min: u32,
    pub max: u32,
    /// Requests that one replica serves at once.
    pub slots: u32,
    /// Bound on the time until a request starts to be served.
    pub wait_ms: u64,
    /// Bound on the 95th percentile of the time that requests take; 0: none was promised.
    #[serde(default)]
    pub promise_ms: u64,
    /// Typical time of one request; the real time is learned.
    pub service_ms: u64,
    /// Nobody said `service_ms`: it is a first guess, and what is learned counts however far it is from it.
    #[serde(default)]
    pub service_guessed: bool,
    /// Of one replica.
    pub gpus: u32,
    /// A replica is kept for so long after the last request, where zero is allowed.
    pub idle_ms: u64,
    /// After a change of leader nothing goes down for so long.
    pub settle_ms: u64,
    /// How fast the number of replicas may change.
    #[serde(default)]
    pub steps: Steps,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            tick_ms: 5_000,
            cold_start_ms: 90_000,
            min: 0,
            max: 100,
            slots: 16,
            wait_ms: 2_000,
            promise_ms: 0,
            service_ms: 2_000,
            service_guessed: false,
            gpus: 1,
            idle_ms: 600_000,
            settle_ms: 60_000,
            steps: Steps::default(),
        }
    }
}

/// A setting that can't be meant.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field} is {value}: {wants}")]
pub struct Unusable {
    pub field: &'static str,
    pub value: u64,
    pub wants: &'static str,
}

impl Service {
    /// Refuses what no service can be; everything else is served as it is.
    pub fn check(self) -> Result<Self, Unusable> {
        let day = 86_400_000;
        let bad = |field, value, wants| Err(Unusable { field, value, wants });
        if self.tick_ms == 0 || self.tick_ms > day {
            return bad("tick_s", self.tick_ms / 1000, "more than 0 and at most a day");
        }
        if self.cold_start_ms > day {
            return bad("cold_start_s", self.cold_start_ms / 1000, "at most a day");
        }
        if self.max == 0 || self.max > MOST_REPLICAS {
            return bad("max", self.max.into(), "1 to 100000");
        }
        if self.min > self.max {
            return bad("min", self.min.into(), "at most max");
        }
        if self.slots == 0 || self.slots > 1_000_000 {
            return bad("slots", self.slots.into(), "1 to 1000000");
        }
        if self.wait_ms > day {
            return bad("slo_ms", self.wait_ms, "at most a day");
        }
        if self.service_ms == 0 || self.service_ms > day {
            return bad("service_ms", self.service_ms, "more than 0 and at most a day");
        }
        Ok(self)
    }

    /// Thousandths of a slot that `replicas` have.
    pub fn slots_m(&self, replicas: u32) -> u64 {
        u64::from(replicas) * u64::from(self.slots) * 1000
    }
}

/// How many requests are in service at once, in thousandths, at `rate_m` thousandths of a request per second.
pub fn load_m(rate_m: u64, service_ms: u64) -> u64 {
    u64::try_from(u128::from(rate_m) * u128::from(service_ms) / 1000).unwrap_or(u64::MAX / 4)
}
