//! NVIDIA's driver, as the watch asks it, through NVML.

use super::watcher::{Deaf, Driver, Listen};
use nf_core::fault::Fault;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{EventSet, Nvml};
use std::collections::BTreeSet;
use std::sync::Arc;

/// How long one wait for reports takes; devices are looked for in between.
const WAIT_MS: u32 = 2_000;

/// See the module.
pub(super) struct Nvidia(Nvml);

impl Nvidia {
    /// # Errors
    /// When there is no driver, or it does not answer.
    pub(super) fn open() -> Result<Self, String> {
        Nvml::init().map(Self).map_err(|error| format!("NVML: {error}"))
    }
}

impl Driver for Nvidia {
    fn gpu_of(&self, uuid: &str) -> Option<Arc<str>> {
        let device = self.0.device_by_uuid(uuid).ok()?;
        // Older drivers know no slices, and say so with an error.
        match device.mig_is_mig_device_handle() {
            Ok(true) => Some(device.mig_parent_device().ok()?.uuid().ok()?.into()),
            _ => Some(uuid.into()),
        }
    }

    fn is_lost(&self, uuid: &str) -> bool {
        match self.0.device_by_uuid(uuid) {
            Ok(gpu) => matches!(gpu.memory_info(), Err(NvmlError::GpuLost)),
            Err(NvmlError::NotFound) => true,
            // NVML's reference says that a search by uuid may fail so because of any GPU, not only the one that is meant.
            Err(NvmlError::GpuLost) => !self.answers(uuid),
            Err(_) => false,
        }
    }

    fn listen<'a>(&'a self, gpus: &BTreeSet<Arc<str>>) -> Result<Box<dyn Listen + 'a>, Deaf> {
        let failed = |gpu: Option<&Arc<str>>, error: NvmlError| Deaf { gpu: gpu.cloned(), error: error.to_string() };
        let mut set = self.0.create_event_set().map_err(|error| failed(None, error))?;
        for uuid in gpus {
            let Ok(gpu) = self.0.device_by_uuid(&**uuid) else { continue };
            let offered = gpu.supported_event_types().unwrap_or_else(|_| EventTypes::empty());
            let wanted = offered & (EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR);
            if !wanted.is_empty() {
                set = gpu.register_events(wanted, set).map_err(|with| failed(Some(uuid), with.error))?;
            }
        }
        Ok(Box::new(Reports(set)))
    }
}

impl Nvidia {
    /// Whether one of the devices that can be had by their number, or a slice of one, is this one.
    fn answers(&self, uuid: &str) -> bool {
        let numbers = 0..self.0.device_count().unwrap_or(0);
        let mut found = numbers.filter_map(|number| self.0.device_by_index(number).ok());
        let is_it = |device: &nvml_wrapper::Device<'_>| {
            device.uuid().is_ok_and(|its| its == uuid) && device.memory_info().is_ok()
        };
        found.any(|gpu| {
            let slices = 0..gpu.mig_device_count().unwrap_or(0);
            is_it(&gpu) || slices.filter_map(|slice| gpu.mig_device_by_index(slice).ok()).any(|slice| is_it(&slice))
        })
    }
}

struct Reports<'a>(EventSet<'a>);

impl Listen for Reports<'_> {
    fn next(&mut self) -> Result<Option<(Arc<str>, Fault)>, String> {
        match self.0.wait(WAIT_MS) {
            Ok(event) => {
                let fault = fault_of(event.event_type, event.event_data);
                Ok(event.device.uuid().ok().map(Arc::from).zip(fault))
            }
            Err(NvmlError::Timeout) => Ok(None),
            Err(error) => Err(format!("NVML: {error}")),
        }
    }
}

fn fault_of(kind: EventTypes, data: Option<XidError>) -> Option<Fault> {
    match data {
        Some(XidError::Value(number)) => u16::try_from(number).ok().map(Fault::Xid),
        _ if kind.contains(EventTypes::DOUBLE_BIT_ECC_ERROR) => Some(Fault::Ecc),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_become_faults() {
        let xid = |n| fault_of(EventTypes::CRITICAL_XID_ERROR, Some(XidError::Value(n)));
        assert_eq!((xid(79), xid(31)), (Some(Fault::Xid(79)), Some(Fault::Xid(31))));
        assert_eq!(xid(1 << 40), None);
        assert_eq!(fault_of(EventTypes::CRITICAL_XID_ERROR, Some(XidError::Unknown)), None);
        assert_eq!(fault_of(EventTypes::DOUBLE_BIT_ECC_ERROR, None), Some(Fault::Ecc));
    }

    /// Only where there is a GPU: its driver takes the registration and says nothing while all is well.
    #[test]
    fn sound_gpus_of_this_machine_are_listened_to_in_silence() {
        let Ok(Some(gpus)) = crate::agent::nvml::gpus() else { return nf_core::testing::skipped("no GPU here") };
        let Ok(driver) = Nvidia::open() else { panic!("its driver answers") };
        let own: BTreeSet<Arc<str>> = gpus.iter().filter_map(|gpu| driver.gpu_of(&gpu.uuid)).collect();
        assert!(gpus.iter().all(|gpu| !driver.is_lost(&gpu.uuid)));
        assert!(driver.is_lost("GPU-00000000-0000-0000-0000-000000000000"));
        let Ok(mut reports) = driver.listen(&own) else { panic!("the driver offers reports") };
        assert_eq!(reports.next(), Ok(None), "nothing is wrong");
    }
}
