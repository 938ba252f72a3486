//! What the way through the gateway costs: small requests straight to a replica, and
//! the same through a member, in turns, A B A B, on connections that are kept. The
//! replica is this program itself, so that its work is next to nothing; the member's
//! processor time comes from /proc. The difference is the result, absolute figures
//! are context.

use crate::cluster::{Cluster, Member};
use crate::eventually::eventually;
use crate::http::Caller;
use crate::load::{Figures, closed_loop, median};
use crate::process;
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// Milliseconds that the median request may take longer than a direct one, with one client.
const BAR_P50_MS: f64 = 0.3;
/// Microseconds of the member's processor time for one request.
const BAR_CPU: f64 = 60.0;
const WARM_UP: Duration = Duration::from_secs(1);
const REQUEST: &str = "gateway-1";
const PATH: &str = "/v1/completions";
const BODY: &str = r#"{"model":"m1","prompt":"hello"}"#;

/// How it is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    pub clients: Vec<usize>,
    pub rounds: usize,
    /// Of each measurement.
    pub seconds: u64,
    /// Missing a bar is a failure, not only a figure.
    pub strict: bool,
}

/// One way's figures, one of each round.
#[derive(Debug, Default)]
struct Way {
    p50: Vec<f64>,
    p99: Vec<f64>,
    per_second: Vec<f64>,
    errors: u64,
}

impl Way {
    fn add(&mut self, figures: &Figures) -> Result<()> {
        if let Some(error) = &figures.first_error {
            bail!("{} of {} calls failed, e.g. {error}", figures.errors, figures.calls);
        }
        self.p50.push(figures.percentile(0.5));
        self.p99.push(figures.percentile(0.99));
        self.per_second.push(figures.per_second());
        self.errors += figures.errors;
        Ok(())
    }
}

pub async fn run(nf: &Path, dir: &Path, plan: &Plan) -> Result<()> {
    println!("gateway: {} · {plan:?}", nf.display());
    let mut cluster = Cluster::start(nf, dir, &[("replica_users", "off")]).await?;
    let outcome = on(&mut cluster, dir, plan).await;
    // Replicas outlive their agents: it has to be told to end.
    let ended = end(&cluster).await;
    cluster.stop().await?;
    outcome.and(ended)
}

/// Returns once the replica's process is gone.
async fn end(cluster: &Cluster) -> Result<()> {
    let member = &cluster.members[0];
    let answer = cluster.http.delete(format!("{}/schedule/{REQUEST}", member.url)).send().await?;
    ensure!(answer.status().is_success(), "stop the replica: {}", answer.text().await?);
    eventually("the replica has ended", Duration::from_secs(30), || async {
        let job = cluster.get(member, &format!("/schedule/{REQUEST}")).await?;
        ensure!(job["state"] == "Cancelled", "{}", job["state"]);
        Ok(())
    })
    .await
}

