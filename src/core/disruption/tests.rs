//! Who waits before it evicts, how long the evicted may save their state, and of whom no more is taken.

use super::*;
use crate::claim::{Claim, LASTS_MS, Victim};
use crate::command::{Command, ReportKind};
use crate::control::{Now, Observations, step};
use crate::fault::Fault;
use crate::id::{NodeName, NodeNo, RequestId, Revision};
use crate::invariants;
use crate::job::{Move, Restart};
use crate::moves::outlook;
use crate::node::{Cordon, Drain, DrainState};
use crate::placement::explain;
use crate::placement::preempt::tests::{all_gone, everything, says};
use crate::placement::{Chosen, Policy};
use crate::plan::{Intent, draft};
use crate::resources::Gpus;
use crate::state::State;
use crate::tenant::Quota;
use crate::testing;
use crate::view;
use std::sync::Arc;

/// Nodes of so many GPUs; who waits may evict after `delay_ms`.
fn world(nodes: &[u16], delay_ms: u64) -> State {
    let mut state = State::new();
    let mut chosen = Chosen::from(Policy::BestFit);
    (chosen.preemption.min_run_ms, chosen.preemption.delay_ms) = (0, delay_ms);
    testing::run(&mut state, Intent::SetPlacement { chosen, seen: None });
    let quota = Quota { gpu_milli: Some(100_000), ..Quota::default() };
    let tenant = crate::id::TenantId::new("t1").unwrap();
    testing::run(&mut state, Intent::SetQuota { tenant, quota });
    for (i, gpus) in nodes.iter().enumerate() {
        testing::run(&mut state, testing::register(&format!("n{}", i + 1), testing::node_spec(*gpus)));
    }
    state
}

/// A job that gives way, of replicas with one GPU each.
fn service(replicas: u16, most: Option<u16>) -> JobSpec {
    let mut spec = testing::job_spec("t1", Gpus::Whole(1));
    spec.replicas = replicas;
    (spec.constraints.preemptible, spec.constraints.max_unavailable) = (true, most);
    spec
}

fn urgent(replicas: u16) -> JobSpec {
    JobSpec { priority: 10, ..service(replicas, None) }
}

fn submit(state: &mut State, request: &str, spec: JobSpec) {
    testing::run(state, testing::schedule(request, spec));
    assert_eq!(invariants::check(state), []);
}

fn job(state: &State, request: &str) -> Arc<Job> {
    state.job_of(&RequestId::new(request).unwrap()).unwrap().clone()
}

fn all_serve(state: &mut State) {
    let held: Vec<Victim> = state.jobs().values().flat_map(everything).collect();
    held.into_iter().for_each(|replica| says(state, replica, ReportKind::Stage(Stage::Ready)));
}

fn at(state: &mut State, at_ms: u64, intent: Intent) {
    testing::try_run_at(state, intent, at_ms).unwrap();
    assert_eq!(invariants::check(state), []);
}

fn stopping(state: &State, request: &str) -> usize {
    job(state, request).replicas.iter().filter(|r| matches!(r.phase, Phase::Stopping { .. })).count()
}

fn notice_of(state: &State, request: &str, no: usize) -> Option<Notice> {
    let replica = &job(state, request).replicas[no];
    replica.notice_of(replica.generation)
}

fn drain(state: &mut State, node: &str, within_ms: Option<u64>, at_ms: u64) {
    let cordon =
        Cordon { by: "me".into(), reason: "fans".into(), at_ms: 0, drain: Some(Drain { within_ms, force: false }) };
    at(state, at_ms, Intent::Cordon { node: NodeName::new(node).unwrap(), cordon: Some(cordon) });
}

fn reasons(view: &view::JobView) -> Vec<Reason> {
    view.blockers.iter().map(|blocker| blocker.reason).collect()
}

