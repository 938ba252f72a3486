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
    /// Whose keys signed it, as far as the operator has said: its publishers, who may not approve it (P3).
    pub signers: Vec<Signer>,
}

/// Somebody who signs versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signer {
    /// None: whoever has that name, whichever issuer says so.
    pub issuer: Option<Arc<str>>,
    pub subject: Arc<str>,
}

impl Signer {
    /// Whether they may be the same.
    pub fn is(&self, person: &Person) -> bool {
        self.subject == person.subject && (self.issuer.is_none() || self.issuer == person.issuer)
    }
}
