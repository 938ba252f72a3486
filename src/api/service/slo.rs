//! What a service promises and how it keeps the promise: what every member's gateway
//! counted, added up when somebody asks, with what the leader would do about it. What
//! a member that is gone had counted is gone, and the answer names who did not answer.
//! Members are asked once a second at most. It counts nothing itself.

use super::services::{ServiceBody, services};
use super::{Call, Service, freshness};
use crate::api::Sights;
use crate::api::convert::answer::Freshness;
use crate::api::convert::rollout::TrialBody;
use crate::api::error::Failure;
use crate::exchange::sights::{BUCKETS, p95_ms};
use crate::exchange::{Advice, Panorama, Sight};
use nf_core::command::Mode;
use nf_core::id::{JobNo, ModelId, Revision, TenantId, VersionId};
use nf_core::job::Job;
use nf_core::reason::{Reason, Refusal};
use nf_core::slo::{Count, LATENCY_MS, OBJECTIVE_PER_MILLE, Window};
use nf_core::state::State;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use utoipa::ToSchema;

/// Members are asked at most this often, for however many who ask.
const FRESH: Duration = Duration::from_secs(1);

/// One panorama for all who ask at about the same time: it is of every service, and costs each member a call.
pub struct Shared {
    ask: Sights,
    /// The lock is held while members are asked, so that who comes meanwhile waits for that answer.
    last: Mutex<Option<(Instant, Arc<Panorama>)>>,
}

impl Shared {
    pub fn new(ask: Sights) -> Self {
        Self { ask, last: Mutex::default() }
    }

    async fn now(&self) -> Arc<Panorama> {
        let mut last = self.last.lock().await;
        if let Some((at, panorama)) = &*last
            && at.elapsed() < FRESH
        {
            return panorama.clone();
        }
        let panorama = Arc::new((self.ask)().await);
        *last = Some((Instant::now(), panorama.clone()));
        panorama
    }
}

/// What is promised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TargetBody {
    /// Until a request has its answer, waiting included; of a stream of events, until it begins.
    pub latency_ms: u32,
    /// Whether a job (constraints.latency_ms) or its version's manifest states it; else it is what holds for all.
    pub stated: bool,
    /// Part of the requests that shall be answered so, without a server's error.
    pub objective: f64,
    /// Part of the requests that may end with a server's error, as a job states it (constraints.error_rate); null where
    /// none does.
    pub error_rate: Option<f64>,
}

/// How the promise was kept in one stretch of time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WindowBody {
    /// 5m, 30m, 1h, 6h or 3d, up to now.
    pub window: String,
    pub requests: u64,
    pub good: u64,
    /// Answered later than promised.
    pub slow: u64,
    /// A server's error, or no answer.
    pub failed: u64,
    /// Part that was good; null without requests.
    pub attainment: Option<f64>,
    /// How many times as fast as allowed the error budget is spent; null without requests.
    pub burn_rate: Option<f64>,
    /// Part that failed; null without requests.
    pub error_rate: Option<f64>,
    /// How many times as many failed as may; null without requests, or where nothing is promised of errors alone.
    pub error_burn_rate: Option<f64>,
}

/// What the leader's last look came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AdviceBody {
    /// Replicas that were wanted then.
    pub current: u32,
    /// Replicas that should be.
    pub desired: u32,
    /// Why, as a token; several where several jobs of the service scale.
    pub why: Vec<String>,
    /// Whose word was missing: nothing goes down then. Null where everybody spoke.
    pub gap: Option<String>,
    /// How old the oldest number was; null where none has an age.
    pub signal_age_ms: Option<u64>,
    /// Part of a language model's KV cache that is in use, 0 to 1, the mean of its replicas; null where none tells.
    pub kv_cache_usage: Option<f64>,
    /// 95th percentile of the time to an answer's first token, of the slowest replica; null where none tells.
    pub first_token_ms: Option<u64>,
    /// It is told and not carried out.
    pub advisory: bool,
}

