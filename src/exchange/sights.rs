//! What the members' gateways see of each model: requests that came, wait, run and
//! were answered, and how long that took. The leader asks every member, so that a
//! number is of one moment and nothing is remembered for those who are gone. It
//! does not decide what follows.

use super::message::Error;
use nf_core::id::{MemberId, ModelId, TenantId};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// Models that one member tells of; those with the most requests, where there are more.
pub const MODELS: usize = 4096;
/// Latencies are counted in buckets; the last one has no upper end.
pub const BUCKETS: usize = 48;

/// Upper end of a bucket in milliseconds: a quarter more than that of the one before, from 1 ms
/// to almost a minute.
pub fn bucket_end_ms(bucket: usize) -> u64 {
    (0..bucket).fold(1, |end: u64, _| end + (end / 4).max(1))
}

/// The bucket of a latency.
pub fn bucket_of(ms: u64) -> usize {
    (0..BUCKETS - 1).find(|bucket| ms <= bucket_end_ms(*bucket)).unwrap_or(BUCKETS - 1)
}

/// What one gateway has seen of one tenant's model since it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    pub tenant: TenantId,
    pub model: ModelId,
    /// Requests that came, ever.
    pub arrived: u64,
    /// Of these, answered with a server's error, or not at all.
    pub failed: u64,
    /// Wait now for a replica.
    pub waiting: u32,
    /// Are with a replica now.
    pub running: u32,
    /// Answered, ever, by how long that took.
    pub answered: Vec<u64>,
}

/// One member's sights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Chosen when the gateway started: under another one, counters began anew.
    pub epoch: u64,
    pub sights: Vec<Sight>,
}

/// All that could be learned at one moment.
#[derive(Clone, Debug, Default)]
pub struct Panorama {
    pub seen: Vec<(MemberId, Seen)>,
    /// Members that did not answer.
    pub silent: Vec<MemberId>,
}

/// Tells what this process sees.
pub type Lookout = Arc<dyn Fn() -> Seen + Send + Sync>;

/// Where the gateway of this process can be asked, once there is one.
#[derive(Clone, Default)]
pub(super) struct Post(Arc<Mutex<Option<Lookout>>>);

impl Post {
    pub(super) fn man(&self, lookout: Lookout) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(lookout);
    }

    pub(super) fn look(&self) -> Result<Seen, Error> {
        let lookout = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        let mut seen = lookout.ok_or_else(|| Error::Unavailable("no gateway runs here yet".into()))?();
        seen.sights.sort_by_key(|sight| std::cmp::Reverse(sight.arrived));
        seen.sights.truncate(MODELS);
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_grow_and_cover_everything() {
        let ends: Vec<u64> = (0..BUCKETS).map(bucket_end_ms).collect();
        assert!(ends.windows(2).all(|pair| pair[0] <= pair[1]), "{ends:?}");
        assert!(ends[BUCKETS - 2] > 10_000, "{ends:?}");
        for ms in [0, 1, 2, 7, 100, 5_000, u64::MAX] {
            let bucket = bucket_of(ms);
            assert!(bucket == BUCKETS - 1 || ms <= ends[bucket]);
            assert!(bucket == 0 || ms > ends[bucket - 1]);
        }
    }
}
