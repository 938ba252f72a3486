//! The way back is closed: the former version was taken back while the next one came (ADR 92).

use super::*;

/// v2 runs alone, watched, and nobody lets v1 in any more.
fn alone() -> State {
    let mut state = people(3, 2);
    go(&mut state, Strategy { canary: Some(Canary { percent: None, auto_promote: false }), ..strategy() });
    turns(&mut state, 3, |_| true);
    take_back(&mut state, 1);
    say(&mut state, Turn::Promote).unwrap();
    turns(&mut state, 6, |_| true);
    assert_eq!(runs(&state), [("v2".into(), true), ("v2".into(), true)]);
    assert!(is_forward(&state));
    state
}

fn is_forward(state: &State) -> bool {
    matches!(job(state).rollout.as_ref().unwrap().course, Course::Forward { .. })
}

/// What the gateways counted: v2 answers most requests badly.
fn verdict(state: &State) -> Vec<Intent> {
    let count = |good, failed| crate::slo::Count { good, slow: 0, failed };
    verdicts(state, &[((JobNo(1), Revision(1)), count(50, 0)), ((JobNo(1), Revision(2)), count(3, 9))].into())
}

fn judge(state: &mut State) {
    let said = verdict(state);
    assert_eq!(said.len(), 1);
    said.into_iter().for_each(|intent| drop(testing::run(state, intent)));
}

fn reasons(state: &State) -> Vec<Reason> {
    outlook(state, job(state)).unwrap().blockers.iter().map(|blocker| blocker.reason).collect()
}

fn next(state: &mut State) -> Result<(), Refusal> {
    grant(state, 7, None);
    let next = Next { version: VersionId::new("v3").unwrap(), manifest: Some([3; 32]), ..Next::of(&job(state).spec) };
    let (next, strategy) = (Box::new(next), strategy());
    let intent = Intent::StartRollout { request: request(), tenant: None, next, strategy, rollback: false };
    testing::try_run(state, by("ada", intent)).map(drop)
}

#[test]
fn a_version_at_fault_stays_where_the_former_may_not_come_back_and_says_so() {
    let mut state = alone();
    judge(&mut state);
    assert_eq!(verdict(&state), [], "it is said once");
    turns(&mut state, 2 * (WINDOW / 1_000) as u32, |_| true);
    assert_eq!(runs(&state), [("v2".into(), true), ("v2".into(), true)]);
    assert!(is_forward(&state), "nor is it called good: {}", word(&state));
    let seen = outlook(&state, job(&state)).unwrap();
    assert_eq!((&*seen.status, seen.why), ("blocked", Some(Reason::PromiseBroken)));
    assert_eq!(seen.counts.unwrap().new.failed, 9);
    assert_eq!(reasons(&state), [Reason::ConsentRevoked, Reason::PromiseBroken]);
    assert!(seen.blockers[0].detail.contains("nf rollout promote s1"), "{:?}", seen.blockers);

    let refusal = say(&mut state, back()).unwrap_err();
    assert_eq!(refusal.reason, Reason::ConsentRevoked);
    assert!(refusal.detail.contains("nf rollout promote s1"), "{refusal}");
    assert_eq!(next(&mut state.clone()).unwrap_err().reason, Reason::Conflict, "one at a time");

    say(&mut state, Turn::Promote).unwrap();
    assert_eq!(invariants::check(&state), []);
    assert_eq!((word(&state).as_str(), job(&state).spec.version.as_str()), ("successful", "v2"));
    next(&mut state).expect("the one that mends it");
    rest(&mut state, 1, |_| true);
    assert_eq!(versions(&state), ["v3", "v3"]);
}

#[test]
fn it_goes_back_by_itself_once_the_former_is_let_in_again() {
    let mut state = alone();
    judge(&mut state);
    turns(&mut state, 3, |_| true);
    assert!(is_forward(&state));
    grant(&mut state, 3, Some("v1"));
    rest(&mut state, 1, |_| true);
    assert_eq!((runs(&state), word(&state)), (vec![("v1".into(), true); 2], "failed".into()));
    assert_eq!(outlook(&state, job(&state)).unwrap().counts.unwrap().new.failed, 9);
}

