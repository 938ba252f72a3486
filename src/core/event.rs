//! Events: what happened, for watchers, the SQL mirror and people. They follow
//! from commands and are never read by apply.

use crate::id::{Generation, JobNo, NodeName, RequestId, TenantId};
use crate::job::JobState;
use crate::node::NodeState;
use crate::placement::Policy;
use crate::reason::Reason;
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
    /// Places are compared by another policy, or by other weights.
    Placement {
        policy: Policy,
        version: u64,
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
            EventKind::Job { tenant, .. } | EventKind::Replica { tenant, .. } | EventKind::Tenant { tenant, .. } => {
                Some(tenant)
            }
            _ => None,
        }
    }
}
