//! The proposer, without I/O: how a schedule call becomes one commit.
//!
//! It plans intents on a *speculative* state (the applied one with its own
//! in-flight entries applied to it) and hands out log entries that carry the
//! `base` they were planned on. Speculation is exact or void: if an entry comes
//! out superseded, refused or unknown, everything planned on top of it is void,
//! too, and the same intents are planned again on the applied state. Only applied
//! entries answer callers. It lives for one term of one leader; the shell around
//! it (`raft::proposer`) moves messages and pins each write to that term.

use crate::apply::{BatchOutcome, apply_batch};
use crate::command::{Answer, Batch, Command};
use crate::placement::Why;
use crate::plan::{Intent, Planned, Reply, plan};
use crate::reason::{Reason, Refusal};
use crate::state::State;
use crate::view;
use std::collections::VecDeque;

/// Names a caller; the shell keeps who it is.
pub type Ticket = u64;

/// Bounds of one entry and of what is under way.
pub const MAX_COMMANDS: usize = 256;
/// Bytes, by estimate; the last call's commands may pass both bounds.
pub const MAX_BYTES: usize = 512 << 10;
/// Calls that are looked at for one entry, so that a flood of refusals can't hold everything up.
pub const MAX_CALLS: usize = 1024;
pub const MAX_IN_FLIGHT: usize = 8;
/// Entries in flight while fewer than [`CROWD`] calls wait. An entry costs each member a write, a
/// message and a sync however few commands it has, so what arrives meanwhile shares the next one.
pub const FEW_IN_FLIGHT: usize = 2;
/// So many waiting calls are worth an entry of their own at once.
pub const CROWD: usize = 64;
/// Intents that may wait here; beyond it the shell refuses.
pub const MAX_QUEUED: usize = 16_384;
/// Times an intent is planned again before its caller is told to retry.
const MAX_TRIES: u32 = 16;

#[derive(Debug)]
struct Call {
    ticket: Ticket,
    intent: Intent,
    tries: u32,
}

/// A call whose commands are in an entry.
#[derive(Debug)]
struct Planted {
    call: Call,
    /// How many of the entry's commands are its own, in order.
    commands: usize,
    why: Vec<(u16, Why)>,
}

#[derive(Debug, Default)]
struct Entry {
    planted: Vec<Planted>,
    /// Refused on a state that includes this entry; true once it is applied.
    refused: Vec<(Call, Refusal)>,
    /// What the speculation expects the entry to do.
    expected: Option<BatchOutcome>,
}

impl Entry {
    /// Refuses something that another state might allow.
    fn refuses_by_state(&self) -> bool {
        self.refused.iter().any(|(_, refusal)| depends_on_state(refusal))
    }

