//! What a node found to be corrupt is let in by nobody until it is released, and nothing else is kept out by it.

use super::*;
use crate::apply::{BatchOutcome, apply, apply_batch};
use crate::audit::{Action, Actor, Record};
use crate::command::{Batch, Command, Report, ReportKind};
use crate::id::{Incarnation, ModelId, RequestId, VersionId};
use crate::job::Stage;
use crate::plan::Intent;
use crate::resources::Gpus;
use crate::rollout::{Next, Strategy};
use crate::testing::{job_spec, node_spec, register, run, schedule, try_run};

fn spec(tenant: &str, version: &str, manifest: u8) -> JobSpec {
    let spec = job_spec(tenant, Gpus::Milli(100));
    JobSpec { version: VersionId::new(version).unwrap(), manifest: Some([manifest; 32]), ..spec }
}

fn world() -> State {
    let mut state = State::new();
    run(&mut state, register("n1", node_spec(8)));
    state
}

fn told(state: &mut State, request: &str, spec: JobSpec) -> Option<Reason> {
    try_run(state, schedule(request, spec)).err().map(|refusal| refusal.reason)
}

fn release_of(spec: &JobSpec) -> Release {
    Release { of: version_of(spec), manifest: spec.manifest.unwrap() }
}

/// The job's replica ends on its node, for that reason.
fn ends(state: &mut State, request: &str, why: Reason) {
    said(state, request, ReportKind::Ended { ok: false, why });
}

/// The node says that of the job's replica.
fn said(state: &mut State, request: &str, kind: ReportKind) {
    let job = state.job_of(&RequestId::new(request).unwrap()).unwrap().clone();
    let alloc = job.replicas[0].allocation().unwrap();
    let node = state.node(alloc.node).unwrap().name.clone();
    let report = Report { job: job.no, replica: 0, generation: job.replicas[0].newest, kind };
    run(state, Intent::Reports { node, incarnation: Incarnation(1), reports: vec![report] });
}

/// What the trail was told since somebody looked.
fn entries(state: &mut State) -> Vec<Record> {
    let rows = state.take_changes();
    let rows = rows.iter().filter(|row| row.table == crate::rows::Table::AuditEntry);
    rows.map(|row| crate::rows::read_audit(row.value.as_ref().unwrap()).unwrap().record).collect()
}

#[test]
fn what_a_node_found_corrupt_is_let_in_no_more_until_it_is_released() {
    let mut state = world();
    assert_eq!(told(&mut state, "r1", spec("t1", "v1", 7)), None);
    assert_eq!(told(&mut state, "r2", spec("t1", "v1", 7)), None, "it runs beside the other one");
    ends(&mut state, "r1", Reason::ArtifactMismatch);
    let refusal = try_run(&mut state, schedule("r3", spec("t1", "v1", 7))).unwrap_err();
    assert_eq!((refusal.reason, refusal.field.as_deref()), (Reason::ModelCopyCorrupt, Some("model_version")));
    let lifts = format!("nf model release m1@v1 --tenant t1 --sha256 {}", Hash([7; 32]));
    for said in ["node n1", "nf node cordon n1", &lifts] {
        assert!(refusal.detail.contains(said), "{}", refusal.detail);
    }
    assert!(!state.job_of(&RequestId::new("r2").unwrap()).unwrap().is_over(), "what runs goes on");
    // Other bytes, another version, another tenant: each is judged by what its own nodes find.
    for (n, other) in [spec("t1", "v1", 8), spec("t1", "v2", 7), spec("t2", "v1", 7)].into_iter().enumerate() {
        assert_eq!(told(&mut state, &format!("o{n}"), other), None);
    }
    let others = release_of(&JobSpec { model: ModelId::new("m2").unwrap(), ..spec("t1", "v1", 7) });
    assert_eq!(run(&mut state, Intent::Release(others)), [Answer::Count(0)]);
    assert_eq!(told(&mut state, "r3", spec("t1", "v1", 7)), Some(Reason::ModelCopyCorrupt));
    assert_eq!(run(&mut state, Intent::Release(release_of(&spec("t1", "v1", 7)))), [Answer::Count(1)]);
    assert_eq!(told(&mut state, "r3", spec("t1", "v1", 7)), None);
    assert!(crate::invariants::check(&state).is_empty());
}

