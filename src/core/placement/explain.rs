//! Why a job waits: every blocker at once, each with how many nodes it rules
//! out and what would lift it. Uses the same checks as the placer.

use super::preempt::{self, Budgets};
use super::{Limits, devices, filter, place, queue};
use crate::budget::{Over, judge, meter};
use crate::capacity::{Class, FreeDevice};
use crate::claim::{self, Claim};
use crate::disruption;
use crate::id::{NodeNo, TenantNo};
use crate::job::{Job, JobSpec, Next, Phase, Replica, Runtime};
use crate::node::Node;
use crate::quota;
use crate::reason::{Blocker, Reason, Refusal};
use crate::resources::{Gpus, WHOLE};
use crate::sharing::Ask;
use crate::state::State;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Victims and nodes that a reason names.
const NAMED: usize = 8;

/// The blockers of a waiting job, most blocking first. Empty when it could be placed now.
pub fn blockers(state: &State, job: &Job) -> Vec<Blocker> {
    let now = state.meta().now_ms;
    let waiting = job.replicas.iter().filter(|r| r.is_waiting()).count() as u64;
    if job.stopped || waiting == 0 && !job.replicas.iter().any(stops_to_wait) {
        return Vec::new();
    }
    if waiting == 0 {
        let mut out = vec![Blocker { reason: Reason::Draining, detail: STOPS.into(), nodes: 0, permanent: false }];
        put_withheld(state, job, &mut out);
        return out;
    }
    if let Some(claim) = &job.claim {
        return vec![claiming(state, claim)];
    }
    let budget = |prices: &[u128]| judge::blocks(state, job, prices);
    let mut out = blockers_of(state, Some(job.tenant), &job.spec, waiting, budget);
    put_withheld(state, job, &mut out);
    let leaving = job.replicas.iter().filter(|r| r.is_waiting() && r.is_leaving());
    let nodes: Vec<_> =
        leaving.filter_map(|r| Some(state.node(r.other_allocation()?.node)?.name.to_string())).collect();
    if !nodes.is_empty() {
        let detail =
            format!("its former copy is still stopping on {}; it is placed when that is gone", nodes.join(", "));
        out.push(Blocker { reason: Reason::Draining, detail, nodes: 0, permanent: false });
    }
    if job.spec.gang && waiting > 0 && job.replicas.iter().any(stops_to_wait) {
        let detail = "other members of the gang stop where they were; all start together when that is done";
        out.push(Blocker { reason: Reason::Draining, detail: detail.into(), nodes: 0, permanent: false });
    }
    if job.placeable(now).next().is_none()
        && let Some(at) = state.wakes.iter().find(|(_, no)| *no == job.no).map(|(at, _)| *at)
    {
        let seconds = at.saturating_sub(now).div_ceil(1000);
        let detail = format!("a replica failed; its next start is in {seconds} s (nf logs shows why it failed)");
        out.push(Blocker { reason: Reason::Backoff, detail, nodes: 0, permanent: false });
    }
    // A job that nothing else stands in the way of is placed by the next look at the
    // queue, unless that keeps the room for those ahead.
    if out.is_empty() {
        let detail = "the room that is left is kept for jobs that are ahead in the queue".to_owned();
        out.push(Blocker { reason: Reason::Priority, detail, nodes: 0, permanent: false });
    }
    out
}

const STOPS: &str = "it stops where it was, and is placed when that is done";

/// It is stopped to wait for another place, by somebody's word or for want of one.
fn stops_to_wait(replica: &Replica) -> bool {
    matches!(&replica.phase, Phase::Stopping { then: Next::Again, .. }) && replica.moving.is_none()
}

/// Puts what withholds every place from the job first.
pub(crate) fn put_withheld(state: &State, job: &Job, blockers: &mut Vec<Blocker>) {
    if let Some(refusal) = crate::trust::withheld(state, job) {
        put_first(blockers, refusal);
    }
}

/// Puts what is not about nodes before what is.
pub(crate) fn put_first(blockers: &mut Vec<Blocker>, Refusal { reason, detail, .. }: Refusal) {
    blockers.insert(0, Blocker { reason, detail, nodes: 0, permanent: false });
}

