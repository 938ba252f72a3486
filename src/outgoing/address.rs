//! Which addresses are public, and which others an operator lists. Pure. Unwraps the
//! forms that hide one address in another: v4-mapped, NAT64 and 6to4.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses of this machine.
pub const LOOPBACK: &str = "this machine";
/// Where clouds keep what they know of a machine, credentials among it.
const LINK_LOCAL: &str = "link-local";
const PRIVATE: &str = "private";

/// Hosts, addresses and networks that may be called although they are not public. A host listed by name may be
/// on this machine or private, never link-local: only a listed address allows that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    names: BTreeSet<String>,
    nets: Vec<(IpAddr, u8)>,
}

impl Allow {
    /// From names, addresses and `address/bits`, comma separated.
    ///
    /// # Errors
    /// The part that is none of them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut allow = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let bad = || {
                let shown = nf_core::reason::printable(part, 60);
                format!("\"{shown}\" is no host name, address, or network such as 10.1.0.0/16")
            };
            let (address, bits) = part.split_once('/').map_or((part, None), |(a, bits)| (a, Some(bits)));
            let fine = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            match (address.parse::<IpAddr>(), bits) {
                (Ok(address), None) => {
                    let address = unwrapped(address);
                    allow.nets.push((address, width(address)));
                }
                (Ok(address), Some(bits)) => {
                    let bits = bits.parse().ok().filter(|bits| *bits <= width(address)).ok_or_else(bad)?;
                    allow.nets.push((address, bits));
                }
                (Err(_), None) if address.len() <= 253 && address.chars().all(fine) => {
                    allow.names.insert(address.to_ascii_lowercase());
                }
                (Err(_), _) => return Err(bad()),
            }
        }
        Ok(allow)
    }

    /// # Errors
    /// What the address is, when it is not public and not listed.
    pub fn judge(&self, host: &str, address: IpAddr) -> Result<(), &'static str> {
        let address = unwrapped(address);
        let Some(kind) = kind(address) else { return Ok(()) };
        let listed = self.nets.iter().any(|(net, bits)| contains(*net, *bits, address));
        let named = matches!(kind, LOOPBACK | PRIVATE) && self.names.contains(&host.to_ascii_lowercase());
        if listed || named { Ok(()) } else { Err(kind) }
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn contains(net: IpAddr, bits: u8, address: IpAddr) -> bool {
    match (net, address) {
        (IpAddr::V4(net), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            net.to_bits() & mask == address.to_bits() & mask
        }
        (IpAddr::V6(net), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            net.to_bits() & mask == address.to_bits() & mask
        }
        _ => false,
    }
}

/// The address that is meant in the end.
pub fn unwrapped(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let low = |bits: u128| Ipv4Addr::from_bits((bits & u128::from(u32::MAX)) as u32);
    let bits = v6.to_bits();
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => low(bits).into(),
        [0x2002, ..] => low(bits >> 80).into(),
        // The old "compatible" form; ::1 and :: are themselves.
        [0, 0, 0, 0, 0, 0, ..] if bits > 1 => low(bits).into(),
        _ => address,
    }
}

/// What an unwrapped address is; None: public.
fn kind(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => of_v4(v4),
        IpAddr::V6(v6) => of_v6(v6),
    }
}

fn of_v4(v4: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = v4.octets();
    match (a, b, c) {
        (127, ..) => Some(LOOPBACK),
        (169, 254, _) => Some(LINK_LOCAL),
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => Some(PRIVATE),
        // Carriers' own network; a cloud keeps its metadata there.
        (100, 64..=127, _) => Some("shared address space"),
        (0, ..) => Some("unspecified"),
        (192, 0, 0) | (198, 18..=19, _) => Some("reserved"),
        (224..=239, ..) => Some("multicast"),
        (240..=255, ..) => Some("reserved"),
        _ => None,
    }
}

fn of_v6(v6: Ipv6Addr) -> Option<&'static str> {
    match v6.segments()[0] {
        _ if v6.is_loopback() => Some(LOOPBACK),
        _ if v6.is_unspecified() => Some("unspecified"),
        0xfe80..=0xfebf => Some(LINK_LOCAL),
        0xfc00..=0xfdff | 0xfec0..=0xfeff => Some(PRIVATE),
        0xff00..=0xffff => Some("multicast"),
        // Only 2000::/3 is handed out to anybody.
        0x2000..=0x3fff => None,
        _ => Some("reserved"),
    }
}
