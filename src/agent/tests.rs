//! The agent against lost, repeated and reordered messages, and end to end on a
//! group in memory, both inside a member and over the network.

mod beats;
mod exclusive;
mod leftovers;
mod played_nodes;
mod vouched;

use super::link::{Link, LocalLink, RemoteLink};
use super::node::{Node, Standing};
use super::virtual_nodes::{self, Clock, VirtualNode};
use super::*;
use crate::exchange::testing::{Memory, eventually};
use crate::exchange::{Beat, BeatAnswer, Caller, Hub, LogQuery, Plain, Slice};
use bytes::Bytes;
use futures::stream::BoxStream;
use nf_core::command::{Answer, Mode};
use nf_core::consent::{self, Consent, Scope};
use nf_core::id::{Generation, Incarnation, JobNo, Label, NodeNo, RequestId, TenantId};
use nf_core::job::{JobState, Phase, Stage};
use nf_core::node::{NodeKind, NodeState};
use nf_core::plan::Intent;
use nf_core::reason::Reason;
use nf_core::reconcile::{self, Actual, Condition, Leave, ReplicaId, Want};
use nf_core::resources::Gpus;
use nf_core::state::State;
use nf_core::testing;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;

/// Replicas as entries that the test itself lets come up, stop and fail.
struct Fake {
    there: Mutex<BTreeMap<(ReplicaId, Generation), Condition>>,
    /// Manifests of which something is on disk, which outlives the process.
    disk: Mutex<BTreeSet<[u8; 32]>>,
    of: Mutex<BTreeMap<ReplicaId, [u8; 32]>>,
    changes: watch::Sender<u64>,
    /// The records of earlier starts are lost.
    forgot: AtomicBool,
    /// Why each was stopped, in order.
    stops: Mutex<Vec<(ReplicaId, Reason)>>,
}

impl Fake {
    fn new() -> Arc<Self> {
        let (disk, of, forgot, stops) = Default::default();
        Arc::new(Self { there: Mutex::default(), disk, of, changes: watch::channel(0).0, forgot, stops })
    }

    /// The n-th entry that is so becomes what `to` says.
    fn turn(&self, n: usize, to: impl Fn(Condition) -> Option<Condition>) {
        let mut there = self.there.lock().unwrap();
        let at: Vec<_> = there.iter().filter_map(|(key, c)| Some((*key, to(*c)?))).collect();
        if !at.is_empty() {
            let (key, next) = at[n % at.len()];
            there.insert(key, next);
        }
    }

    fn assert_one_generation_each(&self) {
        let mut alive = BTreeSet::new();
        for ((id, _), condition) in self.there.lock().unwrap().iter() {
            if !matches!(condition, Condition::Gone { .. }) {
                assert!(alive.insert(*id), "two generations of {id:?} are alive");
            }
        }
    }
}

impl Execute for Fake {
    fn start(&self, id: ReplicaId, want: &Want) {
        self.there.lock().unwrap().entry((id, want.generation)).or_insert(Condition::Alive);
        if let Some(manifest) = want.spec.manifest {
            self.disk.lock().unwrap().insert(manifest);
            self.of.lock().unwrap().insert(id, manifest);
        }
        self.assert_one_generation_each();
    }
    fn remembers(&self) -> bool {
        !self.forgot.load(Ordering::SeqCst)
    }
    fn settle(&self) {
        self.forgot.store(false, Ordering::SeqCst);
    }
    fn stop(&self, id: ReplicaId, generation: Generation, leave: Leave) {
        self.stops.lock().unwrap().push((id, leave.why));
        if let Some(condition) = self.there.lock().unwrap().get_mut(&(id, generation))
            && *condition == Condition::Alive
        {
            *condition = Condition::Stopping;
        }
    }
    fn forget(&self, id: ReplicaId, generation: Generation) {
        self.there.lock().unwrap().remove(&(id, generation));
    }
    fn actual(&self) -> Actual {
        let mut out = Actual::default();
        for ((id, generation), condition) in self.there.lock().unwrap().iter() {
            out.replicas.entry(*id).or_default().insert(*generation, *condition);
        }
        out
    }
    fn stages(&self) -> Vec<(ReplicaId, Generation, Stage)> {
        self.there.lock().unwrap().keys().map(|(id, generation)| (*id, *generation, Stage::Ready)).collect()
    }
    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
    fn purge(&self, copy: &reconcile::Purge) -> bool {
        let of = self.of.lock().unwrap();
        let there = self.there.lock().unwrap();
        let open = there.keys().any(|(id, _)| of.get(id) == Some(&copy.manifest));
        assert!(!open, "a replica has it open");
        self.disk.lock().unwrap().remove(&copy.manifest);
        true
    }
    fn logs(&self, request: &RequestId, id: ReplicaId, _: usize, _: bool) -> BoxStream<'static, io::Result<Bytes>> {
        let text = format!("{request}.{}\n", id.replica);
        futures::stream::once(async move { Ok(Bytes::from(text)) }).boxed()
    }
}

