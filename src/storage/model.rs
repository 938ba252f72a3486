//! A disk in memory that loses what was not synced: the backend of the simulation.
//!
//! `crash` throws unsynced writes away, but for a prefix that may have reached the platter by
//! itself, as a real disk does. It does not know time: whoever drives it decides when a sync ends.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::Notify;

use super::disk::{Disk, Done, Loaded, Op, READ_BYTES, Row};
use super::tables::{self, Change, Tables};

/// How a sync comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Within `submit`.
    AtOnce,
    /// When the driver calls [`ModelDisk::settle`].
    Driven,
    /// A planted bug: success is reported at once, durability comes with `settle`.
    Lying,
}

#[derive(Clone, Debug, Default)]
struct Content {
    rows: BTreeMap<u64, Bytes>,
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    purged: Option<Bytes>,
}

impl Content {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Append { index, row } => {
                self.rows.insert(index, row);
            }
            Op::Truncate { from, through } => self.rows.retain(|i, _| *i < from || *i > through),
            Op::Purge { from, through, marker } => {
                self.purged = Some(marker);
                self.rows.retain(|i, _| *i < from || *i > through);
            }
            Op::Vote(row) => self.vote = Some(row),
            Op::Committed(row) => self.committed = Some(row),
        }
    }
}

#[derive(Default)]
struct Log {
    durable: Content,
    written: Content,
    unsynced: VecDeque<Op>,
    waiting: Vec<Done>,
}

/// A lossy log disk. Clones share it, as processes share a real one across restarts.
#[derive(Clone)]
pub struct ModelDisk {
    log: Arc<Mutex<Log>>,
    sync: Sync,
    asked: Arc<Notify>,
}

impl ModelDisk {
    pub fn new(sync: Sync) -> Self {
        Self { log: Arc::default(), sync, asked: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("no panic while held")
    }

    /// Returns once somebody waits for a sync.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Ends the sync: everything written so far becomes durable and is reported.
    pub fn settle(&self) {
        let waiting = {
            let mut log = self.lock();
            log.unsynced.clear();
            log.durable = log.written.clone();
            std::mem::take(&mut log.waiting)
        };
        for done in waiting {
            done(Ok(()));
        }
    }

    /// The machine stops. What it finds at its next start is the result: all that was synced, and
    /// of the rest the first `survivors` writes. Whoever still holds `self` can do no more harm:
    /// it is cut off, and nobody who waits on it is answered.
    pub fn crash(&self, survivors: usize) -> Self {
        let mut log = self.lock();
        log.waiting.clear();
        let mut durable = log.durable.clone();
        for op in log.unsynced.iter().take(survivors) {
            durable.apply(op.clone());
        }
        let found = Log { written: durable.clone(), durable, ..Log::default() };
        Self { log: Arc::new(Mutex::new(found)), sync: self.sync, asked: Arc::default() }
    }

    /// How many writes a crash now could lose.
    pub fn unsynced(&self) -> usize {
        self.lock().unsynced.len()
    }
}

impl Disk for ModelDisk {
    fn load(&self) -> io::Result<Loaded> {
        let log = self.lock();
        Ok(Loaded {
            vote: log.written.vote.clone(),
            committed: log.written.committed.clone(),
            purged: log.written.purged.clone(),
            last: log.written.rows.last_key_value().map(|(i, row)| (*i, row.clone())),
        })
    }

    fn submit(&self, ops: Vec<Op>, done: Option<Done>) {
        let mut log = self.lock();
        for op in ops {
            log.written.apply(op.clone());
            log.unsynced.push_back(op);
        }
        let Some(done) = done else { return };
        match self.sync {
            Sync::AtOnce => {
                log.waiting.push(done);
                drop(log);
                self.settle();
            }
            Sync::Driven => {
                log.waiting.push(done);
                drop(log);
                self.asked.notify_one();
            }
            Sync::Lying => {
                drop(log);
                done(Ok(()));
                self.asked.notify_one();
            }
        }
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'static, io::Result<Vec<Row>>> {
        let log = self.lock();
        let mut rows = Vec::new();
        let mut bytes = 0;
        for (index, row) in log.written.rows.range(range) {
            if rows.last().is_some_and(|(last, _): &Row| last + 1 != *index) {
                break;
            }
            bytes += row.len();
            rows.push((*index, row.clone()));
            if bytes >= READ_BYTES {
                break;
            }
        }
        Box::pin(std::future::ready(Ok(rows)))
    }
}

/// Rows and position as of one moment.
#[derive(Clone, Debug, Default)]
pub struct Image {
    rows: BTreeMap<(u8, Vec<u8>), Vec<u8>>,
    position: Option<Bytes>,
    meta: Bytes,
}

#[derive(Default)]
struct Store {
    live: Image,
    durable: Image,
    latest: Option<Arc<Image>>,
}

/// Rows in memory, of which a crash leaves those that were flushed. Clones share it.
#[derive(Clone, Default)]
pub struct ModelTables(Arc<Mutex<Store>>);

impl ModelTables {
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.0.lock().expect("no panic while held")
    }

