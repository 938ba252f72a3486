//! A schedule request from flags or a file, as JSON. Values are checked by the
//! member that takes the call, so that there is one set of rules.

use crate::cli::exit::{Exit, fail};
use anyhow::Result;
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::Read;
use std::path::PathBuf;

/// A job file larger than this is none.
const MOST: u64 = 1 << 20;

#[derive(Debug, Args)]
pub struct Request {
    /// The model, as NAME or NAME@VERSION
    model: Option<String>,
    /// A request as JSON, - for stdin; flags replace what it says
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The tenant that it runs for
    #[arg(long, env = "NF_TENANT")]
    tenant: Option<String>,
    /// The model's version; v1 when absent
    #[arg(long = "model-version", value_name = "VERSION")]
    version: Option<String>,
    /// A name for the job; a second run with the same name is the same job
    #[arg(long)]
    name: Option<String>,
    /// GPUs of each replica: a whole number, or part of one such as 0.5
    #[arg(long, value_parser = amount)]
    gpus: Option<f64>,
    /// Memory that each GPU must have, e.g. 40GB
    #[arg(long)]
    gpu_memory: Option<String>,
    /// Only these types of device, e.g. 'H100-80G|A100-80G'
    #[arg(long)]
    device_type: Option<String>,
    /// Only MIG slices of this profile
    #[arg(long)]
    mig_profile: Option<String>,
    /// TPUs of each replica
    #[arg(long)]
    tpu: Option<u32>,
    /// CPUs of each replica
    #[arg(long, value_parser = amount)]
    cpu: Option<f64>,
    /// Host memory of each replica, e.g. 4GB
    #[arg(long)]
    mem: Option<String>,
    /// Disk space of each replica, e.g. 100GB
    #[arg(long)]
    disk: Option<String>,
    /// Number of replicas
    #[arg(long)]
    replicas: Option<u16>,
    /// Let the number of replicas follow the load, from MIN to MAX; with MIN 0 the service sleeps when idle
    #[arg(long, value_name = "MIN..MAX")]
    scale: Option<String>,
    /// With --scale, requests that one replica serves at once
    #[arg(long, requires = "scale")]
    concurrency: Option<u16>,
    /// With --scale, the longest a request should wait before it is served, e.g. 2s
    #[arg(long, requires = "scale")]
    max_wait: Option<String>,
    /// With --scale 0..N, how long a replica is kept after the last request, e.g. 10m
    #[arg(long, requires = "scale")]
    idle: Option<String>,
    /// With --scale, only recommend; never change the number
    #[arg(long, requires = "scale")]
    advisory: bool,
    /// With --scale, at most N replicas added within --step-within
    #[arg(long, requires = "scale", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    step_up: Option<u16>,
    /// With --scale, at most N replicas removed within --step-within
    #[arg(long, requires = "scale", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    step_down: Option<u16>,
    /// With --step-up or --step-down, the span of time that they bound; 1m when absent
    #[arg(long, requires = "scale", value_name = "TIME")]
    step_within: Option<String>,
    /// Start all replicas at once, or none
    #[arg(long)]
    gang: bool,
    /// -1000 to 1000, higher goes first
    #[arg(long, allow_negative_numbers = true)]
    priority: Option<i32>,
    /// Bound on the p95 latency in milliseconds
    #[arg(long)]
    latency_ms: Option<u32>,
    /// Share of requests that may fail with a server error, e.g. 0.01
    #[arg(long, value_name = "SHARE")]
    error_rate: Option<f64>,
    /// Only nodes in this region
    #[arg(long)]
    region: Option<String>,
    /// Only nodes in this zone
    #[arg(long)]
    zone: Option<String>,
    /// Only nodes in this rack
    #[arg(long)]
    rack: Option<String>,
    /// Only nodes with this label, KEY=VALUE; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Spread replicas over nodes
    #[arg(long)]
    spread: bool,
    /// Keep all GPUs of a replica in one NVLink island
    #[arg(long)]
    same_island: bool,
    /// Keep all replicas in one rack, zone or region, whichever has room, or wait
    #[arg(long, value_name = "LEVEL")]
    topology_required: Option<String>,
    /// The same as a preference: in one if it has room for all, else in as few as possible
    #[arg(long, value_name = "LEVEL")]
    topology_preferred: Option<String>,
    /// Only this node
    #[arg(long)]
    node: Option<String>,
    /// Never run two copies of a replica at once, even when a node is cut off
    #[arg(long)]
    exclusive: bool,
    /// Never move it just to make room for others (nf defrag)
    #[arg(long)]
    stay: bool,
    /// Let work of higher priority take its place
    #[arg(long)]
    preemptible: bool,
    /// How long its program may save its state, from SIGUSR1 on, before it is stopped for others, e.g. 30s
    #[arg(long, value_name = "SPAN")]
    checkpoint_grace: Option<String>,
    /// Most replicas that preemption, drains or moves may take at once; no bound when absent
    #[arg(long, value_name = "N")]
    max_unavailable: Option<u16>,
    /// When to start it again: always, on_failure or never
    #[arg(long)]
    restart: Option<String>,
    /// Stop it once it has run this long in total, e.g. 2h; time spent waiting for a place does not count
    #[arg(long)]
    max_run_time: Option<String>,
    /// Who approved the version
    #[arg(long)]
    approved_by: Option<String>,
}

