//! `nf rollout` and `nf model rollback`: a job goes from one version of its model to another.

use super::Global;
use super::client::{Client, escape};
use super::exit::{Exit, fail};
use super::get::{self, JobArg};
use super::output::{self, Column, at, col, wide};
use clap::{Args, Subcommand};
use nf_core::id::{ModelId, TenantId};
use reqwest::Method;
use serde_json::{Map, Value, json};

#[derive(Debug, Args)]
pub struct Rollout {
    #[command(subcommand)]
    command: RolloutCommand,
}

#[derive(Debug, Subcommand)]
enum RolloutCommand {
    /// Change a job's version in place, replica by replica or with a canary first
    #[command(
        after_help = "Examples:\n  nf rollout start 01j8 v2\n  nf rollout start 01j8 v2 --canary=10 --auto-promote --window 10m"
    )]
    Start(Start),
    /// Show how far a job's rollout is, or how the last one ended
    #[command(after_help = "Examples:\n  nf rollout status 01j8\n  nf rollout status 01j8 -o json")]
    Status(JobArg),
    /// Pause a rollout where it is
    #[command(after_help = "Examples:\n  nf rollout pause 01j8\n  nf rollout pause 01j8 -o json")]
    Pause(JobArg),
    /// Resume a paused rollout
    #[command(after_help = "Examples:\n  nf rollout resume 01j8\n  nf rollout resume 01j8 -o json")]
    Resume(JobArg),
    /// Let the rest follow the canary; or, once the new version is everywhere, accept it without waiting
    #[command(after_help = "Examples:\n  nf rollout promote 01j8\n  nf rollout promote 01j8 -o json")]
    Promote(JobArg),
    /// Bring the former version back
    #[command(after_help = "Examples:\n  nf rollout revert 01j8\n  nf rollout revert 01j8 -o json")]
    Revert(JobArg),
}

#[derive(Debug, Args)]
struct Start {
    #[command(flatten)]
    of: JobArg,
    /// The version to change to
    version: String,
    #[command(flatten)]
    how: How,
}

/// How one version takes the place of the other.
#[derive(Debug, Args)]
struct How {
    /// Copies beyond the wanted number at any time (1)
    #[arg(long)]
    surge: Option<u16>,
    /// Replicas that may be missing at any time, where there is no room for a surge (1)
    #[arg(long)]
    unavailable: Option<u16>,
    /// Begin with a canary, which waits for nf rollout promote: one replica, or this percentage of replicas and requests
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, require_equals = true, default_missing_value = "0")]
    canary: Option<u8>,
    /// Promote the canary by itself after the window
    #[arg(long, requires = "canary")]
    auto_promote: bool,
    /// How long the new version is watched, as canary and once it is everywhere (5m)
    #[arg(long)]
    window: Option<String>,
    /// How long a copy of the new version may take to become ready (10m)
    #[arg(long)]
    ready_within: Option<String>,
}

impl How {
    fn body(&self) -> Map<String, Value> {
        let mut body = Map::new();
        let mut set = |key: &str, value: Option<Value>| drop(value.map(|value| body.insert(key.to_owned(), value)));
        set("surge", self.surge.map(Into::into));
        set("unavailable", self.unavailable.map(Into::into));
        set("canary", self.canary.map(|percent| if percent == 0 { json!(true) } else { percent.into() }));
        set("auto_promote", self.auto_promote.then_some(json!(true)));
        set("window", self.window.clone().map(Into::into));
        set("ready_within", self.ready_within.clone().map(Into::into));
        body
    }
}

/// `nf model rollback`, and `nf rollback` for short.
#[derive(Debug, Args)]
pub struct Rollback {
    /// The model
    model: ModelId,
    /// Its tenant
    #[arg(long)]
    tenant: TenantId,
    #[command(flatten)]
    how: How,
}

const COLUMNS: &[Column] = &[
    col("JOB", |v| at(v, "request_id")),
    col("FROM", |v| at(v, "from")),
    col("TO", |v| at(v, "to")),
    col("STATUS", |v| output::state(&at(v, "status"))),
    col("PHASE", |v| at(v, "phase")),
    col("UPDATED", |v| format!("{}/{}", at(v, "updated_ready"), at(v, "replicas"))),
    col("READY", |v| at(v, "ready")),
    col("WHY", |v| at(v, "why")),
    wide("WINDOW ENDS", |v| at(v, "window_ends_at")),
    wide("BY", |v| at(v, "by")),
    wide("BEGAN", |v| at(v, "began_at")),
];

fn table(global: &Global, rollouts: &[Value]) -> anyhow::Result<String> {
    output::list(global.style(), rollouts, COLUMNS, |v| at(v, "request_id"))
}

/// One rollout, as REST tells it or as a row.
fn show(global: &Global, rollout: &Value) -> anyhow::Result<()> {
    let row = table(global, std::slice::from_ref(rollout))?;
    output::put(&output::object(global.style(), rollout, &at(rollout, "request_id"), || row)?);
    Ok(())
}

impl Rollout {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let (of, turn) = match self.command {
            RolloutCommand::Start(start) => return start.run(global, &client).await,
            RolloutCommand::Status(of) => {
                let job = get::job(&client, &of).await?;
                return show(global, &client.get(&get::path_of(&job, "/rollout", "")).await?);
            }
            RolloutCommand::Pause(of) => (of, "pause"),
            RolloutCommand::Resume(of) => (of, "resume"),
            RolloutCommand::Promote(of) => (of, "promote"),
            RolloutCommand::Revert(of) => (of, "revert"),
        };
        let id = get::job_id(&client, &of).await?;
        let path = of.path("/rollout", &id, &format!("/turn/{turn}"));
        show(global, &client.change(Method::POST, &path, json!({})).await?.1)
    }
}

impl Start {
    async fn run(self, global: &Global, client: &Client) -> anyhow::Result<()> {
        let id = get::job_id(client, &self.of).await?;
        let mut body = self.how.body();
        body.insert("model_version".to_owned(), self.version.into());
        let path = self.of.path("/rollout", &id, "");
        show(global, &client.change(Method::POST, &path, Value::Object(body)).await?.1)
    }
}

impl Rollback {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let (tenant, model) = (escape(self.tenant.as_str()), escape(self.model.as_str()));
        let mut jobs = client.list(&format!("/schedule?tenant_id={tenant}&model_id={model}")).await?;
        // What only holds files has no version to go back to.
        jobs.retain(|job| at(job, "runtime") != "prefetch");
        if jobs.is_empty() {
            let text =
                format!("tenant {} has no live job of model {}\n  try: nf get services", self.tenant, self.model);
            return Err(fail(Exit::NotFound, text));
        }
        let mut begun = Vec::new();
        for job in &jobs {
            let path = get::path_of(job, "/rollout", "/rollback");
            begun.push(client.change(Method::POST, &path, Value::Object(self.how.body())).await?.1);
        }
        output::put(&table(global, &begun)?);
        Ok(())
    }
}
