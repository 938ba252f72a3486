//! Nodes that are kept for the first waiters, so that later and smaller work can't starve them.
//! Kept is where the room that a waiter needs will really come: the nodes on which it has place
//! once all that ends by itself has ended. Where services that nobody ends are in its way, a
//! node is kept for a while only, and where nobody knows when that ends half of the time, or GPUs would idle for a waiter
//! that comes in days or never.

use super::order::Order;
use super::pass::is_own;
use super::preempt;
use super::queue::{Asker, Shape, askers, fill, waits_for_room_in};
use super::reserve::Reserves;
use super::{Limits, devices, filter, together};
use crate::budget::afford::Offer;
use crate::budget::judge;
use crate::capacity::{Class, DeviceFlavor, Flavor};
use crate::claim;
use crate::id::{NodeNo, TenantNo};
use crate::job::{Job, JobSpec, MAX_REPLICAS, Next, Phase, Replica};
use crate::ledger::Ledger;
use crate::node::{Device, DeviceKind, Node};
use crate::quota::Rooms;
use crate::resources::WHOLE;
use crate::sharing::Ask;
use crate::state::State;
use crate::topology::Domain;
use crate::trust;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How many of the first waiters keep room for themselves.
pub const KEPT: usize = 4;
/// Among how many waiters they are looked for, where some wait for their quota or get no place at all.
const LOOKED_AT: usize = 4096;
/// Of one tenant at most and, however many wait, at least, so that nobody hides the others behind what can't run.
const MOST_OF_ONE: usize = 1024;
const LEAST_OF_ONE: usize = 16;
/// Nodes that are looked at closely for one waiter; for a gang more, if it needs more.
const LOOKS: usize = 64;
/// Waiters of one tenant for whom nodes are looked at: none of these may have room for them, and others' come after them.
const TRIES: u32 = 16;
/// Asks of one tenant that no node could hold however empty it is. To see that takes no look at nodes.
const NEVER: u32 = 64;
/// Waiters for whom nodes are looked at in all.
const MOST_TRIES: u32 = 256;
/// Racks, zones or regions in which nodes are looked for, where all replicas have to be in one.
const DOMAINS: usize = 16;
/// For so long a waiter keeps a node that it can only have when a service there is ended, which nobody has to.
pub(super) const LONGEST_MS: u64 = 60 * 60 * 1000;

/// The nodes kept for those of the first waiters that go before `priority`
/// (equal priority included: they came first).
pub fn kept_nodes(state: &State, priority: i16) -> Vec<NodeNo> {
    kept_ahead(state, priority).0
}

/// The same, and the quota that those keep.
pub(crate) fn kept_ahead(state: &State, priority: i16) -> (Vec<NodeNo>, Reserves) {
    let (mut keepers, mut reserves) = (Keepers::new(state), Reserves::default());
    if !state.has_waiters() {
        return (keepers.kept, reserves);
    }
    let mut order = Order::new(state);
    let mut rooms = Rooms::default();
    let mut looked: BTreeMap<TenantNo, usize> = BTreeMap::new();
    let of_each = (LOOKED_AT / order.tenants().max(1)).clamp(LEAST_OF_ONE, MOST_OF_ONE);
    for _ in 0..LOOKED_AT {
        let next = if keepers.are_enough() { None } else { order.next(state) };
        let Some(job) = next.filter(|job| job.spec.priority >= priority) else { break };
        let of_one = looked.entry(job.tenant).or_default();
        *of_one += 1;
        if *of_one == of_each {
            order.leave_out(job.tenant);
        }
        // One that gets no place keeps none from others, however far ahead it is.
        if !waits_for_room_in(&mut rooms, state, &job) || trust::withheld(state, &job).is_some() {
            continue;
        }
        for asker in askers(state, &job) {
            // What it can't pay is not kept for it.
            let ask = match judge::concerns(state, job.tenant) {
                true => fill(&mut rooms, state, &asker, &keepers.kept),
                false => Offer::NoRoom(Cow::Borrowed(&**asker.spec)),
            };
            if let Offer::NoRoom(ask) = ask
                && keepers.keep(state, &asker, &ask)
            {
                reserves.add_for_room(state, &asker);
            }
        }
    }
    (keepers.kept, reserves)
}

