//! What is wrong with this process and does not stop it: told in its log, in /health and
//! as a metric, until it is over. It does not know what could be wrong.

use prometheus::{IntCounterVec, IntGaugeVec};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// A device did not become free in time.
pub const DEVICE_OCCUPIED: &str = "device_occupied";
/// A process of a replica survives KILL.
pub const PROCESS_STUCK: &str = "process_stuck";
/// A replica's record can't be read, so that its place is held.
pub const RECORD_UNREADABLE: &str = "record_unreadable";
/// Exclusive replicas wait until nothing of an earlier start can live.
pub const EXCLUSIVE_WAITS: &str = "exclusive_waits";
/// A copy of a model's file is not what its manifest says, in the store or on this node's disk.
pub const MODEL_COPY_CORRUPT: &str = "model_copy_corrupt";
/// A container carries this node's name, and nobody here knows the agent that started it.
pub const CONTAINER_UNKNOWN: &str = "container_unknown";
/// Kinds that are about what runs on this process' nodes.
pub const OF_AGENTS: [&str; 6] =
    [DEVICE_OCCUPIED, PROCESS_STUCK, RECORD_UNREADABLE, EXCLUSIVE_WAITS, MODEL_COPY_CORRUPT, CONTAINER_UNKNOWN];

/// Those that are on. Kinds are few and our own, so they bound the series, too.
pub struct Alarms {
    on: Mutex<BTreeSet<&'static str>>,
    now: IntGaugeVec,
    raised: IntCounterVec,
}

impl Alarms {
    pub fn new(now: IntGaugeVec, raised: IntCounterVec) -> Self {
        Self { on: Mutex::default(), now, raised }
    }

    /// Something of that kind is wrong. The text is for the log alone: anybody may read /health.
    pub fn raise(&self, kind: &'static str, text: &str) {
        tracing::error!(kind, text, "alarm");
        self.raised.with_label_values(&[kind]).inc();
        self.now.with_label_values(&[kind]).set(1);
        self.on.lock().unwrap_or_else(PoisonError::into_inner).insert(kind);
    }

    /// It is well again.
    pub fn clear(&self, kind: &'static str) {
        self.now.with_label_values(&[kind]).set(0);
        if self.on.lock().unwrap_or_else(PoisonError::into_inner).remove(kind) {
            tracing::info!(kind, "the alarm is over");
        }
    }

    /// The kinds that are on.
    pub fn on(&self) -> Vec<&'static str> {
        self.on.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}
