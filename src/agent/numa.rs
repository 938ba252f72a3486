//! NUMA nodes of this machine, as the kernel tells in sysfs: which one a device of the PCI bus hangs on, and which CPUs
//! are its own. A machine that tells nothing is normal: then nothing is known. It decides nothing.

use nf_core::node::{MAX_NUMA_NODES, NodeSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// Which CPUs are near to the devices of this machine, as its agent has learned so far.
#[derive(Debug, Default)]
pub struct Near {
    sysfs: Sysfs,
    nodes: RwLock<BTreeMap<Arc<str>, u16>>,
}

impl Near {
    /// As a sysfs that lies elsewhere tells it.
    #[cfg(test)]
    pub fn by(sysfs: Sysfs) -> Self {
        Self { sysfs, ..Self::default() }
    }

    /// Learns where the devices hang. Those that are played hang nowhere, whatever is said of them.
    pub fn learn(&self, spec: &NodeSpec) {
        if spec.simulated {
            return;
        }
        let known = spec.devices.iter().filter_map(|device| Some((device.uuid.clone(), device.numa?)));
        // Single entries are put in: nothing can be half changed.
        self.nodes.write().unwrap_or_else(PoisonError::into_inner).extend(known);
    }

    /// The NUMA node on which all of these devices hang, and its CPUs, if it has as many as are asked for: who asked for
    /// more than a socket has gets them from both. None of no device, and where anything is not known.
    pub fn cpus(&self, uuids: &[Arc<str>], cpu_milli: u64) -> Option<(u16, Cpus)> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let node = *nodes.get(uuids.first()?)?;
        let together = uuids.iter().all(|uuid| nodes.get(uuid) == Some(&node));
        let cpus = together.then(|| self.sysfs.cpus_of(node)).flatten()?;
        (cpus.count() * 1000 >= cpu_milli).then_some((node, cpus))
    }
}

/// Longer files of sysfs are not what they should be.
const MAX_FILE: u64 = 64 << 10;
/// The most CPUs of a machine that Linux knows.
const MAX_CPUS: u32 = 8192;

/// Where sysfs is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysfs(PathBuf);

impl Default for Sysfs {
    fn default() -> Self {
        Self("/sys".into())
    }
}

impl Sysfs {
    /// One that lies elsewhere.
    pub(super) fn at(root: &Path) -> Self {
        Self(root.to_path_buf())
    }

    /// The NUMA node of the device at that address, as NVML writes addresses; None when the kernel does not say.
    pub fn node_of(&self, bus_id: &str) -> Option<u16> {
        node(&read(&self.0.join("bus/pci/devices").join(address(bus_id)?).join("numa_node"))?)
    }

    /// The CPUs of a NUMA node; None when the kernel does not say, or there are none.
    pub fn cpus_of(&self, node: u16) -> Option<Cpus> {
        Cpus::read(&read(&self.0.join(format!("devices/system/node/node{node}/cpulist")))?)
    }
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
    Some(text)
}

/// `00000000:3B:00.0`, as NVML has it, is `0000:3b:00.0` in sysfs.
fn address(bus_id: &str) -> Option<String> {
    let (domain, rest) = bus_id.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let number = |text: &str, digits: usize| {
        let fits = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        fits.then(|| u32::from_str_radix(text, 16).ok())?
    };
    let (domain, bus) = (number(domain, 8)?, number(bus, 2)?);
    let (device, function) = (number(device, 2)?, number(function, 1)?);
    Some(format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}"))
}

/// What `numa_node` says; -1 is the kernel's word for "not known".
fn node(text: &str) -> Option<u16> {
    text.trim().parse().ok().filter(|node| *node < MAX_NUMA_NODES)
}

/// Some of a machine's CPUs, by the kernel's numbers. Never none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus(BTreeSet<u32>);

impl Cpus {
    /// Reads the kernel's lists, such as `0-3,8-11`.
    fn read(text: &str) -> Option<Self> {
        let mut out = BTreeSet::new();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.parse::<u32>().ok().filter(|cpu| *cpu < MAX_CPUS);
            out.extend(number(first)?..=number(last)?);
        }
        (!out.is_empty()).then_some(Self(out))
    }

    #[cfg(test)]
    pub fn of(cpus: impl IntoIterator<Item = u32>) -> Self {
        Self(cpus.into_iter().collect())
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }
}

