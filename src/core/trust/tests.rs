//! What let a job in has to hold for each place that it gets, on every path to one.

use crate::apply::apply;
use crate::approval::Version;
use crate::command::{Command, Mode, Report, ReportKind};
use crate::id::{NodeName, NodeNo, RequestId, TenantId};
use crate::job::{Evidence, Job, JobSpec, Phase, Publishers, Runtime, Stage};
use crate::node::{Cordon, Drain, DrainState, NodeSpec, NodeState};
use crate::placement::{explain, queue};
use crate::plan::Intent;
use crate::reason::Reason;
use crate::resources::Gpus;
use crate::scaling::{Scaling, Target};
use crate::state::State;
use crate::testing::{by, job_spec, node_spec, real_node_spec, register, run, schedule, try_run_at};
use std::sync::Arc;

const HOUR: u64 = 3_600_000;

fn real(gpus: u16) -> NodeSpec {
    NodeSpec { ports: None, ..real_node_spec(gpus) }
}

/// Two nodes of one GPU in production.
fn production() -> State {
    let mut state = State::new();
    run(&mut state, Intent::Init { cluster: "c".into(), mode: Mode::Production, default_gpu_milli: 8_000 });
    run(&mut state, register("n1", real(1)));
    run(&mut state, register("n2", real(1)));
    state
}

fn spec() -> JobSpec {
    let evidence =
        Some(Evidence { signature: [8; 32], key_id: "k".into(), min_version: None, publishers: Publishers::Unsaid });
    let scaling = Some(Scaling { min: 0, max: 4, ..Scaling::default() });
    JobSpec { manifest: Some([7; 32]), evidence, runtime: Runtime::Process, scaling, ..job_spec("t1", Gpus::Whole(1)) }
}

fn of() -> Version {
    let JobSpec { tenant, model, version, .. } = spec();
    Version { tenant, model, version }
}

fn approve(state: &mut State) {
    run(state, by("bob", Intent::Approve { of: of(), manifest: [7; 32], for_ms: HOUR }));
}

fn revoke(state: &mut State) {
    run(state, by("bob", Intent::Disapprove(of())));
}

fn job<'a>(state: &'a State, request: &str) -> &'a Arc<Job> {
    state.job_of(&RequestId::new(request).unwrap()).unwrap()
}

fn held(state: &State, request: &str) -> usize {
    job(state, request).replicas.iter().filter(|r| matches!(r.phase, Phase::Held { .. })).count()
}

fn waits_for(state: &State, request: &str) -> Option<Reason> {
    explain::blockers(state, job(state, request)).first().map(|blocker| blocker.reason)
}

/// What the agent of the replica's node says.
fn says(state: &mut State, request: &str, replica: u16, kind: ReportKind) {
    let job = job(state, request);
    let r = &job.replicas[usize::from(replica)];
    let node = state.node(r.allocation().unwrap().node).unwrap();
    let report = Report { job: job.no, replica, generation: r.generation, kind };
    let (node, incarnation) = (node.name.clone(), node.incarnation);
    run(state, Intent::Reports { node, incarnation, reports: vec![report] });
}

/// A service with one replica that is Ready.
fn service(state: &mut State) {
    approve(state);
    run(state, by("ada", schedule("s", spec())));
    says(state, "s", 0, ReportKind::Stage(Stage::Ready));
}

fn scale(state: &mut State, to: u16) {
    let target = Target { replicas: to, why: crate::autoscaler::Why::Asked, inputs: None, seen: None, learned: None };
    run(state, Intent::Scale { request: RequestId::new("s").unwrap(), tenant: None, target });
}

fn later(state: &mut State, ms: u64) {
    let at = state.meta().now_ms + ms;
    try_run_at(state, Intent::PlaceWaiting, at).unwrap();
}

