//! Nothing unapproved runs in production: each way around it is refused.

use super::*;
use crate::audit::Verdict;
use crate::job::{Evidence, Publishers, Runtime, Signer};
use crate::node::NodeSpec;
use crate::plan::Intent;
use crate::resources::Gpus;
use crate::testing::{by, job_spec, node_spec, real_node_spec, register, run, schedule, try_run, try_run_at};

const HOUR: u64 = 3_600_000;

fn of() -> Version {
    let spec = job_spec("t1", Gpus::Whole(1));
    Version { tenant: spec.tenant, model: spec.model, version: spec.version }
}

fn signed(manifest: u8) -> JobSpec {
    let evidence =
        Some(Evidence { signature: [8; 32], key_id: "k".into(), min_version: None, publishers: Publishers::Unsaid });
    JobSpec { manifest: Some([manifest; 32]), evidence, runtime: Runtime::Process, ..job_spec("t1", Gpus::Milli(100)) }
}

fn production() -> State {
    let mut state = State::new();
    run(&mut state, Intent::Init { cluster: "c".into(), mode: Mode::Production, default_gpu_milli: 8_000 });
    run(&mut state, register("n1", real_node_spec(8)));
    state
}

fn approve(who: &str, for_ms: u64) -> Intent {
    by(who, Intent::Approve { of: of(), manifest: [7; 32], for_ms })
}

fn asked(state: &mut State, request: &str, spec: JobSpec, who: &str) -> Result<(), Reason> {
    try_run(state, by(who, schedule(request, spec))).map(drop).map_err(|refusal| refusal.reason)
}

#[test]
fn production_runs_what_another_person_approved_and_nothing_else() {
    let mut state = production();
    assert_eq!(asked(&mut state, "r0", signed(7), "ada"), Err(Reason::ApprovalRequired));
    let said = JobSpec { approved_by: Some("bob".into()), ..signed(7) };
    assert_eq!(asked(&mut state, "r0", said, "ada"), Err(Reason::ApprovalRequired), "a name is no approval");
    run(&mut state, approve("bob", HOUR));
    assert_eq!(asked(&mut state, "r1", signed(7), "ada"), Ok(()));
    let job = state.jobs().values().next().unwrap();
    assert_eq!(job.spec.approved_by.as_deref(), Some("bob"), "the answer names who let it in");
    assert_eq!(asked(&mut state, "r2", signed(7), "bob"), Err(Reason::ApprovalSelf));
    assert_eq!(asked(&mut state, "r2", signed(9), "ada"), Err(Reason::ApprovalMismatch), "other bytes");
    let said = JobSpec { approved_by: Some("eve".into()), ..signed(7) };
    assert_eq!(asked(&mut state, "r2", said, "ada"), Err(Reason::ApprovalMismatch));
    let elsewhere = JobSpec { tenant: TenantId::new("t2").unwrap(), ..signed(7) };
    assert_eq!(asked(&mut state, "r2", elsewhere, "ada"), Err(Reason::ApprovalRequired), "another tenant");
    let nobody = try_run(&mut state, schedule("r2", signed(7))).unwrap_err();
    assert_eq!(nobody.reason, Reason::ApprovalRequired, "nobody stands behind it");
    run(&mut state, by("eve", Intent::Disapprove(of())));
    assert_eq!(asked(&mut state, "r2", signed(7), "ada"), Err(Reason::ApprovalRequired), "revoked");
    assert_eq!(asked(&mut state, "r1", signed(7), "ada"), Ok(()), "a retry is answered with the job it made");
    assert!(crate::invariants::check(&state).is_empty());
}

/// The same, signed by keys that are those people's.
fn signed_by(signers: &[(Option<&str>, &str)]) -> JobSpec {
    let who = |(issuer, subject): &(Option<&str>, &str)| Signer {
        issuer: issuer.map(Into::into),
        subject: (*subject).into(),
    };
    published_by(Publishers::Known(signers.iter().map(who).collect()))
}

fn published_by(publishers: Publishers) -> JobSpec {
    let mut spec = signed(7);
    spec.evidence.as_mut().unwrap().publishers = publishers;
    spec
}

