//! Placement policies by name: which terms count, and how much. The search is the same
//! for all of them. It does not know nodes or requests.

use super::score::Term;
use super::worth::Worth;
use std::sync::Arc;

/// What a good place is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
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

    /// What one point of the term counts.
    pub fn weight(self, term: Term) -> i64 {
        match (term, self) {
            // One sibling more outweighs all the others at their best: spreading is
            // asked for by the job, not a preference of ours.
            (Term::Arrangement, _) => 2_000_000,
            // Below one point of any other term: it decides between equals alone.
            (Term::Fit, _) => 1,
            (Term::Fragmentation, Policy::Cost) => 10,
            (Term::Fragmentation, Policy::Latency) => 200,
            (Term::Fragmentation, _) => 1000,
            (Term::Topology, Policy::Latency) => 1000,
            (Term::Topology | Term::Cost, Policy::Random) => 0,
            (Term::Topology, _) => 400,
            (Term::Cost, Policy::Cost) => 1000,
            (Term::Cost, _) => 100,
        }
    }
}

/// What the search compares places by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub policy: Policy,
    /// For `fragmentation`; empty when nothing is known of the workload.
    pub worth: Arc<Worth>,
}
