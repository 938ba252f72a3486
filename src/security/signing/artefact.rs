//! What is verified: some bytes, one file, a directory, or the listing of a
//! manifest whose files are elsewhere. Files of a directory are found without
//! following links, and all of them count: what is not listed is refused. It does
//! not know signatures.

use super::content::{Hash, of_file, open_nofollow, unreadable};
use super::encoding::to_hex;
use super::refusal::{mismatch, shown, unsupported};
use nf_core::reason::Refusal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// What a version's manifest is called, also beside the files that it lists.
pub const MANIFEST: &str = "manifest.json";
/// The most files of one artefact, and how deep they may lie.
pub const MAX_FILES: usize = 10_000;
const MAX_DEPTH: usize = 16;

/// One file with its digest, as a statement lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// Relative, with `/` between parts.
    pub name: String,
    /// Bytes, where the list says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(with = "hex")]
    pub sha256: [u8; 32],
}

/// A SHA-256, in hex in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(#[serde(with = "hex")] pub [u8; 32]);

mod hex {
    //! SHA-256 as hex in JSON.
    use super::super::encoding::{sha256_hex, to_hex};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(digest: &[u8; 32], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&to_hex(digest))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(d)?;
        sha256_hex(&text).ok_or_else(|| D::Error::custom("a SHA-256 is 64 hex digits in lower case"))
    }
}

/// What a signature may be for.
#[derive(Clone, Debug)]
pub enum Artefact<'a> {
    Bytes {
        name: &'a str,
        bytes: &'a [u8],
    },
    File(&'a Path),
    /// `except` is the signature file itself, where it lies among the files.
    Directory {
        root: &'a Path,
        except: Option<&'a Path>,
    },
    /// Files that a manifest lists and that are verified where they are fetched.
    Listing(&'a [Listed]),
    /// A version as a store has it: the manifest's bytes and the files that it lists. What is signed as one file is
    /// the manifest.
    Version {
        manifest: &'a [u8],
        files: &'a [Listed],
    },
}

/// Why a name cannot be a file below a directory; None when it can.
pub fn name_fault(name: &str) -> Option<&'static str> {
    let part = |p: &str| !p.is_empty() && p.len() <= 255 && p != "." && p != "..";
    if name.len() > 1024 || !name.split('/').all(part) {
        return Some("is no relative name without '.' and '..'");
    }
    if name.chars().any(|c| c.is_control() || c == '\\') {
        return Some("holds a control character or a backslash");
    }
    (name.split('/').count() > MAX_DEPTH).then_some("lies too deep")
}

/// Checks a signed list's own rules: names are safe, sorted and once, not too many.
pub fn check_list(files: &[Listed], field: &str) -> Result<(), Refusal> {
    if files.is_empty() || files.len() > MAX_FILES {
        return Err(mismatch(field, format!("{} files listed; 1 to {MAX_FILES} are wanted", files.len())));
    }
    for (i, file) in files.iter().enumerate() {
        if let Some(fault) = name_fault(&file.name) {
            return Err(mismatch(format!("{field}[{i}].name"), format!("{} {fault}", shown(&file.name))));
        }
    }
    match files.windows(2).position(|pair| pair[0].name >= pair[1].name) {
        Some(i) => {
            let text =
                format!("{} is not after the name before it; names are sorted and once", shown(&files[i + 1].name));
            Err(mismatch(format!("{field}[{}].name", i + 1), text))
        }
        None => Ok(()),
    }
}

/// SHA-256 of the files' raw digests one after the other, in the order of the list.
pub fn root(files: &[Listed]) -> [u8; 32] {
    let all: Vec<u8> = files.iter().flat_map(|f| f.sha256).collect();
    bytes32(Hash::Sha256.of(&all).as_ref())
}

/// SHA-256.
pub fn digest(bytes: &[u8]) -> [u8; 32] {
    bytes32(Hash::Sha256.of(bytes).as_ref())
}

fn bytes32(digest: &[u8]) -> [u8; 32] {
    digest.try_into().expect("SHA-256 has 32 bytes")
}

