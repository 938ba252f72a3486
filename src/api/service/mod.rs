//! The use cases, free of any protocol: REST and gRPC call the same functions,
//! so they can't disagree. Each takes checked input and answers core values, or the
//! bodies of `convert::answer` where a list or a sum has no core type, or a failure.
//! It reads no request and writes no response.

pub mod approvals;
pub mod audit;
pub mod cluster;
pub mod consents;
pub mod defrag;
pub mod deploys;
pub mod devices;
pub mod drain;
pub mod endpoints;
pub mod gauges;
pub mod jobs;
pub mod joining;
pub mod links;
pub mod list;
pub mod lives;
pub mod model;
pub mod nodes;
pub mod outlines;
pub mod policy;
pub mod quarantine;
pub mod rollouts;
pub mod services;
pub mod slo;
pub mod targets;
pub mod tenants;
pub mod tokens;
pub mod upgrade;
pub mod usage;
pub mod watch;
pub mod whatif;

use super::auth::{Gate, Slot, Who};
use super::convert::answer::Freshness;
use super::error::Failure;
use super::{ApiState, Info};
use crate::raft::{Consistency, Replica, View};
use crate::telemetry::Metrics;
use nf_core::audit::Action;
use nf_core::command::Mode;
use nf_core::id::TenantId;
use nf_core::job::JobSpec;
use nf_core::reason::{Reason, Refusal};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};

/// How long a call may take when it does not say.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// How long a call may take at most; a longer wish is cut to it.
pub const MAX_DEADLINE: Duration = Duration::from_secs(60);
/// Calls that are worked on at once; beyond it a member refuses.
pub const MAX_CALLS: usize = 8192;
/// Of these, calls that wait for the log to pass an index.
pub const MAX_WAITS: usize = 1024;
/// Watches and followed logs that are open at once.
pub const MAX_STREAMS: usize = 1024;

/// What every call carries.
#[derive(Clone, Debug)]
pub struct Call {
    pub deadline: Instant,
    /// A write is given up by then, whatever else the call waits for: no id that this
    /// member made up for it is remembered for longer.
    pub write_by: Instant,
    pub consistency: Consistency,
    /// A blocking read: not before the applied index is past this.
    pub past_index: Option<u64>,
    /// How long a blocking read waits for that.
    pub wait: Duration,
    /// Who calls.
    pub who: Who,
    /// For the receipt of what it changes.
    pub slot: Slot,
    /// Only this tenant's rows.
    pub tenant: Option<TenantId>,
}

impl Call {
    /// A call of `who` that has `time` to live.
    pub fn within(who: Who, time: Duration) -> Self {
        let deadline = Instant::now() + time.min(MAX_DEADLINE);
        Self {
            deadline,
            write_by: deadline,
            consistency: Consistency::Linearizable,
            past_index: None,
            wait: Duration::ZERO,
            who,
            slot: Slot::default(),
            tenant: None,
        }
    }
}

/// The use cases. Cloning shares them.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

pub struct Inner {
    pub replica: Replica,
    pub info: Info,
    pub metrics: Metrics,
    pub gate: Gate,
    pub(super) denials: super::denials::Denials,
    models: model::Models,
    pub(super) logs: Option<super::LogSource>,
    sights: Option<slo::Shared>,
    vitals: Option<super::GpuVitals>,
    sign: Option<crate::security::checkpoint::Sign>,
    consents: Option<super::Consenting>,
    authority: Option<super::Authority>,
    calls: Semaphore,
    waits: Semaphore,
    streams: Arc<Semaphore>,
    searches: Arc<Semaphore>,
    tenants: gauges::TenantCounters,
    deploys: deploys::Deploys,
    marks: Arc<watch::Marks>,
    rendered: gauges::Rendered,
}

impl std::ops::Deref for Service {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Service {
    pub fn new(state: ApiState) -> Self {
        let ApiState { replica, logs, sights, vitals, models, info, metrics, auth, sign, consents, authority } = state;
        let marks = watch::Marks::follow(&replica);
        Self(Arc::new(Inner {
            tenants: gauges::TenantCounters::new(metrics.clone()),
            deploys: deploys::Deploys::new(metrics.clone()),
            gate: Gate::new(auth, replica.clone()),
            denials: super::denials::Denials::new(replica.clone()),
            replica,
            info,
            metrics,
            models: model::Models::new(models),
            logs,
            sights: sights.map(slo::Shared::new),
            vitals,
            sign,
            consents,
            authority,
            calls: Semaphore::new(MAX_CALLS),
            waits: Semaphore::new(MAX_WAITS),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            searches: Arc::new(Semaphore::new(searches_at_once())),
            marks,
            rendered: gauges::Rendered::default(),
        }))
    }

    /// Counts a call in, for as long as the permit lives.
    pub fn enter(&self) -> Result<SemaphorePermit<'_>, Failure> {
        let full = || Failure::new(Reason::TooManyRequests, format!("{MAX_CALLS} calls are under way here; retry"));
        self.calls.try_acquire().map_err(|_| full())
    }

    /// The group's mode, once this member knows which group it is in: before that it
    /// knows no rule to judge a call by.
    async fn mode(&self, call: &Call) -> Result<Mode, Failure> {
        let mut watch = self.replica.watch();
        let known = async {
            let formed = watch.wait_for(|applied| !applied.state.meta().cluster.is_empty()).await;
            formed.ok().map(|applied| applied.state.meta().mode)
        };
        let known = tokio::time::timeout_at(call.deadline.into(), known).await;
        known.ok().flatten().ok_or_else(|| {
            let detail = "this member has not heard from its group yet; retry, or ask another member";
            Failure::new(Reason::NoLeader, detail)
        })
    }

