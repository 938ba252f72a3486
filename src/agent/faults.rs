//! Watches the GPUs of this machine for faults and tells the group: the driver's error
//! reports and uncorrected memory errors as they come, devices that it no longer finds,
//! and what starts of replicas found. A machine without a driver has nothing to watch. What follows from a fault is
//! decided in the core; nothing here stops a replica.

use super::Link;
use crate::exchange::NodeStart;
use nf_core::command::DeviceFault;
use nf_core::fault::Fault;
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Faults that wait to be told; beyond it they are dropped, since the first ones say enough.
const UNTOLD: usize = 256;
/// How long one wait for events takes; devices are looked for in between.
const WAIT_MS: u32 = 2_000;
/// Pause before the group is told again, or the driver is asked again.
const RETRY: Duration = Duration::from_secs(2);
/// What is still so is said again after this long: the group forgets a fault whose time is over.
const AGAIN: Duration = Duration::from_secs(600);

/// Where to say what was seen of a device.
pub type Sees = mpsc::Sender<DeviceFault>;
/// Whoever tells it to the group.
pub type Seen = mpsc::Receiver<DeviceFault>;

/// Both ends. What does not fit any more is dropped.
pub fn channel() -> (Sees, Seen) {
    mpsc::channel(UNTOLD)
}

/// Runs until `stop` is true. `uuids` are the node's real GPUs.
pub async fn run(
    node: NodeStart,
    uuids: Vec<Arc<str>>,
    (sees, seen): (Sees, Seen),
    link: Arc<dyn Link>,
    mut stop: watch::Receiver<bool>,
) {
    if !uuids.is_empty() {
        let watcher = std::thread::Builder::new().name("nf-gpu-faults".into()).spawn(move || look(&uuids, &sees));
        if let Err(error) = watcher {
            tracing::error!(%error, "the GPUs are not watched for faults");
        }
    }
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        () = tell(&node, &*link, seen) => {}
    }
}

/// Tells the group until it has heard.
async fn tell(node: &NodeStart, link: &dyn Link, mut seen: Seen) {
    // By device and fault: whether it was made up.
    let mut untold: BTreeMap<(Arc<str>, Fault), bool> = BTreeMap::new();
    let mut retry_at: Option<Instant> = None;
    loop {
        let wait = async {
            match retry_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            next = seen.recv() => match next {
                Some(DeviceFault { uuid, fault, simulated }) => {
                    tracing::warn!(gpu = %uuid, %fault, meaning = nf_core::fault::meaning(fault), "a fault of a GPU is seen");
                    untold.insert((uuid, fault), simulated);
                }
                None => return,
            },
            () = wait => {}
        }
        let one = |(of, simulated): (&(Arc<str>, Fault), &bool)| DeviceFault {
            uuid: of.0.clone(),
            fault: of.1,
            simulated: *simulated,
        };
        let faults = untold.iter().map(one);
        match link.faults(node.clone(), faults.collect()).await {
            Ok(()) => (untold, retry_at) = (BTreeMap::new(), None),
            Err(error) => {
                tracing::debug!(%error, "telling faults; trying again");
                retry_at = Some(Instant::now() + RETRY);
            }
        }
    }
}

/// Looks until nobody listens. A driver that does not answer is asked again.
#[allow(clippy::disallowed_methods, reason = "a thread of its own: NVML blocks")]
fn look(uuids: &[Arc<str>], sees: &Sees) {
    let mut lost = Lost::default();
    while !sees.is_closed() {
        match Nvml::init() {
            Ok(nvml) => {
                if let Err(error) = follow(&nvml, uuids, &mut lost, sees) {
                    tracing::warn!(%error, "watching GPUs; trying again");
                }
            }
            Err(error) => tracing::warn!(%error, "NVML: the GPUs are not watched; trying again"),
        }
        std::thread::sleep(RETRY);
    }
}

