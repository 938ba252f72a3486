//! SecurityService: reads the message, asks the service, shapes the answer. It decides nothing.

use super::call;
use crate::api::service::Service;
use crate::api::service::audit::PER_PAGE;
use nf_proto::v1;
use nf_proto::v1::security_service_server::SecurityService;
use tonic::{Request, Response, Status};

pub struct Security(pub Service);

#[tonic::async_trait]
impl SecurityService for Security {
    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let _permit = self.0.enter()?;
        let call = call(&request)?;
        let done = self.0.revoke_token(&call, &request.get_ref().id).await?;
        let simulation = self.0.simulation();
        Ok(Response::new(v1::RevokeTokenResponse { is_new: done.new, simulation, index: done.index }))
    }

    async fn read_audit(
        &self,
        request: Request<v1::ReadAuditRequest>,
    ) -> Result<Response<v1::ReadAuditResponse>, Status> {
        let _permit = self.0.enter()?;
        let call = call(&request)?;
        let message = request.get_ref();
        let limit = if message.per_page == 0 { PER_PAGE } else { u64::from(message.per_page) };
        let page = self.0.audit(&call, message.from, limit).await?;
        Ok(Response::new(v1::ReadAuditResponse {
            lines: page.lines,
            next: page.next.unwrap_or(0),
            simulation: self.0.simulation(),
            index: page.index,
        }))
    }
}
