//! Replays of the autoscaler against the rules that others use, on loads and
//! services that nobody tuned it to, and what must hold whatever it is fed. The
//! replays' figures are printed with `-- --nocapture`; bars have slack for seeds.

// Helpers of tests are tests: a panic in them is a failed test with a line number.
#![allow(clippy::unwrap_used)]

use nf_core::autoscaler::replay::table::{self, Terms};
use nf_core::autoscaler::replay::{Load, Outcome, Policy, Rule, Shape, load};
use nf_core::autoscaler::{Autoscaler, Decision, Reading, Service, Signals, Why};
use nf_core::sim::Rng;
use proptest::prelude::*;

/// Thousandths of the oracle's replica-hours.
fn times(outcome: &Outcome, oracle: &Outcome) -> u64 {
    outcome.replica_ms * 1000 / oracle.replica_ms
}

/// A service that a seed chooses, with its load: from few to many slots, quick to slow starts.
fn world(shape: Shape, seed: u64) -> (Terms, Load) {
    let mut rng = Rng::new(seed * 1000 + shape as u64);
    let slots = *rng.pick(&[8, 16, 32]);
    let service_ms = *rng.pick(&[1_000, 2_000, 3_000]);
    let replicas = rng.between(5, 10);
    let service = Service {
        tick_ms: *rng.pick(&[2_000, 5_000, 15_000]),
        cold_start_ms: if shape == Shape::Conversation { 20_000 } else { *rng.pick(&[45_000, 90_000]) },
        min: u32::try_from(rng.below(2)).unwrap(),
        max: u32::try_from(replicas * 5 / 2).unwrap(),
        slots,
        service_ms,
        ..Service::default()
    };
    let peak_m = replicas * u64::from(slots) * 1_000_000 / service_ms * 9 / 10;
    (Terms { service, start: None, impatient: false }, load::make(shape, seed, peak_m, service_ms))
}

struct Played {
    nf: Outcome,
    kpa: Outcome,
    oracle: Outcome,
}

fn play(shape: Shape, seed: u64) -> (Terms, Load, Played) {
    let (terms, load) = world(shape, seed);
    let of = |rule| terms.play(&load, rule).unwrap();
    let played = Played { nf: of(Rule::Nf), kpa: of(Rule::Kpa(700)), oracle: of(Rule::Oracle) };
    let Played { nf, kpa, oracle } = &played;
    println!(
        "{:13} {seed:2} nf {:6} at {:4}, kpa {:6} at {:4} (thousandths of a percent in time, of the oracle's cost)",
        shape.name(),
        nf.attainment_m(),
        times(nf, oracle),
        kpa.attainment_m(),
        times(kpa, oracle)
    );
    (terms, load, played)
}

/// Nobody tells the daemon how long a model's requests take: a label takes milliseconds, an answer of a language model
/// half a minute.
#[test]
fn how_long_requests_take_need_not_be_told() {
    for (service_ms, slots, replicas) in [(8, 8, 3u64), (1_000, 8, 6), (35_000, 64, 3), (30_000, 8, 8)] {
        let service = Service { cold_start_ms: 30_000, min: 1, max: 40, slots, ..Service::default() };
        let peak_m = replicas * u64::from(slots) * 1_000_000 / service_ms * 9 / 10;
        let load = load::make(Shape::Steady, 3, peak_m, service_ms);
        let played = |service_ms, service_guessed| {
            let service = Service { service_ms, service_guessed, ..service };
            Terms { service, start: Some(1), impatient: false }.play(&load, Rule::Nf).unwrap()
        };
        let (told, guessed) = (played(service_ms, false), played(1_000, true));
        println!(
            "{service_ms} ms: told {} at {}, guessed {} at {}",
            told.attainment_m(),
            told.replica_ms,
            guessed.attainment_m(),
            guessed.replica_ms
        );
        assert!(guessed.attainment_m() + 6_000 >= told.attainment_m(), "{service_ms} ms: too few");
        assert!(guessed.replica_ms <= told.replica_ms * 5 / 4, "{service_ms} ms: too many");
    }
}

