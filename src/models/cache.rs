//! The node's own copy of model files, by content: `<dir>/sha256/<digest>`. A file
//! gets its final name only after its size and digest were checked and it is on
//! disk, so whatever has such a name was right once; it is hashed again whenever a
//! replica starts from it. It has a size limit and knows no jobs.

mod personal;

use super::aside::{Aside, Kept};
use super::fetch::{Fetched, bring, verify};
use super::room::{self, Pins};
use super::{Artifact, Asked, Checksum, Error, Manifest, Store, blocking};
use nf_core::id::TenantId;
use std::any::Any;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::Semaphore;

/// Fetches at a time. One, so that replicas that start together fetch each file once.
const FETCHES: usize = 1;

/// A copy of a file whose bytes are not those that the manifest lists.
pub struct Corrupt<'a> {
    pub manifest: &'a Manifest,
    pub artifact: &'a Artifact,
    /// What was found, and by it whose fault it is.
    pub error: &'a Error,
    /// Where it is now.
    pub kept: &'a Kept,
}

/// Who is told of such copies.
type Tell = Arc<dyn Fn(&Corrupt<'_>) + Send + Sync>;

/// Verified model files on this node.
#[derive(Clone)]
pub struct Cache {
    dir: Arc<Path>,
    /// Bytes.
    limit: u64,
    turn: Arc<Semaphore>,
    pins: Pins,
    aside: Aside,
    tell: Tell,
    /// See [`Cache::holding`].
    _held: Option<Arc<dyn Any + Send + Sync>>,
}

/// Where bad copies are kept, and which part of the cache's limit they may have beside it.
const ASIDE: &str = "quarantine";
const ASIDE_PART: u64 = 10;

/// What there is of a file, each under its digest: the file, as far as it has come, and how it came.
const PARTS: [&str; 3] = ["sha256", "tmp", "fetched"];

impl Cache {
    /// Opens the cache in `dir`, which keeps at most `limit` bytes. What broken downloads left stays, to go on from.
    ///
    /// # Errors
    /// Whatever making the directories meets.
    pub fn open(dir: &Path, limit: u64) -> io::Result<Self> {
        for part in PARTS {
            fs::create_dir_all(dir.join(part))?;
        }
        let (turn, pins) = (Arc::new(Semaphore::new(FETCHES)), Pins::default());
        let aside = Aside::new(&dir.join(ASIDE), limit / ASIDE_PART);
        Ok(Self { dir: dir.into(), limit, turn, pins, aside, tell: Arc::new(|_| {}), _held: None })
    }

    /// Says whom to tell of each copy that is not what its manifest says.
    #[must_use]
    pub fn telling(self, tell: impl Fn(&Corrupt<'_>) + Send + Sync + 'static) -> Self {
        Self { tell: Arc::new(tell), ..self }
    }

    /// The same cache, whose work holds on to something until it is over. Work that nobody waits for any more ends at
    /// its next look, and may make a file before that.
    #[must_use]
    pub fn holding(&self, held: impl Send + Sync + 'static) -> Self {
        Self { _held: Some(Arc::new(held)), ..self.clone() }
    }

    /// Keeps the version's files in the cache until the pin is dropped.
    #[must_use = "the files may be evicted once it is dropped"]
    pub fn pin(&self, manifest: &Manifest) -> room::Pin {
        self.pins.pin(manifest.files.iter().map(|file| file.sha256))
    }

    /// Brings the version's files here, each checked against the manifest. Files that are here are not read.
    /// Says how those came that were not. `personal`: for whom, where they are about people.
    ///
    /// # Errors
    /// [`Error::Mismatch`] names the file whose bytes are wrong in the store; nothing of it stays in the cache, and
    /// what came is kept aside, as far as there is room.
    /// [`Error::Refused`] when the store does not answer, or there is no room.
    pub async fn fetch(
        &self,
        store: &Store,
        manifest: &Manifest,
        personal: Option<&TenantId>,
    ) -> Result<Vec<Fetched>, Error> {
        let turn = self.turn.clone().acquire_owned().await.map_err(|_| Error::Cancelled)?;
        let (cache, store, manifest, personal) = (self.clone(), store.clone(), manifest.clone(), personal.cloned());
        blocking(move |asked| {
            // Held by the work, not by the one who waits: a fetch given up ends a chunk later.
            let _turn = turn;
            let _pin = cache.pin(&manifest);
            let missing: Vec<&Artifact> = manifest.files.iter().filter(|file| !cache.has(file)).collect();
            room::make(&cache.dir, cache.limit, &missing, &cache.pins)?;
            if let Some(tenant) = &personal {
                // Also when all is here: another tenant's purge must not take it for its own alone.
                cache.remember(tenant, &manifest)?;
            }
            // Once more, since two files of a version may have the same bytes.
            let missing = missing.into_iter().filter(|file| !cache.has(file));
            missing.map(|artifact| cache.fetch_one(&store, &manifest, artifact, asked)).collect()
        })
        .await
    }

    fn has(&self, artifact: &Artifact) -> bool {
        fs::symlink_metadata(self.path(&artifact.sha256)).is_ok_and(|m| m.is_file() && m.len() == artifact.size)
    }

    fn fetch_one(
        &self,
        store: &Store,
        manifest: &Manifest,
        artifact: &Artifact,
        asked: &Asked,
    ) -> Result<Fetched, Error> {
        let name = artifact.sha256.to_string();
        let partial = self.dir.join("tmp").join(&name);
        let mut kept = None;
        let spoilt = |came: &Path| kept = Some(self.aside.keep(came, artifact.sha256));
        let fetched = bring(store, manifest, artifact, [&partial, &self.path(&artifact.sha256)], asked, spoilt);
        if let (Err(error), Some(kept)) = (&fetched, kept) {
            (self.tell)(&Corrupt { manifest, artifact, error, kept: &kept? });
        }
        let fetched = fetched?;
        // Beside the file, for whoever asks later by which link it came.
        let record = self.dir.join("fetched").join(name);
        let text = serde_json::to_vec(&fetched).map_err(|e| Error::at(&record)(e.into()))?;
        fs::write(&record, text).map_err(Error::at(&record))?;
        Ok(fetched)
    }

    /// Lays the version's files out below `into` (hard links where possible, else
    /// copies; read-only), hashing each. Only listed files appear there.
    ///
    /// # Errors
    /// [`Error::Rotted`] names a file that changed in the cache; it is kept aside, as far as there is room.
    pub async fn lay_out(&self, manifest: &Manifest, into: &Path) -> Result<(), Error> {
        let (cache, manifest, into) = (self.clone(), manifest.clone(), into.to_path_buf());
        blocking(move |asked| {
            fs::create_dir_all(&into).map_err(Error::at(&into))?;
            manifest.files.iter().try_for_each(|artifact| cache.lay_out_one(&manifest, artifact, &into, asked))
        })
        .await
    }

    fn lay_out_one(&self, manifest: &Manifest, artifact: &Artifact, into: &Path, asked: &Asked) -> Result<(), Error> {
        asked.check()?;
        let (from, to) = (self.path(&artifact.sha256), artifact.path.under(into));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(Error::at(parent))?;
        }
        // Of several launches one takes the bad copy away, and the next fetch may have put a good one there since.
        let which = || fs::metadata(&from).ok().map(|meta| (meta.dev(), meta.ino()));
        let was = which();
        // When it was used last, for eviction.
        let _ = File::open(&from).and_then(|file| file.set_modified(SystemTime::now()));
        if fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).map_err(Error::at(&to))?;
        }
        fs::set_permissions(&to, Permissions::from_mode(0o444)).map_err(Error::at(&to))?;
        // It got its name when its bytes were right.
        let checked = verify(into, &to, artifact, asked).map_err(|error| match error {
            Error::Mismatch { file, text } => Error::Rotted { file, text },
            error => error,
        });
        if let Err(error @ (Error::Rotted { .. } | Error::Unfit { .. })) = &checked {
            // The next fetch brings it again.
            let _ = fs::remove_file(&to);
            if which() != was {
                return checked;
            }
            let kept = self.aside.keep(&from, artifact.sha256)?;
            (self.tell)(&Corrupt { manifest, artifact, error, kept: &kept });
        }
        checked
    }

    fn path(&self, digest: &Checksum) -> PathBuf {
        self.dir.join("sha256").join(digest.to_string())
    }
}

/// Makes the names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::at(dir))
}