/// What would let a waiting job run now, each change in words; empty when nothing is known that would.
pub fn remedy(state: &State, job: &Job) -> Vec<String> {
    let waiting = job.replicas.iter().enumerate().filter(|(_, r)| r.is_waiting()).map(|(i, _)| i as u16);
    let wanted: Vec<u16> = waiting.take(if job.spec.gang { usize::MAX } else { 1 }).collect();
    if job.stopped || job.claim.is_some() || wanted.is_empty() {
        return Vec::new();
    }
    let found = super::remedy::for_job(state, job, &wanted);
    found.unwrap_or_default().iter().map(ToString::to_string).collect()
}

/// Whom a claim waits for, by name.
pub fn claiming(state: &State, claim: &Claim) -> Blocker {
    let (left, names, nodes) = victims(state, claim);
    let at = nodes.iter().take(NAMED).filter_map(|no| Some(state.node(*no)?.name.to_string()));
    let at = at.collect::<Vec<_>>().join(", ");
    let left_ms = claim::due_ms(state, claim).saturating_sub(state.meta().now_ms);
    let saving = match left_ms {
        0 => String::new(),
        ms => format!("; they may save their state for {} s more", ms.div_ceil(1000)),
    };
    let detail = format!("{left} replica(s) give way on {at}: {names}{saving}");
    Blocker { reason: Reason::WaitingForPreemptedJobs, detail, nodes: nodes.len() as u32, permanent: false }
}

/// Who will give way to a job that has to wait a little longer first.
pub fn patient(state: &State, claim: &Claim, left_ms: u64) -> Blocker {
    let (left, names, nodes) = victims(state, claim);
    let detail = format!(
        "may preempt in {} s, when it has waited {} s, unless it finds a place by then: {left} replica(s) would give way: {names}",
        left_ms.div_ceil(1000),
        state.meta().placement.preemption.delay_ms.div_ceil(1000)
    );
    Blocker { reason: Reason::PreemptionDelayNotElapsed, detail, nodes: nodes.len() as u32, permanent: false }
}

/// Log time from which a waiting job may make others give way, where that is still to come and somebody might.
pub fn may_evict_from(state: &State, job: &Job) -> Option<u64> {
    let from = job.waits_since()?.saturating_add(state.meta().placement.preemption.delay_ms);
    let could = job.claim.is_none() && !job.stopped && preempt::may_help(state, job);
    (could && from > state.meta().now_ms).then_some(from)
}

/// What stands between a waiting job and the places of others: its patience, or the budgets of their services. Takes a
/// search, so it is for those who ask about one job.
pub fn rivals(state: &State, job: &Job) -> Option<Blocker> {
    let wanted: Vec<u16> = job.placeable(state.meta().now_ms).collect();
    if job.claim.is_some() || !preempt::may_help(state, job) {
        return None;
    }
    let siblings = super::siblings(&job.replicas, job.spec.constraints.arrangement);
    let limits = Limits { held: claim::nodes(state), siblings, skip_ports: 0 };
    let ask = super::narrowed(state, &job.spec)?;
    match queue::claim_for(state, &ask, &wanted, &limits) {
        Some(claim) => {
            let from = may_evict_from(state, job)?;
            Some(patient(state, &claim, from - state.meta().now_ms))
        }
        None => {
            let wanted = if job.spec.gang { &wanted[..] } else { wanted.get(..1)? };
            let claim = preempt::claim_by(state, &ask, wanted, &limits, Budgets::Ignored)?;
            let spared = |job: &&Arc<Job>| {
                let gone: Vec<u16> = claim.victims.iter().filter(|v| v.job == job.no).map(|v| v.replica).collect();
                !disruption::allows(job, &gone)
            };
            let mut jobs = claim.victims.iter().filter_map(|victim| state.job(victim.job));
            jobs.find(spared).map(|job| disruption::blocker(job))
        }
    }
}

/// How many victims are still there, their names, and the claimed nodes.
fn victims(state: &State, claim: &Claim) -> (usize, String, BTreeSet<NodeNo>) {
    let mut names = Vec::new();
    let mut left = 0;
    for victim in &claim.victims {
        let Some(job) = state.job(victim.job).filter(|_| claim::holds(state, victim)) else { continue };
        left += 1;
        if names.len() < NAMED {
            names.push(format!("{} (priority {}) replica {}", job.request, job.spec.priority, victim.replica));
        }
    }
    let more = if left > names.len() { format!(" and {} more", left - names.len()) } else { String::new() };
    (left, format!("{}{more}", names.join(", ")), claim.nodes().collect())
}

