//! Commands about nodes.

use super::{job, moving};
use crate::command::{Answer, DeviceFault};
use crate::event::EventKind;
use crate::fault::{Quarantine, Rule, rule};
use crate::id::{Incarnation, NodeName, NodeNo};
use crate::job::Share;
use crate::node::{Cordon, Device, DrainState, Node, NodeKind, NodeSpec, NodeState};
use crate::reason::{Reason, Refusal};
use crate::resources::MAX_DEVICES;
use crate::sharing::{Kept, Sharing};
use crate::state::State;
use std::sync::Arc;

pub(super) fn register(
    state: &mut State,
    name: &NodeName,
    kind: NodeKind,
    incarnation: Incarnation,
    spec: &Arc<NodeSpec>,
) -> Result<Answer, Refusal> {
    let Some(known) = state.node_named(name).cloned() else {
        let no = NodeNo(state.meta().next_node);
        state.change_meta(|meta| meta.next_node += 1);
        let since_ms = state.meta().now_ms;
        let (name, spec) = (name.clone(), spec.clone());
        state.emit(EventKind::Node { node: name.clone(), from: None, to: NodeState::Ready });
        state.put_node(Node {
            no,
            name,
            kind,
            incarnation,
            spec,
            state: NodeState::Ready,
            cordon: None,
            drain: DrainState::None,
            quarantine: Default::default(),
            since_ms,
        });
        return Ok(Answer::Node { no, new: true });
    };
    if incarnation < known.incarnation {
        let detail =
            format!("node {name} has started again since (incarnation {} < {})", incarnation.0, known.incarnation.0);
        return Err(Refusal::field(Reason::Conflict, "incarnation", detail));
    }
    keeps_what_is_held(state, &known, spec)?;
    let spec = &as_held(state, &known, spec);
    let (no, from) = (known.no, known.state);
    let changed = *known.spec != **spec || known.incarnation != incarnation || known.kind != kind;
    let to = if from == NodeState::Maintenance { from } else { NodeState::Ready };
    if changed || from != to {
        let since_ms = if from == to { known.since_ms } else { state.meta().now_ms };
        // One that is there no more may come back as broken as it went: its quarantine stays, within bounds.
        let mut quarantine = known.quarantine.clone();
        let there = |uuid: &Arc<str>| spec.devices.iter().any(|device| device.uuid == *uuid);
        let mut absent = quarantine.keys().filter(|uuid| !there(uuid)).count();
        quarantine.retain(|uuid, _| {
            let keep = there(uuid) || absent <= usize::from(MAX_DEVICES);
            absent -= usize::from(!keep);
            keep
        });
        let spec = spec.clone();
        state.put_node(Node { kind, incarnation, spec, state: to, since_ms, quarantine, ..(*known).clone() });
    }
    if from != to {
        state.emit(EventKind::Node { node: name.clone(), from: Some(from), to });
    }
    Ok(Answer::Node { no, new: false })
}

