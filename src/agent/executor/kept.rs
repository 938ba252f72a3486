//! What becomes of replicas' logs as files: how many are kept, and that somebody bounds them when this agent is not here.
//! It reads none.

use super::{Shared, held};
use crate::agent::logs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Log files that are kept; those of live replicas always are.
pub(super) const LOG_FILES: usize = 512;

/// Between two looks whether the keeper is there: one that was killed matters once its agent is gone, too.
pub(super) const KEEPER: Duration = Duration::from_secs(30);

/// Replaces a keeper that ended, at the latest after `every`, for as long as the executor is.
pub(super) fn watch_keeper(shared: &Arc<Shared>, every: Duration) {
    let (runtime, shared) = (shared.runtime.clone(), Arc::downgrade(shared));
    runtime.spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            let Some(shared) = shared.upgrade().filter(|shared| shared.lock().is_some()) else { return };
            if shared.keeper.is_wanted() {
                // An error: the runtime goes down.
                let _ = tokio::task::spawn_blocking(move || shared.keep_logs()).await;
            }
        }
    });
}

impl Shared {
    /// Has the logs kept for when this agent is not here. May block briefly.
    pub(in crate::agent) fn keep_logs(&self) {
        if let Err(error) = self.keeper.ensure() {
            tracing::warn!(%error, "logs of replicas have no bound while this agent is away: their keeper can't be started");
        }
    }

    /// Removes the oldest logs, but none of a replica that is here.
    pub(super) fn prune_logs(&self) {
        let live: Vec<PathBuf> = held(&self.slots).iter().map(|(k, s)| self.places.log(&s.request, k.0)).collect();
        if let Err(error) = logs::prune(&self.places.logs, LOG_FILES, &live) {
            tracing::warn!(path = %self.places.logs.display(), %error, "old logs can't be removed");
        }
    }
}
