//! The replicated log as the rest of the product sees it: submit an intent, read
//! a state, watch it change. openraft stays behind this module.
//!
//! (Skeleton by the lead: names and signatures below are what api, agent, exchange,
//! controller and cli are being written against. Replace the bodies, keep the shapes.)

use nf_core::event::Event;
use nf_core::id::{MemberId, RequestId};
use nf_core::job::Job;
use nf_core::plan::{Intent, Reply};
use nf_core::state::State;
use std::sync::Arc;
use std::time::Instant;

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write acknowledged before it began (ReadIndex, on any member).
    Linearizable,
    /// This member's applied state, whatever its age.
    Stale,
}

/// A state and how it was read.
#[derive(Clone, Debug)]
pub struct View {
    pub state: Arc<State>,
    /// Applied log index of `state`.
    pub index: u64,
    pub known_leader: Option<MemberId>,
    /// Milliseconds since this member last heard from the leader (0 on the leader).
    pub last_contact_ms: u64,
}

/// The applied state, published once per applied batch.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    pub state: Arc<State>,
    pub index: u64,
}

/// Why a call got no answer. A refusal is an answer and not among these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("no leader is known; an election takes about half a second")]
    NoLeader { retry_after_ms: u64 },
    /// The outcome is unknown; submitting the same intent again is safe.
    #[error("the deadline passed before the group answered")]
    Timeout,
    #[error("this member is shutting down")]
    Stopping,
    #[error("{0}")]
    Refused(nf_core::reason::Refusal),
}

/// A member's part in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    Learner,
}

/// One member as this one sees it.
#[derive(Clone, Debug)]
pub struct MemberStatus {
    pub id: MemberId,
    pub name: String,
    /// Member-to-member address.
    pub peer: String,
    pub voter: bool,
    /// Last log index known to be on it; only the leader knows.
    pub matched: Option<u64>,
}

/// This member's view of the group.
#[derive(Clone, Debug)]
pub struct Status {
    pub id: MemberId,
    pub role: Role,
    pub term: u64,
    pub leader: Option<MemberId>,
    pub commit_index: u64,
    pub applied_index: u64,
    pub last_contact_ms: u64,
    pub members: Vec<MemberStatus>,
}

/// A handle on this member's replica of the group's state.
#[derive(Clone)]
pub struct Replica {
    _inner: (),
}

impl Replica {
    /// Commits what the intent decides, on any member: a follower forwards, and the
    /// call parks while there is no leader. Never outlives `deadline`.
    pub async fn submit(&self, _intent: Intent, _deadline: Instant) -> Result<Reply, Error> {
        Err(Error::Stopping)
    }
    pub async fn read(&self, _consistency: Consistency, _deadline: Instant) -> Result<View, Error> {
        Err(Error::Stopping)
    }
    /// The applied state now, without waiting.
    pub fn applied(&self) -> Applied {
        Applied::default()
    }
    pub fn watch(&self) -> tokio::sync::watch::Receiver<Applied> {
        tokio::sync::watch::channel(Applied::default()).1
    }
    /// Some(term) while this member leads and its term's first entry is applied.
    pub fn leading(&self) -> tokio::sync::watch::Receiver<Option<u64>> {
        tokio::sync::watch::channel(None).1
    }
    pub fn status(&self) -> Status {
        Status {
            id: MemberId(0),
            role: Role::Follower,
            term: 0,
            leader: None,
            commit_index: 0,
            applied_index: 0,
            last_contact_ms: 0,
            members: vec![],
        }
    }
    /// True once a quorum has acknowledged this leader since the call began (for beats and leases).
    pub async fn confirm_leadership(&self, _deadline: Instant) -> Result<(), Error> {
        Err(Error::Stopping)
    }
    /// Events from `seq` on, at most `limit`, oldest first.
    pub async fn events(&self, _seq: u64, _limit: usize) -> Vec<Event> {
        vec![]
    }
    /// The finished job of that request.
    pub async fn finished(&self, _request: &RequestId) -> Option<Job> {
        None
    }
    /// Finished jobs, newest first, below history position `before` (None: from the newest).
    pub async fn finished_list(&self, _before: Option<u64>, _limit: usize) -> Vec<(u64, Job)> {
        vec![]
    }
    /// Moves leadership to `to` and returns when it is so.
    pub async fn transfer(&self, _to: MemberId, _deadline: Instant) -> Result<(), Error> {
        Err(Error::Stopping)
    }
    /// Forms a new group of `members`: (id, name, peer address).
    pub async fn initialize(&self, _members: Vec<(MemberId, String, String)>) -> Result<(), Error> {
        Err(Error::Stopping)
    }
    pub async fn add_learner(
        &self,
        _id: MemberId,
        _name: String,
        _peer: String,
        _deadline: Instant,
    ) -> Result<(), Error> {
        Err(Error::Stopping)
    }
    pub async fn promote(&self, _id: MemberId, _deadline: Instant) -> Result<(), Error> {
        Err(Error::Stopping)
    }
    pub async fn remove(&self, _id: MemberId, _deadline: Instant) -> Result<(), Error> {
        Err(Error::Stopping)
    }
    pub async fn snapshot(&self) -> Result<u64, Error> {
        Err(Error::Stopping)
    }
    pub async fn shutdown(&self) {}
}
