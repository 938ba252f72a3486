//! Requests that are remembered, each as its tenant's: ids are names that clients choose, and
//! two tenants may choose the same (ADR 93). It does not know who asks.

use super::*;
use crate::reason::{Reason, Refusal};

/// A refusal names this many of the tenants that have a name in common.
const SHOWN: usize = 8;

/// Remembers which job a request made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub job: JobNo,
    pub body: Digest16,
    pub keyed: bool,
    /// Log time after which it is forgotten; `u64::MAX` while the job lives.
    pub expires_ms: u64,
}

/// Under which a request is remembered. The name comes first, so that one range has all tenants' requests of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestKey {
    name: Digest16,
    pub tenant: TenantNo,
}

impl RequestKey {
    pub fn new(tenant: TenantNo, request: &RequestId) -> Self {
        Self { name: name_key(request), tenant }
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        [&self.name.0[..], &self.tenant.0.to_be_bytes()].concat()
    }

    /// From its bytes; None when there are fewer or more.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let (name, tenant) = bytes.split_first_chunk()?;
        Some(Self { name: Digest16(*name), tenant: TenantNo(u32::from_be_bytes(tenant.try_into().ok()?)) })
    }
}

/// The digest of a request's id, whosever it is.
pub fn name_key(request: &RequestId) -> Digest16 {
    Digest16::of(&[b"request", request.as_str().as_bytes()])
}

/// The only one of the tenants that have a request of that name, for callers who may see all of them and named
/// none; None: nobody has.
///
/// # Errors
/// `Conflict` when several have.
pub fn only<'a>(
    request: &RequestId,
    owners: impl Iterator<Item = &'a TenantId>,
) -> Result<Option<&'a TenantId>, Refusal> {
    let owners: Vec<&TenantId> = owners.take(SHOWN + 1).collect();
    let [first, _, ..] = owners.as_slice() else { return Ok(owners.first().copied()) };
    let shown = owners.iter().take(SHOWN).map(|tenant| tenant.as_str()).collect::<Vec<_>>().join(", ");
    let more = if owners.len() > SHOWN { " and others" } else { "" };
    let detail = format!(
        "several tenants have a job {request}: {shown}{more}; say whose, such as tenant_id={first} (nf: --tenant {first})"
    );
    Err(Refusal::field(Reason::Conflict, "tenant_id", detail))
}

impl State {
    /// What is remembered of the tenant's request.
    pub fn request(&self, tenant: &TenantId, request: &RequestId) -> Option<&Request> {
        let tenant = self.tenant_named(tenant)?.no;
        self.requests.get(&RequestKey::new(tenant, request)).filter(|known| self.remembers(known))
    }

    fn remembers(&self, request: &Request) -> bool {
        request.expires_ms > self.meta.now_ms
    }

    /// The live job that the tenant's request made.
    pub fn job_named(&self, tenant: &TenantId, request: &RequestId) -> Option<&Arc<Job>> {
        let known = self.request(tenant, request)?;
        self.jobs.get(&known.job).filter(|job| job.request == *request)
    }

    /// The tenants of which a request of that name is remembered.
    pub fn owners(&self, request: &RequestId) -> impl Iterator<Item = &TenantId> {
        let name = name_key(request);
        let of = |tenant| RequestKey { name, tenant: TenantNo(tenant) };
        let known = self.requests.range(of(0)..=of(u32::MAX)).filter(|(_, known)| self.remembers(known));
        // A tenant that was deleted since can't be named any more.
        known.filter_map(|(key, _)| self.tenants.get(&key.tenant)).map(|tenant| &tenant.id)
    }

    /// All tenants' live jobs of that name.
    pub fn jobs_named(&self, request: &RequestId) -> impl Iterator<Item = &Arc<Job>> {
        self.owners(request).filter_map(|tenant| self.job_named(tenant, request))
    }

    /// The live job of that name which is meant: the tenant's, or, where none is named, the only one. A request that
    /// is remembered counts although its job is over: whoever means that one must not hit another's.
    ///
    /// # Errors
    /// `Conflict` when no tenant is named and several have the name.
    pub fn find_job(&self, tenant: Option<&TenantId>, request: &RequestId) -> Result<Option<&Arc<Job>>, Refusal> {
        let tenant = match tenant {
            Some(tenant) => Some(tenant),
            None => only(request, self.owners(request))?,
        };
        Ok(tenant.and_then(|tenant| self.job_named(tenant, request)))
    }

    /// The live job of that name, where one tenant alone has it.
    pub fn job_of(&self, request: &RequestId) -> Option<&Arc<Job>> {
        self.find_job(None, request).ok().flatten()
    }

    pub(crate) fn put_request(&mut self, key: RequestKey, request: Request) {
        self.remember(RowKey::Request(key), |state| Before::Request(state.requests.get(&key).cloned()));
        let expires = request.expires_ms;
        self.ledger.tenant_mut(key.tenant).keyed += u32::from(request.keyed);
        if let Some(old) = self.requests.insert(key, request) {
            self.unindex_request(key, &old);
        }
        if expires != u64::MAX {
            self.expiries.insert((expires, key));
        }
    }

    pub(crate) fn remove_request(&mut self, key: RequestKey) {
        self.remember(RowKey::Request(key), |state| Before::Request(state.requests.get(&key).cloned()));
        if let Some(old) = self.requests.remove(&key) {
            self.unindex_request(key, &old);
        }
    }

    fn unindex_request(&mut self, key: RequestKey, old: &Request) {
        self.ledger.tenant_mut(key.tenant).keyed -= u32::from(old.keyed);
        self.expiries.remove(&(old.expires_ms, key));
    }
}

#[cfg(test)]
mod tests;