#[test]
fn who_signed_a_version_does_not_approve_it_whoever_asks_for_it() {
    let mut state = production();
    run(&mut state, approve("bob", HOUR));
    let by_bob = signed_by(&[(None, "ada"), (None, "bob")]);
    let refusal = try_run(&mut state, by("carl", schedule("r0", by_bob.clone()))).unwrap_err();
    assert_eq!(refusal.reason, Reason::ApprovalSelf, "half of its signature is his");
    assert!(refusal.detail.contains("signed it, too"), "{}", refusal.detail);
    // Two people stand behind it: who published it, and who approved it. Either may ask for it.
    for (n, asker) in ["bob", "ada", "carl"].into_iter().enumerate() {
        assert_eq!(asked(&mut state, &format!("r{n}"), signed_by(&[(None, "ada")]), asker), Ok(()), "{asker}");
    }
    // Nobody gets a place by it when the one who approves it anew is the one who signed it.
    run(&mut state, approve("ada", HOUR));
    let job = state.jobs().values().next().unwrap().clone();
    assert_eq!(judge_again(&state, &job.spec).unwrap_err().reason, Reason::ApprovalSelf);
    assert_eq!(judge_back(&state, &job.spec).unwrap_err().reason, Reason::ApprovalSelf);
    let command = crate::command::Command::Submit {
        submission: match schedule(
            "r9",
            JobSpec {
                approved_by: Some("ada".into()),
                asked_by: job.spec.asked_by.clone(),
                ..signed_by(&[(None, "ada")])
            },
        ) {
            Intent::Schedule { submission, .. } => submission,
            _ => unreachable!("a schedule call"),
        },
        placements: Vec::new(),
        claim: None,
    };
    assert_eq!(crate::apply::apply(&mut state, &command).unwrap_err().reason, Reason::ApprovalSelf, "apply asks, too");
}

#[test]
fn what_was_let_in_before_there_was_a_list_goes_by_the_rule_of_then_until_it_is_asked_for_anew() {
    let mut state = production();
    run(&mut state, approve("bob", HOUR));
    // Bob signed it, and nobody had said so yet.
    assert_eq!(asked(&mut state, "before", published_by(Publishers::Unsaid), "ada"), Ok(()));
    let job = state.jobs().values().next().unwrap().clone();
    // The list is there now: what was verified then is part of the job, so its next place is judged alike on every member.
    assert_eq!(judge_again(&state, &job.spec), Ok(()));
    assert_eq!(asked(&mut state, "anew", signed_by(&[(None, "bob")]), "ada"), Err(Reason::ApprovalSelf));
    let of_then = JobSpec { evidence: signed_by(&[(None, "bob")]).evidence, ..(*job.spec).clone() };
    assert_eq!(
        judge_again(&state, &of_then).unwrap_err().reason,
        Reason::ApprovalSelf,
        "it is the evidence that says it"
    );
}

#[test]
fn a_key_that_is_nobodys_in_the_list_blocks_its_version_whoever_approves_and_asks() {
    let mut state = production();
    run(&mut state, approve("bob", HOUR));
    let unlisted = || published_by(Publishers::Unlisted { key: "GZ0=".into() });
    for (n, asker) in ["bob", "ada", "carl"].into_iter().enumerate() {
        let refusal = try_run(&mut state, by(asker, schedule(&format!("r{n}"), unlisted()))).unwrap_err();
        assert_eq!(refusal.reason, Reason::SignerUnknown, "{asker}");
        for said in ["GZ0=", "NF_SIGNERS", "nf doctor"] {
            assert!(refusal.detail.contains(said), "{}", refusal.detail);
        }
        let actor = Actor { subject: asker.into(), tenant: None, token: None, node: None, issuer: None };
        let note =
            crate::policy::stopped(&state, &unlisted(), audit::Action::JobSchedule, Some(&actor), refusal.reason);
        let check = note.unwrap().checks[2];
        assert_eq!((check.verdict, check.code), (Verdict::Block, Some(Reason::SignerUnknown)), "P3 says it");
    }
    // Neither apply, nor a further place, nor the way back of a rollout goes around it.
    let asked_by = Some(Person { issuer: None, subject: "ada".into() });
    let planned = JobSpec { approved_by: Some("bob".into()), asked_by, ..unlisted() };
    for judged in [judge_new(&state, &planned), judge_again(&state, &planned), judge_back(&state, &planned)] {
        assert_eq!(judged.unwrap_err().reason, Reason::SignerUnknown);
    }
    let mut played = State::new();
    run(&mut played, register("n1", node_spec(1)));
    run(&mut played, schedule("r1", JobSpec { runtime: Runtime::Simulated, ..unlisted() }));
}

