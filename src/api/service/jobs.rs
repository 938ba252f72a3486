//! Use cases about one job: schedule it, plan it, look at it, stop it, read its
//! logs. It does not choose places; the leader's proposer does.

use super::model::Missed;
use super::{Call, MAX_DEADLINE, Service, freshness};
use crate::api::convert::answer::{Freshness, WhyBody, whole};
use crate::api::convert::schedule::{ModelFacts, Schedule, naming};
use crate::api::error::Failure;
use crate::exchange::LogQuery;
use crate::raft::{Consistency, View};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use nf_core::audit::{Action, Check};
use nf_core::command::{Answer, Mode};
use nf_core::id::{Digest16, RequestId, TenantId};
use nf_core::job::{JobSpec, JobState};
use nf_core::placement::Why;
use nf_core::plan::{Intent, rehearse};
use nf_core::policy;
use nf_core::reason::{Blocker, Reason, Refusal};
use nf_core::reconcile::ReplicaId;
use nf_core::state::{State, only};
use nf_core::view::{self, JobView, PlaceView};
use std::collections::BTreeSet;
use std::sync::Arc;

/// More replicas than this are planned off the runtime's threads.
const PLANNED_INLINE: u16 = 16;
/// How long the first line of a log, or the word that there is none, is waited for.
const FIRST_LINE: std::time::Duration = std::time::Duration::from_secs(1);
/// Of the tenants with finished jobs of one name so many are looked at: two are too many already.
const NAMESAKES: usize = 16;

/// A scheduled job.
#[derive(Clone, Debug)]
pub struct Scheduled {
    pub job: Box<JobView>,
    pub replayed: bool,
    pub why: Vec<(u16, WhyBody)>,
    pub index: u64,
    pub simulation: bool,
}

/// What a schedule call would do.
#[derive(Clone, Debug)]
pub struct Planned {
    pub placements: Vec<(u16, PlaceView, WhyBody)>,
    /// Jobs of the tenant's own that would be made to give way.
    pub victims: Vec<String>,
    /// So many of other tenants would be, too.
    pub victims_of_others: u32,
    /// A run with the digest makes exactly those give way.
    pub binds_victims: bool,
    /// Places that they would leave.
    pub claimed: Vec<(u16, PlaceView, WhyBody)>,
    pub blockers: Vec<Blocker>,
    pub digest: Digest16,
    /// What P1 to P7 say.
    pub checks: [Check; 7],
    /// Who let the version into production; elsewhere as the caller said it.
    pub approved_by: Option<Arc<str>>,
    pub gpu_limit: f64,
    pub gpu_used: f64,
    pub gpu_after: f64,
    pub simulation: bool,
    pub read: Freshness,
}

/// A job, live or finished, and how fresh the answer is.
#[derive(Clone, Debug)]
pub struct Found {
    pub job: Box<JobView>,
    pub simulation: bool,
    pub read: Freshness,
}

impl Service {
    /// Commits a job: placed now, or waiting with its reasons.
    pub async fn schedule(&self, call: &Call, wanted: Schedule, key: Option<&str>) -> Result<Scheduled, Failure> {
        let start = std::time::Instant::now();
        let (tenant, model) = (wanted.spec.tenant.clone(), wanted.spec.model.clone());
        let out = self.schedule_uncounted(call, wanted, key).await;
        if out.as_ref().is_ok_and(|done| !done.replayed) {
            self.deploys.count(&tenant, &model);
        }
        let phase = match &out {
            Ok(done) if done.replayed => super::gauges::Phase::Replayed,
            Ok(done) if done.job.state != JobState::Pending => super::gauges::Phase::Placed,
            Ok(_) => super::gauges::Phase::Queued,
            Err(_) => super::gauges::Phase::Refused,
        };
        self.tenants.count(&tenant, phase);
        self.metrics.schedule_seconds.observe(start.elapsed().as_secs_f64());
        out
    }

