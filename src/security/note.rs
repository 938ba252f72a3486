//! Signed notes (C2SP signed-note): a text of lines, an empty line, and a line with who signed
//! it. It does not know keys: they come with whoever asks.

use super::encoding;
use sha2::{Digest, Sha256};

/// What a signature's line begins with.
const DASH: &str = "\u{2014} ";

/// A signature as a note carries it.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Who says that they signed.
    pub name: &'a str,
    /// See [`key_id`].
    pub key: [u8; 4],
    pub signature: Vec<u8>,
}

/// The first four bytes of the digest of a key (SubjectPublicKeyInfo): they choose a key and prove nothing.
pub fn key_id(spki: &[u8]) -> [u8; 4] {
    let digest: [u8; 32] = Sha256::digest(spki).into();
    [digest[0], digest[1], digest[2], digest[3]]
}

/// The note of a text, which ends with a line feed, and its signature by that key.
pub fn write(text: &str, name: &str, spki: &[u8], signature: &[u8]) -> String {
    let line = [&key_id(spki)[..], signature].concat();
    format!("{text}\n{DASH}{name} {}\n", encoding::to_base64(&line))
}

/// The text of a note, with its last line feed; None where there is no end to it.
pub fn text(note: &str) -> Option<&str> {
    note.find("\n\n").map(|end| &note[..=end])
}

/// The one signature of a note over `text`.
///
/// # Errors
/// What it is instead.
pub fn open<'a>(note: &'a str, text: &str, longest: usize) -> Result<Line<'a>, String> {
    if note.len() > longest {
        return Err(format!("its note is longer than {longest} bytes"));
    }
    let rest = note.strip_prefix(text).ok_or("what was signed is not this checkpoint")?;
    let rest = rest.strip_prefix('\n').ok_or("its note has no signature")?;
    let line = rest.strip_prefix(DASH).and_then(|rest| rest.strip_suffix('\n')).ok_or("its note has no signature")?;
    let (name, signature) = line.split_once(' ').ok_or("its note's signature has no name")?;
    let bytes = encoding::base64(signature).ok_or("its note's signature is no base64")?;
    let (key, signature) = bytes.split_first_chunk().ok_or("its note's signature is too short")?;
    Ok(Line { name, key: *key, signature: signature.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_has_one_text_and_one_signature() {
        let note = write("a\nb\n", "n1", b"key", b"signature");
        let line = Line { name: "n1", key: key_id(b"key"), signature: b"signature".to_vec() };
        assert_eq!((text(&note), open(&note, "a\nb\n", 100)), (Some("a\nb\n"), Ok(line)));
        assert!(open(&note, "a\nb\n", 10).is_err() && open(&note, "a\n", 100).is_err());
        assert!(open(&format!("{note}{DASH}n2 AAAAAAAA\n"), "a\nb\n", 100).is_err(), "a second one");
        assert_eq!(text("a\nb\n"), None);
    }
}