/// The first waiters and the nodes that are kept for them.
pub(super) struct Keepers {
    /// With those that are claimed.
    pub kept: Vec<NodeNo>,
    count: usize,
    tries: u32,
    of: BTreeMap<TenantNo, Tries>,
    /// What no node will hold, for those whose patience is such. None: whoever asks. Some: for want of a budget, or of a
    /// device type, that only its tenant lacks.
    in_vain: BTreeSet<(Option<TenantNo>, Patience, Shape)>,
}

/// How often nodes were looked for on behalf of a tenant.
#[derive(Default)]
struct Tries {
    looked: u32,
    never: u32,
}

impl Keepers {
    pub fn new(state: &State) -> Self {
        let (kept, of, in_vain) = (claim::nodes(state), BTreeMap::new(), BTreeSet::new());
        Self { kept, count: 0, tries: 0, of, in_vain }
    }

    pub fn are_enough(&self) -> bool {
        self.count == KEPT || self.tries == MOST_TRIES
    }

    /// Keeps what the asker needs, which asks for `ask` now, if it is one of the first. True if something is kept.
    pub fn keep(&mut self, state: &State, asker: &Asker<'_>, ask: &JobSpec) -> bool {
        let (tenant, patience, shape) = (asker.job.tenant, Patience::of(state, asker.job), Shape::of(state, asker));
        let known = |of| self.in_vain.contains(&(of, patience, shape.clone()));
        if self.are_enough() || known(None) || known(Some(tenant)) {
            return false;
        }
        let tries = self.of.entry(tenant).or_default();
        // What a tenant can never have, or not for long, keeps nothing from the first waiters of the others.
        if tries.looked == TRIES || tries.never == NEVER {
            return false;
        }
        let found = look(state, asker.job, ask, asker.wanted.len(), &self.kept);
        match found.could {
            true => (tries.looked, self.tries) = (tries.looked + 1, self.tries + 1),
            false => tries.never += 1,
        }
        let some = !found.nodes.is_empty();
        if !some {
            self.in_vain.insert((is_own(state, asker).then_some(tenant), patience, shape));
        }
        self.count += usize::from(some);
        self.kept.extend(found.nodes);
        some
    }
}

/// What a waiter's node is kept from, by how long it has waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Patience {
    /// Its first hour: also where services are in its way, which nobody has to end.
    First,
    /// Where all that is in its way ends by itself, whenever that is.
    Keeps,
    /// Only where it is known when that ends at the latest.
    Yields,
}

impl Patience {
    /// Of what ends without anybody knowing when, the room is kept in turns: for one hour and not for one, for two and
    /// not for two, four, eight. In an hour that is not the waiter's, what it had collected goes to whoever comes; so its
    /// own grow until they are longer than what is in its way runs, and GPUs idle with it for about half of the time.
    fn of(state: &State, job: &Job) -> Self {
        let hours = state.meta().now_ms.saturating_sub(job.waits_since().unwrap_or(0)) / LONGEST_MS;
        // Turns begin at 0, 2, 6, 14 …: two less than a power of two, and the next bit says which half it is.
        let turn = hours.saturating_add(2);
        match turn >> (turn.ilog2() - 1) & 1 {
            _ if hours == 0 => Self::First,
            0 => Self::Keeps,
            _ => Self::Yields,
        }
    }
}

/// What a look for nodes to keep has come to.
#[derive(Default)]
struct Targets {
    nodes: Vec<NodeNo>,
    /// Some node could hold the job if it were empty.
    could: bool,
}