#[test]
fn a_waiter_has_to_wait_before_it_makes_others_give_way_and_is_told_from_when_on_it_may() {
    let mut state = world(&[1], 5_000);
    submit(&mut state, "held", service(1, None));
    let planned = draft(&state, &urgent(1));
    assert_eq!(planned.claim.as_ref().map(|claim| claim.victims.len()), Some(1), "the plan names them");
    let blockers = planned.blockers(&state, &urgent(1));
    assert_eq!(blockers.last().map(|b| b.reason), Some(Reason::PreemptionDelayNotElapsed), "{blockers:?}");
    at(&mut state, 1_000, testing::schedule("urgent", urgent(1)));
    assert!(job(&state, "urgent").claim.is_none() && stopping(&state, "held") == 0);
    at(&mut state, 5_999, Intent::PlaceWaiting);
    assert_eq!(stopping(&state, "held"), 0, "a millisecond too soon");
    let view = view::explained(&state, &job(&state, "urgent"));
    assert_eq!(view.may_preempt_from_ms, Some(6_000));
    let said = view.blockers.last().unwrap();
    assert_eq!(said.reason, Reason::PreemptionDelayNotElapsed);
    assert!(said.detail.contains("may preempt in 1 s") && said.detail.contains("held"), "{}", said.detail);
    // The leader looks again by itself as soon as it may, though nothing else has happened.
    let looks = |from: u64, to: u64| state.may_evict_between(from, to);
    assert!(looks(5_999, 6_000) && !looks(5_000, 5_999) && !looks(6_000, 7_000));
    at(&mut state, 6_000, Intent::PlaceWaiting);
    assert_eq!(stopping(&state, "held"), 1);
    all_gone(&mut state);
    assert_eq!(job(&state, "urgent").replicas[0].allocation().map(|alloc| alloc.node), Some(NodeNo(1)));
}

#[test]
fn who_lost_its_place_waits_anew_and_a_gang_waits_for_its_last() {
    let mut state = world(&[1, 1], 5_000);
    at(&mut state, 1_000, testing::schedule("own", urgent(1)));
    let spec = JobSpec { gang: true, ..urgent(2) };
    at(&mut state, 2_000, testing::schedule("gang", spec));
    let mut gang = (*job(&state, "gang")).clone();
    assert_eq!(gang.waits_since(), Some(2_000));
    let failed = Phase::Waiting { since_ms: 4_000, not_before_ms: 6_000, last: None };
    gang.replicas[1].phase = failed;
    assert_eq!(gang.waits_since(), Some(6_000), "its back-off is no waiting for room");
    assert_eq!((gang.may_evict(10_999, 5_000).count(), gang.may_evict(11_000, 5_000).count()), (0, 2));
    gang.spec = Arc::new(JobSpec { gang: false, ..(*gang.spec).clone() });
    assert_eq!(gang.may_evict(10_999, 5_000).collect::<Vec<_>>(), [0]);
    // A replica that ran and failed counts from then on.
    let own = job(&state, "own");
    let end = ReportKind::Ended { ok: false, why: Reason::RuntimeFailed };
    at(&mut state, 9_000, Intent::Tick);
    says(&mut state, everything(&own)[0], end);
    assert_eq!(job(&state, "own").waits_since(), Some(10_000), "9 s, and a second's back-off");
}

