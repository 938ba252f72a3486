//! What is wrong with which nodes: for each reason how many of them it rules out for a job, and what they have free in
//! all. One verdict serves a class of equal nodes. It looks at room alone; quotas, budgets and claims are `explain`'s.

use super::{devices, filter};
use crate::capacity::Class;
use crate::job::{JobSpec, Runtime};
use crate::mig::Shape;
use crate::reason::{Blocker, Reason};
use crate::resources::Gpus;
use crate::sharing::{Ask, Sharing};
use crate::state::State;
use std::collections::BTreeMap;

/// Nodes ruled out, per reason, and what they have free in all.
#[derive(Default)]
struct Census {
    nodes: u32,
    out: BTreeMap<Reason, u32>,
    /// Free thousandths of suitable GPUs on nodes that lack nothing but room.
    free_milli: u64,
    roomy: u32,
    ever: u32,
    /// Of those that could ever hold it, the ones that keep it to its part, if it asks for one.
    enforced: u32,
    constraints_hold: u32,
    slices: Slices,
    /// Nodes whose GPUs are divided, so that who asks for no slice gets nothing of them.
    divided: u32,
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
    for (class, nodes) in &state.capacity().classes {
        let count = pinned_count(state, spec, class, nodes.len() as u32);
        if count == 0 {
            continue;
        }
        census.nodes += count;
        let reasons = filter::verdict(class, &ask);
        if reasons == [Reason::Resources] {
            census.free_milli += u64::from(count) * suitable_free(class, &ask);
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
        for reason in reasons {
            *census.out.entry(reason).or_default() += count;
        }
    }
    census
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
            _ => push(
                *reason,
                *nodes,
                false,
                format!("{of} have no room for {} now; runs when something there ends", ask(spec)),
            ),
        }
    }
    let total = census.free_milli;
    if spec.resources.gpu.milli() > 0 && total >= spec.resources.gpu.milli() {
        let detail = format!(
            "{}.{:03} suitable GPUs are free in all, but no single node has {}",
            total / 1000,
            total % 1000,
            ask(spec)
        );
        push(Reason::FragmentedCapacity, 0, false, detail);
    }
    if spec.gang && census.roomy > 0 {
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
