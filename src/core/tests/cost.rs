//! What the core costs: time per schedule call, memory per live job, time to
//! load. Bounds here are loose, since machines differ and are shared; the figures
//! are printed (`cargo test -p nf-core --test cost -- --nocapture --test-threads=1`).

// Helpers of tests are tests: a panic in them is a failed test with a line number.
#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_types, reason = "a test may look at the clock")]

use nf_core::apply::{BatchOutcome, apply_batch};
use nf_core::command::Batch;
use nf_core::id::{RequestId, TenantId};
use nf_core::placement::{Limits, place_one};
use nf_core::plan::{Intent, plan};
use nf_core::proposer::Proposer;
use nf_core::reason::Reason;
use nf_core::resources::Gpus;
use nf_core::rows::Table;
use nf_core::sim::Rng;
use nf_core::state::State;
use nf_core::tenant::Quota;
use nf_core::{invariants, testing};
use std::time::{Duration, Instant};

/// Bytes of memory that this process has, as Linux counts them; 0 elsewhere.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

fn cluster(nodes: usize) -> State {
    let mut state = State::new();
    for i in 0..nodes {
        testing::run(&mut state, testing::register(&format!("n{i}"), testing::node_spec(8)));
    }
    let quota = Quota { gpu_milli: Some(u64::MAX), waiting: Some(u32::MAX), ..Quota::default() };
    testing::run(&mut state, Intent::SetQuota { tenant: TenantId::new("t1").unwrap(), quota });
    state.take_changes();
    state
}

fn entry(state: &mut State, intent: &Intent, at_ms: u64) {
    let commands = plan(state, intent).unwrap().commands;
    let batch = Batch { base: state.meta().base, at_ms, commands, ..Batch::default() };
    let outcome = apply_batch(state, &batch);
    assert!(matches!(outcome, BatchOutcome::Applied(answers) if answers.iter().all(Result::is_ok)));
}

/// Half of the devices held, by jobs of one, two and four GPUs, scattered as churn leaves them.
fn half_full(state: &mut State, nodes: usize) {
    let mut rng = Rng::new(1);
    for i in 0..nodes {
        let node = nf_core::id::NodeName::new(&format!("n{i}")).unwrap();
        for part in 0..rng.between(1, 4) {
            let mut spec = testing::job_spec("t1", Gpus::Whole(rng.between(1, 2) as u16));
            spec.constraints.node = Some(node.clone());
            spec.resources.cpu_milli = rng.below(8) * 500;
            entry(state, &testing::schedule(&format!("fill-{i}-{part}"), spec), 1);
        }
    }
    state.take_changes();
}

#[test]
fn a_schedule_call_costs_microseconds() {
    per_call(0);
}

#[test]
fn a_schedule_call_behind_ten_thousand_waiters_is_bounded() {
    per_call(10_000);
}

/// Jobs that ask for so many GPUs and wait, without a look for a place.
fn wait_in_line(state: &mut State, count: u64, gpus: impl Fn(u64) -> u16) {
    for i in 0..count {
        let mut spec = testing::job_spec("t1", Gpus::Whole(gpus(i)));
        spec.resources.cpu_milli = i % 50;
        let Intent::Schedule { submission, .. } = testing::schedule(&format!("waiter-{i}"), spec) else { continue };
        let commands = vec![nf_core::command::Command::Submit { submission, placements: Vec::new(), claim: None }];
        let batch = Batch { base: state.meta().base, at_ms: 1, commands, ..Batch::default() };
        apply_batch(state, &batch);
    }
}

