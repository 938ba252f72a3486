//! Which whole devices of a node a replica gets: those of the smallest NVLink island that holds all of them, else of as
//! few islands as can be, the last of them the smallest that holds the rest. Where islands leave a choice, the devices of one NUMA node, and of the one that holds them with
//! the least left: memory and CPUs of the other are a socket away. Of a node that says nothing of NUMA nodes, the first
//! ones. It compares no nodes.

use super::devices::suits;
use crate::capacity::{Class, DeviceFlavor, FreeDevice};
use crate::resources::WHOLE;
use crate::sharing::Ask;
use std::cmp::Reverse;

/// Groups that are held without allocating, since the search looks at every class; nodes with more take the long way.
const FEW: usize = 16;

/// Idle devices of one island and one NUMA node: which of them are taken makes no difference.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    island: u16,
    numa: Option<u16>,
    idle: u16,
    /// Idle in all of its island.
    of_island: u16,
    /// Of these, those on the NUMA node that is tried.
    near: u16,
    /// Idle on its NUMA node, in the islands that devices are taken from.
    of_numa: u16,
    taken: u16,
}

/// How far apart the chosen devices are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Islands that they come from.
    pub islands: u16,
    /// NUMA nodes that they hang on; where nothing is said of any, 1.
    pub numa_nodes: u16,
}

/// How far apart the devices would be that [`choose`] chooses; None exactly when it finds none.
pub(super) fn span(class: &Class, ask: &Ask<'_>, wanted: u16) -> Option<Span> {
    let mut few = [Group::default(); FEW];
    let mut groups = 0;
    for (flavor, _) in idle(class, ask).map(|(_, both)| both) {
        let Some(at) = place_of(&few[..groups], flavor).or((groups < FEW).then_some(groups)) else {
            return choose(class, ask, wanted).map(|(_, span)| span);
        };
        few[at] = Group { island: flavor.island, numa: flavor.numa, idle: few[at].idle + 1, ..Group::default() };
        groups = groups.max(at + 1);
    }
    share_out(&mut few[..groups], wanted, ask.constraints.same_island)
}

/// The devices, in their order, and how far apart they are; None when there are not so many, or no island has them.
pub(super) fn choose(class: &Class, ask: &Ask<'_>, wanted: u16) -> Option<(Vec<u16>, Span)> {
    let mut groups: Vec<Group> = Vec::new();
    for (_, (flavor, _)) in idle(class, ask) {
        match place_of(&groups, flavor) {
            Some(at) => groups[at].idle += 1,
            None => groups.push(Group { island: flavor.island, numa: flavor.numa, idle: 1, ..Group::default() }),
        }
    }
    let span = share_out(&mut groups, wanted, ask.constraints.same_island)?;
    let taken = |(device, (flavor, _)): (usize, (&DeviceFlavor, &FreeDevice))| {
        let at = place_of(&groups, flavor)?;
        groups[at].taken = groups[at].taken.checked_sub(1)?;
        Some(device as u16)
    };
    Some((idle(class, ask).filter_map(taken).collect(), span))
}

/// The devices of which nothing is held, and that are of the kind asked for.
fn idle<'a>(class: &'a Class, ask: &'a Ask<'_>) -> impl Iterator<Item = (usize, (&'a DeviceFlavor, &'a FreeDevice))> {
    let both = class.flavor.devices.iter().zip(&class.devices).enumerate();
    both.filter(|(_, (flavor, free))| u32::from(free.milli) == WHOLE && suits(flavor, ask))
}

fn place_of(groups: &[Group], device: &DeviceFlavor) -> Option<usize> {
    groups.iter().position(|group| (group.island, group.numa) == (device.island, device.numa))
}

