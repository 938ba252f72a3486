//! The executor: starts and stops replicas, and knows what is there. One task
//! per replica walks it through its life; this file holds what they share and the
//! calls of the node loop, which return at once and may be repeated. It does not
//! decide what should run: `core::reconcile` does.

mod corrupt;
mod earlier;
mod kept;
mod open;
mod past;
mod purge;
mod strays;

use self::open::{Sole, open_users, take_hold, tell_limits};
use super::Execute;
use super::engine::{Engine, EngineConfig};
use super::guard::Tie;
use super::logs::{self, keeper::Keeper};
use super::numa::Near;
use super::owned;
use super::post::{Hands, Places, Post};
use super::probe::Probe;
use super::record::{self, End, Launch, Record};
use super::runtimes;
use super::runtimes::cgroup::Cgroups;
use super::runtimes::marks::Found;
use super::runtimes::users::{self, Giver, Users};
use super::runtimes::vacancy::Vacancy;
use super::scrape::Said;
use super::troubles::Troubles;
use crate::exchange::TOLD;
use crate::exchange::life::Life;
use crate::models::{Cache, Manifest, Store};
use crate::telemetry::traces;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use nf_core::autoscaler::source::Told;
use nf_core::id::{Generation, NodeName, RequestId, TenantId};
use nf_core::job::{Runtime, Stage};
use nf_core::reason::{Reason, Refusal};
use nf_core::reconcile::{Actual, Condition, Holding, Leave, Purge, ReplicaId, Want};
use nf_core::view::stage_name;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Run files of ended simulated replicas that are kept; the oldest go first.
const ENDED_RUN_FILES: usize = 1000;

/// Whether a version's signature counts for a tenant; may block.
pub type Judge = Arc<dyn Fn(&Manifest, &TenantId) -> Result<(), Refusal> + Send + Sync>;

/// What an executor works with.
#[derive(Clone)]
pub struct ExecutorConfig {
    /// Where simulated replicas write their run files.
    pub run_dir: PathBuf,
    /// Records, replicas' own directories, logs and the model cache.
    pub data_dir: PathBuf,
    pub node: NodeName,
    pub store: Option<Store>,
    /// Bytes of models that are kept.
    pub model_cache: u64,
    /// Judges a version's signature before it starts; None: nobody asks for one.
    pub judge: Option<Judge>,
    /// From TERM to KILL.
    pub stop_grace: Duration,
    /// From KILL until a process that is still there is worth an alarm.
    pub kill_after: Duration,
    /// Whether replicas get control groups where the kernel gives them.
    pub cgroups: bool,
    /// Whether each replica runs as a user of its own, where this process may do that.
    pub users: Users,
    /// When a device is free for the next replica.
    pub vacancy: Arc<Vacancy>,
    /// Which CPUs are near to which devices.
    pub near: Arc<Near>,
    /// Where the control daemon of NVIDIA's Multi-Process Service has its pipes, if there is one.
    pub mps_pipes: PathBuf,
    /// What is run as the guard: `nf` itself.
    pub guard: PathBuf,
    /// What runs containers here.
    pub engine: EngineConfig,
    /// No earlier start of this process is known: what its nodes' records say may not be all there was.
    pub anew: bool,
    /// Launches that had a process when this one began.
    pub found: Arc<Found>,
    /// Who is told what needs a person.
    pub troubles: Arc<Troubles>,
}

pub(super) type Key = (ReplicaId, Generation);

/// A replica that is here, or was and is not forgotten.
struct Slot {
    request: RequestId,
    holding: Holding,
    /// It must never run twice; None: not known.
    exclusive: Option<bool>,
    condition: Condition,
    stage: Stage,
    /// What its metrics said last.
    said: Option<Said>,
    life: Life,
    stop: watch::Sender<Option<Leave>>,
    task: Option<AbortHandle>,
    trace: traces::Launch,
    hands: Hands,
}

