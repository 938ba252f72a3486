//! The calling side of the node service: a client for one member, and [`Peers`],
//! which keeps one per member. It does not decide whom to ask.

use super::dial::{Address, Dial};
use super::group::Group;
use super::message::{Beat, BeatAnswer, Error, LogQuery, NodeReports, NodeStart, Registered, Registration, Slices};
use super::sights::Seen;
use super::vitals::Vitals;
use super::vouch::Voucher;
use super::wire;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use nf_core::command::DeviceFault;
use nf_core::command::Mode;
use nf_core::id::{MemberId, NodeNo};
use nf_proto::internal as pb;
use pb::node_service_client::NodeServiceClient;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tonic::transport::Channel;

/// Connections that are kept; there are never so many members.
const KEPT: usize = 64;

/// One member's node service.
#[derive(Clone, Debug)]
pub struct Client {
    cluster: String,
    inner: NodeServiceClient<Channel>,
}

fn failed(status: tonic::Status) -> Error {
    wire::error(&status)
}

impl Client {
    /// `cluster` may be empty: then any group's member answers.
    pub fn new(cluster: &str, channel: Channel) -> Self {
        let inner = NodeServiceClient::new(channel)
            .max_decoding_message_size(wire::MESSAGE_BYTES)
            .max_encoding_message_size(wire::MESSAGE_BYTES);
        Self { cluster: cluster.to_owned(), inner }
    }

    /// `mode`: that of the process which runs the nodes.
    pub async fn register(&self, nodes: &[Registration], mode: Mode) -> Result<Vec<Registered>, Error> {
        let message = pb::RegisterNodesRequest {
            cluster: self.cluster.clone(),
            production: mode == Mode::Production,
            nodes: nodes.iter().map(wire::put_registration).collect(),
        };
        let reply = self.inner.clone().register(message).await.map_err(failed)?.into_inner();
        if reply.nodes.len() != nodes.len() {
            return Err(Error::Unavailable(format!("{} answers to {} registrations", reply.nodes.len(), nodes.len())));
        }
        reply.nodes.into_iter().map(wire::registered).collect()
    }

    pub async fn beat(&self, beats: &[Beat], forwarded: bool) -> Result<BeatAnswer, Error> {
        let beats = beats.iter().map(wire::put_beat).collect();
        let message = pb::BeatRequest { cluster: self.cluster.clone(), beats, forwarded };
        wire::answer(self.inner.clone().beat(message).await.map_err(failed)?.into_inner())
    }

    pub async fn vouch(&self, nodes: &[NodeStart]) -> Result<Voucher, Error> {
        let nodes = nodes.iter().map(wire::put_start).collect();
        let message = pb::VouchRequest { cluster: self.cluster.clone(), nodes };
        wire::voucher(self.inner.clone().vouch(message).await.map_err(failed)?.into_inner())
    }

    pub async fn report(&self, reports: &[NodeReports]) -> Result<u64, Error> {
        let nodes = reports.iter().map(wire::put_reports).collect();
        let message = pb::ReportRequest { cluster: self.cluster.clone(), nodes };
        Ok(self.inner.clone().report(message).await.map_err(failed)?.into_inner().index)
    }

    pub async fn faults(&self, node: &NodeStart, faults: &[DeviceFault]) -> Result<(), Error> {
        let message = wire::put_faults(&self.cluster, node, faults);
        self.inner.clone().faults(message).await.map_err(failed).map(drop)
    }

    pub async fn watch(
        &self,
        nodes: &[NodeStart],
    ) -> Result<impl Stream<Item = Result<Slices, Error>> + Send + use<>, Error> {
        let nodes = nodes.iter().map(wire::put_start).collect();
        let message = pb::WatchNodesRequest { cluster: self.cluster.clone(), nodes };
        let stream = self.inner.clone().watch_nodes(message).await.map_err(failed)?.into_inner();
        Ok(stream.map(|reply| wire::slices(reply.map_err(failed)?)))
    }

    pub async fn answer_logs(
        &self,
        pieces: impl Stream<Item = pb::LogPiece> + Send + 'static,
    ) -> Result<tonic::Streaming<pb::LogOrder>, Error> {
        Ok(self.inner.clone().answer_logs(pieces).await.map_err(failed)?.into_inner())
    }

    pub async fn read_logs(&self, query: &LogQuery) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        let message = wire::put_query(&self.cluster, query);
        let stream = self.inner.clone().read_logs(message).await.map_err(failed)?.into_inner();
        Ok(stream.map_ok(|chunk| chunk.data).map_err(failed).boxed())
    }

    pub async fn vitals(&self) -> Result<Vec<(NodeNo, Vec<Vitals>)>, Error> {
        let message = pb::VitalsRequest { cluster: self.cluster.clone() };
        wire::all_vitals(self.inner.clone().vitals(message).await.map_err(failed)?.into_inner())
    }

    pub async fn sights(&self) -> Result<Seen, Error> {
        let message = pb::SightsRequest { cluster: self.cluster.clone() };
        wire::seen(self.inner.clone().sights(message).await.map_err(failed)?.into_inner())
    }

    pub fn cluster(&self) -> &str {
        &self.cluster
    }
}

/// The other members, as this one reaches them.
#[derive(Clone)]
pub struct Peers {
    dial: Arc<dyn Dial>,
    clients: Arc<Mutex<BTreeMap<Address, Client>>>,
}

impl Peers {
    pub fn new(dial: Arc<dyn Dial>) -> Self {
        Self { dial, clients: Arc::default() }
    }

    fn client(&self, cluster: &str, address: Address) -> Result<Client, Error> {
        let mut clients = self.clients.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(client) = clients.get(&address).filter(|client| client.cluster() == cluster) {
            return Ok(client.clone());
        }
        let channel = self.dial.channel(&address).map_err(Error::Unavailable)?;
        let client = Client::new(cluster, channel);
        if clients.len() >= KEPT {
            clients.clear();
        }
        clients.insert(address, client.clone());
        Ok(client)
    }

    /// A client for member `id`.
    ///
    /// # Errors
    /// When it is no member, or its address can't be one.
    pub fn member(&self, group: &dyn Group, id: MemberId) -> Result<Client, Error> {
        let status = group.status();
        let member = status.members.into_iter().find(|member| member.id == id);
        let member = member.ok_or_else(|| Error::Unavailable(format!("{id} is no member")))?;
        let cluster = group.watch().borrow().state.meta().cluster.clone();
        self.client(&cluster, Address { name: Some(member.name), peer: member.peer })
    }

    /// Passes beats on to the leader.
    ///
    /// # Errors
    /// When there is none, or it did not confirm itself.
    pub async fn beat_leader(&self, group: &dyn Group, beats: Vec<Beat>) -> Result<BeatAnswer, Error> {
        let status = group.status();
        let leader = status.leader.filter(|leader| *leader != status.id);
        let leader = leader.ok_or_else(|| Error::Unavailable("no leader is known".into()))?;
        let mut all: Option<BeatAnswer> = None;
        // Split again: several agents' beats may be more than one message may carry.
        for part in beats.chunks(wire::NODES) {
            let answer = self.member(group, leader)?.beat(part, true).await?;
            match &mut all {
                None => all = Some(answer),
                // The earliest confirmation counts for all.
                Some(all) => {
                    all.superseded.extend(answer.superseded);
                    all.unknown.extend(answer.unknown);
                }
            }
        }
        all.ok_or_else(|| Error::Unavailable("nothing to pass on".into()))
    }
}
