//! Watching: events from a sequence number on, resumable, with a heartbeat when
//! nothing happens. A feed holds numbers between two reads and never a state, so
//! a slow client costs nothing. It does not know SSE or gRPC.

use super::Service;
use crate::api::auth::{Gate, Who};
use crate::api::error::Failure;
use crate::raft::{Applied, Replica};
use nf_core::event::Event;
use nf_core::id::TenantId;
use nf_core::reason::{Reason, Refusal};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};

/// How long a watch is silent at most.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// Events read at once.
const CHUNK: usize = 256;
/// Applied indexes whose event number is remembered.
const MAX_MARKS: usize = 8192;

/// What a feed says next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Event(Event),
    /// Nothing happened up to (not including) this event number.
    Heartbeat {
        next: u64,
    },
}

/// A stream of events for one watcher.
pub struct Feed {
    replica: Replica,
    watch: watch::Receiver<Applied>,
    next: u64,
    tenant: Option<TenantId>,
    who: Who,
    gate: Gate,
    ready: VecDeque<Event>,
    first: bool,
    _permit: OwnedSemaphorePermit,
}

impl Service {
    /// A permit for one open stream.
    pub fn open_stream(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let full = |_| {
            Failure::new(
                Reason::TooManyRequests,
                format!("{} streams are open here; ask another member", super::MAX_STREAMS),
            )
        };
        self.streams.clone().try_acquire_owned().map_err(full)
    }

    /// Events from `from` on; None: from now on. It ends when `who` may look no longer.
    pub async fn watch(&self, who: &Who, from: Option<u64>, tenant: Option<TenantId>) -> Result<Feed, Failure> {
        let permit = self.open_stream()?;
        let mut watch = self.replica.watch();
        let now = watch.borrow_and_update().state.meta().next_event;
        let next = from.unwrap_or(now).max(1);
        if next < now {
            self.still_kept(next).await?;
        }
        Ok(Feed {
            replica: self.replica.clone(),
            watch,
            next,
            tenant,
            who: who.clone(),
            gate: self.gate.clone(),
            ready: VecDeque::new(),
            first: true,
            _permit: permit,
        })
    }

    /// Refuses a watch from an event that is kept no longer: it would skip some in silence.
    async fn still_kept(&self, next: u64) -> Result<(), Failure> {
        match self.replica.events(next, 1).await?.first() {
            Some(event) if event.seq > next => Err(compacted(next, event.seq)),
            _ => Ok(()),
        }
    }

    /// The first event after the given applied log index.
    pub fn event_after_index(&self, index: u64) -> Result<u64, Failure> {
        let applied = self.replica.applied();
        if index >= applied.index {
            return Ok(applied.state.meta().next_event);
        }
        self.marks.event_after(index).ok_or_else(|| {
            let detail = format!(
                "log index {index} is older than what this member remembers; read again and watch from the index that the answer carries"
            );
            Refusal::field(Reason::IndexCompacted, "index", detail).into()
        })
    }

    /// At most `limit` events from `from` on, and the next number to ask for.
    pub async fn events(
        &self,
        from: u64,
        limit: usize,
        tenant: Option<&TenantId>,
    ) -> Result<(Vec<Event>, u64), Failure> {
        let events = self.replica.events(from.max(1), limit).await?;
        if let Some(first) = events.first()
            && from > 1
            && first.seq > from
        {
            return Err(compacted(from, first.seq));
        }
        let next = events.last().map_or(from.max(1), |event| event.seq + 1);
        let seen = |event: &Event| tenant.is_none_or(|tenant| event.kind.tenant() == Some(tenant));
        Ok((events.into_iter().filter(seen).collect(), next))
    }
}

fn compacted(asked: u64, first: u64) -> Failure {
    let detail = format!("event {asked} is kept no longer, the oldest is {first}; list again and watch from there");
    Refusal::field(Reason::IndexCompacted, "from", detail).into()
}

impl Feed {
    /// Whose events it tells; None: everybody's.
    pub fn tenant(&self) -> Option<&TenantId> {
        self.tenant.as_ref()
    }

    /// The next event or heartbeat; None when the member shuts down.
    pub async fn next(&mut self) -> Option<Result<Item, Failure>> {
        let next = self.look().await?;
        // After the wait, which may have been long: what is told now is told to one who may know it now.
        Some(self.gate.counts(&self.who).and(next))
    }

    async fn look(&mut self) -> Option<Result<Item, Failure>> {
        // At once, so that a client sees that the watch stands and from where.
        if std::mem::take(&mut self.first) {
            return Some(Ok(Item::Heartbeat { next: self.next }));
        }
        let deadline = tokio::time::Instant::now() + HEARTBEAT;
        loop {
            while let Some(event) = self.ready.pop_front() {
                if self.tenant.as_ref().is_none_or(|tenant| event.kind.tenant() == Some(tenant)) {
                    return Some(Ok(Item::Event(event)));
                }
            }
            let known = self.watch.borrow_and_update().state.meta().next_event;
            if known > self.next
                && let Some(problem) = self.fill().await
            {
                return Some(Err(problem));
            }
            if !self.ready.is_empty() {
                continue;
            }
            match tokio::time::timeout_at(deadline, self.watch.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some(Ok(Item::Heartbeat { next: self.next })),
            }
        }
    }

    /// Reads the next chunk. A gap means that the watcher was slower than the retention.
    async fn fill(&mut self) -> Option<Failure> {
        let events = match self.replica.events(self.next, CHUNK).await {
            Ok(events) => events,
            Err(error) => return Some(error.into()),
        };
        let first = events.first()?.seq;
        if first > self.next {
            return Some(compacted(self.next, first));
        }
        self.next = events.last()?.seq + 1;
        self.ready = events.into();
        None
    }
}

/// Which event came next at which applied index, for watches that start at one.
#[derive(Default)]
pub struct Marks(Mutex<VecDeque<(u64, u64)>>);

impl Marks {
    /// Marks that follow a replica until it ends.
    pub fn follow(replica: &Replica) -> Arc<Self> {
        let marks = Arc::new(Self::default());
        let (weak, mut watch) = (Arc::downgrade(&marks), replica.watch());
        tokio::spawn(async move {
            loop {
                let (index, next) = {
                    let applied = watch.borrow_and_update();
                    (applied.index, applied.state.meta().next_event)
                };
                let Some(marks) = weak.upgrade() else { return };
                marks.note(index, next);
                drop(marks);
                if watch.changed().await.is_err() {
                    return;
                }
            }
        });
        marks
    }

    fn note(&self, index: u64, next: u64) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.len() == MAX_MARKS {
            marks.pop_front();
        }
        marks.push_back((index, next));
    }

    /// The next event at the newest mark that is not past `index`; never skips one.
    fn event_after(&self, index: u64) -> Option<u64> {
        let marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let past = marks.partition_point(|(at, _)| *at <= index);
        past.checked_sub(1).map(|last| marks[last].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_never_skips_and_forgets_the_oldest() {
        let marks = Marks::default();
        for i in 1..=MAX_MARKS as u64 + 10 {
            marks.note(i * 2, i * 100);
        }
        assert_eq!(marks.event_after(3), None);
        assert_eq!(marks.event_after(101), Some(5_000));
        assert_eq!(marks.event_after(u64::MAX), Some((MAX_MARKS as u64 + 10) * 100));
    }
}
