//! Moves: which replicas have to leave where they are, where each goes, and what stands
//! in its way. A replacement comes up first wherever that makes sense, so the replica
//! never misses a request; where there is no room for one nothing is stopped, unless
//! the operator said so. It reads the state; apply judges what it proposes. See ADR 12.

use crate::budget::{Rates, judge, meter};
use crate::claim;
use crate::command::Command;
use crate::disruption::{self, Notice};
use crate::fault::Quarantine;
use crate::id::{JobNo, NodeName, NodeNo, RequestId, Revision, TenantId};
use crate::job::{Copy, Job, JobSpec, Movable, Move, Phase, Replica};
use crate::node::{Cordon, DrainState, Node};
use crate::placement::{self, Limits, Pick, explain, filter, place, place_one};
use crate::quota;
use crate::reason::{Blocker, Reason};
use crate::resources::Resources;
use crate::sharing::Ask;
use crate::state::State;
use crate::trust;
use std::collections::BTreeMap;

/// Replicas of one node that an outlook explains; the others are counted.
pub const EXPLAINED: usize = 32;

/// What to do about a replica that has to leave.
enum Step {
    /// A replacement there.
    Replace(Pick),
    /// It stops, and starts there, on the same node.
    Beside(Pick),
    /// It stops without one.
    Evict,
    /// It is on its way: there is a replacement, or it stops already.
    UnderWay,
    /// Nothing can be done for it now.
    Stay,
    /// Its job has as many replicas missing as it lets be missing.
    Spared,
}

/// Replicas that the commands of one pass take from their jobs.
type Taken = BTreeMap<JobNo, Vec<u16>>;

/// One pass: the next steps of everything that has to leave, at most `limit` replicas,
/// how far each drain has come, and devices whose time in quarantine is over.
pub fn pass(state: &State, limit: usize) -> Vec<Command> {
    let concerned: Vec<_> = state.nodes().values().filter(|node| is_concerned(node)).cloned().collect();
    if concerned.is_empty() {
        return Vec::new();
    }
    let mut scratch = state.speculative();
    let mut taken = Taken::new();
    let mut out = Vec::new();
    for node in &concerned {
        let over = |q: &Quarantine| q.ends_ms().is_some_and(|at| at <= state.meta().now_ms);
        let healed = node.quarantine.iter().filter(|(_, q)| over(q));
        out.extend(healed.map(|(uuid, _)| Command::Heal { node: node.no, uuid: uuid.clone(), by: None }));
        // What is healed in this pass is judged in the next one.
        let mut sound = (**node).clone();
        sound.quarantine.retain(|_, q| !over(q));
        let moves = moves_from(state, &mut scratch, &sound, limit, (&mut out, &mut taken));
        if let (true, Some(to)) = (node.is_draining(), moves)
            && node.drain != to
        {
            out.push(Command::SetDrain { node: node.no, to });
        }
    }
    out
}

/// The next steps for one node; how far its drain has come, were it drained.
fn moves_from(
    state: &State,
    scratch: &mut State,
    node: &Node,
    limit: usize,
    (out, taken): (&mut Vec<Command>, &mut Taken),
) -> Option<DrainState> {
    let (mut held, mut moving) = (0u32, 0u32);
    for (job, no, replica) in state.replicas_on(node.no) {
        held += 1;
        if out.len() >= limit {
            // The next pass goes on; until then it is not said to be blocked.
            moving += 1;
            continue;
        }
        let Some(cause) = cause(state, node, job, replica) else { continue };
        match step(scratch, node, (job, no), cause, taken) {
            Step::Replace(pick) => {
                scratch.book(&job.spec, no, &pick.alloc);
                let copy = Rates::copy(&job.spec, meter::price(scratch, &pick.alloc));
                scratch.meter_job(job.tenant, &Rates::default(), &copy);
                let to = pick.for_replica(no);
                out.push(Command::Move { job: job.no, from: replica.generation, to, why: cause.reason() });
            }
            Step::Beside(pick) => {
                scratch.book(&job.spec, no, &pick.alloc);
                let why = cause.reason();
                out.push(Command::Evict { job: job.no, replica: no, from: replica.generation, why });
            }
            Step::Evict => {
                let why = cause.reason();
                out.push(Command::Evict { job: job.no, replica: no, from: replica.generation, why });
            }
            Step::UnderWay => {}
            Step::Stay | Step::Spared => continue,
        }
        moving += 1;
    }
    Some(match (held, moving) {
        (0, _) => DrainState::Drained,
        (_, 0) => DrainState::Blocked,
        _ => DrainState::Draining,
    })
}

