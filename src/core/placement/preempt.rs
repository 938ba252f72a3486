//! Who has to give way: the cheapest set of replicas whose places, together with what
//! is free, really hold all that is asked for. What gives way is a *unit*: a replica,
//! or a whole gang, which is of no use without one of its members. For each node the
//! cheapest set is found by trying which units can be kept, dearest first; over
//! several nodes the cheapest mix of those sets is found by dynamic programming. Of a
//! service that says how many of its replicas may be missing no more are taken. It
//! does not decide whether anybody may be evicted (`claim`), nor whether the job is
//! next (`queue`).

use super::{Limits, devices, filter, place};
use crate::capacity;
use crate::claim::{self, Claim, MOST_VICTIMS, Victim};
use crate::disruption::{self, Spare};
use crate::id::{JobNo, NodeNo, TenantNo};
use crate::job::{Allocation, Job, JobSpec, Phase};
use crate::ledger::{Ledger, NodeUse};
use crate::node::Node;
use crate::quota;
use crate::quota::tree::{self, Standing};
use crate::reason::Reason;
use crate::sharing::Ask;
use crate::state::State;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

/// Jobs that are looked at, least urgent first.
const MOST_JOBS: usize = 4096;
/// Nodes that are compared.
const MOST_NODES: usize = 64;
/// Trials of "does it fit now" in one search. Each node gets at least one sound answer
/// beyond them; up to about ten units a node the answer is the cheapest.
const TRIALS: u32 = 8192;
/// So many units are tried one by one at the end, whether they are needed.
const PRUNED: usize = 16;
/// Mixes of nodes that are looked at where the cheapest takes too many of a service.
const MIXES: usize = 64;
/// Looks at a node whose units are bound by budgets, before it is said to have no answer.
const LOOKS: u32 = 4096;

/// What gives way together.
#[derive(Debug)]
struct Unit {
    members: Vec<(Arc<Job>, u16)>,
    cost: u64,
    why: Reason,
    /// It counts against the budget of its job, which is this one.
    draws: Option<JobNo>,
}

/// Whether services' budgets count: to find victims they do; to say whose budget stands in the way they don't.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Budgets {
    Heeded,
    Ignored,
}

/// How many more replicas each service lets be taken.
type Spares = BTreeMap<JobNo, usize>;

impl Unit {
    fn on(&self, node: NodeNo) -> impl Iterator<Item = (&Arc<Job>, u16, &Allocation)> {
        let here = |(job, replica): &'_ (Arc<Job>, u16)| job.replicas[usize::from(*replica)].allocation().is_some();
        self.members.iter().filter(move |member| here(member)).filter_map(move |(job, replica)| {
            let alloc = job.replicas[usize::from(*replica)].allocation()?;
            (alloc.node == node).then_some((job, *replica, alloc))
        })
    }
}

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
    let tenant = state.tenant_named(&spec.tenant).map(|tenant| tenant.no);
    if wanted.is_empty() || !state.meta().placement.preemption.enabled || state.claims.len() >= claim::MOST_OPEN {
        return None;
    }
    let standing = tree::standing(state, tenant, &spec.resources, wanted.len() as u64);
    let (units, spares) = units(state, spec, &standing, budgets);
    if units.is_empty() {
        return None;
    }
    let mut search =
        Search { state, ask: Ask::of(state, spec), units: &units, spares: &spares, trials: TRIALS, looks: LOOKS };
    let mut chosen = search.cheapest(wanted, limits)?;
    free_quota(state, tenant, spec, wanted.len(), &units, &spares, &mut chosen)?;
    let (chosen, placements) = needed(state, spec, wanted, limits, &units, chosen)?;
    let victim = |why: Reason, (job, replica): &(Arc<Job>, u16)| Victim {
        job: job.no,
        replica: *replica,
        generation: job.replicas[usize::from(*replica)].generation,
        why,
    };
    let of = |unit: &Unit| unit.members.iter().map(|member| victim(unit.why, member)).collect::<Vec<_>>();
    let mut victims: Vec<Victim> = chosen.iter().flat_map(|unit| of(&units[*unit])).collect();
    victims.sort_unstable();
    let few = !victims.is_empty() && victims.len() <= MOST_VICTIMS;
    few.then(|| Claim { placements, victims, at_ms: state.meta().now_ms })
}