#[test]
fn smooth_loads_are_served_at_hardly_more_than_the_oracles_cost() {
    for shape in [Shape::Steady, Shape::Diurnal, Shape::Ramp, Shape::Conversation] {
        for seed in 1..=2 {
            let (_, _, Played { nf, oracle, .. }) = play(shape, seed);
            assert!(nf.attainment_m() >= 99_000, "{} {seed}: {}", shape.name(), nf.attainment_m());
            assert!(times(&nf, &oracle) <= 1_150, "{} {seed}: {}", shape.name(), times(&nf, &oracle));
        }
    }
}

#[test]
fn bursts_with_a_rhythm_are_foreseen_at_no_more_than_the_reactive_rules_cost() {
    for shape in [Shape::Bursts, Shape::OnOff] {
        let (mut gained, mut paid, mut kpas) = (0, 0, 0);
        for seed in 1..=4 {
            let (_, _, Played { nf, kpa, .. }) = play(shape, seed);
            gained += nf.attainment_m() as i64 - kpa.attainment_m() as i64;
            (paid, kpas) = (paid + nf.replica_ms, kpas + kpa.replica_ms);
            assert!(nf.attainment_m() >= kpa.attainment_m(), "{} {seed}", shape.name());
            assert!(nf.replica_ms <= kpa.replica_ms * 105 / 100, "{} {seed}", shape.name());
        }
        assert!(gained / 4 >= 6_000 && paid <= kpas, "{}: {gained} at {paid} of {kpas}", shape.name());
    }
}

#[test]
fn what_nobody_can_foresee_is_at_least_not_paid_for() {
    for shape in [Shape::RandomBursts, Shape::RandomOnOff] {
        let (mut gained, mut paid, mut kpas) = (0, 0, 0);
        for seed in 1..=3 {
            let (_, _, Played { nf, kpa, .. }) = play(shape, seed);
            gained += nf.attainment_m() as i64 - kpa.attainment_m() as i64;
            (paid, kpas) = (paid + nf.replica_ms, kpas + kpa.replica_ms);
        }
        assert!(gained > -1_000 && paid <= kpas * 102 / 100, "{}: {gained} at {paid} of {kpas}", shape.name());
    }
}

/// The service of `nf sim autoscale` when nothing else is said.
fn usual(shape: Shape, seed: u64) -> (Terms, Load) {
    let service = Service { min: 1, ..Service::default() };
    (Terms { service, start: None, impatient: false }, load::make(shape, seed, 80_000, service.service_ms))
}

#[test]
fn whoever_keeps_the_busiest_minutes_replicas_all_the_time_does_not_pay_less() {
    for shape in [Shape::OnOff, Shape::RandomOnOff] {
        for seed in 1..=3 {
            let (terms, load) = usual(shape, seed);
            let (nf, peak) = (terms.play(&load, Rule::Nf).unwrap(), terms.play(&load, Rule::Peak).unwrap());
            println!("{} {seed}: {} at {} of {}", shape.name(), nf.attainment_m(), nf.replica_ms, peak.replica_ms);
            assert!(nf.replica_ms < peak.replica_ms, "{} {seed}", shape.name());
            assert!(nf.attainment_m() >= 98_500, "{} {seed}: {}", shape.name(), nf.attainment_m());
        }
    }
}

#[test]
fn bursts_at_random_are_met_by_who_is_ready_when_they_are_overdue() {
    let mut gained = 0;
    for seed in 1..=4 {
        let (terms, load) = usual(Shape::RandomBursts, seed);
        let (nf, kpa) = (terms.play(&load, Rule::Nf).unwrap(), terms.play(&load, Rule::Kpa(700)).unwrap());
        println!("{seed}: {} of {} at {} of {}", nf.attainment_m(), kpa.attainment_m(), nf.replica_ms, kpa.replica_ms);
        assert!(nf.replica_ms <= kpa.replica_ms, "{seed}");
        gained += nf.attainment_m() as i64 - kpa.attainment_m() as i64;
    }
    assert!(gained / 4 >= 10_000, "{gained}");
}

#[test]
fn no_rule_is_better_in_both_not_even_in_hindsight() {
    for shape in [Shape::Ramp, Shape::Bursts, Shape::OnOff, Shape::Conversation] {
        let (terms, load, Played { nf, .. }) = play(shape, 1);
        for target in [300, 500, 600, 700, 800, 850, 900, 950, 1000] {
            for rule in [Rule::Hpa(target), Rule::Kpa(target)] {
                let other = terms.play(&load, rule).unwrap();
                assert!(!table::dominates(&other, &nf), "{} is better on {}", rule.name(), shape.name());
            }
        }
        for rule in [Rule::Peak, Rule::Mean] {
            assert!(!table::dominates(&terms.play(&load, rule).unwrap(), &nf), "{}", rule.name());
        }
    }
}

