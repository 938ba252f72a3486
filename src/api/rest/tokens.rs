//! `/tokens`: revoking one. Making one is not here: no member has the private key.

use super::ask::Ask;
use super::{Answer, json, schema};
use crate::api::convert::node as convert;
use crate::api::service::Service;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A token that counts no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevokedBody {
    /// False when it was revoked before.
    pub new: bool,
    pub simulation: bool,
    pub index: u64,
}

/// Makes a token count no more, on every member.
#[utoipa::path(post, path = "/tokens/revoke", tag = "tokens", request_body = schema::RevokeRequest,
    responses((status = 200, description = "Refused from now on", body = RevokedBody)))]
pub async fn revoke(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let id = convert::token_id(&ask.json(false).await?)?;
    let done = service.revoke_token(&call, &id).await?;
    Ok(json(StatusCode::OK, &RevokedBody { new: done.new, simulation: service.simulation(), index: done.index }))
}
