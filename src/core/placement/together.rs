//! Replicas that share a rack, a zone or a region, whichever it is. Domains are compared by how
//! many of the replicas they have room for, counted class by class; the search then places the
//! replicas inside one. The tightest that holds them all is taken, as with islands of a node, so
//! that the large ones stay whole; where one would only be preferred and none holds them all, as
//! few as can be. Once some of a job's replicas have a place, the others go beside them.

use super::{Limits, Pick, Policy, filter, narrowed, one_by_one};
use crate::capacity::Flavor;
use crate::id::NodeNo;
use crate::job::JobSpec;
use crate::reason::{Blocker, Reason};
use crate::sharing::Ask;
use crate::state::State;
use crate::topology::{Domain, Level};
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// Domains that an explanation names.
const NAMED: usize = 4;

/// Domains with room for all replicas that are tried where one is only preferred.
const TRIES: usize = 4;

/// A domain as one job sees it.
#[derive(Clone, Debug)]
pub(super) struct Room {
    pub domain: Domain,
    /// Replicas that it has room for now.
    pub count: u64,
    /// The same if nothing ran there.
    pub most: u64,
    /// Replicas of the job that are there already.
    pub placed: u64,
    /// What one replica costs there at least, where that is what counts.
    price: u128,
}

impl Room {
    fn of(state: &State, ask: &Ask<'_>, domain: &Domain, held: &BTreeSet<NodeNo>) -> Option<Self> {
        let by_price = state.rules.chosen.policy == Policy::Cost;
        let mut room = Self { domain: domain.clone(), count: 0, most: 0, placed: 0, price: u128::MAX };
        let (mut judged, mut some): (Option<(&Flavor, bool)>, bool) = (None, false);
        for (class, nodes) in state.capacity().within(Some(domain)) {
            let flavor = &*class.flavor;
            let may = match judged {
                Some((known, may)) if std::ptr::eq(known, flavor) => may,
                _ => filter::may_ever_run(flavor, ask),
            };
            judged = Some((flavor, may));
            let count = if may { nodes_of(state, ask, nodes) } else { 0 };
            if count == 0 {
                continue;
            }
            some = true;
            room.most = room.most.saturating_add(super::devices::most(flavor, ask).saturating_mul(count));
            let free = count - held.iter().filter(|node| nodes.contains(*node)).count().min(count as usize) as u64;
            let here = filter::room(class, ask).saturating_mul(free);
            room.count = room.count.saturating_add(here);
            if here > 0 && by_price {
                room.price = room.price.min(filter::lowest_cost(flavor, ask));
            }
        }
        some.then_some(room)
    }
}

/// How many of the nodes the job may use, by its own word on a node.
fn nodes_of(state: &State, ask: &Ask<'_>, nodes: &imbl::OrdSet<NodeNo>) -> u64 {
    match &ask.constraints.node {
        None => nodes.len() as u64,
        Some(name) => u64::from(state.node_named(name).is_some_and(|node| nodes.contains(&node.no))),
    }
}

/// All domains of that level with nodes that could run the job, in their order.
pub(super) fn rooms(state: &State, spec: &JobSpec, level: Level, limits: &Limits) -> Vec<Room> {
    // Devices of which its tenant may have no more are no room for it.
    let Some(spec) = narrowed(state, spec) else { return Vec::new() };
    let ask = Ask::of(state, &spec);
    let held: BTreeSet<NodeNo> = limits.held.iter().copied().collect();
    let inside = |domain: &&Domain| limits.within.as_ref().is_none_or(|outer| outer.has(domain.names()));
    let domains = state.capacity().domains(level).filter(inside);
    let mut rooms: Vec<Room> = domains.filter_map(|domain| Room::of(state, &ask, domain, &held)).collect();
    for (node, count) in &limits.siblings {
        let names = state.node(*node).map(|node| node.spec.names());
        if let Some(room) = rooms.iter_mut().find(|room| names.is_some_and(|names| room.domain.has(names))) {
            room.placed += u64::from(*count);
        }
    }
    rooms
}

