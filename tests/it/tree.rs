//! The repository as text, for the tests that hold its own rules against it.
//! It does not know the rules.

use std::fs;
use std::path::{Path, PathBuf};

/// One text file of the repository.
pub struct Source {
    /// From the repository's root, with `/`.
    pub path: String,
    pub text: String,
}

/// The repository's root, where Cargo runs tests. (As it was when this was compiled would be
/// another clone's, where two share a target directory.)
pub fn root() -> &'static Path {
    Path::new(".")
}

/// One file, whose absence is a failure.
pub fn read(path: &str) -> Source {
    let text = fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    Source { path: path.to_owned(), text }
}

/// All files below `folders` with one of `extensions`, in order of path.
pub fn sources(folders: &[&str], extensions: &[&str]) -> Vec<Source> {
    let mut out = Vec::new();
    for folder in folders {
        walk(&root().join(folder), extensions, &mut out);
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!out.is_empty(), "nothing found in {folders:?}");
    out
}

fn walk(path: &Path, extensions: &[&str], out: &mut Vec<Source>) {
    if path.is_dir() {
        let entries = fs::read_dir(path).unwrap().map(|e| e.unwrap().path());
        let hidden = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        entries.filter(|p| !hidden(p) && !p.ends_with("target")).for_each(|p| walk(&p, extensions, out));
    } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
        out.push(Source { text: fs::read_to_string(path).unwrap(), path: name });
    }
}

/// The lines without comments. Good enough for names: no string of ours holds `//` before one.
pub fn code(text: &str) -> String {
    let cut = |line: &str| line.split("//").next().unwrap_or("").to_owned();
    text.lines().map(cut).collect::<Vec<_>>().join("\n")
}
