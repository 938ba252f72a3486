//! Racks and zones against counting by hand: a gang gets a place exactly when one domain has room for all of it,
//! victims are those of the cheapest set that frees one domain, and what a job is told is what it lacks.

use super::*;
use crate::claim::Claim;
use crate::command::{Command, Placement};
use crate::id::{JobNo, Label, NodeName, RequestId};
use crate::placement::tests::room;
use crate::placement::{Chosen, place_one, preempt};
use crate::plan::{Intent, plan};
use crate::resources::Gpus;
use crate::sim::Rng;
use crate::tenant::Quota;
use crate::testing;
use crate::topology::{Topology, keeps};
use std::collections::BTreeMap;
use std::sync::Arc;

fn label(text: &str) -> Option<Label> {
    Some(Label::new(text).unwrap())
}

fn unlimited(state: &mut State) {
    let quota = Quota { gpu_milli: Some(10_000_000), ..Quota::default() };
    testing::run(state, Intent::SetQuota { tenant: crate::id::TenantId::new("t1").unwrap(), quota });
    let mut chosen = Chosen::from(Policy::Fragmentation);
    (chosen.preemption.min_run_ms, chosen.preemption.delay_ms) = (0, 0);
    testing::run(state, Intent::SetPlacement { chosen, seen: None });
}

/// A node with so many GPUs in that rack.
fn add(state: &mut State, name: &str, rack: &str, gpus: u16) {
    let mut spec = testing::node_spec(gpus);
    (spec.zone, spec.rack) = (label("z"), label(rack));
    testing::run(state, testing::register(name, spec));
}

/// Four to six nodes; racks called alike in two zones, some that no node names, and work of several priorities.
fn cluster(rng: &mut Rng, jobs: u64) -> State {
    let mut state = State::new();
    unlimited(&mut state);
    for i in 0..rng.between(4, 6) {
        let mut spec = testing::node_spec(rng.between(1, 4) as u16);
        spec.cpu_milli = rng.between(4, 16) * 1000;
        spec.zone = label(rng.pick::<&str>(&["a", "b"]));
        spec.rack = if rng.chance(850) { label(rng.pick::<&str>(&["r1", "r2"])) } else { None };
        testing::run(&mut state, testing::register(&format!("n{i}"), spec));
    }
    for i in 0..rng.below(jobs + 1) {
        let mut spec = testing::job_spec("t1", ask(rng));
        spec.priority = rng.below(4) as i16 * 5;
        spec.constraints.preemptible = rng.chance(800);
        spec.gang = rng.chance(300);
        spec.replicas = if spec.gang { 2 } else { 1 };
        let Intent::Schedule { submission, check_plan, .. } = testing::schedule(&format!("r{i}"), spec) else {
            continue;
        };
        let queueing = crate::plan::Queueing::Never;
        let _ = testing::try_run(&mut state, Intent::Schedule { submission, check_plan, queueing });
    }
    state
}

fn ask(rng: &mut Rng) -> Gpus {
    match rng.below(3) {
        0 => Gpus::Milli(rng.between(2, 8) as u16 * 100),
        _ => Gpus::Whole(rng.between(1, 3) as u16),
    }
}

fn wish(rng: &mut Rng, most: u64) -> JobSpec {
    let mut spec = testing::job_spec("t1", ask(rng));
    spec.resources.cpu_milli = rng.below(4) * 500;
    spec.constraints.topology.required = Some(*rng.pick(&[Level::Rack, Level::Rack, Level::Zone]));
    spec.replicas = rng.between(1, most) as u16;
    spec.gang = rng.chance(700);
    spec.priority = rng.between(1, 20) as i16;
    spec
}

/// What each domain of the level has room for, counted without the placer. `None`: nodes that name none.
fn by_hand(state: &State, spec: &JobSpec, level: Level) -> BTreeMap<Option<(Option<Label>, Option<Label>)>, u64> {
    let mut out = BTreeMap::new();
    for node in state.nodes().values() {
        let key = match level {
            Level::Rack => node.spec.rack.clone().map(|rack| (node.spec.zone.clone(), Some(rack))),
            _ => node.spec.zone.clone().map(|zone| (Some(zone), None)),
        };
        *out.entry(key).or_default() += room(state, node, spec);
    }
    out
}

