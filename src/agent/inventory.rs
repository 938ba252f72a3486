//! What this machine has: CPU, memory and disk, and its GPUs or, in simulation,
//! some that it has not. It reads; nothing is reserved here.

use super::nvml;
use crate::storage::replace_file;
use nf_core::id::NodeName;
use nf_core::node::{Device, DeviceKind, NodeSpec, PortRange};
use nf_core::played;
use nf_core::resources::MAX_BYTES;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// GPUs of a simulated node of which nothing is said.
const SIMULATED_GPUS: u16 = 8;

/// In the data directory: the GPUs of earlier starts, in their order.
const GPUS: &str = "gpus.json";

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

/// The devices of this process's own node, and whether they are simulated. A GPU that was here at an earlier start
/// and does not answer now keeps its place, as one that is broken: the others keep their numbers, by which replicas
/// hold them, and go on.
///
/// # Errors
/// When there is a driver that does not answer, and no earlier start has seen its GPUs.
pub fn own_devices(node: &NodeName, data_dir: &Path, simulation: bool) -> Result<(Vec<Device>, bool), String> {
    devices_of(nvml::gpus(), node, data_dir, simulation)
}

fn devices_of(
    found: Result<Option<Vec<Device>>, String>,
    node: &NodeName,
    data_dir: &Path,
    simulation: bool,
) -> Result<(Vec<Device>, bool), String> {
    let known = known(data_dir);
    let found = match found {
        Ok(found) => found.unwrap_or_default(),
        Err(error) if known.is_empty() => return Err(error),
        Err(error) => {
            tracing::error!(error, "the GPU driver does not answer: this node's GPUs count as broken until it does");
            Vec::new()
        }
    };
    let devices = with_known(known, found);
    if !devices.is_empty() {
        remember(data_dir, &devices);
        return Ok((devices, false));
    }
    if !simulation {
        return Ok((devices, false));
    }
    let usual = played::usual_type();
    Ok((played::devices(node, DeviceKind::Gpu, &usual, SIMULATED_GPUS, None), true))
}

/// Those of earlier starts in their order, then the new ones.
fn with_known(known: Vec<Device>, mut found: Vec<Device>) -> Vec<Device> {
    let mut out = Vec::with_capacity(known.len() + found.len());
    for old in known {
        match found.iter().position(|device| device.uuid == old.uuid) {
            Some(at) => out.push(found.remove(at)),
            None => {
                tracing::error!(gpu = %old.uuid, "a GPU that was here before does not answer; the others go on. If it was taken out: drain the node, remove {GPUS} from the data directory, and start again");
                out.push(Device { healthy: false, ..old });
            }
        }
    }
    out.extend(found);
    out
}

fn known(data_dir: &Path) -> Vec<Device> {
    let path = data_dir.join(GPUS);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "the GPUs of earlier starts can't be read, and are forgotten");
            Vec::new()
        }),
        Err(_) => Vec::new(),
    }
}

