//! Rollouts of versions that are let in: about people, by consent, or in production, by approval.

use super::*;
use crate::id::{Label, NodeNo};
use crate::job::Next as Then;
use crate::node::NodeState;
use crate::testing::by;
use crate::trust;

const HOUR: u64 = 3_600_000;

fn personal() -> Vec<Label> {
    vec![Label::new("personal").unwrap()]
}

/// A consent for one version, or for all.
fn grant(state: &mut State, statement: u8, version: Option<&str>) {
    let JobSpec { tenant, model, .. } = testing::job_spec("t1", Gpus::None);
    let version = version.map(|version| VersionId::new(version).unwrap());
    let said = crate::consent::Consent {
        statement: [statement; 32],
        scope: crate::consent::Scope { tenant, classes: personal(), model: version.as_ref().map(|_| model), version },
        until_ms: state.meta().now_ms + HOUR,
        key_id: "key".into(),
        by: None,
        at_ms: 0,
        ended_ms: None,
    };
    testing::run(state, by("dpo", Intent::Consent(Box::new(said))));
}

fn take_back(state: &mut State, statement: u8) {
    let tenant = crate::id::TenantId::new("t1").unwrap();
    testing::run(state, by("dpo", Intent::Dissent { tenant, statement: [statement; 32] }));
    assert_eq!(invariants::check(state), []);
}

/// So many nodes of one GPU, and a service about people, all ready; consents 1 and 2 are for v1 and v2.
fn people(nodes: usize, replicas: u16) -> State {
    let mut state = State::new();
    grant(&mut state, 1, Some("v1"));
    grant(&mut state, 2, Some("v2"));
    (1..=nodes).for_each(|n| add_node(&mut state, n));
    let tenant = crate::id::TenantId::new("t1").unwrap();
    let quota = crate::tenant::Quota { gpu_milli: Some(64_000), ..Default::default() };
    testing::run(&mut state, Intent::SetQuota { tenant, quota });
    let scaling = Some(Scaling { min: 0, max: 8, ..Scaling::default() });
    let spec = testing::job_spec("t1", Gpus::Whole(1));
    let spec = JobSpec { replicas, scaling, manifest: Some([1; 32]), data_classes: personal(), ..spec };
    testing::run(&mut state, testing::schedule("s1", spec));
    agents(&mut state, |_| true);
    state
}

fn add_node(state: &mut State, n: usize) {
    testing::run(state, testing::register(&format!("n{n}"), testing::node_spec(1)));
}

fn go(state: &mut State, strategy: Strategy) {
    let version = VersionId::new("v2").unwrap();
    let next = Box::new(Next { version, manifest: Some([2; 32]), ..Next::of(&job(state).spec) });
    let intent = Intent::StartRollout { request: request(), tenant: None, next, strategy, rollback: false };
    testing::run(state, by("ada", intent));
}

/// What each replica runs, and whether it serves.
fn runs(state: &State) -> Vec<(String, bool)> {
    let version = |r: &Replica| job(state).spec_of(r.revision).version.to_string();
    job(state).replicas.iter().map(|r| (version(r), is_ready(r))).collect()
}

fn places(state: &State) -> Vec<(NodeNo, String)> {
    state.copies().map(|copy| (copy.node, copy.version.to_string())).collect()
}

fn on(state: &State) -> NodeNo {
    job(state).replicas[0].allocation().unwrap().node
}

fn turns(state: &mut State, times: u32, good: impl Fn(&VersionId) -> bool) {
    for _ in 0..times {
        look(state);
        agents(state, &good);
    }
}

#[test]
fn two_versions_about_people_are_each_remembered_where_they_run() {
    let mut state = people(3, 2);
    go(&mut state, strategy());
    rest(&mut state, 2, |_| true);
    assert_eq!(versions(&state), ["v2", "v2"]);
    let rows = |version: &str| places(&state).iter().filter(|(_, v)| v == version).count();
    assert_eq!((rows("v1"), rows("v2")), (2, 2), "{:?}", places(&state));
}

#[test]
fn a_replica_of_either_version_that_gets_another_place_is_remembered_there() {
    // v2 has come to a node where v1 never was, ends, and v1 takes its place.
    let mut state = people(2, 1);
    let before = on(&state);
    go(&mut state, strategy());
    turns(&mut state, 3, |_| true);
    let now = on(&state);
    assert_ne!(before, now);
    agents(&mut state, |version| version.as_str() == "v1");
    assert_eq!(runs(&state)[0].0, "v1");
    assert!(places(&state).contains(&(now, "v1".into())), "{:?}", places(&state));

    // What waits is of v2 while the job is still of v1.
    let mut state = people(2, 1);
    go(&mut state, strategy());
    turns(&mut state, 3, |_| true);
    say(&mut state, Turn::Pause).unwrap();
    let down = |node| Intent::NodeStates(vec![(node, Incarnation(1), NodeState::Down)]);
    let (lost, other) = (on(&state), if on(&state) == NodeNo(1) { NodeNo(2) } else { NodeNo(1) });
    testing::run(&mut state, down(other));
    testing::run(&mut state, down(lost));
    add_node(&mut state, 3);
    testing::run(&mut state, Intent::PlaceWaiting);
    assert_eq!((on(&state), runs(&state)[0].0.as_str()), (NodeNo(3), "v2"));
    assert!(places(&state).contains(&(NodeNo(3), "v2".into())), "{:?}", places(&state));
}