/// What the replicas' tasks share with the calls.
pub(super) struct Shared {
    pub config: ExecutorConfig,
    pub places: Places,
    pub cache: Cache,
    pub client: reqwest::Client,
    pub boot: String,
    /// Holds the replicas that must never run twice.
    pub guard: Tie,
    /// Control groups, or what is missing for them.
    pub cgroups: Result<Cgroups, String>,
    pub engine: Engine,
    pub runtime: Handle,
    /// Users for replicas, or what is missing for them.
    pub users: Result<Giver, String>,
    purges: purge::Purges,
    earlier: earlier::Earlier,
    slots: Mutex<BTreeMap<Key, Slot>>,
    changes: watch::Sender<u64>,
    ended_run_files: Mutex<VecDeque<PathBuf>>,
    past: past::Past,
    /// Keeps a second agent from adopting the same processes.
    lock: Mutex<Option<Arc<Sole>>>,
    /// Bounds the logs of replicas that outlive this agent.
    keeper: Keeper,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can leave its data half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn stage(&self, key: Key, stage: Stage) {
        let mut slots = held(&self.slots);
        if let Some(slot) = slots.get_mut(&key)
            && slot.stage != stage
        {
            slot.stage = stage;
            slot.life.step(stage_name(stage), now_ms(), None);
            match stage {
                Stage::Ready => slot.trace.end(None),
                stage => slot.trace.stage(stage_name(stage)),
            }
            drop(slots);
            self.changed();
        }
    }

    /// A launch goes back to a call, whose trace is known here perhaps.
    fn trace(&self, launch: &Launch, tenant: &TenantId) {
        let (request, id, generation) = (&launch.request, launch.id, launch.generation);
        let node = self.config.node.as_str();
        let call = traces::of(tenant, request);
        let mut trace = traces::Launch::begin(call.as_deref(), request.as_str(), id.replica, generation.0, node);
        trace.stage(stage_name(Stage::Scheduled));
        if let Some(slot) = held(&self.slots).get_mut(&(id, generation)) {
            slot.trace = trace;
        }
    }

    /// The trace that a launch's program may go on with.
    pub(super) fn traceparent(&self, key: Key) -> Option<String> {
        held(&self.slots).get(&key).and_then(|slot| slot.trace.carried())
    }

    fn never_twice(&self, key: Key, exclusive: bool) {
        if let Some(slot) = held(&self.slots).get_mut(&key) {
            slot.exclusive = Some(exclusive);
        }
    }

    pub(super) fn said(&self, key: Key, said: Option<Said>) {
        if let Some(slot) = held(&self.slots).get_mut(&key) {
            slot.said = said;
        }
    }

    /// Changes what is told of a launch beside its stage.
    pub(super) fn live(&self, key: Key, change: impl FnOnce(&mut Life)) {
        if let Some(slot) = held(&self.slots).get_mut(&key) {
            change(&mut slot.life);
        }
    }

    /// What a launch has been through so far, for its record.
    pub(super) fn life(&self, key: Key) -> Life {
        held(&self.slots).get(&key).map(|slot| slot.life.clone()).unwrap_or_default()
    }

    /// None once the executor was shut down: nothing may be started any more.
    pub(super) fn lock(&self) -> Option<Arc<Sole>> {
        held(&self.lock).clone()
    }

    /// Something of it survives KILL. One that must never run twice is waited for all the same.
    pub(super) fn stuck(&self, key: Key, end: End, text: String) {
        if let Some(slot) = held(&self.slots).get_mut(&key) {
            slot.life.waits = Some(text);
            if slot.exclusive == Some(false) {
                slot.condition = Condition::Stuck { ok: end.ok, why: end.why };
            }
        }
        self.changed();
    }

