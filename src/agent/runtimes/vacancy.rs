//! Waits until the devices of a start are seen free: nobody's process on them, and their
//! memory back to what the driver keeps, as it was seen when nobody was there. Asks the driver, or, for devices that are not
//! real, a file that tests and people write. When it waits in vain it says so to the
//! group and to the alarms, and the replica starts elsewhere. What free is, and how long
//! that is waited for, is decided in the core.

use crate::agent::faults::Sees;
use crate::agent::nvml;
use crate::agent::post::Post;
use crate::agent::record::End;
use crate::agent::runtimes::mps::Daemon;
use crate::agent::runtimes::processes::boot_id;
use crate::agent::tpus;
use crate::storage::replace_file;
use nf_core::command::DeviceFault;
use nf_core::fault::Fault;
use nf_core::reason::Reason;
use nf_core::reconcile::Want;
use nf_core::vacancy::{Base, Look, Step, step};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Between two looks at devices that were waited for in vain.
const AFTER: Duration = Duration::from_secs(2);
/// A share that is all of a device, in thousandths.
const WHOLE: u16 = 1_000;
/// The longest file of devices that are not real.
const MAX_FILE: u64 = 1 << 20;
/// How long one look may take: a driver with a broken GPU may never answer.
const LOOK: Duration = Duration::from_secs(5);

/// Who knows what is on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sensor {
    /// NVIDIA's driver, and the kernel for TPUs.
    Driver,
    /// A JSON object in this file: by uuid, `used` (bytes) and `pids`. Who is not in it is
    /// free, and so are all while there is no file.
    Played(PathBuf),
    /// The same with a file for each device in a directory, so that one can hang.
    #[cfg(test)]
    Each(PathBuf),
}

/// What keeps a device from being free.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Taken {
    /// Of its memory no more than `most` may be in use.
    By { look: Look, most: u64 },
    /// It can't be seen, and why: nobody starts on a device that may be in use.
    Unseen(String),
}

impl Sensor {
    /// What is on each of the devices; None where its driver does not offer that. Blocks.
    fn look(&self, uuids: &[Arc<str>]) -> Vec<(Arc<str>, Result<Option<Look>, String>)> {
        match self {
            Sensor::Driver => {
                let (tpus, gpus): (Vec<_>, Vec<_>) = uuids.iter().cloned().partition(|uuid| tpus::is_one(uuid));
                let kernel = tpus::Kernel::default();
                let tpus = tpus.into_iter().map(|uuid| (uuid.clone(), kernel.look(&uuid)));
                let gpus = if gpus.is_empty() { Vec::new() } else { nvml::looks(&gpus) };
                gpus.into_iter().chain(tpus).collect()
            }
            #[cfg(test)]
            Sensor::Each(dir) => {
                let one = |uuid: &Arc<str>| Sensor::Played(dir.join(&**uuid)).look(std::slice::from_ref(uuid));
                uuids.iter().flat_map(one).collect()
            }
            Sensor::Played(path) => {
                let mut known = played(path).map_err(|error| format!("{}: {error}", path.display()));
                let mut one = |uuid: &Arc<str>| match &mut known {
                    Ok(known) => Ok(Some(known.remove(&**uuid).unwrap_or_default())),
                    Err(why) => Err(why.clone()),
                };
                uuids.iter().map(|uuid| (uuid.clone(), one(uuid))).collect()
            }
        }
    }
}

fn played(path: &Path) -> io::Result<BTreeMap<String, Look>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Ok(meta) if meta.len() > MAX_FILE => Err(io::Error::other(format!("longer than {MAX_FILE} bytes"))),
        _ => Ok(serde_json::from_slice(&fs::read(path)?)?),
    }
}

/// Raises the alarm that devices did not become free, or, with None, ends it.
pub type Alarm = Arc<dyn Fn(Option<&str>) + Send + Sync>;

/// What each device has in use when nobody is on it, in one boot of the machine: the next may bring another driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Bases {
    boot: String,
    by_uuid: BTreeMap<Arc<str>, Base>,
}

impl Bases {
    /// Those that an earlier agent saw in this boot.
    fn read(path: &Path, boot: String) -> Self {
        let none = |boot| Self { boot, by_uuid: BTreeMap::new() };
        match fs::read(path).map(|bytes| serde_json::from_slice::<Self>(&bytes)) {
            Ok(Ok(known)) if known.boot == boot => known,
            Ok(Err(error)) => {
                tracing::warn!(path = %path.display(), %error, "what devices have in use when free can't be read, and is learned anew");
                none(boot)
            }
            Ok(Ok(_)) | Err(_) => none(boot),
        }
    }
}

