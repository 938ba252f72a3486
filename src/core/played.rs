//! A node that a process plays instead of having it: what is said of it, what it has
//! where nothing is said, and which ports it may use. Whoever registers one (by hand,
//! by `GPU_NODES`) gets the same node for the same words. It does not know who plays it.

use crate::id::{DeviceType, Label, NodeName};
use crate::node::{Device, DeviceKind, NodeSpec, PortRange};
use crate::sharing::Sharing;
use crate::state::State;
use std::collections::BTreeMap;

/// The type of a device of which nothing else is said.
const DEVICE_TYPE: &str = "H100-80G";
/// Devices that share fast links.
const ISLAND: u16 = 4;
/// For each GPU, and for a node without one: generous, so that a first job fits.
const CPU_MILLI: u64 = 16_000;
const MEMORY: u64 = 64 << 30;
const DISK: u64 = 1 << 40;
/// Ports of one played node.
pub const PORTS: u16 = 32;

/// What is said of a played node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Played {
    /// Made up when absent.
    pub name: Option<NodeName>,
    /// 1 when absent.
    pub gpus: Option<u16>,
    pub tpus: u16,
    pub device_type: Option<DeviceType>,
    pub gpu_memory: Option<u64>,
    pub cpu_milli: Option<u64>,
    pub memory: Option<u64>,
    pub disk: Option<u64>,
    pub labels: BTreeMap<Label, Label>,
    pub region: Option<Label>,
    pub zone: Option<Label>,
    pub rack: Option<Label>,
    /// Millionths of the currency unit per device and hour.
    pub cost_per_hour: Option<u64>,
    /// What is said to keep those who share a GPU to their parts; that it is played, when absent.
    pub sharing: Option<Sharing>,
    /// So many NUMA nodes share its devices evenly, in their order; of none nothing is known, when absent.
    pub numa_nodes: Option<u16>,
}

impl Played {
    /// The node's spec.
    pub fn spec(&self, name: &NodeName, host: &str, ports: Option<PortRange>) -> NodeSpec {
        let gpus = self.gpus.unwrap_or(1);
        let device_type = self.device_type.clone().unwrap_or_else(usual_type);
        let memory = self.gpu_memory.filter(|bytes| *bytes > 0);
        let mut all = devices(name, DeviceKind::Gpu, &device_type, gpus, memory);
        all.extend(devices(name, DeviceKind::Tpu, &fixed("TPU"), self.tpus, memory));
        // Only GPUs are divided.
        let may = |device: &&mut Device| device.kind == DeviceKind::Gpu || self.sharing != Some(Sharing::Mig);
        for device in all.iter_mut().filter(may) {
            device.sharing = self.sharing.unwrap_or(device.sharing);
        }
        on_numa_nodes(&mut all, self.numa_nodes);
        let many = u64::from(gpus.max(1));
        NodeSpec {
            host: host.into(),
            ports,
            cpu_milli: self.cpu_milli.unwrap_or(many * CPU_MILLI),
            memory: self.memory.unwrap_or(many * MEMORY),
            disk: self.disk.unwrap_or(DISK),
            devices: all,
            labels: self.labels.clone(),
            region: self.region.clone(),
            zone: self.zone.clone(),
            rack: self.rack.clone(),
            cost_per_hour: self.cost_per_hour.map(|cost| (device_type, cost)).into_iter().collect(),
            simulated: true,
        }
    }
}

fn fixed(name: &str) -> DeviceType {
    DeviceType::new(name).expect("the constants of this file are valid names")
}

/// The type of a simulated GPU of which nothing is said.
pub fn usual_type() -> DeviceType {
    fixed(DEVICE_TYPE)
}

/// What a device of that type is, by the name: types of TPUs begin with `TPU`, as in `TPU-v5e`.
pub fn kind_of(device_type: &DeviceType) -> DeviceKind {
    match device_type.as_str().get(..3) {
        Some(first) if first.eq_ignore_ascii_case("tpu") => DeviceKind::Tpu,
        _ => DeviceKind::Gpu,
    }
}

/// Whether a device of that uuid is only played: no program can be given it.
pub fn is_played(uuid: &str) -> bool {
    ["GPU-sim-", "TPU-sim-"].iter().any(|prefix| uuid.starts_with(prefix))
}

