//! Whose keys sign models, as the operator has said (`NF_SIGNERS`): who published a version is who
//! signed it, and they do not approve it (P3). The file is read anew for each verdict, as
//! the keys are. It does not judge: the core does, by what is found here.

use crate::config::{Error as ConfigError, Settings};
use anyhow::Result;
use nf_core::job::Signer;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Setting, for those who are told what is wrong with it.
const SETTING: &str = "NF_SIGNERS";

/// See the module's text. Cloning shares it.
#[derive(Clone, Debug)]
pub struct People(Option<Arc<Path>>);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    signer: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    subject: String,
    issuer: Option<String>,
    keys: Vec<String>,
}

/// Owners by the ids of their keys.
type Owners = BTreeMap<String, Signer>;

impl People {
    /// Reads the file once, so that a bad one stops the start.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn open(settings: &Settings) -> Result<Self> {
        let people = Self(settings.signers.value.as_deref().map(Arc::from));
        people.owners().map_err(|text| ConfigError::Clash(format!("{SETTING}: {text}")))?;
        Ok(people)
    }

    /// Who owns these keys, each once. A key that the file does not list is nobody's.
    ///
    /// # Errors
    /// When the file cannot be used any more: then nobody knows whose they are.
    pub fn of<'a>(&self, keys: impl Iterator<Item = &'a str>) -> Result<Vec<Signer>, String> {
        let owners = self.owners().map_err(|text| format!("{SETTING}: {text}"))?;
        let mut out: Vec<Signer> = Vec::new();
        for owner in keys.filter_map(|key| owners.get(key)) {
            if !out.contains(owner) {
                out.push(owner.clone());
            }
        }
        Ok(out)
    }

    fn owners(&self) -> Result<Owners, String> {
        let Some(path) = &self.0 else { return Ok(Owners::new()) };
        let at = |text: String| format!("{}: {text}", path.display());
        if std::fs::metadata(path).map_err(|e| at(e.to_string()))?.len() > MAX_FILE {
            return Err(at(format!("longer than {MAX_FILE} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| at(e.to_string()))?;
        read(&text).map_err(at)
    }
}

fn read(text: &str) -> Result<Owners, String> {
    let file: File = toml::from_str(text).map_err(|e| e.to_string().lines().collect::<Vec<_>>().join(" "))?;
    let mut owners = Owners::new();
    for Entry { subject, issuer, keys } in file.signer {
        if subject.is_empty() || keys.is_empty() {
            return Err("a [[signer]] has a subject, as their tokens say it, and the ids of their keys".to_owned());
        }
        let signer = Signer { issuer: issuer.map(Into::into), subject: subject.as_str().into() };
        for key in keys {
            if let Some(other) = owners.insert(key.clone(), signer.clone()).filter(|other| *other != signer) {
                return Err(format!(
                    "key {key} is said to be {}'s and {subject}'s; a key is one person's",
                    other.subject
                ));
            }
        }
    }
    Ok(owners)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[[signer]]\nsubject = \"ada\"\nkeys = [\"k1\", \"k2\"]\n\
                        [[signer]]\nsubject = \"bob\"\nissuer = \"https://one\"\nkeys = [\"k3\"]\n";

    #[test]
    fn a_key_is_one_persons_and_a_stranger_s_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("signers.toml");
        std::fs::write(&path, TEXT).unwrap();
        let people = People(Some(path.as_path().into()));
        let names = |keys: &[&str]| {
            let found = people.of(keys.iter().copied()).unwrap();
            found
                .into_iter()
                .map(|who| (who.issuer.map(|i| i.to_string()), who.subject.to_string()))
                .collect::<Vec<_>>()
        };
        let (ada, bob) = ((None, "ada".to_owned()), (Some("https://one".to_owned()), "bob".to_owned()));
        assert_eq!(names(&["k1", "k2"]), std::slice::from_ref(&ada));
        assert_eq!(names(&["k3", "other", "k1"]), [bob, ada]);
        assert_eq!(names(&["other"]), []);
        // Read anew: what is taken away counts no more, and a bad file is no empty one.
        std::fs::write(&path, "").unwrap();
        assert_eq!(names(&["k1"]), []);
        std::fs::remove_file(&path).unwrap();
        assert!(people.of(["k1"].into_iter()).unwrap_err().contains("NF_SIGNERS"));
        assert_eq!(People(None).of(["k1"].into_iter()), Ok(Vec::new()));
    }

    #[test]
    fn a_bad_file_is_told_in_one_line() {
        for (bad, says) in [
            ("[[signer]]\nsubject = \"ada\"\nkeys = []\n", "ids of their keys"),
            ("[[signer]]\nsubject = \"ada\"\nkeys = [\"k\"]\nrole = 1\n", "role"),
            ("signer = 3", "signer"),
            (
                "[[signer]]\nsubject = \"a\"\nkeys = [\"k\"]\n[[signer]]\nsubject = \"b\"\nkeys = [\"k\"]\n",
                "one person",
            ),
        ] {
            let said = read(bad).unwrap_err();
            assert!(said.contains(says) && !said.contains('\n'), "{said}");
        }
    }
}
