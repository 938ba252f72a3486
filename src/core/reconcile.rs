//! reconcile: what a node's agent should do now, from what is desired (its own
//! slice of the state) and what is actually there. Runs for ever; any step may be
//! lost and is found again the next time. It does not act.

use crate::consent;
use crate::id::{Digest16, Generation, JobNo, NodeNo, RequestId, TenantId};
use crate::job::{Copy, JobSpec, Movable, Phase, Share, Stage};
use crate::reason::Reason;
use crate::sharing::Part;
use crate::state::State;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Copies that one slice asks to be removed; the next ones follow when these are gone.
pub const MAX_PURGES: usize = 256;

/// One replica of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId {
    pub job: JobNo,
    pub replica: u16,
}

/// What the group wants of one replica on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    pub request: RequestId,
    pub generation: Generation,
    pub spec: Arc<JobSpec>,
    /// Devices by index and by uuid.
    pub shares: Vec<Share>,
    pub uuids: Vec<Arc<str>>,
    /// The part of one that it shares with others.
    pub part: Option<Part>,
    pub host: Arc<str>,
    pub port: Option<u16>,
    /// How far the group thinks it is. An agent whose replica is elsewhere says so
    /// until this agrees: a report that was sent twice may be applied after a newer one.
    pub stage: Option<Stage>,
    /// None: it should run.
    pub stop: Option<Leave>,
}

/// Why a replica should stop, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {
    pub why: Reason,
    /// How long it may save its state first, in milliseconds.
    pub grace_ms: u32,
    /// One of its devices is broken, so what it was asked may never be answered: it is not waited for.
    pub broken: bool,
}

impl Leave {
    /// Without time to save anything.
    pub fn now(why: Reason) -> Self {
        Self { why, grace_ms: 0, broken: false }
    }
}

/// A node's slice of the state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    pub replicas: BTreeMap<ReplicaId, Want>,
    /// Copies of personal data that have to go from this node.
    pub purge: Vec<Purge>,
}

/// A copy that has to go: every file that was fetched for it, and for nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    /// What the report of it says.
    pub copy: Digest16,
    pub placed: u64,
    pub tenant: TenantId,
    /// SHA-256 of the version's manifest.
    pub manifest: [u8; 32],
}

impl Desired {
    /// Copies that may go now: no replica is left here that has them open, or might.
    pub fn purgeable<'a>(&'a self, actual: &'a Actual) -> impl Iterator<Item = &'a Purge> {
        // A launch that is not the wanted one ran another version perhaps, with other files.
        let wanted = |id, generation: &Generation| self.replicas.get(id).is_some_and(|w| w.generation == *generation);
        let settled = actual.replicas.iter().all(|(id, here)| here.keys().all(|generation| wanted(id, generation)));
        let used = |purge: &Purge| {
            let of = |want: &Want| want.spec.tenant == purge.tenant && want.spec.manifest == Some(purge.manifest);
            self.replicas.values().any(of)
        };
        self.purge.iter().filter(move |purge| settled && !used(purge))
    }
}

/// What the agent knows of a replica that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Condition {
    /// Being fetched, started, or up: it exists.
    Alive,
    /// Told to stop, not gone yet.
    Stopping,
    /// It was told to stop, or ended, and something of it survives KILL: the group need not wait for it, and yet what
    /// it used is not free. Never one that must not run twice.
    Stuck { ok: bool, why: Reason },
    /// Gone, and what it used is free again.
    Gone { ok: bool, why: Reason },
}

/// What a replica that is here uses of its node, so that nobody else may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Indexes of devices; None: not known, so it could be any.
    pub devices: Option<Vec<u16>>,
    pub port: Option<u16>,
}

impl Holding {
    pub fn of(want: &Want) -> Self {
        Self { devices: Some(want.shares.iter().map(|share| share.device).collect()), port: want.port }
    }

    /// Whether `want` needs any of it.
    fn is_in_the_way_of(&self, want: &Want) -> bool {
        let taken = |device: u16| self.devices.as_ref().is_none_or(|held| held.contains(&device));
        let port = self.port.is_some() && self.port == want.port;
        port || want.shares.iter().any(|share| taken(share.device))
    }
}

/// What is there, by replica and generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    pub replicas: BTreeMap<ReplicaId, BTreeMap<Generation, Condition>>,
    /// What they hold; who is not listed holds nothing that others could want.
    pub holdings: BTreeMap<(ReplicaId, Generation), Holding>,
}

