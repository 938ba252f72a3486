//! A member: Raft, the exchange, the leader's loop, the agent, the public port.

use super::form;
use super::identity::{self, Me};
use super::links::{self, Late, TlsDial};
use super::scaled::Scaled;
use super::trust::{self, Trust};
use super::{Extras, Stop, bind, consents, follow, join, nodes, public, trail, wiped, write_ready};
use crate::agent::executor::Executor;
use crate::agent::inventory::{AT_START, Driver, Wait};
use crate::agent::played::{self, PlayedConfig};
use crate::agent::{self, AgentConfig, LocalLink, incarnation};
use crate::api::convert::schedule::ModelFacts;
use crate::api::{self, ApiState, Info, Resolve, Unresolved};
use crate::config::{Error as ConfigError, Settings};
use crate::controller;
use crate::exchange::{self, Hub};
use crate::gateway::{self, Gateway};
use crate::integrations;
use crate::models::Store;
use crate::pqc::Families;
use crate::raft::{self, Replica, Role};
use crate::security::checkpoint;
use crate::security::jwt::Verifier;
use crate::storage::fatal::Fatal;
use crate::telemetry::Metrics;
use anyhow::Result;
use futures::{FutureExt, StreamExt};
use nf_core::control::{NetworkFault, Timeouts};
use nf_core::model_budget::ModelBudget;
use nf_core::node::NodeKind;
use nf_core::reason::{Reason, Refusal};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long moving leadership away may hold up the end.
const TRANSFER: Duration = Duration::from_secs(2);
/// How long calls under way may hold up the end: those to models longer, by a setting, the others are quick, or watch.
const CALLS: Duration = Duration::from_secs(3);
/// Between two looks at whether requests to models are under way.
const LOOK: Duration = Duration::from_millis(100);
/// How long the agent may take to end.
const AGENT: Duration = Duration::from_secs(2);

pub async fn run(settings: &Settings, extras: &Extras) -> Result<()> {
    let begun = Instant::now();
    let mut stop = Stop::new(extras.stop_with_parent)?;
    nodes::users(settings, &settings.data()).check().map_err(ConfigError::Clash)?;
    wiped::check_founder(settings).await?;
    let metrics = Metrics::new(crate::cli::VERSION, crate::cli::COMMIT);
    let auth = follow::tokens(settings, &metrics)?;
    let public_tls = follow::public(settings, &metrics)?;
    let public = bind(settings.public(), "--listen")?;
    let peer = bind(settings.peer(), "--peer-listen")?;
    let peer_address = peer.local_addr()?;
    let founders = identity::founders(settings, peer_address);
    let id = match identity::founder_id(settings, &founders) {
        Some(id) if !founders.is_empty() => id,
        _ => form::joining_id(settings).await?,
    };
    let me = Me::new(settings, id, public.local_addr()?, peer_address)?;
    follow::certificates(&me, metrics.clone())?;
    metrics.publish(Box::new(Families::new(me.links())?))?;
    let late = Late::default();
    let doors = join::Doors::closed();
    let astray = trail::Astray::new(metrics.clone());
    let options = options(settings, &me, peer, &late, &metrics, astray.clone());
    let replica = raft::start(raft::Options { aside: Some(doors.aside()), ..options }).await?;
    doors.open(desk(settings, &me, &replica, &metrics));
    let hub = Hub::new(replica.clone(), exchange_options(settings, &me)?);
    late.set(hub.serve(links::identify(me.cluster.clone(), replica.clone())));
    let (close, closed) = watch::channel(false);
    let (end, ended) = watch::channel(false);
    let mut leading = tokio::spawn(controller::run(hub.clone(), controller_options(settings, &me.data, &metrics)));
    let store = nodes::store(settings, &me.data)?;
    let trust = Trust::open(settings, store.as_ref(), trust::alarm(&metrics))?;
    let gateway = Gateway::new(hub.group().clone(), metrics.clone(), gateway_options(settings));
    let lookout = gateway.clone();
    hub.look_out(Arc::new(move || lookout.seen()));
    let models = store.clone().map(|store| resolve(store, trust.clone()));
    let sign = checkpoint::signer(me.tls.clone(), &me.keys);
    // Before the next one is written.
    let kept = trail::last_kept(&follow::kept(&me));
    tokio::spawn(trail::follow(replica.clone(), astray, kept, ended.clone()));
    follow::checkpoints(&me, &replica, sign.clone(), ended.clone());
    let (own, counting) = (metrics.clone(), metrics.clone());
    let consents = consents::open(settings)?;
    let state = ApiState {
        sign: Some(sign),
        consents,
        authority: Some(authority(&me)),
        ..api_state(settings, &me, &replica, &hub, models, metrics, begun, auth)
    };
    let router = api::router_with(state, gateway.router(), gateway::TENANT);
    let listener = tokio::net::TcpListener::from_std(public)?;
    let told = move |group: &str| counting.tls_connections.with_label_values(&["public", group]).inc();
    let port = public::Port::new(public_tls, me.tls.links().clone(), Arc::new(told));
    let mut served = tokio::spawn(public::serve(port, listener, router, closed));

    let part = Part { settings, me: &me, replica: &replica, hub: &hub, store, trust, metrics: own, ended: &ended };
    let outcome = tokio::select! {
        outcome = part.take(&founders, extras) => outcome,
        why = stop.asked() => { tracing::info!(why, "stopping"); Ok(()) }
        served = &mut served => Err(anyhow::anyhow!("serving the public port ended: {served:?}")),
        // A leader without its loop would place no waiting job and miss every silence.
        ended = &mut leading => Err(anyhow::anyhow!("the leader's loop ended: {ended:?}")),
    };
    let gently = async {
        // Leadership first: calls that arrive meanwhile are forwarded to the new leader.
        hand_over(&replica).await;
        close.send_replace(true);
        if tokio::time::timeout(CALLS, &mut served).await.is_ok() {
            return;
        }
        if !answered(&gateway, settings.calls_grace.value).await {
            tracing::info!("some requests to models did not end in time (NF_CALLS_GRACE); their callers see them cut");
        }
        // The last piece of an answer counts as told once it is on its way: it has to arrive, too.
        let _ = tokio::time::timeout(CALLS, &mut served).await;
    };
    tokio::select! {
        () = gently => {}
        why = stop.asked() => tracing::info!(why, "asked again: ending at once"),
    }
    end.send_replace(true);
    replica.shutdown().await;
    outcome
}

