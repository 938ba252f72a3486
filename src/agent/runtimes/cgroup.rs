//! Control groups (version 2) for replicas: what the kernel of this machine gives, one
//! group for each launch with its limits, and the one call that ends all processes in
//! it. Where there are none, it says what is missing, and the process runtime works
//! without. It does not know replicas.

use crate::agent::numa::Cpus;
use nf_core::resources::Resources;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The most processes and threads of one replica. An inference server on a large machine has hundreds.
pub(in crate::agent) const MAX_TASKS: u32 = 16_384;
/// How long a period of CPU time is, in microseconds; the kernel's own default.
const PERIOD_US: u64 = 100_000;
/// The kernel takes no smaller quota: a hundredth of a CPU.
const LEAST_QUOTA_US: u64 = 1_000;
/// What we want to limit.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "cpuset"];
/// Groups inside a replica's own that are looked into.
const DEPTH: usize = 8;
/// Of a group that is made to see whether one can be; the time is in the rest of its name.
const TRIAL: &str = "nf-trial-";
/// No agent needs longer for its own.
const TRIED: Duration = Duration::from_secs(60);
/// Where this process moves to when the kernel wants its group to hold no process.
const OWN: &str = "nf-agent";

/// What this process may do with control groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::agent) struct Cgroups {
    /// Below it, replicas get theirs.
    base: PathBuf,
    /// Of [`CONTROLLERS`], those that replicas' groups have.
    pub limits: Vec<&'static str>,
    /// `cgroup.kill` (Linux 5.14).
    pub kill: bool,
}

/// The group of the launch with that key.
pub(in crate::agent) fn name_of(key: &str) -> String {
    format!("nf-{key}")
}

impl Cgroups {
    /// Looks where this process is, and makes what can be made there.
    ///
    /// # Errors
    /// A text that says what is missing and what would give it.
    pub(in crate::agent) fn find() -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let here = place(&mounts, &own)
            .ok_or("no cgroup v2 file system is mounted; boot with systemd.unified_cgroup_hierarchy=1")?;
        let one_down = here.file_name().is_some_and(|name| name == OWN);
        let base = if one_down { here.parent().map(Path::to_path_buf).unwrap_or_default() } else { here };
        sweep_trials(&base);
        let trial = base.join(format!("{TRIAL}{}", uuid::Uuid::now_v7().simple()));
        fs::create_dir(&trial).map_err(|error| {
            let text = "run nf as root, or as a systemd service with Delegate=yes";
            format!("{} can't be written ({error}); {text}", base.display())
        })?;
        // systemd puts a service's next start into the service's own group, which may then pass
        // nothing on: only where it was told to start us one down are there limits.
        let limits = if one_down || !by_systemd() { enable(&base) } else { Vec::new() };
        let kill = trial.join("cgroup.kill").exists();
        let _ = fs::remove_dir(&trial);
        Ok(Self { base, limits, kill })
    }

    /// With groups below a directory that is none of the kernel's.
    #[cfg(test)]
    pub(in crate::agent) fn played(base: &Path, limits: &[&'static str]) -> Self {
        Self { base: base.into(), limits: limits.to_vec(), kill: false }
    }

    /// Of the limits that we want, those that the kernel does not give here.
    pub(in crate::agent) fn missing(&self) -> Vec<&'static str> {
        CONTROLLERS.into_iter().filter(|name| !self.limits.contains(name)).collect()
    }

    /// Where the group of one launch is, or would be.
    pub(in crate::agent) fn path(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// Makes the group of one launch, with its limits; bound to these CPUs if the kernel will, and says whether it is.
    ///
    /// # Errors
    /// When it can't be made, or a limit that was enabled is refused.
    pub(in crate::agent) fn make(
        &self,
        name: &str,
        resources: &Resources,
        cpus: Option<&Cpus>,
    ) -> io::Result<(PathBuf, bool)> {
        let group = self.path(name);
        fs::create_dir(&group)?;
        let set = |file: &str, value: String| {
            let path = group.join(file);
            fs::write(&path, value).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
        };
        let limited = || -> io::Result<()> {
            if self.limits.contains(&"pids") {
                set("pids.max", MAX_TASKS.to_string())?;
            }
            if self.limits.contains(&"memory") && resources.memory > 0 {
                set("memory.max", resources.memory.to_string())?;
                // One process of a model server without the others is of no use.
                set("memory.oom.group", "1".into())?;
            }
            if self.limits.contains(&"cpu") && resources.cpu_milli > 0 {
                set("cpu.max", cpu_max(resources.cpu_milli))?;
            }
            Ok(())
        };
        limited().inspect_err(|_| drop(fs::remove_dir(&group)))?;
        // Nearer memory is no promise: who does not get it runs all the same.
        let bound = cpus.filter(|_| self.limits.contains(&"cpuset")).is_some_and(|cpus| {
            let bound = set("cpuset.cpus", cpus.to_string());
            if let Err(error) = &bound {
                tracing::warn!(%error, %cpus, "a replica is not bound to the CPUs beside its devices");
            }
            bound.is_ok()
        });
        Ok((group, bound))
    }
}

