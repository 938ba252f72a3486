//! `nf report`: what this phase can show, as pages: one for each area, a summary with the
//! policy matrix, and a snapshot for machines. Everything in them was asked of the group
//! or looked up now; what could not be had is said to be missing. It judges nothing that
//! the group or `nf precheck` has not judged.

use super::client::{Client, escape};
use super::output::{self, at};
use super::precheck::{self, Check, outcome, write};
use super::{Global, say, version};
use crate::config::{Flags, Settings, Sources};
use crate::security::audit;
use anyhow::Result;
use clap::Args;
use nf_core::policy::POLICIES;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Rows of a table on a page.
const ROWS: usize = 50;
/// Characters of an answer that are repeated as a snippet.
const SNIPPET: usize = 400;
/// Actions of which each policy is asked (SPEC section 7).
const JUDGED: [&str; 5] = ["JobSchedule", "ModelDeploy", "ServiceScale", "RolloutStart", "ModelRollback"];
/// Manifests that are looked up in the store.
const MANIFESTS: usize = 1000;

#[derive(Debug, Args)]
pub struct Report {
    #[command(flatten)]
    flags: Flags,
    /// Where the pages are written
    #[arg(long, value_name = "DIR", default_value = "reports")]
    out: PathBuf,
}

/// What was asked, and what came back.
struct Asked {
    what: &'static str,
    answer: Result<Value, String>,
}

impl Asked {
    fn items(&self, list: &str) -> Vec<Value> {
        self.answer.as_ref().ok().and_then(|a| a.get(list)?.as_array().cloned()).unwrap_or_default()
    }

    /// The answer's beginning, for people to see that it was one.
    fn snippet(&self) -> String {
        match &self.answer {
            Ok(value) => value.to_string().chars().take(SNIPPET).collect(),
            Err(why) => why.clone(),
        }
    }
}

async fn ask(client: &Client, what: &'static str, path: &str) -> Asked {
    Asked { what, answer: client.get(path).await.map_err(|e| e.to_string()) }
}

/// How each service keeps its promise, in rows.
async fn promises(client: &Client, services: &Asked) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for service in services.items("items").iter().take(ROWS) {
        let (tenant, model) = (at(service, "tenant_id"), at(service, "model_id"));
        let path = format!("/slo/{}/{}", escape(&tenant), escape(&model));
        let told = match client.get(&path).await {
            Ok(slo) => {
                let hour = slo.pointer("/windows/2").cloned().unwrap_or_default();
                let promised = format!("{} ms", at(&slo, "target.latency_ms"));
                [promised, at(&hour, "requests"), at(&hour, "attainment"), at(&slo, "error_budget_left")]
            }
            Err(error) => [format!("MISSING: {error}"), String::new(), String::new(), String::new()],
        };
        rows.push([tenant, model].into_iter().chain(told).collect());
    }
    rows
}

/// What the audit trail tells of policies and evidence.
#[derive(Default)]
struct Trail {
    /// Counts by policy and verdict.
    verdicts: BTreeMap<(String, String), u64>,
    manifests: BTreeSet<String>,
    /// Who let which version into production, or took it back, in order.
    approvals: Vec<Vec<String>>,
    entries: u64,
    head: String,
    problem: Option<String>,
}

impl Trail {
    async fn read(client: &Client) -> Self {
        let mut out = Self::default();
        match Self::text(client).await {
            Err(why) => out.problem = Some(why.to_string()),
            Ok(text) => {
                match audit::verify(text.as_bytes(), &[], &[]) {
                    Ok(summary) => {
                        (out.entries, out.head) = (summary.checkpoint.size, summary.checkpoint.head.to_string())
                    }
                    Err(error) => out.problem = Some(format!("the trail does not hold: {error}")),
                }
                text.lines()
                    .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                    .for_each(|line| out.take(&line));
            }
        }
        out
    }

    async fn text(client: &Client) -> Result<String> {
        let (mut from, mut text) = (Some(1_u64), String::new());
        while let Some(first) = from {
            let (page, next) = client.audit_page(first).await?;
            text.push_str(&page);
            from = next;
        }
        Ok(text)
    }

    fn take(&mut self, line: &Value) {
        let entry = &line["entry"];
        if let Some(manifest) = entry["refs"]["manifest"].as_str() {
            self.manifests.insert(manifest.to_owned());
        }
        let of_version = ["ModelApprove", "ModelRevoke"].iter().any(|action| entry["action"] == *action);
        if of_version && entry["result"] == "done" {
            let cells = ["object", "action", "actor.sub", "refs.approval", "refs.manifest"].map(|key| at(entry, key));
            self.approvals.push(cells.to_vec());
        }
        if !JUDGED.iter().any(|action| entry["action"] == *action) {
            return;
        }
        // Refusals of one kind within a minute are one entry.
        let times = entry["count"].as_u64().unwrap_or(1);
        for policy in &POLICIES {
            let verdict = entry["checks"][policy.name]["verdict"].as_str().unwrap_or("na");
            *self.verdicts.entry((policy.name.to_owned(), verdict.to_owned())).or_default() += times;
        }
    }

