//! Filling the metric families from the state when they are scraped, and the one
//! counter that the schedule path itself raises. Bounded in labels and in work:
//! a scrape a second at most walks the jobs. It does not define the families.

use super::Service;
use crate::models::counts::{self, Refused};
use crate::raft::{Role, Status};
use crate::telemetry::{MAX_MODELS, MAX_TENANTS, Metrics, OTHER};
use arc_swap::ArcSwap;
use nf_core::id::{ModelId, TenantId, TenantNo};
use nf_core::job::{Constraints, Job, JobState, Phase as Stand, Replica};
use nf_core::node::{DeviceKind, NodeState};
use nf_core::placement::explain;
use nf_core::quota::gpu_limit;
use nf_core::resources::Resources;
use nf_core::state::State;
use nf_core::view;
use prometheus::IntCounter;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Outcome of a schedule call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Placed,
    Queued,
    Refused,
    Replayed,
}

impl Phase {
    const ALL: [Phase; 4] = [Phase::Placed, Phase::Queued, Phase::Refused, Phase::Replayed];

    fn name(self) -> &'static str {
        match self {
            Phase::Placed => "placed",
            Phase::Queued => "queued",
            Phase::Refused => "refused",
            Phase::Replayed => "replayed",
        }
    }
}

type Counters = [IntCounter; 4];

/// `nf_sched_requests_total`, found without a lock: the first tenants have a
/// label of their own, the rest share one.
pub struct TenantCounters {
    metrics: Metrics,
    own: ArcSwap<HashMap<TenantId, Counters>>,
    other: Counters,
}

impl TenantCounters {
    pub fn new(metrics: Metrics) -> Self {
        let other = counters(&metrics, OTHER);
        Self { metrics, own: ArcSwap::default(), other }
    }

    pub fn count(&self, tenant: &TenantId, phase: Phase) {
        let own = self.own.load();
        match own.get(tenant) {
            Some(counters) => counters[phase as usize].inc(),
            None if own.len() < MAX_TENANTS => self.add(tenant)[phase as usize].inc(),
            None => self.other[phase as usize].inc(),
        }
    }

    fn add(&self, tenant: &TenantId) -> Counters {
        let made = counters(&self.metrics, tenant.as_str());
        self.own.rcu(|own| {
            let mut next = HashMap::clone(own);
            next.insert(tenant.clone(), made.clone());
            next
        });
        made
    }

    /// Series of tenants that are no more go, and make room for others.
    fn prune(&self, state: &State) {
        let gone: Vec<TenantId> =
            self.own.load().keys().filter(|id| state.tenant_named(id).is_none()).cloned().collect();
        for tenant in gone {
            self.own.rcu(|own| {
                let mut next = HashMap::clone(own);
                next.remove(&tenant);
                next
            });
            for phase in Phase::ALL {
                let _ = self.metrics.sched_requests.remove_label_values(&[phase.name(), tenant.as_str()]);
            }
        }
    }
}

fn counters(metrics: &Metrics, tenant: &str) -> Counters {
    Phase::ALL.map(|phase| metrics.sched_requests.with_label_values(&[phase.name(), tenant]))
}

/// The text of the last scrape, so that many scrapers cost one walk a second.
#[derive(Default)]
pub struct Rendered(Mutex<Option<(Instant, Arc<str>)>>);

const FRESH: Duration = Duration::from_secs(1);

impl Service {
    /// All metrics in the Prometheus text format. Walks the state: call it off the runtime's threads.
    pub fn render_metrics(&self) -> Arc<str> {
        let mut last = self.rendered.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, text)) = last.as_ref()
            && at.elapsed() < FRESH
        {
            return text.clone();
        }
        let (applied, status) = (self.replica.applied(), self.replica.status());
        fill_raft(&self.metrics, &status);
        fill_nodes(&self.metrics, &applied.state);
        fill_jobs(&self.metrics, &applied.state);
        fill_tenants(&self.metrics, &applied.state);
        fill_models(&self.metrics);
        let quarantined = applied.state.quarantines().count();
        self.metrics.models_quarantined.set(i64::try_from(quarantined).unwrap_or(i64::MAX));
        self.tenants.prune(&applied.state);
        self.deploys.prune(&applied.state);
        let text: Arc<str> = self.metrics.render().into();
        *last = Some((Instant::now(), text.clone()));
        text
    }
}

/// What of a scrape is not about other tenants.
pub fn part_of(text: &str, tenant: &TenantId) -> String {
    let own = format!("tenant=\"{tenant}\"");
    let kept = |line: &&str| line.starts_with('#') || !line.contains("tenant=\"") || line.contains(&own);
    text.lines().filter(kept).flat_map(|line| [line, "\n"]).collect()
}

