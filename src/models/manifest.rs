//! A manifest: the files of a model version with size and SHA-256, and how the
//! version is run. Its own SHA-256, over its bytes as stored, is the version's
//! identity. Parsing is strict and bounded because the bytes come from outside.
//! It does not touch files.

use super::serving::Serving;
use super::{Checksum, Drain, Error, Image, Live, Metrics, Ready};
use nf_core::consent::MAX_CLASSES;
use nf_core::id::{Label, ModelId, VersionId};
use nf_core::job::Runtime;
use nf_core::reason::Reason;
use nf_core::sharing::Part;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

/// The longest manifest that is read.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// The most files of one version.
pub const MAX_FILES: usize = 10_000;
const MAX_ARGV: usize = 256;
const MAX_ENV: usize = 64;
const MAX_TEXT: usize = 4096;
const MAX_DEPTH: usize = 16;
/// Set by the agent; a manifest that sets them would lie to the process or to us.
const OURS: [&str; 2] = ["PATH", "HOME"];
/// Beginnings of such names, and of those that change which code runs or who is asked for secrets.
const FORBIDDEN: [&str; 6] = ["NF_", "LD_", "PYTHON", "CUDA_", "NVIDIA_", "VAULT_"];

/// A file's name inside a version: relative, with `/` between parts, never climbing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FileName(String);

impl FileName {
    /// # Errors
    /// The rule that the name breaks.
    pub fn new(text: &str) -> Result<Self, String> {
        let part = |p: &str| !p.is_empty() && p.len() <= 255 && p != "." && p != "..";
        let clean = |c: char| !c.is_control() && c != '\\';
        if text.len() > 1024 || !text.split('/').all(part) || !text.chars().all(clean) {
            let shown = nf_core::reason::printable(text, 60);
            return Err(format!("\"{shown}\" is not a relative file name without '..', '\\' and control characters"));
        }
        match text.split('/').count() {
            depth if depth > MAX_DEPTH => Err(format!("{depth} directories deep, at most {MAX_DEPTH}")),
            _ if text == "manifest.json" => Err("manifest.json is the manifest's own name".into()),
            _ => Ok(Self(text.into())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Below `root`.
    pub fn under(&self, root: &Path) -> PathBuf {
        root.join(&self.0)
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<'de> Deserialize<'de> for FileName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// One file of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    pub path: FileName,
    /// Bytes.
    pub size: u64,
    pub sha256: Checksum,
}

/// A program that serves the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Templates: `{port}` `{host}` `{model}` (the first file) `{dir}` `{file:NAME}` `{python}` `{gpu_memory_part}` (how
    /// much of its GPU's memory it may have, such as 0.5); `{{` is a brace.
    pub argv: Vec<String>,
    /// The program keeps to `{gpu_memory_part}`, so that it may share a GPU on which nothing else enforces that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub limits_gpu: bool,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub ready: Ready,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<Live>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
}

/// A program in a container of the node's engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    pub image: Image,
    /// Where the program listens inside: what `{port}` and `NF_PORT` mean there.
    #[serde(default = "Container::default_port")]
    pub port: u16,
    /// `{host}` is any address of the container, `{dir}` is [`Container::MODEL`], `{python}` is python3.
    pub program: Process,
}

impl Container {
    /// Where the version's files are inside, read-only.
    pub const MODEL: &str = "/model";

    pub const fn default_port() -> u16 {
        8000
    }

    fn check(&self, names: &BTreeSet<&str>) -> Result<(), (String, String)> {
        if self.port < 1024 {
            let text = format!("1024 to 65535, not {}: the program is not root", self.port);
            return Err(("runtime.port".into(), text));
        }
        let inner = |(field, text): (String, String)| (field.replacen("runtime.", "runtime.program.", 1), text);
        self.program.check(names).map_err(inner)
    }
}

/// See [`Manifest::context`]; no part of it holds a control character.
pub(super) fn context(model: &ModelId, version: &VersionId, file: &FileName) -> String {
    format!("{model}\n{version}\n{file}")
}

/// How the version is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Launch {
    Process(Process),
    Simulated {},
    Docker(Container),
}

/// For people who look at what they sign: the words of the command line, quoted, and the image.
impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Launch::Simulated {} => f.write_str("nothing, it is played"),
            Launch::Process(program) => write!(f, "{:?}", program.argv),
            Launch::Docker(container) => write!(f, "{:?} in {}", container.program.argv, container.image),
        }
    }
}

