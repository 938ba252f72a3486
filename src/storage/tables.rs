//! The seam between the state machine and where its rows are kept.
//!
//! Rows of one applied batch, the position they bring the state to, and nothing else become
//! visible together. Durability is lazy: the log can rebuild what a crash takes away. It knows
//! tables as numbers only.

use std::io;

use bytes::Bytes;
use futures::future::BoxFuture;

/// One row to write (`value` set) or to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub table: u8,
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// One stored row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub table: u8,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

pub trait Tables: Send + Sync + 'static {
    /// A checkpoint that is complete and can be sent, kept while anybody holds it.
    type Snapshot: Clone + Send + Sync + 'static;
    /// A checkpoint whose content is fixed but which is not yet described and renamed.
    type Draft: Send + Sync + 'static;

    /// The position stored with the last committed batch.
    fn position(&self) -> io::Result<Option<Bytes>>;

    /// All rows of tables for which `wanted` holds, ordered by table and key.
    fn rows(&self, wanted: &dyn Fn(u8) -> bool) -> io::Result<Vec<Row>>;

    /// Writes one batch with its position, unsynced. Never waits for the disk.
    fn commit(&self, changes: Vec<Change>, position: Bytes) -> io::Result<()>;

    /// Makes everything committed durable. Blocks; call it on a thread for that.
    fn flush(&self) -> io::Result<()>;

    /// Fixes the content of a new checkpoint; `meta` travels with it. Quick after a flush.
    fn checkpoint(&self, meta: Bytes) -> io::Result<Self::Draft>;

    /// Describes, checksums and keeps the checkpoint; older ones go.
    fn finish(&self, draft: Self::Draft) -> BoxFuture<'static, io::Result<Self::Snapshot>>;

    /// The newest complete checkpoint with its `meta`.
    fn latest(&self) -> io::Result<Option<(Self::Snapshot, Bytes)>>;

    /// Replaces all rows by the checkpoint's. After a crash either all old or all new rows are
    /// there.
    fn install(&self, snapshot: Self::Snapshot) -> BoxFuture<'static, io::Result<()>>;

    /// One row, e.g. of the history. Blocks.
    fn get(&self, table: u8, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// At most `limit` rows of a table with keys at or above `from`. Blocks.
    fn scan(&self, table: u8, from: &[u8], limit: usize) -> io::Result<Vec<Row>>;

    /// At most `limit` rows of a table with keys below `before`, the last one first. Blocks.
    fn scan_back(&self, table: u8, before: Option<&[u8]>, limit: usize) -> io::Result<Vec<Row>>;
}
