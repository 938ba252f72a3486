//! Who has to give way: the cheapest set of replicas whose places, together with what
//! is free, really hold all that is asked for. What gives way is a *unit*: a replica,
//! or a whole gang, which is of no use without one of its members. For each node the
//! cheapest set is found by trying which units can be kept, dearest first; over
//! several nodes the cheapest mix of those sets is found by dynamic programming. Of a
//! service that says how many of its replicas may be missing no more are taken. It
//! does not decide whether anybody may be evicted (`claim`), nor whether the job is
//! next (`queue`).

use super::{Limits, devices, filter, place, together};
use crate::capacity;
use crate::claim::{self, Claim, MOST_VICTIMS, Victim};
use crate::id::{JobNo, NodeNo, TenantNo};
use crate::job::{Allocation, Job, JobSpec};
use crate::ledger::{Ledger, NodeUse};
use crate::node::Node;
use crate::quota::tree;
use crate::reason::Reason;
use crate::sharing::Ask;
use crate::state::State;
use crate::topology::{Domain, Level};
pub(crate) use beyond::beyond;
use shortfall::{allows, free_quota};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
pub(crate) use units::Budgets;
use units::{Spares, Unit, units};

mod beyond;
mod shortfall;
mod units;

/// Nodes that are compared.
const MOST_NODES: usize = 64;
/// Trials of "does it fit now" in one search. Each node gets at least one sound answer
/// beyond them; up to about ten units a node the answer is the cheapest.
const TRIALS: u32 = 8192;
/// So many units are tried one by one at the end, the dearest first, whether they are needed.
const PRUNED: usize = MOST_VICTIMS;
/// Mixes of nodes that are looked at where the cheapest takes too many of a service.
const MIXES: usize = 64;
/// Looks at a node whose units are bound by budgets, before it is said to have no answer.
const LOOKS: u32 = 4096;
/// Of so few units all sets are tried, where the quota is in the way as well as room, or a gang may have to go.
const FEW: usize = 10;
/// Racks, zones or regions in which others are looked for, where all replicas have to be in one.
const DOMAINS: usize = 32;
/// Gangs on several nodes of which it is tried what is won by taking each.
const GANGS: usize = 16;

/// Whether looking for victims is worth while at all; a cheap look.
pub fn may_help(state: &State, job: &Job) -> bool {
    let less_urgent = state.yielding.get_min().is_some_and(|(least, _)| *least < i32::from(job.spec.priority));
    let in_tree = || state.tenant(job.tenant).is_some_and(|tenant| !tree::is_flat(state, tenant));
    state.meta().placement.preemption.enabled && state.claims.len() < claim::MOST_OPEN && (less_urgent || in_tree())
}

/// The cheapest claim that gives all of `wanted` a place, or None. Some of the job's
/// replicas may be booked in `state` already.
pub fn claim(state: &State, spec: &JobSpec, wanted: &[u16], limits: &Limits) -> Option<Claim> {
    claim_by(state, spec, wanted, limits, Budgets::Heeded)
}

pub(crate) fn claim_by(
    state: &State,
    spec: &JobSpec,
    wanted: &[u16],
    limits: &Limits,
    budgets: Budgets,
) -> Option<Claim> {
    any_claim(state, spec, wanted, limits, budgets).filter(|claim| claim.victims.len() <= MOST_VICTIMS)
}

/// The same, however many give way.
fn any_claim(state: &State, spec: &JobSpec, wanted: &[u16], limits: &Limits, budgets: Budgets) -> Option<Claim> {
    let tenant = state.tenant_named(&spec.tenant).map(|tenant| tenant.no);
    if wanted.is_empty() || !state.meta().placement.preemption.enabled || state.claims.len() >= claim::MOST_OPEN {
        return None;
    }
    let standing = tree::standing(state, tenant, &spec.resources, wanted.len() as u64);
    let (units, spares) = units(state, spec, &standing, budgets);
    if units.is_empty() {
        return None;
    }
    let want = |limits| Want { state, spec, tenant, wanted, limits };
    let (chosen, placements) = match spec.constraints.topology.required.filter(|_| limits.within.is_none()) {
        None => want(limits).cheapest(&units, &spares)?,
        // Room that is freed in two racks is room in neither.
        Some(level) => {
            let domains = domains(state, spec, level, wanted.len(), limits);
            let found = domains.iter().filter_map(|limits| want(limits).cheapest(&units, &spares));
            found.min_by_key(|(chosen, _)| cost(&units, chosen))?
        }
    };
    let victim = |why: Reason, (job, replica): &(Arc<Job>, u16)| Victim {
        job: job.no,
        replica: *replica,
        generation: job.replicas[usize::from(*replica)].generation,
        why,
    };
    let of = |unit: &Unit| unit.members.iter().map(|member| victim(unit.why, member)).collect::<Vec<_>>();
    let mut victims: Vec<Victim> = chosen.iter().flat_map(|unit| of(&units[*unit])).collect();
    victims.sort_unstable();
    (!victims.is_empty()).then(|| Claim { placements, victims, at_ms: state.meta().now_ms })
}

