//! The member's side of the peer protocol: checks who calls and hands the message on.
//!
//! A call for another cluster or member, from somebody whose certificate does not carry the name it
//! claims, or from who is not in the group, is refused before anything else. It keeps no state of
//! its own.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use nf_core::codec;
use nf_core::command::Member;
use nf_core::id::NodeName;
use nf_core::node::NodeKind;
use nf_core::plan::Intent;
use nf_proto::internal as pb;
use pb::peer_service_server::PeerService;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use super::encoding::Position;
use super::listener::PeerInfo;
use super::membership::{Change, Failure};
use super::shared::{Lost, Shared};
use super::state_machine::meta_of;
use super::types::Snapshot;
use super::wire;
use super::{Error, MemberId};
use crate::security::tls;
use crate::storage::checkpoint::Incoming;
use crate::telemetry::traces::{self, Side};

/// Longest wait a forwarded call may ask for.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// See the module.
pub struct Service(pub Arc<Shared>);

fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

fn until(wait_ms: u32) -> Instant {
    Instant::now() + Duration::from_millis(wait_ms.into()).min(MAX_WAIT)
}

fn not_leader(Lost { leader, taken }: Lost) -> pb::NotLeader {
    pb::NotLeader { leader: leader.unwrap_or(0), untaken: !taken }
}

/// Whether a call may come from a member of which this one has not heard.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Newcomer {
    /// It may: this member, new itself or behind, learns who is in the group from such calls.
    Heard,
    Refused,
}

impl Service {
    /// Refuses a call that is not for us, not from whom it says, or not from this group. Returns
    /// the sender.
    fn check(&self, info: Option<&PeerInfo>, route: Option<&pb::Route>, newcomer: Newcomer) -> Result<u64, Status> {
        let route = route.ok_or_else(|| Status::invalid_argument("route is missing"))?;
        let me = &self.0.me;
        if route.cluster != me.cluster {
            let text = format!("this is cluster \"{}\", not \"{}\"", me.cluster, route.cluster);
            return Err(Status::permission_denied(text));
        }
        if route.to != me.id.0 {
            let text = format!("this is member {}, not {}", me.id.0, route.to);
            return Err(Status::permission_denied(text));
        }
        let info = info.ok_or_else(|| Status::unauthenticated("no connection info"))?;
        match self.0.is_named(route.from, &route.name) {
            Some(false) => return Err(Status::permission_denied("another member has this id")),
            Some(true) => {}
            None if newcomer == Newcomer::Heard && self.may_be_new(route) => {}
            None => {
                return Err(Status::permission_denied(format!("member {} is not in this group", route.from)));
            }
        }
        if info.member.get() == Some(&route.from) {
            return Ok(route.from);
        }
        let dns = tls::dns_name(&me.cluster, &route.name).map_err(|e| Status::permission_denied(e.to_string()))?;
        match &info.cert {
            Some(cert) if tls::certifies(cert, &dns) => {
                let first = *info.member.get_or_init(|| route.from);
                if first == route.from {
                    Ok(first)
                } else {
                    Err(Status::permission_denied("one connection, two members"))
                }
            }
            _ => Err(Status::permission_denied(format!("the certificate is not one for {dns}"))),
        }
    }

    /// Whether a member that the membership does not list may be one that was just added: not a
    /// worker, and neither the number nor the name of one that was removed, whose row stays in the
    /// state. A certificate says its name alone; the number somebody could make up. Nobody is taken
    /// in under such a name either (`Shared::never_a_name_of_others`), so whoever is new is heard.
    fn may_be_new(&self, route: &pb::Route) -> bool {
        let state = self.0.applied.borrow().state.clone();
        let Ok(name) = NodeName::new(&route.name) else { return false };
        let works = state.node_named(&name).is_some_and(|node| node.kind == NodeKind::Worker);
        let was = |member: &Member| member.id.0 == route.from || member.name == name;
        !works && !state.members().values().any(|member| was(member)) && !self.0.lists(&route.name)
    }

    /// What the bearer of `vote` says as a candidate or leader, it says for itself.
    fn own(from: u64, vote: Option<&pb::Ballot>) -> Result<(), Status> {
        match vote {
            Some(vote) if vote.voted_for != from => {
                Err(Status::permission_denied(format!("member {from} speaks for member {}", vote.voted_for)))
            }
            _ => Ok(()),
        }
    }

    fn open<T>(
        &self,
        request: Request<T>,
        newcomer: Newcomer,
        route: impl Fn(&T) -> Option<&pb::Route>,
    ) -> Result<T, Status> {
        let info = request.extensions().get::<PeerInfo>().cloned();
        self.check(info.as_ref(), route(request.get_ref()), newcomer)?;
        Ok(request.into_inner())
    }

