//! The single looks of `nf doctor`.

use super::Finding;
use crate::agent::runtimes::cgroup::Cgroups;
use crate::agent::runtimes::mps::Daemon;
use crate::agent::runtimes::users::{Giver, Users};
use crate::agent::{engine, lease, nvml, tpus};
use nf_core::node::{Device, PortRange};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::{Statvfs, statvfs};
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Linux with `cgroup.kill`.
const KERNEL: (u32, u32) = (5, 14);
/// Open files that a busy member or model server may need.
const FILES: u64 = 65_536;
/// Room below which models and logs soon fill a disk.
const ROOM: u64 = 10 << 30;
/// A slower disk is felt by every schedule call: each waits for one fsync.
const FSYNC: Duration = Duration::from_millis(20);
/// Shared memory that servers with several GPUs use between their processes.
const SHARED: u64 = 1 << 30;

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

#[allow(clippy::unnecessary_cast, reason = "the types differ between platforms")]
fn bytes(fs: &Statvfs, blocks: nix::libc::fsblkcnt_t) -> u64 {
    (blocks as u64).saturating_mul(fs.fragment_size() as u64)
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

pub(super) fn kernel() -> Finding {
    let release = read("/proc/sys/kernel/osrelease");
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let text = format!("Linux {release}");
    match version >= KERNEL {
        true => Finding::ok("kernel", text),
        false => {
            let wanted =
                format!("Linux {}.{} or later: older ones end a replica's processes one by one", KERNEL.0, KERNEL.1);
            Finding::missing("kernel", text, wanted)
        }
    }
}

pub(super) fn cgroups() -> Finding {
    let lost = "replicas run without limits of cpu, memory and processes, on any CPU, and a program that flees its session may outlive its stop";
    match Cgroups::find() {
        Err(why) => Finding::missing("cgroup v2", format!("none: {lost}"), why),
        Ok(groups) => {
            let has = groups.limits.join(", ");
            let kill = if groups.kill { "cgroup.kill" } else { "no cgroup.kill" };
            match groups.missing() {
                none if none.is_empty() && groups.kill => Finding::ok("cgroup v2", format!("{has}, {kill}")),
                missing => {
                    let detail = format!("{kill}; no limits of {}", missing.join(", "));
                    let next = "run nf as a systemd service with Delegate=yes on a machine without cgroup v1";
                    Finding::missing("cgroup v2", detail, next)
                }
            }
        }
    }
}

pub(super) fn users(wish: &Users) -> Finding {
    let lost = "replicas run as nf's own user: they can read what it can, and one another";
    match (Giver::find(wish), wish.range) {
        (Ok(_), Some((first, last))) => Finding::ok("replica users", format!("each replica is one of {first}-{last}")),
        (Err(why), _) if wish.required => Finding::fault("replica users", "NF_REPLICA_USERS can't be kept", why),
        (Err(why), _) => Finding::missing("replica users", lost, why),
        (Ok(_), None) => Finding::missing("replica users", lost, "set NF_REPLICA_USERS"),
    }
}

pub(super) fn limits() -> Finding {
    let hard = |resource| getrlimit(resource).map_or(0, |(_, hard)| hard);
    let (files, tasks) = (hard(Resource::RLIMIT_NOFILE), hard(Resource::RLIMIT_NPROC));
    let shown = |n: u64| if n == u64::MAX { "unlimited".to_owned() } else { n.to_string() };
    let detail = format!("open files {}, processes {}", shown(files), shown(tasks));
    match files >= FILES {
        true => Finding::ok("limits", detail),
        false => {
            Finding::missing("limits", detail, format!("allow {FILES} open files: ulimit -Hn, or LimitNOFILE={FILES}"))
        }
    }
}

/// Tries what a member does: write and sync a little file. In the nearest directory that exists.
pub(super) fn disk(data: &Path) -> Finding {
    let there = data.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let trial = there.join(format!(".nf-doctor-{}", std::process::id()));
    let begun = Instant::now();
    let wrote = fs::File::create(&trial).and_then(|mut file| {
        file.write_all(&[0; 4096])?;
        file.sync_all()
    });
    let took = begun.elapsed();
    let _ = fs::remove_file(&trial);
    if let Err(error) = wrote {
        let next = "choose a directory on a disk that can be written: --data-dir, NF_DATA_DIR";
        return Finding::fault("disk", format!("{}: {error}", there.display()), next);
    }
    let room = statvfs(there).map_or(0, |fs| bytes(&fs, fs.blocks_available()));
    let detail = format!("{}: {} free, an fsync takes {:.1} ms", there.display(), gib(room), took.as_secs_f64() * 1e3);
    match () {
        () if room < ROOM => Finding::missing("disk", detail, format!("make room: models and logs want {}", gib(ROOM))),
        () if took > FSYNC => {
            let next = "use a disk with power-loss protection: each schedule call waits for one fsync of a majority";
            Finding::missing("disk", detail, next)
        }
        () => Finding::ok("disk", detail),
    }
}

/// Leases need a clock that counts while the machine sleeps; certificates and tokens need the right time.
pub(super) fn clock() -> Finding {
    let source = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let marked = ["/run/systemd/timesync/synchronized", "/run/chrony/chronyd.pid", "/run/ntpd.pid"];
    let kept = marked.iter().find(|path| Path::new(path).exists());
    let by = kept.map_or("no time service was seen", |_| "kept by a time service");
    let detail = format!("up {} h, source {source}, {by}", lease::boot_ms() / 3_600_000);
    match source.as_str() {
        "jiffies" | "acpi_pm" | "hpet" => {
            Finding::missing("clock", detail, "a slow clock source: see the kernel's log for why it gave up the tsc")
        }
        _ => Finding::ok("clock", detail),
    }
}

pub(super) fn listen(check: &'static str, address: SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok(check, format!("{address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let next = "fine when nf runs here already; else stop who listens there, or choose another with --listen";
            Finding::missing(check, format!("{address} is taken"), next)
        }
        Err(error) => {
            let next = "choose an address of this machine with --listen and --peer-listen";
            Finding::fault(check, format!("{address}: {error}"), next)
        }
    }
}