/// What it costs when these go.
fn cost(units: &[Unit], chosen: &BTreeSet<usize>) -> u64 {
    chosen.iter().map(|unit| units[*unit].cost).sum()
}

/// Limits to each domain of that level that may hold all of them when others are gone: first where least is missing.
fn domains(state: &State, spec: &JobSpec, level: Level, wanted: usize, limits: &Limits) -> Vec<Limits> {
    let mut rooms = together::choices(state, spec, level, wanted, limits);
    let times = wanted as u64;
    rooms.retain(|room| room.most >= times);
    rooms.sort_by_key(|room| times.saturating_sub(room.count));
    let within = |room: together::Room| Limits { within: Some(room.domain), ..limits.clone() };
    rooms.into_iter().take(DOMAINS).map(within).collect()
}

/// What is asked for.
struct Want<'a> {
    state: &'a State,
    spec: &'a JobSpec,
    tenant: Option<TenantNo>,
    wanted: &'a [u16],
    limits: &'a Limits,
}

/// Units that go, and the places that are there then.
type Found = (BTreeSet<usize>, Vec<crate::command::Placement>);

impl Want<'_> {
    /// The cheapest units that make room and free quota. Where the quota is in the way, what makes room may not be
    /// what frees quota: both are looked for in either order, and among what does both.
    fn cheapest(&self, units: &[Unit], spares: &Spares) -> Option<Found> {
        let times = self.wanted.len() as u64;
        let quota = |chosen: &mut BTreeSet<usize>| {
            free_quota(self.state, (self.tenant, self.spec, times), units, spares, chosen)
        };
        let room = |free: &BTreeSet<usize>, only: Option<&BTreeSet<usize>>| {
            let mut more =
                Search::new(self.state, self.spec, units, spares, free, only).cheapest(self.wanted, self.limits)?;
            more.extend(free);
            spares.over(units, more.iter().copied()).is_none().then_some(more)
        };
        let none = BTreeSet::new();
        let first = room(&none, None).and_then(|mut chosen| quota(&mut chosen).map(|()| chosen));
        let mut best = first.and_then(|chosen| self.needed(units, chosen));
        // A gang goes from several nodes at once, so what it gives on one is not all that it gives.
        let gangs = units.iter().any(|unit| unit.members.len() > 1);
        let few = units.len() <= FEW;
        let has_quota = allows(self.state, self.state, self.tenant, self.spec, times);
        if has_quota && !(gangs && few) {
            return best;
        }
        let mut consider = |chosen: Option<BTreeSet<usize>>| {
            let found = chosen.and_then(|chosen| self.needed(units, chosen));
            let least = best.as_ref().map_or(u64::MAX, |(old, _)| cost(units, old));
            let found = found.filter(|(new, _)| cost(units, new) < least);
            best = found.or(best.take());
        };
        if !has_quota {
            let mut freed = BTreeSet::new();
            consider(quota(&mut freed).and_then(|()| room(&freed, None)));
            let counted: BTreeSet<usize> = self.counted(units).collect();
            if counted.len() < units.len() {
                consider(room(&none, Some(&counted)).and_then(|mut chosen| quota(&mut chosen).map(|()| chosen)));
            }
        }
        if few {
            let most = best.as_ref().map_or(u64::MAX, |(chosen, _)| cost(units, chosen));
            let all = self.all_sets(units, spares, most);
            return all.or(best);
        }
        best
    }

    /// Units of those whose work counts against the same quota.
    fn counted<'b>(&self, units: &'b [Unit]) -> impl Iterator<Item = usize> + use<'b> {
        let own = self.tenant.and_then(|no| self.state.tenant(no));
        let root = own.and_then(|own| tree::path(self.state, own).last().copied());
        let tenants: BTreeSet<TenantNo> =
            root.map(|root| tree::subtree(self.state, root).into_iter().collect()).unwrap_or_default();
        let counts = move |unit: &usize| units[*unit].members.iter().any(|(job, _)| tenants.contains(&job.tenant));
        (0..units.len()).filter(counts)
    }

    /// The cheapest of all sets of few units, if it costs less than `most`.
    fn all_sets(&self, units: &[Unit], spares: &Spares, most: u64) -> Option<Found> {
        let members = |set: u32| (0..units.len()).filter(move |unit| set >> unit & 1 == 1);
        let cost = |set: u32| members(set).map(|unit| units[unit].cost).sum::<u64>();
        let mut sets: Vec<(u64, u32)> = (1..1u32 << units.len()).map(|set| (cost(set), set)).collect();
        sets.retain(|(cost, _)| *cost < most);
        sets.sort_unstable();
        let mut allowed = sets.iter().filter(|(_, set)| spares.over(units, members(*set)).is_none());
        allowed.find_map(|(_, set)| {
            let chosen: BTreeSet<usize> = members(*set).collect();
            let picks = self.places(units, &chosen)?;
            Some((chosen, picks.into_iter().map(|(replica, pick)| pick.for_replica(replica)).collect()))
        })
    }

    /// The places that are there, and allowed, when these are gone.
    fn places(&self, units: &[Unit], gone: &BTreeSet<usize>) -> Option<Vec<(u16, super::Pick)>> {
        let mut scratch = self.state.speculative();
        for (job, replica) in gone.iter().flat_map(|unit| &units[*unit].members) {
            scratch.give_back(job, *replica);
        }
        if !allows(self.state, &scratch, self.tenant, self.spec, self.wanted.len() as u64) {
            return None;
        }
        let picks = place(&scratch, self.spec, self.wanted, self.limits.clone());
        (picks.len() == self.wanted.len()).then_some(picks)
    }

    /// The places, and the units without which they would not be there.
    fn needed(&self, units: &[Unit], mut chosen: BTreeSet<usize>) -> Option<Found> {
        let mut picks = self.places(units, &chosen)?;
        let mut dearest: Vec<usize> = chosen.iter().copied().collect();
        dearest.sort_by_key(|unit| Reverse(units[*unit].cost));
        for unit in dearest.into_iter().take(PRUNED) {
            chosen.remove(&unit);
            match self.places(units, &chosen) {
                Some(fewer) => picks = fewer,
                None => drop(chosen.insert(unit)),
            }
        }
        Some((chosen, picks.into_iter().map(|(replica, pick)| pick.for_replica(replica)).collect()))
    }
}