fn is_concerned(node: &Node) -> bool {
    node.is_draining() || !node.quarantine.is_empty()
}

/// Whether a pass could find something to do.
pub fn wanted(state: &State) -> bool {
    let open = |node: &Node| node.is_draining() && node.drain != DrainState::Drained;
    state.nodes().values().any(|node| open(node) || !node.quarantine.is_empty())
}

/// The next deadline of a drain that has not ended.
pub fn next_deadline_ms(state: &State) -> Option<u64> {
    let open = state.nodes().values().filter(|node| node.drain != DrainState::Drained);
    open.filter_map(|node| node.cordon.as_ref()?.deadline_ms()).min()
}

/// Why a replica has to leave, and how soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Its node is drained; `now`: nothing is waited for any more.
    Drain { now: bool, force: bool },
    /// A device of it is in quarantine; `serves`: it can go on until its replacement is Ready.
    Fault { serves: bool },
}

impl Cause {
    fn reason(self) -> Reason {
        match self {
            Cause::Drain { .. } => Reason::NodeDrain,
            Cause::Fault { .. } => Reason::DeviceFault,
        }
    }
}

/// A fault that stops it goes before a drain, and a drain before a fault that does not. A program that may save its
/// state first is told so much earlier that it is gone at the deadline.
fn cause(state: &State, node: &Node, job: &Job, replica: &Replica) -> Option<Cause> {
    let now_ms = state.meta().now_ms;
    let notice =
        disruption::notice(&job.spec, &replica.phase, Reason::NodeDrain, &state.meta().placement.preemption, now_ms);
    let now_ms = notice.map_or(now_ms, Notice::until_ms);
    let shares = replica.copy_on(node.no).map(|(_, alloc, _)| alloc.shares.as_slice()).unwrap_or_default();
    let mut faults = shares.iter().filter_map(|share| node.quarantine_of(share.device)).map(Quarantine::serves);
    let fault = faults.next().map(|first| faults.fold(first, |all, serves| all && serves));
    let cordon = node.cordon.as_ref().and_then(|cordon| Some((cordon, cordon.drain?)));
    match (fault, cordon) {
        (Some(false), _) => Some(Cause::Fault { serves: false }),
        (_, Some((cordon, drain))) => {
            let now = cordon.deadline_ms().is_some_and(|deadline| deadline <= now_ms);
            Some(Cause::Drain { now, force: drain.force })
        }
        (Some(true), None) => Some(Cause::Fault { serves: true }),
        (None, None) => None,
    }
}

/// The next step for one replica of the job, beside those that are `taken`.
fn step(state: &State, node: &Node, (job, no): (&Job, u16), cause: Cause, taken: &mut Taken) -> Step {
    let step = next(state, node, job, no, cause);
    let stops = match step {
        Step::Replace(_) => job.spec.movable() == Movable::Swap,
        Step::Evict | Step::Beside(_) => true,
        Step::UnderWay | Step::Stay | Step::Spared => false,
    };
    if !stops || !disruption::is_voluntary(cause.reason()) {
        return step;
    }
    let gone = taken.entry(job.no).or_default();
    gone.push(no);
    if disruption::allows(job, gone) {
        return step;
    }
    gone.pop();
    Step::Spared
}

