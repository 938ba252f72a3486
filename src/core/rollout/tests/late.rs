//! A copy is late by its own start, whatever the rollout did before; and no rollout waits for ever.

use super::*;
use crate::control::{Now, Observations, Timeouts, step};
use crate::node::{Cordon, Drain, NodeState};

const READY: u64 = 60_000;
const HOUR: u64 = 3_600_000;

fn wait(state: &mut State, ms: u64) {
    let at = state.meta().now_ms + ms;
    testing::try_run_at(state, Intent::PlaceWaiting, at).unwrap();
}

fn turns(state: &mut State, times: u32) {
    for _ in 0..times {
        look(state);
        agents(state, |_| true);
    }
}

fn goes_forward(state: &State) -> bool {
    matches!(job(state).rollout.as_ref().unwrap().course, Course::Forward { .. })
}

fn why(state: &State) -> Option<Reason> {
    job(state).rollout.as_ref().unwrap().course.why()
}

fn scale(state: &mut State, replicas: u16) {
    let target = Target { replicas, why: crate::autoscaler::Why::Asked, inputs: None, seen: None, learned: None };
    testing::run(state, Intent::Scale { request: request(), tenant: None, target });
}

fn manual() -> Strategy {
    Strategy { canary: Some(Canary { percent: Some(25), auto_promote: false }), ..strategy() }
}

/// A canary of one of four replicas that has served for an hour and waits for somebody's word.
fn old_canary() -> State {
    let mut state = world(3, 4, 4);
    start(&mut state, "v2", manual()).unwrap();
    turns(&mut state, 4);
    assert_eq!(versions(&state), ["v2", "v1", "v1", "v1"]);
    wait(&mut state, HOUR);
    state
}

/// The same service on the new version alone, ten minutes into an hour of being watched.
fn watched() -> State {
    let mut state = world(3, 4, 4);
    start(&mut state, "v2", Strategy { window_ms: HOUR as u32, ..strategy() }).unwrap();
    turns(&mut state, 20);
    assert_eq!(outlook(&state, job(&state)).unwrap().phase.as_deref(), Some("watching"));
    wait(&mut state, 10 * READY);
    state
}

fn lose_its_node(state: &mut State) {
    let lost = job(state).replicas[0].allocation().unwrap().node;
    testing::run(state, Intent::NodeStates(vec![(lost, Incarnation(1), NodeState::Down)]));
    testing::run(state, Intent::PlaceWaiting);
}

fn says(state: &mut State, stage: Stage) {
    let replica = &job(state).replicas[0];
    let kind = ReportKind::Stage(stage);
    let report = Report { job: JobNo(1), replica: 0, generation: replica.generation, kind };
    let node = state.node(replica.allocation().unwrap().node).unwrap().name.clone();
    testing::run(state, Intent::Reports { node, incarnation: Incarnation(1), reports: vec![report] });
}

/// Until the new version's copy is started again after a crash, at the latest.
fn crash(state: &mut State) {
    ended(state, false, Reason::ExitedNonZero);
    look(state);
    agents(state, |version| version.as_str() == "v1");
}

#[test]
fn what_happens_to_a_canary_that_stood_for_long_does_not_bring_the_former_version_back() {
    type Happens = fn(&mut State);
    let paused: Happens = |state| {
        say(state, Turn::Pause).unwrap();
        wait(state, HOUR);
        lose_its_node(state);
    };
    let cases: [(&str, fn() -> State, Happens); 6] = [
        ("a crash", old_canary, |state| {
            ended(state, false, Reason::ExitedNonZero);
            // Its place is the former version's, which leaves it again for the next try.
            look(state);
            agents(state, |_| true);
        }),
        ("a lost node", old_canary, lose_its_node),
        ("a canary that grows", old_canary, |state| scale(state, 8)),
        ("missed probes", old_canary, |state| says(state, Stage::NotReady)),
        ("a lost node in a pause", old_canary, paused),
        ("a lost node while it is watched", watched, lose_its_node),
    ];
    for (what, world, happens) in cases {
        let mut state = world();
        happens(&mut state);
        for _ in 0..3 {
            look(&mut state);
            assert!(goes_forward(&state), "{what}: {:?}", why(&state));
        }
        turns(&mut state, 6);
        assert!(goes_forward(&state), "{what}: {:?}", why(&state));
        assert_eq!(job(&state).ready(), job(&state).desired(), "{what}");
    }
}

