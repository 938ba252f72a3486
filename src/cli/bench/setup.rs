//! What must be there before a run: tenants with wide quotas, part of the GPUs
//! taken, and who leads. It does not measure.

use crate::cli::client::Client;
use crate::cli::exit::{Exit, fail};
use crate::cli::output::at;
use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};

/// More than any cluster has.
const WIDE: u64 = 1_000_000;
/// Most replicas of one filling job.
const MOST: u64 = 1000;

/// Names of the tenants, each with a quota that never refuses.
pub async fn tenants(client: &Client, count: usize) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for n in 0..count.max(1) {
        let name = format!("bench-{n}");
        client.change(Method::PUT, &format!("/tenants/{name}/quota"), json!({ "gpu": WIDE })).await?;
        names.push(name);
    }
    Ok(names)
}

/// GPUs in all and reserved.
async fn gpus(client: &Client) -> Result<(f64, f64)> {
    let resources = client.get("/resources").await?;
    let number = |path: &str| at(&resources, path).parse::<f64>().unwrap_or(0.0);
    Ok((number("total.gpu"), number("reserved.gpu")))
}

/// Takes whole GPUs until `part` of them is reserved. Returns the jobs that do so.
pub async fn fill(client: &Client, tenant: &str, part: f64, run: &str) -> Result<Vec<String>> {
    let (total, reserved) = gpus(client).await?;
    if total <= 0.0 {
        return Err(fail(Exit::Failed, "the group has no GPUs\n  try: nf node register n1 --gpus 8"));
    }
    let mut left = (total * part.clamp(0.0, 1.0) - reserved).floor().max(0.0) as u64;
    let mut jobs = Vec::new();
    while left > 0 {
        let replicas = left.min(MOST);
        let id = format!("{run}-fill-{}", jobs.len());
        let body = json!({ "tenant_id": tenant, "model_id": "bench", "model_version": "v1", "request_id": id,
            "resources": { "gpu": 1 }, "replicas": replicas });
        client.call(Method::POST, "/schedule", Some(body), None).await?;
        jobs.push(id);
        left -= replicas;
    }
    Ok(jobs)
}

pub async fn stop(client: &Client, jobs: &[String]) {
    for id in jobs {
        // A job that is gone needs no stop.
        let _ = client.call(Method::DELETE, &format!("/schedule/{id}"), None, None).await;
    }
}

/// The leader's public address.
pub async fn leader(client: &Client) -> Result<String> {
    let members = client.list("/cluster/members").await?;
    let leads = |member: &&Value| at(member, "role") == "leader";
    let found = members.iter().find(leads).map(|member| at(member, "api"));
    found.ok_or_else(|| fail(Exit::Unreachable, "no member leads\n  try: nf get members"))
}

/// The members' processes: those named, or those of `nf dev`.
pub fn pids(given: &[u32], data_dir: Option<&std::path::Path>) -> Vec<u32> {
    if !given.is_empty() {
        return given.to_vec();
    }
    super::super::dev::pids(data_dir)
}
