//! That each has its turn: of what a pass looks at, no tenant's queue takes another's part, and of a queue that is longer
//! than its part others are looked at in each pass.

use super::order::Order;
use super::pass::LOOKED_AT;
use crate::id::TenantNo;
use crate::state::State;
use std::collections::BTreeMap;

/// Of one tenant at least so many that get nothing, however many tenants wait.
const LEAST_OF_ONE: usize = 16;

/// How many waiters of each tenant got nothing from a pass. All have the same part of what it looks at, so that no tenants'
/// queues hide those of the others: the first half of it are the first of its queue, the other half follow one another
/// from a place that is drawn for each pass, so that each has its turn however many there are.
pub(super) struct Looks {
    most: usize,
    of: BTreeMap<TenantNo, usize>,
}

impl Looks {
    pub fn new(order: &Order) -> Self {
        Self { most: (LOOKED_AT / order.tenants().max(1)).max(LEAST_OF_ONE), of: BTreeMap::new() }
    }

    /// One of the tenant's got nothing.
    pub fn in_vain(&mut self, state: &State, order: &mut Order, tenant: TenantNo) {
        let looked = self.of.entry(tenant).or_default();
        *looked += 1;
        if *looked == self.most {
            order.leave_out(tenant);
            return;
        }
        let waiting = state.ledger().tenant(tenant).waiting as usize;
        if *looked == self.most / 2 && waiting > self.most {
            let behind = waiting - self.most / 2;
            order.skip(state, tenant, (lot(state, tenant.0.into()) % behind as u64) as usize);
        }
    }
}

/// Whether this pass tries a tenant's ask with that many different ones before it: by lot, in some passes one in two,
/// in some one in two hundred, so that each has its turn however many there are.
pub(super) fn has_its_turn(state: &State, no: u32) -> bool {
    lot(state, u64::from(no) << 8) & ((2 << (of_pass(state) & 7)) - 1) == 0
}

/// A number without meaning for each `no`, others in each pass.
pub(super) fn lot(state: &State, no: u64) -> u64 {
    mix(of_pass(state) ^ no)
}

fn of_pass(state: &State) -> u64 {
    mix(state.meta().now_ms ^ state.meta().base << 32)
}

fn mix(n: u64) -> u64 {
    (n ^ n >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}

#[cfg(test)]
mod tests;
