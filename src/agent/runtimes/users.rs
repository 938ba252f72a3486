//! Users of replicas' own: which of a range of user ids a launch gets, so that no two on
//! this machine have one at the same time. Who has one is written below `/run`, where all
//! agents of the machine see it and a boot wipes it; a claim counts for as long as the
//! record that it names is there, and no user is given that has a process. It does not
//! start or kill anybody.

use super::processes::{Owner, users_of};
use crate::agent::record::{self, Record};
use nix::libc;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};

/// Where claims are written.
const CLAIMS: &str = "/run/neural-fabric/users";
/// The lock of the claims; it holds the user that was given last.
const LOCK: &str = "last";
/// The longest claim that is read.
const MAX_CLAIM: u64 = 16 << 10;
/// Numbers of the capabilities without which none of this works, and their names.
const NEEDED: [(u32, &str); 7] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
];

/// What is wished for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Users {
    /// User ids that are nobody's: the first does the killing, the others are replicas'. None: not wanted.
    pub range: Option<(u32, u32)>,
    /// Somebody asked for it by name: without it no agent starts.
    pub required: bool,
    /// The process' data directory: replicas' users pass through it, and read nothing in it.
    pub home: PathBuf,
}

impl Users {
    /// Whether what is required can be had here. Changes nothing.
    ///
    /// # Errors
    /// A text that says what is missing and what would give it.
    pub fn check(&self) -> Result<(), String> {
        match Giver::find(self) {
            Err(why) if self.required => Err(Self::refusal(&why)),
            _ => Ok(()),
        }
    }

    /// What is said where users are required and can't be given.
    pub(in crate::agent) fn refusal(why: &str) -> String {
        format!("NF_REPLICA_USERS: {why}; off runs replicas as this process' own user")
    }

    /// Whether replicas get users of their own on this machine: they are wanted, and can be given.
    pub fn are_given(&self) -> bool {
        Giver::find(self).is_ok()
    }
}

/// Who has a user.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    /// The launch's key.
    key: String,
    /// Its record.
    record: PathBuf,
}

impl Claim {
    fn of(of: &Record, records: &Path) -> io::Result<Self> {
        let record = std::path::absolute(record::path(records, of.launch.id, of.launch.generation))?;
        Ok(Self { key: of.key.clone(), record })
    }
}

/// Gives users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::agent) struct Giver {
    range: (u32, u32),
}

impl Giver {
    /// What this machine gives, and why not. Changes nothing.
    ///
    /// # Errors
    /// A text that says what is missing and what would give it.
    pub(in crate::agent) fn find(wish: &Users) -> Result<Self, String> {
        let range = wish.range.ok_or("they are switched off (NF_REPLICA_USERS=off)")?;
        let read =
            |path: &str| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        able(&read("/proc/self/status"))?;
        mapped(&read("/proc/self/uid_map"), "user", range)?;
        mapped(&read("/proc/self/gid_map"), "group", range)?;
        strangers(&read("/etc/passwd"), "user", range)?;
        strangers(&read("/etc/group"), "group", range)?;
        reachable(&wish.home)?;
        let there = Path::new(CLAIMS).ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
        writable(there).map_err(|error| {
            format!("{} can't be written ({error}): who has which user is noted there", there.display())
        })?;
        Ok(Self { range })
    }

