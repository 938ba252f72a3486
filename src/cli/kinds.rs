//! The kinds of objects that can be listed: where each is read, how it is shown,
//! what names it. It does not know how lists are fetched.

use super::output::{Column, age_of, at, bytes, col, milli, state, wide};
use serde_json::{Value, json};

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    #[value(alias = "job", alias = "j")]
    Jobs,
    #[value(alias = "node", alias = "n")]
    Nodes,
    #[value(alias = "gpu")]
    Gpus,
    #[value(alias = "tenant", alias = "t")]
    Tenants,
    #[value(alias = "service", alias = "s")]
    Services,
    #[value(alias = "event")]
    Events,
    #[value(alias = "member", alias = "m")]
    Members,
    /// Versions of which a node found other bytes in the store than was signed
    #[value(alias = "q")]
    Quarantine,
}

impl Kind {
    pub fn path(self) -> &'static str {
        match self {
            Kind::Jobs => "/schedule",
            Kind::Nodes | Kind::Gpus => "/nodes",
            Kind::Tenants => "/tenants",
            Kind::Services => "/services",
            Kind::Events => "/events",
            Kind::Members => "/cluster/members",
            Kind::Quarantine => "/quarantine",
        }
    }

    pub fn one(self) -> &'static str {
        match self {
            Kind::Jobs => "job",
            Kind::Nodes => "node",
            Kind::Gpus => "gpu",
            Kind::Tenants => "tenant",
            Kind::Services => "service",
            Kind::Events => "event",
            Kind::Members => "member",
            Kind::Quarantine => "version in quarantine",
        }
    }

    /// What names an item of this kind.
    pub fn id(self) -> fn(&Value) -> String {
        match self {
            Kind::Jobs => |v| at(v, "request_id"),
            Kind::Nodes => |v| at(v, "node_id"),
            Kind::Gpus => |v| at(v, "uuid"),
            Kind::Tenants => |v| at(v, "tenant_id"),
            Kind::Services => |v| format!("{}/{}", at(v, "tenant_id"), at(v, "model_id")),
            Kind::Events => |v| at(v, "seq"),
            Kind::Members => |v| at(v, "name"),
            Kind::Quarantine => version,
        }
    }

    /// Said when there is nothing.
    pub fn hint(self) -> &'static str {
        match self {
            Kind::Jobs => "no jobs; nf run MODEL --tenant T --gpus 1 schedules one",
            Kind::Nodes | Kind::Gpus => "no nodes; nf node register n1 --gpus 8 adds one (in simulation)",
            Kind::Tenants => "no tenants; nf tenant create NAME makes one",
            Kind::Services => "no services; nf run MODEL --tenant T --gpus 1 --scale 0..4 makes one",
            Kind::Events => "no events",
            Kind::Members => "no members",
            Kind::Quarantine => "no version is in quarantine",
        }
    }

    pub fn columns(self) -> &'static [Column] {
        match self {
            Kind::Jobs => JOBS,
            Kind::Nodes => NODES,
            Kind::Gpus => GPUS,
            Kind::Tenants => TENANTS,
            Kind::Services => SERVICES,
            Kind::Events => EVENTS,
            Kind::Members => MEMBERS,
            Kind::Quarantine => QUARANTINE,
        }
    }
}

