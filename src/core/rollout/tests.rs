//! Rollouts on a small group: agents say at once what they should.

use super::*;
use crate::command::{Report, ReportKind};
use crate::id::{Incarnation, JobNo, NodeName, RequestId};
use crate::plan::Intent;
use crate::resources::Gpus;
use crate::scaling::{Scaling, Target};
use crate::{invariants, reconcile, testing};

const WINDOW: u64 = 10_000;

fn strategy() -> Strategy {
    Strategy { window_ms: WINDOW as u32, ready_ms: 60_000, ..Strategy::default() }
}

fn request() -> RequestId {
    RequestId::new("s1").unwrap()
}

/// So many nodes of so many GPUs, and a service of so many replicas of one GPU each, all ready.
fn world(nodes: usize, gpus: u16, replicas: u16) -> State {
    let mut state = State::new();
    for n in 1..=nodes {
        testing::run(&mut state, testing::register(&format!("n{n}"), testing::node_spec(gpus)));
    }
    let tenant = crate::id::TenantId::new("t1").unwrap();
    let quota = crate::tenant::Quota { gpu_milli: Some(64_000), ..Default::default() };
    testing::run(&mut state, Intent::SetQuota { tenant, quota });
    let scaling = Scaling { min: 0, max: 8, ..Scaling::default() };
    let spec = JobSpec { replicas, scaling: Some(scaling), ..testing::job_spec("t1", Gpus::Whole(1)) };
    testing::run(&mut state, testing::schedule("s1", spec));
    agents(&mut state, |_| true);
    state
}

fn job(state: &State) -> &Job {
    state.job(JobNo(1)).unwrap()
}

fn start(state: &mut State, version: &str, strategy: Strategy) -> Result<(), Refusal> {
    let next = Next { version: VersionId::new(version).unwrap(), ..Next::of(&job(state).spec) };
    let (next, rollback) = (Box::new(next), false);
    let intent = Intent::StartRollout { request: request(), tenant: None, next, strategy, rollback };
    testing::try_run(state, intent).map(drop)
}

fn scale(state: &mut State, replicas: u16) {
    let target = Target { replicas, why: crate::autoscaler::Why::Asked, inputs: None, seen: None, learned: None };
    testing::run(state, Intent::Scale { request: request(), tenant: None, target });
}

fn say(state: &mut State, turn: Turn) -> Result<(), Refusal> {
    testing::try_run(state, Intent::TurnRollout { request: request(), tenant: None, revision: None, turn }).map(drop)
}

fn back() -> Turn {
    Turn::Back { failed: false, why: Reason::StoppedByUser, counts: None }
}

/// Every agent makes its slice true; a copy of a version that is not `good` ends instead of serving.
fn agents(state: &mut State, good: impl Fn(&VersionId) -> bool) {
    let names: Vec<NodeName> = state.nodes().values().map(|node| node.name.clone()).collect();
    for node in names {
        let no = state.node_named(&node).unwrap().no;
        let report = |(id, want): (&reconcile::ReplicaId, &reconcile::Want)| {
            let kind = match want.stop {
                Some(leave) => ReportKind::Ended { ok: true, why: leave.why },
                None if good(&want.spec.version) => ReportKind::Stage(Stage::Ready),
                None => ReportKind::Ended { ok: false, why: Reason::ExitedNonZero },
            };
            Report { job: id.job, replica: id.replica, generation: want.generation, kind }
        };
        let reports = reconcile::desired(state, no).replicas.iter().map(report).collect();
        testing::run(state, Intent::Reports { node, incarnation: Incarnation(1), reports });
        assert_eq!(invariants::check(state), []);
    }
}

/// The leader's look, a second later.
fn look(state: &mut State) {
    let at = state.meta().now_ms + 1_000;
    testing::try_run_at(state, Intent::Rollouts, at).unwrap();
    testing::run(state, Intent::PlaceWaiting);
    assert_eq!(invariants::check(state), []);
}