#[test]
fn a_place_in_a_copy_s_stead_is_remembered_when_it_is_taken() {
    let mut state = people(1, 1);
    go(&mut state, strategy());
    look(&mut state);
    assert!(matches!(job(&state).replicas[0].phase, Phase::Stopping { .. }));
    // The node says that it has removed all that it had to, and the version is let in once more.
    take_back(&mut state, 2);
    let gone = reconcile::desired(&state, NodeNo(1)).purge.iter().map(|purge| (purge.copy, purge.placed)).collect();
    let node = NodeName::new("n1").unwrap();
    testing::run(&mut state, Intent::Purged { node, incarnation: Incarnation(1), copies: gone });
    grant(&mut state, 3, Some("v2"));
    agents(&mut state, |_| true);
    assert_eq!(runs(&state)[0].0, "v2");
    assert!(places(&state).contains(&(NodeNo(1), "v2".into())), "{:?}", places(&state));
}

#[test]
fn a_consent_for_one_of_two_versions_stops_that_one_alone() {
    let halfway = || {
        let mut state = people(3, 2);
        go(&mut state, Strategy { canary: Some(Canary { percent: None, auto_promote: false }), ..strategy() });
        turns(&mut state, 3, |_| true);
        assert_eq!(runs(&state), [("v2".into(), true), ("v1".into(), true)]);
        state
    };
    let stops = |state: &State| -> Vec<bool> {
        job(state).replicas.iter().map(|r| matches!(r.phase, Phase::Stopping { .. })).collect()
    };
    let mut state = halfway();
    take_back(&mut state, 2);
    assert_eq!(stops(&state), [true, false], "the one under trial");
    let stops_why = &job(&state).replicas[0].phase;
    assert!(matches!(stops_why, Phase::Stopping { why: Reason::ConsentRevoked, then: Then::Here(Revision(1)), .. }));
    rest(&mut state, 1, |_| true);
    assert_eq!(runs(&state), [("v1".into(), true), ("v1".into(), true)]);
    let mut state = halfway();
    take_back(&mut state, 1);
    assert_eq!(stops(&state), [false, true], "the former one");
    say(&mut state, Turn::Promote).unwrap();
    rest(&mut state, 1, |_| true);
    assert_eq!(runs(&state), [("v2".into(), true), ("v2".into(), true)]);
}

#[test]
fn a_replacement_under_trial_stops_and_what_it_replaces_goes_on() {
    let mut state = people(2, 1);
    go(&mut state, strategy());
    look(&mut state);
    assert!(matches!(job(&state).replicas[0].moving, Some(Move::Coming { revision: Revision(2), .. })));
    take_back(&mut state, 2);
    let replica = &job(&state).replicas[0];
    assert!(is_ready(replica) && replica.is_leaving(), "{replica:?}");
    rest(&mut state, 1, |_| true);
    assert_eq!(runs(&state), [("v1".into(), true)]);
}

/// In production: a service of v1 on one of two nodes, approved by bob for an hour.
fn production() -> State {
    let mut state = State::new();
    let mode = crate::command::Mode::Production;
    testing::run(&mut state, Intent::Init { cluster: "c".into(), mode, default_gpu_milli: 8_000 });
    for n in 1..=2 {
        let spec = crate::node::NodeSpec { ports: None, ..testing::real_node_spec(1) };
        testing::run(&mut state, testing::register(&format!("n{n}"), spec));
    }
    approve(&mut state, "v1");
    let evidence = Some(Evidence {
        signature: [8; 32],
        key_id: "k".into(),
        min_version: None,
        publishers: crate::job::Publishers::Unsaid,
    });
    let scaling = Some(Scaling { min: 0, max: 4, ..Scaling::default() });
    let spec = testing::job_spec("t1", Gpus::Whole(1));
    let spec = JobSpec { manifest: Some([7; 32]), evidence, runtime: Runtime::Process, scaling, ..spec };
    testing::run(&mut state, by("ada", testing::schedule("s1", spec)));
    agents(&mut state, |_| true);
    state
}

fn version(version: &str) -> crate::approval::Version {
    let JobSpec { tenant, model, .. } = testing::job_spec("t1", Gpus::None);
    crate::approval::Version { tenant, model, version: VersionId::new(version).unwrap() }
}

fn approve(state: &mut State, of: &str) {
    testing::run(state, by("bob", Intent::Approve { of: version(of), manifest: [7; 32], for_ms: HOUR }));
}

