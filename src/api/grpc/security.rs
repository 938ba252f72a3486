//! SecurityService: reads the message, asks the service, shapes the answer. It decides nothing.

use super::{call, tenant};
use crate::api::convert::approval::{self, ApprovalBody, Wanted};
use crate::api::convert::consent::{self, ConsentBody, CopyBody};
use crate::api::convert::proto;
use crate::api::error::Failure;
use crate::api::service::Service;
use crate::api::service::audit::PER_PAGE;
use crate::api::service::list::NumberPage;
use crate::api::service::quarantine::QuarantineBody;
use nf_core::approval::Version;
use nf_core::id::{ModelId, TenantId, VersionId};
use nf_core::quarantine::Release;
use nf_proto::v1;
use nf_proto::v1::security_service_server::SecurityService;
use tonic::{Request, Response, Status};

pub struct Security(pub Service);

fn version(tenant: &str, model: &str, version: &str) -> Result<Version, Failure> {
    Ok(Version {
        tenant: proto::name("tenant_id", tenant, TenantId::new)?,
        model: proto::name("model_id", model, ModelId::new)?,
        version: proto::name("model_version", version, VersionId::new)?,
    })
}

fn shape(body: ApprovalBody) -> v1::Approval {
    v1::Approval {
        tenant_id: body.tenant_id,
        model_id: body.model_id,
        model_version: body.model_version,
        sha256: body.sha256,
        approved_by: body.approved_by,
        approved_at: body.approved_at,
        expires_at: body.expires_at,
        active: body.active,
        digest: body.digest,
    }
}

fn shape_quarantined(body: QuarantineBody) -> v1::Quarantined {
    v1::Quarantined {
        tenant_id: body.tenant_id,
        model_id: body.model_id,
        model_version: body.model_version,
        sha256: body.sha256,
        node: body.node,
        found_at: body.found_at,
    }
}

fn shape_consent(body: ConsentBody) -> v1::Consent {
    v1::Consent {
        tenant_id: body.tenant_id,
        statement: body.statement,
        data_classes: body.data_classes,
        model_id: body.model_id.unwrap_or_default(),
        model_version: body.model_version.unwrap_or_default(),
        key_id: body.key_id,
        granted_by: body.granted_by.unwrap_or_default(),
        granted_at: body.granted_at,
        expires_at: body.expires_at,
        active: body.active,
        ended_at: body.ended_at.unwrap_or_default(),
    }
}

fn shape_copy(body: CopyBody) -> v1::PersonalCopy {
    v1::PersonalCopy {
        node: body.node,
        tenant_id: body.tenant_id,
        model_id: body.model_id,
        model_version: body.model_version,
        sha256: body.sha256,
        data_classes: body.data_classes,
        purging: body.purging,
    }
}

