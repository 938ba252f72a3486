//! A worker: an agent without a vote, served by any member. On its public port it
//! answers two questions about itself and nothing else.

use super::links::TlsDial;
use super::trust::{self, Trust};
use super::{Extras, Stop, bind, follow, form, identity::Me, join, nodes, public, write_ready};
use crate::agent::executor::Executor;
use crate::agent::{self, AgentConfig, RemoteLink, incarnation};
use crate::api::service::cluster::{self, Component, HealthBody, keys};
use crate::api::service::gauges::fill_models;
use crate::api::service::links::LinksBody;
use crate::config::{Error as ConfigError, Settings, parse::Mode};
use crate::pqc::{Families, Links, Policy};
use crate::security::tls::{self, Role};
use crate::telemetry::Metrics;
use anyhow::{Result, anyhow};
use axum::routing::get;
use axum::{Json, Router, http::header};
use nf_core::id::MemberId;
use nf_core::node::NodeKind;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

pub async fn run(settings: &Settings, extras: &Extras) -> Result<()> {
    let begun = Instant::now();
    nodes::users(settings, &settings.data()).check().map_err(ConfigError::Clash)?;
    let mut stop = Stop::new(extras.stop_with_parent)?;
    let listener = bind(settings.public(), "--listen")?;
    // A worker has no number, and members never call it: its peer address is a name only.
    let me = Me::new(settings, MemberId(0), listener.local_addr()?, settings.peer())?;
    if tls::holder(&me.tls.cert(), &me.cluster).is_some_and(|(_, role)| role == Role::Server) {
        let text = format!(
            "NF_TLS_DIR holds a member's certificate; a worker's is made by nf tls cert create --role node --name {}",
            me.name
        );
        return Err(ConfigError::Clash(text).into());
    }
    let store = nodes::store(settings, &me.data)?;
    let spec = nodes::own_spec(settings, &me).await?;
    let about = About::new(settings, &me, spec.simulated, begun);
    let trust = Trust::open(settings, store.as_ref(), trust::alarm(&about.metrics))?;
    let faults = agent::faults::channel();
    let vacancy = nodes::vacancy(settings, &me, &spec, &faults.0, &about.metrics);
    let here = nodes::Here::of(&me, &about.metrics);
    let config = nodes::executor_config(settings, &me.data, &here, &me.name, store, trust.as_ref(), vacancy);
    // What runs here is adopted, and what is exclusive guarded, whether or not any member answers.
    let executor = Executor::open(config)?;
    let told = join::told(settings);
    let members = match told {
        Some(group) => group.members,
        None => form::group(settings).await?.members,
    };
    let names = members.iter().map(|(_, name, peer)| (peer.clone(), name.clone())).collect();
    let peers: Vec<String> = members.iter().map(|(.., peer)| peer.clone()).collect();
    let dial = TlsDial { tls: me.tls.clone(), names };
    let link =
        RemoteLink::new(&me.cluster, settings.mode().into(), &peers, &dial).map_err(|e| anyhow!("{e}; see NF_JOIN"))?;
    let dir = me.data.join("node");
    let incarnation = tokio::task::spawn_blocking(move || incarnation::next(&dir)).await??;
    follow::certificates(&me, about.metrics.clone())?;
    about.metrics.publish(Box::new(Families::new(me.links())?))?;
    let (end, ended) = watch::channel(false);
    let known = members.into_iter().map(|(_, name, peer)| (name, peer)).collect();
    tokio::spawn(join::keep(me.clone(), known, about.metrics.clone()));
    let vitals = about.metrics.clone();
    let (public_tls, counting) = (follow::public(settings, &about.metrics)?, about.metrics.clone());
    let told = move |group: &str| counting.tls_connections.with_label_values(&["public", group]).inc();
    let port = public::Port::new(public_tls, me.tls.links().clone(), Arc::new(told));
    let served = serve(port, listener, about, ended.clone())?;
    let (watched, described) = (nodes::watched(&me, incarnation, &spec), nodes::described(settings, &me, &spec));
    let vitals = agent::vitals::follow(me.name.as_str(), watched.1.clone(), &vitals, ended.clone())?;
    let node = nodes::own(&me, NodeKind::Worker, incarnation, spec, Arc::new(executor.clone()));
    let link = Arc::new(link);
    let config = AgentConfig {
        described: Some(described),
        vitals: Some(vitals),
        beat_every: settings.beat.value,
        kill_budget: settings.kill_budget.value,
        ..AgentConfig::new(vec![node], link.clone())
    };
    tokio::spawn(agent::faults::run(watched.0, watched.1, faults, link, ended.clone()));
    let mut agent = tokio::spawn(agent::run(config, ended));
    write_ready(extras.ready_file.as_ref(), &me.api)?;
    tracing::info!(node = %me.name, api = me.api, members = peers.join(","), "working");
    let outcome = tokio::select! {
        outcome = &mut agent => match outcome? {
            agent::Outcome::Superseded => Err(anyhow!("another process runs node {} now; this one ends", me.name)),
            agent::Outcome::Stopped => Ok(()),
        },
        why = stop.asked() => { tracing::info!(why, "stopping"); Ok(()) }
    };
    end.send_replace(true);
    served.abort();
    executor.shutdown_keeping_replicas();
    outcome
}