fn most_by_hand(state: &State, spec: &JobSpec, level: Level) -> u64 {
    by_hand(state, spec, level).into_iter().filter(|(key, _)| key.is_some()).map(|(_, room)| room).max().unwrap_or(0)
}

/// The same of the domains that hold all of the job when nothing runs there; of all where none does.
fn most_of_those_that_may(state: &State, spec: &JobSpec, level: Level) -> u64 {
    let mut empty = state.speculative();
    for job in state.jobs().values() {
        let placed = (0..job.replicas.len()).filter(|i| job.replicas[*i].allocation().is_some());
        placed.for_each(|i| empty.give_back(job, i as u16));
    }
    let (now, ever) = (by_hand(state, spec, level), by_hand(&empty, spec, level));
    let may = ever.iter().filter(|(key, room)| key.is_some() && **room >= u64::from(spec.replicas));
    let most = may.map(|(key, _)| now.get(key).copied().unwrap_or(0)).max();
    most.unwrap_or_else(|| most_by_hand(state, spec, level))
}

#[test]
fn a_gang_has_a_place_exactly_when_one_domain_holds_all_of_it() {
    let (mut placed, mut apart) = (0, 0);
    for seed in 0..2000 {
        let mut rng = Rng::new(seed);
        let state = cluster(&mut rng, 8);
        let spec = wish(&mut rng, 6);
        let level = spec.constraints.topology.required.unwrap();
        let wanted: Vec<u16> = (0..spec.replicas).collect();
        let most = most_by_hand(&state, &spec, level);
        let expected = match (most >= wanted.len() as u64, spec.gang) {
            (true, _) => wanted.len(),
            (false, true) => 0,
            (false, false) => most_of_those_that_may(&state, &spec, level) as usize,
        };
        let picks = super::super::place(&state, &spec, &wanted, Limits::default());
        assert_eq!(picks.len(), expected, "seed {seed}: {spec:?}");
        assert!(keeps(&state, &spec, &[], picks.iter().map(|(_, pick)| pick.alloc.node)), "seed {seed}");
        let anywhere: u64 = by_hand(&state, &spec, level).values().sum();
        placed += u32::from(expected == wanted.len());
        apart += u32::from(anywhere >= wanted.len() as u64 && most < wanted.len() as u64);
    }
    assert!(placed > 800 && apart > 200, "{placed} placed, {apart} kept waiting by their topology alone");
}

#[test]
fn what_is_only_preferred_uses_as_few_domains_as_can_be_and_keeps_nobody_waiting() {
    let (mut one, mut more) = (0, 0);
    for seed in 0..2000 {
        let mut rng = Rng::new(seed);
        let state = cluster(&mut rng, 8);
        let mut spec = wish(&mut rng, 8);
        spec.constraints.topology = Topology { required: None, preferred: Some(Level::Rack) };
        let wanted: Vec<u16> = (0..spec.replicas).collect();
        let rooms = by_hand(&state, &spec, Level::Rack);
        let all: u64 = rooms.values().sum();
        let picks = super::super::place(&state, &spec, &wanted, Limits::default());
        let expected = if all >= wanted.len() as u64 || !spec.gang { all.min(wanted.len() as u64) } else { 0 };
        assert_eq!(picks.len() as u64, expected, "seed {seed}: {spec:?}");
        if picks.len() < wanted.len() {
            continue;
        }
        let mut racks: Vec<u64> =
            rooms.iter().filter(|(key, room)| key.is_some() && **room > 0).map(|(_, room)| *room).collect();
        racks.sort_unstable_by_key(|room| Reverse(*room));
        let sums = racks.iter().scan(0, |sum, room| {
            *sum += room;
            Some(*sum)
        });
        let before = sums.take_while(|sum| *sum < wanted.len() as u64).count();
        let needed = racks.len().min(before + 1);
        let names = |no: NodeNo| Domain::of(Level::Rack, state.node(no).unwrap().spec.names());
        let used: BTreeSet<Domain> = picks.iter().filter_map(|(_, pick)| names(pick.alloc.node)).collect();
        // A wider domain that holds all of them goes before fewer racks of two.
        let holds = |level| most_by_hand(&state, &spec, level) >= wanted.len() as u64;
        let wider = !holds(Level::Rack) && holds(Level::Zone);
        assert!(used.len() == needed || wider, "seed {seed}: {used:?} for {needed}");
        *(if needed == 1 { &mut one } else { &mut more }) += 1;
    }
    assert!(one > 500 && more > 100, "{one} in one rack, {more} in several");
}

