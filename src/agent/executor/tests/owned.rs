//! Replicas that are users of their own: what they can reach, and that a stop ends all of
//! them. Only root can give a replica a user; where the tests don't run as root they say so.

use super::*;
use crate::agent::runtimes::processes::{Owner, users_of};
use nix::unistd::geteuid;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, Ordering};

/// Other users must be able to run it, so not one in somebody's home.
const PYTHON: &str = "/usr/bin/python3";

/// Tries what a replica must not be able to do, and says what came of it.
const THIEF: &str = r#"
import os, sys
def tell(what, deed):
    try:
        print(what, "DONE", deed(), flush=True)
    except OSError as error:
        print(what, "refused", error.strerror, flush=True)
key, listed, pid, model = os.environ["KEY"], os.environ["LISTED"], os.environ["OTHER"], os.environ["NF_MODEL_DIR"]
tell("key", lambda: open(key).read())
for directory in listed.split(":"):
    tell("list", lambda: os.listdir(directory))
tell("environ", lambda: open(f"/proc/{pid}/environ").read())
tell("kill", lambda: os.kill(int(pid), 9))
tell("write", lambda: open(model + "/program.py", "a"))
tell("add", lambda: open(model + "/more", "w"))
tell("root", lambda: os.setuid(0))
tell("group", lambda: os.setgroups([0]))
assert os.path.getsize(model + "/program.py") > 100
open("mine", "w").close(); open(os.environ["TMPDIR"] + "/mine", "w").close(); open("/dev/stderr", "a").close()
print("fds", sorted(os.listdir("/proc/self/fd")), "groups", os.getgroups(), "ids", os.getresuid(), os.getresgid(), flush=True)
print("over", flush=True)
import time; time.sleep(300)
"#;

/// Forks without end, deaf to TERM, in sessions and without its environment; as many as its
/// user may have, for 40 s at most.
const BOMB: &str = r#"
import os, resource, signal, sys, time
end = float(os.environ.get("END", time.monotonic() + 40))
if "END" not in os.environ:
    resource.setrlimit(resource.RLIMIT_NPROC, (150, 150))
    print("burning", flush=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
shed = False
while time.monotonic() < end:
    try:
        if os.fork() == 0:
            os.setsid()
            if not shed and os.fork() == 0:
                os.execve(sys.executable, [sys.executable, sys.argv[1]], {"END": str(end)})
            shed = True
    except OSError:
        time.sleep(0.01)
"#;

impl World {
    /// None, and said, where this can't be tried.
    fn with_users() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !geteuid().is_root() {
            testing::skipped("only root can give a replica a user of its own");
            return None;
        }
        // Nobody else's: not another test's, nor those of a test run beside this one.
        let first = 1_800_000_000 + std::process::id() % 400_000 * 100 + NEXT.fetch_add(10, Ordering::Relaxed) % 100;
        let mut w = Self::new();
        w.users = Some((first, first + 9));
        fs::set_permissions(w.tmp.path(), fs::Permissions::from_mode(0o711)).unwrap();
        Some(w)
    }

    fn owner(&self, id: ReplicaId) -> u32 {
        record::load(&self.path("data/records/n1"), id, Generation(1)).and_then(|r| r.owner).expect("an owner").uid
    }
}

/// Who runs as that user, by the kernel's word alone.
fn all_of(uid: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid| users_of(*pid).contains(&uid) && Identity::of(*pid).is_some()).collect()
}

