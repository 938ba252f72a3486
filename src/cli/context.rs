//! Contexts: which group the commands speak to. One TOML file each and a file
//! that names the current one, so that other clients read the same. It does not
//! know how the group is spoken to.

use super::exit::{Exit, fail};
use crate::security::{Secret, kept};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// One group and how to reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Public addresses of members, as URLs.
    pub addrs: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "kept")]
    pub token: Option<Secret>,
    /// Authorities (PEM) that vouch for https addresses; the system's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

/// Where nothing says otherwise.
pub const DEFAULT_ADDR: &str = "http://127.0.0.1:8600";

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// `$XDG_CONFIG_HOME/neural-fabric`.
fn home() -> Result<PathBuf> {
    let base = env("XDG_CONFIG_HOME").map(PathBuf::from);
    let base = base.or_else(|| env("HOME").map(|home| PathBuf::from(home).join(".config")));
    let missing = || fail(Exit::Usage, "no home for contexts: set HOME or XDG_CONFIG_HOME, or give --addr");
    Ok(base.ok_or_else(missing)?.join("neural-fabric"))
}

fn file(name: &str) -> Result<PathBuf> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(fine) {
        return Err(fail(Exit::Usage, format!("{name:?} is not a context name: use 1 to 64 of a-z A-Z 0-9 - _ .")));
    }
    Ok(home()?.join("contexts").join(format!("{name}.toml")))
}

/// The name of the selected context.
pub fn current() -> Option<String> {
    let text = std::fs::read_to_string(home().ok()?.join("current")).ok()?;
    Some(text.trim().to_owned()).filter(|name| !name.is_empty())
}

/// All names, sorted.
pub fn names() -> Result<Vec<String>> {
    let dir = home()?.join("contexts");
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(Vec::new()) };
    let name = |entry: std::fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".toml").map(str::to_owned);
    let mut names: Vec<_> = entries.flatten().filter_map(name).collect();
    names.sort();
    Ok(names)
}

pub fn read(name: &str) -> Result<Context> {
    let path = file(name)?;
    let text = std::fs::read_to_string(&path)
        .map_err(|_| fail(Exit::NotFound, format!("no context {name}\n  try: nf context list")))?;
    toml::from_str(&text).map_err(|e| fail(Exit::Usage, format!("{}: {e}", path.display())))
}

/// Writes a context, readable by its owner alone.
pub fn write(name: &str, context: &Context) -> Result<()> {
    let path = file(name)?;
    replace(&path, &toml::to_string(context).context("writing a context as TOML")?)
}

/// Makes `name` the current one.
pub fn select(name: &str) -> Result<()> {
    read(name)?;
    replace(&home()?.join("current"), &format!("{name}\n"))
}

fn replace(path: &std::path::Path, text: &str) -> Result<()> {
    let name = || path.display().to_string();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(name)?;
    }
    let temporary = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary).with_context(name)?;
    file.write_all(text.as_bytes()).with_context(name)?;
    std::fs::rename(&temporary, path).with_context(name)
}

/// Flag, then NF_ADDR, NEURAL_FABRIC_URL, the context, and the default.
pub fn resolve(addr: Option<&str>, name: Option<&str>) -> Result<Context> {
    let split = |text: &str| -> Vec<String> {
        let parts = text.split(',').map(|a| a.trim().trim_end_matches('/')).filter(|a| !a.is_empty());
        parts.map(|a| if a.contains("://") { a.to_owned() } else { format!("http://{a}") }).collect()
    };
    let given = addr.map(str::to_owned).or_else(|| env("NF_ADDR")).or_else(|| env("NEURAL_FABRIC_URL"));
    // A context named by a flag is meant, whatever the environment says.
    let mut context = match (addr, name, given, current()) {
        (None, Some(name), _, _) => read(name)?,
        (_, _, Some(given), _) => Context { addrs: split(&given), ..Context::default() },
        (_, _, None, Some(name)) => read(&name)?,
        (_, _, None, None) => Context { addrs: vec![DEFAULT_ADDR.to_owned()], ..Context::default() },
    };
    context.token = env("NF_TOKEN").map(Secret::new).or(context.token);
    context.ca = env("NF_CA").map(PathBuf::from).or(context.ca);
    match context.addrs.is_empty() {
        true => Err(fail(Exit::Usage, "no address: give --addr http://127.0.0.1:8600")),
        false => Ok(context),
    }
}
