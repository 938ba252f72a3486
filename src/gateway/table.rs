//! Which replicas of which model take requests, read from this member's state
//! whenever it changes. Reading costs a walk over all jobs, so it is done at most
//! for a fiftieth of the time. It knows no requests.

use crate::exchange::Group;
use nf_core::id::{Generation, JobNo, ModelId, RequestId, Revision, TenantId};
use nf_core::job::{Phase, Stage};
use nf_core::node::{NodeState, address};
use nf_core::rollout::share_milli;
use nf_core::state::State;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Between two readings at least.
const PAUSE: Duration = Duration::from_millis(10);
/// So many times as long as a reading took is the pause after it.
const SHARE: u32 = 50;
/// No pause is longer: a thread that had to wait for its turn must not keep news back.
const LONGEST: Duration = Duration::from_millis(200);
/// How long the group is waited for at a time, until it says how far it is.
const CATCH_UP: Duration = Duration::from_secs(5);

/// One replica, as one start of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Who {
    pub job: JobNo,
    pub replica: u16,
    pub generation: Generation,
}

/// A replica that takes requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub who: Who,
    /// `host:port`.
    pub address: Arc<str>,
    /// Requests that it serves at once. This gateway gives it no more, and knows nothing of what others give it: the
    /// rest waits in the replica (ADR 68).
    pub slots: u32,
    /// What it runs, while its job goes from one version to another: then both are counted apart.
    pub trial: Option<Revision>,
    /// It is of a canary, to which this part of the requests goes, in thousandths.
    pub share_milli: Option<u32>,
}

/// A tenant's model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub endpoints: Vec<Endpoint>,
    /// The strictest latency that one of its jobs promises, in milliseconds; None when none does.
    pub latency_ms: Option<u32>,
    /// The strictest promise of errors that one of its jobs makes: at most so many requests of a million; None when none
    /// does.
    pub error_ppm: Option<u32>,
    /// A service of it that a request wakes.
    pub asleep: Option<RequestId>,
}

/// All models of the group.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// This member has caught up with its group once: before, what it has is from before it was away.
    pub known: bool,
    entries: BTreeMap<ModelId, BTreeMap<TenantId, Entry>>,
}

impl Table {
    pub fn of(state: &State) -> Self {
        let mut entries: BTreeMap<ModelId, BTreeMap<TenantId, Entry>> = BTreeMap::new();
        for job in state.jobs().values().filter(|job| !job.stopped && !job.spec.is_prefetch()) {
            let spec = &job.spec;
            if !entries.contains_key(&spec.model) {
                entries.insert(spec.model.clone(), BTreeMap::new());
            }
            let Some(tenants) = entries.get_mut(&spec.model) else { continue };
            if !tenants.contains_key(&spec.tenant) {
                tenants.insert(spec.tenant.clone(), Entry::default());
            }
            let Some(entry) = tenants.get_mut(&spec.tenant) else { continue };
            entry.latency_ms = entry.latency_ms.into_iter().chain(spec.latency_ms()).min();
            entry.error_ppm = entry.error_ppm.into_iter().chain(spec.constraints.error_ppm).min();
            let slots = spec.scaling.map_or(u32::MAX, |scaling| scaling.concurrency.into());
            let (open, share) = (job.open_rollout(), share_milli(job));
            for (no, replica) in job.replicas.iter().enumerate() {
                let Phase::Held { alloc, stage: Stage::Ready } = &replica.phase else { continue };
                let Some((node, port)) = state.node(alloc.node).zip(alloc.port) else { continue };
                // A silent node's replicas serve on as long as somebody reaches them.
                if node.state == NodeState::Down {
                    continue;
                }
                let who = Who { job: job.no, replica: no as u16, generation: replica.generation };
                let address = address(&node.spec.host, port).into();
                let trial = open.map(|_| replica.revision);
                let share_milli = share.filter(|_| replica.revision != job.revision);
                entry.endpoints.push(Endpoint { who, address, slots, trial, share_milli });
            }
            if spec.scaling.is_some() && job.desired() == 0 {
                entry.asleep = Some(job.request.clone());
            }
        }
        Self { known: true, entries }
    }

    pub fn entry(&self, tenant: &TenantId, model: &ModelId) -> Option<&Entry> {
        self.entries.get(model)?.get(tenant)
    }

    /// Tenants that have a model of that name.
    pub fn owners(&self, model: &ModelId) -> impl Iterator<Item = &TenantId> {
        self.entries.get(model).into_iter().flat_map(BTreeMap::keys)
    }

    pub fn names(&self) -> impl Iterator<Item = (&TenantId, &ModelId)> {
        self.entries.iter().flat_map(|(model, tenants)| tenants.keys().map(move |tenant| (tenant, model)))
    }
}

/// Tables as the state changes; ends with the group's handle. The first one says that nothing is known, until this
/// member has caught up: what it has on its disk may name a port that is another tenant's by now.
pub fn follow(group: Arc<dyn Group>) -> watch::Receiver<Arc<Table>> {
    let (tables, followed) = watch::channel(Arc::default());
    tokio::spawn(async move {
        let mut applied = group.watch();
        while !group.caught_up(Instant::now() + CATCH_UP).await {
            if tables.is_closed() || applied.has_changed().is_err() {
                return;
            }
            tokio::time::sleep(LONGEST).await;
        }
        drop(group);
        loop {
            let state = applied.borrow_and_update().state.clone();
            let read = move || {
                let began = Instant::now();
                (Table::of(&state), began.elapsed())
            };
            // Off the runtime's threads: with a hundred thousand jobs it takes milliseconds.
            if let Ok((table, took)) = tokio::task::spawn_blocking(read).await {
                if tables.send(Arc::new(table)).is_err() {
                    return;
                }
                tokio::time::sleep((took * SHARE).clamp(PAUSE, LONGEST)).await;
            }
            if applied.changed().await.is_err() {
                return;
            }
        }
    });
    followed
}
