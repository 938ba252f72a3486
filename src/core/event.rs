//! Events: what happened, for watchers, the SQL mirror and people. They follow
//! from commands and are never read by apply.

use crate::autoscaler::{Inputs, Why};
use crate::fault::Fault;
use crate::id::{Generation, JobNo, ModelId, NodeName, RequestId, Revision, TenantId, VersionId};
use crate::job::JobState;
use crate::node::{DrainState, NodeState};
use crate::placement::Policy;
use crate::reason::Reason;
use crate::rollout::{Count2, Course};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One event. `seq` counts without gaps within the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub seq: u64,
    pub at_ms: u64,
    pub kind: EventKind,
}

/// What happened. Append variants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    Job {
        no: JobNo,
        request: RequestId,
        tenant: TenantId,
        from: Option<JobState>,
        to: JobState,
        why: Option<Reason>,
    },
    /// A replica ended, and why.
    Replica {
        request: RequestId,
        tenant: TenantId,
        replica: u16,
        generation: Generation,
        node: NodeName,
        ok: bool,
        why: Reason,
    },
    Node {
        node: NodeName,
        from: Option<NodeState>,
        to: NodeState,
    },
    Cordon {
        node: NodeName,
        by: Option<Arc<str>>,
        reason: Option<Arc<str>>,
    },
    Tenant {
        tenant: TenantId,
        what: TenantEvent,
    },
    Member {
        name: NodeName,
        version: Arc<str>,
    },
    Level {
        to: u32,
    },
    /// A service has another number of replicas, and what the decision was made from.
    Scaled {
        request: RequestId,
        tenant: TenantId,
        model: ModelId,
        from: u16,
        to: u16,
        why: Why,
        inputs: Option<Box<Inputs>>,
    },
    /// A replica gets a replacement on another node.
    Move {
        request: RequestId,
        tenant: TenantId,
        replica: u16,
        /// Of the replacement.
        generation: Generation,
        from: NodeName,
        to: NodeName,
        why: Reason,
    },
    /// How far the draining of a node has come.
    Drain {
        node: NodeName,
        to: DrainState,
    },
    /// A device is left alone for a fault; None: it may be used again.
    Device {
        node: NodeName,
        uuid: Arc<str>,
        fault: Option<Fault>,
    },
    /// A replica gives way to a job of higher priority.
    GaveWay {
        request: RequestId,
        tenant: TenantId,
        replica: u16,
        priority: i16,
        node: NodeName,
        to: RequestId,
        /// Whose job that is: the other may be another tenant's.
        of: TenantId,
        to_priority: i16,
        /// `Preempted` or `QuotaReclaimed`.
        why: Reason,
    },
    /// Places are compared by another policy, or by other weights.
    Placement {
        policy: Policy,
        version: u64,
    },
    /// A job goes from one version to another, or back.
    Rollout {
        request: RequestId,
        tenant: TenantId,
        model: ModelId,
        revision: Revision,
        from: VersionId,
        to: VersionId,
        course: Course,
        /// What the promise was judged from, where it was broken.
        counts: Option<Box<Count2>>,
    },
}

/// What happened to a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TenantEvent {
    Created,
    QuotaSet,
    Deleted,
}

impl EventKind {
    /// The tenant whose event it is; None for events of the cluster.
    pub fn tenant(&self) -> Option<&TenantId> {
        match self {
            EventKind::Job { tenant, .. }
            | EventKind::GaveWay { tenant, .. }
            | EventKind::Replica { tenant, .. }
            | EventKind::Tenant { tenant, .. }
            | EventKind::Rollout { tenant, .. }
            | EventKind::Scaled { tenant, .. }
            | EventKind::Move { tenant, .. } => Some(tenant),
            _ => None,
        }
    }
}
