//! A ranking says what a scan says, whatever happens between two looks at it.

use super::super::{place_one, scan};
use super::*;
use crate::id::{Label, NodeNo};
use crate::job::Restart;
use crate::job::Runtime;
use crate::node::{Cordon, ENGINE_LABEL, Node, NodeSpec, NodeState};
use crate::resources::Gpus;
use crate::sim::Rng;
use crate::testing;

fn asks(rng: &mut Rng) -> JobSpec {
    let gpu = match rng.below(3) {
        0 => Gpus::Whole(rng.between(1, 4) as u16),
        1 => Gpus::None,
        _ => Gpus::Milli(250 * rng.between(1, 3) as u16),
    };
    let mut spec = testing::job_spec("t1", gpu);
    spec.resources.cpu_milli = 1000 * rng.below(3);
    spec.constraints.arrangement = *rng.pick(&[Arrangement::Any, Arrangement::Pack, Arrangement::Spread]);
    if rng.below(3) == 0 {
        spec.runtime = Runtime::Docker;
    }
    spec
}

/// A node, of which one in two reaches a container engine.
fn node(rng: &mut Rng) -> NodeSpec {
    let mut spec = testing::node_spec(rng.between(1, 8) as u16);
    if rng.chance(500) {
        spec.labels.insert(Label::new(ENGINE_LABEL).unwrap(), Label::new("docker").unwrap());
    }
    spec
}

/// Something happens: a place is taken or left, a node is cordoned, comes, or falls silent, the rules change.
fn happen(state: &mut State, rng: &mut Rng, taken: &mut Vec<(JobSpec, crate::job::Allocation)>) {
    let some = NodeNo(rng.between(1, state.nodes().len() as u64) as u32);
    match rng.below(12) {
        0 => {
            let name = format!("later-{}", state.nodes().len());
            testing::run(state, testing::register(&name, node(rng)));
        }
        1 => {
            let node = (**state.node(some).unwrap()).clone();
            let cordon =
                node.cordon.is_none().then(|| Cordon { by: "a".into(), reason: "".into(), at_ms: 0, drain: None });
            state.put_node(Node { cordon, ..node });
        }
        2 => {
            let node = (**state.node(some).unwrap()).clone();
            let to = if node.state == NodeState::Ready { NodeState::Suspect } else { NodeState::Ready };
            state.put_node(Node { state: to, ..node });
        }
        3 => {
            let policy = *rng.pick(&[Policy::Fragmentation, Policy::BestFit, Policy::Cost, Policy::Latency]);
            state.set_placement(policy.into());
        }
        4..=6 if !taken.is_empty() => {
            let (spec, alloc) = taken.swap_remove(rng.below(taken.len() as u64) as usize);
            state.unbook(&spec, 0, &alloc);
        }
        _ => {
            let spec = asks(rng);
            if let Some(pick) = place_one(state, &spec, &Limits::default()) {
                state.book(&spec, 0, &pick.alloc);
                taken.push((spec, pick.alloc));
            }
        }
    }
}

#[test]
fn a_ranking_finds_what_a_scan_finds() {
    let mut compared = 0;
    for seed in 1..=60 {
        let mut rng = Rng::new(seed);
        let mut state = State::new();
        for i in 0..24 {
            testing::run(&mut state, testing::register(&format!("n{i}"), node(&mut rng)));
        }
        state.mix.add(&asks(&mut rng).resources, 40);
        state.make_rules(1);
        let mut known: Vec<JobSpec> = (0..3).map(|_| asks(&mut rng)).collect();
        // The same but for its program.
        let runtime = if known[0].needs_engine() { Runtime::Process } else { Runtime::Docker };
        known.push(JobSpec { runtime, ..known[0].clone() });
        let mut taken = Vec::new();
        for step in 0..120 {
            happen(&mut state, &mut rng, &mut taken);
            let spec = rng.pick(&known).clone();
            if rng.below(3) > 0 {
                state.stand(&spec);
            }
            let nodes = state.nodes().len() as u64;
            let mut some = || NodeNo(rng.between(1, nodes) as u32);
            let held = BTreeSet::from([some(), some()]).into_iter().collect();
            let siblings = (0..3).map(|i| (some(), i)).collect();
            for limits in [Limits::default(), Limits { held, siblings, ..Limits::default() }] {
                let Some(ranked) = find(&state, &spec, &limits) else { continue };
                compared += 1;
                let said = |found: Option<Found>| {
                    found.map(|f| (f.score, f.node, f.terms, f.device, f.runner_up, f.candidates))
                };
                assert_eq!(said(ranked), said(scan(&state, &spec, &limits)), "seed {seed}, step {step}: {spec:?}");
            }
        }
    }
    assert!(compared > 3_000, "{compared}");
}

#[test]
fn asks_that_do_not_come_again_give_their_place_up_and_others_keep_it() {
    let mut state = State::new();
    for i in 0..WORTH_IT + 1 {
        testing::run(&mut state, testing::register(&format!("n{i}"), testing::node_spec(1 + i as u16)));
    }
    let ask = |milli: u16| testing::job_spec("t1", Gpus::Milli(milli));
    for turn in 0..2 * MOST as u16 {
        state.stand(&ask(1 + turn));
        state.stand(&ask(999));
    }
    assert_eq!(state.standings.asked.len(), MOST);
    for _ in 0..IDLE {
        state.stand(&ask(999));
    }
    state.stand(&ask(900));
    assert_eq!(state.standings.asked.len(), MOST);
    let ranked = |milli| {
        let spec = ask(milli);
        state.standings.asked.get(&Shape::of(&Ask::of(&state, &spec))).map(|asked| asked.ranking.is_some())
    };
    assert_eq!((ranked(999), ranked(900), ranked(1)), (Some(true), Some(false), None));
}

#[test]
fn how_a_job_runs_and_ends_makes_no_ask_of_its_own() {
    let state = State::new();
    let plain = testing::job_spec("t1", Gpus::Whole(1));
    let shape = |change: fn(&mut JobSpec)| {
        let mut spec = plain.clone();
        change(&mut spec);
        Shape::of(&Ask::of(&state, &spec))
    };
    let same: [fn(&mut JobSpec); 8] = [
        |spec| spec.constraints.max_run_ms = Some(5),
        |spec| spec.constraints.latency_ms = Some(5),
        |spec| spec.constraints.checkpoint_ms = Some(5),
        |spec| spec.constraints.max_unavailable = Some(5),
        |spec| spec.constraints.exclusive = true,
        |spec| spec.constraints.stay = true,
        |spec| spec.constraints.preemptible = true,
        |spec| spec.constraints.restart = Restart::Never,
    ];
    assert!(same.iter().all(|change| shape(*change) == shape(|_| ())));
    let another: [fn(&mut JobSpec); 4] = [
        |spec| spec.constraints.arrangement = Arrangement::Spread,
        |spec| spec.constraints.same_island = true,
        |spec| spec.constraints.max_cost_per_hour = Some(5),
        |spec| spec.resources.cpu_milli = 5,
    ];
    assert!(another.iter().all(|change| shape(*change) != shape(|_| ())));
}
