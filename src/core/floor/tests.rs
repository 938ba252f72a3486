//! How versions lie to one another, and what a floor keeps out; rollouts are tested beside them.

use super::*;
use crate::apply::apply;
use crate::command::Command;
use crate::id::{RequestId, VersionId};
use crate::job::{Evidence, Phase, Publishers};
use crate::placement::explain;
use crate::plan::{Intent, plan};
use crate::resources::Gpus;
use crate::testing::{job_spec, node_spec, register, run, schedule, try_run};

fn version(text: &str) -> VersionId {
    VersionId::new(text).unwrap()
}

/// A version of m1 that lets nothing older than `min` run.
fn spec(tenant: &str, text: &str, min: Option<&str>) -> JobSpec {
    let evidence = Evidence {
        signature: [8; 32],
        key_id: "k".into(),
        min_version: min.map(version),
        publishers: Publishers::Unsaid,
    };
    let gpu = job_spec(tenant, Gpus::Whole(1));
    JobSpec { version: version(text), manifest: Some([7; 32]), evidence: Some(evidence), ..gpu }
}

fn world() -> State {
    let mut state = State::new();
    run(&mut state, register("n1", node_spec(8)));
    state
}

fn told(state: &mut State, request: &str, spec: JobSpec) -> Option<Reason> {
    try_run(state, schedule(request, spec)).err().map(|refusal| refusal.reason)
}

#[test]
fn versions_are_ordered_by_their_parts_and_numbers_as_numbers() {
    let rising = [
        "0",
        "1-a",
        "1-b1",
        "1-b2",
        "1-b10",
        "1",
        "1.0-rc1",
        "1.0",
        "1.0.1",
        "1.2",
        "1.10",
        "1.10.1",
        "2",
        "10",
        "v1",
        "v1.1",
        "v2-rc.1",
        "v2-rc.2",
        "v2",
        "v9",
        "v10",
        "v10a",
        "v18446744073709551616",
        "v18446744073709551617",
    ];
    for (i, a) in rising.iter().enumerate() {
        for (j, b) in rising.iter().enumerate() {
            assert_eq!(order(&version(a), &version(b)), i.cmp(&j), "{a} and {b}");
        }
    }
    for (a, b) in [("1.0", "1_0"), ("v01", "v1"), ("1+x", "1+y"), ("1+x-rc", "1"), ("2024-01", "2024-1")] {
        assert_eq!(order(&version(a), &version(b)), Ordering::Equal, "{a} and {b}");
    }
}

#[test]
fn once_a_version_with_a_floor_is_in_nothing_older_is_let_in_for_that_tenant() {
    let mut state = world();
    assert_eq!(told(&mut state, "a", spec("t1", "v1", None)), None);
    assert_eq!(told(&mut state, "b", spec("t1", "v3", Some("v2"))), None);
    assert_eq!(told(&mut state, "c", spec("t1", "v1", None)), Some(Reason::VersionTooOld));
    assert_eq!(told(&mut state, "d", spec("t1", "v1", Some("v1"))), Some(Reason::VersionTooOld));
    assert_eq!(told(&mut state, "e", spec("t1", "v2", Some("v1"))), None, "as old as may be; a floor never sinks");
    assert_eq!(told(&mut state, "f", spec("t2", "v1", None)), None, "another tenant's own");
    let other = JobSpec { model: ModelId::new("m2").unwrap(), ..spec("t1", "v1", None) };
    assert_eq!(told(&mut state, "g", other), None, "another model");
    assert_eq!(state.floors().map(|floor| floor.version.as_str()).collect::<Vec<_>>(), ["v2"]);
}

/// Planned before the floor rose, applied after it.
#[test]
fn apply_knows_the_floor_too() {
    let mut state = world();
    let Intent::Schedule { submission, .. } = schedule("a", spec("t1", "v1", None)) else { unreachable!() };
    assert_eq!(told(&mut state, "b", spec("t1", "v2", Some("v2"))), None);
    let late = Command::Submit { submission, placements: vec![], claim: None };
    assert_eq!(apply(&mut state, &late).unwrap_err().reason, Reason::VersionTooOld);
}

#[test]
fn what_runs_below_a_new_floor_goes_on_and_gets_no_other_place() {
    let mut state = world();
    assert_eq!(told(&mut state, "a", spec("t1", "v1", None)), None);
    assert_eq!(told(&mut state, "b", spec("t1", "v2", Some("v2"))), None);
    let a = |state: &State| state.job_of(&RequestId::new("a").unwrap()).unwrap().clone();
    assert!(matches!(a(&state).replicas[0].phase, Phase::Held { .. }), "it goes on");
    let mut waits = (*a(&state)).clone();
    waits.replicas[0] = crate::job::Replica::waiting(waits.revision, 0);
    state.put_job(waits);
    run(&mut state, Intent::PlaceWaiting);
    assert!(a(&state).replicas[0].is_waiting());
    assert_eq!(explain::blockers(&state, &a(&state))[0].reason, Reason::VersionTooOld);
}

#[test]
fn floors_are_stored_and_end_with_their_tenant() {
    let mut state = world();
    let tenant = crate::id::TenantId::new("t1").unwrap();
    run(&mut state, Intent::CreateTenant { tenant: tenant.clone() });
    let floor =
        |model: &str| Floor { tenant: tenant.clone(), model: ModelId::new(model).unwrap(), version: version("v2") };
    state.put_floor(floor("m1"));
    state.put_floor(Floor { tenant: TenantId::new("t2").unwrap(), ..floor("m1") });
    state.take_changes();
    let again = State::from_rows(state.live_rows()).unwrap();
    assert_eq!((again.hash(), again.floor(&tenant, &floor("m1").model)), (state.hash(), Some(&version("v2"))));
    run(&mut state, Intent::DeleteTenant { tenant: tenant.clone() });
    state.take_changes();
    assert_eq!((state.floors().count(), state.floor(&tenant, &floor("m1").model)), (1, None));
    assert_eq!(State::from_rows(state.live_rows()).unwrap().hash(), state.hash());
}

#[test]
fn a_tenant_has_so_many_floors_and_no_more() {
    let mut state = world();
    let of = |n: usize| Floor {
        tenant: TenantId::new("t1").unwrap(),
        model: ModelId::new(&format!("m{}", n + 1)).unwrap(),
        version: version("v1"),
    };
    (1..=MAX_FLOORS).for_each(|n| state.put_floor(of(n)));
    assert_eq!(told(&mut state, "a", spec("t1", "v1", Some("v1"))), Some(Reason::TooManyRequests));
    assert_eq!(told(&mut state, "b", spec("t1", "v1", None)), None, "one that makes none");
    let known = JobSpec { model: of(1).model, ..spec("t1", "v2", Some("v2")) };
    assert_eq!(told(&mut state, "c", known), None, "one that is there rises");
    assert!(plan(&state, &schedule("d", spec("t2", "v1", Some("v1")))).is_ok(), "nor for others");
}
