//! How far the log reaches for certain: the file `log.floor`, beside the log and not in it.
//!
//! A write-ahead log that ends early is the normal trace of a crash, whoever cut it short and
//! wherever. What was durable *and* applied by the last flush can't be missing after one, so a
//! log that ends before that is damaged. It knows one number and no log.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Error, frame, replace_file};

const FILE: &str = "log.floor";

/// See the module.
#[derive(Clone, Debug)]
pub struct Floor {
    path: PathBuf,
    /// Two that raise it would write one another's temporary file.
    turn: Arc<Mutex<()>>,
}

impl Floor {
    pub fn of(data_dir: &Path) -> Self {
        Self { path: data_dir.join(FILE), turn: Arc::default() }
    }

    /// The last log index that is there for certain; none before the first flush.
    ///
    /// # Errors
    /// When the file can't be read, or is damaged itself.
    pub fn read(&self) -> Result<Option<u64>, Error> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&self.path, e)),
        };
        let parse = || -> io::Result<u64> {
            let mut reader = frame::Reader::new(frame::open(FILE.as_bytes(), &bytes)?);
            let index = reader.u64()?;
            reader.done()?;
            Ok(index)
        };
        parse().map(Some).map_err(|e| Error::damaged(&self.path, e.to_string()))
    }

    /// From now on the log reaches at least to `index`, which must be durable in it and applied. Blocks.
    pub fn raise(&self, index: u64) -> Result<(), Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let body = frame::Writer::new().u64(index).done();
        replace_file(&self.path, &frame::seal(FILE.as_bytes(), &body))
    }

    /// Refuses a log in `dir` that ends before the floor.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the log.
    pub fn check(&self, dir: &Path, last: Option<u64>) -> Result<(), Error> {
        match self.read()? {
            Some(floor) if last.is_none_or(|last| last < floor) => {
                let end = last.map_or("is empty".to_owned(), |last| format!("ends with entry {last}"));
                Err(Error::damaged(dir, format!("the log {end}, and entry {floor} was durable in it")))
            }
            _ => Ok(()),
        }
    }
}