const OTHER: ReplicaId = ReplicaId { job: JobNo(2), replica: 0 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_reaches_its_own_and_nothing_of_the_agent_or_of_another() {
    let Some(w) = World::with_users() else { return };
    let executor = w.open();
    let sleeper = w.shell("exec sleep 300").await;
    executor.start(OTHER, &Want { request: RequestId::new("r2").unwrap(), ..sleeper.clone() });
    let other = || record::load(&w.path("data/records/n1"), OTHER, Generation(1))?.process;
    eventually("the other runs", || other().is_some()).await;
    let (pid, key) = (other().unwrap().pid, w.path("data/member.key"));
    fs::write(&key, "secret").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let listed =
        ["data", "data/records/n1", "data/logs/n1", "data/cache", "data/replicas/n1", "data/replicas/n1/r2.0.j2.g1"];
    let listed = listed.map(|name| w.path(name).display().to_string()).join(":");
    let _ = fs::remove_dir_all(w.path("store"));
    let mut want = w
        .publish_with(THIEF, &[PYTHON, "{model}"], 30, |process| {
            let env = [("KEY", key.display().to_string()), ("LISTED", listed), ("OTHER", pid.to_string())];
            process.env.extend(env.map(|(name, value)| (name.to_owned(), value)));
        })
        .await;
    want.port = None;
    executor.start(ID, &want);
    let path = w.path("data/logs/n1/r1.0.j1.log");
    eventually("it has tried all", || fs::read_to_string(&path).is_ok_and(|text| text.contains("\nover\n"))).await;
    let said = fs::read_to_string(&path).unwrap();
    assert_eq!(said.matches(" refused ").count(), 13, "{said}");
    assert!(!said.contains(" DONE "), "{said}");
    let (mine, theirs) = (w.owner(ID), w.owner(OTHER));
    assert_ne!(mine, theirs, "two live replicas are never one user");
    let ids = format!("groups [] ids ({mine}, {mine}, {mine}) ({mine}, {mine}, {mine})");
    assert!(
        said.contains("fds ['0', '1', '2', '3'] ") && said.contains(&ids),
        "its own look at them is the fourth: {said}"
    );

    let status = fs::read_to_string(format!("/proc/{}/status", w.record(&want).process.unwrap().pid)).unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1"));
    let dir = w.path("data/replicas/n1/r1.0.j1.g1");
    let meta = fs::metadata(&dir).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.permissions().mode() & 0o7777), (mine, mine, 0o700));
    for id in [ID, OTHER] {
        executor.stop(id, Generation(1), Reason::StoppedByUser);
    }
    let over = |e: &Executor| e.actual().replicas.values().all(|g| matches!(g[&Generation(1)], Condition::Gone { .. }));
    executor.until("both are gone", |e| over(e).then_some(())).await;
    assert_eq!((all_of(mine), all_of(theirs)), (vec![], vec![]));
    executor.forget(ID, Generation(1));
    eventually("its directory is removed", || !dir.exists()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_bomb_outlives_its_stop_without_control_groups() {
    let Some(mut w) = World::with_users() else { return };
    (w.grace, w.cgroups) = (Duration::from_millis(300), false);
    let executor = w.open();
    let mut want = w.publish(BOMB, &[PYTHON, "{model}"], 30).await;
    want.port = None;
    executor.start(ID, &want);
    eventually("it burns", || {
        w.path("data/records/n1").exists() && record_of(&w).is_some_and(|uid| all_of(uid).len() > 100)
    })
    .await;
    let (uid, begun) = (w.owner(ID), Instant::now());
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    assert_eq!(executor.gone().await, stopped());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    for _ in 0..20 {
        assert_eq!(all_of(uid), Vec::<u32>::new());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn record_of(w: &World) -> Option<u32> {
    Some(record::load(&w.path("data/records/n1"), ID, Generation(1))?.owner?.uid)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deaf_forked_away_or_dead_is_ended_with_the_rest() {
    let Some(mut w) = World::with_users() else { return };
    (w.grace, w.cgroups) = (Duration::from_millis(300), false);
    let executor = w.open();
    // A zombie that nobody waits for; one in a session of its own, without its environment, deaf.
    let script = "trap '' TERM; true & (env -i setsid sh -c 'trap \"\" TERM; echo $$ > away; while :; do sleep 1; done' &); echo up; exec sleep 300";
    let want = w.shell(script).await;
    executor.start(ID, &want);
    let away = w.path("data/replicas/n1/r1.0.j1.g1/away");
    eventually("it is away", || fs::read_to_string(&away).is_ok_and(|text| text.ends_with('\n'))).await;
    let (uid, begun) = (w.owner(ID), Instant::now());
    assert!(all_of(uid).len() >= 2);
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    assert_eq!(executor.gone().await, stopped());
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(all_of(uid), Vec::<u32>::new());
}

/// The next agent goes on with the same user, which nobody else is given meanwhile; one that
/// is another's by now is left alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adopted_replica_keeps_its_user() {
    let Some(w) = World::with_users() else { return };
    let executor = w.open();
    let want = w.shell("(env -i setsid sleep 300 &); exec sleep 300").await;
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    let uid = w.owner(ID);
    executor.shutdown_keeping_replicas();
    let executor = eventually_open(&w).await;
    executor.start(OTHER, &Want { request: RequestId::new("r2").unwrap(), ..want.clone() });
    executor.until("it runs", |e| e.stages().contains(&(OTHER, Generation(1), Stage::Ready)).then_some(())).await;
    let other = w.owner(OTHER);
    assert_ne!(other, uid);
    executor.stop(ID, want.generation, Reason::StoppedByUser);
    assert_eq!(executor.gone().await, stopped());
    assert_eq!(all_of(uid), Vec::<u32>::new());
    assert!(!all_of(other).is_empty());

    // A record that names the other's user, as a copied data directory would.
    executor.shutdown_keeping_replicas();
    let mut copied = w.record(&want);
    (copied.owner, copied.ended) = (copied.owner.map(|owner| Owner { uid: other, ..owner }), None);
    copied.save(&w.path("data/records/n1")).unwrap();
    let executor = eventually_open(&w).await;
    executor.gone().await;
    assert!(!all_of(other).is_empty(), "a stranger is never touched");
    assert_eq!(w.record(&want).owner, None);
    executor.stop(OTHER, Generation(1), Reason::StoppedByUser);
    eventually("nothing is left", || all_of(other).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_users_are_taken_a_replica_does_not_start_as_somebody_else() {
    let Some(mut w) = World::with_users() else { return };
    w.users = w.users.map(|(first, _)| (first, first + 1));
    let executor = w.open();
    let want = w.shell("exec sleep 300").await;
    executor.start(OTHER, &Want { request: RequestId::new("r2").unwrap(), ..want.clone() });
    executor.until("it runs", |e| e.stages().contains(&(OTHER, Generation(1), Stage::Ready)).then_some(())).await;
    executor.start(ID, &want);
    assert_eq!(executor.gone().await, End::failed(Reason::RuntimeFailed));
    assert!(
        log(&executor, 5).await.contains("all 1 users of NF_REPLICA_USERS are in use"),
        "{}",
        log(&executor, 5).await
    );
    // Where it was asked for by name, and can't be had, nothing runs without.
    fs::set_permissions(w.tmp.path(), fs::Permissions::from_mode(0o700)).unwrap();
    executor.shutdown_keeping_replicas();
    let says = "NF_REPLICA_USERS: no other user can pass through";
    eventually(says, || Executor::open(w.config()).is_err_and(|refused| refused.to_string().contains(says))).await;
}
