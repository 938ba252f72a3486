//! The handle that the rest of the program holds: submit, read, watch, status, membership.
//!
//! A call goes to whoever leads and is tried again, with the same intent, until its deadline. It
//! does not plan and does not know what an intent wants.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nf_core::plan::{Intent, Reply};
use openraft::async_runtime::WatchReceiver;
use tokio::sync::{oneshot, watch};
use tracing::Instrument;

use super::calls::{route_change, submit};
use super::membership::{Change, Failure};
use super::shared::{Lost, RETRY, Shared, left};
use super::state_machine::Applied;
use super::{Consistency, Error, Member, MemberId, NO_LEADER, Status, View, upkeep};

/// Limit of a checkpoint that was asked for.
const SNAPSHOT: Duration = Duration::from_secs(60);

/// One member of the group. Cheap to clone; [`Replica::shutdown`] stops it.
#[derive(Clone)]
pub struct Replica {
    pub(super) shared: Arc<Shared>,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) stopped: watch::Receiver<bool>,
}

impl Replica {
    pub fn id(&self) -> MemberId {
        self.shared.me.id
    }

    /// Has an intent planned, committed and applied, by whoever leads, before `deadline`.
    ///
    /// # Errors
    /// [`Error::NoLeader`] when it was certainly not done, [`Error::Timeout`] when it may have
    /// been: then submit the same intent again, its request id makes that safe.
    pub async fn submit(&self, intent: Intent, deadline: Instant) -> Result<Reply, Error> {
        let shared = self.shared.clone();
        // On the member's own runtime: its connections live there.
        self.on_runtime(async move { submit(&shared, intent, deadline).await }).await
    }

    /// Has this leader's own judgement committed in `term`, the one it was made in. Tried once
    /// and never forwarded: a successor judges by what it has heard itself.
    ///
    /// # Errors
    /// [`Error::NoLeader`] when the quorum does not confirm that this member leads in that
    /// term, [`Error::Timeout`] when the judgement may or may not have been committed.
    pub async fn decide(&self, intent: Intent, term: u64, deadline: Instant) -> Result<Reply, Error> {
        let shared = self.shared.clone();
        let decided = async move {
            shared.read_index_here(deadline).await.map_err(|_| NO_LEADER)?;
            shared.propose(intent, Some(term), deadline).await.map_err(|_| Error::Timeout)
        };
        self.on_runtime(decided).await
    }

    /// The state to read from.
    pub async fn read(&self, how: Consistency, deadline: Instant) -> Result<View, Error> {
        if how == Consistency::Linearizable {
            self.catch_up(deadline).await?;
        }
        let applied = self.shared.applied.borrow().clone();
        let status = self.shared.status();
        Ok(View {
            state: applied.state,
            index: applied.index,
            known_leader: status.leader,
            last_contact_ms: status.last_contact_ms,
        })
    }

