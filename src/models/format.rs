//! Which files a version may have: weights in formats that are data and nothing else, and what
//! lies beside them (configurations, tokenizers, scripts that the manifest's own command line runs). All
//! else is refused where a version is published and where a node brings or checks it: a pickle, which runs what
//! it says when it is read, has many names. What a file is, is told by its name, and of weights by how they begin.

use super::{Error, FileName};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// Names that readers unpickle.
const PROGRAMS: [&str; 7] = ["pkl", "pickle", "pt", "pth", "ckpt", "joblib", "dill"];
/// Weights that are data, whatever they hold; their beginnings are looked at.
const WEIGHTS: [&str; 3] = ["safetensors", "gguf", "onnx"];
/// What may lie beside them, and is read as text or as a tokenizer's tables.
const BESIDE: [&str; 25] = [
    "json",
    "jsonl",
    "txt",
    "md",
    "yaml",
    "yml",
    "toml",
    "ini",
    "cfg",
    "csv",
    "tsv",
    "xml",
    "html",
    "pbtxt",
    "jinja",
    "jinja2",
    "vocab",
    "merges",
    "model",
    "spm",
    "tiktoken",
    "py",
    "sh",
    "gitattributes",
    "gitignore",
];
/// Files that have no dot in their names, and may begin with anything that is no pickle.
const BARE: [&str; 8] = ["license", "licence", "notice", "readme", "copying", "authors", "use_policy", "modelfile"];
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

/// Tensors that an ONNX model keeps beside itself: `model.onnx_data`, `model.onnx.data`.
fn is_onnx_data(name: &str) -> bool {
    let mut last = parts(name).collect::<Vec<_>>().into_iter().rev();
    match (last.next(), last.next()) {
        (Some(one), _) if one.starts_with("onnx_data") => true,
        (Some(one), Some(before)) => one == "data" && before == "onnx",
        _ => false,
    }
}

fn extension(name: &str) -> String {
    name.rsplit('/')
        .next()
        .and_then(|file| file.rsplit_once('.'))
        .map_or_else(String::new, |(_, e)| e.to_ascii_lowercase())
}

/// Why a file of that name is none that may be listed.
pub(super) fn judge_name(name: &FileName) -> Result<(), String> {
    let name = name.as_str();
    if let Some(part) = parts(name).find(|part| PROGRAMS.contains(&part.as_str())) {
        return Err(format!(
            "a .{part} file runs as a program when it is loaded; publish safetensors, gguf or onnx instead"
        ));
    }
    let (extension, file) = (extension(name), name.rsplit('/').next().unwrap_or_default().to_ascii_lowercase());
    let listed = |list: &[&str], word: &str| list.contains(&word);
    // A name without a dot may be a program's; its beginning tells.
    let bare = !file.contains('.');
    if bare || listed(&WEIGHTS, &extension) || listed(&BESIDE, &extension) || is_onnx_data(name) {
        return Ok(());
    }
    Err(format!(
        "a version's weights are .safetensors, .gguf or .onnx files, and beside them lie .{}, LICENSE or README, and programs \
         without an ending that begin with #! or are ELF; convert this one, or leave it out",
        BESIDE.join(", .")
    ))
}

/// Why a file that begins like this is not what its name says.
fn judge_head(name: &str, head: &[u8], size: u64) -> Result<(), String> {
    let (extension, file) = (extension(name), name.rsplit('/').next().unwrap_or_default().to_ascii_lowercase());
    if BESIDE.contains(&extension.as_str()) {
        return Ok(());
    }
    let protocol = |head: &[u8]| matches!(head, [0x80, 2..=5, ..]);
    if protocol(head) || head.starts_with(ZIP) || head.starts_with(TEXT_PICKLE) {
        return Err(
            "holds a pickle, which runs as a program when it is loaded; publish safetensors, gguf or onnx".into()
        );
    }
    if !file.contains('.') {
        // What its manifest's command line runs says itself that it is run.
        let program = head.starts_with(b"#!") || head.starts_with(b"\x7fELF");
        let text =
            "has no ending, and is no program by its beginning (#! or ELF); weights are .safetensors, .gguf or .onnx";
        return if program || BARE.contains(&file.as_str()) { Ok(()) } else { Err(text.into()) };
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
/// [`Error::Unfit`] with the file, when it is not what its name says.
pub(super) fn judge(name: &FileName, file: &mut File) -> Result<(), Error> {
    let wrong = |text: String| Error::Unfit { file: name.to_string(), text };
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
        for name in ["a/w.safetensors", "w.gguf", "W.ONNX", "w.onnx_data", "w.onnx.data"] {
            for head in [&torch[..], &zip[..], &text[..]] {
                assert!(judge_head(name, head, 1000).unwrap_err().contains("pickle"), "{name}");
            }
        }
        for name in ["w.pkl", "w.pt", "sub/w.PTH", "w.ckpt", "w.joblib", "model.pth.tar", "w.PKL.gz", "vocab.pt.json"] {
            assert!(judge_name(&FileName::new(name).unwrap()).unwrap_err().contains("program"), "{name}");
        }
        for (name, head) in [("w.safetensors", &header(8)[..]), ("w.gguf", b"GGUF\x03"), ("w.onnx", b"\x08\x07")] {
            assert_eq!(judge_head(name, head, 1000), Ok(()), "{name}");
        }
        for length in [u64::MAX, 1 << 63, 993] {
            assert!(judge_head("w.safetensors", &header(length), 1000).is_err(), "a header of {length} bytes");
        }
        assert!(judge_head("w.safetensors", b"", 0).is_err() && judge_head("w.gguf", b"GGML", 4).is_err());
    }

    #[test]
    fn what_is_on_no_list_is_in_no_version() {
        let judged = |name: &str| judge_name(&FileName::new(name).unwrap());
        let fine =
            ["serve.py", "config.json", "a/vocab.txt", "merges.txt", "tokenizer.model", "LICENSE", "sub/README.md"];
        let data = ["w.ONNX", "w.gguf", "w-00001-of-2.safetensors", "w.onnx_data", "w.onnx_data_1", "w.onnx.data"];
        for name in fine.into_iter().chain(data).chain(["v1.pt/config.json", ".gitattributes", "config.pbtxt"]) {
            assert_eq!(judged(name), Ok(()), "{name}");
        }
        // Each may hold a pickle, or be opened by what unpickles.
        let others = ["w.bin", "pytorch_model.bin", "w.npy", "w.npz", "w.nemo", "w.keras", "w.h5", "notes.zip"];
        for name in others.into_iter().chain(["a.tar", "x.so", "w.data", "onnx.data", "w.msgpack", "w.engine", "w."]) {
            let said = judged(name).unwrap_err();
            assert!(said.contains(".safetensors, .gguf or .onnx"), "{name}: {said}");
        }
    }
    #[test]
    fn a_file_without_an_ending_is_a_program_or_a_text_that_everybody_knows() {
        assert_eq!(judge_name(&FileName::new("bin/serve").unwrap()), Ok(()));
        for head in [&b"#!/bin/sh"[..], b"\x7fELF\x02"] {
            assert_eq!(judge_head("bin/serve", head, 1000), Ok(()));
        }
        assert_eq!(judge_head("LICENSE", b"Apache", 1000), Ok(()));
        for head in [&b"\x80\x02}q\x00."[..], b"PK\x03\x04\x00\x00", b"L119547037146038801333356L\n.", b"\x00\x01", b""]
        {
            judge_head("weights", head, 1000).unwrap_err();
        }
        judge_head("README", b"\x80\x02}q\x00.", 1000).unwrap_err();
    }
}