#[test]
fn what_is_only_preferred_does_not_keep_a_gang_at_the_limit_of_a_type() {
    let mut state = State::new();
    unlimited(&mut state);
    let kind = |name: &str| crate::id::DeviceType::new(name).unwrap();
    for (name, model) in [("a", "H100"), ("b", "A100")] {
        let mut spec = testing::node_spec(4);
        (spec.zone, spec.rack) = (label("z"), label(name));
        spec.devices.iter_mut().for_each(|device| device.device_type = kind(model));
        testing::run(&mut state, testing::register(name, spec));
    }
    let few = crate::tenant::Share { gpu_milli: 2_000, ..Default::default() };
    let quota = Quota { gpu_milli: Some(10_000_000), types: [(kind("H100"), few)].into(), ..Quota::default() };
    testing::run(&mut state, Intent::SetQuota { tenant: crate::id::TenantId::new("t1").unwrap(), quota });
    // Each replica may be of either type; all of them can't be H100s.
    let mut spec = JobSpec { gang: true, replicas: 4, ..testing::job_spec("t1", Gpus::Whole(1)) };
    spec.constraints.topology.preferred = Some(Level::Rack);
    testing::run(&mut state, testing::schedule("gang", spec));
    assert_eq!(racks_of(&state, "gang"), ["b"; 4]);
}

#[test]
fn victims_free_one_domain_and_cost_what_the_cheapest_such_set_costs() {
    let (mut met, mut none, mut dearer) = (0, 0, 0);
    for seed in 0..2500 {
        let mut rng = Rng::new(seed);
        let state = cluster(&mut rng, 9);
        let spec = JobSpec { gang: true, ..wish(&mut rng, 4) };
        let level = spec.constraints.topology.required.unwrap();
        let wanted: Vec<u16> = (0..spec.replicas).collect();
        if most_by_hand(&state, &spec, level) >= wanted.len() as u64 {
            continue;
        }
        let claim = preempt::claim(&state, &spec, &wanted, &Limits::default());
        let found = claim.as_ref().map(|claim| cost(&state, claim));
        let cheapest = |level: Option<Level>| brute(&state, &spec, level);
        assert_eq!(found, cheapest(Some(level)), "seed {seed}: {spec:?}");
        if let Some(claim) = &claim {
            assert!(keeps(&state, &spec, &[], claim.nodes()), "seed {seed}");
        }
        *(if found.is_some() { &mut met } else { &mut none }) += 1;
        dearer += u32::from(found.is_some() && cheapest(None) != found);
    }
    assert!(met > 300 && none > 200 && dearer > 50, "{met} met, {none} not, {dearer} dearer than in two domains");
}

fn cost(state: &State, claim: &Claim) -> u64 {
    let of = |job: JobNo, replica: u16| {
        let job = state.job(job).unwrap();
        crate::claim::cost(state.meta().now_ms, job, job.replicas[usize::from(replica)].allocation().unwrap().at_ms)
    };
    claim.victims.iter().map(|victim| of(victim.job, victim.replica)).sum()
}

