//! Keys and certificates on disk: written for good, and read whole. It does not know what they hold.

use super::Error;
use std::io;
use std::path::Path;

fn file_error(path: &Path, source: io::Error) -> Error {
    Error::File { path: path.display().to_string(), source }
}

pub(in crate::security) fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    use std::io::Write;
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let write = || -> io::Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(mode);
        let mut file = options.open(path)?;
        // One that was there keeps its rights when it is opened, and a key may follow what everybody could read.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e| file_error(path, e))
}

/// In one step: whoever reads the file finds the old text or the new one.
pub(in crate::security) fn put_file(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    let beside = path.with_extension("new");
    // What is left of a process that was killed may have other rights.
    let _ = std::fs::remove_file(&beside);
    write_file(&beside, text, mode)?;
    move_file(&beside, path)
}

/// Gives a file another name, for good.
pub(in crate::security) fn move_file(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).map_err(|e| file_error(to, e))?;
    let dir = to.parent().unwrap_or(Path::new("."));
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| file_error(dir, e))
}

pub(in crate::security) fn read_file(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|e| file_error(path, e))
}
