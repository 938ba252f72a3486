//! The node agent: makes each of its nodes run what the group wants there, for ever.
//!
//! One task registers the nodes, beats for all of them in one message, follows their
//! slices on one stream, and reports. `node` says what to do for one node, an
//! [`Execute`] does it, a [`Link`] reaches the group. The agent decides nothing about
//! placement, and keeps replicas running while no member answers.

mod beats;
pub mod doctor;
mod earlier;
pub mod engine;
mod execute;
pub mod executor;
pub mod faults;
pub mod guard;
pub mod incarnation;
pub mod inventory;
pub mod lease;
pub mod link;
mod lock;
mod logs;
pub mod node;
pub mod numa;
pub mod nvml;
mod owned;
pub mod played;
mod post;
mod probe;
mod record;
mod runtimes;
mod scrape;
mod tpus;
pub mod troubles;
pub mod virtual_nodes;
pub mod vitals;

#[cfg(test)]
mod tests;

pub use execute::Execute;
pub use link::{Link, LocalLink, RemoteLink};
pub use logs::keeper::run as keep_logs;
pub use node::Standing;
pub use runtimes::marks::Found;
pub use runtimes::mps::Daemon;
pub use runtimes::users::Users;
pub use runtimes::vacancy::{Alarm, Sensor, Vacancy};
pub use troubles::Troubles;

use crate::exchange::life;
use crate::exchange::{Error, LogQuery, LogSource, NodeReports, Registered, Registration, Slices};
use beats::{Beating, Vouching};
use futures::StreamExt;
use futures::future::BoxFuture;
use nf_core::command::Report;
use nf_core::id::{Digest16, Incarnation, NodeName};
use nf_core::node::NodeSpec;
use node::Node;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

/// A node that this process runs, and what runs its replicas.
#[derive(Clone)]
pub struct NodeRegistration {
    pub registration: Registration,
    pub executor: Arc<dyn Execute>,
}

/// A change of the set of nodes that an agent runs.
pub enum Change {
    /// One more, or another registration of one that it ran before, on the same executor.
    Join(NodeRegistration),
    /// Nothing is done for this node any more.
    Leave(NodeName),
}

/// Changes that may wait for the agent.
pub const CHANGES: usize = 256;

/// What an agent is started with.
pub struct AgentConfig {
    pub nodes: Vec<NodeRegistration>,
    /// Nodes that come and go while it runs.
    pub changes: Option<mpsc::Receiver<Change>>,
    /// Other descriptions of the first node: more of its devices answer.
    pub described: Option<mpsc::Receiver<Arc<NodeSpec>>>,
    /// How the first node's GPUs do, where it has real ones.
    pub vitals: Option<vitals::Latest>,
    pub link: Arc<dyn Link>,
    pub beat_every: Duration,
    /// How long before its lease ends a node's guard kills its exclusive replicas, and how
    /// long before that they are told to stop.
    pub kill_budget: Duration,
}

impl AgentConfig {
    pub fn new(nodes: Vec<NodeRegistration>, link: Arc<dyn Link>) -> Self {
        Self {
            nodes,
            changes: None,
            described: None,
            vitals: None,
            link,
            beat_every: BEAT_EVERY,
            kill_budget: KILL_BUDGET,
        }
    }
}

/// Default time between beats.
pub const BEAT_EVERY: Duration = Duration::from_secs(1);
/// Default time kept before a lease ends.
pub const KILL_BUDGET: Duration = Duration::from_secs(5);
/// First and longest pause before something that failed is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Nodes whose reports go into one message.
const REPORTING: usize = 512;

/// Pauses that double up to [`BACKOFF`]'s second part.
#[derive(Clone, Copy, Debug, Default)]
struct Backoff(u32);

impl Backoff {
    fn next(&mut self) -> Duration {
        let pause = BACKOFF.0 * (1 << self.0.min(6));
        self.0 += 1;
        pause.min(BACKOFF.1)
    }

    fn reset(&mut self) {
        self.0 = 0;
    }
}

/// Why [`run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Stopped,
    /// Later starts of all nodes have registered: another process runs them.
    Superseded,
}

/// Runs until `stop` is true (or its sender is gone), or other processes have taken over all nodes.
/// Replicas are left as they are.
pub async fn run(config: AgentConfig, mut stop: watch::Receiver<bool>) -> Outcome {
    let mut agent = Agent::new(config);
    tokio::select! {
        // An error says that whoever could ask for the stop is gone.
        _ = stop.wait_for(|stop| *stop) => Outcome::Stopped,
        () = agent.run() => Outcome::Superseded,
    }
}

