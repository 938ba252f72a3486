//! What a tenant and those below it use: rates, which change when something is placed or
//! goes, and what they added up to. Rate times time in whole numbers, by the leader's
//! stamps, counted whenever a rate changes. The totals are rows; the rates are derived
//! from the jobs. It knows no limits.

use super::{Kind, STOP_MS, Window};
use crate::command::Placement;
use crate::id::TenantNo;
use crate::job::{Allocation, Job, JobSpec, Phase, Ran, Replica};
use crate::quota::tree;
use crate::reason::Reason;
use crate::scaling::is_wanted;
use crate::state::{Before, RowKey, State};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A quantity of each [`Kind`].
pub type Two = [u128; 2];

/// What is used at once, and how it may end. GPUs in thousandths; money in millionths an
/// hour for each thousandth of a device, hence in thousandths of millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// All that is held: this is metered.
    pub held: Two,
    /// What is never stopped for want of a budget: jobs of a fixed size, and of services the least that they
    /// have. A replica that had a place once counts while it waits for the next one, with its GPUs.
    pub floor: Two,
    /// The same of jobs that end by themselves.
    pub limited: Two,
    /// Of those the ones that run: what they may still use becomes less by it.
    pub runs: Two,
    /// The most that those can use until they are over, in units of the meter, from the beginning of log time where they
    /// run: see [`Rates::tail`].
    pub(super) until: Two,
    /// Held beyond that: replicas of services above their least, second copies, what is stopping.
    pub extra: Two,
    /// The part of it that can be stopped.
    pub loose: Two,
}

impl Rates {
    fn each(&mut self, other: &Self, change: fn(u128, u128) -> u128) {
        let pairs = [
            (&mut self.held, &other.held),
            (&mut self.floor, &other.floor),
            (&mut self.limited, &other.limited),
            (&mut self.runs, &other.runs),
            (&mut self.until, &other.until),
            (&mut self.extra, &other.extra),
            (&mut self.loose, &other.loose),
        ];
        for (own, other) in pairs {
            own.iter_mut().zip(other).for_each(|(own, other)| *own = change(*own, *other));
        }
    }

    /// These, with others gone and others come.
    pub fn changed(mut self, gone: &Self, come: &Self) -> Self {
        self.each(come, u128::saturating_add);
        self.each(gone, u128::saturating_sub);
        self
    }

    /// What has to be kept from then on for what runs, for so long.
    pub fn reserved(&self, kind: Kind, now_ms: u64, left_ms: u64) -> u128 {
        let ahead = self.extra[kind as usize].saturating_mul(left_ms.min(super::START_MS).into());
        self.kept(kind, now_ms, left_ms).saturating_add(ahead)
    }

    /// The same without what may be stopped, or stops.
    pub fn kept(&self, kind: Kind, now_ms: u64, left_ms: u64) -> u128 {
        let (k, left) = (kind as usize, u128::from(left_ms));
        let limited = self.tail(kind, now_ms).min(self.limited[k].saturating_mul(left));
        self.floor[k].saturating_mul(left).saturating_add(limited)
    }

    /// The most that jobs which end by themselves can still use, from then on: what they have run is used, and not kept
    /// as well.
    pub fn tail(&self, kind: Kind, now_ms: u64) -> u128 {
        let k = kind as usize;
        self.until[k].saturating_sub(self.runs[k].saturating_mul(now_ms.into()))
    }

    /// Of a job whose replicas are these, and that has run for so long.
    pub fn of(state: &State, spec: &JobSpec, replicas: &[Replica], ran: Ran) -> Self {
        Self::with(state, spec, replicas, ran, &[])
    }

    /// Of a job, were these replicas placed at such prices.
    pub fn with(state: &State, spec: &JobSpec, replicas: &[Replica], ran: Ran, placed: &[(u16, u128)]) -> Self {
        let place = |i: usize| placed.iter().find(|(replica, _)| usize::from(*replica) == i).map(|(_, price)| *price);
        let price = |alloc: &Allocation| price(state, alloc);
        let copies = replicas.iter().enumerate().map(|(i, replica)| match place(i) {
            Some(price) => Copies { own: Some(price), other: None, granted: true },
            None => Copies {
                own: replica.allocation().map(price),
                other: replica.other_allocation().map(price),
                granted: replica.generation.0 > 0 && is_wanted(&replica.phase) && !is_shut_out(&replica.phase),
            },
        });
        tally(spec, ran, copies)
    }

    /// Of a second copy at that price.
    pub fn copy(spec: &JobSpec, price: u128) -> Self {
        let rate = [spec.resources.gpu.milli().into(), price];
        Self { held: rate, extra: rate, ..Self::default() }
    }
}

