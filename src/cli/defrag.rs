//! `nf defrag`: what would move so that more of the idle GPU is usable, and the moves.

use super::output::{self, Column, at, col};
use super::{Global, say};
use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

#[derive(Debug, Args)]
pub struct Defrag {
    /// Only say what would move, and what that would win
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
}

const COLUMNS: &[Column] = &[
    col("TENANT", |v| at(v, "tenant_id")),
    col("JOB", |v| at(v, "request_id")),
    col("REPLICA", |v| at(v, "replica")),
    col("FROM", |v| at(v, "from")),
    col("TO", |v| at(v, "to")),
    col("GPUS WON", |v| at(v, "gain")),
];

impl Defrag {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        if !self.dry_run {
            super::confirm("move running replicas", self.yes)?;
        }
        let (_, answer) = client.change(Method::POST, "/defrag", json!({ "dry_run": self.dry_run })).await?;
        let moves = answer.get("moves").and_then(Value::as_array).cloned().unwrap_or_default();
        let table = output::list(global.style(), &moves, COLUMNS, |v| at(v, "request_id"))?;
        match global.for_people() {
            true if !moves.is_empty() => output::put(&table),
            true => {}
            false => output::put(&output::object(global.style(), &answer, "defrag", String::new)?),
        }
        if global.for_people() {
            let (idle, usable) = (at(&answer, "idle"), at(&answer, "usable"));
            say(format!("{idle} GPUs are idle; the next request can use {usable} of them, by expectation"));
            match (self.dry_run, at(&answer, "under_way").as_str()) {
                (true, "0") => {}
                (true, some) => say(format!("{some} replica(s) are on their way already")),
                (false, _) => say(format!("{} move(s) begun; nf get events shows them", at(&answer, "begun"))),
            }
        }
        Ok(())
    }
}
