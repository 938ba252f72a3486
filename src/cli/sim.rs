//! `nf sim`: plays many worker nodes from a list in one process, and tries placement and
//! autoscaling on lists. What a played node does is the agent's; this finds the group and the keys.

mod autoscale;
mod cluster;
mod lines;
mod place;
mod svg;

pub use autoscale::online::run as speak_autoscale;
pub use place::online::run as speak_place;

use super::exit::{Exit, fail};
use super::output::at;
use super::{Global, dev, say, signals};
use crate::agent::{Outcome, virtual_nodes};
use crate::config::parse;
use crate::daemon::{PLAYER, TlsDial};
use crate::pqc;
use crate::security::tls::{Credentials, PeerTls};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use nf_core::id::Incarnation;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

#[derive(Debug, Args)]
pub struct Sim {
    #[command(subcommand)]
    command: SimCommand,
}

#[derive(Debug, Subcommand)]
enum SimCommand {
    /// Register the nodes of a list and play their agents until Ctrl-C
    #[command(
        after_help = "Examples:\n  nf sim nodes --from openb_node_list_gpu_node.csv\n  nf sim nodes --from nodes.csv --tls-dir ./data/player/tls"
    )]
    Nodes(Nodes),
    /// Replay arrivals through the daemon's autoscaler
    #[command(
        after_help = "Examples:\n  nf sim autoscale --load diurnal,bursts --seed 1-3\n  nf sim autoscale --arrivals f.csv --policy nf,hpa,kpa-tuned,oracle --plot out.svg\n  nf sim autoscale --online"
    )]
    Autoscale(autoscale::Autoscale),
    /// Show which waiting jobs, of the group or of lists, would start if there were more nodes
    #[command(
        after_help = "Examples:\n  nf sim cluster --add-nodes 4xH100-80G:8\n  nf sim cluster --add-nodes 2xA100-80G:8,1xL4:1 --cpu 96 -o json\n  nf sim cluster --nodes nodes.csv --requests requests.csv --add-nodes 4xH100-80G:8"
    )]
    Cluster(cluster::Cluster),
    /// Try placement on lists of nodes and requests, without a group
    #[command(
        after_help = "Examples:\n  nf sim place --online\n  nf sim place --nodes nodes.csv --requests requests.csv --policy fragmentation,best-fit --plot out.svg"
    )]
    Place(place::Place),
}

#[derive(Debug, Args)]
struct Nodes {
    /// CSV with the columns sn,cpu_milli,memory_mib,gpu,model
    #[arg(long)]
    from: PathBuf,
    /// Keys of the group's player; those of nf dev when absent
    #[arg(long)]
    tls_dir: Option<PathBuf>,
    /// The data directory of that nf dev, when it is not the latest
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// How long a replica takes from its start until it is Ready
    #[arg(long, default_value = "100ms", value_parser = parse::duration)]
    ready_after: Duration,
    /// Register and beat, and start nothing: for measuring the scheduler without its agents
    #[arg(long)]
    beats_only: bool,
    /// The group's key exchange: hybrid, classical or off
    #[arg(long, value_parser = pqc::Mode::parse, value_name = "MODE", env = "PQC_MODE", default_value_t)]
    pqc_mode: pqc::Mode,
}

impl Sim {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        match self.command {
            SimCommand::Nodes(nodes) => nodes.run(global).await,
            SimCommand::Cluster(cluster) => cluster.run(global).await,
            SimCommand::Autoscale(autoscale) => autoscale.run(global),
            // One conversation and no other task: blocking is what it is for.
            SimCommand::Place(place) => place.run(global),
        }
    }
}

impl Nodes {
    async fn run(self, global: &Global) -> anyhow::Result<()> {
        let name = self.from.display().to_string();
        let text = std::fs::read_to_string(&self.from).map_err(|e| fail(Exit::Usage, format!("{name}: {e}")))?;
        let list = virtual_nodes::parse(&text).map_err(|e| fail(Exit::Usage, format!("{name}: {e}")))?;
        let group = global.client()?.get("/cluster/members").await?;
        let cluster = at(&group, "cluster");
        let items = group.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        let names = items.iter().map(|m| (at(m, "peer"), at(m, "name"))).collect();
        let peers: Vec<String> = items.iter().map(|m| at(m, "peer")).collect();
        let keys = self.keys()?;
        let credentials = Credentials::read(&keys).map_err(|e| {
            fail(
                Exit::Usage,
                format!("{e}\n  try: --tls-dir DIR with the player's keys, which nf dev and nf serve make"),
            )
        })?;
        let tls = PeerTls::in_mode(&credentials, &cluster, PLAYER, self.pqc_mode.into())?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let incarnation = Incarnation(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        let mut options = virtual_nodes::Options::new(peers, Arc::new(TlsDial { tls, names }), incarnation);
        options.cluster = cluster;
        options.ready_after = self.ready_after;
        options.beats_only = self.beats_only;
        let gpus: u64 = list.iter().map(|node| u64::from(node.gpus)).sum();
        say(format!("playing {} nodes with {gpus} GPUs; Ctrl-C stops them", list.len()));
        let (end, ended) = watch::channel(false);
        let playing = virtual_nodes::run(options, &list, ended);
        tokio::pin!(playing);
        tokio::select! {
            outcome = &mut playing => match outcome.map_err(|e| fail(Exit::Failed, e))? {
                Outcome::Superseded => Err(fail(Exit::Conflict, "another process plays these nodes now")),
                Outcome::Stopped => Ok(()),
            },
            stopped = signals::stop() => {
                stopped?;
                end.send_replace(true);
                playing.await.map_err(|e| fail(Exit::Failed, e))?;
                say("no longer playing; the nodes will be given up when they have been silent for long enough");
                Ok(())
            }
        }
    }

    fn keys(&self) -> anyhow::Result<PathBuf> {
        if let Some(dir) = &self.tls_dir {
            return Ok(dir.clone());
        }
        let record =
            dev::record(self.data_dir.as_deref()).context("without --tls-dir, the keys are those of nf dev")?;
        Ok(record.data_dir.join(PLAYER).join("tls"))
    }
}