fn next(state: &State, node: &Node, job: &Job, no: u16, cause: Cause) -> Step {
    let Some(replica) = job.replicas.get(usize::from(no)) else { return Step::UnderWay };
    let Some((_, _, Copy::Own(Phase::Held { .. }))) = replica.copy_on(node.no) else { return Step::UnderWay };
    // Files that wait on a node are nothing to wait for.
    let kept_for_nobody = job.spec.is_prefetch();
    if kept_for_nobody || matches!(cause, Cause::Drain { now: true, .. } | Cause::Fault { serves: false }) {
        return Step::Evict;
    }
    match &replica.moving {
        Some(Move::Coming { .. } | Move::Going { .. }) => return Step::UnderWay,
        Some(Move::Later { until_ms, .. }) if *until_ms > state.meta().now_ms => return Step::UnderWay,
        _ => {}
    }
    match (place_for(state, vec![node.no], job, no, replica.revision), cause) {
        (Some(pick), _) => Step::Replace(pick),
        (None, Cause::Drain { force: true, .. }) => Step::Evict,
        // Two copies on one node are one too many: it stops, and starts on a sound device there.
        (None, Cause::Fault { .. }) => room_beside(state, node.no, job, no).map_or(Step::Stay, Step::Beside),
        (None, _) => Step::Stay,
    }
}

/// Another place for the replica on the node itself. Only while nobody else could take it: no
/// other waits for such a place, or is about to.
fn room_beside(state: &State, node: NodeNo, job: &Job, no: u16) -> Option<Pick> {
    let stops =
        |(_, _, r): (_, _, &Replica)| matches!(r.copy_on(node), Some((_, _, Copy::Own(Phase::Stopping { .. }))));
    if job.spec.movable() == Movable::Never
        || trust::withheld(state, job).is_some()
        || is_awaited(state, node)
        || state.replicas_on(node).any(stops)
    {
        return None;
    }
    place_one(state, job.spec_for(no), &Limits::default()).filter(|pick| pick.alloc.node == node)
}

/// Whether somebody waits who could take what becomes free on that node. Who is bound to another node can't, nor who needs
/// other hardware, and who asks for nothing but files takes nothing away.
fn is_awaited(state: &State, node: NodeNo) -> bool {
    let (Some(class), Some(row)) = (state.capacity().class(node), state.node(node)) else { return false };
    let could = |spec: &JobSpec| {
        let bound = spec.constraints.node.as_ref();
        spec.resources != Resources::default()
            && bound.is_none_or(|name| *name == row.name)
            && filter::may_ever_run(&class.flavor, &Ask::of(state, spec))
    };
    let waits = |job: &Job| {
        let replicas = job.replicas.iter().enumerate().filter(|(_, replica)| replica.is_waiting());
        job.by_version(replicas.map(|(no, _)| no as u16)).into_iter().any(|(spec, _)| could(spec))
    };
    state.waiting.iter().any(|(.., no)| state.job(*no).is_some_and(|job| waits(job)))
}

/// A place for a second copy, which runs `to`, on none of the nodes `held`, inside the tenant's quota.
pub(crate) fn place_for(state: &State, mut held: Vec<NodeNo>, job: &Job, no: u16, to: Revision) -> Option<Pick> {
    let lets_in = |replica: &Replica| trust::judge_change(state, job, replica.revision, to).is_ok();
    let may = job.spec.movable() != Movable::Never && job.replicas.get(usize::from(no)).is_some_and(lets_in);
    if !may || !quota::allows(state, Some(job.tenant), &job.spec.resources, 1) {
        return None;
    }
    let others = job.replicas.iter().enumerate().filter(|(i, _)| *i != usize::from(no));
    let others: Vec<Replica> = others.map(|(_, replica)| replica.clone()).collect();
    let siblings = placement::siblings(&others, &job.spec.constraints);
    held.extend(claim::nodes(state));
    // A node may be both left and claimed; it is one node less all the same.
    held.sort_unstable();
    held.dedup();
    // Somebody else's program was on the port that would be chosen again.
    let skip_ports = match job.replicas.get(usize::from(no)).and_then(|replica| replica.moving.as_ref()) {
        Some(Move::Later { tries, why: Reason::PortTaken, .. }) => *tries,
        _ => 0,
    };
    let limits = Limits { held, siblings, skip_ports, ..Limits::default() };
    let (_, pick) = place(state, job.spec_of(to), &[no], limits).pop()?;
    judge::check_copy(state, job, no, &pick.alloc).is_ok().then_some(pick)
}

