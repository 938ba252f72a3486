//! Where model versions come from: `<model_id>/<version>/manifest.json` and the files
//! beside it, in a directory or behind HTTP. Signatures lie beside the versions, which
//! never change. It does not verify contents; whoever fetches does, on the way in.

use super::counts::{self, Refused};
use super::remote::{Patience, Reader, Remote};
use super::{Artifact, Checksum, Error, MAX_MANIFEST_BYTES, Manifest, blocking, directory};
use crate::outgoing::Options;
use crate::sealed::PrivateKey;
use nf_core::id::{ModelId, TenantId, VersionId};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// The signature that counts for every tenant; no tenant's name begins so.
const ALL_TENANTS: &str = "_all.sig";
/// The longest signature file.
const MAX_SIGNATURE: usize = 4 << 20;
const SUPPORTED: &str = "supported: file:///absolute/directory, http(s)://host/path, s3://bucket/path, gs://, az://";

/// A place that holds published model versions. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) place: Place,
    scheme: &'static str,
    /// Opens what is encrypted there.
    key: Option<Arc<PrivateKey>>,
}

#[derive(Clone, Debug)]
pub(super) enum Place {
    Directory(Arc<Path>),
    Remote(Arc<Remote>),
}

impl Store {
    /// Opens the store that `url` names, over links as `options` say. Nothing is asked yet.
    ///
    /// # Errors
    /// [`Error::Url`] when the URL is not one of the supported kinds.
    pub fn open(url: &str, options: &Options) -> Result<Self, Error> {
        Self::patient(url, options, Patience::default())
    }

    /// [`Store::open`] with other times.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn patient(url: &str, options: &Options, patience: Patience) -> Result<Self, Error> {
        let shown = nf_core::reason::printable(&redacted(url), 120);
        let wrong = |rule: String| Error::Url { shown: shown.clone(), rule: format!("{rule}; {SUPPORTED}") };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("not a URL".into()))?;
        let known = counts::SCHEMES.into_iter().find(|known| *known == scheme);
        let scheme = known.ok_or_else(|| wrong(format!("this version reads no {scheme}:// stores")))?;
        let place = match scheme {
            "file" => Place::Directory(directory::root(rest).map_err(wrong)?.into()),
            _ => Place::Remote(Arc::new(Remote::open(scheme, rest, options, patience).map_err(wrong)?)),
        };
        Ok(Self { place, scheme, key: None })
    }

    /// With the key that opens what is encrypted there.
    #[must_use]
    pub fn with_key(self, key: Option<PrivateKey>) -> Self {
        Self { key: key.map(Arc::new), ..self }
    }

    /// The key that opens a version's files.
    ///
    /// # Errors
    /// [`Error::Mismatch`] names the version's key when this process has none, or another.
    pub(super) fn key_for(&self, manifest: &Manifest, id: Checksum) -> Result<&PrivateKey, Error> {
        let have = match &self.key {
            Some(key) if key.public().id() == id.0 => return Ok(key),
            Some(key) => format!("NF_ARTEFACT_KEY is {}", Checksum(key.public().id())),
            None => "none is here: set NF_ARTEFACT_KEY".to_owned(),
        };
        counts::refused(Refused::Sealed);
        // A setting of this node's: it says nothing of the version's bytes.
        let text = format!("{}/{} is encrypted to the key {id}, and {have}", manifest.model_id, manifest.version);
        Err(Error::Refused { reason: nf_core::reason::Reason::ConfigInvalid, text })
    }

    /// "file", "s3" and so on.
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// The manifest of a version; None when the store does not have it.
    ///
    /// # Errors
    /// [`Error::Manifest`] when it breaks a rule, [`Error::Io`] or [`Error::Refused`] when it cannot be read.
    pub async fn resolve(&self, model: &ModelId, version: &VersionId) -> Result<Option<Manifest>, Error> {
        let (store, model, version) = (self.clone(), model.clone(), version.clone());
        blocking(move |_| store.resolve_blocking(&model, &version)).await
    }

    /// [`Store::resolve`], off the runtime's own threads.
    ///
    /// # Errors
    /// As [`Store::resolve`].
    pub fn resolve_blocking(&self, model: &ModelId, version: &VersionId) -> Result<Option<Manifest>, Error> {
        let what = format!("{model} {version}");
        let Some(bytes) = self.small(&manifest_key(model, version), MAX_MANIFEST_BYTES)? else { return Ok(None) };
        let manifest = Manifest::parse(&what, &bytes)?;
        if manifest.model_id != *model || manifest.version != *version {
            let text = format!("says {} {}", manifest.model_id, manifest.version);
            return Err(Error::Manifest { what, field: "model_id, version".into(), text });
        }
        Ok(Some(manifest))
    }

    /// Opens one file of a version for reading, from one of its bytes on; to be read to its end by `until`.
    pub(super) fn read(
        &self,
        manifest: &Manifest,
        artifact: &Artifact,
        from: u64,
        until: Instant,
    ) -> Result<Source, Error> {
        let key = file_key(&manifest.model_id, &manifest.version, artifact.path.as_str());
        let source = match &self.place {
            Place::Directory(root) => directory::read(root, &key, from)?.map(|file| Source::File { file, from }),
            Place::Remote(remote) => remote.read(&key, from, until)?.map(Source::Remote),
        };
        source.ok_or_else(|| {
            counts::refused(Refused::Missing);
            let text = "listed in the manifest, but the store lacks it".into();
            Error::Unfit { file: artifact.path.to_string(), text }
        })
    }

    pub(super) fn patience(&self) -> Patience {
        match &self.place {
            Place::Directory(_) => Patience::default(),
            Place::Remote(remote) => remote.patience,
        }
    }

    fn small(&self, key: &str, most: usize) -> Result<Option<Vec<u8>>, Error> {
        match &self.place {
            Place::Directory(root) => directory::small(root, key, most),
            Place::Remote(remote) => remote.small(key, most),
        }
    }

    /// The signature of a version for a tenant, or the one for all tenants; None when it has neither.
    /// Only the first that is there counts: a bad one is never passed over.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Refused`] or [`Error::Mismatch`] when what is there cannot be read.
    pub fn signature_blocking(
        &self,
        model: &ModelId,
        version: &VersionId,
        tenant: &TenantId,
    ) -> Result<Option<Vec<u8>>, Error> {
        // One byte more than may be comes along: who judges it says that it is too long.
        match self.small(&signature_key(model, version, Some(tenant)), MAX_SIGNATURE)? {
            Some(own) => Ok(Some(own)),
            None => self.small(&signature_key(model, version, None), MAX_SIGNATURE),
        }
    }

    /// The manifest's bytes as they are stored, which some signatures are over.
    ///
    /// # Errors
    /// As [`Store::resolve`], and [`Error::Unfit`] when they are no longer this manifest's.
    pub fn manifest_bytes_blocking(&self, manifest: &Manifest) -> Result<Vec<u8>, Error> {
        let bytes = self.small(&manifest_key(&manifest.model_id, &manifest.version), MAX_MANIFEST_BYTES)?;
        match bytes.filter(|bytes| super::Checksum::of(bytes) == manifest.digest()) {
            Some(bytes) => Ok(bytes),
            None => Err(Error::Unfit { file: "manifest.json".into(), text: "changed while it was read".into() }),
        }
    }

    /// Keeps a signature of a version, for one tenant or for all. One that is there is replaced. Says where it is.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Refused`], and [`Error::Url`] for a store that is only read.
    pub fn sign_blocking(
        &self,
        model: &ModelId,
        version: &VersionId,
        tenant: Option<&TenantId>,
        signature: &[u8],
    ) -> Result<String, Error> {
        let key = signature_key(model, version, tenant);
        match &self.place {
            Place::Directory(root) => {
                directory::replace(root, &key, signature).map(|()| root.join(key).display().to_string())
            }
            Place::Remote(remote) => remote.put(&key, signature.to_vec(), false).map(|_| remote.at(&key)),
        }
    }

    /// Whether the store answers: a directory that is there, or a server.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn answers(&self) -> Result<(), Error> {
        let place = self.place.clone();
        blocking(move |_| match &place {
            Place::Directory(root) if root.is_dir() => Ok(()),
            Place::Directory(root) => Err(Error::at(root)(io::Error::from(io::ErrorKind::NotFound))),
            Place::Remote(remote) => remote.answers(),
        })
        .await
    }
}

