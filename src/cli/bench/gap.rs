//! The open loop: a call every few milliseconds, whatever became of the last one.
//! It measures the longest time without an acknowledged call, and checks at the
//! end that each acknowledged job is there exactly once.

use super::calls::{self, Ask, Line, Outcome};
use super::{Gap, load, setup};
use crate::cli::client::Client;
use crate::cli::dev;
use crate::cli::exit::{Exit, fail};
use crate::cli::output::at;
use crate::cli::{Global, output, say};
use anyhow::Result;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two tries of one call.
const PAUSE: Duration = Duration::from_millis(20);
/// Connections to each member.
const LINES: usize = 2;
/// One try; a member that is frozen must not hold a call for its whole life.
const TRY: Duration = Duration::from_millis(1500);

/// One call's end.
struct Done {
    request: String,
    begun: Instant,
    ended: Instant,
    tries: u32,
    outcome: Outcome,
}

/// What one trial showed.
struct Trial {
    done: Vec<Done>,
    killed: Option<Instant>,
    missing: usize,
    doubled: usize,
}

pub async fn run(global: &Global, gap: &Gap) -> Result<()> {
    if gap.every == 0 || gap.seconds < 1.0 || gap.trials == 0 {
        return Err(fail(Exit::Usage, "--every 1 or more, --seconds 1 or more, --trials 1 or more"));
    }
    let client = global.client()?;
    let tenant = setup::tenants(&client, 1).await?.remove(0);
    let mut results = Vec::new();
    for number in 1..=gap.trials {
        let trial = trial(&client, gap, &tenant).await?;
        let value = summary(&trial);
        say(format!(
            "trial {number}: longest gap {} ms, {} of {} calls failed, {} missing, {} doubled",
            at(&value, "longest_gap_ms"),
            at(&value, "failed"),
            at(&value, "calls"),
            trial.missing,
            trial.doubled
        ));
        results.push(value);
    }
    report(global, &results)
}

async fn trial(client: &Client, gap: &Gap, tenant: &str) -> Result<Trial> {
    let run = format!("gap-{}", uuid::Uuid::now_v7().simple());
    let mut lines: Vec<Vec<Line>> = Vec::new();
    for addr in client.addrs() {
        lines.push((0..LINES).map(|_| calls::open(client, gap.protocol, addr)).collect::<Result<_>>()?);
    }
    let record = gap.kill_leader.then(|| dev::record(gap.data_dir.as_deref())).transpose()?;
    let begun = Instant::now();
    let end = begun + Duration::from_secs_f64(gap.seconds);
    let kill_at = begun + Duration::from_secs_f64(gap.seconds / 3.0);
    let mut ticks = tokio::time::interval(Duration::from_millis(gap.every));
    let mut tasks = tokio::task::JoinSet::new();
    let mut kill = None;
    let mut number = 0usize;
    while Instant::now() < end {
        ticks.tick().await;
        if let Some(record) = record.as_ref().filter(|_| kill.is_none() && Instant::now() >= kill_at) {
            let record = record.clone();
            kill = Some(tokio::spawn(async move { (dev::kill_member(&record, "leader").await, Instant::now()) }));
        }
        let ask = Ask { tenant: tenant.to_owned(), gpu_milli: 1, request: format!("{run}-{number}") };
        let own = lines.iter().map(|of| of[(number / lines.len()) % LINES].clone()).collect();
        tasks.spawn(one(own, number, ask, gap.deadline));
        number += 1;
    }
    let done = tasks.join_all().await;
    let mut killed = None;
    if let Some(kill) = kill {
        let (member, when) = kill.await?;
        killed = Some(when);
        let record = dev::record(gap.data_dir.as_deref())?;
        dev::restart_member(&record, &member?.0.name).await?;
    }
    let (missing, doubled) = verify(client, tenant, &run, &done).await?;
    let jobs: Vec<String> = done.iter().map(|d| d.request.clone()).collect();
    stop(&mut lines, tenant, jobs).await;
    Ok(Trial { done, killed, missing, doubled })
}

