//! Views: what the API shows of a job, with names instead of numbers. One place
//! makes them, so REST, gRPC, CLI and events say the same. It knows no protocol.

use crate::audit::Check;
use crate::claim::GaveWay;
use crate::disruption::Notice;
use crate::forecast;
use crate::id::{JobNo, ModelId, NodeName, NodeNo, RequestId, TenantId, VersionId};
use crate::job::{Allocation, Job, JobSpec, JobState, Move, Phase, Replica, Share, Stage, Transition};
use crate::mig::Slice;
use crate::node::{NodeState, address};
use crate::placement::{Policy, Terms, Why, explain};
use crate::policy;
use crate::reason::{Blocker, Reason};
use crate::rollout::{self, Outlook};
use crate::sharing::Kept;
use crate::state::State;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A job, for people and clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    pub no: JobNo,
    pub request: RequestId,
    pub tenant: TenantId,
    pub model: ModelId,
    pub version: VersionId,
    pub spec: Arc<JobSpec>,
    pub state: JobState,
    pub created_ms: u64,
    pub changed_ms: u64,
    pub replicas: Vec<ReplicaView>,
    /// Why it waits, most blocking first; empty when it does not.
    pub blockers: Vec<Blocker>,
    /// 1 is the next of its tenant's waiting jobs.
    pub position: Option<u32>,
    pub history: Vec<Transition>,
    /// To whom it gave way last.
    pub gave_way: Option<GaveWay>,
    /// What P1 to P7 say of it now.
    pub checks: [Check; 7],
    /// The change of its version, open or last.
    pub rollout: Option<Box<Outlook>>,
    /// The smallest set of changes that lets it run, each in words; only where somebody asks
    /// about this one job, since it takes the placer many tries to find.
    pub remedy: Vec<String>,
    /// From when on it may make others give way, where that is still to come.
    pub may_preempt_from_ms: Option<u64>,
    /// From when until when it will start, milliseconds since the epoch; None where it is not looked for or not known.
    pub expected_start: Option<(u64, u64)>,
}

/// A replica, for people and clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaView {
    pub no: u16,
    pub generation: u32,
    /// What it runs: another version than the job's in the middle of a rollout.
    pub version: VersionId,
    pub restarts: u16,
    /// In the words of CONVENTIONS.md: Scheduled, Ready, Draining, …
    pub status: Arc<str>,
    /// Why it ended, or why its last run did.
    pub why: Option<Reason>,
    pub place: Option<PlaceView>,
    /// Where its last launch was, while it has no place: whoever runs that node has its log.
    pub last_node: Option<NodeName>,
    /// Why that place; None while it has none.
    pub choice: Option<ChoiceView>,
    /// Its second copy, while it moves: the replacement, or what was replaced.
    pub other: Option<CopyView>,
    /// Until when it may save its state before it is stopped for the sake of others.
    pub saves_until_ms: Option<u64>,
}

/// The second copy of a replica that moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyView {
    pub generation: u32,
    /// `Draining` for what was replaced; for a replacement how far it has come.
    pub status: Arc<str>,
    pub why: Reason,
    pub place: Option<PlaceView>,
    pub saves_until_ms: Option<u64>,
}

/// Why a place was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChoiceView {
    pub policy: Policy,
    pub score: i64,
    pub terms: Terms,
    /// The best node that was not chosen, and its score.
    pub runner_up: Option<(NodeName, i64)>,
    pub candidates: u32,
}

/// Where a replica is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceView {
    pub node: NodeName,
    pub node_no: NodeNo,
    pub devices: Vec<DeviceView>,
    /// `host:port` at which it is reached, when it listens.
    pub address: Option<String>,
    pub simulated: bool,
}

/// A device, or part of one, that a replica holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceView {
    pub uuid: Arc<str>,
    pub index: u16,
    pub device_type: Arc<str>,
    pub milli: u16,
    pub kept: Kept,
}

impl DeviceView {
    /// What keeps the replica to what it holds; of a slice also which, and where on its GPU it begins.
    pub fn keeper(&self) -> String {
        match self.kept {
            Kept::Mig(slice) => format!("mig {}", slice.words(&self.device_type)),
            kept => kept.name().to_owned(),
        }
    }
}

/// The view of a live or finished job.
pub fn job(state: &State, job: &Job) -> JobView {
    let waits = job.wants_place();
    JobView {
        no: job.no,
        request: job.request.clone(),
        tenant: job.spec.tenant.clone(),
        model: job.spec.model.clone(),
        version: job.spec.version.clone(),
        spec: job.spec.clone(),
        state: job.state(),
        created_ms: job.created_ms,
        changed_ms: job.changed_ms,
        replicas: job.replicas.iter().enumerate().map(|(i, r)| replica(state, job, i as u16, r)).collect(),
        blockers: explain::blockers(state, job),
        position: waits.then(|| position(state, job)),
        history: job.history.clone(),
        gave_way: job.gave_way.as_deref().cloned(),
        checks: policy::standing(state, job),
        rollout: rollout::outlook(state, job).map(Box::new),
        remedy: Vec::new(),
        may_preempt_from_ms: explain::may_evict_from(state, job),
        expected_start: None,
    }
}

