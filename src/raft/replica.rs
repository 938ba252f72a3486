//! The handle that the rest of the program holds: submit, read, watch, status, membership.
//!
//! A call goes to whoever leads and is tried again, with the same intent, until its deadline. It
//! does not plan and does not know what an intent wants.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use nf_core::codec;
use nf_core::event::Event;
use nf_core::id::RequestId;
use nf_core::job::Job;
use nf_core::plan::{Intent, Reply};
use nf_core::rows::{self, Table};
use nf_proto::internal as pb;
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tracing::Instrument;

use super::calls::{route_change, submit};
use super::campaign::Contact;
use super::clock::GroupClock;
use super::marks::Marks;
use super::membership::{Change, Failure};
use super::options::{Hooks, Timing, Tuning};
use super::peers::{Client, Lane, Peers};
use super::proposer::Call;
use super::reads::Ask;
use super::state_machine::Applied;
use super::types::Peer;
use super::{Consistency, Error, Member, MemberId, NO_LEADER, Raft, Status, View, upkeep, wire};
use crate::storage::fatal::Fatal;
use crate::storage::floor::Floor;
use crate::storage::frame::invalid;
use crate::storage::log_db::LogDb;
use crate::storage::state_db::StateDb;
use crate::storage::tables::Tables;
use crate::telemetry::traces::{self, Side};

/// Pauses between tries of one call, doubling from the first to the second.
pub const RETRY: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(40));
/// Limit of a checkpoint that was asked for.
const SNAPSHOT: Duration = Duration::from_secs(60);
/// How long a leader that has not applied its first entry yet is waited for in one try.
const ESTABLISH: Duration = Duration::from_millis(200);

/// The one asked does not lead, or no longer; ask again, perhaps `leader`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lost {
    pub leader: Option<u64>,
    /// What was asked may have been written before, and so may still be done.
    pub taken: bool,
}

impl Lost {
    /// Nobody says what became of it.
    pub const TAKEN: Self = Self { leader: None, taken: true };
}

/// Who this member is.
pub struct Me {
    pub cluster: String,
    pub id: MemberId,
}

/// What the tasks of a member share.
pub struct Shared {
    pub me: Me,
    pub raft: Raft,
    pub log: super::log_store::LogStore<LogDb>,
    pub disk: Arc<LogDb>,
    pub tables: Arc<StateDb>,
    pub floor: Floor,
    pub peers: Arc<Peers>,
    pub clock: Arc<GroupClock>,
    pub contact: Contact,
    pub timing: Timing,
    pub tuning: Tuning,
    pub hooks: Hooks,
    pub commands: Arc<AtomicU64>,
    pub marks: Arc<Marks>,
    pub fatal: Fatal,
    pub calls: mpsc::Sender<Call>,
    pub asks: mpsc::Sender<Ask>,
    pub applied: watch::Receiver<Applied>,
    pub term: watch::Receiver<Option<u64>>,
    pub paused: watch::Sender<bool>,
    pub in_flight: watch::Receiver<usize>,
    /// Held while the voters are being changed: one change at a time, whoever wants it.
    pub changing: Arc<Mutex<()>>,
    pub stop: watch::Sender<bool>,
}

pub fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

impl Shared {
    pub fn leader(&self) -> Option<u64> {
        self.raft.metrics().borrow_watched().current_leader
    }

