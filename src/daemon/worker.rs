//! A worker: an agent without a vote, served by any member. On its public port it
//! answers two questions about itself and nothing else.

use super::links::TlsDial;
use super::trust::{self, Trust};
use super::{Extras, Stop, bind, follow, form, identity::Me, join, nodes, public, write_ready};
use crate::agent::executor::Executor;
use crate::agent::inventory::{AT_START, Driver, Wait};
use crate::agent::{self, AgentConfig, RemoteLink, incarnation};
use crate::api::auth;
use crate::api::service::cluster::{self, Component, HealthBody, keys};
use crate::api::service::gauges::fill_models;
use crate::api::service::links::LinksBody;
use crate::config::{Error as ConfigError, Settings, parse::Mode};
use crate::pqc::{Families, Links, Policy};
use crate::security::jwt::Verifier;
use crate::security::tls::{self, Role};
use crate::telemetry::Metrics;
use anyhow::{Result, anyhow};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
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
    let driver = Driver::default();
    let spec = nodes::own_spec(settings, &me, &driver, Wait::AtMost(AT_START)).await?;
    let about = About::new(settings, &me, spec.simulated, begun)?;
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
    let (watched, described) =
        (nodes::watched(&me, incarnation, &spec), nodes::described(settings, &me, driver, &here, &spec));
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
    /// Who reads its metrics has to say who they are; None: anybody may.
    verifier: Option<Arc<Verifier>>,
}

impl About {
    fn new(settings: &Settings, me: &Me, simulated_devices: bool, begun: Instant) -> Result<Self> {
        let metrics = Metrics::new(crate::cli::VERSION, crate::cli::COMMIT);
        let verifier = follow::tokens(settings, &metrics)?;
        Ok(Self {
            node: me.name.to_string(),
            mode: settings.mode(),
            missing: settings.missing().into_iter().map(str::to_owned).collect(),
            simulated_devices,
            has_store: settings.model_store_url.is_some(),
            begun,
            metrics,
            key_exchange: me.tls.policy(),
            links: me.links(),
            verifier,
        })
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
            auth: if self.verifier.is_some() { "on".into() } else { "off".into() },
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

    /// All of it, to whoever may read what belongs to no tenant, as on a member. Production starts with keys alone.
    fn told(&self, headers: &HeaderMap) -> Response {
        if let Some(Err(refused)) = self.verifier.as_ref().map(|verifier| auth::may_read_all(verifier, headers)) {
            self.metrics.auth_refused.with_label_values(&[refused.refusal.reason.token()]).inc();
            return refused.into_response();
        }
        fill_models(&self.metrics);
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], self.metrics.render()).into_response()
    }

    /// Its two answers.
    fn routes(self) -> Router {
        let health = self.clone();
        Router::new()
            .route("/health", get(move || async move { Json(health.health()) }))
            .route("/metrics", get(move |headers: HeaderMap| async move { self.told(&headers) }))
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
    Ok(tokio::spawn(public::serve(port, listener, about.routes(), ended)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::jwt::{self, Grant, Keys, Mint};
    use axum::body::Body;
    use axum::http::{Request, StatusCode};
    use tower::ServiceExt as _;

    fn about(verifier: Option<Verifier>) -> About {
        About {
            node: "w1".into(),
            mode: Mode::Production,
            missing: Vec::new(),
            simulated_devices: false,
            has_store: true,
            begun: Instant::now(),
            metrics: Metrics::new("1.0", "abc"),
            key_exchange: Policy::default(),
            links: Vec::new(),
            verifier: verifier.map(Arc::new),
        }
    }

    async fn asked(about: &About, path: &str, token: Option<&str>) -> StatusCode {
        let mut request = Request::get(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        about.clone().routes().oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status()
    }

    #[tokio::test]
    async fn a_workers_metrics_are_for_those_who_may_read_all() {
        let mint = Mint::generate("lab").unwrap();
        let token = |roles: &[jwt::Role]| {
            let (subject, tenant, id) = ("prometheus".to_owned(), "t1".to_owned(), "id-1".to_owned());
            mint.token(&Grant { subject, tenant, roles: roles.to_vec(), id, lifetime_s: 3600 }, auth::now()).unwrap()
        };
        let asks = about(Some(Verifier::new(Keys::parse("keys", mint.jwks().to_string().as_bytes()).unwrap(), None)));
        let all = [jwt::Role::Viewer, jwt::Role::Operator, jwt::Role::Promoter];
        assert_eq!(asked(&asks, "/metrics", None).await, StatusCode::UNAUTHORIZED);
        assert_eq!(asked(&asks, "/metrics", Some("nonsense")).await, StatusCode::UNAUTHORIZED);
        assert_eq!(asked(&asks, "/metrics", Some(&token(&all))).await, StatusCode::FORBIDDEN, "a tenant's");
        for role in [jwt::Role::Node, jwt::Role::Admin] {
            assert_eq!(asked(&asks, "/metrics", Some(&token(&[role]))).await, StatusCode::OK);
        }
        assert_eq!(asked(&asks, "/health", None).await, StatusCode::OK, "how it is, anybody may know");
        assert_eq!(asked(&about(None), "/metrics", None).await, StatusCode::OK, "nobody is asked in simulation");
    }
}
