//! Commands about tenants.

use crate::command::Answer;
use crate::event::{EventKind, TenantEvent};
use crate::id::{TenantId, TenantNo};
use crate::quota::tree;
use crate::reason::{Reason, Refusal};
use crate::state::State;
use crate::tenant::{Quota, Tenant};

/// The tenant's number; a tenant exists once it is named.
pub(super) fn ensure(state: &mut State, id: &TenantId) -> TenantNo {
    if let Some(tenant) = state.tenant_named(id) {
        return tenant.no;
    }
    let no = TenantNo(state.meta().next_tenant);
    state.change_meta(|meta| meta.next_tenant += 1);
    let created_ms = state.meta().now_ms;
    state.put_tenant(Tenant { no, id: id.clone(), quota: Quota::default(), created_ms });
    state.emit(EventKind::Tenant { tenant: id.clone(), what: TenantEvent::Created });
    no
}

pub(super) fn create(state: &mut State, id: &TenantId) -> Result<Answer, Refusal> {
    ensure(state, id);
    Ok(Answer::Done)
}

pub(super) fn delete(state: &mut State, id: &TenantId) -> Result<Answer, Refusal> {
    let Some(tenant) = state.tenant_named(id) else {
        return Err(Refusal::field(
            Reason::NotFound,
            "tenant_id",
            format!("no tenant {id}; nf get tenants lists them"),
        ));
    };
    let (no, jobs) = (tenant.no, state.ledger().tenant(tenant.no).jobs);
    if jobs > 0 {
        return Err(Refusal::new(Reason::Conflict, format!("tenant {id} has {jobs} live jobs; stop them first")));
    }
    if let Some(child) = tree::children(state, tenant).next() {
        let detail = format!("tenant {} is below {id}; set its parent to none first (nf quota set)", child.id);
        return Err(Refusal::new(Reason::Conflict, detail));
    }
    state.remove_tenant(no);
    state.remove_floors(id);
    state.remove_quarantines(id);
    state.emit(EventKind::Tenant { tenant: id.clone(), what: TenantEvent::Deleted });
    Ok(Answer::Done)
}

pub(super) fn set_quota(state: &mut State, id: &TenantId, quota: &Quota) -> Result<Answer, Refusal> {
    if let Some(what) = quota.parent.as_ref().and_then(|above| tree::misplaced(state, id, above)) {
        return Err(Refusal::invalid("parent", what));
    }
    let no = ensure(state, id);
    let tenant = state.tenants[&no].as_ref().clone();
    state.put_tenant(Tenant { quota: quota.clone(), ..tenant });
    state.emit(EventKind::Tenant { tenant: id.clone(), what: TenantEvent::QuotaSet });
    Ok(Answer::Done)
}

/// What is over with a window may be had again.
pub(super) fn count_usage(state: &mut State, tenants: &[TenantNo]) -> Result<Answer, Refusal> {
    let counted = tenants.iter().filter(|no| state.settle_meter(**no)).count();
    state.room += 1;
    Ok(Answer::Count(counted as u32))
}