/// A step for the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Start(ReplicaId, Generation),
    Stop(ReplicaId, Generation, Leave),
    /// Tell the group that it is gone.
    Report(ReplicaId, Generation, bool, Reason),
    /// Nobody asks for it any more: remove what is left of it.
    Forget(ReplicaId, Generation),
}

/// A node's slice, from the state.
pub fn desired(state: &State, node: NodeNo) -> Desired {
    let mut out = Desired::default();
    let Some(row) = state.node(node) else { return out };
    for (job, no, replica) in state.replicas_on(node) {
        let Some((generation, alloc, copy)) = replica.copy_on(node) else { continue };
        let (stage, stop) = match copy {
            Copy::Own(Phase::Held { stage, .. }) => (Some(*stage), None),
            Copy::Own(Phase::Stopping { why, .. }) => (None, Some(*why)),
            Copy::Going(why) => (None, Some(why)),
            Copy::Coming(stage) if job.spec.movable() == Movable::Surge => (Some(stage), None),
            // Its place is held for it; it starts when the copy before it is gone.
            Copy::Own(_) | Copy::Coming(_) => continue,
        };
        let uuid = |share: &Share| row.spec.devices.get(usize::from(share.device)).map(|d| d.uuid.clone());
        let spec = job.spec_of(replica.revision_of(generation));
        let leave = |why| Leave {
            why,
            grace_ms: replica.notice_of(generation).map_or(0, |notice| notice.grace_ms),
            broken: row.any_broken(alloc.shares.iter().map(|share| share.device)),
        };
        let want = Want {
            request: job.request.clone(),
            generation,
            spec: spec.clone(),
            shares: alloc.shares.clone(),
            uuids: alloc.shares.iter().filter_map(uuid).collect(),
            part: Part::of(&spec.resources, alloc, &row.spec),
            host: row.spec.host.clone(),
            port: alloc.port,
            stage,
            stop: stop.map(leave),
        };
        out.replicas.insert(ReplicaId { job: job.no, replica: no }, want);
    }
    let gone = state.copies_on(node).filter(|(_, copy)| !consent::may_keep(state, copy));
    out.purge = gone
        .map(|(key, copy)| Purge {
            copy: key,
            placed: copy.placed,
            tenant: copy.tenant.clone(),
            manifest: copy.manifest,
        })
        .take(MAX_PURGES)
        .collect();
    out
}

/// The steps from `actual` towards `desired`, stops before starts.
pub fn diff(desired: &Desired, actual: &Actual) -> Vec<Action> {
    let mut out = Vec::new();
    for (id, generations) in &actual.replicas {
        let want = desired.replicas.get(id);
        for (generation, condition) in generations {
            let current = want.filter(|w| w.generation == *generation);
            match (condition, current) {
                (Condition::Alive, Some(Want { stop: Some(leave), .. })) => {
                    out.push(Action::Stop(*id, *generation, *leave))
                }
                (Condition::Alive, Some(_)) => {}
                // Not wanted at this generation: an older launch, or a job that is gone.
                (Condition::Alive, None) => out.push(Action::Stop(*id, *generation, Leave::now(Reason::Replaced))),
                // It had time to save its state perhaps, and has none any more.
                (Condition::Stopping, Some(Want { stop: Some(leave @ Leave { grace_ms: 0, .. }), .. })) => {
                    out.push(Action::Stop(*id, *generation, *leave))
                }
                (Condition::Stopping, _) | (Condition::Stuck { .. }, None) => {}
                (Condition::Gone { ok, why } | Condition::Stuck { ok, why }, Some(_)) => {
                    out.push(Action::Report(*id, *generation, *ok, *why));
                }
                (Condition::Gone { .. }, None) => out.push(Action::Forget(*id, *generation)),
            }
        }
    }
    let leftovers = leftovers(desired, actual);
    for (id, want) in &desired.replicas {
        let here = actual.replicas.get(id);
        let known = here.is_some_and(|generations| generations.contains_key(&want.generation));
        // An older generation must be gone first: it may hold the port and the devices. (What a stuck one holds is left
        // over, as another job's would be.)
        let lingers = here.is_some_and(|g| g.values().any(|c| matches!(c, Condition::Alive | Condition::Stopping)));
        match (known, want.stop) {
            (true, _) => {}
            // Never started here, and not wanted any more.
            (false, Some(leave)) => out.push(Action::Report(*id, want.generation, true, leave.why)),
            (false, None) if lingers || leftovers.iter().any(|held| held.is_in_the_way_of(want)) => {}
            (false, None) => out.push(Action::Start(*id, want.generation)),
        }
    }
    out
}

