//! What an operator can change, in words, and made on a scratch copy.

use super::nodes::with_engine;
use crate::budget::{Kind, Window};
use crate::id::{Incarnation, NodeName, NodeNo, TenantId, TenantNo};
use crate::node::{DrainState, Node, NodeKind, NodeSpec, NodeState};
use crate::quota::milli;
use crate::state::State;
use crate::tenant::{Quota, Tenant};
use crate::topology::{Domain, Level};
use std::fmt;
use std::sync::Arc;

/// Something that an operator can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Raise the tenant's quota to this.
    Quota {
        tenant: TenantId,
        quota: Box<Quota>,
    },
    /// Raise a budget to this, in units of such a limit.
    Budget {
        tenant: TenantId,
        kind: Kind,
        window: Window,
        most: u64,
    },
    /// Somebody has to let it in; in words.
    LetIn(String),
    Uncordon(NodeName),
    /// Take a device back that is left alone for its faults, once it is mended.
    Heal {
        node: NodeName,
        device: u16,
    },
    /// It is silent, down or in maintenance.
    Return(NodeName),
    /// No container engine is there.
    Engine(NodeName),
    /// Let the tenant's jobs have parts of devices that nothing keeps them to. `or_whole`: asking for a whole GPU
    /// instead would do as well.
    SoftSharing {
        tenant: TenantId,
        or_whole: bool,
    },
    /// So many nodes that hold one replica each; of that name where it is asked for, then one.
    AddNodes {
        count: u16,
        name: Option<NodeName>,
        spec: Box<NodeSpec>,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Quota { tenant, quota } => {
                let gpus = quota.gpu_milli.map(|n| format!(" --gpus {}", milli(n))).unwrap_or_default();
                let types: Vec<String> =
                    quota.types.iter().map(|(kind, share)| format!("{kind}={}", milli(share.gpu_milli))).collect();
                let gpus = if types.is_empty() { gpus } else { format!("{gpus} --gpus {}", types.join(",")) };
                let cpu = quota.cpu_milli.map(|n| format!(" --cpu {}", milli(n))).unwrap_or_default();
                let memory = quota.memory.map(|n| format!(" --mem {n}")).unwrap_or_default();
                let tpu = quota.tpu.map(|n| format!(" --tpu {n}")).unwrap_or_default();
                write!(f, "raise the quota: nf quota set {tenant}{gpus}{cpu}{memory}{tpu}")
            }
            Change::Budget { tenant, kind, window, most } => {
                let (flag, unit) = match kind {
                    Kind::GpuHours => ("gpu-hours", 1000),
                    Kind::Money => ("money", 1_000_000),
                };
                let (most, window) = (most.div_ceil(unit), window.name());
                write!(f, "raise the budget: nf quota set {tenant} --{flag} {most}/{window}")
            }
            Change::LetIn(how) => f.write_str(how),
            Change::Heal { node, device } => {
                write!(f, "mend device {device} of node {node} and take it back: nf node heal {node} {device}")
            }
            Change::Uncordon(node) => write!(f, "uncordon node {node}: nf node uncordon {node}"),
            Change::Return(node) => write!(f, "bring node {node} back: nf describe node {node} says what is wrong"),
            Change::SoftSharing { tenant, or_whole } => {
                let or = if *or_whole { ", or ask for a whole GPU (gpu 1)" } else { "" };
                write!(
                    f,
                    "let the tenant accept parts of GPUs that nothing enforces: nf quota set {tenant} --soft-sharing{or}"
                )
            }
            Change::Engine(node) => {
                write!(f, "start a container engine (Docker or Podman) on node {node}, and nf serve there anew")
            }
            Change::AddNodes { count, name, spec } => {
                let devices = spec
                    .devices
                    .first()
                    .map_or(String::new(), |device| format!(" with {} × {}", spec.devices.len(), device.device_type));
                let nodes = if *count == 1 { "node" } else { "nodes" };
                let narrowest = Level::ALL.into_iter().find_map(|level| Domain::of(level, spec.names()));
                let place = narrowest.map_or(String::new(), |domain| format!(" in {domain}"));
                match name {
                    Some(name) => write!(f, "add node {name}{devices}{place}"),
                    None => write!(f, "add {count} {nodes}{devices}{place}"),
                }
            }
        }
    }
}

/// The tenant, or what it would be once it is named.
fn row(state: &State, tenant: &TenantId) -> Tenant {
    let no = TenantNo(state.meta().next_tenant);
    let new = || Tenant { no, id: tenant.clone(), quota: Quota::default(), created_ms: 0 };
    state.tenant_named(tenant).map_or_else(new, |row| (**row).clone())
}

/// Makes the change on a scratch copy.
pub(super) fn make(state: &mut State, change: &Change) {
    let find = |state: &State, name: &NodeName| state.node_named(name).map(|node| (**node).clone());
    match change {
        Change::Quota { tenant, quota } => {
            let row = row(state, tenant);
            // Budgets and walls are changes of their own.
            let (budgets, soft_sharing) = (row.quota.budgets.clone(), row.quota.soft_sharing);
            state.put_tenant(Tenant { quota: Quota { budgets, soft_sharing, ..(**quota).clone() }, ..row });
        }
        Change::SoftSharing { tenant, .. } => {
            let row = row(state, tenant);
            state.put_tenant(Tenant { quota: Quota { soft_sharing: true, ..row.quota.clone() }, ..row });
        }
        Change::Budget { tenant, kind, window, most } => {
            let row = row(state, tenant);
            let mut budgets = row.quota.budgets.as_deref().cloned().unwrap_or_default();
            budgets.set(*kind, *window, *most);
            state.put_tenant(Tenant { quota: Quota { budgets: budgets.some(), ..row.quota.clone() }, ..row });
        }
        // Nothing that the placer looks at.
        Change::LetIn(_) => {}
        Change::Heal { node, device } => {
            if let Some(node) = find(state, node)
                && let Some(uuid) = node.spec.devices.get(usize::from(*device)).map(|device| device.uuid.clone())
            {
                let mut quarantine = node.quarantine.clone();
                quarantine.remove(&uuid);
                state.put_node(Node { quarantine, ..node });
            }
        }
        Change::Uncordon(name) => {
            if let Some(node) = find(state, name) {
                state.put_node(Node { cordon: None, drain: DrainState::None, ..node });
            }
        }
        Change::Return(name) => {
            if let Some(node) = find(state, name) {
                state.put_node(Node { state: NodeState::Ready, ..node });
            }
        }
        Change::Engine(name) => {
            if let Some(node) = find(state, name)
                && let Some(labels) = with_engine(&node.spec.labels)
            {
                let spec = Arc::new(NodeSpec { labels, ..(*node.spec).clone() });
                state.put_node(Node { spec, ..node });
            }
        }
        Change::AddNodes { count, name, spec } => {
            for i in 0..u32::from(*count) {
                let no = NodeNo(u32::MAX - i);
                let named = name.clone().filter(|name| i == 0 && state.node_named(name).is_none());
                let Some(name) = named.or_else(|| NodeName::new(&format!("added-{i}")).ok()) else { continue };
                let node = Node {
                    no,
                    name,
                    kind: NodeKind::Worker,
                    incarnation: Incarnation(1),
                    spec: Arc::new((**spec).clone()),
                    state: NodeState::Ready,
                    cordon: None,
                    drain: DrainState::None,
                    quarantine: Default::default(),
                    since_ms: 0,
                };
                state.put_node(node);
            }
        }
    }
}
