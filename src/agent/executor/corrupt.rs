//! Copies of models' files that are not what their manifests say, as alarms that name the node. They stay on until the
//! process ends: what was seen once is to be looked into, also when the next copy is a good one. It decides nothing: what
//! becomes of the replica is said where its model is brought.

use super::ExecutorConfig;
use crate::agent::troubles::MODEL_COPY_CORRUPT;
use crate::models::{Corrupt, Error, Kept};

/// Tells of each that is kept, and once of each file of which there is nothing to look at.
pub(super) fn alarm(config: &ExecutorConfig) -> impl Fn(&Corrupt<'_>) + Send + Sync + 'static {
    let (troubles, node) = (config.troubles.clone(), config.node.clone());
    move |found| {
        let who = match found.kept {
            Kept::At(path) => path.display().to_string(),
            Kept::Not(_) => format!("{node} {}", found.artifact.sha256),
        };
        troubles.raise(MODEL_COPY_CORRUPT, &who, &text(node.as_str(), found));
    }
}

fn text(node: &str, found: &Corrupt<'_>) -> String {
    let Corrupt { manifest, artifact, error, kept } = found;
    let (model, version, sha256) = (&manifest.model_id, &manifest.version, &artifact.sha256);
    let what = match error {
        Error::Mismatch { .. } => "the store gave other bytes than the manifest says, and the version is in quarantine",
        _ => {
            "the copy changed on this node's disk, and is fetched anew; look at the disk, and cordon the node meanwhile"
        }
    };
    format!("node {node}: {error} (sha256 {sha256} of {model} {version}): {what}; what was found is {kept}")
}
