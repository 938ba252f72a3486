//! The TPUs of this machine, as the kernel shows them: functions of the PCI bus with Google's number, each with the file
//! by which a program opens it (`/dev/accelN`, or `/dev/vfio/GROUP`). No library of theirs is loaded. A machine without
//! any is normal. Who has such a file open is on the device; more can't be seen of one. Whoever holds a chip is made its file's
//! owner meanwhile, where replicas have users of their own. It decides nothing.

use super::numa::Sysfs;
use nf_core::id::DeviceType;
use nf_core::node::{Device, DeviceKind};
use nf_core::sharing::Sharing;
use nf_core::vacancy::Look;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Google's on the PCI bus.
const VENDOR: &str = "0x1ae0";
/// Its chips: the PCI device, the subsystem where that tells two apart, our word for the type, and GiB of memory, as
/// Google's pages on Cloud TPU have them.
const CHIPS: [(&str, Option<&str>, &str, u64); 7] = [
    ("0x0027", Some("0x004e"), "TPU-v2", 16),
    ("0x0027", None, "TPU-v3", 32),
    ("0x005e", None, "TPU-v4", 32),
    ("0x0062", None, "TPU-v5p", 95),
    ("0x0063", None, "TPU-v5e", 16),
    ("0x006f", None, "TPU-v6e", 32),
    ("0x0076", None, "TPU-v7x", 192),
];
/// Whose files of devices are as the kernel makes them.
const ROOT: u32 = 0;
/// What uuids of theirs begin with; the rest is the address on the PCI bus.
const PREFIX: &str = "TPU-";

/// Where the kernel shows its devices and processes.
#[derive(Clone, Debug)]
pub struct Kernel {
    sys: PathBuf,
    dev: PathBuf,
    proc: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

/// A chip, and the file by which it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chip {
    device: Device,
    file: PathBuf,
    /// Of the file: programs count chips in its order.
    number: u32,
}

/// Whether a device of that uuid is a real TPU of a machine.
pub fn is_one(uuid: &str) -> bool {
    uuid.starts_with(PREFIX) && !nf_core::played::is_played(uuid)
}

impl Kernel {
    fn below(root: &Path) -> Self {
        let [sys, dev, proc] = ["sys", "dev", "proc"].map(|part| root.join(part));
        Self { sys, dev, proc }
    }

    /// The TPUs, in the order of their files.
    pub fn tpus(&self) -> Vec<Device> {
        self.chips().into_iter().map(|chip| chip.device).collect()
    }

    /// Which chips a program may open that gets these devices, as libtpu reads `TPU_VISIBLE_CHIPS`; None of no TPU.
    pub fn visible(&self, uuids: &[Arc<str>]) -> Option<String> {
        if !uuids.iter().any(|uuid| is_one(uuid)) {
            return None;
        }
        let chips = self.chips();
        let its = |(at, chip): (usize, &Chip)| uuids.contains(&chip.device.uuid).then(|| at.to_string());
        let numbers: Vec<String> = chips.iter().enumerate().filter_map(its).collect();
        Some(numbers.join(","))
    }

