//! An answer on its way from a replica to its caller, piece by piece as it comes. The replica's place is kept
//! until the last piece, and no longer than either side keeps the other waiting: a replica that falls silent is
//! given up, and so is a caller that takes nothing of what is there.

use super::desk::Seat;
use axum::body::{BodyDataStream, Bytes};
use futures::{Stream, StreamExt};
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};
use tracing::Span;

/// How long either side may keep the other waiting.
#[derive(Clone, Copy)]
pub struct Patience {
    /// A replica may be silent in the middle of its answer.
    silent: Duration,
    /// A caller may take nothing of what is there for it. Nothing else ends this: of a caller that is alive and does not
    /// read, the protocols know no limit, and its replica could neither serve another nor be stopped.
    unread: Duration,
    /// Between two looks for such callers.
    look: Duration,
}

pub const PATIENCE: Patience =
    Patience { silent: Duration::from_secs(300), unread: Duration::from_secs(60), look: Duration::from_secs(5) };

/// See the module.
pub struct Answer {
    pieces: BodyDataStream,
    /// None once the answer is complete, or broken.
    seat: Option<Seat>,
    /// Bytes still to come, where the replica says how many there are.
    left: Option<u64>,
    streams: bool,
    /// When the last piece was handed out, if no other has been asked for since.
    given: Option<Instant>,
    /// For how long pieces lay there in all.
    unread: Duration,
    patience: Patience,
    silent: Pin<Box<Sleep>>,
    /// Lasts as long as the answer does.
    _span: Span,
}