/// Says of each group how many of its devices are taken.
fn share_out(groups: &mut [Group], wanted: u16, one_island: bool) -> Option<Span> {
    each_run(
        groups,
        |group| group.island,
        |run| {
            let idle = run.iter().map(|group| group.idle).sum();
            run.iter_mut().for_each(|group| group.of_island = idle);
        },
    );
    // The smallest island that holds all of them keeps the large ones whole.
    let tight = groups.iter().map(|group| group.of_island).filter(|idle| *idle >= wanted).min();
    let all: u16 = groups.iter().map(|group| group.idle).sum();
    if tight.is_none() && (one_island || all < wanted) {
        return None;
    }
    let mut best = None;
    let mut tried = groups.iter().map(|group| group.numa).min();
    while let Some(near) = tried {
        let crossed = take(groups, wanted, tight, near).numa_nodes;
        let idle: u16 = groups.iter().filter(|group| group.numa == near).map(|group| group.idle).sum();
        // Of devices of which it is not known where they hang, it is not known either that they hang together.
        let found = (crossed, near.is_none(), idle, near);
        best = Some(best.map_or(found, |best: (_, _, _, _)| found.min(best)));
        tried = groups.iter().map(|group| group.numa).filter(|numa| *numa > near).min();
    }
    let (.., near) = best?;
    Some(take(groups, wanted, tight, near))
}

/// Takes so many devices, near that NUMA node as far as islands leave a choice. Leaves the groups in that order.
fn take(groups: &mut [Group], wanted: u16, tight: Option<u16>, near: Option<u16>) -> Span {
    each_run(
        groups,
        |group| group.island,
        |run| {
            let idle = run.iter().filter(|group| group.numa == near).map(|group| group.idle).sum();
            run.iter_mut().for_each(|group| group.near = idle);
        },
    );
    let island = |group: &Group| {
        let first = match tight {
            Some(tight) => (group.of_island != tight).into(),
            // From the fullest first, so that as few as possible are crossed: all of each but the last.
            None => u16::MAX - group.of_island,
        };
        (first, Reverse(group.near), group.island)
    };
    groups.sort_unstable_by_key(|group| (island(group), group.numa));
    // Whole islands first, and the rest from the smallest that holds it: a pair is not broken where one alone is idle.
    let mut missing = wanted;
    let is_whole = |run: &&[Group]| {
        let all = run[0].of_island < missing;
        missing -= if all { run[0].of_island } else { 0 };
        all
    };
    let whole: usize = groups.chunk_by(|a, b| a.island == b.island).take_while(is_whole).map(<[Group]>::len).sum();
    let holds = groups[whole..].iter().filter(|group| group.of_island >= missing);
    let last = holds.min_by_key(|group| (group.of_island, island(group))).map(|group| group.island);
    groups[whole..].sort_unstable_by_key(|group| (Some(group.island) != last, group.numa));
    // All of the last island is there to choose from, too.
    let some = whole + groups[whole..].iter().take_while(|group| Some(group.island) == last).count();
    groups.iter_mut().for_each(|group| group.taken = 0);
    let chosen = &mut groups[..some];
    let islands = runs(chosen.iter().map(|group| Some(group.island)));
    each_run(
        chosen,
        |group| group.numa,
        |run| {
            let idle = run.iter().map(|group| group.idle).sum();
            run.iter_mut().for_each(|group| group.of_numa = idle);
        },
    );
    chosen.sort_unstable_by_key(|group| (group.numa != near, Reverse(group.of_numa), group.numa, island(group)));
    let mut missing = wanted;
    for group in chosen.iter_mut() {
        group.taken = group.idle.min(missing);
        missing -= group.taken;
    }
    Span { islands, numa_nodes: runs(chosen.iter().filter(|group| group.taken > 0).map(|group| group.numa)) }
}

/// Has each run of groups of one key summed up: a node may have as many groups as devices.
fn each_run<K: Ord>(groups: &mut [Group], key: impl Fn(&Group) -> K, sum_up: impl FnMut(&mut [Group])) {
    groups.sort_unstable_by_key(&key);
    groups.chunk_by_mut(|one, other| key(one) == key(other)).for_each(sum_up);
}

/// How many different ones there are, where equal ones follow one another.
fn runs(numbers: impl Iterator<Item = Option<u16>>) -> u16 {
    let mut last = None;
    numbers.filter(|number| last.replace(*number) != Some(*number)).count() as u16
}

#[cfg(test)]
mod tests;
