//! Weights that are programs: a pickle runs what it says when it is read, before anybody asked
//! the model anything. Such files are known by their name or by how they begin, and are
//! refused where a version is published and where a node brings or checks it. Files that are
//! no weights (scripts, configurations, tokenizers) are none of its business.

use super::{Error, FileName};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// Names that readers unpickle.
const PROGRAMS: [&str; 7] = ["pkl", "pickle", "pt", "pth", "ckpt", "joblib", "dill"];
/// Names of weights, whose beginnings are looked at.
const WEIGHTS: [&str; 4] = ["bin", "safetensors", "gguf", "onnx"];
/// How much of a file is looked at.
const HEAD: u64 = 64;
/// The longest header of a safetensors file, as its own library has it.
const MAX_HEADER: u64 = 100_000_000;
const ZIP: &[u8] = b"PK\x03\x04";
/// What PyTorch's older files begin with, in the one protocol that is text.
const TEXT_PICKLE: &[u8] = b"L119547037146038801333356L";

/// What stands after each dot of a file's name: `model.pth.tar` is read as a `.pth`.
fn parts(name: &str) -> impl Iterator<Item = String> {
    name.rsplit('/').next().unwrap_or_default().split('.').skip(1).map(str::to_ascii_lowercase)
}

fn extension(name: &str) -> String {
    name.rsplit('/')
        .next()
        .and_then(|file| file.rsplit_once('.'))
        .map_or_else(String::new, |(_, e)| e.to_ascii_lowercase())
}

/// Why a file of that name is none that may be listed.
pub(super) fn judge_name(name: &FileName) -> Result<(), String> {
    match parts(name.as_str()).find(|part| PROGRAMS.contains(&part.as_str())) {
        Some(part) => Err(format!(
            "a .{part} file runs as a program when it is loaded; publish safetensors, gguf or onnx instead"
        )),
        None => Ok(()),
    }
}

/// Why a file that begins like this is not what its name says.
fn judge_head(name: &str, head: &[u8], size: u64) -> Result<(), String> {
    let extension = extension(name);
    if !WEIGHTS.contains(&extension.as_str()) {
        return Ok(());
    }
    let protocol = |head: &[u8]| matches!(head, [0x80, 2..=5, ..]);
    if protocol(head) || head.starts_with(ZIP) || head.starts_with(TEXT_PICKLE) {
        return Err(
            "holds a pickle, which runs as a program when it is loaded; publish safetensors, gguf or onnx".into()
        );
    }
    let sound = match extension.as_str() {
        "safetensors" => {
            let length = head.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
            let fits = |length: u64| length <= MAX_HEADER.min(size.saturating_sub(8));
            length.is_some_and(fits) && head.get(8) == Some(&b'{')
        }
        "gguf" => head.starts_with(b"GGUF"),
        _ => true,
    };
    if sound { Ok(()) } else { Err(format!("does not begin as a .{extension} file does")) }
}

/// Looks at a whole file that lies here.
///
/// # Errors
/// [`Error::Mismatch`] with the file, when it is not what its name says.
pub(super) fn judge(name: &FileName, file: &mut File) -> Result<(), Error> {
    let wrong = |text: String| Error::Mismatch { file: name.to_string(), text };
    judge_name(name).map_err(wrong)?;
    let look = |file: &mut File| -> io::Result<(Vec<u8>, u64)> {
        file.seek(SeekFrom::Start(0))?;
        let mut head = Vec::new();
        file.by_ref().take(HEAD).read_to_end(&mut head)?;
        Ok((head, file.metadata()?.len()))
    };
    let (head, size) = look(file).map_err(Error::io(name.as_str()))?;
    judge_head(name.as_str(), &head, size).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pickle_is_known_by_its_name_or_its_beginning() {
        let header = |length: u64| [&length.to_le_bytes()[..], b"{\"a\":{}}"].concat();
        let (torch, zip, text) = (b"\x80\x02}q\x00.", b"PK\x03\x04\x00\x00", b"L119547037146038801333356L\n.");
        for name in ["w.bin", "a/w.safetensors", "w.gguf", "W.ONNX"] {
            for head in [&torch[..], &zip[..], &text[..]] {
                assert!(judge_head(name, head, 1000).unwrap_err().contains("pickle"), "{name}");
            }
        }
        for name in ["w.pkl", "w.pt", "sub/w.PTH", "w.ckpt", "w.joblib", "model.pth.tar", "w.PKL.gz"] {
            assert!(judge_name(&FileName::new(name).unwrap()).is_err(), "{name}");
        }
        for (name, head) in
            [("w.safetensors", &header(8)[..]), ("w.gguf", b"GGUF\x03"), ("w.onnx", b"\x08\x07"), ("w.bin", b"x")]
        {
            assert_eq!(judge_head(name, head, 1000), Ok(()), "{name}");
        }
        for length in [u64::MAX, 1 << 63, 993] {
            assert!(judge_head("w.safetensors", &header(length), 1000).is_err(), "a header of {length} bytes");
        }
        assert!(judge_head("w.safetensors", b"", 0).is_err() && judge_head("w.gguf", b"GGML", 4).is_err());
        for name in ["serve.py", "config.json", "vocab.txt", "notes.zip", "v1.pt/pickle", "pt.txt"] {
            assert_eq!(judge_head(name, zip, 6).and(judge_name(&FileName::new(name).unwrap())), Ok(()), "{name}");
        }
    }
}
