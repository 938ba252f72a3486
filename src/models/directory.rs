//! A store that is a directory, and the one way in which files of a store, a cache or a
//! publisher are opened: no link on the way, regular files only. A version must not reach
//! outside its own directory.

use super::counts::{self, Refused};
use super::{Error, cache::sync_dir};
use nix::fcntl::OFlag;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The directory of a `file://` URL, from what follows the scheme. One that does not exist yet is an empty store.
pub(super) fn root(rest: &str) -> Result<PathBuf, String> {
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    let root = PathBuf::from(path);
    match path.starts_with('/') {
        false => Err("the directory is not absolute".into()),
        true if root.exists() && !root.is_dir() => Err("not a directory".into()),
        true => Ok(root),
    }
}

/// The first `most` bytes of a file and one more; None when it is not there.
pub(super) fn small(root: &Path, key: &str, most: usize) -> Result<Option<Vec<u8>>, Error> {
    let Some(file) = open(root, key)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(Error::io(key))?;
    Ok(Some(bytes))
}

/// A file from one of its bytes on; None when it is not there.
pub(super) fn read(root: &Path, key: &str, from: u64) -> Result<Option<File>, Error> {
    let Some(mut file) = open(root, key)? else { return Ok(None) };
    file.seek(SeekFrom::Start(from)).map_err(Error::io(key))?;
    Ok(Some(file))
}

fn open(root: &Path, key: &str) -> Result<Option<File>, Error> {
    let absent = |e: &io::Error| matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    match open_regular(root, &root.join(key)) {
        Ok(file) => Ok(Some(file)),
        Err(Error::Io { source, .. }) if absent(&source) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes a small file as a whole, in place of one that is there.
pub(super) fn replace(root: &Path, key: &str, bytes: &[u8]) -> Result<(), Error> {
    let path = root.join(key);
    let dir = path.parent().unwrap_or(root);
    fs::create_dir_all(dir).map_err(Error::at(dir))?;
    let partial = dir.join(format!(".new-{}", uuid::Uuid::now_v7()));
    fs::write(&partial, bytes).map_err(Error::at(&partial))?;
    fs::rename(&partial, &path).map_err(Error::at(&path))?;
    sync_dir(dir)
}

/// Opens `path`, below `root`, when it is a regular file and no part of the way is a link.
pub(super) fn open_regular(root: &Path, path: &Path) -> Result<File, Error> {
    let below = path.strip_prefix(root).unwrap_or(path);
    let mut at = root.to_path_buf();
    for part in below.components() {
        at.push(part);
        let kind = fs::symlink_metadata(&at).map_err(Error::at(&at))?.file_type();
        if kind.is_symlink() || (at == path && !kind.is_file()) {
            counts::refused(Refused::Link);
            let text = "a link or not a regular file; a version holds plain files only".into();
            return Err(Error::Unfit { file: below.display().to_string(), text });
        }
    }
    // NONBLOCK: should a pipe be put in the file's place meanwhile, opening it must not hang.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(Error::at(path))
}
