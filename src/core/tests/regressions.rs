//! Bugs that reading, properties or the simulation found in the core, each by the
//! smallest input that shows it. A line here is never removed.

// Helpers of tests are tests: a panic in them is a failed test with a line number.
#![allow(clippy::unwrap_used)]

use nf_core::apply::{BatchOutcome, apply_batch};
use nf_core::autoscaler;
use nf_core::command::{Answer, Batch, Command, Placement, Report, ReportKind, Submission};
use nf_core::control::{Now, Observations, Timeouts, step};
use nf_core::id::{Digest16, Generation, Incarnation, JobNo, NodeNo, RequestId, TenantId};
use nf_core::job::{Allocation, JobSpec, Phase, Restart, Share};
use nf_core::plan::{Intent, plan};
use nf_core::proposer::Proposer;
use nf_core::reason::Reason;
use nf_core::resources::{Gpus, MAX_BYTES};
use nf_core::rows::Table;
use nf_core::scaling::{Scaling, Target};
use nf_core::sharing::Kept;
use nf_core::state::State;
use nf_core::tenant::Quota;
use nf_core::testing::{job_spec, node_spec, register, run, schedule, try_run};
use nf_core::{codec, invariants};
use std::collections::BTreeMap;
use std::sync::Arc;

#[path = "regressions/last.rs"]
mod last;

fn with_nodes(gpus: &[u16]) -> State {
    let mut state = State::new();
    for (i, gpus) in gpus.iter().enumerate() {
        run(&mut state, register(&format!("n{}", i + 1), node_spec(*gpus)));
    }
    state
}

fn quota(tenant: &str, gpus: u64) -> Intent {
    let quota = Quota { gpu_milli: Some(gpus * 1000), ..Quota::default() };
    Intent::SetQuota { tenant: TenantId::new(tenant).unwrap(), quota }
}

fn submission(spec: JobSpec) -> Submission {
    let request = RequestId::new("r1").unwrap();
    Submission { request, body: Digest16([1; 16]), keyed: true, spec: Arc::new(spec) }
}

fn place(replica: u16, device: u16) -> Placement {
    let shares = vec![Share { device, milli: 1000, kept: Kept::Alone }];
    Placement {
        replica,
        alloc: Allocation { node: NodeNo(1), shares, port: Some(31000 + device), at_ms: 0 },
        why: None,
    }
}

/// The answer to one command, which must leave a sound state.
fn one(state: &mut State, command: Command) -> Result<Answer, Reason> {
    let batch = Batch { base: state.meta().base, at_ms: 0, commands: vec![command], ..Batch::default() };
    let BatchOutcome::Applied(mut answers) = apply_batch(state, &batch) else { panic!("superseded") };
    assert_eq!(invariants::check(state), []);
    answers.remove(0).map_err(|refusal| refusal.reason)
}

#[test]
fn a_frame_that_understates_its_length_is_refused() {
    let mut bytes = codec::encode(&Batch { base: 1, at_ms: 2, commands: Vec::new(), ..Batch::default() });
    bytes[7] -= 1;
    assert!(codec::decode::<Batch>(&bytes).is_err());
}

#[test]
fn apply_refuses_a_job_without_replicas_and_places_that_are_no_replicas() {
    let mut state = with_nodes(&[8]);
    run(&mut state, quota("t1", 8));
    let none = JobSpec { replicas: 0, ..job_spec("t1", Gpus::Whole(1)) };
    let command = Command::Submit { submission: submission(none), placements: Vec::new(), claim: None };
    assert_eq!(one(&mut state, command), Err(Reason::PlanChanged));
    let two = JobSpec { replicas: 2, ..job_spec("t1", Gpus::Whole(1)) };
    for places in [vec![place(0, 0), place(0, 1)], vec![place(2, 0)]] {
        let command = Command::Submit { submission: submission(two.clone()), placements: places, claim: None };
        assert_eq!(one(&mut state, command), Err(Reason::PlanChanged));
    }
    let gang = JobSpec { gang: true, ..two };
    let command = Command::Submit { submission: submission(gang), placements: vec![place(0, 0)], claim: None };
    assert_eq!(one(&mut state, command), Err(Reason::PlanChanged), "a gang starts as one");
}