/// A model version, as published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub model_id: ModelId,
    pub version: VersionId,
    /// The first is the model itself, what `{model}` and `NF_MODEL_SHA256` mean.
    pub files: Vec<Artifact>,
    pub format: String,
    pub runtime: Launch,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u32>,
    /// Bytes that the version may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// What kinds of data the files hold; those that are about people need a consent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data_classes: Vec<Label>,
    /// SHA-256 of the public key that the files are encrypted to in the store; size and SHA-256 of each are those
    /// of what it is once it is open. None: they lie there as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted_to: Option<Checksum>,
    #[serde(skip, default = "Manifest::undigested")]
    digest: Checksum,
}

impl Manifest {
    fn undigested() -> Checksum {
        Checksum([0; 32])
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// [`Error::Manifest`] with the field and the rule, [`Error::Refused`] when it is longer than any may be; never
    /// a panic, whatever the bytes.
    pub fn parse(what: &str, bytes: &[u8]) -> Result<Self, Error> {
        let wrong = |field: &str, text: String| Error::Manifest { what: what.into(), field: field.into(), text };
        if bytes.len() > MAX_MANIFEST_BYTES {
            let text = format!("manifest of {what}: longer than {MAX_MANIFEST_BYTES} bytes");
            return Err(Error::Refused { reason: Reason::ArtifactTooLarge, text });
        }
        let mut manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|e| wrong("manifest.json", e.to_string()))?;
        manifest.check().map_err(|(field, text)| wrong(&field, text))?;
        manifest.digest = Checksum::of(bytes);
        Ok(manifest)
    }

    /// A manifest made here, and the bytes whose digest it carries.
    pub(super) fn seal(mut self, what: &str) -> Result<(Self, Vec<u8>), Error> {
        self.digest = Self::undigested();
        let mut bytes = serde_json::to_vec_pretty(&self).map_err(|e| Error::io(what)(e.into()))?;
        bytes.push(b'\n');
        Ok((Self::parse(what, &bytes)?, bytes))
    }

    pub(super) fn unsealed(
        model_id: ModelId,
        version: VersionId,
        files: Vec<Artifact>,
        format: String,
        runtime: Launch,
    ) -> Self {
        let digest = Self::undigested();
        Self {
            model_id,
            version,
            files,
            format,
            runtime,
            latency_ms: None,
            memory: None,
            data_classes: Vec::new(),
            encrypted_to: None,
            digest,
        }
    }

    /// SHA-256 of the manifest's bytes: the version's identity.
    pub fn sha256(&self) -> [u8; 32] {
        self.digest.0
    }

    /// The same, for people.
    pub fn digest(&self) -> Checksum {
        self.digest
    }

    /// What an encrypted file of the version is bound to: it opens as no other file.
    pub(super) fn context(&self, file: &FileName) -> String {
        context(&self.model_id, &self.version, file)
    }

    /// The model itself: the first file.
    pub fn main(&self) -> Option<&Artifact> {
        self.files.first()
    }

    /// Which of the agent's runtimes runs it.
    pub fn runtime(&self) -> Runtime {
        match self.runtime {
            Launch::Process(_) => Runtime::Process,
            Launch::Simulated {} => Runtime::Simulated,
            Launch::Docker(_) => Runtime::Docker,
        }
    }

    /// Whether its program keeps to its part of a GPU by itself.
    pub fn limits_gpu(&self) -> bool {
        match &self.runtime {
            Launch::Process(program) | Launch::Docker(Container { program, .. }) => program.limits_gpu,
            Launch::Simulated {} => false,
        }
    }

