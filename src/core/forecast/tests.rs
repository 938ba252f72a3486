//! Expected starts held against what then happens, on generated arrivals; and what is not said.

use super::known::{Known, Over};
use super::*;
use crate::command::{Report, ReportKind};
use crate::id::{ModelId, RequestId, TenantId};
use crate::job::{Restart, Stage};
use crate::plan::Intent;
use crate::reason::Reason;
use crate::resources::Gpus;
use crate::sim::Rng;
use crate::tenant::Quota;
use crate::testing;
use std::collections::BTreeMap;

mod trace;

fn group(nodes: u32) -> State {
    let mut state = State::new();
    let quota = Quota { gpu_milli: Some(u64::MAX), waiting: Some(u32::MAX), ..Quota::default() };
    testing::run(&mut state, Intent::SetQuota { tenant: TenantId::new("t1").unwrap(), quota });
    for i in 0..nodes {
        testing::run(&mut state, testing::register(&format!("n{i}"), testing::node_spec(8)));
    }
    state
}

fn job(gpu: Gpus, model: &str) -> JobSpec {
    let mut spec = testing::job_spec("t1", gpu);
    spec.model = ModelId::new(model).unwrap();
    spec.constraints.restart = Restart::Never;
    spec
}

fn of<'a>(state: &'a State, request: &str) -> &'a Arc<Job> {
    state.job_of(&RequestId::new(request).unwrap()).unwrap()
}

fn report(state: &mut State, no: JobNo, kind: ReportKind, at: u64) {
    let replica = &state.job(no).unwrap().replicas[0];
    let (generation, node) = (replica.generation, replica.allocation().unwrap().node);
    let node = state.node(node).unwrap();
    let reports = vec![Report { job: no, replica: 0, generation, kind }];
    let intent = Intent::Reports { node: node.name.clone(), incarnation: node.incarnation, reports };
    testing::try_run_at(state, intent, at).unwrap();
}

fn ended(state: &mut State, no: JobNo, at: u64) {
    report(state, no, ReportKind::Ended { ok: true, why: Reason::Completed }, at);
}

/// What the replay made of each job that had to wait.
#[derive(Default)]
struct Replay {
    waited: u32,
    told: u32,
    held: u32,
    early: u32,
    late: u32,
}

/// Arrivals of three models on ten nodes that are almost always full.
fn replay(seed: u64, limits: bool) -> Replay {
    let mut rng = Rng::new(seed);
    let mut state = group(10);
    let mut runs: BTreeMap<JobNo, u64> = BTreeMap::new();
    let mut told: BTreeMap<JobNo, (u64, u64)> = BTreeMap::new();
    let mut ends: BinaryHeap<(Reverse<u64>, JobNo)> = BinaryHeap::new();
    let mut out = Replay::default();
    let (mut at, mut arrivals) = (0, 0);
    while arrivals < 700 {
        let next = at + rng.between(1_000, 16_000);
        while let Some((Reverse(end), no)) = ends.peek().copied().filter(|(Reverse(end), _)| *end <= next) {
            ends.pop();
            ended(&mut state, no, end);
            while !testing::try_run_at(&mut state, Intent::PlaceWaiting, end).unwrap().is_empty() {}
            started(&mut state, &mut runs, &mut told, &mut ends, &mut out, end);
        }
        (at, arrivals) = (next, arrivals + 1);
        let (model, lasts) = match rng.below(3) {
            0 => ("short", rng.between(60_000, 180_000)),
            1 => ("middle", rng.between(200_000, 900_000)),
            _ => ("long", rng.between(30_000, 60_000) << rng.below(6)),
        };
        let gpu = if rng.below(4) == 0 { Gpus::Milli(500) } else { Gpus::Whole(1 << rng.below(3)) };
        let mut spec = job(gpu, model);
        spec.constraints.max_run_ms = limits.then_some(lasts + rng.below(lasts));
        testing::try_run_at(&mut state, testing::schedule(&format!("r{arrivals}"), spec), at).unwrap();
        let new = of(&state, &format!("r{arrivals}")).clone();
        runs.insert(new.no, lasts);
        if new.wants_place() && arrivals > 100 {
            out.waited += 1;
            if let Some(interval) = expected_start(&state, &new) {
                told.insert(new.no, interval);
            }
        }
        started(&mut state, &mut runs, &mut told, &mut ends, &mut out, at);
    }
    out
}

/// What has a place now runs, and will end when its time is over.
fn started(
    state: &mut State,
    runs: &mut BTreeMap<JobNo, u64>,
    told: &mut BTreeMap<JobNo, (u64, u64)>,
    ends: &mut BinaryHeap<(Reverse<u64>, JobNo)>,
    out: &mut Replay,
    at: u64,
) {
    let new: Vec<JobNo> =
        runs.keys().copied().filter(|no| state.job(*no).is_some_and(|job| !job.wants_place())).collect();
    for no in new {
        report(state, no, ReportKind::Stage(Stage::Ready), at);
        ends.push((Reverse(at + runs.remove(&no).unwrap()), no));
        if let Some((from, to)) = told.remove(&no) {
            out.told += 1;
            out.held += u32::from((from..=to).contains(&at));
            out.early += u32::from(at < from);
            out.late += u32::from(at > to);
        }
    }
}

