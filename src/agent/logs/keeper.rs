//! The keeper of replicas' logs: a process apart from the agent that cuts what grows too long while no agent does. A
//! replica's program writes into its log itself, so that it outlives the agent; nothing else would stop it from filling
//! the disk. Whoever holds the lock beside the logs cuts them: the agent for as long as it lives, else the keeper. It
//! does not know what replicas are, but whether any process of one is left.

use super::rotate;
use crate::agent::lock;
use crate::agent::record;
use crate::agent::runtimes::session::spawn_apart;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the keeper looks, and an agent at the log of each of its replicas.
const LOOK: Duration = Duration::from_secs(2);
/// Every so many looks it asks whether any replica is left; that reads what the kernel tells of all processes.
const ASKS: u32 = 5;
/// How long an agent waits for a keeper that cuts at this moment.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// What the keeper says, among the logs that it keeps.
pub(super) const LOG: &str = "keeper.log";

/// Held by whoever cuts.
fn cutting(logs: &Path) -> PathBuf {
    logs.join("cutting.lock")
}

/// Held by the keeper.
fn keeping(logs: &Path) -> PathBuf {
    logs.join("keeper.lock")
}

/// Makes the caller the one that cuts, for as long as it has the file. Blocks for a moment where a keeper is at it.
///
/// # Errors
/// When it can't be, as of a keeper that hangs on its disk.
#[allow(clippy::disallowed_methods, reason = "an agent's start is no task of a runtime's")]
pub(in crate::agent) fn take_over(logs: &Path) -> io::Result<File> {
    let begun = Instant::now();
    loop {
        match lock::take(&cutting(logs))? {
            Some(file) => return Ok(file),
            None if begun.elapsed() >= PATIENCE => {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "the keeper of logs does not let go"));
            }
            None => std::thread::sleep(PAUSE),
        }
    }
}

/// Cuts all logs that have grown too long. One that can't be cut keeps nobody from the others.
///
/// # Errors
/// When there is no such directory.
pub(in crate::agent) fn cut(logs: &Path) -> io::Result<()> {
    for entry in fs::read_dir(logs)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log")
            && let Err(error) = rotate(&path)
        {
            tracing::warn!(path = %path.display(), %error, "a replica's log can't be cut");
        }
    }
    Ok(())
}

/// Keeps the logs of a node until no agent and no replica of it is left, or its logs are gone. A second keeper ends at
/// once.
///
/// # Errors
/// When the locks or the logs can't be used.
pub fn run(logs: &Path, records: &Path) -> io::Result<()> {
    keep(logs, records, LOOK)
}

#[allow(clippy::disallowed_methods, reason = "a process without a runtime")]
fn keep(logs: &Path, records: &Path, look: Duration) -> io::Result<()> {
    let Some(_only) = lock::take(&keeping(logs))? else { return Ok(()) };
    let mut alone = 0;
    loop {
        std::thread::sleep(look);
        let Some(_cuts) = lock::take(&cutting(logs))? else {
            alone = 0;
            continue;
        };
        cut(logs)?;
        if alone % ASKS == 0 && !record::any_lives(records)? {
            return Ok(());
        }
        alone += 1;
    }
}

/// Sees to it that there is a keeper.
#[derive(Debug)]
pub(in crate::agent) struct Keeper {
    /// `nf` itself.
    program: PathBuf,
    logs: PathBuf,
    records: PathBuf,
    /// So that one which ended is waited for.
    child: Mutex<Option<Child>>,
    /// Somebody's log was to be kept once: from then on there is to be one for as long as the agent is there.
    wanted: AtomicBool,
}

impl Keeper {
    pub(in crate::agent) fn new(program: &Path, logs: &Path, records: &Path) -> Self {
        let (program, logs, records) = (program.to_owned(), logs.to_owned(), records.to_owned());
        Self { program, logs, records, child: Mutex::default(), wanted: AtomicBool::new(false) }
    }

    /// Whether one that ended is to be replaced.
    pub(in crate::agent) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Starts one where there is none. Blocks briefly.
    ///
    /// # Errors
    /// When it can't be started. Replicas run all the same.
    pub(in crate::agent) fn ensure(&self) -> io::Result<()> {
        self.wanted.store(true, Ordering::Relaxed);
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(started) = &mut *child
            && started.try_wait()?.is_none()
        {
            return Ok(());
        }
        *child = None;
        // An earlier agent's goes on.
        if lock::take(&keeping(&self.logs))?.is_some() {
            *child = Some(self.start()?);
        }
        Ok(())
    }

