//! Whose keys sign models, as the operator has said (`NF_SIGNERS`): who published a version is who
//! signed it, and they do not approve it (P3). The file is read anew for each verdict, as
//! the keys are. A key that it lacks is nobody's, and lets nothing through. It does not judge: the core does, by
//! what is found here.

use super::signers::{self, Signers};
use crate::agent::doctor::Finding;
use crate::config::{Error as ConfigError, Settings};
use crate::security::signing::PublicKey;
use anyhow::Result;
use nf_core::job::{Publishers, Signer};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// The longest subject or issuer, in bytes: that of a token.
const MAX_NAME: usize = 256;
/// Setting, for those who are told what is wrong with it.
const SETTING: &str = "NF_SIGNERS";
/// What ids of Vault's keys begin with.
const VAULT: &str = "vault:";

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

    /// Who owns these keys, all of which made one signature.
    ///
    /// # Errors
    /// When the file cannot be used any more: then nobody knows whose they are.
    pub fn of<'a>(&self, keys: impl Iterator<Item = &'a str>) -> Result<Publishers, String> {
        let Some(owners) = self.owners().map_err(|text| format!("{SETTING}: {text}"))? else {
            return Ok(Publishers::Unsaid);
        };
        let mut known: Vec<Signer> = Vec::new();
        for key in keys {
            match owners.get(key) {
                None => return Ok(Publishers::Unlisted { key: key.into() }),
                Some(owner) if known.contains(owner) => {}
                Some(owner) => known.push(owner.clone()),
            }
        }
        match known.is_empty() {
            true => Err("a signature by no key says nothing of its publisher".into()),
            false => Ok(Publishers::Known(known)),
        }
    }

    /// None without a file.
    fn owners(&self) -> Result<Option<Owners>, String> {
        let Some(path) = &self.0 else { return Ok(None) };
        let at = |text: String| format!("{}: {text}", path.display());
        if std::fs::metadata(path).map_err(|e| at(e.to_string()))?.len() > MAX_FILE {
            return Err(at(format!("longer than {MAX_FILE} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| at(e.to_string()))?;
        read(&text).map(Some).map_err(at)
    }

    /// Tells the log whose each key is, so that a name that is spelt wrongly is seen.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub fn tell(&self, keys: &Signers) -> Result<(), String> {
        let Some(held) = self.held_against(keys)? else { return Ok(()) };
        for (owner, keys) in &held.owners {
            tracing::info!(setting = SETTING, %owner, keys = keys.join(", "), "signs models, and approves none of their own");
        }
        for (key, file) in &held.unlisted {
            let text =
                "nobody's key in NF_SIGNERS: what it signs is SignerUnknown in production until it is listed there";
            tracing::warn!(key, file, "{text}");
        }
        for key in &held.unused {
            tracing::warn!(key, "in NF_SIGNERS, and no configured key: spelt wrongly, or of a key that signs no more");
        }
        Ok(())
    }

    /// What the list says beside the keys that count; None where there is no list.
    fn held_against(&self, keys: &Signers) -> Result<Option<Held>, String> {
        let Some(owners) = self.owners()? else { return Ok(None) };
        let configured = keys.ids().map_err(|refusal| signers::told(&refusal))?;
        let mut held = Held::default();
        for (key, owner) in &owners {
            held.owners.entry(named(owner)).or_default().push(key.clone());
            if !configured.contains_key(key) && !key.starts_with(VAULT) {
                held.unused.push(key.clone());
            }
        }
        held.unlisted = configured.into_iter().filter(|(key, _)| !owners.contains_key(key)).collect();
        Ok(Some(held))
    }
}

/// The list beside the configured keys.
#[derive(Debug, Default)]
struct Held {
    /// The ids of their keys, by who they are.
    owners: BTreeMap<String, Vec<String>>,
    /// Configured keys that are nobody's, with their files.
    unlisted: Vec<(String, String)>,
    /// Listed ids of no configured key.
    unused: Vec<String>,
}

fn named(owner: &Signer) -> String {
    match &owner.issuer {
        Some(issuer) => format!("{} of {issuer}", owner.subject),
        None => format!("{} of any issuer", owner.subject),
    }
}

/// What `nf doctor` says of the list; None where no key signs models here.
pub fn look(settings: &Settings) -> Option<Finding> {
    const CHECK: &str = "signers";
    let keys = match Signers::open(settings) {
        Ok(keys) => keys,
        Err(error) => return Some(Finding::fault(CHECK, error.to_string(), "mend that file, or the setting")),
    };
    let people = People(settings.signers.value.as_deref().map(Arc::from));
    if people.0.is_none() && keys.is_empty() {
        return None;
    }
    Some(match people.held_against(&keys) {
        Err(text) => {
            Finding::fault(CHECK, format!("{SETTING}: {text}"), "mend that file: until then nothing is let in")
        }
        Ok(None) => {
            let next =
                "say in NF_SIGNERS whose the keys are; until then P3 asks only that approver and scheduler differ";
            Finding::missing(CHECK, "nobody has said whose keys sign models", next)
        }
        Ok(Some(held)) => held.finding(CHECK),
    })
}

impl Held {
    fn finding(&self, check: &'static str) -> Finding {
        let owners = self.owners.iter().map(|(owner, keys)| format!("{owner}: {}", keys.join(", ")));
        let mut detail = vec![owners.collect::<Vec<_>>().join("; ")];
        detail.extend(self.unlisted.iter().map(|(key, file)| format!("{key} ({file}) is nobody's")));
        detail.extend(self.unused.iter().map(|key| format!("{key} is no configured key")));
        let detail = detail.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
        match (self.unlisted.is_empty(), self.unused.is_empty()) {
            (true, true) => Finding::ok(check, detail),
            (false, _) => {
                Finding::missing(check, detail, "list each key below its owner's subject: what it signs is refused")
            }
            (true, false) => Finding::missing(check, detail, "compare its spelling with nf model keygen's or verify's"),
        }
    }
}

fn read(text: &str) -> Result<Owners, String> {
    let file: File = toml::from_str(text).map_err(|e| e.to_string().lines().collect::<Vec<_>>().join(" "))?;
    let mut owners = Owners::new();
    for Entry { subject, issuer, keys } in file.signer {
        if keys.is_empty() {
            return Err("a [[signer]] has a subject, as their tokens say it, and the ids of their keys".to_owned());
        }
        name("subject", &subject)?;
        issuer.as_deref().map_or(Ok(()), |issuer| name("issuer", issuer))?;
        let signer = Signer { issuer: issuer.map(Into::into), subject: subject.as_str().into() };
        owners.values().try_for_each(|other| apart(other, &signer))?;
        for key in keys {
            shape(&key)?;
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

/// As tokens spell names: a space too many would make somebody else of the person who is meant.
fn name(what: &str, text: &str) -> Result<(), String> {
    let spelt = !text.is_empty() && text.len() <= MAX_NAME && !text.chars().any(char::is_control);
    match spelt && text.trim() == text {
        true => Ok(()),
        false => Err(format!(
            "{what} {text:?}: 1 to {MAX_NAME} bytes without spaces at its ends, exactly as the tokens say it"
        )),
    }
}

/// One person is listed in one way: else what is said of them is not said of all their keys.
fn apart(one: &Signer, other: &Signer) -> Result<(), String> {
    if !one.subject.eq_ignore_ascii_case(&other.subject) {
        return Ok(());
    }
    if one.subject != other.subject {
        let (one, other) = (&one.subject, &other.subject);
        return Err(format!("subjects {one} and {other} differ in capitals alone; spell them as the tokens do"));
    }
    match one.issuer.is_some() == other.issuer.is_some() {
        true => Ok(()),
        false => Err(format!("subject {} is listed with an issuer and without one; name it in each", one.subject)),
    }
}

/// Whether a key could be named so at all.
fn shape(key: &str) -> Result<(), String> {
    match key.starts_with(VAULT) || PublicKey::is_id(key) {
        true => Ok(()),
        false => Err(format!(
            "key {key:?} is no key's id: base64 of a SHA-256, as nf model keygen and nf model verify print it, or \
             vault:MOUNT/KEY:vN"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::signing::sign::PrivateKey;

    /// A key's id, of a made up digest.
    fn id(n: u8) -> String {
        format!("{}{}=", (b'A' + n) as char, "A".repeat(42))
    }

    fn signer(subject: &str, issuer: Option<&str>, keys: &[&str]) -> String {
        let issuer = issuer.map_or(String::new(), |issuer| format!("issuer = {issuer:?}\n"));
        format!("[[signer]]\nsubject = {subject:?}\n{issuer}keys = {keys:?}\n")
    }

    fn known(names: &[(&str, Option<&str>)]) -> Publishers {
        let who = |(subject, issuer): &(&str, Option<&str>)| Signer {
            issuer: issuer.map(Into::into),
            subject: (*subject).into(),
        };
        Publishers::Known(names.iter().map(who).collect())
    }

    #[test]
    fn who_signed_is_everybody_whose_key_did_and_one_key_that_is_nobodys_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("signers.toml");
        let [k1, k2, k3, stranger] = [0, 1, 2, 3].map(id);
        let text = signer("ada", None, &[&k1, &k2]) + &signer("bob", Some("https://one"), &[&k3, "vault:transit/m:v1"]);
        std::fs::write(&path, text).unwrap();
        let people = People(Some(path.as_path().into()));
        let of = |keys: &[&str]| people.of(keys.iter().copied());
        let (ada, bob) = (("ada", None), ("bob", Some("https://one")));
        assert_eq!(of(&[&k1, &k2]), Ok(known(&[ada])));
        assert_eq!(of(&[&k3, &k1]), Ok(known(&[bob, ada])));
        assert_eq!(of(&["vault:transit/m:v1"]), Ok(known(&[bob])));
        for half in [[&k1, &stranger], [&stranger, &k1], [&stranger, &stranger]] {
            let keys = half.map(String::as_str);
            assert_eq!(of(&keys), Ok(Publishers::Unlisted { key: stranger.as_str().into() }), "{keys:?}");
        }
        // Read anew: what is taken away counts no more, and a bad file is no empty one.
        std::fs::write(&path, "").unwrap();
        assert_eq!(of(&[&k1]), Ok(Publishers::Unlisted { key: k1.as_str().into() }));
        std::fs::remove_file(&path).unwrap();
        assert!(of(&[&k1]).unwrap_err().contains("NF_SIGNERS"));
        assert_eq!(People(None).of([k1.as_str()].into_iter()), Ok(Publishers::Unsaid));
    }

    #[test]
    fn a_bad_file_is_told_in_one_line() {
        let [k, other] = [0, 1].map(id);
        let two = |one: String, other: String| one + &other;
        for (bad, says) in [
            (signer("ada", None, &[]), "ids of their keys"),
            (signer("ada", None, &[&k]) + "role = 1\n", "role"),
            ("signer = 3".to_owned(), "signer"),
            (two(signer("a", None, &[&k]), signer("b", None, &[&k])), "one person"),
            (signer("", None, &[&k]), "subject"),
            (signer("ada ", None, &[&k]), "without spaces"),
            (signer("a\tda", None, &[&k]), "tokens say it"),
            (signer(&"a".repeat(257), None, &[&k]), "256 bytes"),
            (signer("ada", Some(" https://one"), &[&k]), "issuer"),
            (signer("ada", None, &[&k[1..]]), "no key's id"),
            (signer("ada", None, &[&"ab".repeat(32)]), "nf model keygen"),
            (two(signer("ada", None, &[&k]), signer("Ada", None, &[&other])), "capitals"),
            (two(signer("ada", None, &[&k]), signer("ada", Some("https://one"), &[&other])), "name it in each"),
        ] {
            let said = read(&bad).unwrap_err();
            assert!(said.contains(says) && !said.contains('\n'), "{said}");
        }
        let issuers = ["https://one", "https://two"].map(Some);
        assert!(read(&two(signer("ada", issuers[0], &[&k]), signer("ada", issuers[1], &[&other]))).is_ok(), "two adas");
    }

    #[test]
    fn the_list_is_held_against_the_configured_keys() {
        let dir = tempfile::tempdir().unwrap();
        let [ecdsa, pq] = [PrivateKey::new_ecdsa().unwrap(), PrivateKey::new_ml_dsa().unwrap()];
        std::fs::write(dir.path().join("keys.pem"), format!("{}{}", ecdsa.public, pq.public)).unwrap();
        let list = dir.path().join("signers.toml");
        let settings = |names: &[(&str, &str)]| {
            let value = |(name, file): &(&str, &str)| ((*name).to_owned(), dir.path().join(file).display().to_string());
            let environment = names.iter().map(value).collect();
            let sources = crate::config::Sources { flags: &Default::default(), environment, file: None };
            Settings::load(&sources).unwrap()
        };
        let said = |text: &str| {
            std::fs::write(&list, text).unwrap();
            let found = look(&settings(&[("COSIGN_KEY_PATH", "keys.pem"), ("NF_SIGNERS", "signers.toml")])).unwrap();
            (found.verdict, found.detail + found.next.as_deref().unwrap_or_default())
        };
        use crate::agent::doctor::Verdict;
        let (verdict, text) = said(&signer("ada", None, &[&ecdsa.id, &pq.id]));
        assert!(verdict == Verdict::Ok && text.contains("ada of any issuer") && text.contains(&pq.id), "{text}");
        let (verdict, text) = said(&signer("ada", None, &[&ecdsa.id]));
        assert!(
            verdict == Verdict::Missing && text.contains(&format!("{} (COSIGN_KEY_PATH) is nobody's", pq.id)),
            "{text}"
        );
        let (verdict, text) = said(&signer("ada", None, &[&ecdsa.id, &pq.id, &id(0)]));
        assert!(verdict == Verdict::Missing && text.contains(&format!("{} is no configured key", id(0))), "{text}");
        let (verdict, text) = said("signer = 3");
        assert!(verdict == Verdict::Fault && text.contains("NF_SIGNERS"), "{text}");
        let found = look(&settings(&[("COSIGN_KEY_PATH", "keys.pem")])).unwrap();
        assert!(found.verdict == Verdict::Missing && found.next.unwrap().contains("NF_SIGNERS"));
        assert!(look(&settings(&[])).is_none());
    }
}
