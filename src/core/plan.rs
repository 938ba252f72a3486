//! Planning: what a caller wants (an intent) → what is decided (commands), on
//! the leader's speculative state. `nf plan` runs the same code and commits nothing.

use crate::approval::{self, Version};
use crate::audit::{Actor, Receipt};
use crate::autoscaler;
use crate::bounds;
use crate::budget;
use crate::command::{Answer, Command, DeviceFault, Member, Mode, Note, Report, Submission};
use crate::consent::{self, Consent};
use crate::defrag;
use crate::fault::{Rule, rule};
use crate::id::{Digest16, Incarnation, MemberId, NodeName, NodeNo, RequestId, Revision, TenantId};
use crate::job::{Job, JobSpec};
use crate::join::{self, Shown};
use crate::moves;
use crate::node::{Cordon, NodeKind, NodeSpec, NodeState, PortRange};
use crate::placement::{Chosen, Why, pass};
use crate::quarantine::Release;
use crate::reason::{Reason, Refusal};
use crate::rollout::{self, Next, Strategy, Turn};
use crate::scaling::Target;
use crate::state::State;
use crate::tenant::Quota;
use crate::view::JobView;
pub use draft::{Draft, draft};
use production::{nothing_simulated, nothing_unproven};
use schedule::{admitted, same_plan, schedule};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

mod draft;
mod production;
mod rollouts;
mod schedule;

/// What to do with a job that can't run now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Queueing {
    #[default]
    Wait,
    /// Refuse instead.
    Never,
}

/// What a caller wants. Forwarded to the leader; submitting it twice is safe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
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
    NodeStates(Vec<(NodeNo, Incarnation, NodeState)>),
    Cordon {
        node: NodeName,
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
    Schedule {
        submission: Submission,
        queueing: Queueing,
        check_plan: Option<Digest16>,
    },
    /// `tenant`: whose job it is. None: the only one of that name; refused where several tenants have one.
    Stop {
        request: RequestId,
        tenant: Option<TenantId>,
        why: Reason,
    },
    Reports {
        node: NodeName,
        incarnation: Incarnation,
        reports: Vec<Report>,
    },
    /// One pass over the queue.
    PlaceWaiting,
    /// Another number of replicas for a service; `tenant` as of a stop.
    Scale {
        request: RequestId,
        tenant: Option<TenantId>,
        target: Target,
    },
    /// A request has come for a service that may be asleep.
    Wake {
        tenant: TenantId,
        request: RequestId,
    },
    /// Only if the quota is still the one that the caller has seen ([`crate::etag::quota`]).
    SetQuotaIf {
        tenant: TenantId,
        quota: Quota,
        seen: Digest16,
    },
    /// Only if the cordon is still the one that the caller has seen ([`crate::etag::cordon`]).
    CordonIf {
        node: NodeName,
        cordon: Option<Cordon>,
        seen: Digest16,
    },
    /// A token, by the digest of its id ([`crate::state::token_key`]).
    RevokeToken {
        token: Digest16,
    },
    /// One pass over what has to leave where it is.
    Moves,
    /// What was seen of a node's devices; `incarnation` of the agent that saw it.
    Faults {
        node: NodeName,
        incarnation: Option<Incarnation>,
        faults: Vec<DeviceFault>,
    },
    /// An operator takes a device back.
    Heal {
        node: NodeName,
        uuid: Arc<str>,
        by: Arc<str>,
    },
    /// An operator says that a silent node is dead.
    GiveUp {
        node: NodeName,
    },
    /// `seen`: only if the policy is still that one ([`crate::etag::placement`]).
    SetPlacement {
        chosen: Chosen,
        seen: Option<Digest16>,
    },
    Note(Note),
    /// The same, wanted by somebody who was asked who they are.
    By {
        actor: Actor,
        intent: Box<Intent>,
    },
    /// These bytes of a version may run in production, for so long; the actor says so.
    Approve {
        of: Version,
        manifest: [u8; 32],
        for_ms: u64,
    },
    /// They may no more.
    Disapprove(Version),
    /// The few moves that win most idle GPU for those who ask.
    Defragment,
    /// A tenant's signed statement, verified; who and when are filled in by the plan.
    Consent(Box<Consent>),
    /// It counts no more.
    Dissent {
        tenant: TenantId,
        statement: [u8; 32],
    },
    /// A node has removed copies of personal data: each as its slice named it.
    Purged {
        node: NodeName,
        incarnation: Incarnation,
        copies: Vec<(Digest16, u64)>,
    },
    /// Nothing but the time: what ends by itself ends when an entry says how late it is.
    Tick,
    /// A job goes to another version of its model, or back to the one before (`rollback`); `tenant` as of a stop.
    StartRollout {
        request: RequestId,
        tenant: Option<TenantId>,
        next: Box<Next>,
        strategy: Strategy,
        rollback: bool,
    },
    /// The open rollout of a job takes another course; `revision`: only if it is still that one.
    TurnRollout {
        request: RequestId,
        tenant: Option<TenantId>,
        revision: Option<Revision>,
        turn: Turn,
    },
    /// One pass over the open rollouts.
    Rollouts,
    /// One pass over the tenants whose budgets are due.
    Budgets,
    /// A machine may join: whoever shows the secret of which this is the SHA-256, as that node where one is named.
    AddJoinToken {
        id: Digest16,
        secret: [u8; 32],
        node: Option<NodeName>,
        for_ms: u64,
    },
    /// One does.
    SpendJoinToken(Box<Shown>),
    /// None may any more.
    DropJoinToken {
        id: Digest16,
    },
    /// A version leaves its quarantine.
    Release(Release),
    /// The key of the trail, where there is none yet: 32 random bytes of the member that asks.
    KeyTrail([u8; 32]),
}

