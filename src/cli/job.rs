//! `nf run`, `plan`, `explain`, `stop`: one job's life from the outside.

pub(super) mod request;

use super::client::Client;
use super::exit::{Exit, fail};
use super::get::JobArg;
use super::output::{self, at, state};
use super::{Global, confirm, get, say};
use clap::Args;
use nf_core::claim::ANOTHERS;
use request::Request;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Between two looks while waiting.
const LOOK: Duration = Duration::from_millis(150);

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    request: Request,
    /// Wait until it runs
    #[arg(short, long)]
    wait: bool,
    /// How long --wait waits, e.g. 90s
    #[arg(long, default_value = "120s", value_parser = crate::config::parse::duration)]
    timeout: Duration,
    /// Refuse instead of waiting for quota or capacity
    #[arg(long)]
    no_queue: bool,
    /// Run only if planning again gives the plan with this digest
    #[arg(long, value_name = "DIGEST")]
    check_plan: Option<String>,
}

impl Run {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let mut body = self.request.body()?;
        if self.no_queue {
            body["queue"] = json!("never");
        }
        if let Some(digest) = &self.check_plan {
            body["check_plan"] = json!(digest);
        }
        let tenant = at(&body, "tenant_id");
        let answer = submit(&client, body).await?;
        let id = at(&answer, "request_id");
        if !self.wait {
            output::put(&output::object(global.style(), &answer, &id, || placed(&answer))?);
            return match at(&answer, "status").as_str() {
                "queued" => Err(fail(Exit::Queued, "")),
                _ => Ok(()),
            };
        }
        if global.for_people() {
            say(placed(&answer).trim_end());
        }
        let job = wait(&client, (&tenant, &id), self.timeout, global.for_people()).await?;
        output::put(&output::object(global.style(), &job, &id, || running(&job))?);
        Ok(())
    }
}

/// Commits the request. It carries its own name or a key of ours, so every try is the same job.
pub(super) async fn submit(client: &Client, body: Value) -> anyhow::Result<Value> {
    let answer = match body.get("request_id") {
        Some(_) => client.call(Method::POST, "/schedule", Some(body), None).await?,
        None => client.change(Method::POST, "/schedule", body).await?,
    };
    Ok(answer.1)
}

/// What the answer to a schedule call says, for people.
fn placed(answer: &Value) -> String {
    let id = at(answer, "request_id");
    let simulated = if at(answer, "simulation") == "true" { " (simulation)" } else { "" };
    if at(answer, "status") == "queued" {
        let mut out = format!("○ job {id} waits, position {}{simulated}\n", at(answer, "position"));
        out.push_str(&reasons(answer));
        return out;
    }
    let mut out = format!("job {id} placed on {}{simulated}\n", place(answer));
    for placement in answer.get("placements").and_then(Value::as_array).into_iter().flatten().skip(1) {
        out.push_str(&format!("  replica {} on {}\n", at(placement, "replica"), place_of(placement)));
    }
    out
}

fn place(answer: &Value) -> String {
    answer.get("placement").map_or("-".to_owned(), place_of)
}

fn place_of(placement: &Value) -> String {
    let devices = placement.get("devices").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let devices: Vec<_> = devices.iter().filter_map(Value::as_str).collect();
    let gpus = if devices.is_empty() { String::new() } else { format!(" gpu {}", devices.join(",")) };
    let why = match placement.get("why") {
        None | Some(Value::Null) => String::new(),
        Some(why) => match at(why, "candidates").as_str() {
            "1" => format!(" (score {}, the only node)", at(why, "score")),
            candidates => format!(" (score {} among {candidates} nodes)", at(why, "score")),
        },
    };
    format!("{}{gpus}{why}", at(placement, "node"))
}

/// Where the job would go once others have given way.
fn after_victims(plan: &Value) -> String {
    let places = plan.get("after_victims").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let line = |p: &Value| format!("  then replica {} on {}\n", at(p, "replica"), place_of(p));
    places.iter().map(line).collect()
}

/// What the digest does not promise.
fn bound(plan: &Value) -> &'static str {
    let named = plan.get("victims").and_then(Value::as_array).is_some_and(|victims| !victims.is_empty());
    match named && at(plan, "victims_bound") != "true" {
        true => {
            "  who gives way is chosen when the job has waited for the preemption delay; the digest does not cover it\n"
        }
        false => "",
    }
}

