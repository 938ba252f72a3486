//! What a node has: CPU, memory and disk of this machine, its GPUs or simulated
//! ones, and ports for its replicas. It reads; nothing is reserved here.

use super::nvml;
use nf_core::id::{DeviceType, NodeName};
use nf_core::node::{Device, DeviceKind, NodeSpec, PortRange};
use nf_core::resources::{MAX_BYTES, MAX_DEVICES};
use nf_core::state::State;
use std::path::Path;
use std::sync::Arc;

/// Ports that a played node gets.
pub const PLAYED_PORTS: u16 = 100;
/// GPUs of a simulated node, and how many of them share fast links.
const SIMULATED_GPUS: u16 = 8;
const ISLAND: u16 = 4;
/// The type and memory of a simulated GPU of which nothing else is said.
pub const SIMULATED_TYPE: (&str, u64) = ("H100-80G", 80 << 30);
/// Nodes that one process may play by `GPU_NODES`.
const LISTED: usize = 256;

/// The machine without its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes in all of the file system that holds the data directory.
    pub disk: u64,
}

/// Reads the machine. What can't be read counts as none.
pub fn machine(data_dir: &Path) -> Machine {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let disk = nix::sys::statvfs::statvfs(data_dir);
    Machine {
        cpu_milli: cpus * 1000,
        memory: total_memory(&meminfo).unwrap_or(0),
        #[allow(clippy::unnecessary_cast, reason = "the types differ between platforms")]
        // Some file systems of the cloud say that they have no end.
        disk: disk.map_or(0, |fs| (fs.blocks() as u64).saturating_mul(fs.fragment_size() as u64).min(MAX_BYTES)),
    }
}

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// `GPU_NODES`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuNodes {
    /// Ask NVML.
    Auto,
    /// Nodes that this process plays.
    Listed(Vec<Listed>),
}

/// A node of `GPU_NODES`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub node: NodeName,
    pub device_type: DeviceType,
    pub count: u16,
}

/// Parses `auto`, or CSV of `name[:device_type[:count]]`.
///
/// # Errors
/// A text that names the part at fault.
pub fn parse_gpu_nodes(text: &str) -> Result<GpuNodes, String> {
    if text.trim().eq_ignore_ascii_case("auto") {
        return Ok(GpuNodes::Auto);
    }
    let mut out: Vec<Listed> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let bad = |why: String| format!("GPU_NODES: \"{}\": {why}", part.chars().take(80).collect::<String>());
        let mut fields = part.split(':');
        let node = NodeName::new(fields.next().unwrap_or_default()).map_err(|e| bad(e.to_string()))?;
        let device_type = match fields.next() {
            Some(text) => DeviceType::new(text).map_err(|e| bad(e.to_string()))?,
            None => simulated_type(),
        };
        let count = match fields.next() {
            None => 1,
            Some(text) => text
                .parse::<u16>()
                .ok()
                .filter(|count| *count <= MAX_DEVICES)
                .ok_or_else(|| bad(format!("the count is a number from 0 to {MAX_DEVICES}")))?,
        };
        if fields.next().is_some() {
            return Err(bad("name[:device_type[:count]] has three parts at most".into()));
        }
        if out.iter().any(|listed| listed.node == node) {
            return Err(bad("the node is listed twice".into()));
        }
        out.push(Listed { node, device_type, count });
    }
    match out.len() {
        0 => Err("GPU_NODES: auto, or a list such as n1,n2:H100-80G:8".into()),
        1..=LISTED => Ok(GpuNodes::Listed(out)),
        many => Err(format!("GPU_NODES: at most {LISTED} nodes, not {many}")),
    }
}

/// The devices of this process's own node, and whether they are simulated.
///
/// # Errors
/// When there is a driver that does not answer.
pub fn own_devices(node: &NodeName, simulation: bool) -> Result<(Vec<Device>, bool), String> {
    match nvml::gpus()? {
        Some(gpus) if !gpus.is_empty() => Ok((gpus, false)),
        _ if simulation => Ok((simulated_devices(node, &simulated_type(), SIMULATED_GPUS), true)),
        _ => Ok((Vec::new(), false)),
    }
}

fn simulated_type() -> DeviceType {
    DeviceType::new(SIMULATED_TYPE.0).expect("a fixed name that is valid")
}

/// `count` simulated GPUs in islands of four.
pub fn simulated_devices(node: &NodeName, device_type: &DeviceType, count: u16) -> Vec<Device> {
    let device = |i: u16| Device {
        uuid: format!("GPU-sim-{node}-{i}").into(),
        kind: DeviceKind::Gpu,
        device_type: device_type.clone(),
        memory: memory_of(device_type.as_str()),
        island: i / ISLAND,
        mig_profile: None,
        healthy: true,
    };
    (0..count).map(device).collect()
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
    let model = device_type.to_ascii_uppercase();
    let gib = match model.as_str() {
        "H200" => 141,
        "H100" | "A100" => 80,
        "A800" | "H800" => 80,
        "L40" | "L40S" | "A40" | "V100M32" => 32.max(if model.starts_with("V100") { 32 } else { 48 }),
        "A10" | "A30" | "G2" | "L4" => 24,
        _ => 16,
    };
    gib << 30
}

