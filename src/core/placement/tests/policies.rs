//! What each policy means by a good place.

use super::*;
use crate::budget::{Budgets, Kind, Window};
use crate::id::{DeviceType, NodeName, RequestId, TenantId};
use crate::node::NodeSpec;
use crate::plan::Intent;
use crate::sharing::Sharing;
use crate::tenant::Quota;

fn by(policy: Policy, nodes: &[(&str, NodeSpec)]) -> State {
    let mut state = State::new();
    let mut chosen = Chosen::from(policy);
    (chosen.preemption.min_run_ms, chosen.preemption.delay_ms) = (0, 0);
    testing::run(&mut state, Intent::SetPlacement { chosen, seen: None });
    set_quota(&mut state, "t1", Quota::default());
    nodes.iter().for_each(|(name, spec)| drop(testing::run(&mut state, testing::register(name, spec.clone()))));
    state
}

fn set_quota(state: &mut State, tenant: &str, quota: Quota) {
    let quota = Quota { gpu_milli: Some(64_000), ..quota };
    testing::run(state, Intent::SetQuota { tenant: TenantId::new(tenant).unwrap(), quota });
}

/// Schedules it, and says on which node it is, and on which device first.
fn put(state: &mut State, request: &str, spec: JobSpec) -> (String, Option<u16>) {
    testing::run(state, testing::schedule(request, spec));
    let job = state.job_of(&RequestId::new(request).unwrap()).unwrap();
    let alloc = job.replicas[0].allocation().unwrap();
    (state.node(alloc.node).unwrap().name.to_string(), alloc.shares.first().map(|share| share.device))
}

#[test]
fn parts_are_put_on_idle_devices_where_little_is_to_be_shared() {
    for policy in [Policy::Spread, Policy::Latency] {
        let mut state = by(policy, &[("a", testing::node_spec(2)), ("b", testing::node_spec(2))]);
        let mut places: Vec<_> =
            (0..4).map(|i| put(&mut state, &format!("p{i}"), testing::job_spec("t1", Gpus::Milli(300)))).collect();
        places.sort();
        places.dedup();
        assert_eq!(places.len(), 4, "{policy:?}: {places:?}");
    }
    // A node with more free does not make up for a device that is shared.
    let mut state = by(Policy::Latency, &[("b", testing::node_spec(8)), ("a", testing::node_spec(2))]);
    let on = |gpu: Gpus, node: &str| {
        let mut spec = testing::job_spec("t1", gpu);
        spec.constraints.node = Some(NodeName::new(node).unwrap());
        spec
    };
    put(&mut state, "whole", on(Gpus::Whole(1), "a"));
    (0..8).for_each(|i| drop(put(&mut state, &format!("p{i}"), on(Gpus::Milli(100), "b"))));
    assert_eq!(put(&mut state, "next", testing::job_spec("t1", Gpus::Milli(100))).0, "a");
    let mut state = by(Policy::BestFit, &[("a", testing::node_spec(2))]);
    let stacked: Vec<_> =
        (0..3).map(|i| put(&mut state, &format!("p{i}"), testing::job_spec("t1", Gpus::Milli(300))).1).collect();
    assert_eq!(stacked, [Some(0); 3]);
}

#[test]
fn work_without_gpus_is_spread_by_what_it_takes() {
    let mut state = by(Policy::Spread, &[("a", testing::node_spec(1)), ("b", testing::node_spec(1))]);
    let mut spec = testing::job_spec("t1", Gpus::None);
    spec.resources.cpu_milli = 4_000;
    let places: Vec<_> = (0..4).map(|i| put(&mut state, &format!("p{i}"), spec.clone()).0).collect();
    assert_eq!(places, ["a", "b", "a", "b"]);
}

fn priced(units: u64) -> NodeSpec {
    let mut spec = testing::node_spec(8);
    spec.cost_per_hour.insert(DeviceType::new("H100-80G").unwrap(), units * 1_000_000);
    spec
}

#[test]
fn the_cheaper_place_is_taken_however_dear_both_are() {
    for (dear, cheap) in [(2, 1), (120, 110), (90_000, 80_000)] {
        let mut state = by(Policy::Cost, &[("dear", priced(dear)), ("cheap", priced(cheap))]);
        assert_eq!(put(&mut state, "p", testing::job_spec("t1", Gpus::Whole(8))).0, "cheap", "{cheap} a GPU");
    }
    // One that is registered later with another price counts at once.
    let mut state = by(Policy::Cost, &[("first", priced(500)), ("cheap", priced(400))]);
    testing::run(&mut state, testing::register("later", priced(5_000)));
    assert_eq!(state.rules.dearest, 5_000_000_000);
}