impl Intent {
    /// What is wanted, whoever wants it.
    pub fn bare(&self) -> &Intent {
        match self {
            Intent::By { intent, .. } => intent,
            bare => bare,
        }
    }

    /// Who wants it, where that is known.
    pub fn actor(&self) -> Option<&Actor> {
        match self {
            Intent::By { actor, .. } => Some(actor),
            _ => None,
        }
    }

    /// Whether it may be refused for no other reason than that it was done already. A job is told by its request;
    /// most others come to the same when they are done twice.
    pub fn is_refused_once_done(&self) -> bool {
        match self.bare() {
            Intent::SetPlacement { seen, .. } => seen.is_some(),
            bare => matches!(
                bare,
                Intent::DeleteTenant { .. }
                    | Intent::SetQuotaIf { .. }
                    | Intent::CordonIf { .. }
                    | Intent::Heal { .. }
                    | Intent::Disapprove(_)
                    | Intent::Release(_)
                    | Intent::Dissent { .. }
                    | Intent::StartRollout { .. }
                    | Intent::TurnRollout { .. }
                    | Intent::AddJoinToken { .. }
                    | Intent::SpendJoinToken(_)
                    | Intent::DropJoinToken { .. }
            ),
        }
    }

    /// Whether somebody takes "nothing to do" for an answer, and acts on it. Not so the leader's own passes, nor
    /// who wakes a service and goes on looking whether it is awake.
    pub(crate) fn takes_nothing_for_an_answer(&self) -> bool {
        !matches!(
            self,
            Intent::PlaceWaiting
                | Intent::Moves
                | Intent::Rollouts
                | Intent::Budgets
                | Intent::Defragment
                | Intent::NodeStates(_)
                | Intent::Wake { .. }
        )
    }
}

/// What the caller is told once the commands are committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    pub result: Result<Answer, Refusal>,
    /// For intents about one job: the job as the commit left it.
    pub job: Option<Box<JobView>>,
    /// Why the places of a new job were chosen, by replica.
    pub why: Vec<(u16, Why)>,
    /// The applied index that the reply reflects; a reader that has it sees the change.
    pub index: u64,
    /// The entry of the audit trail that it left, for the caller to keep.
    pub receipt: Option<Receipt>,
}

impl Reply {
    /// Nothing done, nothing to say.
    pub fn empty() -> Self {
        Self { result: Ok(Answer::Done), job: None, why: Vec::new(), index: 0, receipt: None }
    }

    pub fn refused(refusal: Refusal) -> Self {
        Self { result: Err(refusal), ..Self::empty() }
    }
}

/// What was decided on one intent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Planned {
    pub commands: Vec<Command>,
    pub why: Vec<(u16, Why)>,
}

impl Planned {
    fn one(command: Command) -> Result<Self, Refusal> {
        Ok(Self { commands: vec![command], why: Vec::new() })
    }
}

/// Jobs placed by one pass over the queue.
const PASS: usize = 128;