#[test]
fn apply_refuses_a_claim_that_comes_too_soon_or_takes_too_many() {
    let mut state = world(&[4], 5_000);
    submit(&mut state, "held", service(4, Some(1)));
    all_serve(&mut state);
    at(&mut state, 1_000, testing::schedule("urgent", urgent(2)));
    let (held, wanted) = (job(&state, "held"), job(&state, "urgent"));
    let claim = |count: usize| Claim {
        placements: (0..count)
            .map(|i| crate::command::Placement {
                replica: i as u16,
                alloc: crate::job::Allocation {
                    port: Some(31_500 + i as u16),
                    ..held.replicas[i].allocation().unwrap().clone()
                },
                why: None,
            })
            .collect(),
        victims: everything(&held).into_iter().take(count).collect(),
        at_ms: 0,
    };
    let mut preempt = |count: usize, at_ms: u64| {
        let command = Command::Preempt { job: wanted.no, claim: Box::new(claim(count)) };
        let base = state.meta().base;
        let batch = crate::command::Batch { base, at_ms, commands: vec![command], ..Default::default() };
        match crate::apply::apply_batch(&mut state, &batch) {
            crate::apply::BatchOutcome::Applied(answers) => answers[0].clone().map_err(|refusal| refusal.detail),
            crate::apply::BatchOutcome::Superseded { .. } => unreachable!("planned on this state"),
        }
    };
    let too_soon = preempt(1, 5_999).unwrap_err();
    assert!(too_soon.contains("not waited long enough"), "{too_soon}");
    let too_many = preempt(2, 6_000).unwrap_err();
    assert!(too_many.contains("fewer of its replicas"), "{too_many}");
    assert_eq!(preempt(1, 6_000), Ok(crate::command::Answer::Count(1)));
}

#[test]
fn preemption_takes_others_or_waits_and_says_whose_budget_it_waits_for() {
    let mut state = world(&[4], 0);
    submit(&mut state, "cheap", service(2, Some(0)));
    submit(&mut state, "dear", JobSpec { priority: 5, ..service(2, Some(1)) });
    all_serve(&mut state);
    submit(&mut state, "urgent", urgent(1));
    assert_eq!((stopping(&state, "cheap"), stopping(&state, "dear")), (0, 1), "the cheaper one has none to spare");
    all_gone(&mut state);
    all_serve(&mut state);
    assert_eq!(missing(&job(&state, "dear")), 1);
    submit(&mut state, "second", urgent(1));
    testing::run(&mut state, Intent::PlaceWaiting);
    assert_eq!((stopping(&state, "cheap"), stopping(&state, "dear")), (0, 0));
    let view = view::explained(&state, &job(&state, "second"));
    assert!(reasons(&view).contains(&Reason::DisruptionBudget), "{:?}", view.blockers);
    let said = view.blockers.last().unwrap();
    assert!(said.detail.contains("cheap") && said.detail.contains("max_unavailable"), "{}", said.detail);
    // What never had a place is not missed: wanting more than there is protects nobody.
    submit(&mut state, "greedy", JobSpec { priority: -5, ..service(9, Some(1)) });
    assert_eq!(missing(&job(&state, "greedy")), 0);
}

#[test]
fn a_drain_stops_no_more_of_a_service_than_it_lets_be_missing_and_says_whose_they_are() {
    let mut state = world(&[3, 5], 0);
    let mut spec = service(3, Some(1));
    spec.constraints.exclusive = true;
    submit(&mut state, "once", spec);
    all_serve(&mut state);
    drain(&mut state, "n1", None, 0);
    let pass = |state: &mut State| {
        testing::run(state, Intent::Moves);
        assert_eq!(invariants::check(state), []);
        stopping(state, "once")
    };
    // There is room for all, but what must not run twice stops first, and only one may be missing.
    for left in (1..=3).rev() {
        assert_eq!(pass(&mut state), 1, "{left} left");
        assert_eq!(pass(&mut state), 1, "no more until it serves again");
        let looks = outlook(&state, NodeNo(1));
        let spared = looks.iter().filter(|look| look.blockers.iter().any(|b| b.reason == Reason::DisruptionBudget));
        assert_eq!(spared.count(), left - 1);
        all_gone(&mut state);
        assert_eq!(pass(&mut state), 0, "it starts elsewhere, and does not serve yet");
        all_serve(&mut state);
    }
    pass(&mut state);
    assert_eq!(state.node(NodeNo(1)).unwrap().drain, DrainState::Drained);
    // One that may never be missing stays, and the drain says so.
    let mut never = service(1, Some(0));
    never.constraints.exclusive = true;
    submit(&mut state, "never", never);
    all_serve(&mut state);
    let node = job(&state, "never").replicas[0].allocation().unwrap().node;
    assert_eq!(node, NodeNo(2));
    testing::run(&mut state, testing::register("n3", testing::node_spec(4)));
    submit(&mut state, "stop", service(1, None));
    drain(&mut state, "n2", Some(0), 1);
    for _ in 0..8 {
        testing::run(&mut state, Intent::Moves);
        all_gone(&mut state);
        all_serve(&mut state);
        testing::run(&mut state, Intent::PlaceWaiting);
        all_serve(&mut state);
    }
    testing::run(&mut state, Intent::Moves);
    assert_eq!(state.node(NodeNo(2)).unwrap().drain, DrainState::Blocked);
    let looks = outlook(&state, NodeNo(2));
    let [look] = looks.as_slice() else { panic!("{looks:?}") };
    assert_eq!((look.request.as_str(), look.blockers[0].reason), ("never", Reason::DisruptionBudget));
    assert!(look.blockers[0].detail.contains("job never") && look.blockers[0].detail.contains("when the job ends"));
}

