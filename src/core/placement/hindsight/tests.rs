//! The last day under another policy, on groups where the difference is plain.

use super::*;
use crate::id::TenantId;
use crate::placement::Policy;
use crate::plan::Intent;
use crate::resources::Gpus;
use crate::tenant::Quota;
use crate::testing;

/// Four nodes on which eight jobs of one GPU came, one after the other.
fn packed() -> State {
    let mut state = State::new();
    let quota = Quota { gpu_milli: Some(1_000_000), ..Quota::default() };
    testing::run(&mut state, Intent::SetQuota { tenant: TenantId::new("t1").unwrap(), quota });
    for i in 0..4 {
        testing::run(&mut state, testing::register(&format!("n{i}"), testing::node_spec(8)));
    }
    state.set_placement(Policy::BestFit.into());
    for i in 0..8 {
        let spec = testing::job_spec("t1", Gpus::Whole(1));
        testing::try_run_at(&mut state, testing::schedule(&format!("r{i}"), spec), 1_000 + i).unwrap();
    }
    state
}

#[test]
fn the_policy_in_force_changes_nothing() {
    let state = packed();
    let same = compare(&state, Policy::BestFit.into());
    assert_eq!((same.placements, same.changed, same.now), (8, 0, same.then));
    assert_eq!((same.now.allocated_milli, same.now.empty_nodes, same.now.unplaced), (8_000, 3, 0));
}

#[test]
fn spreading_leaves_no_node_empty_and_is_seen_to_cost_whole_nodes() {
    let mut state = packed();
    state.mix.add(&testing::job_spec("t1", Gpus::Whole(8)).resources, 100);
    let before = (state.hash(), state.meta().clone());
    let seen = compare(&state, Policy::Spread.into());
    assert_eq!((seen.placements, seen.then.empty_nodes, seen.now.empty_nodes), (8, 0, 3));
    assert!(seen.changed >= 5, "{seen:?}");
    assert_eq!(seen.now.idle_milli, seen.then.idle_milli);
    assert!(seen.now.usable_milli > seen.then.usable_milli + 20_000, "{seen:?}");
    assert_eq!(before, (state.hash(), state.meta().clone()), "nothing is committed");
}

#[test]
fn what_was_placed_before_the_day_stays_where_it_is() {
    let mut state = packed();
    let spec = testing::job_spec("t1", Gpus::Whole(2));
    testing::try_run_at(&mut state, testing::schedule("new", spec), 1_008 + BACK_MS).unwrap();
    let seen = compare(&state, Policy::Spread.into());
    assert_eq!((seen.placements, seen.then.empty_nodes), (1, 2), "only the new one could go elsewhere");
}
