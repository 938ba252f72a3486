//! Commands: what was decided. Several make one log entry. They carry every
//! number that apply needs, because apply reads nothing but its arguments.

use crate::approval::{Approval, Version};
use crate::audit::{Action, Actor, Check, Person, Refs};
use crate::claim::Claim;
use crate::consent::Consent;
use crate::fault::Fault;
use crate::id::{
    DeviceType, Digest16, Generation, Incarnation, JobNo, Label, MemberId, NodeName, NodeNo, RequestId, Revision,
    TenantId, TenantNo,
};
use crate::job::{Allocation, Evidence, JobSpec, Publishers, Signer, Stage};
use crate::join::{JoinToken, Shown};
use crate::node::{Cordon, Device, DrainState, NodeKind, NodeSpec, NodeState};
use crate::placement::{Chosen, Why};
use crate::quarantine::Release;
use crate::reason::Reason;
use crate::rollout::{Next, Strategy, Turn};
use crate::scaling::Target;
use crate::tenant::Quota;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One log entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The state's `base` that the commands were planned on. At any other base
    /// the entry changes nothing (DESIGN: speculation is exact or void).
    pub base: u64,
    /// The leader's clock, milliseconds since the epoch.
    pub at_ms: u64,
    pub commands: Vec<Command>,
    /// Who wanted them, each once.
    pub actors: Vec<Actor>,
    /// For each command, in order, the number of its actor from 1; 0, or nothing at the end, for none.
    pub by: Vec<u16>,
}

impl Batch {
    /// Adds a command that somebody wanted, or that follows from what is.
    pub fn push(&mut self, command: Command, by: Option<&Actor>) {
        if let Some(actor) = by {
            let known = self.actors.iter().rposition(|known| known == actor);
            let no = known.unwrap_or_else(|| {
                self.actors.push(actor.clone());
                self.actors.len() - 1
            });
            self.by.resize(self.commands.len(), 0);
            self.by.push(no as u16 + 1);
        }
        self.commands.push(command);
    }

    /// Who wanted the command of that place.
    pub fn actor(&self, place: usize) -> Option<&Actor> {
        let no = usize::from(self.by.get(place).copied().unwrap_or(0));
        self.actors.get(no.checked_sub(1)?)
    }
}

/// Fixed at `nf cluster init`, for the group's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    Production,
    Simulation,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Production => "production",
            Mode::Simulation => "simulation",
        }
    }
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
    /// Kept with the replica, for those who ask later.
    pub why: Option<Arc<Why>>,
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