    /// What is on a TPU: who has its file open. None where other users' processes can't be looked into.
    ///
    /// # Errors
    /// When it is not there.
    pub fn look(&self, uuid: &str) -> Result<Option<Look>, String> {
        let chip = self.chips().into_iter().find(|chip| &*chip.device.uuid == uuid);
        let chip = chip.ok_or("it is not on the PCI bus, or has no file in /dev")?;
        if !nix::unistd::geteuid().is_root() {
            return Ok(None);
        }
        let opens = |pid: &u32| {
            let open = fs::read_dir(self.proc.join(pid.to_string()).join("fd"));
            open.into_iter().flatten().flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == chip.file))
        };
        let pids = fs::read_dir(&self.proc).map_err(|error| error.to_string())?.flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(opens).collect();
        Ok(Some(Look { used: 0, total: chip.device.memory, pids }))
    }

    /// Makes the files of these devices a user's, who could not open them otherwise: as the kernel makes them they are
    /// root's, and nobody else's to open. Those that are neither root's nor, by `ours`, left by a replica's user are as
    /// somebody of the machine wants them (a udev rule), and stay so.
    ///
    /// # Errors
    /// With the file that can't be given.
    pub fn lend(&self, uuids: &[Arc<str>], to: u32, ours: impl Fn(u32) -> bool) -> io::Result<()> {
        self.files(uuids).into_iter().try_for_each(|file| give(&file, to, |owner| owner == ROOT || ours(owner)))
    }

    /// Makes those that are still that user's root's again.
    ///
    /// # Errors
    /// With the file that can't be taken back.
    pub fn take_back(&self, uuids: &[Arc<str>], from: u32) -> io::Result<()> {
        // Each of them, whatever becomes of the others.
        let given = self.files(uuids).into_iter().map(|file| give(&file, ROOT, |owner| owner == from));
        given.fold(Ok(()), Result::and)
    }

    /// The files that open those of the devices that are real TPUs.
    fn files(&self, uuids: &[Arc<str>]) -> Vec<PathBuf> {
        if !uuids.iter().any(|uuid| is_one(uuid)) {
            return Vec::new();
        }
        self.chips().into_iter().filter(|chip| uuids.contains(&chip.device.uuid)).map(|chip| chip.file).collect()
    }

    fn chips(&self) -> Vec<Chip> {
        let functions = fs::read_dir(self.sys.join("bus/pci/devices")).into_iter().flatten().flatten();
        let mut chips: Vec<Chip> = functions.filter_map(|function| self.chip(&function.path())).collect();
        chips.sort_by(|a, b| (a.number, &a.device.uuid).cmp(&(b.number, &b.device.uuid)));
        chips
    }

    fn chip(&self, function: &Path) -> Option<Chip> {
        let says = |name: &str| fs::read_to_string(function.join(name)).map(|text| text.trim().to_lowercase());
        if says("vendor").ok()? != VENDOR {
            return None;
        }
        let (device, subsystem) = (says("device").ok()?, says("subsystem_device").unwrap_or_default());
        let (_, _, name, gib) =
            CHIPS.into_iter().find(|(id, of, ..)| *id == device && of.is_none_or(|of| of == subsystem))?;
        let address = function.file_name()?.to_str()?;
        let Some((file, number)) = self.file(function) else {
            tracing::warn!(
                address,
                name,
                "a TPU has no file in /dev that opens it, and is left out: is its driver loaded?"
            );
            return None;
        };
        let device = Device {
            uuid: format!("{PREFIX}{address}").into(),
            kind: DeviceKind::Tpu,
            device_type: DeviceType::new(name).ok()?,
            memory: gib << 30,
            // The chips of a machine are linked with one another.
            island: 0,
            numa: Sysfs::at(&self.sys).node_of(address),
            mig_profile: None,
            healthy: true,
            sharing: Sharing::None,
        };
        Some(Chip { device, file, number })
    }

    /// The file that opens the function, and its number.
    fn file(&self, function: &Path) -> Option<(PathBuf, u32)> {
        let there = |path: PathBuf, number: &str| Some((path.exists().then_some(path)?, number.parse().ok()?));
        let accel = fs::read_dir(function.join("accel")).into_iter().flatten().flatten().find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let number = name.strip_prefix("accel")?.to_owned();
            // Google's driver has it directly in /dev, the kernel's own class of accelerators in a folder.
            there(self.dev.join(&name), &number).or_else(|| there(self.dev.join("accel").join(&name), &number))
        });
        accel.or_else(|| {
            let group = fs::read_link(function.join("iommu_group")).ok()?;
            let number = group.file_name()?.to_str()?;
            there(self.dev.join("vfio").join(number), number)
        })
    }
}