    fn end(&self, key: Key, end: End) {
        if let Some(slot) = held(&self.slots).get_mut(&key) {
            slot.condition = Condition::Gone { ok: end.ok, why: end.why };
            slot.life.waits = None;
            slot.trace.end((!end.ok).then(|| end.why.token()));
            slot.life.step(if end.ok { "Stopped" } else { "Failed" }, now_ms(), Some(end.why.token()));
            slot.task = None;
        }
        self.changed();
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Removes what is left of a replica that is gone: it may share files with the cache.
    fn remove(&self, request: &RequestId, (id, generation): Key) -> io::Result<()> {
        // The directory first: while there is a record, the next start tries again.
        owned::remove(&self.places.replica_of(request, id, generation))?;
        record::remove(&self.places.records, id, generation)
    }

    pub(super) fn lives(&self, id: ReplicaId) -> bool {
        let here = |(key, slot): (&Key, &Slot)| key.0 == id && !matches!(slot.condition, Condition::Gone { .. });
        held(&self.slots).iter().any(here)
    }

    /// A run file that says "stopped" now. Keeps so many, removes older ones.
    pub(super) fn ended_run_file(&self, path: PathBuf) -> Option<PathBuf> {
        let mut files = held(&self.ended_run_files);
        files.retain(|f| *f != path);
        files.push_back(path);
        if files.len() > ENDED_RUN_FILES { files.pop_front() } else { None }
    }
}

/// A handle; clones are the same executor.
#[derive(Clone)]
pub struct Executor {
    shared: Arc<Shared>,
}

impl Executor {
    /// Opens the executor of a node and adopts the processes that its records say
    /// still run. Call it inside a Tokio runtime. It reads a few small files.
    ///
    /// # Errors
    /// Directories that can't be made or read, or another agent at work on them.
    pub fn open(config: ExecutorConfig) -> io::Result<Self> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        let places = Places::new(&config);
        places.make()?;
        let lock = Some(Arc::new(take_hold(&places)?));
        let cache = Cache::open(&places.cache(), config.model_cache)?.telling(corrupt::alarm(&config));
        let records = record::load_all(&places.records)?;
        let unread = record::unread(&places.records)?;
        let earlier = earlier::Earlier::open(&places.records, config.anew)?;
        let cgroups = if config.cgroups { Cgroups::find() } else { Err("they are not wanted".into()) };
        let users = open_users(&config, &places)?;
        tell_limits(&config.node, &cgroups, &users);
        let guard = Tie::new(&runtime, places.guard.clone(), config.guard.clone());
        let keeper = Keeper::new(&config.guard, &places.logs, &places.records);
        let shared = Arc::new(Shared {
            keeper,
            places,
            cache,
            client: Probe::client()?,
            boot: runtimes::processes::boot_id().unwrap_or_default(),
            guard,
            cgroups,
            engine: Engine::new(config.engine.clone()),
            users,
            purges: purge::Purges::default(),
            earlier,
            runtime,
            slots: Mutex::default(),
            changes: watch::Sender::new(0),
            ended_run_files: Mutex::default(),
            past: past::Past::default(),
            lock: Mutex::new(lock),
            config,
        });
        let executor = Self { shared };
        executor.sweep(&records, &unread)?;
        let keys = records.iter().map(|record| record.key.clone()).collect();
        records.into_iter().try_for_each(|record| executor.recall(record))?;
        executor.take_up_strays(&keys, unread)?;
        // Only now it is known whose logs are still written.
        executor.shared.prune_logs();
        runtimes::docker::sweep(&executor.shared);
        kept::watch_keeper(&executor.shared, kept::KEEPER);
        Ok(executor)
    }

    /// Takes up what a record of the agent's last run tells.
    fn recall(&self, mut record: Record) -> io::Result<()> {
        let records = &self.shared.places.records;
        if let Some(owner) = record.owner
            && !users::is_theirs(owner, &record, records).unwrap_or(false)
        {
            tracing::warn!(uid = owner.uid, request = %record.launch.request, "a replica's user is another's now; nothing is done in its name");
            record.owner = None;
            record.save(records)?;
        }
        let (id, launch) = (record.launch.id, record.launch.clone());
        if record.container.is_some() && record.ended.is_none() {
            // Its engine says what has become of it, when it answers; until then it counts as there.
            let stage = if record.was_ready { Stage::Ready } else { Stage::Starting };
            let post = self.insert(&launch, Condition::Alive, stage, record.life.clone());
            self.shared.never_twice((id, launch.generation), record.exclusive);
            self.launch(launch, async move { runtimes::docker::adopt(post, record).await });
            return Ok(());
        }
        match runtimes::process::recall(&record, &self.shared.places.replica(&launch), &self.shared.boot) {
            runtimes::process::Recalled::Never if is_empty(&record) => {
                record::remove(&self.shared.places.records, id, launch.generation)?;
                owned::remove(&self.shared.places.replica(&launch))
            }
            runtimes::process::Recalled::Gone(end) => {
                // The last agent may have been killed before it had removed it.
                let _ = record.cgroup.as_deref().map(runtimes::cgroup::remove);
                tracing::info!(job = %id.job, replica = id.replica, why = %end.why, "replica is gone, its end not yet told");
                self.insert(&launch, Condition::Gone { ok: end.ok, why: end.why }, Stage::Starting, record.life);
                Ok(())
            }
            // No first process, and yet somebody is in its group: a start that was cut off half way.
            runtimes::process::Recalled::Never | runtimes::process::Recalled::Left => {
                tracing::info!(job = %id.job, replica = id.replica, "replica ended while no agent was here");
                self.insert(&launch, Condition::Stopping, Stage::Starting, record.life);
                self.shared.never_twice((id, launch.generation), record.exclusive);
                let (shared, left) = (self.shared.clone(), launch.clone());
                self.launch(launch, async move { runtimes::process::put_down(&shared, &left).await });
                Ok(())
            }
            runtimes::process::Recalled::Alive(process) => {
                tracing::info!(job = %id.job, replica = id.replica, pid = process.pid, "adopted a running replica");
                self.shared.keep_logs();
                if record.exclusive {
                    self.shared.guard.knows(record.family(Some(process)));
                }
                let stage = if record.was_ready { Stage::Ready } else { Stage::Starting };
                let post = self.insert(&launch, Condition::Alive, stage, record.life.clone());
                self.shared.never_twice((id, launch.generation), record.exclusive);
                self.launch(launch, async move { runtimes::process::adopt(post, record, process).await });
                Ok(())
            }
        }
    }

