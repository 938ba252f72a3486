//! What of a job's constraints decides where it may go. It does not look for a place.

use super::{Arrangement, Constraints};
use crate::id::{Label, NodeName};
use crate::topology::Topology;
use std::collections::BTreeMap;

/// What of a job's constraints decides where it may go.
pub type Whereabouts<'a> = (
    [Option<&'a Label>; 3],
    &'a BTreeMap<Label, Label>,
    Option<&'a NodeName>,
    (Arrangement, bool, Option<u64>),
    Topology,
);

impl Constraints {
    /// What of them decides where a replica may go. All else is about how it runs there, for how long, and how it ends:
    /// jobs that differ in nothing but that find the same places.
    pub fn whereabouts(&self) -> Whereabouts<'_> {
        // Every field is named, so that a new one is thought of.
        let Self {
            region,
            zone,
            rack,
            labels,
            arrangement,
            same_island,
            max_cost_per_hour,
            node,
            topology,
            latency_ms: _,
            exclusive: _,
            preemptible: _,
            restart: _,
            max_run_ms: _,
            stay: _,
            checkpoint_ms: _,
            max_unavailable: _,
        } = self;
        let place = [region.as_ref(), zone.as_ref(), rack.as_ref()];
        (place, labels, node.as_ref(), (*arrangement, *same_island, *max_cost_per_hour), *topology)
    }

    /// What of them makes one node better or worse than another, as constraints of their own: not which nodes the
    /// replicas share, which is a matter of all of them.
    pub fn of_place(&self) -> Self {
        let ([region, zone, rack], labels, node, (arrangement, same_island, max_cost_per_hour), _) = self.whereabouts();
        Self {
            region: region.cloned(),
            zone: zone.cloned(),
            rack: rack.cloned(),
            labels: labels.clone(),
            arrangement,
            same_island,
            max_cost_per_hour,
            node: node.cloned(),
            ..Self::default()
        }
    }
}
