//! `nf get` and `nf describe`.

use super::client::{Client, Listing, escape};
use super::exit::{Exit, fail};
use super::kinds::{self, Kind};
use super::output::{self, Format};
use super::{Global, say};
use clap::Args;
use nf_core::id::TenantId;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::Duration;

/// Between two looks of `--watch`.
const LOOK: Duration = Duration::from_secs(1);
/// An ambiguous prefix shows this many of the ids that it fits.
const SHOWN: usize = 8;
/// Jobs of a node whose agents are asked what stops there.
const ASKED: usize = 64;

/// Which job.
#[derive(Debug, Args)]
pub struct JobArg {
    /// Its id, or a unique prefix
    pub job: String,
    /// Its tenant, where several have a job of that id; an admin needs it to change another tenant's job
    #[arg(long)]
    pub tenant: Option<TenantId>,
}

impl JobArg {
    /// Where the job of that full id is changed.
    pub fn path(&self, root: &str, id: &str, rest: &str) -> String {
        path(root, id, rest, self.tenant.as_ref().map(TenantId::as_str))
    }
}

/// Below a root such as `/schedule`, a job of that id, whosever or that tenant's.
pub fn path(root: &str, id: &str, rest: &str, tenant: Option<&str>) -> String {
    let whose = tenant.map(|tenant| format!("?tenant_id={}", escape(tenant))).unwrap_or_default();
    format!("{root}/{}{rest}{whose}", escape(id))
}

/// Where more is read of a job that was found.
pub fn path_of(job: &Value, root: &str, rest: &str) -> String {
    path(root, &output::at(job, "request_id"), rest, Some(&output::at(job, "tenant_id")))
}

#[derive(Debug, Args)]
pub struct Get {
    /// What to list
    kind: Kind,
    /// Only those whose id begins with this
    id: Option<String>,
    /// Only this tenant's
    #[arg(long)]
    tenant: Option<String>,
    /// Only jobs in this state
    #[arg(long)]
    state: Option<String>,
    /// Include finished jobs
    #[arg(short, long)]
    all: bool,
    /// Show changes as they come, until Ctrl-C
    #[arg(short, long)]
    watch: bool,
}

