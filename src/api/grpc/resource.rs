//! ResourceService: reads the message, asks the service, shapes the answer. It decides nothing.

use super::{call, consistency, tenant};
use crate::api::convert::proto::{self, amounts};
use crate::api::error::Failure;
use crate::api::service::Service;
use nf_proto::v1;
use nf_proto::v1::resource_service_server::ResourceService;
use tonic::{Request, Response, Status};

pub struct Resources(pub Service);

#[tonic::async_trait]
impl ResourceService for Resources {
    async fn get(
        &self,
        request: Request<v1::ResourceServiceGetRequest>,
    ) -> Result<Response<v1::ResourceServiceGetResponse>, Status> {
        let _permit = self.0.enter()?;
        let mut call = call(request.metadata());
        let message = request.into_inner();
        call.tenant = tenant(&message.tenant_id)?;
        call.consistency = consistency(message.consistency)?;
        let all = self.0.resources(&call).await?;
        let node = |n: crate::api::service::nodes::NodeBody| v1::NodeResources {
            node_id: n.node_id,
            state: n.state,
            schedulable: n.schedulable,
            simulated: n.simulated,
            total: Some(amounts(n.total)),
            reserved: Some(amounts(n.reserved)),
            free: Some(amounts(n.free)),
            replicas: n.replicas,
            drain: n.drain,
        };
        let tenant = |t: crate::api::service::nodes::TenantBody| v1::TenantResources {
            tenant_id: t.tenant_id,
            reserved: Some(v1::Amounts {
                gpu: t.used.gpu,
                tpu: t.used.tpu,
                cpu: t.used.cpu,
                memory_bytes: t.used.mem,
                disk_bytes: 0,
            }),
            gpu_quota: t.gpu_quota,
            jobs: t.jobs,
            waiting: t.waiting,
        };
        Ok(Response::new(v1::ResourceServiceGetResponse {
            total: Some(amounts(all.total)),
            reserved: Some(amounts(all.reserved)),
            free: Some(amounts(all.free)),
            nodes: all.nodes.into_iter().map(node).collect(),
            tenants: all.tenants.into_iter().map(tenant).collect(),
            simulation: all.simulation,
            read: Some(proto::read(&all.read)),
        }))
    }

    async fn register_node(
        &self,
        request: Request<v1::RegisterNodeRequest>,
    ) -> Result<Response<v1::RegisterNodeResponse>, Status> {
        let _permit = self.0.enter()?;
        let call = call(request.metadata());
        let wanted = proto::registration(request.into_inner()).map_err(Failure::from)?;
        let done = self.0.register_node(&call, wanted).await?;
        Ok(Response::new(v1::RegisterNodeResponse {
            node_id: done.name.to_string(),
            registered: true,
            is_new: done.new,
            simulation: done.simulation,
            index: done.index,
        }))
    }
}
