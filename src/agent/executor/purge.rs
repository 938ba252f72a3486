//! Removing copies of data about people, and what is left of replicas, which may share files
//! with them: in the background, once for each order, and again after a while if it did not
//! work. It does not know why they have to go.

use super::{Key, Shared, held};
use crate::agent::post::Hands;
use nf_core::id::{Digest16, RequestId};
use nf_core::reconcile::Purge;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Pause before what could not be removed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How far each order has come: the last one of each copy, and whether it is done.
#[derive(Default)]
pub(super) struct Purges {
    orders: Mutex<BTreeMap<Digest16, (u64, bool)>>,
    /// Directories of replicas that are not removed yet: they share files with the cache.
    leaving: AtomicUsize,
}

/// Removes what is left of a replica, once nobody is at work in it any more. No copy counts as gone before that is done.
pub(super) fn leave(shared: &Arc<Shared>, request: RequestId, key: Key, hands: Hands) {
    shared.purges.leaving.fetch_add(1, Ordering::SeqCst);
    let (runtime, mut shared) = (shared.runtime.clone(), shared.clone());
    runtime.spawn(async move {
        hands.off().await;
        loop {
            let (here, of) = (shared.clone(), request.clone());
            // An error: the runtime goes down, and the next agent finds the directory.
            let Ok(removed) = tokio::task::spawn_blocking(move || here.remove(&of, key)).await else { return };
            let Err(error) = removed else { break };
            let path = shared.places.replica_of(&request, key.0, key.1);
            tracing::warn!(path = %path.display(), %error, "what is left of a replica can't be removed; trying again");
            // An executor that nobody has any more is not kept for that.
            let left = Arc::downgrade(&shared);
            drop(shared);
            tokio::time::sleep(RETRY).await;
            match left.upgrade() {
                Some(still) if still.lock().is_some() => shared = still,
                _ => return,
            }
        }
        shared.purges.leaving.fetch_sub(1, Ordering::SeqCst);
        shared.changed();
        let _ = tokio::task::spawn_blocking(move || shared.prune_logs()).await;
    });
}

/// Removes a copy; true when it is gone, see [`super::super::Execute::purge`].
pub(super) fn purge(shared: &Arc<Shared>, copy: &Purge) -> bool {
    if shared.purges.leaving.load(Ordering::SeqCst) > 0 {
        return false;
    }
    {
        let mut orders = held(&shared.purges.orders);
        match orders.get(&copy.copy) {
            Some((placed, done)) if *placed == copy.placed => return *done,
            // The order before is at work, or its word is old: files may have come again since.
            _ => orders.insert(copy.copy, (copy.placed, false)),
        };
    }
    let (shared, copy) = (shared.clone(), copy.clone());
    shared.runtime.clone().spawn(async move {
        let (tenant, manifest) = (copy.tenant.as_str(), crate::models::Checksum(copy.manifest));
        match shared.cache.purge(&copy.tenant, copy.manifest).await {
            Ok(()) => {
                tracing::info!(node = %shared.config.node, tenant, %manifest, "a copy of personal data was removed");
                held(&shared.purges.orders).insert(copy.copy, (copy.placed, true));
            }
            Err(error) => {
                tracing::error!(tenant, %manifest, %error, "a copy of personal data can't be removed; trying again");
                tokio::time::sleep(RETRY).await;
                held(&shared.purges.orders).remove(&copy.copy);
            }
        }
        shared.changed();
    });
    false
}
