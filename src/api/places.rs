//! How many of something there may be at a time, all together and from one address: connections of
//! the public port, and streams that are open to all. So who opens many and says nothing takes nobody
//! else's place. It does not know what they say.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Where a call came from; the public port leaves it with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller(pub IpAddr);

/// A handle; clones share it.
#[derive(Clone)]
pub struct Places {
    most: usize,
    /// One address has at most so many.
    each: usize,
    all: Arc<Semaphore>,
    of: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A place, until it is dropped.
pub struct Place {
    places: Places,
    who: IpAddr,
    _permit: OwnedSemaphorePermit,
}

/// Whoever has one address of IPv6 has the other 2^64 of its network, too (RFC 4291, section 2.5.4).
fn who(from: IpAddr) -> IpAddr {
    const NETWORK: u128 = !0 << 64;
    match from.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & NETWORK)),
        v4 => v4,
    }
}

impl Places {
    /// So many, and for one address the part of them that one in `share` is.
    pub fn new(most: usize, share: usize) -> Self {
        let each = (most / share.max(1)).max(1);
        Self { most, each, all: Arc::new(Semaphore::new(most)), of: Arc::default() }
    }

    fn of(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // One number is changed at a time, so a panic elsewhere leaves nothing half done.
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None: there are as many as there may be, of all or of this address.
    pub fn take(&self, from: IpAddr) -> Option<Place> {
        let who = who(from);
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let mut of = self.of();
        let held = of.entry(who).or_default();
        // From this machine comes whoever is let in elsewhere, too: a proxy that ends TLS, a forwarded port.
        let most = if who.is_loopback() { self.most } else { self.each };
        if *held >= most {
            return None;
        }
        *held += 1;
        Some(Place { places: self.clone(), who, _permit: permit })
    }

    /// Waits until nobody has one.
    pub async fn empty(&self) {
        let all = u32::try_from(self.most).unwrap_or(u32::MAX);
        // It is never closed.
        let _ = self.all.acquire_many(all).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut of = self.places.of();
        if let Some(held) = of.get_mut(&self.who) {
            *held -= 1;
            if *held == 0 {
                of.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_leaves_places_for_others() {
        let places = Places::new(4, 2);
        let mine: Vec<_> = (0..2).map(|_| places.take(ip("10.0.0.1")).unwrap()).collect();
        assert!(places.take(ip("10.0.0.1")).is_none());
        assert!(places.take(ip("::ffff:10.0.0.1")).is_none(), "the same one, written otherwise");
        let other = places.take(ip("2001:db8::1")).unwrap();
        let next = places.take(ip("2001:db8::ffff")).unwrap();
        assert!(places.take(ip("10.0.0.2")).is_none(), "all are taken");
        drop((mine, next));
        assert!(places.take(ip("2001:db8::2")).is_some() && places.take(ip("10.0.0.1")).is_some());
        drop(other);
        assert!(places.of().is_empty(), "who is gone is forgotten");
        let proxied: Vec<_> = (0..4).map(|_| places.take(ip("127.0.0.1")).unwrap()).collect();
        assert!(places.take(ip("127.0.0.1")).is_none());
        drop(proxied);
    }

    #[test]
    fn a_network_of_ipv6_is_one() {
        let places = Places::new(2, 2);
        let _held = places.take(ip("2001:db8::1")).unwrap();
        assert!(places.take(ip("2001:db8::2")).is_none());
        assert!(places.take(ip("2001:db8:0:1::2")).is_some());
    }
}
