//! Which devices of a node a replica gets. A part of a device goes to the
//! tightest device that holds it; which whole ones it gets, `whole` says. It does not compare nodes.

use super::whole::{self, Span};
use crate::capacity::{Class, DeviceFlavor, Flavor, FreeDevice};
use crate::job::Share;
use crate::mig::{Shape, Slice};
use crate::node::DeviceKind;
use crate::resources::{Gpus, WHOLE};
use crate::sharing::{Ask, Kept};
use std::collections::BTreeMap;

/// What a choice would say of the fit, without naming devices. The search looks at
/// every class with it, so it allocates nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Thousandths left on the device that a part was taken from.
    pub leftover: u16,
    /// How far apart whole devices are.
    pub span: Span,
    /// The device that a part is taken from.
    pub device: Option<u16>,
    /// The slice that is made, where a device is divided.
    pub cut: Option<Cut>,
}

/// A slice of a divided device, and what making it there leaves for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub device: u16,
    pub slice: Slice,
    /// Room for slices that it costs; see [`Layout::room`].
    pub cost: u32,
    /// Parts of the device that stay free.
    pub left: u32,
}

/// The fit of one replica on a node of the class; None exactly when [`choose`] finds nothing.
pub fn fit(class: &Class, ask: &Ask<'_>) -> Option<Fit> {
    if ask.resources.tpu > 0 {
        let idle = |(f, d): &(&DeviceFlavor, &FreeDevice)| f.kind == DeviceKind::Tpu && u32::from(d.milli) == WHOLE;
        if class.flavor.devices.iter().zip(&class.devices).filter(idle).count() < usize::from(ask.resources.tpu) {
            return None;
        }
    }
    match ask.resources.gpu {
        Gpus::None => Some(Fit::OF_ONE),
        Gpus::Milli(milli) => {
            let (free, device) = tightest(class, ask, milli)?;
            Some(Fit { leftover: free - milli, device: Some(device as u16), ..Fit::OF_ONE })
        }
        Gpus::Whole(n) => {
            let whole = whole::span(class, ask, n).map(|span| Fit { span, ..Fit::OF_ONE });
            // A slice that is there already costs nobody anything.
            whole.or_else(|| Some(Fit { cut: Some(cut(class, ask)?), ..Fit::OF_ONE }))
        }
    }
}

impl Fit {
    /// Of one device at most, with nothing left of it.
    const OF_ONE: Self = Self { leftover: 0, span: Span { islands: 1, numa_nodes: 1 }, device: None, cut: None };
}

/// The slice that the replica would get of a divided device: where it leaves room for the most others, and of equal
/// ones on the device with the least left.
fn cut(class: &Class, ask: &Ask<'_>) -> Option<Cut> {
    ask.resources.mig_profile.as_ref()?;
    let of = |(device, (flavor, free)): (usize, (&DeviceFlavor, &FreeDevice))| {
        let (slice, cost) = free.slices.best(divided(flavor, ask)?)?;
        Some(Cut { device: device as u16, slice, cost, left: free.slices.with(slice).free() })
    };
    let all = class.flavor.devices.iter().zip(&class.devices).enumerate().filter_map(of);
    all.min_by_key(|cut| (cut.cost, cut.left, cut.device))
}

/// The kind of slice that the device, when nothing is held of it, makes for the ask.
pub fn divided(device: &DeviceFlavor, ask: &Ask<'_>) -> Option<Shape> {
    ask.slice_of(device.sharing, &device.device_type, device.memory)
}

/// How many such replicas the device holds, when nothing is held of it.
fn times(device: &DeviceFlavor, ask: &Ask<'_>) -> u64 {
    let of = |shape: Shape| if shape == Shape::OneMedia { 1 } else { shape.starts().len() as u64 };
    divided(device, ask).map_or(u64::from(suits(device, ask)), of)
}

/// The whole devices that a replica would get; which of equal ones it is does not
/// matter where islands, NUMA nodes and kinds do not differ.
pub fn whole_of(class: &Class, ask: &Ask<'_>) -> Option<impl Iterator<Item = u16>> {
    let Gpus::Whole(n) = ask.resources.gpu else { return None };
    let alike = class.flavor.alike();
    let simple = alike.then(|| {
        let idle = class.devices.iter().enumerate().filter(|(_, free)| u32::from(free.milli) == WHOLE);
        idle.map(|(i, _)| i as u16).take(usize::from(n))
    });
    let chosen = if alike { None } else { Some(whole::choose(class, ask, n)?.0) };
    let chosen = chosen.into_iter().flatten();
    Some(simple.into_iter().flatten().chain(chosen))
}

