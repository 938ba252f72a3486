//! Whether the members' states are still the same: each notes its state's hash at the same log
//! indexes, tells the others with its answers to pings, and compares.
//!
//! Apply is meant to be deterministic; this is the checker apart from the doer. It does not know
//! what a state is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nf_core::id::MemberId;

/// One in so many entries is noted.
const EVERY: u64 = 64;
/// Notes that are kept, and that are told: members are milliseconds apart, and pings two seconds.
const KEPT: usize = 64;
const TOLD: usize = 16;

/// A state's hash after the entry of that index.
pub type Mark = (u64, u128);

/// What comparing came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As far as both have noted the same entries.
    Same,
    /// One of the two is wrong, and nobody knows which.
    Differs { index: u64 },
    /// A majority of the voters agrees on another state than ours.
    Outvoted { index: u64 },
}

/// See the module.
#[derive(Default)]
pub struct Marks(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    ours: VecDeque<Mark>,
    /// Who said otherwise, and what, by index.
    others: BTreeMap<u64, BTreeMap<MemberId, u128>>,
}

impl Marks {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Notes are whole, whatever happened to the one who held them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry of that index was applied.
    pub fn note(&self, index: u64, hash: impl FnOnce() -> u128) {
        if index.is_multiple_of(EVERY) {
            let mut inner = self.lock();
            inner.ours.push_back((index, hash()));
            if inner.ours.len() > KEPT {
                inner.ours.pop_front();
            }
        }
    }

    /// What is told to others: the newest notes.
    pub fn told(&self) -> Vec<Mark> {
        self.lock().ours.iter().rev().take(TOLD).copied().collect()
    }

    /// Compares a peer's notes with ours; `voters` are those of the group.
    pub fn compare(&self, peer: MemberId, theirs: &[Mark], voters: &[MemberId]) -> Verdict {
        let mut inner = self.lock();
        let mut verdict = Verdict::Same;
        for (index, hash) in theirs {
            let ours = inner.ours.iter().find(|(at, _)| at == index).map(|(_, hash)| *hash);
            if ours.is_none_or(|ours| ours == *hash) {
                continue;
            }
            let said = inner.others.entry(*index).or_default();
            said.insert(peer, *hash);
            let agree = said.iter().filter(|(who, other)| *other == hash && voters.contains(who)).count();
            verdict = match 2 * agree > voters.len() {
                true => return Verdict::Outvoted { index: *index },
                false => Verdict::Differs { index: *index },
            };
        }
        while inner.others.len() > KEPT {
            inner.others.pop_first();
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_alone_with_its_state_is_outvoted() {
        let voters: Vec<_> = (1..=3).map(MemberId).collect();
        let marks = Marks::default();
        for index in 1..=200 {
            marks.note(index, || u128::from(index));
        }
        assert_eq!(marks.told(), [(192, 192), (128, 128), (64, 64)]);
        let compare = |peer: u64, theirs: &[Mark]| marks.compare(MemberId(peer), theirs, &voters);
        assert_eq!(compare(2, &[(64, 64), (128, 128)]), Verdict::Same);
        assert_eq!(compare(2, &[(256, 7)]), Verdict::Same, "we are not there yet");
        assert_eq!(compare(2, &[(128, 128), (192, 7)]), Verdict::Differs { index: 192 });
        assert_eq!(compare(2, &[(192, 7)]), Verdict::Differs { index: 192 }, "it alone says so, however often");
        assert_eq!(compare(9, &[(192, 7)]), Verdict::Differs { index: 192 }, "who does not vote decides nothing");
        assert_eq!(compare(3, &[(192, 8)]), Verdict::Differs { index: 192 }, "three different ones");
        assert_eq!(compare(3, &[(192, 7)]), Verdict::Outvoted { index: 192 });
    }
}
