//! openraft's log storage on a [`Disk`]: entries are readable on return, reported when durable.
//!
//! The newest entries are kept in memory, so replication and apply rarely read the disk. Vote and
//! entries go through the same queue and therefore keep their order. It does not know RocksDB.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures::{Stream, TryStreamExt, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{AsyncRuntime, OptionalSend};

use super::encoding;
use super::types::{Entry, LogId, Types, Vote};
use crate::storage::disk::{Disk, Loaded, Op, READ_BYTES};
use crate::storage::frame;

/// Entries kept in memory beyond those that are not yet durable: some seconds at full load. Decoded
/// they take two to three times as much.
const CACHE_BYTES: usize = 8 << 20;
/// A bound on their number, as small entries cost more than their bytes.
const CACHE_ENTRIES: usize = 16_384;

const VOTE: &[u8] = b"vote";
const COMMITTED: &[u8] = b"committed";
const PURGED: &[u8] = b"purged";

/// The log of one member. Clones share it; openraft takes some as readers.
pub struct LogStore<D> {
    disk: Arc<D>,
    inner: Arc<Mutex<Inner>>,
}

impl<D> Clone for LogStore<D> {
    fn clone(&self) -> Self {
        Self { disk: self.disk.clone(), inner: self.inner.clone() }
    }
}

#[derive(Default)]
struct Inner {
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// `committed` is news to the disk.
    unwritten: bool,
    purged: Option<LogId>,
    last: Option<LogId>,
    cache: Cache,
    appended_bytes: u64,
}

impl Inner {
    /// To go with the next write.
    fn committed_op(&mut self) -> Option<Op> {
        let news = std::mem::take(&mut self.unwritten);
        news.then(|| Op::Committed(seal(COMMITTED, &encoding::encode_log_id(self.committed.as_ref()))))
    }
}

/// The newest entries, without holes.
#[derive(Default)]
struct Cache {
    entries: VecDeque<Cached>,
    bytes: usize,
    /// Counts appends. An entry may leave memory once its append is known to be durable; until
    /// then the disk may still hold an older entry under the same index.
    appends: u64,
    durable: u64,
}

struct Cached {
    entry: Entry,
    bytes: usize,
    append: u64,
}

impl Cache {
    fn first(&self) -> Option<u64> {
        self.entries.front().map(|c| c.entry.log_id.index)
    }
    fn push(&mut self, entry: Entry, bytes: usize) {
        self.bytes += bytes;
        self.entries.push_back(Cached { entry, bytes, append: self.appends });
    }
    fn evict(&mut self) {
        while self.bytes > CACHE_BYTES || self.entries.len() > CACHE_ENTRIES {
            match self.entries.front() {
                Some(front) if front.append <= self.durable => self.pop_front(),
                _ => return,
            }
        }
    }
    fn pop_front(&mut self) {
        if let Some(old) = self.entries.pop_front() {
            self.bytes -= old.bytes;
        }
    }
    fn truncate(&mut self, from: u64) {
        while let Some(back) = self.entries.back()
            && back.entry.log_id.index >= from
        {
            self.bytes -= back.bytes;
            self.entries.pop_back();
        }
    }
    fn purge(&mut self, through: u64) {
        while self.first().is_some_and(|first| first <= through) {
            self.pop_front();
        }
    }
    fn get(&self, range: Range<u64>, limit: usize) -> Option<Vec<Entry>> {
        let first = self.first()?;
        let skip = usize::try_from(range.start.checked_sub(first)?).ok()?;
        let mut bytes = 0;
        let mut out = Vec::new();
        for cached in self.entries.iter().skip(skip) {
            if cached.entry.log_id.index >= range.end || bytes >= limit {
                break;
            }
            bytes += cached.bytes;
            out.push(cached.entry.clone());
        }
        Some(out)
    }
}

fn open<T>(name: &[u8], row: Option<&Bytes>, decode: impl Fn(&[u8]) -> io::Result<T>) -> io::Result<Option<T>> {
    let Some(row) = row else { return Ok(None) };
    let wrap = |e: io::Error| {
        let name = String::from_utf8_lossy(name);
        frame::invalid(format!("raft log: the stored {name} is damaged: {e}"))
    };
    let body = frame::open(name, row).map_err(wrap)?;
    decode(body).map(Some).map_err(wrap)
}

