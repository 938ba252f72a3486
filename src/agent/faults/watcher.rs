//! Which devices are listened to, and which of them are lost, whatever the driver is. One that comes back is listened
//! to again, and one whose reports could not be had is tried again. It tells what was seen and decides nothing.

use super::Sees;
use nf_core::command::DeviceFault;
use nf_core::fault::Fault;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pause before a driver that failed is asked again.
const RETRY: Duration = Duration::from_secs(2);
/// A driver is opened anew this often while something is lost: it may know what came back only then.
const ANEW: Duration = Duration::from_secs(60);

/// What the watch asks of a driver; played in tests.
pub(super) trait Driver {
    /// The GPU that reports what happens to a device: of a slice the one of which it is a part. None: it is not found.
    fn gpu_of(&self, uuid: &str) -> Option<Arc<str>>;
    fn is_lost(&self, uuid: &str) -> bool;
    /// Asks for the reports of these GPUs, where the driver offers any.
    ///
    /// # Errors
    /// When they can't be had, and of which GPU that is the fault, where it is of one.
    fn listen<'a>(&'a self, gpus: &BTreeSet<Arc<str>>) -> Result<Box<dyn Listen + 'a>, Deaf>;
}

/// Reports as they come.
pub(super) trait Listen {
    /// The next one, and of which GPU; None when none came for a moment.
    ///
    /// # Errors
    /// None will come any more.
    fn next(&mut self) -> Result<Option<(Arc<str>, Fault)>, String>;
}

/// Why nothing can be listened to.
pub(super) struct Deaf {
    pub gpu: Option<Arc<str>>,
    pub error: String,
}

/// Looks until nobody listens. A driver that does not answer is asked again; what is still so is said again, and
/// tried again, after `again`.
#[allow(clippy::disallowed_methods, reason = "a thread of its own: drivers block")]
pub(super) fn run<D: Driver>(open: impl Fn() -> Result<D, String>, uuids: &[Arc<str>], sees: &Sees, again: Duration) {
    let mut watch = Watch { again, lost: BTreeMap::new(), deaf: BTreeMap::new() };
    while !sees.is_closed() {
        match open().and_then(|driver| watch.follow(&driver, uuids, sees)) {
            // At once, since nobody listens meanwhile.
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "the GPUs are not watched for faults; trying again");
                std::thread::sleep(RETRY.min(again / 10));
            }
        }
    }
}

/// Devices that can't be listened to.
struct Watch {
    again: Duration,
    /// The driver does not find them any more; and when that was said last.
    lost: BTreeMap<Arc<str>, Instant>,
    /// GPUs of which it reports nothing, although it offers to; and since when.
    deaf: BTreeMap<Arc<str>, Instant>,
}

impl Watch {
    /// Returns when reports have to be asked for anew, having looked for lost devices at least once.
    fn follow(&mut self, driver: &dyn Driver, uuids: &[Arc<str>], sees: &Sees) -> Result<(), String> {
        let begun = Instant::now();
        // First, since a lost device may be why reports can't be had.
        self.look(driver, uuids, sees);
        let heard = self.audible(driver, uuids);
        let listening = driver.listen(&heard.keys().cloned().collect());
        let mut listening = listening.map_err(|Deaf { gpu, error }| {
            // What fails for one takes all with it; next time the others are listened to without it.
            self.deaf.extend(gpu.map(|gpu| (gpu, Instant::now())));
            error
        })?;
        while !sees.is_closed() {
            let report = listening.next();
            self.look(driver, uuids, sees);
            if let Some((gpu, fault)) = report? {
                for uuid in heard.get(&gpu).into_iter().flatten() {
                    // A full queue has enough to tell.
                    let _ = sees.try_send(real(uuid.clone(), fault));
                }
            }
            // Also when there are fewer: what is lost and comes back has to be asked for anew.
            let others = self.audible(driver, uuids) != heard;
            if others || (!self.lost.is_empty() && begun.elapsed() > ANEW) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn look(&mut self, driver: &dyn Driver, uuids: &[Arc<str>], sees: &Sees) {
        for uuid in uuids {
            let said = self.lost.get(uuid).map(Instant::elapsed);
            match (driver.is_lost(uuid), said) {
                (true, Some(ago)) if ago < self.again => {}
                (true, _) => {
                    self.lost.insert(uuid.clone(), Instant::now());
                    let _ = sees.try_send(real(uuid.clone(), Fault::Lost));
                }
                (false, Some(_)) => {
                    tracing::info!(gpu = %uuid, "a GPU that was lost answers again; nf node heal takes it back");
                    self.lost.remove(uuid);
                }
                (false, None) => {}
            }
        }
        self.deaf.retain(|_, since| since.elapsed() < self.again);
    }

    /// Devices whose reports may be had, by the GPU that makes them.
    fn audible(&self, driver: &dyn Driver, uuids: &[Arc<str>]) -> BTreeMap<Arc<str>, BTreeSet<Arc<str>>> {
        let mut out: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for uuid in uuids.iter().filter(|uuid| !self.lost.contains_key(*uuid)) {
            if let Some(gpu) = driver.gpu_of(uuid).filter(|gpu| !self.deaf.contains_key(gpu)) {
                out.entry(gpu).or_default().insert(uuid.clone());
            }
        }
        out
    }
}

fn real(uuid: Arc<str>, fault: Fault) -> DeviceFault {
    DeviceFault { uuid, fault, simulated: false }
}