/// What a drain would do, or is doing, about one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    pub tenant: TenantId,
    pub request: RequestId,
    pub replica: u16,
    /// Where its replacement is, or would be.
    pub to: Option<NodeName>,
    /// It is stopped before there is a replacement.
    pub stops_first: bool,
    /// Already begun.
    pub under_way: bool,
    /// Why it stays where it is.
    pub blockers: Vec<Blocker>,
    /// How long its program may save its state before it is stopped, in milliseconds.
    pub grace_ms: u32,
    /// Log time at which that is over, once it was told.
    pub saves_until_ms: Option<u64>,
}

/// What becomes of each replica that has to leave the node, at most [`EXPLAINED`].
pub fn outlook(state: &State, node: NodeNo) -> Vec<Outlook> {
    let Some(row) = state.node(node).cloned() else { return Vec::new() };
    let mut scratch = state.speculative();
    let mut taken = Taken::new();
    let mut out = Vec::new();
    for (job, no, replica) in state.replicas_on(node).take(EXPLAINED) {
        let name = |no| scratch.node(no).map(|node| node.name.clone());
        let swap = job.spec.movable() == Movable::Swap;
        let told = replica.copy_on(node).and_then(|(generation, ..)| replica.notice_of(generation));
        let blank = Outlook {
            tenant: job.spec.tenant.clone(),
            request: job.request.clone(),
            replica: no,
            to: None,
            stops_first: swap,
            under_way: false,
            blockers: Vec::new(),
            grace_ms: disruption::grace_ms(&job.spec, &state.meta().placement.preemption),
            saves_until_ms: told.map(Notice::until_ms),
        };
        let Some(cause) = cause(state, &row, job, replica) else { continue };
        let look = match step(&scratch, &row, (job, no), cause, &mut taken) {
            Step::Replace(pick) => {
                let to = name(pick.alloc.node);
                scratch.book(&job.spec, no, &pick.alloc);
                Outlook { to, ..blank }
            }
            Step::Beside(pick) => {
                let to = name(pick.alloc.node);
                scratch.book(&job.spec, no, &pick.alloc);
                Outlook { to, stops_first: true, ..blank }
            }
            Step::Evict => Outlook { stops_first: true, ..blank },
            Step::UnderWay => {
                let elsewhere = replica.allocations().map(|alloc| alloc.node).find(|no| *no != node);
                Outlook { to: elsewhere.and_then(name), under_way: true, ..blank }
            }
            Step::Stay => Outlook { stops_first: false, blockers: blockers(&scratch, job), ..blank },
            Step::Spared => {
                Outlook { stops_first: false, blockers: vec![disruption::blocker(job, &job.spec.tenant)], ..blank }
            }
        };
        out.push(look);
    }
    out
}

/// The state as it would be with that cordon on the node; None when there is no such node.
pub fn with_cordon(state: &State, node: &NodeName, cordon: Cordon) -> Option<State> {
    let node = state.node_named(node)?.clone();
    let cordon = Cordon { at_ms: state.meta().now_ms, ..cordon };
    let mut scratch = state.speculative();
    scratch.put_node(Node { cordon: Some(cordon), drain: DrainState::Draining, ..(*node).clone() });
    Some(scratch)
}

