//! A job: one schedule request, its replicas, and the legal transitions between
//! their phases. The job's own state is derived from its replicas, so the two
//! can't disagree. It does not know nodes or quotas.

mod evidence;
mod progress;
mod whereabouts;

pub use evidence::{Evidence, Publishers, Signer};
pub use progress::{JobState, Ran, Transition};
pub use whereabouts::Whereabouts;

use crate::audit::Person;
use crate::autoscaler::Learned;
use crate::claim::{Claim, GaveWay};
use crate::disruption::Notice;
use crate::id::{
    DeviceType, Generation, JobNo, Label, ModelId, NodeName, NodeNo, RequestId, Revision, TenantId, TenantNo, VersionId,
};
use crate::model_budget::ModelBudget;
use crate::placement::Why;
use crate::reason::Reason;
use crate::resources::{Resources, WHOLE};
use crate::rollout::Rollout;
use crate::scaling::Scaling;
use crate::sharing::Kept;
use crate::topology::Topology;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The most replicas one job can have.
pub const MAX_REPLICAS: u16 = 1024;
/// So long the rest of a gang may hold its places while a member finds none, in milliseconds.
pub const LONGEST_TORN_MS: u64 = 60_000;
/// How many transitions a job remembers; older ones are in the events.
pub const HISTORY: usize = 16;

/// Spread over nodes, or pack onto few; where nothing is said, as the policy has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Arrangement {
    #[default]
    Any,
    Pack,
    Spread,
}

/// When a replica that ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Restart {
    #[default]
    Always,
    OnFailure,
    Never,
}

/// Where and how a job may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Constraints {
    /// Bound on the model's p95 latency, for the placer and later the autoscaler.
    pub latency_ms: Option<u32>,
    pub region: Option<Label>,
    pub zone: Option<Label>,
    pub rack: Option<Label>,
    pub labels: BTreeMap<Label, Label>,
    pub arrangement: Arrangement,
    /// All devices of a replica share one NVLink island.
    pub same_island: bool,
    /// Millionths of the currency unit, all replicas together.
    pub max_cost_per_hour: Option<u64>,
    /// Exactly this node.
    pub node: Option<NodeName>,
    /// Never two copies at once, also when a node is cut off.
    pub exclusive: bool,
    pub preemptible: bool,
    pub restart: Restart,
    /// So long it may run in all, in milliseconds: see [`Ran`].
    pub max_run_ms: Option<u64>,
    /// Never moved only so that others have room.
    pub stay: bool,
    /// How long its program may take to save its state before it is stopped for the sake of others, in milliseconds.
    pub checkpoint_ms: Option<u32>,
    /// So many of its replicas may be missing at once by others' will; None: any number.
    pub max_unavailable: Option<u16>,
    /// Which racks, zones or regions its replicas share.
    pub topology: Topology,
    /// Requests in a million that may end with a server's error; None: nothing is promised of errors alone.
    pub error_ppm: Option<u32>,
}

/// Which program runs the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Runtime {
    Simulated,
    Process,
    /// A container of the node's engine.
    Docker,
    /// None: the model's files are brought to the node, verified, and kept in its cache as long as the job lasts.
    Prefetch,
}

impl Runtime {
    pub fn name(self) -> &'static str {
        match self {
            Runtime::Simulated => "simulated",
            Runtime::Process => "process",
            Runtime::Docker => "docker",
            Runtime::Prefetch => "prefetch",
        }
    }
}

