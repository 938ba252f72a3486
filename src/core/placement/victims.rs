//! Whose turn it is to have others looked for who could give way: that is the dearest part of a pass, so a pass does it for
//! few. Each tenant that waits has a share of it, and of many asks of one tenant some have their turn in each pass.

use super::queue::{Asker, Shape};
use super::turns::{has_its_turn, lot};
use crate::id::{JobNo, TenantNo};
use crate::quota::{self, tree};
use crate::state::State;
use std::collections::{BTreeMap, BTreeSet};

/// Different askers of one pass for whom others are looked for.
const TRIES: u32 = 64;
/// Of one tenant at least.
const LEAST: u32 = 2;
/// Jobs of a tenant among which one that is less urgent is looked for.
const LOOKED_AT: usize = 4096;

/// For whom others were looked for in a pass.
#[derive(Default)]
pub(super) struct Victims {
    /// Each (tenant, priority, ask) that had its turn, or hadn't.
    seen: BTreeSet<(TenantNo, i16, Shape)>,
    tries: u32,
    /// How many different asks of each tenant there were, and how many of them were tried.
    of: BTreeMap<TenantNo, (u32, u32)>,
    /// The least urgent work of each tenant's own that gives way.
    least: BTreeMap<TenantNo, Option<i16>>,
    /// Tenants that wait.
    tenants: Option<u32>,
}

impl Victims {
    /// Whether others are looked for on behalf of the asker. `lacks`: it is quota that it lacks.
    pub fn is_its_turn(&mut self, state: &State, asker: &Asker<'_>, shape: Shape, lacks: bool) -> bool {
        let (tenant, priority) = (asker.job.tenant, asker.job.spec.priority);
        if !self.seen.insert((tenant, priority, shape)) || lacks && !self.may_free_quota(state, asker) {
            return false;
        }
        let tenants = *self.tenants.get_or_insert_with(|| super::order::Order::new(state).tenants() as u32);
        let share = (TRIES / tenants.max(1)).max(LEAST);
        let (asks, tried) = self.of.entry(tenant).or_default();
        *asks += 1;
        let of_tenant = *tried < share.div_ceil(2) || *tried < share && has_its_turn(state, *asks);
        // Where more tenants than that wait, the second half of the tries goes to some of them, in each pass others.
        let drawn = || lot(state, tenant.0.into()) % u64::from(tenants) < u64::from(TRIES / (2 * LEAST));
        let turn = of_tenant && self.tries < TRIES && (self.tries < TRIES / 2 || share > LEAST || drawn());
        *tried += u32::from(turn);
        self.tries += u32::from(turn);
        turn
    }

    /// Whether less urgent work of the asker's tenant may give it the quota that it lacks. In a tree also others may.
    fn may_free_quota(&mut self, state: &State, asker: &Asker<'_>) -> bool {
        let (job, spec) = (asker.job, asker.spec);
        let Some(row) = state.tenant(job.tenant) else { return false };
        if !tree::is_flat(state, row) {
            return true;
        }
        let least = *self.least.entry(job.tenant).or_insert_with(|| least_urgent(state, job.tenant));
        let times = if spec.gang { asker.wanted.len() as u64 } else { 1 };
        least.is_some_and(|least| least < job.spec.priority)
            && quota::waits_for(state, Some(job.tenant), spec, times).is_some()
    }
}

fn least_urgent(state: &State, tenant: TenantNo) -> Option<i16> {
    let held = state.holding.range((tenant, JobNo(0))..=(tenant, JobNo(u64::MAX))).rev().take(LOOKED_AT);
    let jobs = held.filter_map(|(_, no)| state.job(*no)).filter(|job| job.spec.constraints.preemptible);
    jobs.map(|job| job.spec.priority).min()
}
