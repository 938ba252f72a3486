//! Small groups on which the one good move is plain, and what must not move.

use super::*;
use crate::apply::{BatchOutcome, apply_batch};
use crate::command::{Answer, Batch, Command, Report, ReportKind};
use crate::id::NodeName;
use crate::job::{JobSpec, Restart};
use crate::node::{Cordon, Drain};
use crate::plan::Intent;
use crate::sim::Rng;
use crate::testing;

/// A workload of whole nodes, two of them each broken by one replica of half of the GPUs.
fn broken() -> State {
    let mut state = State::new();
    let quota = crate::tenant::Quota { gpu_milli: Some(1_000_000), ..Default::default() };
    testing::run(&mut state, Intent::SetQuota { tenant: TenantId::new("t1").unwrap(), quota });
    for i in 1..=3 {
        testing::run(&mut state, testing::register(&format!("n{i}"), testing::node_spec(8)));
    }
    place(&mut state, "a", "n1", pinned("n1", 4));
    place(&mut state, "b", "n2", pinned("n2", 4));
    state.mix.add(&testing::job_spec("t1", Gpus::Whole(8)).resources, 100);
    state.make_rules(1);
    state
}

fn pinned(node: &str, gpus: u16) -> JobSpec {
    let mut spec = testing::job_spec("t1", Gpus::Whole(gpus));
    spec.constraints.node = NodeName::new(node).ok();
    spec
}

/// A job that runs on the node, as if the placer had chosen it.
fn place(state: &mut State, request: &str, node: &str, wanted: JobSpec) {
    let mut spec = wanted.clone();
    spec.constraints.node = None;
    let pick = crate::placement::place_one(state, &wanted, &Default::default()).unwrap();
    assert_eq!(state.node(pick.alloc.node).unwrap().name.as_str(), node);
    let Intent::Schedule { submission, .. } = testing::schedule(request, spec) else { unreachable!() };
    entry(state, vec![Command::Submit { submission, placements: vec![pick.for_replica(0)], claim: None }]);
    ready(state);
}

fn entry(state: &mut State, commands: Vec<Command>) -> Vec<Result<Answer, Refusal>> {
    let batch = Batch { base: state.meta().base, at_ms: state.meta().now_ms, commands, ..Batch::default() };
    let BatchOutcome::Applied(answers) = apply_batch(state, &batch) else { unreachable!() };
    answers
}

/// Every agent does what its node should: what starts is ready, what should stop is gone.
fn ready(state: &mut State) {
    for _ in 0..3 {
        let mut commands = Vec::new();
        for node in state.nodes().values() {
            let mut reports = Vec::new();
            for (job, replica, r) in state.replicas_on(node.no) {
                let Some((generation, _, copy)) = r.copy_on(node.no) else { continue };
                use crate::job::Copy;
                let kind = match copy {
                    Copy::Going(why) => ReportKind::Ended { ok: true, why },
                    Copy::Own(Phase::Stopping { why, .. }) => ReportKind::Ended { ok: true, why: *why },
                    _ => ReportKind::Stage(Stage::Ready),
                };
                reports.push(Report { job: job.no, replica, generation, kind });
            }
            commands.push(Command::Reports { node: node.no, incarnation: node.incarnation, reports });
        }
        entry(state, commands);
    }
}

#[test]
fn two_halves_on_two_nodes_become_one_whole_node() {
    let mut state = broken();
    let before = plan(&state).unwrap();
    assert_eq!((before.idle_milli, before.usable_milli, before.under_way), (16_000, 8_000, 0));
    let [step] = &before.steps[..] else { panic!("{before:?}") };
    assert_eq!(step.gain_milli, 8_000, "an idle node more, and no half of one less");
    let names = [step.from, step.to.alloc.node].map(|no| state.node(no).unwrap().name.to_string());
    assert!(names == ["n1", "n2"] || names == ["n2", "n1"], "{names:?}");
    testing::run(&mut state, Intent::Defragment);
    let under_way = plan(&state).unwrap();
    assert_eq!((under_way.under_way, under_way.steps.len()), (1, 0), "one at a time");
    let job = state.job(step.job).unwrap();
    assert!(matches!(
        &job.replicas[0],
        Replica {
            phase: Phase::Held { stage: Stage::Ready, .. },
            moving: Some(Move::Coming { why: Reason::Defragmentation, .. }),
            ..
        }
    ));
    ready(&mut state);
    let after = plan(&state).unwrap();
    assert_eq!((after.usable_milli, after.under_way, after.steps.len()), (16_000, 0, 0), "and nothing more to win");
    assert_eq!(crate::invariants::check(&state), []);
}