pub(super) fn file_key(model: &ModelId, version: &VersionId, file: &str) -> String {
    format!("{model}/{version}/{file}")
}

pub(super) fn manifest_key(model: &ModelId, version: &VersionId) -> String {
    file_key(model, version, "manifest.json")
}

/// No model's name begins with a dot.
fn signature_key(model: &ModelId, version: &VersionId, tenant: Option<&TenantId>) -> String {
    let name = tenant.map_or(ALL_TENANTS.to_owned(), |tenant| format!("{tenant}.sig"));
    format!(".signatures/{model}/{version}/{name}")
}

/// A file of a store, being read.
pub(super) enum Source {
    File { file: File, from: u64 },
    Remote(Reader),
}

impl Source {
    /// Which byte comes first: the one that was asked for, or the first of all.
    pub(super) fn from(&self) -> u64 {
        match self {
            Source::File { from, .. } => *from,
            Source::Remote(reader) => reader.from,
        }
    }

    /// What the server says of the file's size, before the bytes have come.
    pub(super) fn promised(&self) -> Option<u64> {
        match self {
            Source::File { .. } => None,
            Source::Remote(reader) => Some(reader.size),
        }
    }

    /// The key exchange of the connection; None: there is no connection.
    pub(super) fn group(&self) -> Option<&str> {
        match self {
            Source::File { .. } => None,
            Source::Remote(reader) => reader.group.as_deref(),
        }
    }
}

impl Read for Source {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Source::File { file, .. } => file.read(to),
            Source::Remote(reader) => reader.read(to),
        }
    }
}

/// A URL without what may be a password in it.
fn redacted(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://<REDACTED>@{rest}"),
        _ => url.into(),
    }
}
