//! The leader's look at services, from sights to intents.

mod doubts;
mod shared;
mod spike;
mod terms;

use super::*;
use crate::exchange::sights::BUCKETS;
use crate::exchange::{Seen, Sight};
use nf_core::autoscaler::source::{Series, Told, Word};
use nf_core::command::{Member, Report, ReportKind};
use nf_core::id::{Incarnation, MemberId, NodeName, RequestId};
use nf_core::job::JobSpec;
use nf_core::node::NodeState;
use nf_core::resources::Gpus;
use nf_core::testing;
use std::sync::Arc;

const TICK: u64 = 1_000;
const PACE: Pace = Pace { every: Duration::from_millis(TICK), settle: Duration::from_millis(12 * TICK) };

fn world() -> State {
    let mut state = State::new();
    testing::run(&mut state, testing::register("n1", testing::node_spec(8)));
    let scaling =
        Scaling { min: 0, max: 4, concurrency: 2, idle_ms: 20_000, cold_start_ms: 1_000, ..Scaling::default() };
    let spec = JobSpec { scaling: Some(scaling), ..testing::job_spec("t1", Gpus::Milli(100)) };
    testing::run(&mut state, testing::schedule("s1", spec));
    state
}

fn member(id: u64, name: &str) -> Intent {
    let text: Arc<str> = "x".into();
    let (api, peer, version) = (text.clone(), text.clone(), text);
    let name = NodeName::new(name).unwrap();
    Intent::Member(Member { id: MemberId(id), name, api, peer, min_level: 1, max_level: 1, version })
}

fn sight(arrived: u64, waiting: u32, running: u32) -> Sight {
    sight_of("m1", arrived, waiting, running)
}

fn sight_of(model: &str, arrived: u64, waiting: u32, running: u32) -> Sight {
    let (tenant, model) = (TenantId::new("t1").unwrap(), ModelId::new(model).unwrap());
    let mut answered = vec![0; BUCKETS];
    answered[10] = arrived.saturating_sub(u64::from(waiting + running));
    let (recent, windows) = (vec![0; BUCKETS], Default::default());
    Sight { tenant, model, arrived, failed: 0, waiting, running, answered, recent, windows, trials: vec![] }
}

fn seen(member: u64, epoch: u64, sight: Sight) -> (MemberId, Seen) {
    (MemberId(member), Seen { epoch, sights: vec![sight], advice: vec![] })
}

fn run(state: &mut State, intents: Vec<Intent>) {
    for intent in intents {
        testing::run(state, intent);
        testing::run(state, Intent::PlaceWaiting);
    }
}

/// The agent of n1 does what it should.
fn agent(state: &mut State) {
    agent_of(state, 1);
}

fn agent_of(state: &mut State, node: u32) {
    let report = |job: &Job, (replica, no): (&Replica, u16)| {
        let here = replica.allocation().is_some_and(|alloc| alloc.node == NodeNo(node));
        let kind = match &replica.phase {
            Phase::Held { stage, .. } if here && *stage != Stage::Ready => ReportKind::Stage(Stage::Ready),
            Phase::Stopping { why, .. } if here => ReportKind::Ended { ok: true, why: *why },
            _ => return None,
        };
        Some(Report { job: job.no, replica: no, generation: replica.generation, kind })
    };
    let of = |job: &Arc<Job>| job.replicas.iter().zip(0..).filter_map(|one| report(job, one)).collect::<Vec<_>>();
    let reports = state.services().flat_map(of).collect();
    let (node, incarnation) = (NodeName::new(&format!("n{node}")).unwrap(), Incarnation(1));
    testing::run(state, Intent::Reports { node, incarnation, reports });
    testing::run(state, Intent::PlaceWaiting);
}

