//! Everything this member keeps on its own disk: identity, the replicated log with the vote,
//! the rows of the state, and checkpoints of them.
//!
//! It deliberately does not know Raft: it stores opaque, framed rows and is told which ones go
//! together. The meaning of a row belongs to `nf_core` and to `raft`.

pub mod checkpoint;
pub mod disk;
pub mod fatal;
pub mod floor;
pub mod frame;
pub mod identity;
pub mod log_db;
pub mod model;
pub mod state_db;
pub mod tables;

use std::io;
use std::path::{Path, PathBuf};

/// Why stored data cannot be used. Every case names the file, because the operator must act on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed; the operating system's reason is attached.
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file exists but is shorter than its own header says, or its checksum does not match.
    #[error(
        "{path}: damaged: {detail}. Restore this member from a peer: remove it, empty the directory, join under a new name"
    )]
    Damaged { path: PathBuf, detail: String },
    /// Written by a format this build does not know.
    #[error("{path}: unknown format {found}; this build reads format {known}. Start the version that wrote it")]
    UnknownFormat { path: PathBuf, found: u32, known: u32 },
    /// The directory belongs to somebody else.
    #[error(
        "{path}: this data directory belongs to member {found_member} of cluster \"{found_cluster}\", not to member {want_member} of \"{want_cluster}\""
    )]
    OtherMember { path: PathBuf, found_cluster: String, found_member: u64, want_cluster: String, want_member: u64 },
}

impl Error {
    /// What kind it is, in the word that programs go by; an operating system's error has none of ours.
    pub fn token(&self) -> Option<&'static str> {
        match self {
            Error::Io { .. } => None,
            Error::Damaged { .. } => Some("DataDamaged"),
            Error::UnknownFormat { .. } => Some("UnknownFormat"),
            Error::OtherMember { .. } => Some("OtherMember"),
        }
    }

    /// Wraps an operating system error with the file it happened on.
    pub fn io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// Wraps a RocksDB error. Corruption is told apart, because the cure differs.
    pub fn db(path: impl Into<PathBuf>, error: rocksdb::Error) -> Self {
        let path = path.into();
        match error.kind() {
            rocksdb::ErrorKind::Corruption => Self::Damaged { path, detail: error.into_string() },
            _ => Self::Io { path, source: io::Error::other(error.into_string()) },
        }
    }

    /// A damaged file with what is wrong in it.
    pub fn damaged(path: impl Into<PathBuf>, detail: impl Into<String>) -> Self {
        Self::Damaged { path: path.into(), detail: detail.into() }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Io { source, .. } => source.kind(),
            Error::Damaged { .. } | Error::UnknownFormat { .. } => io::ErrorKind::InvalidData,
            Error::OtherMember { .. } => io::ErrorKind::PermissionDenied,
        };
        io::Error::new(kind, error)
    }
}

/// Makes directory entries (names, renames) durable.
pub fn sync_dir(path: &Path) -> Result<(), Error> {
    std::fs::File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| Error::io(path, e))
}

/// Writes `bytes` to `path` so that after a crash either the old or the new content is there.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    use std::io::Write;
    let tmp = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        let mut file = std::fs::File::create(&tmp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&tmp, path)
    };
    write().map_err(|e| Error::io(path, e))?;
    match path.parent() {
        Some(dir) => sync_dir(dir),
        None => Ok(()),
    }
}