/// The domains of which the replicas have to share one, the best first: where the others are, once some have a place.
pub(super) fn choices(state: &State, spec: &JobSpec, level: Level, wanted: usize, limits: &Limits) -> Vec<Room> {
    let mut rooms = rooms(state, spec, level, limits);
    let placed: u64 = limits.siblings.values().map(|count| u64::from(*count)).sum();
    if placed > 0 {
        rooms.retain(|room| room.placed > 0);
    } else if !spec.gang {
        // The first replica ties the others to its domain: not to one that can never hold them, if another can.
        let all = (wanted as u64).max(u64::from(spec.replicas));
        if rooms.iter().any(|room| room.most >= all) {
            rooms.retain(|room| room.most >= all);
        }
    }
    // A service may grow; that will be where its first replicas are.
    let grows = u64::from(spec.most_replicas()).saturating_sub(placed);
    in_order(state, &mut rooms, (wanted as u64).max(grows));
    rooms
}

/// Those with room for so many first, the tightest (or, under a policy that shares little, the roomiest) of them; then the
/// others, the roomiest first.
fn in_order(state: &State, rooms: &mut [Room], wanted: u64) {
    let roomy = matches!(state.rules.chosen.policy, Policy::Spread | Policy::Latency);
    rooms.sort_by_key(|room| {
        let fits = room.count >= wanted;
        let size = if fits && !roomy { room.count } else { u64::MAX - room.count };
        let price = if fits { room.price } else { 0 };
        (!fits, price, size, Reverse(room.placed), room.domain.clone())
    });
}

/// Places for the replicas as their job's topology has it: all of them, or as many as fit (none for a gang of which
/// one does not). Domains are chosen unless `limits` names one.
pub(super) fn place(state: &State, spec: &JobSpec, wanted: &[u16], limits: &Limits) -> Vec<(u16, Pick)> {
    let Some(level) = spec.constraints.topology.required.filter(|_| limits.within.is_none()) else {
        return near(state, spec, wanted, limits);
    };
    let mut best = Vec::new();
    for room in choices(state, spec, level, wanted.len(), limits) {
        // Counted is all but ports, and limits of types that are reached on the way.
        if room.count == 0 || room.count < wanted.len() as u64 && (spec.gang || !best.is_empty()) {
            continue;
        }
        let picks = near(state, spec, wanted, &Limits { within: Some(room.domain), ..limits.clone() });
        if picks.len() == wanted.len() {
            return picks;
        }
        if picks.len() > best.len() {
            best = picks;
        }
    }
    best
}

/// The same inside one domain, or anywhere, near one another as far as that is preferred.
fn near(state: &State, spec: &JobSpec, wanted: &[u16], limits: &Limits) -> Vec<(u16, Pick)> {
    let whole = |picks: Vec<(u16, Pick)>| if spec.gang && picks.len() < wanted.len() { Vec::new() } else { picks };
    let Some(level) = spec.constraints.topology.preferred else {
        return whole(one_by_one(&mut state.speculative(), spec, wanted, &mut limits.clone()));
    };
    let narrower = |level: &Level| limits.within.as_ref().is_none_or(|outer| *level < outer.level());
    let domains =
        level.and_wider().filter(narrower).flat_map(|level| for_all(state, spec, level, wanted.len(), limits));
    let mut best: Vec<(u16, Pick)> = Vec::new();
    // Counted is all but ports, and limits of types that are reached on the way: what is only preferred keeps nobody
    // waiting, so after a few domains it is tried without one.
    for within in domains.take(TRIES).map(Some).chain([limits.within.clone()]) {
        let mut limits = Limits { within, ..limits.clone() };
        let picks = in_few(&mut state.speculative(), spec, wanted, level, &mut limits);
        if picks.len() == wanted.len() {
            return picks;
        }
        if picks.len() > best.len() {
            best = picks;
        }
    }
    whole(best)
}

/// The domains of that level with room for all of them, beside all of those that have a place; the best first.
fn for_all(state: &State, spec: &JobSpec, level: Level, wanted: usize, limits: &Limits) -> Vec<Domain> {
    let placed: u64 = limits.siblings.values().map(|count| u64::from(*count)).sum();
    let mut choices = choices(state, spec, level, wanted, limits);
    choices.retain(|room| room.count >= wanted as u64 && room.placed == placed);
    choices.into_iter().map(|room| room.domain).collect()
}

