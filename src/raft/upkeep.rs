//! Keeps restarts short and the log bounded: flushes the rows, then asks for checkpoints.
//!
//! The flush runs on a blocking thread and comes first, so that the checkpoint, which is taken
//! between two applies, finds little left to write. It does not know what is in the rows.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::relief;
use super::shared::Shared;
use super::status::{Role, Status};
use crate::storage::tables::Tables;
use nf_core::clock::MAX_OFF_MS;

const TICK: Duration = Duration::from_secs(1);
/// When leadership is handed over again, if nobody took it.
const HAND_OVER_AGAIN: Duration = Duration::from_secs(30);

/// Runs until Raft stops.
pub async fn run(shared: Arc<Shared>) {
    let tuning = shared.tuning;
    let mut flushed = (0, 0, 0, Instant::now());
    let (mut asked, mut asked_bytes) = (0, 0);
    let mut told = 0;
    let mut handed_over = None;
    loop {
        tokio::time::sleep(TICK).await;
        let bytes = shared.log.appended_bytes();
        (shared.hooks.logged)(bytes - std::mem::replace(&mut told, bytes));
        let commands = shared.commands.load(Ordering::Relaxed);
        let status = shared.status();
        if *shared.stop.borrow() {
            return;
        }
        shared.settle(&status).await;
        if handed_over.is_none_or(|at: Instant| at.elapsed() >= HAND_OVER_AGAIN) && hand_over(&shared, &status).await {
            handed_over = Some(Instant::now());
        }
        let applied = status.applied_index;
        let due = bytes - flushed.0 >= tuning.flush_bytes
            || commands - flushed.1 >= tuning.flush_commands
            || (applied > flushed.2 && flushed.3.elapsed() >= tuning.flush_every);
        let behind = applied.saturating_sub(status.snapshot_index.max(asked));
        let snapshot = behind >= tuning.snapshot_entries || bytes - asked_bytes >= tuning.snapshot_bytes;
        if due || snapshot {
            flush(&shared).await;
            flushed = (bytes, commands, applied, Instant::now());
        }
        if snapshot {
            (asked, asked_bytes) = (applied, bytes);
            if shared.raft.trigger().snapshot().await.is_err() {
                return;
            }
        }
    }
}

/// A leader whose own clock is wrong makes room for one whose is right. Log time does not follow its clock, but
/// what it tells the time by itself would. Whether it tried.
async fn hand_over(shared: &Shared, status: &Status) -> bool {
    if status.role != Role::Leader {
        return false;
    }
    let voters: Vec<_> = status.members.iter().filter(|m| m.voter).map(|m| m.id).collect();
    let Some((off_ms, right)) = shared.clock.judge(&voters, MAX_OFF_MS).filter(|(off, _)| *off > MAX_OFF_MS) else {
        return false;
    };
    let why = format!(
        "this member's clock is {off_ms} ms from that of the others; see that the machine's time is kept (NTP)"
    );
    relief::hand_over(shared, status, |id| right.contains(&id), &why).await
}

/// Makes the rows durable, and remembers how far the log is. A failure of the rows or of the log
/// has ended the process by way of their own hook.
pub async fn flush(shared: &Shared) {
    let applied = shared.applied.borrow().index;
    // A checkpoint of another member is applied before the log is purged up to it, and ends beyond the log until then.
    let reaches = shared.log.last_index().is_some_and(|last| last >= applied);
    // What is applied was written to the log before, and so is durable when this returns.
    let synced = shared.log.sync().await;
    let (tables, floor) = (shared.tables.clone(), shared.floor.clone());
    let flushed = tokio::task::spawn_blocking(move || {
        tables.flush()?;
        // An index of 0 may also mean that nothing is applied yet.
        synced.and_then(|()| if applied > 0 && reaches { Ok(floor.raise(applied)?) } else { Ok(()) })
    });
    if let Ok(Err(error)) = flushed.await {
        tracing::error!(%error, "flushing the state");
    }
}