impl Get {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        if !self.watch {
            return self.show(global, &self.items(global, &client).await?);
        }
        let end = super::signals::stop();
        tokio::pin!(end);
        let mut before: Vec<Value> = Vec::new();
        loop {
            let now = self.items(global, &client).await?;
            if now.items != before {
                self.redraw(global, &now, &before)?;
                before = now.items;
            }
            tokio::select! {
                stopped = &mut end => {
                    stopped?;
                    say("stopped watching; nothing in the cluster was changed");
                    return Err(fail(Exit::Interrupted, ""));
                }
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn path(&self, more: bool) -> String {
        let mut query = Vec::new();
        query.extend((more && self.kind == Kind::Jobs).then(|| "reasons=true".to_owned()));
        query.extend((more && self.kind == Kind::Gpus).then(|| "vitals=true".to_owned()));
        query.extend(self.tenant.iter().map(|t| format!("tenant_id={}", escape(t))));
        query.extend(self.state.iter().map(|s| format!("state={}", escape(s))));
        query.extend(self.all.then(|| "finished=true".to_owned()));
        match query.is_empty() {
            true => self.kind.path().to_owned(),
            false => format!("{}?{}", self.kind.path(), query.join("&")),
        }
    }

    async fn items(&self, global: &Global, client: &Client) -> anyhow::Result<Listing> {
        // Members look for reasons, and ask how GPUs do, only where somebody will read that.
        let more = global.style().format != Format::Table;
        let mut list = client.listing(&self.path(more)).await?;
        if self.kind == Kind::Gpus {
            if list.items.iter().any(|node| node.get("devices").is_none()) {
                let text = "the GPUs of nodes are shown to admins and machines\n  try: nf get nodes";
                return Err(fail(Exit::Denied, text.to_owned()));
            }
            list.items = kinds::gpus(&list.items);
        }
        if let Some(prefix) = &self.id {
            let id = self.kind.id();
            list.items.retain(|item| id(item).starts_with(prefix.as_str()));
            if list.items.is_empty() {
                return Err(nothing(self.kind, prefix));
            }
        }
        Ok(list)
    }

    fn show(&self, global: &Global, list: &Listing) -> anyhow::Result<()> {
        let (columns, id) = (self.kind.columns(), self.kind.id());
        output::put(&output::listing(global.style(), &list.envelope, &list.items, columns, id)?);
        if list.items.is_empty() {
            say(self.kind.hint());
        }
        Ok(())
    }

    /// On a terminal the whole table again; elsewhere what is new or changed.
    fn redraw(&self, global: &Global, now: &Listing, before: &[Value]) -> anyhow::Result<()> {
        if global.for_people() && std::io::stdout().is_terminal() {
            output::put("\u{1b}[H\u{1b}[2J");
            return self.show(global, now);
        }
        let news: Vec<Value> = now.items.iter().filter(|item| !before.contains(item)).cloned().collect();
        let mut style = global.style();
        style.no_headers |= !before.is_empty();
        if style.format == Format::Json {
            style.format = Format::Jsonl;
        }
        output::put(&output::list(style, &news, self.kind.columns(), self.kind.id())?);
        Ok(())
    }
}

#[derive(Debug, Args)]
pub struct Describe {
    /// What to show
    kind: Kind,
    /// Its id, or a unique prefix
    id: String,
    /// Its tenant, where several have a job of that id
    #[arg(long)]
    tenant: Option<TenantId>,
}

impl Describe {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let value = match self.kind {
            Kind::Jobs => {
                let job = JobArg { job: self.id, tenant: self.tenant };
                with_lives(&client, explained(&client, &job).await?).await
            }
            Kind::Nodes => with_stops(&client, one(&client, Kind::Nodes, &self.id).await?).await?,
            kind => one(&client, kind, &self.id).await?,
        };
        let name = (self.kind.id())(&value);
        let people = || serde_yaml_ng::to_string(&value).unwrap_or_else(|e| format!("{e}\n"));
        output::put(&output::object(global.style(), &value, &name, people)?);
        Ok(())
    }
}

/// A job, with what its replicas have been through as far as their agents tell.
async fn with_lives(client: &Client, mut job: Value) -> Value {
    // Of a job that is long over no agent tells any more, and an older member has no answer.
    if let Ok(told) = client.get(&path_of(&job, "/schedule", "/life")).await
        && let Some(fields) = job.as_object_mut()
    {
        for (to, from) in [("life", "items"), ("life_not_told", "silent")] {
            let list = told.get(from).filter(|list| list.as_array().is_some_and(|list| !list.is_empty()));
            fields.extend(list.map(|list| (to.to_owned(), list.clone())));
        }
    }
    job
}

/// A node, with how long its drain has, and the deadlines of what stops there now.
async fn with_stops(client: &Client, mut node: Value) -> anyhow::Result<Value> {
    let name = (Kind::Nodes.id())(&node);
    let mut stops = Vec::new();
    let rows = client.list(&format!("/schedule?node={}", escape(&name))).await?;
    let not_asked = rows.len().saturating_sub(ASKED);
    for row in rows.into_iter().take(ASKED) {
        let id = (Kind::Jobs.id())(&row);
        let told = client.get(&path_of(&row, "/schedule", "/life")).await.unwrap_or_default();
        let lives = told.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        let here = lives.into_iter().filter(|life| output::at(life, "node") == name && !life["stop"].is_null());
        let going = here
            .filter(|life| life["steps"].as_array().and_then(|s| s.last()).is_some_and(|s| s["status"] == "Draining"));
        stops.extend(going.map(|life| {
            json!({"tenant_id": row["tenant_id"], "request_id": id, "replica": life["replica"], "stop": life["stop"]})
        }));
    }
    let left = node["drain_deadline"].as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok()).map(left_s);
    if let Some(fields) = node.as_object_mut() {
        fields.extend(left.map(|left| ("drain_left_s".to_owned(), json!(left))));
        fields.extend((!stops.is_empty()).then(|| ("stopping".to_owned(), json!(stops))));
        fields.extend((not_asked > 0).then(|| ("jobs_not_asked".to_owned(), json!(not_asked))));
    }
    Ok(node)
}

/// Seconds until then; 0 when it has passed.
fn left_s(at: jiff::Timestamp) -> i64 {
    at.duration_since(jiff::Timestamp::now()).as_secs().max(0)
}

/// The one object that an id or its prefix names.
async fn one(client: &Client, kind: Kind, prefix: &str) -> anyhow::Result<Value> {
    let items = match kind {
        Kind::Gpus => kinds::gpus(&client.list("/nodes?vitals=true").await?),
        kind => client.list(kind.path()).await?,
    };
    let id = kind.id();
    pick(kind, prefix, items, id)
}

