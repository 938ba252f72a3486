//! When a waiting job will start: an interval, from how long replicas like those that run
//! now have run, or may run at most. The future is played sixteen times, each time with
//! another end for whatever runs, half of the times with others who come later and go before;
//! the interval is from the first start to the last. Where nothing is known, or no start is
//! near, there is none. It plays on a copy of the state, and decides nothing. See ADR 88.

use crate::id::{JobNo, NodeNo};
use crate::job::{Allocation, Job, JobSpec, Phase};
use crate::placement::{Limits, devices, filter, place, place_one, queue, siblings};
use crate::quota;
use crate::sharing::Ask;
use crate::sim::Rng;
use crate::state::State;
use crate::topology;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

mod known;

use known::Knowledge;
pub use known::RunTimes;

/// Futures that are played. Of so many draws of one kind the next lies within their range
/// fifteen times in seventeen.
const FUTURES: u64 = 16;
/// Ends that are played in one future; a start that is farther away is not foretold.
const ENDS: usize = 256;
/// The same with those whose place somebody takes who is not there yet.
const EVENTS: usize = 4 * ENDS;
/// Waiters that go before; behind more of them a start is not foretold.
const AHEAD: usize = 128;
/// Classes of nodes that are looked at for the room that the first waiters keep, in all futures together;
/// beyond it they keep what they kept before.
const LOOKS: usize = 1 << 20;
/// The range of the futures is widened by one in so many, towards both sides: they are few, and know little.
const MARGIN: u64 = 4;

/// From when until when the job, which waits, will start: milliseconds since the epoch.
pub fn expected_start(state: &State, job: &Job) -> Option<(u64, u64)> {
    let now = state.meta().now_ms;
    if !job.wants_place() || job.placeable(now).next().is_none() {
        return None;
    }
    let line = queue::waiters(state, AHEAD + 1);
    let at = line.iter().position(|waiter| waiter.no == job.no)?;
    let line = &line[..=at];
    let running = running(state);
    let known = Knowledge::new(state, &running);
    // What never says when it ends may end at once, and make room.
    let silent = |(job, _): &&(Arc<Job>, u16)| known.lasts(job, job.ran.until_ms(now), 0).is_none();
    let unknown = running.iter().any(|one| silent(&one));
    let overtaken = overtaken(now, &running, line);
    let mut starts = Vec::new();
    for future in 0..FUTURES {
        // In every other one nobody comes: the interval has room for both.
        let overtaken = if future % 2 == 0 { 0 } else { overtaken };
        starts.push(Future { overtaken, ..Future::new(state, &known, &running, line, future) }.play()?);
    }
    let (first, last) = (starts.iter().min()?, starts.iter().max()?);
    let first = first - (first - now) / MARGIN;
    Some((if unknown { now } else { first }, last + (last - now) / MARGIN))
}

/// How many of 1,024 places that became free since the first of the line waits went to somebody who came later.
fn overtaken(now: u64, running: &[(Arc<Job>, u16)], line: &[Arc<Job>]) -> u64 {
    let Some(first) = line.iter().map(|job| job.created_ms).min() else { return 0 };
    let began = running.iter().filter(|(job, _)| now.saturating_sub(job.ran.until_ms(now)) > first);
    let (all, later) =
        began.fold((0, 0), |(all, later), (job, _)| (all + 1, later + u64::from(job.created_ms > first)));
    1024 * later / (all + 4)
}

/// All replicas that hold a place.
fn running(state: &State) -> Vec<(Arc<Job>, u16)> {
    let held = state.holding.iter().filter_map(|(_, no)| state.job(*no));
    let each = |job: &Arc<Job>| {
        let holds = |(no, replica): (usize, &crate::job::Replica)| {
            matches!(replica.phase, Phase::Held { .. } | Phase::Stopping { .. }).then_some((job.clone(), no as u16))
        };
        job.replicas.iter().enumerate().filter_map(holds).collect::<Vec<_>>()
    };
    held.flat_map(each).collect()
}