/// Places in as few domains of that level as can be: those where others are first, then the roomiest, and of those that
/// hold the rest the best. Nodes that are in none come last.
fn in_few(scratch: &mut State, spec: &JobSpec, wanted: &[u16], level: Level, limits: &mut Limits) -> Vec<(u16, Pick)> {
    let mut rooms = rooms(scratch, spec, level, limits);
    rooms.retain(|room| room.count > 0);
    let outer = limits.within.take();
    let mut out: Vec<(u16, Pick)> = Vec::new();
    while out.len() < wanted.len() && !rooms.is_empty() {
        let rest = &wanted[out.len()..];
        in_order(scratch, &mut rooms, rest.len() as u64);
        let beside = rooms.iter().enumerate().max_by_key(|(at, room)| (room.placed, Reverse(*at)));
        let next = beside.filter(|(_, room)| room.placed > 0).map_or(0, |(at, _)| at);
        limits.within = Some(rooms.remove(next).domain);
        out.extend(one_by_one(scratch, spec, rest, limits));
    }
    limits.within = outer;
    if out.len() < wanted.len() {
        out.extend(one_by_one(scratch, spec, &wanted[out.len()..], limits));
    }
    out
}

/// Why so many replicas that have to share a domain don't get one, where that is what keeps them from a place.
pub(super) fn blocker(state: &State, spec: &JobSpec, replicas: u64, limits: &Limits) -> Option<Blocker> {
    let level = spec.constraints.topology.required?;
    let times = if spec.gang { replicas } else { 1 };
    let rooms = choices(state, spec, level, usize::try_from(times).unwrap_or(usize::MAX), limits);
    if rooms.iter().any(|room| room.count >= times) {
        return None;
    }
    let what = level.name();
    let placed: u64 = rooms.iter().map(|room| room.placed).sum();
    let never = rooms.iter().all(|room| room.most.saturating_sub(room.placed) < times);
    let each = |room: &Room| format!("{} has room for {} of {times}", room.domain, room.count);
    let first = rooms.iter().take(NAMED).map(each).collect::<Vec<_>>().join(", ");
    let more = rooms.len().checked_sub(NAMED).filter(|more| *more > 0);
    let more = more.map_or(String::new(), |more| format!(", {more} more have less or as much"));
    let lead = match (placed, spec.gang) {
        (0, true) => format!("all {times} replicas must be in one {what}"),
        (0, false) => format!("its replicas must be in one {what}"),
        (some, _) => format!("its replicas must be in one {what}, and {some} are"),
    };
    let next = match (rooms.is_empty(), never) {
        (true, _) if !limits.siblings.is_empty() => {
            format!("no node of the {what} that the others are in could run it")
        }
        (true, _) => format!(
            "no node that could run it names its {what}; say it where the node is registered (nf node register \
             --{what}, NF_{} for an agent), or leave topology_required out",
            what.to_uppercase()
        ),
        (false, true) => {
            let most = rooms.iter().map(|room| room.most).max().unwrap_or(0);
            format!(
                "{first}{more}; even when it is empty none holds more than {most}: add nodes to one, or ask for fewer"
            )
        }
        (false, false) => format!("{first}{more}; runs when enough there ends, or with a wider topology_required"),
    };
    let unnamed = unnamed(state, spec, level);
    let unnamed =
        if unnamed > 0 { format!("; {unnamed} nodes that could run it name no {what}") } else { String::new() };
    let detail = format!("{lead}: {next}{unnamed}");
    Some(Blocker { reason: Reason::TopologyPlacementFailed, detail, nodes: 0, permanent: never })
}

/// Nodes that could run the job, and are in no domain of that level.
fn unnamed(state: &State, spec: &JobSpec, level: Level) -> u64 {
    let ask = Ask::of(state, spec);
    let classes = state.capacity().classes.iter();
    let some = classes.filter(|(class, _)| Domain::of(level, class.flavor.names()).is_none());
    some.filter(|(class, _)| filter::may_ever_run(&class.flavor, &ask))
        .map(|(_, nodes)| nodes_of(state, &ask, nodes))
        .sum()
}

#[cfg(test)]
mod tests;