/// Decides on one intent.
///
/// # Errors
/// A refusal, when nothing is to be committed.
pub fn plan(state: &State, intent: &Intent) -> Result<Planned, Refusal> {
    may_be(state, intent)?;
    match intent.bare() {
        Intent::Init { cluster, mode, default_gpu_milli } => {
            Planned::one(Command::Init { cluster: cluster.clone(), mode: *mode, default_gpu_milli: *default_gpu_milli })
        }
        Intent::Member(member) => {
            if let Some(known) = state.members().get(&member.id).filter(|known| known.name != member.name) {
                let detail = format!("id {} is that of member {}; ids are not used again", member.id.0, known.name);
                return Err(Refusal::field(Reason::Conflict, "id", detail));
            }
            Planned::one(Command::Member(member.clone()))
        }
        Intent::RaiseLevel { to, members } => Planned::one(Command::RaiseLevel { to: *to, members: members.clone() }),
        Intent::Register { name, kind, incarnation, spec } => {
            ports_of_its_own(state, name, *kind, spec)?;
            let (name, kind, incarnation, spec) = (name.clone(), *kind, *incarnation, spec.clone());
            Planned::one(Command::Register { name, kind, incarnation, spec })
        }
        Intent::NodeStates(states) => {
            let command = |(node, incarnation, to): &(_, _, _)| Command::SetNodeState {
                node: *node,
                incarnation: *incarnation,
                to: *to,
            };
            Ok(Planned { commands: states.iter().map(command).collect(), why: Vec::new() })
        }
        Intent::Cordon { node, cordon } => {
            let cordon = cordon.clone().map(|c| Cordon { at_ms: state.meta().now_ms, ..c });
            Planned::one(Command::SetCordon { node: named(state, node)?, cordon })
        }
        Intent::CreateTenant { tenant } => Planned::one(Command::CreateTenant { tenant: tenant.clone() }),
        Intent::DeleteTenant { tenant } => Planned::one(Command::DeleteTenant { tenant: tenant.clone() }),
        Intent::SetQuota { tenant, quota } => {
            Planned::one(Command::SetQuota { tenant: tenant.clone(), quota: quota.clone() })
        }
        Intent::Schedule { submission, queueing, check_plan } => {
            schedule(state, submission, *queueing, *check_plan, intent.actor())
        }
        Intent::Stop { request, tenant, why } => stop(state, request, tenant.as_ref(), *why),
        Intent::Reports { node, incarnation, reports } => {
            let node = named(state, node)?;
            Planned::one(Command::Reports { node, incarnation: *incarnation, reports: reports.clone() })
        }
        Intent::Scale { request, tenant, target } => scale(state, request, tenant.as_ref(), target),
        Intent::Wake { tenant, request } => Ok(wake(state, tenant, request)),
        Intent::PlaceWaiting => Ok(Planned { commands: pass::pass(state, PASS), why: Vec::new() }),
        Intent::GiveUp { node } => give_up(state, node),
        Intent::Faults { node, incarnation, faults } => seen_faults(state, node, *incarnation, faults),
        Intent::Heal { node, uuid, by } => {
            let command = Command::Heal { node: named(state, node)?, uuid: uuid.clone(), by: Some(by.clone()) };
            Planned::one(command)
        }
        Intent::Budgets => Ok(Planned { commands: budget::keep::pass(state), why: Vec::new() }),
        Intent::Moves => Ok(Planned { commands: moves::pass(state, PASS), why: Vec::new() }),
        // Checked here and not in apply: an entry takes effect on this very state or not at all.
        Intent::SetQuotaIf { tenant, quota, seen } => {
            crate::etag::check_quota(state, tenant, quota, *seen)?;
            plan(state, &Intent::SetQuota { tenant: tenant.clone(), quota: quota.clone() })
        }
        Intent::CordonIf { node, cordon, seen } => {
            crate::etag::check_cordon(state, node, cordon.as_ref(), *seen)?;
            plan(state, &Intent::Cordon { node: node.clone(), cordon: cordon.clone() })
        }
        Intent::SetPlacement { chosen, seen } => {
            crate::etag::check_placement(state, chosen, *seen)?;
            Planned::one(Command::SetPlacement(*chosen))
        }
        Intent::RevokeToken { token } => Planned::one(Command::RevokeToken { token: *token }),
        Intent::Note(note) => Planned::one(Command::Note(note.clone())),
        Intent::Approve { of, manifest, for_ms } => {
            let approval = approval::approve(state, of, *manifest, *for_ms, intent.actor())?;
            Planned::one(Command::Approve(Box::new(approval)))
        }
        Intent::Defragment => Ok(Planned { commands: defrag::commands(state)?, why: Vec::new() }),
        Intent::StartRollout { request, tenant, next, strategy, rollback } => {
            rollouts::start(state, request, tenant.as_ref(), next, strategy, *rollback, intent.actor())
        }
        Intent::TurnRollout { request, tenant, revision, turn } => {
            rollouts::turn(state, request, tenant.as_ref(), *revision, turn)
        }
        Intent::Rollouts => Ok(Planned { commands: rollout::pass(state, PASS), why: Vec::new() }),
        Intent::Disapprove(of) => Planned::one(Command::Disapprove(Box::new(of.clone()))),
        Intent::KeyTrail(key) => Planned::one(Command::KeyTrail(*key)),
        Intent::Release(asked) => Planned::one(Command::Release(Box::new(asked.clone()))),
        Intent::Consent(said) => {
            let consent = consent::grant(state, said, intent.actor().map(Actor::person))?;
            Planned::one(Command::Consent(Box::new(consent)))
        }
        Intent::Dissent { tenant, statement } => {
            Planned::one(Command::Dissent { tenant: tenant.clone(), statement: *statement })
        }
        Intent::Purged { node, incarnation, copies } => {
            let node = named(state, node)?;
            Planned::one(Command::Purged { node, incarnation: *incarnation, copies: copies.clone() })
        }
        Intent::Tick => Planned::one(Command::Tick),
        Intent::AddJoinToken { id, secret, node, for_ms } => {
            let token = join::create(state, (*id, *secret), node.as_ref(), *for_ms, intent.actor())?;
            Planned::one(Command::AddJoinToken(Box::new(token)))
        }
        Intent::SpendJoinToken(shown) => {
            join::judge(state, shown)?;
            Planned::one(Command::SpendJoinToken(shown.clone()))
        }
        Intent::DropJoinToken { id } => Planned::one(Command::DropJoinToken { id: *id }),
        // Bounds allow one of these around what is wanted, and no more.
        Intent::By { .. } => Err(Refusal::invalid("actor", "one actor")),
    }
}

