//! Programs that have to go and may save their state first.

use super::*;

/// On SIGUSR1 it saves for a moment and ends by itself; on TERM it says so and ends. Ready at once.
const TRAINER: &str = r#"
import http.server, os, signal, sys, threading, time
home = os.environ["HOME"]
def save(*_):
    def work():
        time.sleep(0.4)
        open(os.path.join(home, "saved"), "w").write(os.environ["NF_CHECKPOINT_GRACE_MS"])
        os._exit(0)
    threading.Thread(target=work).start()
if sys.argv[3] == "saves":
    signal.signal(signal.SIGUSR1, save)
else:
    signal.signal(signal.SIGUSR1, lambda *_: open(os.path.join(home, "told"), "a").write("x"))
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), H).serve_forever()
"#;

async fn trainer(w: &World, executor: &Executor, how: &str) -> (Want, PathBuf) {
    let mut want = w.publish(TRAINER, &["{python}", "{model}", "{host}", "{port}", how], 30).await;
    Arc::make_mut(&mut want.spec).constraints.checkpoint_ms = Some(20_000);
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    (want, w.path("data/replicas/n1/r1.0.j1.g1"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_told_saves_its_state_and_is_gone_before_term() {
    let w = World::new();
    let executor = w.open();
    let (want, dir) = trainer(&w, &executor, "saves").await;
    let begun = Instant::now();
    executor.leave(&want, Reason::Preempted, 20);
    assert_eq!(executor.gone().await, End { ok: true, why: Reason::Preempted });
    assert!(begun.elapsed() < Duration::from_secs(15), "it did not wait for the end of the grace");
    assert_eq!(fs::read_to_string(dir.join("saved")).unwrap(), "20000");
    let log = log(&executor, 9).await;
    assert!(log.contains("SIGUSR1: it may save its state until"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_grace_has_an_end_also_under_the_next_agent() {
    let w = World::new();
    let executor = w.open();
    let (want, dir) = trainer(&w, &executor, "ignores").await;
    executor.leave(&want, Reason::NodeDrain, 4);
    eventually("it is told", || dir.join("told").exists()).await;
    let plan = w.record(&want).stopping.unwrap();
    assert!(plan.saves && plan.kill_ms - plan.term_ms == 5_000, "{plan:?}");
    executor.shutdown_keeping_replicas();

    let executor = eventually_open(&w).await;
    let process = w.record(&want).process.unwrap();
    executor.leave(&want, Reason::NodeDrain, 4);
    eventually("it is told again", || fs::read_to_string(dir.join("told")).is_ok_and(|told| told.len() > 1)).await;
    assert!(process.lives());
    assert_eq!(executor.gone().await, End { ok: true, why: Reason::NodeDrain });
    assert!(crate::agent::lease::boot_ms() >= plan.term_ms, "TERM came when the first agent said");
    assert_eq!(w.record(&want).stopping.map(|s| s.why), Some(Reason::NodeDrain));
    assert!(log(&executor, 12).await.contains("its time for that is over"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_grace_nobody_is_told() {
    let w = World::new();
    let executor = w.open();
    let (want, dir) = trainer(&w, &executor, "ignores").await;
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    assert_eq!(executor.gone().await, stopped());
    assert!(!dir.join("told").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_saves_its_state_stops_at_once_when_its_time_is_taken_back() {
    let w = World::new();
    let executor = w.open();
    let (want, dir) = trainer(&w, &executor, "ignores").await;
    let begun = Instant::now();
    executor.leave(&want, Reason::Preempted, 20);
    eventually("it is told", || dir.join("told").exists()).await;
    // A longer time, or another one, is none of its business.
    executor.leave(&want, Reason::Preempted, 10);
    executor.leave(&want, Reason::ApprovalRequired, 0);
    executor.gone().await;
    assert!(begun.elapsed() < Duration::from_secs(15), "it did not wait for the end of the grace");
    assert!(log(&executor, 12).await.contains("its time for that was taken back"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_must_never_run_twice_loses_its_grace_with_its_lease() {
    let w = World::new();
    let (dir, now) = (w.path("data/guard/n1"), crate::agent::lease::boot_ms);
    let guard = dir.clone();
    std::thread::spawn(move || crate::agent::guard::run(&guard).unwrap());
    eventually("the guard listens", || dir.join("socket").exists()).await;
    let executor = w.open();
    executor.guard_until(Some(now() + 120_000));
    let mut want = w.publish(TRAINER, &["{python}", "{model}", "{host}", "{port}", "ignores"], 30).await;
    Arc::make_mut(&mut want.spec).constraints.checkpoint_ms = Some(100_000);
    Arc::make_mut(&mut want.spec).constraints.exclusive = true;
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    assert_eq!(executor.exclusive(), [(ID, want.generation)].into());
    let told = w.path("data/replicas/n1/r1.0.j1.g1/told");
    executor.leave(&want, Reason::NodeDrain, 100);
    eventually("it saves its state", || told.exists()).await;
    executor.stop(ID, want.generation, Reason::NodeFailure);
    let begun = Instant::now();
    assert_eq!(executor.gone().await, End { ok: true, why: Reason::NodeDrain });
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(log(&executor, 12).await.contains("no lease covers it any more"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_has_its_bound_also_while_its_replica_stops() {
    let w = World::new();
    let executor = w.open();
    let script = "trap 'head -c 20000000 /dev/zero | tr \"\\0\" x' USR1; while :; do sleep 0.05; done";
    let want = w.shell(script).await;
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    // The trap is set once it sleeps.
    tokio::time::sleep(Duration::from_millis(500)).await;
    executor.leave(&want, Reason::NodeDrain, 60);
    let log = w.path("data/logs/n1/r1.0.j1.log");
    let size = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
    eventually("it is cut", || size(&log.with_extension("log.1")) > 0 && size(&log) < logs::ROTATE_AT).await;
    assert_eq!(executor.actual().replicas[&ID][&want.generation], Condition::Stopping, "its grace is not over");
}

#[tokio::test]
async fn a_log_that_grew_while_no_agent_was_there_is_cut_before_anything_else() {
    let w = World::new();
    let log = w.path("data/logs/n1/r1.0.j1.log");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    fs::write(&log, vec![b'x'; logs::ROTATE_AT as usize + 1]).unwrap();
    // What a start does next, it can't.
    fs::write(w.path("data/cache"), "").unwrap();
    assert!(Executor::open(w.config()).is_err());
    assert_eq!(fs::metadata(&log).unwrap().len(), 0);
    assert!(log.with_extension("log.1").exists(), "its end is kept");
}
