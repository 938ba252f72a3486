//! Many worker nodes played by one process (`nf sim nodes`): one registration, one
//! beat and one stream for all, and replicas that are no more than an entry in a
//! map. They become Ready after a stated delay and stop at once. The agent around
//! them is the real one.

use super::inventory::{Machine, node_spec};
use super::{AgentConfig, BEAT_EVERY, Execute, Link, NodeRegistration, Outcome, RemoteLink};
use crate::exchange::{Beat, Dial, Registered, Registration};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use nf_core::command::Mode;
use nf_core::id::{DeviceType, Generation, Incarnation, NodeName, RequestId};
use nf_core::job::Stage;
use nf_core::node::{MAX_NUMA_NODES, NodeKind};
use nf_core::played::{devices, kind_of, on_numa_nodes};
use nf_core::reconcile::{Actual, Condition, Leave, ReplicaId, Want};
use nf_core::resources::{MAX_BYTES, MAX_DEVICES};
use nf_core::sharing::Sharing;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};

/// Nodes that one process plays.
pub const MOST: usize = crate::exchange::MAX_NODES;
/// The disk of a node of which the list says nothing.
const DISK: u64 = 4 << 40;

/// A line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualNode {
    pub name: NodeName,
    pub cpu_milli: u64,
    /// Bytes.
    pub memory: u64,
    pub gpus: u16,
    /// As the list names the model; None when the node has no GPU.
    pub device_type: Option<DeviceType>,
    /// What is said to keep those who share a GPU to their parts; where the list says nothing, that it is played.
    pub sharing: Sharing,
    /// NUMA nodes that share its GPUs evenly; None: the list does not say.
    pub numa_nodes: Option<u16>,
}

/// Reads CSV with the header `sn,cpu_milli,memory_mib,gpu,model`, in any order of columns. Columns `sharing` (none,
/// mps, mig or simulated) and `numa_nodes` (how many share the GPUs evenly; 0: not known) may stand beside them.
///
/// # Errors
/// A text that names the line and the column at fault.
pub fn parse(text: &str) -> Result<Vec<VirtualNode>, String> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (_, header) = lines.next().ok_or("the list is empty; its first line is sn,cpu_milli,memory_mib,gpu,model")?;
    let columns: Vec<&str> = header.trim().trim_start_matches('\u{feff}').split(',').map(str::trim).collect();
    let column = |name: &str| {
        let missing = || format!("line 1: no column \"{name}\"; it is sn,cpu_milli,memory_mib,gpu,model");
        columns.iter().position(|c| *c == name).ok_or_else(missing)
    };
    let (sn, cpu, memory, gpu) = (column("sn")?, column("cpu_milli")?, column("memory_mib")?, column("gpu")?);
    let model = column("model")?;
    let (sharing, numa_nodes) = (column("sharing").ok(), column("numa_nodes").ok());
    let mut out = Vec::new();
    let mut names = BTreeSet::new();
    for (number, line) in lines {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let at = |what: &str, why: String| format!("line {}: {what}: {why}", number + 1);
        let field = |index: usize, what: &str| {
            fields.get(index).copied().ok_or_else(|| at(what, format!("{} of {} fields", fields.len(), columns.len())))
        };
        let count = |index: usize, what: &str, most: u64| {
            let value = field(index, what)?.parse::<u64>().ok().filter(|value| *value <= most);
            value.ok_or_else(|| at(what, format!("a number from 0 to {most}")))
        };
        let name = NodeName::new(&field(sn, "sn")?.to_ascii_lowercase()).map_err(|e| at("sn", e.to_string()))?;
        if !names.insert(name.clone()) {
            return Err(at("sn", format!("{name} is listed twice")));
        }
        let gpus = count(gpu, "gpu", MAX_DEVICES.into())? as u16;
        let kind = match gpus {
            0 => None,
            _ => Some(DeviceType::new(field(model, "model")?).map_err(|e| at("model", e.to_string()))?),
        };
        let sharing = match sharing {
            None => Sharing::Simulated,
            Some(index) => {
                let known = Sharing::named(field(index, "sharing")?);
                known.ok_or_else(|| at("sharing", "none, mps, mig or simulated".to_owned()))?
            }
        };
        let numa_nodes = match numa_nodes {
            None => None,
            Some(index) => Some(count(index, "numa_nodes", MAX_NUMA_NODES.into())? as u16).filter(|count| *count > 0),
        };
        out.push(VirtualNode {
            name,
            cpu_milli: count(cpu, "cpu_milli", MAX_BYTES)?,
            memory: count(memory, "memory_mib", MAX_BYTES >> 20)? << 20,
            gpus,
            device_type: kind,
            sharing,
            numa_nodes,
        });
        if out.len() > MOST {
            return Err(format!("at most {MOST} nodes in one process; split the list"));
        }
    }
    Ok(out)
}