    fn check(&self) -> Result<(), (String, String)> {
        let wrong = |field: String, text: &str| Err((field, text.to_string()));
        if self.files.len() > MAX_FILES {
            return wrong("files".into(), &format!("{} of them, at most {MAX_FILES}", self.files.len()));
        }
        if self.data_classes.len() > MAX_CLASSES {
            return wrong("data_classes".into(), &format!("at most {MAX_CLASSES}"));
        }
        if self.format.len() > 64 {
            return wrong("format".into(), "longer than 64 bytes");
        }
        let names: BTreeSet<&str> = self.files.iter().map(|f| f.path.as_str()).collect();
        if names.len() != self.files.len() {
            return wrong("files".into(), "a path is listed twice");
        }
        for (i, file) in self.files.iter().enumerate() {
            super::format::judge_name(&file.path).map_err(|text| (format!("files[{i}].path"), text))?;
            let parents = file.path.as_str().match_indices('/').map(|(at, _)| &file.path.as_str()[..at]);
            if parents.into_iter().any(|parent| names.contains(parent)) {
                return wrong(format!("files[{i}].path"), "lies below another file of the list");
            }
        }
        let program = match &self.runtime {
            Launch::Simulated {} => return Ok(()),
            Launch::Process(process) | Launch::Docker(Container { program: process, .. }) => process,
        };
        if self.files.is_empty() && program.mentions_files() {
            return wrong("files".into(), "empty, but runtime.argv names a file");
        }
        match &self.runtime {
            Launch::Docker(container) => container.check(&names),
            _ => program.check(&names),
        }
    }
}

impl Process {
    fn mentions_files(&self) -> bool {
        self.argv.iter().any(|a| a.contains("{model}") || a.contains("{file:"))
    }

    fn check(&self, names: &BTreeSet<&str>) -> Result<(), (String, String)> {
        let wrong = |field: &str, text: String| Err((field.to_string(), text));
        if self.argv.is_empty() || self.argv.len() > MAX_ARGV {
            return wrong("runtime.argv", format!("1 to {MAX_ARGV} words, not {}", self.argv.len()));
        }
        for (i, word) in self.argv.iter().enumerate() {
            if let Err(text) = check_word(word, names) {
                return wrong(&format!("runtime.argv[{i}]"), text);
            }
        }
        if self.limits_gpu && !self.argv.iter().any(|word| word.contains("{gpu_memory_part}")) {
            let text = "without {gpu_memory_part} in argv the program is not told what to keep to".to_string();
            return wrong("runtime.limits_gpu", text);
        }
        if self.env.len() > MAX_ENV {
            return wrong("runtime.env", format!("at most {MAX_ENV} variables"));
        }
        for (key, value) in &self.env {
            let letters = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
            let named = !key.is_empty() && key.len() <= 128 && key.bytes().all(letters);
            let remote = key.contains("TRUST_REMOTE_CODE");
            let forbidden = remote || FORBIDDEN.iter().any(|beginning| key.starts_with(beginning));
            if !named || OURS.contains(&key.as_str()) || forbidden {
                let shown = nf_core::reason::printable(key, 40);
                let text = format!(
                    "A-Z 0-9 _, none of {OURS:?}, beginning with none of {FORBIDDEN:?}, without TRUST_REMOTE_CODE"
                );
                return wrong(&format!("runtime.env.{shown}"), text);
            }
            if value.len() > MAX_TEXT || value.contains('\0') {
                return wrong(&format!("runtime.env.{key}"), format!("at most {MAX_TEXT} bytes, no NUL"));
            }
        }
        let (live, drain, metrics) = (self.live.as_ref(), self.drain.as_ref(), self.metrics.as_ref());
        Serving { ready: &self.ready, live, drain, metrics }.check()
    }
}

/// A part of a word of the command line.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    Slot(&'a str),
}

