//! Refusals for the audit trail, of people who are known and of versions that a policy stopped: the first of a kind
//! at once, the others of the same minute as one entry with their number, so that a flood of them cannot grow the log.
//! One that is written down while the leader falls may be there twice. It does not decide who is refused.

use crate::raft::Replica;
use nf_core::apply::NOBODY;
use nf_core::audit::{Actor, Hash, Refs};
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
type Kind = (Arc<str>, Option<TenantId>, Option<Hash>, Arc<str>, Option<Reason>);

/// With the number, in the note, of those of a kind that are not written down yet. No actor: nobody was asked.
type Kinds = BTreeMap<Kind, (Option<Actor>, Note)>;

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

    /// Somebody was refused something.
    pub fn tell(&self, actor: Option<Actor>, note: Note) {
        let Some((kind, note)) = self.noted(actor.as_ref(), note) else { return };
        let denials = self.clone();
        tokio::spawn(async move {
            if !submit(&denials.replica, intent(actor.clone(), note.clone())).await {
                denials.owe(kind, actor, note);
            }
        });
    }

    /// Counts it; its kind and its entry, if it is the first of the window and an entry of its own.
    fn noted(&self, actor: Option<&Actor>, mut note: Note) -> Option<(Kind, Note)> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kind = kind(actor, &note);
        // Nobody takes the places of all others: past them, what is refused is counted by its reason alone.
        let own = |kinds: &Kinds| kinds.keys().filter(|other| (&other.0, &other.1) == (&kind.0, &kind.1)).count();
        if !kinds.contains_key(&kind) && (kinds.len() >= MAX_KINDS || own(&kinds) >= MAX_OWN) {
            // What P1 to P7 said stays, the version does not.
            (note.object, note.refs) = (OTHERS.into(), Refs::default());
            // Who has many tokens is one person.
            (kind.2, kind.3) = (None, note.object.clone());
        }
        if let Some((_, known)) = kinds.get_mut(&kind) {
            known.count = known.count.saturating_add(note.count);
            return None;
        }
        if kinds.len() >= MOST_KINDS {
            return None;
        }
        kinds.insert(kind.clone(), (actor.cloned(), Note { count: 0, ..note.clone() }));
        Some((kind, note))
    }

    /// So many could not be written down; they are due with the next.
    fn owe(&self, kind: Kind, actor: Option<Actor>, note: Note) {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if kinds.len() < MOST_KINDS || kinds.contains_key(&kind) {
            let count = note.count;
            let (_, known) = kinds.entry(kind).or_insert((actor, Note { count: 0, ..note }));
            known.count = known.count.saturating_add(count);
        }
    }
}

fn kind(actor: Option<&Actor>, note: &Note) -> Kind {
    let subject = actor.map_or_else(|| NOBODY.into(), |actor| actor.subject.clone());
    let tenant = actor.and_then(|actor| actor.tenant.clone());
    (subject, tenant, actor.and_then(|actor| actor.token), note.object.clone(), note.refused)
}

fn intent(actor: Option<Actor>, note: Note) -> Intent {
    let intent = Intent::Note(note);
    match actor {
        Some(actor) => Intent::By { actor, intent: Box::new(intent) },
        None => intent,
    }
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
        for (kind, (actor, note)) in done {
            if note.count > 0 && !submit(&replica, intent(actor.clone(), note.clone())).await {
                denials.owe(kind, actor, note);
            }
        }
    }
}
