//! What the tasks of one member share, and one try of a call: proposed here, or asked of whoever leads.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use nf_core::codec;
use nf_core::plan::{Intent, Reply};
use nf_proto::internal as pb;
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tracing::Instrument;

use super::campaign::Contact;
use super::clock::GroupClock;
use super::marks::Marks;
use super::options::{Hooks, Timing, Tuning};
use super::peers::{Client, Lane, Peers};
use super::proposer::Call;
use super::reads::Ask;
use super::state_machine::Applied;
use super::types::Peer;
use super::{MemberId, Raft, Status, wire};
use crate::storage::fatal::Fatal;
use crate::storage::floor::Floor;
use crate::storage::log_db::LogDb;
use crate::storage::state_db::StateDb;
use crate::telemetry::traces::{self, Side};

/// Pauses between tries of one call, doubling from the first to the second.
pub const RETRY: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(40));
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
                Some(R::Reply(bytes)) => Ok(codec::decode(&bytes).map_or_else(
                    |error| {
                        tracing::warn!(%error, "the leader's reply can't be read: is it of another build?");
                        Try::Unreadable
                    },
                    Try::Reply,
                )),
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
    /// It was done or refused, in words of another build. To ask again would be answered alike, and done again.
    Unreadable,
}