    /// A candidate's question, asked for itself.
    fn candidate(&self, request: Request<pb::VoteRequest>) -> Result<wire::VoteRequest, Status> {
        let request = self.open(request, Newcomer::Heard, |r| r.route.as_ref())?;
        Self::own(request.route.as_ref().map_or(0, |route| route.from), request.vote.as_ref())?;
        self.0.refuse_if_wiped(request.introduced)?;
        wire::vote_request(&request)
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<pb::AppendReply, Status>> + Send>>;

#[tonic::async_trait]
impl PeerService for Service {
    type AppendStream = Replies;

    async fn append(&self, request: Request<Streaming<pb::AppendRequest>>) -> Result<Response<Replies>, Status> {
        let info = request.extensions().get::<PeerInfo>().cloned();
        let mut incoming = request.into_inner();
        let shared = self.0.clone();
        let service = Service(self.0.clone());
        // The stream is answered at once, before its first message: the caller need not wait.
        let (errors_in, errors) = tokio::sync::oneshot::channel();
        let requests = async_stream_of(move |tx| async move {
            let mut route = None;
            let failed = loop {
                let mut message = match incoming.message().await {
                    Ok(Some(message)) => message,
                    Ok(None) => return,
                    Err(status) => break status,
                };
                // Said once for the whole stream, and judged at each message: a member may be removed meanwhile.
                route = route.or_else(|| message.route.take());
                let from = service.check(info.as_ref(), route.as_ref(), Newcomer::Heard);
                let own = from.and_then(|from| Self::own(from, message.vote.as_ref()));
                // Else what it lost would come back to it, and with that a say that it must not have.
                if let Err(status) = own.and_then(|()| shared.refuse_if_wiped(message.introduced)) {
                    break status;
                }
                match wire::append(message) {
                    Ok(request) => {
                        shared.contact.heard(&request.vote);
                        if tx.send(request).await.is_err() {
                            return;
                        }
                    }
                    Err(status) => break status,
                }
            };
            let _ = errors_in.send(failed);
        });
        let replies = self.0.raft.stream_append(requests).map(|result| match result {
            Ok(result) => Ok(wire::put_append_result(&result)),
            Err(fatal) => Err(internal(fatal)),
        });
        let failed = futures::stream::once(errors)
            .filter_map(|status| async { status.ok().map(Err::<pb::AppendReply, Status>) });
        Ok(Response::new(Box::pin(replies.chain(failed))))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteReply>, Status> {
        let request = self.candidate(request)?;
        let response = self.0.raft.vote(request).await.map_err(internal)?;
        Ok(Response::new(wire::put_vote_response(&response, self.0.clock.wall_ms())))
    }

    async fn pre_vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteReply>, Status> {
        let request = self.candidate(request)?;
        let response = self.0.raft.pre_vote(request).await.map_err(internal)?;
        Ok(Response::new(wire::put_vote_response(&response, self.0.clock.wall_ms())))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotRequest>>,
    ) -> Result<Response<pb::SnapshotReply>, Status> {
        use pb::snapshot_request::Part;
        let info = request.extensions().get::<PeerInfo>().cloned();
        let mut incoming = request.into_inner();
        let head = match incoming.message().await?.and_then(|m| m.part) {
            Some(Part::Head(head)) => head,
            _ => return Err(Status::invalid_argument("a snapshot begins with its head")),
        };
        let from = self.check(info.as_ref(), head.route.as_ref(), Newcomer::Heard)?;
        Self::own(from, head.vote.as_ref())?;
        self.0.refuse_if_wiped(head.introduced)?;
        let vote = wire::vote(head.vote.as_ref())?;
        self.0.contact.heard(&vote);
        let dir = self.0.tables.incoming_dir();
        let mut receiver = Incoming::begin(&dir, &head.manifest).map_err(internal)?;
        while let Some(message) = incoming.message().await? {
            let Some(Part::Chunk(chunk)) = message.part else {
                return Err(Status::invalid_argument("a chunk is missing"));
            };
            self.0.contact.heard(&vote);
            receiver = blocking(move || {
                let part = usize::try_from(chunk.file).map_err(std::io::Error::other)?;
                receiver.chunk(part, &chunk.data)?;
                Ok(receiver)
            })
            .await?;
        }
        let snapshot = blocking(move || Ok(receiver.complete()?)).await?;
        let position = Position::decode(&snapshot.manifest().meta).map_err(internal)?;
        let snapshot = Snapshot { meta: meta_of(position), snapshot };
        let response = self.0.raft.install_full_snapshot(vote, snapshot).await;
        let response = response.map_err(internal)?;
        Ok(Response::new(pb::SnapshotReply { vote: Some(wire::put_vote(&response.vote)) }))
    }

    async fn ping(&self, request: Request<pb::PingRequest>) -> Result<Response<pb::PingReply>, Status> {
        let request = self.open(request, Newcomer::Refused, |r| r.route.as_ref())?;
        let from = request.route.map(|route| MemberId(route.from));
        let introduced = from.is_some_and(|id| self.0.applied.borrow().state.members().contains_key(&id));
        Ok(Response::new(pb::PingReply { now_ms: self.0.clock.wall_ms(), introduced, marks: self.0.marks_told() }))
    }

    async fn transfer(&self, request: Request<pb::TransferRequest>) -> Result<Response<pb::TransferReply>, Status> {
        let request = self.open(request, Newcomer::Refused, |r| r.route.as_ref())?;
        Self::own(request.route.as_ref().map_or(0, |route| route.from), request.vote.as_ref())?;
        let vote = wire::vote(request.vote.as_ref())?;
        let last = request.last.as_ref().map(wire::log_id);
        let message = openraft::raft::TransferLeaderRequest::new(vote, self.0.me.id.0, last);
        let result = self.0.raft.handle_transfer_leader(message).await;
        let refused = match result.map_err(internal)? {
            Ok(()) => String::new(),
            Err(reason) => format!("{reason:?}"),
        };
        Ok(Response::new(pb::TransferReply { refused }))
    }

    async fn forward(&self, request: Request<pb::ForwardRequest>) -> Result<Response<pb::ForwardReply>, Status> {
        use pb::forward_reply::Result as R;
        let request = self.open(request, Newcomer::Refused, |r| r.route.as_ref())?;
        let intent = codec::decode::<Intent>(&request.intent).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let span = traces::onward(Some(&request.traceparent), "forwarded", Side::Server);
        traces::number(&span, "member", self.0.me.id.0);
        let proposed = self.0.propose(intent, None, until(request.deadline_ms)).instrument(span);
        let result = match proposed.await {
            Ok(reply) => R::Reply(codec::encode(&reply).into()),
            Err(lost) => R::NotLeader(not_leader(lost)),
        };
        Ok(Response::new(pb::ForwardReply { result: Some(result) }))
    }

    async fn read_index(&self, request: Request<pb::ReadIndexRequest>) -> Result<Response<pb::ReadIndexReply>, Status> {
        use pb::read_index_reply::Result as R;
        let request = self.open(request, Newcomer::Refused, |r| r.route.as_ref())?;
        let result = match self.0.read_index_here(until(request.deadline_ms)).await {
            Ok(index) => R::Index(index),
            Err(lost) => R::NotLeader(not_leader(lost)),
        };
        Ok(Response::new(pb::ReadIndexReply { result: Some(result) }))
    }

    async fn manage(&self, request: Request<pb::ManageRequest>) -> Result<Response<pb::ManageReply>, Status> {
        use pb::manage_reply::Result as R;
        use pb::manage_request::Change as C;
        let request = self.open(request, Newcomer::Refused, |r| r.route.as_ref())?;
        let change = match request.change {
            Some(C::AddLearner(learner)) => {
                Change::AddLearner(super::Member { id: MemberId(learner.id), name: learner.name, peer: learner.addr })
            }
            Some(C::Promote(id)) => Change::Promote(MemberId(id)),
            Some(C::Remove(id)) => Change::Remove(MemberId(id)),
            Some(C::Transfer(id)) => Change::Transfer(MemberId(id)),
            None => return Err(Status::invalid_argument("change is missing")),
        };
        let deadline = until(request.deadline_ms);
        let result = match self.0.change_here(&change, deadline).await {
            Ok(()) => R::Done(pb::Done {}),
            Err(Failure::NotLeader(leader)) => R::NotLeader(not_leader(Lost { leader, taken: false })),
            Err(Failure::Error(Error::Refused(refusal))) => {
                R::Refused(pb::Refusal { reason: refusal.reason.token().to_owned(), detail: refusal.detail })
            }
            Err(Failure::Error(other)) => return Err(Status::aborted(other.to_string())),
        };
        Ok(Response::new(pb::ManageReply { result: Some(result) }))
    }
}

/// A stream fed by a task; it ends with the task. Holds at most 16 messages.
fn async_stream_of<T, F>(
    feed: impl FnOnce(tokio::sync::mpsc::Sender<T>) -> F,
) -> tokio_stream::wrappers::ReceiverStream<T>
where
    T: Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (tx, rx) = tokio::sync::mpsc::channel(16);
    tokio::spawn(feed(tx));
    tokio_stream::wrappers::ReceiverStream::new(rx)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(internal)?.map_err(internal)
}
