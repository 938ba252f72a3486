//! What becomes of replicas' logs as files: how many are kept, and that somebody bounds them when this agent is not here.
//! It reads none.

use super::{Shared, held};
use crate::agent::logs;
use std::path::PathBuf;

/// Log files that are kept; those of live replicas always are.
pub(super) const LOG_FILES: usize = 512;

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
