//! Replays of the autoscaler against the rules that others use.

#![allow(clippy::unwrap_used, clippy::float_arithmetic)]

use nf_core::autoscaler::Service;
use nf_core::autoscaler::replay::table::{self, TARGETS_M, Terms};
use nf_core::autoscaler::replay::{Outcome, Rule, Shape, load};

fn show(name: &str, o: &Outcome, oracle: &Outcome) {
    let times = o.replica_ms * 1000 / oracle.replica_ms;
    println!(
        "  {name:12} {:7}.{:03} % {:4}.{:03} most {}",
        o.attainment_m() / 1000,
        o.attainment_m() % 1000,
        times / 1000,
        times % 1000,
        o.most
    );
}

#[test]
#[ignore]
fn explore() {
    let var = |name: &str, default: &str| std::env::var(name).unwrap_or(default.to_owned());
    let shapes: Vec<Shape> = match var("SHAPES", "all").as_str() {
        "all" => Shape::ALL.to_vec(),
        list => list.split(',').map(|n| Shape::parse(n).unwrap()).collect(),
    };
    let n = |name: &str, default: &str| var(name, default).parse::<u64>().unwrap();
    for shape in shapes {
        for seed in 0..n("SEEDS", "1") {
            let service = Service {
                tick_ms: n("TICK", "5") * 1000,
                cold_start_ms: if shape == Shape::Conversation { 20_000 } else { n("COLD", "90") * 1000 },
                min: n("MIN", "1") as u32,
                max: n("MAX", "200") as u32,
                slots: n("SLOTS", "16") as u32,
                wait_ms: n("WAIT", "2000"),
                service_ms: n("SERVICE", "2000"),
                gpus: 1,
            };
            let load = load::make(shape, seed, n("PEAK", "80") * 1000, service.service_ms);
            let terms = Terms { service, start: None, impatient: n("IMPATIENT", "0") == 1 };
            let oracle = terms.play(&load, Rule::Oracle).unwrap();
            println!("{} seed {seed}: {} requests", shape.name(), load.requests.len());
            show("oracle", &oracle, &oracle);
            let nf = terms.play(&load, Rule::Nf).unwrap();
            show("nf", &nf, &oracle);
            let peak = table::peak(&service, &load, u64::MAX);
            if n("SCORES", "0") == 1 {
                let mut policy =
                    nf_core::autoscaler::replay::Product(nf_core::autoscaler::Autoscaler::new(service).unwrap());
                nf_core::autoscaler::replay::run(&service, &load, &mut policy, 2, terms.impatient);
                let choice = policy.0.choice().unwrap();
                let r = choice.reference.stage.score;
                println!("    ref {} {}", r.attained_ppm(), r.cost / 1000);
                for (i, s) in choice.shadows.iter().enumerate() {
                    let sc = s.stage.score;
                    println!(
                        "    {i} {:?} {} {:.3}{}",
                        s.care,
                        sc.attained_ppm(),
                        sc.cost as f64 / r.cost as f64,
                        if i == usize::from(choice.index()) { " <==" } else { "" }
                    );
                }
            }
            for (name, rule) in [
                ("hpa", Rule::Hpa(700)),
                ("kpa", Rule::Kpa(700)),
                ("peak", Rule::Fixed(peak)),
                ("mean", Rule::Fixed(table::mean(&service, &load))),
            ] {
                show(name, &terms.play(&load, rule).unwrap(), &oracle);
            }
            if n("TUNED", "1") == 1 {
                for target in TARGETS_M {
                    for (name, rule) in [("hpa", Rule::Hpa(target)), ("kpa", Rule::Kpa(target))] {
                        let o = terms.play(&load, rule).unwrap();
                        if (o.in_time > nf.in_time && o.replica_ms <= nf.replica_ms) || n("TUNED", "1") == 2 {
                            show(&format!("! {name} {target}"), &o, &oracle);
                        }
                    }
                }
            }
        }
    }
}