/// Splits a word at its placeholders. `{{` and `}}` stand for one brace.
fn pieces(word: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut out = Vec::new();
    let mut rest = word;
    while let Some(at) = rest.find(['{', '}']) {
        out.push(Piece::Text(&rest[..at]));
        let tail = &rest[at..];
        if tail.starts_with("{{") || tail.starts_with("}}") {
            out.push(Piece::Text(&tail[..1]));
            rest = &tail[2..];
            continue;
        }
        let end = tail.find('}').filter(|_| tail.starts_with('{'));
        let Some(end) = end else { return Err("a single brace; write {{ or }} for one".into()) };
        out.push(Piece::Slot(&tail[1..end]));
        rest = &tail[end + 1..];
    }
    out.push(Piece::Text(rest));
    Ok(out)
}

fn check_word(word: &str, names: &BTreeSet<&str>) -> Result<(), String> {
    if word.len() > MAX_TEXT || word.contains('\0') {
        return Err(format!("at most {MAX_TEXT} bytes, no NUL"));
    }
    if word.to_ascii_lowercase().replace('-', "_").contains("trust_remote_code") {
        return Err("lets a model bring a program of its own; list its files, and name the program here".into());
    }
    for piece in pieces(word)? {
        match piece {
            Piece::Text(_) | Piece::Slot("port" | "host" | "model" | "dir" | "python" | "gpu_memory_part") => {}
            Piece::Slot(slot) => match slot.strip_prefix("file:") {
                Some(name) if names.contains(name) => {}
                Some(name) => return Err(format!("{{file:{name}}} is not among the files")),
                None => {
                    return Err(format!(
                        "{{{slot}}} is none of {{port}} {{host}} {{model}} {{dir}} {{file:NAME}} {{python}} {{gpu_memory_part}}; write {{{{ for a brace"
                    ));
                }
            },
        }
    }
    Ok(())
}

/// What the placeholders of a command line stand for on this node.
#[derive(Clone, Debug)]
pub struct Slots<'a> {
    pub host: &'a str,
    pub port: Option<u16>,
    /// Where the version's files lie.
    pub dir: &'a Path,
    pub python: &'a str,
    /// The part that it shares with others; None: its GPUs are its own, or it has none.
    pub part: Option<Part>,
}

/// Thousandths of a GPU's memory that a program which has it all is told to use: contexts and the driver need some.
const ALL_MEMORY: u16 = 900;

impl Manifest {
    /// The command line of `process` with its placeholders filled in.
    ///
    /// # Errors
    /// A text when a placeholder has no value here: a port is asked for, but the node gives none.
    pub fn argv(&self, process: &Process, slots: &Slots<'_>) -> Result<Vec<String>, String> {
        process.argv.iter().map(|word| self.fill(word, slots)).collect()
    }

    fn fill(&self, word: &str, slots: &Slots<'_>) -> Result<String, String> {
        let path = |p: PathBuf| p.to_string_lossy().into_owned();
        let mut out = String::new();
        for piece in pieces(word)? {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Slot("host") => out.push_str(slots.host),
                Piece::Slot("python") => out.push_str(slots.python),
                Piece::Slot("gpu_memory_part") => {
                    let milli = slots.part.map_or(ALL_MEMORY, |part| part.memory_milli().min(ALL_MEMORY));
                    out.push_str(format!("0.{milli:03}").trim_end_matches('0'));
                }
                Piece::Slot("dir") => out.push_str(&path(slots.dir.into())),
                Piece::Slot("port") => {
                    let port = slots.port.ok_or("{port} is asked for, but this node gives its replicas no ports")?;
                    out.push_str(&port.to_string());
                }
                Piece::Slot("model") => {
                    let main = self.main().ok_or("{model} is asked for, but the version has no file")?;
                    out.push_str(&path(main.path.under(slots.dir)));
                }
                Piece::Slot(slot) => {
                    let name = slot.strip_prefix("file:").ok_or_else(|| format!("{{{slot}}} has no meaning"))?;
                    out.push_str(&path(slots.dir.join(name)));
                }
            }
        }
        Ok(out)
    }
}