/// What is wanted. Immutable once accepted, hence shared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    pub tenant: TenantId,
    pub model: ModelId,
    pub version: VersionId,
    pub resources: Resources,
    pub replicas: u16,
    /// All replicas at once, or none.
    pub gang: bool,
    pub constraints: Constraints,
    /// Higher goes first; -1000..=1000.
    pub priority: i16,
    pub runtime: Runtime,
    /// SHA-256 of the model's manifest as the admitting member read it; None when
    /// no store knows the version, which only simulation allows.
    pub manifest: Option<[u8; 32]>,
    pub approved_by: Option<Arc<str>>,
    /// A service: its number of replicas follows its load.
    pub scaling: Option<Scaling>,
    /// Whose signature the admitting member verified; it names `manifest` and nothing else.
    pub evidence: Option<Evidence>,
    /// Who asked for it, where an approval let it in: that person's own word lets nothing in, later either.
    pub asked_by: Option<Person>,
    /// What kinds of data the version holds, as its manifest says; some need a consent.
    pub data_classes: Vec<Label>,
    /// Its runtime keeps to its part of a device by itself, as its manifest says.
    pub self_limiting: bool,
    /// What it may take, as its manifest says.
    pub budget: ModelBudget,
    /// The floor that it went below when a rollback brought it back.
    pub below: Option<VersionId>,
}

impl JobSpec {
    /// One simulated replica without wishes beyond its resources.
    pub fn plain(tenant: TenantId, model: ModelId, version: VersionId, resources: Resources) -> Self {
        Self {
            tenant,
            model,
            version,
            resources,
            replicas: 1,
            gang: false,
            constraints: Constraints::default(),
            priority: 0,
            runtime: Runtime::Simulated,
            manifest: None,
            approved_by: None,
            evidence: None,
            asked_by: None,
            data_classes: Vec::new(),
            self_limiting: false,
            budget: ModelBudget::default(),
            below: None,
            scaling: None,
        }
    }
}

/// Part of a device held by a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Share {
    /// Index into the node's devices.
    pub device: u16,
    /// Thousandths, 1..=1000.
    pub milli: u16,
    pub kept: Kept,
}

/// What a replica holds, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    pub node: NodeNo,
    /// Sorted by device.
    pub shares: Vec<Share>,
    pub port: Option<u16>,
    /// Log time at which it was given; where it was first held until the copy before was gone, at which that was.
    pub at_ms: u64,
}

impl Share {
    /// Thousandths of devices that quotas count: a slice is a device.
    pub fn counted(&self) -> u64 {
        match self.kept {
            Kept::Mig(_) => u64::from(WHOLE),
            _ => u64::from(self.milli),
        }
    }
}

impl Allocation {
    /// Indexes of the devices of which it holds something.
    pub fn devices(&self) -> impl Iterator<Item = u16> + '_ {
        self.shares.iter().map(|share| share.device)
    }
}

/// How far a placed replica has come, as its agent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stage {
    /// Placed; the agent has not spoken yet.
    Scheduled,
    Downloading,
    Verifying,
    Starting,
    Ready,
    NotReady,
}

/// Where a replica is in its life. Each phase owns its data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Waits for a place since `since_ms`; not before `not_before_ms` (back-off after a failure).
    Waiting {
        since_ms: u64,
        not_before_ms: u64,
        last: Option<Reason>,
    },
    /// Holds an allocation and should run.
    Held {
        alloc: Allocation,
        stage: Stage,
    },
    /// Holds an allocation and should stop; `then` says what follows.
    Stopping {
        alloc: Allocation,
        why: Reason,
        then: Next,
        /// It may save its state first.
        notice: Option<Notice>,
    },
    Succeeded,
    Failed {
        why: Reason,
    },
    Cancelled,
}

/// What follows a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    Again,
    End,
    /// It starts again in the same place, as that revision.
    Here(Revision),
}

/// What else there is of a replica that moves: it has two copies for a while, on two nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Move {
    /// The replacement. It takes over once it is Ready, or when the one before it is gone.
    Coming {
        generation: Generation,
        alloc: Allocation,
        stage: Stage,
        why: Reason,
        /// Replacements that failed before this one.
        tries: u16,
        /// What it runs: another one than the copy before it, in a rollout.
        revision: Revision,
    },
    /// What was replaced. It should stop, and holds its place until its agent says that it is gone.
    Going { generation: Generation, alloc: Allocation, why: Reason, revision: Revision, notice: Option<Notice> },
    /// The last replacement failed; the next one is not tried before `until_ms`.
    Later { until_ms: u64, tries: u16, why: Reason },
}

