//! Rows of the state on RocksDB: `state/<n>/`, the file `state/CURRENT` that names the one in use,
//! and `snapshots/<n>/` for checkpoints.
//!
//! Its WAL is off: the raft log is the log. `atomic_flush` keeps rows and position together. It
//! does not know what rows mean, nor when a checkpoint is due.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::future::BoxFuture;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, Direction, FlushOptions, IteratorMode, Options,
    ReadOptions, WriteBatch, WriteOptions,
};

use super::checkpoint::{self, Snapshot};
use super::fatal::Fatal;
use super::tables::{Change, Row, Tables};
use super::{Error, frame, replace_file, sync_dir};

const ROWS: &str = "rows";
const META: &str = "meta";
const POSITION: &[u8] = b"position";
const CURRENT: &str = "CURRENT";

/// Flushes and compactions together may write this much a second, so that they do not stall the
/// log's fsync on the same disk.
const BACKGROUND_BYTES_PER_SECOND: i64 = 64 << 20;

/// See the module.
pub struct StateDb {
    shared: Arc<Shared>,
}

struct Shared {
    state_dir: PathBuf,
    snapshot_dir: PathBuf,
    current: ArcSwap<Instance>,
    /// The newest checkpoint and its number; numbers rise with what checkpoints hold.
    latest: Mutex<Option<(u64, Snapshot)>>,
    next_snapshot: AtomicU64,
    fatal: Fatal,
}

/// One opened `state/<n>/`. Its files go with the last reader once another took its place.
struct Instance {
    number: u64,
    dir: PathBuf,
    db: Option<DB>,
    obsolete: AtomicBool,
}

impl Instance {
    fn open(state_dir: &Path, number: u64, create: bool) -> Result<Self, Error> {
        let dir = state_dir.join(number.to_string());
        let cfs = [ROWS, META].map(|name| ColumnFamilyDescriptor::new(name, column_options()));
        let db = DB::open_cf_descriptors(&database_options(create), &dir, cfs).map_err(|e| Error::db(&dir, e))?;
        Ok(Self { number, dir, db: Some(db), obsolete: AtomicBool::new(false) })
    }
    fn db(&self) -> &DB {
        self.db.as_ref().expect("taken only in drop")
    }
    fn family(&self, name: &str) -> &ColumnFamily {
        self.db().cf_handle(name).expect("opened with this column family")
    }
    fn error(&self, e: rocksdb::Error) -> io::Error {
        Error::db(&self.dir, e).into()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        drop(self.db.take());
        if self.obsolete.load(Ordering::Acquire) {
            // What stays behind is removed at the next start.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

fn database_options(create: bool) -> Options {
    let mut options = Options::default();
    options.create_if_missing(create);
    options.create_missing_column_families(create);
    options.set_atomic_flush(true);
    options.set_max_background_jobs(2);
    options.set_max_open_files(256);
    options.set_keep_log_file_num(4);
    options.set_bytes_per_sync(1 << 20);
    options.set_ratelimiter(BACKGROUND_BYTES_PER_SECOND, 100_000, 10);
    options
}

fn column_options() -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(16 << 20);
    options.set_compression_type(DBCompressionType::Lz4);
    options
}

fn read_current(path: &Path) -> Result<Option<u64>, Error> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    let parse = || -> io::Result<u64> {
        let mut reader = frame::Reader::new(frame::open(CURRENT.as_bytes(), &bytes)?);
        let number = reader.u64()?;
        reader.done()?;
        Ok(number)
    };
    parse().map(Some).map_err(|e| Error::damaged(path, e.to_string()))
}

fn write_current(state_dir: &Path, number: u64) -> Result<(), Error> {
    let body = frame::Writer::new().u64(number).done();
    let sealed = frame::seal(CURRENT.as_bytes(), &body);
    replace_file(&state_dir.join(CURRENT), &sealed)
}

/// Removes everything in `dir` but the entry `keep` and plain files.
fn sweep(dir: &Path, keep: Option<&str>) -> Result<(), Error> {
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let entry = entry.map_err(|e| Error::io(dir, e))?;
        let name = entry.file_name();
        if entry.path().is_dir() && keep.is_none_or(|keep| name != keep) {
            std::fs::remove_dir_all(entry.path()).map_err(|e| Error::io(entry.path(), e))?;
        }
    }
    Ok(())
}

/// The newest checkpoint that opens; half-made and damaged ones are removed.
fn newest_snapshot(dir: &Path) -> Result<(Option<(u64, Snapshot)>, u64), Error> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let entry = entry.map_err(|e| Error::io(dir, e))?;
        if let Ok(number) = entry.file_name().to_string_lossy().parse::<u64>() {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    let next = numbers.last().map_or(1, |last| last + 1);
    for number in numbers.iter().rev() {
        let name = number.to_string();
        match checkpoint::open(&dir.join(&name)) {
            Ok(snapshot) => {
                sweep(dir, Some(&name))?;
                return Ok((Some((*number, snapshot)), next));
            }
            Err(error) => tracing::warn!(%error, "a checkpoint is unusable and is removed"),
        }
    }
    sweep(dir, None)?;
    Ok((None, next))
}

