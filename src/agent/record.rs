//! What the agent writes down about a process replica, so that its next start
//! finds the process again: before the spawn (with a key that the process carries
//! in its environment) and after it (with pid and start time). Each write is on
//! disk before the next step, so a kill -9 between any two leaves a process that
//! is either found by its record or was never started.

use super::runtimes::processes::{Family, Identity, Owner};
use crate::exchange::life::Life;
use crate::models::{Drain, Live, Metrics};
use nf_core::id::{Generation, JobNo, NodeName, RequestId};
use nf_core::reason::Reason;
use nf_core::reconcile::{Holding, ReplicaId, Want};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest record that is read.
const MAX_BYTES: u64 = 1 << 20;
const FORMAT: u32 = 1;

/// How a replica ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct End {
    pub ok: bool,
    pub why: Reason,
}

impl End {
    pub(super) fn failed(why: Reason) -> Self {
        Self { ok: false, why }
    }
}

/// One launch of a replica, by what its agent needs after the start. Not the whole
/// [`Want`]: the fewer fields are on disk, the longer other builds can read them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Launch {
    pub request: RequestId,
    pub id: ReplicaId,
    pub generation: Generation,
    pub host: Arc<str>,
    pub port: Option<u16>,
    /// Indexes of its devices; None in records of builds that did not write them.
    pub devices: Option<Vec<u16>>,
    /// The same by uuid.
    #[serde(default)]
    pub uuids: Vec<Arc<str>>,
}

impl Launch {
    pub(super) fn of(id: ReplicaId, want: &Want) -> Self {
        let (request, host) = (want.request.clone(), want.host.clone());
        let Holding { devices, port } = Holding::of(want);
        Self { request, id, generation: want.generation, host, port, devices, uuids: want.uuids.clone() }
    }

    pub(super) fn holding(&self) -> Holding {
        Holding { devices: self.devices.clone(), port: self.port }
    }
}

/// A process replica, as its agent's next start must know it. Unknown fields are
/// skipped: after a step back to an older build its processes are still found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    pub node: NodeName,
    pub launch: Launch,
    /// Random; the process has it in its environment as `NF_REPLICA_KEY`.
    pub key: String,
    /// The machine's boot: after another one the process cannot be there.
    pub boot: String,
    /// None until it is spawned.
    pub process: Option<Identity>,
    /// Path of the readiness probe.
    pub probe: String,
    pub ready_timeout_s: u32,
    /// It was ready once: the next agent asks how it is, not whether it begins.
    pub was_ready: bool,
    pub ended: Option<End>,
    /// It must never run twice: a guard holds it.
    #[serde(default)]
    pub exclusive: bool,
    /// Its control group, where the kernel gives one.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// Its user, where it has one of its own.
    #[serde(default)]
    pub owner: Option<Owner>,
    #[serde(default)]
    pub live: Option<Live>,
    #[serde(default)]
    pub drain: Option<Drain>,
    #[serde(default)]
    pub metrics: Option<Metrics>,
    /// The port in its own network, where that is another than the machine's.
    #[serde(default)]
    pub listens: Option<u16>,
    /// Its first process is a shell that waits for the program and keeps its exit status.
    #[serde(default)]
    pub kept: bool,
    #[serde(default)]
    pub stopping: Option<Stopping>,
    /// The name of its container; None for processes of this machine.
    #[serde(default)]
    pub container: Option<String>,
    /// As far as it was known at the last write.
    #[serde(default)]
    pub life: Life,
}

/// A stop that has begun; times by CLOCK_BOOTTIME of this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stopping {
    pub why: Reason,
    /// Requests that are under way have until then.
    pub term_ms: u64,
    pub kill_ms: u64,
    /// So has its program, to save its state.
    #[serde(default)]
    pub saves: bool,
}

impl Record {
    pub(super) fn new(node: NodeName, launch: Launch, boot: String, probe: String, timeout_s: u32) -> Self {
        let key = uuid::Uuid::now_v7().simple().to_string();
        Self {
            format: FORMAT,
            node,
            launch,
            key,
            boot,
            process: None,
            probe,
            ready_timeout_s: timeout_s,
            was_ready: false,
            ended: None,
            exclusive: false,
            cgroup: None,
            owner: None,
            live: None,
            drain: None,
            metrics: None,
            listens: None,
            kept: false,
            stopping: None,
            container: None,
            life: Life::default(),
        }
    }

    /// What its processes are found by.
    pub(super) fn family(&self, leader: Option<Identity>) -> Family {
        Family { key: self.key.clone(), leader, cgroup: self.cgroup.clone(), owner: self.owner }
    }

    /// Durable when it returns.
    pub(super) fn save(&self, dir: &Path) -> io::Result<()> {
        let path = path(dir, self.launch.id, self.launch.generation);
        let partial = path.with_extension("tmp");
        let mut file = File::create(&partial)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&partial, &path)?;
        File::open(dir)?.sync_all()
    }
}

