//! Whether the members' states are still the same: each notes its state's hash after every entry, tells the others the
//! newest ones, and some of older entries, with its answers to pings, and compares. The hash covers every row but the
//! counters, the end of the audit trail among them. Members that are at rest hold the same last entry, so a difference is found within a ping
//! or two whether or not anything is committed; busy ones, far apart for a moment, meet at the older entries.
//!
//! Apply is meant to be deterministic; this is the checker apart from the doer. It does not know
//! what a state is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nf_core::id::MemberId;

/// One in so many entries is noted for longer.
const EVERY: u64 = 64;
/// Such notes that are kept, and that are told: members are milliseconds apart, and pings two seconds.
const KEPT: usize = 64;
const TOLD: usize = 16;
/// The newest entries' notes that are kept, and that are told: a group at rest writes a few entries between two pings.
const LATEST: usize = 256;
const TOLD_LATEST: usize = 8;

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
    /// Of the newest entries, without a gap.
    latest: VecDeque<Mark>,
    /// Who said otherwise, and what, by index.
    others: BTreeMap<u64, BTreeMap<MemberId, u128>>,
}

impl Marks {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Notes are whole, whatever happened to the one who held them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry of that index was applied, or the state that it left was loaded.
    pub fn note(&self, index: u64, hash: u128) {
        let mut inner = self.lock();
        push(&mut inner.latest, (index, hash), LATEST);
        if index.is_multiple_of(EVERY) {
            push(&mut inner.ours, (index, hash), KEPT);
        }
    }

    /// What is told to others: the newest notes of both kinds.
    pub fn told(&self) -> Vec<Mark> {
        let inner = self.lock();
        let latest = inner.latest.iter().rev().take(TOLD_LATEST);
        let older = inner.ours.iter().rev().take(TOLD).filter(|mark| !latest.clone().any(|told| told == *mark));
        latest.clone().chain(older).copied().collect()
    }

    /// Compares a peer's notes with ours; `voters` are those of the group.
    pub fn compare(&self, peer: MemberId, theirs: &[Mark], voters: &[MemberId]) -> Verdict {
        let mut inner = self.lock();
        let mut verdict = Verdict::Same;
        for (index, hash) in theirs {
            let ours = inner.latest.iter().rev().chain(&inner.ours).find(|(at, _)| at == index).map(|(_, hash)| *hash);
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

fn push(notes: &mut VecDeque<Mark>, mark: Mark, most: usize) {
    notes.push_back(mark);
    if notes.len() > most {
        notes.pop_front();
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
            marks.note(index, index.into());
        }
        let told: Vec<u64> = marks.told().into_iter().map(|(index, _)| index).collect();
        assert_eq!(told, [200, 199, 198, 197, 196, 195, 194, 193, 192, 128, 64]);
        let compare = |peer: u64, theirs: &[Mark]| marks.compare(MemberId(peer), theirs, &voters);
        assert_eq!(compare(2, &[(64, 64), (128, 128)]), Verdict::Same);
        assert_eq!(compare(2, &[(256, 7)]), Verdict::Same, "we are not there yet");
        assert_eq!(compare(2, &[(128, 128), (192, 7)]), Verdict::Differs { index: 192 });
        assert_eq!(compare(2, &[(192, 7)]), Verdict::Differs { index: 192 }, "it alone says so, however often");
        assert_eq!(compare(9, &[(192, 7)]), Verdict::Differs { index: 192 }, "who does not vote decides nothing");
        assert_eq!(compare(3, &[(192, 8)]), Verdict::Differs { index: 192 }, "three different ones");
        assert_eq!(compare(3, &[(192, 7)]), Verdict::Outvoted { index: 192 });
    }

    #[test]
    fn a_group_at_rest_compares_its_last_entry_and_a_busy_one_what_all_have() {
        let voters: Vec<_> = (1..=3).map(MemberId).collect();
        let (ours, theirs) = (Marks::default(), Marks::default());
        for index in 1..=3 {
            ours.note(index, 1);
            theirs.note(index, 2);
        }
        assert_eq!(ours.compare(MemberId(2), &theirs.told(), &voters), Verdict::Differs { index: 1 });
        // They are thousands of entries ahead by the time that they answer.
        let (ours, theirs) = (Marks::default(), Marks::default());
        (1..=1000).for_each(|index| ours.note(index, 1));
        (1..=1500).for_each(|index| theirs.note(index, 2));
        let verdict = ours.compare(MemberId(2), &theirs.told(), &voters);
        assert!(matches!(verdict, Verdict::Differs { .. }), "{verdict:?}");
    }
}
