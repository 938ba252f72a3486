//! A text that is shown to nobody: tokens of people and of machines. It is wiped when it has served. It does not know
//! what it opens.

use nf_core::reason::REDACTED;
use serde::{Deserialize, Deserializer, Serializer};
use std::fmt;
use zeroize::Zeroizing;

/// See the module's text. Nothing prints it but [`Secret::reveal`], which says so.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself, for whoever it is meant for.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(Self::new)
    }
}

/// Writes it as it is: for a file that its owner alone can read, by a field's `serialize_with`.
///
/// # Errors
/// As the file's format has them.
pub fn kept<S: Serializer>(secret: &Option<Secret>, to: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => to.serialize_some(secret.reveal()),
        None => to.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_holds_a_secret_shows_it() {
        #[derive(Debug)]
        #[allow(dead_code)]
        struct Holder {
            token: Option<Secret>,
        }
        let secret = Secret::new("canary-secret");
        let shown = format!("{secret} {secret:?} {:?} {:#?}", Holder { token: Some(secret.clone()) }, Some(&secret));
        assert!(!shown.contains("canary") && shown.contains(REDACTED), "{shown}");
        assert_eq!(secret.reveal(), "canary-secret");
    }
}
