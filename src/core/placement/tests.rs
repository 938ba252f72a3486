//! Gangs on four nodes against counting by hand: all replicas get a place exactly when
//! there is room for all of them, and no device gives more than it has.

use super::*;
use crate::ledger;
use crate::resources::Gpus;
use crate::sharing::Ask;
use crate::sim::Rng;
use crate::testing;

mod policies;
mod slices;

/// Four nodes with some of their devices held, and a workload that is known.
fn cluster(rng: &mut Rng) -> State {
    let mut state = State::new();
    for i in 0..4 {
        let mut spec = testing::node_spec(rng.between(1, 8) as u16);
        spec.cpu_milli = rng.between(2, 16) * 1000;
        testing::run(&mut state, testing::register(&format!("n{i}"), spec));
    }
    for _ in 0..rng.below(10) {
        let mut spec = testing::job_spec("t1", ask(rng));
        spec.resources.cpu_milli = rng.below(3) * 500;
        state.mix.add(&spec.resources, rng.between(1, 20));
        if let Some(pick) = place_one(&state, &spec, &Limits::default()) {
            state.book(&spec, 0, &pick.alloc);
        }
    }
    state.meta.placement = (*rng.pick(&Policy::ALL)).into();
    state.make_rules(1);
    state
}

fn ask(rng: &mut Rng) -> Gpus {
    match rng.below(2) {
        0 => Gpus::Milli(rng.between(1, 9) as u16 * 100),
        _ => Gpus::Whole(rng.between(1, 4) as u16),
    }
}

/// Replicas that a node has room for, counted without the placer.
pub(super) fn room(state: &State, node: &Node, spec: &JobSpec) -> u64 {
    let used = state.ledger().node(node.no).unwrap();
    let free = |i: usize| 1000 - u64::from(used.devices[i].milli);
    let devices = 0..node.spec.devices.len();
    let gpu: u64 = match spec.resources.gpu {
        Gpus::None => u64::MAX,
        Gpus::Milli(milli) => devices.map(|i| free(i) / u64::from(milli)).sum(),
        Gpus::Whole(n) if spec.constraints.same_island => {
            let mut islands: BTreeMap<u16, u64> = BTreeMap::new();
            devices
                .filter(|i| free(*i) == 1000)
                .for_each(|i| *islands.entry(node.spec.devices[i].island).or_default() += 1);
            islands.values().map(|idle| idle / u64::from(n)).sum()
        }
        Gpus::Whole(n) => devices.filter(|i| free(*i) == 1000).count() as u64 / u64::from(n),
    };
    let cpu = node.spec.cpu_milli - used.cpu_milli;
    gpu.min(cpu.checked_div(spec.resources.cpu_milli).unwrap_or(u64::MAX))
}

#[test]
fn a_gang_is_placed_exactly_when_all_of_it_fits() {
    for seed in 0..1000 {
        let mut rng = Rng::new(seed);
        let mut state = cluster(&mut rng);
        let mut spec = testing::job_spec("t1", ask(&mut rng));
        spec.resources.cpu_milli = rng.below(4) * 500;
        spec.constraints.same_island = rng.chance(300);
        spec.gang = true;
        spec.replicas = rng.between(1, 12) as u16;
        let fits: u64 = state.nodes().values().map(|node| room(&state, node, &spec)).sum();
        let wanted: Vec<u16> = (0..spec.replicas).collect();
        let picks = place(&state, &spec, &wanted, Limits::default());
        let expected = if fits >= u64::from(spec.replicas) { wanted.len() } else { 0 };
        assert_eq!(picks.len(), expected, "seed {seed}: room for {fits}, {spec:?}");
        for (replica, pick) in &picks {
            let node = state.node(pick.alloc.node).unwrap().clone();
            let used = state.ledger().node(node.no).unwrap();
            ledger::fits(&Ask::of(&state, &spec), &pick.alloc, &node.spec, used)
                .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            state.book(&spec, *replica, &pick.alloc);
        }
    }
}

#[test]
fn a_container_and_a_process_that_ask_for_the_same_are_not_one_ask() {
    let mut state = State::new();
    // So many different nodes that asks are ranked for; the one with an engine is full.
    let engine = crate::id::Label::new(crate::node::ENGINE_LABEL).unwrap();
    for i in 0..600u16 {
        let mut spec = testing::node_spec(1);
        spec.cpu_milli += u64::from(i);
        if i == 0 {
            spec.labels.insert(engine.clone(), engine.clone());
        }
        testing::run(&mut state, testing::register(&format!("n{i}"), spec));
    }
    let process = testing::job_spec("t1", Gpus::Whole(1));
    let container = JobSpec { runtime: crate::job::Runtime::Docker, ..process.clone() };
    let mut first = container.clone();
    first.tenant = crate::id::TenantId::new("t2").unwrap();
    testing::run(&mut state, testing::schedule("first", first));
    for spec in [&process, &container] {
        (0..3).for_each(|_| state.stand(spec));
    }
    assert!(place_one(&state, &process, &Limits::default()).is_some());
    assert!(place_one(&state, &container, &Limits::default()).is_none(), "no other node has an engine");
    // In one pass, what one lacks says nothing of the other.
    let quota = |gpu_milli| crate::plan::Intent::SetQuota {
        tenant: crate::id::TenantId::new("t1").unwrap(),
        quota: crate::tenant::Quota { gpu_milli: Some(gpu_milli), ..Default::default() },
    };
    testing::run(&mut state, quota(0));
    testing::run(&mut state, testing::schedule("container", container));
    testing::run(&mut state, testing::schedule("process", process));
    testing::run(&mut state, quota(64_000));
    testing::run(&mut state, crate::plan::Intent::PlaceWaiting);
    let held: Vec<bool> = state.jobs().values().map(|job| job.replicas[0].allocation().is_some()).collect();
    assert_eq!(held, [true, false, true]);
}

#[test]
fn every_choice_carries_its_terms_and_a_runner_up() {
    let mut rng = Rng::new(3);
    for policy in Policy::ALL {
        let mut state = cluster(&mut rng);
        state.meta.placement = policy.into();
        state.make_rules(1);
        let spec = testing::job_spec("t1", Gpus::Milli(100));
        let Some(pick) = place_one(&state, &spec, &Limits::default()) else { continue };
        assert!(pick.why.candidates >= 1);
        assert_eq!(pick.why.runner_up.is_some(), pick.why.candidates > 1, "{policy:?}");
        if policy != Policy::Random {
            assert_eq!(pick.why.score, pick.why.terms.total(policy.weights()));
        }
        assert_eq!(place_one(&state, &spec, &Limits::default()), Some(pick), "the same state gives the same place");
    }
}

#[test]
fn a_port_that_was_released_rests() {
    let range = crate::node::PortRange { first: 31_000, last: 31_999 };
    let firsts: Vec<u16> = (0..60).map(|second| first_port(range, 1_795_000_000_000 + second * 1000)).collect();
    assert!(firsts.iter().all(|port| (range.first..=range.last).contains(port)));
    // Eight replicas of one second have ports that follow one another: for half a minute none of them is first again.
    for (second, first) in firsts.iter().enumerate() {
        let taken = *first..first.saturating_add(8);
        assert!(firsts[second + 1..].iter().take(30).all(|later| !taken.contains(later)), "{first}");
    }
    let range_of = |first, last| crate::node::PortRange { first, last };
    let (one, all) = (range_of(65_535, 65_535), range_of(0, 65_535));
    assert_eq!(first_port(one, u64::MAX), 65_535);
    // Of the widest range, too, nothing overflows.
    first_port(all, u64::MAX);
}
