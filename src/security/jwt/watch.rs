//! Keeps a verifier's keys those of a JWKS file. A file that cannot be read or used
//! leaves the old keys in place and is counted; it is said once, not at each look.
//! It does not know who writes the file.

use super::keys::MAX_JWKS;
use super::{Keys, Verifier};
use nf_core::reason::{Reason, Refusal};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often the file is looked at.
pub const PERIOD: Duration = Duration::from_secs(2);

/// Follows one file.
pub struct Watch {
    path: PathBuf,
    verifier: Arc<Verifier>,
    /// The bytes that were looked at last, good or bad.
    last: Vec<u8>,
    failed: Option<String>,
}

fn read(path: &Path) -> Result<Vec<u8>, Refusal> {
    let name = path.display().to_string();
    let wrong = |e: std::io::Error| Refusal::field(Reason::ConfigInvalid, &name, format!("cannot be read: {e}"));
    let mut bytes = Vec::new();
    File::open(path).map_err(wrong)?.take(MAX_JWKS as u64 + 1).read_to_end(&mut bytes).map_err(wrong)?;
    Ok(bytes)
}

impl Watch {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// `ConfigInvalid` naming the file: at start there are no old keys to keep.
    pub fn open(path: &Path, issuer: Option<String>, wants_id: bool) -> Result<Self, Refusal> {
        let bytes = read(path)?;
        let keys = Keys::parse(&path.display().to_string(), &bytes)?;
        let verifier = Verifier::new(keys, issuer);
        let verifier = Arc::new(if wants_id { verifier.wanting_ids() } else { verifier });
        Ok(Self { path: path.to_owned(), verifier, last: bytes, failed: None })
    }

    pub fn verifier(&self) -> Arc<Verifier> {
        self.verifier.clone()
    }

    /// Looks at the file; true when keys were replaced.
    ///
    /// # Errors
    /// Once for each new way in which the file cannot be used.
    pub fn look(&mut self) -> Result<bool, Refusal> {
        let bytes = match read(&self.path) {
            // The contents decide, not the time of change: a file may be replaced within one tick of its clock.
            Ok(bytes) if bytes == self.last => {
                return Ok(false);
            }
            Ok(bytes) => bytes,
            Err(refusal) => {
                // The same contents are news once they are there again.
                self.last.clear();
                return self.complain(refusal);
            }
        };
        let keys = Keys::parse(&self.path.display().to_string(), &bytes);
        self.last = bytes;
        match keys {
            Ok(keys) => {
                self.verifier.replace(keys);
                self.failed = None;
                Ok(true)
            }
            Err(refusal) => self.complain(refusal),
        }
    }

    fn complain(&mut self, refusal: Refusal) -> Result<bool, Refusal> {
        let text = refusal.to_string();
        if self.failed.as_ref() == Some(&text) {
            return Ok(false);
        }
        self.failed = Some(text);
        Err(refusal)
    }

    /// Looks for ever, every [`PERIOD`]; ends when it is dropped. `tell` hears once of each way in
    /// which the file is of no use, and None when it is of use again.
    pub async fn run(mut self, tell: impl Fn(Option<&str>) + Send) {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let looked = tokio::task::spawn_blocking(move || {
                let outcome = self.look();
                (self, outcome)
            });
            let Ok((watch, outcome)) = looked.await else { return };
            self = watch;
            match outcome {
                Ok(true) => {
                    tracing::info!(path = %self.path.display(), "token keys replaced");
                    tell(None);
                }
                Ok(false) => {}
                Err(refusal) => tell(Some(&refusal.to_string())),
            }
        }
    }
}
