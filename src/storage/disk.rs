//! The seam between the log's logic and the disk: ordered writes, a sync, reads, and a reload.
//!
//! RocksDB is one backend, the lossy model another, so that what the simulation exercises is what
//! runs. A disk knows rows and their order; it does not know terms, votes or quorums.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use futures::future::BoxFuture;

/// One write. Writes reach the disk in the order they were submitted, without exception: a log
/// entry that is durable without its vote would let a deposed leader overwrite a committed entry.
#[derive(Clone, Debug)]
pub enum Op {
    Append {
        index: u64,
        row: Bytes,
    },
    /// Removes the rows `from..=through`, the tail of the log.
    Truncate {
        from: u64,
        through: u64,
    },
    /// Removes the rows `from..=through`, the head of the log, and remembers `marker`.
    Purge {
        from: u64,
        through: u64,
        marker: Bytes,
    },
    Vote(Bytes),
    Committed(Bytes),
}

/// Called exactly once, when the writes it came with and all earlier ones are durable.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A log row as stored, still sealed.
pub type Row = (u64, Bytes);

/// What a reopened disk holds.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
    pub purged: Option<Bytes>,
    pub last: Option<Row>,
}

/// Most bytes one [`Disk::read`] returns, unless a single row is larger.
pub const READ_BYTES: usize = 1 << 20;

pub trait Disk: Send + Sync + 'static {
    /// Read once, before the first submit.
    fn load(&self) -> io::Result<Loaded>;

    /// Queues writes and never blocks. Without `done` nothing is waited for; a later sync covers
    /// these writes too.
    fn submit(&self, ops: Vec<Op>, done: Option<Done>);

    /// Rows of `range` that are written, in order, without holes after the first one, cut off
    /// after [`READ_BYTES`].
    fn read(&self, range: Range<u64>) -> BoxFuture<'static, io::Result<Vec<Row>>>;
}
