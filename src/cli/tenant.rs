//! `nf tenant` and `nf quota`.

use super::client::{Client, escape};
use super::exit::{self, Exit, fail};
use super::kinds::Kind;
use super::output::{self, at};
use super::{Global, confirm, say};
use clap::{Args, Subcommand};
use nf_core::budget::Window;
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
                let known = client.get(&path(&tenant)).await?;
                match at(&known, "jobs").as_str() {
                    "0" => say(format!("would delete tenant {tenant}")),
                    jobs => {
                        let text =
                            format!("tenant {tenant} has {jobs} live jobs\n  try: nf get jobs --tenant {tenant}");
                        return Err(fail(Exit::Conflict, text));
                    }
                }
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
                let list = client.listing(Kind::Tenants.path()).await?;
                let (columns, id) = (Kind::Tenants.columns(), Kind::Tenants.id());
                output::put(&output::listing(global.style(), &list.envelope, &list.items, columns, id)?);
                if list.items.is_empty() {
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
        after_help = "Examples:\n  nf quota set demo --gpus 16\n  nf quota set demo --gpus 16 --cpu 64 --mem 512GiB\n  nf quota set demo --parent research --borrow 8 --lend 4\n  nf quota set demo --gpus H100-80G=8,A100-40G=4 --borrow H100-80G=2\n  nf quota set demo --gpu-hours 100/day --gpu-hours 2000/month --money 5000/month"
    )]
    Set(SetQuota),
}

#[derive(Debug, Args)]
struct SetQuota {
    tenant: String,
    /// GPUs, fractions allowed, "none" for the group's default; or by device type: H100-80G=8,A100-40G=4
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
    /// Its parent, from whose other children it may borrow GPUs; "none" for no parent
    #[arg(long, value_name = "TENANT")]
    parent: Option<String>,
    /// Most GPUs that it may borrow, or TYPE=GPUS; "none" for no limit
    #[arg(long, value_name = "GPUS")]
    borrow: Option<String>,
    /// Most of its unused GPUs that it lends, or TYPE=GPUS; "none" for no limit
    #[arg(long, value_name = "GPUS")]
    lend: Option<String>,
    /// GPU-hours for it and the tenants below it: 100/day, 500/week or 2000/month, may be repeated; none/day removes a limit
    #[arg(long, value_name = "HOURS/WINDOW", value_parser = budget)]
    gpu_hours: Vec<Budget>,
    /// Money for them, in the unit of the nodes' prices: 500/day, may be repeated; none/day removes a limit
    #[arg(long, value_name = "MONEY/WINDOW", value_parser = budget)]
    money: Vec<Budget>,
    /// Allow GPU fractions that nothing enforces; false ends it for new jobs
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    soft_sharing: Option<bool>,
}

/// A limit of a window; None takes it away.
#[derive(Clone, Debug, PartialEq)]
struct Budget {
    window: &'static str,
    limit: Option<f64>,
}

fn budget(text: &str) -> Result<Budget, String> {
    let bad = || "a limit and its window, such as 100/day, 500/week, 2000/month or none/day".to_owned();
    let (limit, window) = text.split_once('/').ok_or_else(bad)?;
    let window = Window::named(window).ok_or_else(bad)?.name();
    let limit = match limit {
        "none" => None,
        limit => Some(limit.parse().ok().filter(|limit: &f64| limit.is_finite() && *limit >= 0.0).ok_or_else(bad)?),
    };
    Ok(Budget { window, limit })
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
                let now = now(&client, &set.tenant).await?;
                let seen = now.get("etag").and_then(Value::as_str);
                // Somebody else's change in between is not undone in silence.
                let (_, quota) = client.change_seen(Method::PUT, &path(&set.tenant), set.body(&now), seen).await?;
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
        let tree = [("parent", "below"), ("borrow", "may borrow"), ("lend", "lends at most")];
        let line = |(key, word): (&str, &str)| match at(quota, &format!("quota.{key}")).as_str() {
            "-" => String::new(),
            value => format!("{word} {value}\n"),
        };
        for (kind, share) in quota.get("quota").and_then(|q| q.get("device_types")?.as_object()).into_iter().flatten() {
            let used = quota.get("used").and_then(|used| used.get("device_types")?.get(kind));
            table.add_row([kind.clone(), at(share, "gpu"), used.map_or_else(|| "0".to_owned(), Value::to_string)]);
        }
        let budgets = [("gpu_hours", "GPU-hours"), ("money", "of money")].map(|(key, words)| {
            let limits = quota.get("quota").and_then(|quota| quota.get(key)?.as_object()).into_iter().flatten();
            limits.map(|(window, limit)| format!("may use {limit} {words} a {window}\n")).collect::<String>()
        });
        let soft = match at(quota, "quota.soft_sharing").as_str() {
            "true" => "accepts parts of GPUs that nothing enforces\n",
            _ => "",
        };
        output::trimmed(&table) + &tree.map(line).concat() + &budgets.concat() + soft
    };
    output::put(&output::object(global.style(), quota, tenant, people)?);
    Ok(())
}

/// The tenant's limits as they are; nothing when there is no such tenant yet.
async fn now(client: &Client, tenant: &str) -> anyhow::Result<Value> {
    match client.get(&path(tenant)).await {
        Err(error) if exit::of(&error) == Some(Exit::NotFound) => Ok(Value::Null),
        other => other,
    }
}

