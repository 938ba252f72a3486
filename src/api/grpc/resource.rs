//! ResourceService: reads the message, asks the service, shapes the answer. It decides nothing.

use super::{call, consistency, tenant};
use crate::api::convert::proto::{self, amounts};
use crate::api::error::Failure;
use crate::api::service::Service;
use crate::api::service::list::NumberPage;
use crate::api::service::usage;
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
        let mut call = call(&request)?;
        let message = request.into_inner();
        call.tenant = call.who.sees(tenant(&message.tenant_id)?)?;
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
        let call = call(&request)?;
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

    async fn list_usage(
        &self,
        request: Request<v1::ListUsageRequest>,
    ) -> Result<Response<v1::ListUsageResponse>, Status> {
        let _permit = self.0.enter()?;
        let mut call = call(&request)?;
        let message = request.into_inner();
        call.tenant = call.who.sees(tenant(&message.tenant_id)?)?;
        call.consistency = consistency(message.consistency)?;
        let token = Some(message.next_token.as_str()).filter(|token| !token.is_empty());
        let page = NumberPage::new(token, Some(message.per_page.into())).map_err(Failure::from)?;
        let window = usage::window(&message.window).map_err(Failure::from)?;
        let all = self.0.usage(&call, window, page).await?;
        let row = |row: usage::UsageBody| v1::TenantUsage {
            tenant_id: row.tenant_id,
            parent: row.parent.unwrap_or_default(),
            window: row.window,
            from: row.from,
            to: row.to,
            gpu_hours: row.gpu_hours,
            gpu_hours_reserved: row.gpu_hours_reserved,
            gpu_hours_limit: row.gpu_hours_limit,
            gpu_hours_before: row.gpu_hours_before,
            money: row.money,
            money_reserved: row.money_reserved,
            money_limit: row.money_limit,
            money_before: row.money_before,
        };
        Ok(Response::new(v1::ListUsageResponse {
            items: all.items.into_iter().map(row).collect(),
            next_token: all.next_token.unwrap_or_default(),
            simulation: all.simulation,
            read: Some(proto::read(&all.read)),
        }))
    }
}