    /// Gives the launch a user and writes its record, both or neither.
    ///
    /// # Errors
    /// All users have a launch or a process; or whatever the files meet.
    pub(in crate::agent) fn give(&self, of: &mut Record, records: &Path) -> io::Result<Owner> {
        let (mut lock, last) = lock()?;
        let (hand, end) = self.range;
        let taken = in_use();
        let after = last.filter(|last| (hand + 1..end).contains(last)).unwrap_or(hand);
        // Not the one that was freed last: what it left in a shared place is the longer there alone.
        let turn = (after + 1..=end).chain(hand + 1..=after);
        let free = |uid: &u32| !taken.contains(uid) && read(*uid).is_none_or(|claim| !claim.record.exists());
        let uid = turn.into_iter().find(free).ok_or_else(|| {
            let text = format!("all {} users of NF_REPLICA_USERS are in use: give a longer range", end - hand);
            io::Error::new(io::ErrorKind::QuotaExceeded, text)
        })?;
        let owner = Owner { uid, hand };
        of.owner = Some(owner);
        of.save(records)?;
        write(uid, &Claim::of(of, records)?)?;
        lock.set_len(0)?;
        lock.write_all(uid.to_string().as_bytes())?;
        Ok(owner)
    }
}

/// Whether a user is that launch's.
pub(in crate::agent) fn is_claimed(uid: u32, key: &str) -> bool {
    read(uid).is_some_and(|claim| claim.key == key)
}

impl Giver {
    /// The user of a launch whose process runs as `uid`, if that is one of those that are given: none is given that has
    /// a process, so it is nobody else's.
    pub(in crate::agent) fn owner(&self, uid: u32) -> Option<Owner> {
        let (hand, end) = self.range;
        (hand + 1..=end).contains(&uid).then_some(Owner { uid, hand })
    }
}

/// Whether a user that a record names is still that launch's; one that nobody claims any
/// more is claimed again. What is another's must never be killed in its name.
///
/// # Errors
/// When the claims can't be read or written.
pub(in crate::agent) fn is_theirs(owner: Owner, of: &Record, records: &Path) -> io::Result<bool> {
    let _lock = lock()?;
    match read(owner.uid) {
        Some(claim) => Ok(claim.key == of.key),
        None => write(owner.uid, &Claim::of(of, records)?).map(|()| true),
    }
}

/// Lets the users of replicas pass from the process' directory `home` through a node's `data`
/// down to `to`, and closes all that lies beside the way. What lies beside `data` is other
/// nodes', which do the same.
///
/// # Errors
/// What can't be closed is an error: it may be a key.
pub(in crate::agent) fn pave(home: &Path, data: &Path, to: &Path) -> io::Result<()> {
    let within = to.strip_prefix(home).map_err(io::Error::other)?;
    let mut here = home.to_path_buf();
    for next in within.components() {
        if data.parent() != Some(&here) {
            close(&here, next.as_os_str())?;
        }
        mode(&here, |_| 0o711)?;
        here.push(next);
    }
    mode(&here, |_| 0o711)
}

/// All in a directory but one.
fn close(dir: &Path, but: &OsStr) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == but {
            continue;
        }
        match entry.file_type().and_then(|kind| match kind.is_symlink() {
            true => Ok(()),
            false => mode(&entry.path(), |mode| mode & 0o700),
        }) {
            // Files of a database come and go.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Makes a launch's directory its user's, so that it can write there, and not in its model.
///
/// # Errors
/// Whatever the file system meets.
pub(in crate::agent) fn hand_over(dir: &Path, model: &Path, log: &File, owner: Owner) -> io::Result<()> {
    let id = Some(owner.uid);
    open_dirs(model)?;
    chown(dir.join("tmp"), id, id)?;
    // Programs that open their own output by name (/dev/stderr) need it.
    fchown(log, id, id)?;
    mode(dir, |_| 0o700)?;
    chown(dir, id, id)
}

/// Readable to whoever gets there: only its user passes the directory above.
fn open_dirs(dir: &Path) -> io::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    mode(dir, |_| 0o755)?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_dirs(&entry.path())?;
        }
    }
    Ok(())
}

fn mode(path: &Path, change: impl Fn(u32) -> u32) -> io::Result<()> {
    let old = fs::metadata(path)?.permissions().mode() & 0o7777;
    match change(old) {
        same if same == old => Ok(()),
        new => fs::set_permissions(path, Permissions::from_mode(new)),
    }
}