/// A fault of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFault {
    pub uuid: Arc<str>,
    pub fault: Fault,
    /// Made up, for a device that is played.
    pub simulated: bool,
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
    /// Commands and meanings of that feature level may be used from now on.
    RaiseLevel {
        to: u32,
        /// Who is in the group: those that left and can't run it don't hold it back.
        members: Vec<MemberId>,
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
        /// Who gives way to it, and the place that it gets then.
        claim: Option<Box<Claim>>,
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
    /// A token that counts no more. Its id is there as a digest: whoever reads the log learns none.
    RevokeToken {
        token: Digest16,
    },
    /// Something that is done outside the state, or was refused before it came here, for the audit trail.
    Note(Note),
    /// Another number of replicas for a service.
    Scale {
        job: JobNo,
        target: Target,
    },
    /// A replacement, elsewhere, of the copy that has generation `from`.
    Move {
        job: JobNo,
        from: Generation,
        to: Placement,
        why: Reason,
    },
    /// The copy of generation `from` stops, replaced or not; it waits for a place again if it may.
    Evict {
        job: JobNo,
        replica: u16,
        from: Generation,
        why: Reason,
    },
    SetDrain {
        node: NodeNo,
        to: DrainState,
    },
    Faults {
        node: NodeNo,
        faults: Vec<DeviceFault>,
    },
    /// The device may be used again; `by` is None when its time is over.
    Heal {
        node: NodeNo,
        uuid: Arc<str>,
        by: Option<Arc<str>>,
    },
    /// How places are compared from now on.
    SetPlacement(Chosen),
    /// Others give way to a waiting job.
    Preempt {
        job: JobNo,
        claim: Box<Claim>,
    },
    /// A version may run in production; replaces what was said of it before.
    Approve(Box<Approval>),
    /// It may no more.
    Disapprove(Box<Version>),
    /// A tenant lets data about people be kept on nodes.
    Consent(Box<Consent>),
    /// It does so no more.
    Dissent {
        tenant: TenantId,
        statement: [u8; 32],
    },
    /// A node has removed copies of personal data, each as its slice named it.
    Purged {
        node: NodeNo,
        incarnation: Incarnation,
        copies: Vec<(Digest16, u64)>,
    },
    /// Nothing but the time of its entry.
    Tick,
    /// A job goes to another version of its model.
    StartRollout {
        job: JobNo,
        next: Box<Next>,
        strategy: Strategy,
        rollback: bool,
        by: Option<Arc<str>>,
    },
    /// Its rollout of that revision takes another course.
    TurnRollout {
        job: JobNo,
        revision: Revision,
        turn: Turn,
    },
    /// The copy of generation `from` is replaced by one of another revision: there, or in its own place.
    Renew {
        job: JobNo,
        replica: u16,
        from: Generation,
        revision: Revision,
        to: Option<Placement>,
    },
    /// What these tenants use is counted up to now: a window of their budgets is over, or a limit near.
    CountUsage {
        tenants: Vec<TenantNo>,
    },
    /// A machine may join with this.
    AddJoinToken(Box<JoinToken>),
    /// It does.
    SpendJoinToken(Box<Shown>),
    /// No machine may any more.
    DropJoinToken {
        id: Digest16,
    },
    /// A version leaves its quarantine: somebody has looked into what a node found.
    Release(Box<Release>),
    /// The key of the trail, where there is none yet.
    KeyTrail([u8; 32]),
}

/// What is told of something that leaves no other command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub action: Action,
    /// Kind and id.
    pub object: Arc<str>,
    pub refused: Option<Reason>,
    /// How often within the minute.
    pub count: u32,
    /// What P1 to P7 said of it, and by what evidence; na and nothing where no policy was asked.
    pub checks: [Check; 7],
    pub refs: Refs,
}

impl Note {
    pub fn new(action: Action, object: impl Into<Arc<str>>) -> Self {
        let (checks, refs) = Default::default();
        Self { action, object: object.into(), refused: None, count: 1, checks, refs }
    }

    /// Of something that was refused.
    pub fn refused(action: Action, object: impl Into<Arc<str>>, reason: Reason) -> Self {
        Self { refused: Some(reason), ..Self::new(action, object) }
    }
}

