//! Budgets in a small simulated world: three members that apply what one of them leads, with clocks that
//! differ and are set, leaders that change and restart, looks that come late, agents that take their time.
//! At every index no limit is passed, and the meter equals an integral that is computed apart from it.

// Helpers of tests are tests: a panic in them is a failed test with a line number.
#![allow(clippy::unwrap_used)]

use nf_core::apply::{BatchOutcome, apply_batch};
use nf_core::autoscaler::Why;
use nf_core::budget::rest::Rest;
use nf_core::budget::{Budgets, Kind, Window, keep};
use nf_core::command::{Batch, Report, ReportKind};
use nf_core::control::{self, Now, Observations, Timeouts};
use nf_core::id::{DeviceType, Incarnation, JobNo, NodeName, NodeNo, RequestId, TenantId};
use nf_core::job::{JobSpec, Phase, Replica, Stage};
use nf_core::plan::Intent;
use nf_core::proposer::Proposer;
use nf_core::reason::Reason;
use nf_core::resources::Gpus;
use nf_core::scaling::{Scaling, Target};
use nf_core::sim::Rng;
use nf_core::state::State;
use nf_core::tenant::Quota;
use nf_core::{invariants, testing, view};
use std::collections::BTreeMap;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// 2026-11-29 00:00 UTC, a Sunday: the next day begins a week, the one after that a month.
const SUNDAY: u64 = 1_795_910_400_000;
const TYPES: [(&str, u64); 2] = [("H100-80G", 2_000_000), ("A100-40G", 700_000)];

/// What a tenant used on a day: GPUs and money, rate times milliseconds.
type Days = BTreeMap<(TenantId, u64), [u128; 2]>;

struct World {
    seed: u64,
    rng: Rng,
    /// The true time, of no member's clock.
    now: u64,
    members: Vec<State>,
    leader: usize,
    skew: i64,
    proposer: Proposer,
    seen: Observations,
    mono: u64,
    index: u64,
    ticket: u64,
    days: Days,
    entries: u64,
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

impl World {
    fn new(seed: u64, nodes: usize) -> Self {
        let mut members: Vec<State> = (0..3).map(|_| State::new()).collect();
        let first = Batch { base: 0, at_ms: SUNDAY, ..Batch::default() };
        members.iter_mut().for_each(|state| drop(apply_batch(state, &first)));
        let proposer = Proposer::new(&members[0]);
        let mut world = Self {
            seed,
            rng: Rng::new(seed),
            now: SUNDAY,
            members,
            leader: 0,
            skew: 0,
            proposer,
            seen: Observations::new(0),
            mono: 0,
            index: 1,
            ticket: 0,
            days: Days::new(),
            entries: 0,
        };
        for i in 0..nodes {
            let mut node = testing::node_spec(8);
            let (name, price) = TYPES[i % TYPES.len()];
            let kind = DeviceType::new(name).unwrap();
            node.devices.iter_mut().for_each(|device| device.device_type = kind.clone());
            node.cost_per_hour.insert(kind, price);
            world.submit(testing::register(&format!("n{i}"), node));
        }
        world
    }

    fn state(&self) -> &State {
        &self.members[self.leader]
    }

    fn stamp(&self) -> u64 {
        self.now.saturating_add_signed(self.skew)
    }

    fn submit(&mut self, intent: Intent) {
        self.ticket += 1;
        assert!(self.proposer.offer(self.ticket, intent));
        while let (Some(batch), _) = self.proposer.next_entry(self.stamp()) {
            self.commit(&batch);
        }
    }

    fn commit(&mut self, batch: &Batch) {
        let before = self.state().speculative();
        let mut outcomes = self.members.iter_mut().map(|state| {
            let outcome = apply_batch(state, batch);
            state.take_changes();
            outcome
        });
        let outcome = outcomes.next().unwrap();
        assert!(outcomes.all(|other| other == outcome), "seed {}", self.seed);
        assert!(matches!(outcome, BatchOutcome::Applied(_)), "seed {}", self.seed);
        assert!(self.members.iter().all(|state| state.hash() == self.members[0].hash()), "seed {}", self.seed);
        self.index += 1;
        self.entries += 1;
        let after = self.members[self.leader].speculative();
        self.integrate(&before, &after);
        self.check(&after);
        self.proposer.on_applied(&outcome, &self.members[self.leader], self.index);
        assert_eq!(self.proposer.divergences(), 0, "seed {}", self.seed);
    }

