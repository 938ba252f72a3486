//! Against all subsets of a node's devices.

use super::*;
use crate::job::JobSpec;
use crate::node::NodeSpec;
use crate::placement::score;
use crate::resources::Gpus;
use crate::sim::Rng;
use crate::state::State;
use crate::testing;
use std::collections::{BTreeMap, BTreeSet};

/// A node some of whose devices are idle.
fn node(rng: &mut Rng, known: bool) -> NodeSpec {
    let mut spec = testing::node_spec(rng.between(1, 9) as u16);
    let (islands, numa_nodes) = (rng.between(1, 5), rng.between(1, 3));
    for device in &mut spec.devices {
        device.island = rng.below(islands) as u16;
        device.numa = (known && rng.chance(950)).then(|| rng.below(numa_nodes) as u16);
        device.healthy = rng.chance(700);
    }
    spec
}

/// What the node gives a replica that asks for so many.
fn given(spec: &NodeSpec, ask: &JobSpec) -> Option<(Vec<u16>, Span)> {
    let mut state = State::new();
    testing::run(&mut state, testing::register("n", spec.clone()));
    let class = state.capacity().classes.keys().next().unwrap().clone();
    let (ask, Gpus::Whole(wanted)) = (Ask::of(&state, ask), ask.resources.gpu) else { unreachable!("whole GPUs") };
    let found = choose(&class, &ask, wanted);
    assert_eq!(span(&class, &ask, wanted), found.as_ref().map(|(_, span)| *span), "{spec:?}");
    found
}

/// How many idle devices each island has.
fn islands(spec: &NodeSpec) -> BTreeMap<u16, usize> {
    let mut out = BTreeMap::new();
    spec.devices.iter().filter(|d| d.healthy).for_each(|d| *out.entry(d.island).or_default() += 1);
    out
}

/// Whether islands alone would let it have these devices: one island of the least size that holds them, else the fewest,
/// the fullest of them and, for the rest, the smallest that holds it.
fn obeys(spec: &NodeSpec, devices: &BTreeSet<usize>, one_island: bool) -> bool {
    let sizes = islands(spec);
    let mut used: Vec<usize> = devices
        .iter()
        .map(|i| spec.devices[*i].island)
        .collect::<BTreeSet<_>>()
        .iter()
        .map(|island| sizes[island])
        .collect();
    used.sort_by_key(|size| Reverse(*size));
    match sizes.values().filter(|size| **size >= devices.len()).min() {
        Some(tight) => used == [*tight],
        None if one_island => false,
        None => {
            let mut all: Vec<usize> = sizes.into_values().collect();
            all.sort_by_key(|size| Reverse(*size));
            let mut missing = devices.len();
            let mut wanted = Vec::new();
            while missing > all[0] {
                missing -= all[0];
                wanted.push(all.remove(0));
            }
            wanted.extend(all.into_iter().filter(|size| *size >= missing).min());
            used == wanted
        }
    }
}

fn numa_nodes(spec: &NodeSpec, devices: &BTreeSet<usize>) -> BTreeSet<Option<u16>> {
    devices.iter().map(|i| spec.devices[*i].numa).collect()
}

#[test]
fn devices_are_of_one_numa_node_wherever_islands_leave_that_choice() {
    let (mut near, mut split) = (0, 0);
    for seed in 0..4000 {
        let mut rng = Rng::new(seed);
        let spec = node(&mut rng, true);
        let wanted = rng.between(1, 5) as u16;
        let mut ask = testing::job_spec("t1", Gpus::Whole(wanted));
        ask.constraints.same_island = rng.chance(300);
        let idle: Vec<usize> = (0..spec.devices.len()).filter(|i| spec.devices[*i].healthy).collect();
        let subsets = (0u32..1 << idle.len()).filter(|bits| bits.count_ones() == u32::from(wanted));
        let set = |bits: u32| idle.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1).map(|(_, i)| *i).collect();
        let allowed: Vec<BTreeSet<usize>> =
            subsets.map(set).filter(|devices| obeys(&spec, devices, ask.constraints.same_island)).collect();
        let Some((devices, span)) = given(&spec, &ask) else {
            assert_eq!(allowed, [] as [BTreeSet<usize>; 0], "seed {seed}: {spec:?}");
            continue;
        };
        let devices: BTreeSet<usize> = devices.into_iter().map(usize::from).collect();
        assert!(allowed.contains(&devices), "seed {seed}: {devices:?} of {spec:?}");
        let crossed = numa_nodes(&spec, &devices);
        let used: BTreeSet<u16> = devices.iter().map(|i| spec.devices[*i].island).collect();
        assert_eq!(
            (usize::from(span.islands), usize::from(span.numa_nodes)),
            (used.len(), crossed.len()),
            "seed {seed}"
        );
        let best = allowed.iter().map(|devices| numa_nodes(&spec, devices).len()).min().unwrap();
        if best == 1 {
            assert_eq!(crossed.len(), best, "seed {seed}: {devices:?} of {spec:?}");
        }
        let choice = allowed.iter().any(|devices| numa_nodes(&spec, devices).len() > best);
        near += u32::from(choice && best == 1 && wanted > 1);
        split += u32::from(best > 1);
    }
    assert!(near > 200 && split > 200, "the seeds try both: {near} {split}");
}