#[test]
fn a_finding_about_one_manifest_does_not_lift_that_about_another() {
    let mut state = world();
    for (request, manifest) in [("r1", 7), ("r2", 8)] {
        assert_eq!(told(&mut state, request, spec("t1", "v1", manifest)), None);
        ends(&mut state, request, Reason::ArtifactMismatch);
    }
    for (request, manifest) in [("r3", 7), ("r4", 8)] {
        let refused = told(&mut state, request, spec("t1", "v1", manifest));
        assert_eq!(refused, Some(Reason::ModelCopyCorrupt), "manifest {manifest}");
    }
    state.take_changes();
    let again = State::from_rows(state.live_rows()).unwrap();
    assert_eq!((again.hash(), again.quarantines().count()), (state.hash(), 2));
    let moved = state.live_rows().map(|(table, mut key, row)| {
        if table == crate::rows::Table::Quarantine {
            key[0] ^= 1;
        }
        (table, key, row)
    });
    assert!(matches!(State::from_rows(moved), Err(crate::rows::Error::Key { .. })), "rows are below their own keys");
    // Each by its own digest, which the one who looked at it says.
    for (request, manifest, other) in [("r3", 7, Some(Reason::ModelCopyCorrupt)), ("r4", 8, None)] {
        run(&mut state, Intent::Release(release_of(&spec("t1", "v1", manifest))));
        assert_eq!(told(&mut state, request, spec("t1", "v1", manifest)), None, "manifest {manifest}");
        assert_eq!(told(&mut state, "r5", spec("t1", "v1", 8)), other, "the other one");
    }
}

#[test]
fn a_release_is_of_the_bytes_that_somebody_looked_at() {
    let mut state = world();
    for manifest in [7, 8] {
        let request = format!("r{manifest}");
        assert_eq!(told(&mut state, &request, spec("t1", "v1", manifest)), None);
        ends(&mut state, &request, Reason::ArtifactMismatch);
    }
    state.take_changes();
    let bob = Actor { subject: "bob".into(), tenant: None, token: None, node: None, issuer: None };
    let by_bob = |state: &mut State, manifest| {
        let asked = Intent::Release(release_of(&spec("t1", "v1", manifest)));
        let mut batch = Batch { base: state.meta().base, ..Batch::default() };
        batch.push(crate::plan::plan(state, &asked).unwrap().commands.remove(0), Some(&bob));
        let BatchOutcome::Applied(mut answers) = apply_batch(state, &batch) else { panic!("planned anew") };
        answers.remove(0)
    };
    let refusal = by_bob(&mut state, 9).unwrap_err();
    assert_eq!((refusal.reason, refusal.field.as_deref()), (Reason::Conflict, Some("sha256")));
    for digest in [7, 8, 9].map(|n| Hash([n; 32]).to_string()) {
        assert!(refusal.detail.contains(&digest), "{}", refusal.detail);
    }
    assert_eq!(state.quarantines().count(), 2, "nothing is let in by it");
    assert_eq!(by_bob(&mut state, 7), Ok(Answer::Count(1)));
    let said: Vec<_> = entries(&mut state).into_iter().map(|record| (record.refused, record.refs.manifest)).collect();
    assert_eq!(
        said,
        [(Some(Reason::Conflict), Some(Hash([9; 32]))), (None, Some(Hash([7; 32])))],
        "the trail says which"
    );
}

