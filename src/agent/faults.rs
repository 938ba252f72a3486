//! Watches the GPUs of this machine for faults and tells the group: the driver's error
//! reports and uncorrected memory errors as they come, devices that it no longer finds,
//! and what starts of replicas found. A machine without a driver has nothing to watch. What follows from a fault is
//! decided in the core; nothing here stops a replica.

mod driver;
mod watcher;

use super::Link;
use crate::exchange::NodeStart;
use nf_core::command::DeviceFault;
use nf_core::fault::Fault;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Faults that wait to be told; beyond it they are dropped, since the first ones say enough.
const UNTOLD: usize = 256;
/// Pause before the group is told again.
const RETRY: Duration = Duration::from_secs(2);
/// What is still so is said again after this long, since the group forgets a fault whose time is over; and a GPU whose
/// reports could not be had is asked for them again.
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
        let look = move || watcher::run(driver::Nvidia::open, &uuids, &sees, AGAIN);
        let watcher = std::thread::Builder::new().name("nf-gpu-faults".into()).spawn(look);
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

#[cfg(test)]
mod tests;
