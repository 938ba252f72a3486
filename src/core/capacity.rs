//! The index of free capacity: nodes with equal free vectors form a class, so
//! that the placer scores once per class and never walks every node. Derived,
//! kept current by the state. It does not know policies or scores.

use crate::id::{DeviceType, Label, NodeNo};
use crate::ledger::NodeUse;
use crate::mig::Layout;
use crate::node::{Device, DeviceKind, Node, NodeState};
use crate::resources::WHOLE;
use crate::sharing::Sharing;
use crate::topology::{Domain, Level, Names};
use imbl::{OrdMap, OrdSet};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What never changes while a node runs, shared by all nodes that are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flavor {
    pub cpu_milli: u64,
    pub memory: u64,
    pub disk: u64,
    pub devices: Vec<DeviceFlavor>,
    pub labels: BTreeMap<Label, Label>,
    pub region: Option<Label>,
    pub zone: Option<Label>,
    pub rack: Option<Label>,
    pub cost_per_hour: BTreeMap<DeviceType, u64>,
    pub has_ports: bool,
    pub simulated: bool,
    /// Which of the known lists of devices this is.
    pub hardware: HardwareNo,
    alike: bool,
}

impl Flavor {
    /// All devices are the same kind in the same island and on the same NUMA node, so that it does not matter which are
    /// taken.
    pub fn alike(&self) -> bool {
        self.alike
    }

    /// Where its nodes are.
    pub fn names(&self) -> Names<'_> {
        [self.region.as_ref(), self.zone.as_ref(), self.rack.as_ref()]
    }
}

/// Names a list of devices, islands and NUMA nodes aside. A handle of one index and no property of a
/// node: two members may number alike lists differently, so it is equal to any other.
#[derive(Clone, Copy, Debug, Default)]
pub struct HardwareNo(u32);

impl HardwareNo {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl Ord for HardwareNo {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

impl PartialOrd for HardwareNo {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for HardwareNo {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for HardwareNo {}

/// A device without its identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceFlavor {
    pub kind: DeviceKind,
    pub device_type: DeviceType,
    pub memory: u64,
    pub island: u16,
    pub numa: Option<u16>,
    pub mig_profile: Option<DeviceType>,
    pub sharing: Sharing,
}

impl From<&Device> for DeviceFlavor {
    fn from(d: &Device) -> Self {
        Self {
            kind: d.kind,
            device_type: d.device_type.clone(),
            memory: d.memory,
            island: d.island,
            numa: d.numa,
            mig_profile: d.mig_profile.clone(),
            sharing: d.sharing,
        }
    }
}

/// Free part of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FreeDevice {
    /// Thousandths; 0 when the device is not healthy.
    pub milli: u16,
    /// Bytes.
    pub memory: u64,
    /// Slices that are taken, where it is divided.
    pub slices: Layout,
}

/// What placement needs to know of a node. Nodes with equal classes are interchangeable.
#[derive(Clone, Debug)]
pub struct Class {
    pub flavor: Arc<Flavor>,
    pub state: NodeState,
    pub cordoned: bool,
    pub cpu_milli: u64,
    pub memory: u64,
    pub disk: u64,
    pub devices: Vec<FreeDevice>,
    pub port_free: bool,
}

/// Flavors are interned, so mostly the pointers tell that they are equal; walking
/// through eight device types at each step down the index would be most of its cost.
impl Ord for Class {
    fn cmp(&self, other: &Self) -> Ordering {
        let flavor = match Arc::ptr_eq(&self.flavor, &other.flavor) {
            true => Ordering::Equal,
            false => self.flavor.cmp(&other.flavor),
        };
        let rest = |c: &Self| (c.cpu_milli, c.memory, c.disk, c.port_free, c.state, c.cordoned);
        flavor.then_with(|| self.devices.cmp(&other.devices)).then_with(|| rest(self).cmp(&rest(other)))
    }
}

impl PartialOrd for Class {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Class {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Class {}

impl Class {
    /// None of the flavor's classes comes before this one.
    fn least_of(flavor: Arc<Flavor>) -> Self {
        let (state, devices) = (NodeState::Ready, Vec::new());
        Self { flavor, state, cordoned: false, cpu_milli: 0, memory: 0, disk: 0, devices, port_free: false }
    }

