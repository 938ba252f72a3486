//! The order of those who wait: by priority, then by fair share (the tenant of which the
//! resource it uses most, as a part of its quota, is used least), then by age. A tenant's share
//! is looked at whenever it is its turn: what a pass has given it since counts.

use crate::id::{JobNo, TenantNo};
use crate::job::Job;
use crate::quota;
use crate::state::State;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// Place in the order; the greatest goes first.
type Rank = (i32, Reverse<u64>, Reverse<JobNo>);

fn rank(state: &State, job: &Job) -> Rank {
    (i32::from(job.spec.priority), Reverse(quota::dominant_share(state, job.tenant)), Reverse(job.no))
}

/// Who is next. Holds the first of each tenant's queue, and reads the one behind it only when that is taken.
pub(super) struct Order(BinaryHeap<(Rank, TenantNo)>);

impl Order {
    pub fn new(state: &State) -> Self {
        let mut first = BinaryHeap::new();
        let mut tenant = state.waiting.get_min().map(|(t, ..)| *t);
        while let Some(no) = tenant {
            if let Some(job) = after(state, (no, i32::MIN, JobNo(0))) {
                first.push((rank(state, job), no));
            }
            tenant = state.waiting.get_next(&(TenantNo(no.0 + 1), i32::MIN, JobNo(0))).map(|(t, ..)| *t);
        }
        Self(first)
    }

    /// The next one as things are in `state`, in which tenants may hold more than when they were ranked, never less.
    pub fn next(&mut self, state: &State) -> Option<Arc<Job>> {
        loop {
            let ((priority, share, Reverse(no)), tenant) = self.0.pop()?;
            let now = (priority, Reverse(quota::dominant_share(state, tenant)), Reverse(no));
            if now.1 != share && self.0.peek().is_some_and(|(first, _)| *first > now) {
                self.0.push((now, tenant));
                continue;
            }
            if let Some(job) = after(state, (tenant, -priority, JobNo(no.0 + 1))) {
                self.0.push((rank(state, job), tenant));
            }
            return state.job(no).cloned();
        }
    }

    /// How many tenants have somebody who is still to come.
    pub fn tenants(&self) -> usize {
        self.0.len()
    }

    /// So many of that tenant's are passed over.
    pub fn skip(&mut self, state: &State, tenant: TenantNo, by: usize) {
        let Some(((priority, _, Reverse(no)), _)) = self.0.iter().find(|(_, other)| *other == tenant).copied() else {
            return;
        };
        self.leave_out(tenant);
        let behind = state.waiting.range((tenant, -priority, no)..=(tenant, i32::MAX, JobNo(u64::MAX))).nth(by);
        if let Some(job) = behind.and_then(|(.., no)| state.job(*no)) {
            self.0.push((rank(state, job), tenant));
        }
    }

    /// Nobody else of that tenant.
    pub fn leave_out(&mut self, tenant: TenantNo) {
        self.0.retain(|(_, other)| *other != tenant);
    }
}

/// The first of a tenant's queue from there on.
fn after(state: &State, from: (TenantNo, i32, JobNo)) -> Option<&Arc<Job>> {
    let found = state.waiting.get_next(&from).copied();
    found.filter(|(tenant, ..)| *tenant == from.0).and_then(|(_, _, no)| state.job(no))
}