    /// Where a member is, if the group knows it.
    pub fn peer(&self, id: u64) -> Option<Peer> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&id).cloned()
    }

    /// Whether the member of that number has this name; None: there is none. Asked for each message of a stream, so
    /// nothing is copied.
    pub fn is_named(&self, id: u64, name: &str) -> Option<bool> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&id).map(|peer| peer.name == name)
    }

    /// Whether a member of this name is in the group, under any number.
    pub fn lists(&self, name: &str) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().nodes().any(|(_, peer)| peer.name == name)
    }

    pub fn calls_to(&self, id: u64) -> Option<Client> {
        let peer = self.peer(id)?;
        Some(self.peers.client(id, &peer, Lane::Calls))
    }

    pub fn status(&self) -> Status {
        let silence = u64::try_from(self.contact.silence().as_millis()).unwrap_or(u64::MAX);
        let applied = self.applied.borrow().index;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        Status::of(&metrics, applied, silence)
    }

    /// Proposes on this member, which must lead; with a term, in that term only.
    pub async fn propose(&self, intent: Intent, term: Option<u64>, deadline: Instant) -> Result<Reply, Lost> {
        let begun = Instant::now();
        self.established(deadline).await?;
        let span = traces::part("commit", Side::Inside);
        // Before it is planned: the agent may begin before the caller is answered.
        traces::made(&intent, &span);
        let (reply, answer) = oneshot::channel();
        let call = Call { intent, term, reply };
        let proposed = tokio::time::timeout(left(deadline), async {
            self.calls.send(call).await.map_err(|_| Lost::default())?;
            answer.await.unwrap_or(Err(Lost::TAKEN))
        });
        let proposed = proposed.instrument(span.clone());
        let result = proposed.await.unwrap_or(Err(Lost::TAKEN));
        if let Ok(reply) = &result {
            (self.hooks.propose)(begun.elapsed());
            traces::number(&span, "index", reply.index);
        } else {
            traces::failed(&span, "NoLeader");
        }
        result
    }

    /// Waits a little for a leader to have applied its term's first entry.
    async fn established(&self, deadline: Instant) -> Result<(), Lost> {
        if self.term.borrow().is_some() {
            return Ok(());
        }
        let leader = self.leader();
        if leader != Some(self.me.id.0) {
            return Err(Lost { leader, taken: false });
        }
        let mut term = self.term.clone();
        let wait = left(deadline).min(ESTABLISH);
        let established = tokio::time::timeout(wait, term.wait_for(Option::is_some)).await;
        match established {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Lost { leader: self.leader(), taken: false }),
        }
    }

    /// The read index, asked of the quorum by this member, which must lead.
    pub async fn read_index_here(&self, deadline: Instant) -> Result<u64, Lost> {
        let ask = self.raft.get_read_log_id(ReadPolicy::ReadIndex);
        match tokio::time::timeout(left(deadline), ask).await {
            Ok(Ok((id, _))) => Ok(id.index()),
            Ok(Err(error)) => {
                let leader = error.forward_to_leader().and_then(|to| to.leader_id);
                Err(Lost { leader, taken: false })
            }
            Err(_) => Err(Lost::default()),
        }
    }

    /// The read index from whoever leads.
    pub async fn read_index(&self, limit: Duration) -> Result<u64, Lost> {
        use pb::read_index_reply::Result as R;
        let leader = self.leader().ok_or_else(Lost::default)?;
        if leader == self.me.id.0 {
            return self.read_index_here(Instant::now() + limit).await;
        }
        let mut client = self.calls_to(leader).ok_or_else(Lost::default)?;
        let request =
            pb::ReadIndexRequest { route: Some(self.peers.route(leader)), deadline_ms: wire::put_wait(limit) };
        let reply = tokio::select! {
            reply = client.read_index(request) => reply.map_err(|_| Lost::default())?,
            () = self.leader_is_not(leader) => return Err(Lost::default()),
            () = tokio::time::sleep(limit) => return Err(Lost::default()),
        };
        match reply.into_inner().result {
            Some(R::Index(index)) => Ok(index),
            Some(R::NotLeader(to)) => Err(lost(to)),
            None => Err(Lost::default()),
        }
    }

    /// Returns when another leader, or none, is known. A frozen leader never answers.
    async fn leader_is_not(&self, leader: u64) {
        let mut metrics = self.raft.server_metrics();
        loop {
            if metrics.borrow_and_update().current_leader != Some(leader) {
                return;
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    pub async fn forward(&self, to: u64, intent: &bytes::Bytes, deadline: Instant) -> Result<Try, Lost> {
        use pb::forward_reply::Result as R;
        let mut client = self.calls_to(to).ok_or_else(Lost::default)?;
        let span = traces::part("forward", Side::Client);
        traces::number(&span, "member", to);
        let request = pb::ForwardRequest {
            route: Some(self.peers.route(to)),
            intent: intent.clone(),
            deadline_ms: wire::put_wait(left(deadline)),
            traceparent: traces::carried(&span).unwrap_or_default(),
        };
        let reply = tokio::select! {
            reply = client.forward(request).instrument(span.clone()) => reply,
            () = self.leader_is_not(to) => {
                traces::failed(&span, "NotTheLeader");
                return Err(Lost::TAKEN);
            }
            () = tokio::time::sleep(left(deadline)) => {
                traces::failed(&span, "DeadlineExceeded");
                return Err(Lost::TAKEN);
            }
        };
        if reply.is_err() {
            traces::failed(&span, "Unreachable");
        }
        match reply {
            Ok(reply) => match reply.into_inner().result {
                Some(R::Reply(bytes)) => Ok(match codec::decode(&bytes) {
                    Ok(reply) => Try::Reply(reply),
                    Err(e) => Try::Refused(format!("the leader's reply: {e}")),
                }),
                Some(R::NotLeader(to)) => Err(lost(to)),
                None => Err(Lost::TAKEN),
            },
            Err(status) if status.code() == tonic::Code::InvalidArgument => {
                Ok(Try::Refused(format!("the leader: {}", status.message())))
            }
            Err(status) => Err(Lost { leader: None, taken: !never_came(&status) }),
        }
    }
}

fn lost(to: pb::NotLeader) -> Lost {
    Lost { leader: Some(to.leader).filter(|id| *id != 0), taken: !to.untaken }
}

/// Whether a call ended before it could have reached anybody.
fn never_came(status: &tonic::Status) -> bool {
    let first: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    std::iter::successors(first, |error| error.source()).any(|error| error.is::<tonic::ConnectError>())
}

/// What the one asked said, if it leads.
pub enum Try {
    Reply(Reply),
    Refused(String),
}

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

    /// Events from `seq` on, at most `limit`, oldest first, as far as they are kept.
    pub async fn events(&self, seq: u64, limit: usize) -> Vec<Event> {
        self.on_disk(move |tables| {
            let rows = tables.scan(Table::Event as u8, &seq.to_be_bytes(), limit)?;
            let events = rows.iter().map(|row| rows::read_event(&row.value).map_err(damaged));
            events.collect()
        })
        .await
    }

    /// At most `limit` entries of the audit trail from `seq` on.
    pub async fn audit(&self, seq: u64, limit: usize) -> Vec<nf_core::audit::Entry> {
        self.on_disk(move |tables| {
            let rows = tables.scan(Table::AuditEntry as u8, &seq.to_be_bytes(), limit)?;
            rows.iter().map(|row| rows::read_audit(&row.value).map_err(damaged)).collect()
        })
        .await
    }

    /// The finished job of that request.
    pub async fn finished(&self, request: &RequestId) -> Option<Job> {
        let key = rows::history_key(request);
        self.on_disk(move |tables| {
            let Some(position) = tables.get(Table::HistoryOf as u8, &key)? else {
                return Ok(None);
            };
            let value = tables.get(Table::History as u8, &position)?;
            value.map(|value| rows::read_history(&value).map_err(damaged)).transpose()
        })
        .await
    }

    /// Finished jobs, newest first, below history position `before` (None: from the newest).
    pub async fn finished_list(&self, before: Option<u64>, limit: usize) -> Vec<(u64, Job)> {
        self.on_disk(move |tables| {
            let before = before.map(u64::to_be_bytes);
            let before = before.as_ref().map(<[u8; 8]>::as_slice);
            let rows = tables.scan_back(Table::History as u8, before, limit)?;
            rows.iter()
                .map(|row| {
                    let key = row.key.as_slice().try_into();
                    let key = key.map_err(|_| invalid("a key of the history"))?;
                    let job = rows::read_history(&row.value).map_err(damaged)?;
                    Ok((u64::from_be_bytes(key), job))
                })
                .collect()
        })
        .await
    }

    /// Reads rows on a blocking thread. What cannot be read is reported and left out.
    async fn on_disk<T: Default + Send + 'static>(
        &self,
        work: impl FnOnce(&StateDb) -> std::io::Result<T> + Send + 'static,
    ) -> T {
        let tables = self.shared.tables.clone();
        match self.runtime.spawn_blocking(move || work(&tables)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::error!(%error, "reading stored rows");
                T::default()
            }
            // The member is stopping.
            Err(_) => T::default(),
        }
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

fn damaged(error: rows::Error) -> std::io::Error {
    invalid(error.to_string())
}