/// Returns when events have to be asked for anew, having looked for lost devices at least once.
fn follow(nvml: &Nvml, uuids: &[Arc<str>], lost: &mut Lost, sees: &Sees) -> Result<(), NvmlError> {
    // First, since a lost device may be why events can't be had.
    lost.look(nvml, uuids, sees);
    let mut set = nvml.create_event_set()?;
    for uuid in uuids {
        let Ok(gpu) = nvml.device_by_uuid(&**uuid) else { continue };
        let offered = gpu.supported_event_types().unwrap_or_else(|_| EventTypes::empty());
        let wanted = offered & (EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR);
        if wanted.is_empty() || lost.knows(uuid) || lost.deaf.contains(uuid) {
            continue;
        }
        set = gpu.register_events(wanted, set).map_err(|with| {
            // What fails for one takes the set with it; next time the others are watched without it.
            lost.deaf.insert(uuid.clone());
            with.error
        })?;
    }
    while !sees.is_closed() {
        let event = set.wait(WAIT_MS);
        lost.look(nvml, uuids, sees);
        match event {
            Ok(event) => {
                if let (Ok(uuid), Some(fault)) = (event.device.uuid(), fault_of(event.event_type, event.event_data)) {
                    // A full queue has enough to tell.
                    let _ = sees.try_send(real(uuid.into(), fault));
                }
            }
            Err(NvmlError::Timeout) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Devices that can't be watched.
#[derive(Default)]
struct Lost {
    /// The driver does not find them any more; and when that was said.
    told: Vec<(Arc<str>, std::time::Instant)>,
    /// It reports no events of them, although it offers to.
    deaf: BTreeSet<Arc<str>>,
}

impl Lost {
    fn knows(&self, uuid: &Arc<str>) -> bool {
        self.told.iter().any(|(known, _)| known == uuid)
    }

    fn look(&mut self, nvml: &Nvml, uuids: &[Arc<str>], sees: &Sees) {
        self.told.retain(|(_, at)| at.elapsed() < AGAIN);
        for uuid in uuids.iter().filter(|uuid| is_lost(nvml, uuid)) {
            if !self.knows(uuid) {
                self.told.push((uuid.clone(), std::time::Instant::now()));
                let _ = sees.try_send(real(uuid.clone(), Fault::Lost));
            }
        }
    }
}

fn real(uuid: Arc<str>, fault: Fault) -> DeviceFault {
    DeviceFault { uuid, fault, simulated: false }
}

fn fault_of(kind: EventTypes, data: Option<XidError>) -> Option<Fault> {
    match data {
        Some(XidError::Value(number)) => u16::try_from(number).ok().map(Fault::Xid),
        _ if kind.contains(EventTypes::DOUBLE_BIT_ECC_ERROR) => Some(Fault::Ecc),
        _ => None,
    }
}

fn is_lost(nvml: &Nvml, uuid: &str) -> bool {
    match nvml.device_by_uuid(uuid) {
        Ok(gpu) => matches!(gpu.memory_info(), Err(NvmlError::GpuLost)),
        Err(NvmlError::NotFound) => true,
        // NVML's reference says that a search by uuid may fail so because of any GPU, not only the one that is meant.
        Err(NvmlError::GpuLost) => !answers(nvml, uuid),
        Err(_) => false,
    }
}

/// Whether one of the devices that can be had by their number is this one.
fn answers(nvml: &Nvml, uuid: &str) -> bool {
    let numbers = 0..nvml.device_count().unwrap_or(0);
    let mut found = numbers.filter_map(|number| nvml.device_by_index(number).ok());
    found.any(|gpu| gpu.uuid().is_ok_and(|its| its == uuid) && gpu.memory_info().is_ok())
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
    #[allow(clippy::disallowed_methods, reason = "a thread of its own")]
    fn sound_gpus_of_this_machine_are_watched_in_silence() {
        let Ok(Some(gpus)) = crate::agent::nvml::gpus() else { return };
        let uuids: Vec<Arc<str>> = gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
        let Ok(nvml) = Nvml::init() else { return };
        let (sees, mut seen) = channel();
        let closes = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            seen.close();
            seen
        });
        follow(&nvml, &uuids, &mut Lost::default(), &sees).expect("the driver offers events");
        let mut seen = closes.join().expect("it ends");
        assert!(seen.try_recv().is_err(), "nothing is wrong");
        assert!(is_lost(&nvml, "GPU-00000000-0000-0000-0000-000000000000"));
    }
}