/// A service's promise and how it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SloBody {
    pub tenant_id: String,
    pub model_id: String,
    /// Of the service, as in GET /services.
    pub state: String,
    pub replicas: u32,
    pub ready: u32,
    pub target: TargetBody,
    /// Of the last five minutes, to the upper end of its bucket; null without answers.
    pub p95_ms: Option<u64>,
    /// Requests that wait for a replica now.
    pub queue: u64,
    /// Requests that are with a replica now.
    pub running: u64,
    pub windows: Vec<WindowBody>,
    /// While a job goes from one version to another: the requests to each since it began.
    pub versions: Vec<TrialBody>,
    /// Of three days: 1 when nothing is spent, below 0 overdrawn; null without requests.
    pub error_budget_left: Option<f64>,
    /// Null where nothing scales, or no leader has looked yet.
    pub autoscaler: Option<AdviceBody>,
    /// Members whose counts are not in the sums: they did not answer in time.
    pub silent: Vec<u64>,
    /// Its replicas are simulated.
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}

impl Service {
    /// How a service keeps its promise.
    ///
    /// # Errors
    /// When the tenant has no such service.
    pub async fn slo(&self, call: &Call, tenant: &TenantId, model: &ModelId) -> Result<SloBody, Failure> {
        let view = self.read(call).await?;
        let (simulation, read) = (view.state.meta().mode == Mode::Simulation, freshness(&view));
        let (wanted, of) = ((tenant.clone(), model.clone()), tenant.clone());
        let look = move || {
            let found = services(&view.state, Some(&of)).into_iter().find(|s| s.model_id == wanted.1.as_str());
            let (promised, trials) = (promised(&view.state, &wanted), trials(&view.state, &wanted));
            found.map(|service| (service, promised, trials))
        };
        let Some((service, promised, trials)) = super::off_thread(look).await? else {
            let detail = format!("tenant {tenant} has no job of model {model}; nf get services lists what there is");
            return Err(Refusal::field(Reason::NotFound, "model_id", detail).into());
        };
        let panorama = self.panorama().await;
        Ok(body(service, (promised, &trials), &panorama, (tenant, model), simulation, read))
    }

    /// What all members see; nothing where there is no gateway to ask.
    pub(super) async fn panorama(&self) -> Arc<Panorama> {
        match &self.sights {
            Some(sights) => sights.now().await,
            None => Arc::default(),
        }
    }
}

/// What the jobs of a service state.
#[derive(Clone, Copy, Debug, Default)]
struct Promised {
    latency_ms: Option<u32>,
    error_ppm: Option<u32>,
}

/// The strictest of each.
fn promised(state: &State, (tenant, model): &(TenantId, ModelId)) -> Promised {
    let jobs = || state.jobs().values().filter(|job| job.spec.tenant == *tenant && job.spec.model == *model);
    Promised {
        latency_ms: jobs().filter_map(|job| job.spec.latency_ms()).min(),
        error_ppm: jobs().filter_map(|job| job.spec.constraints.error_ppm).min(),
    }
}

/// A version that is counted apart, and under which numbers.
type Trial = ((JobNo, Revision), VersionId);

/// Both versions of each of the service's jobs that goes from one to another.
fn trials(state: &State, (tenant, model): &(TenantId, ModelId)) -> Vec<Trial> {
    let mine = |job: &&Arc<Job>| job.spec.tenant == *tenant && job.spec.model == *model;
    let both = |job: &Arc<Job>| {
        let next = job.open_rollout().map(|rollout| rollout.revision);
        let of = |revision: Revision| ((job.no, revision), job.spec_of(revision).version.clone());
        [Some(job.revision), next].into_iter().flatten().map(of).collect::<Vec<_>>()
    };
    state.rollouts().filter(mine).flat_map(both).collect()
}

