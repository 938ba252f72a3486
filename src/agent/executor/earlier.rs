//! What is known here of a node's earlier starts: whether their records are here, and which launches are held back
//! because they are not. It does not know leases: the node says when it is over.

use super::{Shared, held, now_ms};
use crate::agent::lease::boot_ms;
use crate::agent::troubles::EXCLUSIVE_WAITS;
use crate::exchange::life::Life;
use nf_core::id::RequestId;
use nf_core::reconcile::{ReplicaId, Want};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Among the records: those of earlier starts are all here. Written once nothing can be left of starts whose are not.
const SETTLED: &str = "settled";

/// See the module.
pub(super) struct Earlier {
    settled: AtomicBool,
    /// Launches that are held back, and what is told of each.
    waiting: Mutex<BTreeMap<ReplicaId, (RequestId, Life)>>,
}

impl Earlier {
    /// `anew`: the process knows nothing of an earlier start.
    pub(super) fn open(records: &Path, anew: bool) -> io::Result<Self> {
        let mark = records.join(SETTLED);
        if anew && mark.exists() {
            fs::remove_file(&mark)?;
            File::open(records)?.sync_all()?;
        }
        Ok(Self { settled: AtomicBool::new(mark.exists()), waiting: Mutex::default() })
    }

    pub(super) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::SeqCst)
    }

    pub(super) fn lives(&self, id: ReplicaId) -> Option<Life> {
        held(&self.waiting).get(&id).map(|(_, life)| life.clone())
    }
}

impl Shared {
    pub(super) fn settle(&self) {
        if self.earlier.settled.swap(true, Ordering::SeqCst) {
            return;
        }
        held(&self.earlier.waiting).clear();
        self.config.troubles.clear(EXCLUSIVE_WAITS, self.config.node.as_str());
        let path = self.places.records.join(SETTLED);
        // In the background: the node's loop must not wait for a disk. If it fails, the next start waits once more.
        self.runtime.spawn_blocking(move || {
            if let Err(error) = crate::storage::replace_file(&path, b"") {
                tracing::warn!(path = %path.display(), %error, "exclusive replicas will wait again after the next start");
            }
        });
    }

    pub(super) fn hold_back(&self, id: ReplicaId, want: &Want, until_ms: Option<u64>) {
        let at_ms = until_ms.map(|until| now_ms() + until.saturating_sub(boot_ms()));
        let at = at_ms.and_then(|at| jiff::Timestamp::from_millisecond(at as i64).ok());
        let at = at.map_or_else(|| "one lease has passed".to_owned(), |at| at.strftime("%FT%TZ").to_string());
        let text = format!(
            "waits until {at}: it must never run twice, and the records of this node's earlier starts are lost; one of them may still run it"
        );
        let mut waiting = held(&self.earlier.waiting);
        let (_, life) = waiting.entry(id).or_insert_with(|| (want.request.clone(), Life::default()));
        life.generation = want.generation.0;
        life.step("Scheduled", now_ms(), None);
        if life.waits.is_none() {
            tracing::warn!(job = %id.job, replica = id.replica, text, "an exclusive replica waits");
            let who = self.config.node.as_str();
            self.config.troubles.raise(
                EXCLUSIVE_WAITS,
                who,
                &format!("node {who}: exclusive replicas wait until {at}"),
            );
        }
        life.waits = Some(text);
    }
}