/// `count` simulated devices in islands of four. Memory is that of the type when not said.
pub fn devices(
    node: &NodeName,
    kind: DeviceKind,
    device_type: &DeviceType,
    count: u16,
    memory: Option<u64>,
) -> Vec<Device> {
    let prefix = if kind == DeviceKind::Gpu { "GPU" } else { "TPU" };
    let device = |i: u16| Device {
        uuid: format!("{prefix}-sim-{node}-{i}").into(),
        kind,
        device_type: device_type.clone(),
        memory: memory.unwrap_or_else(|| memory_of(device_type.as_str())),
        island: i / ISLAND,
        numa: None,
        mig_profile: None,
        healthy: true,
        sharing: Sharing::Simulated,
    };
    (0..count).map(device).collect()
}

/// Says of each device which of so many NUMA nodes it hangs on: each has as many GPUs as any other, or one more, and as
/// many TPUs. Of `None`, or 0, nothing.
pub fn on_numa_nodes(devices: &mut [Device], nodes: Option<u16>) {
    let Some(nodes) = nodes.filter(|nodes| *nodes > 0) else { return };
    for kind in [DeviceKind::Gpu, DeviceKind::Tpu] {
        let of_kind = || devices.iter().filter(|device| device.kind == kind);
        let count = of_kind().count() as u32;
        let each = devices.iter_mut().filter(|device| device.kind == kind).zip(0u32..);
        each.for_each(|(device, i)| device.numa = Some((i * u32::from(nodes) / count) as u16));
    }
}

/// The memory of a device of that type: as its name says, else as is usual for the model, else 16 GiB.
pub fn memory_of(device_type: &str) -> u64 {
    let marked = device_type.rsplit('-').next().and_then(|size| {
        let size = size.to_ascii_uppercase();
        size.strip_suffix("GB").or_else(|| size.strip_suffix('G'))?.parse::<u64>().ok()
    });
    if let Some(gib) = marked.filter(|gib| (1..=4096).contains(gib)) {
        return gib << 30;
    }
    let gib = match device_type.to_ascii_uppercase().as_str() {
        "H200" => 141,
        "H100" | "A100" | "A800" | "H800" => 80,
        "L40" | "L40S" | "A40" => 48,
        "V100M32" => 32,
        "A10" | "A30" | "G2" | "L4" => 24,
        _ => 16,
    };
    gib << 30
}

/// The part of a member's port range that its own node keeps: the first half.
pub fn own_ports(range: PortRange) -> PortRange {
    PortRange { first: range.first, last: range.first + (range.last - range.first) / 2 }
}

/// The part that nodes share out which the member plays; None when the range is a single port.
pub fn played_ports(range: PortRange) -> Option<PortRange> {
    let own = own_ports(range);
    (own.last < range.last).then(|| PortRange { first: own.last + 1, last: range.last })
}