#[test]
fn a_node_may_not_come_back_with_less_than_its_replicas_hold() {
    let mut state = with_nodes(&[8]);
    let mut spec = job_spec("t1", Gpus::Whole(1));
    spec.resources.memory = 100 << 30;
    run(&mut state, schedule("r1", spec));
    let mut less = node_spec(8);
    less.memory = 64 << 30;
    assert_eq!(try_run(&mut state, register("n1", less)).unwrap_err().reason, Reason::Conflict);
    let moved = nf_core::node::NodeSpec { ports: None, ..node_spec(8) };
    assert_eq!(try_run(&mut state, register("n1", moved)).unwrap_err().reason, Reason::Conflict);
    assert_eq!(invariants::check(&state), []);
}

#[test]
fn a_price_beyond_measure_does_not_overflow() {
    let mut state = State::new();
    let mut spec = node_spec(8);
    let device_type = spec.devices[0].device_type.clone();
    spec.cost_per_hour.insert(device_type, u64::MAX);
    run(&mut state, register("n1", spec));
    let mut job = JobSpec { replicas: 1000, ..job_spec("t1", Gpus::Whole(1)) };
    job.constraints.max_cost_per_hour = Some(1);
    run(&mut state, schedule("r1", job));
}

#[test]
fn a_tenants_total_that_would_overflow_is_refused() {
    let mut state = State::new();
    // More than a plan lets pass; apply must not rely on the plan.
    const HUGE: u64 = 1 << 60;
    for i in 0..20u64 {
        let spec = nf_core::node::NodeSpec { memory: HUGE, ..node_spec(1) };
        let Intent::Register { name, kind, incarnation, .. } = register(&format!("n{i}"), node_spec(1)) else {
            unreachable!("a registration")
        };
        one(&mut state, Command::Register { name, kind, incarnation, spec: spec.into() }).unwrap();
    }
    let mut refused = 0;
    for i in 0..20u32 {
        let mut spec = job_spec("t1", Gpus::None);
        spec.resources.memory = HUGE;
        let request = RequestId::new(&format!("r{i}")).unwrap();
        let alloc = Allocation { node: NodeNo(i + 1), shares: Vec::new(), port: Some(31000), at_ms: 0 };
        let placements = vec![Placement { replica: 0, alloc, why: None }];
        let command =
            Command::Submit { submission: Submission { request, ..submission(spec) }, placements, claim: None };
        refused += u32::from(one(&mut state, command) == Err(Reason::PlanChanged));
    }
    assert_eq!(refused, 5, "fifteen can be counted");
}

#[test]
fn a_job_whose_replicas_cannot_be_counted_together_is_refused() {
    let mut state = State::new();
    // 16 × 2^60 bytes are one more than can be counted: once a panic of the leader.
    for i in 0..16 {
        let spec = nf_core::node::NodeSpec { memory: MAX_BYTES, ..node_spec(1) };
        run(&mut state, register(&format!("n{i}"), spec));
    }
    let mut spec = JobSpec { replicas: 16, ..job_spec("t1", Gpus::None) };
    spec.resources.memory = 1 << 60;
    assert_eq!(try_run(&mut state, schedule("r1", spec.clone())).unwrap_err().reason, Reason::InvalidArgument);
    assert!(!nf_core::quota::allows(&state, None, &spec.resources, 16));
    assert_eq!(nf_core::quota::blockers(&state, None, &JobSpec { gang: true, ..spec.clone() }, 16).len(), 1);
    // The most that a plan lets pass.
    spec.resources.memory = MAX_BYTES;
    run(&mut state, schedule("r2", JobSpec { replicas: nf_core::job::MAX_REPLICAS, ..spec }));
    assert_eq!(invariants::check(&state), []);
}

#[test]
fn a_port_that_somebody_else_has_is_not_tried_again_at_once() {
    let mut state = with_nodes(&[1]);
    run(&mut state, schedule("r1", job_spec("t1", Gpus::Whole(1))));
    let mut ports = Vec::new();
    for generation in 1..=4 {
        let job = state.job(JobNo(1)).unwrap().clone();
        ports.push(job.replicas[0].allocation().unwrap().port.unwrap());
        let kind = ReportKind::Ended { ok: false, why: Reason::PortTaken };
        let report = Report { job: JobNo(1), replica: 0, generation: Generation(generation), kind };
        let reports = Intent::Reports {
            node: nf_core::id::NodeName::new("n1").unwrap(),
            incarnation: Incarnation(1),
            reports: vec![report],
        };
        run(&mut state, reports);
        let later = state.meta().now_ms + 600_000;
        nf_core::testing::try_run_at(&mut state, Intent::PlaceWaiting, later).unwrap();
    }
    let different: std::collections::BTreeSet<u16> = ports.iter().copied().collect();
    assert_eq!(different.len(), ports.len(), "{ports:?}");
}

