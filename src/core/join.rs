//! Join tokens: whoever holds one may have one certificate of a worker node, once, within
//! its time. The log holds a digest of the secret and is where the one use is decided, so
//! that two machines with one token never both get in. It does not sign certificates.

use crate::audit::{Actor, Person};
use crate::command::Answer;
use crate::id::{Digest16, NodeName};
use crate::node::NodeKind;
use crate::reason::{Reason, Refusal};
use crate::state::{Before, RowKey, State};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The longest that a token counts.
pub const MAX_MS: u64 = 24 * 3_600_000;
/// Tokens that may still be used. At the cap a new one is refused.
pub const MAX_TOKENS: usize = 1000;
/// Used ones on record. At the cap the one that would be forgotten first is forgotten now.
pub const MAX_USED: usize = 10_000;
/// The name in certificates that play nodes in simulation: no node's.
pub const PLAYER: &str = "player";

/// A token on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    pub id: Digest16,
    /// SHA-256 of the secret: whoever reads the log can't join.
    pub secret: [u8; 32],
    /// The only node that it makes; without, any that the group does not know yet.
    pub node: Option<NodeName>,
    pub by: Option<Person>,
    pub at_ms: u64,
    pub until_ms: u64,
    pub used: Option<Used>,
}

/// What became of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    pub node: NodeName,
    /// SHA-256 of the public key that it let in.
    pub key: [u8; 32],
    pub at_ms: u64,
    /// When the certificate ends. So long the name is its holder's.
    pub until_ms: u64,
}

/// Somebody shows a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    pub id: Digest16,
    /// SHA-256 of the secret that was shown.
    pub secret: [u8; 32],
    pub node: NodeName,
    /// SHA-256 of the public key that shall be certified.
    pub key: [u8; 32],
    /// How long the certificate shall count.
    pub life_ms: u64,
}

impl JoinToken {
    /// When it is forgotten: its own time is over, and the certificate's that it made.
    fn due_ms(&self) -> u64 {
        self.used.as_ref().map_or(self.until_ms, |used| used.until_ms.max(self.until_ms))
    }
}

/// Takes the same time wherever the two differ.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

/// One answer for every token that does not count: a stranger learns nothing from it.
pub fn invalid() -> Refusal {
    let detail = "this join token does not count: it is unknown, used, expired or taken back; \
                  an admin makes another one with nf join-token create";
    Refusal::new(Reason::JoinTokenInvalid, detail)
}

impl State {
    /// The tokens on record, by id.
    pub fn join_tokens(&self) -> impl Iterator<Item = &Arc<JoinToken>> {
        self.join_tokens.values()
    }

    pub(crate) fn put_join_token(&mut self, token: JoinToken) {
        let key = token.id;
        self.remember(RowKey::JoinToken(key), |state| Before::JoinToken(state.join_tokens.get(&key).cloned()));
        let due = token.due_ms();
        self.join_due.insert((due, key));
        if let Some(old) = self.join_tokens.insert(key, Arc::new(token))
            && old.due_ms() != due
        {
            self.join_due.remove(&(old.due_ms(), key));
        }
    }

    pub(crate) fn remove_join_token(&mut self, key: Digest16) -> Option<Arc<JoinToken>> {
        self.remember(RowKey::JoinToken(key), |state| Before::JoinToken(state.join_tokens.get(&key).cloned()));
        let old = self.join_tokens.remove(&key)?;
        self.join_due.remove(&(old.due_ms(), key));
        Some(old)
    }
}

/// What an intent to make a token becomes.
///
/// # Errors
/// A time that is none, or the name of somebody else.
pub(crate) fn create(
    state: &State,
    (id, secret): (Digest16, [u8; 32]),
    node: Option<&NodeName>,
    for_ms: u64,
    actor: Option<&Actor>,
) -> Result<JoinToken, Refusal> {
    if for_ms == 0 || for_ms > MAX_MS {
        return Err(Refusal::invalid("ttl", "more than nothing, at most 24h"));
    }
    node.map_or(Ok(()), |node| may_be_worker(state, node))?;
    let at_ms = state.meta().now_ms;
    let until_ms = at_ms.saturating_add(for_ms);
    Ok(JoinToken { id, secret, node: node.cloned(), by: actor.map(Actor::person), at_ms, until_ms, used: None })
}