fn page(token: &str, per_page: u32) -> Result<NumberPage, Failure> {
    let token = Some(token).filter(|token| !token.is_empty());
    let per_page = Some(u64::from(per_page)).filter(|n| *n > 0);
    NumberPage::new(token, per_page).map_err(Failure::from)
}

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

    async fn approve_version(
        &self,
        request: Request<v1::ApproveVersionRequest>,
    ) -> Result<Response<v1::ApproveVersionResponse>, Status> {
        let _permit = self.0.enter()?;
        let call = call(&request)?;
        let message = request.get_ref();
        let of = version(&message.tenant_id, &message.model_id, &message.model_version)?;
        let manifest = approval::digest(&message.sha256).map_err(Failure::from)?;
        let for_ms = if message.ttl_ms == 0 { nf_core::approval::MAX_MS } else { message.ttl_ms };
        let (body, index) = self.0.approve(&call, Wanted { of, manifest, for_ms }).await?;
        let simulation = self.0.simulation();
        Ok(Response::new(v1::ApproveVersionResponse { approval: Some(shape(body)), simulation, index }))
    }

    async fn revoke_approval(
        &self,
        request: Request<v1::RevokeApprovalRequest>,
    ) -> Result<Response<v1::RevokeApprovalResponse>, Status> {
        let _permit = self.0.enter()?;
        let call = call(&request)?;
        let message = request.get_ref();
        let of = version(&message.tenant_id, &message.model_id, &message.model_version)?;
        let (revoked, index) = self.0.disapprove(&call, of).await?;
        Ok(Response::new(v1::RevokeApprovalResponse { revoked, simulation: self.0.simulation(), index }))
    }

    async fn list_approvals(
        &self,
        request: Request<v1::ListApprovalsRequest>,
    ) -> Result<Response<v1::ListApprovalsResponse>, Status> {
        let _permit = self.0.enter()?;
        let mut call = call(&request)?;
        let message = request.get_ref();
        call.tenant = call.who.sees(tenant(&message.tenant_id)?)?;
        let list = self.0.approvals(&call, page(&message.next_token, message.per_page)?).await?;
        Ok(Response::new(v1::ListApprovalsResponse {
            approvals: list.items.into_iter().map(shape).collect(),
            next_token: list.next_token.unwrap_or_default(),
            simulation: list.simulation,
            index: list.read.index,
        }))
    }

    async fn release_version(
        &self,
        request: Request<v1::ReleaseVersionRequest>,
    ) -> Result<Response<v1::ReleaseVersionResponse>, Status> {
        let _permit = self.0.enter()?;
        let call = call(&request)?;
        let message = request.get_ref();
        let of = version(&message.tenant_id, &message.model_id, &message.model_version)?;
        let manifest = approval::digest(&message.sha256).map_err(Failure::from)?;
        let (released, index) = self.0.release(&call, Release { of, manifest }).await?;
        Ok(Response::new(v1::ReleaseVersionResponse { released, simulation: self.0.simulation(), index }))
    }

    async fn list_quarantine(
        &self,
        request: Request<v1::ListQuarantineRequest>,
    ) -> Result<Response<v1::ListQuarantineResponse>, Status> {
        let _permit = self.0.enter()?;
        let mut call = call(&request)?;
        let message = request.get_ref();
        call.tenant = call.who.sees(tenant(&message.tenant_id)?)?;
        let list = self.0.quarantine(&call, page(&message.next_token, message.per_page)?).await?;
        Ok(Response::new(v1::ListQuarantineResponse {
            versions: list.items.into_iter().map(shape_quarantined).collect(),
            next_token: list.next_token.unwrap_or_default(),
            simulation: list.simulation,
            index: list.read.index,
        }))
    }

    async fn grant_consent(
        &self,
        request: Request<v1::GrantConsentRequest>,
    ) -> Result<Response<v1::GrantConsentResponse>, Status> {
        let _permit = self.0.enter()?;
        let call = call(&request)?;
        let message = request.into_inner();
        let tenant = proto::name("tenant_id", &message.tenant_id, TenantId::new).map_err(Failure::from)?;
        let (body, index) = self.0.consent(&call, tenant, message.statement).await?;
        let simulation = self.0.simulation();
        Ok(Response::new(v1::GrantConsentResponse { consent: Some(shape_consent(body)), simulation, index }))
    }

    async fn revoke_consent(
        &self,
        request: Request<v1::RevokeConsentRequest>,
    ) -> Result<Response<v1::RevokeConsentResponse>, Status> {
        let _permit = self.0.enter()?;
        let call = call(&request)?;
        let message = request.get_ref();
        let tenant = proto::name("tenant_id", &message.tenant_id, TenantId::new).map_err(Failure::from)?;
        let statement = consent::digest(&message.statement).map_err(Failure::from)?;
        let (revoked, index) = self.0.dissent(&call, tenant, statement).await?;
        Ok(Response::new(v1::RevokeConsentResponse { revoked, simulation: self.0.simulation(), index }))
    }

    async fn list_consents(
        &self,
        request: Request<v1::ListConsentsRequest>,
    ) -> Result<Response<v1::ListConsentsResponse>, Status> {
        let _permit = self.0.enter()?;
        let mut call = call(&request)?;
        let message = request.get_ref();
        call.tenant = call.who.sees(tenant(&message.tenant_id)?)?;
        let list = self.0.consents(&call, page(&message.next_token, message.per_page)?).await?;
        Ok(Response::new(v1::ListConsentsResponse {
            consents: list.items.into_iter().map(shape_consent).collect(),
            next_token: list.next_token.unwrap_or_default(),
            copies: list.copies.into_iter().map(shape_copy).collect(),
            copies_left_out: list.copies_left_out as u64,
            simulation: list.simulation,
            index: list.read.index,
        }))
    }

    async fn read_checkpoint(
        &self,
        request: Request<v1::ReadCheckpointRequest>,
    ) -> Result<Response<v1::ReadCheckpointResponse>, Status> {
        let _permit = self.0.enter()?;
        let page = self.0.checkpoint(&call(&request)?).await?;
        let simulation = self.0.simulation();
        Ok(Response::new(v1::ReadCheckpointResponse { line: page.lines, simulation, index: page.index }))
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
