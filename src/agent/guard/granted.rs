//! Until when replicas that must never run twice may live, written down beside their guard: a start that finds neither
//! agent nor guard gives them what was proven, and nothing more. Never synced, since a machine that fell has none of
//! their processes, and another boot. A write that is late or lost says less than was proven, which is the safe side.

use super::Room;
use crate::agent::runtimes::processes::boot_id;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tokio::sync::watch;

/// The file, and the machine's boot of which it speaks.
#[derive(Clone)]
pub(super) struct Granted {
    dir: PathBuf,
    boot: String,
}

impl Granted {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf(), boot: boot_id().unwrap_or_default() }
    }

    /// By CLOCK_BOOTTIME; None when nothing was proven since the machine's boot.
    pub(super) fn read(&self) -> Option<u64> {
        let text = fs::read_to_string(Room(self.dir.clone()).granted()).ok()?;
        let (boot, until_ms) = text.trim_end().split_once(' ')?;
        until_ms.parse().ok().filter(|_| !boot.is_empty() && boot == self.boot)
    }

    /// In place and always as long as before: who is killed here leaves a whole line.
    fn write(&self, until_ms: u64) -> io::Result<()> {
        let path = Room::make(&self.dir)?.granted();
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        file.write_all_at(format!("{} {until_ms:020}\n", self.boot).as_bytes(), 0)
    }

    /// Writes it down whenever it has grown, until the sender is gone. A disk that hangs holds up nobody else.
    pub(super) async fn keep<W>(self, mut wanted: watch::Receiver<W>, proven: fn(&W) -> Option<u64>) {
        let (mut written, mut troubled) = (0, false);
        loop {
            let until = proven(&wanted.borrow_and_update()).filter(|until_ms| *until_ms > written);
            if let Some(until_ms) = until {
                let file = self.clone();
                let done = tokio::task::spawn_blocking(move || file.write(until_ms)).await;
                match done.map_err(io::Error::other).flatten() {
                    Ok(()) => (written, troubled) = (until_ms, false),
                    Err(error) if !troubled => {
                        tracing::warn!(dir = %self.dir.display(), %error, "leases can't be written down: exclusive replicas may end early with their agent and guard");
                        troubled = true;
                    }
                    Err(_) => {}
                }
            }
            if wanted.changed().await.is_err() {
                return;
            }
        }
    }
}
