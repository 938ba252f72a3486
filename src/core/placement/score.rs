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
use std::cmp::Reverse;

/// What a term speaks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Term {
    /// How little usable GPU is left lying about.
    Fragmentation,
    /// How little is left free; decides between places of equal fragmentation.
    Fit,
    /// How few links between NVLink islands are crossed; and, between equals, whether NUMA nodes are.
    Topology,
    /// How cheap the devices are.
    Cost,
    /// How few replicas of the same job are there (or how many, when packing).
    Arrangement,
    /// Whether the model's files are on the node already.
    Locality,
}

impl Term {
    pub fn name(self) -> &'static str {
        match self {
            Term::Fragmentation => "fragmentation",
            Term::Fit => "fit",
            Term::Topology => "topology",
            Term::Cost => "cost",
            Term::Arrangement => "arrangement",
            Term::Locality => "locality",
        }
    }
}

/// The terms of a score, before weighting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Terms {
    pub fragmentation: i32,
    pub fit: i32,
    pub topology: i32,
    pub cost: i32,
    pub arrangement: i32,
    pub locality: i32,
}

/// Terms as logs and rows have them. Locality came when there were such bytes already, and their form has no names for a
/// field to be absent by: it is written above the arrangement, which is at most 1000, so that without it the bytes are
/// what they always were. ADR 91.
#[derive(Serialize, Deserialize)]
struct Stored {
    fragmentation: i32,
    fit: i32,
    topology: i32,
    cost: i32,
    both: i32,
}

/// Of the number in which both are: those of the arrangement.
const ARRANGEMENT_BITS: u32 = 16;

impl From<Terms> for Stored {
    fn from(terms: Terms) -> Self {
        let Terms { fragmentation, fit, topology, cost, arrangement, locality } = terms;
        Self { fragmentation, fit, topology, cost, both: locality << ARRANGEMENT_BITS | arrangement }
    }
}

impl From<Stored> for Terms {
    fn from(stored: Stored) -> Self {
        let Stored { fragmentation, fit, topology, cost, both } = stored;
        let (arrangement, locality) = (both & ((1 << ARRANGEMENT_BITS) - 1), both >> ARRANGEMENT_BITS);
        Self { fragmentation, fit, topology, cost, arrangement, locality }
    }
}

impl Terms {
    /// The weighted sum.
    pub fn total(&self, weights: Weights) -> i64 {
        self.each().iter().map(|(term, value)| weights.of(*term) * i64::from(*value)).sum()
    }

    pub fn each(&self) -> [(Term, i32); 6] {
        [
            (Term::Fragmentation, self.fragmentation),
            (Term::Fit, self.fit),
            (Term::Topology, self.topology),
            (Term::Cost, self.cost),
            (Term::Arrangement, self.arrangement),
            (Term::Locality, self.locality),
        ]
    }

    /// With the number of siblings on one node taken into account.
    pub(super) fn with_siblings(mut self, spec: &JobSpec, siblings: u32) -> Self {
        let some = siblings.min(1000) as i32;
        self.arrangement = match spec.constraints.arrangement {
            Arrangement::Spread => 1000 - some,
            Arrangement::Pack => some,
            Arrangement::Any => 0,
        };
        self
    }
}

/// The terms for one more replica on a node of the class, and the device for a part of
/// one; None when it does not fit.
pub fn terms(class: &Class, ask: &Ask<'_>, rules: &Rules) -> Option<(Terms, Option<u16>)> {
    let fit = devices::fit(class, ask)?;
    if let Some(cut) = fit.cut {
        return Some((of_slice(class, ask, cut, rules), None));
    }
    let tight = tight(class, ask, fit.leftover);
    let policy = rules.chosen.policy;
    // A slice that is there already takes no room of others, as the least of a divided GPU's slices does.
    let is_slice = ask.resources.mig_profile.is_some() && matches!(ask.resources.gpu, Gpus::Whole(_));
    // What a job says of itself goes before what the policy would have.
    let packs = ask.constraints.arrangement == Arrangement::Pack;
    let kept = if policy == Policy::Fragmentation && !is_slice { kept_usable(class, ask, rules) } else { None };
    let (fragmentation, device) = match (kept, policy) {
        (Some(kept), _) => kept,
        (None, Policy::Spread | Policy::Latency) if !packs => emptiest(class, ask, policy),
        (None, Policy::Random) => (0, fit.device),
        (None, _) if is_slice => (1000, None),
        (None, _) => (tight, fit.device),
    };
    let fit_term = if kept.is_some() || is_slice { tight.min(999) } else { 0 };
    let apart = if fit.span.numa_nodes > 1 { APART } else { 0 };
    let topology = 1000 / i32::from(fit.span.islands) - apart;
    let cost = cheap(class, ask, rules);
    Some((Terms { fragmentation, fit: fit_term, topology, cost, arrangement: 0, locality: 0 }, device))
}

/// Points of topology that devices on several NUMA nodes cost. At the usual weights less than a point of fragmentation:
/// between places that leave as much usable GPU, the one on a single NUMA node is taken.
const APART: i32 = 2;

/// Points for each unit of room that a slice costs on a divided GPU; an empty one has room for less than 50.
const SLICE_POINTS: u32 = 20;

