//! The replicated group, as exchange, controller and agent need it: a handful of
//! [`raft::Replica`]'s calls. The seam lets their tests run on a group in memory.

use crate::raft::{self, Applied, Consistency, Replica, Status};
use futures::future::BoxFuture;
use nf_core::plan::{Intent, Reply};
use std::time::Instant;
use tokio::sync::watch;

/// A handle on this member's part in the group.
pub trait Group: Send + Sync + 'static {
    /// See [`Replica::submit`].
    fn submit(&self, intent: Intent, deadline: Instant) -> BoxFuture<'_, Result<Reply, raft::Error>>;
    /// See [`Replica::decide`].
    fn decide(&self, intent: Intent, term: u64, deadline: Instant) -> BoxFuture<'_, Result<Reply, raft::Error>>;
    /// See [`Replica::watch`].
    fn watch(&self) -> watch::Receiver<Applied>;
    /// See [`Replica::leading`].
    fn leading(&self) -> watch::Receiver<Option<u64>>;
    /// See [`Replica::confirm_leadership`].
    fn confirm_leadership(&self, deadline: Instant) -> BoxFuture<'_, Result<u64, raft::Error>>;
    /// Waits until this member has applied all that the group had agreed on when it was asked; false when it could
    /// not learn that before `deadline`.
    fn caught_up(&self, deadline: Instant) -> BoxFuture<'_, bool>;
    fn status(&self) -> Status;
    /// See [`Replica::log_ms`].
    fn log_ms(&self) -> u64;
}

impl Group for Replica {
    fn submit(&self, intent: Intent, deadline: Instant) -> BoxFuture<'_, Result<Reply, raft::Error>> {
        Box::pin(Replica::submit(self, intent, deadline))
    }
    fn decide(&self, intent: Intent, term: u64, deadline: Instant) -> BoxFuture<'_, Result<Reply, raft::Error>> {
        Box::pin(Replica::decide(self, intent, term, deadline))
    }
    fn watch(&self) -> watch::Receiver<Applied> {
        Replica::watch(self)
    }
    fn leading(&self) -> watch::Receiver<Option<u64>> {
        Replica::leading(self)
    }
    fn confirm_leadership(&self, deadline: Instant) -> BoxFuture<'_, Result<u64, raft::Error>> {
        Box::pin(Replica::confirm_leadership(self, deadline))
    }
    fn caught_up(&self, deadline: Instant) -> BoxFuture<'_, bool> {
        Box::pin(async move { self.read(Consistency::Linearizable, deadline).await.is_ok() })
    }
    fn status(&self) -> Status {
        Replica::status(self)
    }
    fn log_ms(&self) -> u64 {
        Replica::log_ms(self)
    }
}
