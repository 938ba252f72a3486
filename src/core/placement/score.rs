//! The score of a class of nodes for a job: a weighted sum of integer terms,
//! each 0 (worst) to 1000 (best), so that members compute the same and people
//! can read why. It does not know which nodes are in the class.

use super::{devices, filter};
use crate::capacity::Class;
use crate::job::{Arrangement, JobSpec};
use crate::resources::{Gpus, WHOLE};
use serde::{Deserialize, Serialize};

/// What a term speaks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Term {
    /// How little usable GPU is left lying about.
    Fragmentation,
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
            Term::Topology => "topology",
            Term::Cost => "cost",
            Term::Arrangement => "arrangement",
        }
    }

    /// The default policy's weight.
    const fn weight(self) -> i64 {
        match self {
            Term::Fragmentation => 100,
            Term::Topology => 40,
            Term::Cost => 10,
            // One sibling more outweighs all the others at their best (150 × 1000):
            // spreading is asked for, not a preference of ours.
            Term::Arrangement => 200_000,
        }
    }
}

/// The terms of a score, before weighting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    pub fragmentation: i32,
    pub topology: i32,
    pub cost: i32,
    pub arrangement: i32,
}

impl Terms {
    /// The weighted sum.
    pub fn total(&self) -> i64 {
        self.each().iter().map(|(term, value)| term.weight() * i64::from(*value)).sum()
    }

    pub fn each(&self) -> [(Term, i32); 4] {
        [
            (Term::Fragmentation, self.fragmentation),
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

/// The terms for one more replica on a node of the class; None when it does not fit.
pub fn terms(class: &Class, spec: &JobSpec) -> Option<Terms> {
    let ask = &spec.resources;
    let fit = devices::fit(class, ask, spec.constraints.same_island)?;
    let all_gpu = 1000 * class.flavor.devices.len().max(1) as u64;
    // Best fit: the less GPU stays free, the better. For a part of a device the
    // rest of that device counts most, since it is what others can hardly use.
    let left = class.free_gpu_milli().saturating_sub(ask.gpu.milli());
    let node_fit = 1000 - (left * 1000 / all_gpu) as i32;
    let fragmentation = match ask.gpu {
        Gpus::Milli(_) => (3 * (WHOLE as i32 - i32::from(fit.leftover)) + node_fit) / 4,
        Gpus::Whole(_) => node_fit,
        // Work without a GPU belongs where no GPU waits for its CPUs.
        Gpus::None => node_fit,
    };
    let topology = 1000 / i32::from(fit.islands.max(1));
    // 100 currency units per hour or more is "as dear as it gets".
    let cost = 1000 - (filter::cost_per_hour(&class.flavor, spec) / 100_000).min(1000) as i32;
    Some(Terms { fragmentation, topology, cost, arrangement: 0 })
}
