//! The node's own copy of model files, by content: `<dir>/sha256/<digest>`. A file
//! gets its final name only after its size and digest were checked and it is on
//! disk, so whatever has such a name was right once; it is hashed again whenever a
//! replica starts from it. It has no size limit yet and knows no jobs.

mod personal;

use super::checksum::copy;
use super::counts::{self, Refused};
use super::{Artifact, Asked, Checksum, Error, Manifest, Store, blocking, store::open_regular};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::Semaphore;

/// Fetches at a time. One, so that replicas that start together fetch each file once.
const FETCHES: usize = 1;

/// Verified model files on this node.
#[derive(Clone)]
pub struct Cache {
    dir: Arc<Path>,
    turn: Arc<Semaphore>,
}

impl Cache {
    /// Opens the cache in `dir`, and removes partial files of processes that are gone.
    ///
    /// # Errors
    /// Whatever making the directories meets.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir.join("sha256"))?;
        fs::create_dir_all(dir.join("tmp"))?;
        for entry in fs::read_dir(dir.join("tmp"))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let pid = name.split('-').next().and_then(|p| p.parse::<u32>().ok());
            let theirs = pid.is_some_and(|p| p != std::process::id() && Path::new(&format!("/proc/{p}")).exists());
            // Another cache of this very process (one per played node) may be fetching.
            if !theirs && !name.starts_with(run()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { dir: dir.into(), turn: Arc::new(Semaphore::new(FETCHES)) })
    }

    /// Brings the version's files here, each checked against the manifest. Files that are here are not read.
    ///
    /// # Errors
    /// [`Error::Mismatch`] names the file whose bytes are wrong; nothing of it stays behind.
    pub async fn fetch(&self, store: &Store, manifest: &Manifest) -> Result<(), Error> {
        let turn = self.turn.clone().acquire_owned().await.map_err(|_| Error::Cancelled)?;
        let (cache, store, manifest) = (self.clone(), store.clone(), manifest.clone());
        blocking(move |asked| {
            // Held by the work, not by the one who waits: a fetch given up ends a chunk later.
            let _turn = turn;
            manifest.files.iter().try_for_each(|artifact| cache.fetch_one(&store, &manifest, artifact, asked))
        })
        .await
    }

    fn fetch_one(&self, store: &Store, manifest: &Manifest, artifact: &Artifact, asked: &Asked) -> Result<(), Error> {
        let path = self.path(&artifact.sha256);
        if fs::symlink_metadata(&path).is_ok_and(|m| m.is_file() && m.len() == artifact.size) {
            return Ok(());
        }
        let mut from = store.read(manifest, &artifact.path)?;
        put(&mut from, artifact, &self.dir.join("tmp"), &path, asked)?;
        counts::fetched(artifact.size);
        Ok(())
    }

    /// Lays the version's files out below `into` (hard links where possible, else
    /// copies; read-only), hashing each. Only listed files appear there.
    ///
    /// # Errors
    /// [`Error::Mismatch`] names a file that changed in the cache; it is removed from the cache.
    pub async fn lay_out(&self, manifest: &Manifest, into: &Path) -> Result<(), Error> {
        let (cache, manifest, into) = (self.clone(), manifest.clone(), into.to_path_buf());
        blocking(move |asked| {
            fs::create_dir_all(&into).map_err(Error::at(&into))?;
            manifest.files.iter().try_for_each(|artifact| cache.lay_out_one(artifact, &into, asked))
        })
        .await
    }

    fn lay_out_one(&self, artifact: &Artifact, into: &Path, asked: &Asked) -> Result<(), Error> {
        asked.check()?;
        let (from, to) = (self.path(&artifact.sha256), artifact.path.under(into));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(Error::at(parent))?;
        }
        if fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).map_err(Error::at(&to))?;
        }
        fs::set_permissions(&to, Permissions::from_mode(0o444)).map_err(Error::at(&to))?;
        let checked = verify(into, &to, artifact, asked);
        if matches!(checked, Err(Error::Mismatch { .. })) {
            // The copy on disk rotted or was changed: the next fetch brings it again.
            let _ = fs::remove_file(&to);
            fs::remove_file(&from).map_err(Error::at(&from))?;
        }
        checked
    }

    fn path(&self, digest: &Checksum) -> PathBuf {
        self.dir.join("sha256").join(digest.to_string())
    }
}

fn judge(artifact: &Artifact, size: u64, digest: Checksum) -> Result<(), Error> {
    let wrong = |why: Refused, text| {
        counts::refused(why);
        Err(Error::Mismatch { file: artifact.path.to_string(), text })
    };
    if size > artifact.size {
        return wrong(Refused::Size, format!("longer than the {} bytes of the manifest", artifact.size));
    }
    if size < artifact.size {
        return wrong(Refused::Size, format!("{size} bytes, the manifest says {}", artifact.size));
    }
    if digest != artifact.sha256 {
        return wrong(Refused::Digest, format!("SHA-256 {digest}, the manifest says {}", artifact.sha256));
    }
    Ok(())
}

fn verify(root: &Path, path: &Path, artifact: &Artifact, asked: &Asked) -> Result<(), Error> {
    let mut file = open_regular(root, path)?;
    let (size, digest) = copy(&mut file, &mut io::sink(), artifact.size, asked, artifact.path.as_str())?;
    judge(artifact, size, digest)
}

/// Names this run of this process: a pid alone is soon another's, in containers at once.
fn run() -> &'static str {
    static RUN: OnceLock<String> = OnceLock::new();
    RUN.get_or_init(|| format!("{}-{}", std::process::id(), uuid::Uuid::now_v7().simple()))
}

/// Streams `from` into a temporary file, checks it, makes it durable, and only
/// then gives it its name.
pub(super) fn put(
    from: &mut impl Read,
    artifact: &Artifact,
    tmp: &Path,
    path: &Path,
    asked: &Asked,
) -> Result<(), Error> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let partial = tmp.join(format!("{}-{}", run(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let done = write(from, artifact, &partial, asked)
        .and_then(|()| fs::rename(&partial, path).map_err(Error::at(path)))
        .and_then(|()| path.parent().map_or(Ok(()), sync_dir));
    if done.is_err() {
        let _ = fs::remove_file(&partial);
    }
    done
}

fn write(from: &mut impl Read, artifact: &Artifact, partial: &Path, asked: &Asked) -> Result<(), Error> {
    let mut to =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(partial).map_err(Error::at(partial))?;
    let (size, digest) = copy(from, &mut to, artifact.size, asked, artifact.path.as_str())?;
    judge(artifact, size, digest)?;
    to.set_permissions(Permissions::from_mode(0o444)).map_err(Error::at(partial))?;
    to.sync_all().map_err(Error::at(partial))
}

/// Makes the names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::at(dir))
}
