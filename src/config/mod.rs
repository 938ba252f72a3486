//! Settings: flag, environment, config file, default, in this order, each value
//! with its origin. A value that can't be understood stops the start with one
//! line that names the variable. It does not know what the settings do.

mod check;
mod flags;
pub mod parse;
mod table;
mod value;

pub use flags::Flags;
pub use nf_core::reason::REDACTED;
pub use parse::Mode;
pub use table::{Row, Settings, TABLE};
pub use value::{Origin, Setting};

use config::{Config, Environment, File, FileFormat, Source};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use value::Raw;

/// Read when neither `--config` nor `NF_CONFIG` says otherwise.
const SYSTEM_FILE: &str = "/etc/neural-fabric/nf.toml";
/// The second spelling of MAX_TENANT_GPUs.
const OTHER_SPELLING: &str = "MAX_TENANT_GPUS";

/// Why the settings don't hold. Each text is one line that names the setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{variable} ({origin}) is {shown}; it must be {why}")]
    Value { variable: &'static str, origin: Origin, shown: String, why: String },
    #[error("{path}: {why}")]
    File { path: String, why: String },
    #[error("{0}")]
    Clash(String),
    /// The data directory is another group's.
    #[error("{0}")]
    OtherCluster(String),
    #[error("production needs {}: set {}, or run in simulation with SIMULATION_MODE=true", .0.join(", "), if .0.len() == 1 { "it" } else { "them" })]
    Missing(Vec<&'static str>),
}

impl Error {
    /// What kind it is, in the word that programs go by.
    pub fn token(&self) -> &'static str {
        match self {
            Error::OtherCluster(_) => "OtherCluster",
            _ => "InvalidSetting",
        }
    }
}

/// Where the three layers are read from; tests hand in their own.
pub struct Sources<'a> {
    /// Flag values by setting key.
    pub flags: &'a BTreeMap<String, String>,
    pub environment: HashMap<String, String>,
    /// `--config`.
    pub file: Option<PathBuf>,
}

impl<'a> Sources<'a> {
    /// The process' own environment.
    pub fn process(flags: &'a Flags) -> Self {
        // A variable that is no text can't be one of ours.
        let text =
            |(k, v): (std::ffi::OsString, std::ffi::OsString)| Some((k.into_string().ok()?, v.into_string().ok()?));
        Self {
            flags: &flags.values,
            environment: std::env::vars_os().filter_map(text).collect(),
            file: flags.config.clone(),
        }
    }
}

impl Settings {
    /// Reads, parses and checks all settings.
    ///
    /// # Errors
    /// [`Error`], one line, naming the setting.
    pub fn load(sources: &Sources<'_>) -> Result<Self, Error> {
        let environment = environment(&sources.environment)?;
        let file = file(sources)?;
        let path = file.as_ref().map(|(path, _)| path.display().to_string()).unwrap_or_default();
        let merged = merge(sources.flags, environment.clone(), file.map(|(_, text)| text))
            .map_err(|e| Error::File { path: path.clone(), why: e.to_string() })?;
        known_keys(&merged, &path)?;
        let in_file = |value: &config::Value| value.origin().is_some();
        let settings = Self::parse(|row| {
            let value = merged.get(row.key).cloned();
            let from_file = value.as_ref().is_some_and(in_file);
            let origin = match () {
                () if sources.flags.contains_key(row.key) => Origin::Flag(row.flag().to_owned()),
                () if environment.contains_key(row.key) => Origin::Environment(row.env.to_owned()),
                () if from_file => Origin::File(path.clone()),
                () => Origin::Default,
            };
            let text = value.and_then(|v| text_of(v.kind)).unwrap_or_else(|| row.default.to_owned());
            Raw { row, text, origin }
        })?;
        settings.check()?;
        Ok(settings)
    }

    /// Each setting with its value and origin, secrets hidden.
    pub fn view(&self) -> Vec<(&'static Row, String, &Origin)> {
        self.shown().into_iter().map(|(row, text, origin)| (row, without_password(text), origin)).collect()
    }
}