fn body(
    service: ServiceBody,
    (promised, trials): (Promised, &[Trial]),
    panorama: &Panorama,
    (tenant, model): (&TenantId, &ModelId),
    simulation: bool,
    read: Freshness,
) -> SloBody {
    let of = |sight: &&Sight| sight.tenant == *tenant && sight.model == *model;
    let sights: Vec<&Sight> = panorama.seen.iter().flat_map(|(_, seen)| seen.sights.iter().filter(of)).collect();
    let counts = Window::ALL
        .map(|window| sights.iter().map(|sight| sight.windows[window as usize]).fold(Count::default(), Count::and));
    let mut recent = [0u64; BUCKETS];
    for sight in &sights {
        recent.iter_mut().zip(&sight.recent).for_each(|(sum, count)| *sum = sum.saturating_add(*count));
    }
    let counted = panorama.trials();
    let of_trial = |key: &(JobNo, Revision)| counted.get(key).copied().unwrap_or_default();
    SloBody {
        tenant_id: service.tenant_id,
        model_id: service.model_id,
        state: service.state,
        replicas: service.replicas,
        ready: service.ready,
        target: TargetBody {
            latency_ms: promised.latency_ms.unwrap_or(LATENCY_MS),
            stated: promised.latency_ms.is_some(),
            objective: OBJECTIVE_PER_MILLE as f64 / 1000.0,
            error_rate: promised.error_ppm.map(|ppm| f64::from(ppm) / 1e6),
        },
        p95_ms: p95_ms(&recent),
        queue: sights.iter().map(|sight| u64::from(sight.waiting)).sum(),
        running: sights.iter().map(|sight| u64::from(sight.running)).sum(),
        windows: Window::ALL.into_iter().zip(counts).map(|(window, count)| windowed(window, count, promised)).collect(),
        versions: trials.iter().map(|(key, version)| TrialBody::new(version, of_trial(key))).collect(),
        error_budget_left: counts[Window::ThreeDays as usize].budget_left_milli().map(|left| left as f64 / 1e3),
        autoscaler: advice(panorama, tenant, model),
        silent: panorama.silent.iter().map(|member| member.0).collect(),
        simulation,
        read,
    }
}

fn windowed(window: Window, count: Count, promised: Promised) -> WindowBody {
    let error_burn = promised.error_ppm.and_then(|allowed| count.error_burn_milli(allowed));
    WindowBody {
        window: window.name().to_owned(),
        requests: count.requests(),
        good: count.good,
        slow: count.slow,
        failed: count.failed,
        attainment: count.attained_ppm().map(|part| part as f64 / 1e6),
        burn_rate: count.burn_rate_milli().map(|rate| rate as f64 / 1e3),
        error_rate: count.failed_ppm().map(|part| part as f64 / 1e6),
        error_burn_rate: error_burn.map(|rate| rate as f64 / 1e3),
    }
}

