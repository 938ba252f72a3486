//! `nf node`: register nodes by hand (simulation) and keep work away from them.

use super::client::{Client, escape};
use super::output::{self, at};
use super::{Global, say};
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};

#[derive(Debug, Args)]
pub struct Node {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Register a simulated node, played by the member that takes the call (simulation only)
    #[command(
        after_help = "Examples:\n  nf node register n1 --gpus 8\n  nf node register n2 --gpus 4 --device-type A100-80G --zone z1"
    )]
    Register(Register),
    /// Keep new work away from a node
    #[command(after_help = "Examples:\n  nf node cordon n1\n  nf node cordon n1 --reason 'new fans'")]
    Cordon {
        node: String,
        /// Why; shown by nf describe node
        #[arg(long)]
        reason: Option<String>,
    },
    /// Let new work onto a node again; ends a drain and maintenance
    #[command(after_help = "Examples:\n  nf node uncordon n1\n  nf node uncordon n1 -o json")]
    Uncordon { node: String },
    /// Empty a node: each replica gets a replacement elsewhere before it stops
    #[command(
        after_help = "Examples:\n  nf node drain n1 --reason 'new fans' --dry-run\n  nf node drain n1 --deadline 10m --yes"
    )]
    Drain(Drain),
    /// Quarantine one device; with --xid or --lost, make up a fault (simulated nodes only)
    #[command(after_help = "Examples:\n  nf node fault n1 3\n  nf node fault n1 3 --xid 79")]
    Fault {
        node: String,
        /// Its number on the node, or its uuid
        device: String,
        /// Number of an NVIDIA driver error (simulated nodes only)
        #[arg(long, conflicts_with = "lost")]
        xid: Option<u16>,
        /// As if the driver no longer found it (simulated nodes only)
        #[arg(long)]
        lost: bool,
    },
    /// Return a quarantined device to service
    #[command(after_help = "Examples:\n  nf node heal n1 3\n  nf node heal n1 3 -o json")]
    Heal {
        node: String,
        /// Its number on the node, or its uuid
        device: String,
    },
    /// Give up a silent node at once, because you know that it is dead
    #[command(after_help = "Examples:\n  nf node down n1\n  nf node down n1 --yes")]
    Down {
        node: String,
        /// Don't ask
        #[arg(short, long, alias = "confirm")]
        yes: bool,
    },
}

#[derive(Debug, Args)]
struct Drain {
    node: String,
    /// Why; shown by nf describe node
    #[arg(long)]
    reason: Option<String>,
    /// Stop what is left after this time, replaced or not, e.g. 10m; no deadline when absent
    #[arg(long)]
    deadline: Option<String>,
    /// Stop at once what cannot be replaced elsewhere now
    #[arg(long)]
    force: bool,
    /// Show what would happen to each replica, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Don't ask
    #[arg(short, long)]
    yes: bool,
}

#[derive(Debug, Args)]
struct Register {
    /// Its name; generated when absent
    node: Option<String>,
    /// How many GPUs it has
    #[arg(long)]
    gpus: Option<u32>,
    /// The type of its GPUs, e.g. H100-80G
    #[arg(long)]
    device_type: Option<String>,
    /// Memory of each GPU, e.g. 80GB
    #[arg(long)]
    gpu_memory: Option<String>,
    /// CPUs of the node
    #[arg(long, value_parser = super::job::request::amount)]
    cpu: Option<f64>,
    /// Host memory, e.g. 512GB
    #[arg(long)]
    mem: Option<String>,
    /// The region it is in
    #[arg(long)]
    region: Option<String>,
    /// The zone it is in
    #[arg(long)]
    zone: Option<String>,
    /// The rack it is in
    #[arg(long)]
    rack: Option<String>,
    /// What enforces GPU shares: none, mps, mig or simulated
    #[arg(long)]
    sharing: Option<String>,
    /// NUMA nodes that share its GPUs evenly; not reported when absent
    #[arg(long)]
    numa_nodes: Option<u16>,
}

