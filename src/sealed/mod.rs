//! Files encrypted to a key, of any size, in one pass: a header with the file's own key, which HPKE seals to
//! the reader's, and chunks of 1 MiB. The chunks are STREAM (Hoang, Reyhanitabar, Rogaway, Vizár, CRYPTO 2015):
//! each has its number and whether it is the last in its nonce, so that one which is missing, moved, doubled or
//! of another file does not open. It does not know models, stores or where keys are.
//!
//! ```text
//! "nf-sealed/1\n" | SHA-256 of the public key | HPKE enc (1120) | sealed file key (48) | chunks, each + 16 bytes
//! ```
//! HPKE's info is what stands before enc, then the context: what the file is, as its reader expects it.

mod hpke;
mod key;

pub use hpke::{PRIVATE, PrivateKey, PublicKey};
pub use key::{read_private, read_public, write};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use hpke::{ENC, TAG};
use std::io::{self, Cursor, Read, Write};
use zeroize::Zeroizing;

/// With what a file begins.
pub const MAGIC: &[u8; 12] = b"nf-sealed/1\n";
/// Plain bytes of a chunk; the last one has fewer, or as many.
pub const CHUNK: usize = 1 << 20;
const ID: usize = 32;
const FILE_KEY: usize = 32;
/// Bytes before the first chunk.
pub const HEADER: usize = MAGIC.len() + ID + ENC + FILE_KEY + TAG;

/// Why a file does not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("is not encrypted: it does not begin as such a file does")]
    Plain,
    #[error("is encrypted to another key ({found}); this one is {own}")]
    OtherKey { found: String, own: String },
    #[error("its header was changed, or it was encrypted as another file")]
    Header,
    #[error("was cut after {0} bytes of what it held")]
    Cut(u64),
    #[error("was changed or cut: chunk {0} does not open")]
    Changed(u64),
    #[error("goes on after its end")]
    Longer,
    #[error("this build's cryptography does not work, or the key is none")]
    Broken,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn io_error(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Bytes that so many plain ones become.
pub fn sealed_size(plain: u64) -> u64 {
    let chunks = plain.div_ceil(CHUNK as u64).max(1);
    plain.saturating_add(HEADER as u64).saturating_add(chunks.saturating_mul(TAG as u64))
}

fn info(id: &[u8; ID], context: &str) -> Vec<u8> {
    [&MAGIC[..], id, context.as_bytes()].concat()
}

/// The chunks' key and count.
struct Chunks {
    key: LessSafeKey,
    next: u64,
}

impl Chunks {
    fn new(key: &[u8]) -> Result<Self, Error> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| Error::Broken)?;
        Ok(Self { key: LessSafeKey::new(key), next: 0 })
    }

    /// Eleven bytes of number, and whether it is the last.
    fn nonce(&self, last: bool) -> Nonce {
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&self.next.to_be_bytes());
        nonce[11] = last.into();
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&mut self, chunk: &mut Vec<u8>, last: bool) -> Result<(), Error> {
        let sealed = self.key.seal_in_place_append_tag(self.nonce(last), Aad::empty(), chunk);
        self.next += 1;
        sealed.map_err(|_| Error::Broken)
    }

    fn opens(&self, chunk: &[u8], last: bool) -> Option<Vec<u8>> {
        let mut chunk = chunk.to_vec();
        let length = self.key.open_in_place(self.nonce(last), Aad::empty(), &mut chunk).ok()?.len();
        chunk.truncate(length);
        Some(chunk)
    }
}

/// Encrypts what is written to it; [`Sealing::finish`] makes it whole.
pub struct Sealing<W> {
    to: W,
    chunks: Chunks,
    /// Not sealed yet: whether it is the last chunk is known when more comes, or nothing.
    waiting: Vec<u8>,
}

impl<W: Write> Sealing<W> {
    /// # Errors
    /// What writing the header meets.
    pub fn new(key: &PublicKey, context: &str, mut to: W) -> io::Result<Self> {
        let mut file_key = Zeroizing::new([0; FILE_KEY]);
        aws_lc_rs::rand::fill(&mut *file_key).map_err(|_| io_error(Error::Broken))?;
        let id = key.id();
        let (enc, sealed) = key.seal(&info(&id, context), &*file_key).map_err(io_error)?;
        to.write_all(&[&MAGIC[..], &id, &enc, &sealed].concat())?;
        Ok(Self { to, chunks: Chunks::new(&*file_key).map_err(io_error)?, waiting: Vec::with_capacity(CHUNK + TAG) })
    }

    /// # Errors
    /// What writing the last chunk meets.
    pub fn finish(mut self) -> io::Result<W> {
        self.put(true)?;
        Ok(self.to)
    }