/// The only replica ends like that and is placed again as soon as it may be; says on which port.
fn ends_and_starts(state: &mut State, why: Reason) -> u16 {
    let generation = state.job(JobNo(1)).unwrap().replicas[0].generation;
    let report = Report { job: JobNo(1), replica: 0, generation, kind: ReportKind::Ended { ok: false, why } };
    one(state, Command::Reports { node: NodeNo(1), incarnation: Incarnation(1), reports: vec![report] }).unwrap();
    let Phase::Waiting { not_before_ms, .. } = state.job(JobNo(1)).unwrap().replicas[0].phase else { panic!("{why}") };
    nf_core::testing::try_run_at(state, Intent::PlaceWaiting, not_before_ms).unwrap();
    state.job(JobNo(1)).unwrap().replicas[0].allocation().unwrap().port.unwrap()
}

#[test]
fn taken_ports_are_no_crashes_and_do_not_make_the_next_start_wait() {
    let mut state = with_nodes(&[1]);
    run(&mut state, schedule("r1", job_spec("t1", Gpus::Whole(1))));
    let mut port = state.job(JobNo(1)).unwrap().replicas[0].allocation().unwrap().port.unwrap();
    let (begun, mut strangers) = (state.meta().now_ms, std::collections::BTreeSet::new());
    for crash in [false, true] {
        if crash {
            port = ends_and_starts(&mut state, Reason::RuntimeFailed);
        }
        for _ in 0..10 {
            // The first five that are tried.
            if strangers.len() < 5 {
                strangers.insert(port);
            }
            if strangers.contains(&port) {
                port = ends_and_starts(&mut state, Reason::PortTaken);
            }
        }
        assert!(!strangers.contains(&port));
    }
    let took = state.meta().now_ms - begun;
    assert!((6_000..=10_000).contains(&took), "a second for each: {took}");
    assert_eq!(state.job(JobNo(1)).unwrap().replicas[0].restarts, 1, "it crashed once");
    // Where all ports are taken the tries become rare.
    for _ in 0..400 {
        ends_and_starts(&mut state, Reason::PortTaken);
    }
    let before = state.meta().now_ms;
    ends_and_starts(&mut state, Reason::PortTaken);
    assert_eq!(state.meta().now_ms - before, 30_000, "rare, and still soon for a replica that has been started often");
}

#[test]
fn a_start_that_waits_for_somebody_else_is_tried_again_soon() {
    for (why, longest) in [(Reason::VerifierUnavailable, 30_000), (Reason::RuntimeFailed, 300_000)] {
        let mut state = with_nodes(&[1]);
        run(&mut state, schedule("r1", job_spec("t1", Gpus::Whole(1))));
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let before = state.meta().now_ms;
            ends_and_starts(&mut state, why);
            pauses.push(state.meta().now_ms - before);
        }
        assert_eq!((pauses[0], pauses.iter().max()), (1_000, Some(&longest)), "{why}: {pauses:?}");
    }
}

#[test]
fn a_broken_clock_does_not_overflow_log_time() {
    let mut state = with_nodes(&[8]);
    run(&mut state, schedule("r1", job_spec("t1", Gpus::Whole(1))));
    let late = Batch { base: state.meta().base, at_ms: u64::MAX, commands: Vec::new(), ..Batch::default() };
    apply_batch(&mut state, &late);
    let known = state.request(&TenantId::new("t1").unwrap(), &RequestId::new("r1").unwrap());
    assert!(known.is_some(), "a live job's request is not forgotten");
    let kind = ReportKind::Ended { ok: false, why: Reason::RuntimeFailed };
    let report = Report { job: JobNo(1), replica: 0, generation: Generation(1), kind };
    let command = Command::Reports { node: NodeNo(1), incarnation: Incarnation(1), reports: vec![report] };
    assert_eq!(one(&mut state, command), Ok(Answer::Count(1)));
}

