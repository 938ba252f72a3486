//! The bytes that were signed: hashed as a stream once per algorithm, or whole
//! where a scheme signs the message itself. It does not know who signed them.

use super::refusal::mismatch;
use aws_lc_rs::digest;
use nf_core::reason::Refusal;
use std::borrow::Cow;
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The longest message for schemes that sign the message and not its digest (Ed25519, ML-DSA).
pub const MAX_WHOLE: u64 = 64 << 20;
const CHUNK: usize = 1 << 20;

/// A hash of the SHA-2 family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    pub(super) fn algorithm(self) -> &'static digest::Algorithm {
        match self {
            Hash::Sha256 => &digest::SHA256,
            Hash::Sha384 => &digest::SHA384,
            Hash::Sha512 => &digest::SHA512,
        }
    }

    pub fn of(self, bytes: &[u8]) -> digest::Digest {
        digest::digest(self.algorithm(), bytes)
    }
}

enum Source<'a> {
    Bytes(&'a [u8]),
    File(&'a Path),
}

/// What a signature is over.
pub struct Content<'a> {
    source: Source<'a>,
    known: RefCell<Vec<(Hash, digest::Digest)>>,
}

impl<'a> Content<'a> {
    pub fn bytes(bytes: &'a [u8]) -> Self {
        Self { source: Source::Bytes(bytes), known: RefCell::default() }
    }

    pub fn file(path: &'a Path) -> Self {
        Self { source: Source::File(path), known: RefCell::default() }
    }

    /// The digest, read at most once per algorithm.
    pub fn digest(&self, hash: Hash) -> Result<digest::Digest, Refusal> {
        let known = self.known.borrow().iter().find(|(h, _)| *h == hash).map(|(_, d)| *d);
        if let Some(digest) = known {
            return Ok(digest);
        }
        let digest = match self.source {
            Source::Bytes(bytes) => hash.of(bytes),
            Source::File(path) => of_file(&mut open(path)?, path, hash)?.1,
        };
        self.known.borrow_mut().push((hash, digest));
        Ok(digest)
    }

    /// All of it, for schemes that need it.
    pub fn whole(&self) -> Result<Cow<'a, [u8]>, Refusal> {
        let path = match self.source {
            Source::Bytes(bytes) => return Ok(Cow::Borrowed(bytes)),
            Source::File(path) => path,
        };
        let mut out = Vec::new();
        open(path)?.take(MAX_WHOLE + 1).read_to_end(&mut out).map_err(|e| unreadable(path, &e))?;
        if out.len() as u64 > MAX_WHOLE {
            let text = format!(
                "longer than {MAX_WHOLE} bytes, the most for a scheme that signs the message itself; sign a manifest of it"
            );
            return Err(mismatch(name(path), text));
        }
        Ok(Cow::Owned(out))
    }
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Refusal {
    mismatch(name(path), format!("cannot be read: {error}"))
}

fn open(path: &Path) -> Result<File, Refusal> {
    let file = File::open(path).map_err(|e| unreadable(path, &e))?;
    regular(file, path)
}

/// Opens a file of a directory that may have been tampered with: no link is followed.
pub(super) fn open_nofollow(path: &Path) -> Result<File, Refusal> {
    let flags = (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|e| unreadable(path, &e))?;
    regular(file, path)
}

fn regular(file: File, path: &Path) -> Result<File, Refusal> {
    match file.metadata() {
        Ok(meta) if meta.is_file() => Ok(file),
        Ok(_) => Err(mismatch(name(path), "is no regular file; links, devices and pipes are refused")),
        Err(e) => Err(unreadable(path, &e)),
    }
}

/// Length and digest of an open file.
pub(super) fn of_file(file: &mut File, path: &Path, hash: Hash) -> Result<(u64, digest::Digest), Refusal> {
    let mut context = digest::Context::new(hash.algorithm());
    let mut buffer = vec![0; CHUNK];
    let mut size = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((size, context.finish())),
            Ok(n) => {
                context.update(&buffer[..n]);
                size += n as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(unreadable(path, &e)),
        }
    }
}
