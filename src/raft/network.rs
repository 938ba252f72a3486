//! openraft's view of the network: append, vote, snapshot and transfer over [`Peers`].
//!
//! Appends are pipelined on one stream per session; replies come in order. It decides nothing:
//! an error is passed on with its kind, and openraft backs off.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

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
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::Core;
use super::peers::{Client, Lane, Peers};
use super::types::{Peer, Snapshot, Vote};
use super::wire::{self, AppendRequest, AppendResult, VoteRequest, VoteResponse};
use crate::storage::checkpoint::{self, CHUNK};

/// How long a peer may take for one append while others wait behind it. A busy disk can take a
/// quarter of a second; only a dead one takes this long.
const APPEND_REPLY: Duration = Duration::from_secs(2);
/// Pauses before talking to an unreachable peer again.
const BACKOFF_MS: [u64; 5] = [10, 20, 50, 100, 200];

/// Makes links to peers for openraft.
pub struct Factory(pub Arc<Peers>);

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
        Link { peers: self.0.clone(), target, peer: node.clone(), lane }
    }
}

/// One peer, on one lane.
pub struct Link {
    peers: Arc<Peers>,
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

/// Replies of an append stream, each within a limit that runs while a request is unanswered.
fn replies(
    incoming: tonic::Streaming<pb::AppendReply>,
    unanswered: Arc<AtomicUsize>,
    expired: RPCError<Core>,
) -> impl Stream<Item = Result<AppendResult, RPCError<Core>>> {
    stream::unfold(Some((incoming, unanswered, expired)), |at| async move {
        let (mut incoming, unanswered, expired) = at?;
        loop {
            let next = tokio::time::timeout(APPEND_REPLY, incoming.message()).await;
            let reply = match next {
                // An idle stream is fine; openraft has nothing to say.
                Err(_) if unanswered.load(Ordering::Acquire) == 0 => continue,
                Err(_) => return Some((Err(expired), None)),
                Ok(Ok(None)) => return None,
                Ok(Ok(Some(reply))) => wire::append_result(reply),
                Ok(Err(status)) => Err(status),
            };
            unanswered.fetch_sub(1, Ordering::AcqRel);
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
            let unanswered = Arc::new(AtomicUsize::new(0));
            let sent = unanswered.clone();
            let mut route = Some(self.peers.route(self.target));
            let requests = input.map(move |request| {
                sent.fetch_add(1, Ordering::AcqRel);
                wire::put_append(&request, route.take())
            });
            let mut client = self.client(self.lane);
            let expired = self.timeout(RPCTypes::AppendEntries, APPEND_REPLY);
            let incoming = self.within(RPCTypes::AppendEntries, APPEND_REPLY, client.append(requests)).await?;
            let replies: BoxStream<'s, _> = Box::pin(replies(incoming, unanswered, expired));
            Ok(replies)
        })
    }

    async fn vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, RPCError<Core>> {
        let request = wire::put_vote_request(&rpc, self.peers.route(self.target));
        let mut client = self.client(Lane::Control);
        let call = client.vote(request);
        let reply = self.within(RPCTypes::Vote, option.soft_ttl(), call).await?;
        wire::vote_response(&reply).map_err(|e| rpc_error(&e))
    }

    async fn pre_vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, RPCError<Core>> {
        let request = wire::put_vote_request(&rpc, self.peers.route(self.target));
        let mut client = self.client(Lane::Control);
        let call = client.pre_vote(request);
        let reply = self.within(RPCTypes::Vote, option.soft_ttl(), call).await?;
        wire::vote_response(&reply).map_err(|e| rpc_error(&e))
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
