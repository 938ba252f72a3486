//! Parts of a GPU that NVIDIA's Multi-Process Service enforces: whether its control daemon
//! is there, which GPUs it serves, and the limits that a replica gets through its
//! environment. A CUDA program that finds no daemon runs without limits (man page
//! nvidia-cuda-mps-control), so a start looks for it first. Names and units are those of
//! "Multi-Process Service" by NVIDIA, appendix of environment variables.

use super::processes::parent_of;
use crate::agent::post::Post;
use crate::agent::record::End;
use nf_core::node::{Device, DeviceKind};
use nf_core::reason::Reason;
use nf_core::reconcile::Want;
use nf_core::sharing::{Kept, Sharing};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// The daemon writes its process id there, below its pipes.
const PID_FILE: &str = "nvidia-cuda-mps-control.pid";
/// As much of its name as the kernel keeps.
const NAME: &str = "nvidia-cuda-mps";
/// More than a process id takes.
const MAX_PID_FILE: usize = 32;

/// A control daemon that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    pid: u32,
}

impl Daemon {
    /// The daemon that has its pipes there.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub fn find(pipes: &Path) -> Result<Self, String> {
        let path = pipes.join(PID_FILE);
        let text = fs::read_to_string(&path).map_err(|e| format!("no MPS control daemon: {}: {e}", path.display()))?;
        let pid = Some(text.trim()).filter(|text| text.len() <= MAX_PID_FILE).and_then(|text| text.parse::<u32>().ok());
        let pid = pid.ok_or_else(|| format!("no MPS control daemon: {} holds no process id", path.display()))?;
        if !is_named(pid) {
            // Its id may be another's by now.
            return Err(format!("no MPS control daemon: process {pid} of {} is not there any more", path.display()));
        }
        // Anybody may write below /tmp, a replica too.
        let owner = fs::metadata(format!("/proc/{pid}")).map(|meta| meta.uid()).ok();
        match owner.is_some_and(|uid| uid == 0 || uid == nix::unistd::geteuid().as_raw()) {
            true => Ok(Self { pid }),
            false => Err(format!("process {pid} of {} is neither root's nor nf's own", path.display())),
        }
    }

    /// Whether the process is a server of this daemon. It stays on the GPUs that it serves when its last client has gone;
    /// clients are processes of their own.
    pub(super) fn has_server(&self, pid: u32) -> bool {
        // Who is started by anybody else can take the name, but not the parent.
        parent_of(pid) == Some(self.pid) && is_named(pid)
    }

    /// Marks those of the machine's GPUs that the daemon serves. `driver` are their uuids in the driver's order, which
    /// the daemon's numbers count by; the node's own order is that in which it first saw them.
    ///
    /// # Errors
    /// When that can't be known: its environment is its user's own, and root's; and its numbers say nothing while the
    /// driver does not answer. Those that it names by uuid are marked all the same.
    pub fn mark(&self, gpus: &mut [Device], driver: &[Arc<str>]) -> Result<(), String> {
        let environment = fs::read(format!("/proc/{}/environ", self.pid)).map_err(|e| {
            format!("which GPUs the MPS control daemon (process {}) serves can't be read: {e}", self.pid)
        })?;
        let visible = visible(&environment);
        // CUDA counts the fastest first, unless it is told to count as the driver does. Where all are alike, it is the same.
        let alike = gpus.windows(2).all(|pair| pair[0].device_type == pair[1].device_type);
        let counts = alike || set(&environment, "CUDA_DEVICE_ORDER").is_some_and(|order| order == b"PCI_BUS_ID");
        for gpu in gpus.iter_mut().filter(|device| device.kind == DeviceKind::Gpu) {
            let index = driver.iter().position(|uuid| *uuid == gpu.uuid).filter(|_| counts);
            if visible.as_ref().is_none_or(|names| serves(names, index, &gpu.uuid)) {
                gpu.sharing = Sharing::Mps;
            }
        }
        match visible.filter(|names| driver.is_empty() && names.iter().any(|name| name.parse::<usize>().is_ok())) {
            None => Ok(()),
            Some(names) => Err(format!(
                "the MPS control daemon (process {}) serves GPUs by number (CUDA_VISIBLE_DEVICES={}), and the driver, which alone says which those are, does not answer: no part of them is given until it does; start the daemon with their uuids to be independent of that",
                self.pid,
                names.join(",")
            )),
        }
    }
}

fn is_named(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end().starts_with(NAME))
}

/// What a variable of the environment is set to.
fn set<'a>(environment: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let pairs = environment.split(|byte| *byte == 0);
    pairs.filter_map(|pair| pair.strip_prefix(name.as_bytes())).find_map(|rest| rest.strip_prefix(b"="))
}

/// The names of its `CUDA_VISIBLE_DEVICES`; None where it has none, and serves all.
fn visible(environment: &[u8]) -> Option<Vec<String>> {
    let set = set(environment, "CUDA_VISIBLE_DEVICES")?;
    // CUDA takes what stands before the first name that it does not know.
    Some(String::from_utf8_lossy(set).split(',').map(|name| name.trim().to_owned()).collect())
}

