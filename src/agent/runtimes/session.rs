//! The one place with `unsafe`: what a child does between fork and exec. It leads a
//! session of its own, so that neither the agent's terminal nor its death reaches it;
//! it enters its control group before its program can start others; it becomes its own
//! user; it keeps no open file of the agent; it can gain no privilege; and it does not
//! begin after its time. And how all processes of such a user are killed at once.

use super::processes::Owner;
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Files and sockets that a replica may have open, where the machine allows it.
const MAX_FILES: u64 = 65_536;
/// Descriptors that are closed one by one where the kernel can't close a range.
const OLD_KERNEL_FILES: i32 = 65_536;

/// More capabilities than any kernel has.
const CAPABILITIES: libc::c_ulong = 63;
/// Version 3: 64 bits.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// What a child gets beyond a session of its own.
#[derive(Debug, Default)]
pub(in crate::agent) struct Confinement {
    /// The `cgroup.procs` that it enters.
    group: Option<File>,
    /// By CLOCK_BOOTTIME: from then on it must not begin.
    until_ms: Option<u64>,
    /// Whom it becomes.
    owner: Option<Owner>,
    /// It may gain no privilege, leaves no core file, and its open files and processes have a limit.
    limited: bool,
}

impl Confinement {
    /// For a replica's program.
    ///
    /// # Errors
    /// When the control group can't be opened.
    pub(in crate::agent) fn of_replica(
        group: Option<&Path>,
        until_ms: Option<u64>,
        owner: Option<Owner>,
    ) -> io::Result<Self> {
        let open = |group: &Path| OpenOptions::new().write(true).open(group.join("cgroup.procs"));
        Ok(Self { group: group.map(open).transpose()?, until_ms, owner, limited: true })
    }
}

/// Starts another part of `nf` that outlives us: a session of its own and nothing of the agent's, in the root directory;
/// what it says goes into `log`.
pub(in crate::agent) fn spawn_apart(program: &Path, args: &[&OsStr], log: File) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.arg0("nf").args(args).current_dir("/").env_clear();
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    lead_session(&mut command, Confinement::default());
    command.spawn()
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
            match confinement.owner {
                Some(owner) => become_user(owner.uid)?,
                // Whatever its agent was given to do its work, a program of somebody else's gets none of it. (Root's
                // are root: where replicas have no users of their own, nf doctor says so.)
                None if confinement.limited && !nix::unistd::geteuid().is_root() => inherit_nothing()?,
                None => {}
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
    // Counted per user: it counts where a replica has one of its own. Root has no limit, so then it is the group's pids.max.
    let tasks = within(Resource::RLIMIT_NPROC, super::cgroup::MAX_TASKS.into()).map(|(of, soft, _)| (of, soft, soft));
    files.into_iter().chain(tasks).chain([(Resource::RLIMIT_CORE, 0, 0)]).collect()
}

/// Makes the calling process nobody but `uid`, for good: as user and as group, in no other
/// group, without a capability and without one that it could get.
#[allow(unsafe_code)]
fn become_user(uid: u32) -> nix::Result<()> {
    // As wide as the kernel reads it.
    const NONE: libc::c_ulong = 0;
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong;
    // SAFETY: system calls with numbers, and one with two arrays that live until it returns.
    // Not glibc's wrappers: those speak to threads that a child does not have.
    unsafe {
        for capability in 0..=CAPABILITIES {
            match Errno::result(libc::prctl(libc::PR_CAPBSET_DROP, capability, NONE, NONE, NONE)) {
                Ok(_) => {}
                // The kernel has no more.
                Err(Errno::EINVAL) if capability > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Errno::result(libc::prctl(libc::PR_CAP_AMBIENT, clear, NONE, NONE, NONE))?;
        Errno::result(libc::syscall(libc::SYS_setgroups, NONE, std::ptr::null::<libc::gid_t>()))?;
        Errno::result(libc::syscall(libc::SYS_setresgid, uid, uid, uid))?;
        Errno::result(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    // Root has none left now; who was not root still has what it had.
    drop_capabilities()
}

/// Takes every capability from the calling thread, and those that an exec would hand on.
#[allow(unsafe_code)]
fn inherit_nothing() -> nix::Result<()> {
    const NONE: libc::c_ulong = 0;
    // SAFETY: a system call with numbers.
    Errno::result(unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, NONE, NONE, NONE)
    })?;
    drop_capabilities()
}

/// All of the calling thread's: what it may, what it could make itself able to, what its programs inherit.
#[allow(unsafe_code)]
fn drop_capabilities() -> nix::Result<()> {
    let (header, none) = ([CAPABILITY_VERSION, 0u32], [0u32; 6]);
    // SAFETY: both arrays are as long as that version says, and live until the call returns.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) }).map(drop)
}

/// Kills every process of the owner's user in one step of the kernel, so that nobody can
/// flee it by forking. A thread of its own makes itself that user, and nobody else: a
/// signal to all then reaches who that user may signal, which is that user alone.
///
/// # Errors
/// When it can't become that user; nobody is signalled then.
pub(in crate::agent) fn kill_all_of(owner: Owner) -> io::Result<()> {
    if owner.uid == 0 || owner.hand == 0 || owner.uid == owner.hand {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "nobody's user"));
    }
    let thread = std::thread::Builder::new().name("nf-hand".into()).spawn(move || sweep(owner))?;
    thread.join().map_err(|_| io::Error::other("it panicked"))?.map_err(io::Error::from)
}

/// On a thread that ends with it: it is somebody else from here on.
#[allow(unsafe_code)]
fn sweep(Owner { uid, hand }: Owner) -> nix::Result<()> {
    let (mut real, mut effective, mut saved) = (0u32, 0u32, 0u32);
    // SAFETY: system calls with numbers, and one with three places to write to. The direct
    // calls change this thread alone; glibc's wrappers would change the whole process.
    unsafe {
        // Its effective user counts when it signals, the other two when it is signalled.
        Errno::result(libc::syscall(libc::SYS_setresuid, hand, uid, hand))?;
        drop_capabilities()?;
        Errno::result(libc::syscall(libc::SYS_getresuid, &raw mut real, &raw mut effective, &raw mut saved))?;
        if (real, effective, saved) != (hand, uid, hand) {
            return Err(Errno::EPERM);
        }
        match Errno::result(libc::kill(-1, libc::SIGKILL)) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error),
        }
    }
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
