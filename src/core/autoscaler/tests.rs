//! The autoscaler as its callers meet it.

use super::*;

fn signals(at_s: u64, ready: u64, queue: u64, running: u64, arrivals: u64) -> Signals {
    Signals {
        at_ms: at_s * 1000,
        ready: Reading::of(ready),
        starting: Reading::of(0),
        draining: Reading::of(0),
        queue: Reading::of(queue),
        running: Reading::of(running),
        arrivals: Reading::of(arrivals),
        p95_ms: Reading::of(2_000),
        ..Signals::default()
    }
}

/// Ten minutes of 38 requests a second of two seconds each: 76 at once, on five replicas.
fn settled() -> Autoscaler {
    let mut scaler = Autoscaler::new(Service::default()).unwrap();
    for k in 0..120 {
        scaler.step(&signals(k * 5, 5, 0, 76, 190));
    }
    scaler
}

#[test]
fn steady_load_keeps_what_carries_it() {
    let mut scaler = settled();
    let decision = scaler.step(&signals(600, 5, 0, 76, 190));
    assert_eq!((decision.desired, decision.why), (6, Why::Stabilizing), "{decision:?}");
}

#[test]
fn a_burst_is_met_at_once_and_idle_replicas_go_after_a_while() {
    let mut scaler = settled();
    let decision = scaler.step(&signals(600, 6, 1_500, 96, 1_900));
    assert!(decision.desired >= 48 && [Why::Panic, Why::QuotaLimit].contains(&decision.why), "{decision:?}");
    let mut last = decision;
    // What fell off a cliff may come back as fast: what the busiest minute needed is kept, as long as it can be paid.
    let mut kept = 0;
    for k in 121..1_600 {
        last = scaler.step(&signals(k * 5, u64::from(last.desired), 0, 76, 190));
        kept += u64::from(last.desired - 6) * 5;
    }
    assert_eq!(last.desired, 6);
    assert!((1_800..=12_000).contains(&kept), "{kept} replica-seconds");
}

/// Two hours of work for ten replicas, then none at all for one: how many are wanted each five seconds after.
fn off_a_cliff(min: u32) -> Vec<u32> {
    let mut scaler = Autoscaler::new(Service { min, ..Service::default() }).unwrap();
    let mut ready = 11;
    (1..2_160)
        .map(|k| {
            let last = match k <= 1_440 {
                true => scaler.step(&signals(k * 5, ready, 0, 150, 375)),
                false => scaler.step(&signals(k * 5, ready, 0, 0, 0)),
            };
            ready = last.desired.into();
            last.desired
        })
        .skip(1_440)
        .collect()
}

#[test]
fn what_falls_off_a_cliff_is_kept_for_the_time_that_it_may_come_back_as_fast() {
    let kept = off_a_cliff(1);
    assert!(kept[..240].iter().all(|wanted| *wanted >= 9), "twenty minutes: {:?}", &kept[..240]);
}

#[test]
fn where_nobody_asks_any_more_it_sleeps_when_its_owner_said_so_though_more_could_be_paid() {
    let kept = off_a_cliff(0);
    let asleep = kept.iter().position(|wanted| *wanted == 0);
    assert!(kept[..100].iter().all(|wanted| *wanted >= 9), "{:?}", &kept[..100]);
    assert!(asleep.is_some_and(|at| (118..=122).contains(&at)), "idle is ten minutes: {asleep:?}");
}

#[test]
fn what_nobody_counted_before_the_first_look_is_not_taken_for_nothing() {
    let mut scaler = Autoscaler::new(Service::default()).unwrap();
    scaler.step(&signals(0, 5, 0, 76, 0));
    for k in 1..=12 {
        let rate_m = scaler.step(&signals(k * 5, 5, 0, 76, 190)).inputs.rate_m;
        assert!(rate_m.abs_diff(38_000) <= 380, "{rate_m} after {} seconds", k * 5);
    }
    // A source that has counted before us is believed at once.
    let mut scaler = Autoscaler::new(Service::default()).unwrap();
    assert_eq!(scaler.step(&signals(0, 5, 0, 76, 190)).inputs.rate_m, 38_000);
}