/// Waits until no request to a model is under way, for so long at most; says whether that came.
/// The agent and the group's member go on meanwhile: for the group nothing has happened yet.
async fn answered(gateway: &Gateway, most: Duration) -> bool {
    let quiet = async {
        while gateway.is_busy() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(most, quiet).await.is_ok()
}

fn options(
    settings: &Settings,
    me: &Me,
    listener: TcpListener,
    late: &Late,
    metrics: &Metrics,
    astray: trail::Astray,
) -> raft::Options {
    let timing = raft::Timing {
        heartbeat: settings.heartbeat.value,
        election_min: settings.election_min.value,
        election_max: settings.election_max.value,
    };
    let wiped = wiped::refusal(settings, me.id).to_string();
    raft::Options {
        data_dir: me.data.join("raft"),
        cluster: me.cluster.clone(),
        id: me.id,
        name: me.name.to_string(),
        listener,
        tls: me.tls.clone(),
        timing,
        tuning: raft::Tuning::default(),
        hooks: hooks(metrics, astray, wiped),
        wall: Arc::new(raft::wall_clock_ms),
        fatal: Fatal::abort(),
        services: Some(late.routes()),
        aside: None,
    }
}

fn desk(settings: &Settings, me: &Me, replica: &Replica, metrics: &Metrics) -> join::Desk {
    join::Desk {
        replica: replica.clone(),
        tls: me.tls.clone(),
        keys: me.keys.clone(),
        name: me.name.clone(),
        life: settings.node_cert_life.value,
        certified: Arc::default(),
        metrics: metrics.clone(),
    }
}

/// What Raft measures, into the families that it has there.
/// `wiped`: what to say when the group turns out to know this member, which has nothing.
fn hooks(metrics: &Metrics, astray: trail::Astray, wiped: String) -> raft::Hooks {
    let to = |observe: fn(&Metrics, Duration)| {
        let metrics = metrics.clone();
        Arc::new(move |took: Duration| observe(&metrics, took)) as Arc<dyn Fn(Duration) + Send + Sync>
    };
    let (diverged, accepted, logged) = (metrics.clone(), metrics.clone(), metrics.clone());
    raft::Hooks {
        fsync: to(|m, took| m.fsync_seconds.observe(took.as_secs_f64())),
        logged: Arc::new(move |bytes| logged.log_bytes.inc_by(bytes)),
        propose: to(|m, took| m.proposal_seconds.observe(took.as_secs_f64())),
        plan: to(|m, took| m.placement_seconds.observe(took.as_secs_f64())),
        established: to(|m, took| m.leader_establish_seconds.set(took.as_secs_f64())),
        diverged: Arc::new(move |entries| diverged.divergences.inc_by(entries)),
        differs: Arc::new(move |member, index| astray.found(member, index)),
        wiped: Arc::new(move || Fatal::abort().raise(&wiped)),
        accepted: Arc::new(move |group: &str| {
            accepted.tls_connections.with_label_values(&["peer", group]).inc();
        }),
    }
}

fn exchange_options(settings: &Settings, me: &Me) -> Result<exchange::Options> {
    let monitor = settings.prom_url.value.as_deref().map(integrations::prometheus::asking).transpose();
    let monitor = monitor.map_err(anyhow::Error::msg)?;
    let dial = TlsDial { tls: me.tls.clone(), names: Default::default() };
    Ok(exchange::Options { lease: settings.lease.value, dial: Arc::new(dial), monitor })
}

fn controller_options(settings: &Settings, data: &Path, metrics: &Metrics) -> controller::Options {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let timeouts = Timeouts {
        suspect_ms: ms(settings.suspect_after.value),
        unknown_ms: ms(settings.unknown_after.value),
        down_ms: ms(settings.down_after.value),
        fault: network_fault(settings),
    };
    let pace = controller::Pace { every: settings.scale_every.value, settle: settings.scale_settle.value };
    let scaled = Scaled::new(metrics);
    let told = Arc::new(move |looks: Option<&[controller::Look]>| scaled.tell(looks.unwrap_or_default()));
    let journal = Some(controller::Journal::new(data.join("autoscale")));
    let defrag_every = settings.defrag_every.value;
    controller::Options { timeouts, pace, defrag_every, told, journal, ..controller::Options::default() }
}

fn gateway_options(settings: &Settings) -> gateway::Options {
    let (held, hold, of_tenant) =
        (settings.calls_held.value, settings.calls_hold.value, settings.calls_of_tenant.value);
    gateway::Options { held, hold, of_tenant, ..gateway::Options::default() }
}

fn network_fault(settings: &Settings) -> NetworkFault {
    let after = settings.network_fault_down_after.value;
    NetworkFault {
        percent: settings.network_fault_percent.value,
        down_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
    }
}

fn api_state(
    settings: &Settings,
    me: &Me,
    replica: &Replica,
    hub: &Hub,
    models: Option<Resolve>,
    metrics: Metrics,
    started: Instant,
    auth: Option<Arc<Verifier>>,
) -> ApiState {
    let (hub, eyes) = (hub.clone(), hub.clone());
    let sights: api::Sights = Arc::new(move || {
        let eyes = eyes.clone();
        async move { eyes.sights().await }.boxed()
    });
    let heard = hub.clone();
    let vitals: api::GpuVitals = Arc::new(move || {
        let heard = heard.clone();
        async move { heard.vitals().await.ok() }.boxed()
    });
    let logs: api::LogSource =
        Arc::new(move |query| hub.logs(query).map(|piece| piece.map_err(|e| e.to_string())).boxed());
    let info = Info {
        version: crate::cli::VERSION.to_owned(),
        commit: crate::cli::COMMIT.to_owned(),
        node_name: me.name.to_string(),
        host: me.host.clone(),
        ports: nf_core::played::played_ports(nodes::range(settings)),
        run_dir: settings.run_dir.value.display().to_string(),
        missing: settings.missing().into_iter().map(str::to_owned).collect(),
        network_fault: network_fault(settings),
        defrag_every: settings.defrag_every.value,
        started,
        key_exchange: me.tls.policy(),
        links: me.links(),
    };
    ApiState {
        replica: replica.clone(),
        logs: Some(logs),
        sights: Some(sights),
        vitals: Some(vitals),
        models,
        info,
        metrics,
        auth,
        sign: None,
        consents: None,
        authority: None,
    }
}

/// By which digest those who join know the group.
fn authority(me: &Me) -> api::Authority {
    let tls = me.tls.clone();
    Arc::new(move || tls.authority())
}

fn resolve(store: Store, trust: Option<Trust>) -> Resolve {
    Arc::new(move |tenant, model, version| {
        let found = store.resolve_blocking(model, version).map_err(|e| match e.reason() {
            Reason::StoreUrlForbidden => {
                Unresolved::Refused(Refusal::field(e.reason(), "model_version", e.to_string()), None)
            }
            _ => Unresolved::Down(e.to_string()),
        })?;
        let Some(manifest) = found else { return Ok(None) };
        let judged = trust.as_ref().map(|trust| trust.judge(&manifest, tenant)).transpose();
        let (runtime, sha256, self_limiting) = (manifest.runtime(), manifest.sha256(), manifest.limits_gpu());
        let budget = ModelBudget { latency_ms: manifest.latency_ms, memory: manifest.memory };
        let data_classes = manifest.data_classes;
        let facts = ModelFacts { runtime, manifest: sha256, evidence: None, data_classes, self_limiting, budget };
        match judged {
            Ok(evidence) => Ok(Some(ModelFacts { evidence, ..facts })),
            Err(refusal) => Err(Unresolved::Refused(refusal, Some(Box::new(facts)))),
        }
    })
}

/// What this member does beside answering.
struct Part<'a> {
    settings: &'a Settings,
    me: &'a Me,
    replica: &'a Replica,
    hub: &'a Hub,
    store: Option<Store>,
    trust: Option<Trust>,
    metrics: Metrics,
    ended: &'a watch::Receiver<bool>,
}