/// Until the rollout rests. At each point at least `least` replicas serve.
fn rest(state: &mut State, least: u16, good: impl Fn(&VersionId) -> bool) {
    for _ in 0..200 {
        look(state);
        assert!(job(state).ready() >= least, "{} serve, not {least}", job(state).ready());
        agents(state, &good);
        assert!(job(state).ready() >= least, "{} serve, not {least}", job(state).ready());
        if job(state).open_rollout().is_none() {
            return;
        }
    }
    panic!("no rest: {:?}", job(state));
}

fn versions(state: &State) -> Vec<String> {
    let job = job(state);
    let wanted = job.replicas.iter().filter(|r| is_wanted(&r.phase));
    wanted.map(|r| job.spec_of(r.revision).version.to_string()).collect()
}

fn word(state: &State) -> String {
    outlook(state, job(state)).unwrap().status.to_string()
}

#[test]
fn where_there_is_room_no_replica_stops_before_its_successor_serves() {
    let mut state = world(2, 4, 3);
    start(&mut state, "v2", strategy()).unwrap();
    assert_eq!(word(&state), "running");
    rest(&mut state, 3, |_| true);
    assert_eq!((versions(&state), word(&state)), (vec!["v2".to_owned(); 3], "successful".to_owned()));
    assert_eq!((job(&state).spec.version.as_str(), job(&state).revision), ("v2", Revision(2)));
}

#[test]
fn without_a_gpu_to_spare_one_at_a_time_is_replaced_in_its_place() {
    let mut state = world(1, 3, 3);
    // Somebody waits for any GPU that becomes free: none does.
    testing::run(&mut state, testing::schedule("other", testing::job_spec("t2", Gpus::Whole(1))));
    start(&mut state, "v2", strategy()).unwrap();
    rest(&mut state, 2, |_| true);
    assert_eq!((versions(&state), word(&state)), (vec!["v2".to_owned(); 3], "successful".to_owned()));
    assert!(state.has_waiters());
}

#[test]
fn with_none_that_may_be_missing_it_waits_for_room_and_says_so() {
    let mut state = world(1, 3, 3);
    start(&mut state, "v2", Strategy { unavailable: 0, ..strategy() }).unwrap();
    look(&mut state);
    assert_eq!((word(&state), job(&state).ready()), ("blocked".to_owned(), 3));
    assert!(!outlook(&state, job(&state)).unwrap().blockers.is_empty());
    // A copy comes up on another node, so each of the three finds its room there.
    testing::run(&mut state, testing::register("n2", testing::node_spec(3)));
    rest(&mut state, 3, |_| true);
    assert_eq!(word(&state), "successful");
}

#[test]
fn a_version_that_does_not_come_up_goes_back_by_itself() {
    for (nodes, gpus, least) in [(2, 4, 3), (1, 3, 2)] {
        let mut state = world(nodes, gpus, 3);
        testing::run(&mut state, testing::schedule("other", testing::job_spec("t2", Gpus::Whole(2))));
        start(&mut state, "v2", strategy()).unwrap();
        rest(&mut state, least, |version| version.as_str() == "v1");
        let outlook = outlook(&state, job(&state)).unwrap();
        assert_eq!((&*outlook.status, outlook.why), ("failed", Some(Reason::ExitedNonZero)));
        assert_eq!((versions(&state), job(&state).ready()), (vec!["v1".to_owned(); 3], 3));
    }
}

#[test]
fn one_that_never_becomes_ready_goes_back_after_its_time() {
    let mut state = world(2, 4, 2);
    start(&mut state, "v2", strategy()).unwrap();
    look(&mut state);
    for _ in 0..70 {
        look(&mut state);
    }
    let Course::Back { failed: true, why } = job(&state).rollout.as_ref().unwrap().course else { panic!() };
    assert_eq!(why, Reason::ReadyTimeout);
    rest(&mut state, 2, |_| true);
    assert_eq!((word(&state), versions(&state)), ("failed".to_owned(), vec!["v1".to_owned(); 2]));
}