/// Something that will end: a replica that runs, or one that was let in while playing.
enum End {
    Runs(Arc<Job>, u16),
    Came(Arc<Job>, Allocation),
}

/// One possible future.
struct Future<'a> {
    state: State,
    known: &'a Knowledge,
    /// Of 1,024 places that become free so many go to somebody who is not there yet.
    overtaken: u64,
    line: &'a [Arc<Job>],
    /// Replicas of each of the line that still wait.
    missing: Vec<u16>,
    ends: BinaryHeap<(Reverse<u64>, Reverse<usize>)>,
    what: Vec<End>,
    /// What each of the first waiters keeps for itself.
    kept: Vec<NodeNo>,
    looks: usize,
    no: u64,
}

impl<'a> Future<'a> {
    fn new(state: &State, known: &'a Knowledge, running: &[(Arc<Job>, u16)], line: &'a [Arc<Job>], no: u64) -> Self {
        let now = state.meta().now_ms;
        let missing = line.iter().map(|job| job.placeable(now).count() as u16).collect();
        let mut out = Self {
            state: state.speculative(),
            known,
            overtaken: 0,
            line,
            missing,
            ends: BinaryHeap::new(),
            what: Vec::new(),
            kept: Vec::new(),
            looks: LOOKS / FUTURES as usize,
            no,
        };
        for (job, replica) in running {
            let age = job.ran.until_ms(now);
            out.until(job, age, u64::from(*replica), now, |job| End::Runs(job.clone(), *replica));
        }
        out
    }

    /// Notes when something ends.
    fn until(&mut self, job: &Arc<Job>, age: u64, salt: u64, now: u64, end: impl FnOnce(&Arc<Job>) -> End) {
        let draw = draw(self.no, job.no, salt);
        if let Some(left) = self.known.lasts(job, age, draw) {
            self.ends.push((Reverse(now.saturating_add(left)), Reverse(self.what.len())));
            self.what.push(end(job));
        }
    }

    /// When the last of the line starts.
    fn play(mut self) -> Option<u64> {
        let mut ends = 0;
        for _ in 0..EVENTS {
            let (Reverse(at), Reverse(what)) = self.ends.pop()?;
            if self.taken(what, at) {
                continue;
            }
            ends += 1;
            if ends > ENDS {
                break;
            }
            let node = self.end(what);
            if self.pass(node, at) {
                return Some(at);
            }
        }
        None
    }

    /// Whether somebody who is not there yet takes the place: one like who had it.
    fn taken(&mut self, what: usize, at: u64) -> bool {
        let (End::Runs(job, _) | End::Came(job, _)) = &self.what[what];
        let mut rng = Rng::new(draw(self.no, job.no, at));
        if rng.below(1024) >= self.overtaken {
            return false;
        }
        let lasts = self.known.lasts(job, 0, rng.bits() >> 1);
        let Some(lasts) = lasts else { return false };
        self.ends.push((Reverse(at.saturating_add(lasts)), Reverse(what)));
        true
    }

    /// As a pass over the queue would, on the node that has more room now. True when the last of the line came in.
    fn pass(&mut self, node: NodeNo, at: u64) -> bool {
        let last = self.line.len() - 1;
        let cost = self.state.capacity().classes.len() * queue::KEPT;
        let look = self.looks >= cost;
        let before = std::mem::take(&mut self.kept);
        let (mut keepers, mut came) = (0, false);
        for i in 0..=last {
            if self.missing[i] == 0 {
                continue;
            }
            if !self.kept.contains(&node) && self.let_in(i, node, at) {
                came = true;
                if i == last {
                    return true;
                }
            } else if look && i < last && keepers < queue::KEPT {
                let wanted = usize::from(self.missing[i]);
                let job = &self.line[i];
                let found = queue::targets(&self.state, job, &job.spec, wanted, &self.kept);
                keepers += usize::from(!found.is_empty());
                self.kept.extend(found);
            }
        }
        match look {
            true => self.looks -= cost,
            false => self.kept = before,
        }
        // What was kept for who is in now may be what the last one waited for.
        let job = &self.line[last];
        let siblings = siblings(&job.replicas, &job.spec.constraints);
        let limits = Limits { held: self.kept.clone(), siblings, ..Limits::default() };
        came && !job.spec.gang
            && quota::allows(&self.state, Some(job.tenant), &job.spec.resources, 1)
            && !place(&self.state, &job.spec, &[0], limits).is_empty()
    }

