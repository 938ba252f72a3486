//! Tells when this member leads *and* has applied its term's first entry: only then does its
//! state contain everything that earlier leaders committed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver;
use openraft::{AsyncRuntime, Raft, ServerState};
use tokio::sync::watch;

use super::state_machine::{Applied, StateMachine};
use super::types::Types;
use crate::storage::tables::Tables;

/// Told how long it took from being elected until the term's first entry was applied.
pub type Established = Arc<dyn Fn(Duration) + Send + Sync>;

/// Keeps `term` current until Raft stops; then sets it to none.
pub async fn follow<RT: AsyncRuntime, T: Tables>(
    raft: Raft<Types<RT>, StateMachine<T>>,
    mut applied: watch::Receiver<Applied>,
    term: watch::Sender<Option<u64>>,
    established: Established,
) {
    let mut metrics = raft.metrics();
    let mut elected = None;
    loop {
        let (running, leads, current) = {
            let now = metrics.borrow_and_update();
            let leads = now.state == ServerState::Leader;
            (now.running_state.is_ok(), leads, now.current_term)
        };
        let ready = applied.borrow_and_update().term == current;
        let value = (running && leads && ready).then_some(current);
        let since = *elected.get_or_insert_with(Instant::now);
        let changed = term.send_if_modified(|old| std::mem::replace(old, value) != value);
        match leads {
            true if changed && value.is_some() => established(since.elapsed()),
            true => {}
            false => elected = None,
        }
        if !running {
            return;
        }
        let goes_on = tokio::select! {
            biased;
            changed = metrics.changed() => changed.is_ok(),
            // Only the first entry of a term matters, and only to its leader.
            changed = applied.changed(), if leads && !ready => changed.is_ok(),
        };
        if !goes_on {
            term.send_replace(None);
            return;
        }
    }
}