/// What this agent has learned of its devices, and whom it tells.
pub struct Vacancy {
    sensor: Sensor,
    /// How long a start waits.
    most: Duration,
    /// Who tells the group; None: nobody does.
    sees: Option<Sees>,
    alarm: Option<Alarm>,
    bases: Mutex<Bases>,
    /// Where the bases are kept for the next agent; None: it learns them anew.
    kept: Option<PathBuf>,
    /// Held while they are written there.
    writing: Mutex<()>,
    /// Where the control daemon of the Multi-Process Service has its pipes.
    mps_pipes: Option<PathBuf>,
    /// Those that somebody waited for in vain and that were not seen free since.
    in_vain: Mutex<BTreeSet<Arc<str>>>,
    /// By device, held by the one look at it that is under way: those behind a driver that hangs must not pile up, and
    /// what hangs for one device must not hold up the others.
    looking: Mutex<BTreeMap<Arc<str>, Arc<Semaphore>>>,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Single entries are put in and taken out: nothing can be half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vacancy {
    pub fn new(sensor: Sensor, most: Duration, sees: Option<Sees>, alarm: Option<Alarm>) -> Self {
        Self {
            sensor,
            most,
            sees,
            alarm,
            bases: Mutex::default(),
            kept: None,
            writing: Mutex::default(),
            mps_pipes: None,
            in_vain: Mutex::default(),
            looking: Mutex::default(),
        }
    }

    /// Goes on with what an earlier agent of this boot saw, and keeps in this file what the next one needs: it would
    /// otherwise take for the driver's own what a replica left meanwhile. Reads it.
    pub fn remembering(self, path: PathBuf) -> Self {
        let bases = Mutex::new(Bases::read(&path, boot_id().unwrap_or_default()));
        Self { bases, kept: Some(path), ..self }
    }

    /// Servers of the Multi-Process Service's daemon that has its pipes there are nobody.
    pub fn beside_mps(self, pipes: PathBuf) -> Self {
        Self { mps_pipes: Some(pipes), ..self }
    }

    /// Tells the group that somebody is on these devices.
    pub(in crate::agent) fn tell(&self, uuids: &[Arc<str>]) {
        for uuid in uuids {
            let simulated = self.sensor != Sensor::Driver;
            let fault = DeviceFault { uuid: uuid.clone(), fault: Fault::Occupied, simulated };
            // A full queue has enough to tell; the replica's own end says the same.
            let _ = self.sees.as_ref().map(|sees| sees.try_send(fault));
        }
    }

    /// The devices that are not free, and what is on each. One look.
    fn occupied(&self, uuids: &[Arc<str>]) -> Vec<(Arc<str>, Taken)> {
        let (mut out, mut learned) = (Vec::new(), false);
        for (uuid, look) in self.sensor.look(uuids) {
            match look {
                Ok(Some(look)) => {
                    let (taken, more) = self.judge(&uuid, self.without_mps(look));
                    out.extend(taken.map(|taken| (uuid, taken)));
                    learned |= more;
                }
                // Its driver never tells, so waiting for it would be for ever.
                Ok(None) => {}
                Err(why) => out.push((uuid, Taken::Unseen(why))),
            }
        }
        if learned {
            self.keep();
        }
        out
    }

    /// What keeps a device that looks so from being free, and whether something was learned of it. Nobody waits for a
    /// driver, a disk or another process meanwhile.
    fn judge(&self, uuid: &Arc<str>, look: Look) -> (Option<Taken>, bool) {
        let mut bases = held(&self.bases);
        let base = bases.by_uuid.entry(uuid.clone()).or_default();
        if !base.is_free(&look) {
            let most = base.most(look.total);
            return (Some(Taken::By { look, most }), false);
        }
        let more = base.and(&look);
        let learned = more != *base;
        *base = more;
        (None, learned)
    }

    /// Of who is on a device, all but the service's own servers: they stay when the last client has gone. What they keep
    /// of its memory is a part of what it has in use when it is free.
    fn without_mps(&self, mut look: Look) -> Look {
        let pipes = self.mps_pipes.as_deref().filter(|_| !look.pids.is_empty());
        if let Some(daemon) = pipes.and_then(|pipes| Daemon::find(pipes).ok()) {
            look.pids.retain(|pid| !daemon.has_server(*pid));
        }
        look
    }

    fn keep(&self) {
        let Some(path) = &self.kept else { return };
        // Each writes what is known when it is its turn, so that none puts older knowledge over newer.
        let _turn = held(&self.writing);
        let bases = held(&self.bases).clone();
        let bytes = serde_json::to_vec_pretty(&bases).unwrap_or_default();
        if let Err(error) = replace_file(path, &bytes) {
            tracing::warn!(path = %path.display(), %error, "the next agent learns anew what devices have in use when free");
        }
    }
}

/// Returns when all devices that the replica has for itself are free. One that shares its
/// device waits for nobody: whose memory is whose can't be seen.
///
/// # Errors
/// How the replica ends when that took too long.
pub(in crate::agent) async fn wait(post: &Post, want: &Want) -> Result<(), End> {
    let whole = want.shares.iter().zip(&want.uuids).filter(|(share, _)| share.milli == WHOLE);
    let uuids: Vec<Arc<str>> = whole.map(|(_, uuid)| uuid.clone()).collect();
    if uuids.is_empty() {
        return Ok(());
    }
    let vacancy = post.shared.config.vacancy.clone();
    let begun = Instant::now();
    let mut told = None;
    let outcome = loop {
        let occupied = look(&vacancy, &uuids).await;
        let waited = begun.elapsed();
        match step(occupied.is_empty(), millis(waited), millis(vacancy.most)) {
            Step::Start => break Ok(()),
            Step::GiveUp => {
                let text = words(&occupied);
                post.note(&format!("waited {:?} in vain: {text}", vacancy.most)).await;
                give_up(&vacancy, &occupied, &text);
                break Err(End::failed(Reason::DeviceFault));
            }
            Step::Wait(ms) => {
                let text = words(&occupied);
                if told.as_ref() != Some(&text) {
                    let left = vacancy.most.saturating_sub(waited);
                    post.note(&format!("waits for at most {left:.1?}: {text}")).await;
                    post.waits(Some(&text));
                    told = Some(text);
                }
                tokio::time::sleep(Duration::from_millis(ms)).await;
            }
        }
    };
    if told.is_some() {
        post.waits(None);
    }
    outcome
}

async fn look(vacancy: &Arc<Vacancy>, uuids: &[Arc<str>]) -> Vec<(Arc<str>, Taken)> {
    let looks = futures::future::join_all(uuids.iter().map(|uuid| look_at(vacancy.clone(), uuid.clone()))).await;
    looks.into_iter().flatten().collect()
}

async fn look_at(vacancy: Arc<Vacancy>, uuid: Arc<str>) -> Vec<(Arc<str>, Taken)> {
    let alone = held(&vacancy.looking).entry(uuid.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))).clone();
    let asked = uuid.clone();
    let one = async move {
        let alone = alone.acquire_owned().await.ok()?;
        let looks = tokio::task::spawn_blocking(move || (vacancy.occupied(&[asked]), alone).0);
        looks.await.ok()
    };
    match tokio::time::timeout(LOOK, one).await {
        Ok(Some(looks)) => looks,
        _ => vec![(uuid, Taken::Unseen(format!("its driver does not answer within {LOOK:?}")))],
    }
}