#[test]
fn a_canary_stays_alone_until_it_is_promoted() {
    let mut state = world(2, 4, 3);
    let canary = Some(Canary { percent: None, auto_promote: false });
    start(&mut state, "v2", Strategy { canary, ..strategy() }).unwrap();
    for _ in 0..50 {
        look(&mut state);
        agents(&mut state, |_| true);
    }
    assert_eq!((versions(&state), share_milli(job(&state))), (vec!["v2".into(), "v1".into(), "v1".into()], Some(333)));
    assert_eq!(outlook(&state, job(&state)).unwrap().phase.as_deref(), Some("canary"));
    say(&mut state, Turn::Promote).unwrap();
    rest(&mut state, 3, |_| true);
    assert_eq!((versions(&state), word(&state)), (vec!["v2".to_owned(); 3], "successful".to_owned()));
}

#[test]
fn a_canary_promotes_itself_after_its_window_if_asked_to() {
    let mut state = world(2, 8, 8);
    let canary = Some(Canary { percent: Some(25), auto_promote: true });
    start(&mut state, "v2", Strategy { canary, ..strategy() }).unwrap();
    for _ in 0..6 {
        look(&mut state);
        agents(&mut state, |_| true);
    }
    assert_eq!(versions(&state).iter().filter(|v| *v == "v2").count(), 2);
    assert_eq!(share_milli(job(&state)), Some(250));
    rest(&mut state, 8, |_| true);
    assert_eq!((word(&state), share_milli(job(&state))), ("successful".to_owned(), None));
}

#[test]
fn a_pause_holds_and_a_revert_brings_the_former_version_back() {
    let mut state = world(2, 4, 3);
    start(&mut state, "v2", strategy()).unwrap();
    look(&mut state);
    agents(&mut state, |_| true);
    say(&mut state, Turn::Pause).unwrap();
    for _ in 0..20 {
        look(&mut state);
        agents(&mut state, |_| true);
    }
    assert_eq!((versions(&state), word(&state)), (vec!["v2".into(), "v1".into(), "v1".into()], "paused".to_owned()));
    let refusal = start(&mut state, "v3", strategy()).unwrap_err();
    assert_eq!(refusal.reason, Reason::Conflict);
    say(&mut state, back()).unwrap();
    rest(&mut state, 3, |_| true);
    assert_eq!((versions(&state), word(&state)), (vec!["v1".to_owned(); 3], "cancelled".to_owned()));
    // The next one is another revision, so nobody's counts are mixed up.
    start(&mut state, "v2", strategy()).unwrap();
    assert_eq!(job(&state).rollout.as_ref().unwrap().revision, Revision(3));
}

#[test]
fn what_the_gateways_counted_brings_it_back() {
    let mut state = world(2, 4, 2);
    start(&mut state, "v2", strategy()).unwrap();
    for _ in 0..6 {
        look(&mut state);
        agents(&mut state, |_| true);
    }
    let count = |good, failed| crate::slo::Count { good, slow: 0, failed };
    let seen = [((JobNo(1), Revision(1)), count(50, 0)), ((JobNo(1), Revision(2)), count(3, 9))].into();
    for intent in verdicts(&state, &seen) {
        testing::run(&mut state, intent);
    }
    rest(&mut state, 2, |_| true);
    let outlook = outlook(&state, job(&state)).unwrap();
    assert_eq!((&*outlook.status, outlook.why), ("failed", Some(Reason::PromiseBroken)));
    assert_eq!(outlook.counts.unwrap().new, count(3, 9));
    assert_eq!(versions(&state), ["v1", "v1"]);
    assert_eq!(verdicts(&state, &seen), [], "and is over");
}

#[test]
fn replicas_that_come_or_are_lost_in_the_middle_end_up_on_the_new_version() {
    let mut state = world(3, 4, 2);
    start(&mut state, "v2", strategy()).unwrap();
    look(&mut state);
    agents(&mut state, |_| true);
    scale(&mut state, 5);
    assert!(versions(&state).iter().filter(|version| *version == "v1").count() >= 4, "new ones are proven ones");
    let lost = job(&state).replicas[0].allocation().unwrap().node;
    let down = Intent::NodeStates(vec![(lost, Incarnation(1), crate::node::NodeState::Down)]);
    testing::run(&mut state, down);
    rest(&mut state, 0, |_| true);
    assert_eq!((versions(&state), word(&state)), (vec!["v2".to_owned(); 5], "successful".to_owned()));
}