/// Devices are held by index: a node may not change or lose one that is in use,
/// nor come back with less room or other ports than its replicas hold. (A node
/// that does is refused, goes Down for want of beats, and may then come back.)
fn keeps_what_is_held(state: &State, known: &Node, spec: &NodeSpec) -> Result<(), Refusal> {
    if let Some(used) = state.ledger().node(known.no) {
        let port_lost = |port: &u16| spec.ports.is_none_or(|range| !(range.first..=range.last).contains(port));
        let lost = [
            ("cpu", used.cpu_milli > spec.cpu_milli),
            ("memory", used.memory > spec.memory),
            ("disk", used.disk > spec.disk),
            ("ports", used.ports.iter().any(port_lost)),
        ];
        if let Some((field, _)) = lost.iter().find(|(_, lost)| *lost) {
            let detail =
                format!("replicas on node {} hold more {field} than it would have; drain it first", known.name);
            return Err(Refusal::field(Reason::Conflict, *field, detail));
        }
    }
    for (_, _, replica) in state.replicas_on(known.no) {
        let shares = replica.copy_on(known.no).map(|(_, alloc, _)| alloc.shares.as_slice()).unwrap_or_default();
        for share in shares {
            let (was, is) =
                (known.spec.devices.get(usize::from(share.device)), spec.devices.get(usize::from(share.device)));
            let same = was.zip(is).is_some_and(|(was, is)| {
                (&was.uuid, was.memory, was.kind, &was.device_type) == (&is.uuid, is.memory, is.kind, &is.device_type)
            });
            if !same {
                let detail = format!(
                    "device {} of node {} is in use and would change; drain the node first",
                    share.device, known.name
                );
                return Err(Refusal::field(Reason::Conflict, "devices", detail));
            }
            // The driver divides no device that is in use, and gives none of which slices are.
            let divided = is.is_some_and(|is| is.sharing == Sharing::Mig) != matches!(share.kept, Kept::Mig(_));
            if divided {
                let detail = format!(
                    "device {} of node {} is in use and would be divided into slices, or no more; drain the node first",
                    share.device, known.name
                );
                return Err(Refusal::field(Reason::Conflict, "devices", detail));
            }
            // What enforces a part that is held goes on doing so.
            let kept = share.kept.by_device().is_none_or(|by| is.is_some_and(|is| is.sharing == by));
            if !kept {
                let detail = format!(
                    "device {} of node {} is in use in parts, which nothing would enforce any more; drain the node first",
                    share.device, known.name
                );
                return Err(Refusal::field(Reason::Conflict, "devices", detail));
            }
        }
    }
    Ok(())
}

/// What begins to keep those who share a device to their parts does not do so with those who are there already. Until
/// the node registers without them, it counts as enforcing nothing.
fn as_held(state: &State, known: &Node, spec: &Arc<NodeSpec>) -> Arc<NodeSpec> {
    let unlimited = |share: &&Share| matches!(share.kept, Kept::Runtime | Kept::Accepted);
    let mut spec = spec.clone();
    for (_, _, replica) in state.replicas_on(known.no) {
        let Some((_, alloc, _)) = replica.copy_on(known.no) else { continue };
        for share in alloc.shares.iter().filter(unlimited) {
            let enforces = |device: &Device| device.sharing != Sharing::None;
            if spec.devices.get(usize::from(share.device)).is_some_and(enforces) {
                Arc::make_mut(&mut spec).devices[usize::from(share.device)].sharing = Sharing::None;
            }
        }
    }
    spec
}

pub(super) fn set_state(
    state: &mut State,
    no: NodeNo,
    incarnation: Incarnation,
    to: NodeState,
) -> Result<Answer, Refusal> {
    let node = state.node(no).ok_or_else(|| Refusal::new(Reason::NotFound, format!("no node {no}")))?.clone();
    // A verdict on an earlier start says nothing about this one.
    if node.incarnation != incarnation || node.state == to {
        return Ok(Answer::Count(0));
    }
    let since_ms = state.meta().now_ms;
    state.put_node(Node { state: to, since_ms, ..(*node).clone() });
    state.emit(EventKind::Node { node: node.name.clone(), from: Some(node.state), to });
    match to {
        NodeState::Down => job::lose_node(state, no),
        NodeState::Suspect | NodeState::Unknown => job::release_unheard(state, no),
        NodeState::Ready | NodeState::Maintenance => {}
    }
    Ok(Answer::Count(1))
}

pub(super) fn set_cordon(state: &mut State, no: NodeNo, cordon: Option<&Cordon>) -> Result<Answer, Refusal> {
    let node = state.node(no).ok_or_else(|| Refusal::new(Reason::NotFound, format!("no node {no}")))?.clone();
    let drained = cordon.is_some_and(|cordon| cordon.drain.is_some());
    // Emptied for an operator who is done now.
    let back = node.state == NodeState::Maintenance && !drained;
    let (to, since_ms) = if back { (NodeState::Ready, state.meta().now_ms) } else { (node.state, node.since_ms) };
    let drain = if drained { DrainState::Draining } else { DrainState::None };
    state.put_node(Node { cordon: cordon.cloned(), drain, state: to, since_ms, ..(*node).clone() });
    let (by, reason) = (cordon.map(|c| c.by.clone()), cordon.map(|c| c.reason.clone()));
    state.emit(EventKind::Cordon { node: node.name.clone(), by, reason });
    if drain != node.drain {
        state.emit(EventKind::Drain { node: node.name.clone(), to: drain });
    }
    if back {
        state.emit(EventKind::Node { node: node.name.clone(), from: Some(node.state), to });
    }
    Ok(Answer::Count(1))
}