#[test]
fn what_may_not_move_stays() {
    type Change = fn(&mut JobSpec);
    let changes: [Change; 5] = [
        |spec| spec.constraints.stay = true,
        |spec| spec.constraints.exclusive = true,
        |spec| spec.constraints.restart = Restart::Never,
        |spec| spec.gang = true,
        |spec| spec.constraints.node = NodeName::new("n1").ok(),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let mut state = broken();
        for job in state.jobs().values().cloned().collect::<Vec<_>>() {
            let mut job = (*job).clone();
            change(Arc::make_mut(&mut job.spec));
            state.put_job(job);
        }
        assert_eq!(plan(&state).unwrap().steps.len(), 0, "change {i}");
    }
    let mut state = broken();
    let starting = state.jobs().values().map(|job| (**job).clone()).collect::<Vec<_>>();
    for mut job in starting {
        let Phase::Held { alloc, .. } = job.replicas[0].phase.clone() else { unreachable!() };
        job.replicas[0].phase = Phase::Held { alloc, stage: Stage::Starting };
        state.put_job(job);
    }
    assert_eq!(plan(&state).unwrap().steps.len(), 0, "what does not serve yet");
}

#[test]
fn nothing_moves_while_a_node_is_drained_or_nothing_says_what_is_usable() {
    let mut state = broken();
    let drain = Drain { within_ms: None, force: false };
    let cordon = Cordon { by: "a".into(), reason: "".into(), at_ms: 0, drain: Some(drain) };
    testing::run(&mut state, Intent::Cordon { node: NodeName::new("n1").unwrap(), cordon: Some(cordon) });
    assert_eq!(plan(&state).unwrap_err().reason, Reason::NodeDrain);
    testing::run(&mut state, Intent::Cordon { node: NodeName::new("n1").unwrap(), cordon: None });
    state.set_placement(Policy::BestFit.into());
    assert_eq!(plan(&state).unwrap_err().reason, Reason::Conflict);
}

#[test]
fn a_move_needs_quota_for_both_copies() {
    let mut state = broken();
    let quota = crate::tenant::Quota { gpu_milli: Some(8_000), ..Default::default() };
    testing::run(&mut state, Intent::SetQuota { tenant: TenantId::new("t1").unwrap(), quota });
    assert_eq!(plan(&state).unwrap().steps.len(), 0);
}

/// Over random groups: what is told is what is won, never more than one in a hundred at once.
#[test]
fn each_round_wins_what_it_says() {
    let mut won = 0;
    for seed in 1..=12 {
        let mut rng = Rng::new(seed);
        let mut state = State::new();
        let quota = crate::tenant::Quota { gpu_milli: Some(10_000_000), ..Default::default() };
        testing::run(&mut state, Intent::SetQuota { tenant: TenantId::new("t1").unwrap(), quota });
        for i in 0..30 {
            testing::run(&mut state, testing::register(&format!("n{i}"), testing::node_spec(8)));
        }
        let mut live = Vec::new();
        for i in 0..260 {
            let gpu = match rng.below(4) {
                0 => Gpus::Whole(1 << rng.below(4)),
                _ => Gpus::Milli(100 * rng.between(1, 9) as u16),
            };
            let mut spec = testing::job_spec("t1", gpu);
            spec.resources.cpu_milli = 500 * rng.below(6);
            let request = format!("r{i}");
            testing::run(&mut state, testing::schedule(&request, spec));
            live.push(request);
            if i > 120 {
                let request = live.swap_remove(rng.below(live.len() as u64) as usize);
                let request = RequestId::new(&request).unwrap();
                testing::run(&mut state, Intent::Stop { request, tenant: None, why: Reason::StoppedByUser });
            }
            ready(&mut state);
        }
        for round in 0..20 {
            // As the tables are now: they are not made anew within a round.
            let before = plan(&state).unwrap();
            let (running, _) = count(&state);
            assert!(before.steps.len() <= (running / PART).max(1), "seed {seed}, round {round}");
            if before.steps.is_empty() {
                break;
            }
            testing::run(&mut state, Intent::Defragment);
            ready(&mut state);
            let after = plan(&state).unwrap();
            let told: i64 = before.steps.iter().map(|step| step.gain_milli).sum();
            let got = after.usable_milli - before.usable_milli;
            assert!(
                (got - told).abs() <= before.steps.len() as i64 + 1,
                "seed {seed}, round {round}: {got}, told {told}"
            );
            won += got;
        }
        assert_eq!(crate::invariants::check(&state), []);
    }
    assert!(won > 0, "the churn left something to win");
}