/// Whether a GPU is among the names: by its index, where that is known, or by the beginning of its uuid.
fn serves(names: &[String], index: Option<usize>, uuid: &str) -> bool {
    let by_uuid = |name: &str| name.len() > "GPU-".len() && name.starts_with("GPU-") && uuid.starts_with(name);
    names.iter().any(|name| index.is_some() && name.parse().ok() == index || by_uuid(name))
}

/// Whether it is the service that keeps the replica to its part.
pub(super) fn keeps(want: &Want) -> bool {
    want.part.is_some_and(|part| part.kept == Kept::Mps)
}

/// The limits of a replica that the service keeps to its part, as its environment has them; nothing for others.
pub(super) fn limits(want: &Want, pipes: &Path) -> Vec<(&'static str, String)> {
    let Some(part) = want.part.filter(|part| part.kept == Kept::Mps) else { return Vec::new() };
    vec![
        ("CUDA_MPS_PIPE_DIRECTORY", pipes.to_string_lossy().into_owned()),
        ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", part.percent().to_string()),
        // Of the only device that it sees, in MiB.
        ("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", format!("0={}M", (part.memory >> 20).max(1))),
    ]
}

/// Whether the daemon is there for who needs it.
///
/// # Errors
/// How the replica ends where it is not: it would run without its limits.
pub(in crate::agent) async fn served(post: &Post, want: &Want) -> Result<(), End> {
    if !keeps(want) {
        return Ok(());
    }
    let pipes = post.shared.config.mps_pipes.clone();
    let found = tokio::task::spawn_blocking(move || Daemon::find(&pipes)).await;
    let Err(why) = found.map_err(|e| e.to_string()).flatten() else { return Ok(()) };
    post.note(&format!("can't start: its part of the GPU would not be enforced: {why}")).await;
    Err(End::failed(Reason::FractionNotEnforced))
}

#[cfg(test)]
pub(in crate::agent) mod tests {
    use super::*;
    use nf_core::id::NodeName;
    use nf_core::played;
    use std::os::unix::fs::symlink;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    fn gpus(count: u16) -> Vec<Device> {
        let node = NodeName::new("n1").unwrap();
        let mut gpus = played::devices(&node, DeviceKind::Gpu, &played::usual_type(), count, None);
        for (i, gpu) in gpus.iter_mut().enumerate() {
            (gpu.uuid, gpu.sharing) = (format!("GPU-{i}{i}{i}{i}-x").into(), Sharing::None);
        }
        gpus
    }

    /// A program of the daemon's name, which is none.
    pub(in crate::agent) async fn daemon(dir: &Path, visible: Option<&str>) -> Child {
        daemon_with(dir, visible, None).await
    }

    async fn daemon_with(dir: &Path, visible: Option<&str>, order: Option<&str>) -> Child {
        fs::create_dir_all(dir).unwrap();
        let program = dir.join("nvidia-cuda-mps-control");
        // A link, and no copy: what is still open for writing somewhere can't be run.
        symlink("/bin/sleep", &program).unwrap();
        let mut command = Command::new(&program);
        command.arg("60").env_clear().envs(visible.map(|names| ("CUDA_VISIBLE_DEVICES", names)));
        command.envs(order.map(|order| ("CUDA_DEVICE_ORDER", order)));
        let child = command.spawn().unwrap();
        fs::write(dir.join(PID_FILE), format!("{}\n", child.id())).unwrap();
        // It has its name a moment after its pid, and its environment a moment after its name.
        let environ = format!("/proc/{}/environ", child.id());
        let has = |word: Option<&str>| {
            word.is_none_or(|word| fs::read_to_string(&environ).is_ok_and(|all| all.contains(word)))
        };
        let begun = Instant::now();
        while (Daemon::find(dir).is_err() || !has(visible) || !has(order)) && begun.elapsed() < Duration::from_secs(10)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        child
    }

