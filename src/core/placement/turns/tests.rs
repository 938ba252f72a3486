//! Queues that are longer than a pass, and asks that none can meet: nobody else waits for them.

use crate::apply::{BatchOutcome, apply_batch};
use crate::command::{Batch, Command, Placement, Submission};
use crate::id::{NodeName, RequestId, TenantId};
use crate::invariants;
use crate::job::{JobSpec, Phase};
use crate::node::NodeState;
use crate::placement::queue::within_quota;
use crate::placement::{Chosen, Policy};
use crate::plan::{Intent, plan};
use crate::resources::Gpus;
use crate::sim::Rng;
use crate::state::State;
use crate::tenant::Quota;
use crate::testing::{job_spec, node_spec, register, run, schedule, try_run_at};

fn quota(state: &mut State, tenant: &str, gpus: u64) {
    let quota = Quota { gpu_milli: Some(gpus * 1000), ..Quota::default() };
    run(state, Intent::SetQuota { tenant: TenantId::new(tenant).unwrap(), quota });
}

/// They come and wait, without a look for a place.
fn wait(state: &mut State, jobs: impl IntoIterator<Item = (String, JobSpec)>) {
    let submit = |(request, spec): (String, JobSpec)| {
        let Intent::Schedule { submission, .. } = schedule(&request, spec) else { unreachable!("a schedule call") };
        let submission = Submission { keyed: false, ..submission };
        Command::Submit { submission, placements: Vec::new(), claim: None }
    };
    let commands: Vec<Command> = jobs.into_iter().map(submit).collect();
    let batch = Batch { base: state.meta().base, at_ms: state.meta().now_ms, commands, ..Batch::default() };
    let BatchOutcome::Applied(answers) = apply_batch(state, &batch) else { panic!("superseded") };
    assert!(answers.iter().all(Result::is_ok), "{:?}", answers.iter().find(|answer| answer.is_err()));
}

fn one(name: &str, spec: JobSpec) -> [(String, JobSpec); 1] {
    [(name.to_owned(), spec)]
}

/// So many that no node can hold.
fn impossible(tenant: &str, count: usize) -> Vec<(String, JobSpec)> {
    let spec = job_spec(tenant, Gpus::Whole(16));
    (0..count).map(|i| (format!("{tenant}{i}"), spec.clone())).collect()
}

fn waits(state: &State, request: &str) -> bool {
    state.job_of(&RequestId::new(request).unwrap()).unwrap().wants_place()
}

/// A node of eight GPUs, and two tenants that hold nothing and wait with as many as may.
fn with_two_long_queues() -> State {
    let mut state = State::new();
    run(&mut state, register("n1", node_spec(8)));
    for tenant in ["a", "b", "c"] {
        quota(&mut state, tenant, 1_000_000);
    }
    for tenant in ["a", "b"] {
        wait(&mut state, impossible(tenant, 9_000));
    }
    state
}

#[test]
fn the_queues_of_two_tenants_hide_nobody_elses() {
    let mut state = with_two_long_queues();
    // It holds something, and so stands behind both.
    run(&mut state, schedule("first", job_spec("c", Gpus::Whole(1))));
    wait(&mut state, one("second", job_spec("c", Gpus::Whole(1))));
    run(&mut state, Intent::PlaceWaiting);
    assert!(!waits(&state, "second"));
}

#[test]
fn the_last_of_a_queue_longer_than_a_pass_has_its_turn() {
    let mut state = with_two_long_queues();
    wait(&mut state, one("last", job_spec("a", Gpus::Whole(1))));
    wait(&mut state, impossible("a", 900).into_iter().map(|(name, spec)| (format!("late-{name}"), spec)));
    let mut passes = 0;
    while waits(&state, "last") {
        passes += 1;
        assert!(passes < 40, "it never has its turn");
        let at_ms = state.meta().now_ms + 5_000;
        try_run_at(&mut state, Intent::PlaceWaiting, at_ms).unwrap();
    }
}