#[test]
fn a_deadline_is_no_reason_to_take_more_and_a_fault_asks_nobody() {
    let mut state = world(&[4], 0);
    submit(&mut state, "all", service(4, Some(1)));
    all_serve(&mut state);
    drain(&mut state, "n1", Some(1_000), 0);
    at(&mut state, 1_000, Intent::Moves);
    assert_eq!(stopping(&state, "all"), 1, "there is no other node, and only one may be missing");
    all_gone(&mut state);
    at(&mut state, 2_000, Intent::Moves);
    assert_eq!((stopping(&state, "all"), state.node(NodeNo(1)).unwrap().drain), (0, DrainState::Blocked));
    let shares = job(&state, "all").replicas.iter().rev().find_map(|r| Some(r.allocation()?.shares[0].device)).unwrap();
    let uuid = state.node(NodeNo(1)).unwrap().spec.devices[usize::from(shares)].uuid.clone();
    let faults = vec![crate::command::DeviceFault { uuid, fault: Fault::Xid(79), simulated: true }];
    let node = NodeName::new("n1").unwrap();
    at(&mut state, 2_001, Intent::Faults { node, incarnation: None, faults });
    at(&mut state, 2_002, Intent::Moves);
    assert_eq!(stopping(&state, "all"), 1, "its device is broken");
}

#[test]
fn force_is_no_reason_to_take_more_either() {
    let mut state = world(&[4], 0);
    submit(&mut state, "all", service(4, Some(1)));
    all_serve(&mut state);
    let drain = Some(Drain { within_ms: None, force: true });
    let cordon = Cordon { by: "me".into(), reason: "fans".into(), at_ms: 0, drain };
    at(&mut state, 0, Intent::Cordon { node: NodeName::new("n1").unwrap(), cordon: Some(cordon) });
    at(&mut state, 1, Intent::Moves);
    assert_eq!(stopping(&state, "all"), 1, "there is no other node, and only one may be missing");
    all_gone(&mut state);
    at(&mut state, 2, Intent::Moves);
    assert_eq!((stopping(&state, "all"), state.node(NodeNo(1)).unwrap().drain), (0, DrainState::Blocked));
    let looks = outlook(&state, NodeNo(1));
    assert!(looks.iter().all(|look| look.blockers[0].reason == Reason::DisruptionBudget), "{looks:?}");
}