/// The blockers of `replicas` waiting replicas of a job that need not exist yet.
/// `budget` says which limit stands in the way at these prices, or at the lowest there is.
pub fn blockers_of(
    state: &State,
    tenant: Option<TenantNo>,
    spec: &JobSpec,
    replicas: u64,
    budget: impl Fn(&[u128]) -> Option<Over>,
) -> Vec<Blocker> {
    let mut out = quota::blockers(state, tenant, spec, replicas);
    let wanted: Vec<u16> = (0..replicas.min(1024) as u16).collect();
    let placed =
        place(state, spec, &wanted[..wanted.len().min(if spec.gang { usize::MAX } else { 1 })], Limits::default());
    let prices: Vec<u128> = placed.iter().map(|(_, pick)| meter::price(state, &pick.alloc)).collect();
    out.extend(budget(&prices).map(|over| over.blocker()));
    if placed.is_empty() {
        let room = capacity_blockers(state, spec, replicas);
        out.extend(between_types(state, tenant, spec, replicas, room.is_empty()));
        out.extend(room);
    }
    out.sort_by_key(|b| (!b.permanent, b.reason == Reason::NotEnoughForGang));
    out
}

/// Types of GPU of which the tenant may hold no more; where only those have room, also why the others have none.
fn between_types(
    state: &State,
    tenant: Option<TenantNo>,
    spec: &JobSpec,
    replicas: u64,
    has_room: bool,
) -> Vec<Blocker> {
    let mut out = quota::shut_types(state, tenant, spec, replicas);
    if let Some(open) = super::narrowed(state, spec).filter(|_| has_room && !out.is_empty()) {
        let room = capacity_blockers(state, &open, replicas);
        // A type that is shut may be opened.
        out.extend(room.into_iter().map(|blocker| Blocker { permanent: false, ..blocker }));
    }
    out
}

/// Nodes ruled out, per reason, and what they have free in all.
#[derive(Default)]
struct Census {
    nodes: u32,
    out: BTreeMap<Reason, u32>,
    /// Free thousandths of suitable GPUs on nodes that lack nothing but devices.
    free_milli: u64,
    roomy: u32,
    ever: u32,
    /// Of those that could ever hold it, the ones that keep it to its part, if it asks for one.
    enforced: u32,
    constraints_hold: u32,
    /// Of those without room, how many have too little of each dimension.
    lacks: [u32; filter::DIMENSIONS.len()],
    /// Replicas that all of them would hold if they were empty.
    most: u64,
}

fn census(state: &State, spec: &JobSpec) -> Census {
    let ask = Ask::of(state, spec);
    let mut census = Census::default();
    let mut with_faults: BTreeMap<&Class, Vec<&Node>> = BTreeMap::new();
    for node in state.faulty.iter().filter_map(|no| state.node(*no)) {
        let meant = spec.constraints.node.as_ref().is_none_or(|name| *name == node.name);
        if let Some(class) = state.capacity().class(node.no).filter(|_| meant) {
            with_faults.entry(class).or_default().push(node);
        }
    }
    for (class, nodes) in &state.capacity().classes {
        let count = pinned_count(state, spec, class, nodes.len() as u32);
        if count == 0 {
            continue;
        }
        census.nodes += count;
        let reasons = filter::verdict(class, &ask);
        if reasons.is_empty() {
            census.roomy += count;
        }
        if !reasons.contains(&Reason::NoMatchingDevice) {
            census.ever += count;
            census.enforced += if filter::could_ever_hold(&class.flavor, &ask) { count } else { 0 };
        }
        if !reasons.contains(&Reason::BadConstraints) {
            census.constraints_hold += count;
        }
        if filter::may_ever_run(&class.flavor, &ask) {
            census.most = census.most.saturating_add(devices::most(&class.flavor, &ask).saturating_mul(count.into()));
        }
        let alone = reasons == [Reason::Resources];
        for reason in reasons {
            match reason {
                Reason::Resources => {
                    let odd: Vec<&Node> = with_faults.get(&**class).into_iter().flatten().copied().collect();
                    odd.iter().for_each(|node| census.lacks_room(&ask, class, (1, &faulty(node)), alone));
                    census.lacks_room(&ask, class, (count - odd.len() as u32, &[]), alone);
                }
                reason => *census.out.entry(reason).or_default() += count,
            }
        }
    }
    census
}