/// Whoever wants it and whatever there is.
fn may_be(state: &State, intent: &Intent) -> Result<(), Refusal> {
    bounds::check(intent)?;
    match state.meta().mode {
        Mode::Production => nothing_simulated(intent),
        Mode::Simulation => Ok(()),
    }
}

/// What a schedule call would do now, judged like one that is not planned only; and the job as it would be let in.
///
/// # Errors
/// The refusal that the call would get.
pub fn rehearse(state: &State, intent: &Intent) -> Result<(Arc<JobSpec>, Draft), Refusal> {
    may_be(state, intent)?;
    let Intent::Schedule { submission, check_plan, .. } = intent.bare() else {
        return Err(Refusal::invalid("plan", "only a schedule call can be planned"));
    };
    let spec = admitted(state, &submission.spec, intent.actor())?;
    let draft = draft(state, &spec);
    same_plan(&draft, *check_plan)?;
    Ok((spec, draft))
}

fn named(state: &State, name: &NodeName) -> Result<NodeNo, Refusal> {
    let missing = || Refusal::field(Reason::NotFound, "node_id", format!("no node {name}; nf get nodes lists them"));
    state.node_named(name).map(|node| node.no).ok_or_else(missing)
}

/// Only what is news: a driver may repeat itself many times a second.
fn seen_faults(
    state: &State,
    name: &NodeName,
    incarnation: Option<Incarnation>,
    faults: &[DeviceFault],
) -> Result<Planned, Refusal> {
    let no = named(state, name)?;
    let Some(node) = state.node(no).filter(|node| incarnation.is_none_or(|seen| seen == node.incarnation)) else {
        return Ok(Planned::default());
    };
    let now = state.meta().now_ms;
    let news = |f: &&DeviceFault| {
        let known = node.quarantine.get(&f.uuid);
        rule(f.fault) != Rule::Ignore && known.is_none_or(|known| known.is_news(f.fault, now))
    };
    let there = |f: &&DeviceFault| node.spec.devices.iter().any(|device| device.uuid == f.uuid);
    let faults: Vec<_> = faults.iter().filter(there).filter(news).cloned().collect();
    match faults.is_empty() {
        true => Ok(Planned::default()),
        false => Planned::one(Command::Faults { node: no, faults }),
    }
}