fn remember(data_dir: &Path, devices: &[Device]) {
    let path = data_dir.join(GPUS);
    let bytes = serde_json::to_vec_pretty(devices).unwrap_or_default();
    if let Err(error) = replace_file(&path, &bytes) {
        tracing::warn!(path = %path.display(), %error, "the GPUs can't be remembered for the next start");
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

/// First and longest pause between two looks for GPUs that did not answer.
pub const LATE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// Looks again for GPUs that did not answer at the start, as those of a driver that is late at boot, until all do or
/// nobody listens. Tells each description in which more of them answer.
pub async fn follow<F>(
    spec: NodeSpec,
    look: impl Fn() -> F,
    to: mpsc::Sender<Arc<NodeSpec>>,
    (first, longest): (Duration, Duration),
) where
    F: Future<Output = Result<NodeSpec, String>>,
{
    let unseen = |spec: &NodeSpec| spec.devices.iter().filter(|device| !device.healthy).count();
    let (mut left, mut pause) = (unseen(&spec), first);
    while left > 0 && !to.is_closed() {
        tokio::time::sleep(pause).await;
        pause = longest.min(pause * 2);
        match look().await {
            Ok(now) if unseen(&now) < left => {
                left = unseen(&now);
                tracing::info!(left, "GPUs that did not answer at the start do now");
                pause = first;
                if to.send(Arc::new(now)).await.is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(error, "GPUs do not answer still"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::testing;
    use std::sync::Mutex;

    /// The driver's answers, one a look; the last one stands.
    #[tokio::test]
    async fn a_driver_that_is_late_is_asked_again_until_all_gpus_answer() {
        let (tmp, node) = (tempfile::tempdir().unwrap(), NodeName::new("n1").unwrap());
        let gpu = |uuid: &str| Device { uuid: uuid.into(), ..testing::node_spec(1).devices.remove(0) };
        let (some, all) = (vec![gpu("a")], vec![gpu("a"), gpu("b")]);
        remember(tmp.path(), &all);
        let answers = [Err("booting".to_owned()), Ok(None), Ok(Some(some)), Ok(Some(all))];
        let answers = Mutex::new(answers.into_iter().collect::<std::collections::VecDeque<_>>());
        let look = || {
            let answer = answers.lock().unwrap().pop_front().expect("nobody looks once all answer");
            let (devices, simulated) = devices_of(answer, &node, tmp.path(), false).unwrap();
            node_spec("h", None, Machine { cpu_milli: 1, memory: 1, disk: 1 }, devices, simulated)
        };
        let first = look();
        assert!(first.devices.len() == 2 && first.devices.iter().all(|device| !device.healthy), "{first:?}");
        let (to, mut told) = mpsc::channel(4);
        follow(first, async || Ok(look()), to, (Duration::from_millis(1), Duration::from_millis(4))).await;
        let mut healthy = Vec::new();
        while let Some(spec) = told.recv().await {
            healthy.push(spec.devices.iter().map(|device| device.healthy).collect::<Vec<_>>());
        }
        assert_eq!(healthy, [[true, false], [true, true]]);
    }

    #[test]
    fn a_gpu_that_does_not_answer_keeps_its_place_and_the_others_theirs() {
        let tmp = tempfile::tempdir().unwrap();
        let gpu =
            |uuid: &str, healthy| Device { uuid: uuid.into(), healthy, ..testing::node_spec(1).devices.remove(0) };
        let all = [gpu("a", true), gpu("b", true), gpu("c", true)].to_vec();
        assert_eq!(with_known(known(tmp.path()), all.clone()), all, "at the first start there is nothing to remember");
        remember(tmp.path(), &all);
        let found = vec![gpu("d", true), gpu("c", true), gpu("a", true)];
        let now = with_known(known(tmp.path()), found);
        assert_eq!(now, [gpu("a", true), gpu("b", false), gpu("c", true), gpu("d", true)]);
        remember(tmp.path(), &now);
        let healed =
            with_known(known(tmp.path()), [now[3].clone(), gpu("b", true), now[0].clone(), now[2].clone()].to_vec());
        assert_eq!(healed, [gpu("a", true), gpu("b", true), gpu("c", true), gpu("d", true)]);
        let none = with_known(known(tmp.path()), Vec::new());
        assert!(none.len() == 4 && none.iter().all(|device| !device.healthy), "a driver that does not answer at all");
        std::fs::write(tmp.path().join(GPUS), "[{").unwrap();
        assert_eq!(known(tmp.path()), []);
    }

    #[test]
    fn the_machine_is_read() {
        let machine = machine(Path::new("/"));
        assert!(machine.cpu_milli >= 1000 && machine.memory > 0 && machine.disk > 0, "{machine:?}");
        assert_eq!(total_memory("MemFree: 1 kB\nMemTotal:       16384 kB\n"), Some(16 << 20));
        assert_eq!(total_memory("MemTotal: x kB"), None);
    }
}
