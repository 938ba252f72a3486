//! What a gateway has for all tenants, and how much of it one may take: memory for
//! bodies, and requests at a time. Of memory nobody gets more than is still free (the
//! dynamic threshold of Choudhury and Hahne, 1998): one tenant alone half, two a third
//! each, and whoever comes finds room. It knows no HTTP.

use super::refusal::Refused;
use nf_core::id::TenantId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who pays. None: a body that has not said yet whose model it is for.
pub type Payer = Option<TenantId>;

/// What one payer has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Has {
    kib: u32,
    requests: u32,
}

#[derive(Debug, Default)]
struct Taken {
    kib: u32,
    by: BTreeMap<Payer, Has>,
}

impl Taken {
    fn change(&mut self, payer: &Payer, change: impl FnOnce(&mut Has)) {
        let has = self.by.entry(payer.clone()).or_default();
        let before = has.kib;
        change(has);
        self.kib = self.kib - before + has.kib;
        if *has == Has::default() {
            self.by.remove(payer);
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Shares {
    room_kib: u32,
    /// Requests that one tenant may have here at a time.
    requests: u32,
    taken: Mutex<Taken>,
}

impl Shares {
    pub fn new(room_kib: u32, requests: u32) -> Arc<Self> {
        Arc::new(Self { room_kib, requests, taken: Mutex::default() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Numbers alone are changed under the lock.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The beginning of a body.
    pub fn body(self: &Arc<Self>, payer: Payer) -> Result<Part, Refused> {
        let mut part = Part { shares: self.clone(), payer, kib: 0 };
        part.grow_to(1)?;
        Ok(part)
    }

    /// One more request of the tenant, until what is returned is dropped.
    pub fn request(self: &Arc<Self>, tenant: &TenantId) -> Result<Place, Refused> {
        let (mut taken, payer) = (self.taken(), Some(tenant.clone()));
        if taken.by.get(&payer).is_some_and(|has| has.requests >= self.requests) {
            return Err(Refused::TenantCalls { most: self.requests });
        }
        taken.change(&payer, |has| has.requests += 1);
        Ok(Place { shares: self.clone(), payer })
    }

    /// Whether bodies are here, or on their way.
    pub fn has_bodies(&self) -> bool {
        self.taken().kib > 0
    }

    /// Requests of each tenant that are here now.
    pub fn requests(&self) -> Vec<(TenantId, u32)> {
        self.taken().by.iter().filter_map(|(payer, has)| Some((payer.clone()?, has.requests))).collect()
    }
}

/// A body's part of the memory, until it is dropped.
#[derive(Debug)]
pub struct Part {
    shares: Arc<Shares>,
    payer: Payer,
    kib: u32,
}

impl Part {
    /// Takes so much in all.
    pub fn grow_to(&mut self, kib: u32) -> Result<(), Refused> {
        let more = kib.saturating_sub(self.kib);
        // What it has already is nobody else's, however little is left.
        if more == 0 {
            return Ok(());
        }
        let mut taken = self.shares.taken();
        let free = self.shares.room_kib - taken.kib;
        let has = taken.by.get(&self.payer).map_or(0, |has| has.kib);
        if more > free {
            return Err(Refused::Crowded);
        }
        if has + more > free {
            return Err(Refused::TenantBodies { kib: has });
        }
        taken.change(&self.payer, |has| has.kib += more);
        self.kib += more;
        Ok(())
    }

    /// Now it is known whose it is.
    pub fn pay_by(&mut self, tenant: &TenantId) -> Result<(), Refused> {
        if self.payer.as_ref() == Some(tenant) {
            return Ok(());
        }
        let kib = self.kib;
        self.give_back();
        self.payer = Some(tenant.clone());
        self.grow_to(kib)
    }

    fn give_back(&mut self) {
        let kib = std::mem::take(&mut self.kib);
        self.shares.taken().change(&self.payer, |has| has.kib -= kib);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// One request among its tenant's, until it is dropped.
#[derive(Debug)]
pub struct Place {
    shares: Arc<Shares>,
    payer: Payer,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shares.taken().change(&self.payer, |has| has.requests -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    /// Bodies of 16 KiB until one is refused.
    fn fill(shares: &Arc<Shares>, name: &str) -> (Vec<Part>, Refused) {
        let mut parts = Vec::new();
        loop {
            match shares.body(Some(tenant(name))).and_then(|mut part| part.grow_to(16).map(|()| part)) {
                Ok(part) => parts.push(part),
                Err(refused) => return (parts, refused),
            }
        }
    }

    #[test]
    fn however_much_one_tenant_sends_another_finds_room() {
        let shares = Shares::new(256, 9);
        let (first, refused) = fill(&shares, "t1");
        assert!((7..=8).contains(&first.len()) && matches!(refused, Refused::TenantBodies { .. }), "{refused:?}");
        let (second, _) = fill(&shares, "t2");
        let (third, _) = fill(&shares, "t3");
        assert!(second.len() >= 3 && !third.is_empty(), "{} {}", second.len(), third.len());
        drop(first);
        assert!(!fill(&shares, "t1").0.is_empty());
        drop((second, third));
        assert!(!shares.has_bodies());
    }

    #[test]
    fn what_a_body_has_is_kept_however_little_is_left() {
        let shares = Shares::new(100, 9);
        let [mut first, mut second] = ["t1", "t2"].map(|name| shares.body(Some(tenant(name))).unwrap());
        first.grow_to(50).unwrap();
        second.grow_to(20).unwrap();
        assert!(first.grow_to(51).is_err());
        first.grow_to(50).unwrap();
    }

    #[test]
    fn a_body_is_paid_for_by_whom_it_turns_out_to_be_for() {
        let shares = Shares::new(100, 9);
        let mut part = shares.body(None).unwrap();
        part.grow_to(40).unwrap();
        part.pay_by(&tenant("t1")).unwrap();
        let mut other = shares.body(None).unwrap();
        other.grow_to(25).unwrap();
        assert!(matches!(other.pay_by(&tenant("t1")), Err(Refused::TenantBodies { kib: 40 })));
        drop(other);
        drop(part);
        assert!(!shares.has_bodies() && shares.taken().by.is_empty());
    }

    #[test]
    fn a_tenant_has_so_many_requests_at_a_time_and_no_more() {
        let shares = Shares::new(1, 2);
        let places = [shares.request(&tenant("t1")).unwrap(), shares.request(&tenant("t1")).unwrap()];
        assert!(matches!(shares.request(&tenant("t1")), Err(Refused::TenantCalls { most: 2 })));
        let other = shares.request(&tenant("t2")).unwrap();
        assert_eq!(shares.requests(), [(tenant("t1"), 2), (tenant("t2"), 1)]);
        drop((places, other));
        assert!(shares.request(&tenant("t1")).is_ok() && shares.requests().is_empty());
    }
}
