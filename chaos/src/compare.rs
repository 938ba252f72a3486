//! Neural Fabric and etcd in turns, A B A B A B, on one machine with one loader:
//! calls per second, latency, and processor time per call, as medians. Absolute
//! figures are context; the ratio is the result. Never a timed test.

use crate::cluster::Cluster;
use crate::etcd::Etcd;
use crate::load::{Client, Figures, closed_loop, median};
use crate::{bench, eventually::eventually, process};
use anyhow::{Result, bail, ensure};
use nix::unistd::Pid;
use std::path::Path;
use std::time::Duration;

/// How the comparison is run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub clients: Vec<usize>,
    pub rounds: usize,
    pub seconds: u64,
    /// Nodes of 8 GPUs that placement chooses among.
    pub nodes: usize,
    /// Nodes whose agents start and stop what is placed; without, they only beat.
    pub agents: bool,
    /// Every call shows a token, which is checked.
    pub auth: bool,
    /// Measure this alone.
    pub only: Option<Side>,
}

impl Plan {
    fn wants(&self, side: Side) -> bool {
        self.only.is_none_or(|only| only == side)
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Side {
    Etcd,
    /// Calls to our leader alone.
    Leader,
    /// Calls to all our members in turn.
    Any,
}

impl Side {
    const ALL: [Self; 3] = [Self::Etcd, Self::Leader, Self::Any];

    fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Leader => "nf, leader only",
            Self::Any => "nf, any member",
        }
    }
}

/// One system's figures at one number of clients.
#[derive(Clone, Debug, Default)]
struct Column {
    per_second: Vec<f64>,
    commits: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    cpu_micros: Vec<f64>,
    errors: u64,
    first_error: Option<String>,
}

impl Column {
    fn add(&mut self, figures: Figures, cpu: Duration) {
        self.per_second.push(figures.per_second());
        self.commits.push(figures.commits_per_second());
        self.p50.push(figures.percentile(0.5));
        self.p99.push(figures.percentile(0.99));
        self.cpu_micros.push(cpu.as_secs_f64() * 1e6 / figures.calls.max(1) as f64);
        self.errors += figures.errors;
        self.first_error = self.first_error.take().or(figures.first_error);
    }

    fn line(&self, name: &str, clients: usize) -> String {
        let m = |values: &Vec<f64>| median(values.clone());
        format!(
            "{name:22} {clients:7} {:10.0} {:10.0} {:9.2} {:9.2} {:9.0} {:7}",
            m(&self.per_second),
            m(&self.commits),
            m(&self.p50),
            m(&self.p99),
            m(&self.cpu_micros),
            self.errors
        )
    }
}

pub async fn run(nf: &Path, dir: &Path, plan: &Plan) -> Result<()> {
    if which("etcd").is_none() {
        bail!("compare: there is no etcd on PATH; install it: apt-get install etcd-server");
    }
    println!("compare: {plan:?}");
    println!(
        "{:22} {:>7} {:>10} {:>10} {:>9} {:>9} {:>9} {:>7}",
        "", "clients", "calls/s", "commits/s", "p50 ms", "p99 ms", "CPU µs", "errors"
    );
    for clients in &plan.clients {
        let sides: Vec<Side> = Side::ALL.into_iter().filter(|side| plan.wants(*side)).collect();
        let mut columns = vec![Column::default(); sides.len()];
        for round in 0..plan.rounds {
            for (side, column) in sides.iter().zip(&mut columns) {
                let at = dir.join(format!("{clients}-{round}-{side:?}"));
                std::fs::create_dir_all(&at)?;
                match side {
                    Side::Etcd => etcd(&at, *clients, plan, column).await?,
                    Side::Leader | Side::Any => ours(nf, &at, *clients, plan, *side, column).await?,
                }
            }
        }
        for (side, column) in sides.iter().zip(&columns) {
            println!("{}", column.line(side.name(), *clients));
        }
        if let [theirs, leader, any] = &columns[..] {
            let ratio = median(leader.per_second.clone()) / median(theirs.per_second.clone()).max(1.0);
            let spread = median(any.per_second.clone()) / median(leader.per_second.clone()).max(1.0);
            let commits = median(leader.commits.clone()) / median(theirs.commits.clone()).max(1.0);
            println!(
                "{:22} {clients:7} nf / etcd {ratio:.2}, with the stops {commits:.2}; any member / leader only {spread:.2}",
                "ratio"
            );
        }
        for (side, column) in sides.iter().zip(&columns) {
            if let Some(error) = &column.first_error {
                println!("{}: {} errors, e.g. {error}", side.name(), column.errors);
            }
        }
    }
    Ok(())
}

/// Clients share connections, alike on both sides, as clients of a service do.
fn connections(clients: usize) -> usize {
    clients.min(16)
}

