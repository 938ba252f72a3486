//! EndpointService: the endpoint watch as a stream. It decides nothing.

use super::{call, tenant};
use crate::api::convert::proto::maybe;
use crate::api::error::Failure;
use crate::api::service::Service;
use crate::api::service::endpoints::{EndpointBody, Item, Wanted};
use futures::StreamExt;
use futures::stream::BoxStream;
use nf_core::id::{ModelId, RequestId};
use nf_proto::v1;
use nf_proto::v1::endpoint_service_server::EndpointService;
use tonic::{Request, Response, Status};

pub struct Endpoints(pub Service);

fn endpoint(e: EndpointBody) -> v1::Endpoint {
    v1::Endpoint {
        tenant_id: e.tenant_id,
        model_id: e.model_id,
        model_version: e.model_version,
        request_id: e.request_id,
        replica: u32::from(e.replica),
        generation: e.generation,
        node: e.node,
        address: e.address,
        state: e.state,
        traffic: e.traffic,
    }
}

#[tonic::async_trait]
impl EndpointService for Endpoints {
    type WatchStream = BoxStream<'static, Result<v1::EndpointServiceWatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<v1::EndpointServiceWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let call = call(&request)?;
        let message = request.into_inner();
        let wanted = Wanted {
            tenant: call.who.sees(tenant(&message.tenant_id)?)?,
            model: maybe("model_id", &message.model_id, ModelId::new).map_err(Failure::from)?,
            request: maybe("request_id", &message.request_id, RequestId::new).map_err(Failure::from)?,
        };
        let feed = self.0.watch_endpoints(wanted)?;
        let simulation = self.0.simulation();
        let messages = futures::stream::unfold(feed, move |mut feed| async move {
            let message = match feed.next().await? {
                Item::Endpoints { index, items } => v1::EndpointServiceWatchResponse {
                    index,
                    simulation,
                    heartbeat: false,
                    stale_ms: 0,
                    endpoints: items.into_iter().map(endpoint).collect(),
                },
                Item::Heartbeat { index, stale_ms } => v1::EndpointServiceWatchResponse {
                    index,
                    simulation,
                    heartbeat: true,
                    stale_ms,
                    endpoints: Vec::new(),
                },
            };
            Some((Ok(message), feed))
        });
        let service = self.0.clone();
        let messages = messages.take_while(move |_| std::future::ready(service.gate.counts(&call.who).is_ok()));
        Ok(Response::new(messages.boxed()))
    }
}
