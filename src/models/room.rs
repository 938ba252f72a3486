//! Room in the cache: what has not been used for the longest goes first, never what runs or
//! is about to. What runs is seen by the file system itself: a replica's directory holds a
//! second name of each of its files. It knows no replicas.

use super::{Artifact, Checksum, Error};
use nf_core::reason::Reason;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Files that are being brought or laid out, with how many want them.
#[derive(Clone, Default)]
pub struct Pins(Arc<Mutex<BTreeMap<Checksum, usize>>>);

impl Pins {
    pub(super) fn pin(&self, files: impl Iterator<Item = Checksum>) -> Pin {
        let files: Vec<Checksum> = files.collect();
        let mut pins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for file in &files {
            *pins.entry(*file).or_default() += 1;
        }
        Pin { files, pins: self.clone() }
    }

    fn holds(&self, file: &Checksum) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(file)
    }
}

/// See [`Pins`].
pub struct Pin {
    files: Vec<Checksum>,
    pins: Pins,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.0.lock().unwrap_or_else(PoisonError::into_inner);
        for file in &self.files {
            if let Some(count) = pins.get_mut(file) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(file);
                }
            }
        }
    }
}

/// A file of the cache, whole or not.
struct Kept {
    used: SystemTime,
    path: PathBuf,
    bytes: u64,
    goes: bool,
}

/// Makes room for files that come, so that the cache keeps at most `limit` bytes.
///
/// # Errors
/// `NoCapacity` when what runs takes the room, or when they would not fit into an empty cache either: that is
/// this node's own limit, and another one may have more.
pub(super) fn make(dir: &Path, limit: u64, coming: &[&Artifact], pins: &Pins) -> Result<(), Error> {
    let needed = coming.iter().fold(0u64, |sum, file| sum.saturating_add(file.size));
    let refuse = |text: String| {
        let text = format!("{text}; this node's limit is {limit} bytes (NF_MODEL_CACHE)");
        Err(Error::Refused { reason: Reason::NoCapacity, text })
    };
    if needed > limit {
        return refuse(format!("the version wants {needed} bytes of the model cache"));
    }
    if coming.is_empty() {
        return Ok(());
    }
    let mut kept = list(dir, pins)?;
    let mut used: u64 = kept.iter().map(|file| file.bytes).sum();
    // What has come of them before counts once.
    for file in coming {
        let part = fs::metadata(dir.join("tmp").join(file.sha256.to_string())).map_or(0, |m| m.len());
        used = used.saturating_sub(part);
    }
    kept.retain(|file| file.goes);
    kept.sort_by(|a, b| a.used.cmp(&b.used).then_with(|| a.path.cmp(&b.path)));
    for file in kept {
        if used.saturating_add(needed) <= limit {
            return Ok(());
        }
        fs::remove_file(&file.path).map_err(Error::at(&file.path))?;
        if let Some(name) = file.path.file_name() {
            // The record of a file that is not here any more says nothing.
            let _ = fs::remove_file(dir.join("fetched").join(name));
        }
        tracing::info!(path = %file.path.display(), bytes = file.bytes, "evicted from the model cache");
        used = used.saturating_sub(file.bytes);
    }
    if used.saturating_add(needed) <= limit {
        return Ok(());
    }
    refuse(format!("{needed} bytes of models do not fit beside {used} of what runs here"))
}

fn list(dir: &Path, pins: &Pins) -> Result<Vec<Kept>, Error> {
    let mut kept = Vec::new();
    for part in ["sha256", "tmp"] {
        let at = dir.join(part);
        for entry in fs::read_dir(&at).map_err(Error::at(&at))? {
            let entry = entry.map_err(Error::at(&at))?;
            let meta = entry.metadata().map_err(Error::at(&entry.path()))?;
            let digest = entry.file_name().to_str().and_then(Checksum::parse);
            let pinned = digest.is_some_and(|digest| pins.holds(&digest));
            let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let goes = meta.is_file() && meta.nlink() == 1 && !pinned;
            kept.push(Kept { used, path: entry.path(), bytes: meta.len(), goes });
        }
    }
    Ok(kept)
}
