//! Processes as the kernel shows them: who is who, and which belong to a replica.
//! A pid alone names nobody, since pids are used again; a pid with its start time
//! does, until the machine boots anew. It decides nothing about replicas.

use super::{cgroup, session};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, geteuid, getpgrp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Carried by every process of a replica in its environment.
pub(in crate::agent) const KEY: &str = "NF_REPLICA_KEY";
/// The longest environment that is searched for the key.
const MAX_ENVIRON: u64 = 1 << 20;

/// One process, told from any later one with the same pid by its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::agent) struct Identity {
    pub pid: u32,
    /// Clock ticks since boot (field 22 of /proc/PID/stat).
    pub start: u64,
}

impl Identity {
    /// Whoever has that pid now. None when nobody has, or only a zombie nobody waited for.
    pub(in crate::agent) fn of(pid: u32) -> Option<Self> {
        stat(pid).map(|s| Self { pid, start: s.start })
    }

    /// The same, if it carries the key of a replica: in another view of the machine's
    /// processes, as an engine may have one, the number is somebody else's.
    pub(in crate::agent) fn of_key(pid: u32, key: &str) -> Option<Self> {
        Self::of(pid).filter(|_| carries(pid, key))
    }

    pub(in crate::agent) fn lives(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Sends it a signal, if it still lives.
    pub(in crate::agent) fn signal(&self, signal: Signal) {
        if self.lives()
            && let Ok(pid) = i32::try_from(self.pid)
        {
            // It may have ended since.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

struct Stat {
    parent: u32,
    group: u32,
    session: u32,
    start: u64,
}

/// None when the process is gone or dead but not waited for.
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may itself hold any of them.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    match *fields.first()? {
        "Z" | "X" | "x" => None,
        _ => Some(Stat {
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        }),
    }
}

/// Who started it, or whom it was left to; None when it is gone.
pub(super) fn parent_of(pid: u32) -> Option<u32> {
    stat(pid).map(|stat| stat.parent)
}

/// A user that is one replica's alone while it has a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::agent) struct Owner {
    /// Its number, as a user and as a group.
    pub uid: u32,
    /// The user as whom all processes of `uid` are killed at once. Nobody runs as it, so
    /// nobody can kill who does that.
    pub hand: u32,
}

/// The users that a process is, or may make itself again; none for one that is gone.
pub(in crate::agent) fn users_of(pid: u32) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    line.split_whitespace().filter_map(|uid| uid.parse().ok()).collect()
}

/// Identifies this boot of the machine.
pub(in crate::agent) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_string())
}

/// All processes of one replica: those of its user, those in its control group, those that
/// carry its key, wherever they moved, and those in the session of its first process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::agent) struct Family {
    pub key: String,
    /// The first process; it leads the session. Only set when this agent saw it
    /// alive: a session number seen on disk alone may be a stranger's by now.
    pub leader: Option<Identity>,
    /// Its control group, where the kernel gives one: nobody leaves it unseen.
    pub cgroup: Option<PathBuf>,
    /// Its user, where it has one of its own: nobody gets rid of that.
    pub owner: Option<Owner>,
}

impl Family {
    /// Those alive now. Reads all of /proc: not for a runtime thread.
    pub(in crate::agent) fn members(&self) -> Vec<Identity> {
        self.look().into_iter().map(|(pid, stat)| Identity { pid, start: stat.start }).collect()
    }

