//! What open claims change of what tenants hold: their places come, and their victims go. Two questions, two answers.
//! For a *limit* it counts what may be held at some time until then: a claim's own victims leave before its places are
//! taken, so of a claim no more than what they do not leave. For what was *borrowed* it counts what is held once all
//! claims are met: else the same GPUs would be had back twice, by two owners in a row. Summed up after each command that
//! changes it, since whoever waits is judged by it, thousands in a pass.

use super::tree::Of;
use super::types::by_type;
use crate::claim;
use crate::id::{DeviceType, TenantNo};
use crate::job::{Allocation, Job};
use crate::ledger::TenantUse;
use crate::resources::Resources;
use crate::state::State;
use imbl::OrdMap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Of one quantity, in its unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Flow {
    /// What its claims take beyond what their own victims leave.
    beyond: u64,
    /// What its claims take.
    comes: u64,
    /// What its work that gives way to any claim still holds.
    goes: u64,
}

/// What open claims change of what one tenant holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claimed {
    /// Thousandths.
    gpus: Flow,
    types: BTreeMap<DeviceType, Flow>,
    tpus: Flow,
    cpus: Flow,
    memory: Flow,
}

/// Sums of places.
#[derive(Default)]
struct Sums {
    plain: [u64; 4],
    types: BTreeMap<DeviceType, u64>,
}

impl Sums {
    fn add(&mut self, state: &State, ask: &Resources, alloc: &Allocation) {
        let more = [ask.gpu.milli(), ask.tpu.into(), ask.cpu_milli, ask.memory];
        self.plain.iter_mut().zip(more).for_each(|(sum, more)| *sum = sum.saturating_add(more));
        for (kind, milli) in by_type(state, alloc) {
            match self.types.get_mut(kind) {
                Some(sum) => *sum += milli,
                None => _ = self.types.insert(kind.clone(), milli),
            }
        }
    }
}

impl Claimed {
    fn flows(&mut self) -> [&mut Flow; 4] {
        [&mut self.gpus, &mut self.tpus, &mut self.cpus, &mut self.memory]
    }

    /// A claim takes this, of which its own tenant's victims leave so much.
    fn come(&mut self, comes: &Sums, left: &Sums) {
        let one = |flow: &mut Flow, comes: u64, left: u64| {
            flow.comes = flow.comes.saturating_add(comes);
            flow.beyond = flow.beyond.saturating_add(comes.saturating_sub(left));
        };
        for (no, flow) in self.flows().into_iter().enumerate() {
            one(flow, comes.plain[no], left.plain[no]);
        }
        for (kind, milli) in &comes.types {
            let left = left.types.get(kind).copied().unwrap_or(0);
            one(self.types.entry(kind.clone()).or_default(), *milli, left);
        }
    }

    fn go(&mut self, goes: &Sums) {
        for (flow, goes) in self.flows().into_iter().zip(goes.plain) {
            flow.goes = flow.goes.saturating_add(goes);
        }
        for (kind, milli) in &goes.types {
            self.types.entry(kind.clone()).or_default().goes += milli;
        }
    }

    fn of(&self, of: Of<'_>) -> Flow {
        match of {
            Of::Gpus => self.gpus,
            Of::Type(kind) => self.types.get(kind).copied().unwrap_or_default(),
        }
    }

    /// What a tenant that holds so much may hold at some time until its claims are met.
    pub fn at_most(&self, held: TenantUse) -> TenantUse {
        TenantUse {
            gpu_milli: held.gpu_milli.saturating_add(self.gpus.beyond),
            tpu: held.tpu.saturating_add(self.tpus.beyond),
            cpu_milli: held.cpu_milli.saturating_add(self.cpus.beyond),
            memory: held.memory.saturating_add(self.memory.beyond),
            ..held
        }
    }

    /// The same of one sum of the tree.
    pub fn most_of(&self, of: Of<'_>, held: u64) -> u64 {
        held.saturating_add(self.of(of).beyond)
    }

    /// What is left of that once all claims are met.
    pub fn settled(&self, of: Of<'_>, held: u64) -> u64 {
        let Flow { comes, goes, .. } = self.of(of);
        held.saturating_sub(goes).saturating_add(comes)
    }
}

/// By tenant; none for whom no claim changes anything.
fn sums(state: &State) -> OrdMap<TenantNo, Arc<Claimed>> {
    let mut out: BTreeMap<TenantNo, Claimed> = BTreeMap::new();
    for (job, claim) in claim::open(state) {
        let mut goes: BTreeMap<TenantNo, Sums> = BTreeMap::new();
        for (victim, alloc) in claim.victims.iter().filter_map(|victim| claim::held(state, victim)) {
            goes.entry(victim.tenant).or_default().add(state, &victim.spec.resources, alloc);
        }
        let mut comes = Sums::default();
        claim.placements.iter().for_each(|placement| comes.add(state, &job.spec.resources, &placement.alloc));
        let none = Sums::default();
        out.entry(job.tenant).or_default().come(&comes, goes.get(&job.tenant).unwrap_or(&none));
        goes.iter().for_each(|(tenant, goes)| out.entry(*tenant).or_default().go(goes));
    }
    out.into_iter().map(|(tenant, claimed)| (tenant, Arc::new(claimed))).collect()
}

impl State {
    /// Sums up the open claims again, if one of them changed, or what its victims hold: before anybody is judged.
    pub(crate) fn sum_claims(&mut self) {
        if std::mem::take(&mut self.claims_changed) && !(self.claims.is_empty() && self.claimed.is_empty()) {
            self.claimed = sums(self);
        }
    }

    /// A job has become another one, or is over: who claims counts, and whoever gave way may be on its way out.
    pub(crate) fn note_claims(&mut self, job: &Job) {
        self.claims_changed |= job.claim.is_some() || job.gave_way.is_some();
    }
}