/// What a worker says of itself.
#[derive(Clone)]
struct About {
    node: String,
    mode: Mode,
    missing: Vec<String>,
    simulated_devices: bool,
    has_store: bool,
    begun: Instant,
    metrics: Metrics,
    key_exchange: Policy,
    links: Vec<Links>,
}

impl About {
    fn new(settings: &Settings, me: &Me, simulated_devices: bool, begun: Instant) -> Self {
        Self {
            node: me.name.to_string(),
            mode: settings.mode(),
            missing: settings.missing().into_iter().map(str::to_owned).collect(),
            simulated_devices,
            has_store: settings.model_store_url.is_some(),
            begun,
            metrics: Metrics::new(crate::cli::VERSION, crate::cli::COMMIT),
            key_exchange: me.tls.policy(),
            links: me.links(),
        }
    }

    /// The same shape as a member's; what a worker does not do is missing from its parts.
    fn health(&self) -> HealthBody {
        let part = |status: &str| Component { status: status.to_owned(), detail: None };
        let agent = if self.simulated_devices { "simulated" } else { "ok" };
        let store = if self.has_store { "ok" } else { "simulated" };
        HealthBody {
            status: "ok".into(),
            uptime: self.begun.elapsed().as_secs_f64(),
            simulation: self.mode == Mode::Simulation,
            mode: self.mode.name().into(),
            // Its port tells how it is and nothing else.
            auth: "off".into(),
            missing: self.missing.clone(),
            node_id: self.node.clone(),
            role: "worker".into(),
            leader: None,
            term: 0,
            index: 0,
            version: crate::cli::VERSION.into(),
            commit: crate::cli::COMMIT.into(),
            components: [
                ("agent".to_owned(), cluster::agent(&self.metrics, part(agent))),
                ("model_store".to_owned(), part(store)),
                ("keys".to_owned(), keys(&self.metrics)),
            ]
            .into(),
            links: LinksBody::of(self.key_exchange, &self.links),
        }
    }

    fn render(&self) -> String {
        fill_models(&self.metrics);
        self.metrics.render()
    }
}

/// Answers until it is aborted.
fn serve(
    port: public::Port,
    listener: TcpListener,
    about: About,
    ended: watch::Receiver<bool>,
) -> Result<tokio::task::JoinHandle<()>> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let health = about.clone();
    let plain = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    let router = Router::new()
        .route("/health", get(move || async move { Json(health.health()) }))
        .route("/metrics", get(move || async move { (plain, about.render()) }));
    Ok(tokio::spawn(public::serve(port, listener, router, ended)))
}