/// One call until it is acknowledged, refused, or its time is over.
async fn one(mut lines: Vec<Line>, number: usize, ask: Ask, deadline: Duration) -> Done {
    let begun = Instant::now();
    let mut tries = 0;
    loop {
        let left = deadline.saturating_sub(begun.elapsed());
        let which = (number + tries as usize) % lines.len();
        tries += 1;
        let limit = left.min(TRY);
        let answer = tokio::time::timeout(limit, lines[which].schedule(&ask, limit)).await;
        let outcome = answer.unwrap_or_else(|_| Outcome::Again("no answer in time".to_owned()));
        let again = matches!(outcome, Outcome::Again(_)) && begun.elapsed() + PAUSE < deadline;
        if !again {
            let ended = Instant::now();
            // Ports and devices are for the next calls; that it existed shows in the finished jobs.
            if matches!(outcome, Outcome::Placed(_)) {
                lines[which].stop(&ask, TRY).await;
            }
            return Done { request: ask.request, begun, ended, tries, outcome };
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Acknowledged jobs that are not there, and jobs that are there more than once.
async fn verify(client: &Client, tenant: &str, run: &str, done: &[Done]) -> Result<(usize, usize)> {
    let rows = client.list(&format!("/schedule?tenant_id={tenant}&finished=true")).await?;
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows {
        let id = at(&row, "request_id");
        if id.starts_with(run) {
            *count.entry(id).or_default() += 1;
        }
    }
    let acknowledged = |d: &&Done| matches!(d.outcome, Outcome::Placed(_) | Outcome::Queued(_));
    let missing = done.iter().filter(acknowledged).filter(|d| !count.contains_key(&d.request)).count();
    Ok((missing, count.values().filter(|n| **n > 1).count()))
}

/// Leaves the group as it was found.
async fn stop(lines: &mut [Vec<Line>], tenant: &str, jobs: Vec<String>) {
    use futures::StreamExt;
    const AT_ONCE: usize = 32;
    let line = lines[0][0].clone();
    let each = jobs.into_iter().map(|request| {
        let (mut line, ask) = (line.clone(), Ask { tenant: tenant.to_owned(), gpu_milli: 1, request });
        async move { line.stop(&ask, Duration::from_secs(5)).await }
    });
    futures::stream::iter(each).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
}

/// The longest time between two acknowledgements, and when it began.
fn longest(mut acks: Vec<Instant>) -> (Duration, Option<Instant>) {
    acks.sort_unstable();
    let gaps = acks.windows(2).map(|pair| (pair[1] - pair[0], Some(pair[0])));
    gaps.max_by_key(|(gap, _)| *gap).unwrap_or_default()
}

fn summary(trial: &Trial) -> Value {
    let placed: Vec<&Done> = trial.done.iter().filter(|d| matches!(d.outcome, Outcome::Placed(_))).collect();
    let acks: Vec<Instant> = placed.iter().map(|d| d.ended).collect();
    // From the kill itself to the next acknowledged call.
    let after = trial.killed.and_then(|at| acks.iter().filter(|ack| **ack > at).map(|ack| *ack - at).min());
    let (gap, _) = longest(acks);
    let mut took: Vec<u32> = placed.iter().map(|d| (d.ended - d.begun).as_micros() as u32).collect();
    took.sort_unstable();
    let mut failures: BTreeMap<String, usize> = BTreeMap::new();
    let (mut failed, mut queued) = (0, 0);
    for done in &trial.done {
        match &done.outcome {
            Outcome::Placed(_) => {}
            Outcome::Queued(_) => queued += 1,
            Outcome::Refused(text) | Outcome::Again(text) => {
                failed += 1;
                if failures.len() < 8 {
                    *failures.entry(text.clone()).or_default() += 1;
                }
            }
        }
    }
    json!({
        "calls": trial.done.len(), "acknowledged": placed.len(), "failed": failed, "queued": queued,
        "retried": trial.done.iter().filter(|d| d.tries > 1).count(),
        "longest_gap_ms": gap.as_secs_f64() * 1000.0,
        "killed": trial.killed.is_some(),
        "first_after_kill_ms": after.map(|d| d.as_secs_f64() * 1000.0),
        "p50_ms": load::percentile(&took, 0.5), "p99_ms": load::percentile(&took, 0.99),
        "max_ms": load::percentile(&took, 1.0),
        "missing": trial.missing, "doubled": trial.doubled, "failures": failures,
    })
}

fn report(global: &Global, results: &[Value]) -> Result<()> {
    let mut gaps: Vec<f64> = results.iter().filter_map(|r| r["longest_gap_ms"].as_f64()).collect();
    gaps.sort_by(f64::total_cmp);
    let median = gaps[gaps.len() / 2];
    let max = gaps.last().copied().unwrap_or_default();
    let sum = |key: &str| results.iter().filter_map(|r| r[key].as_u64()).sum::<u64>();
    let (failed, missing, doubled) = (sum("failed"), sum("missing"), sum("doubled"));
    let value = json!({ "trials": results, "median_gap_ms": median, "max_gap_ms": max,
        "failed": failed, "missing": missing, "doubled": doubled });
    let people = || {
        format!(
            "longest gap: median {median:.0} ms, max {max:.0} ms over {} trial(s)\n{failed} calls failed, {missing} acknowledged jobs missing, {doubled} doubled\n",
            results.len()
        )
    };
    output::put(&output::object(global.style(), &value, "gap", people)?);
    match missing + doubled {
        0 => Ok(()),
        _ => Err(fail(Exit::Failed, "an acknowledged job is missing or doubled")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_between_neighbours() {
        let zero = Instant::now();
        let at = |ms: u64| zero + Duration::from_millis(ms);
        assert_eq!(longest(vec![at(30), at(0), at(10), at(500)]).0, Duration::from_millis(470));
        assert_eq!(longest(vec![at(1)]).0, Duration::ZERO);
    }
}