#[test]
fn load_on_two_members_scales_up_and_silence_never_down() {
    let mut state = world();
    testing::run(&mut state, testing::register("m2", testing::node_spec(1)));
    testing::run(&mut state, member(2, "m2"));
    let (mut state, mut scaler) = (state, Scaler::new(1, PACE));
    let mut at = 1_000_000;
    let mut came = 0;
    for _ in 0..30 {
        at += TICK;
        came += 8;
        let both = vec![seen(1, 1, sight(came, 4, 2)), seen(2, 7, sight(came, 4, 2))];
        let Looked { intents, looks, .. } =
            scaler.look(&state, Panorama { seen: both, silent: vec![], ..Panorama::default() }, at);
        assert_eq!(looks.len(), 1);
        run(&mut state, intents);
    }
    let desired = |state: &State| state.services().next().unwrap().desired();
    assert_eq!(desired(&state), 4);
    // One member says nothing and the other has nothing to do: that is no proof of idleness.
    for _ in 0..100 {
        at += TICK;
        let one = vec![seen(1, 1, sight(came, 0, 0))];
        let Looked { intents, .. } =
            scaler.look(&state, Panorama { seen: one, silent: vec![MemberId(2)], ..Panorama::default() }, at);
        assert_eq!(intents, []);
    }
    testing::run(&mut state, Intent::NodeStates(vec![(NodeNo(2), Incarnation(1), NodeState::Down)]));
    // Gone for good, it takes its requests along; after the idle time the service sleeps.
    let mut asleep_after = 0;
    while desired(&state) > 0 && asleep_after < 300 {
        at += TICK;
        asleep_after += 1;
        let one = vec![seen(1, 1, sight(came, 0, 0))];
        let Looked { intents, .. } =
            scaler.look(&state, Panorama { seen: one, silent: vec![MemberId(2)], ..Panorama::default() }, at);
        run(&mut state, intents);
    }
    assert!((15..200).contains(&asleep_after), "{asleep_after} s");
}

#[test]
fn advice_is_told_and_not_carried_out() {
    let mut state = State::new();
    testing::run(&mut state, testing::register("n1", testing::node_spec(8)));
    let scaling = Scaling { min: 1, max: 4, concurrency: 1, advisory: true, ..Scaling::default() };
    let spec = JobSpec { scaling: Some(scaling), ..testing::job_spec("t1", Gpus::Milli(100)) };
    testing::run(&mut state, testing::schedule("s1", spec));
    let mut scaler = Scaler::new(1, PACE);
    let mut told = Vec::new();
    for i in 1..20 {
        let seen = vec![seen(1, 1, sight(i * 20, 30, 1))];
        let Looked { intents, looks, .. } =
            scaler.look(&state, Panorama { seen, silent: vec![], ..Panorama::default() }, i * TICK);
        assert_eq!(intents, []);
        told.extend(looks.into_iter().map(|look| (look.current, look.decision.desired, look.why())));
    }
    assert!(told.iter().any(|(now, to, why)| (*now, *why) == (1, Why::AdvisoryOnly) && *to > 1), "{told:?}");
}

#[test]
fn a_decision_that_was_lost_is_made_again() {
    let (state, mut scaler) = (world(), Scaler::new(1, PACE));
    let said = (1..=300).map(|i| {
        let panorama = Panorama { seen: vec![seen(1, 1, sight(0, 0, 0))], silent: vec![], ..Panorama::default() };
        // None of them is committed.
        scaler.look(&state, panorama, i * TICK).intents.len()
    });
    let said: Vec<usize> = said.collect();
    let first = said.iter().position(|n| *n > 0).expect("it is put to sleep");
    assert!((18..=24).contains(&first), "idle for {first} s instead of 20");
    assert!(said[first..].iter().all(|n| *n == 1), "once and no more: {:?}", &said[first..]);
}

#[test]
fn a_new_leader_that_has_seen_nothing_takes_nothing_away() {
    let (mut state, mut scaler) = (world(), Scaler::new(1, PACE));
    let target = Target { replicas: 4, why: Why::Asked, inputs: None, seen: None, learned: None };
    let request = state.services().next().unwrap().request.clone();
    testing::run(&mut state, Intent::Scale { request, tenant: None, target });
    // Those that nobody has placed, or that stop to start elsewhere, count like the others.
    for i in 1..u64::from(SETTLE) {
        let panorama = Panorama { seen: vec![seen(1, 1, sight(0, 0, 0))], silent: vec![], ..Panorama::default() };
        assert_eq!(scaler.look(&state, panorama, i * TICK).intents, [], "at look {i}");
    }
}

