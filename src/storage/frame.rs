//! Bytes on disk: a positional writer and reader, and a checksummed frame around each record.
//!
//! RocksDB checks its own blocks; the frame checks what we put in, so that a bug or a mixed-up
//! file is caught here by name and not later as a strange state. It does not know what is inside.

use std::io;

/// Appends integers little-endian and byte strings with a 32-bit length.
#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    pub fn bytes(self, value: &[u8]) -> Self {
        let len = u32::try_from(value.len()).expect("records are far below 4 GiB");
        let mut this = self.u32(len);
        this.0.extend_from_slice(value);
        this
    }
    pub fn string(self, value: &str) -> Self {
        self.bytes(value.as_bytes())
    }
    pub fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Reads what [`Writer`] wrote; every method fails rather than reading past the end.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
    fn take(&mut self, len: usize) -> io::Result<&'a [u8]> {
        if self.0.len() < len {
            return Err(invalid(format!("cut short: {} of {len} bytes", self.0.len())));
        }
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        Ok(head)
    }
    pub fn u8(&mut self) -> io::Result<u8> {
        Ok(self.take(1)?[0])
    }
    pub fn u32(&mut self) -> io::Result<u32> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
    pub fn u64(&mut self) -> io::Result<u64> {
        let mut out = [0; 8];
        out.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(out))
    }
    pub fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let len = self.u32()? as usize;
        self.take(len)
    }
    pub fn string(&mut self) -> io::Result<String> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| invalid("a name is not UTF-8"))
    }
    /// Fails when bytes are left: an unknown field must stop the member, never be skipped.
    pub fn done(self) -> io::Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(invalid(format!("{} bytes too many", self.0.len()))) }
    }
}

/// An `InvalidData` error with a reason.
pub fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// Version of the frame itself.
pub const FRAME: u8 = 1;

/// `{frame u8, body, crc32c u32}`. The checksum also covers `salt` (the row's key), so that a
/// right record under a wrong key is refused.
pub fn seal(salt: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 5);
    out.push(FRAME);
    out.extend_from_slice(body);
    let crc = crc32c(crc32c(0, salt), &out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// Checks a frame made by [`seal`] with the same salt and returns the body.
pub fn open<'a>(salt: &[u8], sealed: &'a [u8]) -> io::Result<&'a [u8]> {
    if sealed.len() < 5 {
        return Err(invalid(format!("cut short: {} bytes", sealed.len())));
    }
    let (framed, crc) = sealed.split_at(sealed.len() - 4);
    let want = u32::from_le_bytes([crc[0], crc[1], crc[2], crc[3]]);
    if crc32c(crc32c(0, salt), framed) != want {
        return Err(invalid("checksum does not match"));
    }
    if framed[0] != FRAME {
        return Err(invalid(format!("unknown frame version {}", framed[0])));
    }
    Ok(&framed[1..])
}

const TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut out = [[0u32; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            // Castagnoli's polynomial, bit-reversed.
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        out[0][i] = crc;
        i += 1;
    }
    let mut slice = 1;
    while slice < 8 {
        let mut i = 0;
        while i < 256 {
            let prev = out[slice - 1][i];
            out[slice][i] = (prev >> 8) ^ out[0][(prev & 0xff) as usize];
            i += 1;
        }
        slice += 1;
    }
    out
}

/// CRC-32C (RFC 3720, appendix B.4), eight bytes at a step; continues from `crc`, start with 0.
pub fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    let mut crc = !crc;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let low = crc ^ u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        crc = TABLES[7][(low & 0xff) as usize]
            ^ TABLES[6][((low >> 8) & 0xff) as usize]
            ^ TABLES[5][((low >> 16) & 0xff) as usize]
            ^ TABLES[4][(low >> 24) as usize]
            ^ TABLES[3][chunk[4] as usize]
            ^ TABLES[2][chunk[5] as usize]
            ^ TABLES[1][chunk[6] as usize]
            ^ TABLES[0][chunk[7] as usize];
    }
    for byte in chunks.remainder() {
        crc = (crc >> 8) ^ TABLES[0][((crc ^ u32::from(*byte)) & 0xff) as usize];
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_agrees_with_the_published_vectors() {
        assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(0, &[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(crc32c(0, b"12345"), b"6789"), 0xe306_9283);
    }

    #[test]
    fn a_frame_is_refused_when_any_byte_or_the_key_differs() {
        let sealed = seal(b"key", b"body");
        assert_eq!(open(b"key", &sealed).unwrap(), b"body");
        assert!(open(b"kez", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut torn = sealed.clone();
            torn[at] ^= 1;
            assert!(open(b"key", &torn).is_err(), "byte {at}");
            assert!(open(b"key", &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_reader_never_leaves_or_invents_bytes() {
        let bytes = Writer::new().u8(1).u32(2).u64(3).string("four").done();
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.u8().unwrap(), 1);
        assert_eq!(reader.u32().unwrap(), 2);
        assert_eq!(reader.u64().unwrap(), 3);
        assert_eq!(reader.string().unwrap(), "four");
        reader.done().unwrap();
        assert!(Reader::new(&bytes[..3]).u32().is_err());
        assert!(Reader::new(&bytes).done().is_err());
    }
}