    fn insert(&self, launch: &Launch, condition: Condition, stage: Stage, life: Life) -> Post {
        let (stop, asked) = watch::channel(None);
        let (request, holding) = (launch.request.clone(), launch.holding());
        let mut life = Life { generation: launch.generation.0, ..life };
        life.step(stage_name(stage), now_ms(), None);
        let (trace, hands) = (traces::Launch::default(), Hands::default());
        let slot = Slot {
            request,
            holding,
            exclusive: None,
            condition,
            stage,
            said: None,
            life,
            stop,
            task: None,
            trace,
            hands: hands.clone(),
        };
        held(&self.shared.slots).insert((launch.id, launch.generation), slot);
        Post::new(self.shared.clone(), launch.clone(), hands, asked)
    }

    /// Runs a replica's life and writes down how it ended.
    fn launch(&self, launch: Launch, life: impl Future<Output = End> + Send + 'static) {
        let (shared, key) = (self.shared.clone(), (launch.id, launch.generation));
        let task = self.shared.runtime.spawn(async move {
            let end = match AssertUnwindSafe(life).catch_unwind().await {
                Ok(end) => end,
                // A bug of ours; what it may have left running must not keep devices that are reported free.
                Err(_) => runtimes::process::put_down(&shared, &launch).await,
            };
            shared.end(key, end);
        });
        if let Some(slot) = held(&self.shared.slots).get_mut(&key)
            && !matches!(slot.condition, Condition::Gone { .. })
        {
            slot.task = Some(task.abort_handle());
        }
        self.shared.changed();
    }

    /// Lets go of everything without stopping a process: the next agent adopts them.
    /// Simulated replicas live in this process and end with it.
    pub fn shutdown_keeping_replicas(&self) {
        for slot in held(&self.shared.slots).values_mut() {
            if let Some(task) = slot.task.take() {
                task.abort();
            }
        }
        held(&self.shared.lock).take();
    }
}

impl Execute for Executor {
    /// A generation that is older than one already known here is refused, so a stale leader is harmless.
    fn start(&self, id: ReplicaId, want: &Want) {
        let newest = held(&self.shared.slots)
            .range((id, Generation(0))..=(id, Generation(u32::MAX)))
            .next_back()
            .map(|(k, _)| k.1);
        match newest {
            Some(newest) if newest == want.generation => return,
            Some(newest) if newest > want.generation => {
                tracing::warn!(job = %id.job, replica = id.replica, asked = %want.generation, %newest, "an older launch is refused");
                return;
            }
            _ => {}
        }
        let (want, launch) = (want.clone(), Launch::of(id, want));
        let post = self.insert(&launch, Condition::Alive, Stage::Scheduled, Life::default());
        self.shared.never_twice((id, want.generation), want.spec.constraints.exclusive);
        self.shared.trace(&launch, &want.spec.tenant);
        self.launch(launch, async move {
            match want.spec.runtime {
                Runtime::Simulated => runtimes::simulated::run(post, &want).await,
                Runtime::Process => runtimes::process::run(post, &want).await,
                Runtime::Docker => runtimes::docker::run(post, &want).await,
                Runtime::Prefetch => runtimes::prefetch::run(post, &want).await,
            }
        });
    }