impl SetQuota {
    /// The limits that are now, with the named ones replaced.
    fn body(&self, now: &Value) -> Value {
        let mut body: Map<String, Value> = now.get("quota").and_then(Value::as_object).cloned().unwrap_or_default();
        body.retain(|_, value| !value.is_null());
        let given = [
            ("gpu", &self.gpus),
            ("cpu", &self.cpu),
            ("mem", &self.mem),
            ("tpu", &self.tpu),
            ("waiting", &self.waiting),
            ("parent", &self.parent),
            ("borrow", &self.borrow),
            ("lend", &self.lend),
        ];
        for (key, value) in given {
            match value.as_deref() {
                None => {}
                Some(text) if text.contains('=') => by_type(&mut body, key, text),
                Some("none") => drop(body.remove(key)),
                Some(text) if key == "parent" => drop(body.insert(key.to_owned(), json!(text))),
                // Numbers go as numbers, so that a member reads "16" and 16 alike.
                Some(text) => drop(body.insert(key.to_owned(), number(text))),
            }
        }
        body.extend(self.soft_sharing.map(|soft| ("soft_sharing".to_owned(), json!(soft))));
        for (key, given) in [("gpu_hours", &self.gpu_hours), ("money", &self.money)] {
            let Some(limits) = body.entry(key).or_insert_with(|| json!({})).as_object_mut() else { continue };
            for Budget { window, limit } in given {
                match limit {
                    None => drop(limits.remove(*window)),
                    Some(limit) => drop(limits.insert((*window).to_owned(), json!(limit))),
                }
            }
        }
        Value::Object(body)
    }
}

fn number(text: &str) -> Value {
    let number = serde_json::from_str::<serde_json::Number>(text).map(Value::Number);
    number.unwrap_or_else(|_| json!(text))
}

/// `H100-80G=8,A100-40G=none`: of each type the number; "none" takes the limit away. What is no limit the member refuses.
fn by_type(body: &mut Map<String, Value>, key: &str, text: &str) {
    let Some(types) = body.entry("device_types").or_insert_with(|| json!({})).as_object_mut() else { return };
    for (kind, limit) in text.split(',').map(|pair| pair.split_once('=').unwrap_or((pair, ""))) {
        if (key, limit) == ("gpu", "none") {
            types.remove(kind);
            continue;
        }
        let Some(share) = types.entry(kind).or_insert_with(|| json!({})).as_object_mut() else { continue };
        match limit {
            "none" => drop(share.remove(key)),
            limit => drop(share.insert(key.to_owned(), number(limit))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::context::Context;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A member that answers each call with this.
    async fn member(answer: &'static str) -> Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Client::new(&Context { addrs: vec![addr], ..Context::default() }).unwrap()
    }

    #[test]
    fn budgets_are_set_one_by_one_and_the_others_stay() {
        assert_eq!(budget("100/day"), Ok(Budget { window: "day", limit: Some(100.0) }));
        assert_eq!(budget("none/month"), Ok(Budget { window: "month", limit: None }));
        for bad in ["", "100", "100/year", "/day", "-1/day", "NaN/day", "inf/day", "1e3x/day"] {
            assert!(budget(bad).is_err(), "{bad}");
        }
        let set = SetQuota {
            tenant: "demo".into(),
            gpus: None,
            cpu: None,
            mem: None,
            tpu: None,
            waiting: None,
            parent: None,
            borrow: None,
            lend: None,
            gpu_hours: vec![budget("5.5/week").unwrap(), budget("none/day").unwrap()],
            money: Vec::new(),
            soft_sharing: None,
        };
        let now =
            json!({ "quota": { "gpu": 4.0, "gpu_hours": { "day": 1.0, "month": 9.0 }, "money": { "day": 2.0 } } });
        let body = json!({ "gpu": 4.0, "gpu_hours": { "week": 5.5, "month": 9.0 }, "money": { "day": 2.0 } });
        assert_eq!(set.body(&now), body);
        let soft = SetQuota { soft_sharing: Some(true), ..set };
        assert_eq!(soft.body(&now)["soft_sharing"], json!(true));
        let now_soft = json!({ "quota": { "soft_sharing": true } });
        let set = SetQuota { soft_sharing: None, ..soft };
        assert_eq!(set.body(&now_soft)["soft_sharing"], json!(true), "what is not named stays");
        let set = SetQuota { gpus: Some("A=2,B=none".into()), borrow: Some("A=1".into()), ..set };
        let now = json!({ "quota": { "device_types": { "A": { "gpu": 1.0, "lend": 3.0 }, "B": { "gpu": 4.0 } } } });
        let types = json!({ "A": { "gpu": 2, "borrow": 1, "lend": 3.0 } });
        assert_eq!(set.body(&now).get("device_types"), Some(&types));
    }

    #[tokio::test]
    async fn only_a_tenant_that_is_not_there_has_no_limits() {
        let absent =
            "HTTP/1.1 404 Not Found\r\ncontent-length: 21\r\nconnection: close\r\n\r\n{\"reason\":\"NotFound\"}";
        assert_eq!(now(&member(absent).await, "t1").await.unwrap(), Value::Null);
        let broken = "HTTP/1.1 500 Oh\r\ncontent-length: 21\r\nconnection: close\r\n\r\n{\"reason\":\"Internal\"}";
        let error = now(&member(broken).await, "t1").await.unwrap_err();
        assert_eq!(exit::of(&error), Some(Exit::Failed), "limits that could not be read are not dropped");
    }
}
