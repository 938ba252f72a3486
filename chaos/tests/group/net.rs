//! The simulated network: messages are delayed, dropped, and cut off by partitions. Those of a
//! crashed member's past life go nowhere.

use std::sync::Arc;
use std::time::Duration;

use neural_fabric::raft::types::{Peer, Snapshot, Vote};
use neural_fabric::storage::model::Image;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AsyncRuntime, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use openraft_rt_sim::SimRuntime;

use crate::world::{C, Raft, World};

/// Makes links out of one life of one member.
pub struct Net {
    pub world: World,
    pub from: u64,
    pub life: u64,
}

pub struct Link {
    world: World,
    from: u64,
    life: u64,
    to: u64,
}

impl RaftNetworkFactory<C> for Net {
    type Network = Link;
    async fn new_client(&mut self, target: u64, _node: &Peer) -> Link {
        Link { world: self.world.clone(), from: self.from, life: self.life, to: target }
    }
}

fn unreachable() -> RPCError<C> {
    RPCError::Unreachable(Unreachable::from_string("lost"))
}

impl Link {
    /// Sends, lets the target handle it, and brings the answer back, if nothing is lost.
    async fn call<T, F>(&self, limit: Duration, handle: impl FnOnce(Raft) -> F + Send) -> Result<T, RPCError<C>>
    where
        F: Future<Output = Option<T>> + Send,
        T: Send,
    {
        let exchange = async {
            let target = self.world.deliver(self.from, self.life, self.to).await?;
            let answer = handle(target).await?;
            self.world.pass(self.to, self.from).await?;
            Some(answer)
        };
        match SimRuntime::timeout(limit, exchange).await {
            Ok(Some(answer)) => Ok(answer),
            // A lost message is noticed by its time-out alone; a little of it is enough here.
            Ok(None) => {
                SimRuntime::sleep(limit / 2).await;
                Err(unreachable())
            }
            Err(_) => Err(unreachable()),
        }
    }
}

impl RaftNetworkV2<C> for Link {
    type SnapshotData = Arc<Image>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<C>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<C>, RPCError<C>> {
        let limit = option.hard_ttl();
        self.call(limit, |raft| async move { raft.append_entries(rpc).await.ok() }).await
    }

    async fn vote(&mut self, rpc: VoteRequest<C>, option: RPCOption) -> Result<VoteResponse<C>, RPCError<C>> {
        self.call(option.soft_ttl(), |raft| async move { raft.vote(rpc).await.ok() }).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<C>, option: RPCOption) -> Result<VoteResponse<C>, RPCError<C>> {
        self.call(option.soft_ttl(), |raft| async move { raft.pre_vote(rpc).await.ok() }).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<Arc<Image>>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<C>, StreamingError<C>> {
        self.world.count_snapshot();
        let limit = Duration::from_secs(1);
        let installed =
            self.call(limit, |raft| async move { raft.install_full_snapshot(vote, snapshot).await.ok() }).await?;
        Ok(installed)
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<C>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<C>, RPCError<C>> {
        let limit = Duration::from_secs(1);
        self.call(limit, |raft| async move { raft.handle_transfer_leader(req).await.ok() }).await
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(50))))
    }
}