fn advice(panorama: &Panorama, tenant: &TenantId, model: &ModelId) -> Option<AdviceBody> {
    let told = panorama.seen.iter().flat_map(|(_, seen)| &seen.advice);
    let told: Vec<&Advice> = told.filter(|advice| advice.tenant == *tenant && advice.model == *model).collect();
    let first = told.first()?;
    Some(AdviceBody {
        current: told.iter().map(|advice| advice.current).fold(0, u32::saturating_add),
        desired: told.iter().map(|advice| advice.desired).fold(0, u32::saturating_add),
        why: told.iter().map(|advice| advice.why.clone()).collect(),
        gap: told.iter().find_map(|advice| advice.gap.clone()),
        signal_age_ms: told.iter().filter_map(|advice| advice.age_ms).max(),
        kv_cache_usage: told.iter().filter_map(|advice| advice.kv_m).max().map(|milli| milli as f64 / 1e3),
        first_token_ms: told.iter().filter_map(|advice| advice.first_token_ms).max(),
        advisory: first.advisory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Seen;
    use futures::FutureExt;
    use nf_core::id::MemberId;
    use nf_core::resources::Gpus;
    use nf_core::testing::{job_spec, node_spec, register, run, schedule};
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn sight(model: &str, good: u64, failed: u64) -> Sight {
        let mut recent = vec![0; BUCKETS];
        recent[10] = good;
        let count = Count { good, slow: 0, failed };
        let (tenant, model) = (TenantId::new("t1").unwrap(), ModelId::new(model).unwrap());
        let answered = recent.clone();
        let (arrived, windows) = (good + failed, [count; 5]);
        Sight { tenant, model, arrived, failed, waiting: 1, running: 2, answered, recent, windows, trials: vec![] }
    }

    #[test]
    fn what_members_counted_is_added_up_and_who_is_silent_is_named() {
        let mut state = State::new();
        run(&mut state, register("n1", node_spec(4)));
        run(&mut state, schedule("r1", job_spec("t1", Gpus::Milli(500))));
        let service = services(&state, None).remove(0);
        let (tenant, model) = (TenantId::new("t1").unwrap(), ModelId::new("m1").unwrap());
        let advice = Advice {
            tenant: tenant.clone(),
            model: model.clone(),
            current: 1,
            desired: 3,
            why: "Load".into(),
            gap: Some("signals of 2 of 5 replicas".into()),
            age_ms: Some(70),
            kv_m: Some(910),
            first_token_ms: Some(340),
            advisory: true,
        };
        let seen = |sights, advice| Seen { epoch: 1, sights, advice };
        let panorama = Panorama {
            seen: vec![
                (MemberId(1), seen(vec![sight("m1", 90, 0), sight("other", 0, 50)], vec![])),
                (MemberId(2), seen(vec![sight("m1", 0, 10)], vec![advice])),
            ],
            silent: vec![MemberId(3)],
            ..Panorama::default()
        };
        let read = Freshness { index: 1, known_leader: Some(1), last_contact_ms: 0, event_index: 0 };
        let body = body(
            service,
            (Promised { error_ppm: Some(10_000), ..Promised::default() }, &[]),
            &panorama,
            (&tenant, &model),
            true,
            read,
        );
        assert_eq!((body.target.latency_ms, body.target.stated, body.target.objective), (800, false, 0.95));
        let first = &body.windows[0];
        assert_eq!((first.window.as_str(), first.requests, first.attainment), ("5m", 100, Some(0.9)));
        assert_eq!((first.burn_rate, body.error_budget_left), (Some(2.0), Some(-1.0)));
        // One in ten failed, and one in a hundred may.
        let errors = (body.target.error_rate, first.error_rate, first.error_burn_rate);
        assert_eq!(errors, (Some(0.01), Some(0.1), Some(10.0)));
        assert_eq!((body.queue, body.running, body.silent.as_slice()), (2, 4, &[3][..]));
        assert!(body.p95_ms.is_some());
        let told = body.autoscaler.unwrap();
        assert_eq!((told.desired, told.why.as_slice(), told.advisory), (3, &["Load".to_owned()][..], true));
        assert_eq!((told.gap.as_deref(), told.signal_age_ms), (Some("signals of 2 of 5 replicas"), Some(70)));
        assert_eq!((told.kv_cache_usage, told.first_token_ms), (Some(0.91), Some(340)));
    }

    #[tokio::test]
    async fn however_many_ask_members_are_asked_once_a_second() {
        let rounds = Arc::new(AtomicUsize::new(0));
        let counted = rounds.clone();
        let ask: Sights = Arc::new(move || {
            let counted = counted.clone();
            let round = async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let member = counted.fetch_add(1, Ordering::SeqCst) as u64 + 1;
                Panorama { silent: vec![MemberId(member)], ..Panorama::default() }
            };
            round.boxed()
        });
        let shared = Shared::new(ask);
        for round in 1..=2 {
            for panorama in futures::future::join_all((0..50).map(|_| shared.now())).await {
                assert_eq!(panorama.silent, [MemberId(round)]);
            }
            assert_eq!(shared.now().await.silent, [MemberId(round)]);
            tokio::time::sleep(FRESH).await;
        }
        // Who leaves while it asks leaves the question to the next.
        assert!(tokio::time::timeout(Duration::from_millis(1), shared.now()).await.is_err());
        assert_eq!(shared.now().await.silent, [MemberId(3)]);
        assert_eq!(rounds.load(Ordering::SeqCst), 3);
    }
}