/// The cost of the cheapest set of less urgent jobs without which one domain, or all nodes together, hold the gang.
fn brute(state: &State, spec: &JobSpec, level: Option<Level>) -> Option<u64> {
    let gives = |job: &&Arc<crate::job::Job>| {
        let holds = job.replicas.iter().all(|replica| replica.allocation().is_some());
        holds && job.spec.constraints.preemptible && job.spec.priority < spec.priority
    };
    let jobs: Vec<&Arc<crate::job::Job>> = state.jobs().values().filter(gives).collect();
    let members = |set: u32| jobs.iter().enumerate().filter(move |(i, _)| set >> i & 1 == 1).map(|(_, job)| *job);
    let holds = |set: &u32| {
        let mut scratch = state.speculative();
        for job in members(*set) {
            (0..job.replicas.len()).for_each(|replica| scratch.give_back(job, replica as u16));
        }
        let room = match level {
            Some(level) => most_by_hand(&scratch, spec, level),
            None => by_hand(&scratch, spec, Level::Zone).values().sum(),
        };
        room >= u64::from(spec.replicas)
    };
    let price = |set: u32| {
        let of = |job: &crate::job::Job| {
            let at = |replica: &crate::job::Replica| replica.allocation().unwrap().at_ms;
            job.replicas.iter().map(|r| crate::claim::cost(state.meta().now_ms, job, at(r))).sum::<u64>()
        };
        members(set).map(|job| of(job)).sum()
    };
    (1..1u32 << jobs.len()).filter(holds).map(price).min()
}

/// Racks `a` and `b` of two nodes of four GPUs each.
fn two_racks() -> State {
    let mut state = State::new();
    unlimited(&mut state);
    for (name, rack) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")] {
        add(&mut state, name, rack, 4);
    }
    state
}

fn in_one_rack(replicas: u16, gpus: u16, gang: bool) -> JobSpec {
    let mut spec = testing::job_spec("t1", Gpus::Whole(gpus));
    spec.constraints.topology.required = Some(Level::Rack);
    (spec.replicas, spec.gang) = (replicas, gang);
    spec
}

/// Runs that many GPUs' worth of work on the node.
fn fill(state: &mut State, node: &str, gpus: u16, priority: i16) {
    let mut spec = testing::job_spec("t1", Gpus::Whole(gpus));
    spec.constraints.node = Some(NodeName::new(node).unwrap());
    (spec.priority, spec.constraints.preemptible) = (priority, true);
    testing::run(state, testing::schedule(&format!("{node}-{gpus}-{priority}"), spec));
}

fn racks_of(state: &State, request: &str) -> Vec<String> {
    let job = state.job_of(&RequestId::new(request).unwrap()).unwrap();
    let rack = |no: NodeNo| state.node(no).unwrap().spec.rack.as_ref().unwrap().to_string();
    job.replicas.iter().filter_map(|replica| replica.allocation()).map(|alloc| rack(alloc.node)).collect()
}

fn told(state: &State, request: &str) -> Vec<Blocker> {
    super::super::explain::blockers(state, state.job_of(&RequestId::new(request).unwrap()).unwrap())
}

fn remedy(state: &State, request: &str) -> Vec<String> {
    super::super::explain::remedy(state, state.job_of(&RequestId::new(request).unwrap()).unwrap())
}

#[test]
fn the_tightest_rack_is_taken_and_the_other_stays_whole() {
    let mut state = two_racks();
    fill(&mut state, "b1", 1, 0);
    testing::run(&mut state, testing::schedule("gang", in_one_rack(3, 2, true)));
    assert_eq!(racks_of(&state, "gang"), ["b", "b", "b"]);
    let mut chosen = Chosen::from(Policy::Spread);
    chosen.preemption.delay_ms = 0;
    testing::run(&mut state, Intent::SetPlacement { chosen, seen: None });
    testing::run(&mut state, testing::schedule("roomy", in_one_rack(1, 1, true)));
    assert_eq!(racks_of(&state, "roomy"), ["a"]);
}