#[test]
fn who_has_seen_little_gives_up_half_at_a_time() {
    let mut scaler = Autoscaler::new(Service::default()).unwrap();
    let mut ready = 12;
    // Twelve requests a second, two seconds each, would do with two replicas.
    let wanted: Vec<u32> = (0..120)
        .map(|k| {
            let desired = scaler.step(&signals(k * 5, ready, 0, 24, 60)).desired;
            ready = desired.into();
            desired
        })
        .collect();
    let at = |seconds: usize| wanted[seconds / 5];
    assert_eq!([0, 55, 60, 90, 95, 125, 130, 255].map(at), [12, 12, 6, 6, 3, 3, 2, 2]);
    // Nobody is there: a service that may sleep as soon as that is not kept up.
    let mut scaler = Autoscaler::new(Service { idle_ms: 90_000, ..Service::default() }).unwrap();
    let last = (0..25).map(|k| scaler.step(&signals(k * 5, 12, 0, 0, 0)).desired).last();
    assert_eq!(last, Some(0));
}

#[test]
fn step_limits_hold_it_back_and_say_so() {
    use std::num::NonZeroU16;
    let steps = Steps { up: NonZeroU16::new(2), ..Steps::default() };
    let mut scaler = Autoscaler::new(Service { steps, ..Service::default() }).unwrap();
    for k in 0..120 {
        scaler.step(&signals(k * 5, 6, 0, 76, 190));
    }
    let burst = scaler.step(&signals(600, 6, 1_500, 96, 1_900));
    assert_eq!((burst.before, burst.desired, burst.inputs.paced), (6, 8, true), "{burst:?}");
    let wanted = burst.inputs.wanted;
    assert!(wanted > 40 && burst.because().ends_with(&format!("(step limits: {wanted} are wanted)")), "{burst:?}");
    let next = scaler.step(&signals(605, 6, 1_600, 96, 1_900));
    assert_eq!((next.desired, next.why), (8, Why::Stabilizing), "{next:?}");
    // Its own bounds do not wait: it may have three at most.
    let mut fewer =
        Autoscaler::new(Service { steps: Steps { down: NonZeroU16::new(1), ..steps }, max: 3, ..Service::default() })
            .unwrap();
    fewer.stands_at(6);
    assert_eq!(fewer.step(&signals(5, 6, 0, 76, 190)).desired, 3);
}

#[test]
fn whatever_is_wrong_with_a_signal_nothing_goes_down() {
    let good = signals(600, 6, 0, 0, 0);
    let wrong =
        [Reading::Missing, Reading::Absurd, Reading::parse("nan"), Reading::parse("-5"), Reading::parse("1e30")];
    for reading in wrong {
        let cases = [
            Signals { queue: reading, ..good },
            Signals { running: reading, ..good },
            Signals { arrivals: reading, ..good },
            Signals { ready: reading, ..good },
        ];
        for case in cases {
            let mut scaler = settled();
            for k in 0..240 {
                let decision = scaler.step(&Signals { at_ms: (600 + k * 5) * 1000, ..case });
                assert_eq!((decision.desired, decision.why), (6, Why::MissingSignal), "{case:?}");
            }
        }
    }
}

#[test]
fn a_part_of_the_signals_takes_nothing_away_and_still_asks_for_more() {
    for gap in [Gap::Replicas { told: 2, of: 5 }, Gap::Gateways { told: 1, of: 3 }, Gap::Monitor] {
        // Only a fifth of the load is seen, for twenty minutes.
        let mut scaler = settled();
        for k in 120..360 {
            let seen = Signals { gap: Some(gap), ..signals(k * 5, 6, 0, 15, 38) };
            let decision = scaler.step(&seen);
            assert_eq!((decision.desired, decision.why), (6, Why::MissingSignal), "{decision:?}");
            assert_eq!(decision.because(), format!("MissingSignal: {gap}"));
        }
        // And what is seen may be a burst.
        let burst = scaler.step(&Signals { gap: Some(gap), ..signals(1_800, 6, 400, 96, 500) });
        assert!(burst.desired > 6 && burst.because().ends_with(&gap.to_string()), "{burst:?}");
    }
    assert_eq!(Gap::Replicas { told: 2, of: 5 }.to_string(), "signals of 2 of 5 replicas");
}

