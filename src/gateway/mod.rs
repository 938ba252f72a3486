//! The way of requests to models: OpenAI-compatible paths and plain passthrough, on
//! every member. It knows from this member's state which replicas are ready, gives
//! each request to the one with the least to do, holds a bounded number while a
//! replica wakes, and counts what the autoscaler wants to know. It keeps nothing
//! beyond the process, and it does not decide how many replicas there are.

mod answer;
mod body;
mod desk;
mod forward;
mod line;
mod listing;
mod promises;
mod refusal;
mod shares;
mod table;
mod tenants;
mod trip;

use crate::exchange::{Group, Seen};
use crate::telemetry::{MAX_MODELS, Metrics, traces};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use desk::{Desk, Others, Waiting};
use nf_core::audit::Actor;
use nf_core::id::{ModelId, RequestId, TenantId};
use nf_core::plan::Intent;
use nf_core::slo::LATENCY_MS;
use refusal::Refused;
use serde::Deserialize;
use shares::{Payer, Shares};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use table::{Entry, Table, Who};
use tokio::sync::watch;
use tracing::Instrument;

/// Models that are counted; beyond it those that are gone are forgotten.
const DESKS: usize = 4096;
/// So much of a body tells which conversation it goes on with.
const PREFIX: usize = 512;
/// How long a model that this member has not heard of may still be news from another one.
const UNHEARD: Duration = Duration::from_secs(1);
/// How long a service may take to hear that it is wanted.
const WAKE: Duration = Duration::from_secs(5);
/// Names the tenant, where no token does.
pub const TENANT: &str = "x-nf-tenant";

/// Bounds of a gateway.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Requests for one model that are held while no replica has room.
    pub held: u32,
    /// How long one is held.
    pub hold: Duration,
    /// Requests of one tenant at a time, held or with a replica.
    pub of_tenant: u32,
    /// Memory for bodies that are held or sent on, all together, in KiB.
    pub bodies_kib: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { held: 256, hold: Duration::from_secs(60), of_tenant: 2_048, bodies_kib: 256 << 10 }
    }
}

type Names = BTreeMap<(TenantId, ModelId), Arc<Desk>>;

/// The desk of each model that was asked for.
#[derive(Default)]
struct Desks {
    of: Mutex<Names>,
    /// What became of all requests for models without a series of their own.
    others: Arc<Others>,
}

impl Desks {
    fn of(&self) -> MutexGuard<'_, Names> {
        // Entries are inserted whole, so a panic elsewhere leaves nothing half done.
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle; clones share it.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    group: Arc<dyn Group>,
    tables: watch::Receiver<Arc<Table>>,
    desks: Arc<Desks>,
    replicas: forward::Replicas,
    metrics: Metrics,
    options: Options,
    shares: Arc<Shares>,
    epoch: u64,
}

/// What is read of a body: everything else is the model's business.
#[derive(Deserialize)]
struct Named {
    model: String,
}

impl Gateway {
    /// Must be called on a runtime; its task ends with the group's handle.
    pub fn new(group: Arc<dyn Group>, metrics: Metrics, options: Options) -> Self {
        let tables = table::follow(group.clone());
        let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let replicas = forward::Replicas::new();
        let shares = Shares::new(options.bodies_kib, options.of_tenant);
        let desks = Arc::<Desks>::default();
        promises::publish(&metrics, &desks, tables.clone());
        tenants::publish(&metrics, &shares);
        Self(Arc::new(Inner { group, tables, desks, replicas, metrics, options, shares, epoch }))
    }

    pub fn router(&self) -> Router {
        Router::new()
            .route("/v1/chat/completions", post(openai))
            .route("/v1/completions", post(openai))
            .route("/v1/embeddings", post(openai))
            .route("/v1/models", get(listing::models))
            .route("/v1/models/{model}", get(listing::model))
            .route("/serve/{tenant}/{model}", any(passthrough))
            .route("/serve/{tenant}/{model}/{*rest}", any(passthrough))
            .with_state(self.clone())
    }

