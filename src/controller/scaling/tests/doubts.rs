//! What is not known, or was not carried out, takes nothing away; and nothing holds for ever.

use super::*;
use nf_core::node::{Cordon, Drain};

/// What the replicas of the first service say of themselves: how many run in each, and nothing of what was answered.
fn uncounted(state: &State, running: fn(u16) -> u64) -> BTreeMap<NodeNo, Word> {
    let ready = state.services().next().map(|job| ready(job)).unwrap();
    let told = |(_, id, generation): &(NodeNo, ReplicaId, Generation)| Told {
        id: *id,
        generation: *generation,
        running_m: Some(running(id.replica) * 1000),
        waiting_m: Some(0),
        answered: None,
        p95_ms: None,
        kv_m: None,
        first_token_ms: None,
    };
    BTreeMap::from([(NodeNo(1), Word { age_ms: 700, told: ready.iter().map(told).collect() })])
}

#[test]
fn requests_that_no_runtime_counts_and_no_gateway_sees_keep_what_serves_them() {
    let (mut state, mut scaler) = (two_services(0), Scaler::new(1, PACE));
    for i in 1..200 {
        // All are busy past the gateways.
        let told = uncounted(&state, |_| 2);
        let panorama = Panorama { seen: vec![seen(1, 1, sight(0, 0, 0))], told, ..Panorama::default() };
        let Looked { intents, looks, .. } = scaler.look(&state, panorama, i * TICK);
        assert!(i == 1 || looks[0].signals.gap.is_none(), "a first look does not know what came");
        run(&mut state, intents);
        assert_eq!(desired(&state)[0], 4, "at look {i}");
    }
    // One request at a time is left: some of them go.
    let mut fell = 0;
    for i in 200..700 {
        let told = uncounted(&state, |replica| u64::from(replica == 0));
        let panorama = Panorama { seen: vec![seen(1, 1, sight(0, 0, 0))], told, ..Panorama::default() };
        let intents = scaler.look(&state, panorama, i * TICK).intents;
        run(&mut state, intents);
        fell = desired(&state)[0];
    }
    assert!((1..4).contains(&fell), "{fell} of four");
    // Nobody is there any more.
    for i in 700..1_200 {
        let told = uncounted(&state, |_| 0);
        let panorama = Panorama { seen: vec![seen(1, 1, sight(0, 0, 0))], told, ..Panorama::default() };
        let intents = scaler.look(&state, panorama, i * TICK).intents;
        run(&mut state, intents);
    }
    assert_eq!(desired(&state)[0], 0);
}

#[test]
fn what_prometheus_alone_tells_of_keeps_what_serves_it() {
    let (mut state, mut scaler) = (two_services(0), Scaler::new(1, PACE));
    let name = name(state.services().next().unwrap());
    for i in 1..600 {
        let running = if i < 200 { 8_000 } else { 0 };
        let series = Series { waiting_m: Some(0), running_m: Some(running), replicas: 4, ..Series::default() };
        let measured = Measured::Said(BTreeMap::from([(name.clone(), series)]));
        let panorama = Panorama { seen: vec![seen(1, 1, sight(0, 0, 0))], measured, ..Panorama::default() };
        let intents = scaler.look(&state, panorama, i * TICK).intents;
        run(&mut state, intents);
        assert!(i > 200 || desired(&state)[0] == 4, "at look {i}: {:?}", desired(&state));
    }
    assert_eq!(desired(&state)[0], 0);
}

#[test]
fn a_member_that_was_drained_and_switched_off_keeps_nothing() {
    let mut state = world();
    testing::run(&mut state, testing::register("m2", testing::node_spec(1)));
    testing::run(&mut state, member(2, "m2"));
    let drain = Some(Drain { within_ms: None, force: false });
    let cordon = Cordon { by: "ann".into(), reason: "fans".into(), at_ms: 0, drain };
    testing::run(&mut state, Intent::Cordon { node: NodeName::new("m2").unwrap(), cordon: Some(cordon) });
    testing::run(&mut state, Intent::Moves);
    assert_eq!(state.node(NodeNo(2)).unwrap().state, NodeState::Maintenance);
    let mut scaler = Scaler::new(1, PACE);
    for i in 1..100 {
        let panorama =
            Panorama { seen: vec![seen(1, 1, sight(0, 0, 0))], silent: vec![MemberId(2)], ..Panorama::default() };
        let Looked { intents, looks, .. } = scaler.look(&state, panorama, i * TICK);
        assert!(i == 1 || looks[0].signals.gap.is_none(), "a first look does not know what came");
        run(&mut state, intents);
    }
    assert_eq!(desired(&state), [0]);
}

