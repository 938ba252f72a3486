//! MIG: how a GPU of NVIDIA is divided into slices, and where each may begin. A slice takes some of the GPU's eight
//! parts of memory, in a row, and may begin at a few of them only: with the same parts free, one order of arrivals
//! leaves room for a large slice and another does not. Sizes and positions are those that `nvidia-smi mig -lgipp`
//! prints for A100 and H100, names those of NVIDIA's MIG User Guide ("Supported MIG Profiles"). It knows no nodes.
//! See ADR 52.

use crate::id::DeviceType;
use crate::resources::WHOLE;
use serde::{Deserialize, Serialize};

/// Parts of memory of a GPU.
pub const PARTS: u8 = 8;

/// A kind of slice, whatever its name is on a GPU of some size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Shape {
    /// One part of compute, one of memory.
    One,
    /// The same with the engines for images and video, which only one slice of a GPU can have.
    OneMedia,
    /// One part of compute, two of memory.
    OneDouble,
    Two,
    Three,
    Four,
    /// All of it.
    Seven,
}

impl Shape {
    pub const ALL: [Shape; 7] =
        [Shape::One, Shape::OneMedia, Shape::OneDouble, Shape::Two, Shape::Three, Shape::Four, Shape::Seven];

    /// Parts of memory that it takes.
    pub fn size(self) -> u8 {
        match self {
            Shape::One | Shape::OneMedia => 1,
            Shape::OneDouble | Shape::Two => 2,
            Shape::Three | Shape::Four => 4,
            Shape::Seven => PARTS,
        }
    }

    /// Parts at which it may begin, in order. No two slices of one kind ever overlap, or they begin at the same one.
    pub fn starts(self) -> &'static [u8] {
        match self {
            Shape::One | Shape::OneMedia => &[0, 1, 2, 3, 4, 5, 6],
            Shape::OneDouble => &[0, 2, 4, 6],
            Shape::Two => &[0, 2, 4],
            Shape::Three => &[0, 4],
            Shape::Four | Shape::Seven => &[0],
        }
    }

    /// Thousandths of the GPU: its part of the memory. So slices beside one another never add up to more than the GPU.
    pub fn milli(self) -> u16 {
        u16::from(self.size()) * (WHOLE as u16 / u16::from(PARTS))
    }

    /// The kind of that name on GPUs of the type, if these can be divided so.
    pub fn named(device_type: &DeviceType, profile: &DeviceType) -> Option<Self> {
        Geometry::of(device_type)?.shape(profile)
    }
}

/// The names that the kinds have on one type of GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Geometry {
    device_type: &'static str,
    /// In the order of [`Shape::ALL`].
    names: [&'static str; 7],
}

const GEOMETRIES: [Geometry; 3] = [
    Geometry {
        device_type: "A100-40G",
        names: ["1g.5gb", "1g.5gb+me", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb"],
    },
    Geometry { device_type: "A100-80G", names: EIGHTY },
    Geometry { device_type: "H100-80G", names: EIGHTY },
];
const EIGHTY: [&str; 7] = ["1g.10gb", "1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"];

impl Geometry {
    /// How GPUs of the type are divided; None where that is not known.
    pub fn of(device_type: &DeviceType) -> Option<Self> {
        GEOMETRIES.into_iter().find(|geometry| geometry.device_type == device_type.as_str())
    }

    /// The types of which it is known, for people.
    pub fn known() -> String {
        GEOMETRIES.map(|geometry| geometry.device_type).join(", ")
    }

    pub fn shape(&self, profile: &DeviceType) -> Option<Shape> {
        let at = self.names.iter().position(|name| *name == profile.as_str())?;
        Shape::ALL.get(at).copied()
    }

    pub fn name(&self, shape: Shape) -> &'static str {
        self.names[shape as usize]
    }
}

/// A slice where it is on its GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slice {
    pub shape: Shape,
    /// The first part of memory that it takes.
    pub start: u8,
}

impl Slice {
    /// Whether such a slice may begin there.
    pub fn is_sound(self) -> bool {
        self.shape.starts().contains(&self.start)
    }

    /// Its name on GPUs of the type, and where it begins: `3g.40gb@4`.
    pub fn words(self, device_type: &str) -> String {
        let known = GEOMETRIES.iter().find(|geometry| geometry.device_type == device_type);
        format!("{}@{}", known.map_or("slice", |geometry| geometry.name(self.shape)), self.start)
    }

    /// The parts that it takes, one bit each. None for one that is not sound.
    fn mask(self) -> u8 {
        if !self.is_sound() {
            return 0;
        }
        (((1u16 << self.shape.size()) - 1) << self.start) as u8
    }
}

/// What is taken of a divided GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Layout {
    /// Parts of memory, one bit each.
    taken: u8,
    media: bool,
}

impl Layout {
    /// All of it: nothing fits.
    pub const FULL: Layout = Layout { taken: u8::MAX, media: true };

    /// Whether the slice may be made beside what there is.
    pub fn fits(self, slice: Slice) -> bool {
        slice.is_sound() && self.taken & slice.mask() == 0 && !(self.media && slice.shape == Shape::OneMedia)
    }

    /// With the slice, which must fit.
    #[must_use]
    pub fn with(self, slice: Slice) -> Self {
        Self { taken: self.taken | slice.mask(), media: self.media || slice.shape == Shape::OneMedia }
    }

    /// Without the slice, which must be there.
    #[must_use]
    pub fn without(self, slice: Slice) -> Self {
        Self { taken: self.taken & !slice.mask(), media: self.media && slice.shape != Shape::OneMedia }
    }

    /// Parts that are free.
    pub fn free(self) -> u32 {
        self.taken.count_zeros()
    }

    /// What still fits: for each kind, how many of it could be made were there no other, times its size.
    pub fn room(self) -> u32 {
        let of = |shape: &Shape| u32::from(shape.size()) * self.positions(*shape).count() as u32;
        Shape::ALL.iter().map(of).sum()
    }

    /// Where such a slice may be made now.
    fn positions(self, shape: Shape) -> impl Iterator<Item = Slice> {
        shape.starts().iter().map(move |start| Slice { shape, start: *start }).filter(move |slice| self.fits(*slice))
    }

    /// The slice of the kind that leaves room for the most others, and how much room it costs; of equal ones the first.
    pub fn best(self, shape: Shape) -> Option<(Slice, u32)> {
        let cost = |slice: Slice| self.room() - self.with(slice).room();
        self.positions(shape).map(|slice| (slice, cost(slice))).min_by_key(|(slice, cost)| (*cost, slice.start))
    }

    /// How many slices of the kind it gives, each the best of its turn.
    pub fn times(self, shape: Shape) -> u64 {
        let next = |layout: &Layout| layout.best(shape).map(|(slice, _)| layout.with(slice));
        std::iter::successors(next(&self), next).count() as u64
    }
}

#[cfg(test)]
mod tests;
