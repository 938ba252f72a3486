//! Commands about tokens: which count no more. A revocation lives as long as a token
//! could, and is then forgotten. It does not know tokens, only the digests of their ids.

use crate::command::Answer;
use crate::id::Digest16;
use crate::reason::{Reason, Refusal};
use crate::state::State;

/// How long a revocation is kept: longer than any token lives (24 h), with room for clocks.
pub const REVOKED_MS: u64 = 25 * 3600 * 1000;
/// Revocations at a time. At the cap a new one is refused; an old one is never dropped early.
pub const MAX_REVOKED: usize = 100_000;

pub(super) fn revoke(state: &mut State, token: Digest16) -> Result<Answer, Refusal> {
    if state.revoked.contains_key(&token) {
        return Ok(Answer::Count(0));
    }
    if state.revoked.len() >= MAX_REVOKED {
        let detail = format!("{MAX_REVOKED} tokens are revoked and none has expired; change the keys instead");
        return Err(Refusal::new(Reason::TooManyRequests, detail));
    }
    let until_ms = state.meta().now_ms.saturating_add(REVOKED_MS);
    state.put_revoked(token, until_ms);
    Ok(Answer::Count(1))
}

/// The first one stays: under another one the entries of one token would no longer be told to be one's.
pub(super) fn key_trail(state: &mut State, key: [u8; 32]) -> Answer {
    match state.trail_key() {
        Some(_) => Answer::Count(0),
        None => {
            state.put_trail_key(key);
            Answer::Count(1)
        }
    }
}

/// Forgets at most so many whose time is over.
pub(super) fn forget(state: &mut State, most: usize) {
    let now = state.meta().now_ms;
    let due = state.revoked_until.iter().take(most).take_while(|(at, _)| *at <= now);
    let due: Vec<_> = due.map(|(_, token)| *token).collect();
    for token in due {
        state.remove_revoked(token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_trail_is_made_once_and_stays() {
        let mut state = State::new();
        for (key, count) in [(7, 1), (8, 0)] {
            let answers = crate::testing::run(&mut state, Intent::KeyTrail([key; 32]));
            assert_eq!((answers, state.trail_key()), (vec![Answer::Count(count)], Some(&[7; 32])));
        }
        state.take_changes();
        let again = State::from_rows(state.live_rows()).unwrap();
        assert_eq!((again.trail_key(), again.hash()), (Some(&[7; 32]), state.hash()));
    }
    use crate::plan::Intent;
    use crate::state::token_key;
    use crate::testing;

    #[test]
    fn a_revocation_lives_longer_than_any_token_and_no_longer() {
        let mut state = State::new();
        let token = token_key("01j8");
        testing::run(&mut state, Intent::RevokeToken { token });
        testing::run(&mut state, Intent::RevokeToken { token });
        assert!(state.is_revoked("01j8") && !state.is_revoked("01j9"));
        let rows: Vec<_> = {
            state.take_changes();
            state.live_rows().collect()
        };
        let mut again = State::from_rows(rows).unwrap();
        assert_eq!((again.hash(), again.is_revoked("01j8")), (state.hash(), true), "it survives a restart");
        let now = again.meta().now_ms;
        again.change_meta(|meta| meta.now_ms = now + REVOKED_MS - 1);
        forget(&mut again, 10);
        assert!(again.is_revoked("01j8"));
        again.change_meta(|meta| meta.now_ms = now + REVOKED_MS);
        forget(&mut again, 10);
        assert!(!again.is_revoked("01j8"));
        again.take_changes();
        assert_eq!(again.live_rows().count(), 2, "the row is gone, too; the trail and the counters stay");
    }
}
