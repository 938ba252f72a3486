//! Rollouts of parts of GPUs: each version is judged by its own word on what keeps it to its part, and the way back
//! is open whatever the place lacks.

use super::*;
use crate::job::Share;
use crate::node::NodeState;
use crate::placement::explain;
use crate::sharing::{Kept, Sharing};

fn accept(state: &mut State, soft_sharing: bool) {
    let tenant = crate::id::TenantId::new("t1").unwrap();
    let quota = crate::tenant::Quota { gpu_milli: Some(64_000), soft_sharing, ..Default::default() };
    testing::run(state, Intent::SetQuota { tenant, quota });
}

fn node(state: &mut State, name: &str) {
    testing::run(state, testing::register(name, testing::real_node_spec(1)));
}

/// A service of one replica on half a GPU, on two nodes where nothing enforces that: its first version had its place
/// since the tenant accepted soft sharing, its second keeps to its part by itself, serves, and is watched.
fn world() -> State {
    let mut state = State::new();
    accept(&mut state, true);
    node(&mut state, "n1");
    let scaling = Some(Scaling { min: 0, max: 8, ..Scaling::default() });
    let spec = JobSpec { scaling, ..testing::job_spec("t1", Gpus::Milli(500)) };
    testing::run(&mut state, testing::schedule("s1", spec));
    agents(&mut state, |_| true);
    node(&mut state, "n2");
    let version = VersionId::new("v2").unwrap();
    let next = Box::new(Next { version, self_limiting: true, ..Next::of(&job(&state).spec) });
    let intent = Intent::StartRollout { request: request(), tenant: None, next, strategy: strategy(), rollback: false };
    testing::run(&mut state, intent);
    for _ in 0..3 {
        look(&mut state);
        agents(&mut state, |_| true);
    }
    assert_eq!((versions(&state), word(&state)), (vec!["v2".to_owned()], "running".to_owned()));
    assert_eq!(held(&state).unwrap().kept, Kept::Runtime);
    state
}

fn held(state: &State) -> Option<Share> {
    job(state).replicas[0].allocation().map(|alloc| alloc.shares[0])
}

fn down(state: &mut State, name: &str) {
    let no = state.node_named(&NodeName::new(name).unwrap()).unwrap().no;
    testing::run(state, Intent::NodeStates(vec![(no, Incarnation(1), NodeState::Down)]));
    assert_eq!(invariants::check(state), []);
}

#[test]
fn a_replica_of_the_next_version_that_waits_is_judged_by_what_keeps_that_version() {
    let mut state = world();
    accept(&mut state, false);
    down(&mut state, "n1");
    down(&mut state, "n2");
    assert!(job(&state).replicas[0].is_waiting());
    let said = explain::blockers(&state, job(&state));
    assert!(said.iter().all(|blocker| blocker.reason != Reason::FractionNotEnforced), "{said:?}");
    assert!(explain::remedy(&state, job(&state)).iter().all(|text| !text.contains("soft-sharing")));
    node(&mut state, "n3");
    testing::run(&mut state, Intent::PlaceWaiting);
    assert_eq!(held(&state).map(|share| share.kept), Some(Kept::Runtime), "{:?}", job(&state).replicas[0]);
    assert_eq!(invariants::check(&state), []);
}

#[test]
fn replicas_of_both_versions_that_wait_are_placed_each_by_its_own_word() {
    let mut state = world();
    let request = request();
    let target = Target { replicas: 2, why: crate::autoscaler::Why::Asked, inputs: None, seen: None, learned: None };
    testing::run(&mut state, Intent::Scale { request, tenant: None, target });
    testing::run(&mut state, Intent::PlaceWaiting);
    let revisions: Vec<Revision> = job(&state).replicas.iter().map(|r| r.revision).collect();
    assert_eq!(revisions.len(), 2);
    down(&mut state, "n1");
    down(&mut state, "n2");
    // One of each.
    let mut changed = job(&state).clone();
    changed.replicas[1].revision = Revision(1);
    state.put_job(changed);
    accept(&mut state, false);
    node(&mut state, "n3");
    testing::run(&mut state, Intent::PlaceWaiting);
    let kept = |state: &State, no: usize| job(state).replicas[no].allocation().map(|alloc| alloc.shares[0].kept);
    assert_eq!((kept(&state, 0), kept(&state, 1)), (Some(Kept::Runtime), None));
    let room = state.room();
    accept(&mut state, true);
    testing::run(&mut state, Intent::PlaceWaiting);
    assert_eq!((kept(&state, 0), kept(&state, 1)), (Some(Kept::Runtime), Some(Kept::Accepted)));
    assert!(state.room() > room);
    assert_eq!(invariants::check(&state), []);
}

#[test]
fn the_way_back_takes_the_place_over_by_what_keeps_the_former_version() {
    let mut state = world();
    down(&mut state, "n1");
    say(&mut state, back()).unwrap();
    rest(&mut state, 0, |_| true);
    assert_eq!((versions(&state), word(&state)), (vec!["v1".to_owned()], "cancelled".to_owned()));
    assert_eq!(held(&state).unwrap().kept, Kept::Accepted, "in the same place");
}

#[test]
fn the_way_back_is_open_where_nothing_keeps_the_former_version() {
    for serves in [true, false] {
        let mut state = world();
        down(&mut state, "n1");
        accept(&mut state, false);
        if !serves {
            let mut changed = job(&state).clone();
            let Phase::Held { stage, .. } = &mut changed.replicas[0].phase else { panic!() };
            *stage = Stage::NotReady;
            state.put_job(changed);
        }
        say(&mut state, back()).unwrap();
        look(&mut state);
        agents(&mut state, |_| true);
        look(&mut state);
        assert_eq!((versions(&state), held(&state)), (vec!["v1".to_owned()], None), "it waits, and gets no part");
        let said = explain::blockers(&state, job(&state));
        assert!(said.iter().any(|blocker| blocker.reason == Reason::FractionNotEnforced), "{said:?}");
        // A device that enforces parts is a place for it, and the rollout comes to rest.
        let mut spec = testing::real_node_spec(1);
        spec.devices[0].sharing = Sharing::Mps;
        testing::run(&mut state, testing::register("n3", spec));
        rest(&mut state, 0, |_| true);
        assert_eq!((word(&state), held(&state).unwrap().kept), ("cancelled".to_owned(), Kept::Mps));
    }
}