    /// Tells somebody that what they want is so, with no command of theirs to prove it.
    fn finds_it_so(&self) -> bool {
        self.planted.iter().any(|p| p.commands == 0 && p.call.intent.takes_nothing_for_an_answer())
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Proposer {
    speculative: State,
    queue: VecDeque<Call>,
    in_flight: VecDeque<Entry>,
    /// Calls of void entries, in order, to be planned again.
    again: Vec<Call>,
    /// The speculation is void; nothing new is planned until all in flight is settled.
    void: bool,
    /// An entry of unknown fate may yet be applied. Until a later one is settled,
    /// which says that the log is past it, no second entry is built on a first: the
    /// first would be superseded, and the second find the very `base` it expects.
    cautious: bool,
    /// Calls that were planned too often.
    worn: Vec<Ticket>,
    /// Entries that did something else than expected; always 0 unless there is a bug.
    divergences: u64,
}

impl Proposer {
    /// `applied` must include this leader's own first entry of its term.
    pub fn new(applied: &State) -> Self {
        Self {
            speculative: applied.speculative(),
            queue: VecDeque::new(),
            in_flight: VecDeque::new(),
            again: Vec::new(),
            void: false,
            cautious: false,
            worn: Vec::new(),
            divergences: 0,
        }
    }

    /// Takes a call in. False when too many wait already.
    #[must_use]
    pub fn offer(&mut self, ticket: Ticket, intent: Intent) -> bool {
        let room = self.queue.len() < MAX_QUEUED;
        if room {
            self.queue.push_back(Call { ticket, intent, tries: 0 });
        }
        room
    }

    /// Calls that wait to be planned.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    pub fn divergences(&self) -> u64 {
        self.divergences
    }

    /// The state that new calls are planned on; also what `nf plan` looks at.
    pub fn speculative(&self) -> &State {
        &self.speculative
    }

    /// Plans what waits into the next entry. None when there is nothing to write
    /// now; the second part answers calls that were refused without one.
    pub fn next_entry(&mut self, now_ms: u64) -> (Option<Batch>, Vec<(Ticket, Reply)>) {
        let room = match self.queue.len() {
            _ if self.cautious => 1,
            waiting if waiting < CROWD => FEW_IN_FLIGHT,
            _ => MAX_IN_FLIGHT,
        };
        if self.void || self.in_flight.len() >= room || self.queue.is_empty() {
            return (None, Vec::new());
        }
        let at_ms = now_ms.max(self.speculative.meta().now_ms);
        let mut batch = Batch { base: self.speculative.meta().base, at_ms, commands: Vec::new(), ..Batch::default() };
        let mut entry = Entry::default();
        // Each call is planned on what the calls before it in the entry will have done.
        let mut scratch = self.speculative.clone();
        scratch.advance(at_ms);
        let mut answers = Vec::new();
        let (mut bytes, mut looked_at) = (0, 0);
        while batch.commands.len() < MAX_COMMANDS
            && bytes < MAX_BYTES
            && looked_at < MAX_CALLS
            && let Some(call) = self.queue.pop_front()
        {
            looked_at += 1;
            if let Intent::Schedule { submission, .. } = call.intent.bare() {
                scratch.stand(&submission.spec);
            }
            match plan(&scratch, &call.intent) {
                Err(refusal) => entry.refused.push((call, refusal)),
                Ok(Planned { commands, why }) => {
                    bytes += commands.iter().map(Command::weight).sum::<usize>();
                    bytes += call.intent.actor().map_or(0, |actor| 64 + actor.subject.len());
                    answers.extend(commands.iter().map(|command| scratch.run(command)));
                    let count = commands.len();
                    for command in commands {
                        batch.push(command, call.intent.actor());
                    }
                    entry.planted.push(Planted { call, commands: count, why });
                }
            }
        }
        // What was read from the state, a refusal or that it is so already, must be confirmed by a
        // commit, or a leader that was deposed without knowing could deny what its successor did.
        let confirmed = self.in_flight.is_empty() && (entry.refuses_by_state() || entry.finds_it_so());
        if batch.commands.is_empty() && !confirmed {
            return (None, self.settle_without_entry(entry));
        }
        scratch.accept();
        self.speculative = scratch;
        entry.expected = Some(BatchOutcome::Applied(answers));
        self.in_flight.push_back(entry);
        (Some(batch), Vec::new())
    }

    /// Nothing to write: refusals and empty plans hold as soon as what is in flight does;
    /// with nothing in flight, only what holds in any state comes here.
    fn settle_without_entry(&mut self, entry: Entry) -> Vec<(Ticket, Reply)> {
        if let Some(last) = self.in_flight.back_mut() {
            last.refused.extend(entry.refused);
            last.planted.extend(entry.planted);
            return Vec::new();
        }
        let done = |p: Planted| (p.call.ticket, Reply { result: Ok(Answer::Count(0)), ..Reply::empty() });
        let refused = |(call, refusal): (Call, Refusal)| (call.ticket, Reply::refused(refusal));
        entry.refused.into_iter().map(refused).chain(entry.planted.into_iter().map(done)).collect()
    }

    /// The oldest entry in flight was applied, as entry `index`, and left the state `after`.
    pub fn on_applied(&mut self, outcome: &BatchOutcome, after: &State, index: u64) -> Vec<(Ticket, Reply)> {
        let Some(entry) = self.in_flight.pop_front() else { return Vec::new() };
        self.cautious = false;
        let replies = match outcome {
            BatchOutcome::Superseded { .. } => {
                self.make_void(entry);
                Vec::new()
            }
            BatchOutcome::Applied(answers) => {
                if entry.expected.as_ref().is_some_and(|expected| expected != outcome) {
                    self.divergences += 1;
                    debug_assert!(false, "expected {:?}, got {outcome:?}", entry.expected);
                    self.void = true;
                }
                replies(entry, answers, after, index)
            }
        };
        self.restart_when_settled(after);
        replies
    }

    /// Nobody knows what became of the oldest entry in flight (discarded, timed
    /// out, refused by Raft). It may have been committed: the same requests are
    /// planned again, and apply tells which of them were done already.
    pub fn on_unknown(&mut self, applied: &State) {
        self.cautious = true;
        if let Some(entry) = self.in_flight.pop_front() {
            self.make_void(entry);
        }
        self.restart_when_settled(applied);
    }

    /// The term is over: the callers to send elsewhere, with their intents.
    pub fn into_calls(self) -> Vec<(Ticket, Intent)> {
        let entries = self.in_flight.into_iter().flat_map(calls_of);
        self.again.into_iter().chain(entries).chain(self.queue).map(|call| (call.ticket, call.intent)).collect()
    }

    fn make_void(&mut self, entry: Entry) {
        self.void = true;
        self.again.extend(calls_of(entry));
    }

    /// Once nothing is in flight, starts over from the applied state: from a void speculation because it
    /// was wrong, from any other because two states that are equal and share nothing take twice the memory.
    fn restart_when_settled(&mut self, applied: &State) {
        if !self.in_flight.is_empty() {
            return;
        }
        self.void = false;
        let standings = std::mem::take(&mut self.speculative.standings);
        self.speculative = State { standings, ..applied.speculative() };
        for mut call in self.again.drain(..).rev() {
            call.tries += 1;
            match call.tries > MAX_TRIES {
                true => self.worn.push(call.ticket),
                false => self.queue.push_front(call),
            }
        }
    }

    /// Calls that were planned too often; the shell answers them "retry".
    pub fn take_exhausted(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.worn)
    }
}

