//! One file on its way from a store to its place. It grows in a partial file, hashed as it
//! comes; a broken download goes on where it broke, also after a restart. It gets its name
//! once size and digest are right and it is on disk. It knows no cache.

use super::cache::sync_dir;
use super::checksum::{Hashing, copy};
use super::counts::{self, Refused};
use super::remote::Patience;
use super::store::Source;
use super::{Artifact, Asked, Checksum, Error, Manifest, Store, format};
use crate::sealed::{self, Opening, PrivateKey};
use nf_core::reason::Reason;
use nix::fcntl::OFlag;
use serde::Serialize;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How a file came here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fetched {
    pub scheme: &'static str,
    /// The key exchange of the connection, "none" for plain http; absent for files of this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kx_group: Option<String>,
    /// That came over the link, those that had to come twice included.
    pub bytes: u64,
    /// How often it went on from where it had broken.
    pub resumed: u32,
}

/// A file that is not whole yet.
struct Partial<'a> {
    path: PathBuf,
    file: File,
    hashing: Hashing,
    artifact: &'a Artifact,
}

impl<'a> Partial<'a> {
    /// Takes up what an earlier try left there.
    fn open(path: &Path, artifact: &'a Artifact, asked: &Asked) -> Result<Self, Error> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(path).map_err(Error::at(path))?;
        file.try_lock().map_err(|e| match e {
            TryLockError::Error(e) => Error::at(path)(e),
            TryLockError::WouldBlock => {
                let text = format!("{}: another process brings this file just now", path.display());
                Error::Refused { reason: Reason::StoreUnavailable, text }
            }
        })?;
        let mut partial = Self { path: path.to_owned(), file, hashing: Hashing::default(), artifact };
        partial.hashing.copy(&mut partial.file, &mut io::sink(), artifact.size, asked, artifact.path.as_str())?;
        if partial.hashing.size() > artifact.size {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn restart(&mut self) -> Result<(), Error> {
        let again = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        again.map_err(Error::at(&self.path))?;
        self.hashing = Hashing::default();
        Ok(())
    }

    /// Takes what comes, to the file's end.
    fn fill(&mut self, from: &mut Source, asked: &Asked) -> Result<(), Error> {
        if from.promised().is_some_and(|promised| promised != self.artifact.size) {
            // Said in advance: not a byte of it is wanted.
            let judged = judge(self.artifact, from.promised().unwrap_or_default(), self.artifact.sha256);
            return judged.map_err(unread);
        }
        if from.from() != self.hashing.size() {
            self.restart()?;
        }
        self.hashing.copy(from, &mut self.file, self.artifact.size, asked, self.artifact.path.as_str())
    }

    /// Judges what is there and gives it its name. Other bytes are left to whoever asked, and what has no allowed form
    /// is removed.
    fn finish(mut self, to: &Path) -> Result<(), Error> {
        let (size, digest) = self.hashing.finish();
        let checked = judge(self.artifact, size, digest);
        let checked = checked.and_then(|()| format::judge(&self.artifact.path, &mut self.file));
        match &checked {
            Ok(()) => {}
            Err(Error::Mismatch { .. }) => return checked,
            Err(_) => {
                let _ = fs::remove_file(&self.path);
                return checked;
            }
        }
        self.file.set_permissions(Permissions::from_mode(0o444)).map_err(Error::at(&self.path))?;
        self.file.sync_all().map_err(Error::at(&self.path))?;
        fs::rename(&self.path, to).map_err(Error::at(to))?;
        to.parent().map_or(Ok(()), sync_dir)
    }
}

/// The same of a file of which nothing was read: a word about an answer, and not about bytes.
fn unread(error: Error) -> Error {
    match error {
        Error::Mismatch { file, text } => Error::Unfit { file, text },
        error => error,
    }
}

/// What kept an encrypted file from opening.
fn sealed_error(artifact: &Artifact, error: io::Error) -> Error {
    let file = artifact.path.to_string();
    match error.downcast::<sealed::Error>() {
        Ok(error) => {
            counts::refused(Refused::Sealed);
            Error::Mismatch { file, text: error.to_string() }
        }
        Err(error) => Error::io(file)(error),
    }
}

impl Partial<'_> {
    /// Opens what came encrypted, into a partial file of its own.
    fn opened<'b>(
        mut self,
        key: &PrivateKey,
        context: &str,
        plain: &'b Artifact,
        path: &Path,
        asked: &Asked,
    ) -> Result<Partial<'b>, Error> {
        let (size, came) = std::mem::take(&mut self.hashing).finish();
        judge(self.artifact, size, self.artifact.sha256)?;
        self.file.seek(SeekFrom::Start(0)).map_err(Error::at(&self.path))?;
        let mut partial = Partial::open(path, plain, asked)?;
        partial.restart()?;
        let opened = Opening::new(key, context, &mut self.file).map_err(|e| sealed_error(plain, e));
        let opened = opened.and_then(|mut from| {
            partial.hashing.copy(&mut from, &mut partial.file, plain.size, asked, plain.path.as_str())
        });
        opened.map(|()| partial).map_err(|error| {
            // Nothing of what does not open as a whole is kept.
            let _ = fs::remove_file(path);
            let error = match error {
                Error::Io { source, .. } => sealed_error(plain, source),
                error => error,
            };
            self.or_rotted(came, error, asked)
        })
    }

    /// What was written as it came and does not open may have changed in between: then the disk is at fault.
    fn or_rotted(&mut self, came: Checksum, error: Error, asked: &Asked) -> Error {
        let Error::Mismatch { file, .. } = &error else { return error };
        let file = file.clone();
        let again = self.file.seek(SeekFrom::Start(0)).map_err(Error::at(&self.path));
        match again.and_then(|_| copy(&mut self.file, &mut io::sink(), self.artifact.size, asked, &file)) {
            Ok((_, now)) if now == came => error,
            Ok(_) => Error::Rotted { file, text: "it came encrypted, and is not what was written any more".into() },
            Err(error) => error,
        }
    }
}