/// The same with all that takes a search to find: for those who ask about this one job.
pub fn explained(state: &State, job: &Job) -> JobView {
    let mut view = self::job(state, job);
    if job.wants_place() {
        view.blockers.extend(explain::rivals(state, job));
        view.remedy = explain::remedy(state, job);
        view.expected_start = forecast::expected_start(state, job);
    }
    view
}

/// Place in the tenant's own queue.
fn position(state: &State, job: &Job) -> u32 {
    let own = (job.tenant, -i32::from(job.spec.priority), job.no);
    let first = (job.tenant, i32::MIN, JobNo(0));
    state.waiting.range(first..=own).count() as u32
}

fn replica(state: &State, job: &Job, no: u16, r: &Replica) -> ReplicaView {
    let node = r.allocation().and_then(|alloc| state.node(alloc.node));
    let silent = node.is_some_and(|node| matches!(node.state, NodeState::Unknown | NodeState::Down));
    let (status, why) = match &r.phase {
        Phase::Waiting { last, .. } => ("Waiting", *last),
        Phase::Held { .. } if silent => ("Unknown", None),
        Phase::Held { stage, .. } => (stage_name(*stage), None),
        Phase::Stopping { why, .. } => ("Draining", Some(*why)),
        Phase::Succeeded => ("Stopped", None),
        Phase::Failed { why } => ("Failed", Some(*why)),
        Phase::Cancelled => ("Stopped", None),
    };
    let place = r.allocation().and_then(|alloc| place(state, alloc));
    let last = r.last.filter(|_| place.is_none()).and_then(|last| state.node(last));
    let other = match &r.moving {
        Some(Move::Coming { generation, alloc, stage, why, .. }) => Some(CopyView {
            generation: generation.0,
            status: stage_name(*stage).into(),
            why: *why,
            place: self::place(state, alloc),
            saves_until_ms: None,
        }),
        Some(Move::Going { generation, alloc, why, notice, .. }) => Some(CopyView {
            generation: generation.0,
            status: "Draining".into(),
            why: *why,
            place: self::place(state, alloc),
            saves_until_ms: notice.map(Notice::until_ms),
        }),
        _ => None,
    };
    // While it moves, the choice on record is that of the place it goes to.
    let settled = place.is_some() && !matches!(r.moving, Some(Move::Coming { .. }));
    let choice = r.choice.as_ref().filter(|_| settled).map(|why| choice(state, why));
    ReplicaView {
        no,
        generation: r.generation.0,
        version: job.spec_of(r.revision).version.clone(),
        restarts: r.restarts,
        status: status.into(),
        why,
        place,
        last_node: last.map(|node| node.name.clone()),
        choice,
        other,
        saves_until_ms: r.notice_of(r.generation).map(Notice::until_ms),
    }
}

/// Why a place was chosen, with names.
pub fn choice(state: &State, why: &Why) -> ChoiceView {
    let Why { policy, score, ref terms, runner_up, candidates } = *why;
    let runner_up = runner_up.and_then(|(no, score)| Some((state.node(no)?.name.clone(), score)));
    ChoiceView { policy, score, terms: *terms, runner_up, candidates }
}

/// Where an allocation is, or would be; None when its node is not known.
pub fn place(state: &State, alloc: &Allocation) -> Option<PlaceView> {
    let node = state.node(alloc.node)?;
    let device = |share: &Share| {
        let device = node.spec.devices.get(usize::from(share.device))?;
        Some(DeviceView {
            uuid: device.uuid.clone(),
            index: share.device,
            device_type: device.device_type.as_str().into(),
            milli: share.milli,
            kept: share.kept,
        })
    };
    Some(PlaceView {
        node: node.name.clone(),
        node_no: node.no,
        devices: alloc.shares.iter().filter_map(device).collect(),
        address: alloc.port.map(|port| address(&node.spec.host, port)),
        simulated: node.spec.simulated,
    })
}

/// The slices that are made of a node's device, by where they begin.
pub fn slices(state: &State, node: NodeNo, device: u16) -> Vec<Slice> {
    let held = state
        .replicas_on(node)
        .filter_map(|(.., replica)| replica.copy_on(node))
        .flat_map(|(_, alloc, _)| &alloc.shares);
    let mut out: Vec<Slice> = held
        .filter(|share| share.device == device)
        .filter_map(|share| match share.kept {
            Kept::Mig(slice) => Some(slice),
            _ => None,
        })
        .collect();
    out.sort_unstable_by_key(|slice| slice.start);
    out
}

/// The word for a stage.
pub fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Scheduled => "Scheduled",
        Stage::Downloading => "Downloading",
        Stage::Verifying => "Verifying",
        Stage::Starting => "Starting",
        Stage::Ready => "Ready",
        Stage::NotReady => "NotReady",
    }
}
