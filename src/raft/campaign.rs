//! Shortens the time without a leader: when the leader's connection ends, a member does not wait
//! for its whole election time-out but asks for votes as soon as the leader's lease is over.
//!
//! The hint is harmless when wrong: the pre-vote is refused while any voter's lease is valid. It
//! does not know why a connection ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver;
use tokio::sync::mpsc;

use super::shared::Shared;
use super::types::Vote;

/// Members try one after the other, so that the first one wins alone.
const BY_RANK: Duration = Duration::from_millis(15);
/// Pre-votes are asked again while the other voters' leases end; they heard the leader last.
const AGAIN: Duration = Duration::from_millis(20);
const TRIES: u32 = 8;

/// When a leader was last heard, in milliseconds since the member's start.
pub struct Contact {
    start: Instant,
    heard: AtomicU64,
}

impl Default for Contact {
    fn default() -> Self {
        Self { start: Instant::now(), heard: AtomicU64::new(0) }
    }
}

impl Contact {
    /// A message carried a leader's vote.
    pub fn heard(&self, vote: &Vote) {
        if vote.committed {
            let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.heard.fetch_max(now, Ordering::Relaxed);
        }
    }

    /// How long ago that was; since the start when never.
    pub fn silence(&self) -> Duration {
        let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(heard)
    }
}

/// Follows lost connections until their senders are gone.
pub async fn run(shared: Arc<Shared>, mut ended: mpsc::UnboundedReceiver<u64>) {
    while let Some(member) = ended.recv().await {
        if shared.leader() == Some(member) && member != shared.me.id.0 {
            campaign(&shared, member).await;
            // A dead leader's other connections end at the same moment.
            while ended.try_recv().is_ok() {}
        }
    }
}

/// This member's place among the voters that remain, by id; none for a learner.
fn rank(shared: &Shared, gone: u64) -> Option<u32> {
    let me = shared.me.id.0;
    let metrics = shared.raft.metrics();
    let metrics = metrics.borrow_watched();
    let membership = metrics.membership_config.membership();
    let mut voters = membership.voter_ids().filter(|id| *id != gone);
    let place = voters.position(|id| id == me)?;
    u32::try_from(place).ok()
}

async fn campaign(shared: &Shared, gone: u64) {
    let Some(rank) = rank(shared, gone) else {
        return;
    };
    let lease = shared.timing.election_max;
    for _ in 0..TRIES {
        let wait = (lease + BY_RANK * rank).saturating_sub(shared.contact.silence());
        tokio::time::sleep(wait).await;
        if shared.leader() != Some(gone) {
            return;
        }
        // It lives after all, on another connection.
        if shared.contact.silence() < lease {
            return;
        }
        tracing::info!(leader = gone, rank, "the leader's connection ended: asking for votes");
        if shared.raft.trigger().elect(true).await.is_err() {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}