#[test]
fn four_of_five_intervals_hold() {
    for limits in [false, true] {
        let mut all = Replay::default();
        for seed in 1..=2 {
            let one = replay(seed, limits);
            all.waited += one.waited;
            all.told += one.told;
            all.held += one.held;
            all.early += one.early;
            all.late += one.late;
        }
        println!(
            "limits {limits}: {} waited, of {} an interval was told, {} held; {} came earlier and {} later",
            all.waited, all.told, all.held, all.early, all.late
        );
        assert!(all.told > 300, "too few to say anything: {} of {}", all.told, all.waited);
        assert!(all.held * 100 >= all.told * 80, "{} of {} held", all.held, all.told);
    }
}

/// Two of three that were there ten milliseconds after they began ran longer: one ended then, one at twenty, one runs.
#[test]
fn those_that_run_still_count_for_as_long_as_they_have() {
    let over = [Over { ran_ms: 10, at_ms: 100 }, Over { ran_ms: 20, at_ms: 110 }];
    let short = |running: &[u64]| {
        let known = Known::new(&over, running, 115);
        (0..3_000).filter(|no| known.draw(0, draw(*no, JobNo(1), 0)) == 10).count()
    };
    assert!((900..1_100).contains(&short(&[15])), "{}", short(&[15]));
    assert!((1_400..1_600).contains(&short(&[])), "{}", short(&[]));
    // It was as old as that before the first of them ended: it says nothing of who is younger.
    assert!((1_400..1_600).contains(&short(&[500])), "{}", short(&[500]));
    let known = Known::new(&over, &[15], 115);
    for no in 0..100 {
        assert_eq!(known.draw(12, no), 20);
        assert!((30..60).contains(&known.draw(30, no)), "it has outlived all: about as long again");
    }
}

#[test]
fn as_many_are_foreseen_to_go_before_as_did() {
    let mut state = group(2);
    let at = |state: &mut State, name: &str, gpus, ms| {
        testing::try_run_at(state, testing::schedule(name, job(Gpus::Whole(gpus), "m")), ms).unwrap();
        of(state, name).no
    };
    for (name, ms) in [("one", 1_000), ("two", 1_001)] {
        let no = at(&mut state, name, 5, ms);
        report(&mut state, no, ReportKind::Stage(Stage::Ready), ms);
    }
    // It keeps one of the two nodes for itself.
    at(&mut state, "waits", 8, 2_000);
    let share = |state: &State| overtaken(9_000, &running(state), &[of(state, "waits").clone()]);
    assert_eq!(share(&state), 0);
    for i in 0..3 {
        let no = at(&mut state, &format!("small-{i}"), 1, 3_000 + i);
        report(&mut state, no, ReportKind::Stage(Stage::Ready), 3_000 + i);
    }
    assert_eq!(share(&state), 1024 * 3 / 7, "three of three, which is little to go by");
}

#[test]
fn a_declared_limit_bounds_the_start_and_nothing_known_says_nothing() {
    let mut state = group(1);
    testing::try_run_at(&mut state, testing::schedule("runs", job(Gpus::Whole(8), "m")), 1_000).unwrap();
    let runs = of(&state, "runs").no;
    report(&mut state, runs, ReportKind::Stage(Stage::Ready), 1_000);
    testing::try_run_at(&mut state, testing::schedule("waits", job(Gpus::Whole(8), "m")), 2_000).unwrap();
    assert_eq!(expected_start(&state, of(&state, "waits")), None, "nobody says when the other ends");
    assert_eq!(expected_start(&state, of(&state, "runs")), None, "it runs");
    let mut limited = (**of(&state, "runs")).clone();
    Arc::make_mut(&mut limited.spec).constraints.max_run_ms = Some(60_000);
    state.put_job(limited);
    let (from, to) = expected_start(&state, of(&state, "waits")).unwrap();
    assert!(2_000 <= from && from < to && to <= 2_000 + 59_000 * 5 / 4, "{from} to {to}");
    // What ended says more.
    ended(&mut state, runs, 11_000);
    testing::try_run_at(&mut state, Intent::PlaceWaiting, 11_000).unwrap();
    let waits = of(&state, "waits").no;
    report(&mut state, waits, ReportKind::Stage(Stage::Ready), 11_000);
    testing::try_run_at(&mut state, testing::schedule("next", job(Gpus::Whole(8), "m")), 12_000).unwrap();
    assert_eq!(
        expected_start(&state, of(&state, "next")),
        Some((18_750, 23_250)),
        "ten seconds, like the last one, and the margin"
    );
    // Of what can never run there is no start.
    testing::try_run_at(&mut state, testing::schedule("never", job(Gpus::Whole(9), "m")), 12_000).unwrap();
    assert_eq!(expected_start(&state, of(&state, "never")), None);
}