#[test]
fn an_ask_that_is_neither_whole_nor_part_is_refused_by_the_plan() {
    let state = with_nodes(&[8]);
    for gpu in [Gpus::Whole(0), Gpus::Milli(0), Gpus::Milli(1000), Gpus::Whole(2000)] {
        let refusal = plan(&state, &schedule("r1", job_spec("t1", gpu))).unwrap_err();
        assert_eq!(refusal.field.as_deref(), Some("resources.gpu"), "{gpu:?}");
    }
}

#[test]
fn a_waiter_whose_back_off_is_over_does_not_keep_the_leader_busy() {
    let mut state = with_nodes(&[1]);
    let mut spec = job_spec("t1", Gpus::Whole(1));
    spec.constraints.restart = Restart::Always;
    run(&mut state, schedule("r1", spec.clone()));
    let kind = ReportKind::Ended { ok: false, why: Reason::RuntimeFailed };
    let report = Report { job: JobNo(1), replica: 0, generation: Generation(1), kind };
    one(&mut state, Command::Reports { node: NodeNo(1), incarnation: Incarnation(1), reports: vec![report] }).unwrap();
    // Its place is taken before the back-off is over.
    run(&mut state, schedule("r2", spec));
    let mut seen = Observations::new(0);
    let mut tries = 0;
    for ms in (0..4_000).step_by(100) {
        let now = Now { mono_ms: ms, wall_ms: 10_000 + ms, unheard_ms: 0 };
        seen.heard(NodeNo(1), ms);
        tries += step(&state, &mut seen, &Timeouts::default(), now).len();
    }
    assert_eq!(tries, 1, "nothing changed after the first look");
}

#[test]
fn the_queue_is_tried_again_when_a_full_pass_has_placed() {
    let mut state = State::new();
    run(&mut state, quota("t1", 1000));
    for i in 0..200 {
        run(&mut state, schedule(&format!("r{i}"), job_spec("t1", Gpus::Milli(1))));
    }
    run(&mut state, register("n1", node_spec(8)));
    let room = state.room();
    run(&mut state, Intent::PlaceWaiting);
    assert!(state.has_waiters(), "a pass is bounded");
    assert_ne!(state.room(), room, "so the next one is due at once");
}

#[test]
fn asks_that_can_never_run_do_not_hold_up_other_tenants() {
    let mut state = State::new();
    run(&mut state, quota("a", 1000));
    // More than a pass ever tries, of a tenant that uses nothing and is therefore first.
    for i in 0..600 {
        run(&mut state, schedule(&format!("a{i}"), job_spec("a", Gpus::Whole(500))));
    }
    run(&mut state, quota("b", 8));
    run(&mut state, schedule("b1", job_spec("b", Gpus::Whole(1))));
    run(&mut state, register("n1", node_spec(8)));
    run(&mut state, Intent::PlaceWaiting);
    let job = state.job_of(&RequestId::new("b1").unwrap()).unwrap();
    assert!(!job.wants_place(), "b1 waits behind what can never run");
}

#[test]
fn a_gang_that_does_not_fit_says_nothing_about_single_jobs_of_its_shape() {
    let mut state = State::new();
    run(&mut state, quota("t1", 100));
    let gang = JobSpec { replicas: 20, gang: true, ..job_spec("t1", Gpus::Whole(1)) };
    run(&mut state, schedule("gang", gang));
    run(&mut state, schedule("single", job_spec("t1", Gpus::Whole(1))));
    run(&mut state, register("n1", node_spec(8)));
    run(&mut state, register("n2", node_spec(8)));
    run(&mut state, Intent::PlaceWaiting);
    let job = state.job_of(&RequestId::new("single").unwrap()).unwrap();
    assert!(!job.wants_place(), "one node is kept for the gang, the other has room");
}

#[test]
fn a_gang_over_several_nodes_is_not_starved_by_small_jobs() {
    let mut state = with_nodes(&[4, 4]);
    run(&mut state, quota("t1", 100));
    run(&mut state, schedule("a", job_spec("t1", Gpus::Whole(1))));
    let gang = JobSpec { replicas: 2, gang: true, ..job_spec("t1", Gpus::Whole(4)) };
    run(&mut state, schedule("gang", gang));
    run(&mut state, schedule("small", job_spec("t1", Gpus::Whole(1))));
    let small = state.job_of(&RequestId::new("small").unwrap()).unwrap();
    assert!(small.wants_place(), "both nodes are kept for the gang");
}

