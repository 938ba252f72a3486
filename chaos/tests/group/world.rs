//! Members, their disks, faults and clients of one simulated group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use neural_fabric::raft::log_store::LogStore;
use neural_fabric::raft::proposer::{Call, Shell};
use neural_fabric::raft::state_machine::{Applied, StateMachine};
use neural_fabric::raft::types::{Peer, Types};
use neural_fabric::raft::{self, Hooks, Timing, Tuning};
use neural_fabric::storage::fatal::Fatal;
use neural_fabric::storage::model::{ModelDisk, ModelTables, Sync};
use neural_fabric::storage::tables::Tables;
use nf_core::command::{Answer, Mode};
use nf_core::id::{JobNo, RequestId};
use nf_core::plan::{Intent, Reply};
use nf_core::resources::Gpus;
use nf_core::state::State;
use nf_core::testing;
use openraft::AsyncRuntime;
use openraft::async_runtime::{Instant, WatchReceiver};
use openraft_rt_sim::{SimInstant, SimRuntime};
use tokio::sync::{mpsc, oneshot, watch};

use crate::Trace;
use crate::net::Net;

pub type C = Types<SimRuntime>;
pub type Machine = StateMachine<ModelTables>;
pub type Raft = openraft::Raft<C, Machine>;

/// Calls each client makes.
const CALLS: u64 = 25;
/// Calls that come at once now and then: enough for every place in flight that a leader has.
const CROWD: u64 = 40;
const CROWDS: u64 = 2;
/// By then every call has its answer.
const LONGEST_MS: u64 = 600_000;
/// One in so many answers is followed, at once, by the power going out everywhere: what was
/// answered before it was on disk is lost then, and at no other moment for sure.
const POWER_CUT: u64 = 40;
/// Milliseconds since the epoch at which the world begins.
const EPOCH_MS: u64 = 1_790_000_000_000;

/// What is kept of a member across its lives.
struct Seat {
    disk: ModelDisk,
    tables: ModelTables,
    life: u64,
    member: Option<Alive>,
}

#[derive(Clone)]
struct Alive {
    raft: Raft,
    calls: mpsc::Sender<Call>,
    applied: watch::Receiver<Applied>,
    paused: watch::Sender<bool>,
}

struct Inner {
    seed: u64,
    random: u64,
    seats: BTreeMap<u64, Seat>,
    /// Directed links that are cut.
    cut: BTreeSet<(u64, u64)>,
    /// Messages lost, in thousandths.
    loss: u64,
    /// State hash of each index that somebody applied, for comparison.
    seen: BTreeMap<u64, (u64, u128)>,
    acknowledged: BTreeMap<RequestId, JobNo>,
    hash: u64,
    crashes: usize,
    snapshots: usize,
    top_term: u64,
    /// The most entries of one leader that were under way at once.
    in_flight: usize,
    /// The time of faults is over.
    healing: bool,
    begun: SimInstant,
}

#[derive(Clone)]
pub struct World(Arc<Mutex<Inner>>);

impl Inner {
    /// SplitMix64: small, and the same everywhere.
    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
    fn fold(&mut self, words: &[u64]) {
        for word in words {
            self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
        }
    }
    fn now_ms(&self) -> u64 {
        u64::try_from((SimInstant::now() - self.begun).as_millis()).expect("a short world")
    }
}

async fn pause(ms: u64) {
    SimRuntime::sleep(Duration::from_millis(ms)).await;
}