#[test]
fn one_that_sleeps_changes_its_version_and_wakes_with_the_new_one() {
    let mut state = world(1, 4, 1);
    scale(&mut state, 0);
    agents(&mut state, |_| true);
    start(&mut state, "v2", strategy()).unwrap();
    rest(&mut state, 0, |_| true);
    scale(&mut state, 1);
    assert_eq!(versions(&state), ["v2"]);
}

#[test]
fn how_long_starts_take_is_learned_anew_with_a_new_version() {
    let mut state = world(1, 4, 1);
    let known = crate::autoscaler::Learned::of_starts(90_000);
    let why = crate::autoscaler::Why::QueueDepth;
    let target = Target { replicas: 2, why, inputs: None, seen: None, learned: Some(Box::new(known.clone())) };
    testing::run(&mut state, Intent::Scale { request: request(), tenant: None, target });
    agents(&mut state, |_| true);
    start(&mut state, "v2", strategy()).unwrap();
    assert_eq!(job(&state).learned.as_deref(), Some(&known), "it may come back");
    rest(&mut state, 0, |_| true);
    assert_eq!(job(&state).learned.as_deref(), Some(&crate::autoscaler::Learned::default()));
}

#[test]
fn what_cannot_change_in_place_is_refused_with_the_next_step() {
    let mut state = world(1, 8, 1);
    let refused = |state: &mut State, strategy| start(state, "v2", strategy).unwrap_err();
    let field = |refusal: Refusal| refusal.field.unwrap();
    assert_eq!(field(refused(&mut state, Strategy { surge: 0, unavailable: 0, ..strategy() })), "unavailable");
    assert_eq!(field(refused(&mut state, Strategy { window_ms: 0, ..strategy() })), "window");
    let canary = Some(Canary { percent: Some(100), auto_promote: false });
    assert_eq!(field(refused(&mut state, Strategy { canary, ..strategy() })), "canary");
    assert_eq!(start(&mut state, "v1", strategy()).unwrap_err().reason, Reason::Conflict);
    assert_eq!(say(&mut state, Turn::Pause).unwrap_err().reason, Reason::Conflict, "nothing is open");
    start(&mut state, "v2", strategy()).unwrap();
    start(&mut state, "v2", strategy()).expect("a retry is no conflict");
    assert_eq!(say(&mut state, Turn::Promote).unwrap_err().reason, Reason::Conflict, "nothing waits for it");
}

#[test]
fn production_lets_a_version_in_by_a_rollout_as_by_a_job() {
    let mut state = world(1, 8, 1);
    state.change_meta(|meta| meta.mode = crate::command::Mode::Production);
    assert_eq!(start(&mut state, "v2", strategy()).unwrap_err().reason, Reason::ModelNotFound);
    let evidence = Some(Evidence {
        signature: [8; 32],
        key_id: "k".into(),
        min_version: None,
        publishers: crate::job::Publishers::Unsaid,
    });
    let signed = Next {
        version: VersionId::new("v2").unwrap(),
        runtime: Runtime::Process,
        manifest: Some([7; 32]),
        evidence,
        data_classes: vec![],
        self_limiting: false,
        budget: crate::model_budget::ModelBudget::default(),
        approved_by: None,
        asked_by: None,
    };
    let go = |next: &Next| {
        let (next, strategy) = (Box::new(next.clone()), strategy());
        Intent::StartRollout { request: request(), tenant: None, next, strategy, rollback: false }
    };
    let unsigned = Next { evidence: None, ..signed.clone() };
    let refusal = testing::try_run(&mut state, testing::by("ada", go(&unsigned))).unwrap_err();
    assert_eq!(refusal.reason, Reason::SignatureRequired);
    let refusal = testing::try_run(&mut state, testing::by("ada", go(&signed))).unwrap_err();
    assert_eq!(refusal.reason, Reason::ApprovalRequired);
    let of = crate::approval::Version {
        tenant: job(&state).spec.tenant.clone(),
        model: job(&state).spec.model.clone(),
        version: signed.version.clone(),
    };
    testing::run(&mut state, testing::by("bob", Intent::Approve { of, manifest: [7; 32], for_ms: 1000 }));
    let refusal = testing::try_run(&mut state, testing::by("bob", go(&signed))).unwrap_err();
    assert_eq!(refusal.reason, Reason::ApprovalSelf);
    testing::run(&mut state, testing::by("ada", go(&signed)));
    assert_eq!(job(&state).rollout.as_ref().unwrap().to.approved_by.as_deref(), Some("bob"));
}

