//! One schedule call and one stop, over gRPC or REST, as lean as a client can be.
//! It does not count or time them.

use super::Protocol;
use crate::cli::client::{Client, escape};
use crate::cli::exit::{Exit, fail};
use anyhow::Result;
use http::Method;
use nf_proto::v1::scheduler_service_client::SchedulerServiceClient;
use nf_proto::v1::{Resources, ScheduleRequest, StopRequest};
use serde_json::json;
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

/// A connection to one member.
#[derive(Clone)]
pub enum Line {
    Grpc { client: SchedulerServiceClient<Channel>, shown: Option<MetadataValue<Ascii>> },
    Rest { client: Client, addr: String },
}

/// What a schedule call came to. Only `Placed` is a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// On which job.
    Placed(String),
    /// Accepted, not placed.
    Queued(String),
    Refused(String),
    /// No answer, or one that says to try again.
    Again(String),
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    pub tenant: String,
    pub gpu_milli: u32,
    /// Chosen by us, so that a second try is the same job.
    pub request: String,
}

pub fn open(client: &Client, protocol: Protocol, addr: &str) -> Result<Line> {
    Ok(match protocol {
        Protocol::Grpc => {
            let shown = client.bearer().map(|bearer| bearer.parse()).transpose();
            let shown = shown.map_err(|_| fail(Exit::Usage, "NF_TOKEN is not a token"))?;
            Line::Grpc { client: SchedulerServiceClient::new(client.channel(addr)?), shown }
        }
        Protocol::Rest => Line::Rest { client: client.clone(), addr: addr.to_owned() },
    })
}

impl Line {
    pub async fn schedule(&mut self, ask: &Ask, limit: Duration) -> Outcome {
        match self {
            Line::Grpc { client, shown } => grpc(client, shown.as_ref(), ask, limit).await,
            Line::Rest { client, addr } => rest(client, addr, ask, limit).await,
        }
    }

    /// True when the stop was accepted.
    pub async fn stop(&mut self, ask: &Ask, limit: Duration) -> bool {
        match self {
            Line::Grpc { client, shown } => {
                let stop = StopRequest { request_id: ask.request.clone(), tenant_id: ask.tenant.clone() };
                client.stop(with(stop, shown.as_ref(), limit)).await.is_ok()
            }
            Line::Rest { client, addr } => {
                let path = format!("/schedule/{}?tenant_id={}", escape(&ask.request), escape(&ask.tenant));
                let answer = client.at(Method::DELETE, addr, &path, None, limit).await;
                answer.is_ok_and(|(status, _)| status.is_success())
            }
        }
    }
}

fn with<T>(message: T, shown: Option<&MetadataValue<Ascii>>, limit: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(limit);
    if let Some(shown) = shown {
        request.metadata_mut().insert("authorization", shown.clone());
    }
    request
}

async fn grpc(
    client: &mut SchedulerServiceClient<Channel>,
    shown: Option<&MetadataValue<Ascii>>,
    ask: &Ask,
    limit: Duration,
) -> Outcome {
    let resources = Resources { gpu: f64::from(ask.gpu_milli) / 1000.0, ..Resources::default() };
    let request = ScheduleRequest {
        tenant_id: ask.tenant.clone(),
        model_id: "bench".to_owned(),
        model_version: "v1".to_owned(),
        resources: Some(resources),
        request_id: ask.request.clone(),
        ..ScheduleRequest::default()
    };
    match client.schedule(with(request, shown, limit)).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            match answer.status.as_str() {
                "scheduled" => Outcome::Placed(answer.request_id),
                _ => Outcome::Queued(answer.request_id),
            }
        }
        Err(status) => {
            use tonic::Code;
            let text = format!("{:?}: {}", status.code(), status.message());
            match status.code() {
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal => {
                    Outcome::Again(text)
                }
                _ => Outcome::Refused(text),
            }
        }
    }
}

async fn rest(client: &Client, addr: &str, ask: &Ask, limit: Duration) -> Outcome {
    let body = json!({ "tenant_id": ask.tenant, "model_id": "bench", "model_version": "v1",
        "resources": { "gpu": f64::from(ask.gpu_milli) / 1000.0 }, "request_id": ask.request });
    match client.at(Method::POST, addr, "/schedule", Some(&body), limit).await {
        Err(text) => Outcome::Again(text),
        // A retry of a placed job is told as 200.
        Ok((status, answer)) if status.is_success() => {
            let id = answer["request_id"].as_str().unwrap_or_default().to_owned();
            match answer["status"].as_str() {
                Some("scheduled") => Outcome::Placed(id),
                _ => Outcome::Queued(id),
            }
        }
        Ok((status, answer)) if status.is_server_error() => Outcome::Again(format!("{status}: {answer}")),
        Ok((status, answer)) => Outcome::Refused(format!("{status}: {answer}")),
    }
}