impl World {
    pub fn new(seed: u64, members: u64, sync: Sync) -> Self {
        let seat = || Seat { disk: ModelDisk::new(sync), tables: ModelTables::new(), life: 0, member: None };
        Self(Arc::new(Mutex::new(Inner {
            seed,
            random: seed.wrapping_mul(0x2545_f491_4f6c_dd1d),
            seats: (1..=members).map(|id| (id, seat())).collect(),
            cut: BTreeSet::new(),
            loss: 0,
            seen: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            hash: 0xcbf2_9ce4_8422_2325,
            crashes: 0,
            snapshots: 0,
            top_term: 0,
            in_flight: 0,
            healing: false,
            begun: SimInstant::now(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("unpoisoned")
    }
    fn random(&self, below: u64) -> u64 {
        self.lock().random(below)
    }
    pub fn seed(&self) -> u64 {
        self.lock().seed
    }
    pub fn count_snapshot(&self) {
        self.lock().snapshots += 1;
    }
    fn ids(&self) -> Vec<u64> {
        self.lock().seats.keys().copied().collect()
    }
    fn alive(&self, id: u64) -> Option<Alive> {
        self.lock().seats[&id].member.clone()
    }

    /// One message on its way. None when it gets lost.
    pub async fn pass(&self, from: u64, to: u64) -> Option<()> {
        let (lost, delay) = {
            let mut inner = self.lock();
            let loss = inner.loss;
            let lost = inner.random(1_000) < loss || inner.cut.contains(&(from, to));
            let slow = inner.random(50) == 0;
            (lost, if slow { inner.random(30) } else { inner.random(3) })
        };
        pause(delay).await;
        (!lost && !self.lock().cut.contains(&(from, to))).then_some(())
    }

    /// Brings a message of one life of `from` to `to`, if both still live.
    pub async fn deliver(&self, from: u64, life: u64, to: u64) -> Option<Raft> {
        if self.lock().seats[&from].life != life || self.alive(from).is_none() {
            return None;
        }
        self.pass(from, to).await?;
        self.alive(to).map(|alive| alive.raft)
    }

    async fn start(&self, id: u64) {
        let (disk, tables, life) = {
            let mut inner = self.lock();
            let seat = inner.seats.get_mut(&id).expect("a seat");
            seat.life += 1;
            (seat.disk.clone(), seat.tables.clone(), seat.life)
        };
        let seed = self.seed();
        let damaged = Fatal::hook(move |reason| panic!("seed {seed}: member {id}: {reason}"));
        let machine = Machine::open(Arc::new(tables), damaged).expect("loads");
        let log = LogStore::open(Arc::new(disk.clone())).expect("opens");
        let tuning = Tuning { keep_entries: 10, purge_entries: 1, ..Tuning::default() };
        let config = Arc::new(raft::openraft_config("sim", Timing::default(), tuning).expect("valid"));
        let applied = machine.watch();
        let net = Net { world: self.clone(), from: id, life };
        // The disk syncs already while Raft starts.
        SimRuntime::spawn(self.clone().sync(id, life, disk));
        let raft = Raft::new(id, config, net, log, machine).await;
        let raft = raft.unwrap_or_else(|e| panic!("seed {seed}: member {id}: {e}"));
        let (calls, calls_out) = mpsc::channel(256);
        let (term_in, term) = watch::channel(None);
        let (paused_in, paused) = watch::channel(false);
        let (in_flight, mut under_way) = watch::channel(0);
        let world = self.clone();
        let clock = Arc::new(move |_, _| EPOCH_MS + world.lock().now_ms());
        let shell = Shell {
            raft: raft.clone(),
            calls: calls_out,
            applied: applied.clone(),
            term,
            paused,
            in_flight,
            clock,
            hooks: Hooks::default(),
        };
        SimRuntime::spawn(raft::follow_leadership(
            raft.clone(),
            applied.clone(),
            term_in,
            Hooks::default().established,
        ));
        SimRuntime::spawn(shell.run());
        let world = self.clone();
        SimRuntime::spawn(async move {
            while under_way.changed().await.is_ok() {
                let now = *under_way.borrow();
                let mut inner = world.lock();
                inner.in_flight = inner.in_flight.max(now);
            }
        });
        SimRuntime::spawn(self.clone().observe(id, life, raft.clone(), applied.clone()));
        let alive = Alive { raft, calls, applied, paused: paused_in };
        let mut inner = self.lock();
        let seat = inner.seats.get_mut(&id).expect("a seat");
        seat.member = Some(alive);
    }

    /// The disk of one life: each sync takes a while.
    async fn sync(self, id: u64, life: u64, disk: ModelDisk) {
        loop {
            disk.asked().await;
            let slow = self.random(40) == 0;
            let base = if slow { 40 } else { 1 };
            let wait = 1 + self.random(base);
            pause(wait).await;
            if self.lock().seats[&id].life != life {
                return;
            }
            disk.settle();
        }
    }

    /// Compares what this life applies with what others applied at the same index.
    async fn observe(self, id: u64, life: u64, raft: Raft, applied: watch::Receiver<Applied>) {
        let mut metrics = raft.metrics();
        while metrics.changed().await.is_ok() {
            let now = applied.borrow().clone();
            let mut inner = self.lock();
            if inner.seats[&id].life != life {
                return;
            }
            let hash = now.state.hash();
            let seed = inner.seed;
            let (term, before) = *inner.seen.entry(now.index).or_insert((now.term, hash));
            assert_eq!((term, before), (now.term, hash), "seed {seed}: member {id} differs at {}", now.index);
            inner.top_term = inner.top_term.max(now.term);
            let at = inner.now_ms();
            #[allow(clippy::cast_possible_truncation, reason = "a fold of it is enough")]
            inner.fold(&[at, id, now.index, now.term, hash as u64]);
        }
    }

    /// False when it is down already: whoever crashed it starts it again.
    fn crash(&self, id: u64) -> bool {
        let mut inner = self.lock();
        let unsynced = inner.seats[&id].disk.unsynced() as u64;
        let survivors = inner.random(unsynced + 1);
        let seat = inner.seats.get_mut(&id).expect("a seat");
        let Some(gone) = seat.member.take() else { return false };
        seat.life += 1;
        seat.disk = seat.disk.crash(usize::try_from(survivors).expect("few"));
        seat.tables = seat.tables.crash();
        inner.crashes += 1;
        drop(inner);
        // What is left of it runs on for a moment, unheard, on a disk of its own.
        SimRuntime::spawn(async move {
            let _ = gone.raft.shutdown().await;
        });
        true
    }

    /// Crashes a member, and starts it again soon.
    fn crash_for_a_while(&self, id: u64) {
        if !self.crash(id) {
            return;
        }
        let down = self.random(2_000);
        let world = self.clone();
        SimRuntime::spawn(async move {
            pause(down).await;
            world.start(id).await;
        });
    }

    /// All members crash in the same instant.
    fn power_cut(&self) {
        for id in self.ids() {
            self.crash_for_a_while(id);
        }
    }

    pub async fn form(&self) {
        let ids = self.ids();
        for id in &ids {
            self.start(*id).await;
        }
        let peers: BTreeMap<u64, Peer> = ids.iter().map(|id| (*id, Peer::default())).collect();
        let first = self.alive(ids[0]).expect("started");
        first.raft.initialize(peers).await.expect("initializes");
        let init = Intent::Init { cluster: "sim".into(), mode: Mode::Simulation, default_gpu_milli: 1_000_000 };
        self.insist(0, init).await;
        for node in 0..4 {
            self.insist(0, testing::register(&format!("w{node}"), testing::node_spec(8))).await;
        }
    }

    /// Asks member after member, with the same intent, until one answers.
    async fn insist(&self, client: u64, intent: Intent) -> Reply {
        loop {
            let ids = self.ids();
            let pick = usize::try_from((client + self.random(ids.len() as u64)) % ids.len() as u64).expect("few");
            if let Some(alive) = self.alive(ids[pick]) {
                let (reply, answer) = oneshot::channel();
                let call = Call { intent: intent.clone(), term: None, reply };
                let asked = async {
                    alive.calls.send(call).await.ok()?;
                    answer.await.ok()?.ok()
                };
                if let Ok(Some(reply)) = SimRuntime::timeout(Duration::from_millis(400), asked).await {
                    return reply;
                }
            }
            let wait = 5 + self.random(40);
            pause(wait).await;
            self.assert_alive();
        }
    }

    /// A world in which nothing gets done for so long is stuck.
    fn assert_alive(&self) {
        if self.lock().now_ms() < LONGEST_MS {
            return;
        }
        let (seed, ids) = (self.seed(), self.ids());
        let told = |id: &u64| self.alive(*id).map(|alive| alive.raft.metrics().borrow_watched().to_string());
        let told: Vec<_> = ids.iter().map(|id| (*id, told(id))).collect();
        panic!("seed {seed}: calls are not answered: {told:#?}");
    }

    /// Schedules jobs, one after the other, each until it is acknowledged.
    pub async fn client(self, client: u64) {
        for call in 0..CALLS {
            self.clone().schedule(client, format!("c{client}-{call}")).await;
            let cut = {
                let mut inner = self.lock();
                !inner.healing && inner.random(POWER_CUT) == 0
            };
            if cut {
                self.power_cut();
            }
            let wait = self.random(3_000);
            pause(wait).await;
        }
    }

    /// Schedules many jobs in the same moment, now and then, each until it is acknowledged.
    pub async fn crowd(self) {
        for crowd in 0..CROWDS {
            let wait = 2_000 + self.random(8_000);
            pause(wait).await;
            let many = CROWD + self.random(2 * CROWD);
            let one = |n: u64| SimRuntime::spawn(self.clone().schedule(n, format!("crowd{crowd}-{n}")));
            for call in (0..many).map(one).collect::<Vec<_>>() {
                call.await.unwrap_or_else(|e| panic!("seed {}: one of a crowd: {e}", self.seed()));
            }
        }
    }

    async fn schedule(self, client: u64, name: String) {
        let spec = testing::job_spec("tenant", Gpus::Whole(1));
        let reply = self.insist(client, testing::schedule(&name, spec)).await;
        let seed = self.seed();
        match reply.result {
            Ok(Answer::Job { no, .. }) => {
                let known = self.lock().acknowledged.insert(RequestId::new(&name).expect("valid"), no);
                assert!(known.is_none(), "seed {seed}: {name} twice");
            }
            other => panic!("seed {seed}: {name}: {other:?}"),
        }
    }

    /// Faults, one after the other, for a while.
    pub async fn torment(&self, time: Duration) {
        let end = SimInstant::now() + time;
        while SimInstant::now() < end {
            let wait = 200 + self.random(1_500);
            pause(wait).await;
            let ids = self.ids();
            let pick = ids[usize::try_from(self.random(ids.len() as u64)).expect("few")];
            match self.random(12) {
                0..=2 => self.crash_for_a_while(pick),
                3 | 4 => {
                    let others: Vec<u64> = ids.iter().copied().filter(|id| *id != pick).collect();
                    let mut inner = self.lock();
                    for other in others {
                        inner.cut.insert((pick, other));
                        inner.cut.insert((other, pick));
                    }
                }
                // One way only.
                5 => {
                    let other = ids[usize::try_from(self.random(ids.len() as u64)).expect("few")];
                    self.lock().cut.insert((pick, other));
                }
                6 => {
                    let loss = self.random(150);
                    self.lock().loss = loss;
                }
                7 => {
                    if let Some(alive) = self.alive(pick) {
                        let _ = alive.raft.trigger().snapshot().await;
                    }
                }
                8 => {
                    let tables = self.lock().seats[&pick].tables.clone();
                    tables.flush().expect("the model flushes");
                }
                // Nothing is written for a while, as before leadership is handed over.
                9 => {
                    let Some(alive) = self.alive(pick) else { continue };
                    let _ = alive.paused.send(true);
                    let wait = self.random(400);
                    pause(wait).await;
                    let _ = alive.paused.send(false);
                }
                10 => {
                    if let Some(alive) = self.alive(pick) {
                        let to = ids[usize::try_from(self.random(ids.len() as u64)).expect("few")];
                        let _ = alive.raft.trigger().transfer_leader(to).await;
                    }
                }
                _ => self.lock().cut.clear(),
            }
        }
    }

    pub async fn heal(&self) {
        {
            let mut inner = self.lock();
            inner.cut.clear();
            inner.loss = 0;
            inner.healing = true;
        }
        // Restarts that are under way come first.
        pause(2_500).await;
        for id in self.ids() {
            if self.alive(id).is_none() {
                self.start(id).await;
            }
        }
    }

    /// Waits until all have applied the same.
    pub async fn agree(&self, limit: Duration) {
        let end = SimInstant::now() + limit;
        loop {
            let indexes: BTreeSet<u64> =
                self.ids().iter().filter_map(|id| self.alive(*id)).map(|a| a.applied.borrow().index).collect();
            let last: Option<u64> = self
                .ids()
                .iter()
                .filter_map(|id| self.alive(*id))
                .filter_map(|a| a.raft.metrics().borrow_watched().last_log_index)
                .max();
            if indexes.len() == 1 && indexes.first().copied() == last {
                return;
            }
            let seed = self.seed();
            assert!(SimInstant::now() < end, "seed {seed}: they do not agree: {indexes:?}, last {last:?}");
            pause(20).await;
        }
    }

    pub fn states(&self) -> Vec<(u64, Arc<State>)> {
        let alive = |id: u64| self.alive(id).map(|alive| (id, alive.applied.borrow().state.clone()));
        self.ids().into_iter().filter_map(alive).collect()
    }

    pub fn acknowledged(&self) -> BTreeMap<RequestId, JobNo> {
        self.lock().acknowledged.clone()
    }

    pub fn trace(&self, acknowledged: usize) -> Trace {
        let inner = self.lock();
        Trace {
            hash: inner.hash,
            acknowledged,
            crashes: inner.crashes,
            terms: inner.top_term,
            snapshots: inner.snapshots,
            in_flight: inner.in_flight,
        }
    }
}