    /// What was held since the last entry, by the day, and of those above. It asks nothing of the meter.
    fn integrate(&mut self, before: &State, after: &State) {
        let (mut from, to) = (before.meta().now_ms, after.meta().now_ms);
        let mut rates: BTreeMap<TenantId, [u128; 2]> = BTreeMap::new();
        for job in before.jobs().values() {
            for alloc in job.replicas.iter().flat_map(Replica::allocations) {
                let node = before.node(alloc.node).unwrap();
                let kind = |device: u16| &node.spec.devices[usize::from(device)].device_type;
                let money = |share: &nf_core::job::Share| {
                    u128::from(share.milli) * u128::from(node.spec.cost_per_hour[kind(share.device)])
                };
                let rate = [u128::from(job.spec.resources.gpu.milli()), alloc.shares.iter().map(money).sum()];
                let mut whose = Some(job.spec.tenant.clone());
                while let Some(id) = whose {
                    let sum = rates.entry(id.clone()).or_default();
                    (sum[0], sum[1]) = (sum[0] + rate[0], sum[1] + rate[1]);
                    whose = before.tenant_named(&id).and_then(|row| row.quota.parent.clone());
                }
            }
        }
        while from < to {
            let until = to.min((from / DAY + 1) * DAY);
            for (id, rate) in &rates {
                let sum = self.days.entry((id.clone(), from / DAY)).or_default();
                (0..2).for_each(|i| sum[i] += rate[i] * u128::from(until - from));
            }
            from = until;
        }
    }

    /// The first and the last day of a window, by a calendar of its own, for the days that are played.
    fn window_days(window: Window, day: u64) -> (u64, u64) {
        let first = SUNDAY / DAY;
        assert!((first..first + 20).contains(&day));
        match window {
            Window::Day => (day, day),
            Window::Week if day == first => (first - 6, first),
            Window::Week => (first + 1 + (day - first - 1) / 7 * 7, first + 7 + (day - first - 1) / 7 * 7),
            Window::Month if day < first + 2 => (first - 28, first + 1),
            Window::Month => (first + 2, first + 32),
        }
    }

    fn check(&self, state: &State) {
        let now = state.meta().now_ms;
        for row in state.tenants().values() {
            let meter = state.meter(row.no);
            for (kind, window) in Kind::ALL.into_iter().flat_map(|kind| Window::ALL.map(|window| (kind, window))) {
                let used = meter.used(kind, window);
                let (first, last) = Self::window_days(window, now / DAY);
                let days = self.days.range((row.id.clone(), first)..=(row.id.clone(), last));
                let sum: u128 = days.map(|(_, used)| used[kind as usize]).sum();
                assert_eq!(used, sum, "seed {}: {} {kind:?} {window:?} at {now}", self.seed, row.id);
                let limit = row.quota.budgets.as_ref().and_then(|budgets| budgets.get(kind, window));
                if let Some(limit) = limit {
                    let told = kind.told(used);
                    assert!(told <= limit, "seed {}: {} used {told} of {limit} {kind:?}", self.seed, row.id);
                }
            }
        }
        if self.entries.is_multiple_of(50) {
            assert_eq!(invariants::check(state), [], "seed {}", self.seed);
        }
    }

    /// Another member leads, whose clock is another, or one starts again from its rows.
    fn change_leader(&mut self) {
        self.leader = self.rng.below(3) as usize;
        if self.rng.chance(500) {
            let rows: Vec<_> = self.state().live_rows().collect();
            self.members[self.leader] = State::from_rows(rows).unwrap();
            assert_eq!(invariants::check(self.state()), [], "seed {}", self.seed);
        }
        self.skew = self.rng.between(0, 20_000) as i64 - 10_000;
        self.proposer = Proposer::new(&self.members[self.leader]);
        self.seen = Observations::new(self.mono);
    }

    /// The leader looks at everything; nodes beat.
    fn look(&mut self) {
        let nodes: Vec<NodeNo> = self.state().nodes().keys().copied().collect();
        nodes.into_iter().for_each(|no| self.seen.heard(no, self.mono));
        let at = Now { mono_ms: self.mono, wall_ms: self.stamp().max(self.state().meta().now_ms), unheard_ms: 0 };
        let state = self.members[self.leader].speculative();
        for intent in control::step(&state, &mut self.seen, &Timeouts::default(), at) {
            self.submit(intent);
        }
    }

