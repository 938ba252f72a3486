//! The file that says whose data directory this is, and the lock that keeps it to one process.
//!
//! A voter whose vote is lost may vote twice, so a directory is never silently adopted by another
//! member or cluster. It does not know what else lies in the directory.

use std::fs::{File, OpenOptions};
use std::path::Path;

use super::{Error, frame, replace_file};

const FILE: &str = "identity";
const LOCK: &str = "lock";
const FORMATTED: &str = "formatted";
const MAGIC: &[u8] = b"NFID";
const FORMAT: u32 = 1;

/// Which member of which cluster keeps its data here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: String,
    pub member: u64,
}

/// Holds the directory for this process; dropped at the very end, after the databases.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "held for its lock, never read")] File);

/// Takes the directory for this process. Fails at once when another process has it.
pub fn lock(dir: &Path) -> Result<Lock, Error> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let path = dir.join(LOCK);
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|e| Error::io(&path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::io(
            &path,
            std::io::Error::new(std::io::ErrorKind::ResourceBusy, "another process uses this data directory"),
        )),
        Err(std::fs::TryLockError::Error(e)) => Err(Error::io(&path, e)),
    }
}

/// Reads the identity, if the directory has one.
pub fn read(dir: &Path) -> Result<Option<Identity>, Error> {
    let path = dir.join(FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return Err(Error::damaged(path, "it does not begin as an identity file"));
    };
    if rest.len() < 4 {
        return Err(Error::damaged(path, "cut short"));
    }
    let (format, sealed) = rest.split_at(4);
    let format = u32::from_le_bytes([format[0], format[1], format[2], format[3]]);
    if format != FORMAT {
        return Err(Error::UnknownFormat { path, found: format, known: FORMAT });
    }
    let parse = || -> std::io::Result<Identity> {
        let mut reader = frame::Reader::new(frame::open(MAGIC, sealed)?);
        let identity = Identity { cluster: reader.string()?, member: reader.u64()? };
        reader.done()?;
        Ok(identity)
    };
    match parse() {
        Ok(identity) => Ok(Some(identity)),
        Err(e) => Err(Error::damaged(path, e.to_string())),
    }
}

/// Writes the identity into a fresh directory, or checks that the one there is ours.
///
/// A directory that has data but no identity is refused: its vote could be anybody's.
pub fn claim(dir: &Path, want: &Identity) -> Result<(), Error> {
    match read(dir)? {
        Some(found) if found == *want => Ok(()),
        Some(found) => Err(Error::OtherMember {
            path: dir.join(FILE),
            found_cluster: found.cluster,
            found_member: found.member,
            want_cluster: want.cluster.clone(),
            want_member: want.member,
        }),
        None if formatted(dir) => Err(Error::damaged(dir.join(FILE), "missing, although the directory holds a log")),
        None => {
            let body = frame::Writer::new().string(&want.cluster).u64(want.member).done();
            let mut bytes = MAGIC.to_vec();
            bytes.extend_from_slice(&FORMAT.to_le_bytes());
            bytes.extend_from_slice(&frame::seal(MAGIC, &body));
            replace_file(&dir.join(FILE), &bytes)
        }
    }
}

/// Whether the databases were once created completely. From then on a missing one is damage:
/// creating it anew would forget the vote.
pub fn formatted(dir: &Path) -> bool {
    dir.join(FORMATTED).exists()
}

/// Remembers that the databases exist.
pub fn mark_formatted(dir: &Path) -> Result<(), Error> {
    replace_file(&dir.join(FORMATTED), b"1")
}