#[test]
fn what_has_to_go_may_save_its_state_and_its_place_is_held_for_whom_it_went() {
    let mut state = world(&[2], 0);
    let mut spec = service(2, None);
    spec.constraints.checkpoint_ms = Some(60_000);
    submit(&mut state, "saves", spec);
    all_serve(&mut state);
    at(&mut state, 10_000, testing::schedule("urgent", urgent(1)));
    let told = (0..2).filter_map(|no| notice_of(&state, "saves", no)).collect::<Vec<_>>();
    assert_eq!(told, [Notice { at_ms: 10_000, grace_ms: 60_000 }]);
    let first = job(&state, "urgent").claim.clone().unwrap();
    let slice = crate::reconcile::desired(&state, NodeNo(1));
    let graces: Vec<u32> = slice.replicas.values().filter_map(|want| want.stop).map(|leave| leave.grace_ms).collect();
    assert_eq!(graces, [60_000], "the agent is told how long");
    let shown = view::job(&state, &job(&state, "saves"));
    assert_eq!(shown.replicas.iter().filter_map(|r| r.saves_until_ms).collect::<Vec<_>>(), [70_000]);
    let said = &view::job(&state, &job(&state, "urgent")).blockers[0].detail;
    assert!(said.contains("save their state for 60 s more"), "{said}");
    // Meanwhile nobody else gets the room, and nobody else is told to go.
    let mut other = testing::job_spec("t1", Gpus::Whole(1));
    other.priority = 5;
    at(&mut state, 30_000, testing::schedule("other", other));
    for now in [31_000, 60_000, 69_000] {
        at(&mut state, now, Intent::PlaceWaiting);
        assert_eq!(stopping(&state, "saves"), 1, "at {now}");
        assert_eq!(job(&state, "urgent").claim, Some(first.clone()), "at {now}");
        assert!(job(&state, "other").replicas[0].is_waiting());
    }
    all_gone(&mut state);
    assert_eq!(
        job(&state, "urgent").replicas[0].allocation().map(|a| &a.shares),
        Some(&first.placements[0].alloc.shares)
    );
    assert!(job(&state, "other").replicas[0].is_waiting());
}

#[test]
fn a_claim_lasts_for_the_grace_and_as_long_again_as_a_stop_may_take() {
    let mut state = world(&[1], 0);
    let mut spec = service(1, None);
    spec.constraints.checkpoint_ms = Some(100_000);
    submit(&mut state, "saves", spec);
    all_serve(&mut state);
    submit(&mut state, "urgent", urgent(1));
    at(&mut state, 100_000 + LASTS_MS - 1, Intent::Tick);
    assert!(job(&state, "urgent").claim.is_some());
    at(&mut state, 100_000 + LASTS_MS, Intent::Tick);
    assert!(job(&state, "urgent").claim.is_none());
}

#[test]
fn the_policy_bounds_the_grace_and_only_what_is_asked_of_it_gives_one() {
    let mut state = world(&[2], 0);
    let mut spec = service(1, None);
    spec.constraints.checkpoint_ms = Some(120_001);
    let refused = testing::try_run(&mut state, testing::schedule("long", spec.clone())).unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("constraints.checkpoint_grace"));
    assert!(refused.detail.contains("--max-grace 121s"), "{refused}");
    spec.constraints.checkpoint_ms = Some(100_000);
    submit(&mut state, "saves", spec.clone());
    let mut chosen = state.meta().placement;
    chosen.preemption.max_grace_ms = 30_000;
    testing::run(&mut state, Intent::SetPlacement { chosen, seen: None });
    let told = |why: Reason, stage: Stage| {
        let alloc = job(&state, "saves").replicas[0].allocation().unwrap().clone();
        let phase = Phase::Held { alloc, stage };
        notice(&spec, &phase, why, &state.meta().placement.preemption, 7).map(|notice| notice.until_ms())
    };
    for why in [Reason::Preempted, Reason::QuotaReclaimed, Reason::NodeDrain, Reason::Defragmentation] {
        assert_eq!(told(why, Stage::Ready), Some(30_007), "{why}: no more than the policy allows by now");
        assert_eq!(told(why, Stage::NotReady), Some(30_007));
        assert_eq!(told(why, Stage::Starting), None, "it has nothing to save");
    }
    let others = Reason::ALL.iter().filter(|why| !is_voluntary(**why));
    for why in others {
        assert_eq!(told(*why, Stage::Ready), None, "{why}");
    }
    // A stop by its owner is not for the sake of others.
    all_serve(&mut state);
    let stop = Intent::Stop { request: RequestId::new("saves").unwrap(), tenant: None, why: Reason::StoppedByUser };
    testing::run(&mut state, stop);
    assert_eq!(notice_of(&state, "saves", 0), None);
}

