//! Replays of the autoscaler against the rules that others use.

#![allow(clippy::unwrap_used, clippy::float_arithmetic)]
#![allow(clippy::disallowed_methods, reason = "tests have an environment; the core has not")]

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
    if std::env::var("MATRIX").is_ok() {
        return matrix();
    }
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
                scores(&service, &load, terms.impatient);
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

struct Watched(nf_core::autoscaler::Autoscaler, u16);

impl nf_core::autoscaler::replay::Policy for Watched {
    fn desired(&mut self, signals: &nf_core::autoscaler::Signals) -> u32 {
        let d = self.0.step(signals);
        let care = self.0.choice().map_or(0, |c| c.index());
        if care != self.1 || std::env::var("EACH").is_ok() {
            self.1 = care;
            let c = self.0.choice().unwrap();
            let (s, r) = (c.chosen().stage.score, c.reference.stage.score);
            println!(
                "    {:6} s {care} {:?} shadow {} {:.3} desired {} {} need {} held {} backlog {} rate {} season {} q {:?} ready {:?}",
                signals.at_ms / 1000,
                c.chosen().care,
                s.attained_ppm(),
                s.cost as f64 / r.cost as f64,
                d.desired,
                d.why,
                d.inputs.need,
                d.inputs.held,
                d.inputs.backlog,
                d.inputs.rate_m,
                d.inputs.season_m,
                d.inputs.queue_m.map(|q| q / 1000),
                d.inputs.ready
            );
        }
        d.desired
    }
}

fn scores(service: &Service, load: &nf_core::autoscaler::replay::Load, impatient: bool) {
    let mut policy = Watched(nf_core::autoscaler::Autoscaler::new(*service).unwrap(), 0);
    nf_core::autoscaler::replay::run(service, load, &mut policy, 2, impatient);
    let choice = policy.0.choice().unwrap();
    let r = choice.reference.stage.score;
    println!("    ref {} {}", r.attained_ppm(), r.cost / 1000);
    for (i, s) in choice.shadows.iter().enumerate() {
        let sc = s.stage.score;
        let mark = if i == usize::from(choice.index()) { " <==" } else { "" };
        println!("    {i} {:?} {} {:.3}{mark}", s.care, sc.attained_ppm(), sc.cost as f64 / r.cost as f64);
    }
}

fn matrix() {
    let var = |name: &str, default: u64| std::env::var(name).map_or(default, |v| v.parse().unwrap());
    let mut rng = nf_core::sim::Rng::new(var("RNG", 1));
    for round in 0..var("ROUNDS", 10) {
        let service = Service {
            tick_ms: *rng.pick(&[2, 5, 10, 15]) * 1000,
            cold_start_ms: *rng.pick(&[20, 45, 90, 180]) * 1000,
            min: *rng.pick(&[0, 1, 1, 2]),
            max: 0,
            slots: *rng.pick(&[4, 8, 16, 32]),
            wait_ms: *rng.pick(&[1000, 2000, 2000, 5000]),
            service_ms: *rng.pick(&[1500, 4000, 10_000]),
            gpus: 1,
        };
        let replicas = *rng.pick(&[4, 10, 24]);
        let service = Service { max: replicas * *rng.pick(&[12, 15, 25]) as u32 / 10 + 1, ..service };
        let peak_m = u64::from(replicas) * u64::from(service.slots) * 1_000_000 / service.service_ms;
        let impatient = rng.chance(250);
        if var("ROUND", round) != round {
            continue;
        }
        println!("## {round}: {service:?} replicas {replicas}");
        for shape in Shape::ALL {
            if let Ok(only) = std::env::var("SHAPES")
                && !only.split(',').any(|n| n == shape.name())
            {
                continue;
            }
            let load = load::make(shape, round + var("RNG", 1) * 100, peak_m, service.service_ms);
            let terms = Terms { service, start: None, impatient };
            let oracle = terms.play(&load, Rule::Oracle).unwrap();
            let nf = terms.play(&load, Rule::Nf).unwrap();
            let kpa = terms.play(&load, Rule::Kpa(700)).unwrap();
            if var("SCORES", 0) == 1 {
                scores(&service, &load, impatient);
            }
            let ratio = |o: &Outcome| o.replica_ms as f64 / oracle.replica_ms as f64;
            let pct = |o: &Outcome| o.attainment_m() as f64 / 1000.0;
            let ok = if shape.smooth() {
                (pct(&nf) < 99.0 || ratio(&nf) > 1.15).then_some("SMOOTH")
            } else {
                (pct(&nf) < (pct(&kpa) + 10.0).min(99.0) || nf.replica_ms > kpa.replica_ms).then_some("BURSTY")
            };
            let mut worse = String::new();
            if var("TUNED", 0) == 1 {
                for t in TARGETS_M {
                    for rule in [Rule::Hpa(t), Rule::Kpa(t)] {
                        if table::dominates(&terms.play(&load, rule).unwrap(), &nf) {
                            worse += &format!(" !{}", rule.name());
                        }
                    }
                }
                for rule in [Rule::Peak, Rule::Mean] {
                    let o = terms.play(&load, rule).unwrap();
                    if table::dominates(&o, &nf) {
                        worse += &format!(" !{} {:.2}/{:.3}", rule.name(), pct(&o), ratio(&o));
                    }
                }
            }
            println!(
                "  {:14} n={:8} imp={} oracle {:6.2} nf {:6.2}/{:.3} kpa {:6.2}/{:.3} {} {}",
                shape.name(),
                load.requests.len(),
                impatient as u8,
                pct(&oracle),
                pct(&nf),
                ratio(&nf),
                pct(&kpa),
                ratio(&kpa),
                ok.unwrap_or(""),
                worse
            );
        }
    }
}
