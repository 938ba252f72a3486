//! A node and its agent: beats, reads its slice from any member, takes the steps
//! of the real `reconcile::diff`, and reports. Its replicas start, become ready,
//! fail and end by chance. It crashes, with or without its replicas.

use super::net::{Message, Peer};
use super::rng::Rng;
use crate::command::{Report, ReportKind};
use crate::id::{Digest16, Generation, Incarnation, NodeName, TenantId};
use crate::job::{Restart, Stage};
use crate::node::{NodeKind, NodeSpec};
use crate::plan::Intent;
use crate::played;
use crate::reason::Reason;
use crate::reconcile::{Action, Actual, Condition, Desired, Holding, ReplicaId, diff};
use crate::sharing::Sharing;
use crate::testing;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// About how much time passes between two steps of a worker.
const STEP_MS: u32 = 100;

/// One launch that the agent knows of.
#[derive(Clone, Debug)]
struct Launch {
    condition: Condition,
    stage: Stage,
    restart: Restart,
    holding: Holding,
    /// Told to go, it saves its state for so many steps of the world first.
    saving: u32,
}

/// What a call of the agent was about.
#[derive(Debug)]
enum Said {
    Registered,
    Reported,
}

/// One node.
#[derive(Debug)]
pub struct Worker {
    me: usize,
    pub name: NodeName,
    spec: Arc<NodeSpec>,
    pub up: bool,
    incarnation: Incarnation,
    registered: bool,
    launches: BTreeMap<(ReplicaId, Generation), Launch>,
    /// Versions that it has fetched, by their manifests; a crash leaves them on its disk.
    pub copies: BTreeSet<(TenantId, [u8; 32])>,
    desired: Desired,
    index: usize,
    calls: u64,
    open: Option<(u64, Said)>,
    /// Nothing fails by itself any more.
    pub calm: bool,
}

impl Worker {
    pub fn new(me: usize, rng: &mut Rng) -> Self {
        let mut spec = testing::node_spec(*rng.pick(&[2, 4, 8, 8]));
        if spec.devices.len() == 4 {
            played::on_numa_nodes(&mut spec.devices, Some(2));
        }
        spec.host = format!("10.0.0.{me}").into();
        if rng.chance(200) {
            // Few ports, so that they run out.
            spec.ports = spec.ports.map(|p| crate::node::PortRange { last: p.first + 2, ..p });
        }
        if rng.chance(400) {
            for device in &mut spec.devices {
                device.sharing = *rng.pick(&Sharing::ALL);
            }
        }
        Self {
            me,
            name: NodeName::new(&format!("n{}", me + 1)).expect("a valid name"),
            spec: Arc::new(spec),
            up: true,
            incarnation: Incarnation(1),
            registered: false,
            launches: BTreeMap::new(),
            copies: BTreeSet::new(),
            desired: Desired::default(),
            index: 0,
            calls: 0,
            open: None,
            calm: false,
        }
    }

    /// The agent dies; with `all`, so do its replicas.
    pub fn crash(&mut self, all: bool) {
        self.up = false;
        self.open = None;
        self.registered = false;
        self.desired = Desired::default();
        self.index = 0;
        if all {
            self.launches.clear();
        }
    }

    pub fn restart(&mut self) {
        self.up = true;
        self.incarnation.0 += 1;
    }

    pub fn tick(&mut self, members: usize, rng: &mut Rng) -> Vec<(Peer, Message)> {
        let mut out = Vec::new();
        if rng.chance(400) {
            for member in 0..members {
                let (node, incarnation) = (self.name.clone(), self.incarnation);
                out.push((Peer::Member(member), Message::Beat { node, incarnation }));
            }
        }
        self.live(rng);
        let actions = if self.index > 0 { diff(&self.desired, &self.actual()) } else { Vec::new() };
        let mut reports = Vec::new();
        for action in actions {
            self.act(action, &mut reports, rng);
        }
        let purged = self.purge();
        let member = Peer::Member(rng.below(members as u64) as usize);
        out.push((member, Message::AskSlice { node: self.name.clone() }));
        // A call without an answer is given up now and then, and made again.
        if self.open.is_none() || rng.chance(80) {
            out.extend(self.call(reports, purged).map(|message| (member, message)));
        }
        out
    }

    /// What replicas do by themselves.
    fn live(&mut self, rng: &mut Rng) {
        for launch in self.launches.values_mut() {
            match launch.condition {
                // Most use all the time that they are given, some less.
                Condition::Stopping if launch.saving > 0 && rng.chance(900) => launch.saving -= 1,
                Condition::Stopping if rng.chance(500) => {
                    launch.condition = Condition::Gone { ok: true, why: Reason::StoppedByUser };
                }
                Condition::Alive if !self.calm && rng.chance(6) => {
                    let ok = rng.chance(400);
                    let why = if ok { Reason::StoppedByUser } else { Reason::RuntimeFailed };
                    launch.condition = Condition::Gone { ok, why };
                }
                Condition::Alive if launch.restart != Restart::Always && !self.calm && rng.chance(4) => {
                    launch.condition = Condition::Gone { ok: true, why: Reason::ExitedNonZero };
                }
                Condition::Alive if launch.stage != Stage::Ready && rng.chance(400) => {
                    launch.stage = if launch.stage == Stage::Scheduled { Stage::Starting } else { Stage::Ready };
                }
                Condition::Alive if launch.stage == Stage::Ready && !self.calm && rng.chance(5) => {
                    launch.stage = Stage::NotReady;
                }
                _ => {}
            }
        }
    }

