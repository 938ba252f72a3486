//! Model versions: what a manifest says, where versions are kept, and how their
//! bytes reach a node verified. Nothing here knows jobs, devices or Raft. Signatures are
//! kept here and judged elsewhere: a digest says *which* bytes, not *whose*.

mod aside;
mod cache;
mod checksum;
pub mod counts;
mod directory;
mod fetch;
mod format;
mod image;
mod manifest;
mod profile;
mod publish;
mod remote;
mod room;
mod serving;
mod store;
#[cfg(test)]
mod tests;
mod transport;

pub use aside::Kept;
pub use cache::{Cache, Corrupt};
pub use checksum::Checksum;
pub use counts::{Refused, refused};
pub use fetch::Fetched;
pub use image::Image;
pub use manifest::{Artifact, Container, FileName, Launch, MAX_FILES, MAX_MANIFEST_BYTES, Manifest, Process, Slots};
pub use profile::{profile, profiles};
pub use publish::{Draft, Pulled, publish, pull};
pub use remote::Patience;
pub use serving::{Drain, Histogram, Live, Metrics, Ready, most, sum};
pub use store::Store;

use nf_core::reason::Reason;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why a model version could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("MODEL_STORE_URL {shown}: {rule}")]
    Url { shown: String, rule: String },
    /// The manifest breaks a rule; `field` says where.
    #[error("manifest of {what}: {field}: {text}")]
    Manifest { what: String, field: String, text: String },
    /// Bytes are not those that the manifest lists.
    #[error("file {file}: {text}")]
    Mismatch { file: String, text: String },
    /// Bytes that were right when they came, or were laid down here, and are others now: this node's disk is at fault,
    /// and neither the store nor the version.
    #[error("file {file}, as this node's disk has it: {text}")]
    Rotted { file: String, text: String },
    /// Not had as the manifest says it, for another cause than bytes that were read and are others.
    #[error("file {file}: {text}")]
    Unfit { file: String, text: String },
    #[error("the store has no {model} {version}; see what it has with its directory listing, or publish it first")]
    Missing { model: String, version: String },
    #[error("{model} {version} is published already with other content; versions never change, choose a new one")]
    Exists { model: String, version: String },
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// The version's signature does not count here, or the store does not give it.
    #[error("{text}")]
    Refused { reason: Reason, text: String },
    #[error("given up, because nobody waits for it any more")]
    Cancelled,
}

impl Error {
    /// The token that users see.
    pub fn reason(&self) -> Reason {
        match self {
            Error::Url { .. } => Reason::ConfigInvalid,
            Error::Manifest { .. } | Error::Mismatch { .. } | Error::Unfit { .. } => Reason::ArtifactMismatch,
            Error::Rotted { .. } => Reason::ModelCopyCorrupt,
            Error::Missing { .. } => Reason::ModelNotFound,
            Error::Exists { .. } => Reason::Conflict,
            Error::Refused { reason, .. } => *reason,
            Error::Io { .. } | Error::Cancelled => Reason::RuntimeFailed,
        }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }

    /// What went wrong with reading, which may be an error of ours that a reader had to wrap.
    pub(crate) fn read(what: &str, error: io::Error) -> Error {
        error.downcast::<Error>().unwrap_or_else(Self::io(what))
    }

    pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
        Self::io(path.display().to_string())
    }
}

/// Says whether whoever asked for a piece of blocking work still waits for it.
pub(crate) struct Asked(Arc<AtomicBool>);

impl Asked {
    /// # Errors
    /// [`Error::Cancelled`] once nobody waits.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// Runs file work off the runtime's threads. When the returned future is dropped
/// (a replica is stopped during its download), the work ends at its next chunk.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&Asked) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    struct Dropped(Arc<AtomicBool>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let dropped = Dropped(Arc::default());
    let asked = Asked(dropped.0.clone());
    let done = tokio::task::spawn_blocking(move || work(&asked)).await;
    drop(dropped);
    match done {
        Ok(result) => result,
        // A panic in the work, or the runtime going down: in both cases there is no result.
        Err(e) => Err(Error::Io { what: "file work".into(), source: io::Error::other(e) }),
    }
}