#[test]
fn after_its_approval_expired_a_service_keeps_what_runs_and_gets_nothing_new() {
    let mut state = production();
    service(&mut state);
    later(&mut state, HOUR);
    assert_eq!(held(&state, "s"), 1, "what runs goes on");
    scale(&mut state, 2);
    later(&mut state, 1);
    assert_eq!((held(&state, "s"), waits_for(&state, "s")), (1, Some(Reason::ApprovalExpired)), "not a second one");
    let node = job(&state, "s").replicas[0].allocation().unwrap().node;
    let incarnation = state.node(node).unwrap().incarnation;
    run(&mut state, Intent::NodeStates(vec![(node, incarnation, NodeState::Down)]));
    later(&mut state, 1);
    assert_eq!(held(&state, "s"), 0, "nor one in place of what was lost");
    scale(&mut state, 0);
    run(&mut state, Intent::Wake { tenant: TenantId::new("t1").unwrap(), request: RequestId::new("s").unwrap() });
    later(&mut state, 1);
    assert_eq!(held(&state, "s"), 0, "nor the first one of a service that woke up");
    assert!(queue::kept_nodes(&state, 0).is_empty(), "and nothing is kept for it");
    approve(&mut state);
    later(&mut state, 1);
    assert_eq!(held(&state, "s"), 1);
    assert!(crate::invariants::check(&state).is_empty());
}

#[test]
fn an_expired_approval_moves_nothing_and_apply_knows_it_too() {
    let mut state = production();
    service(&mut state);
    let from = job(&state, "s").replicas[0].allocation().unwrap().clone();
    let to = NodeNo(if from.node == NodeNo(1) { 2 } else { 1 });
    let placement =
        crate::command::Placement { replica: 0, alloc: crate::job::Allocation { node: to, ..from.clone() }, why: None };
    let (no, generation) = (job(&state, "s").no, job(&state, "s").replicas[0].generation);
    let moves = Command::Move { job: no, from: generation, to: placement.clone(), why: Reason::NodeDrain };
    assert!(apply(&mut state.clone(), &moves).is_ok());
    later(&mut state, HOUR);
    assert_eq!(apply(&mut state.clone(), &moves).unwrap_err().reason, Reason::ApprovalExpired);
    let name = state.node(from.node).unwrap().name.clone();
    let drain = Some(Drain { within_ms: None, force: false });
    let cordon = Some(Cordon { by: "me".into(), reason: "r".into(), at_ms: 0, drain });
    run(&mut state, Intent::Cordon { node: name, cordon });
    run(&mut state, Intent::Moves);
    assert_eq!(held(&state, "s"), 1, "a drain does not stop what could not start again");
    assert_eq!(state.node(from.node).unwrap().drain, DrainState::Blocked);
    let outlook = crate::moves::outlook(&state, from.node);
    assert_eq!(outlook[0].blockers[0].reason, Reason::ApprovalExpired);
}

#[test]
fn a_revocation_drains_what_runs_and_a_new_approval_brings_it_back() {
    let mut state = production();
    service(&mut state);
    scale(&mut state, 2);
    later(&mut state, 1);
    assert_eq!(held(&state, "s"), 2);
    revoke(&mut state);
    let stops = |state: &State| {
        let all = job(state, "s").replicas.iter();
        all.filter(|r| matches!(r.phase, Phase::Stopping { why: Reason::ApprovalRequired, .. })).count()
    };
    assert_eq!((held(&state, "s"), stops(&state)), (0, 2), "agents are told; what they hold stays theirs until then");
    let gone = ReportKind::Ended { ok: true, why: Reason::ApprovalRequired };
    for replica in 0..2 {
        says(&mut state, "s", replica, gone.clone());
    }
    later(&mut state, 1);
    assert_eq!((held(&state, "s"), waits_for(&state, "s")), (0, Some(Reason::ApprovalRequired)));
    approve(&mut state);
    later(&mut state, 1);
    assert_eq!(held(&state, "s"), 2);
    assert!(crate::invariants::check(&state).is_empty());
}