/// Whether a GPU is of the kind asked for, when idle, and what is asked of it may be given.
pub fn suits(device: &DeviceFlavor, ask: &Ask<'_>) -> bool {
    device.kind == DeviceKind::Gpu
        && ask.kept(device.sharing).is_some()
        && (ask.resources.device_types.is_empty() || ask.resources.device_types.contains(&device.device_type))
        && device.memory >= ask.resources.gpu_memory
        && device.mig_profile == ask.resources.mig_profile
}

/// Whether an empty node of the flavor has the devices.
pub fn could_hold(flavor: &Flavor, ask: &Ask<'_>) -> bool {
    let tpus = flavor.devices.iter().filter(|d| d.kind == DeviceKind::Tpu).count();
    let enough = match ask.resources.gpu {
        Gpus::None => true,
        Gpus::Milli(_) => flavor.devices.iter().any(|d| suits(d, ask)),
        Gpus::Whole(n) if ask.constraints.same_island => {
            let mut islands: BTreeMap<u16, u16> = BTreeMap::new();
            for device in flavor.devices.iter().filter(|d| times(d, ask) > 0) {
                *islands.entry(device.island).or_default() += 1;
            }
            islands.values().any(|have| *have >= n)
        }
        Gpus::Whole(n) => flavor.devices.iter().filter(|d| times(d, ask) > 0).count() >= usize::from(n),
    };
    enough && tpus >= usize::from(ask.resources.tpu)
}

/// How many replicas an empty node of the flavor holds, as far as GPUs, CPU, memory and disk go.
pub fn most(flavor: &Flavor, ask: &Ask<'_>) -> u64 {
    let mut islands: BTreeMap<u16, u64> = BTreeMap::new();
    for device in &flavor.devices {
        // Without the wish for one island, all are one.
        let island = if ask.constraints.same_island { device.island } else { 0 };
        *islands.entry(island).or_default() += times(device, ask);
    }
    let by_gpu = match ask.resources.gpu {
        Gpus::None => u64::MAX,
        Gpus::Whole(n) => islands.values().map(|count| count / u64::from(n.max(1))).sum(),
        Gpus::Milli(m) => islands.values().sum::<u64>() * u64::from(WHOLE / u32::from(m.max(1))),
    };
    let times = |all: u64, each: u64| all.checked_div(each).unwrap_or(u64::MAX);
    let wants = &ask.resources;
    let rest = [(flavor.cpu_milli, wants.cpu_milli), (flavor.memory, wants.memory), (flavor.disk, wants.disk)];
    rest.into_iter().fold(by_gpu, |most, (all, each)| most.min(times(all, each)))
}

/// How many such replicas the devices of a node of the class hold now, one after the other.
pub fn room(class: &Class, ask: &Ask<'_>) -> u64 {
    let both = || class.flavor.devices.iter().zip(&class.devices);
    let whole = |free: &FreeDevice| u32::from(free.milli) == WHOLE;
    let by_tpu = match ask.resources.tpu {
        0 => u64::MAX,
        n => both().filter(|(f, d)| f.kind == DeviceKind::Tpu && whole(d)).count() as u64 / u64::from(n),
    };
    let by_gpu = match ask.resources.gpu {
        Gpus::None => u64::MAX,
        Gpus::Milli(milli) => (0..class.devices.len()).map(|device| parts(class, device, ask, milli)).sum(),
        Gpus::Whole(n) => {
            let mut islands: BTreeMap<u16, u64> = BTreeMap::new();
            for (flavor, _) in both().filter(|(flavor, free)| whole(free) && suits(flavor, ask)) {
                // Without the wish for one island, all are one.
                let island = if ask.constraints.same_island { flavor.island } else { 0 };
                *islands.entry(island).or_default() += 1;
            }
            let slices = both().map(|(flavor, free)| divided(flavor, ask).map_or(0, |shape| free.slices.times(shape)));
            islands.values().map(|idle| idle / u64::from(n.max(1))).sum::<u64>() + slices.sum::<u64>()
        }
    };
    by_gpu.min(by_tpu)
}

