//! Which allocation holds what on which node, and what each tenant uses, in
//! integers. Derived from the jobs, never stored: it is rebuilt at load and
//! compared by the invariants. It does not decide where anything goes.

use crate::id::{DeviceType, JobNo, NodeNo, TenantNo};
use crate::job::{Allocation, Share};
use crate::mig::{Layout, Slice};
use crate::node::{Device, DeviceKind, NodeSpec, has_engine};
use crate::resources::{Gpus, Resources, WHOLE};
use crate::sharing::{Ask, Kept};
use imbl::{OrdMap, OrdSet};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is held of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceUse {
    /// Thousandths, at most 1000.
    pub milli: u16,
    /// Bytes.
    pub memory: u64,
    /// Slices, where it is divided.
    pub slices: Layout,
}

impl DeviceUse {
    fn hold(&mut self, share: Share, memory: u64) {
        self.milli += share.milli;
        self.memory += memory;
        if let Kept::Mig(slice) = share.kept {
            self.slices = self.slices.with(slice);
        }
    }

    fn release(&mut self, share: Share, memory: u64) {
        self.milli -= share.milli;
        self.memory -= memory;
        if let Kept::Mig(slice) = share.kept {
            self.slices = self.slices.without(slice);
        }
    }
}

/// What is held on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeUse {
    pub cpu_milli: u64,
    pub memory: u64,
    pub disk: u64,
    pub devices: Vec<DeviceUse>,
    pub ports: OrdSet<u16>,
    pub replicas: OrdSet<(JobNo, u16)>,
    /// The state's `base` at the last change of what the node's agent should do. A
    /// number of the log, not a count of this process, so that an agent can compare
    /// what it heard from different members, and from one before and after a restart.
    pub revision: u64,
}

/// What one tenant holds and waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantUse {
    pub gpu_milli: u64,
    pub tpu: u64,
    pub cpu_milli: u64,
    pub memory: u64,
    /// Jobs that live.
    pub jobs: u32,
    /// Jobs of which a replica waits.
    pub waiting: u32,
    /// Client-chosen ids that are remembered.
    pub keyed: u32,
}

/// All that is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub nodes: OrdMap<NodeNo, Arc<NodeUse>>,
    pub tenants: OrdMap<TenantNo, TenantUse>,
    /// Thousandths of GPUs that a tenant holds of each type; none of 0.
    pub types: OrdMap<TenantNo, Arc<BTreeMap<DeviceType, u64>>>,
    /// What changes now gets this revision.
    pub(crate) version: u64,
}

impl Ledger {
    pub fn node(&self, node: NodeNo) -> Option<&Arc<NodeUse>> {
        self.nodes.get(&node)
    }

    pub fn tenant(&self, tenant: TenantNo) -> TenantUse {
        self.tenants.get(&tenant).copied().unwrap_or_default()
    }

    /// Makes room for a node's devices; what is held stays.
    pub fn resize(&mut self, node: NodeNo, devices: usize) {
        let version = self.version;
        let used = Arc::make_mut(self.nodes.entry(node).or_default());
        if used.devices.len() < devices {
            used.devices.resize(devices, DeviceUse::default());
        }
        used.revision = version;
    }

    /// Thousandths of GPUs of a type that the tenant holds.
    pub fn of_type(&self, tenant: TenantNo, kind: &DeviceType) -> u64 {
        self.types.get(&tenant).and_then(|types| types.get(kind)).copied().unwrap_or(0)
    }

    /// Thousandths of GPUs of each type that the tenant holds some of.
    pub fn types_of(&self, tenant: TenantNo) -> impl Iterator<Item = (&DeviceType, u64)> {
        self.types.get(&tenant).into_iter().flat_map(|types| types.iter()).map(|(kind, milli)| (kind, *milli))
    }

    /// Counts the shares, one run of equal types at a time.
    pub(crate) fn count_types(
        &mut self,
        tenant: TenantNo,
        shares: &[Share],
        spec: &NodeSpec,
        change: fn(u64, u64) -> u64,
    ) {
        let kind = |share: &Share| {
            let device = spec.devices.get(usize::from(share.device))?;
            (device.kind == DeviceKind::Gpu).then_some(&device.device_type)
        };
        for run in shares.chunk_by(|a, b| kind(a) == kind(b)) {
            let (Some(of), milli) = (run.first().and_then(kind), run.iter().map(Share::counted).sum()) else {
                continue;
            };
            let types = Arc::make_mut(self.types.entry(tenant).or_default());
            let now = change(types.get(of).copied().unwrap_or(0), milli);
            match types.get_mut(of) {
                Some(_) if now == 0 => drop(types.remove(of)),
                Some(held) => *held = now,
                None => drop(types.insert(of.clone(), now)),
            }
            if types.is_empty() {
                self.types.remove(&tenant);
            }
        }
    }