const JOBS: &[Column] = &[
    col("JOB", |v| at(v, "request_id")),
    col("TENANT", |v| at(v, "tenant_id")),
    col("MODEL", version),
    col("STATE", |v| state(&at(v, "state"))),
    col("READY", |v| format!("{}/{}", at(v, "ready"), at(v, "replicas"))),
    col("GPU", |v| at(v, "gpu")),
    col("NODES", |v| at(v, "nodes")),
    col("AGE", |v| age_of(v, "created_at")),
    wide("RUNTIME", |v| at(v, "runtime")),
    wide("PRIORITY", |v| at(v, "priority")),
    wide("REASONS", reasons),
];
const NODES: &[Column] = &[
    col("NODE", |v| at(v, "node_id")),
    col("STATE", |v| state(&at(v, "state"))),
    col("SCHEDULABLE", |v| if at(v, "schedulable") == "false" { "no".into() } else { "yes".into() }),
    col("DRAIN", drain),
    col("GPUS", |v| at(v, "total.gpu")),
    col("FREE", |v| at(v, "free.gpu")),
    col("REPLICAS", |v| at(v, "replicas")),
    col("KIND", |v| at(v, "kind")),
    wide("CPU", |v| at(v, "free.cpu")),
    wide("MEM", |v| size(v, "free.mem")),
    wide("REGION", |v| at(v, "region")),
    wide("ZONE", |v| at(v, "zone")),
    wide("HOST", |v| at(v, "host")),
];
const GPUS: &[Column] = &[
    col("NODE", |v| at(v, "node_id")),
    col("GPU", |v| at(v, "index")),
    col("TYPE", |v| at(v, "device_type")),
    col("MEMORY", |v| size(v, "memory")),
    col("USED", |v| at(v, "used_milli").parse().map_or_else(|_| "-".to_owned(), milli)),
    col("ISLAND", |v| at(v, "island")),
    col("HEALTH", health),
    col("SLICES", slices),
    wide("NUMA", |v| at(v, "numa")),
    wide("SHARING", |v| at(v, "sharing")),
    wide("BUSY", |v| {
        v["vitals"]["utilization"].as_f64().map_or_else(|| "-".to_owned(), |part| format!("{:.0}%", part * 100.0))
    }),
    wide("IN USE", |v| size(v, "vitals.memory_used")),
    wide("TEMP", |v| match at(v, "vitals.temperature_celsius").as_str() {
        "-" => "-".to_owned(),
        celsius => format!("{celsius}°C"),
    }),
    wide("PROCS", |v| at(v, "vitals.processes")),
    wide("ECC", |v| at(v, "vitals.ecc_errors")),
    wide("UUID", |v| at(v, "uuid")),
];
const TENANTS: &[Column] = &[
    col("TENANT", |v| at(v, "tenant_id")),
    col("GPUS", |v| at(v, "used.gpu")),
    col("QUOTA", |v| at(v, "gpu_quota")),
    col("JOBS", |v| at(v, "jobs")),
    col("WAITING", |v| at(v, "waiting")),
];
const SERVICES: &[Column] = &[
    col("TENANT", |v| at(v, "tenant_id")),
    col("MODEL", |v| at(v, "model_id")),
    col("STATE", |v| state(&at(v, "state"))),
    col("READY", |v| format!("{}/{}", at(v, "ready"), at(v, "replicas"))),
    col("SCALES", |v| match at(v, "scaling.max").as_str() {
        "-" => "-".to_owned(),
        max => format!("{}..{max}", at(v, "scaling.min")),
    }),
    col("VERSIONS", |v| texts(v, "versions")),
    wide("JOBS", |v| texts(v, "jobs")),
    wide("CONCURRENCY", |v| at(v, "scaling.concurrency")),
    wide("ADVISORY", |v| at(v, "scaling.advisory")),
];
const EVENTS: &[Column] = &[
    col("SEQ", |v| at(v, "seq")),
    col("AGE", |v| age_of(v, "at")),
    col("KIND", |v| at(v, "kind")),
    col("OBJECT", object),
    col("FROM", |v| at(v, "from")),
    col("TO", |v| at(v, "to")),
    col("WHY", |v| at(v, "why")),
];
const MEMBERS: &[Column] = &[
    col("MEMBER", |v| at(v, "name")),
    col("ROLE", |v| state(&at(v, "role"))),
    col("API", |v| at(v, "api")),
    col("PEER", |v| at(v, "peer")),
    col("MATCHED", |v| at(v, "matched")),
    col("KX", |v| at(v, "kx_group")),
    wide("ID", |v| at(v, "id")),
    wide("VERSION", |v| at(v, "version")),
];
const QUARANTINE: &[Column] = &[
    col("TENANT", |v| at(v, "tenant_id")),
    col("VERSION", version),
    col("FOUND BY", |v| at(v, "node")),
    col("AGE", |v| age_of(v, "found_at")),
    col("REASON", |v| at(v, "reason")),
    col("LIFTED BY", |v| at(v, "next")),
    wide("SHA256", |v| at(v, "sha256")),
];

/// MODEL@VERSION.
fn version(v: &Value) -> String {
    format!("{}@{}", at(v, "model_id"), at(v, "model_version"))
}

/// The slices of a divided GPU, and how many parts of its memory are in none.
fn slices(v: &Value) -> String {
    match (v.get("slices").and_then(Value::as_array), v.get("free_parts").and_then(Value::as_u64)) {
        (made, Some(free)) => {
            let made = made.into_iter().flatten().filter_map(Value::as_str);
            let free = format!("({free}/8 free)");
            made.chain([free.as_str()]).collect::<Vec<_>>().join(" ")
        }
        _ => "-".to_owned(),
    }
}

/// A device's health, with the fault that it is left alone for.
fn health(v: &Value) -> String {
    match (at(v, "health").as_str(), at(v, "quarantine.why").as_str()) {
        (word, "-") => word.to_owned(),
        (word, why) => {
            format!("{word} ({why}{})", if at(v, "quarantine.simulated") == "true" { ", simulated" } else { "" })
        }
    }
}

/// How far a drain has come, and how many replicas are left.
fn drain(v: &Value) -> String {
    match at(v, "drain").as_str() {
        "None" | "-" => "-".to_owned(),
        "Drained" => state("Drained"),
        word => format!("{} ({} left)", state(word), at(v, "replicas")),
    }
}

/// What an event is about, by its kind.
fn object(v: &Value) -> String {
    match at(v, "kind").as_str() {
        "job" | "replica" | "scaled" | "move" => at(v, "request_id"),
        "tenant" => at(v, "tenant_id"),
        _ => at(v, "node"),
    }
}

fn texts(v: &Value, key: &str) -> String {
    let list = v.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

fn size(v: &Value, path: &str) -> String {
    let text = at(v, path);
    text.parse().map_or(text, bytes)
}

fn reasons(v: &Value) -> String {
    let Some(Value::Array(list)) = v.get("reasons") else { return "-".to_owned() };
    let words: Vec<_> = list.iter().map(|r| at(r, "reason")).collect();
    if words.is_empty() { "-".to_owned() } else { words.join(",") }
}

/// The devices of nodes as items of their own.
pub fn gpus(nodes: &[Value]) -> Vec<Value> {
    let mut out = Vec::new();
    for node in nodes {
        let devices = node.get("devices").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for device in devices {
            let mut device = device.clone();
            if let Some(fields) = device.as_object_mut() {
                fields.insert("node_id".to_owned(), json!(at(node, "node_id")));
            }
            out.push(device);
        }
    }
    out
}
