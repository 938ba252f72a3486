//! The executor of real and simulated replicas, as the agent's loop calls it.

use crate::agent::Execute;
use crate::agent::executor::Executor;
use crate::exchange::life::Life;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use nf_core::autoscaler::source::Told;
use nf_core::id::{Generation, RequestId};
use nf_core::job::Stage;
use nf_core::reason::Reason;
use nf_core::reconcile::{Actual, Purge, ReplicaId, Want};
use std::io;
use std::time::Duration;
use tokio::sync::watch;

impl Execute for Executor {
    fn start(&self, id: ReplicaId, want: &Want) {
        Executor::start(self, id, want);
    }
    fn stop(&self, id: ReplicaId, generation: Generation, why: Reason, grace: Duration) {
        Executor::stop_after(self, id, generation, why, grace);
    }
    fn forget(&self, id: ReplicaId, generation: Generation) {
        Executor::forget(self, id, generation);
    }
    fn actual(&self) -> Actual {
        Executor::actual(self)
    }
    fn stages(&self) -> Vec<(ReplicaId, Generation, Stage)> {
        Executor::stages(self)
    }
    fn changes(&self) -> watch::Receiver<u64> {
        Executor::changes(self)
    }
    fn purge(&self, copy: &Purge) -> bool {
        Executor::purge(self, copy)
    }
    fn guard_until(&self, proven_ms: Option<u64>, else_ms: u64) {
        Executor::guard_until(self, proven_ms, else_ms);
    }
    fn guarded_until(&self) -> Option<u64> {
        Executor::guarded_until(self)
    }
    fn told(&self) -> Vec<Told> {
        Executor::told(self)
    }
    fn lives(&self, request: &RequestId, replica: u16) -> Vec<Life> {
        Executor::lives(self, request, replica)
    }
    fn logs(
        &self,
        request: &RequestId,
        replica: u16,
        tail: usize,
        follow: bool,
    ) -> BoxStream<'static, io::Result<Bytes>> {
        Executor::logs(self, request, replica, tail, follow).boxed()
    }
}
