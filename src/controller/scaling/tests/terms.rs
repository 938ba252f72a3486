//! What outlives a leader's term, and how fast a service may change.

use super::*;
use nf_core::autoscaler::Steps;
use std::num::NonZeroU16;

/// One service that may not sleep, with a start that is said to take a minute.
fn serving(steps: Steps) -> State {
    let mut state = State::new();
    testing::run(&mut state, testing::register("n1", testing::node_spec(8)));
    let scaling = Scaling { min: 1, max: 8, concurrency: 2, cold_start_ms: 60_000, steps, ..Scaling::default() };
    let spec = JobSpec { scaling: Some(scaling), ..testing::job_spec("t1", Gpus::Milli(100)) };
    testing::run(&mut state, testing::schedule("s1", spec));
    state
}

fn desired(state: &State) -> u16 {
    state.services().next().unwrap().desired()
}

/// Looks once a second at so many requests, most of which wait or run; an agent starts at once what has a place.
/// How many are wanted after each look.
fn looks(state: &mut State, scaler: &mut Scaler, at: &mut u64, count: u64, waiting: u32) -> Vec<u16> {
    let mut came = *at / 100;
    let one = |_| {
        *at += TICK;
        came += u64::from(waiting) + 1;
        let seen = vec![seen(1, 1, sight(came, waiting, 2))];
        let looked = scaler.look(state, Panorama { seen, ..Panorama::default() }, *at);
        run(state, looked.intents);
        agent(state);
        desired(state)
    };
    (0..count).map(one).collect()
}

#[test]
fn the_next_leader_begins_with_what_the_last_one_learned() {
    let (mut state, mut at) = (serving(Steps::default()), 1_000_000_000);
    let mut first = Scaler::new(1, PACE);
    looks(&mut state, &mut first, &mut at, 20, 0);
    looks(&mut state, &mut first, &mut at, 20, 9);
    // The starts of a second were seen after the decision that they followed; the next one takes them along.
    looks(&mut state, &mut first, &mut at, 200, 0);
    let cold = |scaler: &Scaler| scaler.scalers.values().next().unwrap().scaler.cold_start_ms();
    assert!(cold(&first) < 60_000 && desired(&state) < 8, "{} {}", cold(&first), desired(&state));
    let mut second = Scaler::new(2, PACE);
    let records = second.look(&state, Panorama::default(), at + TICK).records;
    assert_eq!(cold(&second), cold(&first));
    // A journal that begins here begins with it, too.
    let Record::From { scaler, .. } = &records[0] else { panic!("{records:?}") };
    assert_eq!(scaler.cold_start_ms(), cold(&first));
}

#[test]
fn no_minute_sees_a_longer_step_and_a_new_leader_takes_nothing_away_for_one() {
    let steps = Steps { up: NonZeroU16::new(2), down: NonZeroU16::new(1), within_ms: 60_000 };
    let (mut state, mut at) = (serving(steps), 1_000_000_000);
    let mut scaler = Scaler::new(1, PACE);
    let up = looks(&mut state, &mut scaler, &mut at, 200, 40);
    assert_eq!((up[1], up[50], up[70], up[199]), (3, 3, 5, 8), "{up:?}");
    let mut scaler = Scaler::new(2, PACE);
    let down = looks(&mut state, &mut scaler, &mut at, 400, 0);
    assert_eq!((down[58], down.last().is_some_and(|last| *last < 6)), (8, true), "{down:?}");
    for (i, n) in down.iter().enumerate() {
        let before = down[i.saturating_sub(59)];
        assert!(n + 1 >= before, "{before} to {n} within a minute: {down:?}");
    }
}
