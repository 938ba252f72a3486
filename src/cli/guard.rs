//! `nf guard`, the process that ends exclusive replicas when their lease does, and `nf keep-logs`, which bounds replicas'
//! logs while no agent does. Agents start them; people have no use for them.

use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Guard {
    /// Where it lives: below the agent's data directory
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

impl Guard {
    pub fn run(self) -> anyhow::Result<()> {
        crate::telemetry::init_logs(None);
        // The last to be given up when memory runs out. Only root may ask for that.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
        Ok(crate::agent::guard::run(&self.dir)?)
    }
}

#[derive(Debug, Args)]
pub struct KeepLogs {
    /// Where the logs are: below the agent's data directory
    logs: PathBuf,
    /// Where the records of their replicas are
    #[arg(long, value_name = "DIR")]
    records: PathBuf,
}

impl KeepLogs {
    pub fn run(self) -> anyhow::Result<()> {
        crate::telemetry::init_logs(None);
        Ok(crate::agent::keep_logs(&self.logs, &self.records)?)
    }
}
