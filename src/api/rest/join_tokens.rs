//! `/join-tokens`: what machines may join with. Joining itself is not here: that is a door of
//! the peer port, where the member proves who it is first.

use super::ask::{Ask, Part};
use super::{Answer, fresh, json, schema};
use crate::api::convert::joining::{self as convert, JoinTokenBody, JoinTokenList};
use crate::api::service::Service;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A token that counts from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenMade {
    #[serde(flatten)]
    pub token: JoinTokenBody,
    /// SHA-256 of the public key of the group's authority: the last part of the token's text.
    pub authority_sha256: String,
    /// Peer addresses at which a machine can join.
    pub members: Vec<String>,
    pub simulation: bool,
    pub index: u64,
}

/// A token that counts no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenDropped {
    /// False when there was none, or it was used before.
    pub revoked: bool,
    pub simulation: bool,
    pub index: u64,
}

/// Lets one machine join, once, with the secret of which the digest is told.
#[utoipa::path(post, path = "/join-tokens", tag = "tokens", request_body = schema::JoinTokenRequest,
    responses((status = 201, description = "On record", body = JoinTokenMade)))]
pub async fn create(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let wanted = convert::wanted(&ask.json(false).await?)?;
    let made = service.add_join_token(&call, wanted).await?;
    let body = JoinTokenMade {
        token: made.token,
        authority_sha256: made.authority,
        members: made.members,
        simulation: service.simulation(),
        index: made.index,
    };
    Ok(json(StatusCode::CREATED, &body))
}

/// Takes a token back that was not used.
#[utoipa::path(delete, path = "/join-tokens/{id}", tag = "tokens",
    params(("id" = String, Path, description = "The token's id")),
    responses((status = 200, description = "It counts no more", body = JoinTokenDropped)))]
pub async fn drop(State(service): State<Service>, Part(id): Part, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let (revoked, index) = service.drop_join_token(&call, convert::id(&id)?).await?;
    Ok(json(StatusCode::OK, &JoinTokenDropped { revoked, simulation: service.simulation(), index }))
}

/// Tokens on record, without their secrets; each until its time is over.
#[utoipa::path(get, path = "/join-tokens", tag = "tokens",
    params(("per_page" = Option<u64>, Query, description = "Rows of a page, 1 to 1000"),
           ("next_token" = Option<String>, Query, description = "Where the page before ended"),
           ("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale")),
    responses((status = 200, description = "The tokens", body = JoinTokenList)))]
pub async fn list(State(service): State<Service>, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    let page = ask.page()?;
    ask.finish()?;
    let body = service.join_tokens(&call, page).await?;
    Ok(fresh(&body, &body.read))
}
