//! The programs that replicas run as: `simulated` lives in the agent and answers
//! HTTP; `process` is a real program; `docker` is one in a container. All walk the same
//! way to their bytes, which is here: resolve, fetch, verify, lay out.

mod answers;
pub(super) mod cgroup;
pub(super) mod docker;
mod drain;
mod ending;
mod exit;
mod life;
pub(super) mod marks;
pub(super) mod mps;
pub(super) mod prefetch;
pub(super) mod process;
pub(super) mod processes;
pub(super) mod session;
pub(super) mod simulated;
pub(super) mod slices;
pub(super) mod users;
pub(super) mod vacancy;

pub(super) use ending::{is_gone, put_down};

use super::owned;
use super::post::Post;
use super::record::End;
use crate::models::{Error, Fetched, Manifest};
use nf_core::consent::is_personal;
use nf_core::job::{JobSpec, Stage};
use nf_core::reason::Reason;
use std::path::PathBuf;

/// How often bytes are brought anew when the cached ones turn out to be wrong.
const REFETCHES: usize = 1;

/// Below a replica's own directory: the model's files.
fn model_dir(post: &Post) -> PathBuf {
    post.dir().join("model")
}

/// Brings the replica's model into its directory, every byte verified. None when
/// the job names no manifest, which only simulation allows.
async fn prepare(post: &Post, spec: &JobSpec) -> Result<Option<Manifest>, End> {
    let Some(admitted) = spec.manifest else { return Ok(None) };
    post.stage(Stage::Downloading);
    match bring(post, spec, admitted).await {
        Ok(manifest) => Ok(Some(manifest)),
        Err(e) => {
            let why = ended(&e);
            post.note(&format!("refused: {why}: {e}")).await;
            tracing::warn!(request = %post.launch.request, reason = %why, error = %e, "a replica's model is refused");
            Err(End::failed(why))
        }
    }
}

/// Why the replica ends. `ArtifactMismatch` puts its version into quarantine, so nothing ends with it but bytes that
/// came from the store and are others than the manifest says. Those that went bad on this node say nothing about the
/// version: the replica is tried again, and a person is told of the node.
fn ended(error: &Error) -> Reason {
    match error {
        Error::Mismatch { .. } => Reason::ArtifactMismatch,
        Error::Rotted { .. } => Reason::ModelCopyCorrupt,
        // What was signed, and what the manifest lists, are two things.
        Error::Refused { reason: Reason::ArtifactMismatch, .. } => Reason::SignatureBindingMismatch,
        // The store has the version that was admitted no more, or not whole, or not in a form that starts.
        Error::Manifest { .. } | Error::Unfit { .. } => Reason::ModelNotFound,
        error => error.reason(),
    }
}

async fn bring(post: &Post, spec: &JobSpec, admitted: [u8; 32]) -> Result<Manifest, Error> {
    let missing = || Error::Missing { model: spec.model.to_string(), version: spec.version.to_string() };
    let Some(store) = &post.shared.config.store else { return Err(missing()) };
    // Its work goes on for a moment when the replica is stopped.
    let cache = post.shared.cache.holding(post.hands.lend().await);
    let manifest = store.resolve(&spec.model, &spec.version).await?.ok_or_else(missing)?;
    if manifest.sha256() != admitted {
        let text = format!(
            "the store's manifest is {} now, the job was admitted with {}",
            manifest.digest(),
            crate::models::Checksum(admitted)
        );
        return Err(Error::Unfit { file: "manifest.json".into(), text });
    }
    if let Some(judge) = post.shared.config.judge.clone() {
        // Once more here: what the admitting member believed is not taken on trust.
        let (signed, tenant) = (manifest.clone(), spec.tenant.clone());
        let judged = tokio::task::spawn_blocking(move || judge(&signed, &tenant)).await;
        let judged = judged.map_err(|e| Error::Io { what: "verifying".into(), source: std::io::Error::other(e) })?;
        judged.map_err(|refusal| Error::Refused { reason: refusal.reason, text: refusal.detail })?;
    }
    let personal = spec.data_classes.iter().any(is_personal).then_some(&spec.tenant);
    let into = model_dir(post);
    let _pin = cache.pin(&manifest);
    let mut tries = 0;
    loop {
        let fetched = cache.fetch(store, &manifest, personal).await?;
        if let Some(text) = told(&fetched) {
            post.note(&text).await;
        }
        post.stage(Stage::Verifying);
        match cache.lay_out(&manifest, &into).await {
            Err(e @ (Error::Rotted { .. } | Error::Unfit { .. })) if tries < REFETCHES => {
                post.note(&format!("the cached copy is wrong and is fetched again: {e}")).await;
                tries += 1;
                // A half laid out directory would be in the way of the second try.
                let (into, hand) = (into.clone(), post.hands.lend().await);
                let _ = tokio::task::spawn_blocking(move || (owned::remove(&into), hand).0).await;
                post.stage(Stage::Downloading);
            }
            Err(e) => return Err(e),
            Ok(()) => break,
        }
    }
    post.note(&format!("model {} {} verified, manifest {}", spec.model, spec.version, manifest.digest())).await;
    Ok(manifest)
}

/// What the replica's log says of a fetch; None when all was here.
fn told(fetched: &[Fetched]) -> Option<String> {
    let first = fetched.first()?;
    let bytes: u64 = fetched.iter().map(|file| file.bytes).sum();
    let resumed: u32 = fetched.iter().map(|file| file.resumed).sum();
    let group = first.kx_group.as_ref().map_or(String::new(), |group| format!(", key exchange {group}"));
    let again = if resumed > 0 { format!(", went on {resumed} times where it had broken") } else { String::new() };
    Some(format!("fetched {} files, {bytes} bytes, from a {} store{group}{again}", fetched.len(), first.scheme))
}

/// Whether the replica's port can be had. A program that listens there already
/// would answer the readiness probe in the replica's name.
async fn port_is_taken(host: &str, port: u16) -> bool {
    match tokio::net::TcpListener::bind((host, port)).await {
        Err(e) => e.kind() == std::io::ErrorKind::AddrInUse,
        Ok(_) => false,
    }
}

fn port_taken() -> End {
    End::failed(Reason::PortTaken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_bytes_in_the_store_put_a_version_into_quarantine() {
        let (file, text) = ("f".to_owned(), "t".to_owned());
        let refused = |reason| Error::Refused { reason, text: text.clone() };
        for (error, why) in [
            (Error::Mismatch { file: file.clone(), text: text.clone() }, Reason::ArtifactMismatch),
            (Error::Rotted { file: file.clone(), text: text.clone() }, Reason::ModelCopyCorrupt),
            (Error::Unfit { file: file.clone(), text: text.clone() }, Reason::ModelNotFound),
            (Error::Manifest { what: file.clone(), field: file, text: text.clone() }, Reason::ModelNotFound),
            (refused(Reason::ArtifactMismatch), Reason::SignatureBindingMismatch),
            (refused(Reason::StoreUnavailable), Reason::StoreUnavailable),
        ] {
            assert_eq!(ended(&error), why, "{error:?}");
        }
    }
}