/// Warms up, measures, and adds the processor time of members and of this process.
async fn measure<C: Client>(
    clients: Vec<C>,
    plan: &Plan,
    cpu: impl Fn() -> Result<Duration>,
) -> Result<(Figures, Duration)> {
    let whole = || -> Result<Duration> { Ok(cpu()? + process::cpu(Pid::this())?) };
    // The warm-up's processor time is in proportion to its share of the run, and taken out.
    let (warm, measured) = (Duration::from_secs(1), Duration::from_secs(plan.seconds));
    let before = whole()?;
    let figures = closed_loop(clients, warm, measured).await;
    let used = whole()?.saturating_sub(before);
    let share = measured.as_secs_f64() / (warm + measured).as_secs_f64();
    Ok((figures, used.mul_f64(share)))
}

async fn etcd(dir: &Path, clients: usize, plan: &Plan, column: &mut Column) -> Result<()> {
    let etcd = Etcd::start(dir).await?;
    let load = etcd.clients(clients, connections(clients)).await?;
    let (figures, cpu) = measure(load, plan, || etcd.cpu()).await?;
    column.add(figures, cpu);
    etcd.stop().await
}

/// One measurement on a cluster of its own: one that another has filled is another cluster.
async fn ours(nf: &Path, dir: &Path, clients: usize, plan: &Plan, side: Side, column: &mut Column) -> Result<()> {
    let quota = (plan.nodes * GPUS).to_string();
    let mut cluster = Cluster::start_with(nf, dir, &[("max_tenant_gpus", &quota)], plan.auth).await?;
    play(&mut cluster, dir, plan.nodes, plan.agents).await?;
    fill(&cluster, plan.nodes * GPUS / 2).await?;
    let urls = match side {
        Side::Leader => vec![cluster.leader().await?.url],
        _ => cluster.members.iter().map(|m| m.url.clone()).collect(),
    };
    let load = bench::clients(&urls, clients, connections(clients), HELD, cluster.token.as_deref()).await?;
    let taking: Vec<_> = load.into_iter().map(|client| tokio::spawn(client.take_share())).collect();
    let mut load = Vec::new();
    for client in taking {
        load.push(client.await?.map_err(|error| anyhow::anyhow!("before the measurement: {error}"))?);
    }
    let (figures, cpu) = measure(load, plan, || cluster.cpu()).await?;
    column.add(figures, cpu);
    cluster.stop().await
}

/// Takes so many whole GPUs, so that placement chooses on a cluster that is half full.
async fn fill(cluster: &Cluster, gpus: usize) -> Result<()> {
    let url = format!("{}/schedule", cluster.members[0].url);
    for first in (0..gpus).step_by(FILLING) {
        let replicas = FILLING.min(gpus - first);
        let body = serde_json::json!({ "tenant_id": "demo", "model_id": "filling", "model_version": "v1",
            "request_id": format!("filling-{first}"), "resources": { "gpu": 1 }, "replicas": replicas });
        let answer = cluster.http.post(&url).json(&body).send().await?;
        ensure!(answer.status() == 201, "{}: {}", answer.status(), answer.text().await?);
    }
    Ok(())
}

/// Of a node.
const GPUS: usize = 8;
/// Jobs that each client holds on to: as many calls as that have no stop between them, before the measurement.
const HELD: usize = 16;
/// Replicas of a job that fills.
const FILLING: usize = 500;
/// Nodes that one process plays.
const PLAYED: usize = 2_500;

/// Nodes of 8 GPUs, in processes of their own; their processor time is not counted.
pub async fn play(cluster: &mut Cluster, dir: &Path, nodes: usize, agents: bool) -> Result<()> {
    for first in (0..nodes).step_by(PLAYED) {
        let list = dir.join(format!("nodes-{first}.csv"));
        let rows: String =
            (first..nodes.min(first + PLAYED)).map(|n| format!("b{n},128000,1048576,{GPUS},A100\n")).collect();
        std::fs::write(&list, format!("sn,cpu_milli,memory_mib,gpu,model\n{rows}"))?;
        // The keys of the group that nf dev has made there.
        let (list, data) = (list.display().to_string(), dir.join("data").display().to_string());
        let mut args = vec!["sim", "nodes", "--from", &list, "--data-dir", &data];
        if !agents {
            args.push("--beats-only");
        }
        cluster.also(&format!("nodes-{first}"), &args)?;
    }
    // The members' own nodes have agents, which would be measured, too.
    for member in &cluster.members {
        let answer = cluster.http.post(format!("{}/node/{}/cordon", member.url, member.name));
        let answer = answer.json(&serde_json::json!({ "reason": "a measurement" })).send().await?;
        ensure!(answer.status().is_success(), "cordon {}: {}", member.name, answer.text().await?);
    }
    eventually("the nodes are ready", Duration::from_secs(30), || async {
        let resources = cluster.get(&cluster.members[0], "/resources").await?;
        let known = resources["nodes"].as_array().map_or(0, Vec::len);
        ensure!(known >= nodes, "{known} of {nodes} nodes are known");
        Ok(())
    })
    .await
}

/// Where a program is on PATH.
pub fn which(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}