    /// Whether the group simulates; every answer says so.
    pub fn simulation(&self) -> bool {
        self.replica.applied().state.meta().mode == Mode::Simulation
    }

    /// A read as fresh as the call wants it, after the wait that it asks for.
    pub async fn read(&self, call: &Call) -> Result<View, Failure> {
        if let Some(index) = call.past_index
            && self.replica.applied().index <= index
        {
            let full = |_| Failure::new(Reason::TooManyRequests, format!("{MAX_WAITS} reads wait here already; retry"));
            let _waits = self.waits.try_acquire().map_err(full)?;
            let until = call.deadline.min(Instant::now() + call.wait);
            self.applied_past(index, until).await;
        }
        self.replica.read(call.consistency, call.deadline).await.map_err(|error| self.fail(error))
    }

    /// Waits until the applied index is past `index`, or until then. Holds no state meanwhile.
    async fn applied_past(&self, index: u64, until: Instant) {
        let mut watch = self.replica.watch();
        let passed = async { watch.wait_for(|applied| applied.index > index).await.is_ok() };
        let _ = tokio::time::timeout_at(until.into(), passed).await;
    }

    /// A failure of the group, with the leader's address where it helps.
    pub fn fail(&self, error: crate::raft::Error) -> Failure {
        let mut failure = Failure::from(error);
        if failure.codes().http >= 500 {
            failure.leader_hint = self.leader_hint();
        }
        failure
    }

    fn leader_hint(&self) -> Option<String> {
        let status = self.replica.status();
        let leader = status.leader.filter(|leader| *leader != status.id)?;
        self.replica.applied().state.members().get(&leader).map(|member| member.api.to_string())
    }

    /// The caller, as the core knows callers; None where nobody was asked.
    fn actor(&self, call: &Call) -> Option<nf_core::audit::Actor> {
        match &call.who {
            Who::Known(_) => call.who.actor(&self.replica.applied().state, &self.info.node_name),
            Who::Anyone | Who::Stranger => None,
        }
    }

    /// The intent in the caller's name.
    fn wanted_by(&self, call: &Call, intent: nf_core::plan::Intent) -> nf_core::plan::Intent {
        match self.actor(call) {
            Some(actor) => nf_core::plan::Intent::By { actor, intent: Box::new(intent) },
            None => intent,
        }
    }

    /// Has an intent committed in the caller's name, and keeps the receipt for the answer.
    async fn submit(&self, call: &Call, intent: nf_core::plan::Intent) -> Result<nf_core::plan::Reply, Failure> {
        let intent = self.wanted_by(call, intent);
        let reply = self.replica.submit(intent, call.write_by).await.map_err(|error| self.fail(error))?;
        call.slot.put(reply.receipt);
        Ok(reply)
    }

    /// What the caller is told of an action on a version that a policy stopped: what each of them said. `action` is
    /// what it would have been, for the trail; None: it was only asked what would happen.
    fn stopped(&self, call: &Call, action: Option<Action>, spec: &JobSpec, failure: Failure) -> Failure {
        let (state, actor) = (self.replica.applied().state, self.actor(call));
        let told = action.unwrap_or(Action::Call);
        match nf_core::policy::stopped(&state, spec, told, actor.as_ref(), failure.refusal.reason) {
            None => failure,
            Some(note) => {
                let checks = Some(Box::new(note.checks));
                if action.is_some() {
                    call.slot.stopped(note);
                }
                Failure { checks, ..failure }
            }
        }
    }

    /// Leaves word of what is about to be done outside the state: no word, no deed.
    async fn note(&self, call: &Call, action: nf_core::audit::Action, object: String) -> Result<(), Failure> {
        let note = nf_core::command::Note::new(action, object);
        self.submit(call, nf_core::plan::Intent::Note(note)).await?.result?;
        Ok(())
    }

    /// Commits an intent that makes no job, and returns its answer and index.
    async fn commit(
        &self,
        call: &Call,
        intent: nf_core::plan::Intent,
    ) -> Result<(nf_core::command::Answer, u64), Failure> {
        let reply = self.submit(call, intent).await?;
        Ok((reply.result?, reply.index))
    }
}

/// How fresh a view is, for its reader.
pub fn freshness(view: &View) -> Freshness {
    Freshness {
        index: view.index,
        known_leader: view.known_leader.map(|id| id.0),
        last_contact_ms: view.last_contact_ms,
        event_index: view.state.meta().next_event.saturating_sub(1),
    }
}

impl Service {
    /// Runs a search for a caller off the runtime's threads. Few run at once: who only asks leaves the others their
    /// processors. One that has begun goes on though its caller hangs up, and counts until it is done.
    ///
    /// # Errors
    /// `TooManyRequests` when the call's time is over before it is its turn.
    pub(super) async fn search<T: Send + 'static>(
        &self,
        call: &Call,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let busy =
            || Failure::new(Reason::TooManyRequests, "other searches keep this member busy; retry, or ask another");
        let turn = Arc::clone(&self.searches).acquire_owned();
        let turn = tokio::time::timeout_at(call.deadline.into(), turn).await;
        let permit = turn.ok().and_then(Result::ok).ok_or_else(busy)?;
        off_thread(move || {
            let done = work();
            drop(permit);
            done
        })
        .await
    }
}

/// Half of the processors.
fn searches_at_once() -> usize {
    std::thread::available_parallelism().map_or(1, |all| all.get().div_ceil(2))
}

/// Runs long reading off the runtime's threads.
pub async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let lost = |_| Failure::from(Refusal::new(Reason::Internal, "a task of this member died; see its log"));
    tokio::task::spawn_blocking(work).await.map_err(lost)
}
