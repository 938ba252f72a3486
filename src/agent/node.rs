//! One node's part of the agent, without I/O of its own: takes in slices and
//! leases, tells the executor what to do, and says what there is to report. Each
//! step looks at everything again, so a step that was lost costs nothing.

use super::Execute;
use super::earlier::Earlier;
use super::lease::Lease;
use crate::exchange::{BeatAnswer, NodeReports, NodeStart, Registration, Slice};
use nf_core::command::{Report, ReportKind};
use nf_core::id::{Digest16, Generation};
use nf_core::job::Stage;
use nf_core::node::NodeSpec;
use nf_core::reason::Reason;
use nf_core::reconcile::{self, Action, Actual, Condition, Desired, Leave, ReplicaId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Reports in one message about one node; the others follow in the next.
const REPORTS: usize = 256;

/// Whether the group knows this start of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Unregistered,
    /// Since that index: what is older says nothing about this start.
    Registered(u64),
    /// A later start has taken over. Nothing is done any more.
    Superseded,
}

/// See the module's text.
pub struct Node {
    pub registration: Registration,
    executor: Arc<dyn Execute>,
    standing: Standing,
    /// It has more to say of itself than it has told the group.
    offers: bool,
    desired: Arc<Desired>,
    /// Applied index up to which `desired` is current. None: nothing was told yet.
    known: Option<u64>,
    revision: u64,
    lease: Lease,
    /// Set until nothing can be left of earlier starts that the executor does not remember.
    earlier: Option<Earlier>,
    /// How long before the lease's end exclusive replicas are killed, and before that told to stop.
    kill_budget_ms: u64,
    /// Set while an exclusive replica lives here: when it has to be stopped.
    exclusive_until: Option<u64>,
    /// The last step left something undone that only knowledge or a lease can free.
    waits: bool,
    /// What the group was last told of each replica, and the index that has it.
    told: BTreeMap<(ReplicaId, Generation), (Told, u64)>,
    /// The same of copies that were removed.
    purged: BTreeMap<Digest16, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Stage(Stage),
    Ended,
}

impl Node {
    pub fn new(registration: Registration, executor: Arc<dyn Execute>, kill_budget: Duration) -> Self {
        let earlier = (!executor.remembers()).then(Earlier::default);
        Self {
            registration,
            executor,
            earlier,
            standing: Standing::Unregistered,
            offers: false,
            desired: Arc::default(),
            known: None,
            revision: 0,
            lease: Lease::default(),
            kill_budget_ms: u64::try_from(kill_budget.as_millis()).unwrap_or(u64::MAX),
            exclusive_until: None,
            waits: false,
            told: BTreeMap::new(),
            purged: BTreeMap::new(),
        }
    }

    pub fn start(&self) -> NodeStart {
        NodeStart { node: self.registration.node.clone(), incarnation: self.registration.incarnation }
    }

