//! The one place with `unsafe`: what a child does between fork and exec. It leads a
//! session of its own, so that neither the agent's terminal nor its death reaches it;
//! it enters its control group before its program can start others; it keeps no open
//! file of the agent; it can gain no privilege; and it does not begin after its time.

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Files and sockets that a replica may have open, where the machine allows it.
const MAX_FILES: u64 = 65_536;
/// Descriptors that are closed one by one where the kernel can't close a range.
const OLD_KERNEL_FILES: i32 = 65_536;

/// What a child gets beyond a session of its own.
#[derive(Debug, Default)]
pub(in crate::agent) struct Confinement {
    /// The `cgroup.procs` that it enters.
    group: Option<File>,
    /// By CLOCK_BOOTTIME: from then on it must not begin.
    until_ms: Option<u64>,
    /// It may gain no privilege, leaves no core file, and its open files and processes have a limit.
    limited: bool,
}

impl Confinement {
    /// For a replica's program.
    ///
    /// # Errors
    /// When the control group can't be opened.
    pub(in crate::agent) fn of_replica(group: Option<&Path>, until_ms: Option<u64>) -> io::Result<Self> {
        let open = |group: &Path| OpenOptions::new().write(true).open(group.join("cgroup.procs"));
        Ok(Self { group: group.map(open).transpose()?, until_ms, limited: true })
    }
}

/// Makes the command's process the leader of a new session (and process group), confined so.
#[allow(unsafe_code)]
pub(in crate::agent) fn lead_session(command: &mut Command, confinement: Confinement) {
    let limits = if confinement.limited { limits() } else { Vec::new() };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. All that are
    // made here are thin wrappers of system calls (setsid, clock_gettime, write, setrlimit,
    // prctl, close_range, fcntl); they allocate nothing, and so does turning an errno into
    // an `io::Error`. What they need was made before the fork.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            if confinement.until_ms.is_some_and(|until| crate::agent::lease::boot_ms() >= until) {
                return Err(Errno::ETIME.into());
            }
            if let Some(group) = &confinement.group {
                // "0" is whoever writes it.
                let wrote = libc::write(group.as_raw_fd(), b"0".as_ptr().cast(), 1);
                Errno::result(wrote)?;
            }
            for (resource, soft, hard) in &limits {
                setrlimit(*resource, *soft, *hard)?;
            }
            if confinement.limited {
                nix::sys::prctl::set_no_new_privs()?;
            }
            close_at_exec();
            Ok(())
        });
    }
}

/// Read before the fork: the child only sets them.
fn limits() -> Vec<(Resource, u64, u64)> {
    let within = |resource, wanted: u64| {
        let (_, hard) = getrlimit(resource).ok()?;
        Some((resource, wanted.min(hard), hard))
    };
    let files = within(Resource::RLIMIT_NOFILE, MAX_FILES);
    // Counted per user, so it is only a last line of defence; root has none. What counts is the group's pids.max.
    let tasks = within(Resource::RLIMIT_NPROC, super::cgroup::MAX_TASKS.into());
    files.into_iter().chain(tasks).chain([(Resource::RLIMIT_CORE, 0, 0)]).collect()
}

/// Marks all descriptors beyond the three standard ones to be closed at exec. Not closed
/// here: one of them tells the parent whether the exec worked.
#[allow(unsafe_code)]
fn close_at_exec() {
    // SAFETY: both calls take numbers alone; an unused descriptor is an error that changes nothing.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) == 0 {
            return;
        }
        for descriptor in 3..OLD_KERNEL_FILES {
            libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}
