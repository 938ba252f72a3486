//! The member's side of the node service: says who may speak for which node, and
//! hands the message to the hub. It keeps no state of its own.

use super::message::{Error, NodeStart};
use super::{Hub, wire};
use futures::StreamExt;
use futures::stream::BoxStream;
use nf_core::command::Mode;
use nf_core::id::NodeName;
use nf_core::node::NodeKind;
use nf_core::reason::{Reason, Refusal};
use nf_proto::internal as pb;
use pb::node_service_server::{NodeService, NodeServiceServer};
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Extensions, Request, Response, Status, Streaming};

/// How long an agent has to say for which nodes it answers.
const HELLO: Duration = Duration::from_secs(5);

/// Who makes a call, as its certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A member of this group.
    Member,
    /// The agent of one node.
    Node(NodeName),
    /// Somebody with keys of this group that name no node; plays any worker, in simulation only.
    Someone,
    Stranger,
}

/// Tells who makes a call from what the listener noted of its connection.
pub type Identify = Arc<dyn Fn(&Extensions) -> Caller + Send + Sync>;

pub fn routes(hub: Hub, identify: Identify) -> tonic::service::Routes {
    let server = NodeServiceServer::new(Service { hub, identify })
        .max_decoding_message_size(wire::MESSAGE_BYTES)
        .max_encoding_message_size(wire::MESSAGE_BYTES);
    tonic::service::Routes::new(server)
}

struct Service {
    hub: Hub,
    identify: Identify,
}

fn refused(reason: Reason, field: &str, detail: String) -> Status {
    wire::put_error(&Error::Refused(Refusal::field(reason, field, detail)))
}

fn fail(error: Error) -> Status {
    wire::put_error(&error)
}

impl Service {
    /// Refuses another group's message.
    fn caller<T>(&self, request: &Request<T>, cluster: &str) -> Result<Caller, Status> {
        let (own, mode) = {
            let applied = self.hub.group.watch();
            let meta = applied.borrow().state.meta().clone();
            (meta.cluster, meta.mode)
        };
        if own.is_empty() {
            // Which rules hold here is not known yet; another member may know.
            return Err(fail(Error::Unavailable("this member has not heard from its group yet".into())));
        }
        if !cluster.is_empty() && *cluster != *own {
            let detail = format!("this is cluster \"{own}\", not \"{}\"", nf_core::reason::printable(cluster, 63));
            return Err(refused(Reason::Forbidden, "cluster", detail));
        }
        match ((self.identify)(request.extensions()), mode) {
            (Caller::Stranger, _) | (Caller::Someone, Mode::Production) => {
                let detail =
                    "the certificate is none of this group's nodes'; make one with nf tls cert create --role node"
                        .to_owned();
                Err(refused(Reason::NodeIdentityMismatch, "certificate", detail))
            }
            (caller, _) => Ok(caller),
        }
    }

    /// Whether `caller` may speak for all of `nodes`. A member's own nodes are its own.
    fn may_speak<'a>(&self, caller: &Caller, nodes: impl IntoIterator<Item = &'a NodeName>) -> Result<(), Status> {
        let state = self.hub.group.watch().borrow().state.clone();
        let simulation = state.meta().mode == Mode::Simulation;
        for node in nodes {
            let worker = state.node_named(node).is_none_or(|known| known.kind == NodeKind::Worker);
            let may = match caller {
                Caller::Node(own) => own == node && worker,
                Caller::Member | Caller::Someone => simulation && worker,
                Caller::Stranger => false,
            };
            if !may {
                let detail = format!("this certificate does not speak for node {node}");
                return Err(refused(Reason::NodeIdentityMismatch, "node_id", detail));
            }
        }
        Ok(())
    }

    /// Refuses who is of another mode than the group: a simulated agent verifies nothing that production gives it.
    fn alike(&self, mode: Mode) -> Result<(), Status> {
        let own = self.hub.group.watch().borrow().state.meta().mode;
        if own == mode {
            return Ok(());
        }
        let detail =
            format!("this group is in {}, and the node in {}: see NEURAL_FABRIC_MODE", own.name(), mode.name());
        Err(refused(Reason::Forbidden, "NEURAL_FABRIC_MODE", detail))
    }

    fn starts(&self, caller: &Caller, nodes: Vec<pb::NodeStart>) -> Result<Vec<NodeStart>, Status> {
        let nodes = wire::starts(nodes).map_err(fail)?;
        self.may_speak(caller, nodes.iter().map(|start| &start.node))?;
        Ok(nodes)
    }
}

#[tonic::async_trait]
impl NodeService for Service {
    async fn register(
        &self,
        request: Request<pb::RegisterNodesRequest>,
    ) -> Result<Response<pb::RegisterNodesReply>, Status> {
        let caller = self.caller(&request, &request.get_ref().cluster)?;
        let pb::RegisterNodesRequest { nodes, production, .. } = request.into_inner();
        self.alike(if production { Mode::Production } else { Mode::Simulation })?;
        wire::at_most("nodes", nodes.len(), wire::NODES).map_err(fail)?;
        let nodes = nodes.into_iter().map(wire::registration).collect::<Result<Vec<_>, _>>().map_err(fail)?;
        self.may_speak(&caller, nodes.iter().map(|node| &node.node))?;
        let answers = self.hub.register(nodes).await.map_err(fail)?;
        Ok(Response::new(pb::RegisterNodesReply { nodes: answers.iter().map(wire::put_registered).collect() }))
    }

