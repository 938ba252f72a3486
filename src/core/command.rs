//! Commands: what was decided. Several make one log entry. They carry every
//! number that apply needs, because apply reads nothing but its arguments.

use crate::id::{Digest16, Generation, Incarnation, JobNo, MemberId, NodeName, NodeNo, RequestId, TenantId};
use crate::job::{Allocation, JobSpec, Stage};
use crate::node::{Cordon, NodeKind, NodeSpec, NodeState};
use crate::reason::Reason;
use crate::tenant::Quota;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One log entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The state's `base` that the commands were planned on. At any other base
    /// the entry changes nothing (DESIGN: speculation is exact or void).
    pub base: u64,
    /// The leader's clock, milliseconds since the epoch.
    pub at_ms: u64,
    pub commands: Vec<Command>,
}

/// Fixed at `nf cluster init`, for the group's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    Production,
    Simulation,
}

/// A schedule request as the first member prepared it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    pub request: RequestId,
    /// Of the request's meaning; the same id with another body is a conflict.
    pub body: Digest16,
    /// The client chose the id (or an Idempotency-Key), so it is kept 15 minutes
    /// past the job's last change; a minted one only as long as our own retries live.
    pub keyed: bool,
    pub spec: Arc<JobSpec>,
}

/// A replica and the place it is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub replica: u16,
    pub alloc: Allocation,
}

/// What an agent says of one replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReportKind {
    Stage(Stage),
    /// It is gone: what it held is free.
    Ended {
        ok: bool,
        why: Reason,
    },
}

/// An agent's word on one replica of one generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub job: JobNo,
    pub replica: u16,
    pub generation: Generation,
    pub kind: ReportKind,
}

/// What a member tells the group about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub id: MemberId,
    pub name: NodeName,
    /// Public API, as a URL.
    pub api: Arc<str>,
    /// Member-to-member address.
    pub peer: Arc<str>,
    /// Feature levels this build can run.
    pub min_level: u32,
    pub max_level: u32,
    /// Version string of the build.
    pub version: Arc<str>,
}

/// What was decided. Append variants; a new one needs a feature level.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// First command of a group.
    Init {
        cluster: Arc<str>,
        mode: Mode,
        default_gpu_milli: u64,
    },
    Member(Member),
    RaiseLevel {
        to: u32,
    },
    Register {
        name: NodeName,
        kind: NodeKind,
        incarnation: Incarnation,
        spec: Arc<NodeSpec>,
    },
    SetNodeState {
        node: NodeNo,
        incarnation: Incarnation,
        to: NodeState,
    },
    SetCordon {
        node: NodeNo,
        cordon: Option<Cordon>,
    },
    CreateTenant {
        tenant: TenantId,
    },
    DeleteTenant {
        tenant: TenantId,
    },
    SetQuota {
        tenant: TenantId,
        quota: Quota,
    },
    /// A new job, with places for as many of its replicas as fit now.
    Submit {
        submission: Submission,
        placements: Vec<Placement>,
    },
    /// Places for waiting replicas.
    Place {
        job: JobNo,
        placements: Vec<Placement>,
    },
    Stop {
        job: JobNo,
        why: Reason,
    },
    Reports {
        node: NodeNo,
        incarnation: Incarnation,
        reports: Vec<Report>,
    },
}

impl Command {
    /// About how many bytes it takes in the log, without encoding it.
    pub fn weight(&self) -> usize {
        let places = |list: &[Placement]| list.iter().map(|p| 24 + 4 * p.alloc.shares.len()).sum::<usize>();
        match self {
            Command::Register { spec, .. } => 256 + 96 * (spec.devices.len() + spec.labels.len()),
            Command::Submit { submission, placements } => {
                256 + 64 * submission.spec.constraints.labels.len() + places(placements)
            }
            Command::Place { placements, .. } => 16 + places(placements),
            Command::Reports { reports, .. } => 16 + 16 * reports.len(),
            Command::SetNodeState { .. } | Command::Stop { .. } => 16,
            _ => 256,
        }
    }
}

/// What a command did, for the caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Done,
    /// A new job, or the one that the same request made earlier.
    Job {
        no: JobNo,
        replayed: bool,
    },
    Node {
        no: NodeNo,
        new: bool,
    },
    /// How many of the commanded changes took effect.
    Count(u32),
}
