//! `nf sim place`: placement tried without a group, on lists of nodes and requests. The
//! search, the index and the scores are the daemon's own (`nf_core::placement`); here
//! are the arguments, and who speaks: another program (`--online`) or a replay of files.

mod ask;
pub(super) mod online;
mod plot;
mod replay;
pub(super) mod workload;

use super::super::exit::{Exit, fail};
use super::super::output::{self, Column, col};
use super::super::{Global, say};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nf_core::placement::Policy;
use replay::{Outcome, Plan};
use serde_json::Value;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Place {
    /// Read nodes and requests from stdin line by line, and answer on stdout
    #[arg(long, conflicts_with_all = ["nodes", "requests", "seeds", "ratio", "plot", "learn"])]
    online: bool,
    /// CSV with the columns sn,cpu_milli,memory_mib,gpu,model
    #[arg(long, value_name = "FILE", required_unless_present = "online")]
    nodes: Option<PathBuf>,
    /// CSV with the columns cpu_milli,memory_mib,num_gpu,gpu_milli and gpu_spec
    #[arg(long, value_name = "FILE", required_unless_present = "online")]
    requests: Option<PathBuf>,
    /// How places are compared, one or several: fragmentation, best-fit, spread, cost, latency, random
    #[arg(long, value_name = "NAMES", default_value = "fragmentation", value_delimiter = ',', value_parser = policy)]
    policy: Vec<Policy>,
    /// Orders of arrival that are played: 42-51 or 1,2,3
    #[arg(long, default_value = "42-51", value_parser = seeds)]
    seeds: Seeds,
    /// GPUs asked for in all, as a multiple of the capacity
    #[arg(long, default_value = "1.3", value_parser = ratio)]
    ratio: f64,
    /// Do not tell the placer the mix of requests: it learns from those that arrive
    #[arg(long)]
    learn: bool,
    /// Draw allocation against arrivals into this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Seeds, at most [`MOST_SEEDS`].
#[derive(Clone, Debug)]
struct Seeds(Vec<u64>);

/// Most seeds in one run.
const MOST_SEEDS: u64 = 1000;

fn policy(name: &str) -> Result<Policy, String> {
    let known = || Policy::ALL.map(Policy::name).join(", ");
    Policy::named(name).ok_or_else(|| format!("no such policy; there are {}", known()))
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse::<f64>().ok().filter(|ratio| (0.01..=10.0).contains(ratio));
    ratio.ok_or_else(|| "a number from 0.01 to 10".to_owned())
}

fn seeds(text: &str) -> Result<Seeds, String> {
    let wrong = || format!("numbers such as 42-51 or 1,2,3, at most {MOST_SEEDS} of them");
    let mut out = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last - first >= MOST_SEEDS || out.len() as u64 + (last - first) >= MOST_SEEDS {
            return Err(wrong());
        }
        out.extend(first..=last);
    }
    Ok(Seeds(out))
}

pub(super) fn read<T>(path: &Path, parse: fn(&str) -> Result<T, String>) -> anyhow::Result<T> {
    let wrong = |why: String| fail(Exit::Usage, format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    parse(&text).map_err(wrong)
}

impl Place {
    pub fn run(self, global: &Global) -> anyhow::Result<()> {
        match (&self.nodes, &self.requests) {
            (Some(nodes), Some(requests)) => self.replay(nodes, requests, global),
            _ => self.converse(),
        }
    }

    fn converse(&self) -> anyhow::Result<()> {
        let [policy] = self.policy[..] else {
            return Err(fail(Exit::Usage, "--online plays one policy at a time"));
        };
        let out = BufWriter::new(io::stdout().lock());
        match online::run(io::stdin().lock(), out, |note| say(format_args!("note: {note}")), policy) {
            Ok(()) => Ok(()),
            Err(online::Error::Line(error)) => Err(fail(Exit::Usage, error.to_string())),
            // The other side is gone; nobody is left to be told.
            Err(online::Error::Io(e)) if e.kind() == io::ErrorKind::BrokenPipe => Err(fail(Exit::Failed, "")),
            Err(online::Error::Io(e)) => Err(fail(Exit::Failed, format!("stdin or stdout: {e}"))),
        }
    }

    fn replay(&self, nodes: &Path, requests: &Path, global: &Global) -> anyhow::Result<()> {
        let plan = Plan {
            nodes: read(nodes, workload::nodes)?,
            requests: read(requests, workload::requests)?,
            seeds: self.seeds.0.clone(),
            ratio: self.ratio,
            learn: self.learn,
        };
        let bar = progress((self.policy.len() * plan.seeds.len()) as u64);
        let mut outcomes: Vec<Outcome> = Vec::new();
        for policy in &self.policy {
            bar.set_message(policy.name());
            outcomes.push(plan.run(*policy, || bar.inc(1)));
        }
        bar.finish_and_clear();
        let items: Vec<Value> = outcomes.iter().map(Outcome::value).collect();
        let text = output::list(global.style(), &items, COLUMNS, |item| output::at(item, "policy"))?;
        io::stdout().write_all(text.as_bytes())?;
        let Some(file) = &self.plot else { return Ok(()) };
        let (count, gpus) = (plan.nodes.len(), plan.capacity() / 1000);
        let title = format!("{count} nodes, {gpus} GPUs, {} orders of arrival", plan.seeds.len());
        let wrong = |e: io::Error| fail(Exit::Failed, format!("{}: {e}", file.display()));
        std::fs::write(file, plot::svg(&title, &outcomes)).map_err(wrong)?;
        say(format!("drew {}", file.display()));
        Ok(())
    }
}

const COLUMNS: &[Column] = &[
    col("POLICY", |item| output::at(item, "policy")),
    col("AT 100 %", |item| percent(item, "allocated_at_100")),
    col("AT THE END", |item| percent(item, "allocated_at_end")),
    col("REFUSED", |item| output::at(item, "refused")),
    col("DECISIONS/S", |item| output::at(item, "decisions_per_second")),
    col("P50 US", |item| output::at(item, "p50_us")),
    col("P99 US", |item| output::at(item, "p99_us")),
];

fn percent(item: &Value, key: &str) -> String {
    item.get(key).and_then(Value::as_f64).map_or("-".to_owned(), |value| format!("{value:.2}"))
}

/// On a terminal only; what is counted are seeds times policies.
fn progress(steps: u64) -> ProgressBar {
    let hidden = !io::stderr().is_terminal();
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style = ProgressStyle::with_template("{msg:>14} {bar:30} {pos}/{len} {elapsed}, {eta} left");
    let bar = ProgressBar::with_draw_target(Some(steps), target);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
