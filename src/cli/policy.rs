//! `nf policy`: how places are compared. A policy is a small TOML file; what it does not
//! say is as the named policy has it. The group keeps the one in force and every later
//! decision goes by it. This file knows no term of a score but by its name.

use super::exit::{Exit, fail};
use super::output::{self, at};
use super::{Global, say};
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

const PATH: &str = "/policy/placement";
/// Largest policy file that is read, in bytes.
const MOST_BYTES: u64 = 64 << 10;
/// What makes a policy, in the order in which it is shown.
const FIELDS: [&str; 8] = [
    "policy",
    "weights.fragmentation",
    "weights.topology",
    "weights.cost",
    "preemption.enabled",
    "preemption.min_run",
    "preemption.delay",
    "preemption.max_grace",
];

#[derive(Debug, Args)]
pub struct Policy {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Show the placement policy in force, as a file that can be edited and set
    #[command(after_help = "Examples:\n  nf policy get > policy.toml\n  nf policy get -o json")]
    Get,
    /// Set the placement policy; every later decision goes by it
    #[command(
        after_help = "Examples:\n  nf policy set best-fit\n  nf policy set cost --weight topology=0 --min-run 5m\n  nf policy set --file policy.toml"
    )]
    Set(Wanted),
    /// Show what setting a policy would change, and change nothing
    #[command(after_help = "Examples:\n  nf policy diff spread\n  nf policy diff --file policy.toml")]
    Diff(Wanted),
    /// Make the last day's placements again under a policy, show what would differ, and change nothing
    #[command(after_help = "Examples:\n  nf policy try spread\n  nf policy try --file policy.toml -o json")]
    Try(Wanted),
}

#[derive(Debug, Args)]
struct Wanted {
    /// fragmentation, best-fit, spread, cost, latency or random; absent: the one in force
    #[arg(conflicts_with = "file", required_unless_present_any = ["file", "weight", "min_run", "preemption_delay", "max_grace", "preemption"])]
    policy: Option<String>,
    /// Read it from a TOML file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What one point of a term counts, 0 to 1000: fragmentation, topology, cost
    #[arg(long, value_name = "TERM=N", conflicts_with = "file", value_parser = weight)]
    weight: Vec<(String, u32)>,
    /// How long a replica keeps its place before it may have to give way, e.g. 5m
    #[arg(long, value_name = "SPAN", conflicts_with = "file")]
    min_run: Option<String>,
    /// How long a job waits before it makes others give way, e.g. 5s; 0 for not at all
    #[arg(long, value_name = "SPAN", conflicts_with = "file")]
    preemption_delay: Option<String>,
    /// The longest time to save its state that a program which has to go may ask for, e.g. 2m
    #[arg(long, value_name = "SPAN", conflicts_with = "file")]
    max_grace: Option<String>,
    /// Whether work that said `preemptible` gives way to more urgent work
    #[arg(long, value_name = "BOOL", conflicts_with = "file")]
    preemption: Option<bool>,
}

fn weight(text: &str) -> Result<(String, u32), String> {
    let (term, n) = text.split_once('=').ok_or("TERM=N, such as cost=500")?;
    Ok((term.to_owned(), n.parse().map_err(|_| "a whole number, such as cost=500")?))
}

impl Policy {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let now = client.get(PATH).await?;
        match self.command {
            PolicyCommand::Get => show(global, &now),
            PolicyCommand::Set(wanted) => {
                let seen = now.get("etag").and_then(Value::as_str);
                let (_, set) = client.change_seen(Method::PUT, PATH, wanted.body(&now)?, seen).await?;
                show(global, &set)
            }
            PolicyCommand::Diff(wanted) => {
                let mut asked = wanted.body(&now)?;
                asked["dry_run"] = json!(true);
                let (_, would) = client.call(Method::PUT, PATH, Some(asked), None).await?;
                let changes = changes(&now, &would);
                let value = json!({ "changes": changes });
                output::put(&output::object(global.style(), &value, "placement", || table(&changes))?);
                if changes.is_empty() {
                    say("no difference");
                }
                Ok(())
            }
            PolicyCommand::Try(wanted) => {
                let path = format!("{PATH}/try");
                let (_, answer) = client.call(Method::POST, &path, Some(wanted.body(&now)?), None).await?;
                output::put(&output::object(global.style(), &answer, "placement", || tried(&answer))?);
                if global.for_people() {
                    let (changed, all) = (at(&answer, "changed"), at(&answer, "placements"));
                    say(format!(
                        "{changed} of {all} placements of the last day that still hold would be on another node"
                    ));
                }
                Ok(())
            }
        }
    }
}

/// The two policies side by side.
fn tried(tried: &Value) -> String {
    let mut table = output::plain_table();
    table.set_header(["", "NOW", "WOULD BE"]);
    let rows = [
        ("policy", "policy"),
        ("GPUs allocated", "allocated"),
        ("GPUs idle", "idle"),
        ("of these usable", "usable"),
        ("empty nodes", "empty_nodes"),
        ("replicas without a place", "unplaced"),
    ];
    for (name, key) in rows {
        table.add_row([name.to_owned(), at(tried, &format!("now.{key}")), at(tried, &format!("would_be.{key}"))]);
    }
    output::trimmed(&table)
}