fn pick(kind: Kind, prefix: &str, items: Vec<Value>, id: fn(&Value) -> String) -> anyhow::Result<Value> {
    if let Some(exact) = items.iter().find(|item| id(item) == prefix) {
        return Ok(exact.clone());
    }
    let mut fitting: Vec<Value> = items.into_iter().filter(|item| id(item).starts_with(prefix)).collect();
    match fitting.len() {
        0 => Err(nothing(kind, prefix)),
        1 => Ok(fitting.remove(0)),
        n => {
            let names: BTreeSet<String> = fitting.iter().map(id).collect();
            let some: Vec<_> = names.iter().take(SHOWN).map(String::as_str).collect();
            let text = match names.len() {
                1 => format!("{n} tenants have a {} {}; say whose with --tenant", kind.one(), some.join("")),
                _ => format!("{n} {}s begin with {prefix}: {}; give more of the id", kind.one(), some.join(", ")),
            };
            Err(fail(Exit::Usage, text))
        }
    }
}

fn nothing(kind: Kind, prefix: &str) -> anyhow::Error {
    let list = kind.path().trim_start_matches('/');
    let list = if kind == Kind::Jobs { "jobs --all" } else { list.rsplit('/').next().unwrap_or(list) };
    fail(Exit::NotFound, format!("no {} {prefix}\n  try: nf get {list}", kind.one()))
}

/// A job in full, by its id or a unique prefix.
pub async fn job(client: &Client, of: &JobArg) -> anyhow::Result<Value> {
    found(client, of, false).await
}

/// The same, with what takes the placer a search to find.
pub async fn explained(client: &Client, of: &JobArg) -> anyhow::Result<Value> {
    found(client, of, true).await
}

async fn found(client: &Client, of: &JobArg, explain: bool) -> anyhow::Result<Value> {
    let asked = |path: String| match (explain, path.contains('?')) {
        (false, _) => path,
        (true, false) => format!("{path}?explain=true"),
        (true, true) => format!("{path}&explain=true"),
    };
    match client.get(&asked(of.path("/schedule", &of.job, ""))).await {
        Err(error) if super::exit::of(&error) == Some(Exit::NotFound) => {
            let whose = of.tenant.as_ref().map(|tenant| format!("&tenant_id={}", escape(tenant.as_str())));
            let mut rows = client.list(&format!("/schedule?finished=true{}", whose.unwrap_or_default())).await?;
            // A tenant's finished jobs of one id come after the live one, the newest first: that is the one that is meant.
            let mut seen = BTreeSet::new();
            rows.retain(|row| seen.insert((output::at(row, "request_id"), output::at(row, "tenant_id"))));
            let row = pick(Kind::Jobs, &of.job, rows, Kind::Jobs.id())?;
            client.get(&asked(path_of(&row, "/schedule", ""))).await
        }
        other => other,
    }
}

/// The full id of a job.
pub async fn job_id(client: &Client, of: &JobArg) -> anyhow::Result<String> {
    Ok((Kind::Jobs.id())(&job(client, of).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_must_be_unique() {
        let items = || vec![json!({"request_id":"ab1"}), json!({"request_id":"ab2"}), json!({"request_id":"ab"})];
        let id = Kind::Jobs.id();
        assert_eq!(id(&pick(Kind::Jobs, "ab1", items(), id).unwrap()), "ab1");
        assert_eq!(id(&pick(Kind::Jobs, "ab", items(), id).unwrap()), "ab", "an exact id beats longer ones");
        let two = vec![json!({"request_id":"ab1","tenant_id":"t1"}), json!({"request_id":"ab1","tenant_id":"t2"})];
        let whose = pick(Kind::Jobs, "a", two, id).unwrap_err().to_string();
        assert!(whose.contains("--tenant") && !whose.contains("give more"), "{whose}");
        let many = pick(Kind::Jobs, "a", items(), id).unwrap_err();
        assert_eq!(many.downcast_ref::<super::super::exit::Failure>().unwrap().exit, Exit::Usage);
        let none = pick(Kind::Jobs, "x", items(), id).unwrap_err();
        assert_eq!(none.downcast_ref::<super::super::exit::Failure>().unwrap().exit, Exit::NotFound);
    }
}