/// Nodes that should take a step, as executors' watchers note them.
#[derive(Default)]
struct Touched {
    nodes: Mutex<BTreeSet<usize>>,
    wake: Notify,
}

impl Touched {
    fn note(&self, at: usize) {
        self.nodes.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(at);
        self.wake.notify_one();
    }

    fn take(&self) -> BTreeSet<usize> {
        std::mem::take(&mut *self.nodes.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

/// A call that may be under way; at most one of its kind.
type UnderWay<T> = Option<BoxFuture<'static, T>>;

async fn settled<T>(call: &mut UnderWay<T>) -> T {
    match call {
        Some(future) => {
            let out = future.await;
            *call = None;
            out
        }
        None => std::future::pending().await,
    }
}

/// Which start of which node was spoken of: another may have joined before the answer comes.
type Spoken = Vec<(usize, Incarnation)>;
/// Whom a registration was for, and the answers.
type Registering = (Spoken, Result<Vec<Registered>, Error>);
/// What was told of which node, and what became of it.
type Reporting = (Vec<(usize, Said)>, Result<u64, Error>);
/// What one node said: of replicas, and of copies that it removed.
type Said = (Vec<Report>, Vec<(Digest16, u64)>);

struct Agent {
    link: Arc<dyn Link>,
    beat_every: Duration,
    kill_budget: Duration,
    nodes: Vec<Node>,
    by_name: BTreeMap<NodeName, usize>,
    changes: Option<mpsc::Receiver<Change>>,
    described: Option<mpsc::Receiver<Arc<NodeSpec>>>,
    vitals: Option<vitals::Latest>,
    touched: Arc<Touched>,
    /// Watches the executors for as long as the agent runs.
    watchers: JoinSet<()>,
    registering: UnderWay<Registering>,
    register_backoff: Backoff,
    register_at: Instant,
    beating: UnderWay<Beating>,
    vouching: UnderWay<Vouching>,
    slices: Option<mpsc::Receiver<Slices>>,
    watch_backoff: Backoff,
    watch_at: Instant,
    /// What each node last said is to be told, by node.
    outbox: BTreeMap<usize, NodeReports>,
    reporting: UnderWay<Reporting>,
    report_backoff: Backoff,
    report_at: Instant,
    logs: UnderWay<Error>,
    logs_at: Instant,
}

impl Agent {
    fn new(config: AgentConfig) -> Self {
        let now = Instant::now();
        let mut agent = Self {
            link: config.link,
            beat_every: config.beat_every,
            kill_budget: config.kill_budget,
            nodes: Vec::with_capacity(config.nodes.len()),
            by_name: BTreeMap::new(),
            changes: config.changes,
            described: config.described,
            vitals: config.vitals,
            touched: Arc::default(),
            watchers: JoinSet::new(),
            registering: None,
            register_backoff: Backoff::default(),
            register_at: now,
            beating: None,
            vouching: None,
            slices: None,
            watch_backoff: Backoff::default(),
            watch_at: now,
            outbox: BTreeMap::new(),
            reporting: None,
            report_backoff: Backoff::default(),
            report_at: now,
            logs: None,
            logs_at: now,
        };
        for node in config.nodes {
            agent.join(node);
        }
        agent
    }

    fn join(&mut self, new: NodeRegistration) {
        let name = new.registration.node.clone();
        let node = Node::new(new.registration, new.executor, self.kill_budget);
        if let Some(at) = self.by_name.get(&name) {
            self.nodes[*at] = node;
            return;
        }
        let at = self.nodes.len();
        let (mut changes, touched) = (node.executor().changes(), self.touched.clone());
        self.watchers.spawn(async move {
            while changes.changed().await.is_ok() {
                touched.note(at);
            }
        });
        self.by_name.insert(name, at);
        self.nodes.push(node);
    }

    fn change(&mut self, change: Option<Change>) {
        match change {
            Some(Change::Join(node)) => {
                self.join(node);
                self.register_at = Instant::now();
            }
            Some(Change::Leave(name)) => {
                if let Some(at) = self.by_name.get(&name) {
                    self.nodes[*at].superseded();
                }
            }
            None => self.changes = None,
        }
    }

    fn describe(&mut self, spec: Option<Arc<NodeSpec>>) {
        match (spec, self.nodes.first_mut()) {
            (Some(spec), Some(node)) => {
                node.describe(spec);
                self.register_at = Instant::now();
            }
            _ => self.described = None,
        }
    }

    fn in_standing(&self, test: fn(Standing) -> bool) -> impl Iterator<Item = usize> + '_ {
        self.nodes.iter().enumerate().filter(move |(_, node)| test(node.standing())).map(|(at, _)| at)
    }

    /// Returns when every node is superseded.
    async fn run(&mut self) {
        let mut beat = tokio::time::interval(self.beat_every);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let touched = self.touched.clone();
        // What was adopted is guarded from the first moment on.
        self.step(&(0..self.nodes.len()).collect());
        loop {
            if self.changes.is_none() && self.in_standing(|s| s != Standing::Superseded).next().is_none() {
                self.watchers.abort_all();
                return;
            }
            self.begin();
            let next = self.next_try();
            tokio::select! {
                _ = beat.tick() => self.beat(),
                (sent, nodes, answer) = settled(&mut self.beating) => self.answered(sent, &nodes, answer),
                (sent, nodes, vouched) = settled(&mut self.vouching) => self.vouched(sent, &nodes, vouched),
                (nodes, answers) = settled(&mut self.registering) => self.registered(&nodes, answers),
                change = next_of(&mut self.changes) => self.change(change),
                spec = next_of(&mut self.described) => self.describe(spec),
                slices = next_of(&mut self.slices) => self.take_slices(slices),
                (told, outcome) = settled(&mut self.reporting) => self.reported(told, outcome),
                error = settled(&mut self.logs) => {
                    tracing::debug!(%error, "answering requests for logs");
                    self.logs_at = Instant::now() + BACKOFF.1;
                }
                () = touched.wake.notified() => self.step(&touched.take()),
                () = tokio::time::sleep_until(next) => self.step(&self.leases_over()),
            }
        }
    }

    /// The next time at which something that failed is tried again, or exclusive replicas have to go.
    fn next_try(&self) -> Instant {
        let (now, now_ms) = (Instant::now(), lease::boot_ms());
        let leases = self.nodes.iter().filter_map(Node::exclusive_until);
        let leases = leases.map(|until| now + Duration::from_millis(until.saturating_sub(now_ms)));
        [self.register_at, self.watch_at, self.report_at, self.logs_at]
            .into_iter()
            .filter(|at| *at > now)
            .chain(leases)
            .min()
            .unwrap_or(now + BACKOFF.1)
    }

    /// Nodes whose exclusive replicas have to be stopped now.
    fn leases_over(&self) -> BTreeSet<usize> {
        let now_ms = lease::boot_ms();
        let over = |node: &Node| node.exclusive_until().is_some_and(|until| until <= now_ms);
        self.nodes.iter().enumerate().filter(|(_, node)| over(node)).map(|(at, _)| at).collect()
    }

    /// Starts whatever is due and not under way.
    fn begin(&mut self) {
        let now = Instant::now();
        if self.registering.is_none() && now >= self.register_at {
            let due = self.nodes.iter().enumerate().filter(|(_, node)| node.is_to_register());
            let due: Spoken = due.map(|(at, node)| (at, node.registration.incarnation)).collect();
            if !due.is_empty() {
                let list = due.iter().map(|(at, _)| self.nodes[*at].introduce()).collect();
                let link = self.link.clone();
                self.registering = Some(Box::pin(async move { (due, link.register(list).await) }));
            }
        }
        let registered = |s| matches!(s, Standing::Registered(_));
        if self.slices.is_none() && now >= self.watch_at && self.in_standing(registered).next().is_some() {
            let nodes = self.in_standing(registered).map(|at| self.nodes[at].start()).collect();
            self.slices = Some(self.link.watch(nodes));
        }
        if self.logs.is_none() && now >= self.logs_at && self.in_standing(registered).next().is_some() {
            let nodes = self.in_standing(registered).map(|at| self.nodes[at].start()).collect();
            let (link, source) = (self.link.clone(), self.log_source());
            self.logs = Some(Box::pin(async move { link.answer_logs(nodes, source).await }));
        }
        if self.reporting.is_none() && now >= self.report_at && !self.outbox.is_empty() {
            self.report();
        }
    }

    fn log_source(&self) -> LogSource {
        let executors: BTreeMap<NodeName, Arc<dyn Execute>> =
            self.nodes.iter().map(|node| (node.registration.node.clone(), node.executor().clone())).collect();
        Arc::new(move |query: &LogQuery| match executors.get(&query.node) {
            Some(executor) if query.life => {
                let lives = life::encode(&executor.lives(query.id));
                futures::stream::once(async move { Ok(lives) }).boxed()
            }
            Some(executor) => executor.logs(&query.request, query.id, query.tail, query.follow),
            None => {
                let text = format!("node {} is not run by this process", query.node);
                futures::stream::once(async move { Err(io::Error::new(io::ErrorKind::NotFound, text)) }).boxed()
            }
        })
    }

    fn registered(&mut self, asked: &[(usize, Incarnation)], answers: Result<Vec<Registered>, Error>) {
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) => {
                tracing::warn!(%error, nodes = asked.len(), "registering; trying again");
                self.register_at = Instant::now() + self.register_backoff.next();
                asked.iter().for_each(|(at, _)| self.nodes[*at].untold());
                self.ask_vouchers();
                return;
            }
        };
        let (mut taken, mut refused) = (false, false);
        for ((at, incarnation), answer) in asked.iter().zip(answers) {
            let node = &mut self.nodes[*at];
            if node.registration.incarnation != *incarnation || node.standing() == Standing::Superseded {
                continue;
            }
            match answer {
                Registered::At { index, new } => {
                    node.registered(index, new, lease::boot_ms());
                    taken = true;
                }
                Registered::Superseded => supersede(node),
                Registered::Refused(refusal) => {
                    tracing::error!(node = %node.registration.node, %refusal, "the group refuses this node");
                    node.untold();
                    refused = true;
                }
            }
        }
        match refused {
            true => self.register_at = Instant::now() + self.register_backoff.next(),
            false => self.register_backoff.reset(),
        }
        if taken {
            // The stream and the log desk are about other nodes now.
            self.slices = None;
            self.logs = None;
            (self.watch_at, self.logs_at) = (Instant::now(), Instant::now());
            self.beat();
        }
    }

