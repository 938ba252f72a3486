//! The async shell around `nf_core::proposer`: takes calls, writes entries pinned to the term,
//! brings back outcomes.
//!
//! One task does all of it, awaiting each write in turn, because only that keeps the entries'
//! order. It plans nothing and knows no network.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::FuturesOrdered;
use futures::{Future, StreamExt};
use nf_core::plan::{Intent, Reply};
use nf_core::proposer::{Proposer, Ticket};
use openraft::alias::OneshotReceiverOf;
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use openraft::{AsyncRuntime, Raft};
use tokio::sync::{mpsc, oneshot, watch};

use super::options::Hooks;
use super::shared::Lost;
use super::state_machine::{Applied, StateMachine};
use super::types::{Payload, Types};
use crate::storage::tables::Tables;

/// Calls that may wait for the proposer; more wait in their senders.
pub const QUEUE: usize = 4_096;
/// Pause before planning again what Raft did not accept, e.g. because the leader's lease has not
/// begun or has run out.
const AFTER_UNKNOWN: Duration = Duration::from_millis(5);

/// One caller's wish, and where the answer goes.
pub struct Call {
    pub intent: Intent,
    /// The only term in which it may be planned: a leader's own verdicts die with its term.
    pub term: Option<u64>,
    pub reply: oneshot::Sender<Result<Reply, Lost>>,
}

/// Log time for the next entry of a term, on a state with that last stamp, both in milliseconds since the epoch.
pub type Clock = Arc<dyn Fn(u64, u64) -> u64 + Send + Sync>;

/// What the shell needs besides its own state.
pub struct Shell<RT: AsyncRuntime, T: Tables> {
    pub raft: Raft<Types<RT>, StateMachine<T>>,
    pub calls: mpsc::Receiver<Call>,
    pub applied: watch::Receiver<Applied>,
    /// Set while this member leads and its term's first entry is applied.
    pub term: watch::Receiver<Option<u64>>,
    /// While set, nothing new is written (a transfer of leadership is under way).
    pub paused: watch::Receiver<bool>,
    /// Entries in flight, for whoever waits until they are settled.
    pub in_flight: watch::Sender<usize>,
    pub clock: Clock,
    pub hooks: Hooks,
}

type Written<RT> = OneshotReceiverOf<Types<RT>, ClientWriteResult<Types<RT>>>;

/// One term's work.
struct Lead<RT: AsyncRuntime> {
    term: u64,
    proposer: Proposer,
    callers: HashMap<Ticket, oneshot::Sender<Result<Reply, Lost>>>,
    next_ticket: Ticket,
    written: FuturesOrdered<Written<RT>>,
    rest: Option<Pin<Box<<RT as AsyncRuntime>::Sleep>>>,
}

impl<RT: AsyncRuntime> Lead<RT> {
    fn offer(&mut self, call: Call) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let of_this_term = call.term.is_none_or(|term| term == self.term);
        if of_this_term && self.proposer.offer(ticket, call.intent) {
            self.callers.insert(ticket, call.reply);
        } else {
            let _ = call.reply.send(Err(Lost::default()));
        }
    }

    fn answer(&mut self, replies: Vec<(Ticket, Reply)>) {
        for (ticket, reply) in replies {
            if let Some(caller) = self.callers.remove(&ticket) {
                // A caller that gave up asks again with the same request id.
                let _ = caller.send(Ok(reply));
            }
        }
    }

    fn settle(&mut self, result: ClientWriteResult<Types<RT>>, applied: &Applied) {
        match result {
            Ok(response) => match response.data.batch {
                Some(outcome) => {
                    let (state, index) = (&response.data.state, response.data.index);
                    let replies = self.proposer.on_applied(&outcome, state, index);
                    self.answer(replies);
                }
                None => self.proposer.on_unknown(&applied.state),
            },
            Err(error) => {
                tracing::debug!(%error, "an entry's fate is unknown");
                self.proposer.on_unknown(&applied.state);
                self.rest = Some(Box::pin(RT::sleep(AFTER_UNKNOWN)));
            }
        }
        for ticket in self.proposer.take_exhausted() {
            if let Some(caller) = self.callers.remove(&ticket) {
                let _ = caller.send(Err(Lost::TAKEN));
            }
        }
    }

    fn part(mut self) {
        for (ticket, _) in self.proposer.into_calls() {
            if let Some(caller) = self.callers.remove(&ticket) {
                let _ = caller.send(Err(Lost::TAKEN));
            }
        }
    }
}

