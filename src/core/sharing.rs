//! Parts of devices: what keeps a replica to its part, and whether anything does. A part
//! is given only where something enforces it, or where the tenant accepted that nothing
//! does. [`Ask::kept`] is the one place that decides it; the placer, its explanations and
//! apply ask there. It does not know how a limit is put on a program.

use crate::id::DeviceType;
use crate::job::{Allocation, JobSpec, Share};
use crate::ledger;
use crate::mig::{Shape, Slice};
use crate::node::NodeSpec;
use crate::resources::{Gpus, Resources, WHOLE};
use crate::state::State;
use serde::{Deserialize, Serialize};
use std::ops::Deref;

/// What keeps those who share a device to their parts of it. Its agent says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Sharing {
    /// Nothing.
    #[default]
    None,
    /// NVIDIA's Multi-Process Service, whose control daemon runs beside the agent.
    Mps,
    /// The device is only played, and so is what keeps its users apart.
    Simulated,
    /// The device itself, which is divided into slices: nobody gets it whole, or another part than a slice.
    Mig,
}

impl Sharing {
    pub const ALL: [Sharing; 4] = [Sharing::None, Sharing::Mps, Sharing::Simulated, Sharing::Mig];

    pub fn name(self) -> &'static str {
        match self {
            Sharing::None => "none",
            Sharing::Mps => "mps",
            Sharing::Simulated => "simulated",
            Sharing::Mig => "mig",
        }
    }

    /// The kind of the name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sharing| sharing.name() == name)
    }
}

/// What kept a replica to what it holds of a device when it got it. It stays true while the share is held: a device
/// in use may not change, and a tenant that takes its word back is asked again at the next place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kept {
    /// Nothing has to: the device is its own.
    #[default]
    Alone,
    Mps,
    Simulated,
    /// Its runtime, by a limit of its own.
    Runtime,
    /// Nobody, and its tenant accepts that.
    Accepted,
    /// The device, which makes this slice for it alone.
    Mig(Slice),
}

impl Kept {
    pub fn name(self) -> &'static str {
        match self {
            Kept::Alone => "alone",
            Kept::Mps => "mps",
            Kept::Simulated => "simulated",
            Kept::Runtime => "runtime",
            Kept::Accepted => "accepted",
            Kept::Mig(_) => "mig",
        }
    }

    /// The device that it takes to keep such a share; None where it is not the device that does.
    pub fn by_device(self) -> Option<Sharing> {
        match self {
            Kept::Mps => Some(Sharing::Mps),
            Kept::Simulated => Some(Sharing::Simulated),
            Kept::Mig(_) => Some(Sharing::Mig),
            Kept::Alone | Kept::Runtime | Kept::Accepted => None,
        }
    }
}

/// Who answers for a part of a device that the device itself enforces on nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Otherwise {
    Nobody,
    Runtime,
    Tenant,
}

/// A job's wishes together with who answers for its parts of devices. Made of the state alone, so that nobody
/// looks for a place without having asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    spec: &'a JobSpec,
    otherwise: Otherwise,
}

impl Deref for Ask<'_> {
    type Target = JobSpec;

    fn deref(&self) -> &JobSpec {
        self.spec
    }
}

impl<'a> Ask<'a> {
    /// The job's ask as things are.
    pub fn of(state: &State, spec: &'a JobSpec) -> Self {
        let is_part = matches!(spec.resources.gpu, Gpus::Milli(_));
        let accepts = || state.tenant_named(&spec.tenant).is_some_and(|tenant| tenant.quota.soft_sharing);
        let otherwise = match () {
            () if !is_part => Otherwise::Nobody,
            () if spec.self_limiting => Otherwise::Runtime,
            () if accepts() => Otherwise::Tenant,
            () => Otherwise::Nobody,
        };
        Self { spec, otherwise }
    }

    /// As if its tenant accepted that nothing enforces its parts: for telling what else is in the way.
    pub fn accepted(self) -> Self {
        let otherwise = if self.takes_any() { self.otherwise } else { Otherwise::Tenant };
        Self { otherwise, ..self }
    }

