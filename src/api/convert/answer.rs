//! What the REST API answers, as types: their serde form is the contract and
//! their schema the OpenAPI document. It does not decide anything.

pub use super::asked::{ConstraintsBody, ResourcesBody, ScalingBody};
use crate::models::Checksum;
use nf_core::audit::Check;
use nf_core::claim;
use nf_core::job::{Job, JobState};
use nf_core::placement::Why;
use nf_core::policy;
use nf_core::reason::Blocker;
use nf_core::state::State;
use nf_core::view::{self, ChoiceView, JobView, PlaceView, ReplicaView};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// RFC 3339, UTC, of milliseconds since the epoch.
pub fn time(ms: u64) -> String {
    let stamp = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    stamp.map(|t| t.to_string()).unwrap_or_default()
}

/// Thousandths as a number.
pub fn whole(milli: u64) -> f64 {
    milli as f64 / 1000.0
}

/// How fresh an answer is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Freshness {
    /// Applied log index that the answer reflects.
    pub index: u64,
    /// Number of the member that leads, as far as this one knows.
    pub known_leader: Option<u64>,
    /// Milliseconds since this member last heard from the leader.
    pub last_contact_ms: u64,
    /// Sequence number of the newest event; `/events?from=` the next one.
    pub event_index: u64,
}

/// One blocker of a waiting job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReasonBody {
    /// Stable token, such as `WaitingForQuota`.
    pub reason: String,
    pub detail: String,
    /// How many nodes it rules out; 0 when it is not about nodes.
    pub nodes: u32,
    /// Only a change of quota or hardware can lift it.
    pub permanent: bool,
}

impl From<&Blocker> for ReasonBody {
    fn from(b: &Blocker) -> Self {
        Self { reason: b.reason.token().into(), detail: b.detail.clone(), nodes: b.nodes, permanent: b.permanent }
    }
}

pub fn reasons(blockers: &[Blocker]) -> Vec<ReasonBody> {
    blockers.iter().map(ReasonBody::from).collect()
}

/// Why a place was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WhyBody {
    /// The placement policy that was in force.
    pub policy: String,
    pub score: i64,
    /// Each term from 0 (worst) to 1000 (best), before weighting.
    pub terms: BTreeMap<String, i32>,
    /// The best node that was not chosen.
    pub runner_up: Option<String>,
    pub runner_up_score: Option<i64>,
    /// Nodes that would have done.
    pub candidates: u32,
}

impl WhyBody {
    pub fn new(state: &State, why: &Why) -> Self {
        (&view::choice(state, why)).into()
    }

    /// In one line, for gRPC and people.
    pub fn line(&self) -> String {
        let terms = self.terms.iter().map(|(term, value)| format!("{term} {value}")).collect::<Vec<_>>().join(", ");
        let other = match (&self.runner_up, self.runner_up_score) {
            (Some(node), Some(score)) => format!("; next best {node} with {score}"),
            _ => String::new(),
        };
        format!("score {} ({terms}) among {} nodes{other}", self.score, self.candidates)
    }
}

impl From<&ChoiceView> for WhyBody {
    fn from(choice: &ChoiceView) -> Self {
        Self {
            policy: choice.policy.name().to_owned(),
            score: choice.score,
            terms: choice.terms.each().into_iter().map(|(term, value)| (term.name().to_owned(), value)).collect(),
            runner_up: choice.runner_up.as_ref().map(|(node, _)| node.to_string()),
            runner_up_score: choice.runner_up.as_ref().map(|(_, score)| *score),
            candidates: choice.candidates,
        }
    }
}

/// Where a replica is, and why there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlacementBody {
    pub replica: u16,
    pub node: String,
    /// UUIDs of the devices.
    pub devices: Vec<String>,
    /// Thousandths held of each device, in the same order.
    pub shares: Vec<u16>,
    /// What keeps it to its part of each, in the same order: `alone`, `mps`, `simulated`, `runtime` (by itself),
    /// `accepted` (nothing does), or `mig` with the slice and where it begins, such as `mig 3g.40gb@4`.
    pub kept: Vec<String>,
    pub device_types: Vec<String>,
    /// `host:port`, when the replica listens.
    pub address: Option<String>,
    /// The node is played, not real.
    pub simulated: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<WhyBody>,
}