/// Tried by a file without a name: access(2) asks what the user may, and not what this process may.
fn writable(dir: &Path) -> io::Result<()> {
    match File::options().write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(dir) {
        // Some file systems have no such files (open(2)).
        Err(error) if ![Some(libc::EOPNOTSUPP), Some(libc::EISDIR)].contains(&error.raw_os_error()) => Err(error),
        _ => Ok(()),
    }
}

fn claim_path(uid: u32) -> PathBuf {
    Path::new(CLAIMS).join(format!("{uid}.json"))
}

/// The lock, and the user that was given last.
fn lock() -> io::Result<(File, Option<u32>)> {
    DirBuilder::new().recursive(true).mode(0o700).create(CLAIMS)?;
    let mut file = File::options().create(true).read(true).append(true).open(Path::new(CLAIMS).join(LOCK))?;
    file.lock()?;
    let mut text = String::new();
    (&mut file).take(MAX_CLAIM).read_to_string(&mut text)?;
    Ok((file, text.trim().parse().ok()))
}

/// None: nobody's. One that can't be read was cut off half way, before anything was started.
fn read(uid: u32) -> Option<Claim> {
    let mut bytes = Vec::new();
    File::open(claim_path(uid)).ok()?.take(MAX_CLAIM).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn write(uid: u32, claim: &Claim) -> io::Result<()> {
    let (path, partial) = (claim_path(uid), claim_path(uid).with_extension("tmp"));
    fs::write(&partial, serde_json::to_vec(claim)?)?;
    fs::rename(partial, path)
}

/// Claims outlive whoever made them; those of a test go with it.
#[cfg(test)]
pub(in crate::agent) fn unclaim((first, last): (u32, u32)) {
    (first..=last).for_each(|uid| drop(fs::remove_file(claim_path(uid))));
}

/// All users that have a process.
fn in_use() -> BTreeSet<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.flat_map(users_of).collect()
}

/// Whether this process may do all that is needed.
fn able(status: &str) -> Result<(), String> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let has = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok()).unwrap_or(0);
    let lacks: Vec<&str> = NEEDED.iter().filter(|(bit, _)| has & (1 << bit) == 0).map(|(_, name)| *name).collect();
    match lacks.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "this process lacks {}: run nf as root, or with the capabilities of the service file",
            lacks.join(", ")
        )),
    }
}

/// Whether the kernel knows all of the range here: a container may have a part of all users only.
fn mapped(map: &str, what: &str, (first, last): (u32, u32)) -> Result<(), String> {
    let within = |line: &str| {
        let mut numbers = line.split_whitespace().map(|n| n.parse::<u64>().ok());
        let (inside, _, length) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some(u64::from(first) >= inside && u64::from(last) < inside.saturating_add(length))
    };
    match map.lines().any(|line| within(line) == Some(true)) {
        true => Ok(()),
        false => Err(format!(
            "{what} ids {first}-{last} do not exist in this container: set NF_REPLICA_USERS to ones that do"
        )),
    }
}

/// Whether somebody of the machine is in the range.
fn strangers(file: &str, what: &str, (first, last): (u32, u32)) -> Result<(), String> {
    let mut lines = file.lines().map(|line| line.split(':'));
    let named = lines.find_map(|mut fields| {
        let (name, id) = (fields.next()?, fields.nth(1)?.parse::<u32>().ok()?);
        (first..=last).contains(&id).then(|| format!("{what} {name} ({id})"))
    });
    match named {
        None => Ok(()),
        Some(named) => {
            Err(format!("{named} of this machine is in {first}-{last}: set NF_REPLICA_USERS to ids that nobody has"))
        }
    }
}