/// All that may be made to give way to such a job, and how much of it together.
fn units(state: &State, spec: &JobSpec, standing: &Standing, budgets: Budgets) -> (Vec<Unit>, Spares) {
    let now = state.meta().now_ms;
    let below = (i32::from(spec.priority), JobNo(0));
    let less = state.yielding.range(..below).take(MOST_JOBS).map(|(_, no)| *no);
    let all: BTreeSet<JobNo> = less.chain(standing.reclaimable.iter().copied()).collect();
    let jobs = all.into_iter().filter_map(|no| state.job(no));
    let (mut out, mut spares) = (Vec::new(), Spares::new());
    for job in jobs {
        let spare = if budgets == Budgets::Heeded { disruption::spare(job) } else { Spare::Any };
        match spare {
            Spare::Any => {}
            Spare::Some(more) => _ = spares.insert(job.no, more.into()),
            Spare::Nothing => continue,
        }
        let held = job.replicas.iter().enumerate().filter_map(|(i, r)| match &r.phase {
            Phase::Held { alloc, .. } => Some((i as u16, r, alloc.at_ms)),
            _ => None,
        });
        let each =
            held.map(|(i, r, at)| (i, claim::may_evict(state, spec, standing, job, r), claim::cost(now, job, at)));
        if job.spec.gang {
            let members: Vec<_> = each.collect();
            let why = members.iter().map(|(_, why, _)| *why).collect::<Option<Vec<_>>>();
            if let Some(why) = why.and_then(|why| why.first().copied()) {
                let cost = members.iter().map(|(.., cost)| cost).sum();
                let members = members.iter().map(|(i, ..)| (job.clone(), *i)).collect();
                out.push(Unit { members, cost, why, draws: None });
            }
        } else {
            let single = |(i, why, cost): (u16, Option<Reason>, u64)| {
                let draws = (spares.contains_key(&job.no) && disruption::draws(job, i)).then_some(job.no);
                Some(Unit { members: vec![(job.clone(), i)], cost, why: why?, draws })
            };
            out.extend(each.filter_map(single));
        }
    }
    let spared = |unit: &Unit| unit.draws.is_some_and(|job| spares[&job] == 0);
    out.retain(|unit| !unit.members.is_empty() && !spared(unit));
    (out, spares)
}

/// The service of which these units would take more than it lets be taken.
fn over(units: &[Unit], spares: &Spares, gone: impl IntoIterator<Item = usize>) -> Option<JobNo> {
    let mut counts = Spares::new();
    let drawn = gone.into_iter().filter_map(|unit| units[unit].draws);
    for job in drawn {
        let count = counts.entry(job).or_default();
        *count += 1;
        if *count > spares[&job] {
            return Some(job);
        }
    }
    None
}

struct Search<'a> {
    state: &'a State,
    ask: Ask<'a>,
    units: &'a [Unit],
    spares: &'a Spares,
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