impl Command {
    /// About how many bytes it takes in the log, without encoding it.
    pub fn weight(&self) -> usize {
        let claim_of = |claim: &Claim| 16 + 16 * claim.victims.len() + 80 * claim.placements.len();
        let places = |list: &[Placement]| {
            list.iter().map(|p| 24 + 40 * usize::from(p.why.is_some()) + 6 * p.alloc.shares.len()).sum::<usize>()
        };
        match self {
            Command::Init { cluster, .. } => 32 + cluster.len(),
            Command::Member(Member { name, api, peer, version, .. }) => {
                32 + name.as_str().len() + api.len() + peer.len() + version.len()
            }
            Command::Register { name, spec, .. } => 32 + name.as_str().len() + weight_of_node(spec),
            Command::SetCordon { cordon, .. } => 32 + cordon.as_ref().map_or(0, |c| c.by.len() + c.reason.len()),
            Command::CreateTenant { tenant } | Command::DeleteTenant { tenant } => 16 + tenant.as_str().len(),
            Command::SetQuota { tenant, quota } => {
                64 + tenant.as_str().len() + quota.budgets.as_ref().map_or(0, |_| 66)
            }
            Command::Submit { submission, placements, claim } => {
                claim.as_ref().map_or(0, |claim| claim_of(claim))
                    + 32
                    + submission.request.as_str().len()
                    + weight_of_job(&submission.spec)
                    + places(placements)
            }
            Command::Preempt { claim, .. } => 16 + claim_of(claim),
            Command::Place { placements, .. } => 16 + places(placements),
            Command::Reports { reports, .. } => 24 + 20 * reports.len(),
            Command::Scale { target, .. } => {
                24 + target.inputs.as_ref().map_or(0, |_| 97) + target.learned.as_ref().map_or(0, |news| news.weight())
            }
            Command::Faults { faults, .. } => 16 + faults.iter().map(|f| 8 + f.uuid.len()).sum::<usize>(),
            Command::Heal { uuid, by, .. } => 24 + uuid.len() + by.as_ref().map_or(0, |by| by.len()),
            Command::Move { to, .. } => 24 + places(std::slice::from_ref(to)),
            Command::StartRollout { next, by, .. } => 112 + weight_of_next(next) + by.as_ref().map_or(0, |by| by.len()),
            Command::TurnRollout { .. } => 80,
            Command::Renew { to, .. } => 32 + places(to.as_slice()),
            Command::SetNodeState { .. }
            | Command::Stop { .. }
            | Command::RaiseLevel { .. }
            | Command::Evict { .. }
            | Command::SetPlacement(_)
            | Command::SetDrain { .. }
            | Command::RevokeToken { .. }
            | Command::DropJoinToken { .. } => 24,
            Command::Note(note) => 160 + note.object.len() + note.refs.key_id.as_ref().map_or(0, |id| id.len()),
            Command::Approve(approval) => 64 + weight_of_version(&approval.of) + weight_of_person(&approval.by),
            Command::Disapprove(of) => 16 + weight_of_version(of),
            Command::Release(asked) => 48 + weight_of_version(&asked.of),
            Command::Consent(consent) => weight_of_consent(consent),
            Command::Dissent { tenant, .. } => 48 + tenant.as_str().len(),
            Command::Purged { copies, .. } => 24 + 26 * copies.len(),
            Command::Tick => 8,
            Command::KeyTrail(_) => 40,
            Command::CountUsage { tenants } => 8 + 4 * tenants.len(),
            Command::AddJoinToken(token) => {
                80 + token.node.as_ref().map_or(0, |node| node.as_str().len())
                    + token.by.as_ref().map_or(0, weight_of_person)
            }
            Command::SpendJoinToken(shown) => 104 + shown.node.as_str().len(),
        }
    }
}

fn weight_of_person(of: &Person) -> usize {
    8 + of.subject.len() + of.issuer.as_ref().map_or(0, |issuer| issuer.len())
}

fn weight_of_next(next: &Next) -> usize {
    next.version.as_str().len()
        + next.approved_by.as_ref().map_or(0, |who| who.len())
        + next.asked_by.as_ref().map_or(0, weight_of_person)
        + next.data_classes.iter().map(|class| 1 + class.as_str().len()).sum::<usize>()
        + next.evidence.as_ref().map_or(0, weight_of_evidence)
        + 16
}

fn weight_of_evidence(of: &Evidence) -> usize {
    37 + of.key_id.len()
        + of.min_version.as_ref().map_or(0, |version| 2 + version.as_str().len())
        + match &of.publishers {
            Publishers::Unsaid => 1,
            Publishers::Unlisted { key } => 3 + key.len(),
            Publishers::Known(signers) => {
                let issuer = |who: &Signer| who.issuer.as_ref().map_or(0, |issuer| issuer.len());
                2 + signers.iter().map(|who| 8 + who.subject.len() + issuer(who)).sum::<usize>()
            }
        }
}

fn weight_of_version(of: &Version) -> usize {
    of.tenant.as_str().len() + of.model.as_str().len() + of.version.as_str().len()
}

fn weight_of_consent(consent: &Consent) -> usize {
    let scope = &consent.scope;
    let names = [scope.model.as_ref().map(|m| m.as_str()), scope.version.as_ref().map(|v| v.as_str())];
    80 + scope.tenant.as_str().len()
        + scope.classes.iter().map(|class| 2 + class.as_str().len()).sum::<usize>()
        + names.iter().flatten().map(|name| name.len()).sum::<usize>()
        + consent.key_id.len()
        + consent.by.as_ref().map_or(0, weight_of_person)
}

