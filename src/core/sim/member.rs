//! One member: Raft, the applied state with its rows, and, on a leader, the real
//! proposer in its shell and the real control loop. Everything it wants done goes
//! out as effects; it does not know time or the network.

use super::client;
use super::disk::{Entry, WriteId};
use super::mixed;
use super::net::{Message, Peer};
use super::oracle::Oracle;
use super::raft::Raft;
use super::rng::Rng;
use super::shell::{Caller, Shell};
use crate::apply::apply_batch;
use crate::clock::Clocks;
use crate::codec;
use crate::command::Batch;
use crate::consent::Consent;
use crate::control::{self, NetworkFault, Now, Timeouts};
use crate::id::{Incarnation, MemberId, NodeName};
use crate::placement::pass;
use crate::plan::{Intent, Reply, plan};
use crate::reconcile;
use crate::state::State;
use crate::tenant::{Quota, Tenant};
use std::sync::Arc;

/// Calls that wait here while there is no leader.
const PARKED: usize = 64;
/// How often a leader looks around.
const CONTROL_MS: u64 = 250;
pub const TIMEOUTS: Timeouts = Timeouts {
    suspect_ms: 1_000,
    unknown_ms: 2_500,
    down_ms: 5_000,
    fault: NetworkFault { percent: 50, down_ms: 9_000 },
};

/// What a member wants done.
#[derive(Debug)]
pub enum Effect {
    Send(Peer, Message),
    /// A write on its way to Raft, arriving at this time.
    Write(u64, u64, WriteId, Batch),
}

/// One member of the group.
#[derive(Debug)]
pub struct Member {
    pub me: usize,
    pub up: bool,
    /// Counts restarts; what an earlier life set off is void.
    pub life: u64,
    pub raft: Raft,
    pub state: State,
    pub applied: usize,
    pub shell: Option<Shell>,
    shells: u64,
    parked: Vec<(Caller, Arc<Intent>)>,
    /// Its clock's error in milliseconds.
    pub skew: i64,
    /// What it knows of the others' clocks.
    clocks: Clocks,
    /// The shell notices nothing until then.
    pub stalled_until: u64,
    pub sync_pending: bool,
    /// Of a thousand ticks, how many make its shell give up on a write.
    pub impatience: u64,
    /// Of a thousand ticks of a new leader, how many make it write an unsound entry first.
    pub misleads: u64,
    /// The last term in which it did.
    misled: u64,
    /// Planted bug: writes go into whatever term there is.
    pub unpinned: bool,
    control_at: u64,
    pub effects: Vec<Effect>,
}

impl Member {
    pub fn new(me: usize, members: usize, options: &super::Options) -> Self {
        Self {
            me,
            up: true,
            life: 0,
            raft: Raft::new(me, members, options.ack_before_sync),
            state: State::new(),
            applied: 0,
            shell: None,
            shells: 0,
            parked: Vec::new(),
            skew: 0,
            clocks: Clocks::default(),
            stalled_until: 0,
            sync_pending: false,
            impatience: 20,
            misleads: 300,
            misled: 0,
            unpinned: options.unpinned,
            control_at: 0,
            effects: Vec::new(),
        }
    }

    /// What its clock says.
    pub fn wall(&self, now: u64) -> u64 {
        (super::EPOCH_MS + now).saturating_add_signed(self.skew)
    }

    /// Another member's clock was heard, as it is with each message.
    pub fn heard_clock(&mut self, of: usize, wall_ms: u64, now: u64) {
        self.clocks.heard(MemberId(of as u64), wall_ms, now * 1000);
    }

    /// Log time, while it leads.
    fn log_ms(&mut self, now: u64) -> u64 {
        let voters: Vec<_> = (0..self.raft.members).map(|member| MemberId(member as u64)).collect();
        let wall = self.wall(now);
        let median = self.clocks.median(&voters, MemberId(self.me as u64), wall, now * 1000);
        self.shell.as_mut().map_or(wall, |shell| shell.clock.read(median, now * 1000))
    }

    fn send(&mut self, to: Peer, message: Message) {
        self.effects.push(Effect::Send(to, message));
    }

    pub fn crash(&mut self, rng: &mut Rng) {
        self.up = false;
        self.life += 1;
        self.shell = None;
        self.parked.clear();
        self.sync_pending = false;
        self.raft.out.clear();
        self.raft.discarded.clear();
        self.raft.disk.crash(rng);
    }

    pub fn restart(&mut self, now: u64, oracle: &mut Oracle, rng: &mut Rng) {
        self.up = true;
        self.clocks = Clocks::default();
        match self.raft.disk.load() {
            Ok((state, applied)) => {
                oracle.on_loaded(self.me, applied, &state);
                (self.state, self.applied) = (state, applied);
            }
            Err(error) => oracle.bad(format!("member {} can't read its rows: {error}", self.me)),
        }
        self.raft.restart(self.applied, now, rng);
    }

