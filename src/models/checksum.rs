//! A SHA-256, shown as 64 hex digits. Also the one loop that copies bytes while
//! hashing them, so that no caller can forget to compare.

use super::{Asked, Error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::io::{Read, Write};

/// Bytes per read; between two reads the work can be called off.
const CHUNK: usize = 1 << 20;

/// The SHA-256 of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checksum(pub [u8; 32]);

impl Checksum {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// From exactly 64 lower-case hex digits: one spelling, so that equal digests are equal paths.
    pub fn parse(hex: &str) -> Option<Self> {
        let digit = |b: u8| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        };
        let bytes = hex.as_bytes();
        if bytes.len() != 64 {
            return None;
        }
        let mut out = [0; 32];
        for (to, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
            *to = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(out))
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Checksum {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Checksum {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("a SHA-256 is 64 hex digits in lower case"))
    }
}

/// Bytes that came so far, and their digest.
#[derive(Default)]
pub(super) struct Hashing {
    hash: Sha256,
    size: u64,
}

impl Hashing {
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn finish(self) -> (u64, Checksum) {
        (self.size, Checksum(self.hash.finalize().into()))
    }

    /// Copies what `from` still has to `to`, until there are `limit` bytes in all and one more. A source that is
    /// longer is therefore seen as longer without being read to its end.
    pub(super) fn copy(
        &mut self,
        from: &mut impl Read,
        to: &mut impl Write,
        limit: u64,
        asked: &Asked,
        what: &str,
    ) -> Result<(), Error> {
        let mut from = from.take(limit.saturating_add(1).saturating_sub(self.size));
        let mut buffer = vec![0; CHUNK];
        loop {
            asked.check()?;
            let n = match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::read(what, e)),
            };
            to.write_all(&buffer[..n]).map_err(Error::io(what))?;
            self.hash.update(&buffer[..n]);
            self.size += n as u64;
        }
    }
}

/// Copies `from` to `to`, at most `limit` bytes and one more, and says how many there were and their digest.
pub(super) fn copy(
    from: &mut impl Read,
    to: &mut impl Write,
    limit: u64,
    asked: &Asked,
    what: &str,
) -> Result<(u64, Checksum), Error> {
    let mut hashing = Hashing::default();
    hashing.copy(from, to, limit, asked, what)?;
    Ok(hashing.finish())
}
