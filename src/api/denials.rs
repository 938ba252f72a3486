//! Refusals of people who are known, for the audit trail: the first of a kind at once,
//! the others of the same minute as one entry with their number, so that a flood of
//! them cannot grow the log. One that is written down while the leader falls may be there twice. It does not
//! decide who is refused.

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
/// Kinds (actor, route, reason) of one window that are told apart by their route.
const MAX_KINDS: usize = 1000;
/// Of these, one actor's.
const MAX_OWN: usize = 50;
/// What is past all of them is in the metrics alone.
const MOST_KINDS: usize = 4000;
/// What the routes past those are called.
const OTHERS: &str = "other calls";
/// How long an entry may take; a group without a quorum records nothing, and says so in its health.
const SUBMIT: Duration = Duration::from_secs(5);

/// Who (people of two tenants may have one name), what, and why.
type Kind = (Arc<str>, Option<TenantId>, Option<Hash>, Arc<str>, Reason);

/// With the number of those of a kind that are not written down yet.
type Kinds = BTreeMap<Kind, (Actor, u32)>;

/// See the module's text.
#[derive(Clone)]
pub struct Denials {
    replica: Replica,
    kinds: Arc<Mutex<Kinds>>,
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
        let Some(kind) = self.noted(&actor, what, reason) else { return };
        let denials = self.clone();
        tokio::spawn(async move {
            if !submit(&denials.replica, intent(actor.clone(), kind.3.clone(), reason, 1)).await {
                denials.owe(kind, actor, 1);
            }
        });
    }

    /// Counts it; its kind, if it is the first of the window and an entry of its own.
    fn noted(&self, actor: &Actor, what: &str, reason: Reason) -> Option<Kind> {
        let kind = |what: &str| (actor.subject.clone(), actor.tenant.clone(), actor.token, Arc::from(what), reason);
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kind: Kind = kind(what);
        // Nobody takes the places of all others: past them, what is refused is counted by its reason alone.
        let own = |kinds: &Kinds| kinds.keys().filter(|other| (&other.0, &other.1) == (&kind.0, &kind.1)).count();
        if !kinds.contains_key(&kind) && (kinds.len() >= MAX_KINDS || own(&kinds) >= MAX_OWN) {
            // Who has many tokens is one person.
            (kind.2, kind.3) = (None, Arc::from(OTHERS));
        }
        if let Some((_, more)) = kinds.get_mut(&kind) {
            *more = more.saturating_add(1);
            return None;
        }
        if kinds.len() >= MOST_KINDS {
            return None;
        }
        kinds.insert(kind.clone(), (actor.clone(), 0));
        Some(kind)
    }

    /// So many could not be written down; they are due with the next.
    fn owe(&self, kind: Kind, actor: Actor, count: u32) {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if kinds.len() < MOST_KINDS || kinds.contains_key(&kind) {
            let (_, more) = kinds.entry(kind).or_insert((actor, 0));
            *more = more.saturating_add(count);
        }
    }
}

fn intent(actor: Actor, object: Arc<str>, reason: Reason, count: u32) -> Intent {
    let note = Note { action: Action::Call, object, refused: Some(reason), count };
    Intent::By { actor, intent: Box::new(Intent::Note(note)) }
}

/// Whether it is written down.
async fn submit(replica: &Replica, intent: Intent) -> bool {
    match replica.submit(intent, Instant::now() + SUBMIT).await {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(%error, "a refusal is not in the audit trail yet; it is told again within a minute");
            false
        }
    }
}

async fn count(replica: Replica, kinds: Weak<Mutex<Kinds>>) {
    loop {
        tokio::time::sleep(WINDOW).await;
        let Some(kinds) = kinds.upgrade() else { return };
        let denials = Denials { replica: replica.clone(), kinds };
        let done = std::mem::take(&mut *denials.kinds.lock().unwrap_or_else(PoisonError::into_inner));
        for (kind, (actor, more)) in done {
            let (what, reason) = (kind.3.clone(), kind.4);
            if more > 0 && !submit(&replica, intent(actor.clone(), what, reason, more)).await {
                denials.owe(kind, actor, more);
            }
        }
    }
}