    async fn schedule_uncounted(&self, call: &Call, wanted: Schedule, key: Option<&str>) -> Result<Scheduled, Failure> {
        call.who.acts(Some(wanted.spec.tenant.clone()))?;
        let naming = naming(&wanted.spec.tenant, wanted.request.as_ref(), key)?;
        let mode = self.mode(call).await?;
        let tenant = wanted.spec.tenant.clone();
        let retry = naming.keyed && is_remembered(&self.replica.applied().state, &tenant, &naming.request);
        let facts = match retry {
            // Its job is there, whatever has become of the version: the group answers with it, or with a conflict.
            true => None,
            false => self.facts_of(call, &wanted.spec, Some(Action::JobSchedule)).await?,
        };
        // The leader judges it once more; here it costs no round.
        let must_be_there = mode == Mode::Production || wanted.spec.is_prefetch();
        if facts.is_none() && !retry && must_be_there {
            let detail = format!(
                "no store knows version {} of model {}; publish it (nf model publish)",
                wanted.spec.version, wanted.spec.model
            );
            return Err(Refusal::field(Reason::ModelNotFound, "model_version", detail).into());
        }
        let request = naming.request.clone();
        let intent = wanted.into_intent(naming, facts);
        let asked = submitted(&intent);
        let reply = self.submit(call, intent).await?;
        let answer = reply.result.map_err(|refusal| match asked {
            Some(spec) => self.stopped(call, Some(Action::JobSchedule), &spec, refusal.into()),
            None => refusal.into(),
        })?;
        let replayed = matches!(answer, Answer::Job { replayed: true, .. });
        let state = self.replica.applied().state;
        let why = whys(&state, &reply.why);
        let simulation = state.meta().mode == Mode::Simulation;
        drop(state);
        let job = match reply.job {
            Some(job) => job,
            // The first try's job is over already: the history has it.
            None => self.finished_after(call, &tenant, &request, reply.index).await?.ok_or_else(|| gone(&request))?,
        };
        Ok(Scheduled { job, replayed, why, index: reply.index, simulation })
    }

    /// What a schedule call would do on the state as it is; commits nothing.
    pub async fn plan(&self, call: &Call, wanted: Schedule) -> Result<Planned, Failure> {
        call.who.acts(Some(wanted.spec.tenant.clone()))?;
        let replicas = wanted.spec.replicas;
        // A version that the store knows must be found here, too, or the plan would promise too much.
        let facts = self.facts_of(call, &wanted.spec, None).await?;
        let naming = naming(&wanted.spec.tenant, wanted.request.as_ref(), None)?;
        let view = self.read(call).await?;
        // The very intent that a run would commit.
        let intent = wanted.into_intent(naming, facts);
        let asked = submitted(&intent);
        let intent = self.wanted_by(call, intent);
        let seconds = self.metrics.placement_seconds.clone();
        let timed = move || seconds.observe_closure_duration(|| plan_on(&view, &intent));
        let planned = match replicas <= PLANNED_INLINE {
            true => timed(),
            false => self.search(call, timed).await?,
        };
        planned.map_err(|failure| match asked {
            Some(spec) => self.stopped(call, None, &spec, failure),
            None => failure,
        })
    }

    /// What the store knows of the version that is asked for. `action`: what it is asked for, as for [`Self::stopped`].
    pub(super) async fn facts_of(
        &self,
        call: &Call,
        spec: &JobSpec,
        action: Option<Action>,
    ) -> Result<Option<ModelFacts>, Failure> {
        let known = self.models.facts(&spec.tenant, &spec.model, &spec.version, call.deadline).await;
        known.map_err(|Missed { failure, facts }| {
            let mut spec = spec.clone();
            if let Some(facts) = facts {
                facts.put(&mut spec);
            }
            self.stopped(call, action, &spec, failure)
        })
    }

    /// The job of that request, live or finished. Costs no search, so it may be asked again and again.
    pub async fn get(&self, call: &Call, request: &RequestId) -> Result<Found, Failure> {
        self.found(call, request, false).await
    }

    /// The same, and of one that waits what takes a search to find: what would let it run, when it will start, and who
    /// would give way.
    pub async fn explain(&self, call: &Call, request: &RequestId) -> Result<Found, Failure> {
        self.found(call, request, true).await
    }

