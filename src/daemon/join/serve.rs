//! The member's side of the two doors: reads one question, has it decided and written down,
//! and only then signs. Strangers are few at a time, and wait when they are wrong.

use super::{Admitted, JoinRequest, MAX_BODY, Member, PATIENCE, RenewRequest};
use crate::api::error::Failure;
use crate::raft::{Aside, Consistency, Replica};
use crate::security::join::{Door, Issuer, Token, Wish};
use crate::security::tls::{self, PeerTls, Role};
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
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_rustls::server::TlsStream;

/// Strangers at a time; one more is told to come again, by the end of its connection.
const STRANGERS: usize = 16;
/// Workers at a time.
const WORKERS: usize = 64;
/// Whoever shows a token that does not count waits so long for the answer, in one of those places.
const PENALTY: Duration = Duration::from_secs(1);
/// Workers whose last renewal is remembered.
const REMEMBERED: usize = 10_000;
const DECIDE: Duration = Duration::from_secs(10);

/// Both doors of a member. They open once it serves.
#[derive(Clone)]
pub struct Doors {
    runtime: Handle,
    inside: Arc<OnceLock<Desk>>,
    strangers: Arc<Semaphore>,
    workers: Arc<Semaphore>,
}

impl Doors {
    /// Must be called on the runtime that shall do the work.
    pub fn closed() -> Self {
        Self {
            runtime: Handle::current(),
            inside: Arc::default(),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            workers: Arc::new(Semaphore::new(WORKERS)),
        }
    }

    pub fn open(&self, desk: Desk) {
        // A second one would be a bug in the order of starting; the first stays.
        let _ = self.inside.set(desk);
    }

    /// What the listener hands its connections to.
    pub fn aside(&self) -> Aside {
        let doors = self.clone();
        Arc::new(move |door, stream, cert| doors.take(door, stream, cert))
    }

