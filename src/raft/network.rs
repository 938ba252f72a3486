//! openraft's view of the network: append, vote, snapshot and transfer over [`Peers`].
//!
//! Appends are pipelined on one stream per session; replies come in order. It decides nothing:
//! an error is passed on with its kind, and openraft backs off.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use nf_proto::internal as pb;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesResponse, SnapshotResponse, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::clock::boot_us;
use super::peers::{Client, Lane, Peers};
use super::state_machine::Applied;
use super::types::{Peer, Snapshot, Vote};
use super::wire::{self, AppendRequest, AppendResult, VoteRequest, VoteResponse};
use super::{Core, MemberId};
use crate::storage::checkpoint::{self, CHUNK};

/// How long a peer may take for one append while others wait behind it. A busy disk can take a
/// quarter of a second; only a dead one takes this long.
const APPEND_REPLY: Duration = Duration::from_secs(2);
/// Pauses before talking to an unreachable peer again.
const BACKOFF_MS: [u64; 5] = [10, 20, 50, 100, 200];

/// Makes links to peers for openraft.
pub struct Factory {
    pub peers: Arc<Peers>,
    /// Who has introduced itself to the group, as far as this member has applied.
    pub applied: watch::Receiver<Applied>,
}

impl RaftNetworkFactory<Core> for Factory {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &Peer) -> Link {
        self.link(target, node, Lane::Log)
    }
    async fn new_heartbeat_client(&mut self, target: u64, node: &Peer) -> Link {
        self.link(target, node, Lane::Control)
    }
    async fn new_snapshot_client(&mut self, target: u64, node: &Peer) -> Link {
        self.link(target, node, Lane::Bulk)
    }
}

impl Factory {
    fn link(&self, target: u64, node: &Peer, lane: Lane) -> Link {
        Link { peers: self.peers.clone(), applied: self.applied.clone(), target, peer: node.clone(), lane }
    }
}

/// One peer, on one lane.
pub struct Link {
    peers: Arc<Peers>,
    applied: watch::Receiver<Applied>,
    target: u64,
    peer: Peer,
    lane: Lane,
}

fn rpc_error(status: &Status) -> RPCError<Core> {
    match status.code() {
        Code::Unavailable | Code::Unauthenticated | Code::PermissionDenied => {
            RPCError::Unreachable(Unreachable::from_string(status))
        }
        _ => RPCError::Network(NetworkError::from_string(status)),
    }
}

impl Link {
    fn client(&self, lane: Lane) -> Client {
        self.peers.client(self.target, &self.peer, lane)
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> RPCError<Core> {
        let target = self.target;
        RPCError::Timeout(Timeout { action, id: self.peers.route(target).from, target, timeout })
    }

    /// Whether the group has heard of the other end: then it had data.
    fn introduced(&self) -> bool {
        self.applied.borrow().state.members().contains_key(&MemberId(self.target))
    }

    fn vote_request(&self, rpc: &VoteRequest) -> pb::VoteRequest {
        wire::put_vote_request(rpc, self.peers.route(self.target), self.introduced())
    }

    /// The answer to a vote or pre-vote that was asked for at `asked_us`.
    fn voted(&self, reply: &pb::VoteReply, asked_us: u64) -> Result<VoteResponse, RPCError<Core>> {
        self.peers.heard_clock(self.target, reply.now_ms, asked_us);
        wire::vote_response(reply).map_err(|e| rpc_error(&e))
    }

    async fn within<T>(
        &self,
        action: RPCTypes,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, RPCError<Core>> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(rpc_error(&status)),
            Err(_) => Err(self.timeout(action, limit)),
        }
    }
}

/// Requests of one stream that wait for their answers, and since when the next answer is due.
#[derive(Default)]
struct Unanswered(Mutex<(usize, Option<Instant>)>);

