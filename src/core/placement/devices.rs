//! Which devices of a node a replica gets. A part of a device goes to the
//! tightest device that holds it; whole devices go to the smallest island that
//! holds them all. It does not compare nodes.

use crate::capacity::{Class, DeviceFlavor, Flavor};
use crate::job::Share;
use crate::node::DeviceKind;
use crate::resources::{Gpus, Resources, WHOLE};
use std::collections::BTreeMap;

/// The chosen devices and what they say about the fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Sorted by device.
    pub shares: Vec<Share>,
    /// Thousandths left on the device that a part was taken from.
    pub leftover: u16,
    /// Islands that the GPUs come from.
    pub islands: u16,
}

/// Whether a GPU is of the kind asked for, when idle.
pub fn suits(device: &DeviceFlavor, ask: &Resources) -> bool {
    device.kind == DeviceKind::Gpu
        && (ask.device_types.is_empty() || ask.device_types.contains(&device.device_type))
        && device.memory >= ask.gpu_memory
        && device.mig_profile == ask.mig_profile
}

/// Whether an empty node of the flavor has the devices.
pub fn could_hold(flavor: &Flavor, ask: &Resources, same_island: bool) -> bool {
    let tpus = flavor.devices.iter().filter(|d| d.kind == DeviceKind::Tpu).count();
    let enough = match ask.gpu {
        Gpus::None => true,
        Gpus::Milli(_) => flavor.devices.iter().any(|d| suits(d, ask)),
        Gpus::Whole(n) if same_island => {
            let mut islands: BTreeMap<u16, u16> = BTreeMap::new();
            for device in flavor.devices.iter().filter(|d| suits(d, ask)) {
                *islands.entry(device.island).or_default() += 1;
            }
            islands.values().any(|have| *have >= n)
        }
        Gpus::Whole(n) => flavor.devices.iter().filter(|d| suits(d, ask)).count() >= usize::from(n),
    };
    enough && tpus >= usize::from(ask.tpu)
}

/// The devices that one replica would get on a node of the class, or None.
pub fn choose(class: &Class, ask: &Resources, same_island: bool) -> Option<Choice> {
    let mut choice = match ask.gpu {
        Gpus::None => Choice { shares: Vec::new(), leftover: 0, islands: 0 },
        Gpus::Milli(milli) => part(class, ask, milli)?,
        Gpus::Whole(n) => whole(class, ask, n, same_island)?,
    };
    if ask.tpu > 0 {
        let free = class.flavor.devices.iter().zip(&class.devices).enumerate();
        let idle = free.filter(|(_, (f, d))| f.kind == DeviceKind::Tpu && u32::from(d.milli) == WHOLE);
        let tpus: Vec<Share> = idle.map(|(i, _)| full(i)).take(usize::from(ask.tpu)).collect();
        if tpus.len() < usize::from(ask.tpu) {
            return None;
        }
        choice.shares.extend(tpus);
        choice.shares.sort_unstable();
    }
    Some(choice)
}

fn full(device: usize) -> Share {
    Share { device: device as u16, milli: WHOLE as u16 }
}

fn part(class: &Class, ask: &Resources, milli: u16) -> Option<Choice> {
    let mut best: Option<(u16, usize)> = None;
    for (i, (flavor, free)) in class.flavor.devices.iter().zip(&class.devices).enumerate() {
        let memory = match ask.gpu_memory {
            0 => (u128::from(flavor.memory) * u128::from(milli) / u128::from(WHOLE)) as u64,
            asked => asked,
        };
        let fits = free.milli >= milli && free.memory >= memory && suits(flavor, ask);
        if fits && best.is_none_or(|(tightest, _)| free.milli < tightest) {
            best = Some((free.milli, i));
        }
    }
    let (free, device) = best?;
    let shares = vec![Share { device: device as u16, milli }];
    Some(Choice { shares, leftover: free - milli, islands: 1 })
}

fn whole(class: &Class, ask: &Resources, n: u16, same_island: bool) -> Option<Choice> {
    let wanted = usize::from(n);
    let mut islands: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
    for (i, (flavor, free)) in class.flavor.devices.iter().zip(&class.devices).enumerate() {
        if u32::from(free.milli) == WHOLE && suits(flavor, ask) {
            islands.entry(flavor.island).or_default().push(i);
        }
    }
    // The smallest island that holds all of them keeps the large ones whole.
    let tight = islands.values().filter(|idle| idle.len() >= wanted).min_by_key(|idle| idle.len());
    if let Some(idle) = tight {
        return Some(Choice { shares: idle.iter().copied().take(wanted).map(full).collect(), leftover: 0, islands: 1 });
    }
    if same_island || islands.values().map(Vec::len).sum::<usize>() < wanted {
        return None;
    }
    // Else from the fullest islands first, so that as few as possible are crossed.
    let mut by_size: Vec<&Vec<usize>> = islands.values().collect();
    by_size.sort_by_key(|idle| std::cmp::Reverse(idle.len()));
    let mut shares: Vec<Share> = Vec::with_capacity(wanted);
    let mut crossed = 0;
    for idle in by_size {
        if shares.len() == wanted {
            break;
        }
        crossed += 1;
        shares.extend(idle.iter().copied().take(wanted - shares.len()).map(full));
    }
    shares.sort_unstable();
    Some(Choice { shares, leftover: 0, islands: crossed })
}
