//! What the members' gateways see of each model: requests that came, wait, run and
//! were answered, and how long that took. The leader asks every member, so that a
//! number is of one moment and nothing is remembered for those who are gone. It
//! does not decide what follows.

use super::message::Error;
use futures::future::BoxFuture;
use nf_core::autoscaler::source::{Series, Word};
use nf_core::id::{JobNo, MemberId, ModelId, NodeNo, Revision, TenantId};
use nf_core::slo::{Count, Window, Windows};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Models that one member tells of; those with the most requests, where there are more.
pub const MODELS: usize = 4096;
/// Latencies are counted in buckets; the last one has no upper end.
pub const BUCKETS: usize = 67;
/// What another build may send at most.
pub const MOST_BUCKETS: usize = 256;

/// Versions under trial of one model that one member tells of.
pub const TRIALS: usize = 16;

/// Upper ends in milliseconds: each a quarter more than the one before, from 1 ms to almost an hour.
const ENDS_MS: [u64; BUCKETS] = {
    let mut ends = [1; BUCKETS];
    let mut bucket = 1;
    while bucket < BUCKETS {
        let before: u64 = ends[bucket - 1];
        ends[bucket] = before + if before < 4 { 1 } else { before / 4 };
        bucket += 1;
    }
    ends
};

/// Upper end of a bucket in milliseconds; of one that this build does not have, that of its last.
pub fn bucket_end_ms(bucket: usize) -> u64 {
    ENDS_MS[bucket.min(BUCKETS - 1)]
}

/// The bucket of a latency.
pub fn bucket_of(ms: u64) -> usize {
    ENDS_MS.partition_point(|end| *end < ms).min(BUCKETS - 1)
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
    /// Answered, ever, by how long that took at the replica.
    pub answered: Vec<u64>,
    /// Of the last minutes, by how long callers waited for their answer.
    pub recent: Vec<u64>,
    /// How the service kept its promise to those who came here.
    pub windows: Windows,
    /// What became of the requests to each version of a job that goes from one to another, since it began.
    pub trials: Vec<(JobNo, Revision, Count)>,
}

/// What the leader's last look at one scaling job came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    pub tenant: TenantId,
    pub model: ModelId,
    /// Replicas that were wanted then.
    pub current: u32,
    /// Replicas that should be.
    pub desired: u32,
    /// The reason's token.
    pub why: String,
    /// What the signals lacked, in words.
    pub gap: Option<String>,
    /// How old the oldest signal was, in milliseconds; None where none has an age.
    pub age_ms: Option<u64>,
    /// Part of the replicas' KV caches that is in use, in thousandths.
    pub kv_m: Option<u64>,
    /// 95th percentile of the time to a first token, in milliseconds.
    pub first_token_ms: Option<u64>,
    /// It is told and not carried out.
    pub advisory: bool,
}

/// One member's sights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Chosen when the gateway started: under another one, counters began anew.
    pub epoch: u64,
    pub sights: Vec<Sight>,
    /// Of the member that leads; empty elsewhere.
    pub advice: Vec<Advice>,
}

/// The 95th percentile of counted latencies, in milliseconds: the upper end of its bucket. None without any.
pub fn p95_ms(counts: &[u64]) -> Option<u64> {
    // What another member says may be any number.
    let all: u128 = counts.iter().map(|count| u128::from(*count)).sum();
    let mut left = u64::try_from(all * 95 / 100).unwrap_or(u64::MAX);
    for (bucket, count) in counts.iter().enumerate() {
        if *count > left {
            return Some(bucket_end_ms(bucket));
        }
        left -= count;
    }
    None
}

/// All that could be learned at one moment.
#[derive(Clone, Debug, Default)]
pub struct Panorama {
    pub seen: Vec<(MemberId, Seen)>,
    /// Members that did not answer.
    pub silent: Vec<MemberId>,
    /// What replicas say of their own load, by node; known to the leader alone.
    pub told: BTreeMap<NodeNo, Word>,
    /// What a monitoring system beside the group says.
    pub measured: Measured,
}

/// What a monitoring system says of services' load inside their replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Measured {
    /// There is none.
    #[default]
    Nobody,
    /// It did not answer, or not with numbers.
    Silent,
    Said(BTreeMap<(TenantId, ModelId), Series>),
}

/// Asks it.
pub type Ask = Arc<dyn Fn() -> BoxFuture<'static, Measured> + Send + Sync>;

/// Fewer requests in five minutes say nothing of a service.
const FEW: u64 = 20;

impl Panorama {
    /// A service that, over the last five minutes and all members that answered, spends its error
    /// budget faster than it may.
    pub fn in_breach(&self) -> Option<(TenantId, ModelId)> {
        let mut sums: BTreeMap<(&TenantId, &ModelId), Count> = BTreeMap::new();
        for sight in self.seen.iter().flat_map(|(_, seen)| &seen.sights) {
            let sum = sums.entry((&sight.tenant, &sight.model)).or_default();
            *sum = sum.and(sight.windows[Window::FiveMinutes as usize]);
        }
        let burns = |count: &Count| count.requests() >= FEW && count.burn_rate_milli().is_some_and(|rate| rate > 1000);
        let found = sums.into_iter().find(|(_, count)| burns(count));
        found.map(|((tenant, model), _)| (tenant.clone(), model.clone()))
    }
}

