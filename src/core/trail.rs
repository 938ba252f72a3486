//! The state's tables about trust: the audit trail's end and its receipts, and tokens
//! that count no more. Like the others they are written through setters alone.

use crate::audit::{Chain, Receipt, Record};
use crate::id::Digest16;
use crate::state::{Before, RowKey, State, token_key};
use std::sync::Arc;

impl State {
    /// By which ids of tokens are in the trail: in no answer and no export. Who reads a member's log or rows has it (ADR
    /// 87). A group of an earlier version has
    /// one once a member of this one has joined it.
    pub fn trail_key(&self) -> Option<&[u8; 32]> {
        self.trail_key.as_ref()
    }

    pub(crate) fn put_trail_key(&mut self, key: [u8; 32]) {
        self.remember(RowKey::TrailKey, |state| Before::TrailKey(state.trail_key));
        self.trail_key = Some(key);
    }

    /// Where the audit trail ends. Speculative copies do not go on with it.
    pub fn audit(&self) -> &Chain {
        &self.audit
    }

    /// What each command of the last entry left in the audit trail.
    pub fn receipts(&self) -> &[Option<Receipt>] {
        &self.receipts
    }

    /// Whether the token of that id counts no more.
    pub fn is_revoked(&self, id: &str) -> bool {
        !self.revoked.is_empty() && self.revoked.contains_key(&token_key(id))
    }

    /// Appends to the audit trail; nothing on speculative copies.
    pub(crate) fn append_audit(&mut self, record: Record) -> Option<Receipt> {
        self.remember(RowKey::Audit, |state| Before::Audit((state.audit.seq() > 0).then(|| state.audit.clone())));
        let changes = self.changes.as_mut()?;
        let (entry, receipt) = Arc::make_mut(&mut self.audit).append(record);
        changes.audit.push(entry);
        Some(receipt)
    }

    /// For tests of who finds it: another end of the trail than the group agreed on.
    pub(crate) fn fork_audit(&mut self) {
        self.remember(RowKey::Audit, |state| Before::Audit((state.audit.seq() > 0).then(|| state.audit.clone())));
        Arc::make_mut(&mut self.audit).flip();
    }

    pub(crate) fn put_revoked(&mut self, token: Digest16, until_ms: u64) {
        self.remember(RowKey::Revoked(token), |state| Before::Revoked(state.revoked.get(&token).copied()));
        if let Some(old) = self.revoked.insert(token, until_ms) {
            self.revoked_until.remove(&(old, token));
        }
        self.revoked_until.insert((until_ms, token));
    }

    pub(crate) fn remove_revoked(&mut self, token: Digest16) {
        self.remember(RowKey::Revoked(token), |state| Before::Revoked(state.revoked.get(&token).copied()));
        if let Some(old) = self.revoked.remove(&token) {
            self.revoked_until.remove(&(old, token));
        }
    }
}
