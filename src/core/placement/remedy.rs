//! What would let a waiting job run: the smallest set of changes that an operator can
//! make, each tried on a copy of the state with the placer's own search. It changes
//! nothing, and does not guess when something ends.

use super::{Limits, filter, place};
use crate::claim;
use crate::id::{Incarnation, NodeName, NodeNo, TenantId, TenantNo};
use crate::job::JobSpec;
use crate::node::{Device, DeviceKind, DrainState, Node, NodeKind, NodeSpec, NodeState};
use crate::quota::{self, milli, tree};
use crate::resources::{Gpus, Resources};
use crate::sharing::{Ask, Sharing};
use crate::state::State;
use crate::tenant::{Quota, Tenant};
use std::fmt;
use std::sync::Arc;

/// Nodes of each kind that are tried; equal ones are tried once.
const NODES: usize = 12;
/// Most nodes that are proposed to be added.
const ADDED: u16 = 16;

/// Something that an operator can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Raise the tenant's quota to this.
    Quota {
        tenant: TenantId,
        quota: Box<Quota>,
    },
    Uncordon(NodeName),
    /// It is silent, down or in maintenance.
    Return(NodeName),
    /// Let the tenant's jobs have parts of devices that nothing keeps them to. `or_whole`: asking for a whole GPU
    /// instead would do as well.
    SoftSharing {
        tenant: TenantId,
        or_whole: bool,
    },
    /// So many nodes that hold one replica each.
    AddNodes {
        count: u16,
        spec: Box<NodeSpec>,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Quota { tenant, quota } => {
                let gpus = quota.gpu_milli.map(|n| format!(" --gpus {}", milli(n))).unwrap_or_default();
                let cpu = quota.cpu_milli.map(|n| format!(" --cpu {}", milli(n))).unwrap_or_default();
                let memory = quota.memory.map(|n| format!(" --mem {n}")).unwrap_or_default();
                let tpu = quota.tpu.map(|n| format!(" --tpu {n}")).unwrap_or_default();
                write!(f, "raise the quota: nf quota set {tenant}{gpus}{cpu}{memory}{tpu}")
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
            Change::AddNodes { count, spec } => {
                let devices = spec
                    .devices
                    .first()
                    .map_or(String::new(), |device| format!(" with {} × {}", spec.devices.len(), device.device_type));
                let nodes = if *count == 1 { "node" } else { "nodes" };
                write!(f, "add {count} {nodes}{devices}")
            }
        }
    }
}

/// The smallest set of changes with which all of `wanted` have a place at once; None when
/// none of those that are tried will do. Empty when nothing is in the way.
pub fn remedy(state: &State, spec: &JobSpec, wanted: &[u16]) -> Option<Vec<Change>> {
    let runs = |changes: &[&Change]| {
        let mut scratch = state.speculative();
        changes.iter().for_each(|change| make(&mut scratch, change));
        runs(&scratch, spec, wanted)
    };
    if runs(&[]) {
        return Some(Vec::new());
    }
    let soft = soft(state, spec, wanted);
    let one = soft.iter().find(|change| runs(&[change]));
    if let Some(one) = one {
        return Some(vec![match one {
            Change::SoftSharing { tenant, .. } => {
                let resources = Resources { gpu: Gpus::Whole(1), ..spec.resources.clone() };
                let whole = JobSpec { resources, ..spec.clone() };
                Change::SoftSharing { tenant: tenant.clone(), or_whole: self::runs(state, &whole, wanted) }
            }
            other => other.clone(),
        }]);
    }
    let pairs = soft.iter().enumerate().flat_map(|(i, a)| soft[i + 1..].iter().map(move |b| (a, b)));
    for (a, b) in pairs {
        if runs(&[a, b]) {
            return Some(vec![a.clone(), b.clone()]);
        }
    }
    // Hardware is the last resort: as few nodes as will do, with the quota where it is needed.
    let quota = soft.iter().find(|change| matches!(change, Change::Quota { .. }));
    for count in 1..=ADDED.min(wanted.len() as u16) {
        let nodes = Change::AddNodes { count, spec: Box::new(node_for(spec)) };
        if runs(&[&nodes]) {
            return Some(vec![nodes]);
        }
        if let Some(quota) = quota.filter(|quota| runs(&[&nodes, quota])) {
            return Some(vec![quota.clone(), nodes]);
        }
    }
    None
}

fn runs(state: &State, spec: &JobSpec, wanted: &[u16]) -> bool {
    let tenant = state.tenant_named(&spec.tenant).map(|tenant| tenant.no);
    let limits = Limits { held: claim::nodes(state), ..Limits::default() };
    quota::allows(state, tenant, &spec.resources, wanted.len() as u64)
        && place(state, spec, wanted, limits).len() == wanted.len()
}