/// Sets what was given.
fn put(map: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        map.insert(key.to_owned(), value);
    }
}

fn text(value: &Option<String>) -> Option<Value> {
    value.as_ref().map(|v| json!(v))
}

/// JSON has no NaN and no infinity: they would be sent as nothing, and nothing asked for is granted.
pub fn amount(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "a number such as 2 or 0.5".to_owned())?;
    number.is_finite().then_some(number).ok_or_else(|| format!("a number such as 2 or 0.5, not {text}"))
}

/// Whole numbers stay whole.
fn number(value: Option<f64>) -> Option<Value> {
    value.map(|v| if v.fract() == 0.0 && v.abs() < 1e9 { json!(v as i64) } else { json!(v) })
}

fn flag(value: bool) -> Option<Value> {
    value.then_some(json!(true))
}

impl Request {
    pub fn body(&self) -> Result<Value> {
        let mut body = self.read_file()?;
        let (model, version) = match self.model.as_deref().map(|m| m.split_once('@').unwrap_or((m, ""))) {
            Some((model, version)) => (Some(model.to_owned()), Some(version.to_owned()).filter(|v| !v.is_empty())),
            None => (None, None),
        };
        put(&mut body, "tenant_id", text(&self.tenant));
        put(&mut body, "model_id", text(&model));
        put(&mut body, "model_version", text(&self.version.clone().or(version)));
        put(&mut body, "request_id", text(&self.name));
        put(&mut body, "replicas", self.replicas.map(|n| json!(n)));
        put(&mut body, "gang", flag(self.gang));
        put(&mut body, "priority", self.priority.map(|p| json!(p)));
        put(&mut body, "approved_by", text(&self.approved_by));
        merge(&mut body, "resources", self.resources());
        merge(&mut body, "constraints", self.constraints()?);
        merge(&mut body, "scaling", self.scaling()?);
        if !body.contains_key("model_id") {
            return Err(fail(
                Exit::Usage,
                "which model? give its name or -f FILE\n  try: nf run llama-8b --tenant demo --gpus 1",
            ));
        }
        // The newcomer's one-liner names neither tenant nor version.
        body.entry("tenant_id").or_insert(json!("default"));
        body.entry("model_version").or_insert(json!("v1"));
        Ok(Value::Object(body))
    }

    fn read_file(&self) -> Result<Map<String, Value>> {
        let Some(path) = &self.file else { return Ok(Map::new()) };
        let name = path.display();
        let mut text = String::new();
        let read = match path.as_os_str() == "-" {
            true => std::io::stdin().take(MOST + 1).read_to_string(&mut text),
            false => std::fs::File::open(path).and_then(|f| f.take(MOST + 1).read_to_string(&mut text)),
        };
        let read = read.map_err(|e| fail(Exit::Usage, format!("{name}: {e}")))?;
        if read as u64 > MOST {
            return Err(fail(Exit::Usage, format!("{name}: larger than {MOST} bytes, the most a request may have")));
        }
        match serde_json::from_str(&text) {
            Ok(Value::Object(map)) => Ok(map),
            Ok(_) => Err(fail(Exit::Usage, format!("{name}: not a JSON object"))),
            Err(e) => Err(fail(Exit::Usage, format!("{name}: not JSON: {e}"))),
        }
    }

    fn resources(&self) -> Map<String, Value> {
        let mut map = Map::new();
        put(&mut map, "gpu", number(self.gpus));
        put(&mut map, "gpu_memory", text(&self.gpu_memory));
        put(&mut map, "device_type", text(&self.device_type));
        put(&mut map, "mig_profile", text(&self.mig_profile));
        put(&mut map, "tpu", self.tpu.map(|n| json!(n)));
        put(&mut map, "cpu", number(self.cpu));
        put(&mut map, "mem", text(&self.mem));
        put(&mut map, "disk", text(&self.disk));
        map
    }

