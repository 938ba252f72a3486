//! The group's own issuer of tokens as files: `token.key` (its owner's alone, on no
//! member) and `jwks.json` (public, on every member). It does not know roles.

use super::Mint;
use crate::security::encoding;
use nf_core::reason::{Reason, Refusal};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Who our tokens are from.
pub const ISSUER: &str = "neural-fabric";
/// The private key's file.
pub const KEY_FILE: &str = "token.key";
/// The public keys' file.
pub const JWKS_FILE: &str = "jwks.json";
const LABEL: &str = "PRIVATE KEY";

fn wrong(path: &Path, detail: impl std::fmt::Display) -> Refusal {
    Refusal::field(Reason::ConfigInvalid, path.display().to_string(), format!("{}: {detail}", path.display()))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), Refusal> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all())).map_err(|e| wrong(path, e))
}

/// A new issuer in `dir`. One that is there is not replaced.
///
/// # Errors
/// `ConfigInvalid` with the file that could not be written.
pub fn create(dir: &Path) -> Result<Mint, Refusal> {
    std::fs::create_dir_all(dir).map_err(|e| wrong(dir, e))?;
    let mint = Mint::generate(ISSUER).map_err(|e| wrong(dir, e))?;
    let der = mint.to_pkcs8().map_err(|e| wrong(dir, e))?;
    write(&dir.join(KEY_FILE), &encoding::to_pem(LABEL, &der), 0o600)?;
    write(&dir.join(JWKS_FILE), &format!("{}\n", mint.jwks()), 0o644)?;
    Ok(mint)
}

/// The issuer that [`create`] made.
///
/// # Errors
/// `ConfigInvalid` with the file, never with its contents.
pub fn open(dir: &Path) -> Result<Mint, Refusal> {
    let path = dir.join(KEY_FILE);
    let text = std::fs::read_to_string(&path).map_err(|e| wrong(&path, e))?;
    let blocks = encoding::pem(&text).map_err(|e| wrong(&path, e))?;
    match &blocks[..] {
        [block] if block.label == LABEL => Mint::from_pkcs8(ISSUER, &block.der).map_err(|e| wrong(&path, e)),
        _ => Err(wrong(&path, "holds no private key as nf cluster init writes it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_issuer_is_made_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let made = create(dir.path()).unwrap();
        assert_eq!(open(dir.path()).unwrap().jwks(), made.jwks());
        let mode = std::fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(create(dir.path()).is_err(), "tokens that were given out must go on counting");
        let broken = encoding::to_pem(LABEL, b"secret");
        std::fs::write(dir.path().join(KEY_FILE), &broken).unwrap();
        let refusal = open(dir.path()).unwrap_err().to_string();
        assert!(refusal.contains(KEY_FILE) && !refusal.contains(broken.lines().nth(1).unwrap()), "{refusal}");
    }
}