    /// Agents report most of what they should have done by now.
    fn agents(&mut self) {
        let mut reports: BTreeMap<NodeNo, Vec<Report>> = BTreeMap::new();
        let jobs: Vec<_> = self.state().jobs().values().cloned().collect();
        for job in jobs {
            for (no, replica) in job.replicas.iter().enumerate() {
                let (node, kind) = match &replica.phase {
                    Phase::Held { alloc, stage } if *stage != Stage::Ready => {
                        (alloc.node, ReportKind::Stage(Stage::Ready))
                    }
                    Phase::Stopping { alloc, why, .. } => (alloc.node, ReportKind::Ended { ok: true, why: *why }),
                    Phase::Held { alloc, .. } if self.rng.chance(2) => {
                        (alloc.node, ReportKind::Ended { ok: false, why: Reason::ExitedNonZero })
                    }
                    _ => continue,
                };
                if self.rng.chance(800) {
                    let generation = replica.generation;
                    reports.entry(node).or_default().push(Report { job: job.no, replica: no as u16, generation, kind });
                }
            }
        }
        for (no, reports) in reports {
            let node: NodeName = self.state().node(no).unwrap().name.clone();
            self.submit(Intent::Reports { node, incarnation: Incarnation(1), reports });
        }
    }

    /// Time goes on, by `most` at most, or to a little after the next deadline.
    fn wait(&mut self, most: u64) {
        let mut pause = self.rng.between(SECOND, most);
        if let Some(due) = keep::next_ms(self.state()) {
            let late = self.rng.between(1, 2 * MINUTE);
            pause = pause.min(due.saturating_sub(self.stamp()).saturating_add(late));
        }
        self.now += pause;
        self.mono += pause;
    }

    fn scale(&mut self, request: RequestId, to: u16) {
        let target = Target { replicas: to, why: Why::QueueDepth, inputs: None, seen: None, learned: None };
        self.submit(Intent::Scale { request, tenant: None, target });
    }

