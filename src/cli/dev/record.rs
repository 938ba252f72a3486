//! What runs: a file that the supervisor writes and `nf dev kill` reads. It lies
//! in the data directory, and its path under the state directory.

use crate::cli::exit::{Exit, fail};
use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A group that `nf dev` runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The supervisor.
    pub pid: u32,
    pub data_dir: PathBuf,
    pub members: Vec<Member>,
}

/// One of its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    pub pid: u32,
    pub api: String,
    pub peer: String,
}

impl Member {
    /// Its process runs, and is still the one that was started.
    pub fn alive(&self) -> bool {
        // A dead child that nobody has waited for yet has an empty command line.
        let line = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        words.contains(&b"serve".as_slice()) && words.contains(&self.name.as_bytes())
    }

    /// Sends a signal, unless the process is another by now.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.alive() {
            kill(pid(self.pid)?, signal).with_context(|| format!("signalling {} (pid {})", self.name, self.pid))?;
        }
        Ok(())
    }
}

fn pid(pid: u32) -> Result<Pid> {
    // 0 and negative numbers mean groups of processes, which are never meant here.
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1).context("no process id")?;
    Ok(Pid::from_raw(pid))
}

/// `$XDG_STATE_HOME/neural-fabric/dev`: a file with the data directory of the latest group.
fn pointer() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let state = from("XDG_STATE_HOME").or_else(|| from("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("neural-fabric").join("dev"))
}

fn replace(path: &Path, text: &str) -> Result<()> {
    let name = || path.display().to_string();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(name)?;
    }
    Ok(crate::storage::replace_file(path, text.as_bytes())?)
}

impl Record {
    /// The group of that data directory, or the latest one.
    pub fn read(dir: Option<&Path>) -> Result<Self> {
        let none = || fail(Exit::NotFound, "no development group runs here\n  try: nf dev");
        let dir = match dir {
            Some(dir) => dir.to_owned(),
            None => {
                std::fs::read_to_string(pointer().ok_or_else(none)?).map(|t| t.trim().into()).map_err(|_| none())?
            }
        };
        let text = std::fs::read_to_string(dir.join("dev.json")).map_err(|_| none())?;
        let path = dir.join("dev.json");
        serde_json::from_str(&text).map_err(|e| fail(Exit::Failed, format!("{}: {e}", path.display())))
    }

    pub fn write(&self) -> Result<()> {
        replace(&self.data_dir.join("dev.json"), &serde_json::to_string_pretty(self)?)
    }

    /// Makes this the group that `nf dev kill` means.
    pub fn point(&self) -> Result<()> {
        pointer().map_or(Ok(()), |path| replace(&path, &self.data_dir.display().to_string()))
    }

    /// Forgets the group; called by its supervisor alone.
    pub fn erase(&self) {
        // Nothing depends on these files once the group has ended.
        let _ = std::fs::remove_file(self.data_dir.join("dev.json"));
        let ours =
            |path: &PathBuf| std::fs::read_to_string(path).is_ok_and(|text| Path::new(text.trim()) == self.data_dir);
        if let Some(path) = pointer().filter(ours) {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Leaves a wish and wakes the supervisor.
    pub fn ask_restart(&self, name: &str) -> Result<()> {
        replace(&self.data_dir.join(name).join("restart"), "1")?;
        let gone = || fail(Exit::NotFound, "the nf dev that started this group is gone\n  try: nf dev");
        kill(pid(self.pid)?, Signal::SIGUSR1).map_err(|_| gone())
    }

    /// Takes the wishes that were left.
    pub fn wishes(&self) -> Vec<String> {
        let wished = |m: &&Member| std::fs::remove_file(self.data_dir.join(&m.name).join("restart")).is_ok();
        self.members.iter().filter(wished).map(|m| m.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_written_and_a_dead_pid_is_not_alive() {
        let dir = tempfile::tempdir().unwrap();
        let member = |name: &str, pid| Member { name: name.into(), pid, api: "http://h:1".into(), peer: "h:2".into() };
        // The largest pid that Linux gives is 2^22.
        let record = Record { pid: 1 << 23, data_dir: dir.path().into(), members: vec![member("n1", 1 << 23)] };
        record.write().unwrap();
        let read = Record::read(Some(dir.path())).unwrap();
        assert_eq!(read.members, record.members);
        assert!(!read.members[0].alive());
        assert!(!member("n1", std::process::id()).alive(), "a process that is no member of ours is left alone");
        assert!(read.ask_restart("n1").is_err());
        assert_eq!(read.wishes(), ["n1"]);
        read.erase();
        assert!(Record::read(Some(dir.path())).is_err());
    }
}