    /// What is printed for a policy, and the counts behind it.
    fn says(&self, policy: &str) -> (&'static str, String) {
        let count = |verdict: &str| self.verdicts.get(&(policy.to_owned(), verdict.to_owned())).copied().unwrap_or(0);
        let found = ["block", "simulated", "waived", "pass"].into_iter().find(|verdict| count(verdict) > 0);
        let shown = match found {
            // What was only simulated is no signature, whatever else was stopped for want of one.
            _ if policy == "P2" && count("simulated") > 0 && count("pass") == 0 => "BLOCKED",
            Some(verdict) => verdict,
            None => "na",
        };
        let all = ["pass", "block", "na", "simulated", "waived"];
        let counts: Vec<String> = all.iter().map(|verdict| format!("{verdict} {}", count(verdict))).collect();
        (shown, counts.join(", "))
    }
}

/// `model version sha256` of what a file:// store has.
fn manifests(settings: &Settings) -> Vec<(String, String, String)> {
    let Some(root) = settings.model_store_url.value.as_deref().and_then(|url| url.strip_prefix("file://")) else {
        return Vec::new();
    };
    let names = |dir: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        names
    };
    let mut out = Vec::new();
    for model in names(Path::new(root)) {
        for version in names(&Path::new(root).join(&model)) {
            let path = Path::new(root).join(&model).join(&version).join("manifest.json");
            if let Ok(bytes) = std::fs::read(path)
                && out.len() < MANIFESTS
            {
                out.push((model.clone(), version, crate::models::Checksum::of(&bytes).to_string()));
            }
        }
    }
    out
}

