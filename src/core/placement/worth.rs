//! What the free part of a node is worth to the target workload, from tables: how
//! much of its idle GPU the next request can use, less how much of it the CPU beside
//! it can't follow (which sees CPU running out before it has). All integers, made once
//! per target, so that each member computes the same and a look-up costs nanoseconds.
//!
//! The first measure is the expected fragment of Weng et al., "Beware of Fragmentation"
//! (USENIX ATC '23), with one change: shapes to which little of the cluster's idle GPU
//! is open count more. It does not know which request is being placed.

use super::mix::{Mix, Shape, UNIT};
use crate::capacity::{CapacityIndex, Class, DeviceFlavor, FreeDevice, HardwareNo};
use crate::id::NodeNo;
use crate::node::DeviceKind;
use crate::resources::{Gpus, WHOLE};
use crate::sharing::Sharing;
use imbl::OrdSet;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Devices per node up to which worth is computed without allocating; larger nodes score by fit alone.
pub const DEVICES: usize = 32;
/// Most whole devices per request that the tables tell apart.
const SEVERAL: usize = 16;
/// Weight of idle GPU that lacks CPU against idle GPU that is usable, in percent.
const LACKING: i64 = 50;
/// How many times scarcer than all idle GPU the GPU open to one shape may count.
const SCARCE: i64 = 20;

/// One shape of the target as a kind of device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    cpu: u32,
    gpu: Gpus,
    /// Thousandths in all.
    milli: i64,
    /// Which of the target's shapes.
    no: usize,
    weight: Weight,
}

/// How much a shape counts, as parts of [`UNIT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weight {
    usable: i64,
    lacking: i64,
}

/// GPU per CPU of a shape, with what it and all before it weigh together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ratio {
    /// Thousandths of GPU per 2^20 thousandths of CPU.
    milli: i64,
    weights: i64,
    /// The sum of each one's weight times its thousandths.
    weighted: i64,
}

/// The tables of one kind of device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    wanted: Vec<Wanted>,
    /// CPU asked by the shapes, ascending, without duplicates.
    cpus: Vec<u32>,
    /// Free thousandths of a device → how many of the distinct sizes it holds.
    sizes_held: Vec<u16>,
    sizes: usize,
    /// `[CPU steps reached][sizes held]`: weight of the one-device shapes that run there.
    one: Vec<i64>,
    /// `[CPU steps reached][idle devices]`: weight of the many-device shapes that run there.
    many: Vec<i64>,
    /// Ascending: those that need the most CPU for a GPU first.
    ratios: Vec<Ratio>,
}

/// The worth of nodes to a target workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Worth {
    tables: Vec<Table>,
    /// By [`HardwareNo`]: the table of each device. A device without one is no GPU.
    hardware: Vec<Arc<[u8]>>,
}

/// The worth of one thousandth that every request can use, in the unit of [`Worth::of`].
pub const MOST: i64 = UNIT;

const NO_TABLE: u8 = u8::MAX;

impl Worth {
    /// The tables for the target, for all hardware in the index. Shapes that little of the
    /// idle GPU is open to count more, so that it is kept for them.
    pub fn new(mix: &Mix, index: &CapacityIndex) -> Self {
        let top = mix.top();
        if top.is_empty() {
            return Self::default();
        }
        let even: Vec<Weight> = vec![Weight::default(); top.len()];
        let open = Self::weighted(&top, &even, index).open(top.len(), index);
        Self::weighted(&top, &weights(&top, &open, index), index)
    }

    fn weighted(top: &[(Arc<Shape>, i64)], weights: &[Weight], index: &CapacityIndex) -> Self {
        let mut kinds: BTreeMap<DeviceFlavor, u8> = BTreeMap::new();
        let mut out = Self::default();
        for devices in index.hardware() {
            let mut of = |device: &DeviceFlavor| {
                if let Some(known) = kinds.get(device) {
                    return *known;
                }
                // What is left of a divided device is told by its slices.
                let whole = device.kind == DeviceKind::Gpu && device.sharing != Sharing::Mig;
                if !whole || out.tables.len() == usize::from(NO_TABLE) {
                    return NO_TABLE;
                }
                let no = out.tables.len() as u8;
                out.tables.push(Table::new(device, top, weights));
                kinds.insert(device.clone(), no);
                no
            };
            let list: Vec<u8> = devices.iter().map(&mut of).collect();
            out.hardware.push(list.into());
        }
        out
    }

