//! One schedule call and one stop, over gRPC or REST, as lean as a client can be.
//! It does not count or time them.

use super::Protocol;
use anyhow::{Context as _, Result};
use nf_proto::v1::scheduler_service_client::SchedulerServiceClient;
use nf_proto::v1::{Resources, ScheduleRequest, StopRequest};
use serde_json::{Value, json};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// A connection to one member.
#[derive(Clone)]
pub enum Line {
    Grpc(SchedulerServiceClient<Channel>),
    Rest { http: reqwest::Client, addr: String },
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

pub fn open(protocol: Protocol, addr: &str) -> Result<Line> {
    match protocol {
        Protocol::Grpc => {
            let endpoint = Endpoint::from_shared(addr.to_owned()).with_context(|| addr.to_owned())?;
            let endpoint = endpoint.connect_timeout(Duration::from_millis(500)).tcp_nodelay(true);
            Ok(Line::Grpc(SchedulerServiceClient::new(endpoint.connect_lazy())))
        }
        Protocol::Rest => {
            let http = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_millis(500)).build()?;
            Ok(Line::Rest { http, addr: addr.to_owned() })
        }
    }
}

impl Line {
    pub async fn schedule(&mut self, ask: &Ask, limit: Duration) -> Outcome {
        match self {
            Line::Grpc(client) => grpc(client, ask, limit).await,
            Line::Rest { http, addr } => rest(http, addr, ask, limit).await,
        }
    }

    /// True when the stop was accepted.
    pub async fn stop(&mut self, ask: &Ask, limit: Duration) -> bool {
        match self {
            Line::Grpc(client) => {
                let stop = StopRequest { request_id: ask.request.clone(), tenant_id: ask.tenant.clone() };
                let mut request = tonic::Request::new(stop);
                request.set_timeout(limit);
                client.stop(request).await.is_ok()
            }
            Line::Rest { http, addr } => {
                let path = format!("{addr}/schedule/{}", ask.request);
                let answer = http.delete(path).timeout(limit).send().await;
                match answer {
                    Ok(answer) => answer.status().is_success() && answer.bytes().await.is_ok(),
                    Err(_) => false,
                }
            }
        }
    }
}

async fn grpc(client: &mut SchedulerServiceClient<Channel>, ask: &Ask, limit: Duration) -> Outcome {
    let resources = Resources { gpu: f64::from(ask.gpu_milli) / 1000.0, ..Resources::default() };
    let mut request = tonic::Request::new(ScheduleRequest {
        tenant_id: ask.tenant.clone(),
        model_id: "bench".to_owned(),
        model_version: "v1".to_owned(),
        resources: Some(resources),
        request_id: ask.request.clone(),
        ..ScheduleRequest::default()
    });
    request.set_timeout(limit);
    match client.schedule(request).await {
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

async fn rest(http: &reqwest::Client, addr: &str, ask: &Ask, limit: Duration) -> Outcome {
    let body = json!({ "tenant_id": ask.tenant, "model_id": "bench", "model_version": "v1",
        "resources": { "gpu": f64::from(ask.gpu_milli) / 1000.0 }, "request_id": ask.request });
    let sent = http.post(format!("{addr}/schedule")).timeout(limit).json(&body).send().await;
    let (status, text) = match sent {
        Ok(answer) => (answer.status().as_u16(), answer.text().await),
        Err(error) => return Outcome::Again(error.to_string()),
    };
    let text = match text {
        Ok(text) => text,
        Err(error) => return Outcome::Again(error.to_string()),
    };
    match status {
        // A retry of a placed job is told as 200.
        200..=202 => {
            let answer: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
            let id = answer["request_id"].as_str().unwrap_or_default().to_owned();
            match answer["status"].as_str() {
                Some("scheduled") => Outcome::Placed(id),
                _ => Outcome::Queued(id),
            }
        }
        502..=504 => Outcome::Again(format!("{status}: {text}")),
        _ => Outcome::Refused(format!("{status}: {text}")),
    }
}