    /// Changes one tenant's totals.
    pub fn tenant_mut(&mut self, tenant: TenantNo) -> &mut TenantUse {
        self.tenants.entry(tenant).or_default()
    }

    /// Books `alloc`, which must fit (see [`fits`]).
    pub fn hold(&mut self, tenant: TenantNo, who: (JobNo, u16), ask: &Resources, alloc: &Allocation, spec: &NodeSpec) {
        let version = self.version;
        let used = Arc::make_mut(self.nodes.entry(alloc.node).or_default());
        used.cpu_milli += ask.cpu_milli;
        used.memory += ask.memory;
        used.disk += ask.disk;
        for share in &alloc.shares {
            used.devices[usize::from(share.device)].hold(*share, share_memory(ask, *share, spec));
        }
        if let Some(port) = alloc.port {
            used.ports.insert(port);
        }
        used.replicas.insert(who);
        used.revision = version;
        self.count_types(tenant, &alloc.shares, spec, |now, more| now + more);
        let totals = self.tenant_mut(tenant);
        totals.gpu_milli += ask.gpu.milli();
        totals.tpu += u64::from(ask.tpu);
        totals.cpu_milli += ask.cpu_milli;
        totals.memory += ask.memory;
    }

    /// Undoes [`Ledger::hold`].
    pub fn release(
        &mut self,
        tenant: TenantNo,
        who: (JobNo, u16),
        ask: &Resources,
        alloc: &Allocation,
        spec: &NodeSpec,
    ) {
        let version = self.version;
        let used = Arc::make_mut(self.nodes.entry(alloc.node).or_default());
        used.cpu_milli -= ask.cpu_milli;
        used.memory -= ask.memory;
        used.disk -= ask.disk;
        for share in &alloc.shares {
            used.devices[usize::from(share.device)].release(*share, share_memory(ask, *share, spec));
        }
        if let Some(port) = alloc.port {
            used.ports.remove(&port);
        }
        used.replicas.remove(&who);
        used.revision = version;
        self.count_types(tenant, &alloc.shares, spec, |now, less| now - less);
        let totals = self.tenant_mut(tenant);
        totals.gpu_milli -= ask.gpu.milli();
        totals.tpu -= u64::from(ask.tpu);
        totals.cpu_milli -= ask.cpu_milli;
        totals.memory -= ask.memory;
    }

    /// Counts so many replicas for the tenant that hold nothing anywhere, or no more; on a scratch copy.
    pub(crate) fn count(&mut self, tenant: TenantNo, ask: &Resources, times: u64, change: fn(u64, u64) -> u64) {
        let totals = self.tenant_mut(tenant);
        totals.gpu_milli = change(totals.gpu_milli, ask.gpu.milli().saturating_mul(times));
        totals.tpu = change(totals.tpu, u64::from(ask.tpu).saturating_mul(times));
        totals.cpu_milli = change(totals.cpu_milli, ask.cpu_milli.saturating_mul(times));
        totals.memory = change(totals.memory, ask.memory.saturating_mul(times));
        // Of which type it would be is known only where one is named.
        if let [only] = ask.device_types.as_slice() {
            let types = Arc::make_mut(self.types.entry(tenant).or_default());
            let now = types.entry(only.clone()).or_default();
            *now = change(*now, ask.gpu.milli().saturating_mul(times));
        }
    }

    /// What an agent should do on the node may have changed without a change of what is held.
    pub fn touch(&mut self, node: NodeNo) {
        Arc::make_mut(self.nodes.entry(node).or_default()).revision = self.version;
    }
}

/// Device memory that a share books: what was asked, else its part of the device.
pub fn share_memory(ask: &Resources, share: Share, spec: &NodeSpec) -> u64 {
    let device = &spec.devices[usize::from(share.device)];
    match (share.kept, ask.gpu_memory) {
        (Kept::Mig(_), _) | (_, 0) => part_of(device.memory, share.milli),
        _ if u32::from(share.milli) == WHOLE => device.memory,
        (_, asked) => asked,
    }
}