#[test]
fn a_copy_that_does_not_come_up_is_found_out_an_hour_later_as_well_also_in_a_pause() {
    for pause in [false, true] {
        let mut state = old_canary();
        if pause {
            say(&mut state, Turn::Pause).unwrap();
        }
        wait(&mut state, HOUR);
        lose_its_node(&mut state);
        (1..READY / 1_000).for_each(|_| look(&mut state));
        assert!(goes_forward(&state));
        (0..2).for_each(|_| look(&mut state));
        assert_eq!(why(&state), Some(Reason::ReadyTimeout), "paused: {pause}");
    }
}

#[test]
fn a_canary_that_begins_to_crash_after_an_hour_goes_back_at_its_third_end() {
    let mut state = old_canary();
    crash(&mut state);
    for _ in 0..20 {
        look(&mut state);
        agents(&mut state, |version| version.as_str() == "v1");
    }
    assert_eq!((why(&state), word(&state)), (Some(Reason::ExitedNonZero), "failed".to_owned()));
}

#[test]
fn a_probe_that_is_missed_is_no_start_however_long_it_lasts() {
    let mut state = old_canary();
    says(&mut state, Stage::NotReady);
    (0..2 * READY / 1_000).for_each(|_| look(&mut state));
    assert!(goes_forward(&state), "{:?}", why(&state));
}

#[test]
fn one_that_waited_long_for_room_has_its_time_from_when_it_starts() {
    let mut state = world(1, 3, 3);
    start(&mut state, "v2", Strategy { unavailable: 0, ..strategy() }).unwrap();
    look(&mut state);
    assert_eq!(word(&state), "blocked");
    wait(&mut state, 10 * READY);
    testing::run(&mut state, testing::register("n2", testing::node_spec(3)));
    look(&mut state);
    assert!(job(&state).replicas.iter().any(|r| matches!(r.moving, Some(Move::Coming { .. }))));
    rest(&mut state, 3, |_| true);
    assert_eq!(word(&state), "successful");
}

#[test]
fn what_its_forerunner_takes_to_stop_is_no_time_of_its_own() {
    // A move, where the place elsewhere is held meanwhile.
    let mut state = world(2, 1, 1);
    let mut spec = JobSpec { scaling: None, ..(*job(&state).spec).clone() };
    spec.constraints.exclusive = true;
    let changed = Job { spec: Arc::new(spec), ..job(&state).clone() };
    state.put_job(changed);
    start(&mut state, "v2", manual()).unwrap();
    turns(&mut state, 4);
    assert_eq!((versions(&state), job(&state).ready()), (vec!["v2".to_owned()], 1));
    let node = state.node(job(&state).replicas[0].allocation().unwrap().node).unwrap().name.clone();
    let drain = Some(Drain { within_ms: None, force: false });
    let cordon = Some(Cordon { by: "me".into(), reason: "fans".into(), at_ms: 0, drain });
    testing::run(&mut state, Intent::Cordon { node, cordon });
    testing::run(&mut state, Intent::Moves);
    assert!(matches!(job(&state).replicas[0].moving, Some(Move::Coming { .. })), "{:?}", job(&state).replicas[0]);
    wait(&mut state, 10 * READY);
    look(&mut state);
    assert!(goes_forward(&state), "it was not told to start: {:?}", why(&state));
    ended(&mut state, true, Reason::NodeDrain);
    assert!(matches!(job(&state).replicas[0].phase, Phase::Held { stage: Stage::Scheduled, .. }));
    look(&mut state);
    assert!(goes_forward(&state), "{:?}", why(&state));

    // A change in its very place.
    let mut state = world(1, 4, 4);
    start(&mut state, "v2", strategy()).unwrap();
    look(&mut state);
    wait(&mut state, 10 * READY);
    turns(&mut state, 1);
    look(&mut state);
    assert!(goes_forward(&state), "{:?}", why(&state));
}

