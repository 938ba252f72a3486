//! Free ports on loopback. Somebody else may take one between the asking and the
//! using; the drill then fails at its start and says so.

use anyhow::Result;
use std::net::{Ipv4Addr, TcpListener};

/// `count` ports that nobody listens on now.
pub fn free(count: usize) -> Result<Vec<u16>> {
    // All are held at once, so that they differ.
    let held: std::io::Result<Vec<_>> = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect();
    held?.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
