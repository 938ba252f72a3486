//! What all members' gateways saw since the last look, added up for each service, and
//! whose word is missing in which of the sums. It does not decide what follows.

use super::Name;
use crate::exchange::sights::{BUCKETS, MODELS, p95_ms};
use crate::exchange::{Seen, Sight};
use nf_core::autoscaler::Gap;
use nf_core::autoscaler::source::Load;
use nf_core::id::MemberId;
use nf_core::node::NodeState;
use nf_core::state::State;
use std::collections::{BTreeMap, BTreeSet};

/// What one member's gateway said at the last look that it answered.
#[derive(Clone, Debug, Default)]
struct Last {
    epoch: u64,
    sights: BTreeMap<Name, Sight>,
    /// It answered the last look, too: the difference is what came since.
    fresh: bool,
    /// There were more models than it tells of.
    full: bool,
}

/// What all gateways saw of one model since the last look.
#[derive(Clone, Debug)]
pub struct Sum {
    pub arrived: u64,
    pub waiting: u64,
    pub running: u64,
    answered: [u64; BUCKETS],
}

impl Default for Sum {
    fn default() -> Self {
        Self { arrived: 0, waiting: 0, running: 0, answered: [0; BUCKETS] }
    }
}

impl Sum {
    fn add_now(&mut self, now: &Sight) {
        self.waiting += u64::from(now.waiting);
        self.running += u64::from(now.running);
    }

    fn add_since(&mut self, now: &Sight, before: Option<&Sight>) {
        self.arrived += now.arrived.saturating_sub(before.map_or(0, |s| s.arrived));
        for (i, count) in now.answered.iter().enumerate().take(BUCKETS) {
            let before = before.and_then(|s| s.answered.get(i)).copied().unwrap_or(0);
            self.answered[i] += count.saturating_sub(before);
        }
    }

    /// The part of one of so many jobs that share what gateways see.
    pub fn share(&self, jobs: u64) -> Load {
        let part = |n: u64| n.div_ceil(jobs.max(1));
        Load {
            waiting_m: part(self.waiting).saturating_mul(1000),
            running_m: part(self.running).saturating_mul(1000),
            arrived: Some(part(self.arrived)),
            uncounted: false,
            p95_ms: self.p95_ms(),
        }
    }

    /// Of the requests that were answered since the last look; 0 when there were none.
    fn p95_ms(&self) -> u64 {
        p95_ms(&self.answered).unwrap_or(0)
    }
}

/// A member of whose requests nothing is known, or not all.
#[derive(Clone, Debug)]
enum Unheard {
    /// It may have requests of any service.
    Any,
    /// Of these: it had none of any other when it was heard last.
    Of(BTreeSet<Name>),
}

/// The sums of one look.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    of: BTreeMap<Name, Sum>,
    members: u32,
    unheard: Vec<Unheard>,
}

impl Sums {
    /// What is known of a service, and what its sum lacks.
    pub fn of(&self, name: &Name) -> (Sum, Option<Gap>) {
        let carries = |unheard: &&Unheard| match unheard {
            Unheard::Any => true,
            Unheard::Of(names) => names.contains(name),
        };
        let silent = self.unheard.iter().filter(carries).count() as u32;
        let gap = (silent > 0).then(|| Gap::Gateways { told: self.members - silent, of: self.members });
        (self.of.get(name).cloned().unwrap_or_default(), gap)
    }
}

/// One term's memory of what gateways said.
#[derive(Clone, Debug, Default)]
pub struct Gateways {
    last: BTreeMap<MemberId, Last>,
}

impl Gateways {
    /// Who does not answer keeps those services from going down that it had requests of, in this term;
    /// who never answered in it, all. Who is given up has nothing any more.
    pub fn sum_up(&mut self, state: &State, seen: Vec<(MemberId, Seen)>, silent: &[MemberId]) -> Sums {
        let mut sums = Sums::default();
        for member in silent {
            if is_gone(state, *member) {
                self.last.remove(member);
                continue;
            }
            sums.members += 1;
            sums.unheard.push(match self.last.get_mut(member) {
                Some(last) => {
                    last.fresh = false;
                    if last.full { Unheard::Any } else { Unheard::Of(last.sights.keys().cloned().collect()) }
                }
                None => Unheard::Any,
            });
        }
        for (member, seen) in seen {
            sums.members += 1;
            self.add(&mut sums, member, seen);
        }
        sums
    }

    fn add(&mut self, sums: &mut Sums, member: MemberId, seen: Seen) {
        let known = self.last.remove(&member).filter(|last| last.fresh && last.epoch == seen.epoch);
        let full = seen.sights.len() >= MODELS;
        let named = |sight: Sight| ((sight.tenant.clone(), sight.model.clone()), sight);
        let sights: BTreeMap<Name, Sight> = seen.sights.into_iter().map(named).collect();
        for (name, sight) in &sights {
            let sum = sums.of.entry(name.clone()).or_default();
            sum.add_now(sight);
            if let Some(known) = &known {
                sum.add_since(sight, known.sights.get(name));
            }
        }
        // A first look knows what is there, not what came since.
        if known.is_none() {
            sums.unheard.push(if full { Unheard::Any } else { Unheard::Of(sights.keys().cloned().collect()) });
        }
        self.last.insert(member, Last { epoch: seen.epoch, sights, fresh: true, full });
    }
}

/// Whether a member that says nothing has been given up, and all that it had with it. One that was drained and then
/// switched off stays in Maintenance: that is what it was drained for.
fn is_gone(state: &State, member: MemberId) -> bool {
    let node = state.members().get(&member).and_then(|member| state.node_named(&member.name));
    node.is_some_and(|node| matches!(node.state, NodeState::Down | NodeState::Maintenance))
}
