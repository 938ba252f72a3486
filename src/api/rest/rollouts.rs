//! `/rollout`: how a job goes from one version of its model to another.

use super::ask::{Ask, Part};
use super::{Answer, fresh, path, schema};
use crate::api::convert::rollout::{RolloutAnswer, turn, wanted};
use crate::api::service::Service;
use crate::api::service::rollouts::Told;
use axum::extract::State;
use nf_core::id::RequestId;

fn told(told: &Told) -> Answer {
    let body = RolloutAnswer { rollout: (&*told.rollout).into(), simulation: told.simulation, read: told.read.clone() };
    Ok(fresh(&body, &body.read))
}

/// Says how far a job's rollout has come, or how its last one ended.
#[utoipa::path(get, path = "/rollout/{request_id}", tag = "services",
    params(("request_id" = String, Path, description = "The job's id"),
           ("tenant_id" = Option<String>, Query, description = "Whose job it is; to be named where several tenants have one of that id"),
           ("consistency" = Option<String>, Query, description = "linearizable (unless said) or stale")),
    responses((status = 200, description = "The rollout", body = RolloutAnswer)))]
pub async fn get(State(service): State<Service>, Part(id): Part, mut ask: Ask) -> Answer {
    let call = ask.call()?;
    ask.finish()?;
    let request = path("request_id", &id, RequestId::new)?;
    told(&service.rollout(&call, &request).await?)
}

/// Begins a rollout of a job to another version of its model: replica by replica, or a canary first.
#[utoipa::path(post, path = "/rollout/{request_id}", tag = "services", request_body = schema::RolloutRequest,
    params(("request_id" = String, Path, description = "The job's id"),
           ("tenant_id" = Option<String>, Query, description = "Whose job it is; to be named where several tenants have one of that id")),
    responses((status = 200, description = "The rollout, which is under way", body = RolloutAnswer)))]
pub async fn start(State(service): State<Service>, Part(id): Part, mut ask: Ask) -> Answer {
    let call = ask.act()?;
    ask.finish()?;
    let request = path("request_id", &id, RequestId::new)?;
    let wanted = wanted(&ask.json(false).await?, false)?;
    told(&service.start_rollout(&call, &request, wanted).await?)
}

/// Begins a rollout back to the version that the job ran before; its model copy is verified again.
#[utoipa::path(post, path = "/rollout/{request_id}/rollback", tag = "services",
    request_body = schema::RollbackRequest,
    params(("request_id" = String, Path, description = "The job's id"),
           ("tenant_id" = Option<String>, Query, description = "Whose job it is; to be named where several tenants have one of that id")),
    responses((status = 200, description = "The rollout, which is under way", body = RolloutAnswer)))]
pub async fn rollback(State(service): State<Service>, Part(id): Part, mut ask: Ask) -> Answer {
    let call = ask.act()?;
    ask.finish()?;
    let request = path("request_id", &id, RequestId::new)?;
    let wanted = wanted(&ask.json(true).await?, true)?;
    told(&service.start_rollout(&call, &request, wanted).await?)
}

/// Says to the open rollout: pause, resume, promote (the rest follows the canary; what is watched is
/// good) or revert (the former version comes back).
#[utoipa::path(post, path = "/rollout/{request_id}/turn/{turn}", tag = "services",
    params(("request_id" = String, Path, description = "The job's id"),
           ("turn" = String, Path, description = "pause, resume, promote or revert"),
           ("tenant_id" = Option<String>, Query, description = "Whose job it is; to be named where several tenants have one of that id")),
    responses((status = 200, description = "The rollout", body = RolloutAnswer)))]
pub async fn say(State(service): State<Service>, Part((id, word)): Part<(String, String)>, mut ask: Ask) -> Answer {
    let call = ask.act()?;
    ask.finish()?;
    let request = path("request_id", &id, RequestId::new)?;
    told(&service.turn_rollout(&call, &request, turn(&word)?).await?)
}
