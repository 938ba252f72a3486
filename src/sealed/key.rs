//! Keys as files: PEM whose label says what is inside. Private ones are their owner's alone, and wiped after use.

use super::hpke::{PRIVATE, PUBLIC, PrivateKey, PublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use zeroize::Zeroizing;

const PRIVATE_LABEL: &str = "NF MLKEM768-X25519 PRIVATE KEY";
const PUBLIC_LABEL: &str = "NF MLKEM768-X25519 PUBLIC KEY";
/// Longer than any of the two.
const MAX_FILE: u64 = 16 << 10;
const LINE: usize = 64;

/// # Errors
/// A sentence with the file, and nothing of its contents.
pub fn read_private(path: &Path) -> Result<PrivateKey, String> {
    let wrong = |text: &str| format!("{}: {text}", path.display());
    let bytes = read(path, PRIVATE_LABEL)?;
    let bytes: [u8; PRIVATE] =
        bytes.as_slice().try_into().map_err(|_| wrong("is too short or too long for such a key"))?;
    PrivateKey::from_bytes(Zeroizing::new(bytes)).map_err(|e| wrong(&e.to_string()))
}

/// # Errors
/// A sentence with the file.
pub fn read_public(path: &Path) -> Result<PublicKey, String> {
    let bytes = read(path, PUBLIC_LABEL)?;
    let wrong = || format!("{}: {} bytes, such a key has {PUBLIC}", path.display(), bytes.len());
    PublicKey::from_bytes(&bytes).ok_or_else(wrong)
}

/// Writes both halves of a new key; files that are there stay as they are.
///
/// # Errors
/// With the file.
pub fn write(key: &PrivateKey, private: &Path, public: &Path) -> io::Result<()> {
    put(private, PRIVATE_LABEL, key.as_bytes(), 0o600)?;
    put(public, PUBLIC_LABEL, key.public().as_bytes(), 0o644)
}

fn put(path: &Path, label: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let body = Zeroizing::new(STANDARD.encode(bytes));
    let mut text = Zeroizing::new(String::with_capacity(body.len() * 2 + 128));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(named)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(named)
}

fn read(path: &Path, label: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let wrong = |text: String| format!("{}: {text}", path.display());
    let mut text = Zeroizing::new(String::new());
    let file = File::open(path).map_err(|e| wrong(e.to_string()))?;
    file.take(MAX_FILE).read_to_string(&mut text).map_err(|e| wrong(e.to_string()))?;
    parse(&text, label).map_err(|text| wrong(text.to_owned()))
}

fn parse(text: &str, label: &str) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let inside = text.trim().strip_prefix(&format!("-----BEGIN {label}-----"));
    let inside = inside.and_then(|rest| rest.strip_suffix(&format!("-----END {label}-----")));
    let inside = inside.ok_or(match label {
        PRIVATE_LABEL => "is no private key for encrypted files (nf cluster init makes one)",
        _ => "is no public key for encrypted files (nf cluster init makes one)",
    })?;
    let body: Zeroizing<String> = Zeroizing::new(inside.chars().filter(|c| !c.is_ascii_whitespace()).collect());
    STANDARD.decode(body.as_bytes()).map(Zeroizing::new).map_err(|_| "is not base64 inside")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_read_as_it_was_written_and_shown_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (private, public) = (dir.path().join("a.key"), dir.path().join("a.pub"));
        let key = PrivateKey::generate().unwrap();
        write(&key, &private, &public).unwrap();
        assert_eq!(std::fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_private(&private).unwrap().as_bytes(), key.as_bytes());
        assert_eq!(&read_public(&public).unwrap(), key.public());
        assert!(write(&key, &private, &public).unwrap_err().to_string().contains("a.key"), "nothing is overwritten");
        let shown = format!("{key:?}");
        let inside = std::fs::read_to_string(&private).unwrap().lines().nth(1).unwrap().to_owned();
        assert!(shown.contains("<REDACTED>") && !shown.contains(&inside[..20]), "{shown}");

        assert!(read_private(&public).unwrap_err().contains("is no private key"));
        assert!(read_public(&private).unwrap_err().contains("is no public key"));
        for bad in
            ["", "x", "-----BEGIN NF MLKEM768-X25519 PRIVATE KEY-----\n!\n-----END NF MLKEM768-X25519 PRIVATE KEY-----"]
        {
            std::fs::write(&private, bad).unwrap();
            assert!(read_private(&private).is_err(), "{bad}");
        }
        std::fs::write(&private, std::fs::read_to_string(&public).unwrap().replace("PUBLIC", "PRIVATE")).unwrap();
        assert!(read_private(&private).unwrap_err().contains("too short or too long"));
    }
}