#[test]
fn waiters_for_quota_do_not_hide_the_one_that_waits_for_room() {
    let mut state = with_nodes(&[4]);
    run(&mut state, quota("t1", 4));
    run(&mut state, quota("t2", 8));
    run(&mut state, schedule("a", job_spec("t2", Gpus::Whole(2))));
    // Never placeable, and first in the order, because their tenant uses nothing.
    for i in 0..70 {
        run(&mut state, schedule(&format!("q{i}"), job_spec("t1", Gpus::Whole(5))));
    }
    run(&mut state, schedule("big", job_spec("t2", Gpus::Whole(4))));
    run(&mut state, schedule("small", job_spec("t2", Gpus::Whole(1))));
    let small = state.job_of(&RequestId::new("small").unwrap()).unwrap();
    assert!(small.wants_place(), "the node is kept for big");
}

#[test]
fn spread_means_another_node_first() {
    let mut state = with_nodes(&[4, 4, 4]);
    run(&mut state, quota("t1", 4));
    let mut spec = JobSpec { replicas: 3, ..job_spec("t1", Gpus::Whole(1)) };
    spec.constraints.arrangement = nf_core::job::Arrangement::Spread;
    run(&mut state, schedule("r1", spec));
    let job = state.job(JobNo(1)).unwrap();
    let mut nodes: Vec<_> = job.replicas.iter().map(|r| r.allocation().unwrap().node).collect();
    nodes.dedup();
    assert_eq!(nodes.len(), 3);
}

#[test]
fn a_revision_never_goes_back_when_a_member_restarts() {
    let mut state = with_nodes(&[8]);
    let mut rows: BTreeMap<(Table, Vec<u8>), Vec<u8>> = BTreeMap::new();
    run(&mut state, quota("t1", 8));
    for i in 0..5 {
        run(&mut state, schedule(&format!("r{i}"), job_spec("t1", Gpus::Whole(1))));
    }
    for change in state.take_changes() {
        match change.value {
            Some(value) => drop(rows.insert((change.table, change.key), value)),
            None => drop(rows.remove(&(change.table, change.key))),
        }
    }
    let rows = rows.into_iter().filter(|((table, _), _)| Table::LIVE.contains(table));
    let mut again = State::from_rows(rows.map(|((table, key), value)| (table, key, value))).unwrap();
    assert!(again.revision(NodeNo(1)) >= state.revision(NodeNo(1)));
    let (old, new) = (state.revision(NodeNo(1)), again.revision(NodeNo(1)));
    run(&mut state, schedule("r9", job_spec("t1", Gpus::Whole(1))));
    run(&mut again, schedule("r9", job_spec("t1", Gpus::Whole(1))));
    assert!(state.revision(NodeNo(1)) > old && again.revision(NodeNo(1)) > new);
    assert_eq!(state.revision(NodeNo(1)), again.revision(NodeNo(1)), "and members agree");
}

#[test]
fn a_refusal_that_was_read_from_the_state_waits_for_a_commit() {
    let mut state = with_nodes(&[8]);
    let mut proposer = Proposer::new(&state);
    let stop = Intent::Stop { request: RequestId::new("r1").unwrap(), tenant: None, why: Reason::StoppedByUser };
    assert!(proposer.offer(1, stop));
    let (entry, replies) = proposer.next_entry(0);
    let batch = entry.expect("a leader that was deposed must not answer");
    assert!(replies.is_empty() && batch.commands.is_empty());
    let outcome = apply_batch(&mut state, &batch);
    let replies = proposer.on_applied(&outcome, &state, 7);
    assert_eq!(replies[0].1.result.as_ref().unwrap_err().reason, Reason::NotFound);
    assert_eq!(replies[0].1.index, 7);
}

