//! What this machine gives to an agent and to its replicas, each with what it means and
//! the next step where something is missing. It reads and tries; nothing is changed, and
//! no group is asked.

mod checks;

use super::Users;
use nf_core::node::PortRange;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

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

/// How long one look may take, where what is looked at may hang: a driver, a disk that is elsewhere.
const MOST: Duration = Duration::from_secs(10);

/// What a look comes to, or that it does not come to an end. Its thread is left to itself then: what it waits for may
/// be nothing that can be called off.
fn within(check: &'static str, most: Duration, look: impl FnOnce() -> Finding + Send + 'static) -> Finding {
    let (to, found) = mpsc::sync_channel(1);
    // Whoever does not listen any more has said so.
    let begun = std::thread::Builder::new().spawn(move || drop(to.send(look())));
    let found = begun.map_err(|error| error.to_string()).and_then(|_| {
        let late = |error| match error {
            mpsc::RecvTimeoutError::Timeout => format!("it does not answer within {most:?}: it hangs"),
            mpsc::RecvTimeoutError::Disconnected => "the look failed".to_owned(),
        };
        found.recv_timeout(most).map_err(late)
    });
    found.unwrap_or_else(|why| {
        let next = "see the kernel's log (dmesg), which names what it waits for; nf serve hangs there, too, and so may this process when it ends";
        Finding::fault(check, why, next)
    })
}

/// Looks at everything, in the order of a start.
pub fn look(wishes: &Wishes<'_>) -> Vec<Finding> {
    let (data, mps_pipes) = (wishes.data.to_owned(), wishes.mps_pipes.to_owned());
    vec![
        checks::kernel(),
        checks::cgroups(),
        checks::users(wishes.users),
        checks::limits(),
        within("disk", MOST, move || checks::disk(&data)),
        checks::clock(),
        checks::listen("public port", wishes.public),
        checks::listen("peer port", wishes.peer),
        checks::replica_ports(wishes.ports),
        within("gpus", MOST, checks::gpus),
        within("gpu parts", MOST, move || checks::parts(&mps_pipes)),
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
    fn what_hangs_is_said_and_holds_up_nothing_else() {
        let (let_go, hangs) = mpsc::channel::<()>();
        let most = Duration::from_millis(50);
        let hung = within("gpus", most, move || {
            let _ = hangs.recv();
            Finding::ok("gpus", "it answered after all")
        });
        assert_eq!((hung.check, hung.verdict), ("gpus", Verdict::Fault));
        assert!(hung.detail.contains("within 50ms") && hung.next.is_some(), "{hung:?}");
        drop(let_go);
        assert_eq!(within("gpus", MOST, || Finding::ok("gpus", "8")).detail, "8");
        assert_eq!(within("gpus", MOST, || panic!("a bug of ours")).detail, "the look failed");
    }

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