/// Removes groups that agents which were killed meanwhile had made to see whether they could. Those of replicas are told of
/// by records.
fn sweep_trials(base: &Path) {
    let begun = |name: &str| {
        let (seconds, _) = uuid::Uuid::try_parse(name.strip_prefix(TRIAL)?).ok()?.get_timestamp()?.to_unix();
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    };
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let begun = entry.file_name().to_str().and_then(begun);
        if begun.is_some_and(|at| at.elapsed().is_ok_and(|ago| ago > TRIED)) {
            // Somebody may be quicker.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The quota, as the kernel reads it.
fn cpu_max(cpu_milli: u64) -> String {
    format!("{} {PERIOD_US}", cpu_milli.saturating_mul(PERIOD_US / 1000).max(LEAST_QUOTA_US))
}

/// Whether systemd started this process as a service, or below one.
fn by_systemd() -> bool {
    std::env::var_os("INVOCATION_ID").is_some()
}

/// Our own group in the version 2 hierarchy.
fn place(mounts: &str, own: &str) -> Option<PathBuf> {
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind) = (words.next()?, words.next()?);
        (kind == "cgroup2").then_some(path)
    })?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(Path::new(mount).join(own.trim_start_matches('/')))
}

/// Passes controllers on to the groups below, and says which are.
fn enable(base: &Path) -> Vec<&'static str> {
    let read = |file: &str| fs::read_to_string(base.join(file)).unwrap_or_default();
    let has = |text: &str, name: &str| text.split_whitespace().any(|word| word == name);
    let (offered, mut passed) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
    let wanted: Vec<&str> = CONTROLLERS.into_iter().filter(|name| has(&offered, name) && !has(&passed, name)).collect();
    if !wanted.is_empty() {
        let pass =
            || wanted.iter().try_for_each(|name| fs::write(base.join("cgroup.subtree_control"), format!("+{name}")));
        if pass().is_err() && step_aside(base) {
            // What still can't be passed on is missing, and told.
            let _ = pass();
        }
        passed = read("cgroup.subtree_control");
    }
    CONTROLLERS.into_iter().filter(|name| has(&passed, name)).collect()
}

/// A group that passes controllers on holds no process: where we are the only one (a
/// service with Delegate=yes) we move one down. Others are never moved.
fn step_aside(base: &Path) -> bool {
    let me = std::process::id().to_string();
    let alone = fs::read_to_string(base.join("cgroup.procs")).is_ok_and(|all| all.trim() == me);
    let own = base.join(OWN);
    alone && (own.exists() || fs::create_dir(&own).is_ok()) && fs::write(own.join("cgroup.procs"), me).is_ok()
}

/// Those in the group and in the groups that its processes made below it.
pub(in crate::agent) fn processes(group: &Path) -> Vec<u32> {
    let mut out = Vec::new();
    walk(group, 0, &mut |dir| {
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        out.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    });
    out
}

/// Ends all that are in it, in one step of the kernel. A group that is gone is fine.
///
/// # Errors
/// When the kernel refuses. One that does not have the call is no error: they are signalled one by one.
pub(in crate::agent) fn kill(group: &Path) -> io::Result<()> {
    match fs::write(group.join("cgroup.kill"), "1") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // ENODEV: the group goes away at this moment.
        Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => Ok(()),
        done => done,
    }
}

