//! An agent's way to the group: directly, for agents inside a member, or over the
//! network to any of several members. The agent does not know which.

use crate::exchange::client::Client;
use crate::exchange::dial::{Address, Dial};
use crate::exchange::logs::{LogSource, answer_orders};
use crate::exchange::{
    Beat, BeatAnswer, Error, Hub, MAX_NODES, NodeReports, NodeStart, Registered, Registration, Slices, Voucher, vouch,
};
use futures::StreamExt;
use futures::future::BoxFuture;
use nf_core::command::DeviceFault;
use nf_core::command::Mode;
use nf_proto::internal as pb;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

/// How long a member may take for a call before the next one is asked.
const CALL: Duration = Duration::from_secs(6);
/// How long a beat may take; a later answer would be of little use.
const BEAT: Duration = Duration::from_secs(3);
/// A stream that is silent for so long is dead: members say something every two seconds.
const SILENT: Duration = Duration::from_secs(7);
/// Messages that wait for the agent or for the wire.
const UNREAD: usize = 8;
/// Registrations in one message, so that it stays far below the largest.
const REGISTRATIONS: usize = 256;

/// See the module's text. All calls may be repeated.
pub trait Link: Send + Sync + 'static {
    /// One answer for each node, in order.
    fn register(&self, nodes: Vec<Registration>) -> BoxFuture<'_, Result<Vec<Registered>, Error>>;
    fn beat(&self, beats: Vec<Beat>) -> BoxFuture<'_, Result<BeatAnswer, Error>>;
    /// What each member says of the nodes, as far as one can be reached.
    fn vouchers(&self, nodes: Vec<NodeStart>) -> BoxFuture<'_, Vec<Voucher>>;
    /// Answers with the index that reflects the reports.
    fn report(&self, reports: Vec<NodeReports>) -> BoxFuture<'_, Result<u64, Error>>;
    /// Tells what was seen of a node's devices.
    fn faults(&self, node: NodeStart, faults: Vec<DeviceFault>) -> BoxFuture<'_, Result<(), Error>>;
    /// The nodes' slices; the receiver ends when the way to the group is lost.
    fn watch(&self, nodes: Vec<NodeStart>) -> mpsc::Receiver<Slices>;
    /// Answers requests for logs of `nodes` for as long as it is polled and the way holds.
    fn answer_logs(&self, nodes: Vec<NodeStart>, source: LogSource) -> BoxFuture<'_, Error>;
}

/// For agents inside a member.
#[derive(Clone)]
pub struct LocalLink(pub Hub);

impl Link for LocalLink {
    fn register(&self, nodes: Vec<Registration>) -> BoxFuture<'_, Result<Vec<Registered>, Error>> {
        Box::pin(self.0.register(nodes))
    }
    fn beat(&self, beats: Vec<Beat>) -> BoxFuture<'_, Result<BeatAnswer, Error>> {
        Box::pin(self.0.beat(beats))
    }
    fn vouchers(&self, nodes: Vec<NodeStart>) -> BoxFuture<'_, Vec<Voucher>> {
        Box::pin(async move { self.0.vouchers(&nodes).await })
    }
    fn report(&self, reports: Vec<NodeReports>) -> BoxFuture<'_, Result<u64, Error>> {
        Box::pin(self.0.report(reports))
    }
    fn faults(&self, node: NodeStart, faults: Vec<DeviceFault>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.0.faults(node, faults))
    }
    fn watch(&self, nodes: Vec<NodeStart>) -> mpsc::Receiver<Slices> {
        self.0.watch(nodes)
    }
    fn answer_logs(&self, nodes: Vec<NodeStart>, source: LogSource) -> BoxFuture<'_, Error> {
        let attached = self.0.attach_logs(nodes.into_iter().map(|n| n.node), source);
        Box::pin(async move {
            let _attached = attached;
            std::future::pending().await
        })
    }
}

/// For workers: any of several members, the next one when one does not answer.
#[derive(Clone)]
pub struct RemoteLink {
    members: Arc<[Client]>,
    mode: Mode,
    /// Which member is asked now. Calls, slices and logs move together.
    current: watch::Sender<usize>,
}

impl RemoteLink {
    /// `members` are `host:port` of peer listeners; `cluster` may be empty; `mode` is this process' own.
    ///
    /// # Errors
    /// When there is none, or one can't be an address.
    pub fn new(cluster: &str, mode: Mode, members: &[String], dial: &dyn Dial) -> Result<Self, String> {
        let client = |peer: &String| {
            let channel = dial.channel(&Address { name: None, peer: peer.clone() })?;
            Ok::<_, String>(Client::new(cluster, channel))
        };
        let members: Arc<[Client]> = members.iter().map(client).collect::<Result<_, _>>()?;
        if members.is_empty() {
            return Err("a worker needs the address of at least one member".into());
        }
        Ok(Self { members, mode, current: watch::channel(0).0 })
    }

    fn client(&self) -> (usize, &Client) {
        let at = *self.current.borrow();
        (at, &self.members[at])
    }

    /// The member `at` did not answer: the next one is asked from now on.
    fn move_on(&self, at: usize) {
        let next = (at + 1) % self.members.len();
        self.current.send_if_modified(|current| {
            let moves = *current == at && next != at;
            if moves {
                *current = next;
            }
            moves
        });
    }

