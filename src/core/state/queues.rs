//! When waiting jobs are worth another look. It looks at none of them.

use super::State;
use crate::id::JobNo;

impl State {
    /// Tenants of which a job waits.
    pub fn has_waiters(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Rises whenever a waiter may have become placeable.
    pub fn room(&self) -> u64 {
        self.room
    }
    /// Whether a back-off ended after `from` and no later than at `to`.
    pub fn woke_between(&self, from: u64, to: u64) -> bool {
        self.wakes.get_next(&(from, JobNo(u64::MAX))).is_some_and(|(at, _)| *at <= to)
    }

    /// Whether a waiter had waited so long, after `from` and no later than at `to`, that it may make others give way,
    /// and there is somebody who could.
    pub fn may_evict_between(&self, from: u64, to: u64) -> bool {
        let rules = self.meta.placement.preemption;
        let any = rules.enabled && (!self.yielding.is_empty() || !self.children.is_empty());
        let Some(to) = to.checked_sub(rules.delay_ms) else { return false };
        let from = from.saturating_sub(rules.delay_ms);
        // A delay of nothing is over when the job comes, which is looked at then.
        any && rules.delay_ms > 0
            && self.waits.get_next(&(from, JobNo(u64::MAX))).is_some_and(|(since, _)| *since <= to)
    }
}
