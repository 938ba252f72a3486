//! Where requests for one model are given to its replicas: to the one with least to
//! do, to the one that knows the beginning where that costs nothing, and to none
//! beyond its slots. Counts everything it sees. It knows no HTTP.

use super::line::{Line, Ticket};
use super::shares::Place;
use super::table::{Endpoint, Who};
use super::trip::{Record, Trip};
use crate::exchange::Sight;
use crate::exchange::sights::{BUCKETS, TRIALS, bucket_of};
use crate::telemetry::Metrics;
use nf_core::id::{JobNo, ModelId, Revision, TenantId};
use nf_core::slo::{Count, Verdict, Window};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A replica that could not be reached gets nothing for so long; each time after that twice as long, up to the second.
const SHUNNED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(16));
/// Between two words to the group that a service is wanted.
pub const WAKES: Duration = Duration::from_secs(1);

/// A replica that could not be reached, and not since.
#[derive(Clone, Copy, Debug)]
struct Shun {
    until: Instant,
    pause: Duration,
}

#[derive(Debug)]
struct Counts {
    arrived: u64,
    failed: u64,
    line: Line,
    running: u32,
    answered: Vec<u64>,
    busy: BTreeMap<Who, u32>,
    shunned: BTreeMap<Who, Shun>,
    woken: Option<Instant>,
    record: Record,
    /// What became of the requests to each version, while a job goes from one to another.
    trials: BTreeMap<(JobNo, Revision), Count>,
    /// Thousandths of a request that a canary has yet to get.
    owed_milli: u32,
}

/// A canary that got nothing for a while doesn't get it all at once: two requests at most.
const MOST_OWED: u32 = 2_000;

impl Default for Counts {
    fn default() -> Self {
        let (busy, shunned) = (BTreeMap::new(), BTreeMap::new());
        let answered = vec![0; BUCKETS];
        let record = Record::default();
        let (trials, owed_milli, woken) = (BTreeMap::new(), 0, None);
        Self {
            arrived: 0,
            failed: 0,
            line: Line::default(),
            running: 0,
            answered,
            busy,
            shunned,
            woken,
            record,
            trials,
            owed_milli,
        }
    }
}

/// How promises were kept by models that have no series of their own, all together. Kept beside
/// their desks, so that it goes on when one of them goes.
#[derive(Debug, Default)]
pub struct Others(Mutex<Count>);