#[test]
fn one_that_keeps_ending_is_tried_again_ever_more_rarely() {
    let mut state = alone();
    let launches = |state: &State| job(state).replicas.iter().map(|r| r.newest.0).sum::<u32>();
    let bad = |state: &mut State, seconds: u32| {
        let before = launches(state);
        turns(state, seconds, |version| version.as_str() == "v1");
        launches(state) - before
    };
    bad(&mut state, 20);
    assert!(is_forward(&state) && job(&state).rollout.as_ref().unwrap().failures >= MOST_FAILURES);
    let (early, late) = (bad(&mut state, 300), bad(&mut state, 300));
    assert!(early > 0 && late <= early && late < 20, "{early}, then {late}");
    assert_eq!(outlook(&state, job(&state)).unwrap().why, Some(Reason::ExitedNonZero));
    for _ in 0..600 {
        turns(&mut state, 1, |_| true);
    }
    assert_eq!(runs(&state), [("v2".into(), true), ("v2".into(), true)], "when it is well, it serves");
    // A person's word makes it the job's own, whose ends are those of any job.
    agents(&mut state, |_| false);
    say(&mut state, Turn::Promote).unwrap();
    assert_eq!(invariants::check(&state), []);
    assert_eq!((word(&state).as_str(), job(&state).open_rollout().is_none()), ("successful", true));
    turns(&mut state, 1, |_| true);
    assert!(runs(&state).iter().all(|(version, _)| version == "v2"), "{:?}", runs(&state));
}

#[test]
fn a_rollout_that_goes_back_when_the_former_is_taken_back_is_kept_by_a_word() {
    // One comes back beside what it replaces, and in its very place.
    for nodes in [3, 2] {
        let mut state = people(nodes, 2);
        go(&mut state, Strategy { window_ms: HOUR as u32, ..strategy() });
        turns(&mut state, 12, |_| true);
        assert_eq!(runs(&state), [("v2".into(), true), ("v2".into(), true)]);
        let refusal = |state: &mut State| say(state, Turn::Promote).unwrap_err();
        say(&mut state, back()).unwrap();
        assert_eq!(refusal(&mut state).reason, Reason::Conflict, "the former may come back");
        look(&mut state);
        take_back(&mut state, 1);
        turns(&mut state, 1, |_| true);
        assert!(job(&state).goes_back());
        assert_eq!(reasons(&state)[0], Reason::ConsentRevoked);
        for turn in [Turn::Pause, Turn::Resume] {
            assert!(say(&mut state, turn).unwrap_err().detail.contains("nf rollout promote s1"));
        }
        say(&mut state, Turn::Promote).unwrap();
        assert_eq!(invariants::check(&state), []);
        assert_eq!((word(&state).as_str(), job(&state).spec.version.as_str()), ("successful", "v2"));
        turns(&mut state, 3, |_| true);
        assert_eq!(runs(&state), [("v2".into(), true), ("v2".into(), true)]);
    }
}

#[test]
fn it_is_not_kept_while_the_former_still_holds_a_place() {
    let mut state = people(3, 2);
    go(&mut state, Strategy { window_ms: HOUR as u32, ..strategy() });
    turns(&mut state, 12, |_| true);
    say(&mut state, back()).unwrap();
    look(&mut state);
    assert!(matches!(job(&state).replicas[0].moving, Some(Move::Coming { revision: Revision(1), .. })));
    take_back(&mut state, 1);
    let refusal = say(&mut state, Turn::Promote).unwrap_err();
    assert!(refusal.detail.contains("v1") && refusal.reason == Reason::Conflict, "{refusal}");
    agents(&mut state, |_| true);
    say(&mut state, Turn::Promote).unwrap();
}

#[test]
fn what_was_to_come_back_in_a_place_does_not_once_the_next_one_is_kept() {
    let mut state = people(2, 2);
    go(&mut state, Strategy { window_ms: HOUR as u32, ..strategy() });
    turns(&mut state, 12, |_| true);
    // It stops, and the former version would take its place; somebody calls it good before the group has looked.
    take_back(&mut state, 2);
    assert!(matches!(job(&state).replicas[0].phase, Phase::Stopping { then: Then::Here(Revision(1)), .. }));
    say(&mut state, Turn::Promote).unwrap();
    assert_eq!(invariants::check(&state), []);
    agents(&mut state, |_| true);
    assert!(runs(&state).iter().all(|(version, serves)| version == "v2" && !serves), "{:?}", runs(&state));
}
