//! A group whose members each serve the public surface on a port of their own, with
//! or without asking who calls. What is asked of it is its users' business.

use crate::harness::Cluster;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use neural_fabric::api::{self, ApiState, Info, Resolve};
use neural_fabric::daemon::public::{self, Port};
use neural_fabric::exchange::LogQuery;
use neural_fabric::pqc::Links;
use neural_fabric::security::checkpoint;
use neural_fabric::security::jwt::Verifier;
use neural_fabric::telemetry::Metrics;
use reqwest::Client;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The log of a program that says a line in each moment.
fn played_log(query: LogQuery) -> BoxStream<'static, Result<Bytes, String>> {
    let line = |n: usize| Ok(Bytes::from(format!("line {n}\n")));
    let lines = futures::stream::unfold(0, move |n| async move {
        if n > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Some((line(n), n + 1))
    });
    lines.take(if query.follow { usize::MAX } else { 1 }).boxed()
}

pub struct Surface {
    pub cluster: Cluster,
    /// One of each member.
    pub urls: Vec<String>,
    pub http: Client,
    servers: Vec<JoinHandle<()>>,
    end: watch::Sender<bool>,
}

impl Surface {
    /// `auth` makes a verifier for each member, which then asks for a token.
    pub async fn start(members: u64, auth: impl Fn() -> Option<Verifier>) -> Self {
        Self::with_models(members, auth, None).await
    }

    /// The same with somebody who knows versions of models.
    pub async fn with_models(members: u64, auth: impl Fn() -> Option<Verifier>, models: Option<Resolve>) -> Self {
        let cluster = Cluster::start(members).await;
        let (mut urls, mut servers) = (Vec::new(), Vec::new());
        let (end, _) = watch::channel(false);
        for seat in &cluster.seats {
            let info = Info {
                version: "1.2.3".into(),
                commit: "abc".into(),
                node_name: seat.name.clone(),
                host: "127.0.0.1".into(),
                ports: Some(nf_core::node::PortRange { first: 30_000, last: 30_999 }),
                run_dir: "/tmp/runs".into(),
                missing: vec!["MODEL_STORE_URL".into()],
                network_fault: Default::default(),
                defrag_every: None,
                started: Instant::now(),
                key_exchange: seat.tls.policy(),
                links: vec![seat.tls.links().clone()],
            };
            let (replica, metrics) = (seat.replica.clone().expect("running"), Metrics::new("1.2.3", "abc"));
            let auth = auth().map(Arc::new);
            let sign = Some(checkpoint::signer(seat.tls.clone(), seat.dir.path()));
            let tls = seat.tls.clone();
            let state = ApiState {
                replica,
                logs: Some(Arc::new(played_log)),
                sights: None,
                vitals: None,
                models: models.clone(),
                info,
                metrics,
                auth,
                sign,
                consents: None,
                authority: Some(Arc::new(move || tls.authority())),
            };
            let router = api::router(state);
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            urls.push(format!("http://{}", listener.local_addr().expect("bound")));
            // The product's own port, with all its bounds.
            let port = Port::new(None, Links::default(), Arc::new(|_| {}));
            servers.push(tokio::spawn(public::serve(port, listener, router, end.subscribe())));
        }
        Self { cluster, urls, http: Client::builder().no_proxy().build().expect("a client"), servers, end }
    }

    /// Where the first member's port is.
    pub fn address(&self) -> std::net::SocketAddr {
        self.urls[0]["http://".len()..].parse().expect("an address")
    }

    pub async fn stop(mut self) {
        self.end.send_replace(true);
        self.servers.iter().for_each(JoinHandle::abort);
        self.cluster.stop().await;
    }
}