    /// Idle thousandths that each shape could use, over all nodes.
    fn open(&self, shapes: usize, index: &CapacityIndex) -> Vec<i64> {
        let mut open = vec![0i64; shapes];
        for (class, nodes) in sample(index) {
            let Some(kinds) = self.hardware.get(class.flavor.hardware.index()) else { continue };
            let cpu = narrow(class.cpu_milli);
            for (no, table) in self.tables.iter().enumerate() {
                let here = kinds.iter().zip(&class.devices).filter(|(kind, _)| usize::from(**kind) == no);
                let free = Free::of(here.map(|(_, device)| device.milli));
                if free.idle() == 0 {
                    continue;
                }
                for wanted in table.wanted.iter().filter(|wanted| wanted.cpu <= cpu) {
                    open[wanted.no] += free.usable(wanted) * nodes.len() as i64;
                }
            }
        }
        open
    }

    /// The worth of `free` devices and CPU on hardware of the number, in thousandths × [`UNIT`]; None
    /// when the hardware is not known here, or too large.
    pub fn of(&self, hardware: HardwareNo, cpu_milli: u64, free: &[u16]) -> Option<i64> {
        let kinds = self.hardware.get(hardware.index())?;
        if free.len() > DEVICES || kinds.len() != free.len() {
            return None;
        }
        let cpu = narrow(cpu_milli);
        let first = kinds.iter().copied().find(|kind| *kind != NO_TABLE)?;
        if kinds.iter().all(|kind| *kind == first) {
            return Some(self.tables[usize::from(first)].worth(cpu, &Free::of(free.iter().copied())));
        }
        let mut sum = 0;
        for (no, table) in self.tables.iter().enumerate() {
            let here = kinds.iter().zip(free).filter(|(kind, _)| usize::from(**kind) == no);
            sum += table.worth(cpu, &Free::of(here.map(|(_, milli)| *milli)));
        }
        Some(sum)
    }

    /// The free devices of a node that are all of one kind, ready to be asked what taking from them leaves; None where
    /// the kinds differ, or say nothing here.
    pub fn ready(&self, hardware: HardwareNo, free: &[u16]) -> Option<Ready<'_>> {
        let kinds = self.hardware.get(hardware.index())?;
        let first = *kinds.first().filter(|first| **first != NO_TABLE)?;
        let alike = kinds.len() == free.len() && free.len() <= DEVICES && kinds.iter().all(|kind| *kind == first);
        let free = alike.then(|| Free::of(free.iter().copied()))?;
        Some(Ready { table: &self.tables[usize::from(first)], idle: free.idle(), free })
    }

    /// Thousandths of GPUs that are idle on nodes that take work, and what they are worth together. Nodes
    /// that are too large for the tables count as idle alone.
    pub fn idle(&self, index: &CapacityIndex) -> (u64, i64) {
        let mut sums = (0, 0);
        for (class, nodes) in index.classes.iter().filter(|(class, _)| class.takes_work()) {
            let free = free_of(&class.devices);
            let count = class.devices.len();
            let worth = free.get(..count).and_then(|free| self.of(class.flavor.hardware, class.cpu_milli, free));
            sums.0 += class.idle_milli() * nodes.len() as u64;
            sums.1 += worth.unwrap_or(0) * nodes.len() as i64;
        }
        sums
    }

    /// Nothing is wanted, so nothing tells nodes apart.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }
}

/// Classes that may take work; of very many every so-manieth, so that the tables stay cheap.
fn sample(index: &CapacityIndex) -> impl Iterator<Item = (&Arc<Class>, &OrdSet<NodeNo>)> {
    const LOOKED_AT: usize = 1024;
    let step = index.classes.len().div_ceil(LOOKED_AT).max(1);
    index.classes.iter().step_by(step).filter(|(class, _)| class.takes_work())
}

/// A shape counts by its part of the requests; for what is usable, times how much
/// scarcer the GPU open to it is than all that is idle.
fn weights(top: &[(Arc<Shape>, i64)], open: &[i64], index: &CapacityIndex) -> Vec<Weight> {
    let idle: i64 = sample(index).map(|(class, nodes)| class.idle_milli() as i64 * nodes.len() as i64).sum();
    let parts: Vec<i64> = top.iter().map(|(shape, part)| if shape.gpu == Gpus::None { 0 } else { *part }).collect();
    // In 256ths, so that the division keeps enough of the quotient.
    let scarce = |open: i64| (idle.saturating_mul(256) / open.max(1)).clamp(256, SCARCE * 256);
    let raw: Vec<i64> = parts.iter().zip(open).map(|(part, open)| part * scarce(*open)).collect();
    let (sum, all) = (raw.iter().sum::<i64>().max(1), parts.iter().sum::<i64>().max(1));
    let scaled = |value: i64, to: i64, of: i64| (i128::from(value) * i128::from(to) / i128::from(of)) as i64;
    let both = raw.iter().zip(&parts);
    both.map(|(raw, part)| Weight { usable: scaled(*raw, all, sum), lacking: scaled(*part, UNIT, all) }).collect()
}

