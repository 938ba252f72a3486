//! State ↔ rows. Rows are what a member stores; the state hash is the wrapping
//! sum of the hashes of all live rows, kept current from each row's bytes before
//! and after, so members can compare their states with one number.

use crate::approval::Approval;
use crate::audit::{Chain, Entry};
use crate::budget::Meter;
use crate::codec::{self, body, exact};
use crate::command::Member;
use crate::consent::{self, Consent};
use crate::event::Event;
use crate::floor::Floor;
use crate::id::{Digest16, RequestId, TenantId, TenantNo};
use crate::job::{Job, Phase, Replica};
use crate::join::JoinToken;
use crate::node::Node;
use crate::quarantine::Quarantine;
use crate::state::{Before, Changes, Meta, Request, RequestKey, RowKey, State, name_key};
use crate::tenant::Tenant;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// Tables on disk. The numbers are part of the format: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    Meta = 1,
    Job = 2,
    Node = 3,
    Tenant = 4,
    Request = 5,
    Member = 6,
    /// Finished jobs, by the order in which they finished. Not in memory, not hashed.
    History = 7,
    /// A request's name and its tenant's → position in the history. See [`history_key`].
    HistoryOf = 8,
    /// Events by sequence number. Not in memory, not hashed.
    Event = 9,
    Revoked = 10,
    /// Where the audit trail ends; one row.
    Audit = 11,
    /// The audit trail by sequence number. Not in memory; hashed through its end. Never deleted.
    AuditEntry = 12,
    /// Versions that may run in production.
    Approval = 13,
    /// What tenants let be kept of people's data.
    Consent = 14,
    /// Nodes that may have copies of it.
    Copy = 15,
    /// What tenants have used.
    Meter = 16,
    /// What machines may join with.
    JoinToken = 17,
    /// The oldest versions that may still run.
    Floor = 18,
    /// Versions that a node found to be corrupt.
    Quarantine = 19,
    /// By which ids of tokens are in the trail; one row.
    TrailKey = 20,
}

impl Table {
    pub const ALL: &[Table] = &[
        Table::Meta,
        Table::Job,
        Table::Node,
        Table::Tenant,
        Table::Request,
        Table::Member,
        Table::History,
        Table::HistoryOf,
        Table::Event,
        Table::Revoked,
        Table::Audit,
        Table::AuditEntry,
        Table::Approval,
        Table::Consent,
        Table::Copy,
        Table::Meter,
        Table::JoinToken,
        Table::Floor,
        Table::Quarantine,
        Table::TrailKey,
    ];
    /// The tables that [`State::from_rows`] wants.
    pub const LIVE: &[Table] = &[
        Table::Meta,
        Table::Job,
        Table::Node,
        Table::Tenant,
        Table::Request,
        Table::Member,
        Table::Revoked,
        Table::Audit,
        Table::Approval,
        Table::Consent,
        Table::Copy,
        Table::Meter,
        Table::JoinToken,
        Table::Floor,
        Table::Quarantine,
        Table::TrailKey,
    ];
}

/// One row to write, or (None) to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowChange {
    pub table: Table,
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// Why rows could not be loaded. The member must not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("table {table:?}: {source}")]
    Row { table: Table, source: codec::Error },
    #[error(
        "table {table:?} has rows of format {version}, from a build before the first release; this one reads format \
         {VERSION} alone: remove this member and let it join anew with an empty data directory (a group all of whose \
         members have old rows is made anew)"
    )]
    Older { table: Table, version: u8 },
    #[error("table {table:?}: key of {length} bytes")]
    Key { table: Table, length: usize },
    #[error("job {job} holds node {node}, which is not stored")]
    Dangling { job: String, node: String },
    #[error("the rows do not add up to the stored hash: the data is damaged; restore this member from the others")]
    Hash,
}

/// Row format version, the first byte of each value. 2: requests are their tenant's (ADR 93).
const VERSION: u8 = 2;
/// Finished jobs that are kept; older ones are deleted, and answered 404, on every member alike.
pub const HISTORY_KEPT: u64 = 1_000_000;
/// Events that are kept.
pub const EVENTS_KEPT: u64 = 1_000_000;