/// What may happen, in any order.
#[derive(Clone, Debug)]
enum Op {
    Schedule,
    /// Of a version with data about people, whose tenant consents.
    Personal,
    /// The n-th tenant's consents end.
    Dissent(usize),
    /// The n-th tenant consents again.
    Consent(usize),
    StopJob(usize),
    NodeDown,
    /// A slice of some past state arrives; 0 is the newest.
    Slice(usize),
    /// "Current up to": only ever true of the newest state told.
    Beat {
        lost: bool,
        stale_term: bool,
    },
    Step,
    /// The reports of the last step: lost, or delivered so many times; acknowledged or not.
    Report {
        times: usize,
        acknowledged: bool,
    },
    Stopped(usize),
    Fails(usize),
    /// The agent's process starts again; replicas survive it or not.
    Restart {
        adopts: bool,
    },
    Time(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => Just(Op::Schedule),
        2 => Just(Op::Personal),
        2 => (0usize..8).prop_map(Op::Dissent),
        1 => (0usize..8).prop_map(Op::Consent),
        2 => (0usize..8).prop_map(Op::StopJob),
        1 => Just(Op::NodeDown),
        4 => (0usize..6).prop_map(Op::Slice),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(lost, stale_term)| Op::Beat { lost, stale_term }),
        6 => Just(Op::Step),
        4 => (0usize..3, any::<bool>()).prop_map(|(times, acknowledged)| Op::Report { times, acknowledged }),
        3 => (0usize..8).prop_map(Op::Stopped),
        2 => (0usize..8).prop_map(Op::Fails),
        1 => any::<bool>().prop_map(|adopts| Op::Restart { adopts }),
        2 => (0u64..40_000).prop_map(Op::Time),
    ];
    proptest::collection::vec(op, 1..120)
}

/// A group, a node's agent, and everything that was ever on its way between them.
struct World {
    state: State,
    index: u64,
    now_ms: u64,
    incarnation: u64,
    slices: Vec<Slice>,
    node: Node,
    fake: Arc<Fake>,
    reports: NodeReports,
    jobs: usize,
    statements: u8,
}

const NODE: NodeNo = NodeNo(1);

impl World {
    fn new() -> Self {
        let fake = Fake::new();
        let mut world = Self {
            state: State::new(),
            index: 0,
            now_ms: 1,
            incarnation: 1,
            slices: Vec::new(),
            node: Self::agent(1, &fake),
            reports: NodeReports { node: Self::name(), incarnation: Incarnation(1), reports: vec![], purged: vec![] },
            fake,
            jobs: 0,
            statements: 0,
        };
        world.register();
        world
    }

    fn name() -> NodeName {
        NodeName::new("n1").unwrap()
    }

    fn agent(incarnation: u64, fake: &Arc<Fake>) -> Node {
        let registration = Registration {
            node: Self::name(),
            kind: NodeKind::Worker,
            incarnation: Incarnation(incarnation),
            spec: Arc::new(testing::node_spec(4)),
        };
        Node::new(registration, fake.clone(), KILL_BUDGET)
    }