#[test]
fn a_service_that_prometheus_no_longer_tells_of_is_not_taken_for_idle() {
    let mut state = world();
    let (job, generation) = (state.services().next().unwrap().no, Generation(1));
    let ready = Report { job, replica: 0, generation, kind: ReportKind::Stage(Stage::Ready) };
    let (node, incarnation) = (NodeName::new("n1").unwrap(), Incarnation(1));
    testing::run(&mut state, Intent::Reports { node, incarnation, reports: vec![ready] });
    let service = state.services().next().unwrap();
    assert_eq!(super::ready(service).len(), 1);
    let idle = Series { waiting_m: Some(0), running_m: Some(0), replicas: 1, ..Series::default() };
    let (idle, nothing) = (BTreeMap::from([(name(service), idle)]), BTreeMap::new());
    // For so many looks it tells of the service, then of none; the gateways see no request.
    for (tells, sleeps) in [(5, false), (0, true), (100, true)] {
        let mut scaler = Scaler::new(1, PACE);
        let said = (1..=100).map(|i| {
            let measured = Measured::Said(if i <= tells { idle.clone() } else { nothing.clone() });
            let panorama = Panorama { seen: vec![seen(1, 1, sight(0, 0, 0))], measured, ..Panorama::default() };
            scaler.look(&state, panorama, i * TICK).intents.len()
        });
        assert_eq!(said.sum::<usize>() > 0, sleeps, "told for {tells} looks");
    }
}

/// Two services of a tenant, m1 and m2, with four replicas of a tenth of a GPU each, all of them ready.
fn two_services(priority: i16) -> State {
    let mut state = world();
    let of = state.services().next().unwrap().spec.clone();
    let spec = JobSpec { model: ModelId::new("m2").unwrap(), priority, ..(*of).clone() };
    testing::run(&mut state, testing::schedule("s2", spec));
    for request in ["s1", "s2"] {
        let target = Target { replicas: 4, why: Why::Asked, inputs: None, seen: None, learned: None };
        testing::run(&mut state, Intent::Scale { request: RequestId::new(request).unwrap(), tenant: None, target });
    }
    testing::run(&mut state, Intent::PlaceWaiting);
    agent(&mut state);
    assert_eq!(desired(&state), [4, 4]);
    state
}

fn desired(state: &State) -> Vec<u16> {
    state.services().map(|job| job.desired()).collect()
}

fn quota(state: &mut State, gpu_milli: u64) {
    let quota = nf_core::tenant::Quota { gpu_milli: Some(gpu_milli), ..Default::default() };
    testing::run(state, Intent::SetQuota { tenant: TenantId::new("t1").unwrap(), quota });
}

/// Both services of [`two_services`] have more to do than they can.
fn both_busy(i: u64) -> Panorama {
    let sights = vec![sight_of("m1", i * 8, 10, 8), sight_of("m2", i * 8, 10, 8)];
    let seen = vec![(MemberId(1), Seen { epoch: 1, sights, advice: vec![] })];
    Panorama { seen, ..Panorama::default() }
}

#[test]
fn a_quota_that_is_cut_is_shared_by_the_services_it_is_left_for() {
    for (priority, left) in [(0, [2, 2]), (9, [0, 4]), (-9, [4, 0])] {
        let (mut state, mut scaler) = (two_services(priority), Scaler::new(1, PACE));
        for i in 1..30 {
            let intents = scaler.look(&state, both_busy(i), i * TICK).intents;
            run(&mut state, intents);
        }
        assert_eq!(desired(&state), [4, 4]);
        quota(&mut state, 400);
        let Looked { intents, looks, .. } = scaler.look(&state, both_busy(30), 30 * TICK);
        let cut: Vec<_> = looks.iter().filter(|look| look.acts()).map(|look| look.decision.why).collect();
        assert!(!cut.is_empty() && cut.iter().all(|why| *why == Why::QuotaLimit), "{cut:?}");
        run(&mut state, intents);
        assert_eq!(desired(&state), left, "priority {priority}");
        let intents = scaler.look(&state, both_busy(31), 31 * TICK).intents;
        run(&mut state, intents);
        assert_eq!(desired(&state), left, "and it stays like that");
    }
}

#[test]
fn a_new_leader_shares_what_is_left_as_well() {
    let (mut state, mut scaler) = (two_services(0), Scaler::new(1, PACE));
    quota(&mut state, 400);
    let intents = scaler.look(&state, both_busy(1), TICK).intents;
    run(&mut state, intents);
    assert_eq!(desired(&state), [2, 2]);
}

#[test]
fn who_grows_at_the_same_time_shares_what_there_is() {
    let (mut state, mut scaler) = (two_services(0), Scaler::new(1, PACE));
    for request in ["s1", "s2"] {
        let target = Target { replicas: 1, why: Why::Asked, inputs: None, seen: None, learned: None };
        testing::run(&mut state, Intent::Scale { request: RequestId::new(request).unwrap(), tenant: None, target });
    }
    quota(&mut state, 500);
    for i in 1..30 {
        let intents = scaler.look(&state, both_busy(i), i * TICK).intents;
        run(&mut state, intents);
        assert!(desired(&state).iter().sum::<u16>() <= 5, "at look {i}: {:?}", desired(&state));
    }
    assert_eq!(desired(&state), [3, 2]);
}