impl Unanswered {
    fn lock(&self) -> MutexGuard<'_, (usize, Option<Instant>)> {
        // A number and a time: whole whatever happens while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self, now: Instant) {
        let mut waiting = self.lock();
        waiting.0 += 1;
        waiting.1.get_or_insert(now);
    }

    /// Answers come in order, so the next one is due from now on.
    fn answered(&self, now: Instant) {
        let mut waiting = self.lock();
        waiting.0 = waiting.0.saturating_sub(1);
        waiting.1 = (waiting.0 > 0).then_some(now);
    }

    /// What is left of the peer's time; none while it owes nothing.
    fn left(&self, now: Instant) -> Option<Duration> {
        let since = self.lock().1?;
        Some((since + APPEND_REPLY).saturating_duration_since(now))
    }
}

/// Replies of an append stream, each within a limit that runs while a request is unanswered.
fn replies(
    incoming: tonic::Streaming<pb::AppendReply>,
    unanswered: Arc<Unanswered>,
    expired: RPCError<Core>,
) -> impl Stream<Item = Result<AppendResult, RPCError<Core>>> {
    stream::unfold(Some((incoming, unanswered, expired)), |at| async move {
        let (mut incoming, unanswered, expired) = at?;
        loop {
            let limit = unanswered.left(Instant::now()).unwrap_or(APPEND_REPLY);
            let next = tokio::time::timeout(limit, incoming.message()).await;
            let reply = match next {
                Err(_) if unanswered.left(Instant::now()) == Some(Duration::ZERO) => return Some((Err(expired), None)),
                // An idle stream is fine; openraft had nothing to say, or has said it only just now.
                Err(_) => continue,
                Ok(Ok(None)) => return None,
                Ok(Ok(Some(reply))) => wire::append_result(reply),
                Ok(Err(status)) => Err(status),
            };
            unanswered.answered(Instant::now());
            return match reply {
                Ok(result) => Some((Ok(result), Some((incoming, unanswered, expired)))),
                Err(status) => Some((Err(rpc_error(&status)), None)),
            };
        }
    })
}

impl RaftNetworkV2<Core> for Link {
    type SnapshotData = checkpoint::Snapshot;

    async fn append_entries(
        &mut self,
        rpc: AppendRequest,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Core>, RPCError<Core>> {
        let mut replies = self.stream_append(stream::iter([rpc]), option).await?;
        match replies.next().await {
            Some(result) => Ok(AppendEntriesResponse::from(result?)),
            None => Err(RPCError::Network(NetworkError::from_string("no reply"))),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<AppendResult, RPCError<Core>>>, RPCError<Core>>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let unanswered = Arc::new(Unanswered::default());
            let sent = unanswered.clone();
            let (mut route, introduced) = (Some(self.peers.route(self.target)), self.introduced());
            let requests = input.map(move |request| {
                sent.sent(Instant::now());
                let first = route.take();
                let introduced = introduced && first.is_some();
                wire::put_append(&request, first, introduced)
            });
            let mut client = self.client(self.lane);
            let expired = self.timeout(RPCTypes::AppendEntries, APPEND_REPLY);
            let incoming = self.within(RPCTypes::AppendEntries, APPEND_REPLY, client.append(requests)).await?;
            let replies: BoxStream<'s, _> = Box::pin(replies(incoming, unanswered, expired));
            Ok(replies)
        })
    }

    async fn vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, RPCError<Core>> {
        let (request, asked) = (self.vote_request(&rpc), boot_us());
        let mut client = self.client(Lane::Control);
        let call = client.vote(request);
        let reply = self.within(RPCTypes::Vote, option.soft_ttl(), call).await?;
        self.voted(&reply, asked)
    }