/// What a node says of itself at registration. Places and prices are the caller's to add.
pub fn node_spec(
    host: &str,
    ports: Option<PortRange>,
    machine: Machine,
    devices: Vec<Device>,
    simulated: bool,
) -> NodeSpec {
    NodeSpec {
        host: Arc::from(host),
        ports,
        cpu_milli: machine.cpu_milli,
        memory: machine.memory,
        disk: machine.disk,
        devices,
        labels: Default::default(),
        region: None,
        zone: None,
        rack: None,
        cost_per_hour: Default::default(),
        simulated,
    }
}

/// Splits a member's range: its own node keeps the first half, nodes that it plays share the other.
pub fn own_ports(range: PortRange) -> PortRange {
    let half = (range.last - range.first) / 2;
    PortRange { first: range.first, last: range.first + half }
}

/// The lowest [`PLAYED_PORTS`] ports of the second half of `range` that no other node on `host` has.
/// None when they are used up.
pub fn played_ports(state: &State, node: &NodeName, host: &str, range: PortRange) -> Option<PortRange> {
    let mut taken: Vec<PortRange> = state
        .nodes()
        .values()
        .filter(|n| n.name != *node && *n.spec.host == *host)
        .filter_map(|n| n.spec.ports)
        .collect();
    taken.sort_unstable();
    let mut first = u32::from(own_ports(range).last) + 1;
    for used in taken {
        if first + u32::from(PLAYED_PORTS) <= u32::from(used.first) {
            break;
        }
        first = first.max(u32::from(used.last) + 1);
    }
    let last = first + u32::from(PLAYED_PORTS) - 1;
    let fits = last <= u32::from(range.last);
    fits.then_some(PortRange { first: first as u16, last: last as u16 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::testing;

    #[test]
    fn the_machine_is_read() {
        let machine = machine(Path::new("/"));
        assert!(machine.cpu_milli >= 1000 && machine.memory > 0 && machine.disk > 0, "{machine:?}");
        assert_eq!(total_memory("MemFree: 1 kB\nMemTotal:       16384 kB\n"), Some(16 << 20));
        assert_eq!(total_memory("MemTotal: x kB"), None);
    }

    #[test]
    fn gpu_nodes_are_parsed_or_named() {
        assert_eq!(parse_gpu_nodes(" Auto "), Ok(GpuNodes::Auto));
        let Ok(GpuNodes::Listed(nodes)) = parse_gpu_nodes("n1, n2:A100-40G:8") else { panic!("a list") };
        assert_eq!((nodes[0].count, nodes[0].device_type.as_str()), (1, "H100-80G"));
        assert_eq!((nodes[1].count, nodes[1].device_type.as_str()), (8, "A100-40G"));
        for bad in ["", ",", "../x", "n1:", "n1:H100:x", "n1:H100:-1", "n1:H100:9999", "n1:H100:1:1", "n1,n1"] {
            assert!(parse_gpu_nodes(bad).is_err_and(|e| e.starts_with("GPU_NODES")), "{bad}");
        }
        let many: Vec<String> = (0..300).map(|i| format!("n{i}")).collect();
        assert!(parse_gpu_nodes(&many.join(",")).is_err());
    }

    #[test]
    fn a_simulated_node_has_two_islands() {
        let gpus = simulated_devices(&NodeName::new("n1").unwrap(), &simulated_type(), 8);
        assert_eq!(gpus.iter().map(|g| g.island).collect::<Vec<_>>(), [0, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(gpus[0].memory, 80 << 30);
        assert_eq!((memory_of("T4"), memory_of("V100M32"), memory_of("G3")), (16 << 30, 32 << 30, 16 << 30));
    }

    #[test]
    fn played_nodes_on_one_host_share_no_port() {
        let range = PortRange { first: 31000, last: 31999 };
        let mut state = State::new();
        let own = NodeSpec { ports: Some(own_ports(range)), ..testing::node_spec(1) };
        testing::run(&mut state, testing::register("own", own));
        let mut seen: Vec<PortRange> = vec![own_ports(range)];
        for i in 0..5 {
            let name = format!("p{i}");
            let ports = played_ports(&state, &NodeName::new(&name).unwrap(), "127.0.0.1", range).unwrap();
            assert!(seen.iter().all(|s| s.last < ports.first || ports.last < s.first), "{ports:?} in {seen:?}");
            let spec = NodeSpec { ports: Some(ports), ..testing::node_spec(1) };
            testing::run(&mut state, testing::register(&name, spec));
            seen.push(ports);
        }
        let next = NodeName::new("p5").unwrap();
        assert_eq!(played_ports(&state, &next, "127.0.0.1", range), None, "the range is used up");
        assert!(played_ports(&state, &next, "other", range).is_some(), "another host has its own ports");
        let again = NodeName::new("p2").unwrap();
        assert_eq!(played_ports(&state, &again, "127.0.0.1", range), Some(seen[3]), "a node keeps its own");
        let edge = PortRange { first: 65000, last: 65535 };
        assert!(played_ports(&state, &next, "127.0.0.1", edge).is_some_and(|p| p.first < p.last), "no overflow");
    }
}