impl Others {
    fn take(&self, verdict: Verdict) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(verdict);
    }

    pub fn ever(&self) -> Count {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Desk {
    counts: Mutex<Counts>,
    /// Where its requests are counted in the metrics, if not under its own name.
    others: Option<Arc<Others>>,
}

impl Desk {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Numbers alone are changed under the lock: a panic leaves none half written.
        self.counts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// One that is counted among others.
    pub fn unnamed(others: Arc<Others>) -> Self {
        Self { others: Some(others), ..Self::default() }
    }

    /// Whether it has series of its own.
    pub fn named(&self) -> bool {
        self.others.is_none()
    }

    /// Somebody has come, to whom an answer is promised within `promised`.
    pub fn arrive(self: &Arc<Self>, promised: Duration, place: Option<Place>) -> Waiting {
        let ticket = self.counts().line.arrive();
        Waiting { trip: Arc::new(Trip::new(self.clone(), promised, place)), ticket, counted: AtomicBool::new(false) }
    }

    /// A request ended now. `latency` is None where no answer came.
    pub fn judged(&self, verdict: Verdict, latency: Option<Duration>) {
        self.record(|record| record.take(verdict, latency));
        if let Some(others) = &self.others {
            others.take(verdict);
        }
    }

    /// What a version under trial made of a request.
    pub fn tried(&self, trial: (JobNo, Revision), verdict: Verdict) {
        let mut counts = self.counts();
        counts.trials.entry(trial).or_default().take(verdict);
        if counts.trials.len() > TRIALS {
            counts.trials.pop_first();
        }
    }

    /// Where it is kept how promises were kept.
    pub fn record<T>(&self, keep: impl FnOnce(&mut Record) -> T) -> T {
        keep(&mut self.counts().record)
    }

    /// How the promise was kept in the last hour, and ever.
    pub fn kept(&self) -> (Count, Count) {
        self.record(|record| (record.window(Window::Hour), record.ever()))
    }

    pub fn failed(&self) {
        self.counts().failed += 1;
    }

    /// Whether it is time to say (again) that somebody waits.
    pub fn may_wake(&self) -> bool {
        let mut counts = self.counts();
        let due = counts.woken.is_none_or(|at| at.elapsed() >= WAKES);
        if due {
            counts.woken = Some(Instant::now());
        }
        due
    }

    /// The one of `endpoints` that has room and least to do, and its place there; none while somebody who came
    /// before could have it. Those in `tried` could not be reached with this request: it waits for another rather
    /// than go there again, if there is another.
    fn place<'a>(
        &self,
        ticket: Ticket,
        endpoints: &'a [Endpoint],
        hint: u64,
        tried: &[Who],
    ) -> Result<&'a Endpoint, Denied> {
        let now = Instant::now();
        let counts = &mut *self.counts();
        counts.shunned.retain(|who, _| endpoints.iter().any(|e| e.who == *who));
        let (busy, shunned) = (&counts.busy, &counts.shunned);
        let shuns = |who: &Who| shunned.get(who).is_some_and(|shun| shun.until > now);
        let load = |e: &Endpoint| busy.get(&e.who).copied().unwrap_or(0);
        let room = |e: &Endpoint| load(e) < e.slots && !shuns(&e.who);
        let others = |tried: &[Who]| endpoints.iter().any(|e| !tried.contains(&e.who) && !shuns(&e.who));
        let can = |tried: &[Who]| {
            let others = others(tried);
            endpoints.iter().any(|e| room(e) && !(others && tried.contains(&e.who)))
        };
        if !endpoints.iter().any(room) || counts.line.is_before(ticket, can) {
            return Err(Denied::NotYet);
        }
        let others = others(tried);
        let free = |e: &&Endpoint| room(e) && !(others && tried.contains(&e.who));
        let turn = side(endpoints.iter().filter(free), counts.owed_milli);
        let side = |e: &&Endpoint| free(e) && turn.is_none_or(|canary| e.share_milli.is_some() == canary);
        let least = endpoints.iter().filter(side).map(load).min().ok_or(Denied::ForOthers)?;
        // One more than the least is no great wait, and a warm cache is worth it.
        let near = endpoints.iter().filter(side).filter(|e| load(e) <= least.saturating_add(1));
        let chosen = near.max_by_key(|e| weight(hint, e.who)).ok_or(Denied::ForOthers)?;
        *counts.busy.entry(chosen.who).or_default() += 1;
        counts.running += 1;
        let share = endpoints.iter().find_map(|e| e.share_milli).unwrap_or(0);
        let given = if chosen.share_milli.is_some() { 1_000 } else { 0 };
        counts.owed_milli = (counts.owed_milli + share).saturating_sub(given).min(MOST_OWED);
        Ok(chosen)
    }

    /// When the next replica that could not be reached gets another chance.
    pub fn next_chance(&self) -> Option<Instant> {
        let now = Instant::now();
        self.counts().shunned.values().map(|shun| shun.until).filter(|until| *until > now).min()
    }

    /// Whether requests are held, or with a replica.
    pub fn is_busy(&self) -> bool {
        let counts = self.counts();
        counts.line.len() > 0 || counts.running > 0
    }

    pub fn sight(&self, tenant: TenantId, model: ModelId) -> Sight {
        let counts = self.counts();
        Sight {
            tenant,
            model,
            arrived: counts.arrived,
            failed: counts.failed,
            waiting: counts.line.len(),
            running: counts.running,
            answered: counts.answered.clone(),
            recent: counts.record.recent(),
            windows: counts.record.windows(),
            trials: counts.trials.iter().map(|((job, revision), count)| (*job, *revision, *count)).collect(),
        }
    }
}

/// Why a request gets no place now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denied {
    /// No replica has room, or others came first.
    NotYet,
    /// There is room, where this one could not be brought before.
    ForOthers,
}

/// Whose turn it is where a canary gets a share of its own: true the canary's. None: whoever has room,
/// since there is no canary, or the one whose turn it is has none.
fn side<'a>(free: impl Iterator<Item = &'a Endpoint> + Clone, owed_milli: u32) -> Option<bool> {
    let share = free.clone().find_map(|e| e.share_milli)?;
    let turn = owed_milli.saturating_add(share) >= 1_000;
    free.clone().any(|e| e.share_milli.is_some() == turn).then_some(turn)
}

/// Rendezvous hashing (Thaler and Ravishankar, 1998): who joins or leaves moves only its own share.
fn weight(hint: u64, who: Who) -> u64 {
    let mut hasher = DefaultHasher::new();
    (hint, who).hash(&mut hasher);
    hasher.finish()
}

