//! The guard's own process: a table of replicas and the times by which they must be
//! dead, one thread that looks at the clock, one for each agent that is connected. Plain
//! threads and no allocation of note, so that little can hold it up. It ends when it
//! holds nothing and no agent is there.

use super::{Held, Hold, MAX_HOLDS, MAX_LINE, Order, Room, Word};
use crate::agent::lease::boot_ms;
use crate::agent::lock;
use crate::agent::runtimes::processes::{Family, Identity};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often it looks at the clock while it holds something. Short, because a wait does
/// not count the time that the machine slept.
const TICK: Duration = Duration::from_millis(50);
/// How often it looks when it holds nothing.
const IDLE: Duration = Duration::from_millis(500);
/// How long it waits for its first agent, and how often it then looks for replicas that
/// ended by themselves while no agent is there.
const ALONE_MS: u64 = 10_000;
/// How often it looks for late starts of a replica whose time is over.
const AGAIN_MS: u64 = 1_000;
/// Agents at a time: one, and its successor while the first has not been buried.
const AGENTS: usize = 4;

struct Entry {
    family: Family,
    until_ms: u64,
    fired: bool,
    /// The last order named it: an agent may be on its way to starting it.
    named: bool,
    /// When it is looked at next, once fired or without an agent.
    look_ms: u64,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<String, Entry>,
    agents: usize,
    /// When the last agent went away, or the guard began.
    alone_since_ms: u64,
}

impl Table {
    /// No agent is there, nor one of its children on its way to becoming a replica.
    fn is_alone(&self, now_ms: u64) -> bool {
        self.agents == 0 && now_ms >= self.alone_since_ms + ALONE_MS
    }
}

struct Guard {
    table: Mutex<Table>,
    wake: Condvar,
    me: Identity,
}

/// Runs a guard in `dir` until nobody needs it. A second one in the same place ends at once.
///
/// # Errors
/// When the directory or the socket can't be made.
pub fn run(dir: &Path) -> io::Result<()> {
    let room = Room::make(dir)?;
    let Some(_lock) = lock::take(&room.lock())? else {
        tracing::info!(dir = %dir.display(), "a guard is here already");
        return Ok(());
    };
    match fs::remove_file(room.socket()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let (_dir, short) = room.short()?;
    let listener = UnixListener::bind(short)?;
    let pid = std::process::id();
    let me = Identity::of(pid).ok_or_else(|| io::Error::other("/proc does not show this process"))?;
    let table = Table { alone_since_ms: boot_ms(), ..Table::default() };
    let guard = Arc::new(Guard { table: Mutex::new(table), wake: Condvar::new(), me });
    tracing::info!(pid, dir = %dir.display(), "guarding");
    let door = guard.clone();
    std::thread::Builder::new().name("door".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            door.admit(stream);
        }
    })?;
    guard.keep();
    tracing::info!(pid, "nothing to guard and no agent: ending");
    Ok(())
}

impl Guard {
    fn table(&self) -> MutexGuard<'_, Table> {
        // No change of the table can stop half way.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to listen to an agent.
    fn admit(self: &Arc<Self>, stream: UnixStream) {
        {
            let mut table = self.table();
            if table.agents == AGENTS {
                tracing::warn!("too many agents speak to this guard; one is sent away");
                return;
            }
            table.agents += 1;
        }
        let guard = self.clone();
        let listening = std::thread::Builder::new().name("agent".into()).spawn(move || {
            if let Err(error) = guard.listen(&stream) {
                tracing::warn!(%error, "an agent's line broke");
            }
            guard.leave();
        });
        if let Err(error) = listening {
            tracing::error!(%error, "no thread for an agent");
            self.leave();
        }
    }

    fn leave(&self) {
        let mut table = self.table();
        table.agents -= 1;
        table.alone_since_ms = boot_ms();
        self.wake.notify_all();
    }

