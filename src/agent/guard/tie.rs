//! The agent's side of its guard: starts one when there is something to guard, finds the
//! one that an earlier agent started, and tells it at every change all that it should
//! hold. One task owns the line; what is wanted is a value that it reads, so nothing
//! queues up and nothing can be lost.

use super::granted::Granted;
use super::{Hold, MAX_HOLDS, MAX_LINE, Order, Room, Word};
use crate::agent::runtimes::processes::Family;
use crate::agent::runtimes::session::spawn_apart;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// How long a start waits for the guard's word. Longer than a guard takes to begin on a busy machine.
const WORD: Duration = Duration::from_secs(5);
/// First and longest pause before the guard is started or asked again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A log that is longer is begun anew when a guard starts.
const MAX_LOG: u64 = 1 << 20;

/// What the agent wants held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// Rises with every change.
    version: u64,
    until_ms: Option<u64>,
    /// What a lease of an earlier agent proved; over already, where none is known.
    else_ms: u64,
    /// By key.
    replicas: BTreeMap<String, Family>,
    /// Keys of those that are gone, each with the version that first said so, until a guard has heard it.
    gone: BTreeMap<String, u64>,
}

impl Wanted {
    /// What is worth to be known by the next agent.
    fn proven(&self) -> Option<u64> {
        self.until_ms.filter(|_| !self.replicas.is_empty())
    }
}

/// What the guard last said.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// The version of [`Wanted`] that it has.
    version: u64,
    /// By key: until when, and whether its time was over.
    held: BTreeMap<String, (u64, bool)>,
    /// Why there is no guard, while there is none.
    trouble: Option<String>,
}

/// A handle; clones are the same tie.
#[derive(Clone)]
pub(in crate::agent) struct Tie {
    wanted: Arc<watch::Sender<Wanted>>,
    seen: watch::Receiver<Seen>,
}

impl Tie {
    /// Says nothing to anybody before something is to be held. `program` is `nf` itself. Reads a small file.
    pub(in crate::agent) fn new(runtime: &Handle, dir: PathBuf, program: PathBuf) -> Self {
        let granted = Granted::new(&dir);
        let (wanted, order) = watch::channel(Wanted { else_ms: granted.read().unwrap_or(0), ..Wanted::default() });
        runtime.spawn(granted.keep(order.clone(), Wanted::proven));
        let (tell, seen) = watch::channel(Seen::default());
        runtime.spawn(Line { dir, program, order, tell, guard: None }.tend());
        Self { wanted: Arc::new(wanted), seen }
    }

    fn change(&self, change: impl FnOnce(&mut Wanted)) -> u64 {
        let mut version = 0;
        let heard = self.seen.borrow().version;
        self.wanted.send_modify(|wanted| {
            wanted.version += 1;
            version = wanted.version;
            wanted.gone.retain(|_, said| *said > heard);
            change(wanted);
        });
        version
    }

    /// Until when replicas may live by a lease of this agent, once it has one.
    pub(in crate::agent) fn extend(&self, until_ms: Option<u64>) {
        let new = self.wanted.borrow().until_ms != until_ms;
        if new {
            self.change(|wanted| wanted.until_ms = until_ms);
        }
    }

    /// Has a replica held that is about to start. Returns the time, by CLOCK_BOOTTIME, at which it will be killed.
    ///
    /// # Errors
    /// Why there is no guard; nothing may start then.
    pub(in crate::agent) async fn hold(&self, family: Family) -> Result<u64, String> {
        let key = &*family.key.clone();
        if self.wanted.borrow().replicas.len() >= MAX_HOLDS {
            return Err(format!("a guard holds {MAX_HOLDS} replicas at most"));
        }
        if self.wanted.borrow().until_ms.is_none() {
            return Err("no lease covers it".into());
        }
        let version = self.change(|wanted| {
            wanted.gone.remove(key);
            wanted.replicas.insert(key.to_owned(), family);
        });
        let mut seen = self.seen.clone();
        let word = tokio::time::timeout(WORD, seen.wait_for(|seen| seen.version >= version)).await;
        let until = match word {
            Ok(Ok(seen)) => seen.held.get(key).copied(),
            _ => None,
        };
        match until {
            Some((until_ms, false)) => Ok(until_ms),
            Some((_, true)) => {
                self.release(key);
                Err("the lease that covers it is over".into())
            }
            None => {
                self.release(key);
                let trouble = self.seen.borrow().trouble.clone();
                Err(trouble.unwrap_or_else(|| format!("the guard did not answer within {WORD:?}")))
            }
        }
    }

