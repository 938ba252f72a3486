//! Which ports the members listen on: 8600, 8610, 8620, or the next set that is
//! wholly free. It does not keep them; a member that finds its port taken says so.

use crate::cli::exit::{Exit, fail};
use std::net::{Ipv4Addr, TcpListener};

/// Between the public ports of two members; the peer port is the next after the public one.
pub const STEP: u16 = 10;
/// Sets tried before giving up.
const SETS: u16 = 40;

fn free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// The public ports of `count` members.
pub fn choose(first: u16, count: usize) -> anyhow::Result<Vec<u16>> {
    let count = u16::try_from(count)?;
    for set in 0..SETS {
        let Some(start) = first.checked_add(set * count * STEP) else { break };
        let Some(last) = start.checked_add(count * STEP) else { break };
        let ports: Vec<u16> = (start..last).step_by(usize::from(STEP)).collect();
        if ports.iter().all(|port| free(*port) && free(*port + 1)) {
            return Ok(ports);
        }
    }
    Err(fail(Exit::Failed, format!("no free set of ports from {first} on\n  try: nf dev --port 18600")))
}

/// Ports of the replicas on the member with that public port, apart from its neighbours'.
pub fn replicas(public: u16) -> (u16, u16) {
    const FIRST: u32 = 20_000;
    // Half is the member's own node's, the rest is for nodes that it plays.
    const EACH: u32 = 600;
    // Below 32768, where Linux begins to hand out ports of its own.
    const SLOTS: u32 = (32_000 - FIRST) / EACH;
    let slot = u32::from(public) / u32::from(STEP) % SLOTS;
    let start = FIRST + slot * EACH;
    (start as u16, (start + EACH - 1) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_moves_the_whole_set() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port().min(60_000);
        let ports = choose(port.saturating_sub(STEP), 3).unwrap();
        assert_eq!(ports.len(), 3);
        assert!(!ports.contains(&taken.local_addr().unwrap().port()), "{ports:?}");
        assert!(ports.windows(2).all(|pair| pair[1] - pair[0] == STEP));
    }

    #[test]
    fn neighbours_have_replica_ports_of_their_own() {
        assert_eq!(replicas(8600), (20_000, 20_599));
        assert_eq!(replicas(8610), (20_600, 21_199));
        for public in (1024..65_000).step_by(10) {
            let (first, last) = replicas(public);
            assert!((20_000..last).contains(&first) && last < 32_000, "{public}");
        }
    }
}
