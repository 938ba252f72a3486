//! Data about people is kept on nodes only while its tenant lets it, and goes from all of them afterwards.

use super::*;
use crate::audit::Verdict;
use crate::command::{Report, ReportKind};
use crate::control::{Now, Observations, Timeouts, step};
use crate::id::{Generation, Incarnation, NodeName, RequestId};
use crate::job::{Phase, Stage};
use crate::placement::explain;
use crate::plan::Intent;
use crate::reconcile::{Actual, Condition, ReplicaId, desired};
use crate::resources::Gpus;
use crate::testing::{by, job_spec, node_spec, register, run, schedule, try_run, try_run_at};

const HOUR: u64 = 3_600_000;

fn label(text: &str) -> Label {
    Label::new(text).unwrap()
}

fn tenant() -> TenantId {
    TenantId::new("t1").unwrap()
}

fn world() -> State {
    let mut state = State::new();
    run(&mut state, register("n1", node_spec(2)));
    state
}

fn spec(classes: &[&str]) -> JobSpec {
    let data_classes = classes.iter().map(|class| label(class)).collect();
    JobSpec { manifest: Some([7; 32]), data_classes, ..job_spec("t1", Gpus::Whole(1)) }
}

fn consent(statement: u8, classes: &[&str], for_ms: u64, state: &State) -> Consent {
    Consent {
        statement: [statement; 32],
        scope: Scope {
            tenant: tenant(),
            classes: classes.iter().map(|c| label(c)).collect(),
            model: None,
            version: None,
        },
        until_ms: state.meta().now_ms + for_ms,
        key_id: "key".into(),
        by: None,
        at_ms: 0,
        ended_ms: None,
    }
}

fn grant(state: &mut State, statement: u8, classes: &[&str]) {
    let said = consent(statement, classes, HOUR, state);
    run(state, by("dpo", Intent::Consent(Box::new(said))));
}

fn revoke(state: &mut State, statement: u8) {
    run(state, by("dpo", Intent::Dissent { tenant: tenant(), statement: [statement; 32] }));
}

fn asks(state: &mut State, request: &str, spec: JobSpec) -> Result<(), Reason> {
    try_run(state, schedule(request, spec)).map(drop).map_err(|refusal| refusal.reason)
}

fn phase<'a>(state: &'a State, request: &str) -> &'a Phase {
    &state.job_of(&RequestId::new(request).unwrap()).unwrap().replicas[0].phase
}

fn ended(state: &mut State, request: &str) {
    let job = state.job_of(&RequestId::new(request).unwrap()).unwrap();
    let kind = ReportKind::Ended { ok: true, why: Reason::ConsentRevoked };
    let report = Report { job: job.no, replica: 0, generation: job.replicas[0].generation, kind };
    let (node, incarnation) = (NodeName::new("n1").unwrap(), Incarnation(1));
    run(state, Intent::Reports { node, incarnation, reports: vec![report] });
}

fn purged(state: &mut State, copies: Vec<(Digest16, u64)>, incarnation: u64) -> u32 {
    let (node, incarnation) = (NodeName::new("n1").unwrap(), Incarnation(incarnation));
    match run(state, Intent::Purged { node, incarnation, copies })[0] {
        Answer::Count(count) => count,
        ref other => panic!("{other:?}"),
    }
}

fn orders(state: &State) -> Vec<(Digest16, u64)> {
    desired(state, NodeNo(1)).purge.iter().map(|purge| (purge.copy, purge.placed)).collect()
}

#[test]
fn what_is_about_people_is_refused_without_a_consent_and_nothing_is_placed() {
    let mut state = world();
    assert_eq!(asks(&mut state, "r0", spec(&["personal"])), Err(Reason::ConsentRequired));
    assert_eq!(asks(&mut state, "r1", spec(&["public", "weather"])), Ok(()), "other classes need none");
    assert_eq!(state.copies().count(), 0);
    let command = crate::command::Command::Submit {
        submission: match schedule("r2", spec(&["personal"])) {
            Intent::Schedule { submission, .. } => submission,
            _ => unreachable!("a schedule call"),
        },
        placements: Vec::new(),
        claim: None,
    };
    assert_eq!(crate::apply::apply(&mut state, &command).unwrap_err().reason, Reason::ConsentRequired);
    grant(&mut state, 1, &["personal"]);
    assert_eq!(asks(&mut state, "r3", spec(&["personal"])), Ok(()));
    assert_eq!(
        asks(&mut state, "r4", spec(&["personal", "personal-health"])),
        Err(Reason::ConsentRequired),
        "each class"
    );
    let other = JobSpec { tenant: TenantId::new("t2").unwrap(), ..spec(&["personal"]) };
    assert_eq!(asks(&mut state, "r5", other), Err(Reason::ConsentRequired), "another tenant");
    assert!(crate::invariants::check(&state).is_empty());
}