fn open_entry(index: u64, row: &[u8]) -> io::Result<Entry> {
    let entry = frame::open(&index.to_be_bytes(), row).and_then(|body| encoding::decode_entry(index, body));
    entry.map_err(|e| frame::invalid(format!("raft log: entry {index} is damaged: {e}")))
}

fn seal(name: &[u8], body: &[u8]) -> Bytes {
    Bytes::from(frame::seal(name, body))
}

impl<D: Disk> LogStore<D> {
    /// Reads what the disk holds. Fails on damage rather than starting with less than was promised.
    pub fn open(disk: Arc<D>) -> io::Result<Self> {
        let Loaded { vote, committed, purged, last } = disk.load()?;
        let purged = open(PURGED, purged.as_ref(), encoding::decode_log_id)?.flatten();
        let last = last.map(|(index, row)| open_entry(index, &row)).transpose()?.map(|entry| entry.log_id);
        let inner = Inner {
            vote: open(VOTE, vote.as_ref(), encoding::decode_vote)?,
            committed: open(COMMITTED, committed.as_ref(), encoding::decode_log_id)?.flatten(),
            purged,
            last: last.max(purged),
            ..Inner::default()
        };
        Ok(Self { disk, inner: Arc::new(Mutex::new(inner)) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while held")
    }

    /// Index up to which there are entries, or were before they were purged.
    pub fn last_index(&self) -> Option<u64> {
        self.lock().last.map(|id| id.index)
    }

    /// Whether member `me` never took part with this log: it holds no more than the entry that forms a group, and no
    /// vote for anybody else. Who is introduced to a group has applied more than that.
    pub fn is_blank(&self, me: u64) -> bool {
        let inner = self.lock();
        inner.last.is_none_or(|id| id.index == 0) && inner.vote.is_none_or(|vote| vote.leader_id.voted_for == me)
    }

    /// Returns when everything that was written before the call is durable.
    pub async fn sync(&self) -> io::Result<()> {
        self.submit_durably(Vec::new()).await
    }

    /// Bytes of log appended since start, for deciding when to flush the state.
    pub fn appended_bytes(&self) -> u64 {
        self.lock().appended_bytes
    }

    /// Entries of `range`; with a limit possibly fewer, but at least one if there is one.
    async fn entries(&self, range: Range<u64>, limit: usize) -> io::Result<Vec<Entry>> {
        let mut out: Vec<Entry> = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let (from_disk, last) = {
                let inner = self.lock();
                if let Some(entries) = inner.cache.get(start..range.end, limit) {
                    follow_on(&mut out, entries)?;
                    return Ok(out);
                }
                let first = inner.cache.first().unwrap_or(u64::MAX);
                (start..range.end.min(first), inner.last)
            };
            // What lies beyond the last entry on disk was cut off and may not be removed yet.
            let end = from_disk.end.min(last.map_or(0, |l| l.index + 1));
            if from_disk.start >= end {
                break;
            }
            let rows = self.disk.read(from_disk.start..end).await?;
            if rows.is_empty() {
                // Purged, or never there; what is in memory may begin further up.
                start = end;
                continue;
            }
            let bytes: usize = rows.iter().map(|(_, row)| row.len()).sum();
            for (index, row) in rows {
                follow_on(&mut out, vec![open_entry(index, &row)?])?;
                start = index + 1;
            }
            if bytes >= limit {
                break;
            }
        }
        Ok(out)
    }

    async fn submit_durably(&self, mut ops: Vec<Op>) -> io::Result<()> {
        ops.extend(self.lock().committed_op());
        let (tx, rx) = tokio::sync::oneshot::channel();
        let done = Box::new(move |result| {
            // The waiter is gone only when the member stops.
            let _ = tx.send(result);
        });
        self.disk.submit(ops, Some(done));
        rx.await.unwrap_or_else(|_| Err(io::Error::other("the log is closed")))
    }
}

/// Adds entries that must follow the ones there: a hole would be applied over in silence.
fn follow_on(out: &mut Vec<Entry>, more: Vec<Entry>) -> io::Result<()> {
    if let (Some(last), Some(next)) = (out.last(), more.first())
        && last.log_id.index + 1 != next.log_id.index
    {
        let missing = last.log_id.index + 1;
        return Err(frame::invalid(format!("raft log: entry {missing} is missing")));
    }
    out.extend(more);
    Ok(())
}

fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(i) => *i,
        Bound::Excluded(i) => i.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(i) => i.saturating_add(1),
        Bound::Excluded(i) => *i,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl<RT: AsyncRuntime, D: Disk> RaftLogReader<Types<RT>> for LogStore<D> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        self.entries(bounds(&range), usize::MAX).await
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // Piece by piece: what is to be applied after a long absence need not fit memory.
        let (store, range) = (self.clone(), bounds(&range));
        let pieces = stream::try_unfold((store, range.start), move |(store, start)| async move {
            if start >= range.end {
                return Ok(None);
            }
            let entries = store.entries(start..range.end, READ_BYTES).await?;
            match (entries.first(), entries.last()) {
                (Some(first), Some(last)) if first.log_id.index == start => {
                    let next = last.log_id.index + 1;
                    Ok(Some((entries, (store, next))))
                }
                (None, _) => Ok(None),
                _ => Err(frame::invalid(format!("raft log: entry {start} is missing"))),
            }
        });
        pieces.map_ok(|entries| stream::iter(entries.into_iter().map(Ok))).try_flatten()
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.lock().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.entries(start..end, READ_BYTES).await
    }
}

