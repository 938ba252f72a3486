//! A node's start counter, kept on disk, so that each start of a node is told from
//! the ones before it. It rises by at least one per start and is near the clock, so
//! that a data directory which was lost does not make it fall.

use nf_core::id::Incarnation;
use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

const FILE: &str = "incarnation";

/// Whether earlier starts are known in `dir`: if not, this is the first one, or the data directory was lost.
pub fn is_known(dir: &Path) -> bool {
    dir.join(FILE).exists()
}

/// Counts this start in `dir`, durably. Blocks; call it before the runtime is busy.
///
/// # Errors
/// When the file can't be read or written, or holds something else.
pub fn next(dir: &Path) -> io::Result<Incarnation> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    next_at(dir, now)
}

fn next_at(dir: &Path, now_ms: u64) -> io::Result<Incarnation> {
    fs::create_dir_all(dir)?;
    let path = dir.join(FILE);
    let previous = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse::<u64>().map_err(|_| damaged(&path))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
        Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(damaged(&path)),
        Err(e) => return Err(e),
    };
    let next = previous.checked_add(1).ok_or_else(|| damaged(&path))?.max(now_ms);
    crate::storage::replace_file(&path, format!("{next}\n").as_bytes())?;
    Ok(Incarnation(next))
}

fn damaged(path: &Path) -> io::Error {
    let text = format!("{} does not hold a start counter; remove it to begin from the clock", path.display());
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_with_each_start_whatever_the_clock_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node");
        assert!(!is_known(&path));
        assert_eq!(next_at(&path, 1_000).unwrap(), Incarnation(1_000));
        assert!(is_known(&path));
        assert_eq!(next_at(&path, 5).unwrap(), Incarnation(1_001), "the clock was set back");
        assert_eq!(next_at(&path, 2_000).unwrap(), Incarnation(2_000));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["", "x", "-1", "18446744073709551615", "99999999999999999999"] {
            fs::write(dir.path().join(FILE), bad).unwrap();
            let error = next_at(dir.path(), 1).unwrap_err().to_string();
            assert!(error.contains("incarnation does not hold"), "{bad}: {error}");
        }
        fs::write(dir.path().join(FILE), [0xff, 0xfe]).unwrap();
        assert!(next_at(dir.path(), 1).is_err());
    }
}
