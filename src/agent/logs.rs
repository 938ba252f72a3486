//! Replicas' logs: files that the programs write into themselves, so that they
//! outlive the agent. Kept small by moving the end of a full file to `.1` and
//! cutting the file; read from their end and followed. It does not know replicas.

pub(super) mod keeper;

use bytes::Bytes;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
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

/// Nobody of this process reads or writes a log while one is cut. Not a lock on the file: a
/// program has its log open, and could keep that.
static CUT: RwLock<()> = RwLock::new(());

fn whole() -> RwLockReadGuard<'static, ()> {
    CUT.read().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a log for a program to write into. In append mode, so that several
/// writers don't overwrite each other and cutting the file is possible.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

pub(super) fn append(path: &Path, text: &[u8]) -> io::Result<()> {
    let _whole = whole();
    open(path)?.write_all(text)
}

fn rotated(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

fn is_long(path: &Path) -> io::Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.len()).filter(|size| *size > ROTATE_AT)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Moves the end of a log that has grown too long to its `.1` and cuts it. What a program
/// writes between the copy and the cut is lost; a rename instead would leave it writing
/// into the old file for ever.
pub(super) fn rotate(path: &Path) -> io::Result<()> {
    if is_long(path)?.is_none() {
        return Ok(());
    }
    let _alone = CUT.write().unwrap_or_else(PoisonError::into_inner);
    // Somebody else may just have done it.
    let Some(size) = is_long(path)? else { return Ok(()) };
    let copy = path.with_extension("log.new");
    let copied = copy_end(path, size, &copy);
    // Also where there is no room for a copy: this is what makes room.
    OpenOptions::new().write(true).open(path)?.set_len(0)?;
    match copied {
        // Another file than the one before: that is how followers see that the log was cut.
        Ok(()) => fs::rename(copy, rotated(path)),
        Err(error) => {
            let _ = fs::remove_file(copy);
            Err(io::Error::new(error.kind(), format!("cut, and its end is lost: {error}")))
        }
    }
}

/// Every byte stays at its place, behind a hole, so that who follows the log goes on where it was.
fn copy_end(path: &Path, size: u64, copy: &Path) -> io::Result<()> {
    let (mut from, mut to) = (File::open(path)?, File::create(copy)?);
    to.set_permissions(Permissions::from_mode(0o600))?;
    for file in [&mut from, &mut to] {
        file.seek(SeekFrom::Start(size - ROTATE_AT))?;
    }
    io::copy(&mut from.take(2 * ROTATE_AT), &mut to)?;
    Ok(())
}