impl Panorama {
    /// What became of the requests to each version under trial, at all members that answered.
    pub fn trials(&self) -> BTreeMap<(JobNo, Revision), Count> {
        let mut sums: BTreeMap<_, Count> = BTreeMap::new();
        for (job, revision, count) in self.seen.iter().flat_map(|(_, seen)| &seen.sights).flat_map(|s| &s.trials) {
            let sum = sums.entry((*job, *revision)).or_default();
            *sum = sum.and(*count);
        }
        sums
    }
}

/// Tells what this process sees.
pub type Lookout = Arc<dyn Fn() -> Seen + Send + Sync>;

/// Advice that nobody has renewed for so long is no longer told.
const STALE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Known {
    lookout: Option<Lookout>,
    advice: Option<(Instant, Vec<Advice>)>,
}

/// Where the gateway of this process can be asked, once there is one, and what its controller advises while it leads.
#[derive(Clone, Default)]
pub(super) struct Post(Arc<Mutex<Known>>);

impl Post {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Whole values are put in: a panic elsewhere leaves none half written.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn man(&self, lookout: Lookout) {
        self.known().lookout = Some(lookout);
    }

    /// Replaces what was advised before; None when this member leads no more.
    pub(super) fn advise(&self, advice: Option<Vec<Advice>>) {
        self.known().advice = advice.map(|mut advice| {
            advice.truncate(MODELS);
            (Instant::now(), advice)
        });
    }

    pub(super) fn look(&self) -> Result<Seen, Error> {
        let lookout = self.known().lookout.clone();
        let mut seen = lookout.ok_or_else(|| Error::Unavailable("no gateway runs here yet".into()))?();
        seen.sights.sort_by_key(|sight| std::cmp::Reverse(sight.arrived));
        seen.sights.truncate(MODELS);
        if let Some((at, advice)) = &self.known().advice
            && at.elapsed() < STALE
        {
            seen.advice = advice.clone();
        }
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
        assert!(ends[BUCKETS - 2] > 40 * 60_000, "{ends:?}");
        for ms in [0, 1, 2, 7, 100, 5_000, u64::MAX] {
            let bucket = bucket_of(ms);
            assert!(bucket == BUCKETS - 1 || ms <= ends[bucket]);
            assert!(bucket == 0 || ms > ends[bucket - 1]);
        }
    }

    #[test]
    fn a_service_breaks_its_promise_over_all_members_together() {
        let sight = |good, failed| Sight {
            tenant: TenantId::new("t1").unwrap(),
            model: ModelId::new("m1").unwrap(),
            arrived: 0,
            failed: 0,
            waiting: 0,
            running: 0,
            answered: vec![],
            recent: vec![],
            trials: vec![],
            windows: [Count { good, slow: 0, failed }; 5],
        };
        let seen = |sights: Vec<Sight>| {
            let seen = sights
                .into_iter()
                .zip(1..)
                .map(|(sight, member)| (MemberId(member), Seen { epoch: 1, sights: vec![sight], advice: vec![] }));
            Panorama { seen: seen.collect(), ..Panorama::default() }
        };
        assert_eq!(seen(vec![sight(95, 5), sight(100, 2)]).in_breach(), None);
        assert_eq!(seen(vec![sight(4, 15)]).in_breach(), None, "too few to say");
        assert_eq!(seen(vec![sight(10, 0), sight(9, 1)]).in_breach(), None, "one in twenty is allowed");
        let (tenant, model) = seen(vec![sight(10, 0), sight(9, 2)]).in_breach().unwrap();
        assert_eq!((tenant.as_str(), model.as_str()), ("t1", "m1"));
    }

    #[test]
    fn the_95th_percentile_is_the_end_of_its_bucket() {
        let mut counts = vec![0; BUCKETS];
        assert_eq!(p95_ms(&counts), None);
        counts[3] = 94;
        counts[20] = 6;
        assert_eq!(p95_ms(&counts), Some(bucket_end_ms(20)));
        counts[3] = 1000;
        assert_eq!(p95_ms(&counts), Some(bucket_end_ms(3)));
    }

    #[test]
    fn advice_is_told_with_the_sights_until_it_is_taken_back() {
        let post = Post::default();
        assert!(post.look().is_err());
        post.man(Arc::new(|| Seen { epoch: 1, sights: vec![], advice: vec![] }));
        let (tenant, model) = (TenantId::new("t1").unwrap(), ModelId::new("m1").unwrap());
        let advice = Advice {
            tenant,
            model,
            current: 1,
            desired: 2,
            why: "Load".into(),
            gap: None,
            age_ms: Some(5),
            kv_m: None,
            first_token_ms: None,
            advisory: false,
        };
        post.advise(Some(vec![advice.clone()]));
        assert_eq!(post.look().unwrap().advice, [advice]);
        post.advise(None);
        assert_eq!(post.look().unwrap().advice, []);
    }
}
