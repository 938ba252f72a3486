//! A small Raft (Ongaro and Ousterhout 2014, figure 2), enough to be faithful in
//! what matters to the core: a log per member, terms and votes, only what a
//! majority has synced commits, tails may or may not survive a change of leader.
//! It does not know what entries mean.

use super::disk::{Disk, Entry, WriteId};
use super::net::{Message, Peer};
use super::rng::Rng;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Entries per message.
const MOST: usize = 64;
pub const HEARTBEAT_MS: u64 = 60;

#[derive(Debug)]
pub enum Role {
    Follower,
    Candidate { votes: BTreeSet<usize> },
    Leader { next: Vec<usize>, matched: Vec<usize> },
}

/// One member's Raft.
#[derive(Debug)]
pub struct Raft {
    pub me: usize,
    pub members: usize,
    pub disk: Disk,
    pub role: Role,
    pub leader: Option<usize>,
    pub commit: usize,
    /// How far the log is known to be the leader's.
    verified: usize,
    pub election_at: u64,
    pub heartbeat_at: u64,
    /// Planted bug: tells the leader of entries before they are synced.
    pub ack_before_sync: bool,
    /// Own writes that another leader's entries replaced.
    pub discarded: Vec<WriteId>,
    /// Something that Raft rules out; the simulation itself is broken, or durability is.
    pub broken: Option<String>,
    pub out: Vec<(Peer, Message)>,
}

