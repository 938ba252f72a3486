//! `nf serve`: brings the parts of one process up in order, and takes them down
//! in order. It decides nothing.

use crate::config::Settings;
use anyhow::Result;

/// Extras of the command line that are no settings.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// Written once the member answers.
    pub ready_file: Option<std::path::PathBuf>,
    /// End when stdin does, which is when the parent is gone.
    pub stop_with_parent: bool,
}

/// Runs until TERM or INT.
pub fn run(_settings: Settings, _extras: Extras) -> Result<()> {
    anyhow::bail!("serving waits for raft, exchange, agent and api")
}