fn later(state: &mut State, ms: u64) {
    let at = state.meta().now_ms + ms;
    testing::try_run_at(state, Intent::PlaceWaiting, at).unwrap();
}

/// v2 serves alone, and the approval of v1 has run out.
fn outlived() -> State {
    let mut state = production();
    later(&mut state, HOUR - 60_000);
    approve(&mut state, "v2");
    let next = Box::new(Next { version: VersionId::new("v2").unwrap(), ..Next::of(&job(&state).spec) });
    let strategy = Strategy { unavailable: 0, window_ms: 3_000_000, ..strategy() };
    testing::run(
        &mut state,
        by("ada", Intent::StartRollout { request: request(), tenant: None, next, strategy, rollback: false }),
    );
    later(&mut state, 60_000);
    assert_eq!(crate::approval::judge(&state, &job(&state).spec).unwrap_err().reason, Reason::ApprovalExpired);
    turns(&mut state, 3, |_| true);
    assert_eq!(
        runs(&state),
        [("v2".into(), true)],
        "it comes up beside the former one, whose approval is not asked for"
    );
    state
}

#[test]
fn the_way_back_is_open_after_the_former_approval_ran_out() {
    let mut state = outlived();
    say(&mut state, back()).unwrap();
    rest(&mut state, 1, |_| true);
    assert_eq!((runs(&state), word(&state)), (vec![("v1".into(), true)], "cancelled".into()));

    let mut state = outlived();
    agents(&mut state, |version| version.as_str() == "v1");
    agents(&mut state, |version| version.as_str() == "v1");
    assert_eq!(runs(&state), [("v1".into(), true)], "nor is there an outage when the new one ends");
}

#[test]
fn a_version_that_is_let_in_no_more_goes_back_by_a_second_copy_where_none_may_be_missing() {
    let mut state = outlived();
    later(&mut state, HOUR);
    assert_eq!(trust::judge(&state, job(&state).spec_of(Revision(2))).unwrap_err().reason, Reason::ApprovalExpired);
    look(&mut state);
    look(&mut state);
    assert!(matches!(job(&state).replicas[0].moving, Some(Move::Coming { revision: Revision(1), .. })));
    rest(&mut state, 1, |_| true);
    assert_eq!(runs(&state), [("v1".into(), true)]);
}

#[test]
fn the_way_back_is_closed_where_the_former_approval_was_taken_back() {
    let mut state = outlived();
    say(&mut state, back()).unwrap();
    testing::run(&mut state, by("bob", Intent::Disapprove(version("v1"))));
    assert_eq!(crate::rollout::pass(&state, 8), [], "nothing is proposed that apply would refuse");
    let seen = outlook(&state, job(&state)).unwrap();
    assert_eq!(seen.blockers.first().map(|blocker| blocker.reason), Some(Reason::ApprovalRequired));
    turns(&mut state, 3, |_| true);
    assert_eq!(runs(&state), [("v2".into(), true)]);
}

#[test]
fn a_version_about_people_needs_a_consent_to_begin_and_goes_back_when_it_ends() {
    let mut state = world(2, 2, 2);
    let next = Next {
        version: VersionId::new("v2").unwrap(),
        manifest: Some([7; 32]),
        data_classes: vec![crate::id::Label::new("personal").unwrap()],
        self_limiting: false,
        budget: crate::model_budget::ModelBudget::default(),
        ..Next::of(&job(&state).spec)
    };
    let go = || {
        let (next, strategy) = (Box::new(next.clone()), strategy());
        Intent::StartRollout { request: request(), tenant: None, next, strategy, rollback: false }
    };
    assert_eq!(testing::try_run(&mut state, go()).unwrap_err().reason, Reason::ConsentRequired);
    let tenant = job(&state).spec.tenant.clone();
    let said = crate::consent::Consent {
        statement: [1; 32],
        scope: crate::consent::Scope {
            tenant: tenant.clone(),
            classes: next.data_classes.to_vec(),
            model: None,
            version: None,
        },
        until_ms: state.meta().now_ms + 3_600_000,
        key_id: "key".into(),
        by: None,
        at_ms: 0,
        ended_ms: None,
    };
    testing::run(&mut state, testing::by("dpo", Intent::Consent(Box::new(said))));
    testing::run(&mut state, go());
    for _ in 0..3 {
        look(&mut state);
        agents(&mut state, |_| true);
    }
    assert!(versions(&state).contains(&"v2".to_owned()));
    assert!(state.copies().count() > 0, "nodes that will have a copy are written down");
    testing::run(&mut state, testing::by("dpo", Intent::Dissent { tenant, statement: [1; 32] }));
    rest(&mut state, 0, |_| true);
    for _ in 0..3 {
        look(&mut state);
        agents(&mut state, |_| true);
    }
    assert_eq!(versions(&state), ["v1", "v1"]);
    let course = job(&state).rollout.as_ref().unwrap().course;
    assert!(matches!(course, Course::Undone { failed: true, why: Reason::ConsentRequired | Reason::ConsentRevoked }));
}

mod closed;
