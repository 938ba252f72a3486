//! The GPUs of this machine, as NVML tells. The library is loaded when asked; a
//! machine without a driver has no GPUs, which is not an error. It does not decide
//! what is simulated.

use super::numa::Sysfs;
use crate::exchange::Vitals;
use nf_core::id::DeviceType;
use nf_core::node::{Device, DeviceKind};
use nf_core::sharing::Sharing;
use nf_core::vacancy::Look;
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Links that a GPU can have; NVML defines no more.
const LINKS: u32 = 18;
/// NVML_DEVICE_MIG_ENABLE.
const ENABLED: u32 = 1;

/// What the driver has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The GPUs in NVML's order, and slices in place of those that are divided.
    pub gpus: Vec<Device>,
    /// The uuids of all GPUs in that order; one that does not answer has an empty name.
    pub order: Vec<Arc<str>>,
}

/// The GPUs in NVML's order; None when there is no driver. May take for ever, as all that asks a driver.
///
/// # Errors
/// When there is one, but it does not answer.
pub fn gpus() -> Result<Option<Vec<Device>>, String> {
    found().map(|found| found.map(|found| found.gpus))
}

/// The same, and their order.
///
/// # Errors
/// When there is a driver, but it does not answer.
pub fn found() -> Result<Option<Found>, String> {
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(NvmlError::LibloadingError(_) | NvmlError::DriverNotLoaded | NvmlError::LibraryNotFound) => {
            return Ok(None);
        }
        Err(error) => return Err(format!("NVML: {error}")),
    };
    read(&nvml).map(Some).map_err(|error| format!("NVML: {error}"))
}

fn read(nvml: &Nvml) -> Result<Found, NvmlError> {
    let count = nvml.device_count()?;
    let uuid = |index| nvml.device_by_index(index).and_then(|gpu| gpu.uuid()).unwrap_or_default().into();
    let order = (0..count).map(uuid).collect();
    let mut out = Vec::new();
    let mut links = Vec::new();
    for index in 0..count {
        let found = nvml.device_by_index(index).and_then(|gpu| match is_divided(&gpu) {
            true => slices(&gpu),
            false => Ok(vec![(described(&gpu)?, links_of(&gpu)?)]),
        });
        match found {
            Ok(found) => {
                for (device, its_links) in found {
                    out.push(device);
                    links.push(its_links);
                }
            }
            // The others go on without it.
            Err(error) => {
                tracing::error!(index, %error, "a GPU does not answer its driver and is left out; nvidia-smi says more")
            }
        }
    }
    for (device, island) in out.iter_mut().zip(islands(&links)) {
        device.island = island;
    }
    Ok(Found { gpus: out, order })
}

fn described(gpu: &nvml_wrapper::Device<'_>) -> Result<Device, NvmlError> {
    let memory = gpu.memory_info()?.total;
    Ok(Device {
        uuid: gpu.uuid()?.into(),
        kind: DeviceKind::Gpu,
        device_type: device_type(&gpu.name()?, memory),
        memory,
        island: 0,
        // Of a driver that gives no address the rest is as good.
        numa: gpu.pci_info().ok().and_then(|info| Sysfs::default().node_of(&info.bus_id)),
        mig_profile: None,
        healthy: true,
        // The driver itself keeps nobody to a part.
        sharing: Sharing::None,
    })
}

/// Whether the GPU is in MIG mode: then programs get its slices, and nobody gets it whole.
fn is_divided(gpu: &nvml_wrapper::Device<'_>) -> bool {
    // Most GPUs have no such mode and say so with an error.
    gpu.mig_mode().is_ok_and(|mode| mode.current == ENABLED)
}

