//! Later and smaller work starves nobody who waits for quota or a budget.

use crate::budget::{Budgets, Kind, Window};
use crate::command::{Report, ReportKind};
use crate::id::{DeviceType, RequestId, TenantId};
use crate::job::{JobSpec, Restart};
use crate::plan::{Intent, Queueing, draft, plan};
use crate::reason::Reason;
use crate::resources::Gpus;
use crate::state::State;
use crate::tenant::Quota;
use crate::testing;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

fn gpus(gpus: u64) -> Quota {
    Quota { gpu_milli: Some(gpus * 1000), ..Quota::default() }
}

fn below(parent: &str, nominal: u64) -> Quota {
    Quota { parent: Some(TenantId::new(parent).unwrap()), ..gpus(nominal) }
}

fn tenant(state: &mut State, name: &str, quota: Quota) {
    testing::run(state, Intent::SetQuota { tenant: TenantId::new(name).unwrap(), quota });
}

/// Four nodes of eight GPUs, more than anybody here may hold.
fn cluster() -> State {
    let mut state = State::new();
    for i in 0..4 {
        testing::run(&mut state, testing::register(&format!("n{i}"), testing::node_spec(8)));
    }
    state
}

/// Ends by itself, nobody knows when.
fn batch(tenant: &str, gpus: u16) -> JobSpec {
    let mut spec = testing::job_spec(tenant, Gpus::Whole(gpus));
    spec.constraints.restart = Restart::Never;
    spec
}

/// Ends after so long at the latest.
fn limited(tenant: &str, gpus: u16, most_ms: u64) -> JobSpec {
    let mut spec = batch(tenant, gpus);
    spec.constraints.max_run_ms = Some(most_ms);
    spec
}

fn runs(state: &State, request: &str) -> bool {
    let job = state.job_of(&RequestId::new(request).unwrap()).unwrap();
    job.replicas.iter().all(|replica| replica.allocation().is_some())
}

/// Schedules it, looks at the queue, and says whether it runs.
fn comes(state: &mut State, request: &str, spec: JobSpec) -> bool {
    let placed = !draft(state, &spec).picks.is_empty();
    testing::run(state, testing::schedule(request, spec));
    assert_eq!(runs(state, request), placed, "{request}: as planned");
    pass(state);
    runs(state, request)
}

fn pass(state: &mut State) {
    let at_ms = state.meta().now_ms;
    pass_at(state, at_ms);
}

fn pass_at(state: &mut State, at_ms: u64) {
    testing::try_run_at(state, Intent::PlaceWaiting, at_ms).unwrap();
    assert_eq!(crate::invariants::check(state), []);
}

fn ends(state: &mut State, request: &str) {
    let job = state.job_of(&RequestId::new(request).unwrap()).unwrap().clone();
    let node = state.node(job.replicas[0].allocation().unwrap().node).unwrap();
    let kind = ReportKind::Ended { ok: true, why: Reason::Completed };
    let report = Report { job: job.no, replica: 0, generation: job.replicas[0].generation, kind };
    let intent = Intent::Reports { node: node.name.clone(), incarnation: node.incarnation, reports: vec![report] };
    testing::run(state, intent);
    pass(state);
}

fn reasons(state: &State, request: &str) -> Vec<Reason> {
    let job = state.job_of(&RequestId::new(request).unwrap()).unwrap();
    super::super::explain::blockers(state, job).iter().map(|blocker| blocker.reason).collect()
}

#[test]
fn who_waits_for_quota_is_not_starved_by_later_and_smaller_work() {
    let mut state = cluster();
    tenant(&mut state, "t1", gpus(8));
    assert!(comes(&mut state, "first", batch("t1", 4)));
    assert!(!comes(&mut state, "large", batch("t1", 8)));
    assert_eq!(reasons(&state, "large"), [Reason::WaitingForQuota]);
    for i in 0..8 {
        assert!(!comes(&mut state, &format!("small-{i}"), batch("t1", 1)), "small-{i}");
        assert_eq!(reasons(&state, &format!("small-{i}")), [Reason::Priority]);
    }
    // Another tenant's quota is its own, and so are urgent jobs ahead.
    assert!(comes(&mut state, "other", batch("t2", 1)));
    let urgent = JobSpec { priority: 10, ..batch("t1", 1) };
    assert!(comes(&mut state, "urgent", urgent));
    ends(&mut state, "first");
    ends(&mut state, "urgent");
    assert!(runs(&state, "large"));
    ends(&mut state, "large");
    assert!((0..8).all(|i| runs(&state, &format!("small-{i}"))));
}

#[test]
fn what_ends_before_the_quota_comes_free_goes_first() {
    let mut state = cluster();
    tenant(&mut state, "t1", gpus(8));
    assert!(comes(&mut state, "soon", limited("t1", 1, 5 * MINUTE)));
    assert!(comes(&mut state, "first", limited("t1", 4, 20 * MINUTE)));
    assert!(!comes(&mut state, "large", batch("t1", 7)));
    assert!(comes(&mut state, "short", limited("t1", 1, 19 * MINUTE)));
    assert!(!comes(&mut state, "long", limited("t1", 1, 21 * MINUTE)));
    assert!(!comes(&mut state, "unknown", batch("t1", 1)));
    // What takes none of what lacks is in nobody's way.
    assert!(comes(&mut state, "without", testing::job_spec("t1", Gpus::None)));
}

