//! Gangs so large that nobody gives way to them: which bound of the search that is. Only for explanations.

use super::units::Budgets;
use super::{MOST_NODES, any_claim, slots};
use crate::capacity::Flavor;
use crate::claim::MOST_VICTIMS;
use crate::job::JobSpec;
use crate::ledger::Ledger;
use crate::placement::{Limits, filter, place};
use crate::sharing::Ask;
use crate::state::State;
use std::sync::Arc;

/// A bound of the search that stands between a gang and the places of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beyond {
    /// It needs others to give way on at least so many nodes.
    Nodes(usize),
    /// So many replicas would have to give way.
    Victims(usize),
}

impl Beyond {
    /// Why nobody gives way to so large a gang, and what would do.
    pub fn detail(self, members: usize) -> String {
        let (what, most) = match self {
            Self::Nodes(nodes) => (format!("on {nodes} nodes"), format!("on {MOST_NODES} nodes")),
            Self::Victims(victims) => (format!("{victims} replicas"), format!("{MOST_VICTIMS} replicas")),
        };
        format!(
            "nobody gives way to a gang of {members}: {what} others would have to, and at most {most} do at once; it runs when room comes free, or as a smaller gang"
        )
    }
}

/// The bound that is in the way, if that is why none of less urgent work gives way to a gang. A search, for explanations.
pub(crate) fn beyond(state: &State, spec: &JobSpec, wanted: &[u16], limits: &Limits) -> Option<Beyond> {
    if !spec.gang {
        return None;
    }
    let found = any_claim(state, spec, wanted, limits, Budgets::Ignored).map(|claim| claim.victims.len());
    if let Some(victims) = found {
        return (victims > MOST_VICTIMS).then_some(Beyond::Victims(victims));
    }
    let alone = JobSpec { gang: false, ..spec.clone() };
    let missing = wanted.len() - place(state, &alone, wanted, limits.clone()).len();
    let ask = Ask::of(state, spec);
    let mut most = 0;
    let mut last: Option<&Arc<Flavor>> = None;
    // Classes come in the order of their flavors: one empty node of each.
    for (class, nodes) in state.capacity().classes.iter().filter(|(class, _)| class.takes_work()) {
        let known = last.replace(&class.flavor).is_some_and(|known| Arc::ptr_eq(known, &class.flavor));
        let Some(node) = nodes.get_min().and_then(|no| state.node(*no)).filter(|_| !known) else { continue };
        if filter::may_ever_run(&class.flavor, &ask) {
            let mut books = Ledger::default();
            books.resize(node.no, node.spec.devices.len());
            most = slots(state, node, &ask, books, wanted.len()).max(most);
        }
    }
    let nodes = missing.checked_div(most).map(|nodes| nodes + usize::from(!missing.is_multiple_of(most)))?;
    (nodes > MOST_NODES).then_some(Beyond::Nodes(nodes))
}