/// The nodes to keep for a waiter that asks for `spec`: one, or for a gang as many as hold it.
/// None for a gang that all nodes together could not hold.
pub(crate) fn targets(state: &State, job: &Job, spec: &JobSpec, wanted: usize, taken: &[NodeNo]) -> Vec<NodeNo> {
    look(state, job, spec, wanted, taken).nodes
}

fn look(state: &State, job: &Job, spec: &JobSpec, wanted: usize, taken: &[NodeNo]) -> Targets {
    // Devices of which its tenant may have no more are no room for it.
    let Some(spec) = super::narrowed(state, spec) else { return Targets::default() };
    let Some(level) = spec.constraints.topology.required else {
        return targets_in(state, job, &spec, wanted, taken, None);
    };
    let siblings = super::siblings(&job.replicas, &spec.constraints);
    let limits = Limits { held: taken.to_vec(), siblings, ..Limits::default() };
    // In one domain: what is kept in two of them is of no use.
    let choices = together::choices(state, &spec, level, wanted, &limits).into_iter().take(DOMAINS);
    let mut out = Targets::default();
    for room in choices {
        let Targets { nodes, could } = targets_in(state, job, &spec, wanted, taken, Some(&room.domain));
        out = Targets { nodes, could: out.could || could };
        if !out.nodes.is_empty() {
            break;
        }
    }
    out
}

/// The same among the nodes of one domain, or of all.
fn targets_in(
    state: &State,
    job: &Job,
    spec: &JobSpec,
    wanted: usize,
    taken: &[NodeNo],
    within: Option<&Domain>,
) -> Targets {
    let ask = &Ask::of(state, spec);
    let mut missing = if ask.gang { wanted } else { 1 };
    let mut out = Vec::new();
    let mut held = Vec::new();
    let patience = Patience::of(state, job);
    let all = candidates(state, ask, (taken, within), missing.min(MAX_REPLICAS.into()));
    let could = !all.is_empty();
    for node in all {
        let Some(node) = state.node(node) else { continue };
        match room_later(state, node, ask, missing, patience) {
            0 => held.push((state.staying.get(&node.no).map_or(0, |(count, _)| *count), held.len(), node)),
            some => {
                missing = missing.saturating_sub(some);
                out.push(node.no);
            }
        }
        if missing == 0 {
            return Targets { nodes: out, could };
        }
    }
    if patience != Patience::First {
        return Targets { nodes: Vec::new(), could };
    }
    // The least of what nobody ends first, then in the order of the candidates.
    held.sort_unstable_by_key(|(stays, place, _)| (*stays, *place));
    for (_, _, node) in held {
        let room = room_beside(state, node, ask, missing, |_| false);
        missing = missing.saturating_sub(room);
        out.extend((room > 0).then_some(node.no));
        if missing == 0 {
            return Targets { nodes: out, could };
        }
    }
    Targets { nodes: Vec::new(), could }
}

/// How many replicas, up to `most`, the node holds once all that ends by itself has ended. What only a scratch copy has
/// booked ends like the jobs that it stands for.
fn room_later(state: &State, node: &Node, ask: &Ask<'_>, most: usize, patience: Patience) -> usize {
    let (_, gpu_milli) = state.staying.get(&node.no).copied().unwrap_or_default();
    let is_gpu = |device: &&Device| device.kind == DeviceKind::Gpu;
    let all = node.spec.devices.iter().filter(is_gpu).count() as u64 * u64::from(WHOLE);
    // Mostly this is enough to say no.
    if all.saturating_sub(gpu_milli) < ask.resources.gpu.milli() {
        return 0;
    }
    let known = |job: &Job| job.spec.constraints.max_run_ms.is_some();
    room_beside(state, node, ask, most, |job| job.spec.stays() || patience == Patience::Yields && !known(job))
}

