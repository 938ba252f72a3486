//! Whether a new version breaks the service's promise, from what the gateways counted of
//! each revision since it was begun. A sequential test says so as soon as it is sure, and
//! says nothing while it is not. It does not know who counted.

use super::{Course, Rollout, Turn};
use crate::id::{JobNo, Revision};
use crate::plan::Intent;
use crate::reason::Reason;
use crate::slo::Count;
use crate::state::State;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What was counted of the former version and of the new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count2 {
    pub former: Count,
    pub new: Count,
}

// Wald's sequential probability ratio test (1945): that one request in forty is bad against
// that one in ten is, on both sides of the one in twenty that a promise allows. In thousandths
// of the logarithm of the odds: ln(0.1 / 0.025), ln(0.975 / 0.9), and ln(0.95 / 0.01) for one
// good version in a hundred that is taken back and one bad one in twenty that stays.
const BAD: u64 = 1_386;
const GOOD: u64 = 80;
const SURE: u64 = 4_554;

/// Whether so many good and bad requests are those of a broken promise.
fn breaks(count: &Count) -> bool {
    let bad = count.slow.saturating_add(count.failed);
    bad.saturating_mul(BAD) > count.good.saturating_mul(GOOD).saturating_add(SURE)
}

/// Part of the requests that was bad, in millionths.
fn bad_ppm(count: &Count) -> u64 {
    count.attained_ppm().map_or(0, |good| 1_000_000 - good)
}

/// Whether the new version breaks the promise, and not only because the former does, too.
pub(super) fn is_at_fault(counts: &Count2) -> bool {
    let alike = bad_ppm(&counts.new) * 2 <= bad_ppm(&counts.former) * 3;
    breaks(&counts.new) && !(breaks(&counts.former) && alike)
}

/// What follows from the gateways' counts: the rollouts that are taken back.
pub fn verdicts(state: &State, seen: &BTreeMap<(JobNo, Revision), Count>) -> Vec<Intent> {
    let mut out = Vec::new();
    for job in state.rollouts() {
        let Some(Rollout { revision, course: Course::Forward { .. }, .. }) = job.rollout.as_deref() else { continue };
        let of = |revision: Revision| seen.get(&(job.no, revision)).copied().unwrap_or_default();
        let counts = Count2 { former: of(job.revision), new: of(*revision) };
        if is_at_fault(&counts) {
            let turn = Turn::Back { failed: true, why: Reason::PromiseBroken, counts: Some(Box::new(counts)) };
            let (request, revision) = (job.request.clone(), Some(*revision));
            out.push(Intent::TurnRollout { request, tenant: None, revision, turn });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(former: (u64, u64), new: (u64, u64)) -> Count2 {
        let of = |(good, failed)| Count { good, slow: 0, failed };
        Count2 { former: of(former), new: of(new) }
    }

    #[test]
    fn a_version_that_answers_nothing_well_is_found_out_by_its_fourth_request() {
        assert!(!is_at_fault(&counts((100, 0), (0, 3))));
        assert!(is_at_fault(&counts((100, 0), (0, 4))));
        assert!(is_at_fault(&counts((100, 0), (40, 20))));
        assert!(!is_at_fault(&counts((100, 0), (1000, 40))), "four in a hundred is within the promise");
        let slow = Count2 { new: Count { good: 5, slow: 10, failed: 0 }, ..Count2::default() };
        assert!(is_at_fault(&slow));
    }

    #[test]
    fn what_the_former_version_does_as_badly_is_not_the_new_ones_fault() {
        assert!(!is_at_fault(&counts((50, 50), (50, 60))));
        assert!(is_at_fault(&counts((80, 20), (40, 60))), "it got worse");
    }

    proptest! {
        #[test]
        fn no_number_makes_it_panic(good in any::<u64>(), slow in any::<u64>(), failed in any::<u64>()) {
            let count = Count { good, slow, failed };
            let _ = is_at_fault(&Count2 { former: count, new: count });
            let _ = is_at_fault(&Count2 { former: Count::default(), new: count });
        }

        /// The more that is bad, the sooner.
        #[test]
        fn a_worse_count_is_never_judged_better(good in 0u64..10_000, bad in 0u64..10_000) {
            let of = |bad| breaks(&Count { good, slow: 0, failed: bad });
            prop_assert!(!of(bad) || of(bad + 1));
        }
    }
}
