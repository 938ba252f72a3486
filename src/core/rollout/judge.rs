//! Whether a new version breaks the service's promise, from what the gateways counted of
//! each revision since it was begun. A sequential test says so as soon as it is sure, and
//! says nothing while it is not. It does not know who counted.

use super::{Course, MOST_FAILURES, Rollout, Turn};
use crate::id::{JobNo, Revision};
use crate::plan::Intent;
use crate::reason::Reason;
use crate::slo::Count;
use crate::state::State;
use crate::trust;
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

// The same test for a promise of errors alone: half of what may fail against twice as much, in millionths of the
// logarithm of the odds. ln((1 − p/2) / (1 − 2p)) is 3p/2 + 15p²/8 for the small parts that may be promised.
const ERROR: u64 = 1_386_294;
const ERRORS_SURE: u64 = 4_553_877;

/// Whether so many errors are those of a broken promise that so many of a million fail at most.
fn errs(count: &Count, allowed_ppm: u32) -> bool {
    let p = u64::from(allowed_ppm);
    let answered = count.good.saturating_add(count.slow).saturating_mul(p * 3 / 2 + p * p * 15 / 8 / 1_000_000);
    count.failed.saturating_mul(ERROR) > answered.saturating_add(ERRORS_SURE)
}

/// Part of the requests that was bad, in millionths.
fn bad_ppm(count: &Count) -> u64 {
    count.attained_ppm().map_or(0, |good| 1_000_000 - good)
}

/// Whether the new version breaks the promise, or the one that is made of errors, and not only because the former
/// does, too.
pub(super) fn is_at_fault(counts: &Count2, allowed_ppm: Option<u32>) -> bool {
    let Count2 { former, new } = counts;
    let alike = bad_ppm(new) * 2 <= bad_ppm(former) * 3;
    let failed = |count: &Count| count.failed_ppm().unwrap_or(0);
    let errs_alike = failed(new) * 2 <= failed(former) * 3;
    let errs = |allowed| errs(new, allowed) && !(errs(former, allowed) && errs_alike);
    breaks(new) && !(breaks(former) && alike) || allowed_ppm.is_some_and(errs)
}

/// What follows from the gateways' counts: the rollouts that are taken back. Of one that can't be, that it is at fault,
/// which is said once.
pub fn verdicts(state: &State, seen: &BTreeMap<(JobNo, Revision), Count>) -> Vec<Intent> {
    let mut out = Vec::new();
    for job in state.rollouts() {
        let Some(rollout) = job.rollout.as_deref() else { continue };
        let Rollout { revision, course: Course::Forward { .. }, failures, .. } = rollout else { continue };
        if *failures >= MOST_FAILURES && trust::judge_way_back(state, job).is_err() {
            continue;
        }
        let of = |revision: Revision| seen.get(&(job.no, revision)).copied().unwrap_or_default();
        let counts = Count2 { former: of(job.revision), new: of(*revision) };
        if is_at_fault(&counts, job.spec.constraints.error_ppm) {
            let turn = Turn::Back { failed: true, why: Reason::PromiseBroken, counts: Some(Box::new(counts)) };
            let (request, tenant) = (job.request.clone(), Some(job.spec.tenant.clone()));
            out.push(Intent::TurnRollout { request, tenant, revision: Some(*revision), turn });
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
        assert!(!is_at_fault(&counts((100, 0), (0, 3)), None));
        assert!(is_at_fault(&counts((100, 0), (0, 4)), None));
        assert!(is_at_fault(&counts((100, 0), (40, 20)), None));
        assert!(!is_at_fault(&counts((100, 0), (1000, 40)), None), "four in a hundred is within the promise");
        let slow = Count2 { new: Count { good: 5, slow: 10, failed: 0 }, ..Count2::default() };
        assert!(is_at_fault(&slow, None));
    }

    #[test]
    fn a_promise_of_errors_alone_is_held_to_as_well() {
        // One in a hundred may fail; three in a hundred do, which the promise of latency and errors together allows.
        let worse = counts((970, 1), (970, 30));
        assert!(!is_at_fault(&worse, None) && is_at_fault(&worse, Some(10_000)));
        assert!(!is_at_fault(&counts((970, 1), (970, 9)), Some(10_000)), "nine of 979 are within it");
        assert!(!is_at_fault(&counts((970, 30), (970, 30)), Some(10_000)), "the former does as badly");
        // Four failures and nothing else are no accident at any promise.
        assert!(
            !is_at_fault(&counts((100, 0), (0, 3)), Some(10_000))
                && is_at_fault(&counts((100, 0), (0, 4)), Some(10_000))
        );
        // Slow answers are no errors.
        let slow = Count { good: 990, slow: 20, failed: 0 };
        assert!(!is_at_fault(&Count2 { former: Count::default(), new: slow }, Some(100)));
    }

    #[test]
    fn what_the_former_version_does_as_badly_is_not_the_new_ones_fault() {
        assert!(!is_at_fault(&counts((50, 50), (50, 60)), None));
        assert!(is_at_fault(&counts((80, 20), (40, 60)), None), "it got worse");
    }

    proptest! {
        #[test]
        fn no_number_makes_it_panic(good in any::<u64>(), slow in any::<u64>(), failed in any::<u64>()) {
            let count = Count { good, slow, failed };
            let _ = is_at_fault(&Count2 { former: count, new: count }, Some(1));
            let _ = is_at_fault(&Count2 { former: Count::default(), new: count }, Some(200_000));
        }

        /// The more that is bad, the sooner.
        #[test]
        fn a_worse_count_is_never_judged_better(good in 0u64..10_000, bad in 0u64..10_000) {
            let of = |bad| breaks(&Count { good, slow: 0, failed: bad });
            prop_assert!(!of(bad) || of(bad + 1));
        }
    }
}