fn per_call(waiters: u64) {
    let mut state = cluster(1000);
    half_full(&mut state, 1000);
    wait_in_line(&mut state, waiters, |_| 8);
    // Steady: one stop and one report for each call, and some thousand small jobs that stay.
    let mut live = std::collections::VecDeque::new();
    for i in 0..2_000 {
        let spec = testing::job_spec("t1", Gpus::Milli(1));
        entry(&mut state, &testing::schedule(&format!("warm-{i}"), spec), 1);
        live.push_back(format!("warm-{i}"));
    }
    state.take_changes();
    let started = Instant::now();
    let placed = plan(&state, &Intent::PlaceWaiting).unwrap().commands.len();
    println!(
        "{} classes of nodes; a pass over {waiters} waiters places {placed} in {:?}",
        state.capacity().classes.len(),
        started.elapsed()
    );
    let calls = 2_000u32;
    let mut follower = state.clone();
    let (mut planning, mut speculating, mut applying, mut rows) = Default::default();
    let add = |sum: &mut Duration, since: Instant| *sum += since.elapsed();
    let mut speculative = state.speculative();
    for i in 0..calls {
        let intent = testing::schedule(&format!("call-{i}"), testing::job_spec("t1", Gpus::Milli(1)));
        let started = Instant::now();
        let commands = plan(&speculative, &intent).unwrap().commands;
        add(&mut planning, started);
        let batch = Batch { base: speculative.meta().base, at_ms: 1, commands, ..Batch::default() };
        let started = Instant::now();
        apply_batch(&mut speculative, &batch);
        add(&mut speculating, started);
        let started = Instant::now();
        apply_batch(&mut follower, &batch);
        add(&mut applying, started);
        let started = Instant::now();
        follower.take_changes();
        add(&mut rows, started);
        live.push_back(format!("call-{i}"));
        let request = RequestId::new(&live.pop_front().unwrap()).unwrap();
        let (no, node) = {
            let job = speculative.job_of(&request).unwrap();
            (job.no, job.replicas[0].allocation().unwrap().node)
        };
        let report = nf_core::command::Report {
            job: no,
            replica: 0,
            generation: nf_core::id::Generation(1),
            kind: nf_core::command::ReportKind::Ended { ok: true, why: Reason::StoppedByUser },
        };
        let incarnation = nf_core::id::Incarnation(1);
        let commands = vec![
            nf_core::command::Command::Stop { job: no, why: Reason::StoppedByUser },
            nf_core::command::Command::Reports { node, incarnation, reports: vec![report] },
        ];
        let batch = Batch { base: speculative.meta().base, at_ms: 1, commands, ..Batch::default() };
        apply_batch(&mut speculative, &batch);
        apply_batch(&mut follower, &batch);
        follower.take_changes();
    }
    let each = |sum: Duration| sum / calls;
    println!(
        "per call at 1,000 nodes behind {waiters} waiters: plan {:?}, apply speculatively {:?}, apply {:?}, rows and hash {:?}",
        each(planning),
        each(speculating),
        each(applying),
        each(rows)
    );
    assert!(each(planning + speculating + applying) < Duration::from_millis(1));
}

/// As a busy group leaves them: parts of devices, odd amounts of CPU, hardly two nodes alike.
fn diverse(state: &mut State, nodes: usize) {
    let mut rng = Rng::new(1);
    for i in 0..nodes {
        let node = nf_core::id::NodeName::new(&format!("n{i}")).unwrap();
        for part in 0..rng.between(3, 6) {
            let gpu = match rng.below(3) {
                0 => Gpus::Whole(1),
                _ => Gpus::Milli(50 * rng.between(1, 19) as u16),
            };
            let mut spec = testing::job_spec("t1", gpu);
            spec.constraints.node = Some(node.clone());
            spec.resources.cpu_milli = rng.below(40) * 250;
            entry(state, &testing::schedule(&format!("fill-{i}-{part}"), spec), 1);
        }
    }
    state.take_changes();
}

/// Bars (PLACEMENT, 2): p50 20, 50 and 200 µs, p99 1 ms, and 10,000 nodes at most ten times what
/// 100 cost. The bound here is looser, for machines that are shared.
#[test]
fn one_decision_costs_microseconds() {
    type Filler = fn(&mut State, usize);
    let fillers: [(&str, Filler); 2] = [("half full", half_full), ("diverse", diverse)];
    for (filled, fill) in fillers {
        for nodes in [100, 1_000, 10_000] {
            let mut state = cluster(nodes);
            fill(&mut state, nodes);
            let classes = state.capacity().classes.len();
            for (what, ask) in [("1 GPU", Gpus::Whole(1)), ("0.5 GPU", Gpus::Milli(500)), ("8 GPUs", Gpus::Whole(8))] {
                let spec = testing::job_spec("t1", ask);
                let times = (0..100).map(|_| timed(|| place_one(&state, &spec, &Limits::default())));
                let (p50, p99) = percentiles(times.collect());
                println!("{what} at {nodes} nodes, {filled}, {classes} classes, scanned: p50 {p50:?}, p99 {p99:?}");
            }
            let (p50, p99) = percentiles(decisions(state));
            println!("any of 16 asks at {nodes} nodes, {filled}, {classes} classes: p50 {p50:?}, p99 {p99:?}");
            assert!(p50 < Duration::from_millis(1), "{nodes} nodes, {filled}: {p50:?}");
        }
    }
}

/// As the proposer decides: one call after the other, of sixteen asks, each of which takes a place, while others end.
fn decisions(state: State) -> Vec<Duration> {
    let mut rng = Rng::new(2);
    let asks: Vec<Gpus> = (0..16).map(|i| if i < 4 { Gpus::Whole(1 << i) } else { Gpus::Milli(60 * i) }).collect();
    let mut state = state.speculative();
    let mut live = std::collections::VecDeque::new();
    let mut times = Vec::new();
    for i in 0..3_000 {
        let mut spec = testing::job_spec("t1", *rng.pick(&asks));
        spec.resources.cpu_milli = 500 * spec.resources.gpu.milli() / 1000;
        let intent = testing::schedule(&format!("call-{i}"), spec.clone());
        let mut found = None;
        times.push(timed(|| {
            state.stand(&spec);
            found = place_one(&state, &spec, &Limits::default());
        }));
        assert!(found.is_some() || spec.resources.gpu.milli() >= 4000, "{spec:?}");
        if found.is_some() {
            entry(&mut state, &intent, 1);
            live.push_back(RequestId::new(&format!("call-{i}")).unwrap());
        }
        if live.len() > 100 {
            leave(&mut state, &live.pop_front().unwrap());
        }
    }
    // By then each ask came often enough.
    times.split_off(500)
}