/// All reasons, one a line.
fn reasons(value: &Value) -> String {
    let list = value.get("reasons").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let line = |r: &Value| {
        let permanent = if at(r, "permanent") == "true" { " [permanent]" } else { "" };
        format!("  {}{permanent}: {}\n", at(r, "reason"), at(r, "detail"))
    };
    list.iter().map(line).collect()
}

/// Looks until the job runs or ended; each change of state is said.
pub(super) async fn wait(
    client: &Client,
    (tenant, id): (&str, &str),
    timeout: Duration,
    loud: bool,
) -> anyhow::Result<Value> {
    let end = Instant::now() + timeout;
    let stop = super::signals::stop();
    tokio::pin!(stop);
    let mut last = String::new();
    loop {
        let job = client.get(&get::path("/schedule", id, "", Some(tenant))).await?;
        let now = at(&job, "state");
        if now != last && loud {
            say(state(&now));
        }
        match now.as_str() {
            "Running" | "Succeeded" => return Ok(job),
            "Failed" | "Cancelled" | "Lost" | "Preempted" => {
                let text = format!("job {id} ended as {now}{}\n  try: nf explain {id}", why_ended(&job));
                return Err(fail(Exit::Failed, text));
            }
            _ if Instant::now() >= end => {
                let text = format!(
                    "job {id} is still {now} after {}s; it goes on\n{}  try: nf explain {id}",
                    timeout.as_secs(),
                    reasons(&job)
                );
                return Err(fail(Exit::WaitRanOut, text));
            }
            _ => last = now,
        }
        tokio::select! {
            stopped = &mut stop => {
                stopped?;
                say(format!("stopped waiting; job {id} goes on (nf stop {id} stops it)"));
                return Err(fail(Exit::Interrupted, ""));
            }
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn replicas(job: &Value) -> &[Value] {
    job.get("replicas").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn why_ended(job: &Value) -> String {
    let why = replicas(job).iter().map(|r| at(r, "why")).find(|why| why != "-");
    why.map_or(String::new(), |why| format!(": {why}"))
}

fn running(job: &Value) -> String {
    let mut out = String::new();
    for replica in replicas(job) {
        let (address, node) = (at(replica, "placement.address"), at(replica, "placement.node"));
        let endpoint = if address == "-" { String::new() } else { format!(" · endpoint http://{address}") };
        out.push_str(&format!("{} on {node}{endpoint}\n", state(&at(replica, "status"))));
    }
    out
}

#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    request: Request,
}

impl Plan {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let mut body = self.request.body()?;
        body["dry_run"] = json!(true);
        let (_, plan) = client.call(Method::POST, "/schedule", Some(body), None).await?;
        let digest = at(&plan, "digest");
        let people = || {
            let mut out = match at(&plan, "status").as_str() {
                "queued" => format!("○ would wait\n{}{}{}", reasons(&plan), after_victims(&plan), bound(&plan)),
                _ => format!("● would be placed on {}\n", place(&plan)),
            };
            out.push_str(&format!(
                "digest {digest}\nnothing was committed; run with --check-plan {digest} to get exactly this\n"
            ));
            out
        };
        output::put(&output::object(global.style(), &plan, &digest, people)?);
        match at(&plan, "status").as_str() {
            "queued" => Err(fail(Exit::Queued, "")),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Args)]
pub struct Explain {
    #[command(flatten)]
    of: JobArg,
}

impl Explain {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let job = get::explained(&global.client()?, &self.of).await?;
        let id = at(&job, "request_id");
        output::put(&output::object(global.style(), &job, &id, || explain(&job))?);
        Ok(())
    }
}

fn explain(job: &Value) -> String {
    let id = at(job, "request_id");
    let mut out =
        format!("job {id}: {}@{} of {}\n", at(job, "model_id"), at(job, "model_version"), at(job, "tenant_id"));
    out.push_str(&format!("{}\n", state(&at(job, "state"))));
    let waits = reasons(job);
    if !waits.is_empty() {
        out.push_str(&format!("waits at position {} because of\n{waits}", at(job, "position")));
    }
    match at(job, "may_preempt_from").as_str() {
        "-" => {}
        from => out.push_str(&format!("may preempt others from {from}\n")),
    }
    match (at(job, "expected_start.earliest").as_str(), at(job, "expected_start.latest")) {
        ("-", _) => {}
        (earliest, latest) => {
            out.push_str(&format!("will start between {earliest} and {latest}, as far as is known\n"))
        }
    }
    let remedy = job.get("remedy").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if !remedy.is_empty() {
        out.push_str("it would run after\n");
    }
    for change in remedy.iter().filter_map(Value::as_str) {
        out.push_str(&format!("  {change}\n"));
    }
    for replica in replicas(job) {
        let place = replica.get("placement").unwrap_or(&Value::Null);
        let why = match at(replica, "why").as_str() {
            "-" => String::new(),
            why => format!(" ({why})"),
        };
        let on = if place.is_null() { String::new() } else { format!(" on {}", place_of(place)) };
        let saves = match at(replica, "saves_until").as_str() {
            "-" => String::new(),
            until => format!(", may save its state until {until}"),
        };
        let (number, status) = (at(replica, "replica"), at(replica, "status"));
        out.push_str(&format!("  replica {number}: {status}{on}{why}{saves}\n"));
        out.push_str(&terms(place));
    }
    if at(job, "gave_way.to") != "-" {
        out.push_str(&format!(
            "  gave way to {} of priority {} (its own is {}) at {}\n",
            match at(job, "gave_way.to").as_str() {
                ANOTHERS => format!("{ANOTHERS} job"),
                own => format!("job {own}"),
            },
            at(job, "gave_way.priority"),
            at(job, "priority"),
            at(job, "gave_way.at")
        ));
    }
    for step in job.get("history").and_then(Value::as_array).into_iter().flatten() {
        let why = match at(step, "why").as_str() {
            "-" => String::new(),
            why => format!(" ({why})"),
        };
        out.push_str(&format!("  {} {}{why}\n", at(step, "at"), at(step, "state")));
    }
    out
}

/// Why that place and no other: the terms of its score, and the next best.
fn terms(place: &Value) -> String {
    let Some(why) = place.get("why").filter(|why| why.is_object()) else { return String::new() };
    let terms = why.get("terms").and_then(Value::as_object).into_iter().flatten();
    let terms = terms.map(|(term, value)| format!("{term} {value}")).collect::<Vec<_>>().join(", ");
    let next = match at(why, "runner_up").as_str() {
        "-" => String::new(),
        node => format!("; next best {node} with {}", at(why, "runner_up_score")),
    };
    format!("    policy {}: {terms}{next}\n", at(why, "policy"))
}

#[derive(Debug, Args)]
pub struct Stop {
    #[command(flatten)]
    of: JobArg,
    /// Don't ask
    #[arg(short, long)]
    yes: bool,
    /// Say what would be stopped, and do nothing
    #[arg(long)]
    dry_run: bool,
}

impl Stop {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let job = get::job(&client, &self.of).await?;
        let id = at(&job, "request_id");
        let what = format!(
            "stop job {id} ({}@{} of {})",
            at(&job, "model_id"),
            at(&job, "model_version"),
            at(&job, "tenant_id")
        );
        if self.dry_run {
            output::put(&output::object(global.style(), &job, &id, || {
                format!("would {what}, {} replica(s)\n", replicas(&job).len())
            })?);
            return Ok(());
        }
        confirm(&what, self.yes)?;
        let (_, answer) = client.change(Method::DELETE, &self.of.path("/schedule", &id, ""), Value::Null).await?;
        output::put(&output::object(global.style(), &answer, &id, || format!("job {id} stops\n"))?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_reads_as_a_sentence() {
        let answer = json!({"request_id":"r1","status":"scheduled","simulation":true,
            "placement":{"node":"n2","devices":["GPU-a","GPU-b"],"why":{"score":7,"candidates":3}}});
        assert_eq!(placed(&answer), "job r1 placed on n2 gpu GPU-a,GPU-b (score 7 among 3 nodes) (simulation)\n");
        let queued = json!({"request_id":"r2","status":"queued","position":3,
            "reasons":[{"reason":"Resources","detail":"0 of 3 nodes","permanent":false},
                       {"reason":"ExceedsMaxQuota","detail":"4 > 2","permanent":true}]});
        let text = placed(&queued);
        assert!(
            text.contains("position 3") && text.contains("Resources: 0 of 3") && text.contains("[permanent]"),
            "{text}"
        );
    }
}
