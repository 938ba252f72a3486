//! Containers whose engine is away, late or silent when their agent starts, and containers that no record tells of.

use super::dockerd::{Containers, Dockerd, Played};
use super::*;
use crate::agent::engine::{EngineConfig, Patience};
use crate::agent::runtimes::processes::KEY;
use crate::agent::troubles::{CONTAINER_UNKNOWN, PROCESS_STUCK};
use std::process::{Child, Command};

const NAME: &str = "nf-n1-r1.0.g1";
/// Of the engine, before an end is told without it.
const SILENCE: Duration = Duration::from_millis(500);

/// A node that ran a container before its agent ended, and an engine that may be there or not.
struct Lab {
    w: World,
    containers: Arc<Containers>,
    /// Kinds and texts of alarms; None when one was ended.
    told: Arc<Mutex<Vec<(&'static str, Option<String>)>>>,
    /// What the machine shows of the container: its first process.
    first: Option<Child>,
}

impl Lab {
    fn new() -> Self {
        let lab = Self { w: World::new(), containers: Arc::default(), told: Arc::default(), first: None };
        fs::create_dir_all(lab.w.path("data/records/n1")).unwrap();
        lab
    }

    /// With a container that was ready, in this boot or another.
    fn with_container(boot: &str) -> Self {
        let mut lab = Self::new();
        let launch = Launch { port: None, ..Launch::of(ID, &simulated_want()) };
        fs::create_dir_all(lab.w.path("data/replicas/n1/r1.0.j1.g1")).unwrap();
        let mut record = Record::new(NodeName::new("n1").unwrap(), launch, boot.into(), "/health".into(), 30);
        let child = Command::new("sleep").arg("300").env(KEY, &record.key).spawn().unwrap();
        (record.container, record.was_ready) = (Some(NAME.into()), true);
        record.process = Identity::of(child.id());
        record.save(&lab.w.path("data/records/n1")).unwrap();
        lab.first = Some(child);
        lab.containers.put(NAME, Played::default());
        lab
    }

    fn socket(&self) -> PathBuf {
        self.w.path("docker.sock")
    }

    fn engine(&self) -> Dockerd {
        Dockerd::begin(&self.socket(), &self.containers)
    }

    fn agent(&self) -> Executor {
        let told = self.told.clone();
        let tell = move |kind, text: Option<&str>| held(&told).push((kind, text.map(str::to_owned)));
        let quick = Duration::from_millis(20);
        let patience = Patience { silence: SILENCE, again: quick, stop_again: quick, sweep: quick };
        let engine = EngineConfig { socket: Some(self.socket()), group: "g".into(), patience };
        let (troubles, kill_after) = (Arc::new(Troubles::new(tell)), Duration::from_millis(100));
        Executor::open(ExecutorConfig { engine, troubles, kill_after, ..self.w.config() }).unwrap()
    }

    fn end_first(&mut self) {
        if let Some(mut first) = self.first.take() {
            first.kill().unwrap();
            first.wait().unwrap();
        }
    }

    fn log_says(&self, text: &str) -> bool {
        fs::read_to_string(self.w.path("data/logs/n1/r1.0.j1.log")).is_ok_and(|said| said.contains(text))
    }

