//! `nf model prefetch`: nodes fetch and verify a version's files before anybody starts it there, and keep them. Each node
//! is a job of its own, so what lets a job in lets this in, and it is listed, described and stopped like any other.

use super::super::exit::{Exit, fail};
use super::super::output::{self, Column, at, col, state};
use super::super::{Global, job, say};
use super::approve::split;
use crate::cli::client::Client;
use anyhow::Result;
use clap::Args;
use nf_core::id::{Digest16, NodeName, TenantId};
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Debug, Args)]
pub struct Prefetch {
    /// MODEL@VERSION
    version: String,
    /// The tenant who will run it
    #[arg(long, env = "NF_TENANT")]
    tenant: TenantId,
    /// On this node, may be repeated; on every node with GPUs that takes work when absent
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<NodeName>,
    /// Wait until the files are there
    #[arg(short, long)]
    wait: bool,
    /// How long --wait waits for each node, e.g. 90s
    #[arg(long, default_value = "10m", value_parser = crate::config::parse::duration)]
    timeout: Duration,
}

/// So many jobs of one version and node, ended within the time for which their names are kept, are passed over.
const MOST: u32 = 64;

const COLUMNS: &[Column] =
    &[col("NODE", |v| at(v, "node")), col("JOB", |v| at(v, "request_id")), col("STATE", |v| state(&at(v, "state")))];

impl Prefetch {
    pub async fn run(self, global: &Global) -> Result<()> {
        let (model, version) = split(&self.version)?;
        let client = global.client()?;
        let nodes = match self.nodes.is_empty() {
            true => all(&client).await?,
            false => self.nodes.iter().map(ToString::to_string).collect(),
        };
        let (mut rows, mut failed) = (Vec::new(), None);
        for node in &nodes {
            let what = What { tenant: self.tenant.as_str(), model: model.as_str(), version: version.as_str(), node };
            match what.ask(&client).await {
                Ok(answer) => rows.push(
                    json!({ "node": node, "request_id": at(&answer, "request_id"), "state": at(&answer, "state") }),
                ),
                // What is begun is told of all the same, and goes on; asked again it is found.
                Err(error) => {
                    failed = Some(error.context(format!("node {node}")));
                    break;
                }
            }
        }
        // These nodes are at it by now.
        for row in rows.iter_mut().filter(|_| self.wait) {
            match job::wait(&client, (self.tenant.as_str(), &at(row, "request_id")), self.timeout, false).await {
                Ok(job) => row["state"] = json!(at(&job, "state")),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if rows.is_empty() {
            return failed.map_or(Ok(()), Err);
        }
        output::put(&output::list(global.style(), &rows, COLUMNS, |v| at(v, "request_id"))?);
        if global.for_people() {
            say("Running: the files are there, verified, and stay until nf stop JOB");
        }
        failed.map_or(Ok(()), Err)
    }
}

/// The files of one version on one node.
struct What<'a> {
    tenant: &'a str,
    model: &'a str,
    version: &'a str,
    node: &'a str,
}

impl What<'_> {
    /// The job that brings them, begun now or before.
    async fn ask(&self, client: &Client) -> Result<Value> {
        for nth in 1..=MOST {
            let body = json!({
                "tenant_id": self.tenant, "model_id": self.model, "model_version": self.version, "prefetch": true,
                "constraints": { "node": self.node }, "request_id": self.job(nth),
            });
            let answer = job::submit(client, body).await?;
            if !ends(&at(&answer, "state")) {
                return Ok(answer);
            }
        }
        let text = format!("{MOST} jobs that brought {}@{} there ended a short while ago", self.model, self.version);
        Err(fail(Exit::Failed, format!("{text}\n  try: nf explain {}", self.job(MOST))))
    }

    /// Its name, by what it brings where: asked again, also after a failure half way, it is the same job. One that was
    /// stopped keeps its name for a while, so the next has another.
    fn job(&self, nth: u32) -> String {
        let parts = [self.tenant, self.model, self.version, self.node];
        let digest = Digest16::of(&parts.map(str::as_bytes)).to_string();
        let more = if nth == 1 { String::new() } else { format!("-{nth}") };
        format!("prefetch-{digest}{more}")
    }
}

/// Whether a job in that state holds its files no longer, or is told not to.
fn ends(state: &str) -> bool {
    matches!(state, "Draining" | "Succeeded" | "Failed" | "Cancelled" | "Preempted" | "Lost")
}

/// The nodes that have GPUs and take work.
async fn all(client: &Client) -> Result<Vec<String>> {
    let nodes = client.listing("/nodes").await?.items;
    let takes = |node: &&Value| {
        at(node, "state") == "Ready"
            && at(node, "schedulable") == "true"
            && !matches!(&*at(node, "total.gpu"), "0" | "-")
    };
    let names: Vec<String> = nodes.iter().filter(takes).map(|node| at(node, "node_id")).collect();
    match names.is_empty() {
        true => {
            Err(fail(Exit::NotFound, "no node with GPUs takes work now\n  try: nf get nodes, or name one with --node"))
        }
        false => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::id::RequestId;
    use std::collections::BTreeSet;

    #[test]
    fn the_same_files_on_the_same_node_are_one_job() {
        let of = |tenant, model, version, node| What { tenant, model, version, node }.job(1);
        let one = of("t1", "m1", "v1", "n1");
        assert_eq!(one, of("t1", "m1", "v1", "n1"));
        let others = [of("t2", "m1", "v1", "n1"), of("t1", "m2", "v1", "n1"), of("t1", "m1", "v2", "n1")];
        let others = others.into_iter().chain([of("t1", "m1", "v1", "n2"), of("t1", "m1v", "1", "n1"), one]);
        assert_eq!(others.collect::<BTreeSet<_>>().len(), 6);
        let long = "x".repeat(63);
        assert!(RequestId::new(&What { tenant: &long, model: &long, version: &long, node: &long }.job(MOST)).is_ok());
    }
}