#[test]
fn a_service_at_zero_may_sleep_for_long_before_its_canary_is_woken() {
    let mut state = world(1, 4, 1);
    scale(&mut state, 0);
    agents(&mut state, |_| true);
    start(&mut state, "v2", manual()).unwrap();
    look(&mut state);
    wait(&mut state, 10 * READY);
    scale(&mut state, 1);
    (0..3).for_each(|_| look(&mut state));
    assert_eq!(versions(&state), ["v2"]);
    assert!(goes_forward(&state), "{:?}", why(&state));
}

#[test]
fn a_machine_that_is_away_says_nothing_of_what_it_starts() {
    let mut state = world(2, 4, 2);
    start(&mut state, "v2", strategy()).unwrap();
    look(&mut state);
    let Some(Move::Coming { alloc, .. }) = &job(&state).replicas[0].moving else { panic!() };
    let node = alloc.node;
    says_nothing(&mut state, node, NodeState::Suspect);
    says_nothing(&mut state, node, NodeState::Unknown);
    testing::run(&mut state, Intent::NodeStates(vec![(node, Incarnation(1), NodeState::Ready)]));
    look(&mut state);
    assert_eq!(why(&state), Some(Reason::ReadyTimeout), "it is heard, and nothing is up");
}

fn says_nothing(state: &mut State, node: crate::id::NodeNo, to: NodeState) {
    let starting = ReportKind::Stage(Stage::Starting);
    let Some(Move::Coming { generation, .. }) = job(state).replicas[0].moving else { panic!() };
    let report = Report { job: JobNo(1), replica: 0, generation, kind: starting };
    let name = state.node(node).unwrap().name.clone();
    testing::run(state, Intent::Reports { node: name, incarnation: Incarnation(1), reports: vec![report] });
    testing::run(state, Intent::NodeStates(vec![(node, Incarnation(1), to)]));
    (0..READY / 1_000 + 1).for_each(|_| look(state));
    assert!(goes_forward(state), "{to:?}: {:?}", why(state));
}

#[test]
fn a_leader_hears_what_started_before_it_judges_who_is_late() {
    let mut state = world(2, 4, 2);
    start(&mut state, "v2", strategy()).unwrap();
    let timeouts = Timeouts::default();
    let mut seen = Observations::new(5_000);
    let rolls = |seen: &mut Observations, mono_ms: u64| {
        let now = Now { mono_ms, wall_ms: state.meta().now_ms, unheard_ms: 0 };
        step(&state, seen, &timeouts, now).contains(&Intent::Rollouts)
    };
    assert!(!rolls(&mut seen, 5_100), "nobody has told it of the time before");
    let began = (1..20).map(|n| 5_000 + n * 500).find(|at| rolls(&mut seen, *at));
    assert_eq!(began, Some(5_000 + timeouts.suspect_ms));
    assert!(rolls(&mut seen, began.unwrap() + 1_500), "once a second, as ever");
    assert!(!rolls(&mut seen, began.unwrap() + 60_000), "it stood still, and so may the others have");
}

#[test]
fn a_canary_is_no_larger_where_the_former_version_does_not_serve() {
    let mut state = world(1, 3, 3);
    let mut changed = job(&state).clone();
    for replica in &mut changed.replicas {
        let Phase::Held { stage, .. } = &mut replica.phase else { panic!() };
        *stage = Stage::NotReady;
    }
    state.put_job(changed);
    start(&mut state, "v2", manual()).unwrap();
    (0..4).for_each(|_| look(&mut state));
    let stops = job(&state).replicas.iter().filter(|r| matches!(r.phase, Phase::Stopping { .. })).count();
    assert_eq!(stops, 1, "{:?}", job(&state).replicas);
}

#[test]
fn where_no_version_serves_the_rollout_does_not_stay_open_for_ever() {
    let mut state = watched();
    say(&mut state, back()).unwrap();
    let turn = |state: &mut State| {
        look(state);
        agents(state, |_| false);
    };
    (0..10).for_each(|_| turn(&mut state));
    assert!(job(&state).open_rollout().is_some(), "the former version has its time to come up");
    (0..2 * READY / 1_000).for_each(|_| turn(&mut state));
    assert!(job(&state).open_rollout().is_none(), "{:?}", job(&state));
    assert_eq!((versions(&state), word(&state)), (vec!["v1".to_owned(); 4], "cancelled".to_owned()));
    start(&mut state, "v3", strategy()).expect("the version that mends it");
}