#[test]
fn a_part_that_is_noisy_is_not_taken_for_growth() {
    let most = |gap: Option<Gap>| {
        let (mut scaler, mut rng) = (settled(), crate::sim::Rng::new(3));
        // As much as usual, give or take a third.
        let looks = (120..6_000).map(|k| {
            let came = rng.between(130, 250);
            scaler.step(&Signals { gap, ..signals(k * 5, 6, 0, 76, came) }).desired
        });
        looks.max()
    };
    let (whole, part) = (most(None), most(Some(Gap::Replicas { told: 4, of: 5 })));
    assert!(part <= whole.map(|n| n + 1), "{whole:?} {part:?}");
}

#[test]
fn numbers_of_long_ago_take_nothing_away() {
    let mut scaler = settled();
    for k in 120..360 {
        let seen = Signals { age_ms: Some(61_000), ..signals(k * 5, 6, 0, 0, 0) };
        let decision = scaler.step(&seen);
        assert_eq!((decision.desired, decision.why), (6, Why::StaleSignal), "{decision:?}");
    }
}

#[test]
fn old_news_are_no_news() {
    let mut scaler = settled();
    for at in [595, 300, 0] {
        let decision = scaler.step(&signals(at, 6, 5_000, 0, 0));
        assert_eq!((decision.desired, decision.why), (6, Why::StaleSignal));
    }
    let late = scaler.step(&signals(1_200, 6, 0, 0, 0));
    assert_eq!((late.desired, late.why), (6, Why::StaleSignal), "ten minutes without a word");
}

#[test]
fn work_from_nowhere_is_not_believed_at_once() {
    let mut scaler = settled();
    let decision = scaler.step(&signals(600, 6, 900_000, 76, 190));
    assert_eq!((decision.desired, decision.why), (6, Why::MissingSignal));
}

/// Five replicas can't have served so many, and nobody waits: a counter that began anew, or another unit.
#[test]
fn a_count_from_nowhere_is_not_believed_at_once() {
    let mut scaler = settled();
    let absurd = scaler.step(&signals(600, 6, 0, 76, 20_000));
    assert_eq!((absurd.desired, absurd.why), (6, Why::MissingSignal));
    for k in 121..480 {
        let decision = scaler.step(&signals(k * 5, 6, 0, 76, 190));
        assert_eq!(decision.desired, 6, "{decision:?}");
        assert!(decision.inputs.service_ms.abs_diff(2_000) < 100, "it has taught nothing: {decision:?}");
    }
    // Three on end were wrong, four are not.
    let told: Vec<u32> = (480..484).map(|k| scaler.step(&signals(k * 5, 6, 0, 76, 20_000)).desired).collect();
    assert_eq!(told, [6, 6, 6, 100]);
    assert_eq!(
        scaler.step(&signals(2_420, 100, 0, 76, 20_000)).inputs.arrivals_m,
        Some(20_000_000),
        "and then no more"
    );
}

#[test]
fn where_somebody_waits_a_burst_is_believed_at_once_however_few_there_are_to_serve_it() {
    for replicas in [0, 1] {
        let mut scaler = Autoscaler::new(Service { min: replicas, ..Service::default() }).unwrap();
        let ready = replicas.into();
        for k in 0..120 {
            scaler.step(&signals(k * 5, ready, 0, 0, u64::from(k > 60)));
        }
        // Whoever has waited for two seconds has left, unserved.
        let burst = scaler.step(&signals(600, ready, 1_600, u64::from(replicas) * 16, 4_100));
        assert_eq!(burst.inputs.arrivals_m, Some(4_100_000), "{replicas}: {burst:?}");
        assert!(burst.desired >= 50, "{replicas}: {burst:?}");
    }
}

