//! The setters of tenants and of members.

use super::*;

impl State {
    pub(crate) fn put_tenant(&mut self, tenant: Tenant) {
        let no = tenant.no;
        self.remember(RowKey::Tenant(no), |state| Before::Tenant(state.tenants.get(&no).cloned()));
        self.tenant_names.insert(tenant.id.clone(), no);
        let above = |tenant: &Tenant| tenant.quota.parent.clone();
        let old = self.tenants.get(&no).and_then(|old| above(old));
        let (moves, from) = (old != above(&tenant), self.above(no));
        if let Some(old) = old {
            self.children.remove(&(old, no));
        }
        if let Some(new) = above(&tenant) {
            self.children.insert((new, no));
        }
        match tenant.quota.types.is_empty() {
            true => self.typed.remove(&no),
            false => self.typed.insert(no),
        };
        self.tenants.insert(no, Arc::new(tenant));
        if moves {
            self.meter_moved(no, &from, &self.above(no));
        }
        self.set_due(no);
        self.room += 1;
    }

    pub(crate) fn remove_tenant(&mut self, no: TenantNo) {
        self.remember(RowKey::Tenant(no), |state| Before::Tenant(state.tenants.get(&no).cloned()));
        self.newest.remove(&no);
        self.remove_meter(no);
        self.typed.remove(&no);
        if let Some(tenant) = self.tenants.remove(&no) {
            self.tenant_names.remove(&tenant.id);
            if let Some(above) = &tenant.quota.parent {
                self.children.remove(&(above.clone(), no));
            }
        }
        if self.ledger.tenant(no) == TenantUse::default() {
            self.ledger.tenants.remove(&no);
        }
    }

    pub(crate) fn put_member(&mut self, member: Member) {
        let id = member.id;
        self.remember(RowKey::Member(id), |state| Before::Member(state.members.get(&id).cloned()));
        self.members.insert(id, Arc::new(member));
    }
}
