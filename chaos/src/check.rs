//! The checker of a drill, apart from what it checks: from the public API alone,
//! is every acknowledged job there exactly once, does any device hold more than
//! it is, and do the members agree. It shares no code with the core.

use crate::cluster::{Cluster, Member};
use crate::eventually::eventually;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::task::JoinSet;

/// Pages through the job list of one member.
pub async fn jobs(cluster: &Cluster, member: &Member, query: &str) -> Result<Vec<Value>> {
    let (mut out, mut token) = (Vec::new(), String::new());
    // 1,000 pages of 1,000 jobs; more would mean a token that never ends.
    for _ in 0..1000 {
        let next = if token.is_empty() { String::new() } else { format!("&next_token={token}") };
        let page = cluster.get(member, &format!("/schedule?per_page=1000&{query}{next}")).await?;
        let rows = page["items"].as_array().context("a page has `items`")?;
        out.extend(rows.iter().cloned());
        match page["next_token"].as_str() {
            Some(more) if !more.is_empty() => token = more.to_owned(),
            _ => return Ok(out),
        }
    }
    anyhow::bail!("the list of {} does not end", member.name)
}

/// Waits until nothing is on its way out on any member: a job that ends while its list is paged through is on a
/// page of those that live, and later on one of those that have ended.
pub async fn at_rest(cluster: &Cluster) -> Result<()> {
    eventually("what was stopped has ended", Duration::from_secs(60), || async {
        for member in &cluster.members {
            let rows = jobs(cluster, member, "consistency=stale").await?;
            let leaving = rows.iter().filter(|job| job["state"] == "Draining").count();
            ensure!(leaving == 0, "{}: {leaving} jobs are stopping", member.name);
        }
        Ok(())
    })
    .await
}

/// Every acknowledged request is listed once, on that member; unacknowledged ones at most once.
pub async fn exactly_once(cluster: &Cluster, member: &Member, acknowledged: &BTreeSet<String>) -> Result<usize> {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for job in jobs(cluster, member, "finished=true&consistency=stale").await? {
        let id = job["request_id"].as_str().context("a job has a request_id")?;
        *seen.entry(id.to_owned()).or_default() += 1;
    }
    let doubled: Vec<_> = seen.iter().filter(|(_, n)| **n > 1).map(|(id, _)| id).collect();
    ensure!(doubled.is_empty(), "{}: listed more than once: {doubled:?}", member.name);
    let lost: Vec<_> = acknowledged.iter().filter(|id| !seen.contains_key(*id)).collect();
    ensure!(lost.is_empty(), "{}: acknowledged and lost: {} jobs, e.g. {:?}", member.name, lost.len(), lost.first());
    Ok(seen.len())
}

/// Sums what the live jobs hold, device by device; none may come to more than 1000 thousandths.
/// Returns how many devices are in use.
pub async fn not_over_committed(cluster: &Cluster, member: &Member) -> Result<usize> {
    const AT_ONCE: usize = 32;
    let rows = jobs(cluster, member, "consistency=stale").await?;
    let mut held: BTreeMap<(String, String), u64> = BTreeMap::new();
    for some in rows.chunks(AT_ONCE) {
        let mut tasks = JoinSet::new();
        for row in some {
            let (id, tenant) = (row["request_id"].as_str(), row["tenant_id"].as_str());
            let (id, tenant) = (id.context("request_id")?, tenant.context("tenant_id")?);
            let url = format!("{}/schedule/{id}?tenant_id={tenant}&consistency=stale", member.url);
            let http = cluster.http.clone();
            tasks.spawn(async move { http.get(url).send().await?.json::<Value>().await });
        }
        while let Some(job) = tasks.join_next().await {
            add_devices(&job??, &mut held)?;
        }
    }
    let over: Vec<_> = held.iter().filter(|(_, milli)| **milli > 1000).collect();
    ensure!(over.is_empty(), "held beyond what is there: {over:?}");
    Ok(held.len())
}

fn add_devices(job: &Value, held: &mut BTreeMap<(String, String), u64>) -> Result<()> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for replica in list(&job["replicas"]) {
        let place = &replica["placement"];
        let node = place["node"].as_str().unwrap_or_default();
        // Two lists in the same order: uuids, and the thousandths held of each.
        for (uuid, milli) in list(&place["devices"]).iter().zip(list(&place["shares"])) {
            let uuid = uuid.as_str().context("a held device has a uuid")?;
            let milli = milli.as_u64().context("a held device has a share")?;
            *held.entry((node.to_owned(), uuid.to_owned())).or_default() += milli;
        }
    }
    Ok(())
}

/// All members come to the same index and then name the same state hash.
pub async fn same_state(cluster: &Cluster) -> Result<(u64, String)> {
    eventually("the members agree", Duration::from_secs(30), || async {
        let mut told: Vec<(u64, String)> = Vec::new();
        for member in &cluster.members {
            let told_by = cluster.get(member, "/cluster/members").await?;
            let index = told_by["applied_index"].as_u64().context("an applied_index")?;
            let hash = told_by["state_hash"].as_str().context("a state_hash")?;
            told.push((index, hash.to_owned()));
        }
        ensure!(told.iter().all(|t| *t == told[0]), "indexes and hashes: {told:?}");
        Ok(told[0].clone())
    })
    .await
}
