//! The guard with real processes: its own loop on threads of the test, the agent's side on a runtime.

use super::tie::Tie;
use crate::agent::lease::boot_ms;
use crate::agent::runtimes::processes::{Family, Identity, KEY};
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

    /// A replica: a shell and its children, one of them in a session of its own.
    fn replica(&mut self, key: &str) -> Identity {
        let script = "(setsid sleep 300 &); sleep 300 & sleep 300";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env(KEY, key);
        crate::agent::runtimes::session::lead_session(&mut command, Default::default());
        let child = command.spawn().unwrap();
        let identity = Identity::of(child.id()).unwrap();
        self.children.push(child);
        self.keys.push(key.to_owned());
        identity
    }

    /// Reaps what has ended, as init would.
    fn ended(&mut self, n: usize) -> bool {
        self.children[n].try_wait().unwrap().is_some()
    }

    fn tie(&self) -> Tie {
        let tie = Tie::new(&tokio::runtime::Handle::current(), self.dir(), "/nonexistent/nf".into());
        tie.extend(Some(boot_ms() + 60_000), boot_ms() + 60_000);
        tie
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for key in self.keys.drain(..) {
            Family { key, leader: None, cgroup: None }.signal(nix::sys::signal::Signal::SIGKILL);
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

fn members(key: &str) -> usize {
    Family { key: key.into(), leader: None, cgroup: None }.members().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_kills_at_the_time_and_not_before_though_its_agent_does_nothing() {
    let mut world = World::new();
    let tie = world.tie();
    let (key, other) = (uuid::Uuid::now_v7().to_string(), uuid::Uuid::now_v7().to_string());
    let first = tie.hold(&key, None).await.unwrap();
    tie.hold(&other, None).await.unwrap();
    assert!(first > boot_ms() + 50_000);
    let leader = world.replica(&key);
    world.replica(&other);
    eventually("all have started", || members(&key) >= 4 && members(&other) >= 4);
    tie.knows(&key, leader, None);
    // No order takes back what was given.
    tie.extend(Some(boot_ms() + 100), 0);
    tie.release(&other);
    eventually("the guard has heard it", || tie.until() == Some(first));
    assert!(leader.lives() && !tie.fired(&key));

    // Another one, whose time is soon over.
    let short = uuid::Uuid::now_v7().to_string();
    let until = boot_ms() + 400;
    tie.extend(Some(until), 1);
    assert_eq!(tie.hold(&short, None).await.unwrap(), until);
    let doomed = world.replica(&short);
    tie.knows(&short, doomed, None);
    eventually("it is dead", || members(&short) == 0 && boot_ms() >= until);
    let late = boot_ms() - until;
    assert!(late < 2_000, "{late} ms late");
    eventually("and told", || tie.fired(&short));
    eventually("reaped", || world.ended(2));
    assert!(leader.lives() && members(&other) >= 4, "who has time, or was released, lives");

    // Whoever starts late under that key is found, and no order brings it back.
    tie.extend(Some(boot_ms() + 60_000), 1);
    world.replica(&short);
    eventually("the late one is dead, too", || world.ended(3));
    assert!(leader.lives());
    tie.release(&key);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_holds_outlives_the_agent_and_is_found_by_the_next() {
    let mut world = World::new();
    let key = uuid::Uuid::now_v7().to_string();
    let first = world.tie();
    let until = first.hold(&key, None).await.unwrap();
    let leader = world.replica(&key);
    first.knows(&key, leader, None);
    drop(first);
    // The next agent has no lease yet, and would give it no time by itself.
    let next = Tie::new(&tokio::runtime::Handle::current(), world.dir(), "/nonexistent/nf".into());
    next.knows(&key, leader, None);
    next.extend(None, 1);
    eventually("it is known", || next.until() == Some(until));
    assert!(leader.lives());
    assert!(next.hold("new", None).await.unwrap_err().contains("no lease"));
    next.release(&key);
    eventually("let go", || next.until().is_none());
    assert!(leader.lives());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_kills_at_the_time_though_no_agent_is_there_any_more() {
    let mut world = World::new();
    let key = uuid::Uuid::now_v7().to_string();
    let until = boot_ms() + 1_500;
    let tie = Tie::new(&tokio::runtime::Handle::current(), world.dir(), "/nonexistent/nf".into());
    tie.extend(Some(until), until);
    tie.hold(&key, None).await.unwrap();
    let leader = world.replica(&key);
    // Gone before it could say who the first process is.
    drop(tie);
    eventually("all have started", || members(&key) >= 4);
    assert!(boot_ms() >= until || leader.lives());
    eventually("it is dead", || members(&key) == 0);
    assert!(boot_ms() >= until);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_guard_nothing_may_start() {
    let world = World::without_guard();
    let error = world.tie().hold("key", None).await.unwrap_err();
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
