//! The score of a class of nodes for a job: a weighted sum of integer terms,
//! each 0 (worst) to 1000 (best), so that members compute the same and people
//! can read why. It does not know which nodes are in the class.

use super::devices::Cut;
use super::mix::UNIT;
use super::policy::{Policy, Rules, Weights};
use super::worth::{self, DEVICES};
use super::{devices, filter};
use crate::capacity::Class;
use crate::job::{Arrangement, JobSpec};
use crate::resources::{Gpus, WHOLE};
use crate::sharing::Ask;
use serde::{Deserialize, Serialize};

/// What a term speaks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Term {
    /// How little usable GPU is left lying about.
    Fragmentation,
    /// How little is left free; decides between places of equal fragmentation.
    Fit,
    /// How few links between NVLink islands are crossed.
    Topology,
    /// How cheap the devices are.
    Cost,
    /// How few replicas of the same job are there (or how many, when packing).
    Arrangement,
}

impl Term {
    pub fn name(self) -> &'static str {
        match self {
            Term::Fragmentation => "fragmentation",
            Term::Fit => "fit",
            Term::Topology => "topology",
            Term::Cost => "cost",
            Term::Arrangement => "arrangement",
        }
    }
}

/// The terms of a score, before weighting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    pub fragmentation: i32,
    pub fit: i32,
    pub topology: i32,
    pub cost: i32,
    pub arrangement: i32,
}

impl Terms {
    /// The weighted sum.
    pub fn total(&self, weights: Weights) -> i64 {
        self.each().iter().map(|(term, value)| weights.of(*term) * i64::from(*value)).sum()
    }

    pub fn each(&self) -> [(Term, i32); 5] {
        [
            (Term::Fragmentation, self.fragmentation),
            (Term::Fit, self.fit),
            (Term::Topology, self.topology),
            (Term::Cost, self.cost),
            (Term::Arrangement, self.arrangement),
        ]
    }

    /// With the number of siblings on one node taken into account.
    pub(super) fn with_siblings(mut self, spec: &JobSpec, siblings: u32) -> Self {
        let some = siblings.min(1000) as i32;
        self.arrangement = match spec.constraints.arrangement {
            Arrangement::Spread => 1000 - some,
            Arrangement::Pack => 0,
        };
        self
    }
}

/// The terms for one more replica on a node of the class, and the device for a part of
/// one; None when it does not fit.
pub fn terms(class: &Class, ask: &Ask<'_>, rules: &Rules) -> Option<(Terms, Option<u16>)> {
    let fit = devices::fit(class, ask)?;
    if let Some(cut) = fit.cut {
        return Some((of_slice(class, ask, cut, rules.chosen.policy), None));
    }
    let tight = tight(class, ask, fit.leftover);
    let policy = rules.chosen.policy;
    let kept = if policy == Policy::Fragmentation { kept_usable(class, ask, rules) } else { None };
    let (fragmentation, device) = match (kept, policy) {
        (Some(kept), _) => kept,
        (None, Policy::Spread | Policy::Latency) => (1000 - node_fit(class, ask), fit.device),
        (None, Policy::Random) => (0, fit.device),
        (None, Policy::Fragmentation | Policy::BestFit | Policy::Cost) => (tight, fit.device),
    };
    let fit_term = if kept.is_some() { tight.min(999) } else { 0 };
    let topology = 1000 / i32::from(fit.islands.max(1));
    let cost = cheap(class, ask);
    Some((Terms { fragmentation, fit: fit_term, topology, cost, arrangement: 0 }, device))
}

/// Points for each unit of room that a slice costs on a divided GPU; an empty one has room for less than 50.
const SLICE_POINTS: u32 = 20;

