//! Placement: a pure function from the state's index of free capacity to a
//! place, with the terms of its score and the runner-up. Filter each class of
//! equal nodes, score it once, take the best; ties go to the lowest node number.
//! It decides where; whether (quota, order) is decided in `plan`, and apply
//! judges the result again with code of its own.

mod census;
pub mod devices;
pub mod explain;
pub mod filter;
mod gangs;
pub mod hindsight;
mod keep;
pub(crate) mod locality;
pub mod mix;
mod order;
pub mod pass;
pub mod policy;
pub mod preempt;
pub mod queue;
pub mod remedy;
pub(crate) mod reserve;
pub mod score;
pub mod standing;
mod together;
pub mod trial;
mod turns;
mod victims;
mod whole;
pub mod worth;

use crate::capacity::{Class, Flavor};
use crate::id::NodeNo;
use crate::job::{Allocation, Arrangement, Constraints, JobSpec};
use crate::node::{Node, PortRange};
use crate::quota;
use crate::resources::Resources;
use crate::sharing::Ask;
use crate::state::State;
use crate::topology::Domain;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

pub use policy::{Chosen, Policy, Preemption, Rules, Weights};
pub use score::{Term, Terms};

/// Why a node was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// The policy that was in force.
    pub policy: Policy,
    /// Higher is better; the sum of the weighted terms.
    pub score: i64,
    pub terms: Terms,
    /// The best node that was not chosen, and its score.
    pub runner_up: Option<(NodeNo, i64)>,
    /// Nodes that passed the filter.
    pub candidates: u32,
}

/// A place for one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    pub alloc: Allocation,
    pub why: Why,
}

impl Pick {
    /// As a part of a command.
    pub fn for_replica(self, replica: u16) -> crate::command::Placement {
        crate::command::Placement { replica, alloc: self.alloc, why: Some(Arc::new(self.why)) }
    }
}

/// What limits a search besides the job's own constraints.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Nodes kept for jobs that are ahead in the queue.
    pub held: Vec<NodeNo>,
    /// Replicas of the same job that already have a place, per node.
    pub siblings: BTreeMap<NodeNo, u32>,
    /// Only nodes of this rack, zone or region.
    pub within: Option<Domain>,
    /// Free ports that are passed over: on earlier tries somebody else's program was found on them.
    pub skip_ports: u16,
}

/// What a search found: the best node, and what else there is to say of the choice.
#[derive(Debug)]
struct Found {
    score: i64,
    node: NodeNo,
    terms: Terms,
    /// That a part is taken from.
    device: Option<u16>,
    class: Arc<Class>,
    runner_up: Option<(NodeNo, i64)>,
    candidates: u32,
}

/// The best place for one replica of `spec`, or None when it fits nowhere now.
pub fn place_one(state: &State, spec: &JobSpec, limits: &Limits) -> Option<Pick> {
    narrowed(state, spec).and_then(|spec| search(state, &spec, limits))
}

/// What is left of the ask once its tenant's limits of single types are looked at; None: nothing.
fn narrowed<'a>(state: &State, spec: &'a JobSpec) -> Option<Cow<'a, JobSpec>> {
    match quota::types::narrowed(state, spec) {
        None => Some(Cow::Borrowed(spec)),
        Some(types) if types.is_empty() => None,
        Some(types) => {
            let resources = Resources { device_types: types, ..spec.resources.clone() };
            Some(Cow::Owned(JobSpec { resources, ..spec.clone() }))
        }
    }
}

fn search(state: &State, spec: &JobSpec, limits: &Limits) -> Option<Pick> {
    // Of one domain's nodes there are few.
    let ranked = if limits.within.is_none() { standing::find(state, spec, limits) } else { None };
    let found = ranked.unwrap_or_else(|| scan(state, spec, limits))?;
    let found = locality::prefer(state, spec, limits, found);
    let Found { score, node, terms, device, class, runner_up, candidates } = found;
    let alloc = allocate(state, &Ask::of(state, spec), state.node(node)?, &class, device, limits.skip_ports)?;
    let policy = state.rules.chosen.policy;
    Some(Pick { alloc, why: Why { policy, score, terms, runner_up, candidates } })
}