    /// What the autoscaler asks every member.
    pub fn seen(&self) -> Seen {
        let desks: Vec<_> = self.0.desks.of().iter().map(|(name, desk)| (name.clone(), desk.clone())).collect();
        let sights = desks.into_iter().map(|((tenant, model), desk)| desk.sight(tenant, model)).collect();
        Seen { epoch: self.0.epoch, sights, advice: Vec::new() }
    }

    /// Whether there are requests that have begun to come and have no whole answer yet.
    pub fn is_busy(&self) -> bool {
        self.0.shares.has_bodies() || self.0.desks.of().values().any(|desk| desk.is_busy())
    }

    /// The desk of a model that exists.
    fn desk(&self, tenant: &TenantId, model: &ModelId) -> Arc<Desk> {
        let (mut desks, name) = (self.0.desks.of(), (tenant.clone(), model.clone()));
        if let Some(desk) = desks.get(&name) {
            return desk.clone();
        }
        let named = |desks: &Names| desks.values().filter(|desk| desk.named()).count();
        if desks.len() >= DESKS || named(&desks) >= MAX_MODELS {
            let table = self.0.tables.borrow().clone();
            // Who still waits or is served holds on to the desk.
            desks.retain(|(tenant, model), desk| table.entry(tenant, model).is_some() || Arc::strong_count(desk) > 1);
        }
        // First come stays named, so that no request moves from one series to another.
        let desk = match named(&desks) < MAX_MODELS {
            true => Desk::default(),
            false => Desk::unnamed(self.0.desks.others.clone()),
        };
        desks.entry(name).or_insert(Arc::new(desk)).clone()
    }

    /// Finds a replica for the request and passes it on.
    async fn serve(
        &self,
        tenant: &TenantId,
        model: &ModelId,
        head: forward::Head,
        body: Bytes,
        by: Option<&Actor>,
    ) -> Response {
        traces::about(tenant.as_str(), model.as_str());
        let promised = |table: &Table| table.entry(tenant, model).map(|entry| entry.latency_ms.unwrap_or(LATENCY_MS));
        let Some(promised) = self.heard(promised).await else {
            return self.refuse(self.unheard_of(model));
        };
        let place = match self.0.shares.request(tenant) {
            Ok(place) => place,
            Err(refused) => return self.refuse(refused),
        };
        let desk = self.desk(tenant, model);
        let waiting = desk.arrive(Duration::from_millis(promised.into()), Some(place));
        let until = Instant::now() + self.0.options.hold;
        let hint = affinity(&body);
        let mut tried = Vec::new();
        loop {
            let seat = match self.seat(&waiting, tenant, model, hint, &tried, until, by).await {
                Ok(seat) => seat,
                Err(refused) => {
                    waiting.refused();
                    return self.refuse(refused);
                }
            };
            let who = seat.who;
            match forward::pass_on(&self.0.replicas, &head, body.clone(), seat).await {
                Ok(response) => {
                    self.count(response.status());
                    return response;
                }
                // Nothing was sent: another replica may take it.
                Err(Refused::Unreachable(error)) => {
                    waiting.unreached();
                    if tried.len() < forward::TRIES {
                        tried.push(who);
                        continue;
                    }
                    return self.failed(&waiting, Refused::Unreachable(error));
                }
                // Its caller's fault, and nobody's here.
                Err(refused @ Refused::Bad { .. }) => return self.refuse(refused),
                Err(refused) => return self.failed(&waiting, refused),
            }
        }
    }

    /// It got no answer, which is our fault.
    fn failed(&self, waiting: &Waiting, refused: Refused) -> Response {
        waiting.desk().failed();
        waiting.refused();
        self.refuse(refused)
    }

