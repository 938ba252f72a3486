//! The text of a join token: `nfj1.ID.SECRET.AUTHORITY`. The secret is its holder's; the
//! authority is a SHA-256 by which the holder knows the group before it says anything.

use crate::security::encoding::{base64_url, sha256_hex, to_base64_url, to_hex};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use nf_core::id::Digest16;
use sha2::{Digest, Sha256};
use std::fmt;

const PREFIX: &str = "nfj1";
/// Longer texts are none.
const MAX_TEXT: usize = 256;

/// A token with its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub id: Digest16,
    secret: [u8; 32],
    /// SHA-256 of the authority's public key (SubjectPublicKeyInfo).
    pub authority: [u8; 32],
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}, <REDACTED>)", self.id)
    }
}

/// The SHA-256 under which the log knows a secret.
fn digest(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// The id of a token as text.
pub fn id(text: &str) -> Option<Digest16> {
    // As 64 digits, of which the second half is nothing: one reader of hex digits is enough.
    let whole = sha256_hex(&format!("{text}{:032}", 0)).filter(|_| text.len() == 32)?;
    whole.first_chunk().copied().map(Digest16)
}

impl Token {
    /// A new one, for a group whose authority is told later.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn generate() -> Result<Self, String> {
        let random = SystemRandom::new();
        let (mut id, mut secret) = ([0; 16], [0; 32]);
        let filled = random.fill(&mut id).and_then(|()| random.fill(&mut secret));
        filled.map_err(|_| "the system gives no random bytes".to_owned())?;
        Ok(Self { id: Digest16(id), secret, authority: [0; 32] })
    }

    /// What `text` says.
    ///
    /// # Errors
    /// A sentence without a byte of the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let read = || {
            let text = Some(text.trim()).filter(|text| text.len() <= MAX_TEXT)?;
            let [PREFIX, number, secret, authority] = text.split('.').collect::<Vec<_>>()[..] else { return None };
            Some(Self::shown(number, secret)?.of_authority(sha256_hex(authority)?))
        };
        read().ok_or_else(|| "a join token is nfj1.ID.SECRET.AUTHORITY, as nf join-token create printed it".to_owned())
    }

    /// As a machine shows it: the authority is its own matter.
    pub fn shown(number: &str, secret: &str) -> Option<Self> {
        let secret = base64_url(secret).filter(|_| secret.len() <= MAX_TEXT)?.try_into().ok()?;
        Some(Self { id: id(number)?, secret, authority: [0; 32] })
    }

    pub fn of_authority(self, authority: [u8; 32]) -> Self {
        Self { authority, ..self }
    }

    /// The text for the machine that joins. It is a secret.
    pub fn text(&self) -> String {
        format!("{PREFIX}.{}.{}.{}", self.id, self.secret_text(), to_hex(&self.authority))
    }

    pub fn secret_text(&self) -> String {
        to_base64_url(&self.secret)
    }

    pub fn secret_digest(&self) -> [u8; 32] {
        digest(&self.secret)
    }
}