#[test]
fn a_slice_that_is_there_goes_before_one_that_would_be_made() {
    let profile = DeviceType::new("1g.10gb").unwrap();
    let mut divided = testing::node_spec(2);
    divided.devices.iter_mut().for_each(|device| device.sharing = Sharing::Mig);
    let mut ready = testing::node_spec(8);
    ready.devices.iter_mut().for_each(|device| device.mig_profile = Some(profile.clone()));
    for policy in [Policy::Fragmentation, Policy::BestFit, Policy::Cost] {
        let mut state = by(policy, &[("a-divided", divided.clone()), ("b-ready", ready.clone())]);
        let mut spec = testing::job_spec("t1", Gpus::Whole(1));
        // A workload that is known.
        state.mix.add(&spec.resources, 100);
        state.make_rules(1);
        spec.resources.mig_profile = Some(profile.clone());
        for i in 0..8 {
            assert_eq!(put(&mut state, &format!("p{i}"), spec.clone()).0, "b-ready", "{policy:?}, {i}");
        }
        assert_eq!(put(&mut state, "last", spec).0, "a-divided", "{policy:?}");
    }
}

#[test]
fn where_the_place_of_the_cheapest_victims_is_too_dear_others_give_way() {
    let mut state = by(Policy::Fragmentation, &[("dear", priced(10)), ("cheap", priced(1))]);
    for (node, priority) in [("dear", 0), ("cheap", 5)] {
        let mut spec = JobSpec { priority, ..testing::job_spec("t1", Gpus::Whole(8)) };
        (spec.constraints.node, spec.constraints.preemptible) = (Some(NodeName::new(node).unwrap()), true);
        put(&mut state, node, spec);
    }
    let mut budgets = Budgets::default();
    budgets.set(Kind::Money, Window::Day, 20_000_000);
    set_quota(&mut state, "t2", Quota { budgets: budgets.some(), ..Quota::default() });
    let mut spec = JobSpec { priority: 50, ..testing::job_spec("t2", Gpus::Whole(8)) };
    spec.constraints.max_run_ms = Some(60 * 60_000);
    testing::run(&mut state, testing::schedule("rival", spec));
    let gave: Vec<bool> = ["dear", "cheap"]
        .map(|victim| state.job_of(&RequestId::new(victim).unwrap()).unwrap().gave_way.is_some())
        .into();
    assert_eq!(gave, [false, true]);
}

#[test]
fn four_singles_and_two_pairs_have_places_in_any_order_of_arrival() {
    let mut orders = 0;
    // Which of the six arrivals are the pairs, on two nodes of four GPUs, with their islands and without.
    for first in 0..6 {
        for second in first + 1..6 {
            for islands in [1, 2] {
                let mut node = testing::node_spec(4);
                node.devices.iter_mut().enumerate().for_each(|(i, d)| d.island = (i * islands / 4) as u16);
                let mut state = by(Policy::Fragmentation, &[("a", node.clone()), ("b", node)]);
                for i in 0..6 {
                    let gpus = if i == first || i == second { 2 } else { 1 };
                    let mut spec = testing::job_spec("t1", Gpus::Whole(gpus));
                    spec.constraints.same_island = gpus == 2;
                    put(&mut state, &format!("r{i}"), spec);
                }
                orders += 1;
            }
        }
    }
    assert_eq!(orders, 30);
}

#[test]
fn who_says_that_it_packs_is_packed_whatever_the_policy() {
    for policy in [Policy::Spread, Policy::Latency, Policy::Fragmentation] {
        let nodes: Vec<_> = ["a", "b", "c"].into_iter().map(|name| (name, testing::node_spec(4))).collect();
        let mut state = by(policy, &nodes);
        let mut taken = testing::job_spec("t1", Gpus::Whole(1));
        taken.constraints.node = Some(NodeName::new("b").unwrap());
        put(&mut state, "taken", taken);
        let mut spec = JobSpec { replicas: 3, ..testing::job_spec("t1", Gpus::Whole(1)) };
        spec.constraints.arrangement = Arrangement::Pack;
        testing::run(&mut state, testing::schedule("packs", spec));
        let job = state.job_of(&RequestId::new("packs").unwrap()).unwrap();
        let on: Vec<_> =
            job.replicas.iter().map(|r| state.node(r.allocation().unwrap().node).unwrap().name.to_string()).collect();
        assert_eq!(on, ["b"; 3], "{policy:?}");
    }
    // Its siblings draw the next one, though another node is as full.
    let state = by(Policy::Spread, &[("a", testing::node_spec(4)), ("b", testing::node_spec(4))]);
    let mut spec = JobSpec { replicas: 2, ..testing::job_spec("t1", Gpus::Whole(1)) };
    spec.constraints.arrangement = Arrangement::Pack;
    let siblings = BTreeMap::from([(NodeNo(2), 1)]);
    let pick = place_one(&state, &spec, &Limits { siblings, ..Limits::default() }).unwrap();
    assert_eq!(pick.alloc.node, NodeNo(2));
}