/// The slices that somebody has made of the GPU, as devices of their own. They have no fast links.
fn slices(gpu: &nvml_wrapper::Device<'_>) -> Result<Vec<(Device, Links)>, NvmlError> {
    let whole = described(gpu)?;
    let mut out = Vec::new();
    // The count is the most that there can be.
    for index in 0..gpu.mig_device_count()? {
        let slice = match gpu.mig_device_by_index(index) {
            Err(NvmlError::NotFound) => continue,
            slice => slice?,
        };
        let name = slice.name()?;
        let Some(profile) = profile(&name) else {
            tracing::warn!(name, "a slice of a GPU without a profile in its name is left out");
            continue;
        };
        let (uuid, memory) = (slice.uuid()?, slice.memory_info()?.total);
        let links = Links { own: uuid.clone(), others: BTreeSet::new() };
        out.push((Device { uuid: uuid.into(), memory, mig_profile: Some(profile), ..whole.clone() }, links));
    }
    if out.is_empty() {
        tracing::warn!(gpu = %whole.uuid, "a GPU is in MIG mode and has no slices, so nobody gets anything of it; nvidia-smi mig makes some");
    }
    Ok(out)
}

/// `NVIDIA H100 80GB HBM3 MIG 3g.40gb` → `3g.40gb`.
fn profile(name: &str) -> Option<DeviceType> {
    let (_, profile) = name.rsplit_once("MIG ")?;
    DeviceType::new(profile.trim()).ok()
}

/// What is on each of the GPUs: None where its driver does not offer that, and, as an error, why it can't be seen.
pub fn looks(uuids: &[Arc<str>]) -> Vec<(Arc<str>, Result<Option<Look>, String>)> {
    let nvml = Nvml::init();
    let look = |uuid: &Arc<str>| match nvml.as_ref().map(|nvml| look(nvml, uuid)) {
        Ok(Ok(look)) => Ok(Some(look)),
        Ok(Err(NvmlError::NotSupported)) => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    uuids.iter().map(|uuid| (uuid.clone(), look(uuid))).collect()
}

fn look(nvml: &Nvml, uuid: &str) -> Result<Look, NvmlError> {
    let gpu = nvml.device_by_uuid(uuid)?;
    // A desktop that draws on it computes nothing, and its memory is part of the base.
    let pids = gpu.running_compute_processes()?.iter().map(|process| process.pid).collect();
    // Without what the driver reserved for itself, which it counts apart.
    let memory = gpu.memory_info()?;
    Ok(Look { used: memory.used, total: memory.total, pids })
}

/// How each of the GPUs does; None where its driver does not answer for it.
pub fn vitals(uuids: &[Arc<str>]) -> Vec<(Arc<str>, Option<Vitals>)> {
    let Ok(nvml) = Nvml::init() else { return uuids.iter().map(|uuid| (uuid.clone(), None)).collect() };
    let of = |uuid: &Arc<str>| {
        let gpu = nvml.device_by_uuid(uuid.as_ref()).ok()?;
        Some(Vitals {
            uuid: uuid.clone(),
            busy_milli: gpu.utilization_rates().ok().map(|rates| rates.gpu.min(100) as u16 * 10),
            used: gpu.memory_info().ok()?.used,
            celsius: gpu.temperature(TemperatureSensor::Gpu).ok(),
            processes: gpu.running_compute_processes().ok().map(|all| all.len() as u32),
            ecc_errors: gpu.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).ok(),
        })
    };
    uuids.iter().map(|uuid| (uuid.clone(), of(uuid))).collect()
}

/// The bus of one GPU, and the buses at the other ends of its links. A bus that is
/// none of the GPUs' is a switch's. (NVML could say which it is, but nvml-wrapper
/// 0.13 drops that answer.)
struct Links {
    own: String,
    others: BTreeSet<String>,
}

fn links_of(gpu: &nvml_wrapper::Device<'_>) -> Result<Links, NvmlError> {
    let mut links = Links { own: gpu.pci_info()?.bus_id, others: BTreeSet::new() };
    for number in 0..LINKS {
        let link = gpu.link_wrapper_for(number);
        // A GPU without that link says so with an error.
        if !link.is_active().unwrap_or(false) {
            continue;
        }
        links.others.extend(link.remote_pci_info().map(|info| info.bus_id));
    }
    Ok(links)
}