/// Long lulls, in which being ready costs most of what the reactive rule would have paid.
#[test]
fn who_is_in_debt_pays_it_back_while_bursts_go_on() {
    let (terms, load) = usual(Shape::RandomBursts, 109);
    let (nf, kpa) = (terms.play(&load, Rule::Nf).unwrap(), terms.play(&load, Rule::Kpa(700)).unwrap());
    assert!(nf.replica_ms <= kpa.replica_ms, "{} of {}", nf.replica_ms, kpa.replica_ms);
    assert!(nf.attainment_m() >= kpa.attainment_m() + 10_000, "{} of {}", nf.attainment_m(), kpa.attainment_m());
}

/// Loads whose first minutes were told too little of: a tick that nobody counted, a start that was given up at once.
#[test]
fn the_first_minutes_make_no_rule_better_in_both() {
    let (terms, load) = usual(Shape::Steady, 2);
    let nf = terms.play(&load, Rule::Nf).unwrap();
    assert!(!table::dominates(&terms.play(&load, Rule::Peak).unwrap(), &nf), "{}", nf.attainment_m());
    let (mut terms, load) = usual(Shape::Conversation, 6);
    terms.service.cold_start_ms = 20_000;
    let nf = terms.play(&load, Rule::Nf).unwrap();
    for target in [900, 950, 1000] {
        let kpa = terms.play(&load, Rule::Kpa(target)).unwrap();
        assert!(!table::dominates(&kpa, &nf), "{target}: {} of {}", kpa.attainment_m(), nf.attainment_m());
    }
}

/// Remembers what it was told and what it said.
struct Recorded(Autoscaler, Vec<(Signals, Decision)>);

impl Policy for Recorded {
    fn desired(&mut self, signals: &Signals) -> u32 {
        let decision = self.0.step(signals);
        self.1.push((*signals, decision));
        decision.desired
    }
}

#[test]
fn a_journal_played_again_gives_the_same_decisions() {
    let (terms, load) = world(Shape::OnOff, 9);
    let mut first = Recorded(Autoscaler::new(terms.service).unwrap(), Vec::new());
    nf_core::autoscaler::replay::run(&terms.service, &load, &mut first, 2, false);
    let mut again = Autoscaler::new(terms.service).unwrap();
    assert!(first.1.len() > 1_000);
    for (signals, decision) in &first.1 {
        assert_eq!(&again.step(signals), decision);
    }
}

/// Prometheus is silent for ten minutes in the middle of the peak, then tells nonsense for ten more.
#[test]
fn an_outage_of_the_signals_takes_nothing_down() {
    let nonsense = ["nan", "-", "-1", "1e300", "inf", "", "garbage"];
    for seed in 1..=5 {
        let mut rng = Rng::new(seed);
        let mut scaler = Autoscaler::new(Service::default()).unwrap();
        let good = |at: u64, ready: u32| Signals {
            at_ms: at * 1000,
            ready: Reading::of(ready.into()),
            starting: Reading::of(0),
            draining: Reading::of(0),
            queue: Reading::of(0),
            running: Reading::of(150),
            arrivals: Reading::of(375),
            p95_ms: Reading::of(4_000),
            ..Signals::default()
        };
        let mut desired = 8;
        for k in 0..240 {
            desired = scaler.step(&good(k * 5, desired)).desired;
        }
        let before = desired;
        for k in 240..480 {
            let wrong =
                |rng: &mut Rng| if k < 360 { Reading::Missing } else { Reading::parse(rng.pick::<&str>(&nonsense)) };
            let at = if k > 360 && rng.chance(100) { rng.below(1_000) } else { k * 5 };
            let mut seen = good(at, desired);
            (seen.queue, seen.running, seen.arrivals) = (wrong(&mut rng), wrong(&mut rng), wrong(&mut rng));
            seen.p95_ms = wrong(&mut rng);
            let decision = scaler.step(&seen);
            assert!(decision.desired >= before, "seed {seed}: {decision:?}");
            assert!([Why::MissingSignal, Why::StaleSignal].contains(&decision.why), "seed {seed}: {decision:?}");
            desired = decision.desired;
        }
        let healed = scaler.step(&good(480 * 5, desired));
        assert!(healed.desired >= before, "seed {seed}: {healed:?}");
    }
}