impl PlacementBody {
    pub fn new(replica: u16, place: &PlaceView, why: Option<WhyBody>) -> Self {
        Self {
            replica,
            node: place.node.to_string(),
            devices: place.devices.iter().map(|d| d.uuid.to_string()).collect(),
            shares: place.devices.iter().map(|d| d.milli).collect(),
            kept: place.devices.iter().map(|d| d.keeper()).collect(),
            device_types: place.devices.iter().map(|d| d.device_type.to_string()).collect(),
            address: place.address.clone(),
            simulated: place.simulated,
            why,
        }
    }
}

/// Values of the compliance policies P1 to P7: pass, block, na, simulated or waived.
pub type Policies = BTreeMap<String, String>;

/// A matrix, as the audit trail has it, too.
pub fn policies(checks: &[Check; 7]) -> Policies {
    let of = |(policy, check): (&policy::Policy, &Check)| (policy.name.to_owned(), check.verdict.token().to_owned());
    policy::POLICIES.iter().zip(checks).map(of).collect()
}

/// The answer to a schedule call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleBody {
    pub request_id: String,
    /// Repeats `request_id`.
    pub job_id: String,
    /// Outcome of admission: `scheduled` or `queued`.
    pub status: String,
    /// The job's state.
    pub state: String,
    pub simulation: bool,
    /// The same request was answered before.
    pub replayed: bool,
    /// Of the first replica; null while it waits.
    pub placement: Option<PlacementBody>,
    /// Of every replica that has a place.
    pub placements: Vec<PlacementBody>,
    /// Why it waits, most blocking first.
    pub reasons: Vec<ReasonBody>,
    /// 1 is the next of the tenant's waiting jobs.
    pub position: Option<u32>,
    pub policies: Policies,
    /// Log index that the answer reflects.
    pub index: u64,
}

/// The answer to a dry run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanBody {
    pub dry_run: bool,
    /// What admission would answer: `scheduled` or `queued`.
    pub status: String,
    pub simulation: bool,
    pub placement: Option<PlacementBody>,
    pub placements: Vec<PlacementBody>,
    /// Jobs of the tenant's own that would be made to give way; empty when none has to.
    pub victims: Vec<String>,
    /// So many jobs of other tenants would be, too.
    pub victims_of_others: u32,
    /// Whether a run with `digest` makes exactly those give way: only where the policy's preemption delay is 0. Otherwise
    /// they are chosen when the job has waited so long, from who is there then, and the digest does not cover them.
    pub victims_bound: bool,
    /// Where the replicas would go that wait for those.
    pub after_victims: Vec<PlacementBody>,
    pub quota: QuotaEffect,
    pub reasons: Vec<ReasonBody>,
    /// For `check_plan`.
    pub digest: String,
    pub policies: Policies,
    #[serde(flatten)]
    pub read: Freshness,
}

/// GPUs of the tenant before and after.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QuotaEffect {
    pub gpu_limit: f64,
    pub gpu_used: f64,
    pub gpu_after: f64,
}

impl Eq for QuotaEffect {}

/// One running copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaBody {
    pub replica: u16,
    /// Counts its launches.
    pub generation: u32,
    /// What it runs: another version than the job's in the middle of a rollout.
    #[serde(default)]
    pub model_version: String,
    /// Starts after a failure of its own.
    pub restarts: u16,
    /// Waiting, Scheduled, Downloading, Verifying, Starting, Ready, NotReady, Draining, Stopped, Failed, Unknown.
    pub status: String,
    /// Why it ended, or why its last run did.
    pub why: Option<String>,
    pub placement: Option<PlacementBody>,
    /// Its second copy while it moves: the replacement, or what was replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<CopyBody>,
    /// Until when it may save its state before it is stopped for the sake of others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saves_until: Option<String>,
}

