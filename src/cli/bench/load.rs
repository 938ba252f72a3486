//! The closed loop: N clients, each with one call under way, for a stated time.

use super::calls::{self, Ask, Line, Outcome};
use super::{Load, Target, cpu, setup};
use crate::cli::exit::{Exit, fail};
use crate::cli::{Global, output, say};
use anyhow::Result;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// One call's limit.
const LIMIT: Duration = Duration::from_secs(10);
/// Kinds of error that are told apart; the rest is counted together.
const KINDS: usize = 16;

const WARMUP: u8 = 0;
const COUNT: u8 = 1;
const END: u8 = 2;

/// What one client saw while it was counted.
#[derive(Default)]
struct Seen {
    /// Microseconds of each placed call.
    placed: Vec<u32>,
    queued: u64,
    stops: u64,
    failed_stops: u64,
    errors: BTreeMap<String, u64>,
}

impl Seen {
    fn error(&mut self, text: String) {
        let known = self.errors.len() < KINDS || self.errors.contains_key(&text);
        *self.errors.entry(if known { text } else { "other".to_owned() }).or_default() += 1;
    }

    fn take(&mut self, other: Seen) {
        self.placed.extend(other.placed);
        self.queued += other.queued;
        self.stops += other.stops;
        self.failed_stops += other.failed_stops;
        for (text, n) in other.errors {
            *self.errors.entry(text).or_default() += n;
        }
    }
}

