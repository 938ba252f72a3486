//! What an agent does not know of its node's earlier starts: it found none of their records. Whatever the group had
//! placed here before this start registered may still run, started by an agent or left by one that is gone, and its
//! guard may hold it as long as the last lease. So launches that must never run twice and were the node's before this
//! start wait until that lease is over. Those that were placed since are in no other start's slice, and wait for nobody.

use crate::exchange::vouch;
use nf_core::reconcile::{Desired, ReplicaId};
use std::collections::BTreeSet;

/// Between two beats that a leader answered within less than this, no majority was silent for so long that it vouches.
const UNLED_MS: u64 = vouch::SILENCE.as_millis() as u64 / 2;

/// See the module. Times by CLOCK_BOOTTIME.
#[derive(Clone, Debug, Default)]
pub struct Earlier {
    /// When the group's word came that it knows this start: no older one is granted a lease that begins later. And the
    /// end of the last time in which voters that heard no leader might have vouched for one.
    since_ms: Option<u64>,
    /// When the last beat was sent that a leader answered.
    answered_ms: Option<u64>,
    /// The longest lease that was granted since.
    lease_ms: Option<u64>,
    /// Exclusive replicas of the first slice.
    replicas: Option<BTreeSet<ReplicaId>>,
}

impl Earlier {
    pub fn registered(&mut self, now_ms: u64) {
        self.since_ms.get_or_insert(now_ms);
    }

    /// A beat that was sent at `sent_ms` was answered.
    pub fn granted(&mut self, sent_ms: u64, lease_ms: u64) {
        let before_ms = self.answered_ms.replace(sent_ms).or(self.since_ms);
        if before_ms.is_some_and(|before| sent_ms.saturating_sub(before) > UNLED_MS) {
            self.since_ms = Some(sent_ms.saturating_add(vouch::ANSWERED.as_millis() as u64));
        }
        self.lease_ms = self.lease_ms.max(Some(lease_ms));
    }

    /// A slice from after the registration.
    pub fn told(&mut self, desired: &Desired) {
        let exclusive = desired.replicas.iter().filter(|(_, want)| want.spec.constraints.exclusive);
        self.replicas.get_or_insert_with(|| exclusive.map(|(id, _)| *id).collect());
    }

    /// From when on no earlier start's replica lives, with `margin_ms` for the guard to end it. None: not known yet.
    pub fn over_ms(&self, margin_ms: u64) -> Option<u64> {
        Some(self.since_ms?.saturating_add(self.lease_ms?).saturating_add(margin_ms))
    }

    /// Whether an earlier start may have it, at whatever generation.
    pub fn may_have(&self, id: ReplicaId) -> bool {
        self.replicas.as_ref().is_none_or(|replicas| replicas.contains(&id))
    }
}
