//! Where model versions come from. Today a directory:
//! `<root>/<model_id>/<version>/manifest.json` and the files beside it. Links are
//! refused, because a version must not reach outside its own directory. It does
//! not verify contents; the cache does, on the way in.

use super::counts::{self, Refused};
use super::{Error, FileName, MAX_MANIFEST_BYTES, Manifest, blocking};
use nf_core::id::{ModelId, TenantId, VersionId};
use nix::fcntl::OFlag;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The signature that counts for every tenant; no tenant's name begins so.
const ALL_TENANTS: &str = "_all.sig";
/// The longest signature file.
const MAX_SIGNATURE: usize = 4 << 20;
const SUPPORTED: &str = "supported: file:///absolute/directory";

/// A place that holds published model versions.
#[derive(Clone, Debug)]
pub struct Store {
    root: Arc<Path>,
}

impl Store {
    /// Opens the store that `url` names. A directory that does not exist yet is an empty store.
    ///
    /// # Errors
    /// [`Error::Url`] when the URL is not one of the supported kinds.
    pub fn open(url: &str) -> Result<Self, Error> {
        let shown = nf_core::reason::printable(&redacted(url), 120);
        let wrong = |rule: String| Error::Url { shown: shown.clone(), rule };
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(wrong(format!("not a URL; {SUPPORTED}")));
        };
        if scheme != "file" {
            return Err(wrong(format!("this version reads no {scheme}:// stores; {SUPPORTED}")));
        }
        let path = rest.strip_prefix("localhost").unwrap_or(rest);
        if !path.starts_with('/') {
            return Err(wrong(format!("the directory is not absolute; {SUPPORTED}")));
        }
        let root = PathBuf::from(path);
        if root.exists() && !root.is_dir() {
            return Err(wrong("not a directory".into()));
        }
        Ok(Self { root: root.into() })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The manifest of a version; None when the store does not have it.
    ///
    /// # Errors
    /// [`Error::Manifest`] when it breaks a rule, [`Error::Io`] when it cannot be read.
    pub async fn resolve(&self, model: &ModelId, version: &VersionId) -> Result<Option<Manifest>, Error> {
        let (store, model, version) = (self.clone(), model.clone(), version.clone());
        blocking(move |_| store.resolve_blocking(&model, &version)).await
    }

    /// [`Store::resolve`] for callers without a runtime.
    ///
    /// # Errors
    /// As [`Store::resolve`].
    pub fn resolve_blocking(&self, model: &ModelId, version: &VersionId) -> Result<Option<Manifest>, Error> {
        let what = format!("{model} {version}");
        let dir = self.dir(model, version);
        let file = match open_regular(&self.root, &dir.join("manifest.json")) {
            Ok(file) => file,
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotADirectory => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut bytes = Vec::new();
        let mut limited = file.take(MAX_MANIFEST_BYTES as u64 + 1);
        limited.read_to_end(&mut bytes).map_err(Error::io(format!("manifest of {what}")))?;
        let manifest = Manifest::parse(&what, &bytes)?;
        if manifest.model_id != *model || manifest.version != *version {
            let text = format!("says {} {}", manifest.model_id, manifest.version);
            return Err(Error::Manifest { what, field: "model_id, version".into(), text });
        }
        Ok(Some(manifest))
    }

    /// Opens one file of a version for reading.
    pub(super) fn read(&self, manifest: &Manifest, file: &FileName) -> Result<File, Error> {
        let path = file.under(&self.dir(&manifest.model_id, &manifest.version));
        open_regular(&self.root, &path).map_err(|e| match e {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                counts::refused(Refused::Missing);
                let text = "listed in the manifest, but the store lacks it".into();
                Error::Mismatch { file: file.to_string(), text }
            }
            e => e,
        })
    }

    /// The signature of a version for a tenant, or the one for all tenants; None when it has neither.
    /// Only the first that is there counts: a bad one is never passed over.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Mismatch`] when what is there cannot be read.
    pub fn signature_blocking(
        &self,
        model: &ModelId,
        version: &VersionId,
        tenant: &TenantId,
    ) -> Result<Option<Vec<u8>>, Error> {
        let dir = self.signatures(model, version);
        for name in [format!("{tenant}.sig"), ALL_TENANTS.to_owned()] {
            let file = match open_regular(&self.root, &dir.join(name)) {
                Ok(file) => file,
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            let mut bytes = Vec::new();
            // One more than may be: who judges it says that it is too long.
            let mut limited = file.take(MAX_SIGNATURE as u64 + 1);
            limited.read_to_end(&mut bytes).map_err(Error::io(format!("signature of {model} {version}")))?;
            return Ok(Some(bytes));
        }
        Ok(None)
    }

    /// The manifest's bytes as they are stored, which some signatures are over.
    ///
    /// # Errors
    /// As [`Store::resolve`], and [`Error::Mismatch`] when they are no longer this manifest's.
    pub fn manifest_bytes_blocking(&self, manifest: &Manifest) -> Result<Vec<u8>, Error> {
        let path = self.dir(&manifest.model_id, &manifest.version).join("manifest.json");
        let mut bytes = Vec::new();
        let file = open_regular(&self.root, &path)?;
        file.take(MAX_MANIFEST_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(Error::at(&path))?;
        match super::Checksum::of(&bytes) == manifest.digest() {
            true => Ok(bytes),
            false => Err(Error::Mismatch { file: "manifest.json".into(), text: "changed while it was read".into() }),
        }
    }

    /// Keeps a signature of a version, for one tenant or for all. One that is there is replaced.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sign_blocking(
        &self,
        model: &ModelId,
        version: &VersionId,
        tenant: Option<&TenantId>,
        signature: &[u8],
    ) -> Result<PathBuf, Error> {
        let dir = self.signatures(model, version);
        fs::create_dir_all(&dir).map_err(Error::at(&dir))?;
        let path = dir.join(tenant.map_or(ALL_TENANTS.to_owned(), |tenant| format!("{tenant}.sig")));
        let partial = dir.join(format!(".new-{}", uuid::Uuid::now_v7()));
        fs::write(&partial, signature).map_err(Error::at(&partial))?;
        fs::rename(&partial, &path).map_err(Error::at(&path))?;
        super::cache::sync_dir(&dir)?;
        Ok(path)
    }

    /// Beside the versions, which never change. No model's name begins with a dot.
    fn signatures(&self, model: &ModelId, version: &VersionId) -> PathBuf {
        self.root.join(".signatures").join(model.as_str()).join(version.as_str())
    }

    pub(super) fn dir(&self, model: &ModelId, version: &VersionId) -> PathBuf {
        self.root.join(model.as_str()).join(version.as_str())
    }
}

/// A URL without what may be a password in it.
fn redacted(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://<REDACTED>@{rest}"),
        _ => url.into(),
    }
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
            return Err(Error::Mismatch { file: below.display().to_string(), text });
        }
    }
    // NONBLOCK: should a pipe be put in the file's place meanwhile, opening it must not hang.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(Error::at(path))
}
