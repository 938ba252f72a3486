//! What this machine has: CPU, memory and disk, and its GPUs and TPUs or, in simulation,
//! some that it has not. It reads; nothing is reserved here.

use super::nvml;
use super::runtimes::processes::boot_id;
use super::tpus;
use crate::storage::replace_file;
use nf_core::id::NodeName;
use nf_core::node::{Device, DeviceKind, NodeSpec, PortRange};
use nf_core::played;
use nf_core::resources::MAX_BYTES;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

/// GPUs of a simulated node of which nothing is said.
const SIMULATED_GPUS: u16 = 8;

/// In the data directory: the GPUs of earlier starts, in their order.
const GPUS: &str = "gpus.json";
/// In the data directory: the driver's own order of them, and in which boot of the machine it said so.
const ORDER: &str = "gpu-order.json";

/// How long a start waits for the driver, where it knows the GPUs: what runs here is adopted, and said to run, before
/// the group misses it.
pub const AT_START: Duration = Duration::from_secs(5);
/// How long where it does not: loading a driver that nobody uses takes its time for each GPU.
const UNKNOWN: Duration = Duration::from_secs(60);

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

/// How long a driver is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    AtMost(Duration),
    /// Nobody stands still meanwhile.
    Forever,
}

type Answer = Result<Option<nvml::Found>, String>;

/// The driver, which may hang: it is asked on one thread at a time, and who asks meanwhile gets that thread's answer.
#[derive(Clone)]
pub struct Driver {
    ask: Arc<dyn Fn() -> Answer + Send + Sync>,
    under_way: Arc<Mutex<Option<JoinHandle<Answer>>>>,
}

/// NVIDIA's GPUs, by their driver, and TPUs, by the kernel's files.
fn found() -> Answer {
    let (gpus, tpus) = (nvml::found()?, tpus::Kernel::default().tpus());
    if tpus.is_empty() {
        return Ok(gpus);
    }
    let mut found = gpus.unwrap_or_default();
    found.gpus.extend(tpus);
    Ok(Some(found))
}

impl Default for Driver {
    fn default() -> Self {
        Self::by(found)
    }
}

impl Driver {
    fn by(ask: impl Fn() -> Answer + Send + Sync + 'static) -> Self {
        Self { ask: Arc::new(ask), under_way: Arc::default() }
    }

    async fn answer(&self, wait: Wait) -> Answer {
        let answer = async {
            let mut under_way = self.under_way.lock().await;
            let ask = self.ask.clone();
            // Whoever's patience ends leaves it to the next one.
            let answer = under_way.get_or_insert_with(|| tokio::task::spawn_blocking(move || ask())).await;
            *under_way = None;
            answer.map_err(|e| e.to_string()).flatten()
        };
        match wait {
            Wait::Forever => answer.await,
            Wait::AtMost(most) => {
                let late = |_| Err(format!("it does not answer within {most:?}"));
                tokio::time::timeout(most, answer).await.unwrap_or_else(late)
            }
        }
    }
}

/// The devices of this process's own node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    pub devices: Vec<Device>,
    /// They are played.
    pub simulated: bool,
    /// The uuids of the driver's GPUs in its own order, as it last told in this boot; none where it has not.
    pub order: Vec<Arc<str>>,
}

/// Asks for the devices of this process's own node. Where no GPU is known that could go on meanwhile, it waits for a minute
/// at least. A GPU that was here at an earlier start
/// and does not answer now keeps its place, as one that is broken: the others keep their numbers, by which replicas
/// hold them, and go on.
///
/// # Errors
/// When there is a driver that does not answer, and no earlier start has seen its GPUs.
pub async fn own_devices(
    driver: &Driver,
    node: &NodeName,
    data_dir: &Path,
    simulation: bool,
    wait: Wait,
) -> Result<Own, String> {
    let (node, dir) = (node.clone(), data_dir.to_owned());
    let known = tokio::task::spawn_blocking(move || known(&dir)).await.map_err(|e| e.to_string())?;
    let found = driver.answer(patience(wait, !known.is_empty())).await;
    let data_dir = data_dir.to_owned();
    let own = tokio::task::spawn_blocking(move || devices_of(found, known, &node, &data_dir, simulation));
    own.await.map_err(|e| e.to_string()).flatten()
}