async fn on(cluster: &mut Cluster, dir: &Path, plan: &Plan) -> Result<()> {
    let direct = replica(cluster, dir).await?;
    let leader = cluster.leader().await?;
    let follower = cluster.members.iter().find(|m| m.name != leader.name).context("a follower")?.clone();
    println!("{:>7} {:>12} {:>9} {:>9} {:>10} {:>9}", "clients", "", "p50 ms", "p99 ms", "calls/s", "CPU µs");
    let mut missed = Vec::new();
    for clients in &plan.clients {
        let (mut straight, mut through, mut cpu) = (Way::default(), Way::default(), Vec::new());
        for _ in 0..plan.rounds {
            // What the member does anyway, while nobody asks it anything.
            let (figures, idle) = measure(&follower, &direct, *clients, plan.seconds).await?;
            straight.add(&figures)?;
            let (figures, used) = measure(&follower, address(&follower), *clients, plan.seconds).await?;
            through.add(&figures)?;
            cpu.push(used.saturating_sub(idle).as_secs_f64() * 1e6 / figures.calls.max(1) as f64);
        }
        let m = |values: &Vec<f64>| median(values.clone());
        for (name, way, cpu) in [("direct", &straight, None), ("gateway", &through, Some(m(&cpu)))] {
            let cpu = cpu.map(|cpu| format!("{cpu:.0}")).unwrap_or_default();
            let (p50, p99, rate) = (m(&way.p50), m(&way.p99), m(&way.per_second));
            println!("{clients:7} {name:>12} {p50:9.3} {p99:9.3} {rate:10.0} {cpu:>9}");
        }
        let (longer, cpu) = (m(&through.p50) - m(&straight.p50), m(&cpu));
        println!("{clients:7} {:>12} {longer:+9.3} {:>9} {:>10} {cpu:9.0}", "difference", "", "");
        // More clients than processors wait for one another; that is no cost of the way.
        if *clients == 1 && longer > BAR_P50_MS {
            missed.push(format!("p50 is {longer:.3} ms longer, {BAR_P50_MS} are allowed"));
        }
        if cpu > BAR_CPU {
            missed.push(format!("{cpu:.0} µs of processor time with {clients} clients, {BAR_CPU} are allowed"));
        }
    }
    for text in &missed {
        println!("missed: {text}");
    }
    ensure!(missed.is_empty() || !plan.strict, "{} bars were missed", missed.len());
    Ok(())
}

fn address(member: &Member) -> &str {
    member.url.trim_start_matches("http://")
}

/// Calls to `address` as fast as they are answered, and the member's processor time meanwhile.
async fn measure(member: &Member, address: &str, clients: usize, seconds: u64) -> Result<(Figures, Duration)> {
    let mut callers = Vec::with_capacity(clients);
    for _ in 0..clients {
        callers.push(Caller::connect(address, PATH, BODY).await?);
    }
    let measured = Duration::from_secs(seconds);
    let before = process::cpu(member.pid)?;
    let figures = closed_loop(callers, WARM_UP, measured).await;
    let used = process::cpu(member.pid)?.saturating_sub(before);
    // The warm-up has its share, and is taken out.
    Ok((figures, used.mul_f64(measured.as_secs_f64() / (WARM_UP + measured).as_secs_f64())))
}

/// This program as a replica of the group; its address.
async fn replica(cluster: &Cluster, dir: &Path) -> Result<String> {
    let files = dir.join("model");
    std::fs::create_dir_all(&files)?;
    std::fs::write(files.join("weights"), "none: it answers the same to all\n")?;
    let own = std::env::current_exe()?.display().to_string();
    let runtime = dir.join("runtime.json");
    let argv = [own.as_str(), "replica", "{host}", "{port}"];
    std::fs::write(&runtime, json!({ "argv": argv, "ready": { "path": "/health" } }).to_string())?;
    let (files, runtime) = (files.display().to_string(), runtime.display().to_string());
    let store = format!("file://{}", dir.join("data/models").display());
    let about = ["--model", "m1", "--version", "v1", "--store", &store, "--runtime", &runtime];
    cluster.nf(&[&["model", "publish", &files], &about[..]].concat()).await?;
    let member = &cluster.members[0];
    let job = json!({ "tenant_id": "t1", "model_id": "m1", "model_version": "v1",
        "resources": { "gpu": 0.1 }, "request_id": REQUEST });
    let answer = cluster.http.post(format!("{}/schedule", member.url)).json(&job).send().await?;
    ensure!(answer.status().is_success(), "schedule: {}", answer.text().await?);
    eventually("the replica is ready", Duration::from_secs(30), || async {
        let job = cluster.get(member, &format!("/schedule/{REQUEST}")).await?;
        ensure!(job["ready"] == 1, "{}", job["replicas"]);
        let address = job["placement"]["address"].as_str().context("placement.address")?;
        Ok(address.to_owned())
    })
    .await
}
