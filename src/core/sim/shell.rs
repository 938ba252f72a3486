//! What stands around the proposer on a leader: who called, which writes are on
//! their way, and what became of them, told to the proposer in the order in which
//! it wrote. The product's shell is `raft::proposer`; this one keeps its rules.

use super::disk::WriteId;
use super::net::Peer;
use crate::apply::BatchOutcome;
use crate::clock::LogClock;
use crate::command::Batch;
use crate::control::Observations;
use crate::plan::{Intent, Reply};
use crate::proposer::{Proposer, Ticket};
use crate::state::State;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What became of a write.
#[derive(Debug)]
enum Fate {
    Pending,
    Applied(BatchOutcome, State, usize),
    Unknown,
}

/// Who waits for a ticket: the caller, its name for the call, what it wants, and hops so far.
#[derive(Clone, Debug)]
pub struct Caller {
    pub from: Peer,
    pub call: u64,
    pub hops: u8,
}

/// One proposer's life: one term of one leader.
#[derive(Debug)]
pub struct Shell {
    pub no: u64,
    pub term: u64,
    proposer: Proposer,
    callers: BTreeMap<Ticket, Caller>,
    next_ticket: Ticket,
    writes: VecDeque<(u64, Fate)>,
    next_write: u64,
    pub seen: Observations,
    pub clock: LogClock,
    /// When the last write arrives: they overtake each other never.
    pub write_at: u64,
}

impl Shell {
    pub fn new(no: u64, term: u64, applied: &State, mono_ms: u64) -> Self {
        Self {
            no,
            term,
            proposer: Proposer::new(applied),
            callers: BTreeMap::new(),
            next_ticket: 1,
            writes: VecDeque::new(),
            next_write: 1,
            seen: Observations::new(mono_ms),
            clock: LogClock::begin(applied.meta().now_ms, mono_ms * 1000),
            write_at: 0,
        }
    }

    /// Takes a call, or the leader's own intent. False when too many wait.
    pub fn offer(&mut self, caller: Option<Caller>, intent: Intent) -> bool {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let taken = self.proposer.offer(ticket, intent);
        if let (true, Some(caller)) = (taken, caller) {
            self.callers.insert(ticket, caller);
        }
        taken
    }

    /// The next entries to write, stamped with `at_ms`, and calls that are answered without one.
    pub fn pump(&mut self, at_ms: u64) -> (Vec<(u64, Batch)>, Vec<(Caller, Reply)>) {
        let (mut entries, mut replies) = (Vec::new(), Vec::new());
        loop {
            let (entry, answered) = self.proposer.next_entry(at_ms);
            replies.extend(self.called(answered));
            let Some(batch) = entry else { return (entries, replies) };
            let seq = self.next_write;
            self.next_write += 1;
            self.writes.push_back((seq, Fate::Pending));
            entries.push((seq, batch));
        }
    }

    fn called(&mut self, answered: Vec<(Ticket, Reply)>) -> Vec<(Caller, Reply)> {
        let callers = &mut self.callers;
        answered.into_iter().filter_map(|(ticket, reply)| Some((callers.remove(&ticket)?, reply))).collect()
    }

    pub fn applied(&mut self, write: WriteId, outcome: BatchOutcome, after: &State, index: usize) {
        self.settle(write, Fate::Applied(outcome, after.speculative(), index));
    }

    /// Gives up waiting for the oldest write, which may yet be committed.
    pub fn lose_patience(&mut self) {
        if let Some((_, fate @ Fate::Pending)) = self.writes.front_mut() {
            *fate = Fate::Unknown;
        }
    }

    pub fn unknown(&mut self, write: WriteId) {
        self.settle(write, Fate::Unknown);
    }

    fn settle(&mut self, write: WriteId, fate: Fate) {
        if write.shell != self.no {
            return;
        }
        let slot = self.writes.iter_mut().find(|(seq, fate)| *seq == write.seq && matches!(fate, Fate::Pending));
        if let Some((_, slot)) = slot {
            *slot = fate;
        }
    }

    /// Tells the proposer of every write whose fate is known, oldest first.
    pub fn drain(&mut self, applied: &State) -> Vec<(Caller, Reply)> {
        let mut replies = Vec::new();
        while self.writes.front().is_some_and(|(_, fate)| !matches!(fate, Fate::Pending)) {
            match self.writes.pop_front() {
                Some((_, Fate::Applied(outcome, after, index))) => {
                    let answered = self.proposer.on_applied(&outcome, &after, index as u64);
                    replies.extend(self.called(answered));
                }
                _ => self.proposer.on_unknown(applied),
            }
        }
        replies
    }

    /// Calls that were planned too often.
    pub fn exhausted(&mut self) -> Vec<Caller> {
        let tickets = self.proposer.take_exhausted();
        tickets.iter().filter_map(|ticket| self.callers.remove(ticket)).collect()
    }

    /// The term is over: whom to send elsewhere.
    pub fn into_calls(self) -> Vec<(Caller, Arc<Intent>)> {
        let mut callers = self.callers;
        let calls = self.proposer.into_calls();
        calls.into_iter().filter_map(|(t, intent)| Some((callers.remove(&t)?, Arc::new(intent)))).collect()
    }

    pub fn is_idle(&self) -> bool {
        self.writes.is_empty() && self.proposer.queued() == 0
    }

    pub fn divergences(&self) -> u64 {
        self.proposer.divergences()
    }
}