/// What a place costs an hour; 0 where its node states no price.
pub fn price(state: &State, alloc: &Allocation) -> u128 {
    let Some(node) = state.node(alloc.node).filter(|node| !node.spec.cost_per_hour.is_empty()) else { return 0 };
    let of = |device: u16| {
        let device = node.spec.devices.get(usize::from(device))?;
        node.spec.cost_per_hour.get(&device.device_type).copied()
    };
    alloc.shares.iter().map(|share| u128::from(share.milli) * u128::from(of(share.device).unwrap_or(0))).sum()
}

/// Whether it waits until somebody lets its version in again: whoever does finds its budget judged anew.
fn is_shut_out(phase: &Phase) -> bool {
    matches!(phase, Phase::Waiting { last: Some(Reason::ConsentRevoked | Reason::ApprovalRequired), .. })
}

/// What there is of one replica, with the prices of its places.
struct Copies {
    own: Option<u128>,
    other: Option<u128>,
    /// It shall run, and had a place once.
    granted: bool,
}

fn tally(spec: &JobSpec, ran: Ran, copies: impl Iterator<Item = Copies>) -> Rates {
    let gpu = u128::from(spec.resources.gpu.milli());
    let add = |sum: &mut Two, price: u128| {
        sum[0] += gpu;
        sum[1] += price;
    };
    let mut out = Rates::default();
    let mut granted = Vec::new();
    for copy in copies {
        copy.own.iter().chain(&copy.other).for_each(|price| add(&mut out.held, *price));
        copy.other.iter().for_each(|price| add(&mut out.extra, *price));
        match (copy.granted, copy.own) {
            (true, own) => granted.push(own),
            (false, Some(price)) => add(&mut out.extra, price),
            (false, None) => {}
        }
    }
    let least = spec.scaling.map_or(usize::MAX, |scaling| scaling.min.into());
    if granted.len() > least {
        // The dearest are the ones that are sure to be paid.
        granted.sort_unstable_by(|a, b| b.cmp(a));
    }
    for (i, own) in granted.into_iter().enumerate() {
        match own {
            _ if i < least && spec.constraints.max_run_ms.is_some() => add(&mut out.limited, own.unwrap_or(0)),
            _ if i < least => add(&mut out.floor, own.unwrap_or(0)),
            Some(price) => {
                add(&mut out.extra, price);
                add(&mut out.loose, price);
            }
            None => {}
        }
    }
    // It starts, runs for so long, and stops.
    let (until, runs) = ran.over(spec.constraints.max_run_ms.unwrap_or(0));
    out.until = out.limited.map(|rate| rate.saturating_mul(until.saturating_add(STOP_MS).into()));
    out.runs = if runs { out.limited } else { [0, 0] };
    out
}

/// The total at the beginning of a window, and at that of the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    pub opened: Two,
    pub before: Two,
}

/// What a tenant and those below it have used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meter {
    /// Log time up to which it is counted.
    pub at_ms: u64,
    /// Since it was first seen: rate times milliseconds.
    pub total: Two,
    /// By [`Window`].
    pub marks: [Marks; 3],
    /// Since `at_ms`. Derived.
    #[serde(skip)]
    pub rates: Rates,
    /// When the leader has to look at it. Derived.
    #[serde(skip)]
    pub(crate) due_ms: Option<u64>,
}

impl Meter {
    /// Counted up to then.
    pub fn at(mut self, now_ms: u64) -> Self {
        if now_ms <= self.at_ms {
            return self;
        }
        let (from, total, held) = (self.at_ms, self.total, self.rates.held);
        let until = |at_ms: u64| {
            let passed = u128::from(at_ms - from);
            [0, 1].map(|kind| total[kind].saturating_add(held[kind].saturating_mul(passed)))
        };
        // A new week or month begins with a day.
        if Window::Day.start_ms(now_ms) > from {
            for (window, marks) in Window::ALL.into_iter().zip(&mut self.marks) {
                let start = window.start_ms(now_ms);
                if start > from {
                    let before = window.start_ms(start - 1);
                    marks.before = if before <= from { marks.opened } else { until(before) };
                    marks.opened = until(start);
                }
            }
        }
        Self { total: until(now_ms), at_ms: now_ms, ..self }
    }

    /// Used in the window that `at_ms` lies in.
    pub fn used(&self, kind: Kind, window: Window) -> u128 {
        self.total[kind as usize] - self.marks[window as usize].opened[kind as usize]
    }

    /// Used in the one before.
    pub fn used_before(&self, kind: Kind, window: Window) -> u128 {
        let marks = &self.marks[window as usize];
        marks.opened[kind as usize] - marks.before[kind as usize]
    }
}