/// The second copy of a replica that moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CopyBody {
    pub generation: u32,
    /// `Draining` for what was replaced; for a replacement how far it has come.
    pub status: String,
    pub why: String,
    pub placement: Option<PlacementBody>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saves_until: Option<String>,
}

impl From<&ReplicaView> for ReplicaBody {
    fn from(r: &ReplicaView) -> Self {
        Self {
            replica: r.no,
            generation: r.generation,
            model_version: r.version.to_string(),
            restarts: r.restarts,
            status: r.status.to_string(),
            why: r.why.map(|reason| reason.token().to_owned()),
            placement: {
                let why = || r.choice.as_ref().map(WhyBody::from);
                r.place.as_ref().map(|place| PlacementBody::new(r.no, place, why()))
            },
            other: r.other.as_ref().map(|copy| CopyBody {
                generation: copy.generation,
                status: copy.status.to_string(),
                why: copy.why.token().to_owned(),
                placement: copy.place.as_ref().map(|place| PlacementBody::new(r.no, place, None)),
                saves_until: copy.saves_until_ms.map(time),
            }),
            saves_until: r.saves_until_ms.map(time),
        }
    }
}

/// One line of a job's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TransitionBody {
    pub at: String,
    pub state: String,
    pub why: Option<String>,
}

/// A job that was given the place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GaveWayBody {
    pub at: String,
    /// Its `request_id`, or `another tenant's`.
    pub to: String,
    /// Of that job.
    pub priority: i16,
}

/// An interval in which a waiting job will start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExpectedStartBody {
    pub earliest: String,
    pub latest: String,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobBody {
    pub request_id: String,
    pub job_id: String,
    pub tenant_id: String,
    pub model_id: String,
    pub model_version: String,
    /// `queued` while it waits for a place, else `scheduled`.
    pub status: String,
    pub state: String,
    pub simulation: bool,
    pub priority: i16,
    pub gang: bool,
    /// `simulated` or `process`.
    pub runtime: String,
    /// SHA-256 of the model's manifest, when a store knows the version.
    pub manifest_sha256: Option<String>,
    pub approved_by: Option<String>,
    pub resources: ResourcesBody,
    pub constraints: ConstraintsBody,
    /// Null when the number of replicas is fixed.
    pub scaling: Option<ScalingBody>,
    pub replicas: Vec<ReplicaBody>,
    /// Replicas that serve.
    pub ready: u16,
    /// Of the first replica that has a place.
    pub placement: Option<PlacementBody>,
    pub reasons: Vec<ReasonBody>,
    /// The smallest set of changes that lets it run; empty where it is not known, or not looked for (`explain=true`).
    pub remedy: Vec<String>,
    pub position: Option<u32>,
    /// While it waits: when it will start, by how long jobs like those that run now ran or may run; null
    /// where that is not known, or not looked for (`explain=true`).
    pub expected_start: Option<ExpectedStartBody>,
    /// While it waits: from when on it may make others give way, where that is still to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub may_preempt_from: Option<String>,
    /// The last transitions, oldest first.
    pub history: Vec<TransitionBody>,
    /// To whom it gave way last.
    pub gave_way: Option<GaveWayBody>,
    /// The change of its version, open or last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<super::rollout::RolloutBody>,
    pub created_at: String,
    pub changed_at: String,
    pub policies: Policies,
    #[serde(flatten)]
    pub read: Freshness,
}

/// The outcome of admission, from a job's state.
pub fn status_of(state: JobState) -> &'static str {
    if state == JobState::Pending { "queued" } else { "scheduled" }
}