/// Asked to stop, and gone.
fn leave(state: &mut State, request: &RequestId) {
    entry(state, &Intent::Stop { request: request.clone(), tenant: None, why: Reason::StoppedByUser }, 1);
    let job = state.job_of(request).unwrap();
    let (no, replica) = (job.no, &job.replicas[0]);
    let node = state.node(replica.allocation().unwrap().node).unwrap();
    let kind = nf_core::command::ReportKind::Ended { ok: true, why: Reason::StoppedByUser };
    let reports = vec![nf_core::command::Report { job: no, replica: 0, generation: replica.generation, kind }];
    let (node, incarnation) = (node.name.clone(), node.incarnation);
    entry(state, &Intent::Reports { node, incarnation, reports }, 1);
}

fn timed<T>(what: impl FnOnce() -> T) -> Duration {
    let started = Instant::now();
    std::hint::black_box(what());
    started.elapsed()
}

/// Half, and 99 %, take no longer than this.
fn percentiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

#[test]
fn explaining_among_a_thousand_waiters_is_quick() {
    let mut state = cluster(1000);
    half_full(&mut state, 1000);
    wait_in_line(&mut state, 1000, |i| 8 + (i % 2) as u16);
    let waiting: Vec<_> = state.jobs().values().filter(|job| job.wants_place()).cloned().collect();
    assert_eq!(waiting.len(), 1000);
    let mut times = Vec::new();
    for job in waiting.iter().step_by(5) {
        let started = Instant::now();
        let view = nf_core::view::job(&state, job);
        let remedy = nf_core::placement::explain::remedy(&state, job);
        times.push(started.elapsed());
        assert!(!view.blockers.is_empty() && view.position.is_some() && !remedy.is_empty(), "{:?}", view.blockers);
    }
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("to explain one of 1,000 waiting at 1,000 nodes: p50 {:?}, p99 {:?}", at(50), at(99));
    assert!(at(99).as_millis() < 1000);
}

#[test]
fn the_proposer_costs_microseconds_a_call() {
    let mut state = cluster(1000);
    half_full(&mut state, 1000);
    let mut proposer = Proposer::new(&state);
    let calls = 4_096;
    for i in 0..calls {
        let spec = testing::job_spec("t1", Gpus::Milli(1));
        assert!(proposer.offer(i, testing::schedule(&format!("call-{i}"), spec)));
    }
    let started = Instant::now();
    let mut answered = 0;
    while let (Some(batch), _) = proposer.next_entry(1) {
        let outcome = apply_batch(&mut state, &batch);
        state.take_changes();
        answered += proposer.on_applied(&outcome, &state, 1).len();
    }
    let each = started.elapsed() / calls as u32;
    println!("proposer: {each:?} a call, plan, speculate, apply, rows and reply together");
    assert_eq!(answered as u64, calls);
    assert!(each < Duration::from_millis(1));
}

#[test]
fn a_hundred_thousand_jobs_are_small_and_load_fast() {
    let jobs = 100_000;
    let mut state = cluster(1213);
    let (mut rows, started) = (0, Instant::now());
    let mut count = |changes: Vec<nf_core::rows::RowChange>| {
        rows += changes.iter().map(|r| r.key.len() + r.value.as_ref().map_or(0, Vec::len)).sum::<usize>();
    };
    let before = resident();
    for i in 0..jobs {
        let mut spec = testing::job_spec("t1", Gpus::Milli(50));
        spec.resources.memory = 1 << 30;
        entry(&mut state, &testing::schedule(&format!("019ab-{i:010}-request"), spec), i);
        if i % 100 == 0 {
            count(state.take_changes());
        }
    }
    count(state.take_changes());
    let each = |bytes: usize| bytes / jobs as usize;
    println!("{:?} a job to schedule, rows included", started.elapsed() / jobs as u32);
    println!("{} bytes of memory a live job, {} bytes of rows and events", each(resident() - before), each(rows));
    let rows: Vec<(Table, Vec<u8>, Vec<u8>)> = state.live_rows().collect();
    let (count, before, started) = (rows.len(), resident(), Instant::now());
    let loaded = State::from_rows(rows.iter().cloned()).unwrap();
    let took = started.elapsed();
    println!("{count} rows load in {took:?}; {} bytes of memory a live job", each(resident().saturating_sub(before)));
    let started = Instant::now();
    assert_eq!(invariants::check(&loaded), []);
    println!("invariants checked in {:?}", started.elapsed());
    assert_eq!(loaded.hash(), state.hash());
    assert!(took.as_secs() < 20);
}