#[test]
fn a_signer_is_somebody_of_one_issuer_or_of_any() {
    let person = |issuer: Option<&str>| Person { issuer: issuer.map(Into::into), subject: "bob".into() };
    let signer = |issuer: Option<&str>| Signer { issuer: issuer.map(Into::into), subject: "bob".into() };
    let (one, two) = (Some("https://one"), Some("https://two"));
    for (listed, whose, may_be) in [
        (None, one, true),
        (one, one, true),
        (one, two, false),
        // What is not known makes no two people of one.
        (one, None, true),
        (None, None, true),
    ] {
        assert_eq!(signer(listed).is(&person(whose)), may_be, "{listed:?} {whose:?}");
    }
    assert!(!Signer { subject: "eve".into(), ..signer(None) }.is(&person(one)));
    assert!(Signer { subject: "Bob".into(), ..signer(None) }.is(&person(one)), "nor do capitals");
}

#[test]
fn the_matrix_of_a_job_is_the_one_of_now() {
    let mut state = production();
    run(&mut state, approve("bob", HOUR));
    assert_eq!(asked(&mut state, "r1", signed(7), "ada"), Ok(()));
    let says = |state: &State| {
        let job = state.jobs().values().next().unwrap();
        let checks = crate::view::job(state, job).checks;
        (checks[2].verdict, checks[2].code, checks[4].verdict)
    };
    assert_eq!(says(&state), (Verdict::Pass, None, Verdict::Pass));
    let after = state.meta().now_ms + HOUR;
    try_run_at(&mut state, Intent::Tick, after).unwrap();
    assert_eq!(says(&state).0, Verdict::Pass, "what ends by its time takes back nothing");
    run(&mut state, by("eve", Intent::Disapprove(of())));
    assert_eq!(says(&state).0, Verdict::Block);
    assert_eq!(says(&state).1, Some(Reason::ApprovalRequired), "and what somebody takes back does");
}

#[test]
fn an_approval_ends_and_is_remembered_as_ended_for_a_while() {
    let mut state = production();
    let now = state.meta().now_ms;
    run(&mut state, approve("bob", HOUR));
    let at = |state: &mut State, request: &str, at_ms| {
        try_run_at(state, by("ada", schedule(request, signed(7))), at_ms).map(drop).map_err(|refusal| refusal.reason)
    };
    assert_eq!(at(&mut state, "r1", now + HOUR - 1), Ok(()));
    assert_eq!(at(&mut state, "r2", now + HOUR), Err(Reason::ApprovalExpired));
    assert_eq!(at(&mut state, "r2", now + KEPT_MS), Err(Reason::ApprovalExpired));
    assert_eq!(at(&mut state, "r2", now + HOUR + KEPT_MS), Err(Reason::ApprovalRequired), "forgotten");
    assert_eq!((state.approvals.len(), state.approved_until.len()), (0, 0));
    for wrong in [0, MAX_MS + 1] {
        assert_eq!(try_run(&mut state, approve("bob", wrong)).unwrap_err().field.as_deref(), Some("ttl"));
    }
}

#[test]
fn apply_itself_takes_no_job_whose_approval_does_not_count() {
    let mut state = production();
    let intent = schedule("r1", signed(7));
    let Intent::Schedule { submission, .. } = intent else { unreachable!("a schedule call") };
    let command = crate::command::Command::Submit { submission, placements: Vec::new(), claim: None };
    let refused = |state: &mut State| crate::apply::apply(state, &command).unwrap_err().reason;
    assert_eq!(refused(&mut state), Reason::ApprovalRequired);
    run(&mut state, approve("bob", HOUR));
    assert_eq!(refused(&mut state), Reason::ApprovalMismatch, "it does not name who let it in");
}

#[test]
fn approvals_survive_a_restart_and_the_trail_joins_them_with_their_jobs() {
    let mut state = production();
    let first = try_run(&mut state, Intent::Approve { of: of(), manifest: [7; 32], for_ms: HOUR }).unwrap_err();
    assert_eq!(first.reason, Reason::Forbidden, "it would name nobody");
    run(&mut state, approve("bob", HOUR));
    let digest = state.approvals().next().unwrap().digest();
    asked(&mut state, "r1", signed(7), "ada").unwrap();
    let rows = state.take_changes();
    let again = State::from_rows(state.live_rows()).unwrap();
    assert_eq!((again.hash(), again.approvals.len()), (state.hash(), 1));
    assert_eq!(again.approved_until, state.approved_until);
    let entries = rows.iter().filter(|row| row.table == crate::rows::Table::AuditEntry);
    let entries: Vec<_> = entries.map(|row| crate::rows::read_audit(row.value.as_ref().unwrap()).unwrap()).collect();
    let of_action = |action| entries.iter().find(|entry| entry.record.action == action).unwrap();
    let (approval, job) = (of_action(audit::Action::ModelApprove), of_action(audit::Action::JobSchedule));
    assert_eq!(&*approval.record.object, "model/t1/m1@v1");
    assert_eq!((approval.record.refs.approval, job.record.refs.approval), (Some(digest), Some(digest)));
    assert_eq!(job.record.checks[2].verdict, audit::Verdict::Pass);
}