#[test]
fn a_torn_gang_gives_its_places_back_however_many_wait_longer() {
    let mut state = with_two_long_queues();
    run(&mut state, register("n2", node_spec(8)));
    let gang = JobSpec { replicas: 2, gang: true, ..job_spec("c", Gpus::Whole(8)) };
    try_run_at(&mut state, schedule("gang", gang), 1_000).unwrap();
    let node = state.node_named(&NodeName::new("n2").unwrap()).unwrap();
    let states = [NodeState::Suspect, NodeState::Unknown, NodeState::Down];
    for to in states.map(|to| vec![(node.no, node.incarnation, to)]) {
        run(&mut state, Intent::NodeStates(to));
    }
    assert!(waits(&state, "gang"), "half of it is gone");
    try_run_at(&mut state, Intent::PlaceWaiting, 100_000).unwrap();
    let gang = state.job_of(&RequestId::new("gang").unwrap()).unwrap();
    assert!(gang.replicas.iter().all(|replica| !matches!(replica.phase, Phase::Held { .. })), "{:?}", gang.replicas);
    assert_eq!(invariants::check(&state), []);
}

#[test]
fn asks_for_which_nobody_can_give_way_leave_others_their_tries() {
    let mut state = State::new();
    let mut chosen = Chosen::from(Policy::Fragmentation);
    (chosen.preemption.min_run_ms, chosen.preemption.delay_ms) = (0, 0);
    run(&mut state, Intent::SetPlacement { chosen, seen: None });
    for (tenant, gpus) in [("a", 2), ("b", 1)] {
        run(&mut state, register(&format!("n-{tenant}"), node_spec(1)));
        quota(&mut state, tenant, gpus);
        let mut low = job_spec(tenant, Gpus::Whole(1));
        low.constraints.preemptible = true;
        run(&mut state, schedule(&format!("{tenant}-low"), low));
    }
    // Its own work would give it the quota, and no node has two GPUs.
    let different = |i: u64| {
        let mut spec = job_spec("a", Gpus::Whole(2));
        (spec.priority, spec.resources.cpu_milli) = (10, i);
        (format!("a{i}"), spec)
    };
    wait(&mut state, (0..100).map(different));
    wait(&mut state, one("b-high", JobSpec { priority: 5, ..job_spec("b", Gpus::Whole(1)) }));
    run(&mut state, Intent::PlaceWaiting);
    assert!(state.job_of(&RequestId::new("b-high").unwrap()).unwrap().claim.is_some());
}

#[test]
fn a_pass_ends_at_so_many_replicas_and_the_next_ones_go_on() {
    let mut state = State::new();
    run(&mut state, register("n1", node_spec(8)));
    quota(&mut state, "a", 1_000);
    let job = |i: u16| (format!("r{i}"), JobSpec { replicas: 300, ..job_spec("a", Gpus::Milli(1)) });
    wait(&mut state, (0..3).map(job));
    let placed = |state: &State| -> usize {
        let commands = plan(state, &Intent::PlaceWaiting).unwrap().commands;
        let places = |command: &Command| -> Vec<Placement> {
            let Command::Place { placements, .. } = command else { panic!("{command:?}") };
            placements.clone()
        };
        commands.iter().map(|command| places(command).len()).sum()
    };
    assert_eq!(placed(&state), 512);
    run(&mut state, Intent::PlaceWaiting);
    assert_eq!(placed(&state), 900 - 512);
    run(&mut state, Intent::PlaceWaiting);
    assert!(!state.has_waiters());
    assert_eq!(invariants::check(&state), []);
}

#[test]
fn as_many_replicas_as_the_quota_allows_are_left_and_no_fewer() {
    let mut cut = 0;
    for seed in 0..500 {
        let mut rng = Rng::new(seed);
        let mut state = State::new();
        quota(&mut state, "a", rng.below(20));
        let tenant = state.tenant_named(&TenantId::new("a").unwrap()).map(|tenant| tenant.no);
        let mut spec = job_spec("a", Gpus::Milli(rng.between(1, 9) as u16 * 100));
        spec.gang = rng.chance(300);
        let wanted: Vec<u16> = (0..rng.below(40) as u16).collect();
        let allows = |times: u64| crate::quota::allows(&state, tenant, &spec.resources, times);
        let most = (1..=wanted.len()).rev().find(|times| allows(*times as u64)).unwrap_or(0);
        let right = if spec.gang && most < wanted.len() { 0 } else { most };
        assert_eq!(within_quota(&state, tenant, &spec, wanted.clone()), wanted[..right], "seed {seed}");
        cut += usize::from(right > 0 && right < wanted.len());
    }
    assert!(cut > 50, "{cut}");
}