fn blockers(state: &State, job: &Job) -> Vec<Blocker> {
    if job.spec.movable() == Movable::Never {
        let detail = "its restart policy forbids a second start, so it stays until it ends; a deadline, or --force, \
                      stops it for good";
        return vec![Blocker { reason: Reason::BadConstraints, detail: detail.into(), nodes: 0, permanent: true }];
    }
    let budget = |prices: &[u128]| judge::blocks_copy(state, job, prices);
    let siblings = placement::siblings(&job.replicas, &job.spec.constraints);
    let mut out = explain::blockers_of(state, Some(job.tenant), (&job.spec, siblings), 1, budget);
    explain::put_withheld(state, job, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::DeviceFault;
    use crate::fault::Fault;
    use crate::id::DeviceType;
    use crate::job::Runtime;
    use crate::plan::Intent;
    use crate::resources::Gpus;
    use crate::testing::{job_spec, node_spec, register, run, schedule};

    #[test]
    fn a_node_that_is_held_twice_is_one_node_less() {
        let mut state = State::new();
        run(&mut state, register("n1", node_spec(8)));
        run(&mut state, schedule("r1", job_spec("t1", Gpus::Whole(1))));
        let job = state.job_of(&RequestId::new("r1").unwrap()).unwrap().clone();
        let revision = job.replicas[0].revision;
        // Found by seed 20169: it overflowed where the node was all of its class.
        assert!(place_for(&state, vec![NodeNo(1), NodeNo(1)], &job, 0, revision).is_none());
        assert!(place_for(&state, Vec::new(), &job, 0, revision).is_some());
    }

    /// Two GPUs of which one wears out under a job, beside a cordoned node.
    fn worn() -> State {
        let mut state = State::new();
        run(&mut state, register("n1", node_spec(2)));
        let mut spec = job_spec("t1", Gpus::Whole(1));
        spec.resources.cpu_milli = 1_000;
        run(&mut state, schedule("r1", spec));
        run(&mut state, register("n2", node_spec(1)));
        let cordon = Cordon { by: "ops".into(), reason: "fans".into(), at_ms: 0, drain: None };
        run(&mut state, Intent::Cordon { node: name("n2"), cordon: Some(cordon) });
        let node = state.node(NodeNo(1)).unwrap();
        let job = state.job_of(&RequestId::new("r1").unwrap()).unwrap();
        let held = job.replicas[0].allocation().unwrap().shares[0].device;
        let uuid = node.spec.devices[usize::from(held)].uuid.clone();
        let faults = vec![DeviceFault { uuid, fault: Fault::Xid(94), simulated: true }];
        run(&mut state, Intent::Faults { node: name("n1"), incarnation: None, faults });
        state
    }

    fn name(node: &str) -> NodeName {
        NodeName::new(node).unwrap()
    }

    fn starts_on_the_sound_one(mut state: State) -> bool {
        assert!(state.job_of(&RequestId::new("waits").unwrap()).is_none_or(|job| job.replicas[0].is_waiting()));
        run(&mut state, Intent::Moves);
        let job = state.job_of(&RequestId::new("r1").unwrap()).unwrap();
        matches!(job.replicas[0].phase, Phase::Stopping { .. })
    }

    #[test]
    fn only_who_could_take_the_room_beside_keeps_a_replica_on_its_worn_device() {
        assert!(starts_on_the_sound_one(worn()), "nobody waits");
        let beside = |change: &dyn Fn(&mut JobSpec)| {
            let (mut state, mut spec) = (worn(), job_spec("t2", Gpus::Whole(2)));
            change(&mut spec);
            run(&mut state, schedule("waits", spec));
            starts_on_the_sound_one(state)
        };
        assert!(!beside(&|_| {}), "it waits for both");
        assert!(!beside(&|spec| spec.constraints.node = Some(name("n1"))));
        assert!(
            !beside(&|spec| {
                (spec.resources.gpu, spec.resources.cpu_milli) = (Gpus::None, node_spec(2).cpu_milli);
            }),
            "what it has is more than a device"
        );
        assert!(beside(&|spec| spec.constraints.node = Some(name("n2"))), "it waits for another node");
        assert!(beside(&|spec| spec.resources.device_types = vec![DeviceType::new("H200").unwrap()]));
        assert!(
            beside(&|spec| {
                (spec.runtime, spec.resources, spec.manifest) = (Runtime::Prefetch, Default::default(), Some([7; 32]));
                spec.constraints.node = Some(name("n2"));
            }),
            "files for a node that takes no work"
        );
    }
}