/// How a replica may be moved to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Movable {
    /// Its replacement is Ready before it stops.
    Surge,
    /// Its place elsewhere is held for it, then it stops, then it starts there: two
    /// copies at once are forbidden (exclusive), or make no sense (a rank of a gang).
    Swap,
    /// It may not be started again.
    Never,
}

/// One of a replica's copies, as it stands on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy<'a> {
    Own(&'a Phase),
    Coming(Stage),
    Going(Reason),
}

/// One running copy; two while it moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    pub generation: Generation,
    /// The highest generation that any of its copies ever had: none is given twice.
    pub newest: Generation,
    /// Times in a row that it was started again after a failure of its own; ten minutes without one end the row.
    pub restarts: u16,
    pub phase: Phase,
    pub moving: Option<Move>,
    /// Why it has the place that it holds, or held last.
    pub choice: Option<Arc<Why>>,
    /// What it runs, or will when it starts.
    pub revision: Revision,
    /// Where its last launch was that is over: its log is there.
    pub last: Option<NodeNo>,
}

impl Replica {
    pub fn waiting(revision: Revision, now_ms: u64) -> Self {
        let phase = Phase::Waiting { since_ms: now_ms, not_before_ms: 0, last: None };
        let (generation, newest) = (Generation(0), Generation(0));
        Self { generation, newest, restarts: 0, phase, moving: None, choice: None, revision, last: None }
    }

    /// The allocation of the replica itself, while one is held; [`Replica::allocations`] has those of its move, too.
    pub fn allocation(&self) -> Option<&Allocation> {
        match &self.phase {
            Phase::Held { alloc, .. } | Phase::Stopping { alloc, .. } => Some(alloc),
            _ => None,
        }
    }

    /// What the other copy of a move holds.
    pub fn other_allocation(&self) -> Option<&Allocation> {
        match &self.moving {
            Some(Move::Coming { alloc, .. } | Move::Going { alloc, .. }) => Some(alloc),
            _ => None,
        }
    }

    /// The node that it is on, or will be once its move is over; None while it has none to stay on.
    pub fn home(&self) -> Option<NodeNo> {
        match (&self.moving, &self.phase) {
            (Some(Move::Coming { alloc, .. }), _)
            | (_, Phase::Held { alloc, .. } | Phase::Stopping { alloc, then: Next::Here(_), .. }) => Some(alloc.node),
            _ => None,
        }
    }

    /// All that is held: at most two allocations, on two nodes.
    pub fn allocations(&self) -> impl Iterator<Item = &Allocation> {
        self.allocation().into_iter().chain(self.other_allocation())
    }

    /// The copies that hold them: generation, what each runs, and where.
    pub fn copies(&self) -> impl Iterator<Item = (Generation, Revision, &Allocation)> {
        let own = self.allocation().map(|alloc| (self.generation, self.revision, alloc));
        let other = match &self.moving {
            Some(
                Move::Coming { generation, alloc, revision, .. } | Move::Going { generation, alloc, revision, .. },
            ) => Some((*generation, *revision, alloc)),
            _ => None,
        };
        own.into_iter().chain(other)
    }

    /// The copy that holds something on the node, with its generation.
    pub fn copy_on(&self, node: NodeNo) -> Option<(Generation, &Allocation, Copy<'_>)> {
        if let Some(alloc) = self.allocation().filter(|alloc| alloc.node == node) {
            return Some((self.generation, alloc, Copy::Own(&self.phase)));
        }
        match &self.moving {
            Some(Move::Coming { generation, alloc, stage, .. }) if alloc.node == node => {
                Some((*generation, alloc, Copy::Coming(*stage)))
            }
            Some(Move::Going { generation, alloc, why, .. }) if alloc.node == node => {
                Some((*generation, alloc, Copy::Going(*why)))
            }
            _ => None,
        }
    }

    /// What its copy of that generation runs.
    pub fn revision_of(&self, generation: Generation) -> Revision {
        match &self.moving {
            Some(
                Move::Coming { generation: other, revision, .. } | Move::Going { generation: other, revision, .. },
            ) if *other == generation => *revision,
            _ => self.revision,
        }
    }