#[test]
fn a_node_that_says_nothing_of_numa_nodes_gives_the_first_devices_of_its_islands() {
    for seed in 0..2000 {
        let mut rng = Rng::new(seed);
        let spec = node(&mut rng, false);
        let wanted = rng.between(1, 5) as u16;
        let ask = testing::job_spec("t1", Gpus::Whole(wanted));
        // Islands by size, and by number among equals; the first devices of each.
        let sizes = islands(&spec);
        let tight = sizes.iter().filter(|(_, size)| **size >= usize::from(wanted)).min_by_key(|(_, size)| **size);
        let mut order: Vec<u16> = sizes.keys().copied().collect();
        order.sort_by_key(|island| Reverse(sizes[island]));
        if let Some((island, _)) = tight {
            order = vec![*island];
        }
        // The largest ones whole, and the rest from the smallest that has it.
        let (mut left, mut whole) = (usize::from(wanted), Vec::new());
        while let Some(largest) = order.first().copied().filter(|island| sizes[island] < left) {
            left -= sizes[&largest];
            whole.push(order.remove(0));
        }
        let last =
            order.into_iter().filter(|island| sizes[island] >= left).min_by_key(|island| (sizes[island], *island));
        let order: Vec<u16> = whole.into_iter().chain(last).collect();
        let of = |island: u16| {
            let both = spec.devices.iter().zip(0u16..);
            both.filter(move |(device, _)| device.healthy && device.island == island).map(|(_, i)| i)
        };
        let mut expected: Vec<u16> = order.into_iter().flat_map(of).take(usize::from(wanted)).collect();
        expected.sort_unstable();
        let expected = (expected.len() == usize::from(wanted)).then_some(expected);
        let found = given(&spec, &ask);
        assert!(found.as_ref().is_none_or(|(_, span)| span.numa_nodes == 1), "seed {seed}");
        assert_eq!(found.map(|(devices, _)| devices), expected, "seed {seed}: {spec:?}");
    }
}

#[test]
fn more_groups_than_are_held_without_allocating_are_looked_at_as_well() {
    let mut spec = testing::node_spec(40);
    // Each on its own; the even ones on one NUMA node, the odd ones on the other.
    spec.devices.iter_mut().zip(0..).for_each(|(device, i)| (device.island, device.numa) = (i, Some(i % 2)));
    let (devices, span) = given(&spec, &testing::job_spec("t1", Gpus::Whole(3))).unwrap();
    assert_eq!((devices, span), (vec![0, 2, 4], Span { islands: 3, numa_nodes: 1 }));
}

#[test]
fn a_socket_in_between_costs_less_than_an_island_and_more_than_nothing() {
    let of = |island: [u16; 2], numa: [Option<u16>; 2]| {
        let mut spec = testing::node_spec(2);
        for (device, i) in spec.devices.iter_mut().zip(0..) {
            (device.island, device.numa) = (island[i], numa[i]);
        }
        let mut state = State::new();
        testing::run(&mut state, testing::register("n", spec));
        let class = state.capacity().classes.keys().next().unwrap().clone();
        let ask = testing::job_spec("t1", Gpus::Whole(2));
        score::terms(&class, &Ask::of(&state, &ask), &state.rules).unwrap().0.topology
    };
    assert_eq!((of([0, 0], [None; 2]), of([0, 0], [Some(1); 2])), (1000, 1000));
    assert_eq!(of([0, 0], [Some(0), Some(1)]), 1000 - 2);
    assert_eq!((of([0, 1], [Some(0); 2]), of([0, 1], [Some(0), Some(1)])), (500, 500 - 2));
}

#[test]
fn a_pair_is_not_broken_where_a_single_device_is_idle() {
    let mut spec = testing::node_spec(5);
    spec.devices.iter_mut().zip([0, 0, 1, 1, 2]).for_each(|(device, island)| device.island = island);
    let (devices, span) = given(&spec, &testing::job_spec("t1", Gpus::Whole(3))).unwrap();
    assert_eq!((devices, span.islands), (vec![0, 1, 4], 2));
}