#[test]
fn no_other_end_and_no_start_puts_anything_into_quarantine() {
    let mut state = world();
    let mut n = 0;
    for &why in Reason::ALL {
        for ok in [true, false].into_iter().filter(|ok| *ok || why != Reason::ArtifactMismatch) {
            n += 1;
            let request = format!("r{n}");
            assert_eq!(told(&mut state, &request, spec("t1", "v1", 7)), None, "{why} {ok}");
            said(&mut state, &request, ReportKind::Stage(Stage::Ready));
            said(&mut state, &request, ReportKind::Ended { ok, why });
            assert_eq!(state.quarantines().count(), 0, "{why} {ok}");
            let request = RequestId::new(&request).unwrap();
            if state.job_of(&request).is_some_and(|job| !job.is_over()) {
                run(&mut state, Intent::Stop { request, tenant: None, why: Reason::StoppedByUser });
            }
        }
    }
    // What no store knows has no bytes.
    assert_eq!(told(&mut state, "s", JobSpec { manifest: None, ..spec("t1", "v1", 7) }), None);
    ends(&mut state, "s", Reason::ArtifactMismatch);
    assert_eq!(state.quarantines().count(), 0);
}

#[test]
fn a_copy_that_goes_bad_on_its_node_is_tried_again_and_takes_the_version_from_nobody() {
    let mut state = world();
    run(&mut state, schedule("r1", spec("t1", "v1", 7)));
    let mut told_at = Vec::new();
    for tries in 1..=8 {
        state.take_changes();
        ends(&mut state, "r1", Reason::ModelCopyCorrupt);
        for record in entries(&mut state) {
            assert_eq!((record.action, record.refused), (Action::ModelDeploy, Some(Reason::ModelCopyCorrupt)));
            assert_eq!(record.actor.node.as_ref().map(NodeName::as_str), Some("n1"));
            told_at.push(tries);
        }
        let job = state.job_of(&RequestId::new("r1").unwrap()).unwrap();
        let check = crate::policy::standing(&state, job)[6];
        assert_eq!((job.is_over(), check.code), (false, Some(Reason::ModelCopyCorrupt)), "try {tries}");
        let later = state.meta().now_ms + 300_000;
        crate::testing::try_run_at(&mut state, Intent::PlaceWaiting, later).unwrap();
    }
    assert_eq!(told_at, [1, 2, 4, 8], "the trail is told, and not filled");
    assert_eq!(state.quarantines().count(), 0);
    assert_eq!(told(&mut state, "r2", spec("t1", "v1", 7)), None);
}

#[test]
fn who_was_spoilt_by_a_disk_is_tried_elsewhere_first() {
    let mut state = world();
    run(&mut state, register("n2", node_spec(8)));
    run(&mut state, schedule("r1", spec("t1", "v1", 7)));
    for (why, next) in [
        (Reason::RuntimeFailed, "n1"), // no word about the disk
        (Reason::ModelCopyCorrupt, "n2"),
        (Reason::RuntimeFailed, "n1"),
        (Reason::ModelCopyCorrupt, "n2"),
        (Reason::ModelCopyCorrupt, "n1"),
    ] {
        ends(&mut state, "r1", why);
        let later = state.meta().now_ms + 300_000;
        crate::testing::try_run_at(&mut state, Intent::PlaceWaiting, later).unwrap();
        let job = state.job_of(&RequestId::new("r1").unwrap()).unwrap();
        let node = job.replicas[0].allocation().unwrap().node;
        assert_eq!(state.node(node).unwrap().name.as_str(), next, "after {why}");
    }
}

