//! The leader dies, or freezes: how long until the next acknowledged call, and
//! does any call that has three seconds to live fail? Default settings, real
//! processes, callers on all members throughout.

use crate::caller::{Caller, Ending};
use crate::check;
use crate::cluster::Cluster;
use crate::eventually::eventually;
use crate::load::median;
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Every call has this long: the promise is that none with three seconds to live fails.
const TO_LIVE: Duration = Duration::from_secs(3);
/// How many calls are answered before the fault: all callers are at work, and connections stand.
const WARM: usize = 10 * CALLERS;
/// How long the leader is dead, or frozen: longer than an election, so that the others serve without it
/// for a while, and shorter than a call lives, so that one that began just before sees all of it.
const FAULT: Duration = Duration::from_millis(2500);
const CALLERS: usize = 9;

/// One acknowledged or failed call.
#[derive(Clone, Debug)]
struct Call {
    id: String,
    began: Instant,
    ended: Instant,
    failure: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Kill,
    Freeze,
}

/// Trials; the bars are those of the issue, in seconds: (median, maximum).
pub async fn run(nf: &Path, dir: &Path, kills: usize, freezes: usize, strict: bool) -> Result<()> {
    let mut cluster = Cluster::start(nf, dir, &[("max_tenant_gpus", "1000")]).await?;
    let mut acknowledged = BTreeSet::new();
    let bars = [(Fault::Kill, kills, 0.7, 1.5), (Fault::Freeze, freezes, 1.1, 1.8)];
    let mut missed = Vec::new();
    for (fault, trials, median_bar, most_bar) in bars {
        let mut gaps = Vec::new();
        for n in 1..=trials {
            let (gap, calls) = trial(&mut cluster, fault, n).await?;
            let failed: Vec<_> = calls.iter().filter_map(|c| c.failure.as_ref().map(|f| (&c.id, f))).collect();
            ensure!(failed.is_empty(), "{fault:?} {n}: {} calls failed, e.g. {:?}", failed.len(), failed.first());
            println!("failover: {fault:?} {n}: {:.0} ms, {} calls, none failed", gap * 1000.0, calls.len());
            acknowledged.extend(calls.into_iter().map(|c| c.id));
            gaps.push(gap);
        }
        if trials == 0 {
            continue;
        }
        let most = gaps.iter().copied().fold(0.0, f64::max);
        let middle = median(gaps);
        println!("failover: {fault:?}: median {middle:.3} s (bar {median_bar}), max {most:.3} s (bar {most_bar})");
        if middle > median_bar || most > most_bar {
            missed.push(format!("{fault:?}: median {middle:.3} s, max {most:.3} s"));
        }
    }
    // First: the list of a member that was frozen a moment ago is allowed to be behind.
    check::at_rest(&cluster).await?;
    let (index, hash) = check::same_state(&cluster).await?;
    for member in &cluster.members {
        check::exactly_once(&cluster, member, &acknowledged).await?;
    }
    println!("failover: {} acknowledged, each once on all members; hash {hash} at index {index}", acknowledged.len());
    cluster.stop().await?;
    // On a busy machine a bar is a figure, not a verdict; what must never happen has failed above.
    ensure!(!strict || missed.is_empty(), "bars missed: {missed:?}");
    Ok(())
}

async fn trial(cluster: &mut Cluster, fault: Fault, n: usize) -> Result<(f64, Vec<Call>)> {
    let leader = cluster.leader().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let members = cluster.members.clone();
        let home = caller % members.len();
        let caller_of = Caller { http: cluster.http.clone(), members, home, attempt: Duration::from_secs(1) };
        let prefix = format!("f{fault:?}-{n}-{caller}").to_lowercase();
        callers.spawn(calling(caller_of, prefix, calls.clone(), stop.clone()));
    }
    eventually("the callers are at work", Duration::from_secs(10), || {
        let answered = calls.lock().map(|c| c.iter().filter(|call| call.failure.is_none()).count()).unwrap_or(0);
        async move {
            ensure!(answered >= WARM, "{answered} of {WARM} calls were answered");
            Ok(())
        }
    })
    .await?;
    let at = Instant::now();
    match fault {
        Fault::Kill => cluster.kill(&leader)?,
        Fault::Freeze => cluster.signal(&leader, Signal::SIGSTOP)?,
    }
    // Not a wait for anything: this is the fault.
    tokio::time::sleep(FAULT).await;
    match fault {
        Fault::Kill => cluster.restart(&leader).await?,
        Fault::Freeze => cluster.signal(&leader, Signal::SIGCONT)?,
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(done) = callers.join_next().await {
        done?;
    }
    cluster.wait_ready().await?;
    let calls = calls.lock().map(|c| c.clone()).unwrap_or_default();
    // A call begun before the fault may be answered after it by a commit made before.
    let after = calls.iter().filter(|c| c.began >= at && c.failure.is_none()).map(|c| c.ended);
    let first = after.min().map(|ended| ended.duration_since(at).as_secs_f64());
    let gap = first.ok_or_else(|| anyhow::anyhow!("{fault:?} {n}: no call was acknowledged after the fault"))?;
    Ok((gap, calls))
}

async fn calling(mut caller: Caller, prefix: String, calls: Arc<Mutex<Vec<Call>>>, stop: Arc<AtomicBool>) {
    let tenant = "failover";
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let id = format!("{prefix}-{n}");
        let body = json!({ "tenant_id": tenant, "model_id": "m1", "model_version": "v1", "request_id": id,
                           "resources": { "gpu": 0.001 } });
        let began = Instant::now();
        let ending = caller.schedule(&body, TO_LIVE).await;
        let failure = (!matches!(ending, Ending::Acknowledged(..))).then(|| format!("{ending:?}"));
        let call = Call { id: id.clone(), began, ended: Instant::now(), failure };
        calls.lock().map(|mut c| c.push(call)).ok();
        caller.stop(&id, tenant).await.ok();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