fn patience(wait: Wait, some_are_known: bool) -> Wait {
    match wait {
        Wait::AtMost(most) if !some_are_known => Wait::AtMost(most.max(UNKNOWN)),
        wait => wait,
    }
}

fn devices_of(
    found: Answer,
    known: Vec<Device>,
    node: &NodeName,
    data_dir: &Path,
    simulation: bool,
) -> Result<Own, String> {
    let nvml::Found { gpus, order } = match found {
        Ok(found) => {
            let found = found.unwrap_or_default();
            keep_order(data_dir, &found.order);
            found
        }
        Err(error) if known.is_empty() => return Err(error),
        Err(error) => {
            tracing::error!(error, "the GPU driver does not answer: this node's GPUs count as broken until it does");
            nvml::Found { gpus: Vec::new(), order: kept_order(data_dir) }
        }
    };
    let devices = with_known(known, gpus);
    if !devices.is_empty() {
        remember(data_dir, &devices);
        return Ok(Own { devices, simulated: false, order });
    }
    if !simulation {
        return Ok(Own::default());
    }
    let usual = played::usual_type();
    let devices = played::devices(node, DeviceKind::Gpu, &usual, SIMULATED_GPUS, None);
    Ok(Own { devices, simulated: true, order })
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

/// By what others name GPUs by number while the driver says nothing: it counts anew only when the machine boots.
fn kept_order(data_dir: &Path) -> Vec<Arc<str>> {
    let read = || serde_json::from_slice::<(String, Vec<Arc<str>>)>(&std::fs::read(data_dir.join(ORDER)).ok()?).ok();
    let of_now = |(boot, _): &(String, _)| boot_id().is_ok_and(|now| now == *boot);
    read().filter(of_now).map(|(_, order)| order).unwrap_or_default()
}

fn keep_order(data_dir: &Path, order: &[Arc<str>]) {
    if order.is_empty() || kept_order(data_dir) == order {
        return;
    }
    let bytes = boot_id().map(|boot| serde_json::to_vec(&(boot, order)).unwrap_or_default());
    let kept = bytes.map(|bytes| replace_file(&data_dir.join(ORDER), &bytes).map_err(|error| error.to_string()));
    if let Err(error) = kept.map_err(|error| error.to_string()).flatten() {
        tracing::warn!(error, "the order of the GPUs can't be remembered for the next start");
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
    use std::sync::Mutex as Lock;
    use std::sync::mpsc as line;
    use std::time::Instant;

    /// The driver's answers, one a look; the last one stands.
    #[tokio::test]
    async fn a_driver_that_is_late_is_asked_again_until_all_gpus_answer() {
        let (tmp, node) = (tempfile::tempdir().unwrap(), NodeName::new("n1").unwrap());
        let gpu = |uuid: &str| Device { uuid: uuid.into(), ..testing::node_spec(1).devices.remove(0) };
        let (some, all) = (vec![gpu("a")], vec![gpu("a"), gpu("b")]);
        remember(tmp.path(), &all);
        let found = |gpus| Ok(Some(nvml::Found { gpus, ..nvml::Found::default() }));
        let answers = [Err("booting".to_owned()), Ok(None), found(some), found(all)];
        let answers = Lock::new(answers.into_iter().collect::<std::collections::VecDeque<_>>());
        let look = || {
            let answer = answers.lock().unwrap().pop_front().expect("nobody looks once all answer");
            let Own { devices, simulated, .. } =
                devices_of(answer, known(tmp.path()), &node, tmp.path(), false).unwrap();
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

    /// A driver that hangs until it is let go, and how often it was asked.
    fn hangs() -> (Driver, line::Sender<Answer>, Arc<Lock<u32>>) {
        let (let_go, hung) = line::channel::<Answer>();
        let (hung, asked) = (Lock::new(hung), Arc::<Lock<u32>>::default());
        let counted = asked.clone();
        let driver = Driver::by(move || {
            *counted.lock().unwrap() += 1;
            hung.lock().unwrap().recv().unwrap_or_else(|_| Err("let go without a word".into()))
        });
        (driver, let_go, asked)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_start_does_not_wait_for_a_driver_that_hangs_where_it_knows_the_gpus() {
        let (tmp, node) = (tempfile::tempdir().unwrap(), NodeName::new("n1").unwrap());
        let gpu = |uuid: &str| Device { uuid: uuid.into(), ..testing::node_spec(1).devices.remove(0) };
        let all = vec![gpu("a"), gpu("b")];
        remember(tmp.path(), &all);
        let (driver, let_go, asked) = hangs();
        let look = async |wait| own_devices(&driver, &node, tmp.path(), true, wait).await.unwrap();
        let (begun, soon) = (Instant::now(), Wait::AtMost(Duration::from_millis(50)));
        for _ in 0..3 {
            let own = look(soon).await;
            assert!(own.devices.len() == 2 && own.devices.iter().all(|device| !device.healthy), "{own:?}");
            assert!(!own.simulated, "nothing is played where GPUs are");
        }
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        assert_eq!(*asked.lock().unwrap(), 1, "one thread hangs, however often it is asked");
        let order = vec!["b".into(), "a".into()];
        let_go.send(Ok(Some(nvml::Found { gpus: all.clone(), order: order.clone() }))).unwrap();
        let own = look(Wait::Forever).await;
        assert_eq!(
            (own.devices, own.order, *asked.lock().unwrap()),
            (all, order, 1),
            "what was asked for first is heard"
        );
        drop(let_go);
        let again = async {
            while *asked.lock().unwrap() < 2 {
                assert_eq!(look(soon).await.devices.len(), 2);
            }
        };
        tokio::time::timeout(Duration::from_secs(20), again).await.expect("it is asked anew");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn where_no_gpu_is_known_a_driver_has_more_time_and_then_the_start_fails() {
        let (soon, late) = (Wait::AtMost(AT_START), Wait::AtMost(UNKNOWN));
        assert_eq!((patience(soon, true), patience(soon, false)), (soon, late));
        assert_eq!(patience(Wait::Forever, false), Wait::Forever);
        let (tmp, node) = (tempfile::tempdir().unwrap(), NodeName::new("n1").unwrap());
        let (driver, let_go, _) = hangs();
        let answer = driver.answer(Wait::AtMost(Duration::from_millis(20))).await;
        let failed = devices_of(answer, Vec::new(), &node, tmp.path(), true).unwrap_err();
        assert!(failed.contains("20ms"), "{failed}");
        drop(let_go);
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

    /// Else a node whose GPUs are held in parts could not register while its driver hangs: who enforces them may name
    /// them by number.
    #[test]
    fn the_drivers_order_is_known_while_it_hangs_and_forgotten_with_a_boot() {
        let (tmp, node) = (tempfile::tempdir().unwrap(), NodeName::new("n1").unwrap());
        let gpu = |uuid: &str| Device { uuid: uuid.into(), ..testing::node_spec(1).devices.remove(0) };
        let order: Vec<Arc<str>> = vec!["b".into(), "a".into()];
        let found = nvml::Found { gpus: vec![gpu("a"), gpu("b")], order: order.clone() };
        let look = |answer| devices_of(answer, known(tmp.path()), &node, tmp.path(), false).unwrap().order;
        assert_eq!(look(Ok(Some(found))), order);
        assert_eq!(look(Err("hangs".into())), order);
        let kept = std::fs::read_to_string(tmp.path().join(ORDER)).unwrap();
        std::fs::write(tmp.path().join(ORDER), kept.replace(&boot_id().unwrap(), "another")).unwrap();
        assert!(look(Err("hangs".into())).is_empty(), "another boot may count otherwise");
    }

    #[test]
    fn the_machine_is_read() {
        let machine = machine(Path::new("/"));
        assert!(machine.cpu_milli >= 1000 && machine.memory > 0 && machine.disk > 0, "{machine:?}");
        assert_eq!(total_memory("MemFree: 1 kB\nMemTotal:       16384 kB\n"), Some(16 << 20));
        assert_eq!(total_memory("MemTotal: x kB"), None);
    }
}
