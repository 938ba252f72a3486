//! nf-chaos: drills and comparisons on real processes. Each subcommand starts
//! what it needs on loopback below a temporary folder, says what it saw, and ends
//! everything that it started. It shares no code with what it tests.

mod bench;
mod caller;
mod check;
mod cluster;
mod compare;
mod etcd;
mod eventually;
mod failover;
mod fill;
mod gateway;
mod http;
mod load;
mod openb;
mod ports;
mod process;
mod trace;
mod wire;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};

/// Drills and comparisons on real processes.
#[derive(Debug, Parser)]
#[command(name = "nf-chaos", version)]
struct Arguments {
    /// The nf to test; the one beside this program when not given.
    #[arg(long, global = true)]
    nf: Option<PathBuf>,
    /// Keep logs and data here instead of in a temporary folder that is removed.
    #[arg(long, global = true)]
    keep: Option<PathBuf>,
    #[command(subcommand)]
    drill: Drill,
}

#[derive(Debug, Subcommand)]
enum Drill {
    /// The public GPU trace on a three-member cluster, the leader killed twice.
    Openb {
        /// Only the first so many requests.
        #[arg(long)]
        requests: Option<usize>,
    },
    /// How long until the next acknowledged call when the leader dies or freezes.
    Failover {
        #[arg(long, default_value_t = 10)]
        kills: usize,
        #[arg(long, default_value_t = 5)]
        freezes: usize,
        /// Missing a bar is a failure, not only a figure.
        #[arg(long)]
        strict: bool,
    },
    /// What live jobs cost: memory of each, and how long a member takes to be back with them.
    Fill {
        #[arg(long, default_value_t = 100_000)]
        jobs: usize,
        #[arg(long, default_value_t = 1000)]
        nodes: usize,
    },
    /// Schedule calls against etcd puts, in turns.
    Compare {
        #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
        clients: Vec<usize>,
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Of each measurement.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        #[arg(long, default_value_t = 1000)]
        nodes: usize,
        /// The nodes' agents start and stop what is placed; without, they only beat.
        #[arg(long)]
        agents: bool,
        /// Every call shows a token, which is checked.
        #[arg(long)]
        auth: bool,
        /// One side alone: for a profile, or where the other is known.
        #[arg(long, value_enum)]
        only: Option<compare::Side>,
    },
    /// What the way through the gateway costs over a direct call, in turns.
    Gateway {
        #[arg(long, value_delimiter = ',', default_value = "1,8")]
        clients: Vec<usize>,
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Of each measurement.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// Missing a bar is a failure, not only a figure.
        #[arg(long)]
        strict: bool,
    },
    /// A model server that answers everything the same at once; the gateway drill starts it as a replica.
    #[command(hide = true)]
    Replica { host: String, port: u16 },
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Drill::Replica { host, port } = &arguments.drill {
        return http::serve(&format!("{host}:{port}")).await;
    }
    let (dir, temporary) = match &arguments.keep {
        Some(dir) => (dir.clone(), false),
        None => (std::env::temp_dir().join(format!("nf-chaos-{}", std::process::id())), true),
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    // Everything started is killed when it is dropped, so an interrupt ends it all.
    let result = tokio::select! {
        result = drill(&arguments, &dir) => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match &result {
        Err(_) => eprintln!("nf-chaos: logs and data are in {}", dir.display()),
        Ok(()) if temporary => std::fs::remove_dir_all(&dir)?,
        Ok(()) => {}
    }
    result
}

async fn drill(arguments: &Arguments, dir: &Path) -> Result<()> {
    let nf = arguments.nf.clone().map_or_else(beside, Ok);
    match &arguments.drill {
        Drill::Openb { requests } => openb::run(&nf?, dir, *requests).await,
        Drill::Failover { kills, freezes, strict } => failover::run(&nf?, dir, *kills, *freezes, *strict).await,
        Drill::Fill { jobs, nodes } => fill::run(&nf?, dir, *jobs, *nodes).await,
        Drill::Compare { clients, rounds, seconds, nodes, agents, auth, only } => {
            let (rounds, seconds, nodes) = (*rounds, *seconds, *nodes);
            let nf = if *only == Some(compare::Side::Etcd) { PathBuf::new() } else { nf? };
            let (agents, auth, only) = (*agents, *auth, *only);
            let plan = compare::Plan { clients: clients.clone(), rounds, seconds, nodes, agents, auth, only };
            compare::run(&nf, dir, &plan).await
        }
        Drill::Gateway { clients, rounds, seconds, strict } => {
            let (clients, rounds, seconds, strict) = (clients.clone(), *rounds, *seconds, *strict);
            gateway::run(&nf?, dir, &gateway::Plan { clients, rounds, seconds, strict }).await
        }
        Drill::Replica { .. } => bail!("a replica is no drill"),
    }
}

/// The nf that was built with this program.
fn beside() -> Result<PathBuf> {
    let nf = std::env::current_exe()?.with_file_name("nf");
    if !nf.is_file() {
        bail!("{} is not there; build it (make build) or name it with --nf", nf.display());
    }
    Ok(nf)
}