/// So many thousandths of a device's memory.
pub(crate) fn part_of(memory: u64, milli: u16) -> u64 {
    (u128::from(memory) * u128::from(milli) / u128::from(WHOLE)) as u64
}

/// Whether the device is of the kind asked for, and what is said to keep the job to its part of it does.
fn part_fits(job: &Ask<'_>, share: Share, device: &Device) -> Result<(), String> {
    let ask = &job.resources;
    if job.kept(device.sharing) != Some(share.kept) {
        return Err(format!("device {}: nothing keeps the job to its part as planned", share.device));
    }
    let type_fits = ask.device_types.is_empty() || ask.device_types.contains(&device.device_type);
    match type_fits && device.memory >= ask.gpu_memory && device.mig_profile == ask.mig_profile {
        true => Ok(()),
        false => Err(format!("device {} is not of the kind asked for", share.device)),
    }
}

/// Whether the divided device makes such a slice, and has room for it there.
fn slice_fits(job: &Ask<'_>, share: Share, slice: Slice, device: &Device, held: DeviceUse) -> Result<(), String> {
    let shape = job.slice_of(device.sharing, &device.device_type, device.memory);
    if shape != Some(slice.shape) || share.milli != slice.shape.milli() {
        return Err(format!("device {} makes no such slice", share.device));
    }
    match held.slices.fits(slice) {
        true => Ok(()),
        false => Err(format!("device {}: no slice can begin at part {} of its memory", share.device, slice.start)),
    }
}

/// Whether `alloc` is what the job asks for and is free on the node, in every dimension. The judgement of apply: what
/// keeps a part is asked where the placer asks, all else is code of its own.
///
/// # Errors
/// What does not fit, in words.
pub fn fits(job: &Ask<'_>, alloc: &Allocation, spec: &NodeSpec, used: &NodeUse) -> Result<(), String> {
    let ask = &job.resources;
    let room = |what: &str, used: u64, ask: u64, all: u64| match used.checked_add(ask) {
        Some(sum) if sum <= all => Ok(()),
        _ => Err(format!("{what}: {ask} asked, {} free", all.saturating_sub(used))),
    };
    room("cpu", used.cpu_milli, ask.cpu_milli, spec.cpu_milli)?;
    room("memory", used.memory, ask.memory, spec.memory)?;
    room("disk", used.disk, ask.disk, spec.disk)?;
    if job.needs_engine() && !has_engine(&spec.labels) {
        return Err("no container engine there".into());
    }
    if !alloc.shares.windows(2).all(|pair| pair[0].device < pair[1].device) {
        return Err("a device is named twice".into());
    }
    let (mut gpu_milli, mut tpus) = (0u64, 0u64);
    for share in &alloc.shares {
        let device = spec.devices.get(usize::from(share.device)).ok_or("no such device")?;
        let held = used.devices.get(usize::from(share.device)).copied().unwrap_or_default();
        if !device.healthy {
            return Err(format!("device {} is not healthy", share.device));
        }
        if share.milli == 0 || u32::from(held.milli) + u32::from(share.milli) > WHOLE {
            return Err(format!("device {}: {} of 1000 held, {} asked", share.device, held.milli, share.milli));
        }
        room("device memory", held.memory, share_memory(ask, *share, spec), device.memory)?;
        match device.kind {
            DeviceKind::Tpu if share.kept == Kept::Alone => tpus += 1,
            DeviceKind::Tpu => return Err("a TPU is held alone".into()),
            DeviceKind::Gpu => {
                match share.kept {
                    Kept::Mig(slice) => slice_fits(job, *share, slice, device, held)?,
                    _ => part_fits(job, *share, device)?,
                }
                gpu_milli += share.counted();
            }
        }
        if matches!(ask.gpu, Gpus::Whole(_)) && share.counted() != u64::from(WHOLE) {
            return Err("a whole device was asked for".into());
        }
    }
    if gpu_milli != ask.gpu.milli() || tpus != u64::from(ask.tpu) {
        return Err(format!(
            "{gpu_milli} thousandths of GPUs and {tpus} TPUs given, {} and {} asked",
            ask.gpu.milli(),
            ask.tpu
        ));
    }
    match (alloc.port, spec.ports) {
        (None, None) => Ok(()),
        (Some(port), Some(range)) if (range.first..=range.last).contains(&port) && !used.ports.contains(&port) => {
            Ok(())
        }
        (port, _) => Err(format!("port {port:?} is not free on this node")),
    }
}