/// Removes the oldest logs when there are more than `keep`, never one of `live`.
pub(super) fn prune(dir: &Path, keep: usize, live: &[PathBuf]) -> io::Result<()> {
    let mut logs: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // That of their keeper, which is here all the time, is none of them.
        if entry.path().extension().is_some_and(|e| e == "log") && entry.file_name() != keeper::LOG {
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
fn tail(path: &Path, lines: usize) -> io::Result<(Vec<u8>, Place)> {
    let _whole = whole();
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
    Ok((bytes.split_off(from), Place { at: end, older: older(path), left: None }))
}

fn last_bytes(file: &mut File, end: u64, max: u64) -> io::Result<Vec<u8>> {
    let n = end.min(max);
    file.seek(SeekFrom::Start(end - n))?;
    let mut bytes = Vec::with_capacity(n as usize);
    file.take(n).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// One reader's place in a log that grows and is cut.
#[derive(Default)]
struct Place {
    at: u64,
    /// Which file the predecessor is; another one says that the log was cut.
    older: Option<(u64, SystemTime)>,
    /// How far the predecessor is read, as long as that has not come to its end.
    left: Option<u64>,
}

impl Place {
    /// What was added since, one chunk at most; nothing, if there is nothing yet.
    fn added(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        let _whole = whole();
        let older = older(path);
        if older != self.older {
            // Cut again while the one before was still being read: of the newer one nothing is read yet.
            let from = if self.left.is_some() { 0 } else { self.at };
            (self.older, self.left) = (older, Some(from));
        }
        if let Some(at) = self.left {
            let (at, bytes) = File::open(rotated(path)).and_then(|mut file| before(&mut file, at)).unwrap_or_default();
            if !bytes.is_empty() {
                self.left = Some(at + bytes.len() as u64);
                return Ok(bytes);
            }
            (self.left, self.at) = (None, 0);
        }
        let mut file = File::open(path)?;
        if file.seek(SeekFrom::End(0))? < self.at {
            // Cut by somebody else, who kept nothing.
            self.at = 0;
        }
        let bytes = chunk(&mut file, self.at)?;
        self.at += bytes.len() as u64;
        Ok(bytes)
    }
}

/// A chunk of a predecessor from `at` on, or from where it begins after its hole.
fn before(file: &mut File, at: u64) -> io::Result<(u64, Vec<u8>)> {
    let end = file.seek(SeekFrom::End(0))?;
    let at = at.max(end.saturating_sub(ROTATE_AT));
    Ok((at, chunk(file, at)?))
}

fn older(path: &Path) -> Option<(u64, SystemTime)> {
    let meta = fs::metadata(rotated(path)).ok()?;
    Some((meta.ino(), meta.modified().ok()?))
}

fn chunk(file: &mut File, at: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take(CHUNK).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The end of a log and, while `lives` says so, what is added to it; with an error when that can't be said any more.
/// Ends when the reader goes away, too.
pub(super) fn stream(
    runtime: &Handle,
    path: PathBuf,
    lines: usize,
    follow: bool,
    lives: impl Fn() -> Option<bool> + Send + 'static,
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
    lives: impl Fn() -> Option<bool>,
) -> io::Result<()> {
    let lives = move || lives().ok_or_else(|| io::Error::other("the agent ends; the replica may live on"));
    let file = path.clone();
    let (bytes, mut place) = match blocking(move || tail(&file, lines)).await {
        // Its task has only just begun; it will write a line soon.
        Err(e) if e.kind() == io::ErrorKind::NotFound && follow && lives()? => (Vec::new(), Place::default()),
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
        let alive = lives()?;
        let file = path.clone();
        let look = blocking(move || {
            let bytes = place.added(&file);
            Ok((place, bytes))
        });
        let bytes;
        (place, bytes) = look.await?;
        let bytes = match bytes {
            Err(e) if e.kind() == io::ErrorKind::NotFound && alive => Vec::new(),
            other => other?,
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Reads on until there is nothing, as a follower does.
    fn read_on(place: &mut Place, path: &Path) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let bytes = place.added(path).unwrap();
            if bytes.is_empty() {
                return all;
            }
            all.extend(bytes);
        }
    }

    #[test]
    fn who_follows_a_log_that_is_cut_misses_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("r.log");
        append(&path, b"begins\n").unwrap();
        let (_, mut place) = tail(&path, 0).unwrap();
        let (mut wrote, mut read) = (Vec::<u8>::new(), Vec::<u8>::new());
        for piece in 0..40u8 {
            // A megabyte at once, more than one look takes; every eighth or so makes the log too long.
            let text = vec![b'a' + piece % 26; 1 << 20];
            append(&path, &text).unwrap();
            wrote.extend(&text);
            if piece % 3 == 0 {
                read.extend(place.added(&path).unwrap());
            }
            rotate(&path).unwrap();
            append(&path, b"after\n").unwrap();
            wrote.extend(b"after\n");
            if piece % 4 == 0 {
                read.extend(read_on(&mut place, &path));
            }
        }
        read.extend(read_on(&mut place, &path));
        assert!(read == wrote, "{} of {} bytes", read.len(), wrote.len());
        let kept = |name: &str| fs::metadata(tmp.path().join(name)).unwrap();
        assert!(kept("r.log").len() <= ROTATE_AT && kept("r.log.1").blocks() * 512 <= ROTATE_AT + (1 << 20));
        // The past reaches into the predecessor, and not into its hole.
        let (past, _) = tail(&path, 1_000_000).unwrap();
        assert!(past.len() as u64 == MAX_TAIL && !past.contains(&0));
    }

    #[test]
    fn what_we_write_is_never_between_the_copy_and_the_cut() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("r.log");
        let line = [b"x".repeat(1 << 10), b"\n".to_vec()].concat();
        let over = AtomicBool::new(false);
        // 13 MB in all: cut once, by one of two that would.
        std::thread::scope(|scope| {
            let writers = [(); 2].map(|()| scope.spawn(|| (0..6_500).for_each(|_| append(&path, &line).unwrap())));
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        rotate(&path).unwrap();
                        std::thread::yield_now();
                    }
                });
            }
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            over.store(true, Ordering::Relaxed);
        });
        let length = |path: &Path| fs::metadata(path).unwrap().len();
        assert_eq!(length(&path) + length(&rotated(&path)), 2 * 6_500 * line.len() as u64);
    }
}