/// Looks at every class of nodes once.
fn scan(state: &State, spec: &JobSpec, limits: &Limits) -> Option<Found> {
    let rules = &*state.rules;
    let (policy, weights) = (rules.chosen.policy, rules.chosen.weights);
    let mut best: Option<(i64, NodeNo, Terms, Option<u16>, Arc<Class>)> = None;
    let mut runner_up: Option<(NodeNo, i64)> = None;
    let mut candidates = 0;
    let pinned = match &spec.constraints.node {
        Some(name) => Some(state.node_named(name)?.no),
        None => None,
    };
    let ask = Ask::of(state, spec);
    let arrangement = spec.constraints.arrangement;
    let counts = arrangement != Arrangement::Any;
    let random = policy == Policy::Random;
    // Classes come in the order of their flavors, so one verdict serves many.
    let mut judged: Option<(Arc<Flavor>, bool)> = None;
    let mut consider = |class: &Arc<Class>, all: u32, nodes: &mut dyn Iterator<Item = NodeNo>| {
        if !filter::may_have_room(class, &ask) {
            return;
        }
        if judged.as_ref().is_none_or(|(flavor, _)| !Arc::ptr_eq(flavor, &class.flavor)) {
            judged = Some((class.flavor.clone(), filter::may_ever_run(&class.flavor, &ask)));
        }
        if !judged.as_ref().is_some_and(|(_, may)| *may) {
            return;
        }
        let Some((terms, device)) = score::terms(class, &ask, rules) else { return };
        candidates += all;
        // Without siblings to count, a class scores as one: most need no look at their nodes.
        let behind = |score: i64| runner_up.is_some_and(|(_, second)| score < second);
        if !counts && !random && behind(terms.with_siblings(spec, 0).total(weights)) {
            return;
        }
        for node in nodes {
            if limits.held.contains(&node) {
                continue;
            }
            let terms = terms.with_siblings(spec, limits.siblings.get(&node).copied().unwrap_or(0));
            let score = if random { lot(state, node) } else { terms.total(weights) };
            let better =
                best.as_ref().is_none_or(|(s, n, ..)| (score, std::cmp::Reverse(node)) > (*s, std::cmp::Reverse(*n)));
            if better {
                runner_up = best.take().map(|(s, n, ..)| (n, s)).or(runner_up);
                best = Some((score, node, terms, device, class.clone()));
            } else if runner_up.is_none_or(|(n, s)| (score, std::cmp::Reverse(node)) > (s, std::cmp::Reverse(n))) {
                runner_up = Some((node, score));
            }
        }
    };
    match pinned {
        Some(node) => {
            let class = state.capacity().class(node)?;
            let within = limits.within.as_ref().is_none_or(|domain| domain.has(class.flavor.names()));
            within.then(|| consider(class, 1, &mut std::iter::once(node)))?;
        }
        None => {
            // All nodes of a class score alike, but for those that run a sibling or are held.
            let odd = if counts { limits.siblings.len() } else { 0 } + limits.held.len();
            // Two that are not odd are enough for the best and the runner-up.
            let enough = odd + 2;
            for (class, nodes) in state.capacity().within(limits.within.as_ref()) {
                let held = limits.held.iter().filter(|node| nodes.contains(*node)).count();
                let some = if random { nodes.len() } else { enough };
                let all = (nodes.len() - held) as u32;
                match arrangement {
                    // Those that run a sibling are the best of their class, wherever in it they are.
                    Arrangement::Pack => {
                        let with = limits.siblings.keys().filter(|node| nodes.contains(*node));
                        let first = nodes.iter().take(some);
                        let few: std::collections::BTreeSet<NodeNo> = with.chain(first).copied().collect();
                        consider(class, all, &mut few.into_iter());
                    }
                    _ => consider(class, all, &mut nodes.iter().copied().take(some)),
                }
            }
        }
    }
    let (score, node, terms, device, class) = best?;
    Some(Found { score, node, terms, device, class, runner_up, candidates })
}