/// A request that has come and has no answer yet.
pub struct Waiting {
    trip: Arc<Trip>,
    ticket: Ticket,
    /// Among those that arrived: who is refused at once is no load, however often it comes again.
    counted: AtomicBool,
}

impl Waiting {
    pub fn desk(&self) -> &Arc<Desk> {
        &self.trip.desk
    }

    fn count(&self, counts: &mut Counts) {
        if !self.counted.swap(true, Ordering::Relaxed) {
            counts.arrived += 1;
        }
    }

    /// A place with one of `endpoints`, if one has room and nobody who came before waits for it.
    pub fn take(&self, endpoints: &[Endpoint], hint: u64, tried: &[Who], metrics: &Metrics) -> Option<Seat> {
        let desk = self.desk();
        let Endpoint { who, address, trial, .. } = match desk.place(self.ticket, endpoints, hint, tried) {
            Ok(endpoint) => endpoint,
            Err(Denied::NotYet) => return None,
            Err(Denied::ForOthers) => {
                desk.counts().line.call_after(self.ticket);
                return None;
            }
        };
        self.count(&mut desk.counts());
        metrics.gateway_running.inc();
        self.trip.goes_to(trial.map(|revision| (who.job, revision)));
        let (who, address) = (*who, address.clone());
        Some(Seat { trip: self.trip.clone(), who, address, since: Instant::now(), metrics: metrics.clone() })
    }

    /// The replica that it was given to could not be reached: what becomes of it now is no fault of that one.
    pub fn unreached(&self) {
        self.trip.goes_to(None);
    }

    /// It was told that it gets no answer.
    pub fn refused(&self) {
        self.trip.failed();
    }

    /// A place among those that are held; None when all are taken. Look once more before the first wait: what
    /// became free before this was told to others.
    pub fn hold(&self, most: u32, tried: &[Who], metrics: &Metrics) -> Option<Held> {
        let desk = self.desk();
        let mut counts = desk.counts();
        // Who was let in once, and found its replica gone, is not sent away for those who came since.
        if counts.line.len() >= most && !self.counted.load(Ordering::Relaxed) {
            return None;
        }
        let turn = counts.line.join(self.ticket, tried);
        self.count(&mut counts);
        metrics.gateway_waiting.inc();
        Some(Held { desk: desk.clone(), ticket: self.ticket, turn, metrics: metrics.clone() })
    }
}

/// Counted as waiting while it lives.
pub struct Held {
    desk: Arc<Desk>,
    ticket: Ticket,
    turn: Arc<Notify>,
    metrics: Metrics,
}

impl Held {
    /// Until there may be a place for it.
    pub async fn turn(&self) {
        self.turn.notified().await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        {
            let mut counts = self.desk.counts();
            counts.line.leave(self.ticket);
            // It may have been told of a place that it has not taken, or there are more than one.
            counts.line.call_after(0);
        }
        self.metrics.gateway_waiting.dec();
    }
}

/// A place with a replica, until it is dropped.
pub struct Seat {
    trip: Arc<Trip>,
    pub who: Who,
    pub address: Arc<str>,
    since: Instant,
    metrics: Metrics,
}

impl Seat {
    /// The replica could not be reached: others go first for a while.
    pub fn shun(&self) {
        let (mut counts, now) = (self.trip.desk.counts(), Instant::now());
        let pause = match counts.shunned.get(&self.who) {
            // Others that went there at the same time have said so already.
            Some(shun) if shun.until > now => return,
            Some(shun) => (shun.pause * 2).min(SHUNNED.1),
            None => SHUNNED.0,
        };
        counts.shunned.insert(self.who, Shun { until: now + pause, pause });
    }

    /// It could be reached.
    pub fn reached(&self) {
        self.trip.desk.counts().shunned.remove(&self.who);
    }

    /// The first piece of an answer that comes in many has come: the caller sees it begin.
    pub fn begun(&self) {
        self.trip.answered(Duration::ZERO);
    }

    /// The answer is complete. `unread`: how long it lay here, and its caller took nothing of it.
    pub fn answered(&self, unread: Duration) {
        let took = u64::try_from(self.since.elapsed().saturating_sub(unread).as_millis()).unwrap_or(u64::MAX);
        self.trip.desk.counts().answered[bucket_of(took)] += 1;
        self.trip.answered(unread);
    }