    /// Which of three GPUs, the first of which the driver counts last, such a daemon serves.
    async fn marked(gpus: &[Device], visible: Option<&str>, order: Option<&str>) -> Vec<bool> {
        let dir = tempfile::tempdir().unwrap();
        let mut child = daemon_with(dir.path(), visible, order).await;
        let mut gpus = gpus.to_vec();
        let driver: Vec<Arc<str>> = [1, 2, 0].map(|i| gpus[i].uuid.clone()).to_vec();
        Daemon::find(dir.path()).unwrap().mark(&mut gpus, &driver).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Daemon::find(dir.path()).unwrap_err().contains("not there any more"), "it is gone");
        gpus.iter().map(|gpu| gpu.sharing == Sharing::Mps).collect()
    }

    #[tokio::test]
    async fn the_daemon_is_found_by_its_pipes_and_serves_what_it_sees() {
        let alike = gpus(3);
        assert_eq!(marked(&alike, None, None).await, [true, true, true]);
        assert_eq!(marked(&alike, Some("GPU-2222-x,GPU-00"), None).await, [true, false, true]);
        assert_eq!(marked(&alike, Some(""), None).await, [false, false, false]);
        assert_eq!(marked(&alike, Some("GPU-,-1,nonsense"), None).await, [false, false, false]);
    }

    #[tokio::test]
    async fn its_numbers_are_the_drivers_and_count_only_where_cuda_counts_so() {
        let alike = gpus(3);
        assert_eq!(marked(&alike, Some("1"), None).await, [false, false, true]);
        assert_eq!(marked(&alike, Some("2,0"), None).await, [true, true, false]);
        let mut mixed = gpus(3);
        mixed[1].device_type = nf_core::id::DeviceType::new("T4").unwrap();
        assert_eq!(marked(&mixed, Some("1"), None).await, [false, false, false], "the fastest first, whichever it is");
        assert_eq!(marked(&mixed, Some("1,GPU-00"), None).await, [true, false, false]);
        assert_eq!(marked(&mixed, Some("1"), Some("PCI_BUS_ID")).await, [false, false, true]);
    }

    #[tokio::test]
    async fn its_numbers_say_nothing_while_the_driver_does_not_answer() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = daemon(dir.path(), Some("1,GPU-0000")).await;
        let (found, mut alike) = (Daemon::find(dir.path()).unwrap(), gpus(3));
        let why = found.mark(&mut alike, &[]).unwrap_err();
        assert!(why.contains("CUDA_VISIBLE_DEVICES=1,GPU-0000") && why.contains("does not answer"), "{why}");
        let served: Vec<bool> = alike.iter().map(|gpu| gpu.sharing == Sharing::Mps).collect();
        assert_eq!(served, [true, false, false], "whom it names by uuid is known all the same");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A daemon with a server, neither of which is one.
    pub(in crate::agent) struct Serving {
        daemon: Child,
        pub server: u32,
    }

    impl Serving {
        pub(in crate::agent) async fn begin(dir: &Path) -> Self {
            fs::create_dir_all(dir).unwrap();
            let (program, server) = (dir.join("nvidia-cuda-mps-control"), dir.join("nvidia-cuda-mps-server"));
            symlink("/bin/sh", &program).unwrap();
            symlink("/bin/sleep", &server).unwrap();
            let script = r#""$0" 60 & wait"#;
            let daemon = Command::new(&program).arg("-c").arg(script).arg(&server).spawn().unwrap();
            fs::write(dir.join(PID_FILE), daemon.id().to_string()).unwrap();
            let children = format!("/proc/{0}/task/{0}/children", daemon.id());
            let begun = Instant::now();
            let server = loop {
                let children = fs::read_to_string(&children).unwrap_or_default();
                match children.trim().parse::<u32>().ok().filter(|child| is_named(*child)) {
                    Some(server) => break server,
                    None if begun.elapsed() > Duration::from_secs(10) => panic!("no server of {daemon:?}: {children}"),
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            };
            Self { daemon, server }
        }
    }

    impl Drop for Serving {
        fn drop(&mut self) {
            let _ = self.daemon.kill();
            // Its parent, and nobody else, could have waited for it: the number is still its own.
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(self.server as i32),
                nix::sys::signal::Signal::SIGKILL,
            );
            let _ = self.daemon.wait();
        }
    }

    #[tokio::test]
    async fn its_server_is_its_own_and_a_strangers_is_not() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (own, strange) = (Serving::begin(dir.path()).await, Serving::begin(other.path()).await);
        let found = Daemon::find(dir.path()).unwrap();
        assert!(found.has_server(own.server));
        assert!(!found.has_server(strange.server), "by its name alone nobody is one");
        assert!(!found.has_server(own.daemon.id()) && !found.has_server(std::process::id()));
    }

    #[tokio::test]
    async fn a_strangers_daemon_keeps_nobody() {
        if !nix::unistd::geteuid().is_root() {
            return; // nobody else may be played
        }
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("nvidia-cuda-mps-control");
        symlink("/bin/sleep", &program).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(65_534), Some(65_534)).unwrap();
        let mut child = Command::new(&program).arg("60").uid(65_534).gid(65_534).spawn().unwrap();
        fs::write(dir.path().join(PID_FILE), child.id().to_string()).unwrap();
        let mut said = Daemon::find(dir.path()).unwrap_err();
        let begun = Instant::now();
        while said.contains("not there any more") && begun.elapsed() < Duration::from_secs(10) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            said = Daemon::find(dir.path()).unwrap_err();
        }
        assert!(said.contains("neither root's nor nf's own"), "{said}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn without_a_daemon_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Daemon::find(&dir.path().join("absent")).is_err());
        for text in ["", "x", "-1", "99999999999999999999", &std::process::id().to_string()] {
            fs::write(dir.path().join(PID_FILE), text).unwrap();
            assert!(Daemon::find(dir.path()).is_err(), "{text:?} is no daemon");
        }
    }
}