/// A certificate in a member's name would speak for the member's own node.
///
/// # Errors
/// `NodeIdentityMismatch`.
pub fn may_be_worker(state: &State, node: &NodeName) -> Result<(), Refusal> {
    let member = state.members().values().any(|member| member.name == *node);
    let other = state.node_named(node).is_some_and(|known| known.kind != NodeKind::Worker);
    if !member && !other && node.as_str() != PLAYER {
        return Ok(());
    }
    let detail = format!("{node} is no name for a worker: a member, or a node that a member plays, has it");
    Err(Refusal::field(Reason::NodeIdentityMismatch, "node", detail))
}

/// Whether what is shown lets its node in now.
///
/// # Errors
/// `JoinTokenInvalid`, or the name is not one that the token makes.
pub fn judge<'a>(state: &'a State, shown: &Shown) -> Result<&'a Arc<JoinToken>, Refusal> {
    let token = state.join_tokens.get(&shown.id).filter(|token| same(&token.secret, &shown.secret));
    let token = token.filter(|token| token.until_ms > state.meta().now_ms).ok_or_else(invalid)?;
    if let Some(used) = &token.used {
        // The machine that it let in may not have heard the answer: the same key is no second use.
        let again = used.node == shown.node && used.key == shown.key;
        return if again { Ok(token) } else { Err(invalid()) };
    }
    may_be_worker(state, &shown.node)?;
    match &token.node {
        Some(node) if *node == shown.node => Ok(token),
        Some(node) => {
            let detail = format!("this token is for node {node}, not {}; join as {node}", shown.node);
            Err(Refusal::field(Reason::NodeIdentityMismatch, "node", detail))
        }
        None if is_taken(state, &shown.node) => {
            let detail = format!(
                "there is a node {0} already: choose another --name, or make a token for it with \
                 nf join-token create --node {0}",
                shown.node
            );
            Err(Refusal::field(Reason::NodeIdentityMismatch, "node", detail))
        }
        None => Ok(token),
    }
}

/// Whether a node has the name, or was let in with it and may not have introduced itself yet.
fn is_taken(state: &State, node: &NodeName) -> bool {
    let let_in = |token: &Arc<JoinToken>| token.used.as_ref().is_some_and(|used| used.node == *node);
    state.node_named(node).is_some() || state.join_tokens.values().any(let_in)
}

pub(crate) fn add(state: &mut State, token: &JoinToken) -> Result<Answer, Refusal> {
    if state.join_tokens.contains_key(&token.id) {
        return Ok(Answer::Count(0));
    }
    if state.join_tokens.values().filter(|token| token.used.is_none()).count() >= MAX_TOKENS {
        let detail = format!("{MAX_TOKENS} join tokens wait for their use; revoke some (nf join-token list), or wait");
        return Err(Refusal::new(Reason::TooManyRequests, detail));
    }
    state.put_join_token(token.clone());
    Ok(Answer::Count(1))
}

/// Uses a token up. Judged here once more: of two that were planned at one time the later one loses.
pub(crate) fn spend(state: &mut State, shown: &Shown) -> Result<Answer, Refusal> {
    let token = judge(state, shown)?.clone();
    if token.used.is_some() {
        return Ok(Answer::Count(0));
    }
    forget_used(state);
    let at_ms = state.meta().now_ms;
    let until_ms = at_ms.saturating_add(shown.life_ms);
    let used = Used { node: shown.node.clone(), key: shown.key, at_ms, until_ms };
    state.put_join_token(JoinToken { used: Some(used), ..(*token).clone() });
    Ok(Answer::Count(1))
}

/// Makes room for one more that is used.
fn forget_used(state: &mut State) {
    let is_used = |key: &Digest16| state.join_tokens.get(key).is_some_and(|token| token.used.is_some());
    let mut used = state.join_due.iter().map(|(_, key)| *key).filter(is_used);
    let first = used.next();
    if used.count() + 1 >= MAX_USED
        && let Some(first) = first
    {
        state.remove_join_token(first);
    }
}

pub(crate) fn drop(state: &mut State, id: Digest16) -> Result<Answer, Refusal> {
    let open = state.join_tokens.get(&id).is_some_and(|token| token.used.is_none());
    if open {
        state.remove_join_token(id);
    }
    Ok(Answer::Count(u32::from(open)))
}

/// Forgets at most so many whose time is over.
pub(crate) fn forget(state: &mut State, most: usize) {
    let now = state.meta().now_ms;
    let due = state.join_due.iter().take(most).take_while(|(at, _)| *at <= now);
    let due: Vec<_> = due.map(|(_, key)| *key).collect();
    for key in due {
        state.remove_join_token(key);
    }
}

#[cfg(test)]
mod tests;