/// Removes a group without processes; one that is gone is fine.
///
/// # Errors
/// Somebody is still in it.
pub(in crate::agent) fn remove(group: &Path) -> io::Result<()> {
    let mut dirs = Vec::new();
    walk(group, 0, &mut |dir| dirs.push(dir.to_path_buf()));
    for dir in dirs.iter().rev() {
        match fs::remove_dir(dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// The group and those below it, outer ones first.
fn walk(group: &Path, depth: usize, visit: &mut dyn FnMut(&Path)) {
    visit(group);
    if depth == DEPTH {
        return;
    }
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), depth + 1, visit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_place_is_read_from_both_layouts() {
        let unified = "sysfs /sys sysfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        let own = "0::/system.slice/nf.service\n";
        assert_eq!(place(unified, own), Some("/sys/fs/cgroup/system.slice/nf.service".into()));
        let hybrid = "cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(place(hybrid, "4:pids:/a\n0::/\n"), Some("/sys/fs/cgroup/unified/".into()));
        assert_eq!(place("cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n", "4:pids:/a\n"), None);
        assert_eq!(place("", ""), None);
    }

    #[test]
    fn a_quota_is_one_that_the_kernel_takes() {
        assert_eq!((cpu_max(1_500).as_str(), cpu_max(1).as_str()), ("150000 100000", "1000 100000"));
        let Ok(groups) = Cgroups::find() else {
            return nf_core::testing::skipped("this machine gives no writable cgroup v2");
        };
        let least = Resources { cpu_milli: 1, ..Resources::default() };
        let (group, _) = groups.make(&format!("nf-test-least-{}", std::process::id()), &least, None).unwrap();
        remove(&group).unwrap();
    }

    #[test]
    fn trials_of_agents_that_were_killed_go_and_those_of_others_stay() {
        let base = tempfile::tempdir().unwrap();
        let of = |seconds_ago| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            let at = uuid::Timestamp::from_unix(uuid::NoContext, now - seconds_ago, 0);
            format!("{TRIAL}{}", uuid::Uuid::new_v7(at).simple())
        };
        let (old, used, new) = (of(3600), of(3601), of(1));
        let others = [&*used, &*new, "nf-trial-x", "nf-0197", "system.slice"];
        others.iter().chain([&&*old]).for_each(|name| fs::create_dir(base.path().join(name)).unwrap());
        // A real group with processes can't be removed either.
        fs::create_dir(base.path().join(&used).join("inner")).unwrap();
        sweep_trials(base.path());
        assert!(!base.path().join(&old).exists());
        assert!(others.iter().all(|name| base.path().join(name).exists()));
    }

    /// The kernel's own word on where a program may run.
    fn allowed(pid: u32) -> String {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "no runtime is here")]
    fn who_is_in_a_group_runs_on_the_cpus_that_it_is_bound_to() {
        let base = tempfile::tempdir().unwrap();
        let cpu = allowed(std::process::id()).split([',', '-']).next().unwrap().to_owned();
        let cpus = Cpus::of([cpu.parse().unwrap()]);
        let played = |limits| Cgroups::played(base.path(), limits);
        let (group, bound) = played(&["cpuset"]).make("bound", &Resources::default(), Some(&cpus)).unwrap();
        assert_eq!((bound, fs::read_to_string(group.join("cpuset.cpus")).unwrap()), (true, cpu.clone()));
        let (group, bound) = played(&["cpu"]).make("free", &Resources::default(), Some(&cpus)).unwrap();
        assert!(
            !bound && !group.join("cpuset.cpus").exists(),
            "the kernel does not give it, and the group is there all the same"
        );
        let Some(groups) = Cgroups::find().ok().filter(|groups| groups.limits.contains(&"cpuset")) else {
            return nf_core::testing::skipped("this machine gives no cpuset of cgroup v2");
        };
        let name = format!("nf-test-cpus-{}", std::process::id());
        let (group, said) = groups.make(&name, &Resources::default(), Some(&cpus)).unwrap();
        let mut child = std::process::Command::new("sleep").arg("300").spawn().unwrap();
        fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        let bound = allowed(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        remove(&group).unwrap();
        assert_eq!((said, bound), (true, cpu));
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "no runtime is here")]
    fn a_group_ends_all_that_are_in_it() {
        let Ok(groups) = Cgroups::find() else {
            return nf_core::testing::skipped("this machine gives no writable cgroup v2");
        };
        let resources = Resources { memory: 64 << 20, cpu_milli: 500, ..Resources::default() };
        let (group, _) = groups.make(&format!("nf-test-{}", std::process::id()), &resources, None).unwrap();
        let mut child = std::process::Command::new("sleep").arg("300").spawn().unwrap();
        fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        assert_eq!(processes(&group), [child.id()]);
        assert!(remove(&group).is_err(), "somebody is in it");
        if groups.limits.contains(&"memory") {
            assert_eq!(fs::read_to_string(group.join("memory.max")).unwrap().trim(), (64 << 20).to_string());
        }
        kill(&group).unwrap();
        if !groups.kill {
            child.kill().unwrap();
        }
        child.wait().unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while remove(&group).is_err() {
            assert!(std::time::Instant::now() < end, "the group is not empty");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(kill(&group).is_ok() && remove(&group).is_ok(), "gone is fine");
    }
}