/// Whether such a job could ever run on the node, as far as it is not full.
fn may_use(state: &State, ask: &Ask<'_>, node: NodeNo) -> bool {
    let pinned = ask.constraints.node.as_ref();
    let Some(class) = state.capacity().class(node) else { return false };
    class.takes_work()
        && filter::may_ever_run(&class.flavor, ask)
        && pinned.is_none_or(|name| state.node_named(name).is_some_and(|n| n.no == node))
}

struct Search<'a> {
    state: &'a State,
    ask: Ask<'a>,
    units: &'a [Unit],
    spares: &'a Spares,
    /// They go in any case.
    free: &'a BTreeSet<usize>,
    /// Nobody else goes.
    only: Option<&'a BTreeSet<usize>>,
    trials: u32,
    /// Left after those, for all nodes together, where budgets may leave a node without an answer.
    looks: u32,
}

/// What a node can give: the cheapest units for each number of replicas beyond what is free.
#[derive(Clone)]
struct Offer {
    /// For one replica more, two more, …: what it costs, and whom.
    more: Vec<(u64, Vec<usize>)>,
}

impl<'a> Search<'a> {
    fn new(
        state: &'a State,
        spec: &'a JobSpec,
        units: &'a [Unit],
        spares: &'a Spares,
        free: &'a BTreeSet<usize>,
        only: Option<&'a BTreeSet<usize>>,
    ) -> Self {
        Self { state, ask: Ask::of(state, spec), units, spares, free, only, trials: TRIALS, looks: LOOKS }
    }