#[test]
fn neither_a_rollout_nor_a_rollback_goes_to_what_is_in_quarantine() {
    let mut state = world();
    run(&mut state, schedule("bad", spec("t1", "v1", 7)));
    ends(&mut state, "bad", Reason::ArtifactMismatch);
    run(&mut state, schedule("r1", spec("t1", "v2", 8)));
    let to = |state: &State, rollback| {
        let job = state.job_of(&RequestId::new("r1").unwrap()).unwrap();
        let next = Next::of(&JobSpec {
            version: VersionId::new("v1").unwrap(),
            manifest: Some([7; 32]),
            ..(*job.spec).clone()
        });
        let (request, strategy) = (job.request.clone(), Strategy::default());
        Intent::StartRollout { request, tenant: None, next: Box::new(next), strategy, rollback }
    };
    for rollback in [false, true] {
        let intent = to(&state, rollback);
        assert_eq!(try_run(&mut state, intent).unwrap_err().reason, Reason::ModelCopyCorrupt, "rollback {rollback}");
    }
    // Planned before it was found, applied after it.
    let planned = |state: &State, intent: &Intent| crate::plan::plan(state, intent).unwrap().commands.remove(0);
    let mut before = state.clone();
    release(&mut before, &release_of(&spec("t1", "v1", 7))).unwrap();
    let commands = [to(&before, true), schedule("r9", spec("t1", "v1", 7))].map(|intent| planned(&before, &intent));
    for command in commands {
        let whole = matches!(command, Command::StartRollout { .. } | Command::Submit { .. });
        assert!(whole && apply(&mut state, &command).unwrap_err().reason == Reason::ModelCopyCorrupt);
    }
}

#[test]
fn the_record_survives_a_restart_and_goes_with_its_tenant() {
    let mut state = world();
    run(&mut state, schedule("r1", spec("t1", "v1", 7)));
    ends(&mut state, "r1", Reason::ArtifactMismatch);
    state.take_changes();
    let again = State::from_rows(state.live_rows()).unwrap();
    assert_eq!((again.hash(), again.quarantines().count()), (state.hash(), 1));
    assert_eq!(again.quarantines_by, state.quarantines_by);
    run(&mut state, Intent::DeleteTenant { tenant: TenantId::new("t1").unwrap() });
    assert_eq!((state.quarantines().count(), state.quarantines_by.len()), (0, 0));
}

#[test]
fn a_full_record_forgets_nothing_and_lets_nothing_else_in() {
    let (mut state, node) = (world(), NodeName::new("n1").unwrap());
    assert_eq!(told(&mut state, "early", spec("t1", "v1", 7)), None);
    let last = format!("w{}", MAX_QUARANTINED - 1);
    for n in 0..MAX_QUARANTINED {
        assert_eq!(judge(&state, &spec("t1", "v2", 7)), Ok(()), "{n} are on record");
        set(&mut state, &spec("t1", &format!("w{n}"), 7), &node);
    }
    let refusal = try_run(&mut state, schedule("late", spec("t1", "v2", 7))).unwrap_err();
    assert_eq!((refusal.reason, refusal.field.as_deref()), (Reason::ModelCopyCorrupt, Some("tenant_id")));
    assert!(refusal.detail.contains("1000 versions of tenant t1"), "{}", refusal.detail);
    assert_eq!(told(&mut state, "other", spec("t2", "v2", 7)), None, "another tenant's record is its own");
    assert_eq!(told(&mut state, "none", JobSpec { manifest: None, ..spec("t1", "v2", 7) }), None, "of no store");
    // What was let in before is found, too, and the trail says so.
    state.take_changes();
    ends(&mut state, "early", Reason::ArtifactMismatch);
    let record = entries(&mut state).pop().unwrap();
    assert_eq!((record.action, record.refused), (Action::ModelDeploy, Some(Reason::ArtifactMismatch)));
    assert_eq!(state.quarantines().count(), MAX_QUARANTINED + 1);
    for version in ["w0", &last, "v1"] {
        assert_eq!(told(&mut state, "again", spec("t1", version, 7)), Some(Reason::ModelCopyCorrupt), "{version}");
    }
    // Two are looked into: then there is room for one more finding.
    for (version, then) in [("v1", Some(Reason::ModelCopyCorrupt)), ("w0", None)] {
        run(&mut state, Intent::Release(release_of(&spec("t1", version, 7))));
        assert_eq!(told(&mut state, "late", spec("t1", "v2", 7)), then);
    }
}