impl Answer {
    /// `left`: its bytes, where that is known. `streams`: its caller has it from its first piece on.
    pub fn new(pieces: BodyDataStream, seat: Seat, left: Option<u64>, streams: bool, span: Span) -> Self {
        let (seat, patience, unread) = (Some(seat), PATIENCE, Duration::ZERO);
        let silent = Box::pin(sleep(patience.silent));
        let mut answer = Self { pieces, seat, left, streams, given: None, unread, patience, silent, _span: span };
        answer.end_if_whole();
        answer
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, axum::Error>>> {
        if let Some(given) = self.given.take() {
            self.unread += given.elapsed();
            self.silent.as_mut().reset(Instant::now() + self.patience.silent);
        }
        match self.pieces.poll_next_unpin(cx) {
            Poll::Ready(Some(Ok(piece))) => {
                self.passes(&piece);
                Poll::Ready(Some(Ok(piece)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(self.breaks(error)))),
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
            Poll::Pending if self.silent.as_mut().poll(cx).is_ready() => {
                Poll::Ready(Some(Err(self.breaks(axum::Error::new(std::io::Error::from(ErrorKind::TimedOut))))))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn passes(&mut self, piece: &Bytes) {
        self.given = Some(Instant::now());
        if let Some(seat) = self.seat.as_ref().filter(|_| self.streams) {
            seat.begun();
        }
        self.left = self.left.map(|left| left.saturating_sub(piece.len() as u64));
        self.end_if_whole();
    }

    fn breaks(&mut self, error: axum::Error) -> axum::Error {
        if let Some(seat) = self.seat.take() {
            seat.failed();
        }
        error
    }

    /// Who sends the answer on stops asking after its last byte: the end of a known length shows there, or never.
    fn end_if_whole(&mut self) {
        if self.left == Some(0) {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Some(seat) = self.seat.take() {
            seat.answered(self.unread);
        }
    }

    /// Whether its caller has taken nothing for too long, while a replica's place hangs on it.
    fn is_unread(&self) -> bool {
        self.seat.is_some() && self.given.is_some_and(|given| given.elapsed() >= self.patience.unread)
    }
}

/// None once it was given up.
type Slot = Mutex<Option<Answer>>;

fn lock(slot: &Slot) -> MutexGuard<'_, Option<Answer>> {
    // What panicked in the middle of an answer is not asked again: its caller is gone with it.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answers under way, so that those which nobody reads are found.
pub struct Unread {
    all: Arc<Mutex<Vec<Weak<Slot>>>>,
    patience: Patience,
}

impl Unread {
    /// Must be called on a runtime; its task ends with it.
    pub fn new(patience: Patience) -> Self {
        let all: Arc<Mutex<Vec<Weak<Slot>>>> = Arc::default();
        let looked_at = Arc::downgrade(&all);
        tokio::spawn(async move {
            while let Some(all) = looked_at.upgrade() {
                give_up(&all);
                drop(all);
                sleep(patience.look).await;
            }
        });
        Self { all, patience }
    }

    /// The pieces of the answer as they come.
    pub fn follow(&self, mut answer: Answer) -> Pieces {
        answer.patience = self.patience;
        // One that is whole already holds no place.
        let followed = answer.seat.is_some();
        let slot = Arc::new(Mutex::new(Some(answer)));
        if followed {
            self.all.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&slot));
        }
        Pieces { slot, told: false }
    }
}

fn give_up(all: &Mutex<Vec<Weak<Slot>>>) {
    let mut dropped = Vec::new();
    all.lock().unwrap_or_else(PoisonError::into_inner).retain(|slot| {
        let Some(slot) = slot.upgrade() else { return false };
        let mut answer = lock(&slot);
        let unread = answer.as_ref().is_some_and(Answer::is_unread);
        if unread {
            dropped.extend(answer.take());
        }
        !unread
    });
    // With it go the connection to the replica and its place there. Its caller had its answer, as far as we are.
    for mut answer in dropped {
        answer.unread += answer.given.map_or(Duration::ZERO, |given| given.elapsed());
        answer.end();
    }
}

/// See [`Unread::follow`].
pub struct Pieces {
    slot: Arc<Slot>,
    told: bool,
}

impl Stream for Pieces {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = lock(&self.slot).as_mut().map(|answer| answer.poll(cx));
        match next {
            Some(next) => next,
            None if self.told => Poll::Ready(None),
            None => {
                self.told = true;
                Poll::Ready(Some(Err(axum::Error::new(std::io::Error::from(ErrorKind::TimedOut)))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::desk::Desk;
    use crate::gateway::table::{Endpoint, Who};
    use crate::telemetry::Metrics;
    use axum::body::Body;
    use nf_core::id::{Generation, JobNo};

    fn seat(desk: &Arc<Desk>) -> Seat {
        let who = Who { job: JobNo(1), replica: 0, generation: Generation(1) };
        let endpoint = Endpoint { who, address: "127.0.0.1:1".into(), slots: 8, trial: None, share_milli: None };
        let waiting = desk.arrive(Duration::from_secs(1), None);
        waiting.take(&[endpoint], 0, &[], &Metrics::new("test", "test")).unwrap()
    }

    fn answer(desk: &Arc<Desk>, pieces: impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static) -> Answer {
        Answer::new(Body::from_stream(pieces).into_data_stream(), seat(desk), None, false, Span::none())
    }

    const SHORT: Patience = Patience {
        silent: Duration::from_millis(900),
        unread: Duration::from_millis(600),
        look: Duration::from_millis(50),
    };

    #[tokio::test]
    async fn who_takes_nothing_of_its_answer_holds_no_replica_for_ever() {
        let (desk, all) = (Arc::new(Desk::default()), Unread::new(SHORT));
        let endless = || futures::stream::repeat_with(|| Ok(Bytes::from_static(b"piece")));
        let (mut stuck, mut slow) = (all.follow(answer(&desk, endless())), all.follow(answer(&desk, endless())));
        assert!(stuck.next().await.is_some_and(|piece| piece.is_ok()));
        let began = Instant::now();
        while lock(&stuck.slot).is_some() {
            assert!(slow.next().await.is_some_and(|piece| piece.is_ok()), "one that goes on reading is let read");
            sleep(SHORT.look).await;
        }
        assert!(began.elapsed() >= SHORT.unread);
        assert!(stuck.next().await.is_some_and(|piece| piece.is_err()));
        assert!(stuck.next().await.is_none());
        assert!(desk.is_busy());
        drop(slow);
        assert!(!desk.is_busy());
    }

    #[tokio::test]
    async fn a_silent_replica_is_given_up() {
        let (desk, all) = (Arc::new(Desk::default()), Unread::new(SHORT));
        let pieces = futures::stream::iter([Ok(Bytes::from_static(b"piece"))]).chain(futures::stream::pending());
        let mut silent = all.follow(answer(&desk, pieces));
        assert!(silent.next().await.is_some_and(|piece| piece.is_ok()));
        let began = Instant::now();
        assert!(silent.next().await.is_some_and(|piece| piece.is_err()));
        assert!(began.elapsed() >= SHORT.silent, "its caller waits, so it is not unread");
        assert!(!desk.is_busy());
    }

    #[tokio::test]
    async fn how_long_a_caller_takes_to_read_is_not_how_long_its_answer_took() {
        let desk = Arc::new(Desk::default());
        let pieces = futures::stream::iter(["a", "b"].map(|piece| Ok(Bytes::from_static(piece.as_bytes()))));
        let mut read = Unread::new(PATIENCE).follow(answer(&desk, pieces));
        let pause = Duration::from_millis(300);
        while read.next().await.is_some() {
            sleep(pause).await;
        }
        assert!(lock(&read.slot).as_ref().is_some_and(|answer| answer.unread >= 2 * pause));
        drop(read);
        let below = crate::exchange::sights::bucket_of(500);
        let taken = desk.record(|record| record.recent()).iter().take(below).sum::<u64>();
        assert_eq!(taken, 1, "the answer itself took no time");
    }
}