/// The value below which `part` of the sorted ones lie, in milliseconds.
pub fn percentile(sorted: &[u32], part: f64) -> f64 {
    if sorted.is_empty() {
        return 0.0;
    }
    let at = ((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len()) - 1;
    f64::from(sorted[at]) / 1000.0
}

pub async fn run(global: &Global, load: &Load) -> Result<()> {
    if load.clients == 0 || load.clients > 10_000 || load.seconds <= 0.0 || !load.seconds.is_finite() {
        return Err(fail(Exit::Usage, "--clients 1 to 10000 and --seconds more than 0"));
    }
    let client = global.client()?;
    let run = format!("bench-{}", uuid::Uuid::now_v7().simple());
    let tenants = setup::tenants(&client, load.tenants).await?;
    let fill = setup::fill(&client, &tenants[0], load.fill, &run).await?;
    let addrs = match load.target {
        Target::Leader => vec![setup::leader(&client).await?],
        Target::Any => client.addrs().to_vec(),
    };
    let pids = setup::pids(&load.pids, None);
    let mut lines = Vec::new();
    for addr in &addrs {
        for _ in 0..load.connections.clamp(1, load.clients) {
            lines.push(calls::open(&client, load.protocol, addr)?);
        }
    }
    // Calls to several members alternate between them, not between connections of one.
    let per = lines.len() / addrs.len();
    let line = |i: usize| lines[(i % addrs.len()) * per + (i / addrs.len()) % per].clone();
    let phase = Arc::new(AtomicU8::new(WARMUP));
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..load.clients {
        let work = Work {
            line: line(i),
            tenant: tenants[i % tenants.len()].clone(),
            prefix: format!("{run}-{i}"),
            gpu_milli: load.gpu_milli,
            stops: !load.no_stops,
            phase: phase.clone(),
        };
        tasks.spawn(work.run());
    }
    say(format!("{} clients on {} for {} s", load.clients, addrs.join(","), load.seconds));
    tokio::time::sleep(Duration::from_secs_f64(load.warmup.max(0.0))).await;
    let (begun, before, own) = (Instant::now(), cpu::sum(&pids), cpu::sum(&[std::process::id()]));
    phase.store(COUNT, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs_f64(load.seconds)).await;
    phase.store(END, Ordering::Relaxed);
    let seconds = begun.elapsed().as_secs_f64();
    let (members, own) = (cpu::sum(&pids) - before, cpu::sum(&[std::process::id()]) - own);
    let mut seen = Seen::default();
    while let Some(one) = tasks.join_next().await {
        seen.take(one?);
    }
    setup::stop(&client, &fill).await;
    report(global, load, seen, seconds, (members, own, pids.len()))
}

fn report(global: &Global, load: &Load, mut seen: Seen, seconds: f64, cpu: (f64, f64, usize)) -> Result<()> {
    seen.placed.sort_unstable();
    let calls = seen.placed.len();
    let (members, own, pids) = cpu;
    let each = |seconds: f64| if calls == 0 { 0.0 } else { seconds * 1e6 / calls as f64 };
    let errors: u64 = seen.errors.values().sum();
    let value = json!({
        "clients": load.clients, "seconds": seconds, "protocol": format!("{:?}", load.protocol).to_lowercase(),
        "target": format!("{:?}", load.target).to_lowercase(),
        "calls": calls, "calls_per_second": calls as f64 / seconds,
        "p50_ms": percentile(&seen.placed, 0.5), "p99_ms": percentile(&seen.placed, 0.99),
        "max_ms": percentile(&seen.placed, 1.0),
        "queued": seen.queued, "errors": errors, "error_kinds": seen.errors,
        "stops": seen.stops, "stops_per_second": seen.stops as f64 / seconds, "failed_stops": seen.failed_stops,
        "members_cpu_seconds": members, "own_cpu_seconds": own, "pids": pids,
        "members_cpu_us_per_call": each(members), "cpu_us_per_call": each(members + own),
    });
    let people = || {
        let rate = calls as f64 / seconds;
        let (p50, p99) = (percentile(&seen.placed, 0.5), percentile(&seen.placed, 0.99));
        let mut out = format!("{rate:.0} calls/s placed   p50 {p50:.2} ms   p99 {p99:.2} ms   {calls} calls\n");
        out.push_str(&format!(
            "{:.0} stops/s besides   {} queued   {errors} errors\n",
            seen.stops as f64 / seconds,
            seen.queued
        ));
        if pids > 0 {
            out.push_str(&format!(
                "CPU per call: members {:.0} µs, with this client {:.0} µs\n",
                each(members),
                each(members + own)
            ));
        }
        for (text, n) in &seen.errors {
            out.push_str(&format!("  {n} × {text}\n"));
        }
        out
    };
    output::put(&output::object(global.style(), &value, "bench", people)?);
    match calls {
        0 => Err(fail(Exit::Failed, "no call was placed")),
        _ => Ok(()),
    }
}

/// One client.
struct Work {
    line: Line,
    tenant: String,
    prefix: String,
    gpu_milli: u32,
    stops: bool,
    phase: Arc<AtomicU8>,
}

impl Work {
    async fn run(mut self) -> Seen {
        let mut seen = Seen::default();
        let mut number = 0u64;
        loop {
            let phase = self.phase.load(Ordering::Relaxed);
            if phase == END {
                return seen;
            }
            let request = format!("{}-{number}", self.prefix);
            let ask = Ask { tenant: self.tenant.clone(), gpu_milli: self.gpu_milli, request };
            number += 1;
            let begun = Instant::now();
            let outcome = self.line.schedule(&ask, LIMIT).await;
            let took = begun.elapsed();
            // A call counts when it ends inside the counted time.
            let counts = phase == COUNT && self.phase.load(Ordering::Relaxed) == COUNT;
            let stop = match outcome {
                Outcome::Placed(_) => {
                    if counts {
                        seen.placed.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
                    }
                    true
                }
                Outcome::Queued(_) => {
                    seen.queued += u64::from(counts);
                    true
                }
                Outcome::Refused(text) | Outcome::Again(text) => {
                    if counts {
                        seen.error(text);
                    }
                    // So that a refusing group is not hammered.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    false
                }
            };
            if stop && self.stops {
                let stopped = self.line.stop(&ask, LIMIT).await;
                seen.stops += u64::from(counts && stopped);
                seen.failed_stops += u64::from(counts && !stopped);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn percentiles_are_of_the_sorted_calls() {
        let sorted: Vec<u32> = (1..=100).map(|n| n * 1000).collect();
        assert_eq!(super::percentile(&sorted, 0.5), 50.0);
        assert_eq!(super::percentile(&sorted, 0.99), 99.0);
        assert_eq!(super::percentile(&sorted, 1.0), 100.0);
        assert_eq!(super::percentile(&[], 0.5), 0.0);
    }
}