    /// Waits until this member has applied all that was answered before the call.
    async fn catch_up(&self, deadline: Instant) -> Result<(), Error> {
        let mut pause = RETRY.0;
        loop {
            let (ask, answer) = oneshot::channel();
            let asked = tokio::time::timeout(left(deadline), async {
                self.shared.asks.send(ask).await.map_err(|_| Error::Stopping)?;
                Ok::<_, Error>(answer.await.unwrap_or_else(|_| Err(Lost::default())))
            });
            match asked.await {
                Ok(Ok(Ok(index))) => {
                    let mut applied = self.shared.applied.clone();
                    let wait = applied.wait_for(|now| now.index >= index);
                    return match tokio::time::timeout(left(deadline), wait).await {
                        Ok(Ok(_)) => Ok(()),
                        Ok(Err(_)) => Err(Error::Stopping),
                        Err(_) => Err(NO_LEADER),
                    };
                }
                Ok(Err(error)) => return Err(error),
                Ok(Ok(Err(_))) if left(deadline) > pause => {}
                _ => return Err(NO_LEADER),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// The state after each applied batch.
    pub fn watch(&self) -> watch::Receiver<Applied> {
        self.shared.applied.clone()
    }

    /// The applied state now, without waiting.
    pub fn applied(&self) -> Applied {
        self.shared.applied.borrow().clone()
    }

    /// Returns once a quorum has acknowledged this leader since the call began, with the log index
    /// up to which everything answered before the call reaches.
    pub async fn confirm_leadership(&self, deadline: Instant) -> Result<u64, Error> {
        self.shared.read_index_here(deadline).await.map_err(|_| NO_LEADER)
    }

    /// Some(term) while this member leads and its term's first entry is applied.
    pub fn leading(&self) -> watch::Receiver<Option<u64>> {
        self.shared.term.clone()
    }

    /// Log time now, milliseconds since the epoch: what an entry would be stamped with. On a member that does not lead
    /// the last stamp.
    pub fn log_ms(&self) -> u64 {
        let last_ms = self.shared.applied.borrow().state.meta().now_ms;
        let voters = || self.shared.status().members.into_iter().filter(|m| m.voter).map(|m| m.id).collect::<Vec<_>>();
        let term = *self.shared.term.borrow();
        term.map_or(last_ms, |term| self.shared.clock.stamp(term, last_ms, &voters()).max(last_ms))
    }

    async fn on_runtime<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        // Whoever drops the call ends its work, too: nothing is parked for callers that are gone.
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn_on(work.in_current_span(), &self.runtime);
        match tasks.join_next().await {
            Some(Ok(done)) => done,
            _ => Err(Error::Stopping),
        }
    }

    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Forms a new group of `members` (id, name, peer address). On one of them, once.
    pub async fn initialize(&self, members: Vec<(MemberId, String, String)>) -> Result<(), Error> {
        let members = members.into_iter();
        let members: Vec<_> = members.map(|(id, name, peer)| Member { id, name, peer }).collect();
        let shared = self.shared.clone();
        self.on_runtime(async move {
            let formed = shared.initialize(&members).await;
            formed.map_err(|failure| match failure {
                Failure::Error(error) => error,
                Failure::NotLeader(_) => NO_LEADER,
            })
        })
        .await
    }

    /// Lets a member receive the log without a vote. Returns when it is nearly up to date.
    pub async fn add_learner(&self, id: MemberId, name: String, peer: String, deadline: Instant) -> Result<(), Error> {
        let member = Member { id, name, peer };
        self.change(Change::AddLearner(member), deadline).await
    }

    /// Gives a learner its vote.
    pub async fn promote(&self, id: MemberId, deadline: Instant) -> Result<(), Error> {
        self.change(Change::Promote(id), deadline).await
    }

    /// Takes a member out of the group for good. Its id is not used again.
    pub async fn remove(&self, id: MemberId, deadline: Instant) -> Result<(), Error> {
        self.change(Change::Remove(id), deadline).await
    }

    /// Hands leadership to `to`; returns when it leads.
    pub async fn transfer(&self, to: MemberId, deadline: Instant) -> Result<(), Error> {
        self.change(Change::Transfer(to), deadline).await
    }

    async fn change(&self, change: Change, deadline: Instant) -> Result<(), Error> {
        let shared = self.shared.clone();
        self.on_runtime(async move { route_change(&shared, &change, deadline).await }).await
    }

    /// Takes a checkpoint of what is applied now, and lets the log before it go.
    /// Returns the log index it covers.
    pub async fn snapshot(&self) -> Result<u64, Error> {
        let deadline = Instant::now() + SNAPSHOT;
        let shared = self.shared.clone();
        self.on_runtime(async move {
            upkeep::flush(&shared).await;
            let applied = shared.applied.borrow().index;
            let asked = shared.raft.trigger().snapshot().await;
            asked.map_err(|_| Error::Stopping)?;
            let mut metrics = shared.raft.metrics();
            let covered = metrics.wait_until(|m| m.snapshot.is_some_and(|id| id.index >= applied));
            match tokio::time::timeout(left(deadline), covered).await {
                Ok(Ok(now)) => Ok(now.snapshot.map_or(0, |id| id.index)),
                Ok(Err(_)) => Err(Error::Stopping),
                Err(_) => Err(Error::Timeout),
            }
        })
        .await
    }

    /// Stops this member and returns when its files are closed. Leadership is not handed over;
    /// [`Replica::transfer`] does that.
    pub async fn shutdown(&self) {
        self.shared.stop.send_replace(true);
        let mut stopped = self.stopped.clone();
        // An error means that the thread is gone, too.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }
}
