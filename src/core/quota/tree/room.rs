//! What a tree of tenants has room for, when many ask at once: [`super::check`] for one
//! after the other, each with what the ones before it got. It knows no types of devices.

use super::{Of, Tenant, children, held, kept, limit, nominal, root};
use crate::id::TenantNo;
use crate::state::State;
use std::collections::BTreeMap;

/// One tenant in it. All in thousandths of a GPU.
#[derive(Clone, Copy, Debug)]
struct Row {
    above: Option<usize>,
    /// Its own and that of all below it.
    nominal: u64,
    /// What it holds, and what those below it take.
    demand: u64,
    limit: u64,
    /// What others can't have of its nominal, used or not.
    kept: u64,
}

/// A tree of tenants that more and more is taken from.
#[derive(Clone, Debug)]
pub struct Room {
    rows: Vec<Row>,
    of: BTreeMap<TenantNo, usize>,
}

impl Room {
    /// The tree that the tenant is in, as if each held so much less than it does.
    pub fn of(state: &State, tenant: &Tenant, less: impl Fn(TenantNo) -> u64) -> Self {
        let mut room = Self { rows: Vec::new(), of: BTreeMap::new() };
        room.add(state, root(state, tenant), None, &less);
        room
    }

    fn add(&mut self, state: &State, tenant: &Tenant, above: Option<usize>, less: &impl Fn(TenantNo) -> u64) -> Row {
        let own = self.rows.len();
        let demand = held(state, tenant.no, Of::Gpus).saturating_sub(less(tenant.no));
        let mut row = Row { above, nominal: nominal(state, tenant, Of::Gpus), demand, limit: 0, kept: 0 };
        self.rows.push(row);
        self.of.insert(tenant.no, own);
        for child in children(state, tenant) {
            let child = self.add(state, child, Some(own), less);
            row.nominal = row.nominal.saturating_add(child.nominal);
            row.demand = row.demand.saturating_add(child.demand.max(child.kept));
        }
        row.limit = limit(tenant, Of::Gpus, row.nominal);
        row.kept = kept(tenant, Of::Gpus, row.nominal);
        self.rows[own] = row;
        row
    }

    /// The demand of the tenant and of those above it, if it held so much more.
    fn demands(&self, tenant: TenantNo, more: u64) -> impl Iterator<Item = (usize, u64)> {
        let (mut at, mut more) = (self.of.get(&tenant).copied(), more);
        std::iter::from_fn(move || {
            let own = at?;
            let row = self.rows[own];
            let demand = row.demand.saturating_add(more);
            more = demand.max(row.kept) - row.demand.max(row.kept);
            at = row.above;
            Some((own, demand))
        })
    }

    /// Whether the tenant may hold so much more.
    pub fn has(&self, tenant: TenantNo, more: u64) -> bool {
        more == 0 || self.demands(tenant, more).all(|(row, demand)| demand <= self.rows[row].limit)
    }

    /// It holds so much more.
    pub fn take(&mut self, tenant: TenantNo, more: u64) {
        let demands: Vec<(usize, u64)> = self.demands(tenant, more).collect();
        demands.into_iter().for_each(|(row, demand)| self.rows[row].demand = demand);
    }

    /// At which levels below the root it would live on what is others', a bit for each, the uppermost first: of two
    /// tenants, the one whose owner could have it back from the other has the smaller number.
    pub fn borrowed(&self, tenant: TenantNo, more: u64) -> u64 {
        let below = self.demands(tenant, more).filter(|(row, _)| self.rows[*row].above.is_some());
        let borrows: Vec<bool> = below.map(|(row, demand)| demand > self.rows[row].nominal).collect();
        borrows.iter().rev().enumerate().map(|(depth, borrows)| u64::from(*borrows) << (63 - depth)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{group, random_tree};
    use super::super::{check, path};
    use super::*;
    use crate::resources::Gpus;
    use crate::sim::Rng;
    use crate::testing;

    #[test]
    fn it_has_room_for_what_the_tree_allows() {
        let (mut allowed, mut refused) = (0, 0);
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut state = group(24);
            let (leaves, _) = random_tree(&mut state, &mut rng);
            for i in 0..rng.below(12) {
                let spec = testing::job_spec(rng.pick::<String>(&leaves), Gpus::Whole(rng.between(1, 3) as u16));
                testing::run(&mut state, testing::schedule(&format!("r{i}"), spec));
                testing::run(&mut state, crate::plan::Intent::PlaceWaiting);
            }
            let root = state.tenants().values().find(|tenant| tenant.quota.parent.is_none()).unwrap().clone();
            let room = Room::of(&state, &root, |_| 0);
            for tenant in state.tenants().values() {
                for more in [500, 1000, 2000, 5000] {
                    let right = check(&state, tenant, Of::Gpus, more).is_ok();
                    assert_eq!(room.has(tenant.no, more), right, "seed {seed}: {more} more for {}", tenant.id);
                    let mut then = room.clone();
                    then.take(tenant.no, more);
                    for above in path(&state, tenant) {
                        let sum = super::super::sum(&state, above, Of::Gpus, (tenant.no, more));
                        let row = then.rows[then.of[&above.no]];
                        assert_eq!((row.demand, row.nominal), (sum.demand, sum.nominal), "seed {seed}: {}", above.id);
                    }
                    (allowed, refused) = (allowed + u32::from(right), refused + u32::from(!right));
                }
            }
        }
        assert!(allowed > 100 && refused > 100, "{allowed} {refused}");
    }

    #[test]
    fn what_was_summed_up_once_says_the_same_when_more_was_taken() {
        let (mut allowed, mut refused) = (0, 0);
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut state = group(24);
            let (leaves, _) = random_tree(&mut state, &mut rng);
            let mut rooms = crate::quota::Rooms::default();
            for _ in 0..12 {
                let spec = testing::job_spec(rng.pick::<String>(&leaves), Gpus::Whole(rng.between(1, 3) as u16));
                let (tenant, times) = (state.tenant_named(&spec.tenant).unwrap().no, rng.between(1, 2));
                let right = crate::quota::allows(&state, Some(tenant), &spec.resources, times);
                assert_eq!(rooms.allow(&state, tenant, &spec.resources, times), right, "seed {seed}: {}", spec.tenant);
                (allowed, refused) = (allowed + u32::from(right), refused + u32::from(!right));
                if right {
                    state.ledger.count(tenant, &spec.resources, times, |now, more| now + more);
                    rooms.take(&state, tenant, &spec.resources, times);
                }
            }
        }
        assert!(allowed > 100 && refused > 100, "{allowed} {refused}");
    }
}
