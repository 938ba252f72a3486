//! One request from its arrival to its end, as its caller lived through it, waiting
//! included; and what many of them say about the promise of a service. Counts, and
//! decides nothing.

use super::desk::Desk;
use super::shares::Place;
use crate::exchange::sights::{BUCKETS, bucket_of};
use nf_core::id::{JobNo, Revision};
use nf_core::slo::{Count, History, Verdict, Window, Windows};
use std::collections::VecDeque;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Latencies of so many minutes are kept one by one.
const RECENT: usize = 5;

/// How one service kept its promise, here.
#[derive(Debug, Default)]
pub struct Record {
    history: History,
    ever: Count,
    /// Latencies by minute, the newest last.
    latencies: VecDeque<(u64, [u32; BUCKETS])>,
}

impl Record {
    /// A request ended now. `latency` is None where no answer came.
    pub fn take(&mut self, verdict: Verdict, latency: Option<Duration>) {
        let now = now_seconds();
        self.history.take(now, verdict);
        self.ever.take(verdict);
        let Some(latency) = latency else { return };
        let minute = now / 60;
        if self.latencies.back().is_none_or(|(last, _)| *last < minute) {
            self.latencies.push_back((minute, [0; BUCKETS]));
        }
        while self.latencies.len() > RECENT {
            self.latencies.pop_front();
        }
        if let Some((_, counts)) = self.latencies.back_mut() {
            let ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
            counts[bucket_of(ms)] = counts[bucket_of(ms)].saturating_add(1);
        }
    }

    pub fn windows(&self) -> Windows {
        self.history.windows(now_seconds())
    }

    pub fn window(&self, which: Window) -> Count {
        self.history.window(now_seconds(), which)
    }

    pub fn ever(&self) -> Count {
        self.ever
    }

    /// Latencies of the last minutes, by bucket.
    pub fn recent(&self) -> Vec<u64> {
        let first = (now_seconds() / 60 + 1).saturating_sub(RECENT as u64);
        let mut sum = vec![0; BUCKETS];
        for (_, counts) in self.latencies.iter().filter(|(minute, _)| *minute >= first) {
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += u64::from(*count));
        }
        sum
    }
}

/// Seconds that this process counts. What is kept is kept for the process alone, so it need not know the
/// date, and nobody who sets the clock moves it.
fn now_seconds() -> u64 {
    static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);
    BEGINNING.elapsed().as_secs()
}

/// What is known of how it went.
#[derive(Debug, Default)]
struct Course {
    latency: Option<Duration>,
    failed: bool,
    /// The version that has it, where its job goes from one to another, and how long it had waited then.
    trial: Option<(JobNo, Revision, Duration)>,
}

/// See the module. It is judged when its last owner lets go of it.
#[derive(Debug)]
pub struct Trip {
    pub desk: Arc<Desk>,
    arrived: Instant,
    promised: Duration,
    course: Mutex<Course>,
    /// It is one of its tenant's for as long as it lasts.
    _place: Option<Place>,
}

impl Trip {
    pub fn new(desk: Arc<Desk>, promised: Duration, place: Option<Place>) -> Self {
        Self { desk, arrived: Instant::now(), promised, course: Mutex::default(), _place: place }
    }

    /// A replica gets it, or another one after all.
    pub fn goes_to(&self, trial: Option<(JobNo, Revision)>) {
        let trial = trial.map(|(job, revision)| (job, revision, self.arrived.elapsed()));
        self.course.lock().unwrap_or_else(PoisonError::into_inner).trial = trial;
    }

    /// The caller has the answer, or sees it begin; only the first time counts. `unread`: how long it was there for the
    /// taking.
    pub fn answered(&self, unread: Duration) {
        let mut course = self.course.lock().unwrap_or_else(PoisonError::into_inner);
        course.latency.get_or_insert_with(|| self.arrived.elapsed().saturating_sub(unread));
    }

    /// A server's error, a break in the middle, or no answer.
    pub fn failed(&self) {
        self.course.lock().unwrap_or_else(PoisonError::into_inner).failed = true;
    }
}

impl Drop for Trip {
    fn drop(&mut self) {
        let course = std::mem::take(self.course.get_mut().unwrap_or_else(PoisonError::into_inner));
        let took = self.arrived.elapsed();
        if let Some(verdict) = verdict(&course, Duration::ZERO, took, self.promised) {
            self.desk.judged(verdict, course.latency);
        }
        // A version is judged by what it did: how long it was waited for is no fault of its own.
        if let Some((job, revision, waited)) = course.trial
            && let Some(verdict) = verdict(&course, waited, took, self.promised)
        {
            self.desk.tried((job, revision), verdict);
        }
    }
}

/// How it went, without the first part of the time; None when it says nothing about the service.
fn verdict(course: &Course, without: Duration, took: Duration, promised: Duration) -> Option<Verdict> {
    let latency = course.latency.map(|latency| latency.saturating_sub(without));
    match (course.failed, latency) {
        (true, _) => Some(Verdict::Failed),
        (false, Some(latency)) if latency <= promised => Some(Verdict::Good),
        (false, Some(_)) => Some(Verdict::Slow),
        // Its caller left. Before the promised time that says nothing about the service.
        (false, None) => (took.saturating_sub(without) > promised).then_some(Verdict::Slow),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn after(promised: Duration, what: impl FnOnce(&Trip)) -> Count {
        let desk = Arc::new(Desk::default());
        what(&Trip::new(desk.clone(), promised, None));
        desk.kept().0
    }

    fn prompt(trip: &Trip) {
        trip.answered(Duration::ZERO);
    }

    #[test]
    fn a_trip_is_judged_once_by_the_worst_that_happened() {
        let (good, slow, failed) = (1, 1, 1);
        assert_eq!(after(LONG, prompt), Count { good, ..Count::default() });
        assert_eq!(after(Duration::ZERO, prompt), Count { slow, ..Count::default() });
        assert_eq!(after(LONG, Trip::failed), Count { failed, ..Count::default() });
        let broken_in_the_middle = |trip: &Trip| {
            trip.answered(Duration::ZERO);
            trip.failed();
        };
        assert_eq!(after(LONG, broken_in_the_middle), Count { failed, ..Count::default() });
    }

    #[test]
    fn who_leaves_early_says_nothing_and_who_leaves_late_was_let_down() {
        assert_eq!(after(LONG, |_| ()), Count::default());
        assert_eq!(after(Duration::ZERO, |_| ()), Count { slow: 1, ..Count::default() });
    }

    #[test]
    fn a_version_is_not_judged_by_the_time_before_it_had_the_request() {
        let waited = Duration::from_secs(5);
        let course = Course { latency: Some(Duration::from_secs(6)), ..Course::default() };
        let of = |without| verdict(&course, without, Duration::from_secs(6), Duration::from_secs(2));
        assert_eq!((of(Duration::ZERO), of(waited)), (Some(Verdict::Slow), Some(Verdict::Good)));
    }

    #[tokio::test]
    async fn a_stream_is_as_fast_as_its_beginning() {
        let desk = Arc::new(Desk::default());
        let trip = Trip::new(desk.clone(), Duration::from_millis(200), None);
        trip.answered(Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(250)).await;
        trip.answered(Duration::ZERO);
        drop(trip);
        assert_eq!(desk.kept().0, Count { good: 1, ..Count::default() });
        assert_eq!(desk.record(|record| record.recent()).iter().sum::<u64>(), 1);
    }
}