/// False for what no state would allow.
pub fn depends_on_state(refusal: &Refusal) -> bool {
    refusal.reason != Reason::InvalidArgument
}

fn calls_of(entry: Entry) -> impl Iterator<Item = Call> {
    entry.planted.into_iter().map(|p| p.call).chain(entry.refused.into_iter().map(|(call, _)| call))
}

/// The replies to an applied entry's callers.
fn replies(entry: Entry, answers: &[Result<Answer, Refusal>], after: &State, index: u64) -> Vec<(Ticket, Reply)> {
    let mut rest = answers;
    let mut receipts = after.receipts();
    let mut out = Vec::with_capacity(entry.planted.len() + entry.refused.len());
    for Planted { call, commands, why } in entry.planted {
        let (own, others) = rest.split_at(commands.min(rest.len()));
        rest = others;
        let (left, later) = receipts.split_at(commands.min(receipts.len()));
        receipts = later;
        let receipt = left.iter().flatten().last().copied();
        let result = fold(own);
        let job = match (&result, call.intent.bare()) {
            (Ok(Answer::Job { no, .. }), _) => after.job(*no),
            (Ok(_), Intent::Stop { request, tenant, .. }) => after.find_job(tenant.as_ref(), request).ok().flatten(),
            _ => None,
        };
        let job = job.map(|job| Box::new(view::job(after, job)));
        out.push((call.ticket, Reply { result, job, why, index, receipt }));
    }
    out.extend(
        entry.refused.into_iter().map(|(call, refusal)| (call.ticket, Reply { index, ..Reply::refused(refusal) })),
    );
    out
}

/// One answer for the commands of one intent: the first refusal, the only answer, or a count.
fn fold(own: &[Result<Answer, Refusal>]) -> Result<Answer, Refusal> {
    match own {
        [only] => only.clone(),
        many => {
            let mut count = 0;
            for answer in many {
                match answer {
                    Err(refusal) if refusal.reason != Reason::PlanChanged => return Err(refusal.clone()),
                    Ok(Answer::Count(n)) => count += n,
                    _ => {}
                }
            }
            Ok(Answer::Count(count))
        }
    }
}

/// What the proposer does to its scratch copy, in the same steps as `apply_batch`.
impl State {
    /// The first half of an entry: time, and what it makes forgotten.
    fn advance(&mut self, at_ms: u64) {
        let empty = Batch { base: self.meta.base, at_ms, commands: Vec::new(), ..Batch::default() };
        apply_batch(self, &empty);
        // The entry itself raises `base`, once, when it is complete.
        self.meta.base -= 1;
    }

    /// A copy to plan on as if the next entry came now: `wall_ms` by the clock of whoever plans. Without it a group in
    /// which nothing happens would be planned for as it was when something last did.
    pub fn at(&self, wall_ms: u64) -> Self {
        let mut now = self.speculative();
        now.advance(wall_ms);
        now
    }

    fn run(&mut self, command: &Command) -> Result<Answer, Refusal> {
        crate::apply::apply(self, command)
    }

    fn accept(&mut self) {
        self.meta.base += 1;
    }
}