#[test]
fn a_drain_tells_so_early_that_the_state_is_saved_by_its_deadline() {
    let mut state = world(&[1], 0);
    let mut spec = service(1, None);
    spec.constraints.checkpoint_ms = Some(20_000);
    submit(&mut state, "saves", spec);
    all_serve(&mut state);
    drain(&mut state, "n1", Some(60_000), 1_000);
    at(&mut state, 40_999, Intent::Moves);
    assert_eq!((stopping(&state, "saves"), outlook(&state, NodeNo(1))[0].grace_ms), (0, 20_000));
    at(&mut state, 41_000, Intent::Moves);
    assert_eq!(notice_of(&state, "saves", 0).map(Notice::until_ms), Some(61_000));
    assert_eq!(outlook(&state, NodeNo(1))[0].saves_until_ms, Some(61_000));
    // Made before break: the copy that is replaced is told when the other one serves.
    let mut state = world(&[1, 1], 0);
    let mut spec = service(1, None);
    spec.constraints.checkpoint_ms = Some(20_000);
    submit(&mut state, "saves", spec);
    all_serve(&mut state);
    drain(&mut state, "n1", None, 1_000);
    at(&mut state, 2_000, Intent::Moves);
    let coming = job(&state, "saves");
    let Some(Move::Coming { generation, alloc, .. }) = &coming.replicas[0].moving else { panic!("{coming:?}") };
    let report = crate::command::Report {
        job: coming.no,
        replica: 0,
        generation: *generation,
        kind: ReportKind::Stage(Stage::Ready),
    };
    let node = state.node(alloc.node).unwrap().clone();
    at(
        &mut state,
        9_000,
        Intent::Reports { node: node.name.clone(), incarnation: node.incarnation, reports: vec![report] },
    );
    let replica = &job(&state, "saves").replicas[0];
    let Some(Move::Going { notice, .. }) = replica.moving else { panic!("{replica:?}") };
    assert_eq!(notice, Some(Notice { at_ms: 9_000, grace_ms: 20_000 }));
}

#[test]
fn a_rollout_in_place_takes_no_more_of_what_serves_than_the_budget() {
    let mut state = world(&[3], 0);
    submit(&mut state, "s", service(3, Some(1)));
    all_serve(&mut state);
    let next = crate::rollout::Next {
        version: crate::id::VersionId::new("v2").unwrap(),
        ..crate::rollout::Next::of(&job(&state, "s").spec)
    };
    let strategy = crate::rollout::Strategy { surge: 0, unavailable: 3, ..Default::default() };
    let start = |request: &str, strategy: crate::rollout::Strategy| Intent::StartRollout {
        request: RequestId::new(request).unwrap(),
        tenant: None,
        next: Box::new(next.clone()),
        strategy,
        rollback: false,
    };
    testing::run(&mut state, start("s", strategy));
    testing::run(&mut state, Intent::Rollouts);
    assert_eq!(stopping(&state, "s"), 1, "three may be missing by the rollout's terms, one by the service's");
    // Apply keeps to it as well, whoever planned.
    let (no, other) = (job(&state, "s").no, job(&state, "s"));
    let (place, replica) = other.replicas.iter().enumerate().find(|(_, r)| is_ready(r)).unwrap();
    let renew =
        Command::Renew { job: no, replica: place as u16, from: replica.generation, revision: Revision(2), to: None };
    assert!(crate::apply::apply(&mut state, &renew).is_err());
    submit(&mut state, "none", JobSpec { resources: Default::default(), ..service(1, Some(0)) });
    let refused = testing::try_run(&mut state, start("none", strategy)).unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("surge"), "{refused}");
}

