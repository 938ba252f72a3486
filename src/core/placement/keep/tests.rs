//! For whom nodes are kept, and for how long.

use super::*;
use crate::command::{Report, ReportKind};
use crate::id::{DeviceType, TenantId};
use crate::job::Restart;
use crate::plan::Intent;
use crate::reason::Reason;
use crate::resources::Gpus;
use crate::tenant::{Quota, Share};
use crate::testing::{job_spec, node_spec, register, run, schedule, try_run_at};

const MINUTE: u64 = 60_000;

/// A node of four GPUs, two of which somebody holds.
fn half_full(holds: JobSpec) -> State {
    let mut state = State::new();
    run(&mut state, register("n1", node_spec(4)));
    for tenant in ["a", "b", "c", "t"] {
        let quota = Quota { gpu_milli: Some(1_000_000), ..Quota::default() };
        run(&mut state, Intent::SetQuota { tenant: TenantId::new(tenant).unwrap(), quota });
    }
    run(&mut state, schedule("holds", holds));
    state
}

fn kept_at(state: &mut State, minutes: u64) -> usize {
    try_run_at(state, Intent::Tick, minutes * MINUTE).unwrap();
    kept_nodes(state, 0).len()
}

#[test]
fn what_one_tenant_can_never_have_leaves_the_first_waiters_of_others_their_nodes() {
    let mut state = half_full(job_spec("t", Gpus::Whole(2)));
    for i in 0..100 {
        let spec = JobSpec { priority: 5, ..job_spec("a", Gpus::Whole(100 + i)) };
        run(&mut state, schedule(&format!("never{i}"), spec));
    }
    run(&mut state, schedule("big", job_spec("b", Gpus::Whole(4))));
    run(&mut state, schedule("small", job_spec("c", Gpus::Whole(1))));
    let small = state.job_of(&crate::id::RequestId::new("small").unwrap()).unwrap();
    assert!(small.wants_place(), "the node is kept for big");
}

/// Work that ends by itself, nobody knows when.
fn batch(tenant: &str, gpus: u16) -> JobSpec {
    let mut spec = job_spec(tenant, Gpus::Whole(gpus));
    spec.constraints.restart = Restart::Never;
    spec
}

#[test]
fn where_nobody_knows_when_it_ends_a_node_is_kept_for_half_of_the_time_in_turns_that_double() {
    let mut state = half_full(batch("t", 2));
    run(&mut state, schedule("big", job_spec("b", Gpus::Whole(4))));
    let kept: Vec<usize> = (0..16).map(|hour| kept_at(&mut state, 60 * hour + 30)).collect();
    assert_eq!(kept, [1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1]);
}

/// A waiter for a whole node that is full of jobs of one GPU, four hours long on average, of which more and more come.
/// After how many hours it starts; None: not in a thousand.
fn starts_after(seed: u64) -> Option<u64> {
    let mut rng = crate::sim::Rng::new(seed);
    let mut state = State::new();
    run(&mut state, register("n1", node_spec(8)));
    for tenant in ["b", "t"] {
        let quota = Quota { gpu_milli: Some(1_000_000), ..Quota::default() };
        run(&mut state, Intent::SetQuota { tenant: TenantId::new(tenant).unwrap(), quota });
    }
    let mut came = 0;
    let mut come = |state: &mut State| {
        came += 1;
        run(state, schedule(&format!("small{came}"), batch("t", 1)));
    };
    (0..8).for_each(|_| come(&mut state));
    run(&mut state, schedule("big", job_spec("b", Gpus::Whole(8))));
    (0..8).for_each(|_| come(&mut state));
    let big = crate::id::RequestId::new("big").unwrap();
    for quarter in 1..4_000 {
        let at_ms = quarter * 15 * MINUTE;
        let runs = state.jobs().values().filter(|job| job.replicas[0].allocation().is_some());
        let over: Vec<_> = runs.filter(|_| rng.chance(62)).map(|job| job.request.clone()).collect();
        for request in &over {
            end(&mut state, request, at_ms);
            come(&mut state);
        }
        if !over.is_empty() || quarter % 4 == 0 {
            try_run_at(&mut state, Intent::PlaceWaiting, at_ms).unwrap();
        }
        if !state.job_of(&big).unwrap().wants_place() {
            return Some(quarter / 4);
        }
        state.take_changes();
    }
    None
}

/// It is over.
fn end(state: &mut State, request: &crate::id::RequestId, at_ms: u64) {
    let stop = Intent::Stop { request: request.clone(), tenant: None, why: Reason::StoppedByUser };
    try_run_at(state, stop, at_ms).unwrap();
    let job = state.job_of(request).unwrap();
    let kind = ReportKind::Ended { ok: true, why: Reason::StoppedByUser };
    let reports = vec![Report { job: job.no, replica: 0, generation: job.replicas[0].generation, kind }];
    let node = state.nodes().values().next().unwrap();
    let (node, incarnation) = (node.name.clone(), node.incarnation);
    try_run_at(state, Intent::Reports { node, incarnation, reports }, at_ms).unwrap();
}

#[test]
fn who_needs_a_whole_node_starts_although_small_work_without_an_end_never_stops_coming() {
    let mut waits: Vec<_> = (0..6).map(|seed| starts_after(seed).unwrap_or_else(|| panic!("seed {seed}"))).collect();
    waits.sort_unstable();
    // In a toy model half of a hundred start within 40 hours, and all within 80.
    assert!(waits[3] < 100, "{waits:?}");
}

#[test]
fn what_one_tenants_quota_of_types_rules_out_keeps_a_node_for_others_that_ask_alike() {
    let mut state = half_full(job_spec("t", Gpus::Whole(2)));
    let (h100, other) = (DeviceType::new("H100-80G").unwrap(), DeviceType::new("T4").unwrap());
    let mut node = node_spec(2);
    node.devices.iter_mut().for_each(|device| device.device_type = other.clone());
    run(&mut state, register("n2", node));
    let share = |gpus: u64| Share { gpu_milli: gpus * 1000, ..Share::default() };
    let types = [(h100, share(1)), (other, share(8))].into_iter().collect();
    let quota = Quota { gpu_milli: Some(1_000_000), types, ..Quota::default() };
    run(&mut state, Intent::SetQuota { tenant: TenantId::new("a").unwrap(), quota });
    run(&mut state, schedule("never", JobSpec { priority: 5, ..job_spec("a", Gpus::Whole(4)) }));
    run(&mut state, schedule("big", job_spec("b", Gpus::Whole(4))));
    let n1 = state.node_named(&crate::id::NodeName::new("n1").unwrap()).unwrap().no;
    assert_eq!(kept_nodes(&state, 0), [n1]);
}

#[test]
fn who_waits_for_its_first_hour_keeps_a_node_that_another_who_asks_alike_keeps_no_longer() {
    let mut state = half_full(batch("t", 2));
    run(&mut state, schedule("old", job_spec("a", Gpus::Whole(4))));
    assert_eq!(kept_at(&mut state, 70), 0);
    run(&mut state, schedule("new", job_spec("b", Gpus::Whole(4))));
    assert_eq!(kept_at(&mut state, 80), 1);
}

#[test]
fn where_the_end_is_known_a_node_is_kept_until_then() {
    let mut until = batch("t", 2);
    until.constraints.max_run_ms = Some(600 * MINUTE);
    let mut state = half_full(until);
    run(&mut state, schedule("big", job_spec("b", Gpus::Whole(4))));
    let kept: Vec<usize> = [30, 90, 150, 210].map(|minutes| kept_at(&mut state, minutes)).into();
    assert_eq!(kept, [1, 1, 1, 1]);
}