/// The terms for a slice: what it leaves room for on its GPU.
fn of_slice(class: &Class, ask: &Ask<'_>, cut: Cut, policy: Policy) -> Terms {
    let kept = 1000 - (cut.cost * SLICE_POINTS).min(1000) as i32;
    let tight = 999 - (cut.left * 100) as i32;
    let all_gpu = 1000 * class.flavor.devices.len().max(1) as u64;
    let left = class.free_gpu_milli().saturating_sub(cut.slice.shape.milli().into());
    let (fragmentation, fit) = match policy {
        Policy::Fragmentation => (kept, tight),
        Policy::Spread | Policy::Latency => ((left * 1000 / all_gpu) as i32, 0),
        Policy::Random => (0, 0),
        Policy::BestFit | Policy::Cost => (tight, 0),
    };
    Terms { fragmentation, fit, topology: 1000, cost: cheap(class, ask), arrangement: 0 }
}

/// 100 currency units per hour or more is "as dear as it gets".
fn cheap(class: &Class, ask: &Ask<'_>) -> i32 {
    1000 - (filter::cost_per_hour(&class.flavor, ask) / 100_000).min(1000) as i32
}

/// Thousandths of the node's GPUs that are not free after the placement.
fn node_fit(class: &Class, spec: &JobSpec) -> i32 {
    let all_gpu = 1000 * class.flavor.devices.len().max(1) as u64;
    let left = class.free_gpu_milli().saturating_sub(spec.resources.gpu.milli());
    1000 - (left * 1000 / all_gpu) as i32
}

/// Best fit: the less GPU stays free, the better. For a part of a device the rest of
/// that device counts most, since it is what others can hardly use.
fn tight(class: &Class, spec: &JobSpec, leftover: u16) -> i32 {
    let node_fit = node_fit(class, spec);
    match spec.resources.gpu {
        Gpus::Milli(_) => (3 * (WHOLE as i32 - i32::from(leftover)) + node_fit) / 4,
        Gpus::Whole(_) => node_fit,
        // Work without a GPU belongs where no GPU waits for its CPUs.
        Gpus::None => node_fit,
    }
}

/// Usable GPU lost, beyond what the request takes, that makes one point. Coarse on purpose:
/// differences below it are noise, and among equals the tighter fit packs.
const POINT: i64 = 20 * UNIT;

/// How much of the node's worth to the target workload the placement leaves: 500 when it
/// costs no more than the GPU it takes is worth at most. None when the target says nothing.
fn kept_usable(class: &Class, ask: &Ask<'_>, rules: &Rules) -> Option<(i32, Option<u16>)> {
    if rules.worth.is_empty() {
        return None;
    }
    let wants = &ask.resources;
    let count = class.devices.len();
    let hardware = class.flavor.hardware;
    if count > DEVICES {
        return None;
    }
    let mut free = worth::free_of(&class.devices);
    let before = rules.worth.of(hardware, class.cpu_milli, &free[..count])?;
    let cpu = class.cpu_milli.saturating_sub(wants.cpu_milli);
    let points = |after: i64| {
        let kept = wants.gpu.milli() as i64 * worth::MOST + after - before;
        (500 + kept.div_euclid(POINT)).clamp(0, 1000) as i32
    };
    match wants.gpu {
        Gpus::None => Some((points(rules.worth.of(hardware, cpu, &free[..count])?), None)),
        Gpus::Whole(_) => {
            for device in devices::whole_of(class, ask)? {
                free[usize::from(device)] = 0;
            }
            Some((points(rules.worth.of(hardware, cpu, &free[..count])?), None))
        }
        Gpus::Milli(milli) => {
            let mut best: Option<(i32, u16, u16)> = None;
            let mut tried = [0u16; DEVICES];
            for device in 0..count {
                let had = free[device];
                // Devices of one kind and equal rest are alike.
                let alike = tried[..device].contains(&had) && class.flavor.alike();
                if alike || !devices::holds(class, device, ask, milli) {
                    continue;
                }
                tried[device] = had;
                free[device] = had - milli;
                let points = points(rules.worth.of(hardware, cpu, &free[..count])?);
                free[device] = had;
                if best.is_none_or(|(most, tightest, _)| {
                    (points, std::cmp::Reverse(had)) > (most, std::cmp::Reverse(tightest))
                }) {
                    best = Some((points, had, device as u16));
                }
            }
            best.map(|(points, _, device)| (points, Some(device)))
        }
    }
}