fn value<T: Serialize>(row: &T) -> Vec<u8> {
    body(row, vec![VERSION])
}

fn read<T: DeserializeOwned>(table: Table, bytes: &[u8]) -> Result<T, Error> {
    let kind = table as u16;
    let wrap = |source| Error::Row { table, source };
    match bytes.split_first() {
        Some((&VERSION, rest)) => exact(kind, rest).map_err(wrap),
        Some((&version, _)) if version < VERSION => Err(Error::Older { table, version }),
        Some((&other, _)) => Err(wrap(codec::Error::Version { kind, version: other.into(), max: VERSION.into() })),
        None => Err(wrap(codec::Error::Short { have: 0, need: 1 })),
    }
}

/// A finished job from its row.
///
/// # Errors
/// When the bytes are not such a row.
pub fn read_history(bytes: &[u8]) -> Result<Job, Error> {
    read(Table::History, bytes)
}

/// An event from its row.
///
/// # Errors
/// When the bytes are not such a row.
pub fn read_event(bytes: &[u8]) -> Result<Event, Error> {
    read(Table::Event, bytes)
}

/// An entry of the audit trail from its row.
///
/// # Errors
/// When the bytes are not such a row.
pub fn read_audit(bytes: &[u8]) -> Result<Entry, Error> {
    read(Table::AuditEntry, bytes)
}

/// Key of a row in [`Table::HistoryOf`]; its value is the big-endian position. The tenant is there by its name: when it
/// was deleted and made anew, its finished jobs are still found by it.
pub fn history_key(tenant: &TenantId, request: &RequestId) -> Vec<u8> {
    [&history_prefix(request)[..], tenant.as_str().as_bytes()].concat()
}

/// How the keys of all tenants' finished jobs of that name begin.
pub fn history_prefix(request: &RequestId) -> [u8; 16] {
    name_key(request).0
}

/// Whose the finished job is to which such a key leads; None when it is no such key.
pub fn history_owner(key: &[u8]) -> Option<TenantId> {
    let (_, tenant) = key.split_first_chunk::<16>()?;
    TenantId::new(std::str::from_utf8(tenant).ok()?).ok()
}

fn row_hash(table: Table, key: &[u8], value: &[u8]) -> u128 {
    u128::from_be_bytes(Digest16::of(&[&[table as u8], key, value]).0)
}

impl RowKey {
    fn table(self) -> Table {
        match self {
            RowKey::Job(_) => Table::Job,
            RowKey::Node(_) => Table::Node,
            RowKey::Tenant(_) => Table::Tenant,
            RowKey::Request(_) => Table::Request,
            RowKey::Member(_) => Table::Member,
            RowKey::Revoked(_) => Table::Revoked,
            RowKey::Audit => Table::Audit,
            RowKey::Approval(_) => Table::Approval,
            RowKey::Consent(_) => Table::Consent,
            RowKey::Copy(..) => Table::Copy,
            RowKey::Meter(_) => Table::Meter,
            RowKey::JoinToken(_) => Table::JoinToken,
            RowKey::Floor(_) => Table::Floor,
            RowKey::Quarantine(_) => Table::Quarantine,
            RowKey::TrailKey => Table::TrailKey,
        }
    }

    fn bytes(self) -> Vec<u8> {
        match self {
            RowKey::Job(no) => no.0.to_be_bytes().to_vec(),
            RowKey::Node(no) => no.0.to_be_bytes().to_vec(),
            RowKey::Tenant(no) | RowKey::Meter(no) => no.0.to_be_bytes().to_vec(),
            RowKey::Request(key) => key.bytes(),
            RowKey::Revoked(key) | RowKey::Approval(key) => key.0.to_vec(),
            RowKey::Consent(key) | RowKey::JoinToken(key) | RowKey::Floor(key) => key.0.to_vec(),
            RowKey::Quarantine(key) => key.0.to_vec(),
            RowKey::Copy(node, key) => [&node.0.to_be_bytes()[..], &key.0].concat(),
            RowKey::Member(id) => id.0.to_be_bytes().to_vec(),
            RowKey::Audit | RowKey::TrailKey => vec![0],
        }
    }
}

