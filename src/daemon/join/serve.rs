//! The member's side of the two doors: reads one question, has it decided and written down,
//! and only then signs. Strangers are few at a time, and wait when they are wrong.

use super::{Admitted, JoinRequest, MAX_BODY, Member, PATIENCE, RenewRequest, SAYING};
use crate::api::error::Failure;
use crate::pqc::stream::Stream;
use crate::raft::{Aside, Consistency, Replica};
use crate::security::join::{Door, Issuer, Token, Wish};
use crate::security::tls::{self, PeerTls, Role};
use crate::telemetry::Metrics;
use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use nf_core::audit::{Action, Actor};
use nf_core::command::{Mode, Note};
use nf_core::id::NodeName;
use nf_core::join::{self, Shown};
use nf_core::plan::Intent;
use nf_core::reason::{Reason, Refusal};
use rustls_pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Strangers at a time; one more is told to come again, by the end of its connection.
const STRANGERS: usize = 16;
/// Workers at a time.
const WORKERS: usize = 64;
/// Whoever shows a token that does not count waits so long for the answer, out of everybody's way.
const PENALTY: Duration = Duration::from_secs(1);
/// So many wait at a time; one more waits in the place of a stranger.
const WAITING: usize = 256;
/// Workers whose last certificate is remembered.
const REMEMBERED: usize = 10_000;
/// Who did not hear the answer to its token may ask again after so long.
const AGAIN: Duration = Duration::from_secs(5);
/// What this member certifies workers with is of no use.
const ISSUER: &str = "issuer";
const DECIDE: Duration = Duration::from_secs(10);

/// Both doors of a member. They open once it serves.
#[derive(Clone)]
pub struct Doors {
    runtime: Handle,
    inside: Arc<OnceLock<Desk>>,
    strangers: Arc<Semaphore>,
    workers: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Doors {
    /// Must be called on the runtime that shall do the work.
    pub fn closed() -> Self {
        Self {
            runtime: Handle::current(),
            inside: Arc::default(),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            workers: Arc::new(Semaphore::new(WORKERS)),
            waiting: Arc::new(Semaphore::new(WAITING)),
        }
    }

    pub fn open(&self, desk: Desk) {
        // A second one would be a bug in the order of starting; the first stays.
        let _ = self.inside.set(desk);
    }

    /// What the listener hands its connections to.
    pub fn aside(&self) -> Aside {
        let doors = self.clone();
        Arc::new(move |door, stream| doors.take(door, stream))
    }

    fn take(&self, door: Door, stream: Stream) {
        let (places, holder) = match (door, stream.cert().cloned()) {
            (Door::Join, _) => (&self.strangers, None),
            (Door::Renew, Some(cert)) => (&self.workers, Some(cert)),
            _ => return,
        };
        let (Some(desk), Ok(place)) = (self.inside.get(), places.clone().try_acquire_owned()) else { return };
        let place = Arc::new(Mutex::new(Some(place)));
        let router = At { desk: desk.clone(), holder, place: place.clone(), waiting: self.waiting.clone() }.router();
        self.runtime.spawn(async move {
            let mut builder = Builder::new(TokioExecutor::new()).http1_only();
            builder.http1().timer(TokioTimer::new()).header_read_timeout(SAYING).keep_alive(false);
            let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            // Whoever is slow has used its time.
            let _ = tokio::time::timeout(PATIENCE, serving).await;
            drop(place);
        });
    }
}

/// What the doors lead to.
#[derive(Clone)]
pub struct Desk {
    pub replica: Replica,
    pub tls: PeerTls,
    /// Where `issuer.pem`, `issuer.key` and `ca.pem` are.
    pub keys: PathBuf,
    pub name: NodeName,
    /// How long a certificate counts.
    pub life: Duration,
    /// Who was certified, and until when not again.
    pub certified: Arc<Mutex<BTreeMap<NodeName, Instant>>>,
    pub metrics: Metrics,
}

/// A name's place in that list. It is given back when nothing was certified.
struct Paced<'a> {
    list: &'a Mutex<BTreeMap<NodeName, Instant>>,
    node: &'a NodeName,
    done: bool,
}

impl Drop for Paced<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.list.lock().unwrap_or_else(PoisonError::into_inner).remove(self.node);
        }
    }
}

/// Lets nobody in who was in a moment ago.
fn pace<'a>(
    list: &'a Mutex<BTreeMap<NodeName, Instant>>,
    node: &'a NodeName,
    rest: Duration,
) -> Result<Paced<'a>, Failure> {
    let (mut last, now) = (list.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
    last.retain(|_, until| *until > now);
    if last.contains_key(node) || last.len() >= REMEMBERED {
        return Err(Failure::new(Reason::TooManyRequests, "certified a moment ago; what was given then is good"));
    }
    last.insert(node.clone(), now + rest);
    Ok(Paced { list, node, done: false })
}