    /// Asks the current member, then each other one once.
    async fn ask<'a, T, F>(&'a self, limit: Duration, call: impl Fn(&'a Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'a,
    {
        let mut last = Error::Unavailable("no member answered".into());
        for _ in 0..self.members.len() {
            let (at, client) = self.client();
            match tokio::time::timeout(limit, call(client)).await {
                Ok(Err(Error::Unavailable(text))) => last = Error::Unavailable(text),
                Ok(answer) => return answer,
                Err(_) => last = Error::Unavailable("a member did not answer in time".into()),
            }
            self.move_on(at);
        }
        Err(last)
    }
}

impl Link for RemoteLink {
    fn register(&self, nodes: Vec<Registration>) -> BoxFuture<'_, Result<Vec<Registered>, Error>> {
        Box::pin(async move {
            let mut out = Vec::with_capacity(nodes.len());
            for part in nodes.chunks(REGISTRATIONS) {
                let (part, mode) = (Arc::new(part.to_vec()), self.mode);
                let call = |client: &'_ Client| {
                    let (client, part) = (client.clone(), part.clone());
                    async move { client.register(&part, mode).await }
                };
                out.extend(self.ask(CALL, call).await?);
            }
            Ok(out)
        })
    }

    fn beat(&self, beats: Vec<Beat>) -> BoxFuture<'_, Result<BeatAnswer, Error>> {
        let beats = Arc::new(beats);
        let call = move |client: &'_ Client| {
            let (client, beats) = (client.clone(), beats.clone());
            async move { client.beat(&beats, false).await }
        };
        Box::pin(async move { self.ask(BEAT, call).await })
    }

    fn vouchers(&self, nodes: Vec<NodeStart>) -> BoxFuture<'_, Vec<Voucher>> {
        Box::pin(async move {
            let nodes = nodes.as_slice();
            let asked = self.members.iter().map(|client| tokio::time::timeout(vouch::ASKED, client.vouch(nodes)));
            futures::future::join_all(asked).await.into_iter().filter_map(|said| said.ok()?.ok()).collect()
        })
    }

    fn report(&self, reports: Vec<NodeReports>) -> BoxFuture<'_, Result<u64, Error>> {
        let reports = Arc::new(reports);
        let call = move |client: &'_ Client| {
            let (client, reports) = (client.clone(), reports.clone());
            async move { client.report(&reports).await }
        };
        Box::pin(async move { self.ask(CALL, call).await })
    }

    fn faults(&self, node: NodeStart, faults: Vec<DeviceFault>) -> BoxFuture<'_, Result<(), Error>> {
        let said = Arc::new((node, faults));
        let call = move |client: &'_ Client| {
            let (client, said) = (client.clone(), said.clone());
            async move { client.faults(&said.0, &said.1).await }
        };
        Box::pin(async move { self.ask(CALL, call).await })
    }

    fn watch(&self, nodes: Vec<NodeStart>) -> mpsc::Receiver<Slices> {
        let (to_agent, slices) = mpsc::channel(UNREAD);
        let link = self.clone();
        tokio::spawn(async move {
            let mut moved = link.current.subscribe();
            moved.borrow_and_update();
            let (at, client) = link.client();
            tokio::select! {
                () = follow(client, &nodes, &to_agent) => link.move_on(at),
                // Another call found this member wanting; the agent asks again.
                _ = moved.changed() => {}
                () = to_agent.closed() => {}
            }
        });
        slices
    }

    fn answer_logs(&self, nodes: Vec<NodeStart>, source: LogSource) -> BoxFuture<'_, Error> {
        Box::pin(async move {
            let mut moved = self.current.subscribe();
            moved.borrow_and_update();
            let (_, client) = self.client();
            let (pieces, to_member) = mpsc::channel(UNREAD);
            let hello = pb::LogHello {
                cluster: client.cluster().to_owned(),
                nodes: nodes.iter().take(MAX_NODES).map(put_start).collect(),
            };
            let hello = pb::LogPiece { piece: Some(pb::log_piece::Piece::Hello(hello)) };
            if pieces.send(hello).await.is_err() {
                return Error::Unavailable("the stream did not open".into());
            }
            let orders = match client.answer_logs(ReceiverStream::new(to_member)).await {
                Ok(orders) => orders,
                Err(error) => return error,
            };
            tokio::select! {
                () = answer_orders(orders, pieces, source) => {}
                _ = moved.changed() => {}
            }
            Error::Unavailable("the stream of log orders ended".into())
        })
    }
}

fn put_start(start: &NodeStart) -> pb::NodeStart {
    pb::NodeStart { name: start.node.to_string(), incarnation: start.incarnation.0 }
}

/// Passes slices on until the stream fails, falls silent, or nobody listens.
async fn follow(client: &Client, nodes: &[NodeStart], to_agent: &mpsc::Sender<Slices>) {
    let Ok(Ok(stream)) = tokio::time::timeout(CALL, client.watch(nodes)).await else { return };
    let mut stream = std::pin::pin!(stream);
    while let Ok(Some(Ok(slices))) = tokio::time::timeout(SILENT, stream.next()).await {
        if to_agent.send(slices).await.is_err() {
            return;
        }
    }
}