    fn commit(&mut self, intent: Intent) -> Result<Vec<Answer>, nf_core::reason::Refusal> {
        let out = testing::try_run_at(&mut self.state, intent, self.now_ms);
        self.index += 1;
        let slice = Slice {
            node: Self::name(),
            revision: self.state.revision(NODE),
            index: self.index,
            desired: Arc::new(reconcile::desired(&self.state, NODE)),
        };
        self.slices.push(slice);
        out
    }

    fn register(&mut self) {
        let r = self.node.registration.clone();
        self.commit(Intent::Register { name: r.node, kind: r.kind, incarnation: r.incarnation, spec: r.spec }).unwrap();
        self.node.registered(self.index, false, self.now_ms);
    }

    fn tell(&mut self, back: usize) {
        let at = self.slices.len().saturating_sub(1 + back);
        self.node.take_slice(&self.slices[at]);
    }

    fn beat(&mut self, term: u64) {
        let answer = BeatAnswer { term, commit_index: self.index, lease_ms: 45_000, ..BeatAnswer::default() };
        self.node.take_lease(self.now_ms, &answer);
    }

    fn deliver(&mut self, times: usize, acknowledged: bool) {
        let NodeReports { node, incarnation, reports, purged } = self.reports.clone();
        for _ in 0..times {
            let intent = Intent::Reports { node: node.clone(), incarnation, reports: reports.clone() };
            self.commit(intent).unwrap();
            self.commit(Intent::Purged { node: node.clone(), incarnation, copies: purged.clone() }).unwrap();
        }
        if times > 0 && acknowledged {
            self.node.acknowledge(&reports, self.index);
            self.node.acknowledge_purged(&purged, self.index);
        }
    }

    fn consent(&mut self, job: usize) {
        self.statements += 1;
        let tenant = TenantId::new(&format!("t{job}")).unwrap();
        let scope = Scope { tenant, classes: vec![Label::new("personal").unwrap()], model: None, version: None };
        let until_ms = self.now_ms + consent::MAX_MS / 2;
        let (by, ended_ms) = (None, None);
        let statement = [self.statements; 32];
        let said = Consent { statement, scope, until_ms, key_id: "k".into(), by, at_ms: 0, ended_ms };
        self.commit(Intent::Consent(Box::new(said))).unwrap();
    }

    fn dissent(&mut self, job: usize) {
        let tenant = TenantId::new(&format!("t{job}")).unwrap();
        let theirs: Vec<_> = self.state.consents_of(&tenant).map(|consent| consent.statement).collect();
        for statement in theirs {
            self.commit(Intent::Dissent { tenant: tenant.clone(), statement }).unwrap();
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Schedule => {
                self.jobs += 1;
                let spec = testing::job_spec(&format!("t{}", self.jobs), Gpus::Milli(400));
                self.commit(testing::schedule(&format!("r{}", self.jobs), spec)).unwrap();
            }
            Op::Personal => {
                self.jobs += 1;
                self.consent(self.jobs);
                let mut spec = testing::job_spec(&format!("t{}", self.jobs), Gpus::Milli(400));
                (spec.manifest, spec.data_classes) =
                    (Some([self.jobs as u8; 32]), vec![Label::new("personal").unwrap()]);
                self.commit(testing::schedule(&format!("r{}", self.jobs), spec)).unwrap();
            }
            Op::Dissent(n) => self.dissent(1 + n % self.jobs.max(1)),
            Op::Consent(n) => self.consent(1 + n % self.jobs.max(1)),
            Op::StopJob(n) => {
                let jobs: Vec<_> = self.state.jobs().values().map(|job| job.request.clone()).collect();
                if !jobs.is_empty() {
                    let request = jobs[n % jobs.len()].clone();
                    let _ = self.commit(Intent::Stop { request, tenant: None, why: Reason::StoppedByUser });
                }
            }
            Op::NodeDown => {
                let verdict = |to| Intent::NodeStates(vec![(NODE, Incarnation(self.incarnation), to)]);
                let (down, ready) = (verdict(NodeState::Down), verdict(NodeState::Ready));
                self.commit(down).unwrap();
                self.commit(ready).unwrap();
                self.commit(Intent::PlaceWaiting).unwrap();
            }
            Op::Slice(back) => self.tell(back),
            Op::Beat { lost: true, .. } => {}
            Op::Beat { stale_term, .. } => self.beat(if stale_term { 1 } else { 2 }),
            Op::Step => self.reports = self.node.step(self.now_ms),
            Op::Report { times, acknowledged } => self.deliver(times, acknowledged),
            Op::Stopped(n) => self.fake.turn(n, |c| {
                (c == Condition::Stopping).then_some(Condition::Gone { ok: true, why: Reason::StoppedByUser })
            }),
            Op::Fails(n) => self.fake.turn(n, |c| {
                (c == Condition::Alive).then_some(Condition::Gone { ok: false, why: Reason::ExitedNonZero })
            }),
            Op::Restart { adopts } => {
                self.incarnation += 1;
                if !adopts {
                    self.fake.there.lock().unwrap().clear();
                }
                self.node = Self::agent(self.incarnation, &self.fake);
                self.reports.reports.clear();
                self.reports.purged.clear();
                self.register();
            }
            Op::Time(ms) => {
                self.now_ms += ms;
                let _ = self.commit(Intent::PlaceWaiting);
            }
        }
        self.fake.assert_one_generation_each();
    }

