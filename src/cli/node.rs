//! `nf node`: register nodes by hand (simulation) and keep work away from them.

use super::client::escape;
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
    /// Register a node that a member plays (simulation only)
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
    /// Let new work onto a node again
    #[command(after_help = "Examples:\n  nf node uncordon n1\n  nf node uncordon n1 -o json")]
    Uncordon { node: String },
}

#[derive(Debug, Args)]
struct Register {
    /// Its name; made up when absent
    node: Option<String>,
    #[arg(long)]
    gpus: Option<u32>,
    #[arg(long)]
    device_type: Option<String>,
    /// Memory of each GPU, e.g. 80GB
    #[arg(long)]
    gpu_memory: Option<String>,
    #[arg(long)]
    cpu: Option<f64>,
    #[arg(long)]
    mem: Option<String>,
    #[arg(long)]
    region: Option<String>,
    #[arg(long)]
    zone: Option<String>,
    #[arg(long)]
    rack: Option<String>,
}

impl Node {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let (path, body) = match self.command {
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
            (verb, _) => format!("node {name} {}ed\n", verb.unwrap_or_default()),
        };
        output::put(&output::object(global.style(), &answer, &name, people)?);
        if at(&answer, "simulation") == "true" && path.ends_with("register") {
            say("simulation: the member that took the call plays this node");
        }
        Ok(())
    }
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
        ];
        body.extend(texts.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value?)))));
        body.extend(self.gpus.map(|gpus| ("gpus".to_owned(), json!(gpus))));
        body.extend(self.cpu.map(|cpu| ("cpu".to_owned(), json!(cpu))));
        Value::Object(body)
    }
}
