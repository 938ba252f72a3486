//! What is wrong with which nodes: for each reason how many of them it rules out for a job, and what they have free in
//! all. One verdict serves a class of equal nodes. It looks at room alone; quotas, budgets and claims are `explain`'s.

use super::{devices, filter};
use crate::capacity::{Class, FreeDevice};
use crate::job::{JobSpec, Runtime};
use crate::mig::{Layout, Shape};
use crate::node::Node;
use crate::reason::{Blocker, Reason};
use crate::resources::{Gpus, WHOLE};
use crate::sharing::{Ask, Sharing};
use crate::state::State;
use std::collections::BTreeMap;

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
    slices: Slices,
    /// Nodes whose GPUs are divided, so that who asks for no slice gets nothing of them.
    divided: u32,
    /// Of those without room, how many have too little of each dimension.
    lacks: [u32; filter::DIMENSIONS.len()],
    /// Replicas that all of them would hold if they were empty.
    most: u64,
}

/// Free parts of divided GPUs that make the slice asked for, on nodes that lack nothing but room.
#[derive(Default)]
struct Slices {
    shape: Option<Shape>,
    parts: u64,
    /// On one GPU.
    most: u32,
}

impl Slices {
    fn count(&mut self, class: &Class, ask: &Ask<'_>, nodes: u32) {
        for (flavor, free) in class.flavor.devices.iter().zip(&class.devices) {
            let Some(shape) = devices::divided(flavor, ask) else { continue };
            let parts = free.slices.free();
            self.shape = Some(shape);
            self.parts += u64::from(parts) * u64::from(nodes);
            self.most = self.most.max(parts);
        }
    }

    /// What is free and of no use, for people.
    fn blocker(&self, spec: &JobSpec) -> Option<Blocker> {
        let (shape, profile) = (self.shape?, spec.resources.mig_profile.as_ref()?);
        let starts = shape.starts().iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        let detail = format!(
            "{} parts of GPUs are free for slices, at most {} on one GPU, but there is no position for {profile}: it takes \
             {} in a row, beginning at part {starts}",
            self.parts,
            self.most,
            shape.size()
        );
        let blocker = Blocker { reason: Reason::FragmentedCapacity, detail, nodes: 0, permanent: false };
        (self.parts >= u64::from(shape.size())).then_some(blocker)
    }
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
        if reasons == [Reason::Resources] {
            census.slices.count(class, &ask, count);
        }
        if class.flavor.devices.iter().any(|device| device.sharing == Sharing::Mig) {
            census.divided += count;
        }
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
                let idle = FreeDevice { milli: WHOLE as u16, memory: flavor.memory, slices: Layout::default() };
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

pub(super) fn capacity_blockers(state: &State, spec: &JobSpec, replicas: u64) -> Vec<Blocker> {
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
                let slices = match census.divided {
                    some @ 1.. if spec.resources.mig_profile.is_none() && spec.resources.gpu != Gpus::None => {
                        format!("; {some} give nothing but slices of their GPUs (MIG), by mig_profile")
                    }
                    _ => String::new(),
                };
                push(*reason, *nodes, never, format!("{of} don't have {}, even when empty; {text}{slices}", ask(spec)));
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
    out.extend(census.slices.blocker(spec));
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