impl JobBody {
    pub fn new(view: &JobView, simulation: bool, read: Freshness) -> Self {
        let spec = &view.spec;
        let line = |t: &nf_core::job::Transition| TransitionBody {
            at: time(t.at_ms),
            state: t.state.name().into(),
            why: t.why.map(|reason| reason.token().to_owned()),
        };
        let replicas: Vec<ReplicaBody> = view.replicas.iter().map(ReplicaBody::from).collect();
        Self {
            request_id: view.request.to_string(),
            job_id: view.request.to_string(),
            tenant_id: view.tenant.to_string(),
            model_id: view.model.to_string(),
            model_version: view.version.to_string(),
            status: status_of(view.state).into(),
            state: view.state.name().into(),
            simulation,
            priority: spec.priority,
            gang: spec.gang,
            runtime: spec.runtime.name().into(),
            manifest_sha256: spec.manifest.map(|digest| Checksum(digest).to_string()),
            approved_by: spec.approved_by.as_ref().map(ToString::to_string),
            resources: (&spec.resources).into(),
            constraints: (&spec.constraints).into(),
            scaling: spec.scaling.as_ref().map(ScalingBody::from),
            placement: replicas.iter().find_map(|r| r.placement.clone()),
            ready: replicas.iter().filter(|r| r.status == "Ready").count() as u16,
            replicas,
            reasons: reasons(&view.blockers),
            remedy: view.remedy.clone(),
            position: view.position,
            // Whole seconds, so that what is told is never narrower than what was found.
            expected_start: view.expected_start.map(|(from, to)| ExpectedStartBody {
                earliest: time(from / 1000 * 1000),
                latest: time(to.div_ceil(1000) * 1000),
            }),
            may_preempt_from: view.may_preempt_from_ms.map(time),
            history: view.history.iter().map(line).collect(),
            gave_way: view.gave_way.as_ref().map(|g| GaveWayBody {
                at: time(g.at_ms),
                to: claim::named(&g.to, &g.of, Some(&view.tenant)).to_owned(),
                priority: g.priority,
            }),
            rollout: view.rollout.as_deref().map(Into::into),
            created_at: time(view.created_ms),
            changed_at: time(view.changed_ms),
            policies: policies(&view.checks),
            read,
        }
    }
}

/// A job in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobRow {
    pub request_id: String,
    pub tenant_id: String,
    pub model_id: String,
    pub model_version: String,
    pub status: String,
    pub state: String,
    /// `simulated`, `process`, `docker`, or `prefetch`: its files are kept on its node, and nothing runs.
    #[serde(default)]
    pub runtime: String,
    pub priority: i16,
    pub replicas: u16,
    /// Replicas that serve.
    pub ready: u16,
    /// Nodes on which it holds something.
    pub nodes: Vec<String>,
    /// Of one replica.
    pub gpu: f64,
    /// Why it waits, most blocking first; only with `reasons=true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasons: Option<Vec<ReasonBody>>,
    pub created_at: String,
    pub changed_at: String,
}

impl JobRow {
    pub fn new(state: &State, job: &Job) -> Self {
        let ready = |r: &&nf_core::job::Replica| {
            matches!(&r.phase, nf_core::job::Phase::Held { stage: nf_core::job::Stage::Ready, .. })
        };
        let mut nodes: Vec<_> =
            job.replicas.iter().flat_map(nf_core::job::Replica::allocations).map(|a| a.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let job_state = job.state();
        Self {
            request_id: job.request.to_string(),
            tenant_id: job.spec.tenant.to_string(),
            model_id: job.spec.model.to_string(),
            model_version: job.spec.version.to_string(),
            status: status_of(job_state).into(),
            state: job_state.name().into(),
            runtime: job.spec.runtime.name().into(),
            priority: job.spec.priority,
            replicas: job.desired(),
            ready: job.replicas.iter().filter(ready).count() as u16,
            nodes: nodes.into_iter().filter_map(|no| Some(state.node(no)?.name.to_string())).collect(),
            gpu: whole(job.spec.resources.gpu.milli()),
            reasons: None,
            created_at: time(job.created_ms),
            changed_at: time(job.changed_ms),
        }
    }
}

/// A page of jobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobList {
    pub items: Vec<JobRow>,
    /// For the next page; null on the last one.
    pub next_token: Option<String>,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}
