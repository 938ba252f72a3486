//! Where nodes stand for an ask that comes again and again: a ranking of the nodes by
//! score, kept between decisions and brought up to date node by node, so that a decision
//! on a group of ten thousand different nodes looks at few of them. It finds exactly what
//! the scan would find. Derived, never stored; the proposer carries it from state to state.

use super::{Found, Limits, filter, score};
use crate::capacity::{CapacityIndex, Class, Flavor};
use crate::id::NodeNo;
use crate::job::{Arrangement, Constraints, JobSpec};
use crate::placement::{Policy, Rules, Term};
use crate::resources::Resources;
use crate::sharing::Ask;
use crate::state::State;
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

mod board;

use board::Board;

/// Asks that are ranked for; of more the others are scanned for. Fewer where there are many nodes: a ranking takes some
/// ten bytes of memory a node.
const MOST: usize = 256;
/// Places in all rankings together.
const PLACES: usize = 2_560_000;
/// An ask that did not come for so many turns gives its ranking up to one that did.
const IDLE: u64 = 256;
/// Fewer classes than this are scanned as quickly.
const WORTH_IT: usize = 8;
/// From so many classes on a scan takes longer than it should.
const MANY: usize = 512;
/// Below that many, nodes are ranked if no more than so many share a class: a ranking of nodes that
/// are alike costs more to make than the scans that it saves.
const ALIKE: usize = 4;
/// A ranking that more nodes have left behind than this is not looked at before it has followed.
const BEHIND: usize = 1024;

/// What decides where a job may go and what a place is worth to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    resources: Resources,
    constraints: Constraints,
    /// A bound on the price is meant for all replicas.
    priced: u16,
    /// A part of any device will do, also of one that enforces nothing.
    takes_any: bool,
    needs_engine: bool,
}

impl Shape {
    fn of(ask: &Ask<'_>) -> Self {
        let constraints = ask.constraints.of_place();
        let priced = if constraints.max_cost_per_hour.is_some() { ask.most_replicas() } else { 1 };
        let (takes_any, needs_engine) = (ask.takes_any(), ask.needs_engine());
        Self { resources: ask.resources.clone(), constraints, priced, takes_any, needs_engine }
    }
}

/// Nodes with room for one ask, by their scores.
#[derive(Clone, Debug, Default)]
struct Ranking {
    rules: Arc<Rules>,
    /// The classes that were ranked.
    of: OrdMap<NodeNo, Arc<Class>>,
    board: Board,
}

#[derive(Clone, Debug)]
struct Asked {
    turn: u64,
    /// From the second time on.
    ranking: Option<Arc<Ranking>>,
}

/// The rankings of the asks that come most.
#[derive(Clone, Debug, Default)]
pub struct Standings {
    asked: OrdMap<Shape, Asked>,
    turn: u64,
}

impl State {
    /// Says that a place for `spec` is looked for next, so that the search may be short.
    pub fn stand(&mut self, spec: &JobSpec) {
        let (classes, nodes) = (self.capacity.classes.len(), self.capacity.by_node().len());
        let scanned = classes < WORTH_IT || (classes < MANY && classes * ALIKE < nodes);
        if scanned || spec.constraints.node.is_some() || self.rules.chosen.policy == Policy::Random {
            return;
        }
        let ask = Ask::of(self, spec);
        let standings = &mut self.standings;
        standings.turn += 1;
        let turn = standings.turn;
        let shape = Shape::of(&ask);
        if let Some(asked) = standings.asked.get_mut(&shape) {
            asked.turn = turn;
            match &mut asked.ranking {
                Some(ranking) if ranking.goes_by(&self.rules) => {
                    let ranking = Arc::make_mut(ranking);
                    // What is equal is compared but once.
                    ranking.rules.clone_from(&self.rules);
                    ranking.follow(&ask, &self.capacity);
                }
                _ => asked.ranking = Some(Arc::new(Ranking::new(&ask, &self.capacity, &self.rules))),
            }
            return;
        }
        if standings.asked.len() >= MOST.min(PLACES / nodes.max(1)).max(1) {
            let oldest = standings.asked.iter().min_by_key(|(_, asked)| asked.turn);
            let Some((idle, _)) = oldest.filter(|(_, asked)| asked.turn + IDLE < turn) else { return };
            let idle = idle.clone();
            standings.asked.remove(&idle);
        }
        standings.asked.insert(shape, Asked { turn, ranking: None });
    }
}

/// The best place by the ranking; None when there is none that counts.
pub(super) fn find(state: &State, spec: &JobSpec, limits: &Limits) -> Option<Option<Found>> {
    if spec.constraints.node.is_some() || state.standings.asked.is_empty() {
        return None;
    }
    let ask = Ask::of(state, spec);
    let ranking = state.standings.asked.get(&Shape::of(&ask))?.ranking.as_ref()?;
    if !ranking.goes_by(&state.rules) {
        return None;
    }
    ranking.best(&ask, state.capacity(), limits)
}