#[test]
fn that_it_is_so_already_waits_for_a_commit() {
    let mut state = with_nodes(&[8]);
    let mut spec = job_spec("t1", Gpus::Whole(1));
    spec.scaling = Some(Scaling { min: 1, max: 4, ..Scaling::default() });
    run(&mut state, schedule("s1", spec));
    let mut proposer = Proposer::new(&state);
    let target = Target { replicas: 1, why: autoscaler::Why::ResizeUp, inputs: None, seen: None, learned: None };
    assert!(proposer.offer(1, Intent::Scale { request: RequestId::new("s1").unwrap(), tenant: None, target }));
    let (entry, replies) = proposer.next_entry(0);
    let batch = entry.expect("a leader that was deposed must not say that it is so");
    assert!(replies.is_empty() && batch.commands.is_empty());
    let outcome = apply_batch(&mut state, &batch);
    let replies = proposer.on_applied(&outcome, &state, 7);
    assert_eq!((&replies[0].1.result, replies[0].1.index), (&Ok(Answer::Count(0)), 7));
    // The leader's own passes find nothing to do all the time, and tell nobody.
    assert!(proposer.offer(2, Intent::PlaceWaiting));
    let (entry, replies) = proposer.next_entry(0);
    assert!(entry.is_none() && replies.len() == 1);
}

#[test]
fn an_entry_is_bounded_in_bytes() {
    let state = State::new();
    let mut proposer = Proposer::new(&state);
    for i in 0..100 {
        assert!(proposer.offer(i, register(&format!("n{i}"), node_spec(1000))));
    }
    let (entry, _) = proposer.next_entry(0);
    let bytes = codec::encode(&entry.unwrap()).len();
    assert!(bytes < 1 << 20, "{bytes} bytes");
    assert!(proposer.queued() > 0);
}

fn waits(state: &State, request: &str) -> bool {
    state.job_of(&RequestId::new(request).unwrap()).unwrap().wants_place()
}

/// Its only replica was stopped and is gone.
fn stopped_and_gone(state: &mut State, request: &str) {
    let request = RequestId::new(request).unwrap();
    run(state, Intent::Stop { request: request.clone(), tenant: None, why: Reason::StoppedByUser });
    let job = state.job_of(&request).unwrap().clone();
    let (no, generation) = (job.no, job.replicas[0].generation);
    let kind = ReportKind::Ended { ok: true, why: Reason::StoppedByUser };
    let report = Report { job: no, replica: 0, generation, kind };
    let node = job.replicas[0].allocation().unwrap().node;
    one(state, Command::Reports { node, incarnation: Incarnation(1), reports: vec![report] }).unwrap();
}

#[test]
fn nodes_that_no_waiter_could_use_protect_no_waiter_less() {
    let mut state = with_nodes(&[4]);
    run(&mut state, quota("t1", 1000));
    run(&mut state, schedule("a", job_spec("t1", Gpus::Whole(2))));
    // No node will ever hold these.
    for i in 0..6 {
        run(&mut state, schedule(&format!("never{i}"), job_spec("t1", Gpus::Whole(100 + i))));
    }
    run(&mut state, schedule("big", job_spec("t1", Gpus::Whole(4))));
    run(&mut state, schedule("small", job_spec("t1", Gpus::Whole(1))));
    assert!(waits(&state, "small"), "the node is kept for big");
}

#[test]
fn one_pass_gives_equal_tenants_equal_shares() {
    let mut state = State::new();
    for tenant in ["a", "b"] {
        run(&mut state, quota(tenant, 8));
        for i in 0..4 {
            run(&mut state, schedule(&format!("{tenant}{i}"), job_spec(tenant, Gpus::Whole(1))));
        }
    }
    run(&mut state, register("n1", node_spec(4)));
    run(&mut state, Intent::PlaceWaiting);
    let held = |tenant: &str| {
        let tenant = state.tenant_named(&TenantId::new(tenant).unwrap()).unwrap().no;
        state.ledger().tenant(tenant).gpu_milli
    };
    assert_eq!((held("a"), held("b")), (2_000, 2_000));
}

fn typed(tenant: &str, kind: &str, cpu_milli: u64) -> JobSpec {
    let mut spec = job_spec(tenant, Gpus::Whole(1));
    spec.resources.device_types = vec![nf_core::id::DeviceType::new(kind).unwrap()];
    spec.resources.cpu_milli = cpu_milli;
    spec
}

/// A node with one T4 that somebody holds.
fn with_a_t4() -> State {
    let mut state = State::new();
    let mut node = node_spec(1);
    node.devices[0].device_type = nf_core::id::DeviceType::new("T4").unwrap();
    run(&mut state, register("n1", node));
    run(&mut state, schedule("holds", typed("t2", "T4", 0)));
    state
}

