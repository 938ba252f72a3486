//! `nf sim autoscale`: arrivals through the daemon's autoscaler and through the
//! rules that others use, on the same terms, as a table and a picture. It knows
//! neither group nor clock.

pub(super) mod online;
mod picture;

use crate::cli::Global;
use crate::cli::exit::{Exit, fail};
use crate::cli::output::{self, at, col, wide};
use crate::config::parse;
use clap::Args;
use nf_core::autoscaler::Service;
use nf_core::autoscaler::replay::table::{Line, Terms, dominates};
use nf_core::autoscaler::replay::{Load, Rule, Shape, load};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// Replays of one call.
const MOST_REPLAYS: usize = 1000;

#[derive(Debug, Args)]
pub struct Autoscale {
    /// Speak text lines on stdin and stdout; the other side owns time and service
    #[arg(long, conflicts_with_all = ["arrivals", "load"])]
    online: bool,
    /// CSV: when each request comes (seconds, Unix time or dates), and in a second column, if there is one, the
    /// milliseconds it takes
    #[arg(long, value_name = "FILE", conflicts_with = "load")]
    arrivals: Option<PathBuf>,
    /// Generated loads: steady, diurnal, ramp, bursts, random-bursts, on-off, random-on-off, conversation
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    load: Vec<String>,
    /// Who decides: nf, hpa[:0.7], kpa[:0.7], hpa-tuned, kpa-tuned, peak, mean, fixed:N, oracle; all when absent
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    policy: Vec<String>,
    /// A seed, or the first and the last: 1-5
    #[arg(long, alias = "seeds", default_value = "1")]
    seed: String,
    /// Requests per second at the peak of a generated load
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    peak: u64,
    /// Time between decisions
    #[arg(long, default_value = "5s", value_parser = parse::duration)]
    tick: Duration,
    /// From a decision to a ready replica
    #[arg(long, default_value = "90s", value_parser = parse::duration)]
    cold_start: Duration,
    #[arg(long, default_value_t = 1)]
    min: u32,
    #[arg(long, default_value_t = 100)]
    max: u32,
    /// Requests that a replica serves at once
    #[arg(long, default_value_t = 16)]
    slots: u32,
    /// Bound on the time until a request begins to be served
    #[arg(long, default_value = "2s", value_parser = parse::duration)]
    slo: Duration,
    /// Typical time of one request
    #[arg(long, default_value = "2s", value_parser = parse::duration)]
    service_time: Duration,
    /// Of one replica
    #[arg(long, default_value_t = 1)]
    gpus: u32,
    /// Replicas at the beginning; what the first minutes need when absent
    #[arg(long)]
    start: Option<u32>,
    /// Requests that wait longer than the bound leave, instead of being served late
    #[arg(long)]
    leave: bool,
    /// Draw arrivals and replicas of the first replay
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

impl Autoscale {
    pub fn run(self, global: &Global) -> anyhow::Result<()> {
        if self.online {
            return online::run(std::io::stdin().lock(), std::io::stdout().lock());
        }
        let usage = |text: String| fail(Exit::Usage, text);
        let terms = Terms { service: self.service().map_err(usage)?, start: self.start, impatient: self.leave };
        let rules = self.rules().map_err(usage)?;
        let mut items = Vec::new();
        for (number, (name, seed)) in self.replays().map_err(usage)?.into_iter().enumerate() {
            let load = self.load_of(&name, seed)?;
            let lines = terms.compare(&load, &rules).map_err(|e| usage(e.to_string()))?;
            let ours = lines.iter().find(|line| line.rule == Rule::Nf).map(|line| line.outcome.clone());
            for line in &lines {
                let worse =
                    ours.as_ref().is_some_and(|ours| line.rule != Rule::Oracle && dominates(&line.outcome, ours));
                items.push(shown(&name, seed, line, self.gpus, worse));
            }
            if let Some(path) = self.plot.as_ref().filter(|_| number == 0) {
                std::fs::write(path, picture::svg(&name, &lines))
                    .map_err(|e| fail(Exit::Failed, format!("{}: {e}", path.display())))?;
            }
        }
        let columns = [
            col("LOAD", |v| at(v, "load")),
            col("SEED", |v| at(v, "seed")),
            col("POLICY", |v| at(v, "policy")),
            col("IN TIME %", |v| at(v, "attainment_percent")),
            col("GPU-HOURS", |v| at(v, "gpu_hours")),
            col("× ORACLE", |v| at(v, "times_oracle")),
            col("MOST", |v| at(v, "most_replicas")),
            col("BETTER THAN NF IN BOTH", |v| if v["dominates_nf"] == true { "yes" } else { "" }.to_owned()),
            wide("REQUESTS", |v| at(v, "requests")),
        ];
        output::put(&output::list(global.style(), &items, &columns, |v| at(v, "policy"))?);
        Ok(())
    }

