//! What live jobs cost: how much memory each adds to a member, and how long a killed
//! member takes until it serves again with all of them.

use crate::bench;
use crate::cluster::{Cluster, Member};
use crate::compare::play;
use crate::load::Client as _;
use crate::process;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::{Duration, Instant};

const CLIENTS: usize = 64;
/// How long nothing is asked, to see what is written then.
const IDLE: Duration = Duration::from_secs(30);
/// Jobs that come and go before the first look, so that connections, RocksDB's write buffers and
/// the log's window are as full as they get: those are no job's.
const WARM: usize = 60_000;

/// Fills a cluster with so many live jobs.
pub async fn run(nf: &Path, dir: &Path, jobs: usize, nodes: usize) -> Result<()> {
    let mut cluster = Cluster::start(nf, dir, &[("max_tenant_gpus", "10000")]).await?;
    play(&mut cluster, dir, nodes, false).await?;
    let quiet = log_bytes(&cluster).await?;
    tokio::time::sleep(IDLE).await;
    let an_hour = (log_bytes(&cluster).await? - quiet) as f64 * 3600.0 / IDLE.as_secs_f64();
    println!("fill: {:.0} KiB of log in an hour in which nothing is asked (bar 1024)", an_hour / 1024.0);
    schedule(&cluster, WARM, 0, 0).await?;
    let before = resident(&cluster.members)?;
    let empty = log_bytes(&cluster).await?;
    let began = Instant::now();
    schedule(&cluster, jobs, 1, usize::MAX).await?;
    println!("fill: {jobs} live jobs on {nodes} nodes, {:.0}/s", jobs as f64 / began.elapsed().as_secs_f64());
    println!("fill: {} bytes of log for each job", (log_bytes(&cluster).await? - empty) / jobs.max(1) as u64);
    let leader = cluster.leader().await?.name;
    let after = resident(&cluster.members)?;
    for (member, (before, after)) in cluster.members.iter().zip(before.iter().zip(&after)) {
        let role = if member.name == leader { "leader" } else { "follower" };
        print_memory(&format!("{} ({role})", member.name), *before, *after, jobs);
    }
    for member in cluster.members.clone() {
        cluster.kill(&member)?;
        let began = Instant::now();
        cluster.restart(&member).await?;
        let took = began.elapsed().as_secs_f64();
        let again = cluster.members.iter().find(|m| m.name == member.name).context("the member is back")?;
        println!("fill: {} was killed and serves again after {took:.2} s (bar 2)", member.name);
        let now = process::resident(again.pid)?;
        println!("fill: {}: {:.0} MiB in all after its restart", member.name, mebibytes(now));
    }
    cluster.stop().await
}

/// Bytes in the first member's log, ever.
async fn log_bytes(cluster: &Cluster) -> Result<u64> {
    // It counts them once a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let text = cluster.http.get(format!("{}/metrics", cluster.members[0].url)).send().await?.text().await?;
    let line = text.lines().find_map(|line| line.strip_prefix("nf_raft_log_bytes_total "));
    Ok(line.context("no nf_raft_log_bytes_total in /metrics")?.trim().parse()?)
}

fn resident(members: &[Member]) -> Result<Vec<u64>> {
    members.iter().map(|member| process::resident(member.pid)).collect()
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn print_memory(name: &str, before: u64, after: u64, jobs: usize) {
    let each = |bytes: u64| bytes as f64 / 1024.0 / jobs as f64;
    println!(
        "fill: {name}: {:.0} MiB before, {:.0} MiB after: {:.2} KiB added by each job (bar 1), {:.2} KiB with all else",
        mebibytes(before),
        mebibytes(after),
        each(after.saturating_sub(before)),
        each(after),
    );
}

/// Places so many jobs, of which each client keeps `share`; `round` tells their names from others'.
async fn schedule(cluster: &Cluster, jobs: usize, round: usize, share: usize) -> Result<()> {
    let urls: Vec<String> = cluster.members.iter().map(|m| m.url.clone()).collect();
    let clients = bench::clients(&urls, CLIENTS, 16, share, None).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for (n, client) in clients.into_iter().enumerate() {
        let mut client = client.named(format!("fill-{round}-{n}"));
        let own = jobs / CLIENTS + usize::from(n < jobs % CLIENTS);
        tasks.spawn(async move {
            for _ in 0..own {
                client.call().await?;
                client.between().await?;
            }
            Ok::<(), String>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        let placed = done?;
        ensure!(placed.is_ok(), "a job was not placed: {placed:?}");
    }
    Ok(())
}