/// As the kernel reads it.
impl std::fmt::Display for Cpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if_eq(&(last + 1)) {
                last = next;
            }
            match last == first {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    #[test]
    fn the_kernel_is_asked_by_the_address_that_the_driver_gives() {
        let tmp = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::at(tmp.path());
        let say = |path: &str, text: &str| {
            let path = tmp.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        say("bus/pci/devices/0000:3b:00.0/numa_node", "1\n");
        say("bus/pci/devices/0000:5e:00.0/numa_node", "-1\n");
        say("bus/pci/devices/10000:01:1f.7/numa_node", "0\n");
        say("devices/system/node/node1/cpulist", "8-11,24-27\n");
        say("devices/system/node/node2/cpulist", "\n");
        assert_eq!(sysfs.node_of("00000000:3B:00.0"), Some(1));
        assert_eq!(sysfs.node_of("0000:3b:00.0"), Some(1), "older drivers write shorter domains");
        assert_eq!(sysfs.node_of("00010000:01:1F.7"), Some(0));
        assert_eq!(sysfs.node_of("00000000:5E:00.0"), None, "not known");
        assert_eq!(sysfs.node_of("00000000:AF:00.0"), None, "no such device");
        assert_eq!(sysfs.node_of("../../../etc"), None);
        let cpus = sysfs.cpus_of(1).unwrap();
        assert_eq!((cpus.count(), cpus.to_string().as_str()), (8, "8-11,24-27"));
        assert_eq!((sysfs.cpus_of(2), sysfs.cpus_of(3)), (None, None), "memory without CPUs; no such node");
    }

    #[test]
    fn a_replica_is_near_to_the_cpus_of_the_one_node_that_all_its_devices_hang_on() {
        let tmp = tempfile::tempdir().unwrap();
        for (node, cpus) in [(0, "0-3"), (1, "4-7")] {
            let dir = tmp.path().join(format!("devices/system/node/node{node}"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cpulist"), cpus).unwrap();
        }
        let mut spec = nf_core::testing::node_spec(4);
        spec.devices.iter_mut().zip([Some(0), Some(1), Some(1), None]).for_each(|(device, numa)| device.numa = numa);
        let uuids: Vec<_> = spec.devices.iter().map(|device| device.uuid.clone()).collect();
        let near = Near::by(Sysfs::at(tmp.path()));
        near.learn(&NodeSpec { simulated: true, ..spec.clone() });
        assert_eq!(near.cpus(&uuids[1..3], 0), None, "what is played hangs nowhere");
        near.learn(&NodeSpec { simulated: false, ..spec });
        let text =
            |uuids: &[Arc<str>], cpu_milli| near.cpus(uuids, cpu_milli).map(|(node, cpus)| format!("{node}: {cpus}"));
        assert_eq!(text(&uuids[1..3], 4000).as_deref(), Some("1: 4-7"));
        assert_eq!(text(&uuids[..1], 0).as_deref(), Some("0: 0-3"));
        assert_eq!(text(&uuids[1..3], 4001), None, "it asked for more than the node has");
        assert_eq!((text(&uuids[..2], 0), text(&uuids[2..], 0), text(&[], 0)), (None, None, None));
    }

    #[test]
    fn what_is_no_list_is_none() {
        for bad in ["", "\n", "x", "1-", "-1", "1-2-3", "3-1", "0,x", "0-99999999", "8192", "1 2"] {
            assert_eq!(Cpus::read(bad), None, "{bad:?}");
        }
        for bad in ["", "-1", "-0x", "1024", "65536", "1 2", "one"] {
            assert_eq!(node(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}", list in "[0-9,\\-\n ]{0,40}") {
            for text in [text, list] {
                let (_, _) = (node(&text), Sysfs::default().node_of(&text));
                if let Some(cpus) = Cpus::read(&text) {
                    prop_assert_eq!(Cpus::read(&cpus.to_string()), Some(cpus));
                }
            }
        }

        #[test]
        fn what_is_written_is_read(cpus in proptest::collection::btree_set(0..MAX_CPUS, 1..200)) {
            let cpus = Cpus(cpus);
            prop_assert_eq!(Cpus::read(&cpus.to_string()), Some(cpus));
        }

        #[test]
        fn addresses_are_those_of_sysfs(domain: u16, bus: u8, device in 0u8..32, function in 0u8..8) {
            let text = format!("{domain:08X}:{bus:02X}:{device:02X}.{function}");
            prop_assert_eq!(address(&text), Some(format!("{domain:04x}:{bus:02x}:{device:02x}.{function}")));
        }

        /// No path leaves the folder of devices.
        #[test]
        fn any_address_names_a_device_or_nothing(text in "\\PC{0,30}") {
            prop_assert!(address(&text).is_none_or(|name| !name.contains('/') && !name.contains("..")));
        }
    }
}