fn narrow(cpu_milli: u64) -> u32 {
    u32::try_from(cpu_milli).unwrap_or(u32::MAX)
}

/// The free devices of one kind on a node.
struct Free {
    whole: u32,
    parts: [u16; DEVICES],
    some: usize,
}

impl Free {
    fn of(milli: impl Iterator<Item = u16>) -> Self {
        let mut free = Self { whole: 0, parts: [0; DEVICES], some: 0 };
        for milli in milli {
            match u32::from(milli) {
                WHOLE => free.whole += 1,
                0 => {}
                _ if free.some < DEVICES => {
                    free.parts[free.some] = milli;
                    free.some += 1;
                }
                _ => {}
            }
        }
        free
    }

    fn parts(&self) -> &[u16] {
        &self.parts[..self.some]
    }

    fn idle(&self) -> i64 {
        i64::from(self.whole * WHOLE) + self.parts().iter().map(|milli| i64::from(*milli)).sum::<i64>()
    }

    /// Idle thousandths that the shape could use, CPU aside.
    fn usable(&self, wanted: &Wanted) -> i64 {
        let whole = i64::from(self.whole * WHOLE);
        match wanted.gpu {
            Gpus::None => 0,
            Gpus::Whole(n) if u32::from(n) > self.whole => 0,
            Gpus::Whole(_) => whole,
            Gpus::Milli(milli) => {
                whole + self.parts().iter().filter(|free| **free >= milli).map(|free| i64::from(*free)).sum::<i64>()
            }
        }
    }
}

impl Table {
    fn new(device: &DeviceFlavor, top: &[(Arc<Shape>, i64)], weights: &[Weight]) -> Self {
        let suits = |shape: &Shape| {
            (shape.device_types.is_empty() || shape.device_types.contains(&device.device_type))
                && device.memory >= shape.gpu_memory
                && device.mig_profile == shape.mig_profile
                && shape.gpu != Gpus::None
        };
        let mut wanted = Vec::new();
        for (no, ((shape, _), weight)) in top.iter().zip(weights).enumerate().filter(|(_, ((s, _), _))| suits(s)) {
            let (cpu, milli) = (narrow(shape.cpu_milli), shape.gpu.milli() as i64);
            wanted.push(Wanted { cpu, gpu: shape.gpu, milli, no, weight: *weight });
        }
        let mut cpus: Vec<u32> = wanted.iter().map(|w| w.cpu).collect();
        cpus.sort_unstable();
        cpus.dedup();
        let mut sizes: Vec<u16> = wanted.iter().filter_map(size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let held = |milli: u16| sizes.partition_point(|size| *size <= milli) as u16;
        let mut out = Self {
            sizes_held: (0..=WHOLE as u16).map(held).collect(),
            sizes: sizes.len(),
            one: vec![0; (cpus.len() + 1) * (sizes.len() + 1)],
            many: vec![0; (cpus.len() + 1) * (SEVERAL + 1)],
            cpus,
            wanted: Vec::new(),
            ratios: ratios(&wanted),
        };
        for shape in &wanted {
            out.enter(shape, &sizes);
        }
        out.wanted = wanted;
        out
    }

    /// Adds one shape's weight wherever it runs.
    fn enter(&mut self, shape: &Wanted, sizes: &[u16]) {
        let first = self.cpus.partition_point(|cpu| *cpu < shape.cpu) + 1;
        for step in first..=self.cpus.len() {
            match size(shape) {
                Some(size) => {
                    let from = sizes.partition_point(|s| *s < size) + 1;
                    let row = step * (self.sizes + 1);
                    self.one[row + from..=row + self.sizes].iter_mut().for_each(|w| *w += shape.weight.usable);
                }
                None => {
                    let devices = (shape.milli / i64::from(WHOLE)) as usize;
                    let row = step * (SEVERAL + 1);
                    if devices <= SEVERAL {
                        self.many[row + devices..=row + SEVERAL].iter_mut().for_each(|w| *w += shape.weight.usable);
                    }
                }
            }
        }
    }

    fn worth(&self, cpu: u32, free: &Free) -> i64 {
        let row = self.row(cpu);
        row.parts(free.parts()) + row.whole(free.whole) - self.lack(cpu, free.idle())
    }

    fn row(&self, cpu: u32) -> Row<'_> {
        let step = self.cpus.partition_point(|known| *known <= cpu);
        let one = &self.one[step * (self.sizes + 1)..][..=self.sizes];
        let many = &self.many[step * (SEVERAL + 1)..][..=SEVERAL];
        Row { sizes_held: &self.sizes_held, one, many }
    }

