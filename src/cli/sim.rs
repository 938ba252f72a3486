//! `nf sim`: plays many worker nodes from a list in one process.

use super::Global;
use super::exit::{Exit, fail};
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Sim {
    #[command(subcommand)]
    command: SimCommand,
}

#[derive(Debug, Subcommand)]
enum SimCommand {
    /// Register the nodes of a list and play their agents until Ctrl-C
    #[command(
        after_help = "Examples:\n  nf sim nodes --from openb_node_list_gpu_node.csv\n  nf sim nodes --from nodes.csv --addr http://127.0.0.1:8600"
    )]
    Nodes(Nodes),
}

#[derive(Debug, Args)]
struct Nodes {
    /// CSV with the columns sn,cpu_milli,memory_mib,gpu,model
    #[arg(long)]
    from: PathBuf,
}

impl Sim {
    pub async fn run(self, _global: &Global) -> anyhow::Result<()> {
        let SimCommand::Nodes(nodes) = self.command;
        let name = nodes.from.display().to_string();
        if !nodes.from.is_file() {
            return Err(fail(Exit::Usage, format!("{name}: no such file")));
        }
        Err(fail(Exit::Failed, "nf sim nodes waits for the agent's engine, which this build does not have yet"))
    }
}
