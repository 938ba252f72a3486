//! Turns the applied states that pass by into slices for a set of nodes: each
//! node's slice once, then again whenever it changed. Pure; it does not know who
//! listens.

use super::message::{NodeStart, Slice, Slices};
use crate::raft::Applied;
use nf_core::ledger::NodeUse;
use nf_core::reconcile;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Slices in one message, so that a stream of many nodes starts in several small ones.
const SLICES_PER_MESSAGE: usize = 64;

/// What one listener was last told.
#[derive(Debug)]
pub struct Feed {
    /// Each node with what it held when its slice was last read. Keeping the pointer means that
    /// any change makes a new one, also when a snapshot replaced the whole state.
    nodes: BTreeMap<NodeStart, Option<Arc<NodeUse>>>,
    index: Option<u64>,
}

impl Feed {
    pub fn new(nodes: impl IntoIterator<Item = NodeStart>) -> Self {
        Self { nodes: nodes.into_iter().map(|node| (node, None)).collect(), index: None }
    }

    /// Messages that bring the listener to `applied`. Empty when it is there.
    /// A node that is not registered at that incarnation (yet, or any more) has no slice.
    pub fn advance(&mut self, applied: &Applied) -> Vec<Slices> {
        if self.index == Some(applied.index) {
            return Vec::new();
        }
        let state = &applied.state;
        let mut slices = Vec::new();
        for (start, told) in &mut self.nodes {
            let node = state.node_named(&start.node).filter(|node| node.incarnation == start.incarnation);
            let Some(node) = node else { continue };
            let Some(used) = state.ledger().node(node.no) else { continue };
            if told.as_ref().is_some_and(|told| Arc::ptr_eq(told, used)) {
                continue;
            }
            *told = Some(used.clone());
            slices.push(Slice {
                node: start.node.clone(),
                revision: used.revision,
                index: applied.index,
                desired: Arc::new(reconcile::desired(state, node.no)),
            });
        }
        self.index = Some(applied.index);
        messages(slices, applied.index)
    }
}

fn messages(slices: Vec<Slice>, index: u64) -> Vec<Slices> {
    let mut out: Vec<Slices> = Vec::with_capacity(slices.len() / SLICES_PER_MESSAGE + 1);
    let mut slices = slices.into_iter().peekable();
    loop {
        let part: Vec<Slice> = slices.by_ref().take(SLICES_PER_MESSAGE).collect();
        let last = slices.peek().is_none();
        out.push(Slices { slices: part, index: last.then_some(index) });
        if last {
            return out;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::id::{Incarnation, NodeName};
    use nf_core::resources::Gpus;
    use nf_core::state::State;
    use nf_core::testing;

    fn start(name: &str) -> NodeStart {
        NodeStart { node: NodeName::new(name).unwrap(), incarnation: Incarnation(1) }
    }

    fn applied(state: &State, index: u64) -> Applied {
        Applied { state: Arc::new(state.clone()), index, ..Applied::default() }
    }

    #[test]
    fn a_slice_is_told_once_and_again_when_it_changed() {
        let mut state = State::new();
        testing::run(&mut state, testing::register("n1", testing::node_spec(2)));
        testing::run(&mut state, testing::register("n2", testing::node_spec(2)));
        let mut feed = Feed::new([start("n1"), start("n2"), start("n3")]);
        let first = feed.advance(&applied(&state, 5));
        assert_eq!(first.iter().map(|m| m.slices.len()).sum::<usize>(), 2, "n3 is not registered");
        assert_eq!(first.last().unwrap().index, Some(5));
        assert!(feed.advance(&applied(&state, 5)).is_empty());
        testing::run(&mut state, testing::schedule("r1", testing::job_spec("t1", Gpus::Whole(2))));
        let second = feed.advance(&applied(&state, 6));
        assert_eq!(second.len(), 1);
        assert_eq!(second[0].slices.len(), 1);
        assert_eq!(second[0].slices[0].desired.replicas.len(), 1);
        testing::run(&mut state, testing::schedule("r2", testing::job_spec("t1", Gpus::Whole(2))));
        let waits = feed.advance(&applied(&state, 7));
        assert_eq!(waits, [Slices { slices: vec![], index: Some(7) }], "the tenant's quota is used up");
    }

    #[test]
    fn another_start_of_the_node_gets_nothing() {
        let mut state = State::new();
        testing::run(&mut state, testing::register("n1", testing::node_spec(2)));
        let old = NodeStart { incarnation: Incarnation(0), ..start("n1") };
        assert!(Feed::new([old]).advance(&applied(&state, 1))[0].slices.is_empty());
    }

    #[test]
    fn a_state_that_was_replaced_is_told_again() {
        let make = || {
            let mut state = State::new();
            testing::run(&mut state, testing::register("n1", testing::node_spec(2)));
            state
        };
        let mut feed = Feed::new([start("n1")]);
        feed.advance(&applied(&make(), 1));
        assert_eq!(feed.advance(&applied(&make(), 2))[0].slices.len(), 1);
    }

    #[test]
    fn many_nodes_come_in_several_messages() {
        let mut state = State::new();
        let names: Vec<String> = (0..130).map(|i| format!("n{i}")).collect();
        for name in &names {
            testing::run(&mut state, testing::register(name, testing::node_spec(1)));
        }
        let all = Feed::new(names.iter().map(|n| start(n))).advance(&applied(&state, 9));
        assert_eq!(all.iter().map(|m| m.slices.len()).collect::<Vec<_>>(), [64, 64, 2]);
        assert_eq!(all.iter().map(|m| m.index).collect::<Vec<_>>(), [None, None, Some(9)]);
    }
}
