//! What a simulated replica answers: health, metrics, and OpenAI-shaped texts
//! that say they are simulated. Requests beyond its slots wait, up to a bound, so
//! that the metrics move as a model server's do. It knows no jobs.

use crate::agent::scrape::Said;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use prometheus::{Encoder, Histogram, HistogramOpts, IntGauge, Registry, TextEncoder};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Requests worked on at a time.
const SLOTS: usize = 8;
/// Requests that may wait for a slot; more are told to come again.
const WAITING: i64 = 256;
/// How long one takes.
const WORK: Duration = Duration::from_millis(20);
/// The largest request.
const MAX_BODY: usize = 1 << 20;

struct Model {
    model: String,
    version: String,
    slots: Semaphore,
    registry: Registry,
    waiting: IntGauge,
    running: IntGauge,
    duration: Histogram,
}

/// Counts up while it lives, so that a caller who hangs up is not counted for ever.
struct Counted<'a>(&'a IntGauge);

impl<'a> Counted<'a> {
    fn up(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One simulated replica's routes, and who can be asked how it is doing.
pub(super) fn router(model: String, version: String) -> prometheus::Result<(Router, Doing)> {
    let registry = Registry::new();
    let waiting = IntGauge::new("nf_model_requests_waiting", "Requests that wait for a slot.")?;
    let running = IntGauge::new("nf_model_requests_running", "Requests being worked on.")?;
    let duration = Histogram::with_opts(HistogramOpts::new(
        "nf_model_request_duration_seconds",
        "Time from a request's arrival to its answer.",
    ))?;
    registry.register(Box::new(waiting.clone()))?;
    registry.register(Box::new(running.clone()))?;
    registry.register(Box::new(duration.clone()))?;
    let model = Model { model, version, slots: Semaphore::new(SLOTS), registry, waiting, running, duration };
    let model = Arc::new(model);
    let doing = Doing(model.clone());
    let router = Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/infer", post(infer))
        .route("/v1/models", get(models))
        .route("/v1/completions", post(completion))
        .route("/v1/chat/completions", post(chat))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(model);
    Ok((router, doing))
}

/// Says what the replica's own `/metrics` would.
pub(super) struct Doing(Arc<Model>);

impl Doing {
    pub(super) fn said(&self) -> Said {
        let milli = |gauge: &IntGauge| Some(gauge.get().max(0).unsigned_abs() * 1000);
        Said {
            running_m: milli(&self.0.running),
            waiting_m: milli(&self.0.waiting),
            answered: Some(self.0.duration.get_sample_count()),
            ..Said::default()
        }
    }
}

type Shared = State<Arc<Model>>;

async fn health(State(m): Shared) -> Json<Value> {
    Json(json!({ "status": "ok", "simulated": true, "model": m.model, "version": m.version }))
}

async fn metrics(State(m): Shared) -> Response {
    let mut out = Vec::new();
    match TextEncoder::new().encode(&m.registry.gather(), &mut out) {
        Ok(()) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], out).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

async fn models(State(m): Shared) -> Json<Value> {
    let model = json!({ "id": m.model, "object": "model", "created": 0, "owned_by": "neural-fabric" });
    Json(json!({ "object": "list", "data": [model], "simulated": true }))
}

async fn infer(State(m): Shared, body: Bytes) -> Response {
    if let Err(busy) = m.work().await {
        return busy;
    }
    let echo = String::from_utf8_lossy(&body);
    Json(json!({ "simulated": true, "model": m.model, "bytes": body.len(), "echo": echo })).into_response()
}

async fn completion(State(m): Shared, body: Bytes) -> Response {
    m.answer(&body, "prompt", "text_completion", |text| json!({ "index": 0, "text": text, "finish_reason": "stop" }))
        .await
}

async fn chat(State(m): Shared, body: Bytes) -> Response {
    let choice = |text: String| {
        let message = json!({ "role": "assistant", "content": text });
        json!({ "index": 0, "message": message, "finish_reason": "stop" })
    };
    m.answer(&body, "messages", "chat.completion", choice).await
}

impl Model {
    /// Waits for a slot and takes as long as a request takes.
    async fn work(&self) -> Result<(), Response> {
        let _timer = self.duration.start_timer();
        let waits = Counted::up(&self.waiting);
        if self.waiting.get() > WAITING {
            let later = [(HeaderName::from_static("retry-after"), "1")];
            let error =
                json!({ "error": { "message": "too many requests wait", "type": "overloaded", "simulated": true } });
            return Err((StatusCode::TOO_MANY_REQUESTS, later, Json(error)).into_response());
        }
        let slot = self.slots.acquire().await;
        drop(waits);
        let _running = Counted::up(&self.running);
        tokio::time::sleep(WORK).await;
        drop(slot);
        Ok(())
    }

    async fn answer(&self, body: &[u8], field: &str, object: &str, choice: impl Fn(String) -> Value) -> Response {
        let request: Value = match serde_json::from_slice(body) {
            Ok(request) => request,
            Err(e) => return wrong(&format!("the body is not JSON: {e}")),
        };
        let Some(input) = request.get(field) else { return wrong(&format!("{field} is missing")) };
        if request.get("stream") == Some(&Value::Bool(true)) {
            return wrong("stream: a simulated replica answers in one piece; leave it out");
        }
        if let Err(busy) = self.work().await {
            return busy;
        }
        let words = |text: &str| text.split_whitespace().count();
        let text = format!("This is a simulated answer of {}; no model was run.", self.model);
        let (asked, said) = (words(&input.to_string()), words(&text));
        Json(json!({
            "id": format!("sim-{}", uuid::Uuid::now_v7().simple()),
            "object": object,
            "created": jiff::Timestamp::now().as_second(),
            "model": self.model,
            "choices": [choice(text)],
            "usage": { "prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said },
            "simulated": true,
        }))
        .into_response()
    }
}

fn wrong(text: &str) -> Response {
    let error = json!({ "error": { "message": text, "type": "invalid_request_error", "simulated": true } });
    (StatusCode::BAD_REQUEST, Json(error)).into_response()
}
