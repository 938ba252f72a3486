//! A member's disk, as cruel as a real one: what was written and not synced may
//! be gone after a crash, or be there in part. The vote is synced before it is
//! told, as in the product. It does not know Raft's rules.

use super::rng::Rng;
use crate::rows::{RowChange, Table};
use crate::state::State;
use imbl::OrdMap;
use std::sync::Arc;

/// Names one write of one proposer, so that its fate finds back to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteId {
    pub member: usize,
    /// Which proposer of the member.
    pub shell: u64,
    pub seq: u64,
}

/// One log entry; no bytes for a leader's first entry of its term.
#[derive(Debug)]
pub struct Entry {
    pub term: u64,
    pub write: Option<WriteId>,
    pub bytes: Option<Vec<u8>>,
}

/// Rows by table and key; copying is free.
pub type Rows = OrdMap<(Table, Vec<u8>), Arc<[u8]>>;

/// See the module's text. Log positions count from 1.
#[derive(Debug, Default)]
pub struct Disk {
    pub log: Vec<Arc<Entry>>,
    durable: Vec<Arc<Entry>>,
    /// Entries before this one are the same in `log` and `durable`.
    clean: usize,
    pub term: u64,
    pub vote: Option<usize>,
    pub rows: Rows,
    /// Rows as they would be found after a crash, and the entry they include.
    kept: (Rows, usize),
}

impl Disk {
    pub fn append(&mut self, entry: Arc<Entry>) {
        self.log.push(entry);
    }

    /// Keeps the first `len` entries; returns the others.
    pub fn truncate(&mut self, len: usize) -> Vec<Arc<Entry>> {
        self.clean = self.clean.min(len);
        self.log.split_off(len)
    }

    pub fn sync(&mut self) {
        self.durable.truncate(self.clean);
        self.durable.extend_from_slice(&self.log[self.clean..]);
        self.clean = self.log.len();
    }

    /// How many entries would survive a crash for sure.
    pub fn synced(&self) -> usize {
        self.clean
    }

    pub fn is_dirty(&self) -> bool {
        self.clean < self.log.len() || self.durable.len() > self.clean
    }

    /// Writes the rows of an applied entry; they reach the disk some time later.
    pub fn write_rows(&mut self, changes: &[RowChange], applied: usize, rng: &mut Rng) {
        for change in changes.iter().filter(|c| c.table != Table::Event) {
            let key = (change.table, change.key.clone());
            match &change.value {
                Some(value) => drop(self.rows.insert(key, value.as_slice().into())),
                None => drop(self.rows.remove(&key)),
            }
        }
        // Rows are never found ahead of the log: the log is synced before they are flushed.
        if applied <= self.clean && rng.chance(100) {
            self.kept = (self.rows.clone(), applied);
        }
    }

    /// Loses what a crash loses: each unsynced entry, from some point on.
    pub fn crash(&mut self, rng: &mut Rng) {
        let unsynced = self.log.len() - self.clean;
        let survives = if self.durable.len() > self.clean { 0 } else { rng.below(unsynced as u64 + 1) as usize };
        match survives {
            0 => self.log = self.durable.clone(),
            some => {
                self.log.truncate(self.clean + some);
                self.durable = self.log.clone();
            }
        }
        self.clean = self.log.len();
        self.rows = self.kept.0.clone();
    }

    /// The state that a restart finds, and the entry it includes.
    pub fn load(&self) -> Result<(State, usize), String> {
        let (rows, applied) = &self.kept;
        let live = rows.iter().filter(|((table, _), _)| Table::LIVE.contains(table));
        let live = live.map(|((table, key), value)| (*table, key.clone(), value.to_vec()));
        let state = State::from_rows(live).map_err(|error| error.to_string())?;
        Ok((if rows.is_empty() { State::new() } else { state }, *applied))
    }
}