    /// Its first process is known now; or, after a start of the agent, it is known at all.
    pub(in crate::agent) fn knows(&self, family: Family) {
        self.change(|wanted| {
            wanted.gone.remove(&family.key);
            wanted.replicas.insert(family.key.clone(), family);
        });
    }

    /// It is gone: no process of it is left. Nothing else frees a key that a guard holds.
    pub(in crate::agent) fn release(&self, key: &str) {
        self.change(|wanted| {
            wanted.replicas.remove(key);
            // So many that nobody has heard of: there is no guard that could hold them.
            if wanted.gone.len() < MAX_HOLDS {
                wanted.gone.insert(key.to_owned(), wanted.version);
            }
        });
    }

    /// Whether the guard ended it. It speaks only when it is asked, and after a start of the agent its first word may
    /// be on its way when the replica is dead already: that word has its time, unless there is no guard to say it.
    pub(in crate::agent) async fn has_fired(&self, key: &str) -> bool {
        let mut seen = self.seen.clone();
        let _ = tokio::time::timeout(WORD, seen.wait_for(|seen| seen.held.contains_key(key) || seen.trouble.is_some()))
            .await;
        self.fired(key)
    }

    /// Whether its time was over, by the guard's last word and the clock.
    pub(super) fn fired(&self, key: &str) -> bool {
        let seen = self.seen.borrow();
        seen.held.get(key).is_some_and(|(until, fired)| *fired || crate::agent::lease::boot_ms() >= *until)
    }

    /// By when one of them must be dead: as the guard said, or, where none answered, as it would have been told.
    pub(in crate::agent) fn ends_ms(&self, key: &str) -> u64 {
        let held = self.seen.borrow().held.get(key).map(|(until, _)| *until);
        let wanted = self.wanted.borrow();
        held.or(wanted.until_ms).unwrap_or(wanted.else_ms)
    }

    /// The earliest time at which one of them is killed; None when the guard holds nothing.
    pub(in crate::agent) fn until(&self) -> Option<u64> {
        let (seen, wanted) = (self.seen.borrow(), self.wanted.borrow());
        let held = seen.held.iter().filter(|(key, _)| wanted.replicas.contains_key(*key));
        held.map(|(_, (until, _))| *until).min()
    }
}

/// The task's own.
struct Line {
    dir: PathBuf,
    program: PathBuf,
    order: watch::Receiver<Wanted>,
    tell: watch::Sender<Seen>,
    /// So that one which ended is waited for.
    guard: Option<Child>,
}

struct Wire {
    lines: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
}