/// What is held by replicas that are still here and that the group no longer counts:
/// it may have given their devices and ports to others already.
fn leftovers<'a>(desired: &Desired, actual: &'a Actual) -> Vec<&'a Holding> {
    let counted = |id: &ReplicaId, generation| desired.replicas.get(id).is_some_and(|w| w.generation == generation);
    let here = |(id, generation): &(ReplicaId, Generation)| {
        let condition = actual.replicas.get(id).and_then(|generations| generations.get(generation));
        matches!(condition, Some(Condition::Alive | Condition::Stopping | Condition::Stuck { .. }))
    };
    let left = actual.holdings.iter().filter(|(key, _)| here(key) && !counted(&key.0, key.1));
    left.map(|(_, holding)| holding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::DeviceFault;
    use crate::fault::Fault;
    use crate::id::NodeName;
    use crate::plan::Intent;
    use crate::resources::Gpus;
    use crate::testing;

    fn one_job() -> (Desired, ReplicaId) {
        let mut state = State::new();
        testing::run(&mut state, testing::register("n1", testing::node_spec(8)));
        testing::run(&mut state, testing::schedule("r1", testing::job_spec("t1", Gpus::Whole(2))));
        (desired(&state, NodeNo(1)), ReplicaId { job: JobNo(1), replica: 0 })
    }

    fn actual(id: ReplicaId, generation: u32, condition: Condition) -> Actual {
        Actual { replicas: [(id, [(Generation(generation), condition)].into())].into(), ..Actual::default() }
    }

    #[test]
    fn a_wanted_replica_is_started_once() {
        let (desired, id) = one_job();
        assert_eq!(desired.replicas[&id].uuids.len(), 2);
        assert_eq!(diff(&desired, &Actual::default()), [Action::Start(id, Generation(1))]);
        assert_eq!(diff(&desired, &actual(id, 1, Condition::Alive)), []);
    }

    #[test]
    fn an_older_generation_goes_before_the_new_one_comes() {
        let (mut desired, id) = one_job();
        desired.replicas.get_mut(&id).unwrap().generation = Generation(2);
        let stop = Action::Stop(id, Generation(1), Leave::now(Reason::Replaced));
        assert_eq!(diff(&desired, &actual(id, 1, Condition::Alive)), [stop]);
        assert_eq!(diff(&desired, &actual(id, 1, Condition::Stopping)), []);
        let gone = Condition::Gone { ok: true, why: Reason::StoppedByUser };
        assert_eq!(
            diff(&desired, &actual(id, 1, gone)),
            [Action::Forget(id, Generation(1)), Action::Start(id, Generation(2))]
        );
    }

    #[test]
    fn devices_and_ports_are_free_before_another_job_gets_them() {
        let (desired, id) = one_job();
        let (want, other) = (&desired.replicas[&id], ReplicaId { job: JobNo(7), replica: 0 });
        let elsewhere = Holding { devices: Some(vec![7]), port: Some(1) };
        let in_the_way = [
            Holding::of(want),
            Holding { port: want.port, ..elsewhere.clone() },
            Holding { devices: Some(vec![want.shares[0].device]), ..elsewhere.clone() },
            Holding { devices: None, ..elsewhere.clone() },
        ];
        let start = Action::Start(id, Generation(1));
        for (holding, starts) in in_the_way.into_iter().map(|h| (h, false)).chain([(elsewhere, true)]) {
            let stuck = Condition::Stuck { ok: true, why: Reason::NodeDrain };
            for condition in [Condition::Alive, Condition::Stopping, stuck] {
                let mut actual = actual(other, 1, condition);
                actual.holdings.insert((other, Generation(1)), holding.clone());
                assert_eq!(diff(&desired, &actual).contains(&start), starts, "{holding:?} {condition:?}");
            }
        }
        // Once it is gone, or while the group itself counts it, it is in nobody's way.
        let gone = Condition::Gone { ok: true, why: Reason::StoppedByUser };
        let mut actual = actual(other, 1, gone);
        actual.holdings.insert((other, Generation(1)), Holding::of(want));
        assert!(diff(&desired, &actual).contains(&start));
    }

    #[test]
    fn nothing_is_purged_while_a_launch_is_here_that_is_not_the_wanted_one() {
        let (mut desired, id) = one_job();
        let tenant = desired.replicas[&id].spec.tenant.clone();
        // Of the version before: the wanted launch has nothing to do with it, but its forerunner may.
        desired.purge = vec![Purge { copy: Digest16([1; 16]), placed: 1, tenant, manifest: [8; 32] }];
        desired.replicas.get_mut(&id).unwrap().generation = Generation(2);
        let purgeable = |actual: &Actual| desired.purgeable(actual).count();
        let gone = Condition::Gone { ok: true, why: Reason::Rollout };
        for condition in [Condition::Alive, Condition::Stopping, gone] {
            assert_eq!(purgeable(&actual(id, 1, condition)), 0, "{condition:?}");
        }
        let mut both = actual(id, 1, Condition::Stopping);
        both.replicas.get_mut(&id).unwrap().insert(Generation(2), Condition::Alive);
        assert_eq!(purgeable(&both), 0);
        assert_eq!(purgeable(&actual(id, 2, Condition::Alive)), 1);
        assert_eq!(purgeable(&Actual::default()), 1);
    }

    #[test]
    fn what_saves_its_state_hears_when_it_has_no_more_time() {
        let (mut desired, id) = one_job();
        let saves = Leave { grace_ms: 20_000, ..Leave::now(Reason::Preempted) };
        let mut told = |leave, condition| {
            desired.replicas.get_mut(&id).unwrap().stop = Some(leave);
            diff(&desired, &actual(id, 1, condition))
        };
        assert_eq!(told(saves, Condition::Alive), [Action::Stop(id, Generation(1), saves)]);
        assert_eq!(told(saves, Condition::Stopping), []);
        let now = Leave::now(Reason::ApprovalRequired);
        assert_eq!(told(now, Condition::Stopping), [Action::Stop(id, Generation(1), now)]);
    }

    #[test]
    fn a_stop_says_whether_a_device_of_it_is_broken() {
        let mut state = State::new();
        let node = testing::node_spec(2);
        let uuid = node.devices[0].uuid.clone();
        testing::run(&mut state, testing::register("n1", node));
        testing::run(&mut state, testing::schedule("r1", testing::job_spec("t1", Gpus::Whole(2))));
        let name = NodeName::new("n1").unwrap();
        for (fault, broken) in [(Fault::Xid(94), false), (Fault::Lost, true)] {
            let faults = vec![DeviceFault { uuid: uuid.clone(), fault, simulated: false }];
            testing::run(&mut state, Intent::Faults { node: name.clone(), incarnation: None, faults });
            let mut stopped = state.clone();
            let request = RequestId::new("r1").unwrap();
            testing::run(&mut stopped, Intent::Stop { request, tenant: None, why: Reason::StoppedByUser });
            let wants = desired(&stopped, NodeNo(1)).replicas;
            let leaves: Vec<_> = wants.values().filter_map(|want| want.stop).collect();
            assert_eq!(leaves, [Leave { broken, ..Leave::now(Reason::StoppedByUser) }], "{fault}");
        }
    }

    #[test]
    fn one_that_survives_kill_is_told_as_ended_and_holds_what_it_has() {
        let (mut desired, id) = one_job();
        let stuck = Condition::Stuck { ok: true, why: Reason::NodeDrain };
        let mut here = actual(id, 1, stuck);
        here.holdings.insert((id, Generation(1)), Holding::of(&desired.replicas[&id]));
        assert_eq!(diff(&desired, &here), [Action::Report(id, Generation(1), true, Reason::NodeDrain)]);
        assert_eq!(diff(&Desired::default(), &here), [], "neither stopped again nor forgotten");
        // Its next launch waits for what it holds, and for nothing else.
        desired.replicas.get_mut(&id).unwrap().generation = Generation(2);
        assert_eq!(diff(&desired, &here), []);
        here.holdings.insert((id, Generation(1)), Holding { devices: Some(vec![7]), port: Some(1) });
        assert_eq!(diff(&desired, &here), [Action::Start(id, Generation(2))]);
    }

    #[test]
    fn what_nobody_wants_is_stopped_and_forgotten() {
        let (_, id) = one_job();
        let stop = Action::Stop(id, Generation(1), Leave::now(Reason::Replaced));
        assert_eq!(diff(&Desired::default(), &actual(id, 1, Condition::Alive)), [stop]);
        let gone = Condition::Gone { ok: false, why: Reason::RuntimeFailed };
        assert_eq!(diff(&Desired::default(), &actual(id, 1, gone)), [Action::Forget(id, Generation(1))]);
    }
}
