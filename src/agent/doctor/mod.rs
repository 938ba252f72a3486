//! What this machine gives to an agent and to its replicas, each with what it means and
//! the next step where something is missing. It reads and tries; nothing is changed, and
//! no group is asked.

mod checks;

use super::Users;
use nf_core::node::PortRange;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::Path;

/// What a look came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// nf works without it; what is lost is said.
    Missing,
    /// nf does not work so.
    Fault,
}

/// One look.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub verdict: Verdict,
    pub detail: String,
    /// What to do, when there is something to do.
    pub next: Option<String>,
}

impl Finding {
    pub(crate) fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, detail: detail.into(), next: None }
    }

    pub(crate) fn missing(check: &'static str, detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Missing, detail: detail.into(), next: Some(next.into()) }
    }

    pub(crate) fn fault(check: &'static str, detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fault, ..Self::missing(check, detail, next) }
    }
}

/// The settings that the machine is held against.
#[derive(Clone, Copy, Debug)]
pub struct Wishes<'a> {
    pub data: &'a Path,
    pub public: SocketAddr,
    pub peer: SocketAddr,
    pub ports: PortRange,
    /// The socket of the container engine.
    pub engine: Option<&'a Path>,
    pub users: &'a Users,
    /// Where the control daemon of MPS has its pipes.
    pub mps_pipes: &'a Path,
}

/// Looks at everything, in the order of a start.
pub fn look(wishes: &Wishes<'_>) -> Vec<Finding> {
    vec![
        checks::kernel(),
        checks::cgroups(),
        checks::users(wishes.users),
        checks::limits(),
        checks::disk(wishes.data),
        checks::clock(),
        checks::listen("public port", wishes.public),
        checks::listen("peer port", wishes.peer),
        checks::replica_ports(wishes.ports),
        checks::gpus(),
        checks::parts(wishes.mps_pipes),
        checks::containers(wishes.engine),
        checks::python(),
        checks::shared_memory(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn every_look_says_what_it_found_and_what_to_do() {
        let tmp = tempfile::tempdir().unwrap();
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let data = tmp.path().join("not/made/yet");
        let ports = PortRange { first: 40_000, last: 40_010 };
        let users = Users { range: None, required: false, home: data.clone() };
        let public = held.local_addr().unwrap();
        let (engine, mps_pipes) = (Some(&*data), &*data);
        let wishes = Wishes { data: &data, public, peer: free, ports, engine, users: &users, mps_pipes };
        let found = look(&wishes);
        for finding in &found {
            assert!(!finding.detail.is_empty(), "{finding:?}");
            assert_eq!(finding.next.is_some(), finding.verdict != Verdict::Ok, "{finding:?}");
        }
        let of = |check: &str| found.iter().find(|f| f.check == check).unwrap();
        assert_eq!(of("public port").verdict, Verdict::Missing);
        assert_eq!((of("peer port").verdict, of("clock").verdict), (Verdict::Ok, Verdict::Ok));
        assert!(of("replica users").next.as_ref().unwrap().contains("NF_REPLICA_USERS=off"));
        assert_ne!(of("disk").verdict, Verdict::Fault, "{:?}", of("disk"));
        assert!(!data.exists(), "nothing is made");
        assert!(of("container engine").detail.contains("does not answer"), "{:?}", of("container engine"));
        assert!(of("gpu parts").detail.contains("no MPS control daemon"), "{:?}", of("gpu parts"));
        let nowhere = Path::new("/proc/nowhere");
        assert_eq!(checks::disk(nowhere).verdict, Verdict::Fault);
    }
}
