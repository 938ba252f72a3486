//! Linearizable reads: up to which index must this member have applied?
//!
//! One question to the quorum serves all reads that were waiting when it was asked; those that
//! come meanwhile wait for the next. It does not know what is read.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::shared::{Lost, Shared};

/// Reads that may wait; more wait in their callers.
pub const QUEUE: usize = 4_096;
/// Limit of one question; callers with longer deadlines ask again.
const QUESTION: Duration = Duration::from_millis(500);

/// One read that wants to know the index.
pub type Ask = oneshot::Sender<Result<u64, Lost>>;

/// Answers until the callers' side or Raft is gone.
pub async fn run(shared: Arc<Shared>, mut asks: mpsc::Receiver<Ask>) {
    let mut waiting = Vec::new();
    while asks.recv_many(&mut waiting, QUEUE).await > 0 {
        let answer = shared.read_index(QUESTION).await;
        for ask in waiting.drain(..) {
            // A caller past its deadline no longer listens.
            let _ = ask.send(answer);
        }
    }
}