fn fill_raft(metrics: &Metrics, status: &Status) {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    metrics.is_leader.set(i64::from(status.role == Role::Leader));
    metrics.term.set(number(status.term));
    metrics.commit_index.set(number(status.commit_index));
    metrics.apply_lag.set(number(status.commit_index.saturating_sub(status.applied_index)));
    metrics.last_contact.set(status.last_contact_ms as f64 / 1000.0);
}

fn fill_nodes(metrics: &Metrics, state: &State) {
    let (mut used, mut free, mut away, mut sick, mut kept_out) = (0u64, 0u64, 0u64, 0u64, 0u64);
    let mut nodes: BTreeMap<&str, i64> = BTreeMap::new();
    let all = [NodeState::Ready, NodeState::Suspect, NodeState::Unknown, NodeState::Down, NodeState::Maintenance];
    nodes.extend(all.map(|state| (state.name(), 0)));
    for node in state.nodes().values() {
        *nodes.entry(node.state.name()).or_default() += 1;
        let held = state.ledger().node(node.no);
        for (i, _) in node.spec.devices.iter().enumerate().filter(|(_, d)| d.kind == DeviceKind::Gpu) {
            let milli = u64::from(held.and_then(|h| h.devices.get(i)).map_or(0, |d| d.milli));
            used += milli;
            if node.quarantine_of(i as u16).is_some() {
                kept_out += 1000 - milli;
                continue;
            }
            match (node.spec.devices[i].healthy, node.takes_work()) {
                (false, _) => sick += 1000 - milli,
                (true, false) => away += 1000 - milli,
                (true, true) => free += 1000 - milli,
            }
        }
    }
    let all = [("used", used), ("free", free), ("unavailable", away), ("unhealthy", sick), ("quarantined", kept_out)];
    for (name, milli) in all {
        metrics.gpus.with_label_values(&[name]).set(milli as f64 / 1000.0);
    }
    for (name, count) in nodes {
        metrics.nodes.with_label_values(&[name]).set(count);
    }
}

/// What this process has fetched and refused of models. Workers tell it, too.
pub fn fill_models(metrics: &Metrics) {
    let raise = |counter: IntCounter, to: u64| counter.inc_by(to.saturating_sub(counter.get()));
    for (scheme, bytes) in counts::fetched_bytes() {
        raise(metrics.fetch_bytes.with_label_values(&[scheme]), bytes);
    }
    for why in Refused::ALL {
        raise(metrics.verify_failures.with_label_values(&[why.name()]), counts::refusals(why));
    }
}

type ReplicaCounts<'a> = BTreeMap<(TenantNo, &'a ModelId), BTreeMap<&'static str, i64>>;

/// In the words of CONVENTIONS; None for what has ended.
fn replica_state(state: &State, replica: &Replica) -> Option<&'static str> {
    match &replica.phase {
        Stand::Waiting { .. } => Some("Waiting"),
        Stand::Held { alloc, stage } => {
            let silent = |node: &nf_core::node::Node| matches!(node.state, NodeState::Unknown | NodeState::Down);
            let silent = state.node(alloc.node).is_some_and(|node| silent(node));
            Some(if silent { "Unknown" } else { view::stage_name(*stage) })
        }
        Stand::Stopping { .. } => Some("Draining"),
        Stand::Succeeded | Stand::Failed { .. } | Stand::Cancelled => None,
    }
}

fn set_replicas(metrics: &Metrics, state: &State, counted: ReplicaCounts<'_>) {
    let mut models: Vec<_> = counted.into_iter().collect();
    models.sort_by_cached_key(|(key, by_state)| (std::cmp::Reverse(by_state.values().sum::<i64>()), *key));
    metrics.replicas.reset();
    for (place, ((tenant, model), by_state)) in models.into_iter().enumerate() {
        let tenant = state.tenant(tenant).map_or(OTHER, |t| t.id.as_str());
        let (tenant, model) = if place < MAX_MODELS { (tenant, model.as_str()) } else { (OTHER, OTHER) };
        for (name, count) in by_state {
            metrics.replicas.with_label_values(&[tenant, model, name]).add(count);
        }
    }
}

/// Shapes of waiting jobs whose reason is looked for; jobs of further shapes count as `other`.
const MAX_SHAPES: usize = 256;

