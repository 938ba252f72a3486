//! Logs, metrics and traces: how they are set up, and which families there are. The
//! numbers are put in by those who know them; this module knows none of them.

pub mod alarms;
mod scrub;
pub mod traces;

pub use alarms::Alarms;

use nf_core::job::JobState;
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use std::io::IsTerminal;
use std::sync::Arc;
use tokio::runtime::Handle;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Most tenants with a label of their own; the others share [`OTHER`].
pub const MAX_TENANTS: usize = 50;
/// Most pairs of tenant and model with a series of their own, in each family.
pub const MAX_MODELS: usize = 100;
/// The label of whatever is past a bound.
pub const OTHER: &str = "other";
/// What is logged where neither `NF_LOG` nor `RUST_LOG` says: our own words, and warnings of others.
const DEFAULT_FILTER: &str = "warn,neural_fabric=info,nf=info";

/// Starts logging to stderr: text for people on a terminal, else JSON. `wanted` wins
/// over `NF_LOG` and `RUST_LOG`. A second call changes nothing, so that tests can call it, too.
pub fn init_logs(wanted: Option<&str>) {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(wanted)).with_writer(scrub::Scrubbed);
    let _ = if std::io::stderr().is_terminal() { builder.try_init() } else { builder.json().try_init() };
}

/// The same, with traces for a collector; lines of the log then say to which trace they belong.
///
/// # Errors
/// A sentence when the collector can't be one.
pub fn init(
    wanted: Option<&str>,
    collector: &traces::Collector,
    runtime: &Handle,
) -> Result<traces::Exporting, String> {
    let (spans, exporting) = collector.layer(runtime)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(scrub::Scrubbed);
    let lines = if std::io::stderr().is_terminal() { lines.boxed() } else { lines.json().boxed() };
    let spans_too = format!("{}=info", traces::TARGET).parse().map_err(|_| "no filter for spans".to_owned())?;
    let lines = lines.with_filter(filter(wanted).add_directive(spans_too));
    // In a process that logs already the spans have nowhere to be, and are none.
    let _ = tracing_subscriber::registry().with(lines).with(spans).try_init();
    Ok(exporting)
}

/// What is logged.
fn filter(wanted: Option<&str>) -> EnvFilter {
    let named = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let wanted = wanted.map(str::to_owned).or_else(|| ["NF_LOG", "RUST_LOG"].into_iter().find_map(named));
    match wanted.as_deref().map(EnvFilter::try_new) {
        Some(Ok(filter)) => filter,
        _ => EnvFilter::new(DEFAULT_FILTER),
    }
}

/// All metric families of a process. Cloning shares them.
#[derive(Clone)]
pub struct Metrics(Arc<Families>);

impl std::ops::Deref for Metrics {
    type Target = Families;
    fn deref(&self) -> &Families {
        &self.0
    }
}

/// The families, by the name they have in CONVENTIONS.
pub struct Families {
    registry: Registry,
    /// `nf_sched_requests_total{phase,tenant}`; the API bounds how many tenants have one of their own.
    pub sched_requests: IntCounterVec,
    pub schedule_seconds: Histogram,
    pub model_deploys: IntCounterVec,
    pub placement_seconds: Histogram,
    pub replicas: IntGaugeVec,
    pub autoscale_decisions: IntCounterVec,
    pub autoscale_replicas: IntGaugeVec,
    pub autoscale_signal_age: GaugeVec,
    pub autoscale_kv_cache: GaugeVec,
    pub autoscale_first_token: GaugeVec,
    pub gateway_requests: IntCounterVec,
    pub gateway_refused: IntCounterVec,
    pub gateway_waiting: IntGauge,
    pub gateway_running: IntGauge,
    pub gateway_wait_seconds: Histogram,
    pub fetch_bytes: IntCounterVec,
    pub verify_failures: IntCounterVec,
    pub tls_connections: IntCounterVec,
    pub http_requests: IntCounterVec,
    pub auth_refused: IntCounterVec,
    pub policy_checks: IntCounterVec,
    pub audit_head_mismatch: IntGauge,
    pub models_quarantined: IntGauge,
    pub alarms: Alarms,
    pub jobs: IntGaugeVec,
    pub pending: IntGaugeVec,
    pub gpus: GaugeVec,
    pub tenant_gpus: GaugeVec,
    pub nodes: IntGaugeVec,
    pub is_leader: IntGauge,
    pub term: IntGauge,
    pub commit_index: IntGauge,
    pub apply_lag: IntGauge,
    pub last_contact: Gauge,
    /// For the raft module to observe.
    pub proposal_seconds: Histogram,
    pub fsync_seconds: Histogram,
    pub log_bytes: IntCounter,
    pub leader_establish_seconds: Gauge,
    /// Entries whose outcome was not the expected one; always 0 unless there is a bug.
    pub divergences: IntCounter,
}