/// A label of milliseconds that is thought to take two seconds: the replicas can serve far more than they seem to.
#[test]
fn requests_that_are_quicker_than_was_thought_are_counted() {
    let mut scaler = Autoscaler::new(Service { service_guessed: true, ..Service::default() }).unwrap();
    let known = (1..200).map(|k| scaler.step(&signals(k * 5, 1, 0, 3, 2_000)).inputs.arrivals_m);
    assert_eq!(known.filter(Option::is_none).count(), 0);
}

#[test]
fn a_sleeping_service_wakes_and_falls_asleep_again() {
    let mut scaler = Autoscaler::new(Service::default()).unwrap();
    assert_eq!(scaler.step(&signals(0, 0, 0, 0, 0)).desired, 0);
    let woken = scaler.step(&signals(5, 0, 1, 0, 1));
    assert_eq!((woken.desired, woken.why), (1, Why::WakeFromZero));
    let mut last = woken;
    for k in 2..400 {
        last = scaler.step(&signals(k * 5, 1, 0, 0, 0));
    }
    assert_eq!(last.desired, 0);
}

/// Nobody is there, and one look in fifty lacks a number, or is of a part.
#[test]
fn a_number_that_is_missing_now_and_then_keeps_nobody_awake() {
    let asleep = |every: u64, lacks: fn(&mut Signals)| {
        let mut scaler = Autoscaler::new(Service::default()).unwrap();
        let mut asleep = None;
        for k in 1..720 {
            let mut seen = signals(k * 5, 1, 0, u64::from(k <= 60), u64::from(k <= 60) * 3);
            if k % every == 0 {
                lacks(&mut seen);
            }
            if scaler.step(&seen).desired == 0 {
                asleep = asleep.or(Some(k * 5));
            }
        }
        asleep
    };
    let all: [fn(&mut Signals); 4] = [
        |seen| seen.queue = Reading::Missing,
        |seen| seen.running = Reading::Missing,
        |seen| seen.arrivals = Reading::Missing,
        |seen| seen.gap = Some(Gap::Monitor),
    ];
    let usual = asleep(u64::MAX, all[0]).unwrap();
    for lacks in all {
        // The clock stands still for what was not seen.
        assert!(asleep(50, lacks).is_some_and(|at| (usual..=usual + 25).contains(&at)), "{:?}", asleep(50, lacks));
        assert_eq!(asleep(1, lacks), None, "what is never seen is not taken for nobody");
    }
}

#[test]
fn what_nobody_saw_is_no_part_of_the_idle_time() {
    let mut scaler = Autoscaler::new(Service::default()).unwrap();
    let asleep = (1..720_u64).find(|k| {
        let seen = signals(k * 5, 1, 0, u64::from(*k <= 60), u64::from(*k <= 60) * 3);
        // Eight minutes without a word.
        let silent = Signals { queue: Reading::Missing, running: Reading::Missing, arrivals: Reading::Missing, ..seen };
        scaler.step(if (61..=156).contains(k) { &silent } else { &seen }).desired == 0
    });
    let idle_s = asleep.map(|k| k * 5 - 300).unwrap();
    assert!((1_080..=1_150).contains(&idle_s), "ten minutes and eight: {idle_s} s");
}

#[test]
fn limits_are_kept_and_named() {
    let mut scaler = settled();
    scaler.limit(Limits { quota: None, budget: Some(8) });
    let decision = scaler.step(&signals(600, 6, 1_500, 96, 1_900));
    assert_eq!((decision.desired, decision.why), (8, Why::BudgetLimit));
    let mut scaler = Autoscaler::new(Service { max: 5, ..Service::default() }).unwrap();
    let decision = scaler.step(&signals(0, 5, 1_500, 80, 1_900));
    assert_eq!((decision.desired, decision.why), (5, Why::QuotaLimit));
}
