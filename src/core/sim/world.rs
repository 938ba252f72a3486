//! The world: virtual time, who is there, what breaks and when, and when all is
//! well again.

use super::client::Client;
use super::disk::WriteId;
use super::member::{Effect, Member};
use super::net::{Message, Net, Peer};
use super::oracle::Oracle;
use super::rng::Rng;
use super::worker::Worker;
use super::{Options, Report};
use crate::command::Batch;
use crate::consent;
use crate::id::TenantId;
use crate::job::{Job, Phase, Replica, Stage};
use crate::placement::{explain, queue};
use crate::reason::Reason;
use crate::state::State;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How long things break.
const FAULTS_MS: u64 = 10_000;
/// How long the world may take to settle afterwards: longer than the longest back-off.
const HEALING_MS: u64 = 400_000;
const TICK_MS: u64 = 20;

#[derive(Debug)]
enum Event {
    Tick,
    Fault,
    Deliver { from: Peer, to: Peer, message: Message },
    Synced { member: usize, life: u64 },
    Write { life: u64, term: u64, write: WriteId, batch: Batch },
    MemberUp(usize),
    WorkerUp(usize),
}

/// See the module's text.
pub struct World {
    seed: u64,
    now: u64,
    rng: Rng,
    /// By time, then by the order in which they were set off.
    agenda: BTreeMap<(u64, u64), Event>,
    set_off: u64,
    members: Vec<Member>,
    clients: Vec<Client>,
    workers: Vec<Worker>,
    net: Net,
    oracle: Oracle,
    healing: bool,
    faults_until: u64,
    sync_ms: u64,
    trace: u64,
    events: u64,
    crashes: u64,
    verbose: bool,
}

impl World {
    pub fn new(seed: u64, options: &Options) -> Self {
        let mut rng = Rng::new(seed);
        let members = options.members.unwrap_or(*rng.pick(&[3, 3, 5]));
        let workers = rng.between(2, 4) as usize;
        let mut world = Self {
            seed,
            now: 0,
            agenda: BTreeMap::new(),
            set_off: 0,
            members: (0..members).map(|me| Member::new(me, members, options)).collect(),
            clients: (0..rng.between(3, 5) as usize).map(Client::new).collect(),
            workers: (0..workers).map(|me| Worker::new(me, &mut rng)).collect(),
            net: Net { lost: 10, doubled: 20, group: vec![0; members], cut: vec![false; workers] },
            oracle: Oracle::default(),
            healing: false,
            faults_until: if options.faults_ms == 0 { FAULTS_MS } else { options.faults_ms },
            sync_ms: 4,
            trace: 0xcbf2_9ce4_8422_2325,
            events: 0,
            crashes: 0,
            verbose: options.verbose,
            rng,
        };
        for member in &mut world.members {
            member.skew = world.rng.between(0, 3_000) as i64 - 1_500;
            member.raft.election_at = world.rng.between(50, 400);
        }
        world.at(0, Event::Tick);
        world.at(500, Event::Fault);
        world
    }

    pub fn run(mut self) -> Report {
        let end = self.faults_until + HEALING_MS;
        let mut settled = false;
        while self.oracle.violations.is_empty() && !settled {
            let Some(((time, _), event)) = self.agenda.pop_first() else { break };
            self.now = time;
            self.events += 1;
            self.note(&event);
            let look = matches!(event, Event::Tick) && self.healing && self.now % 1_000 < TICK_MS;
            self.step(event);
            settled = look && self.is_settled();
            if self.now > end {
                let what = self.unsettled();
                self.oracle.bad(format!("not settled {} s after the last fault: {what}", HEALING_MS / 1000));
            }
        }
        if self.oracle.violations.is_empty() {
            let state = &self.members[0].state;
            self.oracle.settle(state);
            if let Some(text) = unplaced(state) {
                self.oracle.bad(text);
            }
        }
        self.report()
    }

    fn report(self) -> Report {
        Report {
            seed: self.seed,
            trace_hash: self.trace,
            virtual_ms: self.now,
            events: self.events,
            members: self.members.len(),
            entries: self.oracle.entries(),
            superseded: self.oracle.superseded,
            moves: self.oracle.moves,
            taken_over: self.oracle.taken_over,
            rolled: self.oracle.rolled,
            withdrawn: self.oracle.withdrawn,
            gave_way: self.oracle.gave_way,
            told: self.oracle.told,
            unpaid: unpaid(&self.members[0].state),
            acked: self.oracle.acked(),
            live: self.oracle.live(),
            terms: self.members.iter().map(|m| m.raft.disk.term).max().unwrap_or(0),
            crashes: self.crashes,
            violations: self.oracle.violations,
        }
    }

