//! `nf autoscale`: what the leader's autoscaler last said of each service, and its journal
//! played again. The playing is the core's; this reads files and shows.

use super::client::Client;
use super::exit::{Exit, fail};
use super::output::{self, Column, at, col, wide};
use super::{Global, say, slo};
use clap::{Args, Subcommand};
use nf_core::autoscaler::journal::{Difference, Record, Replay, Replayed};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// The longest line of a journal that is read, in bytes.
const LONGEST: u64 = 16 << 20;

#[derive(Debug, Args)]
pub struct Autoscale {
    #[command(subcommand)]
    command: AutoscaleCommand,
}

#[derive(Debug, Subcommand)]
enum AutoscaleCommand {
    /// Show the leader's latest decision for each service that scales
    #[command(after_help = "Examples:\n  nf autoscale status\n  nf autoscale status --tenant demo -o json")]
    Status(Status),
    /// Replay a leader's journal, and check that the decisions are the same
    #[command(
        after_help = "Examples:\n  nf autoscale replay /var/lib/neural-fabric/autoscale/autoscale.jsonl\n  nf autoscale replay autoscale.1.jsonl autoscale.jsonl -o json\n\nExit: 0 when every decision is the same, 1 when one is another, 2 for a file that is no journal."
    )]
    Replay(ReplayFiles),
}

#[derive(Debug, Args)]
struct Status {
    /// Only this tenant's
    #[arg(long)]
    tenant: Option<String>,
}

#[derive(Debug, Args)]
struct ReplayFiles {
    /// Journals, the older first: DATA_DIR/autoscale/autoscale.jsonl of the member that led
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

const COLUMNS: &[Column] = &[
    col("TENANT", |v| at(v, "tenant_id")),
    col("MODEL", |v| at(v, "model_id")),
    col("CURRENT", |v| at(v, "autoscaler.current")),
    col("RECOMMENDED", |v| at(v, "autoscaler.desired")),
    col("REASON", reason),
    col("SIGNAL AGE", age),
    wide("READY", |v| at(v, "ready")),
    wide("QUEUE", |v| at(v, "queue")),
    wide("RUNNING", |v| at(v, "running")),
];

const DIFFERENCES: &[Column] = &[
    col("LINE", |v| at(v, "line")),
    col("TENANT", |v| at(v, "tenant_id")),
    col("MODEL", |v| at(v, "model_id")),
    col("THEN", |v| format!("{} {}", at(v, "then.desired"), at(v, "then.why"))),
    col("NOW", |v| format!("{} {}", at(v, "now.desired"), at(v, "now.why"))),
];

fn advice(v: &Value) -> Option<&Value> {
    v.get("autoscaler").filter(|advice| !advice.is_null())
}

fn reason(v: &Value) -> String {
    let Some(advice) = advice(v) else { return "-".to_owned() };
    let why = advice.get("why").and_then(Value::as_array).cloned().unwrap_or_default();
    let why: Vec<&str> = why.iter().filter_map(Value::as_str).collect();
    match advice.get("gap").and_then(Value::as_str) {
        Some(gap) => format!("{}: {gap}", why.join(", ")),
        None => why.join(", "),
    }
}

fn age(v: &Value) -> String {
    let ms = advice(v).and_then(|advice| advice.get("signal_age_ms")?.as_u64());
    ms.map_or_else(|| "-".to_owned(), |ms| format!("{}.{} s", ms / 1000, ms % 1000 / 100))
}

fn name(v: &Value) -> String {
    format!("{}/{}", at(v, "tenant_id"), at(v, "model_id"))
}

impl Autoscale {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        match self.command {
            AutoscaleCommand::Status(status) => status.run(global, &global.client()?).await,
            AutoscaleCommand::Replay(files) => files.run(global),
        }
    }
}

impl Status {
    async fn run(&self, global: &Global, client: &Client) -> anyhow::Result<()> {
        let (envelope, mut items) = slo::all(client, self.tenant.as_deref()).await?;
        items.retain(|item| advice(item).is_some());
        output::put(&output::listing(global.style(), &envelope, &items, COLUMNS, name)?);
        if items.is_empty() {
            say("no service scales, or no leader has looked yet; nf run MODEL --scale 0..4 makes one");
        }
        Ok(())
    }
}

impl ReplayFiles {
    fn run(&self, global: &Global) -> anyhow::Result<()> {
        let mut replay = Replay::default();
        for file in &self.files {
            read(file, &mut replay).map_err(|text| fail(Exit::Usage, format!("{}: {text}", file.display())))?;
        }
        let played = replay.end();
        let differences: Vec<Value> = played.differences.iter().map(shown).collect();
        let value = json!({
            "looks": played.looks,
            "services": played.services,
            "without_beginning": played.without_beginning,
            "differences": differences,
        });
        let people = || people(global, &played, &differences);
        output::put(&output::object(global.style(), &value, "replay", people)?);
        verdict(&played)
    }
}

