//! A process that a drill started: it is signalled, measured and never left
//! behind. It does not know what the process does.

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;
use tokio::process::{Child, Command};

/// How to start a process.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
    /// Added to our own environment.
    pub env: BTreeMap<String, String>,
    /// Where stdout and stderr go; appended, so that a restart keeps what came before.
    pub log: PathBuf,
}

/// A child of ours, killed when dropped.
#[derive(Debug)]
pub struct Process {
    pub recipe: Recipe,
    pub pid: Pid,
    child: Child,
}

impl Process {
    pub fn start(recipe: Recipe) -> Result<Self> {
        let log = File::options().create(true).append(true).open(&recipe.log)?;
        let mut command = Command::new(&recipe.program);
        command.args(&recipe.args).envs(&recipe.env).stdin(std::process::Stdio::null());
        command.stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("start {}", recipe.program.display()))?;
        let pid = child.id().context("a process that has just started has a pid")?;
        Ok(Self { recipe, pid: Pid::from_raw(pid as i32), child })
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid, signal).with_context(|| format!("{signal} to {}", self.recipe.name))
    }

    /// TERM, then KILL when it takes longer than `grace`. False when it had to be killed.
    pub async fn stop(mut self, grace: Duration) -> Result<bool> {
        self.signal(Signal::SIGTERM)?;
        match tokio::time::timeout(grace, self.child.wait()).await {
            Ok(status) => status.map(|_| true).map_err(Into::into),
            Err(_) => self.child.kill().await.map(|()| false).map_err(Into::into),
        }
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// The end of its log, for a failure's message.
    pub fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.recipe.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

/// Bytes of memory that a process has, without what its program shares with its file.
pub fn resident(pid: Pid) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("/proc/PID/status has RssAnon")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib << 10)
}

/// User and system time that a process has used so far.
pub fn cpu(pid: Pid) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything, so count from its end.
    let after = stat.rsplit_once(')').context("/proc/PID/stat has a name in parentheses")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // USER_HZ is 100 on every Linux that matters here.
    Ok(Duration::from_millis(ticks * 10))
}
