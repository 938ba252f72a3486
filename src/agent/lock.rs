//! A file that one process at a time holds. It goes with the process, however that ends.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

/// Takes it; None: somebody else has it.
///
/// # Errors
/// What the system says.
pub(super) fn take(path: &Path) -> io::Result<Option<File>> {
    let file = File::create(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