    fn actual(&self) -> Actual {
        let mut actual = Actual::default();
        for ((id, generation), launch) in &self.launches {
            actual.replicas.entry(*id).or_default().insert(*generation, launch.condition);
            actual.holdings.insert((*id, *generation), launch.holding.clone());
        }
        actual
    }

    fn act(&mut self, action: Action, reports: &mut Vec<(ReplicaId, Report)>, rng: &mut Rng) {
        match action {
            Action::Start(id, generation) => {
                let want = &self.desired.replicas[&id];
                let (restart, holding) = (want.spec.constraints.restart, Holding::of(want));
                self.copies.extend(want.spec.manifest.map(|manifest| (want.spec.tenant.clone(), manifest)));
                let stage = if rng.chance(500) { Stage::Downloading } else { Stage::Starting };
                let launch = Launch { condition: Condition::Alive, stage, restart, holding, saving: 0 };
                self.launches.insert((id, generation), launch);
                self.assert_no_port_is_shared();
            }
            Action::Stop(id, generation, leave) => {
                if let Some(launch) = self.launches.get_mut(&(id, generation)) {
                    launch.condition = Condition::Stopping;
                    launch.saving = leave.grace_ms / STEP_MS;
                }
            }
            Action::Report(id, generation, ok, why) => {
                let kind = ReportKind::Ended { ok, why };
                reports.push((id, Report { job: id.job, replica: id.replica, generation, kind }));
            }
            Action::Forget(id, generation) => drop(self.launches.remove(&(id, generation))),
        }
    }

    /// Removes the copies that may be kept no more.
    fn purge(&mut self) -> Vec<(Digest16, u64)> {
        let actual = self.actual();
        let mut purged = Vec::new();
        for purge in self.desired.purgeable(&actual) {
            self.copies.remove(&(purge.tenant.clone(), purge.manifest));
            purged.push((purge.copy, purge.placed));
        }
        purged
    }

    /// A port serves one replica, whatever the group has decided meanwhile.
    fn assert_no_port_is_shared(&self) {
        let mut ports = std::collections::BTreeSet::new();
        let here = self.launches.values().filter(|launch| !matches!(launch.condition, Condition::Gone { .. }));
        for port in here.filter_map(|launch| launch.holding.port) {
            assert!(ports.insert(port), "node {}: two replicas on port {port}: {:?}", self.name, self.launches);
        }
    }

    fn call(&mut self, ended: Vec<(ReplicaId, Report)>, purged: Vec<(Digest16, u64)>) -> Option<Message> {
        let (said, intent) = if self.registered {
            let news = |((id, generation), launch): (&(ReplicaId, Generation), &Launch)| {
                let want = self.desired.replicas.get(id).filter(|want| want.generation == *generation)?;
                let new = matches!(launch.condition, Condition::Alive) && want.stage != Some(launch.stage);
                new.then_some((*id, *generation, launch.stage))
            };
            let stages: Vec<_> = self.launches.iter().filter_map(news).collect();
            let stage = |(id, generation, stage): &(ReplicaId, Generation, Stage)| Report {
                job: id.job,
                replica: id.replica,
                generation: *generation,
                kind: ReportKind::Stage(*stage),
            };
            let reports: Vec<Report> = stages.iter().map(stage).chain(ended.into_iter().map(|(_, r)| r)).collect();
            let (node, incarnation) = (self.name.clone(), self.incarnation);
            let intent = match (reports.is_empty(), purged.is_empty()) {
                (false, _) => Intent::Reports { node, incarnation, reports },
                (true, false) => Intent::Purged { node, incarnation, copies: purged },
                (true, true) => {
                    self.open = None;
                    return None;
                }
            };
            (Said::Reported, intent)
        } else {
            let (name, kind) = (self.name.clone(), NodeKind::Worker);
            let (incarnation, spec) = (self.incarnation, self.spec.clone());
            (Said::Registered, Intent::Register { name, kind, incarnation, spec })
        };
        self.calls += 1;
        self.open = Some((self.calls, said));
        Some(Message::Call { from: Peer::Worker(self.me), call: self.calls, intent: Arc::new(intent), hops: 0 })
    }

    pub fn on_message(&mut self, message: Message) {
        match message {
            // A member that lags behind has nothing new to say.
            Message::Slice { index, desired } if index >= self.index && self.registered => {
                self.index = index;
                self.desired = desired;
            }
            Message::Reply { call, reply } if self.open.as_ref().is_some_and(|(open, _)| *open == call) => {
                let Some((_, said)) = self.open.take() else { return };
                if let (Said::Registered, Ok(_)) = (said, &reply.result) {
                    self.registered = true;
                    // A slice from before would not know this incarnation.
                    self.index = 0;
                }
            }
            Message::Retry { call } if self.open.as_ref().is_some_and(|(open, _)| *open == call) => self.open = None,
            _ => {}
        }
    }

    /// Everything wanted runs and nothing else is there.
    pub fn is_settled(&self) -> bool {
        self.up
            && self.registered
            && self.launches.values().all(|l| l.condition == Condition::Alive && l.stage == Stage::Ready)
            && self.launches.len() == self.desired.replicas.len()
    }
}