    /// The units to evict, cheapest in sum.
    fn cheapest(&mut self, wanted: &[u16], limits: &Limits) -> Option<BTreeSet<usize>> {
        let mut on_node: BTreeMap<NodeNo, Vec<usize>> = BTreeMap::new();
        let may_go = |unit: &usize| !self.free.contains(unit) && self.only.is_none_or(|only| only.contains(unit));
        for (i, unit) in self.units.iter().enumerate().filter(|(i, _)| may_go(i)) {
            for (job, replica) in &unit.members {
                let Some(alloc) = job.replicas[usize::from(*replica)].allocation() else { continue };
                let list = on_node.entry(alloc.node).or_default();
                if list.last() != Some(&i) {
                    list.push(i);
                }
            }
        }
        let within = |node: NodeNo| {
            let class = self.state.capacity().class(node);
            let inside = |domain: &Domain| class.is_some_and(|class| domain.has(class.flavor.names()));
            limits.within.as_ref().is_none_or(inside)
        };
        on_node.retain(|node, _| !limits.held.contains(node) && within(*node) && may_use(self.state, &self.ask, *node));
        let mut nodes: Vec<(bool, u64, NodeNo)> =
            on_node.iter().filter_map(|(no, list)| self.rank(*no, list)).collect();
        nodes.sort_unstable();
        nodes.truncate(MOST_NODES);
        // What is free elsewhere counts, too: for a gang some of it is.
        let alone = JobSpec { gang: false, ..self.ask.spec().clone() };
        let mut scratch = self.state.speculative();
        for (job, replica) in self.free.iter().flat_map(|unit| &self.units[*unit].members) {
            scratch.give_back(job, *replica);
        }
        let free = place(&scratch, &alone, wanted, limits.clone()).len();
        let missing = wanted.len().checked_sub(free)?;
        let nodes: Vec<(NodeNo, Vec<usize>)> =
            nodes.into_iter().filter_map(|(.., no)| Some((no, on_node.remove(&no)?))).collect();
        self.mixed(&nodes, wanted.len(), missing)
    }

    /// The cheapest mix that takes no more of any service than it lets be taken. Each node keeps to that by itself;
    /// where the cheapest mix of them does not, one of those units is left where it is, each in turn.
    fn mixed(&mut self, nodes: &[(NodeNo, Vec<usize>)], wanted: usize, missing: usize) -> Option<BTreeSet<usize>> {
        let offers: Vec<Offer> = nodes.iter().map(|(no, list)| self.offer(*no, list, wanted)).collect();
        let first = self.with_gangs(nodes, &offers, wanted, missing)?;
        let mut open = BinaryHeap::from([Reverse((first, BTreeSet::new()))]);
        let mut looked = 1;
        while let Some(Reverse(((_, chosen), kept))) = open.pop() {
            let Some(of) = self.over(chosen.iter().copied()) else { return Some(chosen) };
            for unit in chosen.iter().filter(|unit| self.units[**unit].counts(of)) {
                if looked == MIXES {
                    return None;
                }
                looked += 1;
                let kept: BTreeSet<usize> = kept.iter().chain([unit]).copied().collect();
                let offer = |((no, list), known): (&(NodeNo, Vec<usize>), &Offer)| {
                    let rest: Vec<usize> = list.iter().filter(|unit| !kept.contains(unit)).copied().collect();
                    if rest.len() == list.len() { known.clone() } else { self.offer(*no, &rest, wanted) }
                };
                let offers: Vec<Offer> = nodes.iter().zip(&offers).map(offer).collect();
                if let Some(next) = mix(&offers, missing) {
                    open.push(Reverse((next, kept)));
                }
            }
        }
        None
    }

