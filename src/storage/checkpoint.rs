//! Checkpoints as directories: `snapshots/<n>/` holds database files and a manifest with their
//! lengths and SHA-256, written last. A directory without a manifest, or named `*.tmp`, is rubbish.
//!
//! It knows files, not rows, and not how the files travel.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{Error, frame, sync_dir};

const MANIFEST: &str = "MANIFEST.nf";
const MAGIC: &[u8] = b"NFSN";
const FORMAT: u32 = 1;

/// How much of a file is read or sent at a time.
pub const CHUNK: usize = 1 << 20;

/// Most files a received manifest may name, and most bytes it may be long.
const MAX_FILES: u32 = 100_000;

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub name: String,
    pub len: u64,
    pub sha256: [u8; 32],
}

/// What a checkpoint consists of, and the state machine's own description of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub meta: Bytes,
    pub parts: Vec<Part>,
}

impl Manifest {
    pub fn encode(&self) -> Vec<u8> {
        let count = u32::try_from(self.parts.len()).expect("far fewer files");
        let mut body = frame::Writer::new().bytes(&self.meta).u32(count);
        for part in &self.parts {
            body = body.string(&part.name).u64(part.len).bytes(&part.sha256);
        }
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&frame::seal(MAGIC, &body.done()));
        out
    }

    /// Refuses names that would leave the directory: a manifest also comes from the network.
    pub fn decode(bytes: &[u8]) -> io::Result<Self> {
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| frame::invalid("it does not begin as a manifest"))?;
        if rest.len() < 4 {
            return Err(frame::invalid("cut short"));
        }
        let (format, sealed) = rest.split_at(4);
        if format != FORMAT.to_le_bytes() {
            return Err(frame::invalid("unknown manifest format"));
        }
        let mut reader = frame::Reader::new(frame::open(MAGIC, sealed)?);
        let meta = Bytes::copy_from_slice(reader.bytes()?);
        let count = reader.u32()?;
        if count > MAX_FILES {
            return Err(frame::invalid(format!("{count} files are too many")));
        }
        let mut parts = Vec::new();
        let mut seen = BTreeSet::new();
        for _ in 0..count {
            let name = reader.string()?;
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
                return Err(frame::invalid(format!("file name {name:?}")));
            }
            if !seen.insert(name.clone()) {
                return Err(frame::invalid(format!("file {name:?} twice")));
            }
            let len = reader.u64()?;
            let sha256 = reader.bytes()?;
            let sha256 = sha256.try_into().map_err(|_| frame::invalid("length of a SHA-256"))?;
            parts.push(Part { name, len, sha256 });
        }
        reader.done()?;
        Ok(Self { meta, parts })
    }
}

/// A complete checkpoint. The directory is removed with the last holder once it is obsolete.
#[derive(Clone, Debug)]
pub struct Snapshot(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    manifest: Manifest,
    obsolete: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Acquire) {
            // What stays behind is removed at the next start.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

impl Snapshot {
    fn new(dir: PathBuf, manifest: Manifest) -> Self {
        Self(Arc::new(Inner { dir, manifest, obsolete: AtomicBool::new(false) }))
    }
    pub fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }
    pub fn path(&self, part: &Part) -> PathBuf {
        self.0.dir.join(&part.name)
    }
    /// From now on the directory lives only as long as somebody holds it.
    pub fn retire(&self) {
        self.0.obsolete.store(true, Ordering::Release);
    }
}