    fn at(&mut self, time: u64, event: Event) {
        self.set_off += 1;
        self.agenda.insert((time, self.set_off), event);
    }

    /// Adds the event to the trace.
    fn note(&mut self, event: &Event) {
        let code = match event {
            Event::Tick => 1,
            Event::Fault => 2,
            Event::Deliver { from, to, message } => {
                let mut code = 3 + 64 * place(*from) + 4096 * place(*to);
                if let Message::Append { entries, commit, .. } = message {
                    code += (1 + entries.len() as u64 + 64 * *commit as u64) << 20;
                }
                code
            }
            Event::Synced { member, .. } => 4 + 64 * *member as u64,
            Event::Write { write, batch, .. } => 5 + 64 * write.seq + 4096 * batch.commands.len() as u64,
            Event::MemberUp(member) => 6 + 64 * *member as u64,
            Event::WorkerUp(worker) => 7 + 64 * *worker as u64,
        };
        let hash = self.members.iter().fold(0, |sum: u64, m| sum.wrapping_add(m.state.hash() as u64));
        for word in [self.now, code, hash] {
            self.trace = (self.trace ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        }
        if self.verbose && !matches!(event, Event::Tick) {
            eprintln!("{:>7} {event:?}", self.now);
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Tick => self.tick(),
            Event::Fault => self.fault(),
            Event::Deliver { from, to, message } => self.deliver(from, to, message),
            Event::Synced { member, life } => {
                let m = &mut self.members[member];
                if m.up && m.life == life {
                    m.on_synced(self.now, &mut self.oracle, &mut self.rng);
                    self.carry_out(member);
                }
            }
            Event::Write { life, term, write, batch } => {
                let m = &mut self.members[write.member];
                if m.up && m.life == life {
                    m.on_write(term, write, &batch, self.now, &mut self.oracle, &mut self.rng);
                    self.carry_out(write.member);
                }
            }
            Event::MemberUp(member) => self.member_up(member),
            Event::WorkerUp(worker) => {
                if !self.workers[worker].up {
                    self.workers[worker].restart();
                }
            }
        }
    }

    fn member_up(&mut self, member: usize) {
        if !self.members[member].up {
            self.members[member].restart(self.now, &mut self.oracle, &mut self.rng);
        }
    }

    fn tick(&mut self) {
        self.at(self.now + TICK_MS, Event::Tick);
        if self.now >= self.faults_until && !self.healing {
            self.heal();
        }
        for member in 0..self.members.len() {
            if self.members[member].up {
                self.members[member].tick(self.now, &mut self.oracle, &mut self.rng);
                self.carry_out(member);
            }
        }
        let (members, nodes) = (self.members.len(), self.workers.len());
        for client in 0..self.clients.len() {
            for (to, message) in self.clients[client].tick(self.now, members, nodes, &mut self.rng) {
                self.send(Peer::Client(client), to, message);
            }
        }
        if self.now.is_multiple_of(5 * TICK_MS) {
            for worker in 0..nodes {
                if !self.workers[worker].up {
                    continue;
                }
                for (to, message) in self.workers[worker].tick(members, &mut self.rng) {
                    self.send(Peer::Worker(worker), to, message);
                }
            }
        }
    }

    fn deliver(&mut self, from: Peer, to: Peer, message: Message) {
        match to {
            Peer::Member(member) if self.members[member].up => {
                if let Peer::Member(from) = from {
                    let wall = self.members[from].wall(self.now);
                    self.members[member].heard_clock(from, wall, self.now);
                }
                self.members[member].on_message(from, message, self.now, &mut self.oracle, &mut self.rng);
                self.carry_out(member);
            }
            Peer::Member(_) => {}
            Peer::Client(client) => self.clients[client].on_message(message, self.now, &mut self.oracle),
            Peer::Worker(worker) if self.workers[worker].up => self.workers[worker].on_message(message),
            Peer::Worker(_) => {}
        }
    }

    fn send(&mut self, from: Peer, to: Peer, message: Message) {
        for late in self.net.deliveries(from, to, &mut self.rng) {
            self.at(self.now + late, Event::Deliver { from, to, message: message.clone() });
        }
    }

    /// Does what a member wants done.
    fn carry_out(&mut self, member: usize) {
        for effect in std::mem::take(&mut self.members[member].effects) {
            match effect {
                Effect::Send(to, message) => self.send(Peer::Member(member), to, message),
                Effect::Write(at, term, write, batch) => {
                    let life = self.members[member].life;
                    self.at(at.max(self.now), Event::Write { life, term, write, batch });
                }
            }
        }
        let m = &mut self.members[member];
        if m.raft.disk.is_dirty() && !m.sync_pending {
            m.sync_pending = true;
            let life = m.life;
            let late = self.rng.between(1, self.sync_ms);
            self.at(self.now + late, Event::Synced { member, life });
        }
    }

    fn fault(&mut self) {
        if self.healing {
            return;
        }
        let next = self.now + self.rng.between(100, 900);
        self.at(next, Event::Fault);
        let member = self.rng.below(self.members.len() as u64) as usize;
        let leader = self.members.iter().position(|m| m.up && m.raft.is_leader());
        // Leaders are where the trouble is.
        let member = leader.filter(|_| self.rng.chance(500)).unwrap_or(member);
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        match self.rng.below(12) {
            0..3 => self.crash(member),
            3..5 => self.net.group[member] = self.rng.below(3) as u8,
            5 => self.net.group.iter_mut().for_each(|group| *group = self.rng.below(2) as u8),
            6..8 => self.net.group.fill(0),
            8 => {
                let all = self.rng.chance(500);
                self.workers[worker].crash(all);
                let back = self.now + self.rng.between(100, 7_000);
                self.at(back, Event::WorkerUp(worker));
            }
            9 => self.net.cut[worker] = !self.net.cut[worker],
            10 => {
                self.members[member].stalled_until = self.now + self.rng.between(50, 800);
                self.skew(member);
            }
            _ => {
                self.net.lost = *self.rng.pick(&[0, 10, 50, 200]);
                self.sync_ms = *self.rng.pick(&[1, 4, 30, 120]);
            }
        }
    }

    /// Sets a member's clock: a little wrong, or, one at a time, by more than requests are remembered for.
    fn skew(&mut self, member: usize) {
        let little = |rng: &mut Rng| rng.between(0, 4_000) as i64 - 2_000;
        self.members[member].skew = little(&mut self.rng);
        if self.rng.chance(300) {
            for other in self.members.iter_mut().filter(|m| m.skew.abs() > 2_000) {
                other.skew = little(&mut self.rng);
            }
            let far = *self.rng.pick(&[-20 * 60_000, 20 * 60_000]);
            self.members[member].skew = far;
        }
    }

    fn crash(&mut self, member: usize) {
        if !self.members[member].up {
            return;
        }
        self.crashes += 1;
        // Now and then the power goes for all at once.
        let all = self.rng.chance(150);
        for victim in 0..self.members.len() {
            if (victim == member || all) && self.members[victim].up {
                self.members[victim].crash(&mut self.rng);
                let back = self.now + self.rng.between(20, 2_000);
                self.at(back, Event::MemberUp(victim));
            }
        }
    }

    /// No more faults: everyone is up, heard, and wants to come to an end.
    fn heal(&mut self) {
        self.healing = true;
        self.net.heal();
        self.sync_ms = 4;
        for member in 0..self.members.len() {
            self.member_up(member);
            self.members[member].stalled_until = 0;
            self.members[member].impatience = 0;
            self.members[member].misleads = 0;
        }
        self.clients.iter_mut().for_each(|client| client.winding_down = true);
        for worker in &mut self.workers {
            if !worker.up {
                worker.restart();
            }
            worker.calm = true;
        }
    }

    fn is_settled(&self) -> bool {
        self.unsettled().is_empty()
    }

    /// What is not as it should be in the end.
    fn unsettled(&self) -> String {
        let first = &self.members[0];
        let mut out = Vec::new();
        if self.members.iter().any(|m| m.applied != first.applied) {
            out.push("members have not applied the same".to_owned());
        }
        if !self.members.iter().any(|m| m.shell.as_ref().is_some_and(|shell| shell.is_idle())) {
            out.push("no leader is idle".to_owned());
        }
        out.extend(
            (0..self.clients.len()).filter(|c| !self.clients[*c].is_done()).map(|c| format!("client {c} waits")),
        );
        out.extend(
            self.workers.iter().filter(|w| !w.is_settled()).map(|w| format!("{} is not settled: {w:?}", w.name)),
        );
        for job in first.state.jobs().values() {
            for (i, replica) in job.replicas.iter().enumerate() {
                let fine = match &replica.phase {
                    Phase::Held { stage, .. } => *stage == Stage::Ready,
                    // Log time stands still while there is nothing to write.
                    Phase::Waiting { not_before_ms, .. } => *not_before_ms <= super::EPOCH_MS + self.now,
                    Phase::Stopping { .. } => false,
                    _ => true,
                } && replica.other_allocation().is_none();
                if !fine {
                    out.push(format!("{} replica {i} is {:?}", job.request, replica.phase));
                }
            }
        }
        // A rollout rests, or waits as its replicas do: for room, or for a node to come back into use. One whose service
        // lets nobody be missing waits for room beside each of them, and none goes back to what is let in no more.
        for job in first.state.rollouts() {
            let held = |r: &Replica| r.allocation().is_none_or(|alloc| crate::rollout::stays(&first.state, alloc));
            let spares = (0..job.replicas.len()).any(|i| crate::disruption::allows(job, &[i as u16]));
            let to = job.target_revision();
            let let_in = |r: &Replica| crate::trust::judge_change(&first.state, job, r.revision, to).is_ok();
            if spares && job.replicas.iter().all(|r| !r.is_waiting() && held(r) && let_in(r)) {
                out.push(format!("the rollout of {} has not come to rest: {:?}", job.request, job.rollout));
            }
        }
        out.extend(self.workers.iter().flat_map(|worker| kept(&first.state, worker)));
        out.extend(unplaced(&first.state));
        out.join("; ")
    }
}

/// Jobs that wait for a budget.
fn unpaid(state: &State) -> usize {
    let waits = |job: &Arc<Job>| explain::blockers(state, job).iter().any(|b| b.reason == Reason::BudgetExhausted);
    queue::waiters(state, usize::MAX).iter().filter(|job| waits(job)).count()
}

/// Copies of personal data that a node has and should not, or that the group has forgotten there.
fn kept(state: &State, worker: &Worker) -> Vec<String> {
    let Some(node) = state.node_named(&worker.name) else { return Vec::new() };
    let bad = |(tenant, manifest): &(TenantId, [u8; 32])| {
        let key = consent::copy_key(tenant, manifest);
        let known = state.copies_on(node.no).find(|(copy, _)| *copy == key);
        match known {
            Some((_, copy)) if consent::may_keep(state, copy) => None,
            Some(_) => Some(format!("{} still has data that {tenant} consents to no more", worker.name)),
            None => Some(format!("{} has data about people of {tenant} that the group knows nothing of", worker.name)),
        }
    };
    worker.copies.iter().filter_map(bad).collect()
}

/// The first waiter that waits for room, although there is room for it; each that
/// has no reason to wait at all. (Behind the first, room may be kept for it.)
pub fn unplaced(state: &State) -> Option<String> {
    // Open claims keep their nodes, whoever else they would do for.
    if crate::claim::open(state).next().is_some() {
        return None;
    }
    let mut behind = false;
    for job in queue::waiters(state, usize::MAX) {
        let reasons: Vec<Reason> = explain::blockers(state, &job).iter().map(|b| b.reason).collect();
        let own = [Reason::ExceedsMaxQuota, Reason::BudgetExhausted, Reason::ConsentRevoked, Reason::Backoff];
        // A quota of one type of device may stand in the way of that type alone, and room in that of the others.
        let quota = match state.typed.is_empty() {
            true => reasons.contains(&Reason::WaitingForQuota),
            false => reasons.iter().all(|reason| *reason == Reason::WaitingForQuota),
        };
        match reasons.as_slice() {
            [] => return Some(format!("{} waits without a reason", job.request)),
            // What one that waits for its quota will have is kept for it.
            [Reason::Priority] if behind => {}
            [Reason::Priority] => return Some(format!("{} waits behind nobody who waits for room", job.request)),
            some if quota || some.iter().any(|reason| own.contains(reason)) => behind = true,
            _ => return None,
        }
    }
    None
}

/// A number for a peer, for the trace.
fn place(peer: Peer) -> u64 {
    match peer {
        Peer::Member(m) => m as u64,
        Peer::Client(c) => 16 + c as u64,
        Peer::Worker(w) => 32 + w as u64,
    }
}
