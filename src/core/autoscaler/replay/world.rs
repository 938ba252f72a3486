//! The service that a replay plays: one line, slots, slow starts, patient ends. It
//! does not know which policy drives it.

use super::super::service::Service;
use super::super::signal::{Reading, Signals};
use super::load::Load;
use super::rules::Policy;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// How long a policy looks between two looks of its own at most; also the step of every average.
pub const STEP_MS: u64 = 1_000;

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub requests: u64,
    /// Began to be served within the bound.
    pub in_time: u64,
    /// Replicas that were starting, ready or draining, times milliseconds.
    pub replica_ms: u64,
    pub most: u32,
    pub decisions: u64,
    /// Once a minute: second, arrivals, replicas, queue. For a picture.
    pub minutes: Vec<(u64, u64, u32, u64)>,
}

impl Outcome {
    /// Thousandths of a percent.
    pub fn attainment_m(&self) -> u64 {
        self.in_time.saturating_mul(100_000) / self.requests.max(1)
    }

    pub fn gpu_hours_m(&self, gpus: u32) -> u64 {
        self.replica_ms.saturating_mul(u64::from(gpus)) / 3_600
    }
}

struct World<'a> {
    service: &'a Service,
    /// Requests that wait longer than the bound leave.
    impatient: bool,
    ready: u32,
    /// When each becomes ready, oldest first.
    starting: VecDeque<u64>,
    running: BinaryHeap<Reverse<u64>>,
    line: VecDeque<(u64, u64)>,
    latencies: Vec<u64>,
    arrived: u64,
    outcome: Outcome,
}

/// Plays `load` with `policy` in charge. `impatient`: who waits too long leaves; else everybody is served.
pub fn run(service: &Service, load: &Load, policy: &mut dyn Policy, start: u32, impatient: bool) -> Outcome {
    let mut world = World {
        service,
        impatient,
        ready: start.clamp(service.min, service.max),
        starting: VecDeque::new(),
        running: BinaryHeap::new(),
        line: VecDeque::new(),
        latencies: Vec::new(),
        arrived: 0,
        outcome: Outcome::default(),
    };
    let mut next = 0;
    let mut minute = 0;
    let mut now = 0;
    while now < load.length_ms {
        if let Some(target) = world.look(now, policy) {
            world.outcome.decisions += 1;
            world.resize(now, target);
        }
        let end = now + STEP_MS;
        while let Some(request) = load.requests.get(next).filter(|r| r.at_ms < end) {
            world.advance(request.at_ms);
            world.line.push_back((request.at_ms, request.takes_ms));
            world.serve(request.at_ms);
            world.arrived += 1;
            minute += 1;
            next += 1;
        }
        world.advance(end);
        world.pay(STEP_MS);
        if end.is_multiple_of(60_000) {
            let replicas = world.ready + world.starting.len() as u32;
            world.outcome.minutes.push((end / 1000, minute, replicas, world.line.len() as u64));
            minute = 0;
        }
        now = end;
    }
    world.outcome.requests = next as u64;
    world.outcome
}

impl World<'_> {
    fn capacity(&self) -> usize {
        self.ready as usize * self.service.slots as usize
    }

    /// Everything that happens until `until`, in order.
    fn advance(&mut self, until: u64) {
        loop {
            let ends = self.running.peek().map(|end| end.0).filter(|end| *end <= until);
            let ready = self.starting.front().copied().filter(|at| *at <= until);
            match (ends, ready) {
                (Some(end), Some(at)) if at <= end => self.start_one(at),
                (None, Some(at)) => self.start_one(at),
                (Some(end), _) => {
                    self.running.pop();
                    self.serve(end);
                }
                (None, None) => return,
            }
        }
    }

    fn start_one(&mut self, at: u64) {
        self.starting.pop_front();
        self.ready += 1;
        self.serve(at);
    }

    fn serve(&mut self, now: u64) {
        while self.running.len() < self.capacity() {
            let Some((came, takes)) = self.line.pop_front() else { return };
            let waited = now - came;
            let in_time = waited <= self.service.wait_ms;
            if self.impatient && !in_time {
                continue;
            }
            self.outcome.in_time += u64::from(in_time);
            self.latencies.push(waited + takes);
            self.running.push(Reverse(now + takes));
        }
    }

    /// Ready replicas that are not wanted any more finish what they run.
    fn draining(&self) -> u32 {
        self.running.len().saturating_sub(self.capacity()).div_ceil(self.service.slots as usize) as u32
    }

    fn look(&mut self, now: u64, policy: &mut dyn Policy) -> Option<u32> {
        if self.impatient {
            let bound = self.service.wait_ms;
            while self.line.front().is_some_and(|(came, _)| came + bound < now) {
                self.line.pop_front();
            }
        }
        let inside = (self.line.len() + self.running.len()) as u64;
        policy.sample(now, inside, self.ready);
        if !now.is_multiple_of(policy.period_ms(self.service)) {
            return None;
        }
        let p95 = percentile(&mut self.latencies);
        let signals = Signals {
            at_ms: now,
            ready: Reading::of(self.ready.into()),
            starting: Reading::of(self.starting.len() as u64),
            draining: Reading::of(self.draining().into()),
            queue: Reading::of(self.line.len() as u64),
            running: Reading::of(self.running.len() as u64),
            arrivals: Reading::of(std::mem::take(&mut self.arrived)),
            p95_ms: p95.map_or(Reading::Missing, Reading::of),
            ..Signals::default()
        };
        Some(policy.desired(&signals).clamp(self.service.min, self.service.max))
    }

    fn resize(&mut self, now: u64, target: u32) {
        let total = self.ready + self.starting.len() as u32;
        for _ in total..target {
            self.starting.push_back(now + self.service.cold_start_ms);
        }
        let over = total.saturating_sub(target);
        let young = over.min(self.starting.len() as u32);
        self.starting.truncate(self.starting.len() - young as usize);
        self.ready -= over - young;
    }

    fn pay(&mut self, ms: u64) {
        let replicas = self.ready + self.starting.len() as u32 + self.draining();
        self.outcome.replica_ms += u64::from(replicas) * ms;
        self.outcome.most = self.outcome.most.max(replicas);
    }
}

fn percentile(latencies: &mut Vec<u64>) -> Option<u64> {
    if latencies.is_empty() {
        return None;
    }
    let at = (latencies.len() * 95 / 100).min(latencies.len() - 1);
    let (_, p95, _) = latencies.select_nth_unstable(at);
    let p95 = *p95;
    latencies.clear();
    Some(p95)
}