    pub fn failed(&self) {
        self.trip.desk.failed();
        self.trip.failed();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let desk = &self.trip.desk;
        {
            let mut counts = desk.counts();
            counts.running -= 1;
            if let Some(busy) = counts.busy.get_mut(&self.who) {
                *busy -= 1;
                if *busy == 0 {
                    counts.busy.remove(&self.who);
                }
            }
            counts.line.call_after(0);
        }
        self.metrics.gateway_running.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::id::Generation;

    fn endpoint(replica: u16, slots: u32, share_milli: Option<u32>) -> Endpoint {
        let who = Who { job: JobNo(1), replica, generation: Generation(1) };
        Endpoint { who, address: "127.0.0.1:1".into(), slots, trial: Some(Revision(1)), share_milli }
    }

    /// Requests that come one after another; how many of them the canary gets.
    fn of_canary(desk: &Desk, endpoints: &[Endpoint], requests: u64) -> usize {
        let one = |hint| {
            let chosen = desk.place(1, endpoints, hint, &[]).expect("there is room");
            let mut counts = desk.counts();
            counts.running -= 1;
            counts.busy.remove(&chosen.who);
            chosen.share_milli.is_some()
        };
        (0..requests).filter(|hint| one(*hint)).count()
    }

    #[test]
    fn a_canary_gets_its_share_whatever_its_replicas() {
        for (share, replicas) in [(100, 1), (100, 3), (330, 1), (10, 1)] {
            let desk = Desk::default();
            let mut endpoints: Vec<Endpoint> = (0..replicas).map(|n| endpoint(n, 8, None)).collect();
            endpoints.push(endpoint(replicas, 8, Some(share)));
            let expected = u64::from(share);
            let got = of_canary(&desk, &endpoints, 1_000) as u64;
            assert!(got.abs_diff(expected) <= 1, "{got} of a thousand, and its share is {expected}");
        }
    }

    #[test]
    fn who_has_room_is_asked_when_the_other_side_has_none() {
        let desk = Desk::default();
        let full = [endpoint(0, 0, None), endpoint(1, 8, Some(10))];
        assert_eq!(of_canary(&desk, &full, 50), 50);
        let alone = [endpoint(0, 8, None), endpoint(1, 0, Some(900))];
        assert_eq!(of_canary(&desk, &alone, 50), 0);
        assert!(desk.counts().owed_milli <= MOST_OWED, "what it could not take it does not get at once");
    }

    #[test]
    fn a_request_does_not_go_again_where_it_could_not_while_there_is_another() {
        let desk = Desk::default();
        let endpoints = [endpoint(0, 8, None), endpoint(1, 1, None)];
        let tried = [endpoints[0].who];
        assert_eq!(desk.place(1, &endpoints, 0, &tried).map(|e| e.who), Ok(endpoints[1].who));
        assert_eq!(desk.place(1, &endpoints, 0, &tried).err(), Some(Denied::ForOthers), "the other is full: it waits");
        assert!(desk.place(1, &endpoints[..1], 0, &tried).is_ok(), "there is no other");
    }

    #[test]
    fn who_came_first_is_served_first() {
        let metrics = Metrics::new("test", "test");
        let desk = Arc::new(Desk::default());
        let endpoints = [endpoint(0, 1, None)];
        let come = || desk.arrive(Duration::from_secs(1), None);
        let take = |waiting: &Waiting| waiting.take(&endpoints, 0, &[], &metrics);
        let seat = take(&come()).unwrap();
        let (first, second) = (come(), come());
        let held = [first.hold(9, &[], &metrics).unwrap(), second.hold(9, &[], &metrics).unwrap()];
        drop(seat);
        assert!(take(&come()).is_none(), "those that are held go before who comes now");
        assert!(take(&second).is_none());
        let seat = take(&first).unwrap();
        drop((held, seat));
        assert!(take(&come()).is_some(), "nobody waits any more");
    }

    #[tokio::test]
    async fn a_place_goes_to_the_first_who_can_have_it() {
        let metrics = Metrics::new("test", "test");
        let desk = Arc::new(Desk::default());
        let endpoints = [endpoint(0, 1, None), endpoint(1, 1, None)];
        let take = |waiting: &Waiting, tried: &[Who]| waiting.take(&endpoints, 0, tried, &metrics);
        let come = || desk.arrive(Duration::from_secs(1), None);
        let seats = [take(&come(), &[]).unwrap(), take(&come(), &[]).unwrap()];
        let tried = [endpoints[0].who];
        let (first, second) = (come(), come());
        let held = [first.hold(9, &tried, &metrics).unwrap(), second.hold(9, &[], &metrics).unwrap()];
        let [a, b] = seats;
        let (zero, one) = if a.who == tried[0] { (a, b) } else { (b, a) };
        drop(zero);
        held[0].turn().await;
        assert!(take(&first, &tried).is_none(), "that one could not be reached with it");
        // It has told the next, who may have it.
        tokio::time::timeout(Duration::from_secs(5), held[1].turn()).await.expect("it is told");
        assert_eq!(take(&second, &[]).map(|seat| seat.who), Some(tried[0]));
        drop(one);
        held[0].turn().await;
        assert_eq!(take(&first, &tried).map(|seat| seat.who), Some(endpoints[1].who));
    }

    #[test]
    fn who_is_refused_at_once_is_no_load() {
        let metrics = Metrics::new("test", "test");
        let desk = Arc::new(Desk::default());
        let come = || desk.arrive(Duration::from_secs(1), None);
        let held: Vec<Held> = (0..5).filter_map(|_| come().hold(3, &[], &metrics)).collect();
        let (tenant, model) = (TenantId::new("t1").unwrap(), ModelId::new("m1").unwrap());
        let sight = desk.sight(tenant, model);
        assert_eq!((held.len(), sight.arrived, sight.waiting), (3, 3, 3));
    }

    #[test]
    fn who_was_let_in_once_is_not_sent_away_when_its_replica_is_gone() {
        let metrics = Metrics::new("test", "test");
        let desk = Arc::new(Desk::default());
        let come = || desk.arrive(Duration::from_secs(1), None);
        let first = come();
        let seat = first.take(&[endpoint(0, 1, None)], 0, &[], &metrics).unwrap();
        let others = [come(), come()];
        let held = others.each_ref().map(|waiting| waiting.hold(2, &[], &metrics).unwrap());
        seat.shun();
        drop(seat);
        assert!(first.hold(2, &[], &metrics).is_some() && come().hold(2, &[], &metrics).is_none());
        drop(held);
    }

    #[test]
    fn a_replica_that_can_t_be_reached_is_no_fault_of_its_version() {
        let (metrics, desk) = (Metrics::new("test", "test"), Arc::new(Desk::default()));
        let waiting = desk.arrive(Duration::from_secs(1), None);
        let seat = waiting.take(&[endpoint(0, 1, None)], 0, &[], &metrics).unwrap();
        seat.shun();
        drop(seat);
        waiting.unreached();
        waiting.refused();
        drop(waiting);
        assert!(desk.counts().trials.is_empty());
        assert_eq!(desk.kept().0, Count { failed: 1, ..Count::default() });
    }

    #[test]
    fn who_is_never_reached_is_asked_more_and_more_seldom() {
        let metrics = Metrics::new("test", "test");
        let desk = Arc::new(Desk::default());
        let endpoints = [endpoint(0, 8, None)];
        let pause = || desk.counts().shunned.get(&endpoints[0].who).map(|shun| shun.pause.as_secs());
        let waiting = desk.arrive(Duration::from_secs(1), None);
        let seat = waiting.take(&endpoints, 0, &[], &metrics).unwrap();
        let mut seen = Vec::new();
        for _ in 0..6 {
            // Two that went there at once count as one.
            seat.shun();
            seat.shun();
            seen.extend(pause());
            desk.counts().shunned.values_mut().for_each(|shun| shun.until = Instant::now());
        }
        assert_eq!(seen, [1, 2, 4, 8, 16, 16]);
        seat.shun();
        assert!(waiting.take(&endpoints, 0, &[], &metrics).is_none() && desk.next_chance().is_some());
        seat.reached();
        assert!(waiting.take(&endpoints, 0, &[], &metrics).is_some() && desk.next_chance().is_none());
    }

    #[test]
    fn requests_to_each_version_are_counted_apart_and_old_ones_forgotten() {
        let desk = Desk::default();
        for revision in 1..40 {
            desk.tried((JobNo(1), Revision(revision)), Verdict::Good);
        }
        let (tenant, model) = (TenantId::new("t1").unwrap(), ModelId::new("m1").unwrap());
        let trials = desk.sight(tenant, model).trials;
        assert_eq!((trials.len(), trials.last().unwrap().1), (TRIALS, Revision(39)));
    }
}