/// The lowest [`PORTS`] ports of the played part of `range` that no other node on `host` has.
/// None when they are used up.
pub fn next_ports(state: &State, node: &NodeName, host: &str, range: PortRange) -> Option<PortRange> {
    let part = played_ports(range)?;
    let others = state.nodes().values().filter(|n| n.name != *node && *n.spec.host == *host);
    let mut taken: Vec<PortRange> = others.filter_map(|n| n.spec.ports).collect();
    taken.sort_unstable();
    let mut first = u32::from(part.first);
    for used in taken {
        if first + u32::from(PORTS) <= u32::from(used.first) {
            break;
        }
        first = first.max(u32::from(used.last) + 1);
    }
    let last = first + u32::from(PORTS) - 1;
    (last <= u32::from(part.last)).then_some(PortRange { first: first as u16, last: last as u16 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_device_is_what_its_type_is_called() {
        let kind = |name| kind_of(&DeviceType::new(name).unwrap());
        assert_eq!([kind("TPU-v5e"), kind("tpu-v4")], [DeviceKind::Tpu; 2]);
        assert_eq!([kind("H100-80G"), kind("T4"), kind("tp")], [DeviceKind::Gpu; 3]);
    }

    #[test]
    fn played_nodes_on_one_host_share_no_port() {
        let range = PortRange { first: 31000, last: 31399 };
        let mut state = State::new();
        let own = NodeSpec { ports: Some(own_ports(range)), ..testing::node_spec(1) };
        testing::run(&mut state, testing::register("own", own));
        let mut seen: Vec<PortRange> = vec![own_ports(range)];
        for i in 0..6 {
            let name = format!("p{i}");
            let ports = next_ports(&state, &NodeName::new(&name).unwrap(), "127.0.0.1", range).unwrap();
            assert!(seen.iter().all(|s| s.last < ports.first || ports.last < s.first), "{ports:?} in {seen:?}");
            let spec = NodeSpec { ports: Some(ports), ..testing::node_spec(1) };
            testing::run(&mut state, testing::register(&name, spec));
            seen.push(ports);
        }
        let next = NodeName::new("p6").unwrap();
        assert_eq!(next_ports(&state, &next, "127.0.0.1", range), None, "the range is used up");
        assert!(next_ports(&state, &next, "other", range).is_some(), "another host has its own ports");
        let again = NodeName::new("p2").unwrap();
        assert_eq!(next_ports(&state, &again, "127.0.0.1", range), Some(seen[3]), "a node keeps its own");
        let edge = PortRange { first: 65000, last: 65535 };
        assert!(next_ports(&state, &next, "127.0.0.1", edge).is_some_and(|p| p.first < p.last), "no overflow");
    }

    #[test]
    fn nothing_said_makes_a_node_on_which_a_first_job_fits() {
        let name = NodeName::new("n1").unwrap();
        let spec = Played::default().spec(&name, "127.0.0.1", None);
        assert_eq!((spec.devices.len(), spec.devices[0].memory), (1, 80 << 30));
        assert!(spec.simulated && spec.cpu_milli >= 16_000 && spec.memory >= 64 << 30);
        let said = Played { gpus: Some(6), tpus: 1, device_type: DeviceType::new("T4").ok(), ..Played::default() };
        let spec = said.spec(&name, "127.0.0.1", None);
        assert_eq!(spec.devices.iter().map(|d| d.island).collect::<Vec<_>>(), [0, 0, 0, 0, 1, 1, 0]);
        assert_eq!((spec.devices[0].memory, spec.devices[6].kind), (16 << 30, DeviceKind::Tpu));
        assert_eq!(&*spec.devices[6].uuid, "TPU-sim-n1-0");
    }

    #[test]
    fn numa_nodes_share_devices_evenly_where_they_are_said() {
        let name = NodeName::new("n1").unwrap();
        let numa = |gpus, tpus, numa_nodes| {
            let said = Played { gpus: Some(gpus), tpus, numa_nodes, ..Played::default() };
            said.spec(&name, "h", None).devices.iter().map(|device| device.numa).collect::<Vec<_>>()
        };
        assert_eq!(numa(4, 2, None), [None; 6]);
        assert_eq!(numa(4, 2, Some(2)), [0, 0, 1, 1, 0, 1].map(Some));
        assert_eq!(numa(3, 0, Some(2)), [0, 0, 1].map(Some));
        assert_eq!(numa(2, 0, Some(4)), [0, 2].map(Some), "not each has one");
        assert_eq!(numa(0, 0, Some(2)), []);
    }

    #[test]
    fn names_tell_the_memory() {
        let gib = |name| memory_of(name) >> 30;
        assert_eq!((gib("T4"), gib("V100M32"), gib("G3"), gib("L40S")), (16, 32, 16, 48));
        assert_eq!((gib("H200"), gib("X-24G"), gib("X-24GB"), gib("X-99999G")), (141, 24, 24, 16));
    }

    #[test]
    fn a_range_is_halved_without_overlap() {
        let range = |first, last| PortRange { first, last };
        assert_eq!(own_ports(range(31000, 31999)), range(31000, 31499));
        assert_eq!(played_ports(range(31000, 31999)), Some(range(31500, 31999)));
        assert_eq!(own_ports(range(65535, 65535)), range(65535, 65535));
        assert_eq!(played_ports(range(65535, 65535)), None);
    }
}