impl Before {
    fn value(&self) -> Option<Vec<u8>> {
        match self {
            Before::Job(row) => row.as_deref().map(value),
            Before::Node(row) => row.as_deref().map(value),
            Before::Tenant(row) => row.as_deref().map(value),
            Before::Request(row) => row.as_ref().map(value),
            Before::Member(row) => row.as_deref().map(value),
            Before::Revoked(row) => row.as_ref().map(value),
            Before::Audit(row) => row.as_deref().map(value),
            Before::Approval(row) => row.as_deref().map(value),
            Before::Consent(row) => row.as_deref().map(value),
            Before::Copy(row) => row.as_deref().map(value),
            Before::Meter(row) => row.as_deref().map(value),
            Before::JoinToken(row) => row.as_deref().map(value),
            Before::Floor(row) => row.as_deref().map(value),
            Before::Quarantine(row) => row.as_deref().map(value),
            Before::TrailKey(row) => row.as_ref().map(value),
        }
    }
}

impl State {
    /// The rows that changed since the last call, for one atomic write. Updates the state hash.
    pub fn take_changes(&mut self) -> Vec<RowChange> {
        let Some(changes) = &mut self.changes else { return Vec::new() };
        let changes = std::mem::take(changes);
        let most = changes.rows.len() + 2 * (changes.events.len() + changes.finished.len()) + changes.audit.len() + 1;
        let mut out = Vec::with_capacity(most);
        for (key, before) in &changes.rows {
            let (table, bytes, after) = (key.table(), key.bytes(), self.row(*key));
            self.rehash(table, &bytes, before.value().as_deref(), after.as_deref());
            out.push(RowChange { table, key: bytes, value: after });
        }
        append_finished(&changes, &mut out);
        for event in &changes.events {
            out.push(RowChange {
                table: Table::Event,
                key: event.seq.to_be_bytes().to_vec(),
                value: Some(value(event)),
            });
            if let Some(old) = event.seq.checked_sub(EVENTS_KEPT) {
                out.push(RowChange { table: Table::Event, key: old.to_be_bytes().to_vec(), value: None });
            }
        }
        for entry in &changes.audit {
            let (key, value) = (entry.seq.to_be_bytes().to_vec(), Some(value(entry)));
            out.push(RowChange { table: Table::AuditEntry, key, value });
        }
        if changes.meta.is_some() {
            // The hash rides in the row and is therefore not part of it.
            let stored = (&self.meta, self.hash);
            out.push(RowChange { table: Table::Meta, key: vec![0], value: Some(value(&stored)) });
        }
        out
    }

    fn row(&self, key: RowKey) -> Option<Vec<u8>> {
        match key {
            RowKey::Job(no) => self.jobs.get(&no).map(|row| value(&**row)),
            RowKey::Node(no) => self.nodes.get(&no).map(|row| value(&**row)),
            RowKey::Tenant(no) => self.tenants.get(&no).map(|row| value(&**row)),
            RowKey::Request(key) => self.requests.get(&key).map(value),
            RowKey::Member(id) => self.members.get(&id).map(|row| value(&**row)),
            RowKey::Revoked(key) => self.revoked.get(&key).map(value),
            RowKey::Audit => (self.audit.seq() > 0).then(|| value(&*self.audit)),
            RowKey::Approval(key) => self.approvals.get(&key).map(|row| value(&**row)),
            RowKey::Consent(key) => self.consents.get(&key).map(|row| value(&**row)),
            RowKey::Copy(node, key) => self.copies.get(&(node, key)).map(|row| value(&**row)),
            RowKey::Meter(no) => self.meters.get(&no).map(|row| value(&**row)),
            RowKey::JoinToken(key) => self.join_tokens.get(&key).map(|row| value(&**row)),
            RowKey::Floor(key) => self.floors.get(&key).map(|row| value(&**row)),
            RowKey::Quarantine(key) => self.quarantines.get(&key).map(|row| value(&**row)),
            RowKey::TrailKey => self.trail_key.as_ref().map(value),
        }
    }

