//! How openraft is fitted to this project: the concrete types of entries, votes and members.
//!
//! Everything is generic over the async runtime alone, so the same log store, state machine and
//! proposer run on tokio and on the deterministic runtime of the simulation.

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use nf_core::apply::BatchOutcome;
use nf_core::codec;
use nf_core::command::Batch;
use nf_core::state::State;
use openraft::AsyncRuntime;
use openraft::impls::{InlineBatch, ProgressResponder};
use openraft::vote::RaftLeaderId;

/// Terms have at most one leader each, so a term alone names a leadership.
pub type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;
pub type CommittedLeaderId = <LeaderId as RaftLeaderId>::Committed;
pub type LogId = openraft::LogId<CommittedLeaderId>;
pub type Vote = openraft::impls::Vote<LeaderId>;
pub type EntryPayload = openraft::EntryPayload<Payload, u64, Peer>;
pub type Entry = openraft::Entry<CommittedLeaderId, EntryPayload>;
pub type Membership = openraft::Membership<u64, Peer>;
pub type StoredMembership = openraft::StoredMembership<CommittedLeaderId, u64, Peer>;
pub type SnapshotMeta = openraft::storage::SnapshotMeta<CommittedLeaderId, u64, Peer>;
pub type Snapshot<T> = openraft::Snapshot<CommittedLeaderId, u64, Peer, T>;

/// Where a member is reached, as agreed in the membership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The name in the member's certificate.
    pub name: String,
    /// `host:port` of its peer listener.
    pub addr: String,
}

/// A batch of commands as it is logged. It is encoded once, by the proposer, and decoded once
/// per member, when it is applied.
#[derive(Clone)]
pub struct Payload(Arc<Inner>);

struct Inner {
    bytes: Bytes,
    batch: OnceLock<Result<Batch, codec::Error>>,
}

impl Payload {
    pub fn new(batch: Batch) -> Self {
        let bytes = Bytes::from(codec::encode(&batch));
        Self(Arc::new(Inner { bytes, batch: OnceLock::from(Ok(batch)) }))
    }
    /// Bytes from the log or a peer. They are looked at when the batch is asked for.
    pub fn encoded(bytes: Bytes) -> Self {
        Self(Arc::new(Inner { bytes, batch: OnceLock::new() }))
    }
    pub fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }
    /// The commands, or why these bytes are none. The member must halt on an error.
    pub fn batch(&self) -> Result<&Batch, codec::Error> {
        let decoded = self.0.batch.get_or_init(|| codec::decode(&self.0.bytes));
        decoded.as_ref().map_err(Clone::clone)
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.bytes.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.0.bytes == other.0.bytes
    }
}

/// What applying one entry did. Entries of Raft itself have no outcome.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub index: u64,
    pub batch: Option<BatchOutcome>,
    /// The state right after the entry.
    pub state: Arc<State>,
}

/// The type configuration, on runtime `RT`.
pub struct Types<RT>(PhantomData<fn() -> RT>);

impl<RT: AsyncRuntime> openraft::RaftTypeConfig for Types<RT> {
    type D = Payload;
    type R = Outcome;
    type NodeId = u64;
    type Node = Peer;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = EntryPayload;
    type Entry = Entry;
    type AsyncRuntime = RT;
    type Responder<T>
        = ProgressResponder<Self, T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

// Derives would ask the runtime for these traits; the marker has no content to compare.
impl<RT> fmt::Debug for Types<RT> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Types")
    }
}
impl<RT> Clone for Types<RT> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<RT> Copy for Types<RT> {}
impl<RT> Default for Types<RT> {
    fn default() -> Self {
        Self(PhantomData)
    }
}
impl<RT> PartialEq for Types<RT> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<RT> Eq for Types<RT> {}
impl<RT> PartialOrd for Types<RT> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<RT> Ord for Types<RT> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}