impl Line {
    /// Runs until the tie is gone; the guard goes on without it.
    async fn tend(mut self) {
        if self.order.wait_for(|wanted| !wanted.replicas.is_empty()).await.is_err() {
            return;
        }
        let mut pause = PAUSE.0;
        loop {
            match self.talk(&mut pause).await {
                Ok(()) => return,
                Err(error) => {
                    let trouble = format!("no guard: {error}");
                    // Said once for each new trouble; the next starts say it, too.
                    if self.tell.borrow().trouble.as_deref() != Some(&trouble) {
                        tracing::warn!(dir = %self.dir.display(), %error, "no word from the guard; trying again");
                    }
                    self.tell.send_modify(|seen| seen.trouble = Some(trouble));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.tell.closed() => return,
            }
            pause = PAUSE.1.min(pause * 2);
        }
    }

    /// Tells one guard everything, for as long as it answers. Ok when the tie is gone.
    async fn talk(&mut self, pause: &mut Duration) -> io::Result<()> {
        let mut wire = self.reach().await?;
        let mut word = Vec::new();
        let first = wire.next(&mut word).await?;
        tracing::info!(pid = first.process.pid, version = first.version, "a guard holds the exclusive replicas");
        self.order.mark_changed();
        loop {
            word.clear();
            tokio::select! {
                changed = self.order.changed() => if changed.is_err() { return Ok(()) },
                // It says nothing unasked: this is its end.
                said = wire.next(&mut word) => { said?; continue }
            }
            let (version, order) = {
                let wanted = self.order.borrow_and_update();
                (wanted.version, order_of(&wanted))
            };
            let word = tokio::time::timeout(WORD, wire.ask(&order)).await.map_err(|_| io::ErrorKind::TimedOut)??;
            *pause = PAUSE.0;
            let held = word.held.into_iter().map(|held| (held.key, (held.until_ms, held.fired))).collect();
            self.tell.send_replace(Seen { version, held, trouble: None });
        }
    }

    /// The guard that is there, or a new one.
    async fn reach(&mut self) -> io::Result<Wire> {
        if let Some(guard) = &mut self.guard
            && guard.try_wait()?.is_some()
        {
            self.guard = None;
        }
        let room = {
            let dir = self.dir.clone();
            tokio::task::spawn_blocking(move || Room::make(&dir)).await.map_err(io::Error::other)??
        };
        let (_dir, short) = room.short()?;
        let mut stream = UnixStream::connect(&short).await;
        if stream.is_err() && self.guard.is_none() {
            let (program, dir) = (self.program.clone(), self.dir.clone());
            let started = tokio::task::spawn_blocking(move || start(&program, &dir, &room));
            self.guard = Some(started.await.map_err(io::Error::other)??);
        }
        let begins = tokio::time::Instant::now() + WORD;
        while stream.is_err() && tokio::time::Instant::now() < begins {
            tokio::time::sleep(PAUSE.0).await;
            if let Some(guard) = &mut self.guard
                && let Some(status) = guard.try_wait()?
            {
                return Err(io::Error::other(format!("it ended with {status}; see its guard.log")));
            }
            stream = UnixStream::connect(&short).await;
        }
        let (lines, to) = stream?.into_split();
        Ok(Wire { lines: BufReader::new(lines), to })
    }
}

fn order_of(wanted: &Wanted) -> Order {
    let hold = |family: &Family| Hold {
        key: family.key.clone(),
        leader: family.leader,
        cgroup: family.cgroup.clone(),
        owner: family.owner,
        until_ms: wanted.until_ms,
        else_ms: wanted.else_ms,
    };
    Order { holds: wanted.replicas.values().map(hold).collect(), gone: wanted.gone.keys().cloned().collect() }
}

impl Wire {
    async fn ask(&mut self, order: &Order) -> io::Result<Word> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.to.write_all(&line).await?;
        self.next(&mut Vec::new()).await
    }

    /// What has been read of a line stays in `word` when this is dropped.
    async fn next(&mut self, word: &mut Vec<u8>) -> io::Result<Word> {
        let left = MAX_LINE.saturating_sub(word.len() as u64);
        if (&mut self.lines).take(left).read_until(b'\n', word).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(word)?)
    }
}

/// Starts a guard.
fn start(program: &Path, dir: &Path, room: &Room) -> io::Result<Child> {
    // It has another working directory than we.
    let dir = std::path::absolute(dir)?;
    let path = room.log();
    let long = std::fs::metadata(&path).is_ok_and(|log| log.len() > MAX_LOG);
    let log = OpenOptions::new().create(true).append(!long).write(true).truncate(long).open(path)?;
    spawn_apart(program, &[OsStr::new("guard"), OsStr::new("--dir"), dir.as_os_str()], log)
}
