//! What launches that are over have been through, for whoever asks why: the last ones, in memory alone. Their logs are
//! files and stay longer.

use super::held;
use crate::exchange::life::Life;
use nf_core::reconcile::ReplicaId;
use std::collections::VecDeque;
use std::sync::Mutex;

/// Launches that are kept, and how many of one replica.
const LAUNCHES: (usize, usize) = (256, 4);

/// Oldest first.
#[derive(Default)]
pub(super) struct Past(Mutex<VecDeque<(ReplicaId, Life)>>);

impl Past {
    /// A launch is over.
    pub(super) fn note(&self, id: ReplicaId, life: Life) {
        let mut past = held(&self.0);
        // Its deadlines are nobody's any more.
        past.push_back((id, Life { stop: None, ..life }));
        let of_it = past.iter().filter(|(other, _)| *other == id).count();
        let surplus = match of_it > LAUNCHES.1 {
            true => past.iter().position(|(other, _)| *other == id),
            false => (past.len() > LAUNCHES.0).then_some(0),
        };
        surplus.and_then(|at| past.remove(at));
    }

    pub(super) fn lives(&self, id: ReplicaId) -> Vec<Life> {
        held(&self.0).iter().filter(|(other, _)| *other == id).map(|(_, life)| life.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::id::JobNo;

    #[test]
    fn the_last_launches_are_kept_of_each_and_of_all() {
        let past = Past::default();
        let id = |job| ReplicaId { job: JobNo(job), replica: 0 };
        for generation in 1..=6 {
            past.note(id(1), Life { generation, ..Life::default() });
        }
        let kept = |job| past.lives(id(job)).iter().map(|life| life.generation).collect::<Vec<_>>();
        assert_eq!(kept(1), [3, 4, 5, 6]);
        for job in 2..1_000 {
            past.note(id(job), Life::default());
        }
        assert_eq!((kept(1).len(), kept(999).len(), held(&past.0).len()), (0, 1, LAUNCHES.0));
    }
}