    /// The node that has more room now.
    fn end(&mut self, what: usize) -> NodeNo {
        match &self.what[what] {
            End::Runs(job, replica) => {
                let node = job.replicas[usize::from(*replica)].allocation().map_or(NodeNo(0), |alloc| alloc.node);
                let (job, replica) = (job.clone(), *replica);
                self.state.give_back(&job, replica);
                node
            }
            End::Came(job, alloc) => {
                let (job, alloc) = (job.clone(), alloc.clone());
                self.state.unbook(&job.spec, 0, &alloc);
                alloc.node
            }
        }
    }

    /// Lets replicas of the waiter in, as far as that node has room (a gang: wherever there is). True when one came.
    fn let_in(&mut self, i: usize, node: NodeNo, at: u64) -> bool {
        let job = self.line[i].clone();
        let wanted: Vec<u16> = (0..self.missing[i]).collect();
        let wanted = queue::within_quota(&self.state, Some(job.tenant), &job.spec, wanted);
        let there: Vec<NodeNo> = siblings(&job.replicas, &job.spec.constraints).into_keys().collect();
        let beside = topology::keeps(&self.state, &job.spec, &there, [node]);
        if wanted.is_empty() || !beside || !self.may_fit(&job.spec, node) {
            return false;
        }
        let places: Vec<Allocation> = match job.spec.gang {
            true => {
                let siblings = siblings(&job.replicas, &job.spec.constraints);
                let picks = place(&self.state, &job.spec, &wanted, Limits { siblings, ..Limits::default() });
                picks.into_iter().map(|(_, pick)| pick.alloc).collect()
            }
            false => self.fill(&job.spec, node, wanted.len()),
        };
        for alloc in &places {
            // `fill` has booked as it went.
            if job.spec.gang {
                self.state.book(&job.spec, 0, alloc);
            }
            self.until(&job, 0, u64::from(self.missing[i]), at, |job| End::Came(job.clone(), alloc.clone()));
            self.missing[i] -= 1;
        }
        !places.is_empty()
    }

    /// Whether one replica has room on the node; a gang may have it elsewhere.
    fn may_fit(&self, spec: &JobSpec, node: NodeNo) -> bool {
        let ask = Ask::of(&self.state, spec);
        let fits = self.state.capacity().class(node).is_some_and(|class| {
            filter::may_have_room(class, &ask)
                && filter::may_ever_run(&class.flavor, &ask)
                && devices::fit(class, &ask).is_some()
        });
        let here = self.state.node(node).map(|node| &node.name);
        fits && spec.constraints.node.as_ref().is_none_or(|wanted| Some(wanted) == here)
    }

    fn fill(&mut self, spec: &Arc<JobSpec>, node: NodeNo, most: usize) -> Vec<Allocation> {
        let mut there = (**spec).clone();
        there.constraints.node = self.state.node(node).map(|node| node.name.clone());
        let mut out = Vec::new();
        while out.len() < most
            && quota::allows(&self.state, self.state.tenant_named(&spec.tenant).map(|t| t.no), &spec.resources, 1)
            && let Some(pick) = place_one(&self.state, &there, &Limits::default())
        {
            self.state.book(spec, 0, &pick.alloc);
            out.push(pick.alloc);
        }
        out
    }
}

/// A number that stands for chance, the same for the same future and job.
fn draw(future: u64, job: JobNo, salt: u64) -> u64 {
    let mut z =
        (future + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ job.0.wrapping_mul(0xd1b5_4a32_d192_ed03) ^ (salt << 48);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) >> 1
}

#[cfg(test)]
mod tests;