impl Part<'_> {
    /// Forms or joins the group, then runs the agent. Returns only with an error.
    async fn take(&self, founders: &[crate::config::parse::Member], extras: &Extras) -> Result<()> {
        let Self { settings, me, replica, hub, .. } = self;
        // What runs here is adopted whether or not the group answers: that may take as long as a quorum is away.
        let here = nodes::Here::of(me, &self.metrics);
        let driver = Driver::default();
        let spec = nodes::own_spec(settings, me, &driver, Wait::AtMost(AT_START)).await?;
        let faults = agent::faults::channel();
        let vacancy = nodes::vacancy(settings, me, &spec, &faults.0, &self.metrics);
        let (store, trust) = (self.store.clone(), self.trust.as_ref());
        let executor =
            Executor::open(nodes::executor_config(settings, &me.data, &here, &me.name, store, trust, vacancy))?;
        tokio::spawn(keep_replicas(self.ended.clone(), executor.clone()));
        match founders.is_empty() {
            false => form::initialize(replica, me, founders).await?,
            true if replica.status().members.is_empty() => form::join(settings, me).await?,
            true => {}
        }
        form::introduce(replica, me, settings).await?;
        let dir = me.data.join("node");
        let incarnation = tokio::task::spawn_blocking(move || incarnation::next(&dir)).await??;
        let (watched, described) =
            (nodes::watched(me, incarnation, &spec), nodes::described(settings, me, driver, &here, &spec));
        let vitals = agent::vitals::follow(me.name.as_str(), watched.1.clone(), &self.metrics, self.ended.clone())?;
        let node = nodes::own(me, NodeKind::Member(me.id), incarnation, spec, Arc::new(executor.clone()));
        let config = AgentConfig {
            described: Some(described),
            vitals: Some(vitals),
            beat_every: settings.beat.value,
            kill_budget: settings.kill_budget.value,
            ..AgentConfig::new(vec![node], Arc::new(LocalLink((*hub).clone())))
        };
        let played = PlayedConfig {
            me: me.id,
            incarnation,
            hub: (*hub).clone(),
            open: nodes::opener(settings, &me.data, &here, self.store.clone(), self.trust.clone()),
            beat_every: settings.beat.value,
            kill_budget: settings.kill_budget.value,
        };
        tokio::spawn(played::run(played, self.ended.clone()));
        let link = Arc::new(LocalLink((*hub).clone()));
        tokio::spawn(agent::faults::run(watched.0, watched.1, faults, link, self.ended.clone()));
        let agent = tokio::spawn(agent::run(config, self.ended.clone()));
        nodes::register_played(settings, me, replica, incarnation).await?;
        write_ready(extras.ready_file.as_ref(), &me.api)?;
        tracing::info!(api = me.api, peer = me.peer, id = me.id.0, "serving");
        match agent.await? {
            agent::Outcome::Superseded => {
                anyhow::bail!("another process runs node {} now; this one ends, so that nothing runs twice", me.name)
            }
            agent::Outcome::Stopped => {
                // The end is under way; whoever asked for it goes on.
                tokio::time::sleep(AGENT).await;
                Ok(())
            }
        }
    }
}

/// At the end, processes are left running for the next start to adopt.
async fn keep_replicas(mut ended: watch::Receiver<bool>, executor: Executor) {
    let _ = ended.wait_for(|end| *end).await;
    executor.shutdown_keeping_replicas();
}

/// Moves leadership to the voter that is furthest, so that the end is no failover.
async fn hand_over(replica: &Replica) {
    let status = replica.status();
    if status.role != Role::Leader {
        return;
    }
    let others = status.members.iter().filter(|member| member.voter && member.id != status.id);
    let Some(best) = others.max_by_key(|member| (member.matched, member.id)) else { return };
    match replica.transfer(best.id, Instant::now() + TRANSFER).await {
        Ok(()) => tracing::info!(to = best.name, "leadership moved"),
        Err(error) => tracing::warn!(to = best.name, %error, "leadership did not move; the others will elect"),
    }
}
