//! What this machine has: CPU, memory and disk, and its GPUs or, in simulation,
//! some that it has not. It reads; nothing is reserved here.

use super::nvml;
use nf_core::id::NodeName;
use nf_core::node::{Device, DeviceKind, NodeSpec, PortRange};
use nf_core::played;
use nf_core::resources::MAX_BYTES;
use std::path::Path;
use std::sync::Arc;

/// GPUs of a simulated node of which nothing is said.
const SIMULATED_GPUS: u16 = 8;

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

/// The devices of this process's own node, and whether they are simulated.
///
/// # Errors
/// When there is a driver that does not answer.
pub fn own_devices(node: &NodeName, simulation: bool) -> Result<(Vec<Device>, bool), String> {
    match nvml::gpus()? {
        Some(gpus) if !gpus.is_empty() => Ok((gpus, false)),
        _ if simulation => {
            let usual = played::usual_type();
            Ok((played::devices(node, DeviceKind::Gpu, &usual, SIMULATED_GPUS, None), true))
        }
        _ => Ok((Vec::new(), false)),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read() {
        let machine = machine(Path::new("/"));
        assert!(machine.cpu_milli >= 1000 && machine.memory > 0 && machine.disk > 0, "{machine:?}");
        assert_eq!(total_memory("MemFree: 1 kB\nMemTotal:       16384 kB\n"), Some(16 << 20));
        assert_eq!(total_memory("MemTotal: x kB"), None);
    }
}