impl VirtualNode {
    fn registration(&self, incarnation: Incarnation) -> Registration {
        let devices = |kind| devices(&self.name, kind_of(kind), kind, self.gpus, None);
        let mut devices = self.device_type.as_ref().map(devices).unwrap_or_default();
        devices.iter_mut().for_each(|device| device.sharing = self.sharing);
        on_numa_nodes(&mut devices, self.numa_nodes);
        let machine = Machine { cpu_milli: self.cpu_milli, memory: self.memory, disk: DISK };
        // Without a port range: nothing listens there.
        let spec = node_spec("127.0.0.1", None, machine, devices, true);
        Registration { node: self.name.clone(), kind: NodeKind::Worker, incarnation, spec: Arc::new(spec) }
    }
}

/// How virtual nodes are run.
#[derive(Clone)]
pub struct Options {
    /// Empty: whichever group answers.
    pub cluster: String,
    /// `host:port` of members' peer listeners.
    pub members: Vec<String>,
    pub dial: Arc<dyn Dial>,
    /// From a replica's start until it is Ready.
    pub ready_after: Duration,
    pub incarnation: Incarnation,
    pub beat_every: Duration,
    /// The nodes are registered and beat, and nothing is ever started on them: for
    /// measuring the scheduler without its agents.
    pub beats_only: bool,
}

impl Options {
    pub fn new(members: Vec<String>, dial: Arc<dyn Dial>, incarnation: Incarnation) -> Self {
        let ready_after = Duration::from_millis(100);
        let (cluster, beat_every) = (String::new(), BEAT_EVERY);
        Self { cluster, members, dial, ready_after, incarnation, beat_every, beats_only: false }
    }
}

/// Plays `nodes` until `stop` is true, or until other processes have taken them over.
///
/// # Errors
/// When no member's address can be one.
pub async fn run(options: Options, nodes: &[VirtualNode], stop: watch::Receiver<bool>) -> Result<Outcome, String> {
    let link = RemoteLink::new(&options.cluster, Mode::Simulation, &options.members, &*options.dial)?;
    if options.beats_only {
        let list = nodes.iter().map(|node| node.registration(options.incarnation)).collect();
        return Ok(beat_only(&link, list, options.beat_every, stop).await);
    }
    let clock = Clock::start(options.ready_after);
    let list = nodes.iter().map(|node| NodeRegistration {
        registration: node.registration(options.incarnation),
        executor: clock.executor(),
    });
    let config = AgentConfig { beat_every: options.beat_every, ..AgentConfig::new(list.collect(), Arc::new(link)) };
    Ok(super::run(config, stop).await)
}

async fn beat_only(
    link: &dyn Link,
    nodes: Vec<Registration>,
    every: Duration,
    mut stop: watch::Receiver<bool>,
) -> Outcome {
    let beat = |n: &Registration| Beat::bare(n.node.clone(), n.incarnation);
    let beats: Vec<Beat> = nodes.iter().map(beat).collect();
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = false;
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return Outcome::Stopped,
            _ = tick.tick() => {}
        }
        if !known {
            let answers = link.register(nodes.clone()).await.unwrap_or_default();
            known = !answers.is_empty() && answers.iter().all(|answer| matches!(answer, Registered::At { .. }));
        }
        match link.beat(beats.clone()).await {
            Ok(answer) if answer.superseded.len() == nodes.len() => return Outcome::Superseded,
            Ok(answer) => known &= answer.unknown.is_empty(),
            Err(error) => tracing::debug!(%error, "a beat was not answered"),
        }
    }
}