    fn put(&mut self, last: bool) -> io::Result<()> {
        self.chunks.seal(&mut self.waiting, last).map_err(io_error)?;
        self.to.write_all(&self.waiting)?;
        self.waiting.clear();
        Ok(())
    }
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        if !from.is_empty() && self.waiting.len() == CHUNK {
            self.put(false)?;
        }
        let taken = from.len().min(CHUNK - self.waiting.len());
        self.waiting.extend_from_slice(&from[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Gives what it reads, encrypted.
pub struct Sealed<R> {
    from: R,
    sealing: Option<Sealing<Vec<u8>>>,
    ready: Cursor<Vec<u8>>,
}

impl<R: Read> Sealed<R> {
    /// # Errors
    /// [`Error::Broken`], below an [`io::Error`].
    pub fn new(key: &PublicKey, context: &str, from: R) -> io::Result<Self> {
        let mut sealing = Sealing::new(key, context, Vec::new())?;
        let ready = Cursor::new(std::mem::take(&mut sealing.to));
        Ok(Self { from, sealing: Some(sealing), ready })
    }

    /// Makes the next bytes ready; false when there are none.
    fn advance(&mut self) -> io::Result<bool> {
        let Some(mut sealing) = self.sealing.take() else { return Ok(false) };
        let mut chunk = vec![0; CHUNK];
        let read = fill(&mut self.from, &mut chunk)?;
        if read == 0 {
            self.ready = Cursor::new(sealing.finish()?);
            return Ok(true);
        }
        sealing.write_all(&chunk[..read])?;
        self.ready = Cursor::new(std::mem::take(&mut sealing.to));
        self.sealing = Some(sealing);
        Ok(true)
    }
}

impl<R: Read> Read for Sealed<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            let taken = self.ready.read(to)?;
            if taken > 0 || to.is_empty() || !self.advance()? {
                return Ok(taken);
            }
        }
    }
}

/// Decrypts what is read from it. What it gave out is whole once it has said that there is no more.
pub struct Opening<R> {
    from: R,
    chunks: Chunks,
    /// The next chunk, as it stands in the file; None after the last.
    ahead: Option<Vec<u8>>,
    open: Cursor<Vec<u8>>,
    total: u64,
}

impl<R: Read> Opening<R> {
    /// # Errors
    /// [`Error`], below an [`io::Error`].
    pub fn new(key: &PrivateKey, context: &str, mut from: R) -> io::Result<Self> {
        let mut header = [0; HEADER];
        let read = fill(&mut from, &mut header)?;
        let begun = &header[..read.min(MAGIC.len())];
        if begun.is_empty() || !MAGIC.starts_with(begun) {
            return Err(io_error(Error::Plain));
        }
        if read < HEADER {
            return Err(io_error(Error::Cut(0)));
        }
        let (_, rest) = header.split_at(MAGIC.len());
        let (id, rest) = rest.split_first_chunk::<ID>().ok_or_else(|| io_error(Error::Cut(0)))?;
        let (enc, sealed) = rest.split_first_chunk::<ENC>().ok_or_else(|| io_error(Error::Cut(0)))?;
        let own = key.public().id();
        if *id != own {
            return Err(io_error(Error::OtherKey { found: hex(id), own: hex(&own) }));
        }
        let file_key = key.open(&info(id, context), enc, sealed).map_err(io_error)?;
        let chunks = Chunks::new(&file_key).map_err(io_error)?;
        let mut opening = Self { from, chunks, ahead: None, open: Cursor::default(), total: 0 };
        opening.ahead = Some(opening.stored()?);
        Ok(opening)
    }

    /// The next chunk as it stands in the file; empty at its end.
    fn stored(&mut self) -> io::Result<Vec<u8>> {
        let mut chunk = vec![0; CHUNK + TAG];
        let read = fill(&mut self.from, &mut chunk)?;
        chunk.truncate(read);
        Ok(chunk)
    }

    /// Opens the next chunk; false when there is none.
    fn advance(&mut self) -> io::Result<bool> {
        let Some(chunk) = self.ahead.take() else { return Ok(false) };
        let next = self.stored()?;
        let last = next.is_empty();
        let first = self.chunks.next == 0;
        let Some(open) = self.chunks.opens(&chunk, last) else {
            // What opens as the other kind is whole: then it is the file that is too short, or too long.
            return Err(io_error(match (last, self.chunks.opens(&chunk, !last).is_some()) {
                (true, true) => Error::Cut(self.total + chunk.len().saturating_sub(TAG) as u64),
                (false, true) => Error::Longer,
                _ => Error::Changed(self.chunks.next),
            }));
        };
        // One file, one way to write it: an empty chunk is all of an empty file, and no end of another.
        if open.is_empty() && !first {
            return Err(io_error(Error::Changed(self.chunks.next)));
        }
        self.chunks.next += 1;
        self.total += open.len() as u64;
        self.open = Cursor::new(open);
        self.ahead = Some(next).filter(|next| !next.is_empty());
        Ok(true)
    }
}

impl<R: Read> Read for Opening<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            let taken = self.open.read(to)?;
            if taken > 0 || to.is_empty() || !self.advance()? {
                return Ok(taken);
            }
        }
    }
}

/// Reads until `to` is full or there is no more.
fn fill(from: &mut impl Read, to: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < to.len() {
        match from.read(&mut to[read..]) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests;
