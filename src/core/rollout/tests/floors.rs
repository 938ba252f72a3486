//! What a rollout does to the oldest version that may run, and what that does to it.

use super::*;
use crate::job::Publishers;

fn go(state: &mut State, version: &str, min: Option<&str>, rollback: bool) -> Result<(), Refusal> {
    let id = |text: &str| VersionId::new(text).unwrap();
    let evidence = Some(Evidence {
        signature: [8; 32],
        key_id: "k".into(),
        min_version: min.map(id),
        publishers: Publishers::Unsaid,
    });
    let next = Box::new(Next { version: id(version), evidence, ..Next::of(&job(state).spec) });
    let (request, strategy) = (request(), strategy());
    testing::try_run(state, Intent::StartRollout { request, tenant: None, next, strategy, rollback }).map(drop)
}

fn floor(state: &State) -> Option<String> {
    let spec = &job(state).spec;
    state.floor(&spec.tenant, &spec.model).map(ToString::to_string)
}

/// Another job of the tenant's model raises it.
fn raise(state: &mut State, version: &str) {
    let id = VersionId::new(version).unwrap();
    let evidence = Some(Evidence {
        signature: [8; 32],
        key_id: "k".into(),
        min_version: Some(id.clone()),
        publishers: Publishers::Unsaid,
    });
    let spec = JobSpec { version: id, evidence, ..testing::job_spec("t1", Gpus::Whole(1)) };
    testing::run(state, testing::schedule("other", spec));
}

#[test]
fn a_version_raises_the_floor_once_it_is_there_for_good() {
    let mut state = world(1, 8, 2);
    go(&mut state, "v2", Some("v2"), false).unwrap();
    look(&mut state);
    assert_eq!(floor(&state), None, "what it replaces can come back until then");
    rest(&mut state, 0, |version| version.as_str() == "v1");
    assert_eq!((versions(&state), floor(&state)), (vec!["v1".to_owned(); 2], None), "it failed, and left nothing");
    go(&mut state, "v3", Some("v2"), false).unwrap();
    rest(&mut state, 0, |_| true);
    assert_eq!((versions(&state), floor(&state).as_deref()), (vec!["v3".to_owned(); 2], Some("v2")));
}

#[test]
fn nothing_older_than_the_floor_rolls_out_and_a_rollback_does() {
    let mut state = world(1, 8, 2);
    go(&mut state, "v2", Some("v2"), false).unwrap();
    rest(&mut state, 0, |_| true);
    assert_eq!(go(&mut state, "v1", None, false).unwrap_err().reason, Reason::VersionTooOld);
    go(&mut state, "v1", None, true).unwrap();
    rest(&mut state, 0, |_| true);
    assert_eq!(versions(&state), ["v1", "v1"], "each of its copies got its place");
    assert_eq!(floor(&state).as_deref(), Some("v2"), "and the floor is where it was");
    let lost = |state: &mut State| {
        let mut job = job(state).clone();
        job.replicas[0] = crate::job::Replica::waiting(job.revision, 0);
        state.put_job(job);
        testing::run(state, Intent::PlaceWaiting);
    };
    lost(&mut state);
    assert!(!job(&state).replicas[0].is_waiting(), "one more place is the same rollback");
    raise(&mut state, "v3");
    lost(&mut state);
    assert!(job(&state).replicas[0].is_waiting(), "a floor that rose since is none that it knew");
}

/// Planned before the floor rose, applied after it.
#[test]
fn apply_asks_for_the_floor_once_more() {
    let mut state = world(1, 8, 1);
    let id = VersionId::new("v2").unwrap();
    let next = Box::new(Next { version: id, ..Next::of(&job(&state).spec) });
    let start =
        crate::command::Command::StartRollout { job: JobNo(1), next, strategy: strategy(), rollback: false, by: None };
    raise(&mut state, "v3");
    assert_eq!(crate::apply::apply(&mut state, &start).unwrap_err().reason, Reason::VersionTooOld);
}