    /// New replicas may be placed here.
    pub fn takes_work(&self) -> bool {
        self.state == NodeState::Ready && !self.cordoned
    }

    /// Free thousandths of GPUs in all.
    pub fn free_gpu_milli(&self) -> u64 {
        self.free_milli_of(|gpu| gpu.kind == DeviceKind::Gpu)
    }

    /// The same without those that are divided: of these nobody gets but slices.
    pub fn idle_milli(&self) -> u64 {
        self.free_milli_of(|gpu| gpu.kind == DeviceKind::Gpu && gpu.sharing != Sharing::Mig)
    }

    fn free_milli_of(&self, which: impl Fn(&DeviceFlavor) -> bool) -> u64 {
        let devices = self.flavor.devices.iter().zip(&self.devices).filter(|(device, _)| which(device));
        devices.map(|(_, free)| u64::from(free.milli)).sum()
    }
}

/// Class → its nodes.
#[derive(Clone, Debug, Default)]
pub struct CapacityIndex {
    pub classes: OrdMap<Arc<Class>, OrdSet<NodeNo>>,
    of: OrdMap<NodeNo, Arc<Class>>,
    /// Interned, so that equal flavors compare by pointer first.
    flavors: OrdSet<Arc<Flavor>>,
    /// Lists of devices with their islands and NUMA nodes left out, and their numbers.
    hardware: OrdMap<Arc<[DeviceFlavor]>, HardwareNo>,
    /// Racks, zones and regions, and the flavors of nodes that are or were in each.
    domains: OrdMap<Domain, OrdSet<Arc<Flavor>>>,
}

impl CapacityIndex {
    pub fn class(&self, node: NodeNo) -> Option<&Arc<Class>> {
        self.of.get(&node)
    }

    /// All nodes with their classes; copies share what is the same in both.
    pub fn by_node(&self) -> &OrdMap<NodeNo, Arc<Class>> {
        &self.of
    }

    /// The classes of nodes in the domain, in the order of their flavors; without one, all.
    pub fn within(&self, domain: Option<&Domain>) -> Box<dyn Iterator<Item = (&Arc<Class>, &OrdSet<NodeNo>)> + '_> {
        match domain {
            None => Box::new(self.classes.iter()),
            Some(domain) => {
                let flavors = self.domains.get(domain).into_iter().flatten();
                Box::new(flavors.flat_map(|flavor| self.of_flavor(flavor)))
            }
        }
    }

    fn of_flavor<'a>(
        &'a self,
        flavor: &'a Arc<Flavor>,
    ) -> impl Iterator<Item = (&'a Arc<Class>, &'a OrdSet<NodeNo>)> + use<'a> {
        let from = self.classes.range(Class::least_of(flavor.clone())..);
        from.take_while(move |(class, _)| Arc::ptr_eq(&class.flavor, flavor))
    }

    /// All domains of that level, in their order.
    pub fn domains(&self, level: Level) -> impl Iterator<Item = &Domain> {
        let from = self.domains.range(Domain::first_of(level)..);
        from.map(|(domain, _)| domain).take_while(move |domain| domain.level() == level)
    }

    /// Moves the node to the class of its present free vector.
    pub fn update(&mut self, node: &Node, used: &NodeUse) {
        let flavor = match self.of.get(&node.no) {
            Some(class) if same_flavor(&class.flavor, node) => class.flavor.clone(),
            _ => self.intern(flavor_of(node)),
        };
        let class = Arc::new(class_of(flavor, node, used));
        if self.of.get(&node.no).is_some_and(|old| **old == *class) {
            return;
        }
        self.classes.entry(class.clone()).or_default().insert(node.no);
        let Some(old) = self.of.insert(node.no, class) else { return };
        let Some(nodes) = self.classes.get_mut(&old) else { return };
        nodes.remove(&node.no);
        if nodes.is_empty() {
            self.classes.remove(&old);
        }
    }