    /// The nodes in that standing, each with its start.
    fn spoken(&self, test: fn(Standing) -> bool) -> Spoken {
        self.in_standing(test).map(|at| (at, self.nodes[at].registration.incarnation)).collect()
    }

    fn at<'a>(&'a self, names: &'a [NodeName]) -> impl Iterator<Item = usize> + 'a {
        names.iter().filter_map(|name| self.by_name.get(name).copied())
    }

    fn take_slices(&mut self, slices: Option<Slices>) {
        let Some(slices) = slices else {
            self.slices = None;
            self.watch_at = Instant::now() + self.watch_backoff.next();
            return;
        };
        self.watch_backoff.reset();
        let mut changed = BTreeSet::new();
        for slice in &slices.slices {
            let Some(at) = self.by_name.get(&slice.node).copied() else { continue };
            if self.nodes[at].take_slice(slice) {
                changed.insert(at);
            }
        }
        if let Some(index) = slices.index {
            for (at, node) in self.nodes.iter_mut().enumerate() {
                // Only a node that waits for something has use for the step.
                if node.current(index) && node.waits() {
                    changed.insert(at);
                }
            }
        }
        self.step(&changed);
    }

    fn step(&mut self, nodes: &BTreeSet<usize>) {
        let now_ms = lease::boot_ms();
        for at in nodes {
            let reports = self.nodes[*at].step(now_ms);
            match reports.is_empty() {
                true => self.outbox.remove(at),
                false => self.outbox.insert(*at, reports),
            };
        }
    }