#[test]
fn what_waits_to_be_let_in_again_keeps_no_budget() {
    let mut state = production();
    approve(&mut state);
    run(&mut state, by("ada", schedule("s", JobSpec { scaling: None, ..spec() })));
    let floor = |state: &State| state.meter(job(state, "s").tenant).rates.floor;
    assert_ne!(floor(&state), [0, 0]);
    revoke(&mut state);
    says(&mut state, "s", 0, ReportKind::Ended { ok: true, why: Reason::ApprovalRequired });
    assert_eq!(floor(&state), [0, 0]);
    approve(&mut state);
    later(&mut state, 1);
    assert_eq!(held(&state, "s"), 1);
    assert!(crate::invariants::check(&state).is_empty());
}

#[test]
fn a_revocation_stops_both_copies_of_what_moves_and_ends_a_claim() {
    let mut state = production();
    service(&mut state);
    let node = job(&state, "s").replicas[0].allocation().unwrap().node;
    let name = state.node(node).unwrap().name.clone();
    let drain = Some(Drain { within_ms: None, force: false });
    run(
        &mut state,
        Intent::Cordon { node: name, cordon: Some(Cordon { by: "m".into(), reason: "r".into(), at_ms: 0, drain }) },
    );
    run(&mut state, Intent::Moves);
    assert!(job(&state, "s").replicas[0].other_allocation().is_some(), "a replacement is coming");
    revoke(&mut state);
    assert!(job(&state, "s").replicas[0].is_leaving() && held(&state, "s") == 0);
    assert!(crate::invariants::check(&state).is_empty());

    let mut state = production();
    approve(&mut state);
    let give = |request: &str, priority, preemptible| {
        let mut spec = JobSpec { scaling: None, priority, ..spec() };
        spec.constraints.preemptible = preemptible;
        by("ada", schedule(request, spec))
    };
    run(&mut state, give("a", 0, true));
    run(&mut state, give("b", 0, true));
    let mut chosen = state.meta().placement;
    chosen.preemption.enabled = true;
    (chosen.preemption.min_run_ms, chosen.preemption.delay_ms) = (0, 0);
    run(&mut state, Intent::SetPlacement { chosen, seen: None });
    later(&mut state, HOUR / 2);
    run(&mut state, give("c", 10, false));
    later(&mut state, 1);
    assert_eq!(state.claims.len(), 1, "c takes the place of one of them");
    revoke(&mut state);
    assert_eq!(state.claims.len(), 0);
    assert!(crate::invariants::check(&state).is_empty());
}

#[test]
fn what_may_not_be_started_again_ends_by_a_revocation() {
    let mut state = production();
    approve(&mut state);
    let mut once = JobSpec { scaling: None, ..spec() };
    once.constraints.restart = crate::job::Restart::Never;
    run(&mut state, by("ada", schedule("once", once)));
    revoke(&mut state);
    says(&mut state, "once", 0, ReportKind::Ended { ok: true, why: Reason::ApprovalRequired });
    assert!(state.job_of(&RequestId::new("once").unwrap()).is_none(), "it is over");
}

#[test]
fn another_version_or_tenant_is_not_stopped_and_simulation_stops_nothing() {
    let mut state = production();
    service(&mut state);
    let other = Version { version: crate::id::VersionId::new("v2").unwrap(), ..of() };
    run(&mut state, by("bob", Intent::Disapprove(other)));
    let other = Version { tenant: crate::id::TenantId::new("t2").unwrap(), ..of() };
    run(&mut state, by("bob", Intent::Disapprove(other)));
    assert_eq!(held(&state, "s"), 1);
    let mut state = State::new();
    run(&mut state, register("n1", node_spec(1)));
    run(&mut state, schedule("s", JobSpec { scaling: None, ..job_spec("t1", Gpus::Whole(1)) }));
    revoke(&mut state);
    assert_eq!(held(&state, "s"), 1);
    assert!(state.node_named(&NodeName::new("n1").unwrap()).is_some());
}