    async fn beat(&self, request: Request<pb::BeatRequest>) -> Result<Response<pb::BeatReply>, Status> {
        let caller = self.caller(&request, &request.get_ref().cluster)?;
        let pb::BeatRequest { beats, forwarded, .. } = request.into_inner();
        let beats = wire::beats(beats).map_err(fail)?;
        match (forwarded, &caller) {
            // The member that took the beats has checked who sent them.
            (true, Caller::Member | Caller::Someone) => {}
            (true, _) => {
                let detail = "only a member passes beats on".to_owned();
                return Err(refused(Reason::Forbidden, "forwarded", detail));
            }
            (false, _) => self.may_speak(&caller, beats.iter().map(|beat| &beat.node))?,
        }
        let answer = self.hub.rounds.beat(beats, forwarded).await.map_err(fail)?;
        Ok(Response::new(wire::put_answer(answer)))
    }

    async fn vouch(&self, request: Request<pb::VouchRequest>) -> Result<Response<pb::VouchReply>, Status> {
        let caller = self.caller(&request, &request.get_ref().cluster)?;
        let nodes = wire::starts(request.into_inner().nodes).map_err(fail)?;
        // Members ask for their own nodes, as they pass beats on.
        if matches!(caller, Caller::Node(_)) {
            self.may_speak(&caller, nodes.iter().map(|start| &start.node))?;
        }
        Ok(Response::new(wire::put_voucher(self.hub.vouch(&nodes))))
    }

    type WatchNodesStream = BoxStream<'static, Result<pb::SlicesReply, Status>>;

    async fn watch_nodes(
        &self,
        request: Request<pb::WatchNodesRequest>,
    ) -> Result<Response<Self::WatchNodesStream>, Status> {
        let caller = self.caller(&request, &request.get_ref().cluster)?;
        let nodes = self.starts(&caller, request.into_inner().nodes)?;
        let slices = ReceiverStream::new(self.hub.watch(nodes));
        Ok(Response::new(slices.map(|slices| Ok(wire::put_slices(slices))).boxed()))
    }

    async fn report(&self, request: Request<pb::ReportRequest>) -> Result<Response<pb::ReportReply>, Status> {
        let caller = self.caller(&request, &request.get_ref().cluster)?;
        let nodes = request.into_inner().nodes;
        wire::at_most("nodes", nodes.len(), wire::NODES).map_err(fail)?;
        let nodes = nodes.into_iter().map(wire::reports).collect::<Result<Vec<_>, _>>().map_err(fail)?;
        self.may_speak(&caller, nodes.iter().map(|node| &node.node))?;
        let index = self.hub.report(nodes).await.map_err(fail)?;
        Ok(Response::new(pb::ReportReply { index }))
    }

    async fn faults(&self, request: Request<pb::FaultsRequest>) -> Result<Response<pb::FaultsReply>, Status> {
        let caller = self.caller(&request, &request.get_ref().cluster)?;
        let (node, faults) = wire::faults(request.into_inner()).map_err(fail)?;
        self.may_speak(&caller, [&node.node])?;
        self.hub.faults(node, faults).await.map_err(fail)?;
        Ok(Response::new(pb::FaultsReply {}))
    }

    async fn sights(&self, request: Request<pb::SightsRequest>) -> Result<Response<pb::SightsReply>, Status> {
        let caller = self.caller(&request, &request.get_ref().cluster)?;
        if matches!(caller, Caller::Node(_)) {
            let detail = "what gateways see is for members".to_owned();
            return Err(refused(Reason::Forbidden, "certificate", detail));
        }
        Ok(Response::new(wire::put_seen(self.hub.post.look().map_err(fail)?)))
    }

    async fn vitals(&self, request: Request<pb::VitalsRequest>) -> Result<Response<pb::VitalsReply>, Status> {
        let caller = self.caller(&request, &request.get_ref().cluster)?;
        if matches!(caller, Caller::Node(_)) {
            let detail = "how other nodes' GPUs do is for members".to_owned();
            return Err(refused(Reason::Forbidden, "certificate", detail));
        }
        Ok(Response::new(wire::put_all_vitals(self.hub.vitals.fresh())))
    }

    type AnswerLogsStream = BoxStream<'static, Result<pb::LogOrder, Status>>;

    async fn answer_logs(
        &self,
        request: Request<Streaming<pb::LogPiece>>,
    ) -> Result<Response<Self::AnswerLogsStream>, Status> {
        let caller = self.caller(&request, "")?;
        let mut pieces = request.into_inner();
        let first = tokio::time::timeout(HELLO, pieces.next()).await;
        let Ok(Some(Ok(pb::LogPiece { piece: Some(pb::log_piece::Piece::Hello(hello)) }))) = first else {
            return Err(refused(Reason::InvalidArgument, "hello", "say first for which nodes".to_owned()));
        };
        let nodes = self.starts(&caller, hello.nodes)?;
        let (orders, sorting) = self.hub.sources.serve_agent(nodes, pieces);
        tokio::spawn(sorting);
        Ok(Response::new(ReceiverStream::new(orders).map(Ok).boxed()))
    }

    type ReadLogsStream = BoxStream<'static, Result<pb::LogChunk, Status>>;

    async fn read_logs(&self, request: Request<pb::ReadLogsRequest>) -> Result<Response<Self::ReadLogsStream>, Status> {
        let caller = self.caller(&request, &request.get_ref().cluster)?;
        if matches!(caller, Caller::Node(_)) {
            let detail = "logs of other nodes are for members".to_owned();
            return Err(refused(Reason::Forbidden, "certificate", detail));
        }
        let query = wire::query(request.get_ref()).map_err(fail)?;
        let log = self.hub.logs_here(&query).map_err(fail)?;
        let chunk = |piece: Result<bytes::Bytes, Error>| piece.map(|data| pb::LogChunk { data }).map_err(fail);
        Ok(Response::new(log.map(chunk).boxed()))
    }
}