/// Tells the group and the alarms, and looks until the devices are free after all.
fn give_up(vacancy: &Arc<Vacancy>, occupied: &[(Arc<str>, Taken)], text: &str) {
    // Of one that can't be seen nothing is known: its driver's own faults are told by whoever watches it.
    let taken = occupied.iter().filter(|(_, taken)| matches!(taken, Taken::By { .. }));
    vacancy.tell(&taken.map(|(uuid, _)| uuid.clone()).collect::<Vec<_>>());
    let Some(alarm) = vacancy.alarm.clone() else { return };
    alarm(Some(text));
    let mut in_vain = held(&vacancy.in_vain);
    let watched = !in_vain.is_empty();
    in_vain.extend(occupied.iter().map(|(uuid, _)| uuid.clone()));
    if watched {
        return;
    }
    let vacancy = Arc::downgrade(vacancy);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(AFTER).await;
            let Some(vacancy) = vacancy.upgrade() else { return };
            let uuids: Vec<Arc<str>> = held(&vacancy.in_vain).iter().cloned().collect();
            let still = look(&vacancy, &uuids).await;
            let mut in_vain = held(&vacancy.in_vain);
            in_vain.retain(|uuid| !uuids.contains(uuid) || still.iter().any(|(taken, _)| taken == uuid));
            if in_vain.is_empty() {
                return alarm(None);
            }
        }
    });
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// For people.
fn words(occupied: &[(Arc<str>, Taken)]) -> String {
    let one = |(uuid, taken): &(Arc<str>, Taken)| match taken {
        Taken::Unseen(why) => format!("{uuid} can't be seen free: {why}"),
        Taken::By { look, most } => {
            let pids: Vec<String> = look.pids.iter().take(8).map(u32::to_string).collect();
            let who = if pids.is_empty() { "no process".to_owned() } else { format!("pid {}", pids.join(", ")) };
            let (used, most) = (look.used >> 20, most >> 20);
            format!("{uuid} is not free: {used} MiB in use, {who} (free is no process and at most {most} MiB)")
        }
    };
    occupied.iter().map(one).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::runtimes::mps::tests::Serving;
    use proptest::prelude::*;

    #[test]
    fn a_file_says_what_is_on_devices_that_are_not_real() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("devices.json");
        let vacancy = Vacancy::new(Sensor::Played(path.clone()), Duration::ZERO, None, None);
        let uuids: [Arc<str>; 2] = ["SIM-0".into(), "SIM-1".into()];
        assert_eq!(vacancy.occupied(&uuids), []);
        fs::write(&path, r#"{"SIM-1": {"used": 75161927680, "pids": [7, 8]}, "SIM-0": {"used": 1048576}}"#).unwrap();
        let occupied = vacancy.occupied(&uuids);
        assert_eq!(
            words(&occupied),
            "SIM-1 is not free: 71680 MiB in use, pid 7, 8 (free is no process and at most 512 MiB)"
        );
        fs::write(&path, r#"{"SIM-1": {"used": 75161927680}}"#).unwrap();
        let said = words(&vacancy.occupied(&uuids));
        assert!(said.starts_with("SIM-1 is not free: 71680 MiB in use, no process ("), "{said}");
        for bad in ["", "[]", r#"{"SIM-1": {"used": -1}}"#, r#"{"SIM-1": {"usde": 1}}"#] {
            fs::write(&path, bad).unwrap();
            assert!(played(&path).is_err(), "{bad}");
            // Whoever can't be seen is not free.
            assert!(words(&vacancy.occupied(&uuids)).starts_with("SIM-0 can't be seen free: "), "{bad}");
        }
    }

    /// The file of what is on SIM-0, with so many MiB and whose.
    fn say(path: &Path, mib: u64, pids: &[u32]) {
        fs::write(path, serde_json::json!({ "SIM-0": { "used": mib << 20, "pids": pids } }).to_string()).unwrap();
    }

    #[test]
    fn what_a_replica_left_while_agents_changed_is_not_taken_for_the_drivers_own() {
        let tmp = tempfile::tempdir().unwrap();
        let (path, kept, uuids) = (tmp.path().join("devices.json"), tmp.path().join("idle.json"), ["SIM-0".into()]);
        let agent = || Vacancy::new(Sensor::Played(path.clone()), Duration::ZERO, None, None).remembering(kept.clone());
        say(&path, 3, &[]);
        assert_eq!(agent().occupied(&uuids), []);
        say(&path, 900, &[]);
        let said = words(&agent().occupied(&uuids));
        assert!(said.contains("900 MiB in use, no process (free is no process and at most 515 MiB)"), "{said}");
        // Another boot may have brought another driver, and a bad file is none.
        let of_before = fs::read_to_string(&kept).unwrap().replace(&boot_id().unwrap(), "another");
        for text in [&*of_before, "{"] {
            fs::write(&kept, text).unwrap();
            assert_eq!(agent().occupied(&uuids), [], "{text}");
        }
    }

    #[tokio::test]
    async fn a_server_of_mps_is_nobody_and_its_clients_are_somebody() {
        let tmp = tempfile::tempdir().unwrap();
        let (path, uuids) = (tmp.path().join("devices.json"), ["SIM-0".into()]);
        let pipes = tmp.path().join("mps");
        let mps = Serving::begin(&pipes).await;
        let vacancy = Vacancy::new(Sensor::Played(path.clone()), Duration::ZERO, None, None).beside_mps(pipes);
        say(&path, 60, &[mps.server]);
        assert_eq!(vacancy.occupied(&uuids), []);
        say(&path, 60, &[mps.server, std::process::id()]);
        let said = words(&vacancy.occupied(&uuids));
        assert!(said.contains(&format!("pid {} (", std::process::id())), "{said}");
        let alone = Vacancy::new(Sensor::Played(path.clone()), Duration::ZERO, None, None);
        say(&path, 60, &[mps.server]);
        assert_ne!(alone.occupied(&uuids), [], "of another daemon's nothing is known");
    }

    /// A driver that hangs, played by a pipe that nobody writes to.
    #[tokio::test]
    async fn who_waits_for_a_driver_that_hangs_is_told_so_in_time() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("devices.json");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let vacancy = Arc::new(Vacancy::new(Sensor::Played(path.clone()), Duration::ZERO, None, None));
        let begun = Instant::now();
        let uuids: [Arc<str>; 2] = ["SIM-0".into(), "SIM-1".into()];
        let (first, second) = tokio::join!(look(&vacancy, &uuids[..1]), look(&vacancy, &uuids[1..]));
        assert!(begun.elapsed() < LOOK * 2, "they don't wait for one another: {:?}", begun.elapsed());
        for looks in [first, second] {
            assert!(words(&looks).ends_with("can't be seen free: its driver does not answer within 5s"), "{looks:?}");
        }
        // The look that is under way ends with the test.
        fs::write(&path, "{}").unwrap();
    }

    #[tokio::test]
    async fn a_device_whose_look_hangs_holds_up_no_other() {
        let tmp = tempfile::tempdir().unwrap();
        let hangs = tmp.path().join("SIM-0");
        nix::unistd::mkfifo(&hangs, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let vacancy = Arc::new(Vacancy::new(Sensor::Each(tmp.path().into()), Duration::ZERO, None, None));
        let uuids: [Arc<str>; 2] = ["SIM-0".into(), "SIM-1".into()];
        let looks = look(&vacancy, &uuids).await;
        assert_eq!(looks.iter().map(|(uuid, _)| &**uuid).collect::<Vec<_>>(), ["SIM-0"], "the other is seen free");
        let begun = Instant::now();
        assert!(look(&vacancy, &uuids[1..]).await.is_empty() && begun.elapsed() < LOOK / 2);
        // The look that is under way ends with the test.
        fs::write(&hangs, "{}").unwrap();
    }

    /// The service's directory hangs, played as the driver above.
    #[tokio::test]
    async fn who_is_asked_for_one_device_holds_up_no_other() {
        let tmp = tempfile::tempdir().unwrap();
        let (path, pipes) = (tmp.path().join("devices.json"), tmp.path().join("mps"));
        fs::create_dir(&pipes).unwrap();
        let hangs = pipes.join("nvidia-cuda-mps-control.pid");
        nix::unistd::mkfifo(&hangs, nix::sys::stat::Mode::S_IRWXU).unwrap();
        say(&path, 60, &[std::process::id()]);
        let vacancy = Vacancy::new(Sensor::Played(path.clone()), Duration::ZERO, None, None).beside_mps(pipes);
        let (vacancy, uuids): (_, [Arc<str>; 2]) = (Arc::new(vacancy), ["SIM-0".into(), "SIM-1".into()]);
        let looks = look(&vacancy, &uuids).await;
        // The look that is under way ends, whatever it found.
        fs::write(&hangs, "0").unwrap();
        assert_eq!(looks.iter().map(|(uuid, _)| &**uuid).collect::<Vec<_>>(), ["SIM-0"], "the other is seen free");
    }

    /// Only where there is a GPU: with nobody on it, it is free.
    #[test]
    fn a_gpu_of_this_machine_is_seen() {
        let Ok(Some(gpus)) = nvml::gpus() else { return nf_core::testing::skipped("no GPU here") };
        let uuids: Vec<Arc<str>> = gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
        assert!(Sensor::Driver.look(&uuids).iter().all(|(_, look)| look.as_ref().is_ok_and(Option::is_some)));
        assert!(Sensor::Driver.look(&["GPU-0".into()])[0].1.is_err());
    }

    proptest! {
        #[test]
        fn any_file_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let tmp = tempfile::tempdir().unwrap();
            let path = tmp.path().join("devices.json");
            fs::write(&path, bytes).unwrap();
            let _ = played(&path);
        }
    }
}
