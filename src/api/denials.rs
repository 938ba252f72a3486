//! Refusals of people who are known, for the audit trail: the first of a kind at once,
//! the others of the same minute as one entry with their number, so that a flood of
//! them cannot grow the log. It does not decide who is refused.

use crate::raft::Replica;
use nf_core::audit::{Action, Actor, Hash};
use nf_core::command::Note;
use nf_core::id::TenantId;
use nf_core::plan::Intent;
use nf_core::reason::Reason;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long refusals of a kind are one entry.
const WINDOW: Duration = Duration::from_secs(60);
/// Kinds (actor, route, reason) of one window; what is past it is in the metrics alone.
const MAX_KINDS: usize = 1000;
/// Of these, one actor's.
const MAX_OWN: usize = 50;
/// How long an entry may take; a group without a quorum records nothing, and says so in its health.
const SUBMIT: Duration = Duration::from_secs(5);

/// Who (people of two tenants may have one name), what, and why.
type Kind = (Arc<str>, Option<TenantId>, Option<Hash>, Arc<str>, Reason);

/// See the module's text.
#[derive(Clone)]
pub struct Denials {
    replica: Replica,
    kinds: Arc<Mutex<BTreeMap<Kind, (Actor, u32)>>>,
}

impl Denials {
    /// Must be called on a runtime: a small task tells the numbers, until this and its clones are gone.
    pub fn new(replica: Replica) -> Self {
        let denials = Self { replica, kinds: Arc::default() };
        tokio::spawn(count(denials.replica.clone(), Arc::downgrade(&denials.kinds)));
        denials
    }

    /// Somebody known was refused something.
    pub fn tell(&self, actor: Actor, what: &str, reason: Reason) {
        let kind: Kind = (actor.subject.clone(), actor.tenant.clone(), actor.token, Arc::from(what), reason);
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, more)) = kinds.get_mut(&kind) {
            *more = more.saturating_add(1);
            return;
        }
        // Nobody takes the places of all others.
        let own = kinds.keys().filter(|(subject, tenant, ..)| (subject, tenant) == (&kind.0, &kind.1)).count();
        if kinds.len() >= MAX_KINDS || own >= MAX_OWN {
            return;
        }
        kinds.insert(kind, (actor.clone(), 0));
        drop(kinds);
        let (replica, intent) = (self.replica.clone(), intent(actor, what.into(), reason, 1));
        tokio::spawn(async move { submit(&replica, intent).await });
    }
}

fn intent(actor: Actor, object: Arc<str>, reason: Reason, count: u32) -> Intent {
    let note = Note { action: Action::Call, object, refused: Some(reason), count };
    Intent::By { actor, intent: Box::new(Intent::Note(note)) }
}

async fn submit(replica: &Replica, intent: Intent) {
    if let Err(error) = replica.submit(intent, Instant::now() + SUBMIT).await {
        tracing::warn!(%error, "a refusal is not in the audit trail");
    }
}

async fn count(replica: Replica, kinds: Weak<Mutex<BTreeMap<Kind, (Actor, u32)>>>) {
    loop {
        tokio::time::sleep(WINDOW).await;
        let Some(kinds) = kinds.upgrade() else { return };
        let done = std::mem::take(&mut *kinds.lock().unwrap_or_else(PoisonError::into_inner));
        for ((.., what, reason), (actor, more)) in done {
            if more > 0 {
                submit(&replica, intent(actor, what, reason, more)).await;
            }
        }
    }
}