/// Makes a file `to`'s, if the one whose it is lets that be. Its group and mode stay.
fn give(file: &Path, to: u32, from: impl Fn(u32) -> bool) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", file.display()));
    match from(fs::metadata(file).map_err(named)?.uid()) {
        true => chown(file, Some(to), None).map_err(named),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A machine's directories, as far as they are looked into.
    struct Played(tempfile::TempDir);

    impl Played {
        fn new() -> Self {
            let played = Self(tempfile::tempdir().unwrap());
            for dir in ["dev/vfio", "proc", "sys/bus/pci/devices"] {
                fs::create_dir_all(played.0.path().join(dir)).unwrap();
            }
            played
        }

        fn kernel(&self) -> Kernel {
            Kernel::below(self.0.path())
        }

        fn function(&self, address: &str, says: &[(&str, &str)]) -> PathBuf {
            let dir = self.0.path().join("sys/bus/pci/devices").join(address);
            fs::create_dir_all(&dir).unwrap();
            says.iter().for_each(|(name, text)| fs::write(dir.join(name), format!("{text}\n")).unwrap());
            dir
        }

        fn accel(&self, address: &str, device: &str, number: u32, file: &str) {
            let dir = self.function(address, &[("vendor", VENDOR), ("device", device), ("numa_node", "1")]);
            fs::create_dir_all(dir.join(format!("accel/accel{number}"))).unwrap();
            self.dev(file);
        }

        fn vfio(&self, address: &str, device: &str, group: u32) {
            let dir = self.function(address, &[("vendor", VENDOR), ("device", device), ("numa_node", "-1")]);
            symlink(format!("../../../kernel/iommu_groups/{group}"), dir.join("iommu_group")).unwrap();
            self.dev(&format!("vfio/{group}"));
        }

        fn dev(&self, file: &str) {
            let path = self.0.path().join("dev").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
    }

    fn told(kernel: &Kernel) -> Vec<(String, String, u64, Option<u16>)> {
        let tpus = kernel.tpus().into_iter();
        tpus.map(|tpu| (tpu.uuid.to_string(), tpu.device_type.to_string(), tpu.memory >> 30, tpu.numa)).collect()
    }

    #[test]
    fn tpus_are_those_of_the_pci_bus_that_have_a_file() {
        let played = Played::new();
        assert_eq!(told(&played.kernel()), [], "a machine without any is normal");
        assert_eq!(told(&Kernel::below(Path::new("/proc/nowhere"))), []);
        played.accel("0000:00:05.0", "0x005e", 1, "accel1");
        played.accel("0000:00:04.0", "0x005E", 0, "accel/accel0");
        // Others of Google's, others' accelerators, and one whose driver is not there.
        played.function("0000:00:06.0", &[("vendor", VENDOR), ("device", "0x0042")]);
        let other = played.function("0000:00:07.0", &[("vendor", "0x10de"), ("device", "0x005e")]);
        fs::create_dir_all(other.join("accel/accel2")).unwrap();
        played.dev("accel2");
        played.function("0000:00:08.0", &[("vendor", VENDOR), ("device", "0x005e")]);
        let v4 = |address: &str| (format!("TPU-{address}"), "TPU-v4".to_owned(), 32, Some(1));
        assert_eq!(told(&played.kernel()), [v4("0000:00:04.0"), v4("0000:00:05.0")]);
        let found = played.kernel().tpus();
        assert!(found.iter().all(|tpu| tpu.kind == DeviceKind::Tpu && tpu.healthy && tpu.island == 0));
    }

    #[test]
    fn newer_ones_are_groups_of_vfio_and_older_ones_are_told_apart_by_their_subsystem() {
        let played = Played::new();
        played.vfio("0000:00:04.0", "0x0063", 10);
        played.vfio("0000:00:05.0", "0x006f", 2);
        let dir = played.function("0000:00:06.0", &[("vendor", VENDOR), ("device", "0x0027")]);
        fs::write(dir.join("subsystem_device"), "0x004e\n").unwrap();
        fs::create_dir_all(dir.join("accel/accel30")).unwrap();
        played.dev("accel30");
        let of = |address: &str, name: &str, gib| (format!("TPU-{address}"), name.to_owned(), gib, None);
        let all =
            [of("0000:00:05.0", "TPU-v6e", 32), of("0000:00:04.0", "TPU-v5e", 16), of("0000:00:06.0", "TPU-v2", 16)];
        assert_eq!(told(&played.kernel()), all, "by the numbers of their files");
        let uuids: Vec<Arc<str>> = ["TPU-0000:00:06.0", "TPU-0000:00:05.0"].map(Arc::from).to_vec();
        assert_eq!(played.kernel().visible(&uuids).as_deref(), Some("0,2"));
        assert_eq!(played.kernel().visible(&["GPU-1".into(), "TPU-sim-n1-0".into()]), None);
    }

    #[test]
    fn who_has_its_file_open_is_on_it() {
        if !nix::unistd::geteuid().is_root() {
            return nf_core::testing::skipped("other users' processes are root's to see");
        }
        let played = Played::new();
        played.vfio("0000:00:04.0", "0x0063", 0);
        played.vfio("0000:00:05.0", "0x0063", 1);
        for (pid, file) in [("17", "vfio/0"), ("18", "null"), ("self", "vfio/1")] {
            let dir = played.0.path().join("proc").join(pid).join("fd");
            fs::create_dir_all(&dir).unwrap();
            symlink(played.0.path().join("dev").join(file), dir.join("3")).unwrap();
        }
        let pids = |uuid: &str| played.kernel().look(uuid).map(|look| look.unwrap().pids);
        assert_eq!((pids("TPU-0000:00:04.0"), pids("TPU-0000:00:05.0")), (Ok(vec![17]), Ok(vec![])));
        assert!(pids("TPU-0000:00:09.0").is_err());
        fs::remove_file(played.0.path().join("dev/vfio/1")).unwrap();
        assert!(pids("TPU-0000:00:05.0").is_err(), "nobody starts on what can't be opened");
    }

    #[test]
    fn who_holds_a_chip_has_its_file_for_that_time() {
        if !nix::unistd::geteuid().is_root() {
            return nf_core::testing::skipped("only root may give files away");
        }
        let played = Played::new();
        for (address, group) in [("0000:00:04.0", 0), ("0000:00:05.0", 1), ("0000:00:06.0", 2)] {
            played.vfio(address, "0x0063", group);
        }
        let file = |group: u32| played.0.path().join(format!("dev/vfio/{group}"));
        let owners = || [0, 1, 2].map(|group| fs::metadata(file(group)).unwrap().uid());
        let (kernel, ours) = (played.kernel(), |uid: u32| (70_000..70_010).contains(&uid));
        let uuids: Vec<Arc<str>> = ["TPU-0000:00:04.0", "TPU-0000:00:05.0", "GPU-1"].map(Arc::from).to_vec();
        // The second is somebody's of the machine, by a rule of theirs.
        chown(file(1), Some(1234), None).unwrap();
        kernel.lend(&uuids, 70_001, ours).unwrap();
        assert_eq!(owners(), [70_001, 1234, 0]);
        // An agent that was killed took nothing back: the next holder gets it, and nobody takes it from that one.
        kernel.lend(&uuids, 70_002, ours).unwrap();
        kernel.take_back(&uuids, 70_001).unwrap();
        assert_eq!(owners(), [70_002, 1234, 0]);
        kernel.take_back(&uuids, 70_002).unwrap();
        assert_eq!(owners(), [0, 1234, 0]);
        assert!(
            kernel.lend(&["TPU-sim-n1-0".into(), "GPU-1".into()], 70_001, ours).is_ok(),
            "nothing of this machine's"
        );
    }
}