impl Search<'_> {
    /// The units to evict, cheapest in sum.
    fn cheapest(&mut self, wanted: &[u16], limits: &Limits) -> Option<BTreeSet<usize>> {
        let mut on_node: BTreeMap<NodeNo, Vec<usize>> = BTreeMap::new();
        for (i, unit) in self.units.iter().enumerate() {
            for (job, replica) in &unit.members {
                let Some(alloc) = job.replicas[usize::from(*replica)].allocation() else { continue };
                let list = on_node.entry(alloc.node).or_default();
                if list.last() != Some(&i) {
                    list.push(i);
                }
            }
        }
        on_node.retain(|node, _| self.may_use(*node, limits));
        let mut nodes: Vec<(bool, u64, NodeNo)> =
            on_node.iter().filter_map(|(no, list)| self.rank(*no, list)).collect();
        nodes.sort_unstable();
        nodes.truncate(MOST_NODES);
        // What is free elsewhere counts, too: for a gang some of it is.
        let alone = JobSpec { gang: false, ..self.ask.spec().clone() };
        let free = place(self.state, &alone, wanted, limits.clone()).len();
        let missing = wanted.len().checked_sub(free)?;
        let nodes: Vec<(NodeNo, Vec<usize>)> =
            nodes.into_iter().filter_map(|(.., no)| Some((no, on_node.remove(&no)?))).collect();
        self.mixed(&nodes, wanted.len(), missing)
    }

    /// The cheapest mix that takes no more of any service than it lets be taken. Each node keeps to that by itself;
    /// where the cheapest mix of them does not, one of those units is left where it is, each in turn.
    fn mixed(&mut self, nodes: &[(NodeNo, Vec<usize>)], wanted: usize, missing: usize) -> Option<BTreeSet<usize>> {
        let offers: Vec<Offer> = nodes.iter().map(|(no, list)| self.offer(*no, list, wanted)).collect();
        let first = mix(&offers, missing)?;
        let mut open = BinaryHeap::from([Reverse((first, BTreeSet::new()))]);
        let mut looked = 1;
        while let Some(Reverse(((_, chosen), kept))) = open.pop() {
            let Some(job) = over(self.units, self.spares, chosen.iter().copied()) else { return Some(chosen) };
            for unit in chosen.iter().filter(|unit| self.units[**unit].draws == Some(job)) {
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

    fn may_use(&self, node: NodeNo, limits: &Limits) -> bool {
        let pinned = self.ask.constraints.node.as_ref();
        let Some(class) = self.state.capacity().class(node) else { return false };
        class.takes_work()
            && !limits.held.contains(&node)
            && filter::may_ever_run(&class.flavor, &self.ask)
            && pinned.is_none_or(|name| self.state.node_named(name).is_some_and(|n| n.no == node))
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
        let too_many = over(self.units, self.spares, gone.iter().copied()).is_some();
        Some((too_many, gone.iter().map(|unit| self.units[*unit].cost).sum(), no))
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
            if self.trials == 0 && best.is_none() && !self.spares.is_empty() {
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
            if over(self.units, self.spares, with.iter().copied()).is_none() {
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
        let Some(class) = self.state.capacity().class(node.no) else { return 0 };
        let mut books = Ledger::default();
        books.nodes.insert(node.no, used.clone());
        for (job, replica, alloc) in gone.iter().flat_map(|unit| self.units[*unit].on(node.no)) {
            take_out(&mut books, node, job, replica, alloc);
        }
        let ask = &self.ask;
        for count in 0..most {
            let now: &NodeUse = &books.nodes[&node.no];
            let class = capacity::class_of(class.flavor.clone(), node, now);
            let room = filter::may_have_room(&class, ask);
            let choice = devices::choose(&class, ask, None);
            let Some(choice) = choice.filter(|_| room) else { return count };
            let mut ports = node.spec.ports.into_iter().flat_map(|range| range.first..=range.last);
            let port = ports.find(|port| !now.ports.contains(port));
            let alloc = Allocation { node: node.no, shares: choice.shares, port, at_ms: 0 };
            books.hold(TenantNo(0), (JobNo(u64::MAX), count as u16), &ask.resources, &alloc, &node.spec);
        }
        most
    }
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

/// Adds units, the cheapest first, until the quota allows so many replicas.
fn free_quota(
    state: &State,
    tenant: Option<TenantNo>,
    spec: &JobSpec,
    times: usize,
    units: &[Unit],
    spares: &Spares,
    chosen: &mut BTreeSet<usize>,
) -> Option<()> {
    let mut scratch = state.speculative();
    for (job, replica) in chosen.iter().flat_map(|unit| &units[*unit].members) {
        scratch.give_back(job, *replica);
    }
    let allows = |scratch: &State| {
        !tree::borrows_more(state, scratch, tenant, &spec.resources, times as u64)
            && quota::allows(scratch, tenant, &spec.resources, times as u64)
            && quota::types::some_open(scratch, tenant, spec, times as u64)
    };
    if allows(&scratch) {
        return Some(());
    }
    // Whose work counts against the same quota.
    let own = state.tenant(tenant?)?;
    let root = tree::path(state, own).last().copied()?;
    let counted: BTreeSet<TenantNo> = tree::subtree(state, root).into_iter().collect();
    let mut others: Vec<usize> = (0..units.len()).filter(|unit| !chosen.contains(unit)).collect();
    others.retain(|unit| units[*unit].members.iter().any(|(job, _)| counted.contains(&job.tenant)));
    others.sort_by_key(|unit| (units[*unit].cost, *unit));
    for unit in others {
        if over(units, spares, chosen.iter().copied().chain([unit])).is_some() {
            continue;
        }
        units[unit].members.iter().for_each(|(job, replica)| scratch.give_back(job, *replica));
        chosen.insert(unit);
        if allows(&scratch) {
            return Some(());
        }
    }
    None
}

/// The places, and the units without which they would not be there.
fn needed(
    state: &State,
    spec: &JobSpec,
    wanted: &[u16],
    limits: &Limits,
    units: &[Unit],
    mut chosen: BTreeSet<usize>,
) -> Option<(BTreeSet<usize>, Vec<crate::command::Placement>)> {
    let places = |gone: &BTreeSet<usize>| {
        let mut scratch = state.speculative();
        for (job, replica) in gone.iter().flat_map(|unit| &units[*unit].members) {
            scratch.give_back(job, *replica);
        }
        let picks = place(&scratch, spec, wanted, limits.clone());
        let tenant = state.tenant_named(&spec.tenant).map(|tenant| tenant.no);
        let (fits, times) = (picks.len() == wanted.len(), wanted.len() as u64);
        let allowed = quota::allows(&scratch, tenant, &spec.resources, times)
            && !tree::borrows_more(state, &scratch, tenant, &spec.resources, times);
        (fits && allowed).then_some(picks)
    };
    let mut picks = places(&chosen)?;
    if (1..=PRUNED).contains(&chosen.len()) {
        let mut dearest: Vec<usize> = chosen.iter().copied().collect();
        dearest.sort_by_key(|unit| Reverse(units[*unit].cost));
        for unit in dearest {
            chosen.remove(&unit);
            match places(&chosen) {
                Some(fewer) => picks = fewer,
                None => drop(chosen.insert(unit)),
            }
        }
    }
    Some((chosen, picks.into_iter().map(|(replica, pick)| pick.for_replica(replica)).collect()))
}

#[cfg(test)]
pub(crate) mod tests;
