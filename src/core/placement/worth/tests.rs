//! The tables say what the definition says, computed here the slow way.

use super::*;
use crate::id::{DeviceType, NodeNo};
use crate::placement::trial::{Trial, TrialNode, Whereabouts};
use crate::placement::{Policy, mix::Mix};
use crate::resources::Resources;
use crate::sim::Rng;

fn a_type(name: &str) -> DeviceType {
    DeviceType::new(name).unwrap()
}

fn mix() -> Mix {
    let mut mix = Mix::default();
    let mut add = |gpu, cpu_milli, types: &[&str], times| {
        let device_types = types.iter().map(|t| a_type(t)).collect();
        mix.add(&Resources { gpu, cpu_milli, device_types, ..Resources::default() }, times);
    };
    add(Gpus::Milli(810), 3000, &[], 30);
    add(Gpus::Milli(190), 500, &[], 10);
    add(Gpus::Whole(1), 11_000, &[], 40);
    add(Gpus::Whole(1), 0, &["T4"], 5);
    add(Gpus::Whole(4), 20_000, &[], 5);
    add(Gpus::None, 9000, &[], 10);
    mix
}

fn nodes() -> Vec<TrialNode> {
    let node = |gpus, kind: &str, cpu_milli| TrialNode {
        cpu_milli,
        memory: 1 << 40,
        gpus,
        device_type: Some(a_type(kind)),
        place: Whereabouts::default(),
    };
    vec![node(8, "G2", 96_000), node(2, "T4", 104_000), node(4, "V100", 32_000)]
}

#[test]
fn the_tables_say_what_the_definition_says() {
    let trial = Trial::new(&nodes(), Policy::Fragmentation);
    let index = trial.state().capacity();
    let top = mix().top();
    let worth = Worth::new(&mix(), index);
    let open: Vec<i64> = top.iter().map(|(shape, _)| open(shape, index)).collect();
    let weights = weights(&top, &open, index);
    let mut rng = Rng::new(5);
    for (no, node) in nodes().iter().enumerate() {
        let class = index.class(NodeNo(no as u32)).unwrap();
        for _ in 0..300 {
            let cpu = rng.below(node.cpu_milli);
            let free: Vec<u16> = (0..node.gpus).map(|_| *rng.pick(&[0, 190, 500, 810, 1000, 1000])).collect();
            let slow = slowly(&top, &weights, node, cpu, &free);
            let fast = worth.of(class.flavor.hardware, cpu, &free).unwrap();
            // The tables round in another order: less than a thousandth of a device in all.
            assert!((slow - fast).abs() < UNIT, "{slow} {fast}: {node:?} {cpu} {free:?}");
        }
    }
}

#[test]
fn what_is_left_is_told_without_summing_up_anew() {
    let trial = Trial::new(&nodes(), Policy::Fragmentation);
    let index = trial.state().capacity();
    let worth = Worth::new(&mix(), index);
    let mut rng = Rng::new(6);
    for (no, node) in nodes().iter().enumerate() {
        let hardware = index.class(NodeNo(no as u32)).unwrap().flavor.hardware;
        for _ in 0..300 {
            let cpu = rng.below(node.cpu_milli);
            let free: Vec<u16> = (0..node.gpus).map(|_| *rng.pick(&[0, 190, 500, 810, 1000, 1000])).collect();
            let ready = worth.ready(hardware, &free).unwrap();
            let of = |free: &[u16]| worth.of(hardware, cpu, free).unwrap();
            assert_eq!(ready.all(cpu), of(&free));
            for device in 0..free.len() {
                let mut less = free.clone();
                if free[device] == 1000 {
                    less[device] = 0;
                    assert_eq!(ready.without_whole(cpu, 1), of(&less), "{cpu} {free:?}");
                }
                if free[device] >= 190 {
                    less[device] = free[device] - 190;
                    assert_eq!(ready.without_part(cpu, 190)(free[device]), of(&less), "{cpu} {free:?}, {device}");
                }
            }
        }
    }
}

fn usable(shape: &Shape, node: &TrialNode, cpu: u64, free: &[u16]) -> i64 {
    let suits = shape.device_types.is_empty() || shape.device_types.contains(node.device_type.as_ref().unwrap());
    let whole = free.iter().filter(|f| **f == 1000).count();
    let least = match shape.gpu {
        Gpus::None => return 0,
        Gpus::Whole(n) if usize::from(n) > whole => return 0,
        Gpus::Whole(_) => 1000,
        Gpus::Milli(milli) => milli,
    };
    let open = suits && shape.cpu_milli <= cpu;
    if open { free.iter().filter(|f| **f >= least).map(|f| i64::from(*f)).sum() } else { 0 }
}

fn open(shape: &Shape, index: &CapacityIndex) -> i64 {
    let full = |no: usize, node: &TrialNode| {
        let class = index.class(NodeNo(no as u32)).unwrap();
        let free: Vec<u16> = class.devices.iter().map(|d| d.milli).collect();
        usable(shape, node, class.cpu_milli, &free)
    };
    nodes().iter().enumerate().map(|(no, node)| full(no, node)).sum()
}

fn slowly(top: &[(Arc<Shape>, i64)], weights: &[Weight], node: &TrialNode, cpu: u64, free: &[u16]) -> i64 {
    let idle: i64 = free.iter().map(|f| i64::from(*f)).sum();
    let mut sum = 0;
    for ((shape, _), weight) in top.iter().zip(weights) {
        sum += weight.usable * usable(shape, node, cpu, free);
        let suits = shape.device_types.is_empty() || shape.device_types.contains(node.device_type.as_ref().unwrap());
        if suits && shape.cpu_milli > 0 && shape.gpu != Gpus::None {
            let follows = shape.gpu.milli() as i64 * cpu as i64 / shape.cpu_milli as i64;
            sum -= weight.lacking * (idle - follows).max(0) * LACKING / 100;
        }
    }
    sum
}

#[test]
fn what_is_open_to_few_counts_more() {
    let trial = Trial::new(&nodes(), Policy::Fragmentation);
    let (top, index) = (mix().top(), trial.state().capacity());
    let open: Vec<i64> = top.iter().map(|(shape, _)| open(shape, index)).collect();
    let weights = weights(&top, &open, index);
    let of = |wanted: &dyn Fn(&Shape) -> bool| {
        let at = top.iter().position(|(shape, _)| wanted(shape)).unwrap();
        weights[at].usable * 1000 / top[at].1
    };
    assert!(of(&|s| !s.device_types.is_empty()) > 3 * of(&|s| s.gpu == Gpus::Milli(810)));
}

#[test]
fn nothing_is_known_without_a_workload() {
    let trial = Trial::new(&nodes(), Policy::Fragmentation);
    assert!(Worth::new(&Mix::default(), trial.state().capacity()).is_empty());
}