#[test]
fn a_scope_binds_the_model_and_the_version() {
    let mut state = world();
    let scoped = |model: Option<&str>, version: Option<&str>, state: &State| {
        let mut said = consent(1, &["personal"], HOUR, state);
        said.scope.model = model.map(|m| ModelId::new(m).unwrap());
        said.scope.version = version.map(|v| VersionId::new(v).unwrap());
        said
    };
    let asked = |said: Consent, state: &State| {
        let mut state = state.clone();
        run(&mut state, Intent::Consent(Box::new(said)));
        asks(&mut state, "r", spec(&["personal"]))
    };
    assert_eq!(asked(scoped(Some("m1"), Some("v1"), &state), &state), Ok(()));
    assert_eq!(asked(scoped(Some("m1"), None, &state), &state), Ok(()));
    assert_eq!(asked(scoped(Some("m1"), Some("v2"), &state), &state), Err(Reason::ConsentRequired));
    assert_eq!(asked(scoped(Some("m2"), None, &state), &state), Err(Reason::ConsentRequired));
    let refused = |said: Consent, state: &mut State| try_run(state, Intent::Consent(Box::new(said))).unwrap_err().field;
    let said = scoped(None, Some("v1"), &state);
    assert_eq!(refused(said, &mut state).as_deref(), Some("model_version"));
    for for_ms in [0, MAX_MS + 1] {
        let said = consent(1, &["personal"], for_ms, &state);
        assert_eq!(refused(said, &mut state).as_deref(), Some("expires_at"));
    }
    let said = consent(1, &[], HOUR, &state);
    assert_eq!(refused(said, &mut state).as_deref(), Some("data_classes"));
}

#[test]
fn a_revocation_stops_what_runs_and_removes_the_copies() {
    let mut state = world();
    grant(&mut state, 1, &["personal"]);
    asks(&mut state, "r1", spec(&["personal"])).unwrap();
    assert_eq!((state.copies().count(), orders(&state).len()), (1, 0));
    revoke(&mut state, 1);
    assert!(matches!(phase(&state, "r1"), Phase::Stopping { why: Reason::ConsentRevoked, .. }));
    let slice = desired(&state, NodeNo(1));
    let id = *slice.replicas.keys().next().unwrap();
    let there =
        |condition| Actual { replicas: [(id, [(Generation(1), condition)].into())].into(), ..Actual::default() };
    assert_eq!(slice.purge.len(), 1);
    assert_eq!(slice.purgeable(&there(Condition::Stopping)).count(), 0, "not while a replica has it open");
    ended(&mut state, "r1");
    run(&mut state, Intent::PlaceWaiting);
    let job = state.job_of(&RequestId::new("r1").unwrap()).unwrap();
    assert_eq!(explain::blockers(&state, job)[0].reason, Reason::ConsentRevoked);
    let slice = desired(&state, NodeNo(1));
    assert_eq!(slice.purgeable(&there(Condition::Gone { ok: true, why: Reason::ConsentRevoked })).count(), 0);
    assert_eq!(slice.purgeable(&Actual::default()).count(), 1);
    let said = orders(&state);
    assert_eq!(purged(&mut state, said.clone(), 9), 0, "another start of the agent");
    assert_eq!(purged(&mut state, said.clone(), 1), 1);
    assert_eq!((state.copies().count(), orders(&state).len()), (0, 0));
    assert_eq!(purged(&mut state, said, 1), 0, "told twice");
    grant(&mut state, 2, &["personal"]);
    run(&mut state, Intent::PlaceWaiting);
    assert!(matches!(phase(&state, "r1"), Phase::Held { .. }), "another consent brings it back");
    assert!(crate::invariants::check(&state).is_empty());
}

#[test]
fn word_of_a_purge_before_a_new_place_is_void() {
    let mut state = world();
    grant(&mut state, 1, &["personal"]);
    asks(&mut state, "r1", spec(&["personal"])).unwrap();
    revoke(&mut state, 1);
    let late = orders(&state);
    assert_eq!(purged(&mut state, late.clone(), 1), 0, "a replica that has not gone may have it open");
    ended(&mut state, "r1");
    grant(&mut state, 2, &["personal"]);
    assert_eq!(purged(&mut state, late.clone(), 1), 0, "it may stay now");
    run(&mut state, Intent::PlaceWaiting);
    revoke(&mut state, 2);
    assert_eq!(purged(&mut state, late, 1), 0, "it was fetched again since");
    assert_eq!(state.copies().count(), 1);
}

