//! Programs that try to outlive their stop, and what a replica's program may and has.

use super::*;

/// Children that each live for a moment and leave another behind: whoever looks at them
/// one by one sees only where they were.
/// They burn out by themselves, so that a defect that lets them escape costs a machine a minute and not its day.
const COMETS: &str = r#"
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end = time.monotonic() + 60
for _ in range(6):
    if os.fork() == 0:
        while time.monotonic() < end:
            if os.fork() != 0:
                os._exit(0)
            time.sleep(0.002)
        os._exit(0)
print("flying", flush=True)
while True:
    time.sleep(1)
"#;

async fn up(w: &World, says: &str) {
    let path = w.path("data/logs/n1/r1.0.j1.log");
    eventually(says, || fs::read_to_string(&path).is_ok_and(|text| text.contains(says))).await;
}

/// Stops it, and says how long that took.
async fn stop(executor: &Executor, want: &Want) -> Duration {
    let begun = Instant::now();
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    assert_eq!(executor.gone().await, stopped());
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_comet_outruns_its_stop_with_control_groups_or_without() {
    for cgroups in [true, false] {
        let mut w = World::new();
        (w.grace, w.cgroups) = (Duration::from_millis(300), cgroups);
        let mut want = w.publish(COMETS, &["{python}", "{model}"], 30).await;
        want.port = None;
        let executor = w.open();
        executor.start(ID, &want);
        up(&w, "flying").await;
        let took = stop(&executor, &want).await;
        assert!(took < Duration::from_secs(10), "{took:?}");
        for _ in 0..20 {
            assert_eq!(w.living(), 0, "control groups: {cgroups}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sheds_environment_and_session_is_found_by_its_control_group() {
    let mut w = World::new();
    w.grace = Duration::from_millis(300);
    let executor = w.open();
    if let Err(why) = &executor.shared.cgroups {
        return nf_core::testing::skipped(why);
    }
    let script = "(env -i setsid sh -c 'echo $$ > away; exec sleep 300' &); sleep 300";
    let want = w.shell(script).await;
    executor.start(ID, &want);
    let away = w.path("data/replicas/n1/r1.0.j1.g1/away");
    eventually("it is away", || fs::read_to_string(&away).is_ok_and(|text| text.ends_with('\n'))).await;
    let pid = fs::read_to_string(&away).unwrap().trim().parse().unwrap();
    assert!(Identity::of(pid).is_some());
    let group = w.record(&want).cgroup.unwrap();
    assert!(runtimes::cgroup::processes(&group).contains(&pid));
    assert!(stop(&executor, &want).await < Duration::from_secs(10));
    assert_eq!(Identity::of(pid), None);
    assert!(!group.exists(), "nothing of its group is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_and_a_stopped_child_hold_nothing_up() {
    let mut w = World::new();
    (w.grace, w.cgroups) = (Duration::from_millis(300), false);
    // One child that nobody waits for, one that a signal has stopped.
    let executor = w.open();
    let want = w.shell("true & (sh -c 'kill -STOP $$' &) ; echo up; exec sleep 300").await;
    executor.start(ID, &want);
    up(&w, "up").await;
    assert!(stop(&executor, &want).await < Duration::from_secs(10));
    assert_eq!(w.living(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_that_a_shell_would_read_are_words() {
    let w = World::new();
    let odd = ["; id", "$(id)", "`id`", "--privileged", "two\nlines", "a b", "| cat", ""];
    let argv = ["{python}", "{model}"].into_iter().chain(odd).collect::<Vec<_>>();
    let program = "import sys, time\nprint('words', sys.argv[1:], flush=True)\ntime.sleep(300)\n";
    let (executor, mut want) = (w.open(), w.publish(program, &argv, 30).await);
    want.port = None;
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    let path = w.path("data/logs/n1/r1.0.j1.log");
    eventually("it has said them", || fs::read_to_string(&path).is_ok_and(|text| text.contains("words ["))).await;
    let said = fs::read_to_string(&path).unwrap();
    let each = odd.map(|word| format!("'{}'", word.replace('\n', "\\n"))).join(", ");
    assert!(said.contains(&format!("words [{each}]")), "{said}");
    stop(&executor, &want).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_gets_no_privilege_no_file_of_ours_and_no_core() {
    let w = World::new();
    // As a driver's library may have it: open, and not marked to be closed.
    let leak = nix::unistd::dup(fs::File::open("/dev/null").unwrap()).unwrap();
    let executor = w.open();
    let want = w.shell("exec sleep 300").await;
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    let pid = w.record(&want).process.unwrap().pid;
    let proc = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    eventually("it is what it runs", || proc("comm").trim() == "sleep").await;
    assert!(proc("status").contains("NoNewPrivs:\t1"));
    assert_eq!(proc("oom_score_adj").trim(), "300");
    let limits = proc("limits");
    let line = |name: &str| limits.lines().find(|l| l.starts_with(name)).unwrap().to_owned();
    let core: Vec<String> = line("Max core file size").split_whitespace().map(str::to_owned).collect();
    assert_eq!(core[4..6], ["0", "0"]);
    let open: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(open.len(), 3, "standard input, output and error: {open:?}");
    drop(leak);
    stop(&executor, &want).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_not_run_twice_does_not_start_without_a_guard() {
    let w = World::new();
    let executor = w.open();
    let mut want = w.shell("sleep 300").await;
    Arc::make_mut(&mut want.spec).constraints.exclusive = true;
    let soon = crate::agent::lease::boot_ms() + 60_000;
    executor.guard_until(Some(soon));
    executor.start(ID, &want);
    assert_eq!(executor.gone().await, End::failed(Reason::NoGuard));
    assert_eq!(w.living(), 0);
    assert!(log(&executor, 5).await.contains("NoGuard: no guard"), "{}", log(&executor, 5).await);
}