    pub fn is_waiting(&self) -> bool {
        matches!(self.phase, Phase::Waiting { .. })
    }

    /// Since when it waits for a place that it may have; None when it does not wait.
    pub fn waits_since(&self) -> Option<u64> {
        match self.phase {
            Phase::Waiting { since_ms, not_before_ms, .. } => Some(since_ms.max(not_before_ms)),
            _ => None,
        }
    }

    /// What its copy of that generation was told before it is stopped.
    pub fn notice_of(&self, generation: Generation) -> Option<Notice> {
        match (&self.phase, &self.moving) {
            (Phase::Stopping { notice, .. }, _) if generation == self.generation => *notice,
            (_, Some(Move::Going { generation: other, notice, .. })) if generation == *other => *notice,
            _ => None,
        }
    }

    /// Its former copy has not gone yet.
    pub fn is_leaving(&self) -> bool {
        matches!(self.moving, Some(Move::Going { .. }))
    }

    /// Nothing of it is left, and nothing will come.
    pub fn has_ended(&self) -> bool {
        self.phase.is_over() && self.other_allocation().is_none()
    }
}

impl Phase {
    pub fn is_over(&self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed { .. } | Phase::Cancelled)
    }
}

impl JobSpec {
    /// The most replicas that it can ever have.
    pub fn most_replicas(&self) -> u16 {
        self.scaling.map_or(self.replicas, |scaling| scaling.max)
    }

    /// Nothing says that it will ever end by itself: a service, until somebody ends it.
    pub fn stays(&self) -> bool {
        self.constraints.max_run_ms.is_none() && self.constraints.restart == Restart::Always
    }

    /// It runs only where a container engine is.
    pub fn needs_engine(&self) -> bool {
        self.runtime == Runtime::Docker
    }

    /// How its replicas may be moved.
    pub fn movable(&self) -> Movable {
        match () {
            () if self.constraints.restart == Restart::Never => Movable::Never,
            () if self.constraints.exclusive || self.gang => Movable::Swap,
            () => Movable::Surge,
        }
    }
}

/// A schedule request and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub no: JobNo,
    pub request: RequestId,
    pub tenant: TenantNo,
    pub spec: Arc<JobSpec>,
    pub replicas: Vec<Replica>,
    /// Someone asked for it to end.
    pub stopped: bool,
    /// The place that it gets when others have given way.
    pub claim: Option<Box<Claim>>,
    /// To whom it gave way last.
    pub gave_way: Option<Box<GaveWay>>,
    pub created_ms: u64,
    pub changed_ms: u64,
    /// The last [`HISTORY`] transitions, oldest first.
    pub history: Vec<Transition>,
    /// Of `spec`.
    pub revision: Revision,
    /// The change of its version that is open, or the last one.
    pub rollout: Option<Box<Rollout>>,
    /// The newest revision that was ever Ready; 0 before the first.
    pub deployed: Revision,
    /// What its autoscaler has learned, for the next leader's.
    pub learned: Option<Arc<Learned>>,
    /// How long it has run.
    pub ran: Ran,
}

impl Job {
    /// Derived from the replicas; see the table in docs/architecture.md.
    pub fn state(&self) -> JobState {
        if self.is_asleep() {
            return JobState::Admitted;
        }
        let any = |test: fn(&Phase) -> bool| self.replicas.iter().any(|r| test(&r.phase));
        let all = |test: fn(&Phase) -> bool| self.replicas.iter().all(|r| test(&r.phase));
        if self.replicas.iter().all(Replica::has_ended) {
            return match () {
                () if any(|p| matches!(p, Phase::Failed { why: Reason::NodeFailure })) => JobState::Lost,
                () if any(|p| matches!(p, Phase::Failed { why: Reason::Preempted | Reason::QuotaReclaimed })) => {
                    JobState::Preempted
                }
                () if any(|p| matches!(p, Phase::Failed { .. })) => JobState::Failed,
                () if any(|p| matches!(p, Phase::Cancelled)) => JobState::Cancelled,
                () => JobState::Succeeded,
            };
        }
        if self.stopped || all(Phase::is_over) {
            return JobState::Draining;
        }
        if any(|p| matches!(p, Phase::Held { stage: Stage::Ready, .. })) {
            return JobState::Running;
        }
        let started = |p: &Phase| matches!(p, Phase::Held { stage, .. } if *stage != Stage::Scheduled);
        if any(started) {
            return JobState::Starting;
        }
        if all(|p| !matches!(p, Phase::Waiting { .. })) && any(|p| matches!(p, Phase::Held { .. })) {
            return JobState::Admitted;
        }
        JobState::Pending
    }