    fn stop(&self, id: ReplicaId, generation: Generation, leave: Leave) {
        {
            let mut slots = held(&self.shared.slots);
            let Some(slot) = slots.get_mut(&(id, generation)) else { return };
            let saves = |asked: &Option<Leave>| asked.is_some_and(|asked| asked.grace_ms > 0);
            match slot.condition {
                Condition::Alive => {
                    slot.condition = Condition::Stopping;
                    slot.life.step("Draining", now_ms(), Some(leave.why.token()));
                    slot.stop.send_replace(Some(leave));
                }
                // No lease covers it any more: whatever time it was given is over.
                Condition::Stopping if slot.exclusive == Some(true) && leave.why == Reason::NodeFailure => {
                    slot.stop.send_if_modified(|asked| match asked {
                        Some(Leave { why: Reason::NodeFailure, .. }) => false,
                        _ => asked.replace(leave).is_some(),
                    });
                    return;
                }
                Condition::Stopping if leave.grace_ms == 0 && saves(&slot.stop.borrow()) => {
                    slot.stop.send_replace(Some(leave));
                    return;
                }
                _ => return,
            }
        }
        self.shared.changed();
    }

    fn forget(&self, id: ReplicaId, generation: Generation) {
        let key = (id, generation);
        let (request, hands) = {
            let mut slots = held(&self.shared.slots);
            if !slots.get(&key).is_some_and(|s| matches!(s.condition, Condition::Gone { .. })) {
                return;
            }
            let Some(slot) = slots.remove(&key) else { return };
            self.shared.past.note(id, slot.life);
            (slot.request, slot.hands)
        };
        purge::leave(&self.shared, request, key, hands);
        self.shared.changed();
    }

    fn actual(&self) -> Actual {
        let mut actual = Actual::default();
        for ((id, generation), slot) in held(&self.shared.slots).iter() {
            actual.replicas.entry(*id).or_default().insert(*generation, slot.condition);
            actual.holdings.insert((*id, *generation), slot.holding.clone());
        }
        actual
    }

    fn stages(&self) -> Vec<(ReplicaId, Generation, Stage)> {
        let slots = held(&self.shared.slots);
        let alive = slots.iter().filter(|(_, s)| s.condition == Condition::Alive);
        alive.map(|((id, generation), slot)| (*id, *generation, slot.stage)).collect()
    }

    fn told(&self) -> Vec<Told> {
        let slots = held(&self.shared.slots);
        let ready = slots.iter().filter(|(_, s)| s.condition == Condition::Alive && s.stage == Stage::Ready);
        let told = |((id, generation), slot): (&Key, &Slot)| {
            let Said { running_m, waiting_m, answered, p95_ms, kv_m, first_token_ms } = slot.said?;
            let (id, generation) = (*id, *generation);
            Some(Told { id, generation, running_m, waiting_m, answered, p95_ms, kv_m, first_token_ms })
        };
        ready.filter_map(told).take(TOLD).collect()
    }

    fn exclusive(&self) -> BTreeSet<Key> {
        held(&self.shared.slots).iter().filter(|(_, slot)| slot.exclusive == Some(true)).map(|(key, _)| *key).collect()
    }

    fn remembers(&self) -> bool {
        self.shared.earlier.is_settled()
    }

    fn settle(&self) {
        self.shared.settle();
    }

    fn hold_back(&self, id: ReplicaId, want: &Want, until_ms: Option<u64>) {
        self.shared.hold_back(id, want, until_ms);
    }

    fn lives(&self, id: ReplicaId) -> Vec<Life> {
        let slots = held(&self.shared.slots);
        let here = slots.iter().filter(|(key, _)| key.0 == id).map(|(_, slot)| slot.life.clone());
        self.shared.past.lives(id).into_iter().chain(here).chain(self.shared.earlier.lives(id)).collect()
    }

    fn guard_until(&self, proven_ms: Option<u64>) {
        self.shared.guard.extend(proven_ms);
    }

    fn guarded_until(&self) -> Option<u64> {
        self.shared.guard.until()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    fn logs(
        &self,
        request: &RequestId,
        id: ReplicaId,
        tail: usize,
        follow: bool,
    ) -> BoxStream<'static, io::Result<Bytes>> {
        let shared = Arc::downgrade(&self.shared);
        let path = self.shared.places.log(request, id);
        let lives = move || shared.upgrade().map(|shared| shared.lives(id));
        logs::stream(&self.shared.runtime, path, tail, follow, lives).boxed()
    }

    fn purge(&self, copy: &Purge) -> bool {
        purge::purge(&self.shared, copy)
    }
}

/// The time of day, for people: nothing is decided by it.
pub(super) fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// Nobody is in the launch's control group, and nobody is its user; the group is removed then.
fn is_empty(record: &Record) -> bool {
    (record.owner.is_none() || record.family(None).members().is_empty())
        && record.cgroup.as_ref().is_none_or(|group| runtimes::cgroup::remove(group).is_ok())
}

#[cfg(test)]
mod tests;