/// Scores classes that come in the order of their flavors, so one verdict serves many.
struct Judge<'a> {
    ask: &'a Ask<'a>,
    rules: &'a Rules,
    flavor: Option<(Arc<Flavor>, bool)>,
}

impl<'a> Judge<'a> {
    fn new(ask: &'a Ask<'a>, rules: &'a Rules) -> Self {
        Self { ask, rules, flavor: None }
    }

    /// The score without siblings; None without room.
    fn score(&mut self, class: &Class) -> Option<i64> {
        if !filter::may_have_room(class, self.ask) {
            return None;
        }
        if self.flavor.as_ref().is_none_or(|(known, _)| !Arc::ptr_eq(known, &class.flavor)) {
            self.flavor = Some((class.flavor.clone(), filter::may_ever_run(&class.flavor, self.ask)));
        }
        self.flavor.as_ref().filter(|(_, may)| *may)?;
        let (terms, _) = score::terms(class, self.ask, self.rules)?;
        Some(terms.with_siblings(self.ask, 0).total(self.rules.chosen.weights))
    }
}

impl Ranking {
    fn new(ask: &Ask<'_>, index: &CapacityIndex, rules: &Arc<Rules>) -> Self {
        let mut judge = Judge::new(ask, rules);
        let scored = index.classes.iter().filter_map(|(class, nodes)| Some((judge.score(class)?, nodes)));
        // Where hardly two nodes are alike, most classes have one, for which a walk through them is dear.
        let board = Board::of(scored.flat_map(|(score, nodes)| {
            let (one, many) = if nodes.len() == 1 { (nodes.get_min(), None) } else { (None, Some(nodes)) };
            let each = one.into_iter().chain(many.into_iter().flatten());
            each.map(move |node| (*node, score))
        }));
        Self { rules: rules.clone(), of: index.by_node().clone(), board }
    }

    /// Rules that were made apart from one another may still be the same.
    fn goes_by(&self, rules: &Arc<Rules>) -> bool {
        Arc::ptr_eq(&self.rules, rules) || self.rules == *rules
    }

    /// Nodes that are not as they were ranked.
    fn left_behind<'a>(&'a self, index: &'a CapacityIndex) -> impl Iterator<Item = NodeNo> + 'a {
        self.of.diff(index.by_node()).map(|difference| match difference {
            DiffItem::Add(node, _) | DiffItem::Update { new: (node, _), .. } | DiffItem::Remove(node, _) => *node,
        })
    }

    /// Brings the ranking up to the present: however many nodes it left behind, they are no more than all.
    fn follow(&mut self, ask: &Ask<'_>, index: &CapacityIndex) {
        let behind: Vec<NodeNo> = self.left_behind(index).collect();
        let rules = self.rules.clone();
        let mut judge = Judge::new(ask, &rules);
        for node in behind {
            self.board.set(node, index.class(node).and_then(|class| judge.score(class)));
        }
        self.of = index.by_node().clone();
    }

    fn best(&self, ask: &Ask<'_>, index: &CapacityIndex, limits: &Limits) -> Option<Option<Found>> {
        let behind: Vec<NodeNo> = self.left_behind(index).take(BEHIND + 1).collect();
        if behind.len() > BEHIND {
            return None;
        }
        let held: BTreeSet<NodeNo> = limits.held.iter().copied().collect();
        // What each sibling on a node is worth, in points of the term.
        let worth = match ask.constraints.arrangement {
            Arrangement::Any => 0,
            Arrangement::Pack => 1,
            Arrangement::Spread => -1,
        };
        let siblings = |node: &NodeNo| if worth == 0 { 0 } else { limits.siblings.get(node).copied().unwrap_or(0) };
        let apart: BTreeSet<NodeNo> =
            behind.iter().chain(limits.siblings.keys().filter(|node| siblings(node) > 0)).copied().collect();
        // These are as they were ranked; two of them are enough for the best and the runner-up.
        let out: BTreeSet<NodeNo> = held.union(&apart).copied().collect();
        let mut top = self.board.best_without(&out);
        let mut candidates = self.board.len() - out.iter().filter(|node| self.board.has(**node)).count();
        let mut judge = Judge::new(ask, &self.rules);
        let each = worth * self.rules.chosen.weights.of(Term::Arrangement);
        for node in apart.difference(&held) {
            let Some(score) = index.class(*node).and_then(|class| judge.score(class)) else { continue };
            top.push((Reverse(score + each * i64::from(siblings(node).min(1000))), *node));
            candidates += 1;
        }
        top.sort_unstable();
        let Some((Reverse(score), node)) = top.first().copied() else { return Some(None) };
        let class = index.class(node)?.clone();
        let (terms, device) = score::terms(&class, ask, &self.rules)?;
        Some(Some(Found {
            score,
            node,
            terms: terms.with_siblings(ask, siblings(&node)),
            device,
            class,
            runner_up: top.get(1).map(|(Reverse(score), node)| (*node, *score)),
            candidates: candidates as u32,
        }))
    }
}

#[cfg(test)]
mod tests;