#[test]
fn a_step_down_that_was_lost_forgets_nothing() {
    let (state, mut scaler) = (two_services(0), Scaler::new(1, PACE));
    let (mut began, mut said) = (0, 0);
    for i in 1..300 {
        let Looked { intents, records, .. } =
            scaler.look(&state, Panorama { seen: vec![seen(1, 1, sight(0, 0, 0))], ..Panorama::default() }, i * TICK);
        began += records.iter().filter(|record| matches!(record, Record::From { .. })).count();
        // None of them is committed.
        said += intents.len();
    }
    assert_eq!(began, 2, "each begins once");
    assert!(said > 300, "and goes on to say it: {said}");
    // Somebody who asks for more than stood before is heard.
    let mut state = state;
    let target = Target { replicas: 2, why: Why::Asked, inputs: None, seen: None, learned: None };
    let request = RequestId::new("s1").unwrap();
    testing::run(&mut state, Intent::Scale { request: request.clone(), tenant: None, target: target.clone() });
    let look = |scaler: &mut Scaler, state: &State, i: u64| {
        let seen = vec![seen(1, 1, sight(0, 0, 0))];
        let looked = scaler.look(state, Panorama { seen, ..Panorama::default() }, i * TICK);
        looked.records.iter().filter(|record| matches!(record, Record::From { .. })).count()
    };
    assert_eq!(look(&mut scaler, &state, 300), 0);
    let target = Target { replicas: 3, ..target };
    testing::run(&mut state, Intent::Scale { request, tenant: None, target });
    assert_eq!(look(&mut scaler, &state, 301), 1);
}

#[test]
fn whatever_the_pace_a_new_leader_takes_nothing_away_for_a_minute() {
    let mut state = two_services(0);
    let mut scaler = Scaler::new(1, Pace { every: Duration::from_millis(200), ..Pace::default() });
    let mut fell_ms = None;
    for at_ms in (200..120_000).step_by(200) {
        let panorama = Panorama { seen: vec![seen(1, 1, sight(0, 0, 0))], ..Panorama::default() };
        let intents = scaler.look(&state, panorama, at_ms).intents;
        if !intents.is_empty() {
            fell_ms = fell_ms.or(Some(at_ms));
        }
        run(&mut state, intents);
    }
    assert!(fell_ms.is_some_and(|at_ms| at_ms >= 60_000), "{fell_ms:?}");
}

#[test]
fn who_waits_for_a_place_is_told_from_who_starts() {
    let mut state = State::new();
    let scaling = Scaling { min: 1, max: 4, ..Scaling::default() };
    let spec = JobSpec { scaling: Some(scaling), ..testing::job_spec("t1", Gpus::Milli(100)) };
    testing::run(&mut state, testing::schedule("s1", spec));
    let mut scaler = Scaler::new(1, PACE);
    let look = |scaler: &mut Scaler, state: &State, i: u64| {
        let seen = vec![seen(1, 1, sight(0, 0, 0))];
        let signals = scaler.look(state, Panorama { seen, ..Panorama::default() }, i * TICK).looks[0].signals;
        (signals.starting.whole(), signals.unplaced.whole())
    };
    assert_eq!(look(&mut scaler, &state, 1), (Some(1), Some(1)));
    testing::run(&mut state, testing::register("n1", testing::node_spec(8)));
    testing::run(&mut state, Intent::PlaceWaiting);
    assert_eq!(look(&mut scaler, &state, 2), (Some(1), Some(0)));
}

#[test]
fn a_promise_that_is_broken_by_busy_replicas_asks_for_more() {
    for (latency_ms, most) in [(None, 1), (Some(4), 3)] {
        let mut state = State::new();
        testing::run(&mut state, testing::register("n1", testing::node_spec(8)));
        let scaling = Scaling { min: 1, max: 3, concurrency: 64, cold_start_ms: 1_000, ..Scaling::default() };
        let mut spec = JobSpec { scaling: Some(scaling), ..testing::job_spec("t1", Gpus::Milli(100)) };
        spec.constraints.latency_ms = latency_ms;
        testing::run(&mut state, testing::schedule("s1", spec));
        let mut scaler = Scaler::new(1, PACE);
        let (mut why, mut answered) = (Vec::new(), vec![0; BUCKETS]);
        for i in 1..100 {
            agent(&mut state);
            // Eight run at any time, far less than its slots; each takes 13 ms, or 1 ms where three share them.
            let three = ready(state.services().next().unwrap()).len() == 3;
            answered[if three { 0 } else { 10 }] += 8;
            let seen = vec![seen(1, 1, Sight { answered: answered.clone(), ..sight(i * 8, 0, 8) })];
            let Looked { intents, looks, .. } = scaler.look(&state, Panorama { seen, ..Panorama::default() }, i * TICK);
            why.extend(looks.iter().map(Look::why));
            run(&mut state, intents);
        }
        assert_eq!(desired(&state), [most], "promised: {latency_ms:?}");
        assert_eq!(why.contains(&Why::LatencyExceeded), latency_ms.is_some());
    }
}
