//! The watch with a driver that is played: GPUs that fall off and come back, go deaf, and are divided.

use super::watcher::{Deaf, Driver, Listen, run};
use super::{Seen, channel};
use nf_core::command::DeviceFault;
use nf_core::fault::Fault;
use nf_core::id::{Incarnation, NodeName, NodeNo};
use nf_core::plan::Intent;
use nf_core::state::State;
use nf_core::testing;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Facts {
    /// Devices that are found, each with its GPU.
    gpus: BTreeMap<Arc<str>, Arc<str>>,
    /// Of these no reports can be had.
    deaf: BTreeSet<Arc<str>>,
    listening: BTreeSet<Arc<str>>,
    reports: VecDeque<(Arc<str>, Fault)>,
}

#[derive(Clone, Default)]
struct Played(Arc<Mutex<Facts>>);

impl Played {
    fn new(devices: &[(&str, &str)]) -> Self {
        let played = Self::default();
        devices.iter().for_each(|(uuid, gpu)| played.comes(uuid, gpu));
        played
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap()
    }

    fn comes(&self, uuid: &str, gpu: &str) {
        self.facts().gpus.insert(uuid.into(), gpu.into());
    }

    /// It falls off, with whatever it was asked to report.
    fn falls(&self, uuid: &str) {
        let mut facts = self.facts();
        facts.gpus.remove(uuid);
        facts.listening.remove(uuid);
    }

