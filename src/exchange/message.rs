//! The messages between agents and members, as types. Both ends use them; how they
//! travel is the business of `wire`, `service` and `client`.

use super::vitals::Vitals;
use nf_core::autoscaler::source::Told;
use nf_core::command::Report;
use nf_core::id::{Digest16, Incarnation, NodeName, RequestId};
use nf_core::node::{NodeKind, NodeSpec};
use nf_core::reason::{Reason, Refusal};
use nf_core::reconcile::{Desired, ReplicaId};
use std::sync::Arc;

/// Why a message got no good answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nobody could answer now; another member, or the same one later, may.
    #[error("{0}")]
    Unavailable(String),
    /// The answer is no, and stays no until something changes.
    #[error("{0}")]
    Refused(Refusal),
}

impl Error {
    pub fn not_found(detail: impl Into<String>) -> Self {
        Error::Refused(Refusal::new(Reason::NotFound, detail))
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Refused(refusal) if refusal.reason == Reason::NotFound)
    }
}

/// A node, as one start of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeStart {
    pub node: NodeName,
    pub incarnation: Incarnation,
}

/// What an agent says to make a node known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    pub node: NodeName,
    pub kind: NodeKind,
    pub incarnation: Incarnation,
    pub spec: Arc<NodeSpec>,
}

/// What became of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    /// Committed at this index; older knowledge of the node is void. `new`: the group knew no node of that name.
    At {
        index: u64,
        new: bool,
    },
    /// A later start of the node has registered. This one has no say any more.
    Superseded,
    Refused(Refusal),
}

/// "This node is alive."
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    pub node: NodeName,
    pub incarnation: Incarnation,
    pub revision_seen: u64,
    /// What its replicas' own metrics say, at most [`TOLD`] of them.
    pub told: Vec<Told>,
    /// How its GPUs do, at most [`super::vitals::GPUS`] of them.
    pub vitals: Vec<Vitals>,
}

impl Beat {
    /// One that tells nothing else.
    pub fn bare(node: NodeName, incarnation: Incarnation) -> Self {
        Self { node, incarnation, revision_seen: 0, told: vec![], vitals: vec![] }
    }
}

/// Replicas of one node whose metrics go with a beat.
pub const TOLD: usize = 1024;

/// The leader's word on a message of beats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BeatAnswer {
    pub term: u64,
    pub commit_index: u64,
    /// Length of the lease, which runs from when the beat was sent.
    pub lease_ms: u64,
    /// Nodes without a lease: a later start has registered.
    pub superseded: Vec<NodeName>,
    /// Nodes without a lease: not registered, or not this start.
    pub unknown: Vec<NodeName>,
}

/// What one node should run, from the member that sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub node: NodeName,
    /// Comparable only within one stream: each member counts for itself.
    pub revision: u64,
    /// Applied index of the state it was read from.
    pub index: u64,
    pub desired: Arc<Desired>,
}

/// A message of a stream of slices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slices {
    pub slices: Vec<Slice>,
    /// All slices of the stream are current up to this applied index; None: more of the same follow.
    pub index: Option<u64>,
}

/// What an agent says of its replicas, and of copies that it removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReports {
    pub node: NodeName,
    pub incarnation: Incarnation,
    pub reports: Vec<Report>,
    /// Copies of personal data that are gone, each as the slice named it.
    pub purged: Vec<(Digest16, u64)>,
}

impl NodeReports {
    pub fn is_empty(&self) -> bool {
        self.reports.is_empty() && self.purged.is_empty()
    }
}

/// Whose log, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogQuery {
    pub node: NodeName,
    pub request: RequestId,
    /// Its job's number, too: who has a request's name today need not be who had it before.
    pub id: ReplicaId,
    pub follow: bool,
    /// Lines from the end.
    pub tail: usize,
    /// Not its log, but what it has been through: [`super::life`].
    pub life: bool,
}
