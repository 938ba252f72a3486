//! Placement policies: by name, what a good place is; by weights, how much each term of
//! a score counts. Operators choose both, and the state keeps the choice, so every
//! member compares places alike. The search is the same for all. It knows no node.

use super::score::Term;
use super::worth::Worth;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a good place is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Policy {
    /// Keeps the most GPU usable for the target workload; without one, the tightest fit.
    #[default]
    Fragmentation,
    /// The tightest fit of this request alone.
    BestFit,
    /// The emptiest node.
    Spread,
    /// The cheapest devices.
    Cost,
    /// The least shared links and devices.
    Latency,
    /// Any that fits; a yardstick for the others.
    Random,
}

impl Policy {
    pub const ALL: [Policy; 6] =
        [Policy::Fragmentation, Policy::BestFit, Policy::Spread, Policy::Cost, Policy::Latency, Policy::Random];

    pub fn name(self) -> &'static str {
        match self {
            Policy::Fragmentation => "fragmentation",
            Policy::BestFit => "best-fit",
            Policy::Spread => "spread",
            Policy::Cost => "cost",
            Policy::Latency => "latency",
            Policy::Random => "random",
        }
    }

    /// The policy of the name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }

    /// The weights that the policy has when nobody says others.
    pub fn weights(self) -> Weights {
        let (fragmentation, topology, cost) = match self {
            Policy::Fragmentation | Policy::BestFit | Policy::Spread => (1000, 400, 100),
            Policy::Cost => (10, 400, 1000),
            Policy::Latency => (200, 1000, 100),
            Policy::Random => (1000, 0, 0),
        };
        Weights { fragmentation, topology, cost }
    }
}

/// The most that a point of one term may count.
pub const MOST_WEIGHT: u32 = 1000;

/// What one point of each term counts, 0 to [`MOST_WEIGHT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    pub fragmentation: u32,
    pub topology: u32,
    pub cost: u32,
}

impl Weights {
    pub fn of(self, term: Term) -> i64 {
        match term {
            // One sibling more outweighs all the others at their best and heaviest:
            // spreading is asked for by the job, not a preference of ours.
            Term::Arrangement => 4_000_000,
            // Below one point of any other term: it decides between equals alone.
            Term::Fit => 1,
            // Files that are there already are worth twenty points of a term of the usual weight: they decide between
            // places that are nearly as good, and tear no GPU open. Fixed, since the weights' form is.
            Term::Locality => 20,
            Term::Fragmentation => self.fragmentation.into(),
            Term::Topology => self.topology.into(),
            Term::Cost => self.cost.into(),
        }
    }
}

/// When work may be made to give way to more urgent work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preemption {
    pub enabled: bool,
    /// How long a replica holds its place before it may be a victim.
    pub min_run_ms: u64,
    /// How long a job waits for a place before it may make others give way.
    pub delay_ms: u64,
    /// The longest time to save its state that a program which has to go may ask for.
    pub max_grace_ms: u32,
}

impl Default for Preemption {
    fn default() -> Self {
        // As long as it takes until a silent node is Suspect: what ends, restarts or moves by itself has had the time to,
        // and nobody's work is stopped for a place that was about to be free. The grace is the notice that clouds
        // give of machines that they take back (AWS: two minutes), for which programs are written.
        Self { enabled: true, min_run_ms: 60_000, delay_ms: 5_000, max_grace_ms: 120_000 }
    }
}

/// The policy that the group goes by. One row of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    pub policy: Policy,
    pub weights: Weights,
    pub preemption: Preemption,
}

impl From<Policy> for Chosen {
    fn from(policy: Policy) -> Self {
        Self { policy, weights: policy.weights(), preemption: Preemption::default() }
    }
}

impl Default for Chosen {
    fn default() -> Self {
        Policy::default().into()
    }
}

/// What the search compares places by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub chosen: Chosen,
    /// Millionths an hour of the dearest GPU that there is.
    pub dearest: u64,
    /// For `fragmentation`; empty when nothing is known of the workload.
    pub worth: Arc<Worth>,
}