    pub fn spec(self) -> &'a JobSpec {
        self.spec
    }

    /// What would keep it to what it asks for of such a device. None: nothing, so it gets no part of one. Of a device
    /// that is divided it may get a slice (see [`Ask::slice_of`]), and nothing else.
    pub fn kept(&self, device: Sharing) -> Option<Kept> {
        match (self.spec.resources.gpu, device, self.otherwise) {
            (Gpus::Whole(_) | Gpus::Milli(_), Sharing::Mig, _) => None,
            (Gpus::None | Gpus::Whole(_), ..) => Some(Kept::Alone),
            (Gpus::Milli(_), Sharing::Mps, _) => Some(Kept::Mps),
            (Gpus::Milli(_), Sharing::Simulated, _) => Some(Kept::Simulated),
            (Gpus::Milli(_), Sharing::None, Otherwise::Runtime) => Some(Kept::Runtime),
            (Gpus::Milli(_), Sharing::None, Otherwise::Tenant) => Some(Kept::Accepted),
            (Gpus::Milli(_), Sharing::None, Otherwise::Nobody) => None,
        }
    }

    /// The kind of slice that it would get of a GPU that is divided, if it asks for one that such a GPU can make. A
    /// program sees one slice, so nobody gets two.
    pub fn slice_of(&self, sharing: Sharing, device_type: &DeviceType, memory: u64) -> Option<Shape> {
        let ask = &self.spec.resources;
        let profile = ask.mig_profile.as_ref().filter(|_| sharing == Sharing::Mig && ask.gpu == Gpus::Whole(1))?;
        let shape = Shape::named(device_type, profile)?;
        let type_fits = ask.device_types.is_empty() || ask.device_types.contains(device_type);
        (type_fits && ledger::part_of(memory, shape.milli()) >= ask.gpu_memory).then_some(shape)
    }

    /// Whether it takes a part of any device, also of one that enforces nothing.
    pub fn takes_any(&self) -> bool {
        self.otherwise != Otherwise::Nobody
    }

    /// The shares of the place as this job would hold them, which takes it over from another version of itself; None
    /// where nothing would keep it to them. What kept the other need not be what keeps this one.
    pub fn takes_over(&self, alloc: &Allocation, node: &NodeSpec) -> Option<Vec<Share>> {
        let keep = |share: &Share| {
            let kept = match share.kept {
                Kept::Alone | Kept::Mig(_) => share.kept,
                _ => self.kept(node.devices.get(usize::from(share.device))?.sharing)?,
            };
            Some(Share { kept, ..*share })
        };
        alloc.shares.iter().map(keep).collect()
    }
}

/// The part of a device that a replica holds, for whoever puts its limits on the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub kept: Kept,
    /// Thousandths of the device.
    pub milli: u16,
    /// Bytes of the device's memory that are booked for it.
    pub memory: u64,
    /// Bytes that the device has.
    pub of: u64,
}

impl Part {
    /// The part among what is held; None where every device is held alone. There is at most one.
    pub fn of(ask: &Resources, alloc: &Allocation, node: &NodeSpec) -> Option<Self> {
        // A slice is a device of its own, of which nothing is anybody else's.
        let shared = |share: &&Share| !matches!(share.kept, Kept::Alone | Kept::Mig(_));
        let share = alloc.shares.iter().find(shared)?;
        let of = node.devices.get(usize::from(share.device))?.memory;
        Some(Self { kept: share.kept, milli: share.milli, memory: ledger::share_memory(ask, *share, node), of })
    }

    /// Percent of the device's multiprocessors: never more than is held, and never none at all.
    pub fn percent(&self) -> u16 {
        (self.milli / 10).max(1)
    }

    /// Thousandths of the device's memory: never more than is booked, and never none at all.
    pub fn memory_milli(&self) -> u16 {
        let milli = u128::from(self.memory) * u128::from(WHOLE) / u128::from(self.of.max(1));
        milli.clamp(1, WHOLE.into()) as u16
    }
}

#[cfg(test)]
mod tests;