/// What a file says, line by line.
fn read(path: &Path, replay: &mut Replay) -> Result<(), String> {
    let mut reader = BufReader::new(File::open(path).map_err(|e| e.to_string())?);
    for number in 1.. {
        let mut line = String::new();
        let bytes = reader.by_ref().take(LONGEST).read_line(&mut line).map_err(|e| e.to_string())?;
        if bytes == 0 {
            break;
        }
        let wrong = |e: serde_json::Error| format!("line {number} is not a journal entry of this version: {e}");
        replay.take(serde_json::from_str::<Record>(&line).map_err(wrong)?);
    }
    Ok(())
}

fn verdict(played: &Replayed) -> anyhow::Result<()> {
    match (played.looks, played.differences.len()) {
        (0, _) => Err(fail(
            Exit::Usage,
            "nothing to replay: the journal has no beginning\n  try: the older file before it, autoscale.1.jsonl",
        )),
        (_, 0) => Ok(()),
        (_, some) => {
            Err(fail(Exit::Failed, format!("{some} decisions are not the same; the first of each service counts")))
        }
    }
}

fn shown(difference: &Difference) -> Value {
    let Difference { line, of, then, now } = difference;
    json!({
        "line": line,
        "tenant_id": of.tenant.as_str(),
        "model_id": of.model.as_str(),
        "term": of.term,
        "then": { "desired": then.desired, "why": then.because() },
        "now": { "desired": now.desired, "why": now.because() },
    })
}

fn people(global: &Global, played: &Replayed, differences: &[Value]) -> String {
    let Replayed { looks, services, without_beginning, .. } = played;
    let mut text = format!("{looks} looks at {services} services replayed");
    if *without_beginning > 0 {
        text += &format!(
            "; {without_beginning} more were left out, since the journal lacks the beginning of their services"
        );
    }
    if differences.is_empty() {
        return text + ": the same decisions";
    }
    let table = output::list(global.style(), differences, DIFFERENCES, |v| at(v, "line")).unwrap_or_default();
    format!("{text}\n\n{table}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit;
    use nf_core::autoscaler::journal::Life;
    use nf_core::autoscaler::{Autoscaler, Limits, Reading, Service, Signals};
    use nf_core::id::{JobNo, ModelId, TenantId};

    /// A journal of so many looks at one service.
    fn journal(looks: u64) -> Vec<Record> {
        let (tenant, model) = (TenantId::new("t1").unwrap(), ModelId::new("m1").unwrap());
        let of = Life { term: 1, job: JobNo(1), life: 1, tenant, model };
        let mut scaler = Autoscaler::new(Service::default()).unwrap();
        let mut out = vec![Record::From { of: of.clone(), scaler: Box::new(scaler.clone()) }];
        for k in 1..=looks {
            let of_load = |n: u64| Reading::of(n * (1 + k % 5));
            let signals = Signals {
                at_ms: k * 5_000,
                ready: Reading::of(1),
                starting: Reading::of(0),
                queue: of_load(3),
                running: of_load(4),
                arrivals: of_load(20),
                ..Signals::default()
            };
            scaler.stands_at(1);
            let (decision, limits) = (Box::new(scaler.step(&signals)), Limits::default());
            out.push(Record::Look { of: of.clone(), signals, stands_at: 1, limits, decision });
        }
        out
    }

    fn play(lines: &str) -> (Result<Replayed, String>, Option<Exit>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines).unwrap();
        let mut replay = Replay::default();
        if let Err(text) = read(file.path(), &mut replay) {
            return (Err(text), Some(Exit::Usage));
        }
        let played = replay.end();
        let exit = verdict(&played).err().and_then(|error| exit::of(&error));
        (Ok(played), exit)
    }

    fn text(records: &[Record]) -> String {
        records.iter().map(|record| serde_json::to_string(record).unwrap() + "\n").collect()
    }

    #[test]
    fn the_exit_tells_whether_the_decisions_are_the_same() {
        let good = journal(200);
        let (played, exit) = play(&text(&good));
        assert_eq!((played.unwrap().looks, exit), (200, None));
        let mut other = good.clone();
        let Some(Record::Look { decision, .. }) = other.get_mut(150) else { panic!("it is a look") };
        decision.desired += 1;
        let (played, exit) = play(&text(&other));
        assert_eq!((played.unwrap().differences[0].line, exit), (151, Some(Exit::Failed)));
        assert_eq!(play(&text(&good[1..])).1, Some(Exit::Usage), "it has no beginning");
        assert_eq!(play("").1, Some(Exit::Usage));
        let (wrong, exit) = play(&format!("{}{{\"look\":7}}\n", text(&good)));
        assert_eq!(exit, Some(Exit::Usage));
        assert!(wrong.unwrap_err().starts_with("line 202 is not a journal entry"));
    }

    #[test]
    fn what_is_missing_is_said_with_the_reason() {
        let known = json!({ "autoscaler": { "why": ["MissingSignal"], "gap": "signals of 2 of 5 replicas", "signal_age_ms": 2345 } });
        assert_eq!((reason(&known), age(&known)), ("MissingSignal: signals of 2 of 5 replicas".into(), "2.3 s".into()));
        let whole = json!({ "autoscaler": { "why": ["Idle", "QueueDepth"], "gap": null, "signal_age_ms": null } });
        assert_eq!((reason(&whole), age(&whole)), ("Idle, QueueDepth".into(), "-".into()));
        assert_eq!((reason(&json!({})), age(&json!({}))), ("-".to_owned(), "-".to_owned()));
    }
}