#[derive(Clone)]
struct At {
    desk: Desk,
    /// Whose certificate the connection came with.
    holder: Option<CertificateDer<'static>>,
    /// The place that it takes.
    place: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
    waiting: Arc<Semaphore>,
}

impl At {
    fn router(self) -> Router {
        match self.holder {
            None => Router::new().route("/join", post(joined)).with_state(self),
            Some(_) => Router::new().route("/renew", post(renewed)).with_state(self),
        }
    }
}

/// The member's authorities, and the key that certifies workers.
struct Keys {
    authority: String,
    issuer: Issuer,
}

async fn read<T: DeserializeOwned>(request: Request) -> Result<T, Failure> {
    let bytes = tokio::time::timeout(SAYING, to_bytes(request.into_body(), MAX_BODY)).await;
    let bytes = bytes.map_err(|_| Failure::new(Reason::BodyTimeout, "the question did not come in time"))?;
    let bytes = bytes.map_err(|_| Failure::new(Reason::TooLarge, format!("at most {MAX_BODY} bytes")))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Refusal::invalid("body", format!("the body is no such question: {e}")).into())
}

async fn joined(State(At { desk, place, waiting, .. }): State<At>, request: Request) -> Response {
    let answer = async { desk.join(read(request).await?).await }.await;
    if answer.as_ref().is_err_and(|failure| failure.refusal.reason == Reason::JoinTokenInvalid) {
        tracing::warn!("somebody showed a join token that does not count");
        let waits = waiting.try_acquire();
        if waits.is_ok() {
            place.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        tokio::time::sleep(PENALTY).await;
    }
    respond(answer)
}

async fn renewed(State(At { desk, holder, .. }): State<At>, request: Request) -> Response {
    respond(async { desk.renew(holder, read(request).await?).await }.await)
}

fn respond(answer: Result<Admitted, Failure>) -> Response {
    answer.map_or_else(IntoResponse::into_response, |admitted| axum::Json(admitted).into_response())
}

fn unnamed(text: String) -> Failure {
    Refusal::invalid("node", text).into()
}

impl Desk {
    async fn join(&self, asked: JoinRequest) -> Result<Admitted, Failure> {
        let token = Token::shown(&asked.id, &asked.secret).ok_or_else(join::invalid)?;
        let (node, wish) = (self.named(&asked.node)?, wished(&asked.request)?);
        let life_ms = u64::try_from(self.life.as_millis()).unwrap_or(u64::MAX);
        let (secret, key) = (token.secret_digest(), wish.key_digest());
        let shown = Shown { id: token.id, secret, node: node.clone(), key, life_ms };
        // Judged here first: what strangers make up never reaches the log.
        let view = self.replica.read(Consistency::Linearizable, Instant::now() + DECIDE).await?;
        let used = join::judge(&view.state, &shown)?.used.clone();
        drop(view);
        self.is_no_member(&node)?;
        // A token is not used up for a certificate that nobody here can sign.
        let keys = self.keys().await?;
        if let Some(used) = used {
            // It did not hear the answer: what it gets is on record, and ends when that would have.
            let left = (used.until_ms / 1000).saturating_sub(crate::api::auth::now());
            let left = Some(Duration::from_secs(left)).filter(|left| !left.is_zero()).ok_or_else(join::invalid)?;
            let mut paced = pace(&self.certified, &node, AGAIN)?;
            let admitted = self.certify(keys, &node, &wish, left)?;
            paced.done = true;
            return Ok(admitted);
        }
        self.decide(format!("join-token/{}", token.id), Intent::SpendJoinToken(Box::new(shown))).await?;
        tracing::info!(%node, token = %token.id, "a worker joined");
        self.certify(keys, &node, &wish, self.life)
    }

    async fn renew(&self, holder: Option<CertificateDer<'static>>, asked: RenewRequest) -> Result<Admitted, Failure> {
        let stranger = || Failure::new(Reason::NodeIdentityMismatch, "the certificate is no worker's of this group");
        let held = holder.as_ref().and_then(|cert| tls::holder(cert, &self.tls.cluster));
        let node = held.filter(|(_, role)| *role == Role::Client).map(|(name, _)| name).ok_or_else(stranger)?;
        let (node, wish) = (self.named(&node)?, wished(&asked.request)?);
        if !holder.is_some_and(|cert| wish.is_for(&cert)) {
            let detail = "a certificate is renewed for the key that it has; for another key join again";
            return Err(Failure::new(Reason::NodeIdentityMismatch, detail));
        }
        join::may_be_worker(&self.replica.applied().state, &node)?;
        self.is_no_member(&node)?;
        let keys = self.keys().await?;
        // Each renewal is an entry that is kept for ever, so that they come in a tenth of a life at most.
        let mut paced = pace(&self.certified, &node, self.life / 10)?;
        let note = Note::new(Action::CertificateIssue, format!("node/{node}"));
        self.decide(format!("node/{node}"), Intent::Note(note)).await?;
        let admitted = self.certify(keys, &node, &wish, self.life)?;
        paced.done = true;
        tracing::info!(%node, "a worker's certificate is renewed");
        Ok(admitted)
    }

    /// Members of the group that have not introduced themselves to its record are none the less.
    fn is_no_member(&self, node: &NodeName) -> Result<(), Failure> {
        match self.replica.status().members.iter().any(|member| member.name == node.as_str()) {
            false => Ok(()),
            true => {
                let detail = format!("{node} is no name for a worker: a member has it");
                Err(Refusal::field(Reason::NodeIdentityMismatch, "node", detail).into())
            }
        }
    }

    /// A name that fits into a certificate.
    fn named(&self, node: &str) -> Result<NodeName, Failure> {
        tls::name_of(&self.tls.cluster, node, Role::Client).map_err(|e| unnamed(e.to_string()))?;
        NodeName::new(node).map_err(|e| unnamed(e.to_string()))
    }

    async fn keys(&self) -> Result<Keys, Failure> {
        let (dir, cluster) = (self.keys.clone(), self.tls.cluster.clone());
        let none = || {
            let detail = "this member has no key to certify workers: nf tls cert create --role issuer makes one \
                          (issuer.pem, issuer.key) for its NF_TLS_DIR; or ask another member";
            Failure::new(Reason::NotSupported, detail)
        };
        let found = tokio::task::spawn_blocking(move || {
            let Some(issuer) = Issuer::read(&dir)? else { return Ok(None) };
            let authority = tls::Credentials::read(&dir)?.authority;
            issuer.check(&authority, &cluster, crate::api::auth::now())?;
            Ok::<_, tls::Error>(Some(Keys { authority, issuer }))
        });
        let found = found.await.map_err(|e| Failure::new(Reason::Internal, e.to_string()))?;
        let found = found.map_err(|error| {
            // The files' places are the operator's to know.
            let text = "this member can't certify workers: issuer.pem, issuer.key and ca.pem don't fit one another, \
                        or their time is over; nf tls cert create --role issuer makes the first two; its log says more";
            self.metrics.alarms.raise(ISSUER, &format!("{text}: {error}"));
            Failure::new(Reason::NotSupported, text)
        });
        let keys = found?.ok_or_else(none)?;
        self.metrics.alarms.clear(ISSUER);
        Ok(keys)
    }

    /// Has it written down, in the name of whoever asks.
    async fn decide(&self, subject: String, intent: Intent) -> Result<(), Failure> {
        let actor =
            Actor { subject: subject.into(), tenant: None, token: None, node: Some(self.name.clone()), issuer: None };
        let intent = Intent::By { actor, intent: Box::new(intent) };
        self.replica.submit(intent, Instant::now() + DECIDE).await?.result?;
        Ok(())
    }

    fn certify(&self, keys: Keys, node: &NodeName, wish: &Wish, life: Duration) -> Result<Admitted, Failure> {
        let Keys { authority, issuer } = keys;
        let made = issuer.certify(wish, &self.tls.cluster, node.as_str(), life, crate::api::auth::now());
        let certificate = made.map_err(|e| Failure::new(Reason::Internal, e.to_string()))?;
        let members = self.replica.status().members.into_iter();
        Ok(Admitted {
            cluster: self.tls.cluster.clone(),
            simulation: self.replica.applied().state.meta().mode == Mode::Simulation,
            certificate,
            authority,
            members: members.map(|member| Member { name: member.name, peer: member.peer }).collect(),
        })
    }
}

fn wished(pem: &str) -> Result<Wish, Failure> {
    Wish::read(pem).map_err(|e| Refusal::invalid("request", e).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    #[test]
    fn what_was_not_given_blocks_nobody() {
        let (list, rest) = (Mutex::default(), Duration::from_secs(3600));
        let (w1, w2) = (NodeName::new("w1").unwrap(), NodeName::new("w2").unwrap());
        let asked = pace(&list, &w1, rest).ok().unwrap();
        assert!(pace(&list, &w1, rest).is_err(), "one at a time");
        assert!(pace(&list, &w2, rest).is_ok());
        drop(asked);
        let mut asked = pace(&list, &w1, rest).ok().unwrap();
        asked.done = true;
        drop(asked);
        let refused = pace(&list, &w1, rest).err().unwrap();
        assert_eq!(refused.refusal.reason, Reason::TooManyRequests);
        list.lock().unwrap().insert(w1.clone(), Instant::now());
        assert!(pace(&list, &w1, rest).is_ok(), "after its time");
    }

    #[tokio::test]
    async fn a_question_that_does_not_end_is_let_go() {
        let (begun, never) = (Instant::now(), futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        let told = read::<JoinRequest>(Request::new(Body::from_stream(never))).await;
        assert_eq!(told.err().unwrap().refusal.reason, Reason::BodyTimeout);
        assert!(begun.elapsed() < PATIENCE / 2);
    }
}
