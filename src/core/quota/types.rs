//! Quotas of single device types. Which type a job takes is known when it has a place, so
//! the placer leaves out the types of which its tenant may hold no more, and apply counts
//! what a plan really takes. The arithmetic is the tree's.

use super::tree::{self, Of, Over};
use crate::bisect;
use crate::capacity::CapacityIndex;
use crate::command::Placement;
use crate::id::{DeviceType, TenantNo};
use crate::job::{Allocation, JobSpec};
use crate::node::DeviceKind;
use crate::state::State;
use crate::tenant::Tenant;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Thousandths of GPUs of each type that a place takes.
pub(super) fn by_type<'a>(state: &'a State, alloc: &'a Allocation) -> impl Iterator<Item = (&'a DeviceType, u64)> + 'a {
    let node = state.node(alloc.node);
    alloc.shares.iter().filter_map(move |share| {
        let device = node?.spec.devices.get(usize::from(share.device))?;
        (device.kind == DeviceKind::Gpu).then_some((&device.device_type, share.counted()))
    })
}

/// Those of one type.
pub(crate) fn of_type(state: &State, alloc: &Allocation, kind: &DeviceType) -> u64 {
    by_type(state, alloc).filter(|(of, _)| *of == kind).map(|(_, milli)| milli).sum()
}

/// The most that the tenant itself holds of a type until its open claims are met.
pub fn used(state: &State, tenant: TenantNo, kind: &DeviceType) -> u64 {
    let held = state.ledger().of_type(tenant, kind);
    state.claimed.get(&tenant).map_or(held, |claimed| claimed.most_of(Of::Type(kind), held))
}

/// Whether anybody in the tenant's tree has a limit of a type.
pub fn in_tree(state: &State, tenant: &Tenant) -> bool {
    if state.typed.is_empty() {
        return false;
    }
    tree::subtree(state, tree::root(state, tenant)).iter().any(|no| state.typed.contains(no))
}

/// The tenant, where any in the group has such a limit: most groups have none.
fn typed(state: &State, tenant: Option<TenantNo>) -> Option<&Tenant> {
    if state.typed.is_empty() {
        return None;
    }
    state.tenant(tenant?).map(|tenant| &**tenant)
}

/// Whether these places are within the limits of their types.
pub fn allows(state: &State, tenant: Option<TenantNo>, placements: &[Placement]) -> bool {
    let Some(tenant) = typed(state, tenant) else { return true };
    let mut more: BTreeMap<&DeviceType, u64> = BTreeMap::new();
    for (kind, milli) in placements.iter().flat_map(|placement| by_type(state, &placement.alloc)) {
        *more.entry(kind).or_default() += milli;
    }
    more.into_iter().all(|(kind, milli)| tree::check(state, tenant, Of::Type(kind), milli).is_ok())
}

/// The types that the job could take, by what it says or what there is.
fn candidates(spec: &JobSpec, capacity: &CapacityIndex) -> BTreeSet<DeviceType> {
    if !spec.resources.device_types.is_empty() {
        return spec.resources.device_types.iter().cloned().collect();
    }
    let (mut out, mut last) = (BTreeSet::new(), None);
    for class in capacity.classes.keys() {
        // Classes come in the order of their flavors.
        if last.is_none_or(|known| !Arc::ptr_eq(known, &class.flavor)) {
            let gpus = class.flavor.devices.iter().filter(|device| device.kind == DeviceKind::Gpu);
            out.extend(gpus.map(|device| device.device_type.clone()));
        }
        last = Some(&class.flavor);
    }
    out
}

/// The types of which one replica may still have a place; None: all that it could take anyway.
pub fn narrowed(state: &State, spec: &JobSpec) -> Option<Vec<DeviceType>> {
    let milli = spec.resources.gpu.milli();
    if milli == 0 || state.typed.is_empty() {
        return None;
    }
    let tenant = typed(state, state.tenant_named(&spec.tenant).map(|tenant| tenant.no))?;
    let all = candidates(spec, state.capacity());
    let open = |kind: &&DeviceType| tree::check(state, tenant, Of::Type(kind), milli).is_ok();
    let some: Vec<DeviceType> = all.iter().filter(open).cloned().collect();
    (some.len() < all.len()).then_some(some)
}

/// Whether there is a type of which so many replicas may have a place.
pub fn some_open(state: &State, tenant: Option<TenantNo>, spec: &JobSpec, times: u64) -> bool {
    closed(state, tenant, spec, times).is_empty()
}

/// The limits in the way of so many replicas, by type; empty when there is a type of which they may have a place.
pub fn closed(state: &State, tenant: Option<TenantNo>, spec: &JobSpec, times: u64) -> Vec<(DeviceType, Over)> {
    let (shut, open) = shut(state, tenant, spec, times);
    if open { Vec::new() } else { shut }
}

/// The limits in the way of so many replicas, by type, and whether they may have places all the same: all of one type, or
/// each of another.
pub fn shut(state: &State, tenant: Option<TenantNo>, spec: &JobSpec, times: u64) -> (Vec<(DeviceType, Over)>, bool) {
    let milli = spec.resources.gpu.milli().saturating_mul(times);
    let Some(tenant) = typed(state, tenant).filter(|_| milli > 0) else { return (Vec::new(), true) };
    let (mut out, mut open) = (Vec::new(), false);
    for kind in candidates(spec, state.capacity()) {
        match tree::check(state, tenant, Of::Type(&kind), milli) {
            Ok(()) => open = true,
            Err(over) => out.push((kind, over)),
        }
    }
    if !open && times > 1 && out.len() > 1 {
        let each = spec.resources.gpu.milli();
        let sum =
            |of: &dyn Fn(&DeviceType) -> u64| out.iter().fold(0, |sum: u64, (kind, _)| sum.saturating_add(of(kind)));
        open = sum(&|kind| room(state, tenant, kind, each, times)) >= times;
        let never = sum(&|kind| tree::most(state, tenant, Of::Type(kind)) / each) < times;
        out.iter_mut().for_each(|(_, over)| over.never = never);
    }
    (out, open)
}

/// How many replicas that take so much, up to `most`, may have a place of that type.
fn room(state: &State, tenant: &Tenant, kind: &DeviceType, each: u64, most: u64) -> u64 {
    bisect::most(most, |times| tree::check(state, tenant, Of::Type(kind), each.saturating_mul(times)).is_ok())
}

/// The largest share that the tenant uses of any type that it has, in millionths.
pub(super) fn dominant(state: &State, tenant: TenantNo) -> u64 {
    let Some(row) = state.tenant(tenant).filter(|_| !state.typed.is_empty()) else { return 0 };
    let share = |(kind, share): (&DeviceType, &crate::tenant::Share)| {
        let part = u128::from(used(state, tenant, kind)) * 1_000_000 / u128::from(share.gpu_milli.max(1));
        u64::try_from(part).unwrap_or(u64::MAX)
    };
    row.quota.types.iter().map(share).max().unwrap_or(0)
}

#[cfg(test)]
mod tests;
