//! The log on RocksDB: one instance, one WAL, one thread that writes and syncs.
//!
//! Log, vote, committed and purged share the WAL, so their order survives a crash. The thread
//! drains everything queued, writes it as one batch, syncs once and completes all of it: group
//! commit without a timer. It does not know what the rows mean.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, IteratorMode, Options, ReadOptions,
    WriteBatch, WriteOptions,
};

use super::Error;
use super::disk::{Disk, Done, Loaded, Op, READ_BYTES, Row};
use super::fatal::Fatal;

const LOG: &str = "log";
const META: &str = "meta";
const VOTE: &[u8] = b"vote";
const COMMITTED: &[u8] = b"committed";
const PURGED: &[u8] = b"purged";

/// Most bytes put into one batch before it is synced; bounds the memory of a burst.
const BATCH_BYTES: usize = 8 << 20;

/// Told how long each sync of the WAL took.
pub type OnSync = Arc<dyn Fn(Duration) + Send + Sync>;

struct Job {
    ops: Vec<Op>,
    done: Option<Done>,
}

/// See the module. Dropping it drains the queue and closes the database.
pub struct LogDb {
    db: Arc<DB>,
    path: PathBuf,
    // The queue is bounded by its users: a follower has at most the 64 requests that its append stream accepts, a leader
    // at most 8 entries in flight and those that its followers had synced before it: of a disk that hangs it is relieved
    // (raft/relief.rs).
    queue: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    busy: Busy,
}

/// Since when the thread has been writing and syncing one batch; None while it waits for the next.
type Busy = Arc<Mutex<Option<Instant>>>;

fn set_busy(busy: &Busy, since: Option<Instant>) {
    *busy.lock().expect("no panic while held") = since;
}

impl LogDb {
    /// Opens `dir`. With `create` unset a missing database is an error, see `identity::formatted`.
    pub fn open(dir: &Path, create: bool, fatal: Fatal, on_sync: OnSync) -> Result<Self, Error> {
        let cfs = [
            ColumnFamilyDescriptor::new(LOG, column_options(16 << 20)),
            ColumnFamilyDescriptor::new(META, column_options(4 << 20)),
        ];
        let db = DB::open_cf_descriptors(&database_options(create), dir, cfs).map_err(|e| Error::db(dir, e))?;
        let db = Arc::new(db);
        let (queue, jobs) = channel();
        let busy = Busy::default();
        let worker = Worker { db: db.clone(), fatal, on_sync, failed: false, busy: busy.clone() };
        let thread = std::thread::Builder::new()
            .name("wal-sync".into())
            .spawn(move || worker.run(&jobs))
            .map_err(|e| Error::io(dir, e))?;
        let (queue, thread) = (Mutex::new(Some(queue)), Mutex::new(Some(thread)));
        Ok(Self { db, path: dir.to_path_buf(), queue, thread, busy })
    }

    /// When the present write or sync began, if there is one.
    pub fn busy_since(&self) -> Option<Instant> {
        *self.busy.lock().expect("no panic while held")
    }

    /// Finishes what is queued, syncs it and closes the queue. Later submits fail.
    pub fn close(&self) {
        drop(self.queue.lock().expect("no panic while held").take());
        let thread = self.thread.lock().expect("no panic while held").take();
        if let Some(thread) = thread {
            // A panic of the worker has been reported by its own hook.
            let _ = thread.join();
        }
    }
}

impl Drop for LogDb {
    fn drop(&mut self) {
        self.close();
    }
}

fn database_options(create: bool) -> Options {
    let mut options = Options::default();
    options.create_if_missing(create);
    options.create_missing_column_families(create);
    // A torn last record is the normal trace of a crash. A bad record further up is damage and
    // must stop the member; the default mode would silently drop acknowledged entries behind it.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_recycle_log_file_num(0);
    options.set_max_total_wal_size(256 << 20);
    options.set_max_background_jobs(2);
    options.set_max_open_files(256);
    options.set_keep_log_file_num(4);
    options.set_bytes_per_sync(1 << 20);
    options
}

fn column_options(write_buffer: usize) -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(write_buffer);
    options.set_compression_type(DBCompressionType::Lz4);
    options
}

fn family<'a>(db: &'a DB, name: &str) -> &'a ColumnFamily {
    db.cf_handle(name).expect("opened with this column family")
}

struct Worker {
    db: Arc<DB>,
    fatal: Fatal,
    on_sync: OnSync,
    failed: bool,
    busy: Busy,
}