impl StateDb {
    /// Opens the rows under `data_dir`. With `create` unset a missing database is an error.
    pub fn open(data_dir: &Path, create: bool, fatal: Fatal) -> Result<Self, Error> {
        let (state_dir, snapshot_dir) = (data_dir.join("state"), data_dir.join("snapshots"));
        for dir in [&state_dir, &snapshot_dir] {
            std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        }
        let path = state_dir.join(CURRENT);
        let number = match read_current(&path)? {
            Some(number) => number,
            None if create => 1,
            None => return Err(Error::damaged(path, "missing")),
        };
        sweep(&state_dir, Some(&number.to_string()))?;
        let instance = Instance::open(&state_dir, number, create)?;
        write_current(&state_dir, number)?;
        let (latest, next) = newest_snapshot(&snapshot_dir)?;
        Ok(Self {
            shared: Arc::new(Shared {
                state_dir,
                snapshot_dir,
                current: ArcSwap::from_pointee(instance),
                latest: Mutex::new(latest),
                next_snapshot: AtomicU64::new(next),
                fatal,
            }),
        })
    }

    /// Where a received checkpoint may be put together.
    pub fn incoming_dir(&self) -> PathBuf {
        let number = self.shared.next_snapshot.fetch_add(1, Ordering::AcqRel);
        self.shared.snapshot_dir.join(format!("{number}.incoming.tmp"))
    }
}

impl Shared {
    /// In this order: a crash in between leaves rows that are older than the newest checkpoint, and the start
    /// installs that one again. Rows without a checkpoint of them would be behind a log that is gone.
    fn install(&self, snapshot: &Snapshot) -> Result<(), Error> {
        checkpoint::verify(snapshot)?;
        self.keep(snapshot)?;
        let number = self.current.load().number + 1;
        let tmp = self.state_dir.join(format!("{number}.tmp"));
        if tmp.exists() {
            std::fs::remove_dir_all(&tmp).map_err(|e| Error::io(&tmp, e))?;
        }
        checkpoint::copy_into(snapshot, &tmp)?;
        let dir = self.state_dir.join(number.to_string());
        std::fs::rename(&tmp, &dir).map_err(|e| Error::io(&dir, e))?;
        sync_dir(&self.state_dir)?;
        let instance = Instance::open(&self.state_dir, number, false)?;
        write_current(&self.state_dir, number)?;
        let old = self.current.swap(Arc::new(instance));
        old.obsolete.store(true, Ordering::Release);
        Ok(())
    }

    /// Keeps a received checkpoint as our own newest one, so that this member can pass it on.
    fn keep(&self, snapshot: &Snapshot) -> Result<(), Error> {
        // It is the one that we have when a start finishes what a crash interrupted.
        if self.latest().as_ref().is_some_and(|(_, latest)| latest.dir() == snapshot.dir()) {
            return Ok(());
        }
        let number = self.next_snapshot.fetch_add(1, Ordering::AcqRel);
        let dir = self.snapshot_dir.join(format!("{number}.tmp"));
        checkpoint::copy_into(snapshot, &dir)?;
        let meta = snapshot.manifest().meta.clone();
        self.finish(&Draft { number, dir, meta })?;
        Ok(())
    }

    fn finish(&self, draft: &Draft) -> Result<Snapshot, Error> {
        let to = self.snapshot_dir.join(draft.number.to_string());
        let snapshot = checkpoint::seal(&draft.dir, &to, draft.meta.clone())?;
        let mut latest = self.latest();
        match latest.as_ref() {
            // A received one was installed while this one was being described: it stays.
            Some((number, _)) if *number > draft.number => snapshot.retire(),
            _ => {
                if let Some((_, old)) = latest.replace((draft.number, snapshot.clone())) {
                    old.retire();
                }
            }
        }
        Ok(snapshot)
    }

    fn latest(&self) -> MutexGuard<'_, Option<(u64, Snapshot)>> {
        // What is under the lock is replaced whole, so a panic leaves nothing half changed.
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A checkpoint with its content fixed, see [`Tables::checkpoint`].
pub struct Draft {
    number: u64,
    dir: PathBuf,
    meta: Bytes,
}

fn row_key(table: u8, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 1);
    out.push(table);
    out.extend_from_slice(key);
    out
}

