//! What an agent does not know of its node's earlier starts: it found none of their records. Whatever the group had
//! placed here before this start registered may still run, started by an agent or left by one that is gone, and its
//! guard may hold it as long as the last lease. So launches that must never run twice and were the node's before this
//! start wait until that lease is over. Those that were placed since are in no other start's slice, and wait for nobody.

use nf_core::reconcile::{Desired, ReplicaId};
use std::collections::BTreeSet;

/// See the module. Times by CLOCK_BOOTTIME.
#[derive(Clone, Debug, Default)]
pub struct Earlier {
    /// When the group's word came that it knows this start: no older one is granted a lease that begins later.
    registered_ms: Option<u64>,
    /// The longest lease that was granted since.
    lease_ms: Option<u64>,
    /// Exclusive replicas of the first slice.
    replicas: Option<BTreeSet<ReplicaId>>,
}

impl Earlier {
    pub fn registered(&mut self, now_ms: u64) {
        self.registered_ms.get_or_insert(now_ms);
    }

    pub fn granted(&mut self, lease_ms: u64) {
        self.lease_ms = self.lease_ms.max(Some(lease_ms));
    }

    /// A slice from after the registration.
    pub fn told(&mut self, desired: &Desired) {
        let exclusive = desired.replicas.iter().filter(|(_, want)| want.spec.constraints.exclusive);
        self.replicas.get_or_insert_with(|| exclusive.map(|(id, _)| *id).collect());
    }

    /// From when on no earlier start's replica lives, with `margin_ms` for the guard to end it. None: not known yet.
    pub fn over_ms(&self, margin_ms: u64) -> Option<u64> {
        Some(self.registered_ms?.saturating_add(self.lease_ms?).saturating_add(margin_ms))
    }

    /// Whether an earlier start may have it, at whatever generation.
    pub fn may_have(&self, id: ReplicaId) -> bool {
        self.replicas.as_ref().is_none_or(|replicas| replicas.contains(&id))
    }
}
