//! Where requests for one model are given to its replicas: to the one with least to
//! do, to the one that knows the beginning where that costs nothing, and to none
//! beyond its slots. Counts everything it sees. It knows no HTTP.

use super::table::{Endpoint, Who};
use crate::exchange::Sight;
use crate::exchange::sights::{BUCKETS, bucket_of};
use crate::telemetry::Metrics;
use nf_core::id::{ModelId, TenantId};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// A replica that could not be reached gets nothing for so long.
const SHUNNED: Duration = Duration::from_secs(1);
/// Between two words to the group that a service is wanted.
const WAKES: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Counts {
    arrived: u64,
    failed: u64,
    waiting: u32,
    running: u32,
    answered: Vec<u64>,
    busy: BTreeMap<Who, u32>,
    shunned: BTreeMap<Who, Instant>,
    woken: Option<Instant>,
}

impl Default for Counts {
    fn default() -> Self {
        let (busy, shunned) = (BTreeMap::new(), BTreeMap::new());
        let answered = vec![0; BUCKETS];
        Self { arrived: 0, failed: 0, waiting: 0, running: 0, answered, busy, shunned, woken: None }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Desk {
    counts: Mutex<Counts>,
    freed: Notify,
}

impl Desk {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Numbers alone are changed under the lock: a panic leaves none half written.
        self.counts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Somebody has come.
    pub fn arrive(self: &Arc<Self>) -> Waiting {
        self.counts().arrived += 1;
        Waiting { desk: self.clone() }
    }

    /// A place may have become free.
    pub fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    pub fn failed(&self) {
        self.counts().failed += 1;
    }

    /// Whether it is time to say (again) that somebody waits.
    pub fn may_wake(&self) -> bool {
        let mut counts = self.counts();
        let due = counts.woken.is_none_or(|at| at.elapsed() >= WAKES);
        if due {
            counts.woken = Some(Instant::now());
        }
        due
    }

    /// A place with one of `endpoints`, if one has room.
    pub fn take(self: &Arc<Self>, endpoints: &[Endpoint], hint: u64, metrics: &Metrics) -> Option<Seat> {
        let now = Instant::now();
        let mut counts = self.counts();
        counts.shunned.retain(|_, until| *until > now);
        let load = |e: &Endpoint| counts.busy.get(&e.who).copied().unwrap_or(0);
        let free = |e: &&Endpoint| load(e) < e.slots && !counts.shunned.contains_key(&e.who);
        let least = endpoints.iter().filter(free).map(load).min()?;
        // One more than the least is no great wait, and a warm cache is worth it.
        let near = endpoints.iter().filter(free).filter(|e| load(e) <= least.saturating_add(1));
        let chosen = near.max_by_key(|e| weight(hint, e.who))?;
        *counts.busy.entry(chosen.who).or_default() += 1;
        counts.running += 1;
        metrics.gateway_running.inc();
        let (who, address) = (chosen.who, chosen.address.clone());
        drop(counts);
        Some(Seat { desk: self.clone(), who, address, since: now, metrics: metrics.clone() })
    }

    pub fn sight(&self, tenant: TenantId, model: ModelId) -> Sight {
        let counts = self.counts();
        Sight {
            tenant,
            model,
            arrived: counts.arrived,
            failed: counts.failed,
            waiting: counts.waiting,
            running: counts.running,
            answered: counts.answered.clone(),
        }
    }
}

/// Rendezvous hashing (Thaler and Ravishankar, 1998): who joins or leaves moves only its own share.
fn weight(hint: u64, who: Who) -> u64 {
    let mut hasher = DefaultHasher::new();
    (hint, who).hash(&mut hasher);
    hasher.finish()
}

/// A request that has come and has no place yet.
pub struct Waiting {
    desk: Arc<Desk>,
}

impl Waiting {
    pub fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    /// A place among those that are held; None when all are taken.
    pub fn hold(&self, most: u32, metrics: &Metrics) -> Option<Held> {
        let mut counts = self.desk.counts();
        if counts.waiting >= most {
            return None;
        }
        counts.waiting += 1;
        metrics.gateway_waiting.inc();
        Some(Held { desk: self.desk.clone(), metrics: metrics.clone() })
    }
}

/// Counted as waiting while it lives.
pub struct Held {
    desk: Arc<Desk>,
    metrics: Metrics,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.desk.counts().waiting -= 1;
        self.metrics.gateway_waiting.dec();
    }
}

/// A place with a replica, until it is dropped.
pub struct Seat {
    desk: Arc<Desk>,
    who: Who,
    pub address: Arc<str>,
    since: Instant,
    metrics: Metrics,
}

impl Seat {
    /// The replica could not be reached: others go first for a while.
    pub fn shun(&self) {
        self.desk.counts().shunned.insert(self.who, Instant::now() + SHUNNED);
    }

    /// The answer is complete.
    pub fn answered(&self) {
        let took = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.desk.counts().answered[bucket_of(took)] += 1;
    }

    pub fn failed(&self) {
        self.desk.failed();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        {
            let mut counts = self.desk.counts();
            counts.running -= 1;
            if let Some(busy) = counts.busy.get_mut(&self.who) {
                *busy -= 1;
                if *busy == 0 {
                    counts.busy.remove(&self.who);
                }
            }
        }
        self.metrics.gateway_running.dec();
        self.desk.freed.notify_one();
    }
}
