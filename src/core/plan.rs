//! Planning: what a caller wants (an intent) → what is decided (commands), on
//! the leader's speculative state. `nf plan` runs the same code and commits nothing.

use crate::command::{Answer, Command, Member, Mode, Report, Submission};
use crate::id::{Digest16, Incarnation, NodeName, NodeNo, RequestId, TenantId};
use crate::job::{JobSpec, MAX_REPLICAS};
use crate::node::{Cordon, NodeKind, NodeSpec, NodeState};
use crate::placement::{self, Limits, Pick, Why, explain, queue};
use crate::reason::{Blocker, Reason, Refusal};
use crate::resources::{Gpus, MAX_BYTES, MAX_DEVICES};
use crate::state::State;
use crate::tenant::Quota;
use crate::view::JobView;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

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
    RaiseLevel {
        to: u32,
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
    /// `tenant` limits whose job it may be.
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
}

impl Reply {
    pub fn refused(refusal: Refusal) -> Self {
        Self { result: Err(refusal), job: None, why: Vec::new(), index: 0 }
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
    match intent {
        Intent::Init { cluster, mode, default_gpu_milli } => {
            Planned::one(Command::Init { cluster: cluster.clone(), mode: *mode, default_gpu_milli: *default_gpu_milli })
        }
        Intent::Member(member) => Planned::one(Command::Member(member.clone())),
        Intent::RaiseLevel { to } => Planned::one(Command::RaiseLevel { to: *to }),
        Intent::Register { name, kind, incarnation, spec } => {
            check_node(spec)?;
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
        Intent::Schedule { submission, queueing, check_plan } => schedule(state, submission, *queueing, *check_plan),
        Intent::Stop { request, tenant, why } => stop(state, request, tenant.as_ref(), *why),
        Intent::Reports { node, incarnation, reports } => {
            let node = named(state, node)?;
            Planned::one(Command::Reports { node, incarnation: *incarnation, reports: reports.clone() })
        }
        Intent::PlaceWaiting => Ok(Planned { commands: queue::pass(state, PASS), why: Vec::new() }),
        // Checked here and not in apply: an entry takes effect on this very state or not at all.
        Intent::SetQuotaIf { tenant, quota, seen } => {
            crate::etag::check_quota(state, tenant, quota, *seen)?;
            plan(state, &Intent::SetQuota { tenant: tenant.clone(), quota: quota.clone() })
        }
        Intent::CordonIf { node, cordon, seen } => {
            crate::etag::check_cordon(state, node, cordon.as_ref(), *seen)?;
            plan(state, &Intent::Cordon { node: node.clone(), cordon: cordon.clone() })
        }
    }
}

fn named(state: &State, name: &NodeName) -> Result<NodeNo, Refusal> {
    let missing = || Refusal::field(Reason::NotFound, "node_id", format!("no node {name}; nf get nodes lists them"));
    state.node_named(name).map(|node| node.no).ok_or_else(missing)
}

fn stop(state: &State, request: &RequestId, tenant: Option<&TenantId>, why: Reason) -> Result<Planned, Refusal> {
    let job = state.job_of(request).filter(|job| tenant.is_none_or(|t| *t == job.spec.tenant));
    let missing =
        || Refusal::field(Reason::NotFound, "request_id", format!("no live job {request}; nf get jobs lists them"));
    Planned::one(Command::Stop { job: job.ok_or_else(missing)?.no, why })
}

fn schedule(
    state: &State,
    submission: &Submission,
    queueing: Queueing,
    check: Option<Digest16>,
) -> Result<Planned, Refusal> {
    check_spec(&submission.spec)?;
    // A retry: apply answers with the job that the first one made, or with a conflict.
    if state.request(&submission.request).is_some() {
        return Planned::one(Command::Submit { submission: submission.clone(), placements: Vec::new() });
    }
    let draft = draft(state, &submission.spec);
    if let Some(expected) = check
        && draft.digest() != expected
    {
        let detail = format!("planning again gives {}, not {expected}; run nf plan again", draft.digest());
        return Err(Refusal::field(Reason::PlanChanged, "check_plan", detail));
    }
    if queueing == Queueing::Never && draft.picks.len() < usize::from(submission.spec.replicas) {
        return Err(refuse_waiting(&draft.blockers(state, &submission.spec)));
    }
    let why = draft.picks.iter().map(|(replica, pick)| (*replica, pick.why.clone())).collect();
    let placement = |(replica, pick): (u16, Pick)| crate::command::Placement { replica, alloc: pick.alloc };
    let placements = draft.picks.into_iter().map(placement).collect();
    Ok(Planned { commands: vec![Command::Submit { submission: submission.clone(), placements }], why })
}

/// `queue: never`: 429 when the quota is in the way, else 503.
fn refuse_waiting(blockers: &[Blocker]) -> Refusal {
    let quota = [Reason::WaitingForQuota, Reason::ExceedsMaxQuota];
    let text = |b: &Blocker| format!("{}: {}", b.reason, b.detail);
    let detail = blockers.iter().map(text).collect::<Vec<_>>().join("; ");
    match blockers.iter().any(|b| quota.contains(&b.reason)) {
        true => Refusal::new(Reason::QuotaExceeded, detail),
        false => Refusal::new(Reason::NoCapacity, detail),
    }
}

/// The placer's answer on a job that does not exist yet.
#[derive(Clone, Debug)]
pub struct Draft {
    pub picks: Vec<(u16, Pick)>,
    /// Waiters ahead keep nodes, or quota cut the number of replicas.
    kept: bool,
}

impl Draft {
    /// Names the outcome: the same places and devices give the same digest.
    pub fn digest(&self) -> Digest16 {
        let mut text = String::new();
        for (replica, pick) in &self.picks {
            text.push_str(&format!("{replica}@{}:{:?};", pick.alloc.node, pick.alloc.shares));
        }
        Digest16::of(&[b"plan", text.as_bytes()])
    }

    /// Why the replicas without a place would wait.
    pub fn blockers(&self, state: &State, spec: &JobSpec) -> Vec<Blocker> {
        let waiting = u64::from(spec.replicas) - self.picks.len() as u64;
        if waiting == 0 {
            return Vec::new();
        }
        let tenant = state.tenant_named(&spec.tenant).map(|t| t.no);
        let mut out = explain::blockers_of(state, tenant, spec, waiting);
        if out.is_empty() && self.kept {
            let detail = "the room that is left is kept for jobs that are ahead in the queue".to_owned();
            out.push(Blocker { reason: Reason::Priority, detail, nodes: 0, permanent: false });
        }
        out
    }
}

/// Where the replicas of a new job would go now.
pub fn draft(state: &State, spec: &JobSpec) -> Draft {
    let tenant = state.tenant_named(&spec.tenant).map(|t| t.no);
    let wanted = queue::within_quota(state, tenant, spec, (0..spec.replicas).collect());
    let held = queue::kept_nodes(state, spec.priority);
    let kept = !held.is_empty();
    let picks = placement::place(state, spec, &wanted, Limits { held, ..Limits::default() });
    Draft { picks, kept }
}

/// Bounds that keep the arithmetic safe, whoever built the intent.
fn check_spec(spec: &JobSpec) -> Result<(), Refusal> {
    let r = &spec.resources;
    if spec.replicas == 0 || spec.replicas > MAX_REPLICAS {
        return Err(Refusal::invalid("replicas", format!("1 to {MAX_REPLICAS}, not {}", spec.replicas)));
    }
    let devices = match r.gpu {
        Gpus::None => true,
        Gpus::Milli(milli) => (1..1000).contains(&milli),
        Gpus::Whole(count) => (1..=MAX_DEVICES).contains(&count),
    };
    if !devices {
        let text = format!("whole devices, 1 to {MAX_DEVICES}, or a part of one, 0.001 to 0.999");
        return Err(Refusal::invalid("resources.gpu", text));
    }
    if r.tpu > MAX_DEVICES {
        return Err(Refusal::invalid("resources.tpu", format!("at most {MAX_DEVICES}, not {}", r.tpu)));
    }
    for (field, value) in [("gpu_memory", r.gpu_memory), ("cpu", r.cpu_milli), ("mem", r.memory), ("disk", r.disk)] {
        if value > MAX_BYTES {
            return Err(Refusal::invalid(format!("resources.{field}"), "too large"));
        }
    }
    Ok(())
}

fn check_node(spec: &NodeSpec) -> Result<(), Refusal> {
    const MOST: usize = 1024;
    if spec.devices.len() > MOST {
        return Err(Refusal::invalid("gpus", format!("at most {MOST} devices per node, not {}", spec.devices.len())));
    }
    let memory = spec.devices.iter().map(|d| d.memory).max().unwrap_or(0);
    if spec.cpu_milli.max(spec.memory).max(spec.disk).max(memory) > MAX_BYTES {
        return Err(Refusal::invalid("capacity", "a node's cpu, memory or disk is too large to be true"));
    }
    if spec.ports.is_some_and(|p| p.first > p.last || p.first == 0) {
        return Err(Refusal::invalid("ports", "a range such as 31000-31999"));
    }
    Ok(())
}