#[test]
fn a_consent_ends_by_its_time_and_the_leader_sees_to_it() {
    let mut state = world();
    grant(&mut state, 1, &["personal"]);
    asks(&mut state, "r1", spec(&["personal"])).unwrap();
    let id = ReplicaId { job: state.jobs().values().next().unwrap().no, replica: 0 };
    let report = Report { job: id.job, replica: 0, generation: Generation(1), kind: ReportKind::Stage(Stage::Ready) };
    let node = NodeName::new("n1").unwrap();
    run(&mut state, Intent::Reports { node, incarnation: Incarnation(1), reports: vec![report] });
    let (until, mut seen) = (next_due_ms(&state).unwrap(), Observations::new(0));
    let wants = |state: &State, seen: &mut Observations, wall_ms| {
        step(state, seen, &Timeouts::default(), Now { mono_ms: 1, wall_ms, unheard_ms: 0 }).contains(&Intent::Tick)
    };
    assert!(!wants(&state, &mut seen, until - 1) && wants(&state, &mut seen, until));
    try_run_at(&mut state, Intent::Tick, until - 1).unwrap();
    assert!(matches!(phase(&state, "r1"), Phase::Held { .. }));
    try_run_at(&mut state, Intent::Tick, until).unwrap();
    assert!(matches!(phase(&state, "r1"), Phase::Stopping { why: Reason::ConsentRevoked, .. }));
    assert_eq!(orders(&state).len(), 1);
    assert!(!wants(&state, &mut seen, until), "once");
    try_run_at(&mut state, Intent::Tick, until + KEPT_MS).unwrap();
    assert_eq!((state.consents().count(), next_due_ms(&state)), (0, None), "forgotten");
    assert_eq!(orders(&state).len(), 1, "the copy is not, until its node has said that it is gone");
}

#[test]
fn two_consents_for_one_class_end_one_by_one() {
    let mut state = world();
    grant(&mut state, 1, &["personal"]);
    grant(&mut state, 2, &["personal", "personal-health"]);
    asks(&mut state, "r1", spec(&["personal"])).unwrap();
    revoke(&mut state, 1);
    assert!(matches!(phase(&state, "r1"), Phase::Held { .. }) && orders(&state).is_empty());
    revoke(&mut state, 2);
    assert!(matches!(phase(&state, "r1"), Phase::Stopping { .. }) && orders(&state).len() == 1);
}

#[test]
fn a_statement_that_was_taken_back_stays_so_and_tenants_have_bounds() {
    let mut state = world();
    grant(&mut state, 1, &["personal"]);
    grant(&mut state, 1, &["personal"]);
    assert_eq!(state.consents().count(), 1, "told twice is told once");
    revoke(&mut state, 1);
    revoke(&mut state, 1);
    let again = consent(1, &["personal"], HOUR, &state);
    let refusal = try_run(&mut state, Intent::Consent(Box::new(again))).unwrap_err();
    assert_eq!(refusal.reason, Reason::ConsentRevoked);
    for n in 2..=MAX_CONSENTS as u64 {
        let mut said = consent(0, &["personal"], HOUR, &state);
        said.statement[..8].copy_from_slice(&n.to_be_bytes());
        run(&mut state, Intent::Consent(Box::new(said)));
    }
    let more = consent(9, &["personal"], HOUR, &state);
    assert_eq!(try_run(&mut state, Intent::Consent(Box::new(more))).unwrap_err().reason, Reason::TooManyRequests);
    let mut theirs = consent(9, &["personal"], HOUR, &state);
    theirs.scope.tenant = TenantId::new("t2").unwrap();
    run(&mut state, Intent::Consent(Box::new(theirs)));
}

#[test]
fn consents_and_copies_survive_a_restart_and_are_in_the_trail() {
    let mut state = world();
    grant(&mut state, 1, &["personal"]);
    run(&mut state, by("ada", schedule("r1", spec(&["personal"]))));
    assert_eq!(
        try_run(&mut state, by("ada", schedule("r2", spec(&["personal-x"])))).unwrap_err().reason,
        Reason::ConsentRequired
    );
    revoke(&mut state, 1);
    let rows = state.take_changes();
    let again = State::from_rows(state.live_rows()).unwrap();
    assert_eq!((again.hash(), again.consents_due.clone()), (state.hash(), state.consents_due.clone()));
    assert_eq!((again.consents_by.clone(), again.copies.clone()), (state.consents_by.clone(), state.copies.clone()));
    assert_eq!(orders(&again), orders(&state));
    let entries = rows.iter().filter(|row| row.table == crate::rows::Table::AuditEntry);
    let entries: Vec<_> =
        entries.map(|row| crate::rows::read_audit(row.value.as_ref().unwrap()).unwrap().record).collect();
    let of = |action| entries.iter().find(|record| record.action == action).unwrap();
    assert_eq!(of(crate::audit::Action::ConsentGrant).object, of(crate::audit::Action::ConsentRevoke).object);
    assert_eq!(of(crate::audit::Action::JobSchedule).checks[0].verdict, crate::audit::Verdict::Pass);
}

#[test]
fn the_matrix_of_a_job_says_when_its_consent_counts_no_more() {
    let mut state = world();
    grant(&mut state, 1, &["personal"]);
    asks(&mut state, "r1", spec(&["personal"])).unwrap();
    let says = |state: &State| {
        let job = state.job_of(&RequestId::new("r1").unwrap()).unwrap();
        crate::view::job(state, job).checks[0]
    };
    assert_eq!(says(&state).verdict, Verdict::Pass);
    revoke(&mut state, 1);
    assert_eq!((says(&state).verdict, says(&state).code), (Verdict::Block, Some(Reason::ConsentRequired)));
}
