//! `nf tenant` and `nf quota`.

use super::client::{Client, escape};
use super::kinds::Kind;
use super::output::{self, at};
use super::{Global, confirm, say};
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};

#[derive(Debug, Args)]
pub struct Tenant {
    #[command(subcommand)]
    command: TenantCommand,
}

#[derive(Debug, Subcommand)]
enum TenantCommand {
    /// Create a tenant with the default quota
    #[command(after_help = "Examples:\n  nf tenant create demo\n  nf tenant create demo -o json")]
    Create { tenant: String },
    /// Delete a tenant that has no jobs
    #[command(after_help = "Examples:\n  nf tenant delete demo\n  nf tenant delete demo --yes")]
    Delete {
        tenant: String,
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// List tenants with use and quota
    #[command(after_help = "Examples:\n  nf tenant list\n  nf tenant list -o name")]
    List,
}

impl Tenant {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        match self.command {
            TenantCommand::Create { tenant } => {
                let (_, answer) = client.change(Method::POST, "/tenants", json!({ "tenant_id": tenant })).await?;
                output::put(&output::object(global.style(), &answer, &tenant, || {
                    format!("tenant {tenant} created\n")
                })?);
                Ok(())
            }
            TenantCommand::Delete { tenant, dry_run: true, .. } => {
                say(format!("would delete tenant {tenant}, if it has no jobs"));
                Ok(())
            }
            TenantCommand::Delete { tenant, yes, .. } => {
                confirm(&format!("delete tenant {tenant}"), yes)?;
                let path = format!("/tenants/{}", escape(&tenant));
                let (_, answer) = client.change(Method::DELETE, &path, Value::Null).await?;
                output::put(&output::object(global.style(), &answer, &tenant, || {
                    format!("tenant {tenant} deleted\n")
                })?);
                Ok(())
            }
            TenantCommand::List => {
                let items = client.list(Kind::Tenants.path()).await?;
                output::put(&output::list(global.style(), &items, Kind::Tenants.columns(), Kind::Tenants.id())?);
                if items.is_empty() {
                    say(Kind::Tenants.hint());
                }
                Ok(())
            }
        }
    }
}

#[derive(Debug, Args)]
pub struct Quota {
    #[command(subcommand)]
    command: QuotaCommand,
}

#[derive(Debug, Subcommand)]
enum QuotaCommand {
    /// Show a tenant's limits and use
    #[command(after_help = "Examples:\n  nf quota get demo\n  nf quota get demo -o json")]
    Get { tenant: String },
    /// Set a tenant's limits; what is not named stays
    #[command(
        after_help = "Examples:\n  nf quota set demo --gpus 16\n  nf quota set demo --gpus 16 --cpu 64 --mem 512GiB"
    )]
    Set(SetQuota),
}

#[derive(Debug, Args)]
struct SetQuota {
    tenant: String,
    /// GPUs, also a fraction; "none" for the group's default
    #[arg(long)]
    gpus: Option<String>,
    /// CPUs; "none" for no limit
    #[arg(long)]
    cpu: Option<String>,
    /// Host memory, e.g. 512GiB; "none" for no limit
    #[arg(long)]
    mem: Option<String>,
    /// TPUs; "none" for no limit
    #[arg(long)]
    tpu: Option<String>,
    /// Most waiting jobs; "none" for the built-in bound
    #[arg(long)]
    waiting: Option<String>,
}

impl Quota {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        match self.command {
            QuotaCommand::Get { tenant } => {
                let quota = client.get(&path(&tenant)).await?;
                show(global, &tenant, &quota)
            }
            QuotaCommand::Set(set) => {
                let body = set.body(&client).await?;
                let (_, quota) = client.change(Method::PUT, &path(&set.tenant), body).await?;
                show(global, &set.tenant, &quota)
            }
        }
    }
}

fn path(tenant: &str) -> String {
    format!("/tenants/{}/quota", escape(tenant))
}

fn show(global: &Global, tenant: &str, quota: &Value) -> anyhow::Result<()> {
    let people = || {
        let mut table = output::plain_table();
        table.set_header(["LIMIT", "QUOTA", "USED"]);
        for (name, key) in [("gpu", "gpu"), ("cpu", "cpu"), ("mem", "mem"), ("tpu", "tpu"), ("waiting jobs", "waiting")]
        {
            let limit = match at(quota, &format!("quota.{key}")).as_str() {
                "-" => "none".to_owned(),
                limit => limit.to_owned(),
            };
            let used = at(quota, &format!("used.{key}"));
            let size = |text: String| if key == "mem" { text.parse().map_or(text, output::bytes) } else { text };
            table.add_row([name.to_owned(), size(limit), size(used)]);
        }
        output::trimmed(&table)
    };
    output::put(&output::object(global.style(), quota, tenant, people)?);
    Ok(())
}

impl SetQuota {
    /// The limits as they are, with the named ones replaced.
    async fn body(&self, client: &Client) -> anyhow::Result<Value> {
        let now = client.get(&path(&self.tenant)).await.unwrap_or(Value::Null);
        let mut body: Map<String, Value> = now.get("quota").and_then(Value::as_object).cloned().unwrap_or_default();
        body.retain(|_, value| !value.is_null());
        let given = [
            ("gpu", &self.gpus),
            ("cpu", &self.cpu),
            ("mem", &self.mem),
            ("tpu", &self.tpu),
            ("waiting", &self.waiting),
        ];
        for (key, value) in given {
            match value.as_deref() {
                None => {}
                Some("none") => drop(body.remove(key)),
                // Numbers go as numbers, so that a member reads "16" and 16 alike.
                Some(text) => {
                    let number = serde_json::from_str::<serde_json::Number>(text).map(Value::Number);
                    body.insert(key.to_owned(), number.unwrap_or_else(|_| json!(text)));
                }
            }
        }
        Ok(Value::Object(body))
    }
}
