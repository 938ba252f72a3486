//! Fifty services that spike together, on forty GPUs and a budget for the day: looked at, limited, committed and
//! applied as in a group.

use super::*;
use nf_core::budget::{Budgets, Kind, Window};
use nf_core::invariants;
use nf_core::placement::explain::blockers;
use nf_core::reason::Reason;
use nf_core::tenant::Quota;

const SERVICES: u64 = 50;
const GPUS: u64 = 40_000;
/// The floors take 25 GPUs: 600 GPU-hours a day. So many more are to be had.
const GPU_HOURS: u64 = 640_000;
/// Midnight.
const BEGIN: u64 = 1_795_910_400_000;
const LOOK_MS: u64 = 60_000;

struct Group {
    state: State,
    at_ms: u64,
    /// Requests that have come, for each service.
    came: u64,
    /// The most that was held.
    most: u64,
}

impl Group {
    fn new() -> Self {
        let mut group = Self { state: State::new(), at_ms: BEGIN, came: 0, most: 0 };
        for node in 1..=5 {
            group.run(testing::register(&format!("n{node}"), testing::node_spec(8)));
        }
        let mut budgets = Budgets::default();
        budgets.gpu_hours[Window::Day as usize] = Some(GPU_HOURS);
        let quota = Quota { gpu_milli: Some(GPUS), budgets: budgets.some(), ..Quota::default() };
        group.run(Intent::SetQuota { tenant: TenantId::new("t1").unwrap(), quota });
        for i in 0..SERVICES {
            let scaling = Scaling { min: 1, max: 6, concurrency: 4, cold_start_ms: 60_000, ..Scaling::default() };
            let model = ModelId::new(&format!("m{i}")).unwrap();
            let priority = (i % 3) as i16;
            let plain = testing::job_spec("t1", Gpus::Milli(500));
            group
                .run(testing::schedule(&format!("s{i}"), JobSpec { model, priority, scaling: Some(scaling), ..plain }));
        }
        group
    }

    fn run(&mut self, intent: Intent) {
        testing::try_run_at(&mut self.state, intent, self.at_ms).unwrap();
        self.check();
    }

    /// At any index.
    fn check(&mut self) {
        let Some(tenant) = self.state.tenant_named(&TenantId::new("t1").unwrap()) else { return };
        let (held, meter) = (self.state.ledger().tenant(tenant.no).gpu_milli, self.state.meter(tenant.no));
        let left = Window::Day.end_ms(self.at_ms) - self.at_ms;
        let used = meter.used(Kind::GpuHours, Window::Day);
        let (used, kept) =
            (Kind::GpuHours.told(used), Kind::GpuHours.told(used + meter.rates.kept(Kind::GpuHours, self.at_ms, left)));
        assert!(held <= GPUS, "{held} at {}", self.at_ms);
        // Tens of floors are each rounded up.
        assert!(used <= GPU_HOURS && kept <= GPU_HOURS + 1, "{used}, with the floors {kept}, at {}", self.at_ms);
        self.most = self.most.max(held);
    }

    /// What agents and the loop do in a minute.
    fn minute(&mut self) {
        self.at_ms += LOOK_MS;
        self.run(Intent::Budgets);
        self.run(Intent::PlaceWaiting);
        for node in 1..=5 {
            agent_of(&mut self.state, node);
            self.check();
        }
    }

    /// One look, and what is decided is committed.
    fn look(&mut self, scaler: &mut Scaler, spike: bool) -> Vec<Look> {
        self.came += if spike { 960 } else { 24 };
        let one = |job: &Arc<Job>| {
            let running = if spike { ready(job).len() as u32 * 4 } else { 0 };
            sight_of(job.spec.model.as_str(), self.came, if spike { 40 } else { 0 }, running)
        };
        let sights = self.state.services().map(one).collect();
        let seen = vec![(MemberId(1), Seen { epoch: 1, sights, advice: vec![] })];
        let Looked { intents, looks, .. } =
            scaler.look(&self.state, Panorama { seen, ..Panorama::default() }, self.at_ms);
        for intent in intents {
            self.run(intent);
            self.run(Intent::PlaceWaiting);
        }
        looks
    }

    fn floors(&self) -> usize {
        self.state.services().filter(|job| !ready(job).is_empty()).count()
    }

    fn used(&self) -> u128 {
        let tenant = self.state.tenant_named(&TenantId::new("t1").unwrap()).unwrap();
        self.state.meter(tenant.no).used(Kind::GpuHours, Window::Day)
    }
}

#[test]
fn fifty_services_spike_together_on_forty_gpus_with_a_budget_for_the_day() {
    let (mut group, mut scaler) =
        (Group::new(), Scaler::new(1, Pace { every: Duration::from_millis(LOOK_MS), ..PACE }));
    let (mut limited, mut spent_at) = (0, None);
    for minute in 0..10 * 60_u64 {
        group.minute();
        let spike = (30..9 * 60).contains(&minute);
        let looks = group.look(&mut scaler, spike);
        limited += looks.iter().filter(|look| look.why() == Why::BudgetLimit).count();
        assert!(minute < 3 || group.floors() == SERVICES as usize, "floors at {minute}: {}", group.floors());
        let held: Vec<u16> = desired(&group.state);
        if spike && minute > 120 && spent_at.is_none() && held.iter().all(|n| *n == 1) {
            spent_at = Some(minute);
        }
        if minute == 100 {
            // Another leader, from the rows.
            let before = group.used();
            let _ = group.state.take_changes();
            group.state = State::from_rows(group.state.live_rows()).unwrap();
            assert_eq!(group.used(), before);
            scaler = Scaler::new(2, Pace { every: Duration::from_millis(LOOK_MS), ..PACE });
        }
    }
    assert_eq!(invariants::check(&group.state), []);
    assert!(group.most > 35_000, "the spike was felt: {}", group.most);
    assert!(limited > 0, "and the budget");
    assert!(spent_at.is_some(), "the rest was spent: {:?}", desired(&group.state));
    // Who asks for more waits, and is told why; all the others run on to the end of the day.
    let request = RequestId::new("s1").unwrap();
    let target = Target { replicas: 2, why: Why::Asked, inputs: None, seen: None, learned: None };
    group.run(Intent::Scale { request: request.clone(), tenant: None, target });
    group.run(Intent::PlaceWaiting);
    let why: Vec<Reason> =
        blockers(&group.state, group.state.job_of(&request).unwrap()).into_iter().map(|b| b.reason).collect();
    assert_eq!(why, [Reason::BudgetExhausted]);
    let end = Window::Day.end_ms(BEGIN);
    while group.at_ms + 30 * LOOK_MS < end {
        group.at_ms += 14 * LOOK_MS;
        group.minute();
        assert_eq!(group.floors(), SERVICES as usize);
    }
    assert!(Kind::GpuHours.told(group.used()) > GPU_HOURS - 20_000, "nearly all was of use");
}
