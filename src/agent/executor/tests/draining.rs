//! Programs that hang, and programs that still have requests when they should stop.

use super::*;
use crate::models::{Drain, Live, Metrics};
use std::io::Write;

/// Says how many requests it has by a file `busy`, and does not answer /live while there is a file `hung`.
const SERVER: &str = r#"
import http.server, os, sys
def there(name):
    return os.path.exists(os.path.join(os.environ["HOME"], name))
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"requests_running{model=\"m\"} %d\n" % (1 if there("busy") else 0)
        status = 500 if self.path == "/live" and there("hung") else 200
        self.send_response(status); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
http.server.HTTPServer((sys.argv[1], int(sys.argv[2])), H).serve_forever()
"#;

async fn ready(w: &World, executor: &Executor, timeout_s: u32) -> (Want, PathBuf) {
    let change = |process: &mut Process| {
        process.live = Some(Live { path: "/live".into(), period_s: 1, failures: 2 });
        process.drain = Some(Drain { path: None, timeout_s });
        process.metrics =
            Some(Metrics { path: "/metrics".into(), running: Some("requests_running".into()), ..Metrics::default() });
    };
    let want = w.publish_with(SERVER, &["{python}", "{model}", "{host}", "{port}"], 30, change).await;
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    (want, w.path("data/replicas/n1/r1.0.j1.g1"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_under_way_are_waited_for_also_by_the_next_agent() {
    let w = World::new();
    let executor = w.open();
    let (want, dir) = ready(&w, &executor, 60).await;
    fs::write(dir.join("busy"), "").unwrap();
    executor.stop(ID, want.generation, Reason::NodeDrain);
    eventually("both deadlines are on disk", || w.record(&want).stopping.is_some()).await;
    let plan = w.record(&want).stopping.unwrap();
    assert_eq!((plan.why, plan.kill_ms - plan.term_ms), (Reason::NodeDrain, 5_000));
    let process = w.record(&want).process.unwrap();
    executor.shutdown_keeping_replicas();

    let executor = eventually_open(&w).await;
    executor.stop(ID, want.generation, Reason::NodeDrain);
    // Longer than it takes to look twice.
    tokio::time::sleep(Duration::from_millis(1_600)).await;
    assert!(process.lives(), "it still has a request");
    assert_eq!(w.record(&want).stopping, Some(plan), "the same deadlines");
    fs::remove_file(dir.join("busy")).unwrap();
    assert_eq!(executor.gone().await, End { ok: true, why: Reason::NodeDrain });
    assert!(crate::agent::lease::boot_ms() < plan.term_ms, "well before its deadline");
    let log = log(&executor, 9).await;
    assert!(log.contains("drained: no request is left") && log.contains("TERM, and KILL at"), "{log}");
}

/// Calls that hang in a driver would keep it busy until its deadline, and its replacement waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_device_is_broken_is_hardly_waited_for() {
    let w = World::new();
    let executor = w.open();
    let (want, dir) = ready(&w, &executor, 60).await;
    fs::write(dir.join("busy"), "").unwrap();
    let broken = Leave { broken: true, ..Leave::now(Reason::DeviceFault) };
    Execute::stop(&executor, ID, want.generation, broken);
    assert_eq!(executor.gone().await, End { ok: true, why: Reason::DeviceFault });
    let stop = executor.lives(ID)[0].stop.unwrap();
    assert!(stop.term_ms - stop.since_ms < 10_000, "TERM soon, not in a minute: {stop:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_has_an_end() {
    let w = World::new();
    let executor = w.open();
    let (want, dir) = ready(&w, &executor, 2).await;
    fs::write(dir.join("busy"), "").unwrap();
    let begun = Instant::now();
    executor.stop(ID, want.generation, Reason::ScaledDown);
    assert_eq!(executor.gone().await, End { ok: true, why: Reason::ScaledDown });
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert!(log(&executor, 9).await.contains("its time for that is over"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hangs_is_stopped_and_says_so() {
    let w = World::new();
    let executor = w.open();
    let (_want, dir) = ready(&w, &executor, 60).await;
    fs::write(dir.join("hung"), "").unwrap();
    assert_eq!(executor.gone().await, End::failed(Reason::LivenessFailed));
    assert_eq!(w.living(), 0);
    assert!(log(&executor, 9).await.contains("/live did not answer 2 times in a row"));
}

/// Answers /slow after three seconds, /slower after six, /metrics never well, and anything else at once; its manifest
/// says nothing of metrics or a drain.
const SLOW: &str = r#"
import http.server, sys, time
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep({"/slow": 3, "/slower": 6}.get(self.path, 0))
        self.send_response(503 if self.path == "/metrics" else 200); self.send_header("content-length", "4"); self.end_headers()
        self.wfile.write(b"done")
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), H).serve_forever()
"#;

async fn slow(w: &World, executor: &Executor, timeout_s: Option<u32>) -> Want {
    let drain = timeout_s.map(|timeout_s| Drain { path: None, timeout_s });
    let argv = ["{python}", "{model}", "{host}", "{port}"];
    let want = w.publish_with(SLOW, &argv, 30, |process| process.drain = drain).await;
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    want
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_its_hands_is_answered_though_its_manifest_counts_none() {
    let w = World::new();
    let executor = w.open();
    let want = slow(&w, &executor, None).await;
    let mut client = TcpStream::connect(("127.0.0.1", want.port.unwrap())).unwrap();
    client.write_all(b"GET /slow HTTP/1.0\r\n\r\n").unwrap();
    let process = w.record(&want).process.unwrap();
    executor.stop(ID, want.generation, Reason::Rollout);
    eventually("both deadlines are on disk", || w.record(&want).stopping.is_some()).await;
    let plan = w.record(&want).stopping.unwrap();
    assert_eq!((plan.why, plan.kill_ms - plan.term_ms), (Reason::Rollout, 5_000));
    let told = executor.lives(ID)[0].stop.unwrap();
    assert_eq!(told.kill_ms - told.term_ms, 5_000);
    assert!(told.term_ms - told.since_ms <= 30_000 && told.term_ms - told.since_ms > 25_000, "{told:?}");
    assert!(process.lives());
    let answer = tokio::task::spawn_blocking(move || io::read_to_string(client)).await.unwrap();
    assert!(answer.as_ref().is_ok_and(|text| text.ends_with("done")), "the request under way is answered: {answer:?}");
    assert_eq!(executor.gone().await, End { ok: true, why: Reason::Rollout });
    assert!(crate::agent::lease::boot_ms() < plan.term_ms, "well before its deadline");
    let log = log(&executor, 9).await;
    assert!(log.contains("drained: no connection is open"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_too_much_to_do_to_count_its_requests_keeps_them() {
    let w = World::new();
    let executor = w.open();
    let counted = |process: &mut Process| {
        let running = Some("requests_running".into());
        process.metrics = Some(Metrics { path: "/metrics".into(), running, ..Metrics::default() });
    };
    let want = w.publish_with(SLOW, &["{python}", "{model}", "{host}", "{port}"], 30, counted).await;
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    let mut client = TcpStream::connect(("127.0.0.1", want.port.unwrap())).unwrap();
    client.write_all(b"GET /slower HTTP/1.0\r\n\r\n").unwrap();
    executor.stop(ID, want.generation, Reason::NodeDrain);
    let answer = tokio::task::spawn_blocking(move || io::read_to_string(client)).await.unwrap();
    assert!(answer.as_ref().is_ok_and(|text| text.ends_with("done")), "the request under way is answered: {answer:?}");
    assert_eq!(executor.gone().await, End { ok: true, why: Reason::NodeDrain });
    let log = log(&executor, 9).await;
    assert!(log.contains("drained: no connection is open"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_hear_of_a_stop_before_it_and_a_client_that_stays_does_not_keep_it() {
    let w = World::new();
    let executor = w.open();
    let want = slow(&w, &executor, Some(3)).await;
    let stays = TcpStream::connect(("127.0.0.1", want.port.unwrap())).unwrap();
    let begun = Instant::now();
    executor.stop(ID, want.generation, Reason::ScaledDown);
    let (client, url) = (Probe::client().unwrap(), format!("http://127.0.0.1:{}/", want.port.unwrap()));
    // Who has not heard yet is served.
    while begun.elapsed() < Duration::from_millis(800) {
        assert!(client.get(&url).send().await.unwrap().status().is_success());
    }
    assert_eq!(executor.gone().await, End { ok: true, why: Reason::ScaledDown });
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(log(&executor, 9).await.contains("its time for that is over"));
    drop(stays);
}
