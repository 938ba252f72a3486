//! What an agent asks of whoever runs replicas on a node. It does not know how.

use crate::exchange::life::Life;
use bytes::Bytes;
use futures::stream::BoxStream;
use nf_core::autoscaler::source::Told;
use nf_core::id::{Generation, RequestId};
use nf_core::job::Stage;
use nf_core::reconcile::{Actual, Leave, Purge, ReplicaId, Want};
use std::collections::BTreeSet;
use std::io;
use tokio::sync::watch;

/// Makes replicas exist on one node. All calls return at once and may be repeated.
pub trait Execute: Send + Sync + 'static {
    /// Does nothing when that generation is known already.
    fn start(&self, id: ReplicaId, want: &Want);
    /// Begins to stop a replica after its grace, in which its program may save its state. One that is stopping has no
    /// more time for that when the grace is nothing, and one that must never run twice none when no lease covers it any
    /// more (`NodeFailure`); one that is not here, or is gone, stays as it is.
    fn stop(&self, id: ReplicaId, generation: Generation, leave: Leave);
    /// Removes what is left of a replica that is gone: its record and its directory.
    fn forget(&self, id: ReplicaId, generation: Generation);
    /// What is here, by replica and generation.
    fn actual(&self) -> Actual;
    /// How far each living replica has come.
    fn stages(&self) -> Vec<(ReplicaId, Generation, Stage)>;
    /// What the metrics of ready replicas say, for the autoscaler.
    fn told(&self) -> Vec<Told> {
        Vec::new()
    }
    /// Rises when `actual` or `stages` may have changed.
    fn changes(&self) -> watch::Receiver<u64>;
    /// Until when, by CLOCK_BOOTTIME, replicas that must never run twice may live, as a lease
    /// proves. Before there is one, an earlier agent's counts. A runtime whose replicas end
    /// with the agent needs nobody to end them.
    fn guard_until(&self, _proven_ms: Option<u64>) {}
    /// The earliest time at which one of them is killed by whoever guards them.
    fn guarded_until(&self) -> Option<u64> {
        None
    }
    /// Those here that must never run twice, whatever the group says of them now.
    fn exclusive(&self) -> BTreeSet<(ReplicaId, Generation)> {
        BTreeSet::new()
    }
    /// Whether it knows what earlier starts of this node left behind. One that found no records of theirs does not,
    /// until [`Execute::settle`].
    fn remembers(&self) -> bool {
        true
    }
    /// The last lease of every earlier start is over: nothing of them that must never run twice lives.
    fn settle(&self) {}
    /// A launch that must never run twice is not started yet, since an earlier start may have it, until then by
    /// CLOCK_BOOTTIME. None: not known yet.
    fn hold_back(&self, _id: ReplicaId, _want: &Want, _until_ms: Option<u64>) {}
    /// What the launches of a replica that are here have been through, older ones first.
    fn lives(&self, _id: ReplicaId) -> Vec<Life> {
        Vec::new()
    }
    /// Removes a copy of data about people; true when it is gone. Otherwise it is on its way, and `changes` will tell.
    fn purge(&self, _copy: &Purge) -> bool {
        true
    }
    /// The last `tail` lines of a replica's log, then, with `follow`, what is added until it ends.
    fn logs(
        &self,
        request: &RequestId,
        id: ReplicaId,
        tail: usize,
        follow: bool,
    ) -> BoxStream<'static, io::Result<Bytes>>;
}