#[test]
fn a_gang_that_two_racks_hold_together_waits_and_is_told_what_each_has() {
    let mut state = two_racks();
    fill(&mut state, "a1", 2, 5);
    fill(&mut state, "b1", 4, 5);
    testing::run(&mut state, testing::schedule("gang", in_one_rack(4, 2, true)));
    let told = told(&state, "gang");
    let blocker = &told[0];
    assert!(!told.iter().any(|blocker| blocker.reason == Reason::NotEnoughForGang), "enough is there: {told:?}");
    assert_eq!(blocker.reason, Reason::TopologyPlacementFailed);
    let expected = "all 4 replicas must be in one rack: rack z/a has room for 3 of 4, rack z/b has room for 2 of 4; \
                    runs when enough there ends, or with a wider topology_required";
    assert_eq!((blocker.detail.as_str(), blocker.permanent), (expected, false));
    // One node more, and not in any rack.
    assert_eq!(remedy(&state, "gang"), ["add 1 node with 2 × GPU in rack z/a"]);
    add(&mut state, "c", "c", 2);
    testing::run(&mut state, Intent::PlaceWaiting);
    assert_eq!(racks_of(&state, "gang"), [""; 0], "a rack of its own is of no use");
    add(&mut state, "a3", "a", 2);
    testing::run(&mut state, Intent::PlaceWaiting);
    assert_eq!(racks_of(&state, "gang"), ["a"; 4]);
}

#[test]
fn what_no_rack_can_ever_hold_is_said_to_be_for_good() {
    let mut state = two_racks();
    testing::run(&mut state, testing::schedule("gang", in_one_rack(5, 2, true)));
    let told = told(&state, "gang");
    assert_eq!((told[0].reason, told[0].permanent), (Reason::TopologyPlacementFailed, true));
    assert!(told[0].detail.contains("none holds more than 4"), "{told:?}");
    let mut bare = State::new();
    unlimited(&mut bare);
    testing::run(&mut bare, testing::register("n1", testing::node_spec(8)));
    testing::run(&mut bare, testing::schedule("gang", in_one_rack(2, 1, true)));
    let told = super::super::explain::blockers(&bare, bare.jobs().values().next().unwrap());
    assert!(told[0].detail.contains("no node that could run it names its rack") && told[0].permanent, "{told:?}");
    assert!(told[0].detail.contains("1 nodes that could run it name no rack"), "{told:?}");
}

#[test]
fn room_is_freed_in_one_rack_though_elsewhere_it_is_cheaper() {
    let mut state = two_racks();
    // Two cheap victims in two racks would free enough, and not where it helps.
    fill(&mut state, "a1", 4, 1);
    fill(&mut state, "a2", 4, 8);
    fill(&mut state, "b1", 4, 1);
    fill(&mut state, "b2", 4, 5);
    let spec = JobSpec { priority: 10, ..in_one_rack(2, 4, true) };
    let claim = preempt::claim(&state, &spec, &[0, 1], &Limits::default()).unwrap();
    let gone: Vec<&str> = claim.victims.iter().map(|v| state.job(v.job).unwrap().request.as_str()).collect();
    assert_eq!(gone, ["b1-4-1", "b2-4-5"]);
    testing::run(&mut state, testing::schedule("gang", spec));
    let job = state.job_of(&RequestId::new("gang").unwrap()).unwrap();
    assert_eq!(job.claim.as_ref().map(|claim| claim.victims.len()), Some(2));
}

#[test]
fn later_replicas_go_beside_those_that_have_a_place() {
    let mut state = two_racks();
    fill(&mut state, "a1", 4, 5);
    testing::run(&mut state, testing::schedule("some", in_one_rack(5, 2, false)));
    assert_eq!(racks_of(&state, "some"), ["b"; 4], "the rack that holds most of it");
    let told = told(&state, "some");
    assert_eq!(told[0].reason, Reason::TopologyPlacementFailed, "{told:?}");
    assert!(told[0].detail.contains("in one rack, and 4 are: rack z/b has room for 0 of 1"), "{told:?}");
    testing::run(&mut state, Intent::PlaceWaiting);
    assert_eq!(racks_of(&state, "some").len(), 4, "what is free in the other rack is not for it");
    add(&mut state, "b3", "b", 2);
    testing::run(&mut state, Intent::PlaceWaiting);
    assert_eq!(racks_of(&state, "some"), ["b"; 5]);
}

