//! Keeps restarts short and the log bounded: flushes the rows, then asks for checkpoints.
//!
//! The flush runs on a blocking thread and comes first, so that the checkpoint, which is taken
//! between two applies, finds little left to write. It does not know what is in the rows.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::replica::Shared;
use crate::storage::tables::Tables;

const TICK: Duration = Duration::from_secs(1);

/// Runs until Raft stops.
pub async fn run(shared: Arc<Shared>) {
    let tuning = shared.tuning;
    let mut flushed = (0, 0, 0, Instant::now());
    let mut asked = 0;
    loop {
        tokio::time::sleep(TICK).await;
        let bytes = shared.log.appended_bytes();
        let commands = shared.commands.load(Ordering::Relaxed);
        let status = shared.status();
        if *shared.stop.borrow() {
            return;
        }
        let applied = status.applied_index;
        let due = bytes - flushed.0 >= tuning.flush_bytes
            || commands - flushed.1 >= tuning.flush_commands
            || (applied > flushed.2 && flushed.3.elapsed() >= tuning.flush_every);
        let behind = applied.saturating_sub(status.snapshot_index.max(asked));
        let snapshot = behind >= tuning.snapshot_entries;
        if due || snapshot {
            flush(&shared).await;
            flushed = (bytes, commands, applied, Instant::now());
        }
        if snapshot {
            asked = applied;
            if shared.raft.trigger().snapshot().await.is_err() {
                return;
            }
        }
    }
}

/// Makes the rows durable. A failure has ended the process by way of the tables' own hook.
pub async fn flush(shared: &Shared) {
    let tables = shared.tables.clone();
    let flushed = tokio::task::spawn_blocking(move || tables.flush()).await;
    if let Ok(Err(error)) = flushed {
        tracing::error!(%error, "flushing the state");
    }
}
