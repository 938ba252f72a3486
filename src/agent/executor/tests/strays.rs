//! What earlier agents left and no readable record tells of.

use super::*;
use crate::agent::runtimes::marks;
use crate::agent::troubles::RECORD_UNREADABLE;
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

impl World {
    fn records(&self, name: &str) -> PathBuf {
        self.path("data/records/n1").join(name)
    }

    fn here(&self) -> Vec<marks::Marked> {
        marks::Found::default().below(&self.path("data/replicas/n1"))
    }

    /// A replica of an agent that is gone.
    async fn left(&self) -> (Want, Identity) {
        let (executor, want) = (self.open(), self.server().await);
        executor.start(ID, &want);
        executor.stage_is(1, Stage::Ready).await;
        executor.shutdown_keeping_replicas();
        let process = self.record(&want).process.unwrap();
        (want, process)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_cant_be_read_keeps_its_place_while_its_process_lives() {
    let w = World::new();
    let (want, process) = w.left().await;
    let bytes = fs::read(w.records("1.0.1.json")).unwrap();
    fs::write(w.records("1.0.1.json"), &bytes[..bytes.len() / 2]).unwrap();
    let told: Arc<Mutex<Vec<(&'static str, bool)>>> = Arc::default();
    let to = told.clone();
    let troubles = Troubles::new(move |kind, text: Option<&str>| held(&to).push((kind, text.is_some())));
    let config = ExecutorConfig { troubles: Arc::new(troubles), ..w.config() };
    let opened = std::cell::OnceCell::new();
    eventually("the lock is free", || {
        opened.get().is_some() || Executor::open(config.clone()).is_ok_and(|e| opened.set(e).is_ok())
    })
    .await;
    let executor = opened.into_inner().unwrap();
    assert_eq!(executor.actual().replicas[&ID][&want.generation], Condition::Alive);
    assert_eq!(executor.stages(), [(ID, want.generation, Stage::Scheduled)], "the group's own word stands");
    executor.start(ID, &want);
    eventually("it says why", || {
        let lives = Execute::lives(&executor, ID);
        lives.iter().any(|life| life.waits.as_ref().is_some_and(|text| text.contains("1.0.1.bad")))
    })
    .await;
    assert_eq!(*held(&told), [(RECORD_UNREADABLE, true)]);
    let here = w.here();
    assert_eq!(here.len(), 1, "nothing was started beside it: {here:?}");
    assert!(process.lives() && here[0].leader == Some(process));
    // Its end is proof enough.
    process.signal(Signal::SIGKILL);
    assert_eq!(executor.gone().await, End::failed(Reason::RuntimeFailed));
    eventually("the file goes, too", || !w.records("1.0.1.bad").exists()).await;
    assert_eq!(*held(&told), [(RECORD_UNREADABLE, true), (RECORD_UNREADABLE, false)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_record_cant_be_read_is_ended_when_it_is_to_stop() {
    let w = World::new();
    let (want, process) = w.left().await;
    // Another build's: what can be told of it is.
    let text = fs::read_to_string(w.records("1.0.1.json")).unwrap();
    fs::write(w.records("1.0.1.json"), text.replacen("\"format\": 1", "\"format\": 99", 1)).unwrap();
    let executor = eventually_open(&w).await;
    let holding = executor.actual().holdings[&(ID, want.generation)].clone();
    assert_eq!(holding.port, want.port);
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    assert_eq!(executor.gone().await, stopped());
    assert!(!process.lives() && w.here().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_of_which_nothing_is_known_is_held_until_its_file_is_removed_or_the_machine_boots() {
    let w = World::new();
    w.open().shutdown_keeping_replicas();
    fs::write(w.records("1.0.1.bad"), "{").unwrap();
    let executor = eventually_open(&w).await;
    let alive = |executor: &Executor| executor.actual().replicas.get(&ID).map(|g| g[&Generation(1)]);
    assert_eq!(alive(&executor), Some(Condition::Alive));
    executor.stop(ID, Generation(1), Reason::StoppedByUser);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(alive(&executor), Some(Condition::Stopping), "nobody knows whether it is gone");
    fs::remove_file(w.records("1.0.1.bad")).unwrap();
    assert_eq!(executor.gone().await, End::failed(Reason::RuntimeFailed));
    executor.shutdown_keeping_replicas();

    fs::write(w.records("1.0.1.bad"), "{").unwrap();
    fs::write(w.records("boot"), "another").unwrap();
    let executor = eventually_open(&w).await;
    assert_eq!(alive(&executor), None);
    assert!(!w.records("1.0.1.bad").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_of_a_lost_data_directory_are_ended_and_strangers_are_not() {
    let w = World::new();
    let (want, process) = w.left().await;
    // A replica of another agent of this machine, with the same key even.
    let key = w.record(&want).key;
    let other = w.path("other/replicas/n1/r1.0.j1.g1");
    let stranger =
        std::process::Command::new("sleep").arg("300").env(marks::DIR, other).env("NF_REPLICA_KEY", "x").spawn();
    let stranger = Stranger(stranger.unwrap());
    let them = Identity::of(stranger.0.id()).unwrap();
    fs::remove_dir_all(w.path("data")).unwrap();
    let executor = eventually_open(&w).await;
    assert_eq!(executor.actual().replicas[&ID][&want.generation], Condition::Stopping);
    executor.start(ID, &want);
    assert_eq!(executor.gone().await, End::failed(Reason::NodeFailure), "told, so that it is started again");
    assert!(!process.lives() && w.here().is_empty(), "{key}");
    assert!(them.lives());
    assert!(!executor.remembers());
    executor.settle();
    assert!(executor.remembers());
    eventually("written down", || w.records("settled").exists()).await;
    executor.shutdown_keeping_replicas();
    let executor = eventually_open(&w).await;
    assert!(executor.remembers());
    executor.shutdown_keeping_replicas();
    let opened = std::cell::OnceCell::new();
    eventually("the lock is free", || {
        let config = ExecutorConfig { anew: true, ..w.config() };
        opened.get().is_some() || Executor::open(config).is_ok_and(|e| opened.set(e).is_ok())
    })
    .await;
    assert!(!opened.into_inner().unwrap().remembers(), "the process' own start counter is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_a_replica_that_lives_is_kept_however_old_it_is() {
    let w = World::new();
    let (executor, want) = (w.open(), w.server().await);
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    let (log, other) =
        (w.path("data/logs/n1/r1.0.j1.log"), |i: usize| w.path(&format!("data/logs/n1/x{i}.0.j9{i}.log")));
    for i in 0..=kept::LOG_FILES {
        fs::write(other(i), "").unwrap();
    }
    let month = Duration::from_secs(30 * 86_400);
    fs::File::options().append(true).open(&log).unwrap().set_modified(SystemTime::now() - month).unwrap();
    executor.shutdown_keeping_replicas();
    let file = || fs::metadata(&log).unwrap().ino();
    let before = file();
    let executor = eventually_open(&w).await;
    assert_eq!(file(), before, "the program writes on into the file that it has open");
    let left = (0..=kept::LOG_FILES).filter(|i| other(*i).exists()).count();
    assert!(left < kept::LOG_FILES, "others are removed: {left}");
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    assert_eq!(executor.gone().await, stopped());
}
