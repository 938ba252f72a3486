//! Windows, the meter, and what may start, by example and at random.

use super::*;
use crate::command::{Report, ReportKind};
use crate::id::{DeviceType, Incarnation, JobNo, NodeName, RequestId, TenantId};
use crate::job::{JobSpec, Phase, Stage};
use crate::plan::Intent;
use crate::reason::Reason;
use crate::resources::Gpus;
use crate::scaling::{Scaling, Target};
use crate::sim::Rng;
use crate::state::State;
use crate::tenant::Quota;
use crate::{invariants, testing};

/// 2026-11-29 06:00 UTC, a Sunday.
const SUNDAY: u64 = 1_795_932_000_000;

#[test]
fn windows_follow_the_calendar() {
    let day = |window: Window, at| (midnight(window.start_ms(at)), midnight(window.end_ms(at)));
    let of = |from: &str, to: &str| (format!("{from} 00:00 UTC"), format!("{to} 00:00 UTC"));
    assert_eq!(day(Window::Day, SUNDAY), of("2026-11-29", "2026-11-30"));
    assert_eq!(day(Window::Week, SUNDAY), of("2026-11-23", "2026-11-30"));
    assert_eq!(day(Window::Month, SUNDAY), of("2026-11-01", "2026-12-01"));
    let february = |days: u64| days * DAY_MS + 5;
    assert_eq!(day(Window::Month, february(11_016)), of("2000-02-01", "2000-03-01"), "29 days long");
    assert_eq!(day(Window::Month, february(47_540)), of("2100-02-01", "2100-03-01"), "28 days long");
    assert_eq!(Window::Month.end_ms(february(11_016)) - Window::Month.start_ms(february(11_016)), 29 * DAY_MS);
    assert_eq!(Window::Month.end_ms(february(47_540)) - Window::Month.start_ms(february(47_540)), 28 * DAY_MS);
}

#[test]
fn windows_follow_one_another_without_a_gap() {
    let mut rng = Rng::new(1);
    for _ in 0..20_000 {
        let at = rng.below(400 * 366 * DAY_MS);
        for window in Window::ALL {
            let (start, end) = (window.start_ms(at), window.end_ms(at));
            assert!(start <= at && at < end && end - start <= window.longest_ms(), "{window:?} at {at}");
            assert_eq!(window.start_ms(end), end, "{window:?} at {at}");
            assert_eq!((window.start_ms(end - 1), window.end_ms(start)), (start, end), "{window:?} at {at}");
        }
    }
    for window in Window::ALL {
        assert!(window.end_ms(crate::apply::END_OF_TIME_MS) > crate::apply::END_OF_TIME_MS);
    }
}