impl Census {
    /// Counts nodes without room: for want of what others hold, or of devices that are left alone for their faults.
    /// `alone`: nothing else rules them out.
    fn lacks_room(&mut self, ask: &Ask<'_>, class: &Class, (nodes, faulty): (u32, &[usize]), alone: bool) {
        let whole = |class: &Class, empty: bool| {
            let mut class = class.clone();
            for (i, (free, flavor)) in class.devices.iter_mut().zip(&class.flavor.devices).enumerate() {
                let idle = FreeDevice { milli: WHOLE as u16, memory: flavor.memory };
                match faulty.contains(&i) {
                    true if !empty => *free = idle,
                    false if empty => *free = idle,
                    _ => {}
                }
            }
            class
        };
        let by_fault = !faulty.is_empty() && devices::fit(class, ask).is_none();
        // If nothing that ends there will do, nobody should wait for that.
        let never = by_fault && devices::fit(&whole(class, true), ask).is_none();
        if never || by_fault && filter::has_room(&whole(class, false), ask) {
            *self.out.entry(Reason::DeviceFault).or_default() += nodes;
        }
        if never || nodes == 0 {
            return;
        }
        *self.out.entry(Reason::Resources).or_default() += nodes;
        let lacks = filter::lacks(class, ask);
        self.lacks.iter_mut().zip(lacks).for_each(|(count, lacks)| *count += if lacks { nodes } else { 0 });
        if alone && lacks == [true, false, false, false, false] {
            self.free_milli += u64::from(nodes) * suitable_free(class, ask);
        }
    }

    /// Which dimensions the nodes lack, unless it is devices alone.
    fn lacking(&self) -> String {
        if self.lacks[1..].iter().all(|count| *count == 0) {
            return String::new();
        }
        let some = self.lacks.iter().zip(filter::DIMENSIONS).filter(|(count, _)| **count > 0);
        let each: Vec<String> = some.map(|(count, what)| format!("{what} on {count}")).collect();
        format!(" (too little: {})", each.join(", "))
    }
}

/// Devices of a node that nobody is given: faulty, or in quarantine.
fn faulty(node: &Node) -> Vec<usize> {
    (0..node.spec.devices.len()).filter(|i| !node.may_use(*i as u16)).collect()
}

/// Nodes of the class that the job's node constraint leaves.
fn pinned_count(state: &State, spec: &JobSpec, class: &Class, all: u32) -> u32 {
    match &spec.constraints.node {
        None => all,
        Some(name) => {
            let pinned = state.node_named(name).and_then(|node| state.capacity().class(node.no));
            u32::from(pinned.is_some_and(|c| **c == *class))
        }
    }
}

fn suitable_free(class: &Class, ask: &Ask<'_>) -> u64 {
    let both = class.flavor.devices.iter().zip(&class.devices);
    both.filter(|(f, _)| devices::suits(f, ask)).map(|(_, d)| u64::from(d.milli)).sum()
}

