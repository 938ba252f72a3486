//! Our side of the comparison: clients that schedule over gRPC, and stop one job
//! for each that they schedule once they hold their share, so that the cluster
//! stays half full. Only placed calls count.

use crate::load::Client;
use crate::wire::{self, Shown};
use anyhow::Result;
use std::collections::VecDeque;
use tonic::transport::Channel;

/// One client with the jobs it holds.
#[derive(Debug)]
pub struct Scheduler {
    channel: Channel,
    shown: Shown,
    tenant: String,
    /// Distinguishes this client's request ids.
    prefix: String,
    count: u64,
    held: VecDeque<String>,
    /// Jobs that it holds on to.
    share: usize,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Resources {
    #[prost(double, tag = "1")]
    gpu: f64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScheduleRequest {
    #[prost(string, tag = "1")]
    tenant_id: String,
    #[prost(string, tag = "2")]
    model_id: String,
    #[prost(string, tag = "3")]
    model_version: String,
    #[prost(message, optional, tag = "4")]
    resources: Option<Resources>,
    #[prost(string, tag = "11")]
    request_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScheduleResponse {
    #[prost(string, tag = "1")]
    request_id: String,
    #[prost(string, tag = "3")]
    status: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StopRequest {
    #[prost(string, tag = "1")]
    request_id: String,
    #[prost(string, tag = "2")]
    tenant_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StopResponse {}

/// `clients` clients on `connections` connections to `urls`; each holds on to `share` jobs. With a token, they are
/// of its tenant.
pub async fn clients(
    urls: &[String],
    clients: usize,
    connections: usize,
    share: usize,
    token: Option<&str>,
) -> Result<Vec<Scheduler>> {
    let channels = wire::channels(urls, connections).await?;
    let shown = token.map(|token| format!("Bearer {token}").parse()).transpose()?;
    let client = |n: usize| Scheduler {
        channel: channels[n % channels.len()].clone(),
        shown: shown.clone(),
        tenant: if token.is_some() { "demo".to_owned() } else { format!("bench-{}", n % 16) },
        prefix: format!("b-{n}"),
        count: 0,
        held: VecDeque::new(),
        share,
    };
    Ok((0..clients).map(client).collect())
}

impl Scheduler {
    /// The same with other names for its jobs.
    pub fn named(self, prefix: String) -> Self {
        Self { prefix, ..self }
    }

    /// Its share, so that from then on it stops a job for each one it schedules.
    pub async fn take_share(mut self) -> Result<Self, String> {
        while self.held.len() <= self.share {
            self.call().await?;
        }
        Ok(self)
    }
}

impl Client for Scheduler {
    async fn call(&mut self) -> Result<(), String> {
        self.count += 1;
        let request = ScheduleRequest {
            tenant_id: self.tenant.clone(),
            model_id: "m1".into(),
            model_version: "v1".into(),
            resources: Some(Resources { gpu: 0.001 }),
            request_id: format!("{}-{}", self.prefix, self.count),
        };
        let path = "/neuralfabric.v1.SchedulerService/Schedule";
        let answer: ScheduleResponse =
            wire::unary(&self.channel, &self.shown, path, request).await.map_err(|status| status.to_string())?;
        self.held.push_back(answer.request_id);
        match answer.status.as_str() {
            "scheduled" => Ok(()),
            other => Err(format!("not placed but {other}")),
        }
    }

    async fn between(&mut self) -> Result<u64, String> {
        if self.held.len() <= self.share {
            return Ok(0);
        }
        let Some(request_id) = self.held.pop_front() else { return Ok(0) };
        let request = StopRequest { request_id, tenant_id: self.tenant.clone() };
        let path = "/neuralfabric.v1.SchedulerService/Stop";
        let answer: Result<StopResponse, _> = wire::unary(&self.channel, &self.shown, path, request).await;
        answer.map(|_| 1).map_err(|status| status.to_string())
    }
}
