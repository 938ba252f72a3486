//! What members, clients and workers say to each other, and the network that
//! carries it: late, twice, in another order, or not at all.

use super::disk::Entry;
use super::rng::Rng;
use crate::id::{Incarnation, NodeName};
use crate::plan::{Intent, Reply};
use crate::reconcile::Desired;
use std::sync::Arc;

/// Someone who can be sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    Member(usize),
    Client(usize),
    Worker(usize),
}

/// One message.
#[derive(Clone, Debug)]
pub enum Message {
    AskVote {
        term: u64,
        last_term: u64,
        last_index: usize,
    },
    Vote {
        term: u64,
        granted: bool,
    },
    Append {
        term: u64,
        prev_index: usize,
        prev_term: u64,
        entries: Vec<Arc<Entry>>,
        commit: usize,
    },
    /// `matched`: how far the sender's log is the leader's and synced; or, when
    /// not `ok`, where to look for a common entry.
    Appended {
        term: u64,
        ok: bool,
        matched: usize,
    },
    /// `from` called; `call` names it.
    Call {
        from: Peer,
        call: u64,
        intent: Arc<Intent>,
        hops: u8,
    },
    Reply {
        call: u64,
        reply: Box<Reply>,
    },
    /// The member can't serve the call now.
    Retry {
        call: u64,
    },
    Beat {
        node: NodeName,
        incarnation: Incarnation,
    },
    AskSlice {
        node: NodeName,
    },
    Slice {
        index: usize,
        desired: Desired,
    },
}

/// Faults of the network at present.
#[derive(Clone, Debug, Default)]
pub struct Net {
    /// Of a thousand messages.
    pub lost: u64,
    pub doubled: u64,
    /// Members in different groups don't hear each other.
    pub group: Vec<u8>,
    /// Workers that nobody hears.
    pub cut: Vec<bool>,
}

impl Net {
    fn hears(&self, a: Peer, b: Peer) -> bool {
        let alone = |p: Peer| matches!(p, Peer::Worker(w) if self.cut[w]);
        let apart = match (a, b) {
            (Peer::Member(a), Peer::Member(b)) => self.group[a] != self.group[b],
            _ => false,
        };
        !apart && !alone(a) && !alone(b)
    }

    /// After how many milliseconds the message arrives, once for each copy.
    pub fn deliveries(&self, from: Peer, to: Peer, rng: &mut Rng) -> Vec<u64> {
        if from == to {
            return vec![0];
        }
        if !self.hears(from, to) || rng.chance(self.lost) {
            return Vec::new();
        }
        let late = |rng: &mut Rng| if rng.chance(20) { rng.between(5, 120) } else { rng.between(1, 4) };
        let mut out = vec![late(rng)];
        if rng.chance(self.doubled) {
            out.push(late(rng));
        }
        out
    }

    pub fn heal(&mut self) {
        (self.lost, self.doubled) = (0, 0);
        self.group.fill(0);
        self.cut.fill(false);
    }
}