    pub fn tick(&mut self, now: u64, oracle: &mut Oracle, rng: &mut Rng) {
        self.raft.tick(now, rng);
        self.after_raft(now, oracle, rng);
        if let Some(shell) = self.shell.as_mut().filter(|_| rng.chance(self.impatience)) {
            shell.lose_patience();
        }
        if now >= self.stalled_until {
            self.lead(now, rng);
        }
        if self.shell.is_none() && self.raft.leader.is_some_and(|leader| leader != self.me) {
            for (caller, intent) in std::mem::take(&mut self.parked) {
                self.take_call(caller, intent, now, rng);
            }
        }
    }

    pub fn on_message(&mut self, from: Peer, message: Message, now: u64, oracle: &mut Oracle, rng: &mut Rng) {
        match message {
            Message::Call { from, call, intent, hops } => {
                self.take_call(Caller { from, call, hops }, intent, now, rng);
            }
            Message::Beat { node, incarnation } => self.heard(&node, incarnation, now),
            Message::AskSlice { node } => {
                if let Some(node) = self.state.node_named(&node) {
                    let desired = reconcile::desired(&self.state, node.no);
                    self.send(from, Message::Slice { index: self.applied, desired });
                }
            }
            message => {
                if let Peer::Member(from) = from {
                    self.raft.on_message(from, message, now, rng);
                    self.after_raft(now, oracle, rng);
                }
            }
        }
    }

    pub fn on_synced(&mut self, now: u64, oracle: &mut Oracle, rng: &mut Rng) {
        self.sync_pending = false;
        self.raft.on_synced();
        self.after_raft(now, oracle, rng);
    }

    /// A write of this member's shell reaches Raft.
    pub fn on_write(&mut self, term: u64, write: WriteId, batch: &Batch, now: u64, oracle: &mut Oracle, rng: &mut Rng) {
        let pinned = (!self.unpinned).then_some(term);
        if self.raft.write(pinned, write, codec::encode(batch)) {
            self.after_raft(now, oracle, rng);
        } else {
            self.raft.discarded.push(write);
            self.after_raft(now, oracle, rng);
        }
    }

    /// Carries out what Raft's step made due.
    fn after_raft(&mut self, now: u64, oracle: &mut Oracle, rng: &mut Rng) {
        for (to, message) in std::mem::take(&mut self.raft.out) {
            self.send(to, message);
        }
        if let Some(text) = self.raft.broken.take() {
            oracle.bad(text);
        }
        while self.applied < self.raft.commit {
            let entry = self.raft.disk.log[self.applied].clone();
            self.applied += 1;
            self.apply(&entry, oracle, rng);
        }
        for write in std::mem::take(&mut self.raft.discarded) {
            if let Some(shell) = self.shell.as_mut().filter(|_| write.member == self.me) {
                shell.unknown(write);
            }
        }
        self.pump(now, rng);
    }

    fn apply(&mut self, entry: &Entry, oracle: &mut Oracle, rng: &mut Rng) {
        let index = self.applied;
        let before = self.state.speculative();
        let batch = match entry.bytes.as_deref().map(codec::decode::<Batch>) {
            None => None,
            Some(Ok(batch)) => Some(batch),
            Some(Err(error)) => return oracle.bad(format!("entry {index}: {error}")),
        };
        let outcome = batch.as_ref().map(|batch| apply_batch(&mut self.state, batch));
        let changes = self.state.take_changes();
        let both = batch.as_ref().zip(outcome.as_ref());
        oracle.on_applied(self.me, index, entry, both, &before, &self.state, &changes);
        self.raft.disk.write_rows(&changes, index, rng);
        let own = entry.write.filter(|write| write.member == self.me);
        if let (Some(shell), Some(write), Some(outcome)) = (&mut self.shell, own, outcome) {
            shell.applied(write, outcome, &self.state, index);
        }
        if self.shell.as_ref().is_some_and(|shell| shell.divergences() > 0) {
            oracle.bad(format!("member {}: the proposer's speculation was wrong at {index}", self.me));
        }
    }