/// Whether others than its owner may pass through the directories above.
fn reachable(home: &Path) -> Result<(), String> {
    let home = std::path::absolute(home).map_err(|e| e.to_string())?;
    let above = home.ancestors().skip(1).find_map(|dir| dir.canonicalize().ok()).unwrap_or_default();
    let closed = |dir: &&Path| fs::metadata(dir).is_ok_and(|m| m.permissions().mode() & 0o001 == 0);
    match above.ancestors().find(closed) {
        None => Ok(()),
        Some(dir) => Err(format!(
            "no other user can pass through {}, which the data directory lies in: set NF_DATA_DIR to one such as /var/lib/neural-fabric",
            dir.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(able("Name:\tnf\nCapEff:\t000001fffeffffff\n"), Ok(()));
        let lacks = able("CapEff:\t00000000000001df\n").unwrap_err();
        assert!(lacks.contains("CAP_KILL") && !lacks.contains("CAP_CHOWN"), "{lacks}");
        assert!(able("CapEff:\t0000000000000000\n").unwrap_err().contains("run nf as root"));
        assert!(able("").is_err());
        let range = (1_900_000_000, 1_900_000_999);
        assert_eq!(mapped("         0          0 4294967295\n", "user", range), Ok(()));
        assert_eq!(mapped("0 1000 1\n1 100000 65536\n", "user", (1, 65_536)), Ok(()));
        assert!(mapped("0 1000 1\n1 100000 65536\n", "user", range).is_err());
        assert!(mapped("", "user", range).is_err());
        let passwd = "root:x:0:0::/root:/bin/sh\nada:x:60001:100::/ada:/bin/sh\n";
        assert_eq!(strangers(passwd, "user", range), Ok(()));
        assert!(strangers(passwd, "user", (60_000, 60_009)).unwrap_err().contains("ada (60001)"));
        let tmp = tempfile::tempdir().unwrap();
        fs::set_permissions(tmp.path(), Permissions::from_mode(0o700)).unwrap();
        let closed = reachable(&tmp.path().join("a/b")).unwrap_err();
        assert!(closed.contains(&tmp.path().display().to_string()), "{closed}");
        fs::set_permissions(tmp.path(), Permissions::from_mode(0o711)).unwrap();
        assert_eq!(reachable(&tmp.path().join("a")), Ok(()));
    }

    #[test]
    fn what_lies_beside_the_way_is_closed() {
        let tmp = tempfile::tempdir().unwrap();
        let home = tmp.path().join("data");
        let (one, two) = (home.join("nodes/n1"), home.join("nodes/n2"));
        for dir in [one.join("replicas"), two.join("replicas"), one.join("cache"), home.join("raft")] {
            fs::create_dir_all(dir).unwrap();
        }
        fs::write(home.join("key"), "secret").unwrap();
        fs::set_permissions(home.join("key"), Permissions::from_mode(0o644)).unwrap();
        for data in [&one, &two, &one] {
            pave(&home, data, &data.join("replicas")).unwrap();
        }
        let is = |path: &str| fs::metadata(home.join(path)).unwrap().permissions().mode() & 0o777;
        for open in ["", "nodes", "nodes/n1", "nodes/n1/replicas", "nodes/n2", "nodes/n2/replicas"] {
            assert_eq!(is(open), 0o711, "{open}");
        }
        assert_eq!((is("raft"), is("key"), is("nodes/n1/cache")), (0o700, 0o600, 0o700));
        assert!(pave(&home, &one, tmp.path()).is_err(), "not a way down from there");
    }

    proptest! {
        #[test]
        fn whatever_the_kernel_or_a_file_says_is_read(text in "(?s).{0,200}", first in any::<u32>(), more in 0u32..9) {
            let range = (first, first.saturating_add(more));
            let _ = (able(&text), mapped(&text, "user", range), strangers(&text, "user", range));
        }

        #[test]
        fn whatever_a_map_says_is_added_up(a in any::<u64>(), b in any::<u64>()) {
            let _ = mapped(&format!("{a} 0 {b}"), "user", (1, 2));
        }
    }
}