    fn service(&self) -> Result<Service, String> {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let service = Service {
            tick_ms: ms(self.tick),
            cold_start_ms: ms(self.cold_start),
            min: self.min,
            max: self.max,
            slots: self.slots,
            wait_ms: ms(self.slo),
            service_ms: ms(self.service_time),
            gpus: self.gpus.max(1),
            ..Service::default()
        };
        if !service.tick_ms.is_multiple_of(1000) {
            return Err("--tick: whole seconds, please".to_owned());
        }
        service.check().map_err(|e| e.to_string())
    }

    fn rules(&self) -> Result<Vec<Rule>, String> {
        if self.policy.is_empty() {
            return Ok(Rule::USUAL.to_vec());
        }
        let rule = |name: &String| {
            Rule::parse(name).ok_or_else(|| {
                format!("--policy {name}: none of nf, hpa[:0.7], kpa[:0.7], hpa-tuned, kpa-tuned, peak, mean, fixed:N, oracle")
            })
        };
        self.policy.iter().map(rule).collect()
    }

    /// Each load with each seed.
    fn replays(&self) -> Result<Vec<(String, u64)>, String> {
        let (first, last) = self.seed.split_once('-').unwrap_or((&self.seed, &self.seed));
        let number =
            |text: &str| text.trim().parse::<u64>().map_err(|_| format!("--seed {}: a number, or 1-5", self.seed));
        let (first, last) = (number(first)?, number(last)?);
        let names = match &self.arrivals {
            Some(path) => {
                vec![path.file_name().map_or_else(|| "arrivals".into(), |n| n.to_string_lossy().into_owned())]
            }
            None if self.load.is_empty() => {
                return Err("what shall come? --arrivals FILE, --load NAMES or --online".to_owned());
            }
            None => self.load.clone(),
        };
        if let Some(name) = self.load.iter().find(|name| Shape::parse(name).is_none()) {
            let all: Vec<_> = Shape::ALL.iter().map(|s| s.name()).collect();
            return Err(format!("--load {name}: none of {}", all.join(", ")));
        }
        if last < first || (last - first) as usize >= MOST_REPLAYS / names.len() {
            return Err(format!("--seed {}: from a lower to a higher one, {MOST_REPLAYS} replays at most", self.seed));
        }
        Ok(names.iter().flat_map(|name| (first..=last).map(|seed| (name.clone(), seed))).collect())
    }

    fn load_of(&self, name: &str, seed: u64) -> anyhow::Result<Load> {
        let service_ms = u64::try_from(self.service_time.as_millis()).unwrap_or(u64::MAX);
        let Some(path) = &self.arrivals else {
            let shape = Shape::parse(name).ok_or_else(|| fail(Exit::Usage, format!("--load {name}")))?;
            return Ok(load::make(shape, seed, self.peak * 1000, service_ms));
        };
        let named = |e: String| fail(Exit::Usage, format!("{}: {e}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| named(e.to_string()))?;
        load::read(&text, seed, service_ms).map_err(named)
    }
}

fn shown(name: &str, seed: u64, line: &Line, gpus: u32, dominates: bool) -> Value {
    let milli = |n: u64| n as f64 / 1000.0;
    let outcome = &line.outcome;
    let policy = if line.asked == line.rule {
        line.rule.name()
    } else {
        format!("{} ({})", line.asked.name(), line.rule.name())
    };
    json!({
        "load": name,
        "seed": seed,
        "policy": policy,
        "requests": outcome.requests,
        "attainment_percent": milli(outcome.attainment_m()),
        "gpu_hours": milli(outcome.gpu_hours_m(gpus)),
        "times_oracle": milli(line.times_oracle_m),
        "most_replicas": outcome.most,
        "dominates_nf": dominates,
    })
}