    /// Begins, ends and drives a leader's work.
    fn lead(&mut self, now: u64, rng: &mut Rng) {
        let term = self.raft.disk.term;
        let leads = self.raft.is_leader();
        if self.shell.as_ref().is_some_and(|shell| !leads || shell.term != term)
            && let Some(shell) = self.shell.take()
        {
            for (caller, intent) in shell.into_calls() {
                self.take_call(caller, intent, now, rng);
            }
        }
        let own_term_applied = self.applied > 0 && self.raft.disk.log[self.applied - 1].term == term;
        let all_applied = own_term_applied && self.applied == self.raft.disk.log.len();
        if leads && self.shell.is_none() && all_applied && self.misled != term && rng.chance(self.misleads) {
            self.mislead(term, now, rng);
        } else if leads && self.shell.is_none() && all_applied {
            self.shells += 1;
            // Numbers of different lives must differ, too.
            let no = self.life * 10_000 + self.shells;
            self.shell = Some(Shell::new(no, term, &self.state, now));
            for (caller, intent) in std::mem::take(&mut self.parked) {
                self.take_call(caller, intent, now, rng);
            }
        }
        if now >= self.control_at {
            self.control_at = now + CONTROL_MS;
            let wall_ms = self.log_ms(now).max(self.state.meta().now_ms);
            if let Some(shell) = &mut self.shell {
                let intents = control::step(
                    &self.state,
                    &mut shell.seen,
                    &TIMEOUTS,
                    Now { mono_ms: now, wall_ms, unheard_ms: 0 },
                );
                for intent in intents {
                    // What does not fit in is found again by the next step.
                    let _ = shell.offer(None, intent);
                }
            }
        }
        self.pump(now, rng);
    }

    /// Writes what a planner with a bug would: placements as if there were no quotas, and as if everybody had
    /// consented, before the real proposer begins. Apply has to see what is wrong with them.
    fn mislead(&mut self, term: u64, now: u64, rng: &mut Rng) {
        self.misled = term;
        let mut lifted = self.state.speculative();
        let tenants: Vec<_> = lifted.tenants().values().cloned().collect();
        for tenant in tenants {
            let quota = Quota { gpu_milli: Some(u64::MAX), ..Quota::default() };
            lifted.put_tenant(Tenant { quota, ..(*tenant).clone() });
            let consent = mixed::consent(tenant.id.clone(), self.wall(now), rng);
            lifted.put_consent(Consent { until_ms: u64::MAX, ..consent });
        }
        let mut commands = pass::pass(&lifted, 4);
        commands.extend(plan(&lifted, &client::greedy(self.me, term, rng)).unwrap_or_default().commands);
        // Unsound in what it decides, not in its stamp.
        let at_ms = self.state.meta().now_ms;
        let batch = Batch { base: self.state.meta().base, at_ms, commands, ..Batch::default() };
        let write = WriteId { member: self.me, shell: 0, seq: 0 };
        self.raft.write(Some(term), write, codec::encode(&batch));
    }

    fn heard(&mut self, node: &NodeName, incarnation: Incarnation, now: u64) {
        let known = self.state.node_named(node).filter(|node| node.incarnation == incarnation);
        if let (Some(shell), Some(node)) = (&mut self.shell, known) {
            shell.seen.heard(node.no, now);
        }
    }

    fn take_call(&mut self, caller: Caller, intent: Arc<Intent>, now: u64, rng: &mut Rng) {
        if let Some(shell) = &mut self.shell {
            if !shell.offer(Some(caller.clone()), (*intent).clone()) {
                self.send(caller.from, Message::Retry { call: caller.call });
            }
            return self.pump(now, rng);
        }
        match self.raft.leader.filter(|leader| *leader != self.me && caller.hops < 3) {
            Some(leader) => {
                let Caller { from, call, hops } = caller;
                self.send(Peer::Member(leader), Message::Call { from, call, intent, hops: hops + 1 });
            }
            None if self.parked.len() < PARKED => self.parked.push((caller, intent)),
            None => self.send(caller.from, Message::Retry { call: caller.call }),
        }
    }

    /// Moves the shell on: fates to the proposer, its entries to Raft, its answers to callers.
    fn pump(&mut self, now: u64, rng: &mut Rng) {
        if now < self.stalled_until {
            return;
        }
        let at_ms = self.log_ms(now);
        let Some(shell) = &mut self.shell else { return };
        let mut replies: Vec<(Caller, Reply)> = shell.drain(&self.state);
        let (entries, more) = shell.pump(at_ms);
        replies.extend(more);
        let worn = shell.exhausted();
        for (seq, batch) in entries {
            shell.write_at = shell.write_at.max(now + if rng.chance(50) { rng.between(5, 80) } else { 0 });
            let write = WriteId { member: self.me, shell: shell.no, seq };
            self.effects.push(Effect::Write(shell.write_at, shell.term, write, batch));
        }
        for (caller, reply) in replies {
            self.send(caller.from, Message::Reply { call: caller.call, reply: Box::new(reply) });
        }
        for caller in worn {
            self.send(caller.from, Message::Retry { call: caller.call });
        }
    }
}