    /// What is taken off for it.
    fn lack(&self, cpu: u32, idle: i64) -> i64 {
        self.lacking(cpu, idle) / 100 * LACKING
    }

    /// Idle GPU for which copies of a shape would find no CPU, over all shapes.
    fn lacking(&self, cpu: u32, idle: i64) -> i64 {
        let followed = |milli: i64| ((i128::from(milli) * i128::from(cpu)) >> 20) as i64;
        let lack = self.ratios.partition_point(|ratio| followed(ratio.milli) < idle);
        let Some(all) = lack.checked_sub(1).and_then(|last| self.ratios.get(last)) else { return 0 };
        idle * all.weights - followed(all.weighted)
    }
}

/// Of the shapes, those that need the most CPU for a GPU first.
fn ratios(wanted: &[Wanted]) -> Vec<Ratio> {
    let milli = |w: &Wanted| (w.milli << 20) / i64::from(w.cpu.max(1));
    let mut ratios: Vec<(i64, i64)> = wanted.iter().map(|w| (milli(w), w.weight.lacking)).collect();
    ratios.sort_unstable();
    let sums = ratios.into_iter().scan((0, 0), |(weights, weighted), (milli, weight)| {
        *weights += weight;
        *weighted += milli * weight;
        Some(Ratio { milli, weights: *weights, weighted: *weighted })
    });
    sums.collect()
}

/// See [`Worth::ready`]. A search asks it once for each device of each class of nodes: what the devices have in common
/// is summed up once.
pub struct Ready<'a> {
    table: &'a Table,
    free: Free,
    idle: i64,
}

impl Ready<'_> {
    /// What all that is free is worth beside so much CPU.
    pub fn all(&self, cpu_milli: u64) -> i64 {
        self.table.worth(narrow(cpu_milli), &self.free)
    }

    /// The same without so many whole devices.
    pub fn without_whole(&self, cpu_milli: u64, devices: u16) -> i64 {
        let cpu = narrow(cpu_milli);
        let row = self.table.row(cpu);
        let whole = self.free.whole.saturating_sub(devices.into());
        let idle = self.idle - i64::from((self.free.whole - whole) * WHOLE);
        row.parts(self.free.parts()) + row.whole(whole) - self.table.lack(cpu, idle)
    }

    /// The same without a part of one device: to be asked of each device in turn.
    pub fn without_part(&self, cpu_milli: u64, milli: u16) -> impl Fn(u16) -> i64 {
        let cpu = narrow(cpu_milli);
        let row = self.table.row(cpu);
        let (parts, all, whole) = (row.parts(self.free.parts()), self.free.whole, row.whole(self.free.whole));
        let one_less = row.whole(all.saturating_sub(1));
        let lack = self.table.lack(cpu, self.idle - i64::from(milli));
        move |had| {
            let (whole, gone) = if u32::from(had) == WHOLE { (one_less, 0) } else { (whole, row.part(had)) };
            parts - gone + row.part(had - milli) + whole - lack
        }
    }
}

/// Of one table, what holds beside so much CPU.
#[derive(Clone, Copy)]
struct Row<'a> {
    sizes_held: &'a [u16],
    one: &'a [i64],
    many: &'a [i64],
}

impl Row<'_> {
    fn at(&self, milli: u16) -> i64 {
        self.one[usize::from(self.sizes_held[usize::from(milli)])]
    }

    /// What a device with so much left is worth; one that is idle counts as [`Row::whole`].
    fn part(&self, milli: u16) -> i64 {
        i64::from(milli) * self.at(milli)
    }

    fn parts(&self, parts: &[u16]) -> i64 {
        parts.iter().map(|milli| self.part(*milli)).sum()
    }

    fn whole(&self, devices: u32) -> i64 {
        i64::from(devices * WHOLE) * (self.at(WHOLE as u16) + self.many[(devices as usize).min(SEVERAL)])
    }
}

/// Thousandths of a device that a one-device shape takes.
fn size(wanted: &Wanted) -> Option<u16> {
    match wanted.gpu {
        Gpus::Milli(milli) => Some(milli),
        Gpus::Whole(1) => Some(WHOLE as u16),
        _ => None,
    }
}

/// The free thousandths of a class' devices, for [`Worth::of`].
pub fn free_of(devices: &[FreeDevice]) -> [u16; DEVICES] {
    let mut out = [0; DEVICES];
    for (slot, device) in out.iter_mut().zip(devices) {
        *slot = device.milli;
    }
    out
}

#[cfg(test)]
mod tests;