fn capacity_blockers(state: &State, spec: &JobSpec, replicas: u64) -> Vec<Blocker> {
    let census = census(state, spec);
    let mut out = Vec::new();
    let mut push = |reason, nodes, permanent, detail: String| out.push(Blocker { reason, detail, nodes, permanent });
    if census.nodes == 0 {
        let detail = match &spec.constraints.node {
            Some(name) => {
                format!("node {name} is not registered; register it (nf node register) or drop the constraint")
            }
            None => "no node is registered; start an agent or register one (nf node register)".to_owned(),
        };
        push(Reason::NoMatchingDevice, 0, true, detail);
        return out;
    }
    for (reason, nodes) in &census.out {
        let of = format!("{nodes} of {} nodes", census.nodes);
        match reason {
            Reason::NoMatchingDevice => {
                let never = census.ever == 0;
                let text = if never {
                    "no node that is registered can ever hold it; ask for less, or add such a node"
                } else {
                    "the others can"
                };
                push(*reason, *nodes, never, format!("{of} don't have {}, even when empty; {text}", ask(spec)));
            }
            Reason::BadConstraints => {
                let never = census.constraints_hold == 0;
                let text =
                    if never { "none meets them: change the constraints or label a node" } else { "the others do" };
                let engine = if spec.runtime == Runtime::Docker { ", a container engine: see nf doctor" } else { "" };
                push(
                    *reason,
                    *nodes,
                    never,
                    format!("{of} don't meet the constraints (region, zone, rack, labels, cost{engine}); {text}"),
                );
            }
            Reason::FractionNotEnforced => push(*reason, *nodes, census.enforced == 0, not_enforced(spec, &of)),
            Reason::NodeDown => push(*reason, *nodes, false, format!("{of} are not Ready; see nf get nodes")),
            Reason::NodeCordoned => {
                push(*reason, *nodes, false, format!("{of} are cordoned; nf node uncordon lifts it"))
            }
            Reason::DeviceFault => {
                let text = "devices there are faulty or in quarantine (nf describe node says why; nf node heal takes one back)";
                push(*reason, *nodes, false, format!("{of} would have {}, but {text}", ask(spec)));
            }
            _ => {
                let text = format!("{of} have no room for {} now{}", ask(spec), census.lacking());
                push(*reason, *nodes, false, format!("{text}; runs when something there ends"));
            }
        }
    }
    let total = census.free_milli;
    if census.roomy == 0 && spec.resources.gpu.milli() > 0 && total >= spec.resources.gpu.milli() {
        let detail = format!(
            "{}.{:03} suitable GPUs are free in all, but no single node has {}",
            total / 1000,
            total % 1000,
            ask(spec)
        );
        push(Reason::FragmentedCapacity, 0, false, detail);
    }
    if spec.gang && census.ever > 0 && census.constraints_hold > 0 && census.most < replicas {
        let detail = format!(
            "all nodes together, when they are empty, hold {} of its {replicas} replicas; add nodes, or ask for fewer",
            census.most
        );
        push(Reason::NotEnoughForGang, 0, true, detail);
    } else if spec.gang && census.roomy > 0 {
        let detail = format!("{} nodes have room for a replica, not for all {replicas} at once", census.roomy);
        push(Reason::NotEnoughForGang, 0, false, detail);
    }
    out
}

/// Why a part of what is there is not given, and what would let it be.
fn not_enforced(spec: &JobSpec, of: &str) -> String {
    format!(
        "{of} could give {} only where nothing enforces it; use GPUs with MPS, a version that limits itself or a MIG \
         slice, ask for a whole GPU, or let the tenant accept it (nf quota set {} --soft-sharing)",
        ask(spec),
        spec.tenant
    )
}

/// The ask of one replica, in words.
fn ask(spec: &JobSpec) -> String {
    let r = &spec.resources;
    let mut parts = Vec::new();
    let mig = r.mig_profile.iter().map(|profile| format!(" {profile}")).collect::<String>();
    let types = match r.device_types.as_slice() {
        [] => "GPU".to_owned(),
        some => some.iter().map(|t| t.as_str()).collect::<Vec<_>>().join("|"),
    };
    let types = types + &mig;
    match r.gpu {
        Gpus::None => {}
        Gpus::Whole(n) => parts.push(format!("{n} × {types}")),
        Gpus::Milli(m) => parts.push(format!("0.{m:03} {types}")),
    }
    if r.gpu_memory > 0 {
        parts.push(format!("{} MB of device memory", r.gpu_memory / 1_000_000));
    }
    if r.tpu > 0 {
        parts.push(format!("{} TPU", r.tpu));
    }
    if r.cpu_milli > 0 {
        parts.push(format!("{}.{:03} CPU", r.cpu_milli / 1000, r.cpu_milli % 1000));
    }
    if r.memory > 0 {
        parts.push(format!("{} MB of memory", r.memory / 1_000_000));
    }
    if r.disk > 0 {
        parts.push(format!("{} MB of disk", r.disk / 1_000_000));
    }
    if spec.constraints.same_island {
        parts.push("one NVLink island".to_owned());
    }
    parts.join(", ")
}