    /// A replica waits for a place (whether or not its back-off is over).
    pub fn wants_place(&self) -> bool {
        !self.stopped && self.replicas.iter().any(Replica::is_waiting)
    }

    /// When the first of the waiting replicas may be placed, if that is later than at once.
    pub(crate) fn wake_ms(&self) -> Option<u64> {
        let times = self.replicas.iter().filter_map(|r| match r.phase {
            Phase::Waiting { not_before_ms, .. } if not_before_ms > 0 => Some(not_before_ms),
            _ => None,
        });
        times.min()
    }

    /// Replicas that could be placed at `now_ms`.
    pub fn placeable(&self, now_ms: u64) -> impl Iterator<Item = u16> + '_ {
        let ready =
            move |r: &Replica| matches!(r.phase, Phase::Waiting { not_before_ms, .. } if not_before_ms <= now_ms);
        // A former copy may still hold the very devices and port that would be chosen.
        let placeable = move |r: &Replica| !self.stopped && ready(r) && !r.is_leaving();
        let whole = self.is_whole_with(|no| self.replicas.get(usize::from(no)).is_some_and(placeable));
        let each = self.replicas.iter().enumerate().filter(move |(_, r)| whole && placeable(r));
        each.map(|(i, _)| i as u16)
    }

    /// Whether a gang is all there once those members have a place: it starts as one, after a fault too. Any other job
    /// starts replica by replica.
    pub fn is_whole_with(&self, placed: impl Fn(u16) -> bool) -> bool {
        let there = |r: &Replica| match &r.phase {
            Phase::Waiting { .. } => false,
            // Unless its place elsewhere is held for it already.
            Phase::Stopping { then: Next::Again, .. } => matches!(r.moving, Some(Move::Coming { .. })),
            _ => true,
        };
        !self.spec.gang || self.replicas.iter().enumerate().all(|(no, r)| there(r) || placed(no as u16))
    }

    /// Whether it is a gang of which some hold places, of no use to anybody, while others have found none for too long.
    pub fn is_torn(&self, now_ms: u64) -> bool {
        let long = self.waits_since().is_some_and(|since| since.saturating_add(LONGEST_TORN_MS) <= now_ms);
        let holds = |r: &Replica| matches!(r.phase, Phase::Held { .. });
        long && self.spec.gang && !self.stopped && self.claim.is_none() && self.replicas.iter().any(holds)
    }

    /// Log time at which it will have run for as long as it may, were it to run from now on; None where nothing says so.
    pub fn over_at(&self, now_ms: u64) -> Option<u64> {
        let most = self.spec.constraints.max_run_ms?;
        Some(now_ms.saturating_add(most.saturating_sub(self.ran.until_ms(now_ms))))
    }

    /// Appends to the history when the state changed.
    pub fn note(&mut self, at_ms: u64, before: JobState, why: Option<Reason>) {
        self.changed_ms = at_ms;
        let state = self.state();
        self.ran.note(at_ms, state == JobState::Running);
        if state != before {
            if self.history.len() == HISTORY {
                self.history.remove(0);
            }
            self.history.push(Transition { at_ms, state, why });
        }
    }
}

/// The device types of a request, sorted and without duplicates.
pub fn device_types(mut types: Vec<DeviceType>) -> Vec<DeviceType> {
    types.sort();
    types.dedup();
    types
}
