//! Replicas' logs: files that the programs write into themselves, so that they
//! outlive the agent. Kept small by moving the end of a full file to `.1` and
//! cutting the file; read from their end and followed. It does not know replicas.

use bytes::Bytes;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// A log file that is longer is rotated.
pub(super) const ROTATE_AT: u64 = 8 << 20;
/// The most that one look at the past returns.
const MAX_TAIL: u64 = 1 << 20;
const CHUNK: u64 = 64 << 10;
/// How often a followed file is looked at.
const POLL: Duration = Duration::from_millis(200);
/// Chunks that may wait for a slow reader.
const AHEAD: usize = 16;

/// Opens a log for a program to write into. In append mode, so that several
/// writers don't overwrite each other and cutting the file is possible.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

pub(super) fn append(path: &Path, line: &str) -> io::Result<()> {
    open(path)?.write_all(line.as_bytes())
}

fn rotated(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// Moves the end of a log that has grown too long to its `.1` and cuts it. What
/// is written between the copy and the cut is lost; a rename instead would leave
/// the program writing into the old file for ever.
pub(super) fn rotate(path: &Path) -> io::Result<()> {
    let size = match fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if size <= ROTATE_AT {
        return Ok(());
    }
    let mut from = File::open(path)?;
    from.seek(SeekFrom::Start(size - ROTATE_AT))?;
    let mut to = File::create(rotated(path))?;
    to.set_permissions(Permissions::from_mode(0o600))?;
    io::copy(&mut from.take(ROTATE_AT), &mut to)?;
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

/// Removes the oldest logs when there are more than `keep`, never one of `live`.
pub(super) fn prune(dir: &Path, keep: usize, live: &[PathBuf]) -> io::Result<()> {
    let mut logs: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|e| e == "log") {
            logs.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    if logs.len() <= keep {
        return Ok(());
    }
    logs.sort();
    let surplus = logs.len() - keep;
    for (_, path) in logs.iter().filter(|(_, p)| !live.contains(p)).take(surplus) {
        fs::remove_file(path)?;
        if let Err(e) = fs::remove_file(rotated(path))
            && e.kind() != io::ErrorKind::NotFound
        {
            return Err(e);
        }
    }
    Ok(())
}

/// The last `lines` lines of the log and its predecessor, and where the log ended then.
fn tail(path: &Path, lines: usize) -> io::Result<(Vec<u8>, u64)> {
    let mut file = File::open(path)?;
    let end = file.seek(SeekFrom::End(0))?;
    let mut bytes = last_bytes(&mut file, end, MAX_TAIL)?;
    let room = MAX_TAIL - bytes.len() as u64;
    if room > 0
        && let Ok(mut older) = File::open(rotated(path))
    {
        let older_end = older.seek(SeekFrom::End(0))?;
        let mut before = last_bytes(&mut older, older_end, room)?;
        before.append(&mut bytes);
        bytes = before;
    }
    let from = match lines {
        0 => bytes.len(),
        lines => {
            // The newline that ends the last line begins none.
            let body = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            body.iter().enumerate().rev().filter(|(_, b)| **b == b'\n').nth(lines - 1).map_or(0, |(at, _)| at + 1)
        }
    };
    Ok((bytes.split_off(from), end))
}

fn last_bytes(file: &mut File, end: u64, max: u64) -> io::Result<Vec<u8>> {
    let n = end.min(max);
    file.seek(SeekFrom::Start(end - n))?;
    let mut bytes = Vec::with_capacity(n as usize);
    file.take(n).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What was added since `at`, one chunk at most. A file that was cut is read from its start.
fn added(path: &Path, at: u64) -> io::Result<(Vec<u8>, u64)> {
    let mut file = File::open(path)?;
    let end = file.seek(SeekFrom::End(0))?;
    let at = if end < at { 0 } else { at };
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take(CHUNK).read_to_end(&mut bytes)?;
    let next = at + bytes.len() as u64;
    Ok((bytes, next))
}

/// The end of a log and, while `lives` says so, what is added to it. Ends when
/// the reader goes away, too.
pub(super) fn stream(
    runtime: &Handle,
    path: PathBuf,
    lines: usize,
    follow: bool,
    lives: impl Fn() -> bool + Send + 'static,
) -> ReceiverStream<io::Result<Bytes>> {
    let (to, from) = mpsc::channel(AHEAD);
    runtime.spawn(async move {
        let worker = to.clone();
        tokio::select! {
            result = pump(&worker, path, lines, follow, lives) => {
                if let Err(e) = result {
                    // Nobody to tell when the reader has gone.
                    let _ = to.send(Err(e)).await;
                }
            }
            () = to.closed() => {}
        }
    });
    ReceiverStream::new(from)
}

async fn pump(
    to: &mpsc::Sender<io::Result<Bytes>>,
    path: PathBuf,
    lines: usize,
    follow: bool,
    lives: impl Fn() -> bool,
) -> io::Result<()> {
    let file = path.clone();
    let (bytes, mut at) = match blocking(move || tail(&file, lines)).await {
        // Its task has only just begun; it will write a line soon.
        Err(e) if e.kind() == io::ErrorKind::NotFound && follow && lives() => (Vec::new(), 0),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(io::Error::new(e.kind(), "this node has no log of that replica"));
        }
        other => other?,
    };
    for part in bytes.chunks(CHUNK as usize) {
        if to.send(Ok(Bytes::copy_from_slice(part))).await.is_err() {
            return Ok(());
        }
    }
    if !follow {
        return Ok(());
    }
    loop {
        // Asked before reading: what was written before the end is then still seen.
        let alive = lives();
        let file = path.clone();
        let (bytes, next) = match blocking(move || added(&file, at)).await {
            Err(e) if e.kind() == io::ErrorKind::NotFound && alive => (Vec::new(), 0),
            other => other?,
        };
        at = next;
        let quiet = bytes.is_empty();
        if !quiet && to.send(Ok(bytes.into())).await.is_err() {
            return Ok(());
        }
        match (quiet, alive) {
            (true, false) => return Ok(()),
            (true, true) => tokio::time::sleep(POLL).await,
            (false, _) => {}
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