impl<RT: AsyncRuntime, D: Disk> RaftLogStorage<Types<RT>> for LogStore<D> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types<RT>>, io::Error> {
        let inner = self.lock();
        Ok(LogState { last_purged_log_id: inner.purged, last_log_id: inner.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.lock().vote = Some(*vote);
        let row = seal(VOTE, &encoding::encode_vote(vote));
        self.submit_durably(vec![Op::Vote(row)]).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        // Rides with the next write: losing it costs a later start of reads, nothing else.
        let mut inner = self.lock();
        (inner.committed, inner.unwritten) = (committed, true);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types<RT>>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (ops, append) = {
            let mut inner = self.lock();
            inner.cache.appends += 1;
            let mut ops = Vec::new();
            for entry in entries {
                let index = entry.log_id.index;
                let body = encoding::encode_entry(&entry);
                let row = seal(&index.to_be_bytes(), &body);
                inner.appended_bytes += row.len() as u64;
                inner.last = Some(entry.log_id);
                inner.cache.push(entry, row.len());
                ops.push(Op::Append { index, row });
            }
            ops.extend(inner.committed_op());
            inner.cache.evict();
            (ops, inner.cache.appends)
        };
        let inner = self.inner.clone();
        let done = Box::new(move |result: io::Result<()>| {
            if result.is_ok() {
                let mut inner = inner.lock().expect("no panic while held");
                inner.cache.durable = inner.cache.durable.max(append);
            }
            callback.io_completed(result);
        });
        self.disk.submit(ops, Some(done));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let op = {
            let mut inner = self.lock();
            let from = last_log_id.map_or(0, |id| id.index + 1);
            let Some(through) = inner.last.map(|last| last.index) else {
                return Ok(());
            };
            if through < from {
                return Ok(());
            }
            inner.cache.truncate(from);
            inner.last = last_log_id.max(inner.purged);
            Op::Truncate { from, through }
        };
        self.disk.submit(vec![op], None);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let op = {
            let mut inner = self.lock();
            if inner.purged >= Some(log_id) {
                return Ok(());
            }
            // Old rows are not looked at again, so the range starts where the last one ended.
            let from = inner.purged.map_or(0, |id| id.index + 1);
            inner.purged = Some(log_id);
            inner.last = inner.last.max(Some(log_id));
            inner.cache.purge(log_id.index);
            Op::Purge { from, through: log_id.index, marker: seal(PURGED, &encoding::encode_log_id(Some(&log_id))) }
        };
        self.disk.submit(vec![op], None);
        Ok(())
    }
}