impl Artefact<'_> {
    /// The name of a file or directory, as its last part.
    pub fn name(&self) -> Option<String> {
        let last = |p: &Path| fs::canonicalize(p).ok()?.file_name()?.to_str().map(str::to_owned);
        match self {
            Artefact::Bytes { name, .. } => Some((*name).to_owned()),
            Artefact::File(path) => path.file_name()?.to_str().map(str::to_owned),
            Artefact::Directory { root, .. } => last(root),
            Artefact::Version { .. } => Some(MANIFEST.to_owned()),
            Artefact::Listing(_) => None,
        }
    }

    /// Lists all files with digests, sorted by name.
    ///
    /// # Errors
    /// When one cannot be read, is no regular file, or has an unsafe name.
    pub fn list(&self) -> Result<Vec<Listed>, Refusal> {
        match self {
            Artefact::Listing(files) | Artefact::Version { files, .. } => Ok(files.to_vec()),
            Artefact::Bytes { name, bytes } => Ok(vec![of_bytes(name, bytes)]),
            Artefact::File(path) => {
                let mut file = File::open(path).map_err(|e| unreadable(path, &e))?;
                let name = self.name().ok_or_else(|| mismatch("artefact", "its name is not UTF-8"))?;
                Ok(vec![listed(name, &mut file, path)?])
            }
            Artefact::Directory { root, except } => {
                let found = walk(root, *except)?;
                found.into_iter().map(|(name, path)| listed(name, &mut open_nofollow(&path)?, &path)).collect()
            }
        }
    }

    /// The one file that a signature over bytes can be for.
    ///
    /// # Errors
    /// When it is several, or cannot be read.
    pub fn whole(&self) -> Result<Listed, Refusal> {
        if let Artefact::Version { manifest, .. } = self {
            return Ok(of_bytes(MANIFEST, manifest));
        }
        let several = || unsupported("artefact", "a cosign signature is for one file; give the file");
        <[Listed; 1]>::try_from(self.list()?).map(|[file]| file).map_err(|_| several())
    }

    /// Holds the artefact against a signed list: nothing missing, changed or unlisted.
    ///
    /// # Errors
    /// `ArtifactMismatch` naming the first file that differs.
    pub fn hold_against(&self, signed: &[Listed]) -> Result<(), Refusal> {
        let wanted: BTreeMap<&str, &Listed> = signed.iter().map(|f| (f.name.as_str(), f)).collect();
        // Names first: there is no need to hash what is refused anyway.
        let names: Vec<String> = match self {
            Artefact::Directory { root, except } => walk(root, *except)?.into_keys().collect(),
            Artefact::Listing(files) | Artefact::Version { files, .. } => {
                files.iter().map(|f| f.name.clone()).collect()
            }
            Artefact::Bytes { .. } | Artefact::File(_) => self.name().into_iter().collect(),
        };
        if let Some(extra) = names.iter().find(|name| !wanted.contains_key(name.as_str())) {
            return Err(mismatch(extra, "is there, but not in the signed list; remove it, or sign again with it"));
        }
        if let Some(missing) = signed.iter().find(|f| !names.contains(&f.name)) {
            return Err(mismatch(&missing.name, "is in the signed list, but not there; fetch the artefact again"));
        }
        let found = self.list()?;
        if found.len() != signed.len() {
            return Err(mismatch("files", "a name is there twice"));
        }
        for file in found {
            let Some(wanted) = wanted.get(file.name.as_str()) else {
                return Err(mismatch(&file.name, "appeared while it was verified"));
            };
            if file.sha256 != wanted.sha256 {
                let (is, was) = (to_hex(&file.sha256), to_hex(&wanted.sha256));
                return Err(mismatch(&file.name, format!("has SHA-256 {is}, signed was {was}; fetch it again")));
            }
            if file.size.zip(wanted.size).is_some_and(|(is, was)| is != was) {
                return Err(mismatch(&file.name, "has another size than was signed"));
            }
        }
        Ok(())
    }
}

fn of_bytes(name: &str, bytes: &[u8]) -> Listed {
    Listed { name: name.to_owned(), size: Some(bytes.len() as u64), sha256: digest(bytes) }
}

fn listed(name: String, file: &mut File, path: &Path) -> Result<Listed, Refusal> {
    let (size, digest) = of_file(file, path, Hash::Sha256)?;
    Ok(Listed { name, size: Some(size), sha256: bytes32(digest.as_ref()) })
}

/// The files below `root`, by name. Links, devices and pipes are refused, not skipped.
fn walk(root: &Path, except: Option<&Path>) -> Result<BTreeMap<String, PathBuf>, Refusal> {
    let except = except.and_then(|p| fs::canonicalize(p).ok());
    let root = fs::canonicalize(root).map_err(|e| unreadable(root, &e))?;
    let mut out = BTreeMap::new();
    let mut waiting = vec![(String::new(), root)];
    // Directories count, too: a tree of empty ones would be walked for ever otherwise.
    let mut seen = 0;
    while let Some((prefix, dir)) = waiting.pop() {
        for entry in fs::read_dir(&dir).map_err(|e| unreadable(&dir, &e))? {
            let entry = entry.map_err(|e| unreadable(&dir, &e))?;
            let path = entry.path();
            let last = entry.file_name();
            let last =
                last.to_str().ok_or_else(|| mismatch(path.display().to_string(), "has a name that is not UTF-8"))?;
            let name = if prefix.is_empty() { last.to_owned() } else { format!("{prefix}/{last}") };
            if let Some(fault) = name_fault(&name) {
                return Err(mismatch(shown(&name), fault));
            }
            seen += 1;
            if seen > MAX_FILES {
                return Err(mismatch("artefact", format!("more than {MAX_FILES} files and directories")));
            }
            let kind = entry.file_type().map_err(|e| unreadable(&path, &e))?;
            if kind.is_dir() {
                waiting.push((name, path));
            } else if except.as_ref() == Some(&path) {
                // The signature cannot sign itself, and nothing but listed files is ever handed on.
            } else if kind.is_file() {
                out.insert(name, path);
            } else {
                return Err(mismatch(name, "is a link, device or pipe; only regular files are verified"));
            }
        }
    }
    Ok(out)
}
