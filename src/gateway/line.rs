//! Requests of one model that are held while no replica has room for them, in the order
//! in which they came: the first of those that a replica can take is the next, and who
//! comes later waits behind. It does not know replicas beyond their names.

use super::table::Who;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Notify;

/// Counts arrivals at one desk: who has the smaller one came first.
pub type Ticket = u64;

/// One that is held.
#[derive(Debug)]
struct Held {
    /// Could not be reached with it.
    tried: Vec<Who>,
    turn: Arc<Notify>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Line {
    last: Ticket,
    held: BTreeMap<Ticket, Held>,
}

impl Line {
    /// Somebody has come.
    pub fn arrive(&mut self) -> Ticket {
        self.last += 1;
        self.last
    }

    pub fn len(&self) -> u32 {
        u32::try_from(self.held.len()).unwrap_or(u32::MAX)
    }

    /// What tells it to look again.
    pub fn join(&mut self, ticket: Ticket, tried: &[Who]) -> Arc<Notify> {
        let turn = Arc::new(Notify::new());
        self.held.insert(ticket, Held { tried: tried.to_vec(), turn: turn.clone() });
        turn
    }

    pub fn leave(&mut self, ticket: Ticket) {
        self.held.remove(&ticket);
    }

    /// Whether somebody who came before `ticket` could have a place: `can` says so by what it has tried.
    pub fn is_before(&self, ticket: Ticket, can: impl Fn(&[Who]) -> bool) -> bool {
        self.held.range(..ticket).any(|(_, held)| can(&held.tried))
    }

    /// There may be a place for the first of those that came after `ticket`. Who is told and has not looked yet
    /// finds it when it does.
    pub fn call_after(&self, ticket: Ticket) {
        if let Some((_, held)) = self.held.range(ticket + 1..).next() {
            held.turn.notify_one();
        }
    }
}