/// A URL may carry a password; it is hidden wherever it stands.
fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let authority = rest.split('/').next().unwrap_or(rest);
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{REDACTED}@{host}{}", &rest[authority.len()..]),
        None => text.to_owned(),
    }
}

/// The variables that are ours, by setting key.
fn environment(all: &HashMap<String, String>) -> Result<HashMap<String, String>, Error> {
    let mut out = HashMap::new();
    for row in TABLE {
        if let Some(value) = all.get(row.env).filter(|value| !value.is_empty()) {
            out.insert(row.key.to_owned(), value.clone());
        }
    }
    let (one, other) = (all.get("MAX_TENANT_GPUs"), all.get(OTHER_SPELLING));
    match (one.filter(|v| !v.is_empty()), other.filter(|v| !v.is_empty())) {
        (Some(one), Some(other)) if one != other => {
            let text = format!(
                "MAX_TENANT_GPUs ({one:?}) and MAX_TENANT_GPUS ({other:?}) differ; unset one of the two environment variables"
            );
            return Err(Error::Clash(text));
        }
        (None, Some(other)) => {
            out.insert("max_tenant_gpus".to_owned(), other.clone());
        }
        _ => {}
    }
    Ok(out)
}

/// The config file's path and text, if there is one.
fn file(sources: &Sources<'_>) -> Result<Option<(PathBuf, String)>, Error> {
    let from_env = sources.environment.get("NF_CONFIG").filter(|v| !v.is_empty()).map(PathBuf::from);
    let named = sources.file.clone().or(from_env);
    let path = named.clone().unwrap_or_else(|| Path::new(SYSTEM_FILE).to_owned());
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(e) if named.is_none() && e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => {
            Err(Error::File { path: path.display().to_string(), why: format!("{e}; see --config and NF_CONFIG") })
        }
    }
}

fn merge(
    flags: &BTreeMap<String, String>,
    environment: HashMap<String, String>,
    file: Option<String>,
) -> Result<HashMap<String, config::Value>, config::ConfigError> {
    let mut builder = Config::builder();
    if let Some(text) = file {
        // Parsed apart, so that a value of the file is known by its origin.
        let parsed = File::from_str(&text, FileFormat::Toml).collect()?;
        let marked =
            |(key, value): (String, config::Value)| (key, config::Value::new(Some(&"file".to_owned()), value.kind));
        builder = builder.add_source(Marked(parsed.into_iter().map(marked).collect()));
    }
    builder = builder.add_source(Environment::default().ignore_empty(true).source(Some(environment)));
    for (key, value) in flags {
        builder = builder.set_override(key, value.as_str())?;
    }
    builder.build()?.collect().map(|map| map.into_iter().collect())
}

/// A config file that was parsed already.
#[derive(Clone, Debug)]
struct Marked(HashMap<String, config::Value>);

impl Source for Marked {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }
    fn collect(&self) -> Result<config::Map<String, config::Value>, config::ConfigError> {
        Ok(self.0.clone().into_iter().collect())
    }
}

/// A file's list is what a comma-separated text is elsewhere.
fn text_of(kind: config::ValueKind) -> Option<String> {
    match kind {
        config::ValueKind::Array(items) => {
            let texts: Option<Vec<_>> = items.into_iter().map(|item| text_of(item.kind)).collect();
            Some(texts?.join(","))
        }
        config::ValueKind::Nil => None,
        // No setting is a table; its text fails to parse and says so.
        config::ValueKind::Table(_) => Some("{…}".to_owned()),
        scalar => Some(scalar.to_string()),
    }
}

fn known_keys(merged: &HashMap<String, config::Value>, path: &str) -> Result<(), Error> {
    let known = |key: &str| TABLE.iter().any(|row| row.key == key);
    let mut unknown: Vec<_> = merged.keys().filter(|key| !known(key)).collect();
    unknown.sort();
    match unknown.first() {
        None => Ok(()),
        Some(key) => {
            let why = format!("{key} is not a setting; nf config view lists them all");
            Err(Error::File { path: path.to_owned(), why })
        }
    }
}

#[cfg(test)]
mod tests;