fn fill_jobs(metrics: &Metrics, state: &State) {
    let mut jobs: BTreeMap<JobState, i64> = BTreeMap::new();
    type Shape<'a> = (TenantNo, &'a Resources, &'a Constraints, bool, u64);
    let mut shapes: BTreeMap<Shape<'_>, &'static str> = BTreeMap::new();
    let mut pending: BTreeMap<&'static str, i64> = BTreeMap::new();
    let mut replicas = ReplicaCounts::new();
    for job in state.jobs().values() {
        *jobs.entry(job.state()).or_default() += 1;
        let own = replicas.entry((job.tenant, &job.spec.model)).or_default();
        for name in job.replicas.iter().filter_map(|r| replica_state(state, r)) {
            *own.entry(name).or_default() += 1;
        }
        if !job.wants_place() {
            continue;
        }
        let waiting = job.replicas.iter().filter(|r| r.is_waiting()).count() as u64;
        let shape = (job.tenant, &job.spec.resources, &job.spec.constraints, job.spec.gang, waiting);
        let known = shapes.get(&shape).copied();
        let reason = match known {
            Some(reason) => reason,
            None if shapes.len() < MAX_SHAPES => *shapes.entry(shape).or_insert_with(|| first_reason(state, job)),
            None => OTHER,
        };
        *pending.entry(reason).or_default() += 1;
    }
    set_replicas(metrics, state, replicas);
    metrics.set_jobs(|state| jobs.get(&state).copied().unwrap_or(0));
    metrics.pending.reset();
    for (reason, count) in pending {
        metrics.pending.with_label_values(&[reason]).set(count);
    }
}

fn first_reason(state: &State, job: &Job) -> &'static str {
    // Nothing stands in its way: the next pass over the queue takes it.
    explain::blockers(state, job).first().map_or("Priority", |blocker| blocker.reason.token())
}

fn fill_tenants(metrics: &Metrics, state: &State) {
    let mut tenants: Vec<(u64, &TenantId, u64)> = state
        .tenants()
        .values()
        .map(|t| (state.ledger().tenant(t.no).gpu_milli, &t.id, gpu_limit(state, t.no)))
        .collect();
    tenants.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    metrics.tenant_gpus.reset();
    let set = |tenant: &str, kind: &str, milli: u64| {
        metrics.tenant_gpus.with_label_values(&[tenant, kind]).set(milli as f64 / 1000.0);
    };
    for (used, id, limit) in tenants.iter().take(MAX_TENANTS) {
        set(id.as_str(), "used", *used);
        set(id.as_str(), "quota", *limit);
    }
    if tenants.len() > MAX_TENANTS {
        let rest = &tenants[MAX_TENANTS..];
        set(OTHER, "used", rest.iter().map(|t| t.0).sum());
        set(OTHER, "quota", rest.iter().map(|t| t.2).fold(0, u64::saturating_add));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::resources::Gpus;
    use nf_core::testing::{job_spec, node_spec, register, run, schedule};

    #[test]
    fn series_are_bounded_and_say_what_is_so() {
        let mut state = State::new();
        run(&mut state, register("n1", node_spec(8)));
        for i in 0..(MAX_TENANTS + 20) {
            run(&mut state, schedule(&format!("r{i}"), job_spec(&format!("t{i}"), Gpus::Milli(100))));
        }
        run(&mut state, schedule("big", job_spec("t0", Gpus::Whole(64))));
        let metrics = Metrics::new("v", "c");
        fill_nodes(&metrics, &state);
        fill_jobs(&metrics, &state);
        fill_tenants(&metrics, &state);
        let text = metrics.render();
        assert!(text.contains("nf_gpus{state=\"used\"} 7"), "{text}");
        assert!(text.contains("nf_pending_jobs{reason=\"ExceedsMaxQuota\"} 1"), "{text}");
        let series = text.lines().filter(|l| l.starts_with("nf_tenant_gpus{")).count();
        assert_eq!(series, 2 * (MAX_TENANTS + 1));
        assert!(text.contains("nf_replicas{model=\"m1\",state=\"Waiting\",tenant=\"t0\"} 1"), "{text}");
        assert!(text.contains("nf_replicas{model=\"m1\",state=\"Scheduled\",tenant=\"t0\"} 1"), "{text}");
    }

    #[test]
    fn tenants_past_the_bound_share_a_label() {
        let metrics = Metrics::new("v", "c");
        let counters = TenantCounters::new(metrics.clone());
        for i in 0..500 {
            counters.count(&TenantId::new(&format!("t{i}")).unwrap(), Phase::Placed);
        }
        let text = metrics.render();
        let other = format!("nf_sched_requests_total{{phase=\"placed\",tenant=\"other\"}} {}", 500 - MAX_TENANTS);
        assert!(text.contains(&other), "{text}");
        counters.prune(&State::new());
        assert_eq!(metrics.render().lines().filter(|l| l.starts_with("nf_sched_requests_total{")).count(), 4);
    }
}
