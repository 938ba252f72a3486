//! Files that replicas own, and may have made to hurt whoever touches them: symbolic links, pipes, endless files,
//! directories deeper than any stack. It does not know what the files are for.

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::{CStr, CString};
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Looks at a tree after which its removal is given up: somebody adds to it faster. Each look takes away a level.
const LOOKS: u32 = 1 << 24;

/// The first `most` bytes of a plain file; None for whatever else is there.
pub(super) fn read(path: &Path, most: u64) -> Option<Vec<u8>> {
    // A pipe would be waited for.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Removes a directory and all that is in it, however deep: with two descriptors and no recursion, where std's own has
/// a descriptor and a stack frame for each level. Follows no link. One that is not there is removed already.
///
/// # Errors
/// What the system says; `DirectoryNotEmpty` where somebody keeps adding to it.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut fresh = 0u64;
    for _ in 0..LOOKS {
        let mut root = match Dir::open(path, flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(()),
            root => root?,
        };
        let names = names(&mut root)?;
        if names.is_empty() {
            return fs::remove_dir(path);
        }
        for name in &names {
            if unlink(&root, name)? {
                continue;
            }
            // Its own directories come up to this level, so that it can go.
            let mut inner = Dir::openat(&root, name.as_c_str(), flags, Mode::empty())?;
            for name in self::names(&mut inner)? {
                if !unlink(&inner, &name)? {
                    lift(&inner, &name, &root, &mut fresh)?;
                }
            }
            match unlinkat(&root, name.as_c_str(), UnlinkatFlags::RemoveDir) {
                // It had more than is looked at at once; the next look goes on.
                Err(Errno::ENOTEMPTY) => {}
                gone => gone?,
            }
        }
    }
    Err(io::ErrorKind::DirectoryNotEmpty.into())
}

/// Removes what has that name; false: it is a directory with something in it.
fn unlink(dir: &Dir, name: &CStr) -> io::Result<bool> {
    let removed = match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        // Before anything is asked of it: what its owner may not write into can be removed, but not moved.
        Err(Errno::EISDIR) => unlinkat(dir, name, UnlinkatFlags::RemoveDir),
        removed => removed,
    };
    match removed {
        Err(Errno::ENOTEMPTY) => Ok(false),
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Moves a directory out of the one that it is in, under a name that nobody has.
fn lift(from: &Dir, name: &CStr, to: &Dir, fresh: &mut u64) -> io::Result<()> {
    // An empty directory of that name would be replaced, and is to go anyway; past any other the next name is tried.
    loop {
        *fresh += 1;
        match renameat(from, name, to, format!(".nf-gone-{fresh}").as_str()) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {}
            done => return Ok(done?),
        }
    }
}

/// What is in a directory, a bounded part of it at a time.
fn names(dir: &mut Dir) -> io::Result<Vec<CString>> {
    const AT_ONCE: usize = 1 << 12;
    let is_self = |name: &CStr| matches!(name.to_bytes(), b"." | b"..");
    let named = dir.iter().map(|entry| entry.map(|entry| entry.file_name().to_owned()));
    let named = named.filter(|name| name.as_ref().map_or(true, |name| !is_self(name)));
    Ok(named.take(AT_ONCE).collect::<Result<_, Errno>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_but_a_plain_file_is_read_and_never_all_of_an_endless_one() {
        let tmp = tempfile::tempdir().unwrap();
        let path = |name: &str| tmp.path().join(name);
        fs::write(path("plain"), "0123456789").unwrap();
        assert_eq!(read(&path("plain"), 16).as_deref(), Some(&b"0123456789"[..]));
        assert_eq!(read(&path("plain"), 4).as_deref(), Some(&b"0123"[..]));
        symlink("/dev/zero", path("link")).unwrap();
        nix::unistd::mkfifo(&path("pipe"), Mode::S_IRWXU).unwrap();
        fs::create_dir(path("dir")).unwrap();
        for other in ["link", "pipe", "dir", "none"] {
            assert_eq!(read(&path(other), 16), None, "{other}");
        }
        assert_eq!(read(Path::new("/dev/zero"), 16), None);
    }

    #[test]
    fn a_directory_goes_with_all_that_is_in_it_and_nothing_that_it_points_to() {
        let tmp = tempfile::tempdir().unwrap();
        let (root, kept) = (tmp.path().join("root"), tmp.path().join("kept"));
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::create_dir_all(root.join("a/.nf-gone-1/x")).unwrap();
        fs::create_dir_all(root.join(".nf-gone-2/y")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "kept").unwrap();
        fs::write(root.join("a/b/file"), "").unwrap();
        fs::write(root.join(".nf-gone-3"), "").unwrap();
        fs::hard_link(kept.join("file"), root.join("a/hard")).unwrap();
        symlink(&kept, root.join("a/b/link")).unwrap();
        symlink(&kept, root.join("link")).unwrap();
        remove(&root).unwrap();
        assert!(!root.exists());
        assert_eq!(fs::read_to_string(kept.join("file")).unwrap(), "kept");
        remove(&root).unwrap();
        symlink(&kept, &root).unwrap();
        assert!(remove(&root).is_err(), "what is no directory of ours is left alone");
    }

    #[test]
    fn more_entries_than_are_looked_at_at_once_go_too() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("root");
        for i in 0..5_000 {
            fs::create_dir_all(root.join(format!("wide/{i}"))).unwrap();
        }
        remove(&root).unwrap();
        assert!(!root.exists());
    }

    /// As `while mkdir d && cd d; do :; done` makes one. A stack of two MiB has no room for std's way to remove it.
    #[test]
    fn a_tree_deeper_than_any_stack_goes() {
        const DEEP: usize = 30_000;
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("root");
        fs::create_dir(&root).unwrap();
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut at = Dir::open(&root, flags, Mode::empty()).unwrap();
        for _ in 0..DEEP {
            nix::sys::stat::mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = Dir::openat(&at, "d", flags, Mode::empty()).unwrap();
        }
        remove(&root).unwrap();
        assert!(!root.exists());
    }
}