    /// From here on nothing is lost.
    fn heal(&mut self) {
        for _ in 0..12 {
            self.run(Op::Time(400_000));
            self.tell(0);
            self.beat(9);
            self.run(Op::Step);
            self.deliver(1, true);
            for n in 0..64 {
                self.run(Op::Stopped(n));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn it_converges_whatever_was_lost_and_no_replica_lives_twice(ops in ops()) {
        let mut world = World::new();
        for op in ops {
            world.run(op);
        }
        world.heal();
        let desired = reconcile::desired(&world.state, NODE);
        let there = world.fake.there.lock().unwrap().clone();
        let alive: BTreeSet<_> = there.iter().filter(|(_, c)| **c == Condition::Alive).map(|(key, _)| *key).collect();
        let wanted: BTreeSet<_> = desired.replicas.iter().map(|(id, want)| (*id, want.generation)).collect();
        prop_assert_eq!(&alive, &wanted);
        prop_assert_eq!(there.len(), wanted.len(), "nothing is left of what is not wanted");
        for job in world.state.jobs().values() {
            let up = job.replicas.iter().all(|r| matches!(r.phase, Phase::Held { stage: Stage::Ready, .. } | Phase::Waiting { .. }));
            prop_assert!(up, "{:?}", job.replicas);
        }
        prop_assert!(nf_core::invariants::check(&world.state).is_empty());
        // What is left on the disk is what the group knows of and lets be kept, or is about nobody.
        prop_assert!(desired.purge.is_empty(), "{:?}", desired.purge);
        let kept: BTreeSet<_> = world.state.copies().map(|copy| copy.manifest).collect();
        prop_assert!(world.fake.disk.lock().unwrap().is_subset(&kept));
    }
}

#[test]
fn nothing_is_started_without_a_lease_of_this_start() {
    let mut world = World::new();
    world.run(Op::Schedule);
    world.tell(0);
    world.run(Op::Step);
    assert!(world.fake.there.lock().unwrap().is_empty() && world.node.waits());
    world.beat(1);
    world.run(Op::Step);
    assert_eq!(world.fake.there.lock().unwrap().len(), 1);
}

#[test]
fn a_slice_older_than_the_registration_stops_nothing() {
    let mut world = World::new();
    world.run(Op::Schedule);
    world.tell(0);
    world.beat(1);
    world.run(Op::Step);
    world.run(Op::Restart { adopts: true });
    // A member that was left behind does not know the job yet.
    world.tell(2);
    world.run(Op::Step);
    let there = world.fake.there.lock().unwrap().clone();
    assert!(there.values().all(|c| *c == Condition::Alive) && there.len() == 1);
}

// ---- end to end ----

fn registration(name: &str, kind: NodeKind) -> Registration {
    Registration {
        node: NodeName::new(name).unwrap(),
        kind,
        incarnation: Incarnation(2),
        spec: Arc::new(nf_core::node::NodeSpec { ports: None, ..testing::node_spec(4) }),
    }
}

fn job_state(group: &Memory, no: u64) -> Option<JobState> {
    group.state().job(JobNo(no)).map(|job| job.state())
}

struct Running {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<Outcome>,
    _clock: Clock,
}

/// An agent of virtual nodes.
fn agent(names: &[&str], link: Arc<dyn Link>) -> Running {
    let clock = Clock::start(Duration::from_millis(20));
    let node = |name: &&str| NodeRegistration {
        registration: registration(name, NodeKind::Worker),
        executor: clock.executor(),
    };
    let nodes = names.iter().map(node).collect();
    let config = AgentConfig { beat_every: Duration::from_millis(20), ..AgentConfig::new(nodes, link) };
    let (stop, stopped) = watch::channel(false);
    Running { stop, task: tokio::spawn(run(config, stopped)), _clock: clock }
}

#[tokio::test]
async fn a_job_runs_and_stops_on_a_member_s_own_node() {
    let group = Memory::new();
    let hub = Hub::new(group.clone(), Default::default());
    let running = agent(&["n1"], Arc::new(LocalLink(hub)));
    eventually("the node is registered", || group.state().node(NODE).is_some()).await;
    group.run(testing::schedule("r1", testing::job_spec("t1", Gpus::Whole(2))));
    eventually("the job runs", || job_state(&group, 1) == Some(JobState::Running)).await;
    let request = RequestId::new("r1").unwrap();
    group.run(Intent::Stop { request, tenant: None, why: Reason::StoppedByUser });
    eventually("the job is over", || group.state().jobs().is_empty()).await;
    running.stop.send_replace(true);
    assert_eq!(running.task.await.unwrap(), Outcome::Stopped);
}

#[tokio::test]
async fn a_node_whose_new_description_is_refused_works_on_as_it_was() {
    let group = Memory::new();
    let clock = Clock::start(Duration::from_millis(20));
    let registration = registration("n1", NodeKind::Worker);
    let node = NodeRegistration { registration, executor: clock.executor() };
    let (tell, described) = mpsc::channel(1);
    let link = Arc::new(LocalLink(Hub::new(group.clone(), Default::default())));
    let beat_every = Duration::from_millis(20);
    let config = AgentConfig { beat_every, described: Some(described), ..AgentConfig::new(vec![node], link) };
    let (_stop, stopped) = watch::channel(false);
    let task = tokio::spawn(run(config, stopped));
    eventually("the node is registered", || group.state().node(NODE).is_some()).await;
    group.run(testing::schedule("r1", testing::job_spec("t1", Gpus::Whole(2))));
    eventually("the job runs", || job_state(&group, 1) == Some(JobState::Running)).await;
    // Without one of the devices that the job holds. The third is taken in when the agent has looked at the first.
    let spec = |devices| Arc::new(nf_core::node::NodeSpec { ports: None, ..testing::node_spec(devices) });
    for _ in 0..3 {
        tell.send(spec(1)).await.unwrap();
    }
    group.run(testing::schedule("r2", testing::job_spec("t2", Gpus::Whole(2))));
    eventually("another job runs", || job_state(&group, 2) == Some(JobState::Running)).await;
    tell.send(spec(5)).await.unwrap();
    eventually("what can be taken is", || group.state().node(NODE).is_some_and(|n| n.spec.devices.len() == 5)).await;
    task.abort();
}

#[tokio::test]
async fn an_agent_that_another_start_replaced_stops_and_says_so() {
    let group = Memory::new();
    let hub = Hub::new(group.clone(), Default::default());
    let running = agent(&["n1"], Arc::new(LocalLink(hub)));
    eventually("the node is registered", || group.state().node(NODE).is_some()).await;
    let later = Registration { incarnation: Incarnation(3), ..registration("n1", NodeKind::Worker) };
    group.run(Intent::Register {
        name: later.node,
        kind: later.kind,
        incarnation: later.incarnation,
        spec: later.spec,
    });
    assert_eq!(
        tokio::time::timeout(Duration::from_secs(10), running.task).await.unwrap().unwrap(),
        Outcome::Superseded
    );
}

/// Serves `hub` on a port of loopback.
async fn serve(hub: Hub, caller: Caller) -> (String, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let routes = hub.serve(Arc::new(move |_| caller.clone()));
    let server = tonic::transport::Server::builder().add_routes(routes);
    let task = tokio::spawn(async move {
        server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });
    (address, task)
}

#[tokio::test]
async fn workers_are_served_over_the_network_by_whichever_member_answers() {
    let group = Memory::new();
    let hub = Hub::new(group.clone(), Default::default());
    let (address, server) = serve(hub.clone(), Caller::Someone).await;
    // The first address answers nobody.
    let members = ["127.0.0.1:1".to_owned(), address];
    let link = RemoteLink::new("", Mode::Simulation, &members, &Plain).unwrap();
    let names: Vec<String> = (0..100).map(|i| format!("w{i}")).collect();
    let running = agent(&names.iter().map(String::as_str).collect::<Vec<_>>(), Arc::new(link));
    eventually("all are registered", || group.state().nodes().len() == 100).await;
    for i in 0..200 {
        group.run(testing::schedule(&format!("r{i}"), testing::job_spec(&format!("t{i}"), Gpus::Whole(2))));
    }
    eventually("all run", || group.state().jobs().values().all(|job| job.state() == JobState::Running)).await;
    // Its log, by way of the stream that the agent keeps open.
    let placed = group.state().job(JobNo(7)).unwrap().replicas[0].allocation().unwrap().node;
    let node = group.state().node(placed).unwrap().name.clone();
    let request = group.state().job(JobNo(7)).unwrap().request.clone();
    let mut line = None;
    for _ in 0..500 {
        let id = ReplicaId { job: JobNo(7), replica: 0 };
        let query = LogQuery { node: node.clone(), request: request.clone(), id, follow: false, tail: 10, life: false };
        line = hub.logs(query).next().await.and_then(Result::ok);
        if line.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(String::from_utf8_lossy(&line.unwrap()).contains("SIMULATED"));
    running.task.abort();
    server.abort();
}

#[tokio::test]
async fn a_worker_speaks_for_itself_only() {
    let group = Memory::new();
    let own = Caller::Node(NodeName::new("w1").unwrap());
    let (address, server) = serve(Hub::new(group.clone(), Default::default()), own).await;
    let link = RemoteLink::new("", Mode::Simulation, &[address], &Plain).unwrap();
    let refused = link.register(vec![registration("w2", NodeKind::Worker)]).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused(r) if r.reason == Reason::NodeIdentityMismatch), "{refused}");
    let welcome = link.register(vec![registration("w1", NodeKind::Worker)]).await.unwrap();
    assert_eq!(welcome, [Registered::At { index: 1, new: true }]);
    let other = crate::exchange::NodeStart { node: NodeName::new("w2").unwrap(), incarnation: Incarnation(2) };
    assert_eq!(link.watch(vec![other]).recv().await, None, "no slice of another node");
    server.abort();
}

/// One that was started without its keys would verify nothing of what it is given.
#[tokio::test]
async fn an_agent_of_another_mode_is_not_taken() {
    let own = || Caller::Node(NodeName::new("w1").unwrap());
    let (address, server) = serve(Hub::new(Memory::new(), Default::default()), own()).await;
    let link = RemoteLink::new("", Mode::Production, &[address], &Plain).unwrap();
    let refused = link.register(vec![registration("w1", NodeKind::Worker)]).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused(r) if r.reason == Reason::Forbidden), "{refused}");
    server.abort();
}