/// Changes that need no hardware.
fn soft(state: &State, spec: &JobSpec, wanted: &[u16]) -> Vec<Change> {
    let tenant = state.tenant_named(&spec.tenant).map(|tenant| tenant.no);
    let mut out = Vec::new();
    if !quota::allows(state, tenant, &spec.resources, wanted.len() as u64) {
        out.extend(wider(state, tenant, spec, wanted.len() as u64));
    }
    let ask = Ask::of(state, spec);
    let away = |node: &Node| node.state != NodeState::Ready;
    let mut out_of_use: Vec<&Arc<Node>> = Vec::new();
    for (class, nodes) in state.capacity().classes.iter() {
        if class.takes_work() || !filter::may_ever_run(&class.flavor, &ask.accepted()) {
            continue;
        }
        // Equal nodes would do alike; a few more for gangs.
        out_of_use.extend(nodes.iter().take(2).filter_map(|no| state.node(*no)));
    }
    let cordoned = out_of_use.iter().filter(|node| node.cordon.is_some()).take(NODES);
    out.extend(cordoned.map(|node| Change::Uncordon(node.name.clone())));
    out.extend(out_of_use.iter().filter(|node| away(node)).take(NODES).map(|node| Change::Return(node.name.clone())));
    // After what costs nobody a wall.
    if matches!(spec.resources.gpu, Gpus::Milli(_)) && !ask.takes_any() {
        out.push(Change::SoftSharing { tenant: spec.tenant.clone(), or_whole: false });
    }
    out
}

/// The quota with which so many replicas more are allowed.
fn wider(state: &State, tenant: Option<TenantNo>, spec: &JobSpec, times: u64) -> Option<Change> {
    let used = tenant.map(|no| quota::used(state, no)).unwrap_or_default();
    let now = tenant.map(|no| quota::quota(state, no)).unwrap_or_default();
    let ask = &spec.resources;
    let more = ask.gpu.milli().checked_mul(times)?;
    let own = tenant.map_or(state.meta().default_gpu_milli, |no| quota::gpu_limit(state, no));
    let missing = match tenant.and_then(|no| state.tenant(no)) {
        Some(row) if !tree::is_flat(state, row) => missing(state, row, more),
        _ => used.gpu_milli.checked_add(more)?.saturating_sub(own),
    };
    let at_least = |limit: Option<u64>, used: u64, each: u64| -> Option<Option<u64>> {
        let sum = used.checked_add(each.checked_mul(times)?)?;
        Some(limit.map(|limit| if each > 0 { limit.max(sum) } else { limit }))
    };
    let quota = Quota {
        gpu_milli: if missing > 0 { Some(own.checked_add(missing)?) } else { now.gpu_milli },
        cpu_milli: at_least(now.cpu_milli, used.cpu_milli, ask.cpu_milli)?,
        memory: at_least(now.memory, used.memory, ask.memory)?,
        tpu: at_least(now.tpu, used.tpu, ask.tpu.into())?,
        ..now
    };
    Some(Change::Quota { tenant: spec.tenant.clone(), quota: Box::new(quota) })
}

/// By how much the nominal quota of a tenant in a tree is too small, at the narrowest place above it.
fn missing(state: &State, tenant: &Tenant, more: u64) -> u64 {
    let short = |each: &&Tenant| {
        let sum = tree::sum(state, each, tree::Of::Gpus, (tenant.no, more));
        sum.demand.saturating_sub(tree::limit(each, tree::Of::Gpus, sum.nominal))
    };
    tree::path(state, tenant).iter().map(short).max().unwrap_or(0)
}

/// The tenant, or what it would be once it is named.
fn row(state: &State, tenant: &TenantId) -> Tenant {
    let no = TenantNo(state.meta().next_tenant);
    let new = || Tenant { no, id: tenant.clone(), quota: Quota::default(), created_ms: 0 };
    state.tenant_named(tenant).map_or_else(new, |row| (**row).clone())
}

/// Makes the change on a scratch copy.
fn make(state: &mut State, change: &Change) {
    let find = |state: &State, name: &NodeName| state.node_named(name).map(|node| (**node).clone());
    match change {
        Change::Quota { tenant, quota } => {
            let row = row(state, tenant);
            state.put_tenant(Tenant { quota: (**quota).clone(), ..row });
        }
        Change::SoftSharing { tenant, .. } => {
            let row = row(state, tenant);
            state.put_tenant(Tenant { quota: Quota { soft_sharing: true, ..row.quota.clone() }, ..row });
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
        Change::AddNodes { count, spec } => {
            for i in 0..u32::from(*count) {
                let no = NodeNo(u32::MAX - i);
                let Ok(name) = NodeName::new(&format!("added-{i}")) else { continue };
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

/// A node that holds just one replica.
fn node_for(spec: &JobSpec) -> NodeSpec {
    let (ask, wish) = (&spec.resources, &spec.constraints);
    let gpus = match ask.gpu {
        Gpus::None => 0,
        Gpus::Milli(_) => 1,
        Gpus::Whole(n) => n,
    };
    let any = || crate::id::DeviceType::new("GPU").expect("a valid name");
    let device = |i: u16, kind: DeviceKind| Device {
        uuid: format!("added-{i}").into(),
        kind,
        device_type: ask.device_types.first().cloned().unwrap_or_else(any),
        memory: ask.gpu_memory.max(1 << 30),
        island: 0,
        mig_profile: ask.mig_profile.clone(),
        healthy: true,
        // Such a node can give a part as well as a whole GPU.
        sharing: Sharing::Mps,
    };
    let gpu = (0..gpus).map(|i| device(i, DeviceKind::Gpu));
    let tpu = (0..ask.tpu).map(|i| device(gpus + i, DeviceKind::Tpu));
    NodeSpec {
        host: "added".into(),
        ports: None,
        cpu_milli: ask.cpu_milli,
        memory: ask.memory,
        disk: ask.disk,
        devices: gpu.chain(tpu).collect(),
        labels: wish.labels.clone(),
        region: wish.region.clone(),
        zone: wish.zone.clone(),
        rack: wish.rack.clone(),
        cost_per_hour: Default::default(),
        simulated: true,
    }
}

#[cfg(test)]
mod tests;