#[test]
fn only_what_a_version_does_itself_counts_against_it() {
    let failures = |why: Reason| {
        let mut state = world(1, 3, 3);
        start(&mut state, "v2", strategy()).unwrap();
        look(&mut state);
        agents(&mut state, |_| true);
        ended(&mut state, false, why);
        job(&state).rollout.as_ref().unwrap().failures
    };
    for why in [Reason::StoreUnavailable, Reason::EngineUnavailable, Reason::VerifierUnavailable, Reason::DeviceFault] {
        assert_eq!(failures(why), 0, "{why}");
    }
    assert_eq!(failures(Reason::LivenessFailed), 1);
    assert_eq!(failures(Reason::SignatureInvalid), MOST_FAILURES, "it would end so each time");
}

/// The copy of the new version, which has the first replica, ends by itself.
fn ended(state: &mut State, ok: bool, why: Reason) {
    let replica = &job(state).replicas[0];
    assert_eq!(replica.revision, Revision(2));
    let kind = ReportKind::Ended { ok, why };
    let report = Report { job: JobNo(1), replica: 0, generation: replica.generation, kind };
    let node = state.node(replica.allocation().unwrap().node).unwrap().name.clone();
    testing::run(state, Intent::Reports { node, incarnation: Incarnation(1), reports: vec![report] });
    assert_eq!(invariants::check(state), []);
}

#[test]
fn a_replica_that_has_done_its_work_as_the_new_version_does_not_run_again() {
    let mut state = world(1, 3, 1);
    let mut spec = JobSpec { scaling: None, ..(*job(&state).spec).clone() };
    spec.constraints.restart = crate::job::Restart::OnFailure;
    let changed = Job { spec: Arc::new(spec), ..job(&state).clone() };
    state.put_job(changed);
    start(&mut state, "v2", Strategy { surge: 0, ..strategy() }).unwrap();
    look(&mut state);
    agents(&mut state, |_| true);
    assert!(job(&state).replicas[0].revision == Revision(2));
    ended(&mut state, true, Reason::Completed);
    assert!(state.job(JobNo(1)).is_none(), "it is over");
}

#[test]
fn another_kind_of_program_goes_only_where_it_runs() {
    let mut state = world(2, 1, 1);
    let go = |state: &mut State| {
        let next =
            Next { version: VersionId::new("v2").unwrap(), runtime: Runtime::Docker, ..Next::of(&job(state).spec) };
        let (next, rollback) = (Box::new(next), false);
        testing::try_run(
            state,
            Intent::StartRollout { request: request(), tenant: None, next, strategy: strategy(), rollback },
        )
    };
    let mut exclusive = state.clone();
    let mut spec = JobSpec { scaling: None, ..(*job(&state).spec).clone() };
    spec.constraints.exclusive = true;
    let changed = Job { spec: Arc::new(spec), ..job(&state).clone() };
    exclusive.put_job(changed);
    assert_eq!(go(&mut exclusive).unwrap_err().field.as_deref(), Some("constraints.exclusive"));
    go(&mut state).unwrap();
    look(&mut state);
    assert_eq!((word(&state), job(&state).ready()), ("blocked".to_owned(), 1), "no node has an engine");
}

mod floors;
mod kept;
mod late;
mod trusted;