#[test]
fn equal_asks_of_a_tenant_with_a_budget_do_not_hide_another_of_its_asks() {
    let mut state = with_a_t4();
    let mut budgets = nf_core::budget::Budgets::default();
    budgets.gpu_hours[nf_core::budget::Window::Month as usize] = Some(1_000_000_000);
    let quota = Quota { gpu_milli: Some(1_000_000), budgets: budgets.some(), ..Quota::default() };
    run(&mut state, Intent::SetQuota { tenant: TenantId::new("t1").unwrap(), quota });
    for i in 0..70 {
        // How long it may run says nothing of where.
        let mut spec = typed("t1", "H100-80G", 0);
        spec.constraints.max_run_ms = Some(60_000 + i);
        run(&mut state, schedule(&format!("h{i}"), spec));
    }
    run(&mut state, schedule("t4", typed("t1", "T4", 0)));
    stopped_and_gone(&mut state, "holds");
    run(&mut state, Intent::PlaceWaiting);
    assert!(!waits(&state, "t4"));
}

#[test]
fn of_many_different_asks_that_fail_each_has_its_turn() {
    let mut state = with_a_t4();
    run(&mut state, quota("t1", 1000));
    for i in 0..300 {
        run(&mut state, schedule(&format!("h{i}"), typed("t1", "H100-80G", i)));
    }
    run(&mut state, schedule("t4", typed("t1", "T4", 0)));
    stopped_and_gone(&mut state, "holds");
    let mut passes = 0;
    while waits(&state, "t4") {
        passes += 1;
        assert!(passes < 400, "it never has its turn");
        let at_ms = state.meta().now_ms + 5_000;
        nf_core::testing::try_run_at(&mut state, Intent::PlaceWaiting, at_ms).unwrap();
    }
}

#[test]
fn a_plan_is_judged_by_the_clock_like_the_run_that_follows() {
    let mut state = with_nodes(&[1]);
    let mut chosen = state.meta().placement;
    (chosen.preemption.min_run_ms, chosen.preemption.delay_ms) = (60_000, 0);
    run(&mut state, Intent::SetPlacement { chosen, seen: None });
    let mut low = job_spec("t1", Gpus::Whole(1));
    low.constraints.preemptible = true;
    run(&mut state, schedule("low", low));
    let mut high = job_spec("t1", Gpus::Whole(1));
    high.priority = 5;
    // Nothing happens for two minutes: the victim may be taken now, and the state does not know yet.
    let draft = nf_core::plan::draft(&state.at(120_000), &high);
    assert!(draft.claim.is_some());
    let mut proposer = Proposer::new(&state);
    let Intent::Schedule { submission, queueing, .. } = schedule("high", high) else { unreachable!() };
    assert!(proposer.offer(1, Intent::Schedule { submission, queueing, check_plan: Some(draft.digest()) }));
    let (entry, _) = proposer.next_entry(120_000);
    let BatchOutcome::Applied(answers) = apply_batch(&mut state, &entry.unwrap()) else { panic!("superseded") };
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert!(state.job_of(&RequestId::new("high").unwrap()).unwrap().claim.is_some());
}

#[test]
fn a_plan_says_the_same_on_a_member_that_has_just_loaded_the_state() {
    let mut rng = nf_core::sim::Rng::new(5);
    let mut state = State::new();
    for i in 0..24u16 {
        run(&mut state, register(&format!("n{i}"), node_spec(1 + i % 8)));
    }
    run(&mut state, quota("t1", 10_000));
    let ask = |rng: &mut nf_core::sim::Rng| {
        let gpu = if rng.chance(500) { Gpus::Milli(100 * rng.between(1, 9) as u16) } else { Gpus::Whole(1) };
        let mut spec = job_spec("t1", gpu);
        spec.resources.cpu_milli = 1_000 * rng.below(8);
        spec
    };
    for i in 0..400 {
        let spec = ask(&mut rng);
        run(&mut state, schedule(&format!("r{i}"), spec));
        if i % 2 == 1 {
            let no = JobNo(rng.between(1, i));
            let Some(job) = state.job(no).filter(|job| !job.wants_place()).cloned() else { continue };
            stopped_and_gone(&mut state, job.request.as_str());
        }
    }
    state.take_changes();
    let loaded = State::from_rows(state.live_rows()).unwrap();
    for _ in 0..50 {
        let spec = ask(&mut rng);
        let digest = |state: &State| nf_core::plan::draft(state, &spec).digest();
        assert_eq!(digest(&state), digest(&loaded), "{spec:?}");
    }
}