    pub fn standing(&self) -> Standing {
        self.standing
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether better knowledge, or a lease, could let the next step do more.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// When the next step has to be taken even if nothing happens until then.
    pub fn exclusive_until(&self) -> Option<u64> {
        self.exclusive_until
    }

    pub fn executor(&self) -> &Arc<dyn Execute> {
        &self.executor
    }

    /// The group knows this start since `index`. Reports are made again: it may have forgotten.
    /// `new`: it knew no earlier one either, so there is none that could run anything.
    pub fn registered(&mut self, index: u64, new: bool, now_ms: u64) {
        if new && self.earlier.is_some() {
            self.outlived();
        } else if let Some(earlier) = &mut self.earlier {
            earlier.registered(now_ms);
        }
        self.standing = Standing::Registered(index);
        self.told.clear();
        self.purged.clear();
    }

    /// The group does not know this start (any more).
    pub fn unknown(&mut self) {
        self.standing = Standing::Unregistered;
    }

    /// It has more than it said before, and says so. Whether or not the group takes that, it is there as before.
    pub fn describe(&mut self, spec: Arc<NodeSpec>) {
        self.registration.spec = spec;
        self.offers = self.standing != Standing::Superseded;
    }

    /// Whether it has something to tell of itself.
    pub fn is_to_register(&self) -> bool {
        self.standing == Standing::Unregistered || self.offers
    }

    /// What it tells of itself. What comes up while that is under way is told next.
    pub fn introduce(&mut self) -> Registration {
        self.offers = false;
        self.registration.clone()
    }

    /// That was not taken: it is told again, and until then the group knows it as it was.
    pub fn untold(&mut self) {
        self.offers = matches!(self.standing, Standing::Registered(_));
    }

    pub fn superseded(&mut self) {
        self.standing = Standing::Superseded;
        self.offers = false;
    }

    /// Takes a slice, unless it is older than what is known: members can be behind one another.
    /// Says whether it was taken.
    pub fn take_slice(&mut self, slice: &Slice) -> bool {
        let Standing::Registered(since) = self.standing else { return false };
        if slice.index < since.max(self.known.unwrap_or(0)) {
            return false;
        }
        self.desired = slice.desired.clone();
        if let Some(earlier) = &mut self.earlier {
            earlier.told(&slice.desired);
        }
        self.revision = slice.revision;
        self.knows(slice.index);
        true
    }

    /// The stream's slices are current up to `index`; says whether that is news.
    pub fn current(&mut self, index: u64) -> bool {
        let news = self.known.is_some_and(|known| known < index);
        if news {
            self.knows(index);
        }
        news
    }

    fn knows(&mut self, index: u64) {
        self.known = Some(index);
        self.lease.known(index);
    }

    /// A beat sent at `sent_ms` was answered, and not with a word against this node.
    pub fn take_lease(&mut self, sent_ms: u64, answer: &BeatAnswer) {
        self.lease.granted(sent_ms, answer, self.known.unwrap_or(0));
        if let Some(earlier) = &mut self.earlier {
            earlier.granted(sent_ms, answer.lease_ms);
        }
    }

    /// Voters that hear no leader stand in for its word; see [`Lease::vouched`].
    pub fn take_vouched(&mut self, sent_ms: u64, now_ms: u64, lease_ms: u64) {
        self.lease.vouched(sent_ms, now_ms, lease_ms);
    }

    /// Does what is to be done now. Safe at any time and any number of times.
    /// Returns what the group should be told; [`Node::acknowledge`] what it has been.
    pub fn step(&mut self, now_ms: u64) -> NodeReports {
        let NodeStart { node, incarnation } = self.start();
        let mut reports = NodeReports { node, incarnation, reports: Vec::new(), purged: Vec::new() };
        let actual = self.executor.actual();
        // Whatever the group thinks of this node, and even when it says nothing at all.
        let exclusive = self.lease.exclusive(now_ms, self.kill_budget_ms, self.executor.guarded_until());
        self.executor.guard_until(exclusive.proven_ms);
        let exclusive_until = exclusive.stop_ms;
        let held = self.stop_exclusive(&actual, now_ms, exclusive_until);
        self.exclusive_until = held.then_some(exclusive_until);
        let (Some(_), Standing::Registered(_)) = (self.known, self.standing) else { return reports };
        self.outlive(now_ms);
        self.waits = self.earlier.is_some();
        for action in reconcile::diff(&self.desired, &actual) {
            match action {
                // What an earlier start may still have neither starts nor counts as gone.
                Action::Start(id, _) | Action::Report(id, ..) if self.earlier_may_have(id) => {
                    self.executor.hold_back(id, &self.desired.replicas[&id], self.over_ms());
                }
                Action::Start(id, _) if self.lease.covers_start(now_ms) => {
                    let Some(want) = self.desired.replicas.get(&id) else { continue };
                    if !want.spec.constraints.exclusive {
                        self.executor.start(id, want);
                    } else if now_ms < exclusive_until {
                        self.executor.start(id, want);
                        self.exclusive_until = Some(exclusive_until);
                    } else {
                        self.waits = true;
                    }
                }
                // Without a lease it waits; the next beat's answer makes another step.
                Action::Start(..) => self.waits = true,
                Action::Stop(id, generation, leave) => self.executor.stop(id, generation, leave),
                Action::Report(id, generation, ok, why) => {
                    self.waits = true;
                    // It ended for want of a lease, not by its own will: it is to run again.
                    let ok = ok && why != Reason::NodeFailure;
                    self.report(&mut reports, id, generation, Told::Ended, ReportKind::Ended { ok, why });
                }
                Action::Forget(id, generation) => self.executor.forget(id, generation),
            }
        }
        for (id, generation, stage) in self.executor.stages() {
            let want = self.desired.replicas.get(&id);
            let wanted = want.is_some_and(|want| want.generation == generation && want.stop.is_none());
            let alive = actual.replicas.get(&id).and_then(|g| g.get(&generation)) == Some(&Condition::Alive);
            // What the group thinks decides, not what it was told: a report that was sent
            // twice may be applied after a newer one.
            let news = want.is_some_and(|want| want.stage != Some(stage));
            if wanted && alive && news && stage != Stage::Scheduled {
                self.report(&mut reports, id, generation, Told::Stage(stage), ReportKind::Stage(stage));
            }
        }
        let purged = self.desired.purgeable(&actual).filter(|copy| self.executor.purge(copy));
        let known = self.known.unwrap_or(0);
        // What was told is told again only once the slice reflects it, and asks for it still.
        let news = purged.filter(|copy| self.purged.get(&copy.copy).is_none_or(|index| known >= *index));
        reports.purged = news.map(|copy| (copy.copy, copy.placed)).collect();
        // A node that has said so waits for the slice that knows it.
        self.waits |= !self.desired.purge.is_empty();
        let desired = &self.desired;
        self.purged.retain(|copy, _| desired.purge.iter().any(|purge| purge.copy == *copy));
        self.told.retain(|(id, _), _| desired.replicas.contains_key(id));
        reports
    }

    /// Once the last lease of any earlier start is over, nothing of them lives.
    fn outlive(&mut self, now_ms: u64) {
        if self.over_ms().is_some_and(|over| now_ms >= over) {
            self.outlived();
        }
    }

    fn outlived(&mut self) {
        self.earlier = None;
        self.executor.settle();
    }

    fn over_ms(&self) -> Option<u64> {
        self.earlier.as_ref()?.over_ms(self.kill_budget_ms)
    }

    fn earlier_may_have(&self, id: ReplicaId) -> bool {
        let exclusive = self.desired.replicas.get(&id).is_some_and(|want| want.spec.constraints.exclusive);
        exclusive && self.earlier.as_ref().is_some_and(|earlier| earlier.may_have(id))
    }

    /// Stops the replicas that must never run twice, once the group may soon give up this
    /// node. Says whether one of them lives on here.
    fn stop_exclusive(&self, actual: &Actual, now_ms: u64, until_ms: u64) -> bool {
        let wanted = |id| self.desired.replicas.get(id).is_some_and(|want| want.spec.constraints.exclusive);
        let known = self.executor.exclusive();
        let mut held = false;
        for (id, here) in &actual.replicas {
            for (generation, condition) in here {
                let exclusive = known.contains(&(*id, *generation)) || wanted(id);
                match condition {
                    Condition::Gone { .. } => {}
                    _ if !exclusive => {}
                    _ if now_ms < until_ms => held = true,
                    // One that stops already may have a grace that is longer than the lease.
                    condition => {
                        if *condition == Condition::Alive {
                            tracing::warn!(job = %id.job, replica = id.replica, "no lease: an exclusive replica is stopped");
                        }
                        self.executor.stop(*id, *generation, Leave::now(Reason::NodeFailure));
                    }
                }
            }
        }
        held
    }

    fn report(&self, to: &mut NodeReports, id: ReplicaId, generation: Generation, what: Told, kind: ReportKind) {
        let stands = match self.told.get(&(id, generation)) {
            Some((Told::Stage(told), index)) => what == Told::Stage(*told) && self.known.unwrap_or(0) < *index,
            // The slice should be without it by then; if not, it did not count.
            Some((Told::Ended, index)) => what == Told::Ended && self.known.unwrap_or(0) < *index,
            None => false,
        };
        if !stands && to.reports.len() < REPORTS {
            to.reports.push(Report { job: id.job, replica: id.replica, generation, kind });
        }
    }

    /// The group knows, by `index`, that these copies are gone.
    pub fn acknowledge_purged(&mut self, copies: &[(Digest16, u64)], index: u64) {
        self.purged.extend(copies.iter().map(|(copy, _)| (*copy, index)));
    }

    /// The group has committed `reports`, by `index`.
    pub fn acknowledge(&mut self, reports: &[Report], index: u64) {
        for report in reports {
            let id = ReplicaId { job: report.job, replica: report.replica };
            let told = match report.kind {
                ReportKind::Stage(stage) => Told::Stage(stage),
                ReportKind::Ended { .. } => Told::Ended,
            };
            self.told.insert((id, report.generation), (told, index));
        }
    }
}