/// Where the record of a replica is kept.
pub(super) fn path(dir: &Path, id: ReplicaId, generation: Generation) -> PathBuf {
    dir.join(format!("{}.{}.{}.json", id.job.0, id.replica, generation.0))
}

/// Removes a record; one that is not there is fine.
pub(super) fn remove(dir: &Path, id: ReplicaId, generation: Generation) -> io::Result<()> {
    match fs::remove_file(path(dir, id, generation)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// The record of one replica, if there is a readable one.
pub(super) fn load(dir: &Path, id: ReplicaId, generation: Generation) -> Option<Record> {
    read(&path(dir, id, generation)).ok()
}

/// All records, for an agent's start, when nobody writes. One that cannot be read is set aside by name, not deleted: its
/// process, if it lives, needs a person.
pub(super) fn load_all(dir: &Path) -> io::Result<Vec<Record>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("json") => match read(&path) {
                Ok(record) => out.push(record),
                Err(e) => {
                    tracing::error!(path = %path.display(), error = %e, "replica record unreadable, set aside as .bad");
                    fs::rename(&path, path.with_extension("bad"))?;
                }
            },
            // A write that did not finish; the record before it still stands.
            Some("tmp") => fs::remove_file(&path)?,
            _ => {}
        }
    }
    out.sort_by_key(|r| (r.launch.id, r.launch.generation));
    Ok(out)
}

/// Whether any process is left of the replicas that records tell of, those included that can't be read as a whole. Changes
/// nothing.
pub(super) fn any_lives(dir: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let mut bytes = Vec::new();
        let told = path.extension().is_some_and(|e| e == "json" || e == "bad");
        // One that goes away at this moment is over.
        if !told || File::open(&path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)).is_err() {
            continue;
        }
        let Remains { key: Some(key), process, cgroup, owner, .. } = Remains::of(&bytes) else { continue };
        let leader = process.filter(Identity::lives);
        if leader.is_some() || !(Family { key, leader, cgroup, owner }).members().is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A record that was set aside, since it can't be read: what it tells of may still run.
#[derive(Debug)]
pub(super) struct Unread {
    pub path: PathBuf,
    pub id: ReplicaId,
    pub generation: Generation,
    pub remains: Remains,
}

impl Unread {
    /// What the name of its launch's directory ends in.
    pub(super) fn directory_end(&self) -> String {
        format!(".{}.{}.{}", self.id.replica, self.id.job, self.generation)
    }
}

/// What can be told of one that can't be read as a whole: of another build's, nearly all; of half a file, nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Remains {
    pub request: Option<RequestId>,
    pub holding: Holding,
    pub key: Option<String>,
    pub process: Option<Identity>,
    pub cgroup: Option<PathBuf>,
    pub owner: Option<Owner>,
    pub exclusive: Option<bool>,
}

impl Remains {
    fn of(bytes: &[u8]) -> Self {
        let Ok(all) = serde_json::from_slice::<serde_json::Value>(bytes) else { return Self::default() };
        let launch = all.get("launch");
        let holding =
            Holding { devices: launch.and_then(|l| part(l, "devices")), port: launch.and_then(|l| part(l, "port")) };
        Self {
            request: launch.and_then(|launch| part(launch, "request")),
            holding,
            key: part(&all, "key").filter(|key: &String| !key.is_empty()),
            process: part(&all, "process"),
            cgroup: part(&all, "cgroup"),
            owner: part(&all, "owner"),
            exclusive: part(&all, "exclusive"),
        }
    }
}

fn part<T: serde::de::DeserializeOwned>(of: &serde_json::Value, name: &str) -> Option<T> {
    serde_json::from_value(of.get(name)?.clone()).ok()
}

/// All records that were set aside.
pub(super) fn unread(dir: &Path) -> io::Result<Vec<Unread>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|e| e != "bad") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let Some((id, generation)) = named(&name) else {
            tracing::error!(path = %path.display(), "a record that can't be read, not even whose it is; remove it");
            continue;
        };
        let mut bytes = Vec::new();
        // What can't be read at all tells nothing, and holds its place by its name.
        let read = File::open(&path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
        let remains = read.map_or_else(|_| Remains::default(), |_| Remains::of(&bytes));
        out.push(Unread { path, id, generation, remains });
    }
    Ok(out)
}

/// `job.replica.generation`, as [`path`] names it.
fn named(name: &str) -> Option<(ReplicaId, Generation)> {
    let mut numbers = name.split('.').map(|number| number.parse::<u64>().ok());
    let (job, replica, generation) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let id = ReplicaId { job: JobNo(job), replica: u16::try_from(replica).ok()? };
    numbers.next().is_none().then_some((id, Generation(u32::try_from(generation).ok()?)))
}

fn read(path: &Path) -> io::Result<Record> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    let record: Record = serde_json::from_slice(&bytes)?;
    match record.format {
        FORMAT => Ok(record),
        other => Err(io::Error::other(format!("format {other}, this build reads {FORMAT}"))),
    }
}