    /// The cheapest mix. A gang on several nodes is counted on each of them there, and goes but once: so it is tried
    /// what the rest costs when such a gang is gone.
    fn with_gangs(
        &mut self,
        nodes: &[(NodeNo, Vec<usize>)],
        offers: &[Offer],
        wanted: usize,
        missing: usize,
    ) -> Option<(u64, BTreeSet<usize>)> {
        let total = |chosen: &BTreeSet<usize>| chosen.iter().map(|unit| self.units[*unit].cost).sum::<u64>();
        let mut best = mix(offers, missing).map(|(_, chosen)| (total(&chosen), chosen));
        let shared = |unit: &usize| nodes.iter().filter(|(_, list)| list.contains(unit)).count() > 1;
        let gangs: Vec<usize> = (0..self.units.len()).filter(|unit| self.units[*unit].members.len() > 1).collect();
        for gang in gangs.into_iter().filter(shared).take(GANGS) {
            if best.as_ref().is_some_and(|(least, _)| self.units[gang].cost >= *least) {
                continue;
            }
            let free: BTreeSet<usize> = self.free.iter().copied().chain([gang]).collect();
            let mut rest = Search { free: &free, trials: self.trials, ..*self };
            let (mut gained, mut others) = (0, Vec::with_capacity(offers.len()));
            for ((no, list), known) in nodes.iter().zip(offers) {
                if !list.contains(&gang) {
                    others.push(known.clone());
                    continue;
                }
                let Some(node) = self.state.node(*no) else { continue };
                gained += rest.slots(node, &[], wanted).saturating_sub(self.slots(node, &[], wanted));
                let list: Vec<usize> = list.iter().filter(|unit| **unit != gang).copied().collect();
                others.push(rest.offer(*no, &list, wanted));
            }
            let (trials, looks) = (rest.trials, rest.looks);
            (self.trials, self.looks) = (trials, looks);
            let Some((_, mut chosen)) = mix(&others, missing.saturating_sub(gained)) else { continue };
            chosen.insert(gang);
            let cost = chosen.iter().map(|unit| self.units[*unit].cost).sum::<u64>();
            let cheaper = best.as_ref().is_none_or(|(least, _)| cost < *least);
            if cheaper && self.over(chosen.iter().copied()).is_none() {
                best = Some((cost, chosen));
            }
        }
        best
    }

    /// What the node would cost if all that can were kept, dearest first; None when even
    /// evicting all makes no room. Last come those where that would take too many of a service.
    fn rank(&self, no: NodeNo, list: &[usize]) -> Option<(bool, u64, NodeNo)> {
        let node = self.state.node(no)?;
        let fits = |gone: &[usize]| self.slots(node, gone, 1) >= 1;
        if !fits(list) {
            return None;
        }
        let mut gone = self.dearest_first(list);
        let mut i = 0;
        while i < gone.len() {
            let kept = gone.remove(i);
            if !fits(&gone) {
                gone.insert(i, kept);
                i += 1;
            }
        }
        let too_many = self.over(gone.iter().copied()).is_some();
        Some((too_many, gone.iter().map(|unit| self.units[*unit].cost).sum(), no))
    }

    /// Of whom too much is taken when these go, and those that go in any case.
    fn over(&self, gone: impl Iterator<Item = usize>) -> Option<units::Taken> {
        self.spares.over(self.units, gone.chain(self.free.iter().copied()))
    }

    fn dearest_first(&self, list: &[usize]) -> Vec<usize> {
        let mut list = list.to_vec();
        list.sort_by_key(|unit| (Reverse(self.units[*unit].cost), *unit));
        list
    }

    fn offer(&mut self, no: NodeNo, list: &[usize], most: usize) -> Offer {
        let mut more = Vec::new();
        let Some(node) = self.state.node(no).cloned() else { return Offer { more } };
        let free = self.slots(&node, &[], most);
        let all = self.slots(&node, list, free + most).min(free + most);
        let list = self.dearest_first(list);
        for count in free + 1..=all {
            let mut best: Option<(u64, Vec<usize>)> = None;
            self.keep(&node, &list, count, &mut best);
            // Budgets may forbid what would make room for more.
            let Some(best) = best else { break };
            more.push(best);
        }
        Offer { more }
    }