    fn report(&mut self) {
        let due: Vec<usize> = self.outbox.keys().copied().take(REPORTING).collect();
        let reports: Vec<NodeReports> = due.iter().filter_map(|at| self.outbox.remove(at)).collect();
        let told = due.into_iter().zip(reports.iter().map(|r| (r.reports.clone(), r.purged.clone()))).collect();
        let link = self.link.clone();
        self.reporting = Some(Box::pin(async move { (told, link.report(reports).await) }));
    }

    fn reported(&mut self, told: Vec<(usize, Said)>, outcome: Result<u64, Error>) {
        match outcome {
            Ok(index) => {
                self.report_backoff.reset();
                for (at, (reports, purged)) in &told {
                    self.nodes[*at].acknowledge(reports, index);
                    self.nodes[*at].acknowledge_purged(purged, index);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "reporting; trying again");
                self.report_at = Instant::now() + self.report_backoff.next();
            }
        }
        // What was not told, or is not so any more, is found again.
        self.step(&told.into_iter().map(|(at, _)| at).collect());
    }
}

fn supersede(node: &mut Node) {
    let start = node.start();
    let (name, incarnation) = (start.node, start.incarnation.0);
    tracing::error!(node = %name, incarnation, "another process has registered this node since; it is not run here any more");
    node.superseded();
}

async fn next_of<T>(from: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match from {
        Some(from) => from.recv().await,
        None => std::future::pending().await,
    }
}
