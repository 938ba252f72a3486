//! Copies that are not what their manifests say, set aside for whoever looks into them: so many files and bytes, and
//! no more. What came first stays, since it is what somebody is looking for; when there is no room, the next one is
//! removed, and that is said. Nothing reads them again. It does not know manifests.

use super::cache::sync_dir;
use super::{Checksum, Error};
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The most files.
pub(super) const MOST: usize = 16;

/// What became of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    At(PathBuf),
    /// Why it was removed instead.
    Not(String),
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kept::At(path) => write!(f, "kept at {}", path.display()),
            Kept::Not(why) => write!(f, "not kept: {why}"),
        }
    }
}

/// The directory for them. Cloning shares it.
#[derive(Clone)]
pub(super) struct Aside {
    dir: Arc<Path>,
    /// Bytes.
    limit: u64,
    /// One looks for room at a time.
    turn: Arc<Mutex<()>>,
}

impl Aside {
    /// In `dir`, which is made once there is something to keep; at most `limit` bytes.
    pub(super) fn new(dir: &Path, limit: u64) -> Self {
        Self { dir: dir.into(), limit, turn: Arc::default() }
    }

    /// Takes the file away from where it is, which should have had that digest.
    ///
    /// # Errors
    /// When it is still there.
    pub(super) fn keep(&self, from: &Path, digest: Checksum) -> Result<Kept, Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = match self.room(from) {
            Ok(()) => self.take(from, digest),
            Err(why) => Err(why),
        };
        match kept {
            Ok(to) => Ok(Kept::At(to)),
            Err(why) => match fs::remove_file(from) {
                Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::at(from)(e)),
                _ => Ok(Kept::Not(why)),
            },
        }
    }

    /// Whether there is room for the file.
    fn room(&self, from: &Path) -> Result<(), String> {
        let meta = fs::symlink_metadata(from).map_err(|e| e.to_string())?;
        if !meta.is_file() {
            return Err("it is no regular file".to_owned());
        }
        let sizes = self.files()?.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>();
        let (files, bytes) = (sizes.len(), sizes.iter().fold(0, |sum: u64, size| sum.saturating_add(*size)));
        if files < MOST && bytes.saturating_add(meta.len()) <= self.limit {
            return Ok(());
        }
        Err(format!(
            "{} holds {files} files of {bytes} bytes, and takes {MOST} of {} together; remove there what was looked at",
            self.dir.display(),
            self.limit
        ))
    }

    fn take(&self, from: &Path, digest: Checksum) -> Result<PathBuf, String> {
        let told = |e: std::io::Error| format!("{}: {e}", self.dir.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(told)?;
        // In the order in which they came.
        let to = self.dir.join(format!("{digest}.{}", uuid::Uuid::now_v7()));
        fs::rename(from, &to).map_err(told)?;
        sync_dir(&self.dir).map_err(|e| e.to_string())?;
        Ok(to)
    }

    /// Removes what should have had that digest.
    ///
    /// # Errors
    /// With the file.
    pub(super) fn purge(&self, digest: Checksum) -> Result<(), Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = format!("{digest}.");
        let bad = |text| Error::io(self.dir.display().to_string())(std::io::Error::other(text));
        let files: Vec<(PathBuf, u64)> = self.files().map_err(bad)?;
        let named = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&ours));
        files.iter().filter(|(path, _)| named(path)).try_for_each(|(path, _)| {
            fs::remove_file(path).map_err(Error::at(path))?;
            sync_dir(&self.dir)
        })
    }

    fn files(&self) -> Result<Vec<(PathBuf, u64)>, String> {
        let told = |e: std::io::Error| format!("{}: {e}", self.dir.display());
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(told)?,
        };
        let file = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.map_err(told)?;
            Ok((entry.path(), entry.metadata().map_err(told)?.len()))
        };
        entries.map(file).collect()
    }
}