#[test]
fn what_no_budget_can_be_is_refused() {
    let mut state = world(&[4], 0);
    let mut field = |change: &dyn Fn(&mut JobSpec)| {
        let mut spec = service(2, Some(1));
        change(&mut spec);
        testing::try_run(&mut state, testing::schedule("r", spec)).unwrap_err().field.unwrap_or_default()
    };
    assert_eq!(field(&|spec| spec.gang = true), "constraints.max_unavailable");
    assert_eq!(field(&|spec| spec.constraints.restart = Restart::Never), "constraints.max_unavailable");
    assert_eq!(field(&|spec| spec.constraints.max_unavailable = Some(2000)), "constraints.max_unavailable");
    assert_eq!(field(&|spec| spec.constraints.checkpoint_ms = Some(4_000_000)), "constraints.checkpoint_grace");
}

#[test]
fn the_leader_looks_again_when_somebody_has_waited_long_enough() {
    let mut state = world(&[1], 300);
    submit(&mut state, "held", service(1, None));
    at(&mut state, 1_000, testing::schedule("urgent", urgent(1)));
    let mut seen = Observations::default();
    let timeouts = crate::liveness::Timeouts::default();
    let mut places = |ms: u64| {
        let intents = step(&state, &mut seen, &timeouts, Now { mono_ms: ms, wall_ms: ms, unheard_ms: 0 });
        intents.iter().any(|intent| matches!(intent, Intent::PlaceWaiting))
    };
    assert!(places(1_000), "the first look of a leader");
    assert!(!places(1_200));
    assert!(places(1_300), "it has waited for 300 ms");
    assert!(!places(1_400));
    assert_eq!(explain::may_evict_from(&state, &job(&state, "urgent")), Some(1_300));
}

/// A replica that gives way and saves its state for 20 s, on its single GPU.
fn saving() -> State {
    let mut state = world(&[1], 0);
    let mut spec = service(1, None);
    spec.constraints.checkpoint_ms = Some(20_000);
    submit(&mut state, "saves", spec);
    all_serve(&mut state);
    at(&mut state, 1_000, testing::schedule("urgent", urgent(1)));
    at(&mut state, 1_000, Intent::PlaceWaiting);
    assert!(notice_of(&state, "saves", 0).is_some());
    state
}

fn fault(state: &mut State, at_ms: u64, fault: Fault) {
    let uuid = state.node(NodeNo(1)).unwrap().spec.devices[0].uuid.clone();
    let node = NodeName::new("n1").unwrap();
    let faults = vec![crate::command::DeviceFault { uuid, fault, simulated: true }];
    at(state, at_ms, Intent::Faults { node, incarnation: None, faults });
}

fn grace(state: &State) -> Option<u32> {
    let wants = crate::reconcile::desired(state, NodeNo(1)).replicas;
    wants.values().next().map(|want| want.stop.map_or(0, |leave| leave.grace_ms))
}

#[test]
fn on_a_device_that_breaks_nobody_saves_anything() {
    let mut state = saving();
    fault(&mut state, 2_000, Fault::Xid(94));
    assert_eq!(grace(&state), Some(20_000), "it can go on for a while");
    let revision = state.revision(NodeNo(1));
    fault(&mut state, 3_000, Fault::Xid(79));
    assert_eq!((notice_of(&state, "saves", 0), grace(&state)), (None, Some(0)));
    assert!(state.revision(NodeNo(1)) > revision, "its agent hears of it");
    // Nor does what is told to go from there afterwards.
    let mut state = world(&[1], 0);
    let mut spec = service(1, None);
    spec.constraints.checkpoint_ms = Some(20_000);
    submit(&mut state, "saves", spec);
    all_serve(&mut state);
    fault(&mut state, 1_000, Fault::Xid(79));
    let (no, from) = (job(&state, "saves").no, job(&state, "saves").replicas[0].generation);
    let evict = Command::Evict { job: no, replica: 0, from, why: Reason::NodeDrain };
    crate::apply::apply(&mut state, &evict).unwrap();
    assert_eq!((stopping(&state, "saves"), notice_of(&state, "saves", 0)), (1, None));
}

