//! The guard: a process apart from the agent that ends replicas which must never run
//! twice, at a time by the machine's clock, whatever has become of the agent. This file
//! holds what the two say to one another over a socket in the guard's own directory. It
//! does not know leases: the agent tells it until when each replica may live.

mod granted;
mod keeper;
mod tie;

pub use keeper::run;
pub(in crate::agent) use tie::Tie;

use super::runtimes::processes::{Identity, Owner};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The longest line that either side reads.
const MAX_LINE: u64 = 1 << 20;
/// The most replicas that one guard holds.
const MAX_HOLDS: usize = 1024;

/// What the guard should hold and what it may forget, as one line of JSON. What is in neither list stays held until its
/// time: an agent that lost its records must not free what it does not know of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Order {
    holds: Vec<Hold>,
    /// Keys of which no process is left.
    #[serde(default)]
    gone: Vec<String>,
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Hold {
    /// What its processes carry in their environment.
    key: String,
    /// Its first process, once there is one.
    leader: Option<Identity>,
    /// Its control group, where the kernel gives one.
    cgroup: Option<PathBuf>,
    /// Its user, where it has one of its own.
    #[serde(default)]
    owner: Option<Owner>,
    /// By CLOCK_BOOTTIME, as a lease of this agent proves; never takes back what was given before.
    until_ms: Option<u64>,
    /// For a replica that the guard does not know, and no lease of this agent covers: as one of an earlier agent proved.
    else_ms: u64,
}

/// What the guard answers to each order, and says first to whoever connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Word {
    process: Identity,
    version: String,
    held: Vec<Held>,
}

/// A replica that the guard holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    key: String,
    until_ms: u64,
    /// Its time was over: it was killed, and stays so.
    fired: bool,
}

/// Where a guard lives.
#[derive(Clone, Debug)]
struct Room(PathBuf);

impl Room {
    fn make(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        Ok(Self(dir.to_path_buf()))
    }

    fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }

    fn granted(&self) -> PathBuf {
        self.0.join("granted")
    }

    fn log(&self) -> PathBuf {
        self.0.join("guard.log")
    }

    /// The socket by a path that is short enough for any data directory: a socket's may
    /// have 107 bytes. Good while the file is open.
    fn short(&self) -> io::Result<(File, PathBuf)> {
        let dir = File::open(&self.0)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/socket", dir.as_raw_fd()));
        Ok((dir, path))
    }
}

#[cfg(test)]
mod tests;