    /// Until somebody listens to that GPU.
    #[allow(clippy::disallowed_methods, reason = "no runtime is here")]
    fn is_watched(&self, gpu: &str) {
        let end = Instant::now() + Duration::from_secs(20);
        while !self.facts().listening.contains(gpu) {
            assert!(Instant::now() < end, "nobody listens to {gpu}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A report, as soon as somebody listens to that GPU.
    fn reports(&self, gpu: &str, fault: Fault) {
        self.is_watched(gpu);
        self.facts().reports.push_back((gpu.into(), fault));
    }

    /// Watches `uuids` until the receiver is dropped.
    fn watched(&self, uuids: &[&str], again: Duration) -> Seen {
        let (sees, seen) = channel();
        let (played, uuids) = (self.clone(), uuids.iter().map(|uuid| Arc::from(*uuid)).collect::<Vec<_>>());
        std::thread::spawn(move || run(|| Ok(played.clone()), &uuids, &sees, again));
        seen
    }
}

impl Driver for Played {
    fn gpu_of(&self, uuid: &str) -> Option<Arc<str>> {
        self.facts().gpus.get(uuid).cloned()
    }

    fn is_lost(&self, uuid: &str) -> bool {
        !self.facts().gpus.contains_key(uuid)
    }

    fn listen<'a>(&'a self, gpus: &BTreeSet<Arc<str>>) -> Result<Box<dyn Listen + 'a>, Deaf> {
        let mut facts = self.facts();
        if let Some(gpu) = gpus.intersection(&facts.deaf).next().cloned() {
            facts.listening.clear();
            return Err(Deaf { gpu: Some(gpu), error: "no reports".into() });
        }
        facts.listening.clone_from(gpus);
        Ok(Box::new(self.clone()))
    }
}

impl Listen for Played {
    #[allow(clippy::disallowed_methods, reason = "a thread of its own")]
    fn next(&mut self) -> Result<Option<(Arc<str>, Fault)>, String> {
        std::thread::sleep(Duration::from_millis(2));
        Ok(self.facts().reports.pop_front())
    }
}

fn next(seen: &mut Seen) -> (String, Fault) {
    let DeviceFault { uuid, fault, simulated } = seen.blocking_recv().expect("it watches");
    assert!(!simulated);
    (uuid.to_string(), fault)
}

fn fault(uuid: &str, fault: Fault) -> (String, Fault) {
    (uuid.to_owned(), fault)
}

const LONG: Duration = Duration::from_secs(600);

#[test]
fn a_gpu_that_was_lost_and_healed_is_watched_again() {
    let (lost, other) = ("GPU-0000", "GPU-0001");
    let driver = Played::new(&[(lost, lost), (other, other)]);
    let mut seen = driver.watched(&[lost, other], LONG);
    let mut state = State::new();
    testing::run(&mut state, testing::register("n1", testing::node_spec(2)));
    let node = NodeName::new("n1").unwrap();
    let tell = |state: &mut State, told: (String, Fault)| {
        let faults = vec![DeviceFault { uuid: told.0.into(), fault: told.1, simulated: false }];
        testing::run(state, Intent::Faults { node: node.clone(), incarnation: Some(Incarnation(1)), faults });
    };
    let left_alone = |state: &State, device: u16| state.node(NodeNo(1)).unwrap().quarantine_of(device).is_some();

    // One that falls before anybody has seen it is one that comes late.
    driver.is_watched(lost);
    driver.falls(lost);
    let told = next(&mut seen);
    assert_eq!(told, fault(lost, Fault::Lost));
    tell(&mut state, told);
    assert!(left_alone(&state, 0) && !left_alone(&state, 1));
    driver.reports(other, Fault::Xid(31));
    assert_eq!(next(&mut seen), fault(other, Fault::Xid(31)), "the other is watched meanwhile");

    driver.comes(lost, lost);
    let heal = Intent::Heal { node: node.clone(), uuid: lost.into(), by: "ann".into() };
    testing::run(&mut state, heal);
    assert!(!left_alone(&state, 0));
    driver.reports(lost, Fault::Xid(48));
    let told = next(&mut seen);
    assert_eq!(told, fault(lost, Fault::Xid(48)));
    tell(&mut state, told);
    assert!(left_alone(&state, 0));
    driver.falls(lost);
    assert_eq!(next(&mut seen), fault(lost, Fault::Lost), "and its next loss is news");
}

#[test]
fn a_gpu_that_comes_late_is_watched_from_then_on() {
    let driver = Played::new(&[("GPU-1", "GPU-1")]);
    let mut seen = driver.watched(&["GPU-1", "GPU-2"], LONG);
    assert_eq!(next(&mut seen), fault("GPU-2", Fault::Lost));
    driver.comes("GPU-2", "GPU-2");
    driver.reports("GPU-2", Fault::Ecc);
    assert_eq!(next(&mut seen), fault("GPU-2", Fault::Ecc));
}

#[test]
fn one_whose_reports_can_t_be_had_is_tried_again_and_holds_up_no_other() {
    let driver = Played::new(&[("GPU-1", "GPU-1"), ("GPU-2", "GPU-2")]);
    driver.facts().deaf.insert("GPU-1".into());
    let mut seen = driver.watched(&["GPU-1", "GPU-2"], Duration::from_secs(1));
    driver.reports("GPU-2", Fault::Xid(62));
    assert_eq!(next(&mut seen), fault("GPU-2", Fault::Xid(62)));
    driver.facts().deaf.clear();
    driver.reports("GPU-1", Fault::Xid(62));
    assert_eq!(next(&mut seen), fault("GPU-1", Fault::Xid(62)));
}

#[test]
fn what_a_divided_gpu_reports_is_said_of_its_slices() {
    let driver = Played::new(&[("MIG-a", "GPU-1"), ("MIG-b", "GPU-1"), ("GPU-2", "GPU-2")]);
    let mut seen = driver.watched(&["MIG-a", "MIG-b", "GPU-2"], LONG);
    driver.reports("GPU-1", Fault::Xid(95));
    assert_eq!([next(&mut seen), next(&mut seen)], [fault("MIG-a", Fault::Xid(95)), fault("MIG-b", Fault::Xid(95))]);
    // A slice that somebody removes is lost alone.
    driver.facts().gpus.remove("MIG-a");
    assert_eq!(next(&mut seen), fault("MIG-a", Fault::Lost));
    driver.reports("GPU-1", Fault::Xid(95));
    assert_eq!(next(&mut seen), fault("MIG-b", Fault::Xid(95)));
}
