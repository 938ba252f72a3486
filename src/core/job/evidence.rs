//! By what a version was let in: a signature, as the member that took the call verified it, and whose
//! keys made it. It does not know formats or keys.

use crate::audit::Person;
use crate::id::VersionId;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A signature that was verified, by digest, so that what was trusted can be found again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// SHA-256 of the signature file.
    pub signature: [u8; 32],
    pub key_id: Arc<str>,
    /// What was signed with it: once this version is let in, nothing older is.
    pub min_version: Option<VersionId>,
    /// Who may not approve it (P3).
    pub publishers: Publishers,
}

/// Who published a version: those whose keys signed it, as far as the operator has said whose they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Publishers {
    /// Of no key: there is no list.
    #[default]
    Unsaid,
    /// Of each key of its signature; a person is there once.
    Known(Vec<Signer>),
    /// The list lacks this key of its signature. Its owner may be whoever approves the version, and nobody could tell.
    Unlisted { key: Arc<str> },
}

/// Somebody who signs versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signer {
    /// None: whoever has that name, whichever issuer says so.
    pub issuer: Option<Arc<str>>,
    pub subject: Arc<str>,
}

impl Signer {
    /// Whether they may be the same. A list is written by hand: what it leaves open (the issuer), or spells with other
    /// capitals, makes no two people of one.
    pub fn is(&self, person: &Person) -> bool {
        let issuers = self.issuer.as_ref().zip(person.issuer.as_ref());
        self.subject.eq_ignore_ascii_case(&person.subject) && issuers.is_none_or(|(one, other)| one == other)
    }
}