/// Rows with keys in `from..end`, forwards or backwards. An empty `end` is none.
fn collect(instance: &Instance, from: &[u8], end: &[u8], limit: usize, direction: Direction) -> io::Result<Vec<Row>> {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(from);
    if !end.is_empty() {
        options.set_iterate_upper_bound(end);
    }
    let mode = match direction {
        Direction::Forward => IteratorMode::Start,
        Direction::Reverse => IteratorMode::End,
    };
    let rows = instance.db().iterator_cf_opt(instance.family(ROWS), options, mode);
    let mut out = Vec::new();
    for row in rows.take(limit) {
        let (key, value) = row.map_err(|e| instance.error(e))?;
        let Some((table, key)) = key.split_first() else {
            return Err(frame::invalid("a row without a table"));
        };
        out.push(Row { table: *table, key: key.to_vec(), value: value.into_vec() });
    }
    Ok(out)
}

/// The first key behind a table; empty for the last one.
fn table_end(table: u8) -> Vec<u8> {
    table.checked_add(1).map_or_else(Vec::new, |next| vec![next])
}

impl Tables for StateDb {
    type Snapshot = Snapshot;
    type Draft = Draft;

    fn position(&self) -> io::Result<Option<Bytes>> {
        let instance = self.shared.current.load();
        let found = instance.db().get_cf(instance.family(META), POSITION);
        Ok(found.map_err(|e| instance.error(e))?.map(Bytes::from))
    }

    fn rows(&self, wanted: &dyn Fn(u8) -> bool) -> io::Result<Vec<Row>> {
        let instance = self.shared.current.load();
        let mut out = Vec::new();
        for table in (0..=u8::MAX).filter(|table| wanted(*table)) {
            let end = table_end(table);
            out.extend(collect(&instance, &[table], &end, usize::MAX, Direction::Forward)?);
        }
        Ok(out)
    }

    fn commit(&self, changes: Vec<Change>, position: Bytes) -> io::Result<()> {
        let instance = self.shared.current.load();
        let rows = instance.family(ROWS);
        let mut batch = WriteBatch::default();
        for change in changes {
            let key = row_key(change.table, &change.key);
            match change.value {
                Some(value) => batch.put_cf(rows, key, value),
                None => batch.delete_cf(rows, key),
            }
        }
        batch.put_cf(instance.family(META), POSITION, position);
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        instance.db().write_opt(batch, &options).map_err(|e| {
            self.shared.fatal.raise(&format!("writing the state: {e}"));
            instance.error(e)
        })
    }

    fn flush(&self) -> io::Result<()> {
        let instance = self.shared.current.load_full();
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let families = [instance.family(ROWS), instance.family(META)];
        let families = [&families[0], &families[1]];
        let flushed = instance.db().flush_cfs_opt(&families, &options);
        flushed.map_err(|e| {
            self.shared.fatal.raise(&format!("flushing the state: {e}"));
            instance.error(e)
        })
    }

    fn checkpoint(&self, meta: Bytes) -> io::Result<Draft> {
        let instance = self.shared.current.load();
        let number = self.shared.next_snapshot.fetch_add(1, Ordering::AcqRel);
        let dir = self.shared.snapshot_dir.join(format!("{number}.tmp"));
        Checkpoint::new(instance.db())
            .and_then(|checkpoint| checkpoint.create_checkpoint(&dir))
            .map_err(|e| instance.error(e))?;
        Ok(Draft { number, dir, meta })
    }

    fn finish(&self, draft: Draft) -> BoxFuture<'static, io::Result<Snapshot>> {
        let shared = self.shared.clone();
        Box::pin(async move {
            tokio::task::spawn_blocking(move || shared.finish(&draft).map_err(io::Error::from))
                .await
                .map_err(io::Error::other)?
        })
    }

    fn latest(&self) -> io::Result<Option<(Snapshot, Bytes)>> {
        let latest = self.shared.latest();
        Ok(latest.as_ref().map(|(_, snapshot)| (snapshot.clone(), snapshot.manifest().meta.clone())))
    }

    fn install(&self, snapshot: Snapshot) -> BoxFuture<'static, io::Result<()>> {
        let shared = self.shared.clone();
        Box::pin(async move {
            tokio::task::spawn_blocking(move || shared.install(&snapshot).map_err(io::Error::from))
                .await
                .map_err(io::Error::other)?
        })
    }

    fn get(&self, table: u8, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let instance = self.shared.current.load_full();
        let found = instance.db().get_cf(instance.family(ROWS), row_key(table, key));
        found.map_err(|e| instance.error(e))
    }

    fn scan(&self, table: u8, from: &[u8], limit: usize) -> io::Result<Vec<Row>> {
        let instance = self.shared.current.load_full();
        let (from, end) = (row_key(table, from), table_end(table));
        collect(&instance, &from, &end, limit, Direction::Forward)
    }

    fn scan_back(&self, table: u8, before: Option<&[u8]>, limit: usize) -> io::Result<Vec<Row>> {
        let instance = self.shared.current.load_full();
        let end = before.map_or_else(|| table_end(table), |key| row_key(table, key));
        collect(&instance, &[table], &end, limit, Direction::Reverse)
    }
}