#[test]
fn the_first_replica_does_not_tie_the_others_to_a_rack_that_never_holds_them() {
    let mut state = State::new();
    unlimited(&mut state);
    add(&mut state, "a1", "a", 1);
    add(&mut state, "b1", "b", 8);
    fill(&mut state, "b1", 8, 5);
    testing::run(&mut state, testing::schedule("some", in_one_rack(4, 1, false)));
    assert_eq!(racks_of(&state, "some"), [""; 0]);
    let told = told(&state, "some");
    assert!(told.iter().any(|blocker| blocker.detail.contains("rack z/b has room for 0 of 1")), "{told:?}");
    add(&mut state, "b2", "b", 4);
    testing::run(&mut state, Intent::PlaceWaiting);
    assert_eq!(racks_of(&state, "some"), ["b"; 4]);
}

#[test]
fn jobs_that_ask_alike_and_are_in_two_racks_do_not_speak_for_one_another() {
    let mut state = two_racks();
    testing::run(&mut state, testing::schedule("first", in_one_rack(4, 2, false)));
    testing::run(&mut state, testing::schedule("other", in_one_rack(4, 2, false)));
    assert_eq!(
        (racks_of(&state, "first"), racks_of(&state, "other")),
        (vec!["a".to_owned(); 4], vec!["b".to_owned(); 4])
    );
    // Each loses a replica and its node; only the second one's rack gets another.
    for name in ["a2", "b2"] {
        let node = state.node_named(&NodeName::new(name).unwrap()).unwrap().clone();
        for to in [crate::node::NodeState::Unknown, crate::node::NodeState::Down] {
            testing::run(&mut state, Intent::NodeStates(vec![(node.no, node.incarnation, to)]));
        }
    }
    add(&mut state, "b3", "b", 4);
    testing::run(&mut state, Intent::PlaceWaiting);
    assert_eq!((racks_of(&state, "first").len(), racks_of(&state, "other").len()), (2, 4));
}

#[test]
fn a_drain_moves_replicas_inside_their_rack_or_not_at_all() {
    let mut state = two_racks();
    fill(&mut state, "a2", 2, 5);
    testing::run(&mut state, testing::schedule("pair", JobSpec { priority: 1, ..in_one_rack(2, 2, false) }));
    let racks = racks_of(&state, "pair");
    let job = state.job_of(&RequestId::new("pair").unwrap()).unwrap().clone();
    let from = job.replicas[0].allocation().unwrap().node;
    let pick = crate::moves::place_for(&state, vec![from], &job, 0, job.replicas[0].revision);
    let rack = |no: NodeNo| state.node(no).unwrap().spec.rack.as_ref().unwrap().to_string();
    assert_eq!(pick.map(|pick| rack(pick.alloc.node)), Some(racks[1].clone()));
    // Without room there it stays where it is.
    let both: Vec<NodeNo> = state.nodes().values().filter(|n| rack(n.no) == racks[0]).map(|n| n.no).collect();
    assert!(crate::moves::place_for(&state, both, &job, 0, job.replicas[0].revision).is_none());
}

#[test]
fn who_moves_to_another_rack_draws_the_others_there() {
    let mut state = two_racks();
    testing::run(&mut state, testing::schedule("pair", in_one_rack(2, 2, false)));
    let mut job = (**state.job_of(&RequestId::new("pair").unwrap()).unwrap()).clone();
    let rack = |no: NodeNo| state.node(no).unwrap().spec.rack.as_ref().unwrap().to_string();
    let from = rack(job.replicas[0].home().unwrap());
    // The second one lost its place; the first one, alone now, is on its way to the other rack.
    job.replicas[1] = crate::job::Replica::waiting(job.revision, 0);
    let other = state.nodes().values().find(|node| rack(node.no) != from).unwrap().no;
    let alloc = crate::job::Allocation { node: other, ..job.replicas[0].allocation().unwrap().clone() };
    let (why, stage, revision) = (Reason::NodeDrain, crate::job::Stage::Scheduled, job.revision);
    let generation = crate::id::Generation(9);
    job.replicas[0].moving = Some(crate::job::Move::Coming { generation, alloc, stage, why, tries: 0, revision });
    let siblings = super::super::siblings(&job.replicas, &job.spec.constraints);
    let picks = super::super::place(&state, &job.spec, &[1], Limits { siblings, ..Limits::default() });
    assert_eq!(picks.iter().map(|(_, pick)| rack(pick.alloc.node)).collect::<Vec<_>>(), [rack(other)]);
}

