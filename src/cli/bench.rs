//! `nf bench`: load on a group and what it did with it. `gap` looks at the hole
//! that a failover leaves.

mod calls;
mod cpu;
mod gap;
mod load;
mod setup;

use super::Global;
use clap::{Args, Subcommand, ValueEnum};
use std::time::Duration;

#[derive(Debug, Args)]
pub struct Bench {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    #[command(flatten)]
    load: Load,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Call at a steady pace and measure the longest gap between acknowledged calls
    #[command(after_help = "Examples:\n  nf bench gap --seconds 20\n  nf bench gap --kill-leader --trials 10 -o json")]
    Gap(Gap),
}

/// Which interface is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    Grpc,
    Rest,
}

/// Closed loop: each client calls again when it has its answer.
#[derive(Clone, Debug, Args)]
pub struct Load {
    #[arg(long, default_value_t = 64)]
    pub clients: usize,
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Seconds before counting begins
    #[arg(long, default_value_t = 2.0)]
    pub warmup: f64,
    #[arg(long, value_enum, default_value_t = Protocol::Grpc)]
    pub protocol: Protocol,
    /// Connections to each member; as many as clients when those are fewer
    #[arg(long, default_value_t = 8)]
    pub connections: usize,
    /// Calls go to the leader only, or to all members in turn
    #[arg(long, value_enum, default_value_t = Target::Any)]
    pub target: Target,
    /// Tenants that the calls are spread over
    #[arg(long, default_value_t = 8)]
    pub tenants: usize,
    /// Thousandths of a GPU that each job asks for
    #[arg(long, default_value_t = 1)]
    pub gpu_milli: u32,
    /// Part of the GPUs taken before the run begins
    #[arg(long, default_value_t = 0.5)]
    pub fill: f64,
    /// Process ids of the members on this machine, for CPU time; those of nf dev when absent
    #[arg(long, value_delimiter = ',')]
    pub pids: Vec<u32>,
    /// Don't stop what was scheduled
    #[arg(long)]
    pub no_stops: bool,
}

/// Who is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    Leader,
    Any,
}

/// Open loop: calls begin by the clock, whatever became of the last one.
#[derive(Clone, Debug, Args)]
pub struct Gap {
    #[arg(long, default_value_t = 15.0)]
    pub seconds: f64,
    /// Milliseconds between the beginnings of two calls
    #[arg(long, default_value_t = 5)]
    pub every: u64,
    /// How long a call may live
    #[arg(long, default_value = "5s", value_parser = crate::config::parse::duration)]
    pub deadline: Duration,
    #[arg(long, value_enum, default_value_t = Protocol::Grpc)]
    pub protocol: Protocol,
    /// Kill the leader of nf dev in the middle, and restart it afterwards
    #[arg(long)]
    pub kill_leader: bool,
    /// Repeat this often
    #[arg(long, default_value_t = 1)]
    pub trials: u32,
    /// The data directory of that nf dev, when it is not the latest
    #[arg(long)]
    pub data_dir: Option<std::path::PathBuf>,
}

impl Bench {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        match self.command {
            None => load::run(global, &self.load).await,
            Some(BenchCommand::Gap(gap)) => gap::run(global, &gap).await,
        }
    }
}