#[test]
fn a_silent_member_keeps_only_what_it_may_carry_and_nothing_from_growing() {
    let (mut state, mut scaler) = (two_services(0), Scaler::new(1, PACE));
    testing::run(&mut state, testing::register("m2", testing::node_spec(1)));
    testing::run(&mut state, member(2, "m2"));
    // Each member has requests of one of them.
    let look = |scaler: &mut Scaler, state: &State, i: u64, both: bool, came: u64, waiting: u32| {
        let mut seen = vec![seen(1, 1, sight_of("m1", came, waiting, 0))];
        let other = (MemberId(2), Seen { epoch: 2, sights: vec![sight_of("m2", 20, 0, 2)], advice: vec![] });
        let silent = if both { vec![] } else { vec![MemberId(2)] };
        seen.extend(both.then_some(other));
        scaler.look(state, Panorama { seen, silent, ..Panorama::default() }, i * TICK)
    };
    for i in 1..5 {
        look(&mut scaler, &state, i, true, 0, 0);
    }
    let mut gap = None;
    for i in 5..200 {
        let Looked { intents, looks, .. } = look(&mut scaler, &state, i, false, 0, 0);
        gap = looks.last().unwrap().advice().gap;
        run(&mut state, intents);
    }
    assert_eq!(desired(&state), [0, 4], "the first one is idle for all that anybody knows");
    assert_eq!(gap.as_deref(), Some("counts of 1 of 2 gateways"));
    for i in 200..230 {
        let intents = look(&mut scaler, &state, i, false, (i - 199) * 20, 12).intents;
        run(&mut state, intents);
    }
    assert!(desired(&state)[0] >= 3, "it grows meanwhile: {:?}", desired(&state));
}

#[test]
fn replicas_that_say_nothing_any_more_are_not_idle() {
    let (mut state, mut scaler) = (two_services(0), Scaler::new(1, PACE));
    let all: Vec<_> = state.services().next().map(|job| ready(job)).unwrap();
    let told = |say: usize, running: u64, answered: u64| {
        let told = |(_, id, generation): &(NodeNo, ReplicaId, Generation)| Told {
            id: *id,
            generation: *generation,
            running_m: Some(running * 1000),
            waiting_m: Some(0),
            answered: Some(answered),
            p95_ms: None,
            kv_m: None,
            first_token_ms: None,
        };
        BTreeMap::from([(all[0].0, Word { age_ms: 700, told: all.iter().take(say).map(told).collect() })])
    };
    for i in 1..200 {
        // All of them are busy, past every gateway; then three of them fall silent and one is idle.
        let told = if i < 20 { told(4, 2, 2 * i) } else { told(1, 0, 38) };
        let seen = vec![seen(1, 1, sight(0, 0, 0))];
        let Looked { intents, looks, .. } =
            scaler.look(&state, Panorama { seen, told, ..Panorama::default() }, i * TICK);
        let advice = looks[0].advice();
        assert_eq!(advice.age_ms, Some(700));
        if i >= 20 {
            assert_eq!((advice.desired, advice.gap.as_deref()), (4, Some("signals of 1 of 4 replicas")), "look {i}");
        }
        run(&mut state, intents);
    }
    assert_eq!(desired(&state)[0], 4);
}

#[test]
fn a_journal_of_looks_can_be_played_again() {
    let (mut state, mut scaler) = (two_services(0), Scaler::new(7, PACE));
    let mut replay = nf_core::autoscaler::journal::Replay::default();
    for i in 1..120 {
        match i {
            40 => quota(&mut state, 500),
            60 => quota(&mut state, 100_000),
            _ => {}
        }
        let panorama =
            if i < 80 { both_busy(i) } else { Panorama { silent: vec![MemberId(1)], ..Panorama::default() } };
        let Looked { intents, records, .. } = scaler.look(&state, panorama, i * TICK);
        records.into_iter().for_each(|record| replay.take(record));
        run(&mut state, intents);
    }
    let played = replay.end();
    assert_eq!((played.looks, played.services, played.without_beginning), (238, 2, 0));
    assert_eq!(played.differences, []);
}