    /// A place with the replica that has least to do; waits for one, up to the bounds.
    async fn seat(
        &self,
        waiting: &Waiting,
        tenant: &TenantId,
        model: &ModelId,
        hint: u64,
        tried: &[Who],
        until: Instant,
        by: Option<&Actor>,
    ) -> Result<desk::Seat, Refused> {
        let began = Instant::now();
        let waited = || self.0.metrics.gateway_wait_seconds.observe(began.elapsed().as_secs_f64());
        let mut tables = self.0.tables.clone();
        let mut held = None;
        loop {
            let table = tables.borrow_and_update().clone();
            let Some(entry) = table.entry(tenant, model) else { return Err(Refused::NoModel(model.clone())) };
            if let Some(seat) = waiting.take(&entry.endpoints, hint, tried, &self.0.metrics) {
                // One that goes to another replica after all has waited once.
                if tried.is_empty() {
                    waited();
                }
                return Ok(seat);
            }
            self.wake(tenant, entry, waiting.desk(), by);
            let Some(held) = &held else {
                let place = waiting.hold(self.0.options.held, tried, &self.0.metrics);
                held = Some(place.ok_or(Refused::Full { held: self.0.options.held })?);
                continue;
            };
            let chance = waiting.desk().next_chance().map_or(until, |at| at.min(until));
            // Who wakes it may have found no leader.
            let chance = if entry.asleep.is_some() { chance.min(Instant::now() + desk::WAKES) } else { chance };
            tokio::select! {
                () = held.turn() => {}
                changed = tables.changed() => changed.map_err(|_| Refused::Stopping)?,
                // Nobody tells when a replica that was passed over may be asked again.
                () = tokio::time::sleep_until(chance.into()) => {
                    if Instant::now() >= until {
                        waited();
                        return Err(Refused::Late(self.0.options.hold));
                    }
                }
            }
        }
    }

    /// Tells the group that a sleeping service is wanted, at most once a second, and by whom.
    fn wake(&self, tenant: &TenantId, entry: &Entry, desk: &Desk, by: Option<&Actor>) {
        let Some(request) = entry.asleep.clone().filter(|_| desk.may_wake()) else { return };
        let (group, tenant, by) = (self.0.group.clone(), tenant.clone(), by.cloned());
        tokio::spawn(async move { wake(&*group, tenant, request, by).await });
    }

    fn count(&self, status: StatusCode) {
        self.0.metrics.gateway_requests.with_label_values(&[status.as_str()]).inc();
    }

    fn refuse(&self, refused: Refused) -> Response {
        self.0.metrics.gateway_refused.with_label_values(&[refused.reason().token()]).inc();
        let response = refused.into_response();
        self.count(response.status());
        response
    }

    /// Why a model is not in the table.
    fn unheard_of(&self, model: &ModelId) -> Refused {
        match self.0.tables.borrow().known {
            true => Refused::NoModel(model.clone()),
            false => Refused::Behind,
        }
    }

    /// What `look` finds in the table, or in one of the next ones.
    async fn heard<T>(&self, look: impl Fn(&Table) -> Option<T>) -> Option<T> {
        let mut tables = self.0.tables.clone();
        let found = async {
            loop {
                let found = look(&tables.borrow_and_update());
                if found.is_some() || tables.changed().await.is_err() {
                    return found;
                }
            }
        };
        tokio::time::timeout(UNHEARD, found).await.ok().flatten()
    }

    /// Whose model it is: as the header says, else the only tenant that has it.
    async fn tenant(&self, headers: &HeaderMap, model: &ModelId) -> Result<TenantId, Refused> {
        if let Some(tenant) = named(headers)? {
            return Ok(tenant);
        }
        let owners = |table: &Table| {
            let owners: Vec<TenantId> = table.owners(model).take(2).cloned().collect();
            (!owners.is_empty()).then_some(owners)
        };
        match self.heard(owners).await.as_deref() {
            Some([only]) => Ok(only.clone()),
            None => Err(self.unheard_of(model)),
            Some(_) => {
                let detail = format!("several tenants have a model {model}; say whose with the header {TENANT}");
                Err(Refused::Bad { field: TENANT, detail })
            }
        }
    }
}