    async fn found(&self, call: &Call, request: &RequestId, explain: bool) -> Result<Found, Failure> {
        let view = self.read(call).await?;
        let simulation = view.state.meta().mode == Mode::Simulation;
        let read = freshness(&view);
        // Another tenant's job is as absent as one that never was.
        let tenant = self.whose(call, &view.state, request).await?.ok_or_else(|| absent(request))?;
        if let Some(job) = view.state.job_named(&tenant, request) {
            if !job.wants_place() {
                return Ok(Found { job: Box::new(view::job(&view.state, job)), simulation, read });
            }
            let (state, job) = (view.now(), job.clone());
            let job = match explain {
                true => self.search(call, move || Box::new(view::explained(&state, &job))).await?,
                false => super::off_thread(move || Box::new(view::job(&state, &job))).await?,
            };
            return Ok(Found { job, simulation, read });
        }
        let job = self.replica.finished(&tenant, request).await?.ok_or_else(|| absent(request))?;
        Ok(Found { job: Box::new(view::job(&view.state, &job)), simulation, read })
    }

    /// Whose job of that name a call means: its tenant's; where it may see all and names none, the only one's. None:
    /// nobody has one.
    async fn whose(&self, call: &Call, state: &State, request: &RequestId) -> Result<Option<TenantId>, Failure> {
        if call.tenant.is_some() {
            return Ok(call.tenant.clone());
        }
        let mut owners: BTreeSet<TenantId> = state.owners(request).take(NAMESAKES).cloned().collect();
        owners.extend(self.replica.finished_owners(request, NAMESAKES).await?);
        Ok(only(request, owners.iter())?.cloned())
    }

    /// The call, bound to the tenant whose job of that name it means: what it changes then is that one, whatever
    /// others do meanwhile.
    ///
    /// # Errors
    /// `Conflict` when it names no tenant, and several have a job of that name.
    pub(super) async fn bound(&self, call: &Call, request: &RequestId) -> Result<(TenantId, Call), Failure> {
        let tenant = match &call.tenant {
            Some(tenant) => tenant.clone(),
            None => {
                // However stale a look may be that the caller would take: this is no look.
                let view = self.replica.read(Consistency::Linearizable, call.deadline).await;
                let view = view.map_err(|error| self.fail(error))?;
                self.whose(call, &view.state, request).await?.ok_or_else(|| absent(request))?
            }
        };
        let call = Call { tenant: Some(tenant.clone()), ..call.clone() };
        Ok((tenant, call))
    }

    /// Asks a job to end. A job that is over already is no error.
    pub async fn stop(&self, call: &Call, request: &RequestId) -> Result<Found, Failure> {
        let (tenant, call) = &self.bound(call, request).await?;
        let why = Reason::StoppedByUser;
        let intent = Intent::Stop { request: request.clone(), tenant: Some(tenant.clone()), why };
        let reply = self.submit(call, intent).await?;
        let refusal = match reply.result {
            Ok(_) => None,
            Err(refusal) if refusal.reason == Reason::NotFound => Some(refusal),
            Err(refusal) => return Err(refusal.into()),
        };
        let job = match (reply.job, refusal) {
            (Some(job), _) => job,
            (None, refusal) => {
                let found = self.finished_after(call, tenant, request, reply.index).await?;
                found.ok_or_else(|| refusal.map_or_else(|| gone(request), Failure::from))?
            }
        };
        let status = self.replica.status();
        let meta = self.replica.applied().state.meta().clone();
        let read = Freshness {
            index: reply.index,
            known_leader: status.leader.map(|id| id.0),
            last_contact_ms: status.last_contact_ms,
            event_index: meta.next_event.saturating_sub(1),
        };
        Ok(Found { job, simulation: meta.mode == Mode::Simulation, read })
    }

    /// The tenant's finished job of that request, as of `index` or later.
    async fn finished_after(
        &self,
        call: &Call,
        tenant: &TenantId,
        request: &RequestId,
        index: u64,
    ) -> Result<Option<Box<JobView>>, Failure> {
        self.applied_past(index.saturating_sub(1), call.deadline).await;
        let Some(job) = self.replica.finished(tenant, request).await? else { return Ok(None) };
        Ok(Some(Box::new(view::job(&self.replica.applied().state, &job))))
    }