    fn intern(&mut self, mut flavor: Flavor) -> Arc<Flavor> {
        if let Some(known) = self.flavors.get(&flavor) {
            return known.clone();
        }
        let devices: Vec<DeviceFlavor> =
            flavor.devices.iter().map(|device| DeviceFlavor { island: 0, numa: None, ..device.clone() }).collect();
        let next = HardwareNo(self.hardware.len() as u32);
        flavor.hardware = *self.hardware.entry(devices.into()).or_insert(next);
        let flavor = Arc::new(flavor);
        self.flavors.insert(flavor.clone());
        for domain in Level::ALL.into_iter().filter_map(|level| Domain::of(level, flavor.names())) {
            self.domains.entry(domain).or_default().insert(flavor.clone());
        }
        flavor
    }

    /// Millionths an hour of the dearest GPU of any node.
    pub fn dearest(&self) -> u64 {
        let (mut most, mut last) = (0, None);
        for class in self.classes.keys() {
            // Classes come in the order of their flavors.
            if last.is_none_or(|known| !Arc::ptr_eq(known, &class.flavor)) {
                most = class.flavor.cost_per_hour.values().fold(most, |most, price| most.max(*price));
            }
            last = Some(&class.flavor);
        }
        most
    }

    /// How many lists of devices are known. Never fewer than before.
    pub fn kinds_of_hardware(&self) -> usize {
        self.hardware.len()
    }

    /// The known lists of devices, in the order of their numbers.
    pub fn hardware(&self) -> Vec<Arc<[DeviceFlavor]>> {
        let mut all: Vec<_> = self.hardware.iter().collect();
        all.sort_by_key(|(_, no)| no.0);
        all.into_iter().map(|(devices, _)| devices.clone()).collect()
    }
}

fn flavor_of(node: &Node) -> Flavor {
    let s = &node.spec;
    let devices: Vec<DeviceFlavor> = s.devices.iter().map(DeviceFlavor::from).collect();
    Flavor {
        alike: devices.windows(2).all(|pair| pair[0] == pair[1]),
        cpu_milli: s.cpu_milli,
        memory: s.memory,
        disk: s.disk,
        devices,
        labels: s.labels.clone(),
        region: s.region.clone(),
        zone: s.zone.clone(),
        rack: s.rack.clone(),
        cost_per_hour: s.cost_per_hour.clone(),
        has_ports: s.ports.is_some(),
        simulated: s.simulated,
        hardware: HardwareNo::default(),
    }
}

/// Whether the flavor still describes the node, without building a new one.
fn same_flavor(f: &Flavor, node: &Node) -> bool {
    let s = &node.spec;
    let device = |(f, d): (&DeviceFlavor, &Device)| {
        f.kind == d.kind
            && f.device_type == d.device_type
            && f.memory == d.memory
            && f.island == d.island
            && f.numa == d.numa
            && f.mig_profile == d.mig_profile
            && f.sharing == d.sharing
    };
    f.cpu_milli == s.cpu_milli
        && f.memory == s.memory
        && f.disk == s.disk
        && f.devices.len() == s.devices.len()
        && f.devices.iter().zip(&s.devices).all(device)
        && f.labels == s.labels
        && (&f.region, &f.zone, &f.rack) == (&s.region, &s.zone, &s.rack)
        && f.cost_per_hour == s.cost_per_hour
        && f.has_ports == s.ports.is_some()
        && f.simulated == s.simulated
}

/// What the node would be with that use.
pub(crate) fn class_of(flavor: Arc<Flavor>, node: &Node, used: &NodeUse) -> Class {
    let s = &node.spec;
    let free = |(i, d): (usize, &Device)| {
        let held = used.devices.get(i).copied().unwrap_or_default();
        match node.may_use(i as u16) {
            true => FreeDevice {
                milli: WHOLE as u16 - held.milli,
                memory: d.memory.saturating_sub(held.memory),
                slices: held.slices,
            },
            false => FreeDevice { milli: 0, memory: 0, slices: Layout::FULL },
        }
    };
    Class {
        flavor,
        state: node.state,
        cordoned: node.cordon.is_some(),
        cpu_milli: s.cpu_milli.saturating_sub(used.cpu_milli),
        memory: s.memory.saturating_sub(used.memory),
        disk: s.disk.saturating_sub(used.disk),
        devices: s.devices.iter().enumerate().map(free).collect(),
        port_free: s.ports.is_none_or(|r| used.ports.len() <= usize::from(r.last - r.first)),
    }
}