#[test]
fn a_job_that_waits_when_its_approval_ends_gets_no_place_and_says_why() {
    let mut state = production();
    run(&mut state, approve("bob", HOUR));
    // The tenant's eight GPUs are taken, so the second job waits.
    let whole = |n| JobSpec { resources: job_spec("t1", Gpus::Whole(n)).resources, ..signed(7) };
    asked(&mut state, "big", whole(8), "ada").unwrap();
    asked(&mut state, "next", whole(1), "ada").unwrap();
    let held = |state: &State, request: &str| {
        let job = state.job_of(&crate::id::RequestId::new(request).unwrap()).unwrap();
        job.replicas[0].allocation().is_some()
    };
    let waits_for = |state: &State| {
        let job = state.job_of(&crate::id::RequestId::new("next").unwrap()).unwrap();
        crate::placement::explain::blockers(state, job).first().map(|blocker| blocker.reason)
    };
    assert!(held(&state, "big") && !held(&state, "next"));
    run(&mut state, by("bob", Intent::Disapprove(of())));
    assert_eq!(waits_for(&state), Some(Reason::ApprovalRequired));
    run(&mut state, register("n2", NodeSpec { ports: None, ..real_node_spec(8) }));
    run(
        &mut state,
        Intent::SetQuota {
            tenant: of().tenant,
            quota: crate::tenant::Quota { gpu_milli: Some(16_000), ..Default::default() },
        },
    );
    run(&mut state, Intent::PlaceWaiting);
    assert!(!held(&state, "next"), "nothing starts");
    run(&mut state, approve("ada", HOUR));
    run(&mut state, Intent::PlaceWaiting);
    assert_eq!(waits_for(&state), Some(Reason::ApprovalSelf), "its owner lets nothing in by approving it now");
    assert!(!held(&state, "next"));
    let room = state.room();
    run(&mut state, approve("eve", HOUR));
    assert!(state.room() > room, "waiters are worth a look");
    run(&mut state, Intent::PlaceWaiting);
    assert!(held(&state, "next"), "another person than the first one may let it in again");
    assert!(crate::invariants::check(&state).is_empty());
}

#[test]
fn one_tenant_does_not_fill_the_record_for_the_others() {
    let mut state = production();
    state.approvals_of.insert(of().tenant, MAX_APPROVALS);
    let full = try_run(&mut state, approve("bob", HOUR)).unwrap_err();
    assert_eq!(full.reason, Reason::TooManyRequests);
    let theirs = Version { tenant: TenantId::new("t2").unwrap(), ..of() };
    run(&mut state, by("bob", Intent::Approve { of: theirs.clone(), manifest: [7; 32], for_ms: HOUR }));
    run(&mut state, by("bob", Intent::Approve { of: theirs.clone(), manifest: [8; 32], for_ms: HOUR }));
    assert_eq!(state.approvals_of.get(&theirs.tenant), Some(&1), "the newest replaces the one before");
    run(&mut state, by("bob", Intent::Disapprove(theirs.clone())));
    assert_eq!(state.approvals_of.get(&theirs.tenant), None);
}

#[test]
fn a_name_is_one_persons_within_one_issuer_alone() {
    let mut state = production();
    let from = |issuer: &str, intent: Intent| {
        let Intent::By { actor, intent } = by("bob", intent) else { unreachable!("wrapped") };
        Intent::By { actor: Actor { issuer: Some(issuer.into()), ..actor }, intent }
    };
    run(&mut state, from("https://one", Intent::Approve { of: of(), manifest: [7; 32], for_ms: HOUR }));
    let asks = |state: &mut State, issuer| try_run(state, from(issuer, schedule("r1", signed(7)))).map(drop);
    assert_eq!(asks(&mut state, "https://one").unwrap_err().reason, Reason::ApprovalSelf);
    assert_eq!(asks(&mut state, "https://two"), Ok(()), "the other bob");
}

#[test]
fn simulation_waives_it() {
    let mut state = State::new();
    run(&mut state, register("n1", node_spec(1)));
    run(&mut state, schedule("r1", job_spec("t1", Gpus::Whole(1))));
}