/// The terms for a slice: what it leaves room for on its GPU.
fn of_slice(class: &Class, ask: &Ask<'_>, cut: Cut, rules: &Rules) -> Terms {
    let kept = 1000 - (cut.cost * SLICE_POINTS).min(1000) as i32;
    let tight = 999 - (cut.left * 100) as i32;
    let all_gpu = 1000 * class.flavor.devices.len().max(1) as u64;
    let left = class.free_gpu_milli().saturating_sub(cut.slice.shape.milli().into());
    let (fragmentation, fit) = match rules.chosen.policy {
        Policy::Fragmentation => (kept, tight),
        Policy::Spread | Policy::Latency => ((left * 1000 / all_gpu) as i32, 0),
        Policy::Random => (0, 0),
        Policy::BestFit | Policy::Cost => (tight, 0),
    };
    Terms { fragmentation, fit, topology: 1000, cost: cheap(class, ask, rules), arrangement: 0, locality: 0 }
}

/// "As dear as it gets" is 100 currency units an hour or more; where the price is what counts, the dearest GPUs that
/// there are, whatever the currency.
fn cheap(class: &Class, ask: &Ask<'_>, rules: &Rules) -> i32 {
    let price = u128::from(filter::cost_per_hour(&class.flavor, ask));
    if price == 0 {
        return 1000;
    }
    let dearest = match rules.chosen.policy {
        Policy::Cost => u128::from(rules.dearest) * u128::from(ask.resources.gpu.milli()) / 1000,
        _ => 100_000_000,
    };
    1000 - (price * 1000).checked_div(dearest).unwrap_or(0).min(1000) as i32
}

/// How much of the node is left free, and for a part the device with most left: who is to share as little as it can
/// shares no device while another is idle.
fn emptiest(class: &Class, ask: &Ask<'_>, policy: Policy) -> (i32, Option<u16>) {
    let node = 1000 - node_fit(class, ask);
    match ask.resources.gpu {
        Gpus::Milli(milli) => match devices::emptiest(class, ask, milli) {
            // Whose devices and links are shared least counts before whose node is.
            Some((free, device)) if policy == Policy::Latency => {
                ((9 * i32::from(free - milli) + node) / 10, Some(device as u16))
            }
            found => (node, found.map(|(_, device)| device as u16)),
        },
        Gpus::Whole(_) => (node, None),
        // What it takes is none of the GPUs.
        Gpus::None => {
            let left =
                |free: u64, ask: u64, all: u64| u128::from(free.saturating_sub(ask)) * 1000 / u128::from(all.max(1));
            let cpu = left(class.cpu_milli, ask.resources.cpu_milli, class.flavor.cpu_milli);
            let memory = left(class.memory, ask.resources.memory, class.flavor.memory);
            (cpu.min(memory).min(1000) as i32, None)
        }
    }
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
    let (count, hardware) = (class.devices.len(), class.flavor.hardware);
    if rules.worth.is_empty() || count > DEVICES {
        return None;
    }
    let mut all = worth::free_of(&class.devices);
    let free = &mut all[..count];
    let cpu = class.cpu_milli.saturating_sub(ask.resources.cpu_milli);
    let points = |before: i64, after: i64| {
        let kept = ask.resources.gpu.milli() as i64 * worth::MOST + after - before;
        (500 + kept.div_euclid(POINT)).clamp(0, 1000) as i32
    };
    if let Some(ready) = rules.worth.ready(hardware, free) {
        let before = ready.all(class.cpu_milli);
        return match ask.resources.gpu {
            Gpus::None => Some((points(before, ready.all(cpu)), None)),
            Gpus::Whole(n) => Some((points(before, ready.without_whole(cpu, n)), None)),
            Gpus::Milli(milli) => {
                let after = ready.without_part(cpu, milli);
                best_part(class, ask, milli, |device| Some(points(before, after(free[device]))))
            }
        };
    }
    let before = rules.worth.of(hardware, class.cpu_milli, free)?;
    match ask.resources.gpu {
        Gpus::None => Some((points(before, rules.worth.of(hardware, cpu, free)?), None)),
        Gpus::Whole(_) => {
            devices::whole_of(class, ask)?.for_each(|device| free[usize::from(device)] = 0);
            Some((points(before, rules.worth.of(hardware, cpu, free)?), None))
        }
        Gpus::Milli(milli) => best_part(class, ask, milli, |device| {
            let had = std::mem::replace(&mut free[device], class.devices[device].milli - milli);
            let after = rules.worth.of(hardware, cpu, free);
            free[device] = had;
            after.map(|after| points(before, after))
        }),
    }
}

/// The device to take a part from: where the placement has most points, and of equal ones the tightest.
fn best_part(
    class: &Class,
    ask: &Ask<'_>,
    milli: u16,
    mut points: impl FnMut(usize) -> Option<i32>,
) -> Option<(i32, Option<u16>)> {
    let mut best: Option<(i32, Reverse<u16>, u16)> = None;
    let mut tried = [0u16; DEVICES];
    for (device, free) in class.devices.iter().enumerate() {
        let had = free.milli;
        // Devices of one kind and equal rest are alike.
        let alike = class.flavor.alike() && tried[..device].contains(&had);
        if had < milli || alike || !devices::holds(class, device, ask, milli) {
            continue;
        }
        tried[device] = had;
        let points = points(device)?;
        if best.is_none_or(|(most, tightest, _)| (points, Reverse(had)) > (most, tightest)) {
            best = Some((points, Reverse(had), device as u16));
        }
    }
    best.map(|(points, _, device)| (points, Some(device)))
}