/// Describes the files in `draft` (a `*.tmp` directory), makes all durable and renames it to `to`.
pub fn seal(draft: &Path, to: &Path, meta: Bytes) -> Result<Snapshot, Error> {
    let mut parts = Vec::new();
    let entries = std::fs::read_dir(draft).map_err(|e| Error::io(draft, e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(draft, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == MANIFEST {
            continue;
        }
        let (len, sha256) = digest(&entry.path()).map_err(|e| Error::io(entry.path(), e))?;
        parts.push(Part { name, len, sha256 });
    }
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    let manifest = Manifest { meta, parts };
    write_durably(&draft.join(MANIFEST), &manifest.encode())?;
    sync_dir(draft)?;
    std::fs::rename(draft, to).map_err(|e| Error::io(to, e))?;
    if let Some(parent) = to.parent() {
        sync_dir(parent)?;
    }
    Ok(Snapshot::new(to.to_path_buf(), manifest))
}

/// Opens a complete checkpoint. Lengths are checked here, contents when they are installed.
pub fn open(dir: &Path) -> Result<Snapshot, Error> {
    let path = dir.join(MANIFEST);
    let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let manifest = Manifest::decode(&bytes).map_err(|e| Error::damaged(&path, e.to_string()))?;
    for part in &manifest.parts {
        let file = dir.join(&part.name);
        let len = std::fs::metadata(&file).map_err(|e| Error::io(&file, e))?.len();
        if len != part.len {
            let detail = format!("{len} bytes instead of {}", part.len);
            return Err(Error::damaged(file, detail));
        }
    }
    Ok(Snapshot::new(dir.to_path_buf(), manifest))
}

/// Reads every file again and compares it with the manifest.
pub fn verify(snapshot: &Snapshot) -> Result<(), Error> {
    for part in &snapshot.manifest().parts {
        let path = snapshot.path(part);
        let (len, sha256) = digest(&path).map_err(|e| Error::io(&path, e))?;
        if len != part.len || sha256 != part.sha256 {
            return Err(Error::damaged(path, "its SHA-256 is not the manifest's"));
        }
    }
    Ok(())
}

/// Puts the files of a checkpoint into `to`: tables are linked, as they never change, the rest is
/// copied. Everything is durable on return, but `to` itself is the caller's to rename.
pub fn copy_into(snapshot: &Snapshot, to: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(to).map_err(|e| Error::io(to, e))?;
    for part in &snapshot.manifest().parts {
        let (from, path) = (snapshot.path(part), to.join(&part.name));
        let linked = part.name.ends_with(".sst") && std::fs::hard_link(&from, &path).is_ok();
        if !linked {
            std::fs::copy(&from, &path).map_err(|e| Error::io(&path, e))?;
        }
        let synced = File::open(&path).and_then(|f| f.sync_all());
        synced.map_err(|e| Error::io(&path, e))?;
    }
    sync_dir(to)
}

fn digest(path: &Path) -> io::Result<(u64, [u8; 32])> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut len = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((len, hash.finalize().into()));
        }
        len += read as u64;
        hash.update(&buffer[..read]);
    }
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let write = || -> io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| Error::io(path, e))
}

/// A checkpoint on its way in. Chunks come in the manifest's order; dropping it removes the rest.
pub struct Incoming {
    dir: PathBuf,
    manifest: Manifest,
    part: usize,
    file: Option<File>,
    written: u64,
    hash: Sha256,
    complete: bool,
}

impl Incoming {
    /// Starts in `dir`, which must not exist yet.
    pub fn begin(dir: &Path, manifest: &[u8]) -> Result<Self, Error> {
        let manifest = Manifest::decode(manifest).map_err(|e| Error::damaged(dir, e.to_string()))?;
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        Ok(Self {
            dir: dir.to_path_buf(),
            manifest,
            part: 0,
            file: None,
            written: 0,
            hash: Sha256::new(),
            complete: false,
        })
    }

    /// Takes the next bytes of file `part`. Blocks.
    pub fn chunk(&mut self, part: usize, bytes: &[u8]) -> Result<(), Error> {
        while self.part < part {
            self.finish_part()?;
        }
        let Some(expected) = self.manifest.parts.get(self.part) else {
            return Err(Error::damaged(&self.dir, "a file beyond the manifest"));
        };
        if part != self.part || self.written + bytes.len() as u64 > expected.len {
            return Err(Error::damaged(&self.dir, "a chunk out of order"));
        }
        let path = self.dir.join(&expected.name);
        if self.file.is_none() {
            self.file = Some(File::create(&path).map_err(|e| Error::io(&path, e))?);
        }
        if let Some(file) = &mut self.file {
            file.write_all(bytes).map_err(|e| Error::io(&path, e))?;
        }
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn finish_part(&mut self) -> Result<(), Error> {
        let Some(part) = self.manifest.parts.get(self.part) else {
            return Err(Error::damaged(&self.dir, "a file beyond the manifest"));
        };
        let path = self.dir.join(&part.name);
        let file = match self.file.take() {
            Some(file) => file,
            // An empty file has no chunk.
            None => File::create(&path).map_err(|e| Error::io(&path, e))?,
        };
        file.sync_all().map_err(|e| Error::io(&path, e))?;
        let sha256: [u8; 32] = std::mem::take(&mut self.hash).finalize().into();
        if self.written != part.len || sha256 != part.sha256 {
            return Err(Error::damaged(path, "received bytes are not the manifest's"));
        }
        self.written = 0;
        self.part += 1;
        Ok(())
    }

    /// Checks that everything came, and returns the checkpoint; its directory goes with it.
    pub fn complete(mut self) -> Result<Snapshot, Error> {
        while self.part < self.manifest.parts.len() {
            self.finish_part()?;
        }
        write_durably(&self.dir.join(MANIFEST), &self.manifest.encode())?;
        sync_dir(&self.dir)?;
        self.complete = true;
        let snapshot = Snapshot::new(self.dir.clone(), self.manifest.clone());
        snapshot.retire();
        Ok(snapshot)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.complete {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