#[test]
fn a_quota_is_kept_while_its_waiter_waits_for_room() {
    let mut state = State::new();
    testing::run(&mut state, testing::register("large", testing::node_spec(8)));
    testing::run(&mut state, testing::register("small", testing::node_spec(4)));
    tenant(&mut state, "t1", gpus(8));
    tenant(&mut state, "t2", gpus(8));
    assert!(comes(&mut state, "first", batch("t2", 8)));
    assert!(!comes(&mut state, "large", batch("t1", 8)));
    assert!(reasons(&state, "large").contains(&Reason::Resources));
    assert!(!comes(&mut state, "small", batch("t1", 1)), "it would take the quota that the first one has");
    ends(&mut state, "first");
    assert!(runs(&state, "large"));
}

#[test]
fn what_services_hold_is_kept_for_an_hour() {
    let mut state = cluster();
    tenant(&mut state, "t1", gpus(8));
    assert!(comes(&mut state, "service", testing::job_spec("t1", Gpus::Whole(4))));
    assert!(!comes(&mut state, "large", batch("t1", 8)));
    assert!(!comes(&mut state, "small", batch("t1", 1)));
    pass_at(&mut state, HOUR - 1);
    assert!(!runs(&state, "small"));
    pass_at(&mut state, HOUR);
    assert!(runs(&state, "small"));
}

#[test]
fn what_can_never_run_keeps_nothing() {
    let mut state = cluster();
    tenant(&mut state, "t1", gpus(8));
    assert!(comes(&mut state, "first", batch("t1", 4)));
    assert!(!comes(&mut state, "never", batch("t1", 9)));
    let mut elsewhere = batch("t1", 8);
    elsewhere.resources.device_types = vec![DeviceType::new("B200").unwrap()];
    assert!(!comes(&mut state, "nowhere", elsewhere));
    let gang = JobSpec { replicas: 40, gang: true, ..testing::job_spec("t1", Gpus::None) };
    assert!(comes(&mut state, "gang", gang), "no GPUs, no quota");
    assert!(comes(&mut state, "small", batch("t1", 1)));
}

#[test]
fn a_limit_of_the_tree_is_kept_from_who_borrows_and_not_from_its_owner() {
    let mut state = cluster();
    tenant(&mut state, "root", gpus(2));
    for (name, nominal) in [("a", 4), ("b", 2), ("c", 0)] {
        tenant(&mut state, name, below("root", nominal));
    }
    assert!(comes(&mut state, "b1", batch("b", 2)));
    assert!(comes(&mut state, "b2", batch("b", 1)));
    assert!(comes(&mut state, "c1", batch("c", 1)));
    assert!(!comes(&mut state, "large", batch("b", 8)));
    assert_eq!(reasons(&state, "large"), [Reason::WaitingForQuota]);
    assert!(!comes(&mut state, "own", batch("b", 1)));
    assert!(!comes(&mut state, "borrows", batch("c", 1)));
    assert_eq!(reasons(&state, "borrows"), [Reason::Priority]);
    assert!(comes(&mut state, "owner", batch("a", 1)));
    for done in ["b1", "b2", "owner", "c1"] {
        assert!(!runs(&state, "large"));
        ends(&mut state, done);
    }
    assert!(runs(&state, "large"));
}

#[test]
fn a_limit_below_is_nothing_to_the_tenants_beside_it() {
    let mut state = cluster();
    tenant(&mut state, "root", gpus(4));
    tenant(&mut state, "b", Quota { borrow_milli: Some(2000), ..below("root", 2) });
    tenant(&mut state, "c", below("root", 0));
    assert!(comes(&mut state, "b1", batch("b", 2)));
    assert!(!comes(&mut state, "large", batch("b", 4)));
    // It lacks its own limit: what the root has left it could not have.
    assert!(comes(&mut state, "c1", batch("c", 2)));
}

#[test]
fn who_waits_for_a_budget_is_not_starved() {
    let mut state = cluster();
    let start = 10 * 24 * HOUR;
    testing::try_run_at(&mut state, Intent::Tick, start).unwrap();
    let mut budgets = Budgets::default();
    budgets.set(Kind::GpuHours, Window::Day, 8_000);
    tenant(&mut state, "t1", Quota { budgets: budgets.some(), ..gpus(64) });
    assert!(comes(&mut state, "first", limited("t1", 1, 4 * HOUR)));
    assert!(!comes(&mut state, "large", limited("t1", 6, HOUR)));
    assert_eq!(reasons(&state, "large"), [Reason::BudgetExhausted]);
    testing::try_run_at(&mut state, Intent::Tick, start + HOUR).unwrap();
    ends(&mut state, "first");
    assert!(!runs(&state, "large"), "it would use 7.5 of the 7 that are left");
    // Over before the day is; the next day's budget is not touched.
    assert!(comes(&mut state, "short", limited("t1", 1, HOUR)));
    testing::try_run_at(&mut state, Intent::Tick, start + HOUR + 30 * MINUTE).unwrap();
    ends(&mut state, "short");
    testing::try_run_at(&mut state, Intent::Tick, start + 22 * HOUR).unwrap();
    assert!(!comes(&mut state, "long", limited("t1", 1, 3 * HOUR)), "it would use some of the next day's");
    assert_eq!(reasons(&state, "long"), [Reason::Priority]);
    pass_at(&mut state, start + 24 * HOUR);
    assert!(runs(&state, "large"));
}

#[test]
fn never_queued_and_held_back_is_refused_with_its_reason() {
    let mut state = cluster();
    tenant(&mut state, "t1", gpus(8));
    assert!(comes(&mut state, "first", batch("t1", 4)));
    assert!(!comes(&mut state, "large", batch("t1", 8)));
    let Intent::Schedule { submission, .. } = testing::schedule("now", batch("t1", 1)) else { unreachable!() };
    let intent = Intent::Schedule { submission, queueing: Queueing::Never, check_plan: None };
    let refusal = plan(&state, &intent).unwrap_err();
    assert!(refusal.detail.contains("kept for job large"), "{}", refusal.detail);
}