impl Worker {
    fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut batch = WriteBatch::default();
            let mut done = Vec::new();
            self.stage(&mut batch, first, &mut done);
            while batch.size_in_bytes() < BATCH_BYTES
                && let Ok(job) = jobs.try_recv()
            {
                self.stage(&mut batch, job, &mut done);
            }
            set_busy(&self.busy, Some(Instant::now()));
            let result = self.commit(batch, !done.is_empty());
            set_busy(&self.busy, None);
            for one in done {
                one(match &result {
                    Ok(()) => Ok(()),
                    Err(e) => Err(io::Error::new(e.kind(), e.to_string())),
                });
            }
        }
    }

    fn stage(&self, batch: &mut WriteBatch, job: Job, done: &mut Vec<Done>) {
        let (log, meta) = (family(&self.db, LOG), family(&self.db, META));
        for op in job.ops {
            match op {
                Op::Append { index, row } => batch.put_cf(log, index.to_be_bytes(), row),
                Op::Truncate { from, through } => {
                    batch.delete_range_cf(log, &from.to_be_bytes()[..], &end_key(through)[..]);
                }
                Op::Purge { from, through, marker } => {
                    batch.put_cf(meta, PURGED, marker);
                    batch.delete_range_cf(log, &from.to_be_bytes()[..], &end_key(through)[..]);
                }
                Op::Vote(row) => batch.put_cf(meta, VOTE, row),
                Op::Committed(row) => batch.put_cf(meta, COMMITTED, row),
            }
        }
        done.extend(job.done);
    }

    fn commit(&mut self, batch: WriteBatch, sync: bool) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write failed"));
        }
        let started = Instant::now();
        let write = || -> Result<(), rocksdb::Error> {
            self.db.write_opt(batch, &WriteOptions::default())?;
            if sync {
                self.db.flush_wal(true)?;
            }
            Ok(())
        };
        match write() {
            Ok(()) => {
                if sync {
                    (self.on_sync)(started.elapsed());
                }
                Ok(())
            }
            Err(e) => {
                // Never tried again: after a failed sync a second one proves nothing.
                self.failed = true;
                self.fatal.raise(&format!("writing the log: {e}"));
                Err(io::Error::other(e.into_string()))
            }
        }
    }
}

/// The smallest key above row `through`.
fn end_key(through: u64) -> [u8; 9] {
    let mut key = [0; 9];
    key[..8].copy_from_slice(&through.to_be_bytes());
    key
}

fn read_rows(db: &DB, range: Range<u64>) -> Result<Vec<Row>, rocksdb::Error> {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(range.start.to_be_bytes());
    options.set_iterate_upper_bound(range.end.to_be_bytes());
    let mut rows = Vec::new();
    let mut bytes = 0;
    for row in db.iterator_cf_opt(family(db, LOG), options, IteratorMode::Start) {
        let (key, value) = row?;
        let Some(index) = key[..].try_into().ok().map(u64::from_be_bytes) else { break };
        if rows.last().is_some_and(|(last, _)| last + 1 != index) {
            break;
        }
        bytes += value.len();
        rows.push((index, Bytes::from(value.into_vec())));
        if bytes >= READ_BYTES {
            break;
        }
    }
    Ok(rows)
}

impl Disk for LogDb {
    fn load(&self) -> io::Result<Loaded> {
        let load = || -> Result<Loaded, rocksdb::Error> {
            let (log, meta) = (family(&self.db, LOG), family(&self.db, META));
            let get = |key: &[u8]| Ok(self.db.get_cf(meta, key)?.map(Bytes::from));
            let last = self.db.iterator_cf(log, IteratorMode::End).next();
            let last = last.transpose()?.and_then(|(key, value)| {
                let index = u64::from_be_bytes(key[..].try_into().ok()?);
                Some((index, Bytes::from(value.into_vec())))
            });
            Ok(Loaded { vote: get(VOTE)?, committed: get(COMMITTED)?, purged: get(PURGED)?, last })
        };
        load().map_err(|e| Error::db(&self.path, e).into())
    }

    fn submit(&self, ops: Vec<Op>, done: Option<Done>) {
        let job = Job { ops, done };
        let queue = self.queue.lock().expect("no panic while held").clone();
        let refused = match queue {
            Some(queue) => queue.send(job).err().map(|e| e.0),
            None => Some(job),
        };
        if let Some(Job { done: Some(done), .. }) = refused {
            done(Err(io::Error::other("the log is closed")));
        }
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'static, io::Result<Vec<Row>>> {
        let (db, path) = (self.db.clone(), self.path.clone());
        Box::pin(async move {
            tokio::task::spawn_blocking(move || read_rows(&db, range))
                .await
                .map_err(io::Error::other)?
                .map_err(|e| Error::db(path, e).into())
        })
    }
}