/// How many parts of that size the device gives now.
fn parts(class: &Class, device: usize, ask: &Ask<'_>, milli: u16) -> u64 {
    if !holds(class, device, ask, milli) {
        return 0;
    }
    let free = &class.devices[device];
    let by_memory = free.memory / part_memory(&class.flavor.devices[device], ask, milli).max(1);
    u64::from(free.milli / milli.max(1)).min(by_memory)
}

/// Bytes of the device that a part takes.
fn part_memory(flavor: &DeviceFlavor, ask: &Ask<'_>, milli: u16) -> u64 {
    match ask.resources.gpu_memory {
        // In two parts, because the product may not fit, and 128 bits divide slowly.
        0 => {
            let (milli, whole) = (u64::from(milli), u64::from(WHOLE));
            flavor.memory / whole * milli + flavor.memory % whole * milli / whole
        }
        asked => asked,
    }
}

/// The devices that one replica would get on a node of the class, or None. A part is
/// taken from `device` when the score chose one, else from the tightest.
pub fn choose(class: &Class, ask: &Ask<'_>, device: Option<u16>) -> Option<Vec<Share>> {
    let mut shares = match (ask.resources.gpu, device) {
        (Gpus::None, _) => Vec::new(),
        (Gpus::Milli(milli), Some(device)) => {
            let free = class.devices.get(usize::from(device))?.milli;
            vec![part(class, ask, milli, (free, device.into()))?]
        }
        (Gpus::Milli(milli), None) => vec![part(class, ask, milli, tightest(class, ask, milli)?)?],
        (Gpus::Whole(n), _) => match whole::choose(class, ask, n) {
            Some((devices, _)) => devices.into_iter().map(|device| full(device.into())).collect(),
            None => vec![sliced(cut(class, ask)?)],
        },
    };
    if ask.resources.tpu > 0 {
        let free = class.flavor.devices.iter().zip(&class.devices).enumerate();
        let idle = free.filter(|(_, (f, d))| f.kind == DeviceKind::Tpu && u32::from(d.milli) == WHOLE);
        let tpus: Vec<Share> = idle.map(|(i, _)| full(i)).take(usize::from(ask.resources.tpu)).collect();
        if tpus.len() < usize::from(ask.resources.tpu) {
            return None;
        }
        shares.extend(tpus);
        shares.sort_unstable();
    }
    Some(shares)
}

fn full(device: usize) -> Share {
    Share { device: device as u16, milli: WHOLE as u16, kept: Kept::Alone }
}

fn sliced(Cut { device, slice, .. }: Cut) -> Share {
    Share { device, milli: slice.shape.milli(), kept: Kept::Mig(slice) }
}

/// A part of the device that has so much left.
fn part(class: &Class, ask: &Ask<'_>, milli: u16, (free, device): (u16, usize)) -> Option<Share> {
    let kept = ask.kept(class.flavor.devices.get(device)?.sharing)?;
    (free >= milli).then_some(Share { device: device as u16, milli, kept })
}

/// The device with the least left that holds the part: its free thousandths and its index.
fn tightest(class: &Class, ask: &Ask<'_>, milli: u16) -> Option<(u16, usize)> {
    let mut best: Option<(u16, usize)> = None;
    for (i, free) in class.devices.iter().enumerate() {
        let tighter = free.milli >= milli && best.is_none_or(|(tightest, _)| free.milli < tightest);
        if tighter && holds(class, i, ask, milli) {
            best = Some((free.milli, i));
        }
    }
    best
}

/// The device with the most left that holds the part: its free thousandths and its index.
pub fn emptiest(class: &Class, ask: &Ask<'_>, milli: u16) -> Option<(u16, usize)> {
    let mut best: Option<(u16, usize)> = None;
    for (i, free) in class.devices.iter().enumerate() {
        if best.is_none_or(|(most, _)| free.milli > most) && holds(class, i, ask, milli) {
            best = Some((free.milli, i));
        }
    }
    best
}

/// Whether the device can give the part now.
pub fn holds(class: &Class, device: usize, ask: &Ask<'_>, milli: u16) -> bool {
    let (flavor, free) = (&class.flavor.devices[device], &class.devices[device]);
    free.milli >= milli && free.memory >= part_memory(flavor, ask, milli) && suits(flavor, ask)
}