impl State {
    /// What a tenant and those below it have used up to now.
    pub fn meter(&self, tenant: TenantNo) -> Meter {
        let meter = self.meters.get(&tenant).map(|meter| **meter).unwrap_or_default();
        meter.at(self.meta().now_ms)
    }

    /// A job has become another one.
    pub(crate) fn meter_job(&mut self, tenant: TenantNo, gone: &Rates, come: &Rates) {
        if gone == come {
            return;
        }
        let Some(row) = self.tenant(tenant) else { return };
        let path: Vec<TenantNo> = tree::path(self, row).iter().map(|tenant| tenant.no).collect();
        path.into_iter().for_each(|no| self.meter_one(no, gone, come));
    }

    fn meter_one(&mut self, no: TenantNo, gone: &Rates, come: &Rates) {
        let now = self.meta().now_ms;
        let meter = self.meter_mut(no);
        *meter = meter.at(now);
        meter.at_ms = now;
        meter.rates = meter.rates.changed(gone, come);
        self.set_due(no);
    }

    fn meter_mut(&mut self, no: TenantNo) -> &mut Meter {
        self.remember(RowKey::Meter(no), |state| Before::Meter(state.meters.get(&no).cloned()));
        Arc::make_mut(self.meters.entry(no).or_default())
    }

    /// Counts up to now, though no rate changes: a window is over.
    pub(crate) fn settle_meter(&mut self, no: TenantNo) -> bool {
        if !self.meters.contains_key(&no) {
            return false;
        }
        self.meter_one(no, &Rates::default(), &Rates::default());
        true
    }

    /// The tenant goes from one place in the tree to another, with all below it: what it used stays where it was used.
    pub(crate) fn meter_moved(&mut self, tenant: TenantNo, from: &[TenantNo], to: &[TenantNo]) {
        let Some(rates) = self.meters.get(&tenant).map(|meter| meter.rates).filter(|r| *r != Rates::default()) else {
            return;
        };
        let none = Rates::default();
        from.iter().for_each(|no| self.meter_one(*no, &rates, &none));
        to.iter().for_each(|no| self.meter_one(*no, &none, &rates));
    }

    /// At load: the row is as it was stored, and its rates are those of the jobs.
    pub(crate) fn load_meter(&mut self, no: TenantNo, meter: Meter) {
        self.meters.insert(no, Arc::new(meter));
    }

    /// At load: nothing is counted, since the rates are as they were when the row was written.
    pub(crate) fn load_rates(&mut self, job: &Job) {
        let rates = Rates::of(self, &job.spec, &job.replicas, job.ran);
        let Some(row) = self.tenant(job.tenant).filter(|_| rates != Rates::default()) else { return };
        let path: Vec<TenantNo> = tree::path(self, row).iter().map(|tenant| tenant.no).collect();
        for no in path {
            let meter = Arc::make_mut(self.meters.entry(no).or_default());
            meter.rates = meter.rates.changed(&Rates::default(), &rates);
        }
    }

    pub(crate) fn remove_meter(&mut self, no: TenantNo) {
        self.remember(RowKey::Meter(no), |state| Before::Meter(state.meters.get(&no).cloned()));
        if let Some(due) = self.meters.remove(&no).and_then(|meter| meter.due_ms) {
            self.budgets_due.remove(&(due, no));
        }
    }

    /// When the leader has to look at the tenant's budgets next.
    pub(crate) fn set_due(&mut self, no: TenantNo) {
        let Some(meter) = self.meters.get(&no) else { return };
        let budgets = self.tenants.get(&no).and_then(|tenant| tenant.quota.budgets.as_deref());
        let (was, is) = (meter.due_ms, budgets.and_then(|budgets| super::keep::due_ms(budgets, meter)));
        if was == is {
            return;
        }
        was.map(|at| self.budgets_due.remove(&(at, no)));
        is.map(|at| self.budgets_due.insert((at, no)));
        if let Some(meter) = self.meters.get_mut(&no) {
            Arc::make_mut(meter).due_ms = is;
        }
    }
}

/// The prices of places, for [`Rates::with`].
pub fn prices(state: &State, placements: &[Placement]) -> Vec<(u16, u128)> {
    placements.iter().map(|placement| (placement.replica, price(state, &placement.alloc))).collect()
}

/// Whether the replica is one of those that a service could do without.
pub(super) fn holds_and_is_wanted(replica: &Replica) -> bool {
    is_wanted(&replica.phase) && matches!(replica.phase, Phase::Held { .. } | Phase::Stopping { .. })
}