impl<RT: AsyncRuntime, T: Tables> Shell<RT, T> {
    /// Runs until the callers' side is dropped or Raft stops.
    pub async fn run(mut self) {
        loop {
            let term = *self.term.borrow_and_update();
            let goes_on = match term {
                Some(term) => self.lead(term).await,
                None => self.follow().await,
            };
            if !goes_on {
                return;
            }
        }
    }

    async fn follow(&mut self) -> bool {
        tokio::select! {
            biased;
            changed = self.term.changed() => changed.is_ok(),
            call = self.calls.recv() => match call {
                Some(call) => {
                    let _ = call.reply.send(Err(Lost::default()));
                    true
                }
                None => false,
            },
        }
    }

    async fn lead(&mut self, term: u64) -> bool {
        let mut lead = Lead::<RT> {
            term,
            proposer: Proposer::new(&self.applied.borrow().state),
            callers: HashMap::new(),
            next_ticket: 0,
            written: FuturesOrdered::new(),
            rest: None,
        };
        let goes_on = loop {
            if !self.write_what_waits(&mut lead, term).await {
                break false;
            }
            self.in_flight.send_replace(lead.written.len());
            let resting = lead.rest.is_some();
            tokio::select! {
                biased;
                changed = self.term.changed() => {
                    if changed.is_err() {
                        break false;
                    }
                    if *self.term.borrow_and_update() != Some(term) {
                        break true;
                    }
                }
                Some(result) = lead.written.next() => match result {
                    Ok(result) => {
                        let applied = self.applied.borrow().clone();
                        let before = lead.proposer.divergences();
                        lead.settle(result, &applied);
                        let diverged = lead.proposer.divergences() - before;
                        if diverged > 0 {
                            (self.hooks.diverged)(diverged);
                        }
                    }
                    // Raft stopped.
                    Err(_) => break false,
                },
                () = wait(&mut lead.rest), if resting => lead.rest = None,
                changed = self.paused.changed() => if changed.is_err() { break false },
                call = self.calls.recv() => match call {
                    Some(call) => lead.offer(call),
                    None => break false,
                },
            }
        };
        self.in_flight.send_replace(0);
        lead.part();
        goes_on
    }

    /// Plans and writes as long as there is something and room. False when Raft has stopped.
    async fn write_what_waits(&mut self, lead: &mut Lead<RT>, term: u64) -> bool {
        while lead.proposer.queued() < QUEUE
            && let Ok(call) = self.calls.try_recv()
        {
            lead.offer(call);
        }
        if *self.paused.borrow_and_update() || lead.rest.is_some() {
            return true;
        }
        loop {
            let begun = Instant::now();
            let last_ms = lead.proposer.speculative().meta().now_ms;
            let (batch, replies) = lead.proposer.next_entry((self.clock)(term, last_ms));
            if batch.is_some() {
                (self.hooks.plan)(begun.elapsed());
            }
            let answered = !replies.is_empty();
            lead.answer(replies);
            let Some(batch) = batch else {
                // What was answered without an entry made room for what waits behind it, and nobody else would wake us.
                if answered && lead.proposer.queued() > 0 {
                    continue;
                }
                return true;
            };
            let (responder, written) = ProgressResponder::complete_only();
            let write = self.raft.write(Payload::new(batch)).with_leader(term).responder(responder);
            if write.await.is_err() {
                return false;
            }
            lead.written.push_back(written);
        }
    }
}

async fn wait<S: Future<Output = ()>>(sleep: &mut Option<Pin<Box<S>>>) {
    if let Some(sleep) = sleep {
        sleep.await;
    }
}