    /// Tries which units can stay while `count` replicas fit: the cheapest rest is `best`.
    fn keep(&mut self, node: &Node, list: &[usize], count: usize, best: &mut Option<(u64, Vec<usize>)>) {
        // (how many of the list are decided, those of them that go, what they cost)
        let mut open: Vec<(usize, Vec<usize>, u64)> = vec![(0, Vec::new(), 0)];
        while let Some((decided, gone, cost)) = open.pop() {
            // Without budgets the first way down always ends in an answer.
            if self.trials == 0 && best.is_none() && !self.spares.are_none() {
                if self.looks == 0 {
                    return;
                }
                self.looks -= 1;
            }
            if best.as_ref().is_some_and(|(least, _)| cost >= *least || self.trials == 0) {
                continue;
            }
            let Some(unit) = list.get(decided) else {
                *best = Some((cost, gone));
                continue;
            };
            let mut with = gone.clone();
            with.push(*unit);
            if self.over(with.iter().copied()).is_none() {
                open.push((decided + 1, with, cost + self.units[*unit].cost));
            }
            let trial: Vec<usize> = gone.iter().chain(&list[decided + 1..]).copied().collect();
            self.trials = self.trials.saturating_sub(1);
            if self.slots(node, &trial, count) >= count {
                open.push((decided + 1, gone, cost));
            }
        }
    }

    /// How many replicas, up to `most`, the node holds when the units are gone.
    fn slots(&self, node: &Node, gone: &[usize], most: usize) -> usize {
        let Some(used) = self.state.ledger().node(node.no) else { return 0 };
        let mut books = Ledger::default();
        books.nodes.insert(node.no, used.clone());
        for (job, replica, alloc) in gone.iter().chain(self.free).flat_map(|unit| self.units[*unit].on(node.no)) {
            take_out(&mut books, node, job, replica, alloc);
        }
        slots(self.state, node, &self.ask, books, most)
    }
}

/// How many replicas, up to `most`, a node with these books holds.
pub(super) fn slots(state: &State, node: &Node, ask: &Ask<'_>, mut books: Ledger, most: usize) -> usize {
    let Some(flavor) = state.capacity().class(node.no).map(|class| class.flavor.clone()) else { return 0 };
    for count in 0..most {
        let now: &NodeUse = &books.nodes[&node.no];
        let class = capacity::class_of(flavor.clone(), node, now);
        let room = filter::may_have_room(&class, ask);
        let shares = devices::choose(&class, ask, None);
        let Some(shares) = shares.filter(|_| room) else { return count };
        let mut ports = node.spec.ports.into_iter().flat_map(|range| range.first..=range.last);
        let port = ports.find(|port| !now.ports.contains(port));
        let alloc = Allocation { node: node.no, shares, port, at_ms: 0 };
        books.hold(TenantNo(0), (JobNo(u64::MAX), count as u16), &ask.resources, &alloc, &node.spec);
    }
    most
}

/// As if the replica had never been there. Of one node's books the tenants do not matter.
fn take_out(books: &mut Ledger, node: &Node, job: &Job, replica: u16, alloc: &Allocation) {
    let ask = &job.spec.resources;
    let totals = books.tenant_mut(job.tenant);
    totals.gpu_milli += ask.gpu.milli();
    totals.tpu += u64::from(ask.tpu);
    totals.cpu_milli += ask.cpu_milli;
    totals.memory += ask.memory;
    books.count_types(job.tenant, &alloc.shares, &node.spec, |now, more| now + more);
    books.release(job.tenant, (job.no, replica), ask, alloc, &node.spec);
}

/// Which offers together give `missing` more replicas at the least cost.
fn mix(offers: &[Offer], missing: usize) -> Option<(u64, BTreeSet<usize>)> {
    // (cost, for each offer how many) of exactly so many more replicas.
    let mut best: Vec<Option<(u64, Vec<usize>)>> = vec![None; missing + 1];
    best[0] = Some((0, Vec::new()));
    for offer in offers {
        let mut next = Vec::with_capacity(best.len());
        for count in 0..best.len() {
            let taken = (0..=count.min(offer.more.len())).filter_map(|here| {
                let (cost, rest) = best[count - here].as_ref()?;
                let price = if here == 0 { 0 } else { offer.more[here - 1].0 };
                Some((cost + price, here, rest))
            });
            next.push(taken.min_by_key(|(cost, here, _)| (*cost, *here)).map(|(cost, here, rest)| {
                let mut all = rest.clone();
                all.push(here);
                (cost, all)
            }));
        }
        best = next;
    }
    let (cost, counts) = best.pop()??;
    let gone = offers.iter().zip(counts).filter(|(_, here)| *here > 0);
    Some((cost, gone.flat_map(|(offer, here)| offer.more[here - 1].1.iter().copied()).collect()))
}

#[cfg(test)]
pub(crate) mod tests;