    /// All live rows, as they are stored; the hash must be current (see [`State::take_changes`]).
    pub fn live_rows(&self) -> impl Iterator<Item = (Table, Vec<u8>, Vec<u8>)> {
        let keys = self.nodes.keys().map(|no| RowKey::Node(*no));
        let keys = keys.chain(self.tenants.keys().map(|no| RowKey::Tenant(*no)));
        let keys = keys.chain(self.members.keys().map(|id| RowKey::Member(*id)));
        let keys = keys.chain(self.requests.keys().map(|key| RowKey::Request(*key)));
        let keys = keys.chain(self.revoked.keys().map(|key| RowKey::Revoked(*key)));
        let keys = keys.chain(self.approvals.keys().map(|key| RowKey::Approval(*key)));
        let keys = keys.chain(self.consents.keys().map(|key| RowKey::Consent(*key)));
        let keys = keys.chain(self.copies.keys().map(|(node, key)| RowKey::Copy(*node, *key)));
        let keys = keys.chain(self.meters.keys().map(|no| RowKey::Meter(*no)));
        let keys = keys.chain(self.join_tokens.keys().map(|key| RowKey::JoinToken(*key)));
        let keys = keys.chain(self.floors.keys().map(|key| RowKey::Floor(*key)));
        let keys = keys.chain(self.quarantines.keys().map(|key| RowKey::Quarantine(*key)));
        let keys = keys.chain([RowKey::Audit, RowKey::TrailKey]);
        let keys = keys.chain(self.jobs.keys().map(|no| RowKey::Job(*no)));
        let meta = (Table::Meta, vec![0], value(&(&self.meta, self.hash)));
        keys.filter_map(|key| Some((key.table(), key.bytes(), self.row(key)?))).chain([meta])
    }

    fn rehash(&mut self, table: Table, key: &[u8], before: Option<&[u8]>, after: Option<&[u8]>) {
        if let Some(before) = before {
            self.hash = self.hash.wrapping_sub(row_hash(table, key, before));
        }
        if let Some(after) = after {
            self.hash = self.hash.wrapping_add(row_hash(table, key, after));
        }
    }