/// The same beside the replicas of those jobs.
fn room_beside(state: &State, node: &Node, ask: &Ask<'_>, most: usize, stays: impl Fn(&Job) -> bool) -> usize {
    let mut books = Ledger::default();
    books.resize(node.no, node.spec.devices.len());
    let goes = |replica: &Replica| matches!(replica.phase, Phase::Stopping { then: Next::Again | Next::End, .. });
    for (job, no, replica) in state.replicas_on(node.no).filter(|(job, _, replica)| stays(job) && !goes(replica)) {
        let Some((_, alloc, _)) = replica.copy_on(node.no) else { continue };
        books.hold(TenantNo(0), (job.no, no), &job.spec.resources, alloc, &node.spec);
    }
    preempt::slots(state, node, ask, books, most)
}

/// What is free of what the job needs: suitable devices, then CPU. Who needs no device leaves those nodes to the
/// others that have most of them.
type Room = (u64, u64, Reverse<NodeNo>);

/// Nodes that could hold the job when they are empty, the one with the most room now first: all of them, or so many
/// that it takes no time to look at each.
fn candidates(
    state: &State,
    ask: &Ask<'_>,
    (taken, within): (&[NodeNo], Option<&Domain>),
    wanted: usize,
) -> Vec<NodeNo> {
    let taken: BTreeSet<NodeNo> = taken.iter().copied().collect();
    if let Some(name) = &ask.constraints.node {
        let node = state.node_named(name).map(|node| node.no).filter(|node| !taken.contains(node));
        let class = node.and_then(|node| state.capacity().class(node));
        let inside = |flavor: &Flavor| within.is_none_or(|domain| domain.has(flavor.names()));
        let could = |class: &Arc<Class>| {
            class.takes_work() && inside(&class.flavor) && filter::may_ever_run(&class.flavor, ask)
        };
        return node.filter(|_| class.is_some_and(could)).into_iter().collect();
    }
    let looks = LOOKS.max(2 * wanted);
    let mut all: Vec<Room> = Vec::new();
    // Classes come in the order of their flavors, so one verdict serves many.
    let mut judged: Option<(&Arc<Flavor>, Option<Vec<bool>>)> = None;
    for (class, nodes) in state.capacity().within(within).filter(|(class, _)| class.takes_work()) {
        if !judged.as_ref().is_some_and(|(known, _)| Arc::ptr_eq(known, &class.flavor)) {
            let may = filter::may_ever_run(&class.flavor, ask);
            judged = Some((&class.flavor, may.then(|| counted(&class.flavor, ask))));
        }
        let Some((_, Some(counted))) = &judged else { continue };
        let room = match counted.contains(&true) {
            true => class.devices.iter().zip(counted).filter(|(_, is)| **is).map(|(d, _)| u64::from(d.milli)).sum(),
            false => u64::MAX - class.devices.len() as u64,
        };
        let free = nodes.iter().filter(|node| !taken.contains(node)).take(looks);
        all.extend(free.map(|node| (room, class.cpu_milli, Reverse(*node))));
    }
    if all.len() > looks {
        all = thinned(all, looks);
    }
    all.sort_unstable_by(|a, b| b.cmp(a));
    all.into_iter().map(|(.., Reverse(node))| node).collect()
}

/// Which devices of such a node are room for the job; none where it needs none.
fn counted(flavor: &Flavor, ask: &Ask<'_>) -> Vec<bool> {
    let counts = |device: &DeviceFlavor| match (ask.resources.gpu.milli(), ask.resources.tpu) {
        (0, 0) => false,
        (0, _) => device.kind == DeviceKind::Tpu,
        _ => devices::suits(device, ask),
    };
    flavor.devices.iter().map(counts).collect()
}

/// The half with the most room, and of the others some all over the group.
fn thinned(mut all: Vec<Room>, looks: usize) -> Vec<Room> {
    let (most, rest) = (looks / 2, all.len() - looks / 2);
    all.select_nth_unstable_by(most, |a, b| b.cmp(a));
    let mut others = all.split_off(most);
    others.sort_unstable_by_key(|(.., node)| Reverse(*node));
    all.extend(others.into_iter().step_by(rest.div_ceil(looks - most)));
    all
}

#[cfg(test)]
mod tests;