/// Whether the next try may fare better.
fn transient(error: &Error) -> bool {
    error.reason() == Reason::StoreUnavailable
}

/// Brings one file of a version to `to`, by way of the partial file at `partial`; one that is encrypted comes into
/// a partial file beside it first, and is opened there. `spoilt` takes away what came and is something else.
///
/// # Errors
/// [`Error::Mismatch`] when the store's bytes are wrong, [`Error::Rotted`] when they changed here. [`Error::Refused`]
/// when the store does not give it; what has come stays, for the next time.
pub(super) fn bring(
    store: &Store,
    manifest: &Manifest,
    artifact: &Artifact,
    [partial, to]: [&Path; 2],
    asked: &Asked,
    spoilt: impl FnOnce(&Path),
) -> Result<Fetched, Error> {
    let bringing = Bringing { store, manifest, artifact, partial, to, asked };
    let (came, done) = match manifest.encrypted_to {
        None => (partial.to_owned(), anew(partial, || bringing.plain())),
        Some(id) => {
            let sealed = partial.with_file_name(sealed_name(artifact.sha256));
            let key = store.key_for(manifest, id)?;
            // The same file published twice is encrypted twice: what an earlier try left may be of the other one.
            let done = anew(&sealed, || (false, bringing.sealed(key, &sealed)));
            (sealed, done)
        }
    };
    if matches!(done, Err(Error::Mismatch { .. } | Error::Rotted { .. })) {
        spoilt(&came);
    }
    done
}

/// Tries once more from the beginning where what came is wrong and yet says nothing of the store: it rotted here, or it
/// went on from something older, which may have rotted, or be of another copy. `once` says whether it went on within
/// itself; what is at `path` before it is gone on from, too.
fn anew(path: &Path, once: impl Fn() -> (bool, Result<Fetched, Error>)) -> Result<Fetched, Error> {
    let left = path.exists();
    let (went_on, done) = once();
    let unsaid = match &done {
        Err(Error::Rotted { .. }) => true,
        Err(Error::Mismatch { .. }) => left || went_on,
        _ => false,
    };
    if !unsaid {
        return done;
    }
    let _ = fs::remove_file(path);
    once().1
}

/// The partial file of one that comes encrypted; not the plain one's, which another version may be bringing.
pub(super) fn sealed_name(digest: Checksum) -> String {
    format!(".sealed-{digest}")
}

/// One file of a version on its way to `to`, by way of `partial`.
struct Bringing<'a> {
    store: &'a Store,
    manifest: &'a Manifest,
    artifact: &'a Artifact,
    partial: &'a Path,
    to: &'a Path,
    asked: &'a Asked,
}

impl Bringing<'_> {
    /// Whether it went on from another answer of the store, and how that ended.
    fn plain(&self) -> (bool, Result<Fetched, Error>) {
        match stored(self.store, self.manifest, self.artifact, self.partial, self.asked) {
            Ok((fetched, brought)) => (fetched.resumed > 0, brought.finish(self.to).map(|()| fetched)),
            Err(error) => (false, Err(error)),
        }
    }

    /// One that comes encrypted, into the file at `sealed`.
    fn sealed(&self, key: &PrivateKey, sealed: &Path) -> Result<Fetched, Error> {
        let Self { artifact, partial, asked, .. } = *self;
        let whole = Artifact { size: sealed::sealed_size(artifact.size), ..artifact.clone() };
        let (fetched, brought) = stored(self.store, self.manifest, &whole, sealed, asked)?;
        let opened = brought.opened(key, &self.manifest.context(&artifact.path), artifact, partial, asked);
        let done = opened.and_then(|partial| partial.finish(self.to));
        match &done {
            // It has served, or is of no use.
            Ok(()) | Err(Error::Unfit { .. }) => _ = fs::remove_file(sealed),
            // What came is judged as it came.
            Err(Error::Mismatch { .. } | Error::Rotted { .. }) => _ = fs::remove_file(partial),
            Err(_) => {}
        }
        done.map(|()| fetched)
    }
}