/// Leaves devices alone for their faults. What they hold is for `moves` to take elsewhere.
pub(super) fn faults(state: &mut State, no: NodeNo, faults: &[DeviceFault]) -> Result<Answer, Refusal> {
    let node = state.node(no).ok_or_else(|| Refusal::new(Reason::NotFound, format!("no node {no}")))?.clone();
    let now = state.meta().now_ms;
    let mut quarantine = node.quarantine.clone();
    let mut told = Vec::new();
    for DeviceFault { uuid, fault, simulated } in faults {
        let there = node.spec.devices.iter().any(|device| device.uuid == *uuid);
        if !there || rule(*fault) == Rule::Ignore {
            continue;
        }
        let (simulated, fault) = (*simulated, *fault);
        let next = match quarantine.get(uuid) {
            Some(known) => known.and(fault, now),
            None => Quarantine { fault, since_ms: now, last_ms: now, times: 1, simulated },
        };
        if quarantine.get(uuid).is_none_or(|known| known.fault != next.fault) {
            told.push((uuid.clone(), next.fault));
        }
        quarantine.insert(uuid.clone(), next);
    }
    if quarantine == node.quarantine {
        return Ok(Answer::Count(0));
    }
    state.put_node(Node { quarantine, ..(*node).clone() });
    let count = told.len() as u32;
    for (uuid, fault) in told {
        state.emit(EventKind::Device { node: node.name.clone(), uuid, fault: Some(fault) });
    }
    moving::hurry(state, no);
    Ok(Answer::Count(count))
}

pub(super) fn heal(state: &mut State, no: NodeNo, uuid: &Arc<str>, by: Option<&Arc<str>>) -> Result<Answer, Refusal> {
    let node = state.node(no).ok_or_else(|| Refusal::new(Reason::NotFound, format!("no node {no}")))?.clone();
    // By itself only when its time is over, whatever a planner thought.
    let over = |q: &Quarantine| by.is_some() || q.ends_ms().is_some_and(|at| at <= state.meta().now_ms);
    if !node.quarantine.get(uuid).is_some_and(over) {
        return Ok(Answer::Count(0));
    }
    let mut quarantine = node.quarantine.clone();
    quarantine.remove(uuid);
    state.put_node(Node { quarantine, ..(*node).clone() });
    state.emit(EventKind::Device { node: node.name.clone(), uuid: uuid.clone(), fault: None });
    Ok(Answer::Count(1))
}

/// How far a drain has come. A node on which nothing is left is in maintenance: it may be switched off.
pub(super) fn set_drain(state: &mut State, no: NodeNo, to: DrainState) -> Result<Answer, Refusal> {
    let node = state.node(no).ok_or_else(|| Refusal::new(Reason::NotFound, format!("no node {no}")))?.clone();
    let empty = state.replicas_on(no).next().is_none();
    let sound = node.is_draining() && to != DrainState::None && (to == DrainState::Drained) == empty;
    if !sound || node.drain == to {
        return Ok(Answer::Count(0));
    }
    let rests = to == DrainState::Drained && !matches!(node.state, NodeState::Down | NodeState::Maintenance);
    let (now, since) = (state.meta().now_ms, node.since_ms);
    let (is, since_ms) = if rests { (NodeState::Maintenance, now) } else { (node.state, since) };
    state.put_node(Node { drain: to, state: is, since_ms, ..(*node).clone() });
    state.emit(EventKind::Drain { node: node.name.clone(), to });
    if rests {
        state.emit(EventKind::Node { node: node.name.clone(), from: Some(node.state), to: is });
    }
    Ok(Answer::Count(1))
}