    fn set(&mut self, name: &str, above: Option<&str>, budgets: Budgets) {
        let quota = Quota {
            gpu_milli: Some(1_000_000),
            parent: above.map(tenant),
            budgets: budgets.some(),
            ..Quota::default()
        };
        self.submit(Intent::SetQuota { tenant: tenant(name), quota });
    }
}

fn service(name: &str, gpu: Gpus, min: u16, max: u16) -> JobSpec {
    let scaling = Scaling { min, max, ..Scaling::default() };
    JobSpec { scaling: Some(scaling), replicas: min, ..testing::job_spec(name, gpu) }
}

fn held(job: &nf_core::job::Job) -> usize {
    job.replicas.iter().filter(|replica| matches!(replica.phase, Phase::Held { .. })).count()
}

/// So many replicas of a service its budgets pay, if it asked alone; 12 at most.
fn payable(state: &State, job: &nf_core::job::Job) -> u16 {
    let mut rest = Rest::default();
    let payer = rest.join(state, job);
    let paid = (0..12).take_while(|granted| {
        let paid = rest.pays(&payer, *granted);
        rest.pay(&payer, *granted);
        paid
    });
    paid.count() as u16
}

#[test]
fn fifty_services_spike_together_on_forty_gpus_with_a_daily_budget() {
    let mut world = World::new(7, 5);
    let mut budgets = Budgets::default();
    // The floors, half a GPU each, take 600 of them.
    budgets.gpu_hours[Window::Day as usize] = Some(720_000);
    world.set("org", None, budgets);
    world.set("team", Some("org"), Budgets::default());
    for i in 0..50 {
        let name = if i % 2 == 0 { "org" } else { "team" };
        let mut spec = service(name, Gpus::Milli(500), 1, 12);
        spec.priority = i % 3;
        world.submit(testing::schedule(&format!("s{i}"), spec));
    }
    world.agents();
    let (mut most, mut exhausted, mut limited, mut changes) = (0, 0, 0, 0);
    let mut peak_of_day = BTreeMap::<u64, usize>::new();
    while world.now < SUNDAY + 2 * DAY {
        world.wait(10 * MINUTE);
        let spike = (4 * HOUR..14 * HOUR).contains(&(world.now % DAY));
        let services: Vec<_> = world.state().services().cloned().collect();
        assert_eq!(services.len(), 50);
        for job in services {
            // As the autoscaler does; now and then somebody asks for more than there is.
            let wanted = if spike { world.rng.between(4, 12) } else { 1 } as u16;
            let payable = payable(world.state(), &job).clamp(1, 12);
            limited += u32::from(payable < wanted);
            let to = if world.rng.chance(900) { wanted.min(payable) } else { wanted };
            world.scale(job.request.clone(), to);
        }
        if world.rng.chance(40) {
            world.change_leader();
            changes += 1;
        }
        world.look();
        world.agents();
        let all: usize = world.state().jobs().values().map(|job| held(job)).sum();
        most = most.max(all);
        let peak = peak_of_day.entry(world.now / DAY).or_default();
        *peak = all.max(*peak);
        let waiting = world.state().jobs().values().filter(|job| job.wants_place()).cloned().collect::<Vec<_>>();
        for job in waiting.iter().take(3) {
            let told = view::job(world.state(), job).blockers;
            exhausted += u32::from(told.iter().any(|b| b.reason == Reason::BudgetExhausted));
        }
        for job in world.state().jobs().values().filter(|job| held(job) == 0) {
            // One whose program failed waits for a moment, and never for the budget.
            let told = view::job(world.state(), job);
            assert!(told.replicas.iter().any(|replica| replica.restarts > 0), "{} has lost its floor", job.request);
            assert!(told.blockers.iter().all(|b| b.reason != Reason::BudgetExhausted), "{:?}", told.blockers);
        }
    }
    assert!(most == 80 && exhausted > 50 && limited > 50 && changes > 3, "{most} {exhausted} {limited} {changes}");
    assert_eq!(peak_of_day.values().filter(|peak| **peak == 80).count(), 2, "the second day has a budget of its own");
    let first = world.days[&(tenant("org"), SUNDAY / DAY)][0];
    let used = Kind::GpuHours.told(first);
    println!("{} entries, {changes} leaders; {used} of 720000 thousandths were used on the first day", world.entries);
    assert!(used > 715_000, "{used}: the budget can be spent");
}

#[test]
fn random_arrivals_in_random_trees_pass_no_limit() {
    let mut arrivals = 0;
    for seed in 0..12 {
        let mut world = World::new(seed, 4);
        let limit = |rng: &mut Rng, budgets: &mut Budgets| {
            let window = *rng.pick(&Window::ALL);
            let days = window.longest_ms() / DAY;
            match rng.chance(500) {
                true => budgets.gpu_hours[window as usize] = Some(rng.between(20, 400) * 1000 * days),
                false => budgets.money[window as usize] = Some(rng.between(30, 600) * 1_000_000 * days),
            }
        };
        for (name, above) in [("org", None), ("a", Some("org")), ("b", Some("org")), ("c", Some("b"))] {
            let mut budgets = Budgets::default();
            (0..world.rng.below(3)).for_each(|_| limit(&mut world.rng, &mut budgets));
            world.set(name, above, budgets);
        }
        let end = SUNDAY + 3 * DAY;
        while world.now < end {
            world.wait(30 * MINUTE);
            if world.rng.chance(500) {
                let name = *world.rng.pick(&["org", "a", "b", "c"]);
                let gpu = *world.rng.pick(&[Gpus::Milli(500), Gpus::Whole(1), Gpus::Whole(2)]);
                let min = world.rng.below(2) as u16;
                let mut spec = match world.rng.chance(600) {
                    true => service(name, gpu, min, min + world.rng.between(1, 6) as u16),
                    false => testing::job_spec(name, gpu),
                };
                if world.rng.chance(400) && spec.scaling.is_none() {
                    spec.constraints.max_run_ms = Some(world.rng.between(MINUTE, 4 * HOUR));
                    spec.replicas = world.rng.between(1, 2) as u16;
                    spec.gang = world.rng.chance(300);
                }
                spec.constraints.preemptible = world.rng.chance(500);
                spec.priority = world.rng.below(3) as i16;
                arrivals += 1;
                world.submit(testing::schedule(&format!("r{arrivals}"), spec));
            }
            let services: Vec<_> = world.state().services().cloned().collect();
            for job in services {
                if world.rng.chance(300) {
                    let scaling = job.spec.scaling.unwrap();
                    let to = world.rng.between(scaling.min.into(), scaling.max.into()) as u16;
                    world.scale(job.request.clone(), to);
                }
            }
            let next = world.state().meta().next_job;
            if world.rng.chance(250)
                && let Some(job) = world.state().job(JobNo(world.rng.clone().below(next))).cloned()
            {
                let stop = Intent::Stop { request: job.request.clone(), tenant: None, why: Reason::StoppedByUser };
                world.submit(stop);
            }
            if world.rng.chance(50) {
                world.change_leader();
            }
            world.look();
            world.agents();
        }
        let used: u128 = world.days.values().map(|used| used[0]).sum();
        assert!(used > 0, "seed {seed}");
    }
    println!("{arrivals} arrivals");
    assert!(arrivals > 1_000, "{arrivals}");
}