/// Is not told how many came, and of what runs only this where it is something.
struct Uncounted(Autoscaler, Option<Reading>);

impl Policy for Uncounted {
    fn desired(&mut self, signals: &Signals) -> u32 {
        let running = self.1.unwrap_or(signals.running);
        self.0.step(&Signals { arrivals: Reading::Missing, running, p95_ms: Reading::Missing, ..*signals }).desired
    }
}

/// A server that counts none of its requests, and nobody else does: what runs and what waits in it tells how many come.
#[test]
fn where_nobody_counts_what_comes_a_backlog_is_helped_all_the_same() {
    let service = Service { min: 1, slots: 8, service_ms: 3_000, ..Service::default() };
    // Four are full, and hardly fewer than it takes.
    let load = load::make(Shape::Steady, 5, 11_000, service.service_ms);
    let told_to_run = [None, Some(Reading::of(0)), Some(Reading::Missing)];
    for (start, running) in [1, 4].into_iter().flat_map(|start| told_to_run.map(|running| (start, running))) {
        let counted = Terms { service, start: Some(start), impatient: false }.play(&load, Rule::Nf).unwrap();
        let mut policy = Uncounted(Autoscaler::new(service).unwrap(), running);
        let played = nf_core::autoscaler::replay::run(&service, &load, &mut policy, start, false);
        let told = [&played, &counted].map(|outcome| (outcome.attainment_m(), outcome.replica_ms));
        println!("from {start}, running {running:?}: {told:?} with counts");
        assert!(told[0].0 + 3_000 >= told[1].0, "{start} {running:?}: {told:?}");
        // Nothing is taken away in doubt.
        assert!(told[0].1 <= told[1].1 * 2, "{start} {running:?}: {told:?}");
    }
}

fn reading() -> impl Strategy<Value = Reading> {
    prop_oneof![
        8 => (0_u64..200).prop_map(Reading::of),
        2 => (0_u64..2_000_000_000).prop_map(Reading::of),
        2 => Just(Reading::Missing),
        1 => Just(Reading::Absurd),
        1 => any::<u64>().prop_map(Reading::Known),
    ]
}

fn signals() -> impl Strategy<Value = Signals> {
    let eight = (0_u64..40_000, reading(), reading(), reading(), reading(), reading(), reading(), reading());
    eight.prop_map(|(at_ms, ready, starting, draining, queue, running, arrivals, p95_ms)| Signals {
        at_ms,
        ready,
        starting,
        draining,
        queue,
        running,
        arrivals,
        p95_ms,
        unplaced: draining,
        uncounted: at_ms % 3 == 0,
        ..Signals::default()
    })
}

fn service() -> impl Strategy<Value = Service> {
    (1_u64..60, 0_u64..600, 0_u32..5, 0_u32..200, 1_u32..300, 0_u64..60_000, 1_u64..120_000).prop_map(
        |(tick, cold, min, more, slots, wait_ms, service_ms)| Service {
            tick_ms: tick * 1000,
            cold_start_ms: cold * 1000,
            min,
            max: (min + more).max(1),
            slots,
            wait_ms,
            service_ms,
            ..Service::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever comes: between min and max, nothing down on a doubt, the same again, and never a panic.
    #[test]
    fn whatever_it_is_fed_it_keeps_its_bounds(service in service(), seen in prop::collection::vec(signals(), 1..60)) {
        let (mut scaler, mut twin) = (Autoscaler::new(service).unwrap(), Autoscaler::new(service).unwrap());
        let mut now = 0;
        for step in seen {
            // Time goes on in most steps and back in some.
            let at_ms = if step.at_ms.is_multiple_of(11) { now / 2 } else { now + 1 + step.at_ms };
            now = now.max(at_ms);
            let step = Signals { at_ms, ..step };
            let decision = scaler.step(&step);
            prop_assert_eq!(twin.step(&step), decision);
            prop_assert!((service.min..=service.max).contains(&decision.desired), "{:?}", decision);
            let doubtful = [step.queue, step.running, step.arrivals, step.ready, step.starting]
                .iter()
                .any(|r| r.known().is_none());
            if doubtful {
                prop_assert!(decision.desired >= decision.before, "{:?} on {:?}", decision, step);
            }
        }
    }
}