    fn listen(&self, stream: &UnixStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        self.answer(stream)?;
        loop {
            line.clear();
            if (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            let order: Order = serde_json::from_slice(&line)?;
            self.obey(order);
            self.answer(stream)?;
        }
    }

    fn answer(&self, mut stream: &UnixStream) -> io::Result<()> {
        let held = |(key, e): (&String, &Entry)| Held { key: key.clone(), until_ms: e.until_ms, fired: e.fired };
        let held = self.table().entries.iter().map(held).collect();
        let word = Word { process: self.me, version: env!("CARGO_PKG_VERSION").to_owned(), held };
        let mut line = serde_json::to_vec(&word)?;
        line.push(b'\n');
        stream.write_all(&line)
    }

    /// Takes in what the agent says, but takes back no time that was given, revives nobody
    /// whose time is over, and lets go of nobody who was not said to be gone.
    fn obey(&self, order: Order) {
        let mut table = self.table();
        table.entries.retain(|key, _| !order.gone.contains(key));
        table.entries.values_mut().for_each(|entry| entry.named = false);
        for Hold { key, leader, cgroup, owner, until_ms, else_ms } in order.holds.into_iter().take(MAX_HOLDS) {
            let family = Family { key: key.clone(), leader, cgroup, owner };
            match table.entries.get_mut(&key) {
                Some(entry) => {
                    entry.named = true;
                    let known = entry.family.leader;
                    entry.family = Family { leader: leader.or(known), ..family };
                    if !entry.fired {
                        entry.until_ms = entry.until_ms.max(until_ms.unwrap_or(0));
                    }
                }
                None => {
                    let until_ms = until_ms.unwrap_or(else_ms);
                    table.entries.insert(key, Entry { family, until_ms, fired: false, named: true, look_ms: 0 });
                }
            }
        }
        self.wake.notify_all();
    }

    /// Looks at the clock until nobody needs it any more.
    fn keep(&self) {
        loop {
            let now_ms = boot_ms();
            for (key, family) in self.due(now_ms) {
                self.put_down(&key, &family);
            }
            let table = self.table();
            if table.entries.is_empty() && table.is_alone(now_ms) {
                return;
            }
            let pause = if table.entries.is_empty() { IDLE } else { TICK };
            // Whatever wakes it, it looks at everything.
            drop(self.wake.wait_timeout(table, pause));
        }
    }

    /// Whose time is over, or should be looked at again. The first processes of all of
    /// them are killed before this returns: looking for the others takes a while.
    fn due(&self, now_ms: u64) -> Vec<(String, Family)> {
        let mut table = self.table();
        let alone = table.is_alone(now_ms);
        let mut due = Vec::new();
        for (key, entry) in &mut table.entries {
            if !entry.fired && now_ms >= entry.until_ms {
                entry.fired = true;
                entry.family.strike();
                let late_ms = now_ms - entry.until_ms;
                tracing::warn!(key, late_ms, "no lease: an exclusive replica is killed");
            } else if now_ms < entry.look_ms || !(entry.fired || alone) {
                continue;
            }
            due.push((key.clone(), entry.family.clone()));
        }
        due
    }

    /// Kills whatever of a fired replica lives, and forgets one that is over while no agent is there.
    fn put_down(&self, key: &str, family: &Family) {
        let fired = self.table().entries.get(key).is_some_and(|entry| entry.fired);
        let left = if fired { family.signal(Signal::SIGKILL) } else { family.members().len() };
        let now_ms = boot_ms();
        let mut table = self.table();
        let alone = table.is_alone(now_ms);
        let Some(entry) = table.entries.get_mut(key) else { return };
        entry.look_ms = match (left, fired) {
            (0, true) => now_ms + AGAIN_MS,
            (_, true) => now_ms,
            (_, false) => now_ms + ALONE_MS,
        };
        // Nobody can start it late where no agent is, nor one that speaks of it: what it forked looks at the clock.
        if left == 0 && (alone || (fired && !entry.named)) {
            table.entries.remove(key);
        }
    }
}