impl Node {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let (path, body) = match self.command {
            NodeCommand::Drain(drain) => return drain.run(global, &client).await,
            NodeCommand::Fault { node, device, xid, lost } => {
                let mut body = Map::new();
                body.extend(xid.map(|xid| ("xid".to_owned(), json!(xid))));
                body.extend(lost.then(|| ("fault".to_owned(), json!("lost"))));
                (format!("/node/{}/devices/{}/fault", escape(&node), escape(&device)), Value::Object(body))
            }
            NodeCommand::Heal { node, device } => {
                (format!("/node/{}/devices/{}/heal", escape(&node), escape(&device)), json!({}))
            }
            NodeCommand::Down { node, yes } => {
                super::confirm(&format!("give up node {node}: its replicas start elsewhere"), yes)?;
                (format!("/node/{}/down", escape(&node)), json!({}))
            }
            NodeCommand::Register(register) => ("/node/register".to_owned(), register.body()),
            NodeCommand::Cordon { node, reason } => {
                (format!("/node/{}/cordon", escape(&node)), json!({ "reason": reason }))
            }
            NodeCommand::Uncordon { node } => (format!("/node/{}/uncordon", escape(&node)), json!({})),
        };
        let (status, answer) = client.change(Method::POST, &path, body).await?;
        let name = at(&answer, "node_id");
        let people = || match (path.rsplit('/').next(), status.as_u16()) {
            (Some("register"), 201) => format!("node {name} registered\n"),
            (Some("register"), _) => format!("node {name} was registered already\n"),
            (Some("fault" | "heal"), _) => devices(&answer),
            (Some("down"), _) => format!("node {name} is given up\n"),
            (verb, _) => format!("node {name} {}ed\n", verb.unwrap_or_default()),
        };
        output::put(&output::object(global.style(), &answer, &name, people)?);
        if at(&answer, "simulation") == "true" && path.ends_with("register") {
            say("simulation: the member that took the call plays this node");
        }
        Ok(())
    }
}

/// The devices of a node and how they are, a line each.
fn devices(node: &Value) -> String {
    let devices = node.get("devices").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let line = |device: &Value| {
        let why = match (at(device, "quarantine.why").as_str(), at(device, "quarantine.detail").as_str()) {
            ("-", _) => String::new(),
            (why, detail) => format!(": {why}, {detail}"),
        };
        format!("{} {} {}{why}\n", at(node, "node_id"), at(device, "index"), at(device, "health"))
    };
    devices.iter().map(line).collect()
}

impl Drain {
    async fn run(self, global: &Global, client: &Client) -> anyhow::Result<()> {
        let path = format!("/node/{}/drain", escape(&self.node));
        let call = |dry_run: bool| json!({ "reason": self.reason, "deadline": self.deadline, "force": self.force, "dry_run": dry_run });
        if !self.dry_run {
            super::confirm(&format!("drain node {}", self.node), self.yes)?;
        }
        let (_, answer) = client.change(Method::POST, &path, call(self.dry_run)).await?;
        let name = at(&answer, "node_id");
        output::put(&output::object(global.style(), &answer, &name, || told(&answer, self.dry_run))?);
        if global.for_people() && !self.dry_run {
            say(format!("nf describe node {name} shows how far it is; nf node uncordon {name} ends it"));
        }
        Ok(())
    }
}

/// What becomes of each replica, a line each.
fn told(node: &Value, dry_run: bool) -> String {
    let say = |would: &'static str, does: &'static str| if dry_run { would } else { does };
    let list = |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let name = at(node, "node_id");
    let mut out = match at(node, "replicas").as_str() {
        "0" => format!("node {name}: nothing runs there\n"),
        count => format!("node {name} {}; {count} replica(s) run there\n", say("would be drained", "drains")),
    };
    for look in list(node, "leaving") {
        let first = at(&look, "stops_first") == "true";
        let what = match (at(&look, "to").as_str(), first) {
            ("-", true) => format!("{}; there is no place for a replacement now", say("would stop", "stops")),
            ("-", false) => say("would stay", "stays").to_owned(),
            (to, true) => format!("{} there and then start on {to}", say("would stop", "stops")),
            (to, false) => format!("{} replaced on {to} before it stops", say("would be", "is")),
        };
        let saves = match (at(&look, "saves_until").as_str(), at(&look, "checkpoint_grace").as_str()) {
            ("-", "-" | "0" | "0.0") => String::new(),
            ("-", seconds) => format!("; it may save its state for {seconds} s first"),
            (until, _) => format!("; it may save its state until {until}"),
        };
        out.push_str(&format!("  {} replica {}: {what}{saves}\n", at(&look, "request_id"), at(&look, "replica")));
        for reason in list(&look, "reasons") {
            out.push_str(&format!("    {}: {}\n", at(&reason, "reason"), at(&reason, "detail")));
        }
    }
    out
}

impl Register {
    fn body(self) -> Value {
        let mut body = Map::new();
        let texts = [
            ("node_id", self.node),
            ("device_type", self.device_type),
            ("gpu_memory", self.gpu_memory),
            ("mem", self.mem),
            ("region", self.region),
            ("zone", self.zone),
            ("rack", self.rack),
            ("sharing", self.sharing),
        ];
        body.extend(texts.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value?)))));
        body.extend(self.gpus.map(|gpus| ("gpus".to_owned(), json!(gpus))));
        body.extend(self.cpu.map(|cpu| ("cpu".to_owned(), json!(cpu))));
        body.extend(self.numa_nodes.map(|nodes| ("numa_nodes".to_owned(), json!(nodes))));
        Value::Object(body)
    }
}
