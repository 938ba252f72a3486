//! A device as logs, rows and checkpoints have it. The NUMA node came when there were such bytes already, and their form
//! has no names for a field to be absent by: it is written above the island's number, so that of a device of which
//! nobody said it the bytes are what they always were. ADR 86.

use super::DeviceKind;
use crate::id::DeviceType;
use crate::sharing::Sharing;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Of the number in which both are: those of the island.
const ISLAND_BITS: u32 = 16;

#[derive(Serialize, Deserialize)]
pub(super) struct Device {
    uuid: Arc<str>,
    kind: DeviceKind,
    device_type: DeviceType,
    memory: u64,
    /// The island, and above it one more than the NUMA node.
    island: u64,
    mig_profile: Option<DeviceType>,
    healthy: bool,
    sharing: Sharing,
}

impl From<super::Device> for Device {
    fn from(device: super::Device) -> Self {
        let super::Device { uuid, kind, device_type, memory, island, numa, mig_profile, healthy, sharing } = device;
        let above = numa.map_or(0, |numa| u64::from(numa) + 1);
        let island = above << ISLAND_BITS | u64::from(island);
        Self { uuid, kind, device_type, memory, island, mig_profile, healthy, sharing }
    }
}

impl TryFrom<Device> for super::Device {
    type Error = String;

    fn try_from(stored: Device) -> Result<Self, String> {
        let Device { uuid, kind, device_type, memory, island: both, mig_profile, healthy, sharing } = stored;
        let island = both as u16;
        let numa = (both >> ISLAND_BITS).checked_sub(1).map(u16::try_from).transpose();
        let numa = numa.map_err(|_| format!("island {both}: no NUMA node has such a number"))?;
        Ok(Self { uuid, kind, device_type, memory, island, numa, mig_profile, healthy, sharing })
    }
}

#[cfg(test)]
mod tests {
    use crate::codec;
    use crate::node::Device;
    use crate::testing;
    use proptest::prelude::*;

    fn device(island: u16, numa: Option<u16>) -> Device {
        Device { island, numa, ..testing::node_spec(1).devices.remove(0) }
    }

    /// The bytes of a device with that in its island's place.
    fn with(island: impl serde::Serialize) -> Vec<u8> {
        let Device { uuid, kind, device_type, memory, mig_profile, healthy, sharing, .. } = device(0, None);
        codec::body(&(uuid, kind, device_type, memory, island, mig_profile, healthy, sharing), Vec::new())
    }

    #[test]
    fn what_says_no_numa_node_has_the_bytes_that_it_always_had() {
        for island in [0, 1, 127, 128, u16::MAX] {
            let now = device(island, None);
            // Sixteen bits are all that the builds before NUMA nodes wrote.
            let before = with(island);
            assert_eq!(codec::body(&now, Vec::new()), before);
            assert_eq!(codec::exact::<Device>(0, &before).unwrap(), now, "and is read");
        }
    }

    proptest! {
        #[test]
        fn island_and_numa_node_come_back(island: u16, numa: Option<u16>) {
            let device = device(island, numa);
            let bytes = codec::body(&device, Vec::new());
            prop_assert_eq!(codec::exact::<Device>(0, &bytes).unwrap(), device);
        }

        #[test]
        fn any_number_in_their_place_is_read_or_refused(both: u64) {
            let read = codec::exact::<Device>(0, &with(both));
            prop_assert_eq!(read.is_ok(), both >> 16 <= u64::from(u16::MAX) + 1);
        }
    }
}