#[test]
fn what_is_let_in_no_more_saves_nothing() {
    for stopped in [false, true] {
        revoked_while_it_saves(stopped);
    }
}

fn revoked_while_it_saves(stopped: bool) {
    let mut state = saving();
    let (tenant, spec) = (job(&state, "saves").spec.tenant.clone(), job(&state, "saves").spec.clone());
    if stopped {
        let request = job(&state, "saves").request.clone();
        testing::run(&mut state, Intent::Stop { request, tenant: None, why: Reason::StoppedByUser });
        assert!(notice_of(&state, "saves", 0).is_some(), "whoever stops it lets it save what it has");
    }
    state.change_meta(|meta| meta.mode = crate::command::Mode::Production);
    let of = crate::approval::Version { tenant, model: spec.model.clone(), version: spec.version.clone() };
    crate::apply::apply(&mut state, &Command::Disapprove(Box::new(of))).unwrap();
    let replica = job(&state, "saves").replicas[0].clone();
    assert!(
        matches!(replica.phase, Phase::Stopping { why: Reason::ApprovalRequired, notice: None, .. }),
        "{replica:?}"
    );
    assert_eq!(grace(&state), Some(0));
}

#[test]
fn the_leader_looks_again_for_each_replica_that_has_waited_long_enough() {
    let mut state = world(&[1, 1, 1], 5_000);
    submit(&mut state, "s", urgent(2));
    all_serve(&mut state);
    submit(&mut state, "held", service(1, None));
    let lost = |state: &mut State, no: usize, at_ms: u64| {
        let node = job(state, "s").replicas[no].allocation().unwrap().node;
        let row = state.node(node).unwrap().clone();
        let down = vec![(node, row.incarnation, crate::node::NodeState::Down)];
        at(state, at_ms, Intent::NodeStates(down));
    };
    lost(&mut state, 0, 1_000);
    lost(&mut state, 1, 3_000);
    assert!(state.may_evict_between(5_999, 6_000) && state.may_evict_between(7_999, 8_000));
    assert!(!state.may_evict_between(6_000, 7_999));
    // A gang is of no use before its last member may.
    let mut gang = (*job(&state, "s")).clone();
    gang.spec = Arc::new(JobSpec { gang: true, ..(*gang.spec).clone() });
    state.put_job(gang);
    assert!(!state.may_evict_between(5_999, 6_000) && state.may_evict_between(7_999, 8_000));
}

#[test]
fn no_budget_stands_in_the_way_for_good() {
    let mut state = world(&[1], 0);
    submit(&mut state, "never", service(1, Some(0)));
    all_serve(&mut state);
    let never = job(&state, "never");
    let said = blocker(&never, &never.spec.tenant);
    assert!(!said.permanent && said.detail.contains("when the job ends"), "{said:?}");
}

#[test]
fn a_tenant_is_told_nothing_of_anothers_job_but_that_there_is_one() {
    let mut state = world(&[1], 0);
    submit(&mut state, "never", service(1, Some(0)));
    all_serve(&mut state);
    let never = job(&state, "never");
    let own = blocker(&never, &never.spec.tenant).detail;
    assert!(own.contains("never") && own.contains(never.spec.model.as_str()), "{own}");
    let told = blocker(&never, &crate::id::TenantId::new("somebody").unwrap()).detail;
    for name in [never.request.as_str(), never.spec.model.as_str(), never.spec.tenant.as_str()] {
        assert!(!told.split(' ').any(|word| word == name), "{name}: {told}");
    }
}
