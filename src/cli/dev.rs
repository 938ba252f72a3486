//! `nf dev`: a group of real members on this machine, for development. Members are
//! child processes of the same binary; killing one is a real kill.

mod group;
mod ports;
mod record;
mod supervise;

use super::exit::{Exit, fail};
use super::output::{self, at, col, state};
use super::{Global, say};
use clap::{Args, Subcommand};
use record::Record;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a restarted member may take to answer.
const BACK: Duration = Duration::from_secs(20);
/// One question to a member of our own machine.
const ASK: Duration = Duration::from_millis(800);

#[derive(Debug, Args)]
pub struct Dev {
    #[command(subcommand)]
    command: Option<DevCommand>,
    #[command(flatten)]
    up: Up,
}

/// How the group is made.
#[derive(Clone, Debug, Args)]
pub struct Up {
    /// Members: 1, 3 or 5
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Simulated GPUs of each member, type:count, comma separated and dealt out in turn
    #[arg(long, default_value = "h100:8")]
    gpus: String,
    /// Public port of the first member; the next free set when it is taken
    #[arg(long, default_value_t = 8600)]
    port: u16,
    /// Keep the data here; a temporary directory when absent
    #[arg(long, global = true)]
    data_dir: Option<PathBuf>,
    /// Write addresses and process ids here once the group answers
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// Leave the selected context alone
    #[arg(long)]
    no_context: bool,
    /// Ask every caller for a token, and put one for all roles into the context
    #[arg(long)]
    auth: bool,
    /// A setting for every member, key=value; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum DevCommand {
    /// Show the members and who leads
    #[command(after_help = "Examples:\n  nf dev status\n  nf dev status -o json")]
    Status,
    /// Kill a member's process with signal 9
    #[command(after_help = "Examples:\n  nf dev kill node-2\n  nf dev kill leader")]
    Kill {
        /// A member's name, or leader
        member: String,
    },
    /// Start a killed member again, on its data
    #[command(after_help = "Examples:\n  nf dev restart node-2\n  nf dev restart node-2 -o json")]
    Restart { member: String },
}

impl Dev {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let dir = self.up.data_dir.as_deref();
        match self.command {
            None => supervise::run(self.up).await,
            Some(DevCommand::Status) => status(global, &Record::read(dir)?).await,
            Some(DevCommand::Kill { member }) => kill(global, &Record::read(dir)?, &member).await,
            Some(DevCommand::Restart { member }) => restart(global, &Record::read(dir)?, &member).await,
        }
    }
}

/// What a member says of itself; None when it does not answer.
async fn health(http: &reqwest::Client, api: &str) -> Option<Value> {
    let response = http.get(format!("{api}/health")).timeout(ASK).send().await.ok()?;
    response.json().await.ok()
}

async fn look(record: &Record) -> anyhow::Result<Vec<Value>> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let mut items = Vec::new();
    for member in &record.members {
        let health = if member.alive() { health(&http, &member.api).await } else { None };
        let role = match &health {
            Some(health) => at(health, "role"),
            None if member.alive() => "silent".to_owned(),
            None => "gone".to_owned(),
        };
        items.push(json!({ "name": member.name, "role": role, "pid": member.pid, "api": member.api }));
    }
    Ok(items)
}

async fn status(global: &Global, record: &Record) -> anyhow::Result<()> {
    let items = look(record).await?;
    let columns = [
        col("MEMBER", |v| at(v, "name")),
        col("ROLE", |v| state(&at(v, "role"))),
        col("PID", |v| at(v, "pid")),
        col("API", |v| at(v, "api")),
    ];
    output::put(&output::list(global.style(), &items, &columns, |v| at(v, "name"))?);
    Ok(())
}

/// Signal 9 to one member's process. Returns its record and role.
pub async fn kill_member(record: &Record, which: &str) -> anyhow::Result<(record::Member, String)> {
    let items = look(record).await?;
    let wanted = |item: &&Value| match which {
        "leader" => at(item, "role") == "leader",
        name => at(item, "name") == name,
    };
    let names = || record.members.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", ");
    let Some(item) = items.iter().find(wanted) else {
        let text = match which {
            "leader" => "no member leads at the moment\n  try: nf dev status".to_owned(),
            other => format!("no member {other}; there are {}, and leader", names()),
        };
        return Err(fail(Exit::NotFound, text));
    };
    let member = record.members.iter().find(|m| m.name == at(item, "name")).expect("items are made of the record");
    if !member.alive() {
        return Err(fail(Exit::Conflict, format!("{0} does not run\n  try: nf dev restart {0}", member.name)));
    }
    member.signal(nix::sys::signal::Signal::SIGKILL)?;
    Ok((member.clone(), at(item, "role")))
}

async fn kill(global: &Global, record: &Record, which: &str) -> anyhow::Result<()> {
    let (member, role) = kill_member(record, which).await?;
    let value = json!({ "killed": member.name, "role": role, "pid": member.pid });
    let people = || format!("✗ {} killed (it was {role}, pid {})\n", member.name, member.pid);
    output::put(&output::object(global.style(), &value, &member.name, people)?);
    say(format!("nf dev restart {} brings it back", member.name));
    Ok(())
}

/// Asks the supervisor to start a member again, and returns when it answers.
pub async fn restart_member(record: &Record, name: &str) -> anyhow::Result<record::Member> {
    let Some(old) = record.members.iter().find(|m| m.name == name) else {
        return Err(fail(Exit::NotFound, format!("no member {name}\n  try: nf dev status")));
    };
    if old.alive() {
        return Err(fail(Exit::Conflict, format!("{name} runs already (pid {})", old.pid)));
    }
    record.ask_restart(name)?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let end = Instant::now() + BACK;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let Ok(now) = Record::read(Some(&record.data_dir)) else { continue };
        let Some(new) = now.members.iter().find(|m| m.name == name && m.pid != old.pid) else { continue };
        if health(&http, &new.api).await.is_some() {
            return Ok(new.clone());
        }
    }
    let log = record.data_dir.join(name).join("log.txt");
    Err(fail(Exit::Failed, format!("{name} did not come back; its log is {}", log.display())))
}

async fn restart(global: &Global, record: &Record, name: &str) -> anyhow::Result<()> {
    let member = restart_member(record, name).await?;
    let value = json!({ "restarted": member.name, "pid": member.pid, "api": member.api });
    let people = || format!("● {} runs again (pid {})\n", member.name, member.pid);
    output::put(&output::object(global.style(), &value, &member.name, people)?);
    Ok(())
}

/// The record of a running group, for `nf bench`.
pub fn record(dir: Option<&std::path::Path>) -> anyhow::Result<Record> {
    Record::read(dir)
}

/// Process ids of its members; none when no group runs.
pub fn pids(dir: Option<&std::path::Path>) -> Vec<u32> {
    let record = Record::read(dir).map(|record| record.members).unwrap_or_default();
    record.iter().filter(|member| member.alive()).map(|member| member.pid).collect()
}