/// A port that Linux hands out to any outgoing connection may be taken when a replica wants it.
pub(super) fn replica_ports(ports: PortRange) -> Finding {
    let own = read("/proc/sys/net/ipv4/ip_local_port_range");
    let mut ends = own.split_whitespace().filter_map(|n| n.parse::<u16>().ok());
    let (first, last) = (ends.next().unwrap_or(32_768), ends.next().unwrap_or(60_999));
    let detail = format!("{}-{} for replicas, {first}-{last} for outgoing connections", ports.first, ports.last);
    match ports.last < first || ports.first > last {
        true => Finding::ok("replica ports", detail),
        false => {
            let range = format!("{}-{}", ports.first, ports.last);
            let next = format!("keep them apart: NF_PORT_RANGE, or sysctl net.ipv4.ip_local_reserved_ports={range}");
            Finding::missing("replica ports", detail, next)
        }
    }
}

fn types(devices: &[Device]) -> String {
    devices.iter().map(|device| device.device_type.as_str()).collect::<Vec<_>>().join(", ")
}

pub(super) fn gpus() -> Finding {
    let tpus = tpus::Kernel::default().tpus();
    match nvml::gpus() {
        Ok(Some(gpus)) if !gpus.is_empty() => Finding::ok("gpus", format!("{} by NVML: {}", gpus.len(), types(&gpus))),
        Ok(_) if !tpus.is_empty() => Finding::ok(
            "gpus",
            format!("no NVIDIA driver, {} TPUs by their files in /dev: {}", tpus.len(), types(&tpus)),
        ),
        Ok(_) => Finding::missing(
            "gpus",
            "no NVIDIA driver: devices are simulated, or none",
            "install the driver (nvidia-smi must work), or say what there is with GPU_NODES",
        ),
        Err(error) => Finding::fault("gpus", error, "the driver is there and does not answer: nvidia-smi says more"),
    }
}

/// Whether something enforces parts of this machine's GPUs.
pub(super) fn parts(pipes: &Path) -> Finding {
    let check = "gpu parts";
    match Daemon::find(pipes) {
        Ok(_) => Finding::ok(check, "the MPS control daemon keeps replicas to their parts; nf get gpus -o wide"),
        Err(why) => {
            let detail = format!("{why}: nothing enforces a part of a GPU here");
            let next =
                "only needed for jobs that ask for part of a GPU: nvidia-cuda-mps-control -d, then start nf again";
            Finding::missing(check, detail, next)
        }
    }
}

/// `socket`: where the settings, or the usual places, say that an engine is.
pub(super) fn containers(socket: Option<&Path>) -> Finding {
    let check = "container engine";
    let Some(socket) = socket else {
        let next = "only needed for versions that run in containers: install docker.io, or name a socket with NF_CONTAINER_ENGINE";
        return Finding::missing(check, "no socket of Docker or Podman", next);
    };
    // Whoever calls may be inside a runtime or not: this look has one of its own.
    let asked = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
            runtime.block_on(engine::look(socket))
        });
        asking.join().unwrap_or_else(|_| Err("the look failed".to_owned()))
    });
    match asked {
        Ok(facts) if facts.missing.is_empty() => Finding::ok(check, facts.to_string()),
        Ok(facts) => {
            let detail = format!("{facts}; it has no {}", facts.missing.join(", no "));
            Finding::missing(check, detail, "see what its own info warns of: docker info")
        }
        Err(why) => Finding::missing(check, why, "start the engine, or let this user speak to it (group docker)"),
    }
}

pub(super) fn python() -> Finding {
    let wanted = std::env::var("NF_PYTHON").ok().filter(|p| !p.is_empty()).unwrap_or_else(|| "python3".into());
    let on_path = || {
        // What replicas get as PATH, not what this shell has.
        let dirs = crate::agent::runtimes::process::PATH.split(':');
        dirs.map(|dir| Path::new(dir).join(&wanted)).find(|path| path.is_file())
    };
    let found = if wanted.contains('/') { Some(PathBuf::from(&wanted)).filter(|p| p.is_file()) } else { on_path() };
    match found {
        Some(path) => Finding::ok("python", format!("{} for {{python}}", path.display())),
        None => {
            let detail = format!("{wanted} is not there: manifests that say {{python}} can't run");
            Finding::missing("python", detail, "install python3, or name one with NF_PYTHON")
        }
    }
}

pub(super) fn shared_memory() -> Finding {
    let size = statvfs("/dev/shm").map_or(0, |fs| bytes(&fs, fs.blocks()));
    match size >= SHARED {
        true => Finding::ok("shared memory", format!("/dev/shm {}", gib(size))),
        false => {
            let detail = format!("/dev/shm {}: servers with several GPUs may fail", gib(size));
            Finding::missing("shared memory", detail, "mount it larger: mount -o remount,size=8G /dev/shm")
        }
    }
}