/// A number without meaning, the same for the same state: what `random` goes by.
fn lot(state: &State, node: NodeNo) -> i64 {
    let held = state.ledger().node(node).map_or(0, |used| used.replicas.len() as u64);
    let seed =
        state.meta().base ^ state.ledger().tenants.values().fold(0, |sum, t| sum ^ t.gpu_milli ^ t.cpu_milli << 20);
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(node.0) << 32 | held);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 1) as i64
}

/// The devices and the port that the replica gets on its node.
fn allocate(
    state: &State,
    ask: &Ask<'_>,
    node: &Node,
    class: &Class,
    device: Option<u16>,
    skip: u16,
) -> Option<Allocation> {
    let shares = devices::choose(class, ask, device)?;
    let port = match node.spec.ports {
        None => None,
        Some(range) => {
            let used = &state.ledger().node(node.no)?.ports;
            let next = first_port(range, state.meta().now_ms);
            let free = (next..=range.last).chain(range.first..next);
            let mut free = free.filter(|port| !used.contains(port));
            // Round and round: of few ports the first may be free again when the last is taken.
            let skip = if skip == 0 { 0 } else { usize::from(skip) % free.clone().count().max(1) };
            Some(free.nth(skip)?)
        }
    };
    Some(Allocation { node: node.no, shares, port, at_ms: state.meta().now_ms })
}

/// The port from which on a free one is looked for: another one each second, so that one that was released rests before
/// somebody else gets it. It may linger in TIME_WAIT, and a gateway that the group can't reach, or a client with a list
/// of its own, takes it for the former tenant's for as long as it is not told.
fn first_port(range: PortRange, now_ms: u64) -> u16 {
    let all = u64::from(range.last.saturating_sub(range.first)) + 1;
    // In steps of the golden section, so that those of a second with many placements are not the next seconds' first.
    let step = (all * 618 / 1000).max(1);
    range.first + ((now_ms / 1000 % all) * step % all) as u16
}

/// Places for `wanted` replicas of a job: all of them, or as many as fit (none
/// for a gang of which one does not fit).
pub fn place(state: &State, spec: &JobSpec, wanted: &[u16], mut limits: Limits) -> Vec<(u16, Pick)> {
    if !spec.constraints.topology.is_any() {
        return together::place(state, spec, wanted, &limits);
    }
    if let [only] = wanted {
        return place_one(state, spec, &limits).map(|pick| (*only, pick)).into_iter().collect();
    }
    let mut scratch = state.speculative();
    let mut out = one_by_one(&mut scratch, spec, wanted, &mut limits);
    if spec.gang && out.len() < wanted.len() {
        out.clear();
    }
    out
}

/// Places for as many of the replicas as fit, each booked before the next one is looked for.
fn one_by_one(scratch: &mut State, spec: &JobSpec, wanted: &[u16], limits: &mut Limits) -> Vec<(u16, Pick)> {
    let mut out = Vec::new();
    for replica in wanted {
        let Some(pick) = place_one(scratch, spec, limits) else { break };
        scratch.book(spec, *replica, &pick.alloc);
        *limits.siblings.entry(pick.alloc.node).or_default() += 1;
        out.push((*replica, pick));
    }
    out
}

/// Nodes on which replicas of a job already are, for spreading the others, packing them, or keeping them in a domain.
pub fn siblings(replicas: &[crate::job::Replica], constraints: &Constraints) -> BTreeMap<NodeNo, u32> {
    let mut out = BTreeMap::new();
    if constraints.arrangement != Arrangement::Any || !constraints.topology.is_any() {
        // Who leaves a domain draws nobody there.
        let at = |replica: &crate::job::Replica| match constraints.topology.is_any() {
            true => replica.allocation().map(|alloc| alloc.node),
            false => replica.home(),
        };
        for node in replicas.iter().filter_map(at) {
            *out.entry(node).or_default() += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests;