/// Whose model the header says that it is.
fn named(headers: &HeaderMap) -> Result<Payer, Refused> {
    let Some(value) = headers.get(TENANT) else { return Ok(None) };
    let tenant = TenantId::new(value.to_str().unwrap_or_default());
    tenant.map(Some).map_err(|e| Refused::Bad { field: TENANT, detail: e.to_string() })
}

async fn wake(group: &dyn Group, tenant: TenantId, request: RequestId, by: Option<Actor>) {
    let intent = Intent::Wake { tenant, request: request.clone() };
    let intent = match by {
        Some(actor) => Intent::By { actor, intent: Box::new(intent) },
        None => intent,
    };
    if let Err(error) = group.submit(intent, Instant::now() + WAKE).await {
        tracing::warn!(%request, %error, "a sleeping service could not be woken; the next request tries again");
    }
}

/// Requests that begin alike go to the same replica where it has room: its cache knows the beginning.
fn affinity(body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    body[..body.len().min(PREFIX)].hash(&mut hasher);
    hasher.finish()
}

async fn openai(State(gateway): State<Gateway>, request: Request) -> Response {
    // The path is one of three.
    let span = traces::call(request.method().as_str(), request.uri().path(), request.headers());
    let response = openai_within(gateway, request).instrument(span.clone()).await;
    traces::answered(&span, response.status());
    response
}

async fn openai_within(gateway: Gateway, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let asked = async {
        let (body, mut part) = body::read(&gateway.0.shares, named(&parts.headers)?, body).await?;
        let bad = |detail: String| Refused::Bad { field: "model", detail };
        let named: Named = serde_json::from_slice(&body).map_err(|e| bad(e.to_string()))?;
        let model = ModelId::new(&named.model).map_err(|e| bad(e.to_string()))?;
        let tenant = gateway.tenant(&parts.headers, &model).await?;
        part.pay_by(&tenant)?;
        Ok((tenant, model, body, part))
    };
    match asked.await {
        Ok((tenant, model, body, _part)) => {
            let path = parts.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
            let by = parts.extensions.get::<Actor>();
            let head = forward::Head { method: parts.method, path, headers: parts.headers };
            gateway.serve(&tenant, &model, head, body, by).await
        }
        Err(refused) => gateway.refuse(refused),
    }
}

async fn passthrough(
    State(gateway): State<Gateway>,
    Path(path): Path<BTreeMap<String, String>>,
    request: Request,
) -> Response {
    let span = traces::call(request.method().as_str(), "/serve/{tenant}/{model}", request.headers());
    let response = passthrough_within(gateway, path, request).instrument(span.clone()).await;
    traces::answered(&span, response.status());
    response
}

async fn passthrough_within(gateway: Gateway, path: BTreeMap<String, String>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let part = |name: &str| path.get(name).map(String::as_str).unwrap_or_default();
    let asked = async {
        let bad = |field, detail: String| Refused::Bad { field, detail };
        let tenant = TenantId::new(part("tenant")).map_err(|e| bad("tenant", e.to_string()))?;
        let model = ModelId::new(part("model")).map_err(|e| bad("model", e.to_string()))?;
        let (body, part) = body::read(&gateway.0.shares, Some(tenant.clone()), body).await?;
        Ok((tenant, model, body, part))
    };
    match asked.await {
        Ok((tenant, model, body, _part)) => {
            let by = parts.extensions.get::<Actor>();
            let head = forward::Head { method: parts.method, path: rest_of(&parts.uri), headers: parts.headers };
            gateway.serve(&tenant, &model, head, body, by).await
        }
        Err(refused) => gateway.refuse(refused),
    }
}

/// What follows `/serve/{tenant}/{model}`, as it was written, with the query.
fn rest_of(uri: &axum::http::Uri) -> String {
    let rest = uri.path().splitn(5, '/').nth(4).unwrap_or_default();
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    format!("/{rest}{query}")
}

#[cfg(test)]
mod tests;