/// Buckets from 100 µs to 10 s.
fn latency_buckets() -> Vec<f64> {
    vec![0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]
}

/// The same up to two minutes: so long may a request be held.
fn wait_buckets() -> Vec<f64> {
    latency_buckets().into_iter().chain([30.0, 60.0, 120.0]).collect()
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("names and labels are constants that the tests read");
    registry.register(Box::new(collector.clone())).expect("each family is registered once");
    collector
}

impl Metrics {
    /// A registry of its own, so that several members can live in one test process.
    pub fn new(version: &str, commit: &str) -> Self {
        let registry = Registry::new();
        let r = &registry;
        let counts = |name, help, labels: &[&str]| add(r, IntCounterVec::new(Opts::new(name, help), labels));
        let levels = |name, help, labels: &[&str]| add(r, IntGaugeVec::new(Opts::new(name, help), labels));
        let shares = |name, help, labels: &[&str]| add(r, GaugeVec::new(Opts::new(name, help), labels));
        let level = |name, help| add(r, IntGauge::new(name, help));
        let timed = |name, help, buckets| add(r, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)));
        let times = |name, help| timed(name, help, latency_buckets());
        levels("nf_build_info", "The build that runs; always 1.", &["version", "commit"])
            .with_label_values(&[version, commit])
            .set(1);
        let families = Families {
            sched_requests: counts(
                "nf_sched_requests_total",
                "Schedule calls by outcome: placed, queued, refused or replayed.",
                &["phase", "tenant"],
            ),
            schedule_seconds: times("nf_schedule_duration_seconds", "Time from a schedule call to its answer."),
            model_deploys: counts(
                "nf_model_deploys_total",
                "Jobs that were made, placed or waiting, by the member that took the call.",
                &["tenant", "model"],
            ),
            placement_seconds: times(
                "nf_placement_duration_seconds",
                "Time to plan one log entry on the leader, or one dry run: filtering and scoring.",
            ),
            replicas: levels(
                "nf_replicas",
                "Replicas of live jobs by state, as the group knows it.",
                &["tenant", "model", "state"],
            ),
            autoscale_decisions: counts(
                "nf_autoscale_decisions_total",
                "The leader's looks at services by what they came to: up, down or hold, and why.",
                &["tenant", "model", "direction", "reason"],
            ),
            autoscale_replicas: levels(
                "nf_autoscale_replicas",
                "Replicas of services, current and recommended, as the leader last saw them.",
                &["tenant", "model", "kind"],
            ),
            autoscale_signal_age: shares(
                "nf_autoscale_signal_age_seconds",
                "How old the oldest number was that the leader last judged a service by.",
                &["tenant", "model"],
            ),
            autoscale_kv_cache: shares(
                "nf_autoscale_kv_cache_usage_ratio",
                "Part of a service's KV caches in use, the mean of its replicas, as the leader last saw it.",
                &["tenant", "model"],
            ),
            autoscale_first_token: shares(
                "nf_autoscale_first_token_seconds",
                "95th percentile of the time to a first token at a service's slowest replica, as the leader last saw it.",
                &["tenant", "model"],
            ),
            gateway_requests: counts(
                "nf_gateway_requests_total",
                "Requests to models through this member's gateway, by status.",
                &["code"],
            ),
            gateway_refused: counts(
                "nf_gateway_refused_total",
                "Requests to models that this member's gateway refused itself, by reason.",
                &["reason"],
            ),
            gateway_waiting: level("nf_gateway_waiting_requests", "Requests that this gateway holds for a replica."),
            gateway_running: level("nf_gateway_running_requests", "Requests of this gateway that are with a replica."),
            gateway_wait_seconds: timed(
                "nf_gateway_wait_duration_seconds",
                "Time that a request waited in this gateway until a replica took it, or it was told that none does.",
                wait_buckets(),
            ),
            fetch_bytes: counts("nf_model_fetch_bytes_total", "Bytes of models brought from a store.", &["scheme"]),
            verify_failures: counts(
                "nf_model_verify_failures_total",
                "Model files refused: size, digest, missing or link; and versions: signature.",
                &["kind"],
            ),
            tls_connections: counts(
                "nf_tls_connections_total",
                "Accepted TLS connections by key-exchange group.",
                &["listener", "kx_group"],
            ),
            http_requests: counts(
                "nf_http_requests_total",
                "REST calls by route and status.",
                &["method", "route", "code"],
            ),
            alarms: Alarms::new(
                levels("nf_alarms", "1 while something of that kind is wrong here and stops nothing yet.", &["kind"]),
                counts("nf_alarms_raised_total", "How often something of that kind was found wrong here.", &["kind"]),
            ),
            policy_checks: counts(
                "nf_policy_checks_total",
                "What the policies P1 to P7 said of actions of the whole group, as this member has read them since its start.",
                &["policy", "result"],
            ),
            audit_head_mismatch: level(
                "nf_audit_head_mismatch",
                "1 when the audit trail on this member's disk is not the one that the group agreed on, or was written down, or another member has another.",
            ),
            models_quarantined: level(
                "nf_models_quarantined",
                "Versions of which the store gave a node other bytes than their manifests say, and that nobody has released since.",
            ),
            auth_refused: counts("nf_auth_refused_total", "Calls that the gate refused, by reason.", &["reason"]),
            jobs: levels("nf_jobs", "Live jobs by state.", &["state"]),
            pending: levels("nf_pending_jobs", "Waiting jobs by their most blocking reason.", &["reason"]),
            gpus: shares("nf_gpus", "GPUs by state: used, free, unavailable or unhealthy.", &["state"]),
            tenant_gpus: shares("nf_tenant_gpus", "GPUs of a tenant: used and quota.", &["tenant", "kind"]),
            nodes: levels("nf_nodes", "Nodes by state.", &["state"]),
            is_leader: level("nf_raft_is_leader", "1 on the member that leads."),
            term: level("nf_raft_term", "The Raft term."),
            commit_index: level("nf_raft_commit_index", "Last committed log index."),
            apply_lag: level("nf_raft_apply_lag_entries", "Committed entries that are not applied yet."),
            last_contact: add(
                r,
                Gauge::new("nf_raft_last_contact_seconds", "Time since this member last heard from the leader."),
            ),
            proposal_seconds: times(
                "nf_raft_proposal_duration_seconds",
                "Time from a proposal's arrival on the leader to its answer: waiting, planning, writing, applying.",
            ),
            fsync_seconds: times("nf_raft_fsync_duration_seconds", "Time of one sync of the log."),
            log_bytes: add(
                r,
                IntCounter::new("nf_raft_log_bytes_total", "Bytes added to this member's log since it started."),
            ),
            leader_establish_seconds: add(
                r,
                Gauge::new("nf_leader_establish_seconds", "Time this leader took from election to its first entry."),
            ),
            divergences: add(
                r,
                IntCounter::new("nf_raft_divergences_total", "Entries that did something else than planned; a bug."),
            ),
            registry: registry.clone(),
        };
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process)).expect("it is registered once");
        Self(Arc::new(families))
    }

    /// Adds families whose numbers are read when somebody scrapes.
    ///
    /// # Errors
    /// When one of them is there already.
    pub fn publish(&self, families: Box<dyn Collector>) -> prometheus::Result<()> {
        self.registry.register(families)
    }

    /// Everything, in the Prometheus text format.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// Sets `nf_jobs` to exactly these counts.
    pub fn set_jobs(&self, counts: impl Fn(JobState) -> i64) {
        for state in JobState::ALL.iter().filter(|state| !state.is_final()) {
            self.jobs.with_label_values(&[state.name()]).set(counts(*state));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CONVENTIONS.md, "Metrics".
    const NOW: &[&str] = &[
        "nf_build_info",
        "nf_sched_requests_total",
        "nf_model_deploys_total",
        "nf_schedule_duration_seconds",
        "nf_placement_duration_seconds",
        "nf_jobs",
        "nf_pending_jobs",
        "nf_gpus",
        "nf_tenant_gpus",
        "nf_replicas",
        "nf_model_fetch_bytes_total",
        "nf_model_verify_failures_total",
        "nf_raft_is_leader",
        "nf_raft_term",
        "nf_raft_commit_index",
        "nf_raft_apply_lag_entries",
        "nf_raft_proposal_duration_seconds",
        "nf_raft_fsync_duration_seconds",
        "nf_leader_establish_seconds",
        "nf_tls_connections_total",
        "nf_autoscale_decisions_total",
        "nf_autoscale_signal_age_seconds",
        "nf_policy_checks_total",
        "nf_audit_head_mismatch",
    ];
    /// Published by those who know them: agent/vitals.rs, gateway/promises.rs.
    const ELSEWHERE: &[&str] = &["nf_gpu_utilization_ratio", "nf_gpu_memory_used_bytes", "nf_slo_attainment_ratio"];

    #[test]
    fn the_families_of_the_conventions_are_there_or_elsewhere() {
        let metrics = Metrics::new("1.0", "abc");
        metrics.set_jobs(|_| 0);
        // Families with labels appear with their first series.
        metrics.sched_requests.with_label_values(&["placed", "t1"]).inc();
        metrics.model_deploys.with_label_values(&["t1", "m1"]).inc();
        metrics.autoscale_decisions.with_label_values(&["t1", "m1", "up", "Idle"]).inc();
        metrics.policy_checks.with_label_values(&["P2", "pass"]).inc();
        metrics.autoscale_signal_age.with_label_values(&["t1", "m1"]).set(0.5);
        metrics.replicas.with_label_values(&["t1", "m1", "Ready"]).set(1);
        metrics.pending.with_label_values(&["Resources"]).set(1);
        metrics.gpus.with_label_values(&["used"]).set(1.0);
        metrics.tenant_gpus.with_label_values(&["t1", "used"]).set(1.0);
        metrics.fetch_bytes.with_label_values(&["file"]).inc();
        metrics.verify_failures.with_label_values(&["digest"]).inc();
        metrics.tls_connections.with_label_values(&["peer", "X25519MLKEM768"]).inc();
        let text = metrics.render();
        let there = |name: &&&str| text.contains(&format!("# TYPE {name} "));
        assert_eq!(NOW.iter().filter(|name| !there(name)).collect::<Vec<_>>(), Vec::<&&str>::new());
        assert_eq!(ELSEWHERE.iter().filter(there).collect::<Vec<_>>(), Vec::<&&str>::new());
    }

    #[test]
    fn every_family_has_help_and_a_clean_name() {
        let metrics = Metrics::new("1.0", "abc");
        metrics.sched_requests.with_label_values(&["placed", "t1"]).inc();
        metrics.http_requests.with_label_values(&["GET", "/health", "200"]).inc();
        metrics.set_jobs(|_| 0);
        let text = metrics.render();
        for line in text.lines().filter(|l| l.starts_with("# HELP ")) {
            let mut words = line.splitn(4, ' ').skip(2);
            let (name, help) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            assert!(!help.trim().is_empty(), "{name} has no help");
            assert!(name.starts_with("nf_") || name.starts_with("process_"), "{name}");
        }
        for line in text.lines().filter(|l| l.starts_with("# TYPE ") && l.ends_with(" counter")) {
            assert!(line.contains("_total"), "{line}");
        }
        assert!(text.contains("nf_sched_requests_total{phase=\"placed\",tenant=\"t1\"} 1"), "{text}");
        assert!(text.contains("nf_build_info{commit=\"abc\",version=\"1.0\"} 1"), "{text}");
    }
}