impl Raft {
    pub fn new(me: usize, members: usize, ack_before_sync: bool) -> Self {
        Self {
            me,
            members,
            disk: Disk::default(),
            role: Role::Follower,
            leader: None,
            commit: 0,
            verified: 0,
            election_at: 0,
            heartbeat_at: 0,
            ack_before_sync,
            discarded: Vec::new(),
            broken: None,
            out: Vec::new(),
        }
    }

    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader { .. })
    }

    /// After a crash: only the disk is left, and the entry up to which rows were found.
    pub fn restart(&mut self, applied: usize, now: u64, rng: &mut Rng) {
        self.role = Role::Follower;
        self.leader = None;
        self.commit = applied;
        self.verified = applied;
        self.rest(now, rng);
    }

    fn rest(&mut self, now: u64, rng: &mut Rng) {
        self.election_at = now + rng.between(200, 400);
    }

    fn last(&self) -> (u64, usize) {
        (self.disk.log.last().map_or(0, |e| e.term), self.disk.log.len())
    }

    fn term_at(&self, index: usize) -> u64 {
        index.checked_sub(1).and_then(|i| self.disk.log.get(i)).map_or(0, |e| e.term)
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.me;
        (0..self.members).filter(move |m| *m != me)
    }

    /// What a member does as time passes.
    pub fn tick(&mut self, now: u64, rng: &mut Rng) {
        match &self.role {
            Role::Leader { .. } if now >= self.heartbeat_at => {
                if let Role::Leader { next, matched } = &mut self.role {
                    // Whatever was not acknowledged by now is sent again.
                    next.iter_mut().zip(matched).for_each(|(next, matched)| *next = *matched + 1);
                }
                self.heartbeat_at = now + HEARTBEAT_MS;
                self.send_entries(true);
            }
            Role::Leader { .. } => {}
            _ if now >= self.election_at => self.stand(now, rng),
            _ => {}
        }
    }

    fn stand(&mut self, now: u64, rng: &mut Rng) {
        self.disk.term += 1;
        self.disk.vote = Some(self.me);
        // Verified by a leader of an earlier term: the next one may have other entries there.
        self.verified = self.commit;
        self.leader = None;
        self.role = Role::Candidate { votes: [self.me].into() };
        self.rest(now, rng);
        let (last_term, last_index) = self.last();
        for other in self.others() {
            self.out.push((Peer::Member(other), Message::AskVote { term: self.disk.term, last_term, last_index }));
        }
        self.count(now);
    }

    fn count(&mut self, now: u64) {
        let Role::Candidate { votes } = &self.role else { return };
        if 2 * votes.len() <= self.members {
            return;
        }
        let next = vec![self.disk.log.len() + 1; self.members];
        self.role = Role::Leader { next, matched: vec![0; self.members] };
        self.leader = Some(self.me);
        self.heartbeat_at = now + HEARTBEAT_MS;
        let term = self.disk.term;
        self.disk.append(Arc::new(Entry { term, write: None, bytes: None }));
        self.send_entries(true);
        self.advance();
    }

    fn follow(&mut self, term: u64, leader: Option<usize>) {
        if term > self.disk.term {
            self.disk.term = term;
            self.disk.vote = None;
            self.verified = self.commit;
        }
        self.role = Role::Follower;
        self.leader = leader;
    }

    /// Appends as leader. False when it is none, or not of `term` (when that matters).
    pub fn write(&mut self, term: Option<u64>, write: WriteId, bytes: Vec<u8>) -> bool {
        if !self.is_leader() || term.is_some_and(|term| term != self.disk.term) {
            return false;
        }
        let term = self.disk.term;
        self.disk.append(Arc::new(Entry { term, write: Some(write), bytes: Some(bytes) }));
        self.send_entries(false);
        self.advance();
        true
    }

    fn send_entries(&mut self, also_empty: bool) {
        let (log, term, commit) = (&self.disk.log, self.disk.term, self.commit);
        let Role::Leader { next, .. } = &mut self.role else { return };
        for other in (0..self.members).filter(|m| *m != self.me) {
            let from = next[other];
            let to = (from + MOST).min(log.len() + 1);
            if from >= to && !also_empty {
                continue;
            }
            let entries = log[from - 1..to - 1].to_vec();
            let prev_term = from.checked_sub(2).map_or(0, |i| log[i].term);
            next[other] = to;
            let message = Message::Append { term, prev_index: from - 1, prev_term, entries, commit };
            self.out.push((Peer::Member(other), message));
        }
    }

    /// The disk has synced.
    pub fn on_synced(&mut self) {
        self.disk.sync();
        if self.is_leader() {
            self.advance();
        } else if let Some(leader) = self.leader {
            self.tell(leader);
        }
    }

    /// Tells the leader how far the log is its own and safe.
    fn tell(&mut self, leader: usize) {
        let safe = if self.ack_before_sync { self.disk.log.len() } else { self.disk.synced() };
        let message = Message::Appended { term: self.disk.term, ok: true, matched: self.verified.min(safe) };
        self.out.push((Peer::Member(leader), message));
    }

    /// Commits what a majority has, if it ends in an entry of this term.
    fn advance(&mut self) {
        let own = if self.ack_before_sync { self.disk.log.len() } else { self.disk.synced() };
        let Role::Leader { matched, .. } = &mut self.role else { return };
        matched[self.me] = own;
        let mut sorted = matched.clone();
        sorted.sort_unstable();
        let index = sorted[(self.members - 1) / 2];
        if index > self.commit && self.term_at(index) == self.disk.term {
            self.commit = index;
        }
    }

    pub fn on_message(&mut self, from: usize, message: Message, now: u64, rng: &mut Rng) {
        match message {
            Message::AskVote { term, last_term, last_index } => {
                if term > self.disk.term {
                    self.follow(term, None);
                }
                let current = term == self.disk.term && self.disk.vote.is_none_or(|v| v == from);
                let granted = current && (last_term, last_index) >= self.last();
                if granted {
                    self.disk.vote = Some(from);
                    self.rest(now, rng);
                }
                self.out.push((Peer::Member(from), Message::Vote { term: self.disk.term, granted }));
            }
            Message::Vote { term, granted } => {
                if term > self.disk.term {
                    self.follow(term, None);
                } else if let Role::Candidate { votes } = &mut self.role
                    && granted
                    && term == self.disk.term
                {
                    votes.insert(from);
                    self.count(now);
                }
            }
            Message::Append { term, prev_index, prev_term, entries, commit } => {
                if term < self.disk.term {
                    let refusal = Message::Appended { term: self.disk.term, ok: false, matched: 0 };
                    self.out.push((Peer::Member(from), refusal));
                    return;
                }
                self.follow(term, Some(from));
                self.rest(now, rng);
                self.on_append(from, prev_index, prev_term, entries, commit);
            }
            Message::Appended { term, ok, matched } => self.on_appended(from, term, ok, matched),
            _ => {}
        }
    }

    fn on_append(&mut self, from: usize, prev: usize, prev_term: u64, entries: Vec<Arc<Entry>>, commit: usize) {
        if prev > self.disk.log.len() || self.term_at(prev) != prev_term {
            let matched = self.disk.log.len().min(prev.saturating_sub(1));
            self.out.push((Peer::Member(from), Message::Appended { term: self.disk.term, ok: false, matched }));
            return;
        }
        let end = prev + entries.len();
        for (entry, index) in entries.into_iter().zip(prev + 1..) {
            let there = self.disk.log.len() >= index;
            if there && self.term_at(index) == entry.term {
                continue;
            }
            if there {
                if index <= self.commit {
                    self.broken = Some(format!("member {}: committed entry {index} would be replaced", self.me));
                    return;
                }
                let gone = self.disk.truncate(index - 1);
                self.discarded.extend(gone.iter().filter_map(|e| e.write));
            }
            self.disk.append(entry);
        }
        self.verified = self.verified.max(end);
        self.commit = self.commit.max(commit.min(end));
        if !self.disk.is_dirty() || self.ack_before_sync {
            self.tell(from);
        }
    }

    fn on_appended(&mut self, from: usize, term: u64, ok: bool, matched: usize) {
        if term > self.disk.term {
            return self.follow(term, None);
        }
        let len = self.disk.log.len();
        let Role::Leader { next, matched: all } = &mut self.role else { return };
        if term < self.disk.term || matched > len {
            return;
        }
        if ok {
            all[from] = all[from].max(matched);
            next[from] = next[from].max(matched + 1);
            self.advance();
        } else if matched < all[from] {
            // An older refusal, overtaken by an acknowledgement.
            return;
        } else {
            next[from] = (matched + 1).min(next[from]);
        }
        self.send_entries(!ok);
    }
}