    fn alarm(&self, kind: &str) -> Option<String> {
        held(&self.told).iter().rev().find(|(of, _)| *of == kind).and_then(|(_, text)| text.clone())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.end_first();
    }
}

fn this_boot() -> String {
    runtimes::processes::boot_id().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_adopted_when_its_engine_comes_later_than_the_agent() {
    let lab = Lab::with_container(&this_boot());
    let executor = lab.agent();
    executor.stage_is(1, Stage::NotReady).await;
    eventually("it is said", || lab.log_says("waits for its engine") && lab.log_says("docker.sock")).await;
    // Who may run is not given up, however long that takes.
    tokio::time::sleep(SILENCE * 2).await;
    executor.stage_is(1, Stage::NotReady).await;
    let _engine = lab.engine();
    executor.stage_is(1, Stage::Ready).await;
    executor.stop(ID, Generation(1), Reason::StoppedByUser);
    assert_eq!(executor.gone().await, stopped());
    assert_eq!(lab.containers.signals(), [format!("SIGTERM {NAME}")]);
    assert!(!lab.containers.has(NAME), "it was removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_processes_are_gone_is_given_up_when_its_engine_was_silent_for_a_while() {
    let mut lab = Lab::with_container(&this_boot());
    lab.end_first();
    let begun = Instant::now();
    let executor = lab.agent();
    assert_eq!(executor.gone().await, End::failed(Reason::EngineUnavailable));
    assert!(begun.elapsed() >= SILENCE, "an engine that begins together with the agent would have known more");
    assert!(lab.log_says("its processes are gone, and its engine does not answer"));
    assert_eq!(lab.w.record_there(&simulated_want()).unwrap().ended, Some(End::failed(Reason::EngineUnavailable)));
    // What the engine has of it goes when it is back.
    executor.forget(ID, Generation(1));
    let records = record::path(&lab.w.path("data/records/n1"), ID, Generation(1));
    eventually("it is forgotten", || !records.exists()).await;
    let owner = fs::read_to_string(lab.w.path("data/records/n1/owner")).unwrap();
    let labels = BTreeMap::from([("io.neural-fabric.owner", owner)]);
    lab.containers.put(NAME, Played { labels, exit: Some(137), ..Played::default() });
    let _engine = lab.engine();
    eventually("it is removed", || !lab.containers.has(NAME)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_another_boot_is_given_up_without_its_engine() {
    let lab = Lab::with_container("another boot");
    let begun = Instant::now();
    let executor = lab.agent();
    assert_eq!(executor.gone().await, End::failed(Reason::NodeFailure));
    assert!(begun.elapsed() >= SILENCE && lab.log_says("the machine began anew"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_one_ended_is_asked_of_an_engine_that_comes_in_time() {
    let mut lab = Lab::with_container(&this_boot());
    lab.end_first();
    lab.containers.put(NAME, Played { exit: Some(7), ..Played::default() });
    let executor = lab.agent();
    eventually("it waits", || lab.log_says("waits for its engine")).await;
    let _engine = lab.engine();
    assert_eq!(executor.gone().await, End::failed(Reason::ExitedNonZero));
    assert!(lab.log_says("exit 7"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_to_stop_while_its_engine_is_silent_is_told_to_be_stuck_and_stopped_later() {
    let lab = Lab::with_container(&this_boot());
    let _engine = lab.engine();
    lab.containers.be_silent(true);
    let executor = lab.agent();
    executor.stage_is(1, Stage::NotReady).await;
    eventually("why is said", || lab.log_says("it takes the question and says nothing")).await;
    executor.stop(ID, Generation(1), Reason::StoppedByUser);
    eventually("an alarm names it", || lab.alarm(PROCESS_STUCK).is_some_and(|text| text.contains(NAME))).await;
    let stuck = |e: &Executor| matches!(e.actual().replicas[&ID][&Generation(1)], Condition::Stuck { .. });
    executor.until("told to be stuck", |e| stuck(e).then_some(())).await;
    lab.containers.be_silent(false);
    assert_eq!(executor.gone().await, stopped());
    assert_eq!(lab.containers.signals(), [format!("SIGTERM {NAME}")]);
    assert_eq!((lab.alarm(PROCESS_STUCK), lab.containers.has(NAME)), (None, false));
}

/// A container with the number of an agent that nobody knows any more.
fn of_lost_data(node: &str, model: PathBuf) -> Played {
    let labels = [
        ("io.neural-fabric.owner", "lost"),
        ("io.neural-fabric.node", node),
        ("io.neural-fabric.group", "g"),
        ("io.neural-fabric.job", "1"),
        ("io.neural-fabric.replica", "0"),
        ("io.neural-fabric.generation", "1"),
    ];
    let labels = labels.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
    Played { labels, model, ..Played::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_a_lost_data_directory_end_and_those_that_may_be_others_are_told_of() {
    let lab = Lab::new();
    let replicas = lab.w.path("data/replicas/n1");
    lab.containers.put("left", of_lost_data("n1", replicas.join("r1.0.j1.g1/model")));
    lab.containers.put("elsewhere", of_lost_data("n1", "/srv/old/replicas/n1/r1.0.j1.g1/model".into()));
    lab.containers.put("other", of_lost_data("n2", "/srv/old/replicas/n2/r1.0.j1.g1/model".into()));
    let (_engine, _executor) = (lab.engine(), lab.agent());
    eventually("what was left here goes", || !lab.containers.has("left")).await;
    eventually("the doubtful one is told of", || lab.alarm(CONTAINER_UNKNOWN).is_some()).await;
    let text = lab.alarm(CONTAINER_UNKNOWN).unwrap();
    assert!(text.contains("docker rm -f elsewhere"), "{text}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(lab.containers.has("elsewhere") && lab.containers.has("other"), "nobody else's is touched");
    lab.containers.remove("elsewhere");
    eventually("the alarm ends with it", || lab.alarm(CONTAINER_UNKNOWN).is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_container_that_its_engine_can_not_remove_keeps_no_replica() {
    let lab = Lab::with_container(&this_boot());
    lab.containers.put(NAME, Played { stays: true, ..Played::default() });
    let _engine = lab.engine();
    let executor = lab.agent();
    executor.stage_is(1, Stage::Ready).await;
    executor.stop(ID, Generation(1), Reason::StoppedByUser);
    assert_eq!(executor.gone().await, stopped(), "its end frees its devices");
    assert!(lab.containers.has(NAME) && lab.containers.removals(NAME) > 1, "a busy disk may be free in a moment");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_can_not_be_removed_keeps_the_sweep_from_no_other() {
    let lab = Lab::new();
    let place = lab.w.path("data/replicas/n1/r1.0.j1.g1/model");
    // In the order in which the engine lists them.
    lab.containers.put("a-stays", Played { stays: true, ..of_lost_data("n1", place.clone()) });
    lab.containers.put("b-goes", of_lost_data("n1", place));
    lab.containers.put("c-elsewhere", of_lost_data("n1", "/srv/old/replicas/n1/r1.0.j1.g1/model".into()));
    let (_engine, _executor) = (lab.engine(), lab.agent());
    eventually("the next one goes", || !lab.containers.has("b-goes")).await;
    eventually("what is doubtful is told of", || lab.alarm(CONTAINER_UNKNOWN).is_some()).await;
    let before = lab.containers.removals("a-stays");
    eventually("each sweep tries it again", || lab.containers.removals("a-stays") > before).await;
    lab.containers.put("a-stays", of_lost_data("n1", lab.w.path("data/replicas/n1/r1.0.j1.g1/model")));
    eventually("it goes when it can", || !lab.containers.has("a-stays")).await;
}