#[test]
fn apply_refuses_places_in_two_racks() {
    let mut state = two_racks();
    let spec = Arc::new(in_one_rack(2, 1, false));
    let place = |node: &str, replica: u16| {
        let mut there = (*spec).clone();
        there.constraints.node = Some(NodeName::new(node).unwrap());
        place_one(&state, &there, &Limits::default()).unwrap().for_replica(replica)
    };
    let (here, there, beside) = (place("a1", 0), place("b1", 1), place("a2", 1));
    let submit = |state: &State, request: &str, placements: Vec<Placement>| {
        let Intent::Schedule { submission, .. } = testing::schedule(request, (*spec).clone()) else { unreachable!() };
        let commands = vec![Command::Submit { submission, placements, claim: None }];
        let batch = crate::command::Batch { base: state.meta().base, at_ms: 1, commands, ..Default::default() };
        let mut scratch = state.clone();
        match crate::apply::apply_batch(&mut scratch, &batch) {
            crate::apply::BatchOutcome::Applied(answers) => (scratch, answers[0].clone()),
            other => panic!("{other:?}"),
        }
    };
    let (_, refused) = submit(&state, "split", vec![here.clone(), there.clone()]);
    assert_eq!(refused.unwrap_err().reason, Reason::PlanChanged);
    let (_, taken) = submit(&state, "whole", vec![here.clone(), beside.clone()]);
    assert!(taken.is_ok());
    // Also of a replica that comes later.
    let (with_one, _) = submit(&state, "later", vec![here]);
    state = with_one;
    let job = state.job_of(&RequestId::new("later").unwrap()).unwrap().no;
    for (placement, fits) in [(there, false), (beside, true)] {
        let commands = vec![Command::Place { job, placements: vec![placement] }];
        let batch = crate::command::Batch { base: state.meta().base, at_ms: 1, commands, ..Default::default() };
        let crate::apply::BatchOutcome::Applied(answers) = crate::apply::apply_batch(&mut state.clone(), &batch) else {
            panic!("superseded")
        };
        assert_eq!(answers[0].is_ok(), fits, "{answers:?}");
    }
}

#[test]
fn nodes_are_kept_for_a_gang_in_one_rack() {
    let mut state = two_racks();
    for node in ["a1", "a2", "b1", "b2"] {
        let mut spec = testing::job_spec("t1", Gpus::Whole(if node.starts_with('a') { 4 } else { 3 }));
        spec.constraints.node = Some(NodeName::new(node).unwrap());
        spec.constraints.restart = crate::job::Restart::Never;
        testing::run(&mut state, testing::schedule(node, spec));
    }
    testing::run(&mut state, testing::schedule("gang", in_one_rack(2, 3, true)));
    let kept = super::super::queue::kept_nodes(&state, 0);
    let racks: BTreeSet<_> = kept.iter().map(|no| state.node(*no).unwrap().spec.rack.clone()).collect();
    assert_eq!((kept.len(), racks.len()), (2, 1), "{kept:?}");
    assert!(plan(&state, &Intent::PlaceWaiting).unwrap().commands.is_empty());
}

#[test]
fn what_is_preferred_is_narrower_than_what_is_required() {
    let mut state = two_racks();
    let mut wish = |required, preferred| {
        let mut spec = in_one_rack(2, 1, true);
        spec.constraints.topology = Topology { required: Some(required), preferred: Some(preferred) };
        testing::try_run(&mut state, testing::schedule("wish", spec)).map_err(|refusal| refusal.field)
    };
    for (required, preferred) in [(Level::Rack, Level::Rack), (Level::Rack, Level::Zone)] {
        assert_eq!(wish(required, preferred), Err(Some("constraints.topology_preferred".to_owned())));
    }
    assert!(wish(Level::Zone, Level::Rack).is_ok());
    assert_eq!(racks_of(&state, "wish").len(), 2);
}