    fn start(&self) -> io::Result<Child> {
        // It has another working directory than we.
        let (logs, records) = (std::path::absolute(&self.logs)?, std::path::absolute(&self.records)?);
        // What it says is kept as what replicas say is.
        let says = super::open(&self.logs.join(LOG))?;
        let args = [OsStr::new("keep-logs"), logs.as_os_str(), OsStr::new("--records"), records.as_os_str()];
        spawn_apart(&self.program, &args, says)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "no runtime is here")]
mod tests {
    use super::*;
    use crate::agent::logs::{ROTATE_AT, append, rotated};
    use crate::agent::record::Record;
    use crate::agent::runtimes::processes::Identity;
    use nf_core::id::NodeName;

    const QUICK: Duration = Duration::from_millis(5);

    fn dirs() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let tmp = tempfile::tempdir().unwrap();
        let (logs, records) = (tmp.path().join("logs"), tmp.path().join("records"));
        fs::create_dir(&logs).unwrap();
        fs::create_dir(&records).unwrap();
        (tmp, logs, records)
    }

    fn eventually(what: &str, done: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(QUICK);
        }
    }

    /// Whether this process has the file open.
    fn holds_open(path: &Path) -> bool {
        let open = fs::read_dir("/proc/self/fd").unwrap();
        open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()).any(|to| to == path)
    }

    /// A replica of which a record tells, played by a program that sleeps.
    fn replica(records: &Path) -> Child {
        let child = std::process::Command::new("sleep").arg("300").spawn().unwrap();
        let launch = serde_json::json!({"key": "k", "process": Identity::of(child.id()).unwrap()});
        fs::write(records.join("1.0.1.bad"), launch.to_string()).unwrap();
        child
    }

    #[test]
    fn logs_are_cut_while_no_agent_is_there_and_by_nobody_else_while_one_is() {
        let (_tmp, logs, records) = dirs();
        let long = logs.join("r.0.1.log");
        append(&long, &vec![b'x'; ROTATE_AT as usize + 1]).unwrap();
        let mut child = replica(&records);
        let agent = take_over(&logs).unwrap();
        let keeper = std::thread::spawn({
            let (logs, records) = (logs.clone(), records.clone());
            move || keep(&logs, &records, QUICK)
        });
        // Whoever tries its lock takes its place for a moment, so it is looked for by what it has open.
        eventually("it keeps", || holds_open(&keeping(&logs)));
        assert!(lock::take(&keeping(&logs)).unwrap().is_none());
        assert!(run(&logs, &records).is_ok(), "a second one ends at once");
        std::thread::sleep(QUICK * 20);
        assert!(!rotated(&long).exists() && !keeper.is_finished(), "an agent is there; it cuts");
        drop(agent);
        eventually("the keeper cuts", || fs::metadata(&long).unwrap().len() == 0 && rotated(&long).exists());
        let agent = take_over(&logs).unwrap();
        append(&long, &vec![b'x'; ROTATE_AT as usize + 1]).unwrap();
        std::thread::sleep(QUICK * 20);
        assert!(fs::metadata(&long).unwrap().len() > ROTATE_AT, "the next agent is there");
        drop(agent);
        eventually("the keeper cuts again", || fs::metadata(&long).unwrap().len() == 0);
        std::thread::sleep(QUICK * 20);
        assert!(!keeper.is_finished(), "a replica is left");
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("it ends with the last replica", || keeper.is_finished());
        keeper.join().unwrap().unwrap();
    }

    #[test]
    fn an_agent_that_never_comes_back_and_a_folder_that_is_gone_end_it() {
        let (tmp, logs, records) = dirs();
        keep(&logs, &records, QUICK).unwrap();
        drop(tmp);
        assert!(keep(&logs, &records, QUICK).is_err());
    }

    #[test]
    fn any_record_whose_process_is_left_counts() {
        let (_tmp, _, records) = dirs();
        assert!(!record::any_lives(&records).unwrap());
        let id = nf_core::reconcile::ReplicaId { job: nf_core::id::JobNo(7), replica: 0 };
        let launch: record::Launch = serde_json::from_value(serde_json::json!({
            "id": id, "generation": 1, "request": "r", "host": "h", "devices": [], "port": null,
        }))
        .unwrap();
        let mut record = Record::new(NodeName::new("n1").unwrap(), launch, "boot".into(), "/".into(), 1);
        record.save(&records).unwrap();
        assert!(!record::any_lives(&records).unwrap(), "it was never spawned");
        record.process = Identity::of(std::process::id());
        record.save(&records).unwrap();
        assert!(record::any_lives(&records).unwrap());
        fs::write(record::path(&records, record.launch.id, record.launch.generation), "{").unwrap();
        assert!(!record::any_lives(&records).unwrap(), "of half a file nothing is known");
    }
}
