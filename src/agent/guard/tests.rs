//! The guard with real processes: its own loop on threads of the test, the agent's side on a runtime.

use super::tie::Tie;
use crate::agent::lease::boot_ms;
use crate::agent::runtimes::processes::{Family, Identity, KEY, Owner, users_of};
use crate::agent::runtimes::session::{Confinement, lead_session};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

struct World {
    tmp: tempfile::TempDir,
    children: Vec<Child>,
    keys: Vec<String>,
}

const FAMILY: &str = "(setsid sleep 300 &); sleep 300 & sleep 300";

impl World {
    /// A guard runs in a directory whose name is too long for a socket's address.
    fn new() -> Self {
        let world = Self::without_guard();
        let dir = world.dir();
        std::thread::spawn(move || super::run(&dir).unwrap());
        eventually("the guard listens", || world.connect().is_some());
        world
    }

    fn without_guard() -> Self {
        Self { tmp: tempfile::tempdir().unwrap(), children: vec![], keys: vec![] }
    }

    fn dir(&self) -> PathBuf {
        self.tmp.path().join("d".repeat(120)).join("guard")
    }

    fn connect(&self) -> Option<UnixStream> {
        let room = super::Room(self.dir());
        let (_dir, short) = room.short().ok()?;
        UnixStream::connect(short).ok()
    }

    /// The keys that it says it holds.
    fn held(&self) -> Vec<String> {
        let mut line = String::new();
        BufReader::new(self.connect().unwrap()).read_line(&mut line).unwrap();
        let word: super::Word = serde_json::from_str(&line).unwrap();
        word.held.into_iter().map(|held| held.key).collect()
    }

    /// A replica: a shell and its children, one of them in a session of its own.
    fn replica(&mut self, key: &str) -> Identity {
        self.run(FAMILY, key, None)
    }

    fn run(&mut self, script: &str, key: &str, owner: Option<Owner>) -> Identity {
        let pid = self.begin(script, key, owner);
        Identity::of(pid).unwrap()
    }

    /// The same of one that may be dead before anybody looks.
    fn begin(&mut self, script: &str, key: &str, owner: Option<Owner>) -> u32 {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env(KEY, key);
        lead_session(&mut command, Confinement::of_replica(None, None, owner).unwrap());
        let child = command.spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        self.keys.push(key.to_owned());
        pid
    }

    /// Reaps what has ended, as init would.
    fn ended(&mut self, n: usize) -> bool {
        self.children[n].try_wait().unwrap().is_some()
    }