/// What is due to become Ready, and on which node; one task wakes them all.
#[derive(Default)]
struct Due {
    at: Mutex<BTreeSet<(Instant, u64)>>,
    nodes: Mutex<BTreeMap<u64, Weak<Replicas>>>,
    wake: Notify,
}

/// Makes executors that share one timer. Its task ends when it is dropped.
pub struct Clock {
    due: Arc<Due>,
    ready_after: Duration,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Clock {
    /// Must be called on a runtime.
    pub fn start(ready_after: Duration) -> Self {
        let due = Arc::new(Due::default());
        Self { ready_after, task: tokio::spawn(tell_when_due(due.clone())), due }
    }

    /// What runs the replicas of one more node.
    pub fn executor(&self) -> Arc<dyn Execute> {
        let mut nodes = lock(&self.due.nodes);
        let id = nodes.len() as u64;
        let replicas = Arc::new(Replicas {
            id,
            due: self.due.clone(),
            ready_after: self.ready_after,
            there: Mutex::default(),
            changes: watch::channel(0).0,
        });
        nodes.insert(id, Arc::downgrade(&replicas));
        replicas
    }
}

async fn tell_when_due(due: Arc<Due>) {
    loop {
        let (ready, next) = {
            let mut at = lock(&due.at);
            let later = at.split_off(&(Instant::now(), u64::MAX));
            let ready = std::mem::replace(&mut *at, later);
            (ready, at.first().map(|(at, _)| *at))
        };
        let ready: BTreeSet<u64> = ready.into_iter().map(|(_, id)| id).collect();
        for id in ready {
            let node = lock(&due.nodes).get(&id).and_then(Weak::upgrade);
            if let Some(node) = node {
                node.changed();
            }
        }
        tokio::select! {
            () = due.wake.notified() => {}
            () = async { tokio::time::sleep_until(next.unwrap_or_else(Instant::now)).await }, if next.is_some() => {}
        }
    }
}

/// A virtual replica: since when, and whether it still is.
#[derive(Clone, Copy)]
struct There {
    ready_at: Instant,
    condition: Condition,
}

/// The replicas of one virtual node.
struct Replicas {
    id: u64,
    due: Arc<Due>,
    ready_after: Duration,
    there: Mutex<BTreeMap<(ReplicaId, Generation), There>>,
    changes: watch::Sender<u64>,
}

impl Replicas {
    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Execute for Replicas {
    fn start(&self, id: ReplicaId, want: &Want) {
        let ready_at = Instant::now() + self.ready_after;
        let new = {
            let mut there = lock(&self.there);
            let new = !there.contains_key(&(id, want.generation));
            there.entry((id, want.generation)).or_insert(There { ready_at, condition: Condition::Alive });
            new
        };
        if new {
            lock(&self.due.at).insert((ready_at, self.id));
            self.due.wake.notify_one();
        }
    }

    fn stop(&self, id: ReplicaId, generation: Generation, leave: Leave) {
        if let Some(there) = lock(&self.there).get_mut(&(id, generation))
            && there.condition == Condition::Alive
        {
            there.condition = Condition::Gone { ok: true, why: leave.why };
        }
        self.changed();
    }

    fn forget(&self, id: ReplicaId, generation: Generation) {
        lock(&self.there).remove(&(id, generation));
    }

    fn actual(&self) -> Actual {
        let mut out = Actual::default();
        for ((id, generation), there) in lock(&self.there).iter() {
            out.replicas.entry(*id).or_default().insert(*generation, there.condition);
        }
        out
    }

    fn stages(&self) -> Vec<(ReplicaId, Generation, Stage)> {
        let now = Instant::now();
        let there = lock(&self.there);
        let alive = there.iter().filter(|(_, there)| there.condition == Condition::Alive);
        let stage = |there: &There| if there.ready_at <= now { Stage::Ready } else { Stage::Starting };
        alive.map(|((id, generation), there)| (*id, *generation, stage(there))).collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn logs(&self, request: &RequestId, id: ReplicaId, _: usize, _: bool) -> BoxStream<'static, io::Result<Bytes>> {
        let line = format!("replica {} of {request} is virtual (SIMULATED): it writes no log\n", id.replica);
        futures::stream::once(async move { Ok(Bytes::from(line)) }).boxed()
    }
}