/// Numbers the groups of GPUs that reach one another over fast links.
fn islands(links: &[Links]) -> Vec<u16> {
    let by_bus: BTreeMap<&str, usize> = links.iter().enumerate().map(|(i, l)| (l.own.as_str(), i)).collect();
    let mut group: Vec<usize> = (0..links.len()).collect();
    let join = |group: &mut Vec<usize>, a: usize, b: usize| {
        let (low, high) = (group[a].min(group[b]), group[a].max(group[b]));
        group.iter_mut().filter(|g| **g == high).for_each(|g| *g = low);
    };
    let on_switch = |link: &Links| link.others.iter().any(|bus| !by_bus.contains_key(bus.as_str()));
    let switched: Vec<usize> = (0..links.len()).filter(|i| on_switch(&links[*i])).collect();
    for pair in switched.windows(2) {
        join(&mut group, pair[0], pair[1]);
    }
    for (i, link) in links.iter().enumerate() {
        for other in link.others.iter().filter_map(|bus| by_bus.get(bus.as_str())) {
            join(&mut group, i, *other);
        }
    }
    let numbers: BTreeSet<usize> = group.iter().copied().collect();
    let number_of: BTreeMap<usize, u16> = numbers.into_iter().zip(0..).collect();
    group.iter().map(|g| number_of[g]).collect()
}

/// `NVIDIA H100 80GB HBM3` → `H100-80G`: the first word with a digit, and the memory in GiB,
/// rounded up to what is on the box.
fn device_type(name: &str, memory: u64) -> DeviceType {
    let words = || name.split(|c: char| !(c.is_ascii_alphanumeric())).filter(|w| !w.is_empty());
    let model =
        words().find(|w| w.bytes().any(|b| b.is_ascii_digit())).or_else(|| words().next_back()).unwrap_or("GPU");
    let marked = words().find_map(|w| w.to_ascii_uppercase().strip_suffix("GB").and_then(|n| n.parse::<u64>().ok()));
    let size = marked.unwrap_or_else(|| memory.div_ceil(1 << 30));
    let text: String = format!("{model}-{size}G").chars().take(64).collect();
    DeviceType::new(&text).or_else(|_| DeviceType::new("GPU")).expect("a fixed name that is valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(own: &str, others: &[&str]) -> Links {
        Links { own: own.into(), others: others.iter().map(|g| g.to_string()).collect() }
    }

    #[test]
    fn names_become_types() {
        let named = |name, gib: u64| device_type(name, (gib << 30) - (1 << 28)).to_string();
        assert_eq!(named("NVIDIA H100 80GB HBM3", 80), "H100-80G");
        assert_eq!(named("NVIDIA H200", 141), "H200-141G");
        assert_eq!(named("Tesla T4", 16), "T4-16G");
        assert_eq!(named("NVIDIA A100-SXM4-40GB", 40), "A100-40G");
        assert_eq!(named("", 1), "GPU-1G");
        assert_eq!(named("é…/", 1), "GPU-1G");
    }

    #[test]
    fn slices_say_their_profile_by_name() {
        let named = |name| profile(name).map(|profile| profile.to_string());
        assert_eq!(named("NVIDIA H100 80GB HBM3 MIG 3g.40gb").as_deref(), Some("3g.40gb"));
        assert_eq!(named("NVIDIA A100-SXM4-40GB MIG 1g.5gb+me").as_deref(), Some("1g.5gb+me"));
        assert_eq!((named("NVIDIA H200"), named("MIG ")), (None, None));
    }

    #[test]
    fn islands_follow_the_links() {
        assert_eq!(islands(&[links("a", &[]), links("b", &[])]), [0, 1]);
        let pairs = [links("a", &["b"]), links("b", &["a"]), links("c", &["d"]), links("d", &[])];
        assert_eq!(islands(&pairs), [0, 0, 1, 1]);
        let switched = [links("a", &["s1"]), links("b", &[]), links("c", &["s2"])];
        assert_eq!(islands(&switched), [0, 1, 0]);
    }

    #[test]
    fn a_machine_without_a_driver_has_none() {
        // Whatever machine this runs on, asking is safe.
        if let Ok(Some(gpus)) = gpus() {
            assert!(gpus.iter().all(|gpu| gpu.memory > 0));
        }
    }
}