impl Wanted {
    /// What to send: the file as it is, or the named policy with what the flags say.
    fn body(&self, now: &Value) -> anyhow::Result<Value> {
        if let Some(path) = &self.file {
            return read(path);
        }
        let mut body = match &self.policy {
            Some(name) => json!({ "policy": name }),
            None => json!({ "policy": now["policy"], "weights": now["weights"], "preemption": now["preemption"] }),
        };
        for (term, n) in &self.weight {
            body["weights"][term] = json!(n);
        }
        let spans = [("min_run", &self.min_run), ("delay", &self.preemption_delay), ("max_grace", &self.max_grace)];
        for (field, span) in spans {
            if let Some(span) = span {
                body["preemption"][field] = json!(span);
            }
        }
        if let Some(enabled) = self.preemption {
            body["preemption"]["enabled"] = json!(enabled);
        }
        Ok(body)
    }
}

/// The file's fields; whether they make a policy is for the group to say.
fn read(path: &Path) -> anyhow::Result<Value> {
    let wrong = |what: String| fail(Exit::Usage, format!("{}: {what}", path.display()));
    let size = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?.len();
    if size > MOST_BYTES {
        return Err(wrong(format!("{size} bytes; a policy has at most {MOST_BYTES}")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let fields: Map<String, Value> = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    Ok(Value::Object(fields))
}

fn show(global: &Global, policy: &Value) -> anyhow::Result<()> {
    let name = at(policy, "policy");
    output::put(&output::object(global.style(), policy, &name, || file(policy))?);
    Ok(())
}

/// The policy as a file.
fn file(policy: &Value) -> String {
    let of = |field: &str| at(policy, field);
    format!(
        "# Version {}. Edit it, then: nf policy set --file FILE\n\
         policy = \"{}\"\n\n\
         # What one point of each term counts, 0 to 1000.\n\
         [weights]\nfragmentation = {}\ntopology = {}\ncost = {}\n\n\
         # Work that said preemptible gives way to work of higher priority,\n\
         # once that has waited for delay seconds and it had its place for\n\
         # min_run seconds. A program that asked for it may save its state\n\
         # before it is stopped, for at most max_grace seconds.\n\
         [preemption]\nenabled = {}\nmin_run = {}\ndelay = {}\nmax_grace = {}\n",
        of("version"),
        of("policy"),
        of("weights.fragmentation"),
        of("weights.topology"),
        of("weights.cost"),
        of("preemption.enabled"),
        of("preemption.min_run"),
        of("preemption.delay"),
        of("preemption.max_grace")
    )
}

/// Fields that differ, as now and as they would be.
fn changes(now: &Value, would: &Value) -> Vec<Value> {
    let differs = FIELDS.iter().filter(|field| at(now, field) != at(would, field));
    differs.map(|field| json!({ "field": field, "now": at(now, field), "would_be": at(would, field) })).collect()
}

fn table(changes: &[Value]) -> String {
    if changes.is_empty() {
        return String::new();
    }
    let mut table = output::plain_table();
    table.set_header(["FIELD", "NOW", "WOULD BE"]);
    for change in changes {
        table.add_row([at(change, "field"), at(change, "now"), at(change, "would_be")]);
    }
    output::trimmed(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> Value {
        json!({"policy": "cost", "weights": {"fragmentation": 10, "topology": 400, "cost": 1000},
               "preemption": {"enabled": true, "min_run": 60.0, "delay": 5.0, "max_grace": 120.0}, "version": 3})
    }

    #[test]
    fn a_shown_policy_is_a_file_that_says_the_same() {
        let fields: Value = toml::from_str(&file(&live())).unwrap();
        assert!(changes(&live(), &fields).is_empty(), "{fields}");
        assert_eq!(changes(&live(), &json!({"policy": "spread"})).len(), FIELDS.len());
    }

    #[test]
    fn flags_change_the_policy_in_force_unless_another_is_named() {
        let blank = Wanted {
            policy: None,
            file: None,
            weight: vec![],
            min_run: None,
            preemption_delay: Some("0".into()),
            max_grace: None,
            preemption: None,
        };
        let wanted = Wanted { weight: vec![("cost".into(), 5)], preemption: Some(false), ..blank };
        let body = wanted.body(&live()).unwrap();
        assert_eq!((&body["weights"]["cost"], &body["weights"]["topology"]), (&json!(5), &json!(400)));
        assert_eq!(body["preemption"], json!({"enabled": false, "min_run": 60.0, "delay": "0", "max_grace": 120.0}));
        let named = Wanted { policy: Some("spread".into()), ..wanted };
        assert_eq!(named.body(&live()).unwrap()["weights"], json!({"cost": 5}));
    }

    #[test]
    fn a_weight_is_a_term_and_a_number() {
        assert_eq!(weight("cost=7"), Ok(("cost".to_owned(), 7)));
        assert!(weight("cost").is_err() && weight("cost=x").is_err() && weight("cost=-1").is_err());
    }
}