    fn scaling(&self) -> Result<Map<String, Value>> {
        let mut map = Map::new();
        let Some(range) = &self.scale else { return Ok(map) };
        let bad = || fail(Exit::Usage, format!("--scale {range}: MIN..MAX, such as 0..4"));
        let (min, max) = range.split_once("..").ok_or_else(bad)?;
        let number = |text: &str| text.parse::<u16>().map_err(|_| bad());
        put(&mut map, "min", Some(json!(number(min)?)));
        put(&mut map, "max", Some(json!(number(max)?)));
        put(&mut map, "concurrency", self.concurrency.map(|n| json!(n)));
        put(&mut map, "max_wait", text(&self.max_wait));
        put(&mut map, "idle", text(&self.idle));
        put(&mut map, "advisory", flag(self.advisory));
        put(&mut map, "step_up", self.step_up.map(|n| json!(n)));
        put(&mut map, "step_down", self.step_down.map(|n| json!(n)));
        put(&mut map, "step_within", text(&self.step_within));
        Ok(map)
    }

    fn constraints(&self) -> Result<Map<String, Value>> {
        let mut map = Map::new();
        put(&mut map, "latency_ms", self.latency_ms.map(|n| json!(n)));
        put(&mut map, "error_rate", self.error_rate.map(|part| json!(part)));
        put(&mut map, "region", text(&self.region));
        put(&mut map, "zone", text(&self.zone));
        put(&mut map, "rack", text(&self.rack));
        put(&mut map, "spread", flag(self.spread));
        put(&mut map, "same_island", flag(self.same_island));
        put(&mut map, "topology_required", text(&self.topology_required));
        put(&mut map, "topology_preferred", text(&self.topology_preferred));
        put(&mut map, "node", text(&self.node));
        put(&mut map, "exclusive", flag(self.exclusive));
        put(&mut map, "stay", flag(self.stay));
        put(&mut map, "preemptible", flag(self.preemptible));
        put(&mut map, "checkpoint_grace", text(&self.checkpoint_grace));
        put(&mut map, "max_unavailable", self.max_unavailable.map(|n| json!(n)));
        put(&mut map, "restart", text(&self.restart));
        put(&mut map, "max_run_time", text(&self.max_run_time));
        let mut labels = Map::new();
        for label in &self.label {
            let bad = || fail(Exit::Usage, format!("--label {label}: KEY=VALUE, such as disk=nvme"));
            let (key, value) = label.split_once('=').ok_or_else(bad)?;
            labels.insert(key.to_owned(), json!(value));
        }
        put(&mut map, "labels", (!labels.is_empty()).then_some(Value::Object(labels)));
        Ok(map)
    }
}

/// Lays `more` over the object at `key`.
fn merge(body: &mut Map<String, Value>, key: &str, more: Map<String, Value>) {
    if more.is_empty() {
        return;
    }
    match body.get_mut(key).and_then(Value::as_object_mut) {
        Some(there) => there.extend(more),
        None => drop(body.insert(key.to_owned(), Value::Object(more))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        request: Request,
    }

    fn body(args: &[&str]) -> Result<Value> {
        Line::parse_from(["run"].iter().chain(args)).request.body()
    }

    #[test]
    fn flags_become_the_request() {
        let made = body(&["llama@v2", "--tenant", "t1", "--gpus", "2", "--mem", "4GB", "--label", "a=b", "--spread"]);
        let want = json!({"tenant_id":"t1","model_id":"llama","model_version":"v2",
            "resources":{"gpu":2,"mem":"4GB"},"constraints":{"labels":{"a":"b"},"spread":true}});
        assert_eq!(made.unwrap(), want);
        assert!(body(&[]).is_err() && body(&["m", "--label", "x"]).is_err());
    }

    #[test]
    fn an_amount_is_a_number_that_json_has() {
        assert_eq!(amount("0.5"), Ok(0.5));
        for text in ["NaN", "nan", "inf", "-inf", "1e400", "", "two"] {
            assert!(amount(text).is_err(), "{text}");
            assert!(Line::try_parse_from(["run", "m", "--gpus", text]).is_err(), "{text}");
            assert!(Line::try_parse_from(["run", "m", "--cpu", text]).is_err(), "{text}");
        }
    }

    #[test]
    fn flags_are_laid_over_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.json");
        std::fs::write(
            &path,
            r#"{"tenant_id":"t1","model_id":"m","model_version":"v1","resources":{"gpu":1,"cpu":2}}"#,
        )
        .unwrap();
        let made = body(&["-f", path.to_str().unwrap(), "--gpus", "0.5"]).unwrap();
        assert_eq!(made["resources"], json!({"gpu":0.5,"cpu":2}));
        std::fs::write(&path, "[1]").unwrap();
        assert!(body(&["-f", path.to_str().unwrap()]).is_err());
    }
}