    fn look(&self) -> Vec<(u32, Stat)> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let (me, mine) = (std::process::id(), geteuid().as_raw());
        let grouped: BTreeSet<u32> = self.cgroup.iter().flat_map(|group| cgroup::processes(group)).collect();
        let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        let (mut surely, mut perhaps) = (Vec::new(), Vec::new());
        for pid in pids.filter(|pid| *pid != me && *pid > 1) {
            if grouped.contains(&pid) || self.owns(pid) {
                surely.extend(stat(pid).map(|s| (pid, s)));
            } else if fs::metadata(format!("/proc/{pid}")).is_ok_and(|m| m.uid() == mine) {
                perhaps.extend(stat(pid).map(|s| (pid, s)));
            }
        }
        perhaps.retain(|(pid, stat)| self.in_session(stat) || carries(*pid, &self.key));
        surely.append(&mut perhaps);
        surely
    }

    fn owns(&self, pid: u32) -> bool {
        self.owner.is_some_and(|owner| users_of(pid).contains(&owner.uid))
    }

    fn in_session(&self, stat: &Stat) -> bool {
        let Some(leader) = self.leader else { return false };
        let taken_over = Identity::of(leader.pid).is_some_and(|now| now != leader);
        stat.session == leader.pid && stat.start >= leader.start && !taken_over
    }

    /// Signals all that live now; says how many there were. KILL reaches whole control and
    /// process groups in one step of the kernel each, so that whoever forks meanwhile is in it.
    pub(in crate::agent) fn signal(&self, signal: Signal) -> usize {
        if signal == Signal::SIGKILL {
            self.strike();
        }
        let members = self.look();
        let mut groups = BTreeSet::new();
        let ours = u32::try_from(getpgrp().as_raw()).unwrap_or(0);
        for (pid, stat) in &members {
            // A group lies within one session, and a replica's are its own. Its number stays
            // taken while anybody is in it, also when the one that we saw has gone on.
            if signal == Signal::SIGKILL && stat.group > 1 && stat.group != ours && groups.insert(stat.group) {
                send(stat.group, signal, killpg);
            }
            // Between the look and the signal a pid would have to end and be dealt out
            // again, through the whole range of pids; looking again narrows it to nothing.
            if (Identity { pid: *pid, start: stat.start }).lives() {
                send(*pid, signal, kill);
            }
        }
        members.len()
    }

    /// Kills all that its user has, the control group and the process group of the first
    /// process: what can be done at once, without reading all of /proc.
    pub(in crate::agent) fn strike(&self) {
        if let Some(owner) = self.owner
            && let Err(error) = session::kill_all_of(owner)
        {
            tracing::warn!(uid = owner.uid, %error, "what runs as a replica's user can't be killed at once");
        }
        if let Some(group) = &self.cgroup
            && let Err(error) = cgroup::kill(group)
        {
            tracing::warn!(path = %group.display(), %error, "a control group can't be killed");
        }
        if let Some(leader) = self.leader.filter(Identity::lives) {
            send(leader.pid, Signal::SIGKILL, killpg);
        }
    }

    /// Those that its first process has started itself.
    pub(in crate::agent) fn children(&self) -> Vec<Identity> {
        let Some(leader) = self.leader else { return Vec::new() };
        let of = self.look().into_iter().filter(|(_, stat)| stat.parent == leader.pid);
        of.map(|(pid, stat)| Identity { pid, start: stat.start }).collect()
    }

    /// The first process by its key, after a crash between spawn and record. A
    /// session's leader is preferred to what it started.
    pub(in crate::agent) fn find_leader(&self) -> Option<Identity> {
        self.members().into_iter().find(|m| stat(m.pid).is_some_and(|s| s.session == m.pid))
    }
}

fn send(pid: u32, signal: Signal, how: fn(Pid, Signal) -> nix::Result<()>) {
    if let Ok(id) = i32::try_from(pid)
        && let Err(error) = how(Pid::from_raw(id), signal)
        && error != nix::errno::Errno::ESRCH
    {
        tracing::warn!(pid, %signal, %error, "a replica's process can't be signalled");
    }
}

fn carries(pid: u32, key: &str) -> bool {
    let wanted = format!("{KEY}={key}");
    environ(pid).split(|b| *b == 0).any(|entry| entry == wanted.as_bytes())
}

/// The environment that a process began with; nothing of one that is gone or another user's.
pub(super) fn environ(pid: u32) -> Vec<u8> {
    let mut environ = Vec::new();
    let read = File::open(format!("/proc/{pid}/environ")).and_then(|f| f.take(MAX_ENVIRON).read_to_end(&mut environ));
    read.map_or_else(|_| Vec::new(), |_| environ)
}

/// Whether it is the first process of its session.
pub(super) fn leads_session(process: &Identity) -> bool {
    stat(process.pid).is_some_and(|stat| stat.session == process.pid)
}