fn weight_of_labels(labels: &std::collections::BTreeMap<Label, Label>) -> usize {
    labels.iter().map(|(key, value)| 4 + key.as_str().len() + value.as_str().len()).sum()
}

fn weight_of_place(place: [&Option<Label>; 3]) -> usize {
    place.into_iter().flatten().map(|label| 4 + label.as_str().len()).sum()
}

fn weight_of_node(spec: &NodeSpec) -> usize {
    let kind = |kind: &DeviceType| 2 + kind.as_str().len();
    let device = |d: &Device| 25 + d.uuid.len() + kind(&d.device_type) + d.mig_profile.as_ref().map_or(0, kind);
    let prices = spec.cost_per_hour.keys().map(|of| 10 + kind(of));
    64 + spec.host.len()
        + spec.devices.iter().map(device).sum::<usize>()
        + weight_of_labels(&spec.labels)
        + weight_of_place([&spec.region, &spec.zone, &spec.rack])
        + prices.sum::<usize>()
}

fn weight_of_job(spec: &JobSpec) -> usize {
    let (r, c) = (&spec.resources, &spec.constraints);
    let names = spec.tenant.as_str().len() + spec.model.as_str().len() + spec.version.as_str().len();
    let types = r.device_types.iter().chain(&r.mig_profile).map(|kind| 2 + kind.as_str().len());
    176 + names
        + types.sum::<usize>()
        + weight_of_labels(&c.labels)
        + weight_of_place([&c.region, &c.zone, &c.rack])
        + c.node.as_ref().map_or(0, |node| node.as_str().len())
        + spec.approved_by.as_ref().map_or(0, |who| who.len())
        + spec.data_classes.iter().map(|class| 2 + class.as_str().len()).sum::<usize>()
        + spec.asked_by.as_ref().map_or(0, weight_of_person)
        + spec.evidence.as_ref().map_or(0, weight_of_evidence)
        + spec.below.as_ref().map_or(0, |version| 2 + version.as_str().len())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::plan::{Intent, plan};
    use crate::resources::Gpus;
    use crate::state::State;
    use crate::testing;

    /// Bytes in the log, and the estimate.
    fn sizes(command: Command) -> (usize, usize) {
        let weight = command.weight();
        (codec::encode(&Batch { base: 1, at_ms: 1, commands: vec![command], ..Batch::default() }).len(), weight)
    }

    fn planned(intent: &crate::plan::Intent) -> Command {
        plan(&State::new(), intent).unwrap().commands.remove(0)
    }

    #[test]
    fn the_estimate_follows_the_lengths() {
        let mut long = testing::node_spec(512);
        long.devices.iter_mut().for_each(|d| d.uuid = "u".repeat(120).into());
        let label = |i: usize| Label::new(&format!("{}{i}", "l".repeat(100))).unwrap();
        long.labels = (0..200).map(|i| (label(i), label(i))).collect();
        let mut job = testing::job_spec("t1", Gpus::Whole(1));
        job.approved_by = Some("w".repeat(1000).into());
        job.constraints.labels = long.labels.clone();
        let small = testing::job_spec("t1", Gpus::Whole(1));
        let (tenant, model, version) = (small.tenant.clone(), small.model.clone(), small.version.clone());
        let of = Version { tenant, model, version };
        for intent in [
            testing::register("n1", long),
            testing::register("n1", testing::node_spec(8)),
            testing::schedule("r1", job),
            testing::schedule("r1", small),
            testing::by(&"w".repeat(1000), Intent::Approve { of: of.clone(), manifest: [7; 32], for_ms: 1 }),
            Intent::Disapprove(of),
        ] {
            let (bytes, weight) = sizes(planned(&intent));
            assert!(bytes <= weight + 64 && weight <= 2 * bytes + 256, "{bytes} bytes, estimated as {weight}");
        }
    }
}
