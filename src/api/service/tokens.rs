//! Use cases about tokens. It does not make them: whoever holds the private key does.

use super::{Call, Service};
use crate::api::error::Failure;
use nf_core::command::Answer;
use nf_core::plan::Intent;
use nf_core::reason::Refusal;
use nf_core::state::token_key;

/// The longest id of a token.
const MAX_ID: usize = 256;

/// A token that counts no more.
#[derive(Clone, Copy, Debug)]
pub struct Revoked {
    /// False when it was revoked before.
    pub new: bool,
    pub index: u64,
}

impl Service {
    /// Revokes the token of that id, on every member.
    pub async fn revoke_token(&self, call: &Call, id: &str) -> Result<Revoked, Failure> {
        if id.is_empty() || id.len() > MAX_ID || id.chars().any(char::is_control) {
            let detail = format!("the token's jti: 1 to {MAX_ID} bytes without control characters");
            return Err(Refusal::invalid("id", detail).into());
        }
        let (answer, index) = self.commit(call, Intent::RevokeToken { token: token_key(id) }).await?;
        // The answer means that it is refused here from now on.
        self.applied_past(index.saturating_sub(1), call.deadline).await;
        Ok(Revoked { new: answer == Answer::Count(1), index })
    }
}