/// Down at once, for a node that says nothing: one that beats is drained instead.
fn give_up(state: &State, name: &NodeName) -> Result<Planned, Refusal> {
    let node = named(state, name)?;
    let node = state.node(node).ok_or_else(|| Refusal::new(Reason::NotFound, format!("no node {name}")))?;
    match node.state {
        NodeState::Down => Ok(Planned::default()),
        NodeState::Suspect | NodeState::Unknown => {
            let exclusive = state.replicas_on(node.no).find(|(job, ..)| job.spec.constraints.exclusive);
            if let Some((job, ..)) = exclusive {
                // Its copy may live until its lease ends; only the full silence says that it has.
                let detail = format!(
                    "node {name} runs job {}, which must never run twice: it is given up by itself once its lease is over",
                    job.request
                );
                return Err(Refusal::field(Reason::Conflict, "node_id", detail));
            }
            Planned::one(Command::SetNodeState { node: node.no, incarnation: node.incarnation, to: NodeState::Down })
        }
        NodeState::Ready | NodeState::Maintenance => {
            let detail = format!(
                "node {name} is {}: only one that is silent is given up; nf node drain empties it",
                node.state.name()
            );
            Err(Refusal::field(Reason::Conflict, "node_id", detail))
        }
    }
}

/// The ports of a node that a member plays are chosen for it, by calls that may not
/// know of one another: here the second of two that chose the same is told so.
fn ports_of_its_own(state: &State, name: &NodeName, kind: NodeKind, spec: &NodeSpec) -> Result<(), Refusal> {
    let Some(wanted) = spec.ports.filter(|_| matches!(kind, NodeKind::Played(_))) else { return Ok(()) };
    if state.node_named(name).is_some_and(|known| known.spec.ports == spec.ports && known.spec.host == spec.host) {
        return Ok(());
    }
    let overlaps = |other: &PortRange| other.first <= wanted.last && wanted.first <= other.last;
    let on_host = state.nodes().values().filter(|node| node.name != *name && node.spec.host == spec.host);
    let taken = on_host.filter(|node| node.spec.ports.as_ref().is_some_and(overlaps)).map(|node| &node.name).next();
    taken.map_or(Ok(()), |other| {
        let detail = format!(
            "node {other} on {} has ports {} to {} already, or some of them",
            spec.host, wanted.first, wanted.last
        );
        Err(Refusal::field(Reason::Conflict, "ports", detail))
    })
}

fn stop(state: &State, request: &RequestId, tenant: Option<&TenantId>, why: Reason) -> Result<Planned, Refusal> {
    Planned::one(Command::Stop { job: found(state, request, tenant)?.no, why })
}

/// The job that is meant, stopped or not.
fn found<'a>(state: &'a State, request: &RequestId, tenant: Option<&TenantId>) -> Result<&'a Arc<Job>, Refusal> {
    state.find_job(tenant, request)?.ok_or_else(|| no_live(request))
}

/// The job that is meant, if nobody has stopped it.
fn live<'a>(state: &'a State, request: &RequestId, tenant: Option<&TenantId>) -> Result<&'a Arc<Job>, Refusal> {
    Some(found(state, request, tenant)?).filter(|job| !job.stopped).ok_or_else(|| no_live(request))
}

fn no_live(request: &RequestId) -> Refusal {
    Refusal::field(Reason::NotFound, "request_id", format!("no live job {request}; nf get jobs lists them"))
}

fn scale(state: &State, request: &RequestId, tenant: Option<&TenantId>, target: &Target) -> Result<Planned, Refusal> {
    let job = live(state, request, tenant)?;
    let fixed = || {
        let detail = format!("job {request} has a fixed number of replicas; schedule it with scaling to change it");
        Refusal::field(Reason::Conflict, "request_id", detail)
    };
    let scaling = job.spec.scaling.ok_or_else(fixed)?;
    if !(scaling.min..=scaling.max).contains(&target.replicas) {
        let detail = format!("{} to {} for {request}, not {}", scaling.min, scaling.max, target.replicas);
        return Err(Refusal::invalid("replicas", detail));
    }
    let outdated = target.seen.is_some_and(|seen| seen != job.desired());
    if job.desired() == target.replicas || outdated || job.is_spent_beyond(target.replicas) {
        return Ok(Planned::default());
    }
    Planned::one(Command::Scale { job: job.no, target: target.clone() })
}

/// One replica for a service that has none; nothing for everybody else.
fn wake(state: &State, tenant: &TenantId, request: &RequestId) -> Planned {
    let asleep = |job: &&Arc<Job>| !job.stopped && job.spec.scaling.is_some() && job.desired() == 0;
    let target = Target { replicas: 1, why: autoscaler::Why::WakeFromZero, inputs: None, seen: Some(0), learned: None };
    let commands = state.job_named(tenant, request).filter(asleep).map(|job| Command::Scale { job: job.no, target });
    Planned { commands: commands.into_iter().collect(), why: Vec::new() }
}

#[cfg(test)]
mod tests;
