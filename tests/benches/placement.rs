//! What one decision costs: a place for one GPU on a group that churn has left half full,
//! at 100, 1,000 and 10,000 nodes of eight (bars: p50 20, 50 and 200 µs). Through the
//! product's own state and index; planning and committing are not in it.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use nf_core::id::TenantId;
use nf_core::placement::{Limits, place_one};
use nf_core::plan::Intent;
use nf_core::reason::Reason;
use nf_core::resources::Gpus;
use nf_core::sim::Rng;
use nf_core::state::State;
use nf_core::tenant::Quota;
use nf_core::testing;
use std::hint::black_box;
use std::time::Instant;

/// Nodes of eight GPUs, each with one to four jobs of one or two.
fn half_full(nodes: usize) -> State {
    let mut state = State::new();
    let quota = Quota { gpu_milli: Some(u64::MAX), ..Quota::default() };
    let tenant = TenantId::new("t1").expect("a valid name");
    testing::run(&mut state, Intent::SetQuota { tenant, quota });
    let mut rng = Rng::new(1);
    for i in 0..nodes {
        let name = format!("n{i}");
        testing::run(&mut state, testing::register(&name, testing::node_spec(8)));
        for part in 0..rng.between(1, 4) {
            let mut spec = testing::job_spec("t1", Gpus::Whole(rng.between(1, 2) as u16));
            spec.constraints.node = nf_core::id::NodeName::new(&name).ok();
            spec.resources.cpu_milli = rng.below(8) * 500;
            testing::run(&mut state, testing::schedule(&format!("fill-{i}-{part}"), spec));
        }
        state.take_changes();
    }
    state
}

fn decisions(c: &mut Criterion) {
    let mut group = c.benchmark_group("one decision");
    for nodes in [100, 1_000, 10_000] {
        let state = half_full(nodes);
        for (what, gpu) in [("1 GPU", Gpus::Whole(1)), ("0.5 GPU", Gpus::Milli(500)), ("8 GPUs", Gpus::Whole(8))] {
            let spec = testing::job_spec("t1", gpu);
            group.bench_with_input(BenchmarkId::new(what, nodes), &state, |b, state| {
                b.iter(|| place_one(black_box(state), &spec, &Limits::default()));
            });
        }
    }
}

/// How the time of single decisions is spread, which criterion's means don't say (bar: p99 at most 1 ms).
/// Places stay taken, and the oldest is given back once there are many, so the group is never twice the same.
fn tails(_: &mut Criterion) {
    for nodes in [100, 1_000, 10_000] {
        let mut state = half_full(nodes);
        let mut rng = Rng::new(2);
        let mut held = std::collections::VecDeque::new();
        let mut times = Vec::new();
        for i in 0..5_000 {
            let gpu = match rng.below(4) {
                0 => Gpus::Milli(rng.between(1, 9) as u16 * 100),
                1 => Gpus::Whole(8),
                _ => Gpus::Whole(rng.between(1, 4) as u16),
            };
            let mut spec = testing::job_spec("t1", gpu);
            spec.resources.cpu_milli = rng.below(8) * 500;
            let started = Instant::now();
            let placed = black_box(place_one(black_box(&state), &spec, &Limits::default())).is_some();
            times.push(started.elapsed());
            if placed {
                let request = format!("tail-{i}");
                testing::run(&mut state, testing::schedule(&request, spec));
                held.push_back(request);
            }
            if held.len() > 200 {
                let request = nf_core::id::RequestId::new(&held.pop_front().expect("it is not empty"));
                let request = request.expect("a valid name");
                testing::run(&mut state, Intent::Stop { request, tenant: None, why: Reason::StoppedByUser });
            }
            state.take_changes();
        }
        times.sort_unstable();
        let part = |permille: usize| times[times.len() * permille / 1000];
        let all: std::time::Duration = times.iter().sum();
        println!(
            "{nodes} nodes: p50 {:?}, p99 {:?}, p99.9 {:?}, max {:?}; {:.0} decisions a second on one core",
            part(500),
            part(990),
            part(999),
            times[times.len() - 1],
            times.len() as f64 / all.as_secs_f64()
        );
    }
}

criterion_group!(benches, decisions, tails);
criterion_main!(benches);