    async fn pre_vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, RPCError<Core>> {
        let (request, asked) = (self.vote_request(&rpc), boot_us());
        let mut client = self.client(Lane::Control);
        let call = client.pre_vote(request);
        let reply = self.within(RPCTypes::Vote, option.soft_ttl(), call).await?;
        self.voted(&reply, asked)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<checkpoint::Snapshot>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Core>, StreamingError<Core>> {
        let head = pb::SnapshotHead {
            route: Some(self.peers.route(self.target)),
            vote: Some(wire::put_vote(&vote)),
            manifest: snapshot.snapshot.manifest().encode().into(),
            introduced: self.introduced(),
        };
        // Two chunks ahead of the wire.
        let (tx, rx) = mpsc::channel(2);
        let reading = tokio::task::spawn_blocking(move || send_files(&snapshot.snapshot, head, &tx));
        let mut client = self.client(Lane::Bulk);
        let call = client.snapshot(ReceiverStream::new(rx));
        let reply = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            reply = call => reply,
        };
        match reply {
            Ok(reply) => {
                let reply = reply.into_inner();
                let vote = wire::vote(reply.vote.as_ref()).map_err(|e| rpc_error(&e))?;
                Ok(SnapshotResponse::new(vote))
            }
            Err(status) => {
                if let Ok(Err(error)) = reading.await {
                    tracing::warn!(%error, "reading a checkpoint to send it");
                }
                Err(rpc_error(&status).into())
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Core>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Core>, RPCError<Core>> {
        let request = pb::TransferRequest {
            route: Some(self.peers.route(self.target)),
            vote: Some(wire::put_vote(req.from_leader())),
            last: req.last_log_id().map(wire::put_log_id),
        };
        // The target first waits until its log is durable, up to an election time-out.
        let limit = option.hard_ttl().max(Duration::from_secs(1));
        let mut client = self.client(Lane::Control);
        let call = client.transfer(request);
        let reply = self.within(RPCTypes::TransferLeader, limit, call).await?;
        if reply.refused.is_empty() {
            return Ok(Ok(()));
        }
        tracing::warn!(reason = reply.refused, "a transfer of leadership was refused");
        Ok(Err(TransferLeaderError::LogNotFlushed { expected: req.last_log_id().copied(), actual: None }))
    }

    fn backoff(&self) -> Option<Backoff> {
        let last = BACKOFF_MS[BACKOFF_MS.len() - 1];
        let pauses = BACKOFF_MS.into_iter().chain(std::iter::repeat(last));
        Some(Backoff::new(pauses.map(Duration::from_millis)))
    }
}

/// Reads the checkpoint into messages. Ends early, without error, when the receiver is gone.
fn send_files(
    snapshot: &checkpoint::Snapshot,
    head: pb::SnapshotHead,
    to: &mpsc::Sender<pb::SnapshotRequest>,
) -> io::Result<()> {
    use pb::snapshot_request::Part;
    use std::io::Read;
    let send = |part| to.blocking_send(pb::SnapshotRequest { part: Some(part) });
    if send(Part::Head(head)).is_err() {
        return Ok(());
    }
    for (number, part) in snapshot.manifest().parts.iter().enumerate() {
        let number = u32::try_from(number).map_err(io::Error::other)?;
        let mut file = std::fs::File::open(snapshot.path(part))?;
        let mut left = part.len;
        while left > 0 {
            let take = left.min(CHUNK as u64);
            let mut data = vec![0; usize::try_from(take).map_err(io::Error::other)?];
            file.read_exact(&mut data)?;
            left -= take;
            let chunk = pb::SnapshotChunk { file: number, data: data.into() };
            if send(Part::Chunk(chunk)).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_an_answer_begins_with_its_request() {
        let unanswered = Unanswered::default();
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(unanswered.left(at(5_000)), None, "an idle stream owes nothing");
        // However long it was idle before.
        unanswered.sent(at(5_900));
        unanswered.sent(at(6_000));
        assert_eq!(unanswered.left(at(6_000)), Some(Duration::from_millis(1_900)));
        unanswered.answered(at(7_000));
        assert_eq!(unanswered.left(at(8_900)), Some(Duration::from_millis(100)), "the second one's, from the first's");
        assert_eq!(unanswered.left(at(9_000)), Some(Duration::ZERO));
        unanswered.answered(at(9_000));
        assert_eq!(unanswered.left(at(20_000)), None);
    }
}