    /// The machine stops. What it finds at its next start is the result: the rows that were
    /// flushed. Whoever still holds `self` is cut off.
    pub fn crash(&self) -> Self {
        let store = self.lock();
        let found = Store { live: store.durable.clone(), durable: store.durable.clone(), latest: store.latest.clone() };
        Self(Arc::new(Mutex::new(found)))
    }
}

impl Tables for ModelTables {
    type Snapshot = Arc<Image>;
    type Draft = Image;

    fn position(&self) -> io::Result<Option<Bytes>> {
        Ok(self.lock().live.position.clone())
    }

    fn rows(&self, wanted: &dyn Fn(u8) -> bool) -> io::Result<Vec<tables::Row>> {
        let store = self.lock();
        let rows = store.live.rows.iter().filter(|((table, _), _)| wanted(*table));
        Ok(rows
            .map(|((table, key), value)| tables::Row { table: *table, key: key.clone(), value: value.clone() })
            .collect())
    }

    fn commit(&self, changes: Vec<Change>, position: Bytes) -> io::Result<()> {
        let mut store = self.lock();
        for change in changes {
            let key = (change.table, change.key);
            match change.value {
                Some(value) => store.live.rows.insert(key, value),
                None => store.live.rows.remove(&key),
            };
        }
        store.live.position = Some(position);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut store = self.lock();
        store.durable = store.live.clone();
        Ok(())
    }

    fn checkpoint(&self, meta: Bytes) -> io::Result<Image> {
        // As with RocksDB, a checkpoint flushes.
        self.flush()?;
        let mut image = self.lock().live.clone();
        image.meta = meta;
        Ok(image)
    }

    fn finish(&self, draft: Image) -> BoxFuture<'static, io::Result<Arc<Image>>> {
        let image = Arc::new(draft);
        self.lock().latest = Some(image.clone());
        Box::pin(std::future::ready(Ok(image)))
    }

    fn latest(&self) -> io::Result<Option<(Arc<Image>, Bytes)>> {
        let latest = self.lock().latest.clone();
        Ok(latest.map(|image| {
            let meta = image.meta.clone();
            (image, meta)
        }))
    }

    fn install(&self, snapshot: Arc<Image>) -> BoxFuture<'static, io::Result<()>> {
        let mut store = self.lock();
        store.live = (*snapshot).clone();
        store.durable = store.live.clone();
        store.latest = Some(snapshot);
        Box::pin(std::future::ready(Ok(())))
    }

    fn get(&self, table: u8, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.lock().live.rows.get(&(table, key.to_vec())).cloned())
    }

    fn scan_back(&self, table: u8, before: Option<&[u8]>, limit: usize) -> io::Result<Vec<tables::Row>> {
        let store = self.lock();
        let rows = store.live.rows.range((table, Vec::new())..);
        let rows = rows.take_while(|((t, key), _)| *t == table && before.is_none_or(|before| key.as_slice() < before));
        let mut out: Vec<_> = rows
            .map(|((table, key), value)| tables::Row { table: *table, key: key.clone(), value: value.clone() })
            .collect();
        out.reverse();
        out.truncate(limit);
        Ok(out)
    }

    fn scan(&self, table: u8, from: &[u8], limit: usize) -> io::Result<Vec<tables::Row>> {
        let store = self.lock();
        let rows = store.live.rows.range((table, from.to_vec())..);
        Ok(rows
            .take_while(|((t, _), _)| *t == table)
            .take(limit)
            .map(|((table, key), value)| tables::Row { table: *table, key: key.clone(), value: value.clone() })
            .collect())
    }
}