    fn take(&self, door: Door, stream: TlsStream<TcpStream>, cert: Option<CertificateDer<'static>>) {
        let (places, holder) = match (door, cert) {
            (Door::Join, _) => (&self.strangers, None),
            (Door::Renew, Some(cert)) => (&self.workers, Some(cert)),
            _ => return,
        };
        let (Some(desk), Ok(place)) = (self.inside.get(), places.clone().try_acquire_owned()) else { return };
        let router = desk.router(holder);
        self.runtime.spawn(async move {
            let mut builder = Builder::new(TokioExecutor::new()).http1_only();
            builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
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
    pub renewed: Arc<Mutex<BTreeMap<NodeName, Instant>>>,
}

#[derive(Clone)]
struct At {
    desk: Desk,
    /// Whose certificate the connection came with.
    holder: Option<CertificateDer<'static>>,
}

/// The member's authorities, and the key that certifies workers.
struct Keys {
    authority: String,
    issuer: Issuer,
}

async fn read<T: DeserializeOwned>(request: Request) -> Result<T, Failure> {
    let bytes = to_bytes(request.into_body(), MAX_BODY).await;
    let bytes = bytes.map_err(|_| Failure::new(Reason::TooLarge, format!("at most {MAX_BODY} bytes")))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Refusal::invalid("body", format!("the body is no such question: {e}")).into())
}

async fn joined(State(At { desk, .. }): State<At>, request: Request) -> Response {
    let answer = async { desk.join(read(request).await?).await }.await;
    if answer.as_ref().is_err_and(|failure| failure.refusal.reason == Reason::JoinTokenInvalid) {
        tracing::warn!("somebody showed a join token that does not count");
        tokio::time::sleep(PENALTY).await;
    }
    respond(answer)
}

async fn renewed(State(At { desk, holder }): State<At>, request: Request) -> Response {
    respond(async { desk.renew(holder, read(request).await?).await }.await)
}

fn respond(answer: Result<Admitted, Failure>) -> Response {
    answer.map_or_else(IntoResponse::into_response, |admitted| axum::Json(admitted).into_response())
}

fn unnamed(text: String) -> Failure {
    Refusal::invalid("node", text).into()
}

impl Desk {
    fn router(&self, holder: Option<CertificateDer<'static>>) -> Router {
        let at = At { desk: self.clone(), holder: holder.clone() };
        match holder {
            None => Router::new().route("/join", post(joined)).with_state(at),
            Some(_) => Router::new().route("/renew", post(renewed)).with_state(at),
        }
    }

    async fn join(&self, asked: JoinRequest) -> Result<Admitted, Failure> {
        let token = Token::shown(&asked.id, &asked.secret).ok_or_else(join::invalid)?;
        let (node, wish) = (self.named(&asked.node)?, wished(&asked.request)?);
        let shown = Shown { id: token.id, secret: token.secret_digest(), node: node.clone(), key: wish.key_digest() };
        // Judged here first: what strangers make up never reaches the log.
        let view = self.replica.read(Consistency::Linearizable, Instant::now() + DECIDE).await?;
        join::judge(&view.state, &shown)?;
        drop(view);
        // A token is not used up for a certificate that nobody here can sign.
        let keys = self.keys().await?;
        self.decide(format!("join-token/{}", token.id), Intent::SpendJoinToken(Box::new(shown))).await?;
        tracing::info!(%node, token = %token.id, "a worker joined");
        self.certify(keys, &node, &wish)
    }

    async fn renew(&self, holder: Option<CertificateDer<'static>>, asked: RenewRequest) -> Result<Admitted, Failure> {
        let stranger = || Failure::new(Reason::NodeIdentityMismatch, "the certificate is no worker's of this group");
        let held = holder.and_then(|cert| tls::holder(&cert, &self.tls.cluster));
        let node = held.filter(|(_, role)| *role == Role::Client).map(|(name, _)| name).ok_or_else(stranger)?;
        let (node, wish) = (self.named(&node)?, wished(&asked.request)?);
        join::may_be_worker(&self.replica.applied().state, &node)?;
        let keys = self.keys().await?;
        self.pace(&node)?;
        let note =
            Note { action: Action::CertificateIssue, object: format!("node/{node}").into(), refused: None, count: 1 };
        self.decide(format!("node/{node}"), Intent::Note(note)).await?;
        tracing::info!(%node, "a worker's certificate is renewed");
        self.certify(keys, &node, &wish)
    }

    /// Each renewal is an entry that is kept for ever, so that they come in a tenth of a life at most.
    fn pace(&self, node: &NodeName) -> Result<(), Failure> {
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        renewed.retain(|_, last| last.elapsed() < self.life / 10);
        if renewed.contains_key(node) || renewed.len() >= REMEMBERED {
            return Err(Failure::new(Reason::TooManyRequests, "renewed a moment ago; what was given then is good"));
        }
        renewed.insert(node.clone(), Instant::now());
        Ok(())
    }

    /// A name that fits into a certificate.
    fn named(&self, node: &str) -> Result<NodeName, Failure> {
        tls::name_of(&self.tls.cluster, node, Role::Client).map_err(|e| unnamed(e.to_string()))?;
        NodeName::new(node).map_err(|e| unnamed(e.to_string()))
    }

    async fn keys(&self) -> Result<Keys, Failure> {
        let dir = self.keys.clone();
        let none = || {
            let detail = "this member has no key to certify workers: nf tls cert create --role issuer makes one \
                          (issuer.pem, issuer.key) for its NF_TLS_DIR; or ask another member";
            Failure::new(Reason::NotSupported, detail)
        };
        let found = tokio::task::spawn_blocking(move || {
            let issuer = Issuer::read(&dir)?;
            let authority = tls::Credentials::read(&dir)?.authority;
            Ok::<_, tls::Error>(issuer.map(|issuer| Keys { authority, issuer }))
        });
        let found = found.await.map_err(|e| Failure::new(Reason::Internal, e.to_string()))?;
        found.map_err(|e| Failure::new(Reason::Internal, e.to_string()))?.ok_or_else(none)
    }

    /// Has it written down, in the name of whoever asks.
    async fn decide(&self, subject: String, intent: Intent) -> Result<(), Failure> {
        let actor =
            Actor { subject: subject.into(), tenant: None, token: None, node: Some(self.name.clone()), issuer: None };
        let intent = Intent::By { actor, intent: Box::new(intent) };
        self.replica.submit(intent, Instant::now() + DECIDE).await?.result?;
        Ok(())
    }

    fn certify(&self, Keys { authority, issuer }: Keys, node: &NodeName, wish: &Wish) -> Result<Admitted, Failure> {
        let made = issuer.certify(wish, &self.tls.cluster, node.as_str(), self.life, crate::api::auth::now());
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