/// Brings one file as it stands in the store, and does not judge it yet.
fn stored<'a>(
    store: &Store,
    manifest: &Manifest,
    artifact: &'a Artifact,
    partial: &Path,
    asked: &Asked,
) -> Result<(Fetched, Partial<'a>), Error> {
    let patience = store.patience();
    let until = patience.until(artifact.size);
    let mut fetched = Fetched { scheme: store.scheme(), kx_group: None, bytes: 0, resumed: 0 };
    let mut partial = Partial::open(partial, artifact, asked)?;
    let mut fruitless = 0;
    while partial.hashing.size() < artifact.size || artifact.size == 0 {
        let before = partial.hashing.size();
        let tried = one_try(store, manifest, &mut partial, until, asked, &mut fetched);
        let came = partial.hashing.size().saturating_sub(before);
        (fetched.bytes, fruitless) = (fetched.bytes + came, if came > 0 { 0 } else { fruitless + 1 });
        counts::fetched(fetched.scheme, came);
        match tried {
            Ok(()) => break,
            Err(e) if transient(&e) && fruitless < patience.tries && Instant::now() < until => {
                pause(patience, fruitless, asked)?;
            }
            Err(e @ Error::Unfit { .. }) => {
                let _ = fs::remove_file(&partial.path);
                return Err(e);
            }
            Err(e) => return Err(e),
        }
    }
    Ok((fetched, partial))
}

fn one_try(
    store: &Store,
    manifest: &Manifest,
    partial: &mut Partial<'_>,
    until: Instant,
    asked: &Asked,
    fetched: &mut Fetched,
) -> Result<(), Error> {
    let from = partial.hashing.size();
    let mut source = store.read(manifest, partial.artifact, from, until)?;
    fetched.kx_group = source.group().map(str::to_owned);
    fetched.resumed += u32::from(from > 0 && source.from() == from);
    partial.fill(&mut source, asked)
}

#[allow(clippy::disallowed_methods, reason = "fetches run on threads of the blocking pool")]
fn pause(patience: Patience, fruitless: u32, asked: &Asked) -> Result<(), Error> {
    let until = Instant::now() + patience.pause * 2u32.pow(fruitless.min(6));
    while Instant::now() < until {
        asked.check()?;
        // Short, so that a replica that is stopped meanwhile is not waited for.
        std::thread::sleep(Duration::from_millis(20).min(patience.pause));
    }
    Ok(())
}

pub(super) fn judge(artifact: &Artifact, size: u64, digest: Checksum) -> Result<(), Error> {
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

/// Reads a file that is here already, and judges it.
pub(super) fn verify(root: &Path, path: &Path, artifact: &Artifact, asked: &Asked) -> Result<(), Error> {
    let mut file = super::directory::open_regular(root, path)?;
    let (size, digest) = copy(&mut file, &mut io::sink(), artifact.size, asked, artifact.path.as_str())?;
    judge(artifact, size, digest)?;
    format::judge(&artifact.path, &mut file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::FileName;

    #[test]
    fn what_changed_between_its_writing_and_its_opening_is_the_disks_matter() {
        let (tmp, key) = (tempfile::tempdir().unwrap(), PrivateKey::generate().unwrap());
        let plain = Artifact { path: FileName::new("w.onnx").unwrap(), size: 5, sha256: Checksum::of(b"plain") };
        let whole = Artifact { size: sealed::sealed_size(plain.size), ..plain.clone() };
        let asked = Asked(Default::default());
        let [sealed, partial] = ["sealed", "partial"].map(|name| tmp.path().join(name));
        let open = |then: u8| {
            fs::write(&sealed, vec![7; whole.size as usize]).unwrap();
            let came = Partial::open(&sealed, &whole, &asked).unwrap();
            fs::write(&sealed, vec![then; whole.size as usize]).unwrap();
            came.opened(&key, "c", &plain, &partial, &asked).err().unwrap()
        };
        assert!(matches!(open(7), Error::Mismatch { .. }), "as it came, it opens to nobody");
        assert!(matches!(open(8), Error::Rotted { .. }));
        assert!(!partial.exists());
    }
}