fn table(heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut out = format!("| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    let clean = |cell: &String| cell.replace('|', "\\|").replace('\n', " ");
    for row in rows.into_iter().take(ROWS) {
        let _ = writeln!(out, "| {} |", row.iter().map(clean).collect::<Vec<_>>().join(" | "));
    }
    out
}

fn rows(items: &[Value], keys: &[&str]) -> Vec<Vec<String>> {
    items.iter().map(|item| keys.iter().map(|key| at(item, key)).collect()).collect()
}

/// A page's head and body.
fn page(area: &str, title: &str, asked: &Asked, body: &str) -> String {
    let state = match &asked.answer {
        Ok(_) => format!("Asked of the group now: `{}`.", asked.what),
        Err(why) => format!("MISSING: `{}` had no answer: {why}", asked.what),
    };
    format!("# {area} {title}\n\n{state}\n\n{body}")
}

/// What keeps this from being production, each with its fix.
fn blockers(checks: &[Check], trail: &Trail, settings: &Settings) -> Vec<String> {
    let mut out = Vec::new();
    for check in checks.iter().filter(|c| ["ERROR", "NONE"].contains(&c.status.as_str())) {
        out.push(format!(
            "{} is {}: {}. Fix what it names, then nf precheck.",
            check.check, check.status, check.detail
        ));
    }
    out.extend(
        settings.missing().into_iter().map(|name| format!("production needs {name}: set it, then nf config validate.")),
    );
    if trail.says("P2").0 == "BLOCKED" {
        out.push(
            "P2 was only simulated: set COSIGN_KEY_PATH, sign versions (nf model sign), publish with --signature."
                .into(),
        );
    }
    if let Some(problem) = &trail.problem {
        out.push(format!("the audit trail could not be read: {problem}"));
    }
    out
}

fn summary(settings: &Settings, checks: &[Check], asked: &[Asked], trail: &Trail, now: &str) -> String {
    let mut out = format!("# Phase {} final summary\n\n", version::PHASE);
    let missing = settings.missing().join(", ");
    let missing = if missing.is_empty() { "nothing".to_owned() } else { missing };
    let (mode, ver, commit) = (settings.mode().name(), version::VERSION, version::COMMIT);
    let _ = write!(out, "Mode: {mode}\nMissing for production: {missing}\nBuild: {ver} {commit}\nMade: {now}\n\n");
    let _ = write!(out, "Precheck: {}\n\n## Checks\n\n", outcome(checks, settings.mode(), false).name());
    let looks = checks.iter().map(|c| vec![c.check.to_owned(), c.status.clone(), c.detail.clone()]);
    let asks = asked.iter().map(|a| {
        let result = if a.answer.is_ok() { "OK" } else { "ERROR" };
        vec![a.what.to_owned(), result.to_owned(), format!("`{}`", a.snippet().replace('`', "'"))]
    });
    let held = match &trail.problem {
        None => vec!["audit trail".into(), "OK".into(), format!("{} entries, head `{}`", trail.entries, trail.head)],
        Some(problem) => vec!["audit trail".to_owned(), "ERROR".into(), problem.clone()],
    };
    out.push_str(&table(&["check", "result", "output"], looks.chain(asks).chain([held])));
    out.push_str("\n## Policies\n\n");
    let said = POLICIES.iter().map(|policy| {
        let (shown, counts) = trail.says(policy.name);
        vec![policy.name.to_owned(), shown.to_owned(), policy.rule.to_owned(), counts]
    });
    out.push_str(&table(&["policy", "says", "rule", "verdicts"], said));
    out.push_str("\n## Approvals\n\n");
    let heads = ["version", "action", "by", "approval", "manifest"];
    out.push_str(&table(&heads, trail.approvals.iter().rev().cloned()));
    out.push_str("\n## Manifests\n\n");
    let found = manifests(settings);
    let audited = |sha: &String| if trail.manifests.contains(sha) { "yes" } else { "no" }.to_owned();
    out.push_str(&table(
        &["model", "version", "sha256", "in the audit trail"],
        found.into_iter().map(|(model, version, sha)| {
            let known = audited(&sha);
            vec![model, version, sha, known]
        }),
    ));
    out.push_str("\n## Blockers\n\n");
    let blockers = blockers(checks, trail, settings);
    match blockers.is_empty() {
        true => out.push_str("None.\n"),
        false => blockers.iter().for_each(|blocker| out.push_str(&format!("- {blocker}\n"))),
    }
    out
}

impl Report {
    pub async fn run(self, global: &Global) -> Result<()> {
        let settings = Settings::load(&Sources::process(&self.flags))?;
        let checks = precheck::look(&settings).await;
        let client = global.client()?;
        let asked = [
            ask(&client, "GET /schedule", "/schedule?finished=true&per_page=1000").await,
            ask(&client, "GET /resources", "/resources").await,
            ask(&client, "GET /health", "/health").await,
            ask(&client, "GET /nodes", "/nodes").await,
            ask(&client, "GET /sd/prometheus", "/sd/prometheus").await,
            ask(&client, "GET /services", "/services").await,
            ask(&client, "GET /cluster/members", "/cluster/members").await,
        ];
        let trail = Trail::read(&client).await;
        let promised = promises(&client, &asked[5]).await;
        let now = jiff::Timestamp::now().to_string();
        let mut reports = Vec::new();
        for (name, text) in pages(&settings, &asked, &trail, promised) {
            write(&self.out.join(&name), &text)?;
            reports.push(name);
        }
        let last = "PhaseH.2_final_summary.md".to_owned();
        write(&self.out.join(&last), &summary(&settings, &checks, &asked, &trail, &now))?;
        reports.push(last);
        let policies: BTreeMap<_, _> = POLICIES.iter().map(|p| (p.name, trail.says(p.name).0)).collect();
        let value = json!({
            "phase": version::PHASE, "commit": version::COMMIT, "version": version::VERSION, "generated_at": now,
            "mode": settings.mode().name(), "simulation": settings.mode() == crate::config::Mode::Simulation,
            "reports": reports, "outcome": outcome(&checks, settings.mode(), false).name(), "checks": checks,
            "policies": policies, "blockers": blockers(&checks, &trail, &settings),
            "audit": { "entries": trail.entries, "head": trail.head, "problem": trail.problem },
        });
        let snapshot = self.out.join("PhaseH.2_Snapshot.json");
        write(&snapshot, &format!("{}\n", serde_json::to_string_pretty(&value)?))?;
        let people = || reports.iter().map(|name| format!("{}\n", self.out.join(name).display())).collect();
        output::put(&output::object(global.style(), &value, &snapshot.display().to_string(), people)?);
        say(format!("P2 {}; the summary has every blocker with its fix", trail.says("P2").0));
        Ok(())
    }
}

/// One page for each area, by file name.
fn pages(settings: &Settings, asked: &[Asked; 7], trail: &Trail, promised: Vec<Vec<String>>) -> Vec<(String, String)> {
    let [jobs, resources, health, nodes, targets, services, _] = asked;
    let items = jobs.items("items");
    let job_keys = ["request_id", "tenant_id", "model_id", "model_version", "state", "nodes"];
    let mut states: BTreeMap<String, u64> = BTreeMap::new();
    items.iter().for_each(|job| *states.entry(at(job, "state")).or_default() += 1);
    let counts = table(&["state", "jobs"], states.into_iter().map(|(state, n)| vec![state, n.to_string()]));
    let scheduling = format!("{counts}\n{}", table(&job_keys, rows(&items, &job_keys)));
    let amounts = ["total", "reserved", "free"].map(|sum| {
        let of = |key: &str| resources.answer.as_ref().map(|a| at(a, &format!("{sum}.{key}"))).unwrap_or_default();
        vec![sum.to_owned(), of("gpu"), of("tpu"), of("cpu"), of("mem")]
    });
    let tenant_keys = ["tenant_id", "gpu_quota", "jobs", "waiting"];
    let tenants = table(&tenant_keys, rows(&resources.items("tenants"), &tenant_keys));
    let manager = format!("{}\n{tenants}", table(&["", "gpu", "tpu", "cpu", "mem"], amounts));
    let known = manifests(settings).into_iter().map(|(model, version, sha)| vec![model, version, sha]);
    let store = format!(
        "{}\nDigests in the audit trail: {}\n",
        table(&["model", "version", "sha256"], known),
        trail.manifests.len()
    );
    let node_keys = ["node_id", "kind", "state", "simulated", "incarnation", "replicas"];
    let agents = table(&node_keys, rows(&nodes.items("items"), &node_keys));
    let target = |t: &Value| vec![at(t, "targets"), at(t, "labels.model"), at(t, "labels.node")];
    let listed = targets.answer.as_ref().ok().and_then(Value::as_array).cloned().unwrap_or_default();
    let placement = table(&["address", "model", "node"], listed.iter().map(target).collect::<Vec<_>>());
    let service_keys = ["tenant_id", "model_id", "state", "replicas", "ready"];
    let scaler = table(&service_keys, rows(&services.items("items"), &service_keys));
    let parts = health.answer.as_ref().ok().and_then(|h| h.get("components")?.as_object().cloned()).unwrap_or_default();
    let parts = parts.iter().map(|(name, part)| vec![name.clone(), at(part, "status"), at(part, "detail")]);
    let slo = format!(
        "Of the requests at the gateways, 95 % shall be answered in the promised time and without a server's error.\n\n{}\n{}",
        table(&["tenant", "model", "promised", "requests, 1 h", "attained, 1 h", "error budget left, 3 d"], promised),
        table(&["part", "status", "detail"], parts)
    );
    [
        ("H.2.1", "scheduling", jobs, scheduling),
        ("H.2.2", "resource_manager", resources, manager),
        ("H.2.3", "model_store", health, store),
        ("H.2.4", "node_agent", nodes, agents),
        ("H.2.5", "placement", targets, placement),
        ("H.2.6", "autoscaler", services, scaler),
        ("H.2.7", "slo", health, slo),
    ]
    .into_iter()
    .map(|(area, name, asked, body)| (format!("{area}_{name}.md"), page(area, &name.replace('_', " "), asked, &body)))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trail(verdicts: &[&str]) -> Trail {
        let mut trail = Trail::default();
        for verdict in verdicts {
            let checks = json!({ "P2": { "verdict": verdict }, "P4": { "verdict": "pass" } });
            trail
                .take(&json!({ "entry": { "action": "JobSchedule", "checks": checks, "refs": { "manifest": "aa" } } }));
        }
        trail
    }

    #[test]
    fn approvals_are_listed_with_who_gave_them() {
        let mut trail = Trail::default();
        let entry = |action: &str, result: &str| {
            json!({ "entry": {
                "action": action, "object": "model/demo/m@v1", "actor": { "sub": "bob" }, "result": result,
                "refs": { "approval": "aa", "manifest": "bb" },
            } })
        };
        trail.take(&entry("ModelApprove", "done"));
        trail.take(&entry("ModelApprove", "Forbidden"));
        assert_eq!(trail.approvals, [["model/demo/m@v1", "ModelApprove", "bob", "aa", "bb"].map(str::to_owned)]);
    }

    #[test]
    fn a_signature_that_was_only_simulated_is_none() {
        assert_eq!(trail(&["simulated"]).says("P2").0, "BLOCKED");
        assert_eq!(trail(&["pass"]).says("P2").0, "pass");
        assert_eq!(trail(&["pass", "simulated"]).says("P2").0, "simulated");
        assert_eq!((trail(&[]).says("P2").0, trail(&["simulated"]).says("P4").0), ("na", "pass"));
        assert_eq!(trail(&["simulated"]).manifests.len(), 1);
        assert_eq!(trail(&["simulated", "block"]).says("P2").0, "BLOCKED");
        let mut stopped = trail(&["pass"]);
        let checks = json!({ "P2": { "code": "SignatureRequired", "verdict": "block" } });
        stopped.take(&json!({ "entry": { "action": "RolloutStart", "checks": checks, "count": 3 } }));
        let (shown, counts) = stopped.says("P2");
        assert!(shown == "block" && counts.contains("pass 1, block 3"), "{counts}");
    }
}