    fn tie(&self) -> Tie {
        let tie = Tie::new(&tokio::runtime::Handle::current(), self.dir(), "/nonexistent/nf".into());
        tie.extend(Some(boot_ms() + 60_000));
        tie
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for key in self.keys.drain(..) {
            family(&key, None).signal(nix::sys::signal::Signal::SIGKILL);
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the runtime has another thread for what is waited for")]
fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !test() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn family(key: &str, leader: Option<Identity>) -> Family {
    Family { key: key.to_owned(), leader, cgroup: None, owner: None }
}

fn members(key: &str) -> usize {
    family(key, None).members().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_kills_at_the_time_and_not_before_though_its_agent_does_nothing() {
    let mut world = World::new();
    let tie = world.tie();
    let (key, other) = (uuid::Uuid::now_v7().to_string(), uuid::Uuid::now_v7().to_string());
    let first = tie.hold(family(&key, None)).await.unwrap();
    tie.hold(family(&other, None)).await.unwrap();
    assert!(first > boot_ms() + 50_000);
    let leader = world.replica(&key);
    world.replica(&other);
    eventually("all have started", || members(&key) >= 4 && members(&other) >= 4);
    tie.knows(family(&key, Some(leader)));
    // No order takes back what was given.
    tie.extend(Some(boot_ms() + 100));
    tie.release(&other);
    eventually("the guard has heard it", || tie.until() == Some(first));
    assert!(leader.lives() && !tie.fired(&key));

    // Another one, whose time is soon over.
    let short = uuid::Uuid::now_v7().to_string();
    let until = boot_ms() + 400;
    tie.extend(Some(until));
    assert_eq!(tie.hold(family(&short, None)).await.unwrap(), until);
    let doomed = world.replica(&short);
    tie.knows(family(&short, Some(doomed)));
    eventually("it is dead", || members(&short) == 0 && boot_ms() >= until);
    let late = boot_ms() - until;
    assert!(late < 2_000, "{late} ms late");
    eventually("and told", || tie.fired(&short));
    eventually("reaped", || world.ended(2));
    assert!(leader.lives() && members(&other) >= 4, "who has time, or was released, lives");

    // Whoever starts late under that key is found, and no order brings it back.
    tie.extend(Some(boot_ms() + 60_000));
    world.begin(FAMILY, &short, None);
    eventually("the late one is dead, too", || world.ended(3));
    assert!(leader.lives());
    tie.release(&key);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_holds_outlives_the_agent_and_is_found_by_the_next() {
    let mut world = World::new();
    let key = uuid::Uuid::now_v7().to_string();
    let first = world.tie();
    let until = first.hold(family(&key, None)).await.unwrap();
    let leader = world.replica(&key);
    first.knows(family(&key, Some(leader)));
    drop(first);
    // The next agent has no lease yet, and would give it no time by itself.
    let next = Tie::new(&tokio::runtime::Handle::current(), world.dir(), "/nonexistent/nf".into());
    next.knows(family(&key, Some(leader)));
    next.extend(None);
    eventually("it is known", || next.until() == Some(until));
    assert!(leader.lives());
    assert!(next.hold(family("new", None)).await.unwrap_err().contains("no lease"));
    next.release(&key);
    eventually("let go", || next.until().is_none());
    assert!(leader.lives());
}

/// An agent that lost its records, or can't read one, speaks of others only: whoever it does not name is held until its
/// time as before, and is neither freed nor given more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_let_go_only_when_it_is_said_to_be_gone() {
    let mut world = World::new();
    let (known, forgotten) = (uuid::Uuid::now_v7().to_string(), uuid::Uuid::now_v7().to_string());
    let first = world.tie();
    let until = boot_ms() + 1_500;
    first.extend(Some(until));
    first.hold(family(&known, None)).await.unwrap();
    first.hold(family(&forgotten, None)).await.unwrap();
    let leader = world.replica(&forgotten);
    eventually("all have started", || members(&forgotten) >= 4);
    drop(first);
    let next = Tie::new(&tokio::runtime::Handle::current(), world.dir(), "/nonexistent/nf".into());
    next.extend(Some(boot_ms() + 60_000));
    next.knows(family(&known, None));
    eventually("it knows the one", || next.until().is_some_and(|at| at > until));
    assert!(leader.lives() && boot_ms() < until);
    eventually("the other is dead", || members(&forgotten) == 0);
    assert!(boot_ms() >= until, "at its time");
    eventually("reaped", || world.ended(0));
    // Fired, gone and named by nobody: forgotten in the end.
    eventually("and forgotten", || !world.held().contains(&forgotten));
    assert!(world.held().contains(&known));
    next.release(&known);
    eventually("told that it is gone", || !world.held().contains(&known));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_kills_at_the_time_though_no_agent_is_there_any_more() {
    let mut world = World::new();
    let key = uuid::Uuid::now_v7().to_string();
    let until = boot_ms() + 1_500;
    let tie = Tie::new(&tokio::runtime::Handle::current(), world.dir(), "/nonexistent/nf".into());
    tie.extend(Some(until));
    tie.hold(family(&key, None)).await.unwrap();
    let leader = world.replica(&key);
    // Gone before it could say who the first process is.
    drop(tie);
    eventually("all have started", || members(&key) >= 4);
    assert!(boot_ms() >= until || leader.lives());
    eventually("it is dead", || members(&key) == 0);
    assert!(boot_ms() >= until);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_kills_all_of_a_user_and_nobody_else() {
    if !nix::unistd::geteuid().is_root() {
        return nf_core::testing::skipped("only root may make a process another user's");
    }
    let mut world = World::new();
    let hand = 1_850_000_000 + std::process::id();
    let (owner, other) = (Owner { uid: hand + 1, hand }, Owner { uid: hand + 2, hand });
    // Neither session nor environment says whose these are; they end by themselves.
    let script = "(env -i setsid sh -c 'exec sleep 120' &); exec sleep 120";
    let (key, stranger) = (uuid::Uuid::now_v7().to_string(), uuid::Uuid::now_v7().to_string());
    let tie = world.tie();
    tie.extend(Some(boot_ms() + 3_000));
    tie.hold(Family { owner: Some(owner), ..family(&key, None) }).await.unwrap();
    let leader = world.run(script, &key, Some(owner));
    let spared = world.run("exec sleep 120", &stranger, Some(other));
    tie.knows(Family { owner: Some(owner), ..family(&key, Some(leader)) });
    let all = |owner: Owner| Family { owner: Some(owner), ..family("", None) }.members().len();
    assert_eq!(users_of(leader.pid), [owner.uid; 4]);
    eventually("one has fled", || all(owner) >= 2);
    eventually("both are dead", || all(owner) == 0 && tie.fired(&key));
    eventually("reaped", || world.ended(0));
    assert!(spared.lives(), "another's user");
    Family { owner: Some(other), ..family("", None) }.signal(nix::sys::signal::Signal::SIGKILL);
    eventually("and its turn", || all(other) == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_guard_nothing_may_start() {
    let world = World::without_guard();
    let error = world.tie().hold(family("key", None)).await.unwrap_err();
    assert!(error.contains("no guard") && error.contains("No such file"), "{error}");
}

#[test]
fn a_second_guard_ends_and_a_bad_line_closes_the_connection_alone() {
    let world = World::new();
    super::run(&world.dir()).unwrap();
    for bad in ["\n", "{}\n", "{\"holds\":[{}]}\n", "x"] {
        let stream = world.connect().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().contains("\"held\":[]"));
        (&stream).write_all(bad.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(lines.next().is_none_or(|line| line.is_err()), "{bad:?}");
    }
    eventually("it still listens", || world.connect().is_some());
}
