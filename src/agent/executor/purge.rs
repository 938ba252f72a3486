//! Removing copies of data about people: in the background, once for each order, and again
//! after a while if it did not work. It does not know why they have to go.

use super::{Executor, held};
use nf_core::id::Digest16;
use nf_core::reconcile::Purge;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
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

impl Purges {
    pub(super) fn leaves(&self) {
        self.leaving.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn left(&self) {
        self.leaving.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Executor {
    /// See [`super::super::Execute::purge`].
    pub fn purge(&self, copy: &Purge) -> bool {
        let shared = &self.shared;
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
}