    /// A replica's log, from whichever process runs it, or ran its last launch.
    pub async fn logs(
        &self,
        call: &Call,
        request: &RequestId,
        replica: u16,
        follow: bool,
        tail: usize,
    ) -> Result<BoxStream<'static, Result<Bytes, String>>, Failure> {
        let found = self.get(call, request).await?;
        let Some(one) = found.job.replicas.iter().find(|r| r.no == replica) else {
            let detail = format!("job {request} has {} replicas, counted from 0", found.job.replicas.len());
            return Err(Refusal::field(Reason::NotFound, "replica", detail).into());
        };
        let Some(node) = one.place.as_ref().map(|place| &place.node).or(one.last_node.as_ref()) else {
            let text = "was on no node that is still known, so it has no log";
            let detail = format!("replica {replica} of {request} is {} and {text}", one.status);
            return Err(Refusal::new(Reason::NotFound, detail).into());
        };
        let Some(source) = &self.logs else {
            return Err(Failure::new(Reason::NotSupported, "this process serves no logs; ask a member"));
        };
        let id = ReplicaId { job: found.job.no, replica };
        let query = LogQuery { node: node.clone(), request: request.clone(), id, follow, tail, life: false };
        let mut lines = Box::pin(source(query).peekable());
        // An agent that can't be reached says so at once; after the first byte nothing could be said any more.
        let first = tokio::time::timeout(FIRST_LINE, lines.as_mut().peek()).await;
        if let Ok(Some(Err(why))) = first {
            let detail = format!("the log of replica {replica} of {request} can't be read on node {node}: {why}");
            return Err(Failure::new(Reason::NodeDown, detail));
        }
        Ok(lines.boxed())
    }
}

/// The job that is asked for.
fn submitted(intent: &Intent) -> Option<Arc<JobSpec>> {
    match intent {
        Intent::Schedule { submission, .. } => Some(submission.spec.clone()),
        _ => None,
    }
}

/// Whether that request has made a job, and will not be forgotten while a call about it is under way.
fn is_remembered(state: &State, tenant: &TenantId, request: &RequestId) -> bool {
    let margin = u64::try_from(2 * MAX_DEADLINE.as_millis()).unwrap_or(u64::MAX);
    state.request(tenant, request).is_some_and(|known| known.expires_ms.saturating_sub(state.meta().now_ms) > margin)
}

fn absent(request: &RequestId) -> Failure {
    Refusal::field(Reason::NotFound, "request_id", format!("no job {request}; nf get jobs lists them")).into()
}

fn gone(request: &RequestId) -> Failure {
    let detail = format!("job {request} is over, and its record is past the history that is kept");
    Refusal::field(Reason::NotFound, "request_id", detail).into()
}

fn whys(state: &State, why: &[(u16, Why)]) -> Vec<(u16, WhyBody)> {
    why.iter().map(|(replica, why)| (*replica, WhyBody::new(state, why))).collect()
}

fn plan_on(view: &View, wanted: &Intent) -> Result<Planned, Failure> {
    let state = &view.now();
    let (spec, draft) = rehearse(state, wanted)?;
    let (spec, digest) = (&*spec, draft.digest());
    let tenant = state.tenant_named(&spec.tenant).map(|t| t.no);
    let limit = tenant.map_or(state.meta().default_gpu_milli, |no| nf_core::quota::gpu_limit(state, no));
    let used = tenant.map_or(0, |no| state.ledger().tenant(no).gpu_milli);
    let after = used + spec.resources.gpu.milli() * draft.picks.len() as u64;
    let placements = draft.picks.iter().filter_map(|(replica, pick)| {
        let place = view::place(state, &pick.alloc)?;
        Some((*replica, place, WhyBody::new(state, &pick.why)))
    });
    let claim = draft.claim.iter();
    let claimed = claim
        .clone()
        .flat_map(|claim| &claim.placements)
        .filter_map(|p| Some((p.replica, view::place(state, &p.alloc)?, WhyBody::new(state, p.why.as_ref()?))));
    let mut victims: Vec<_> = claim.flat_map(|claim| &claim.victims).map(|victim| victim.job).collect();
    victims.dedup();
    let (own, others): (Vec<_>, Vec<_>) =
        victims.iter().filter_map(|no| state.job(*no)).partition(|job| job.spec.tenant == spec.tenant);
    Ok(Planned {
        victims: own.iter().map(|job| job.request.to_string()).collect(),
        victims_of_others: others.len() as u32,
        binds_victims: draft.binds_victims,
        claimed: claimed.collect(),
        placements: placements.collect(),
        blockers: draft.blockers(state, spec),
        digest,
        checks: policy::admission(spec, state.meta().mode, policy::Faults::of(state, spec)),
        approved_by: spec.approved_by.clone(),
        gpu_limit: whole(limit),
        gpu_used: whole(used),
        gpu_after: whole(after),
        simulation: state.meta().mode == Mode::Simulation,
        read: freshness(view),
    })
}
