//! A disk that hangs: a sync that neither ends nor fails, as on a volume whose storage is away. The group
//! commits by what the others have synced, so such a leader would lead on, answer calls, and keep all that its
//! disk has yet to take in memory. It hands leadership over; and a member whose disk does not come back ends,
//! as it would after a sync that failed.

use super::membership::Change;
use super::shared::Shared;
use super::status::{MemberStatus, Role, Status};
use nf_core::id::MemberId;
use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LOOK: Duration = Duration::from_millis(500);
/// A leader whose disk has been at one sync for so long is no leader.
const SLOW: Duration = Duration::from_secs(2);
/// Whoever waits for so long has no disk.
const GONE: Duration = Duration::from_secs(60);
/// How long handing leadership over may take, and when it is tried again.
const HAND_OVER: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(10);

/// Runs until the member's runtime ends, also while Raft stops: that waits for the disk.
pub async fn watch_disk(shared: Arc<Shared>) {
    let mut tried: Option<Instant> = None;
    let mut sync = Sync::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let busy = sync.lasts(shared.disk.busy_since(), Instant::now());
        if busy >= GONE {
            shared.fatal.raise(&format!("the disk has been at one sync of the log for {} s", busy.as_secs()));
            return;
        }
        let status = shared.status();
        let leads = status.role == Role::Leader && !*shared.stop.borrow();
        if busy < SLOW || !leads || tried.is_some_and(|at| at.elapsed() < AGAIN) {
            continue;
        }
        tried = Some(Instant::now());
        let why = format!("this member's disk has been at one sync of the log for {} s", busy.as_secs());
        hand_over(&shared, &status, |_| true, &why).await;
    }
}

/// How long one sync has gone on, as far as this member saw it: one that stood still itself, stopped or in a paused
/// container, doesn't blame its disk for that.
#[derive(Default)]
struct Sync {
    began: Option<Instant>,
    lasted: Duration,
    looked: Option<Instant>,
}

impl Sync {
    fn lasts(&mut self, began: Option<Instant>, now: Instant) -> Duration {
        if began.is_none() || began != self.began {
            *self = Self { began, lasted: Duration::ZERO, looked: began };
        }
        let unseen = self.looked.map_or(Duration::ZERO, |looked| now.saturating_duration_since(looked));
        self.lasted += unseen.min(2 * LOOK);
        self.looked = Some(now);
        self.lasted
    }
}

/// Hands leadership to the voter that has most of the log, of those that `fits` lets in. Whether there was one.
pub async fn hand_over(shared: &Shared, status: &Status, fits: impl Fn(MemberId) -> bool, why: &str) -> bool {
    let others = status.members.iter().filter(|m| m.voter && m.id != status.id && fits(m.id));
    let best = others.max_by_key(|m: &&MemberStatus| (m.matched, Reverse(m.id)));
    let Some(best) = best else { return false };
    tracing::warn!(why, to = best.name, "handing leadership over");
    let made = shared.change_here(&Change::Transfer(best.id), Instant::now() + HAND_OVER).await;
    if let Err(failure) = made {
        tracing::warn!(?failure, "leadership was not handed over");
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_lasts_as_long_as_it_was_seen_to() {
        let mut sync = Sync::default();
        let began = Instant::now();
        let at = |looks: u32| began + LOOK * looks;
        assert_eq!(sync.lasts(None, at(0)), Duration::ZERO, "the disk is idle");
        let hung = (1..=120).map(|look| sync.lasts(Some(began), at(look))).collect::<Vec<_>>();
        assert_eq!((hung[3], hung[119]), (SLOW, GONE));
        assert_eq!(sync.lasts(None, at(121)), Duration::ZERO, "and is idle again");
    }

    #[test]
    fn who_stood_still_does_not_blame_the_disk() {
        let mut sync = Sync::default();
        let began = Instant::now();
        assert!(sync.lasts(Some(began), began + LOOK) <= LOOK);
        // Stopped for ten minutes in the middle of a sync, and looked at before the disk's own thread ran.
        assert!(sync.lasts(Some(began), began + Duration::from_secs(600)) < SLOW);
        let next = began + Duration::from_secs(601);
        assert!(sync.lasts(Some(next), next + LOOK) <= LOOK, "the next sync has a time of its own");
    }
}