#[test]
fn a_meter_splits_what_it_counts_at_the_windows() {
    let rates = Rates { held: [1000, 5], ..Rates::default() };
    let meter = Meter { at_ms: SUNDAY, rates, ..Meter::default() };
    let hours = |meter: &Meter, window| meter.used(Kind::GpuHours, window) / Kind::GpuHours.scale();
    let later = meter.at(SUNDAY + 20 * HOUR_MS);
    assert_eq!(Window::ALL.map(|w| hours(&later, w)), [2_000, 2_000, 20_000]);
    assert_eq!(later.used_before(Kind::GpuHours, Window::Day) / Kind::GpuHours.scale(), 18_000);
    // Over a whole week that nobody looked at.
    let much_later = meter.at(SUNDAY + (18 + 9 * 24) * HOUR_MS);
    assert_eq!(Window::ALL.map(|w| hours(&much_later, w)), [0, 48_000, 24_000 * 8]);
    assert_eq!(much_later.used_before(Kind::GpuHours, Window::Week) / Kind::GpuHours.scale(), 7 * 24_000);
    assert_eq!(much_later.total[1], 5 * u128::from((18 + 9 * 24) * HOUR_MS));
    // Counted in many steps it is the same.
    let mut rng = Rng::new(5);
    let mut steps = meter;
    while steps.at_ms < much_later.at_ms {
        steps = steps.at((steps.at_ms + rng.between(1, 30 * HOUR_MS)).min(much_later.at_ms));
    }
    assert_eq!(steps, much_later);
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn hours(window: Window, gpu_hours: u64) -> Budgets {
    let mut budgets = Budgets::default();
    budgets.gpu_hours[window as usize] = Some(gpu_hours * 1000);
    budgets
}

fn money(window: Window, units: u64) -> Budgets {
    let mut budgets = Budgets::default();
    budgets.money[window as usize] = Some(units * 1_000_000);
    budgets
}

fn set(state: &mut State, name: &str, above: Option<&str>, budgets: Budgets) {
    let quota =
        Quota { gpu_milli: Some(1_000_000), parent: above.map(tenant), budgets: budgets.some(), ..Quota::default() };
    testing::run(state, Intent::SetQuota { tenant: tenant(name), quota });
}

/// A node of eight GPUs at two units an hour each, on Sunday morning.
fn world() -> State {
    let mut state = State::new();
    let mut node = testing::node_spec(8);
    node.cost_per_hour.insert(DeviceType::new("H100-80G").unwrap(), 2_000_000);
    testing::try_run_at(&mut state, testing::register("n1", node), SUNDAY).unwrap();
    state
}

fn later(state: &mut State, at_ms: u64) {
    for intent in [Intent::Budgets, Intent::PlaceWaiting] {
        testing::try_run_at(state, intent, at_ms).unwrap();
    }
    assert_eq!(invariants::check(state), []);
}

fn held(state: &State, name: &str) -> u64 {
    state.ledger().tenant(state.tenant_named(&tenant(name)).unwrap().no).gpu_milli
}

fn used(state: &State, name: &str, kind: Kind, window: Window) -> u64 {
    kind.told(state.meter(state.tenant_named(&tenant(name)).unwrap().no).used(kind, window))
}

fn why(state: &State, request: &str) -> Vec<(Reason, bool)> {
    let job = state.job_of(&RequestId::new(request).unwrap()).unwrap();
    let found = crate::placement::explain::blockers(state, job);
    found.into_iter().map(|blocker| (blocker.reason, blocker.permanent)).collect()
}

fn submit(state: &mut State, request: &str, spec: JobSpec) {
    testing::run(state, testing::schedule(request, spec));
    assert_eq!(invariants::check(state), []);
}

fn service(name: &str, min: u16, max: u16) -> JobSpec {
    let scaling = Scaling { min, max, ..Scaling::default() };
    JobSpec { scaling: Some(scaling), replicas: min.max(1), ..testing::job_spec(name, Gpus::Whole(1)) }
}

fn scale(state: &mut State, request: &str, to: u16) {
    let target =
        Target { replicas: to, why: crate::autoscaler::Why::QueueDepth, inputs: None, seen: None, learned: None };
    testing::run(state, Intent::Scale { request: RequestId::new(request).unwrap(), tenant: None, target });
    testing::run(state, Intent::PlaceWaiting);
    assert_eq!(invariants::check(state), []);
}

/// The agent does what it should.
fn agent(state: &mut State) {
    let mut reports = Vec::new();
    for job in state.jobs().values() {
        for (no, replica) in job.replicas.iter().enumerate() {
            let kind = match &replica.phase {
                Phase::Held { stage, .. } if *stage != Stage::Ready => ReportKind::Stage(Stage::Ready),
                Phase::Stopping { why, .. } => ReportKind::Ended { ok: true, why: *why },
                _ => continue,
            };
            reports.push(Report { job: job.no, replica: no as u16, generation: replica.generation, kind });
        }
    }
    let (node, incarnation) = (NodeName::new("n1").unwrap(), Incarnation(1));
    testing::run(state, Intent::Reports { node, incarnation, reports });
    assert_eq!(invariants::check(state), []);
}

#[test]
fn what_runs_for_ever_is_paid_to_the_end_and_must_fit_a_whole_window() {
    let mut state = world();
    set(&mut state, "t1", None, hours(Window::Day, 60));
    submit(&mut state, "two", testing::job_spec("t1", Gpus::Whole(2)));
    assert_eq!(held(&state, "t1"), 2000);
    submit(&mut state, "never", testing::job_spec("t1", Gpus::Whole(3)));
    assert_eq!(why(&state, "never"), [(Reason::BudgetExhausted, true)], "72 a day are more than 60");
    submit(&mut state, "one", testing::job_spec("t1", Gpus::Whole(1)));
    assert_eq!(why(&state, "one"), [(Reason::BudgetExhausted, false)], "runs when the two have ended");
    // One that ends by itself is paid for as long as it takes.
    let mut short = testing::job_spec("t1", Gpus::Whole(4));
    short.constraints.max_run_ms = Some(4 * HOUR_MS);
    submit(&mut state, "short", short.clone());
    assert_eq!(held(&state, "t1"), 6000, "36 to the end of the day, and 17 for four hours and a quarter");
    short.resources.gpu = Gpus::Whole(2);
    submit(&mut state, "second", short);
    let blocker = &crate::placement::explain::blockers(&state, state.job(JobNo(5)).unwrap())[0];
    let text = "needs 8.5 GPU-hours ahead; tenant t1 has used 0 of 60 this day and keeps 53 for what runs; the day ends \
                2026-11-30 00:00 UTC";
    assert_eq!((blocker.reason, blocker.detail.as_str()), (Reason::BudgetExhausted, text));
    later(&mut state, SUNDAY + HOUR_MS / 2);
    assert_eq!(used(&state, "t1", Kind::GpuHours, Window::Day), 3_000);
}

#[test]
fn a_tenant_is_told_that_a_budget_above_is_in_the_way_and_not_whose() {
    let over = |above, whole| Over {
        tenant: tenant("parent-org"),
        above,
        limit: Limit { kind: Kind::GpuHours, window: Window::Day, most: 777_000 * Kind::GpuHours.scale() },
        used: 400_000 * Kind::GpuHours.scale(),
        reserved: 300_000 * Kind::GpuHours.scale(),
        ask: 100_000 * Kind::GpuHours.scale(),
        ends_ms: 0,
        whole,
        never: false,
    };
    for whole in [false, true] {
        let told = over(true, whole).blocker().detail;
        assert!(told.contains("a budget above its tenant") && told.contains("100"), "{told}");
        assert!(!["parent-org", "777", "400", "300"].iter().any(|secret| told.contains(secret)), "{told}");
        let own = over(false, whole).blocker().detail;
        assert!(own.contains("parent-org") && own.contains("777"), "{own}");
    }
    assert!(over(true, false).blocker().detail.contains("has 77 left"), "how much it may have is its own business");
}

#[test]
fn money_is_counted_by_the_price_of_the_device_and_a_childs_counts_for_those_above() {
    let mut state = world();
    set(&mut state, "org", None, money(Window::Day, 100));
    set(&mut state, "team", Some("org"), hours(Window::Month, 10_000));
    submit(&mut state, "a", testing::job_spec("team", Gpus::Milli(500)));
    submit(&mut state, "b", testing::job_spec("org", Gpus::Whole(1)));
    submit(&mut state, "c", testing::job_spec("team", Gpus::Whole(1)));
    assert_eq!(why(&state, "c"), [(Reason::BudgetExhausted, false)], "72 of a hundred a day, 48 more");
    later(&mut state, SUNDAY + 2 * HOUR_MS);
    assert_eq!(used(&state, "org", Kind::Money, Window::Day), 6_000_000);
    assert_eq!(used(&state, "team", Kind::Money, Window::Month), 2_000_000);
    assert_eq!(used(&state, "team", Kind::GpuHours, Window::Week), 1_000);
    // A team that leaves takes what it uses from now on with it, and leaves what it used.
    set(&mut state, "other", None, Budgets::default());
    set(&mut state, "team", Some("other"), Budgets::default());
    assert_eq!(invariants::check(&state), []);
    later(&mut state, SUNDAY + 4 * HOUR_MS);
    assert_eq!(used(&state, "org", Kind::Money, Window::Day), 10_000_000);
    assert_eq!(used(&state, "other", Kind::Money, Window::Day), 2_000_000);
    assert_eq!(why(&state, "c"), [], "it has its place");
}

#[test]
fn a_new_price_counts_from_now_on() {
    let mut state = world();
    submit(&mut state, "a", testing::job_spec("t1", Gpus::Whole(1)));
    later(&mut state, SUNDAY + HOUR_MS);
    let mut node = testing::node_spec(8);
    node.cost_per_hour.insert(DeviceType::new("H100-80G").unwrap(), 5_000_000);
    testing::run(&mut state, testing::register("n1", node));
    assert_eq!(invariants::check(&state), []);
    later(&mut state, SUNDAY + 2 * HOUR_MS);
    assert_eq!(used(&state, "t1", Kind::Money, Window::Day), 7_000_000);
}

#[test]
fn a_service_gives_up_what_it_can_do_without_before_the_limit_and_gets_it_back_with_the_window() {
    let mut state = world();
    // The one that is sure takes 18 hours to the end of the day; eight more are left.
    set(&mut state, "t1", None, hours(Window::Day, 26));
    submit(&mut state, "s1", service("t1", 1, 8));
    agent(&mut state);
    scale(&mut state, "s1", 8);
    agent(&mut state);
    assert_eq!(held(&state, "t1"), 8000, "seven more for half an hour are three and a half");
    let (mut most, mut at, mut cuts) = (8000, SUNDAY, Vec::new());
    let end = Window::Day.end_ms(SUNDAY);
    while let Some(due) = keep::next_ms(&state).filter(|due| *due < end) {
        assert!(due > at || cuts.is_empty(), "no look without a step forward");
        at = due;
        later(&mut state, due + 30_000);
        agent(&mut state);
        let now = held(&state, "t1");
        if now < most {
            cuts.push(now);
        }
        most = now;
        assert!(used(&state, "t1", Kind::GpuHours, Window::Day) <= 26_000);
    }
    assert_eq!(cuts.last(), Some(&1000), "the last one stays: {cuts:?}");
    assert!(cuts.len() > 1 && cuts.len() < 8, "a part at a time: {cuts:?}");
    scale(&mut state, "s1", 4);
    assert_eq!(held(&state, "t1"), 1000);
    assert_eq!(why(&state, "s1"), [(Reason::BudgetExhausted, false)]);
    // Just before the end those who wait would need so little that they had it.
    later(&mut state, end - 16 * 60_000);
    assert!((25_400..=26_000).contains(&used(&state, "t1", Kind::GpuHours, Window::Day)), "nearly all was of use");
    assert_eq!(held(&state, "t1"), 1000);
    // Nothing but the deadline tells the leader.
    assert_eq!(keep::next_ms(&state), Some(end));
    let room = state.room();
    testing::try_run_at(&mut state, Intent::Budgets, end).unwrap();
    assert!(state.room() > room, "waiters get another look");
    later(&mut state, end);
    assert_eq!(
        (held(&state, "t1"), used(&state, "t1", Kind::GpuHours, Window::Day)),
        (4000, 0),
        "three for half an hour"
    );
}

#[test]
fn what_was_paid_starts_again_though_all_is_spent() {
    let mut state = world();
    set(&mut state, "t1", None, hours(Window::Day, 30));
    submit(&mut state, "s1", service("t1", 1, 2));
    agent(&mut state);
    later(&mut state, SUNDAY + HOUR_MS);
    set(&mut state, "t1", None, hours(Window::Day, 1));
    // Its program fails: it waits for a moment, and then has what it had.
    let report = Report {
        job: JobNo(1),
        replica: 0,
        generation: crate::id::Generation(1),
        kind: ReportKind::Ended { ok: false, why: Reason::ExitedNonZero },
    };
    let (node, incarnation) = (NodeName::new("n1").unwrap(), Incarnation(1));
    testing::run(&mut state, Intent::Reports { node, incarnation, reports: vec![report] });
    assert_eq!(held(&state, "t1"), 0);
    later(&mut state, SUNDAY + HOUR_MS + 5_000);
    assert_eq!((held(&state, "t1"), why(&state, "s1")), (1000, vec![]));
    submit(&mut state, "new", testing::job_spec("t1", Gpus::Milli(1)));
    assert_eq!(why(&state, "new").len(), 1, "nothing new starts");
}

#[test]
fn what_a_job_has_run_of_its_time_is_used_and_not_kept_as_well() {
    let mut state = world();
    set(&mut state, "t1", None, hours(Window::Day, 13));
    let limited = |run_ms: u64| {
        let mut spec = testing::job_spec("t1", Gpus::Whole(1));
        spec.constraints.max_run_ms = Some(run_ms);
        spec
    };
    submit(&mut state, "long", limited(10 * HOUR_MS));
    agent(&mut state);
    later(&mut state, SUNDAY + 8 * HOUR_MS);
    // Eight hours are used, two are kept.
    submit(&mut state, "four", limited(4 * HOUR_MS));
    assert_eq!(why(&state, "four"), [(Reason::BudgetExhausted, false)]);
    submit(&mut state, "two", limited(2 * HOUR_MS));
    assert_eq!((held(&state, "t1"), why(&state, "two")), (2000, vec![]));
    let _ = state.take_changes();
    assert_eq!(invariants::check(&State::from_rows(state.live_rows()).unwrap()), []);
}

#[test]
fn a_restart_finds_the_meter_where_it_was() {
    let mut state = world();
    set(&mut state, "org", None, hours(Window::Week, 1_000));
    set(&mut state, "team", Some("org"), hours(Window::Day, 100));
    submit(&mut state, "a", service("team", 1, 4));
    scale(&mut state, "a", 3);
    later(&mut state, SUNDAY + HOUR_MS);
    let _ = state.take_changes();
    let mut again = State::from_rows(state.live_rows()).unwrap();
    assert_eq!(invariants::check(&again), []);
    let at = SUNDAY + 100 * HOUR_MS;
    later(&mut state, at);
    later(&mut again, at);
    for name in ["org", "team"] {
        let no = state.tenant_named(&tenant(name)).unwrap().no;
        assert_eq!(state.meter(no), again.meter(no), "{name}");
    }
    let _ = (state.take_changes(), again.take_changes());
    assert_eq!(state.hash(), again.hash());
    assert_eq!(keep::next_ms(&state), keep::next_ms(&again));
}

#[test]
fn quantities_are_told_as_people_count() {
    assert_eq!(Kind::GpuHours.text(1500 * Kind::GpuHours.scale()), "1.5");
    assert_eq!(Kind::GpuHours.text(1), "0.001", "rounded up");
    assert_eq!(Kind::Money.text(20_000_000 * Kind::Money.scale()), "20");
    assert_eq!(Kind::Money.told(u128::MAX), u64::MAX);
}

/// To be spread is a wish: where the other node is too dear, the cheap one does.
#[test]
fn a_dear_node_that_is_preferred_keeps_nothing_from_a_cheap_one() {
    let mut state = world();
    let mut dear = testing::node_spec(8);
    dear.cost_per_hour.insert(DeviceType::new("H100-80G").unwrap(), 500_000_000);
    testing::try_run_at(&mut state, testing::register("n2", dear), SUNDAY).unwrap();
    set(&mut state, "t1", None, money(Window::Day, 500));
    let mut spec = testing::job_spec("t1", Gpus::Whole(1));
    (spec.replicas, spec.constraints.arrangement) = (2, crate::job::Arrangement::Spread);
    spec.constraints.max_run_ms = Some(2 * HOUR_MS);
    testing::try_run_at(&mut state, testing::schedule("r1", spec), SUNDAY).unwrap();
    later(&mut state, SUNDAY + 1);
    assert_eq!(held(&state, "t1"), 2000, "both run on the node that can be paid");
}

/// Who can pay the cheap node alone waits for room there: it is kept for it, and the dear one is not.
#[test]
fn a_cheap_node_is_kept_for_who_can_pay_no_other() {
    let mut state = world();
    let mut dear = testing::node_spec(8);
    dear.cost_per_hour.insert(DeviceType::new("H100-80G").unwrap(), 500_000_000);
    testing::try_run_at(&mut state, testing::register("n2", dear), SUNDAY).unwrap();
    set(&mut state, "t1", None, money(Window::Day, 500));
    set(&mut state, "t2", None, Budgets::default());
    let job = |tenant: &str, gpus, on: Option<&str>, priority| {
        let mut spec = testing::job_spec(tenant, Gpus::Whole(gpus));
        spec.constraints.node = on.map(|node| NodeName::new(node).unwrap());
        (spec.priority, spec.constraints.max_run_ms) = (priority, Some(2 * HOUR_MS));
        spec
    };
    testing::try_run_at(&mut state, testing::schedule("there", job("t2", 1, Some("n1"), 0)), SUNDAY).unwrap();
    testing::try_run_at(&mut state, testing::schedule("big", job("t1", 8, None, 10)), SUNDAY).unwrap();
    testing::try_run_at(&mut state, testing::schedule("small", job("t2", 1, Some("n1"), 0)), SUNDAY).unwrap();
    testing::try_run_at(&mut state, testing::schedule("else", job("t2", 1, Some("n2"), 0)), SUNDAY).unwrap();
    later(&mut state, SUNDAY + 1);
    assert_eq!((held(&state, "t1"), held(&state, "t2")), (0, 2000), "n1 is kept for `big`; n2 is nobody's");
}