    /// The state whose live rows these are, in any order.
    ///
    /// # Errors
    /// When a row can't be read, or the rows don't add up to the stored hash.
    pub fn from_rows(rows: impl IntoIterator<Item = (Table, Vec<u8>, Vec<u8>)>) -> Result<Self, Error> {
        let mut state = State::default();
        let mut jobs = Vec::new();
        let (mut hash, mut stored) = (0u128, 0u128);
        for (table, key, bytes) in rows {
            if table != Table::Meta {
                hash = hash.wrapping_add(row_hash(table, &key, &bytes));
            }
            match table {
                Table::Meta => (state.meta, stored) = read::<(Meta, u128)>(table, &bytes)?,
                Table::Node => state.put_node(read::<Node>(table, &bytes)?),
                Table::Tenant => state.put_tenant(read::<Tenant>(table, &bytes)?),
                Table::Member => state.put_member(read::<Member>(table, &bytes)?),
                // Jobs need the nodes, which may come later; equal specs are one at once, or all would be there twice.
                Table::Job => {
                    let mut job = read::<Job>(table, &bytes)?;
                    state.share_spec(&mut job);
                    jobs.push(job);
                }
                Table::Request => {
                    let request = read::<Request>(table, &bytes)?;
                    let known = RequestKey::read(&key).ok_or(Error::Key { table, length: key.len() })?;
                    state.put_request(known, request);
                }
                Table::Revoked => {
                    let length = key.len();
                    let key = key.try_into().map_err(|_| Error::Key { table, length })?;
                    state.put_revoked(Digest16(key), read::<u64>(table, &bytes)?);
                }
                Table::Audit => {
                    let chain = read::<Chain>(table, &bytes)?;
                    if !chain.is_sound() {
                        return Err(Error::Hash);
                    }
                    state.audit = Arc::new(chain);
                }
                Table::Approval => {
                    let approval = read::<Approval>(table, &bytes)?;
                    // Its names make its key: under another one it could never be taken back.
                    if key != approval.of.key().0 {
                        return Err(Error::Key { table, length: key.len() });
                    }
                    state.put_approval(approval);
                }
                Table::Floor => {
                    let floor = read::<Floor>(table, &bytes)?;
                    if key != floor.key().0 {
                        return Err(Error::Key { table, length: key.len() });
                    }
                    state.put_floor(floor);
                }
                Table::TrailKey => state.trail_key = Some(read::<[u8; 32]>(table, &bytes)?),
                Table::Quarantine => {
                    let found = read::<Quarantine>(table, &bytes)?;
                    // Under another key it could never be released.
                    if key != found.key().0 {
                        return Err(Error::Key { table, length: key.len() });
                    }
                    state.put_quarantine(found);
                }
                Table::Consent => {
                    let consent = read::<Consent>(table, &bytes)?;
                    if key != consent.key().0 {
                        return Err(Error::Key { table, length: key.len() });
                    }
                    state.put_consent(consent);
                }
                Table::Copy => {
                    let copy = read::<consent::Copy>(table, &bytes)?;
                    let named = consent::copy_key(&copy.tenant, &copy.manifest);
                    if key != RowKey::Copy(copy.node, named).bytes() {
                        return Err(Error::Key { table, length: key.len() });
                    }
                    state.put_copy(copy);
                }
                Table::Meter => {
                    let length = key.len();
                    let no = key.try_into().map(u32::from_be_bytes).map_err(|_| Error::Key { table, length })?;
                    state.load_meter(TenantNo(no), read::<Meter>(table, &bytes)?);
                }
                Table::JoinToken => {
                    let token = read::<JoinToken>(table, &bytes)?;
                    if key != token.id.0 {
                        return Err(Error::Key { table, length: key.len() });
                    }
                    state.put_join_token(token);
                }
                Table::History | Table::HistoryOf | Table::Event | Table::AuditEntry => {}
            }
        }
        for job in jobs {
            check_allocations(&state, &job)?;
            state.load_job(job);
        }
        state.sum_claims();
        state.reclass_all();
        if hash != stored {
            return Err(Error::Hash);
        }
        // Anything may have changed since an agent last heard from here.
        state.ledger.version = state.meta.base;
        let nodes: Vec<_> = state.nodes.keys().copied().collect();
        nodes.into_iter().for_each(|node| state.ledger.touch(node));
        state.hash = hash;
        state.changes = Some(Changes::default());
        Ok(state)
    }
}

/// Booking an allocation on a node or device that is not there would panic.
fn check_allocations(state: &State, job: &Job) -> Result<(), Error> {
    for alloc in job.replicas.iter().flat_map(Replica::allocations) {
        let devices = state.nodes.get(&alloc.node).map(|node| node.spec.devices.len());
        let there = |devices: usize| alloc.shares.iter().all(|share| usize::from(share.device) < devices);
        if !devices.is_some_and(there) {
            return Err(Error::Dangling { job: job.no.to_string(), node: alloc.node.to_string() });
        }
    }
    Ok(())
}

fn append_finished(changes: &Changes, out: &mut Vec<RowChange>) {
    for (position, job) in &changes.finished {
        debug_assert!(job.replicas.iter().all(|r| !matches!(r.phase, Phase::Held { .. })));
        let key = position.to_be_bytes().to_vec();
        out.push(RowChange { table: Table::History, key: key.clone(), value: Some(value::<Job>(job)) });
        let of = history_key(&job.spec.tenant, &job.request);
        out.push(RowChange { table: Table::HistoryOf, key: of, value: Some(key) });
        if let Some(old) = position.checked_sub(HISTORY_KEPT) {
            out.push(RowChange { table: Table::History, key: old.to_be_bytes().to_vec(), value: None });
        }
    }
}

/// Keeps `Arc` rows shareable across threads; fails to compile otherwise.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Arc<State>>();
};
