//! A container engine that is played: it answers on a socket of its own what an agent asks of one that it adopts
//! containers from, and can be away, late or silent.

use super::held;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// A container, as far as it is asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Played {
    pub labels: BTreeMap<&'static str, String>,
    /// Where its model lies on the machine.
    pub model: PathBuf,
    /// With which code it ended; None: it runs.
    pub exit: Option<i64>,
    /// The engine can't remove it.
    pub stays: bool,
}

/// What there is, whether or not an engine answers for it.
#[derive(Default)]
pub(super) struct Containers {
    there: Mutex<BTreeMap<String, Played>>,
    /// Signals that were sent, and to whom.
    signals: Mutex<Vec<String>>,
    /// Removals that were asked for in vain, and of whom.
    removals: Mutex<Vec<String>>,
    /// It takes questions and answers none.
    silent: watch::Sender<bool>,
    changed: watch::Sender<u64>,
}

impl Containers {
    pub(super) fn put(&self, name: &str, played: Played) {
        held(&self.there).insert(name.to_owned(), played);
        self.changed.send_modify(|n| *n += 1);
    }

    pub(super) fn has(&self, name: &str) -> bool {
        held(&self.there).contains_key(name)
    }

    pub(super) fn remove(&self, name: &str) {
        held(&self.there).remove(name);
        self.changed.send_modify(|n| *n += 1);
    }

    pub(super) fn signals(&self) -> Vec<String> {
        held(&self.signals).clone()
    }

    /// How often that one's removal was asked for in vain.
    pub(super) fn removals(&self, name: &str) -> usize {
        held(&self.removals).iter().filter(|of| *of == name).count()
    }

    pub(super) fn be_silent(&self, silent: bool) {
        self.silent.send_replace(silent);
    }

    fn find(&self, name: &str) -> Option<Played> {
        held(&self.there).get(name).cloned()
    }
}

/// One that answers until it is dropped; its connections go with it.
pub(super) struct Dockerd(Option<Runtime>);

impl Dockerd {
    pub(super) fn begin(socket: &Path, containers: &Arc<Containers>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let _ = std::fs::remove_file(socket);
        let guard = runtime.enter();
        let listener = UnixListener::bind(socket).unwrap();
        drop(guard);
        let router = Router::new().fallback(answer).with_state(containers.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self(Some(runtime))
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(State(containers): State<Arc<Containers>>, request: Request) -> Response {
    // Whoever asks while it is silent has no answer before it speaks again.
    let _ = containers.silent.subscribe().wait_for(|silent| !silent).await;
    let path = request.uri().path().trim_start_matches('/');
    let path = path.strip_prefix("v1.").and_then(|rest| Some(rest.split_once('/')?.1)).unwrap_or(path).to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let parts: Vec<&str> = path.split('/').collect();
    match (request.method().as_str(), &parts[..]) {
        ("GET", ["version"]) => say(200, &json!({ "Version": "28.0.0", "ApiVersion": "1.48" })),
        ("GET", ["info"]) => say(200, &json!({ "OSType": "linux", "SecurityOptions": ["name=seccomp"] })),
        ("GET", ["containers", "json"]) => list(&containers),
        (method, ["containers", name, rest @ ..]) => match containers.find(name) {
            None => say(404, &json!({ "message": format!("No such container: {name}") })),
            Some(played) => of_one(&containers, method, name, played, rest, &query).await,
        },
        _ => say(500, &json!({ "message": format!("{path} is not played") })),
    }
}

fn list(containers: &Containers) -> Response {
    let one = |(name, played): (&String, &Played)| {
        let mounts = json!([{ "Source": played.model, "Destination": "/model" }]);
        json!({ "Id": name, "Labels": played.labels, "Mounts": mounts })
    };
    say(200, &Value::Array(held(&containers.there).iter().map(one).collect()))
}

async fn of_one(
    containers: &Containers,
    method: &str,
    name: &str,
    played: Played,
    rest: &[&str],
    query: &str,
) -> Response {
    match (method, rest) {
        ("GET", ["json"]) => {
            let status = if played.exit.is_some() { "exited" } else { "running" };
            let (running, code) = (played.exit.is_none(), played.exit.unwrap_or(0));
            let state = json!({ "Status": status, "Running": running, "Pid": 0, "ExitCode": code });
            say(200, &json!({ "Id": name, "State": state }))
        }
        ("POST", ["wait"]) => {
            let over = |_: &u64| containers.find(name).is_none_or(|played| played.exit.is_some());
            let _ = containers.changed.subscribe().wait_for(over).await;
            say(200, &json!({ "StatusCode": 0 }))
        }
        ("POST", ["kill"]) => {
            held(&containers.signals).push(format!("{} {name}", query.trim_start_matches("signal=")));
            containers.put(name, Played { exit: Some(0), ..played });
            empty(204)
        }
        ("GET", ["logs"]) => empty(200),
        ("DELETE", []) if played.stays => {
            held(&containers.removals).push(name.to_owned());
            say(500, &json!({ "message": "unable to remove filesystem: device or resource busy" }))
        }
        ("DELETE", []) => {
            containers.remove(name);
            empty(204)
        }
        _ => say(500, &json!({ "message": format!("{method} {rest:?} is not played") })),
    }
}

fn say(status: u16, body: &Value) -> Response {
    let answer = Response::builder().status(status).header("content-type", "application/json");
    answer.body(Body::from(body.to_string())).unwrap()
}

fn empty(status: u16) -> Response {
    Response::builder().status(status).body(Body::empty()).unwrap()
}
