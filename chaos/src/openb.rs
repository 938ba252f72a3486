//! The real workload: the trace's nodes as virtual workers of a real three-member
//! cluster, its requests from several clients at once on all members, the leader
//! killed twice on the way. It does not judge placement, only that nothing is
//! lost, doubled or over-committed, and that the members agree.

use crate::caller::{Caller, Ending};
use crate::cluster::Cluster;
use crate::eventually::eventually;
use crate::{check, trace};
use anyhow::{Result, bail, ensure};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Clients per member.
const CLIENTS: usize = 4;
const TENANTS: usize = 8;
/// A caller's patience; failovers fit into it many times.
const PATIENCE: Duration = Duration::from_secs(30);

/// What all clients share.
struct Work {
    pods: Vec<trace::Pod>,
    next: AtomicUsize,
    done: AtomicUsize,
    acknowledged: Mutex<BTreeSet<String>>,
    placed: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

pub async fn run(nf: &Path, dir: &Path, limit: Option<usize>) -> Result<()> {
    let Some(traces) = trace::folder() else {
        println!("SKIPPED: openb: the trace is not beside the clone (../shared/traces) nor at NF_TRACES.");
        println!("SKIPPED: openb: nothing was tested. Fetch the trace (docs/testing.md) and run this again.");
        return Ok(());
    };
    let mut pods = trace::pods(&traces.join("openb_pod_list_default.csv"))?;
    pods.truncate(limit.unwrap_or(usize::MAX));
    let mut cluster = Cluster::start(nf, dir, &[("max_tenant_gpus", "7000")]).await?;
    let nodes = traces.join("openb_node_list_gpu_node.csv");
    let expected = std::fs::read_to_string(&nodes)?.lines().filter(|l| !l.is_empty()).count() - 1;
    let data = dir.join("data").display().to_string();
    cluster.also("workers", &["sim", "nodes", "--from", &nodes.display().to_string(), "--data-dir", &data])?;
    let ready = nodes_ready(&cluster, expected).await?;
    println!("openb: {ready} nodes are ready; {} requests from {} clients", pods.len(), CLIENTS * 3);

    let total = pods.len();
    let work = Arc::new(Work {
        pods,
        next: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        acknowledged: Mutex::default(),
        placed: AtomicUsize::new(0),
        failures: Mutex::default(),
    });
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS * cluster.members.len() {
        let members = cluster.members.clone();
        let home = n % members.len();
        let attempt = Duration::from_secs(3);
        clients.spawn(client(Caller { http: cluster.http.clone(), members, home, attempt }, work.clone()));
    }
    for (n, part) in [(1, total / 3), (2, 2 * total / 3)] {
        eventually("the clients get on", Duration::from_secs(240), || async {
            let done = work.done.load(Ordering::Relaxed);
            ensure!(done >= part, "{done} of {part} requests are answered");
            Ok(())
        })
        .await?;
        let leader = cluster.leader().await?;
        cluster.kill(&leader)?;
        println!("openb: kill -9 of the leader ({}, number {n}) after {part} answers", leader.name);
        // Down for a while, so that the group works with two.
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.restart(&leader).await?;
    }
    while let Some(client) = clients.join_next().await {
        client?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let failures = work.failures.lock().map(|f| f.clone()).unwrap_or_default();
    ensure!(failures.is_empty(), "{} requests were not acknowledged, e.g. {:?}", failures.len(), failures.first());
    let acknowledged = work.acknowledged.lock().map(|a| a.clone()).unwrap_or_default();
    ensure!(acknowledged.len() == total, "{} of {total} acknowledged", acknowledged.len());
    verdict(&cluster, &acknowledged).await?;
    let placed = work.placed.load(Ordering::Relaxed);
    println!("openb: {total} acknowledged in {seconds:.1} s ({placed} placed at once), two leaders killed");
    cluster.stop().await
}

async fn nodes_ready(cluster: &Cluster, expected: usize) -> Result<usize> {
    eventually("the workers are ready", Duration::from_secs(90), || async {
        let resources = cluster.get(&cluster.members[0], "/resources").await?;
        let nodes = resources["nodes"].as_array().cloned().unwrap_or_default();
        let ready = nodes.iter().filter(|n| n["state"] == "Ready").count();
        ensure!(ready >= expected, "{ready} of {expected} nodes are ready");
        Ok(ready)
    })
    .await
}

async fn client(mut caller: Caller, work: Arc<Work>) {
    loop {
        let n = work.next.fetch_add(1, Ordering::Relaxed);
        let Some(pod) = work.pods.get(n) else { return };
        let id = format!("{}-{n}", pod.name);
        let body = pod.body(&format!("tenant-{}", n % TENANTS), &id);
        match caller.schedule(&body, PATIENCE).await {
            Ending::Acknowledged(answer, _) => {
                work.placed.fetch_add(usize::from(answer["status"] == "scheduled"), Ordering::Relaxed);
                work.acknowledged.lock().map(|mut a| a.insert(id)).ok();
            }
            other => drop(work.failures.lock().map(|mut f| f.push(format!("{id}: {other:?}")))),
        }
        work.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// The end: same state everywhere, each job once, no device beyond what it is.
async fn verdict(cluster: &Cluster, acknowledged: &BTreeSet<String>) -> Result<()> {
    // First: the lists are stale reads, and a member that has just started may be behind.
    let (index, hash) = check::same_state(cluster).await?;
    for member in &cluster.members {
        let listed = check::exactly_once(cluster, member, acknowledged).await?;
        if listed != acknowledged.len() {
            bail!("{}: {listed} jobs for {} acknowledged requests", member.name, acknowledged.len());
        }
    }
    let devices = check::not_over_committed(cluster, &cluster.members[0]).await?;
    println!("openb: each job once on all members; {devices} devices held, none twice; hash {hash} at index {index}");
    Ok(())
}
