//! Who listens where, from /proc. It knows IPv4 and IPv6 alike and opens nothing.

use nix::unistd::Pid;
use std::collections::BTreeSet;

/// Whether the process listens on the port.
pub fn listens(pid: Pid, port: u16) -> bool {
    let inodes = listening_inodes(port);
    let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let targets = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
    targets.into_iter().any(|target| {
        let name = target.to_string_lossy();
        name.strip_prefix("socket:[").and_then(|n| n.strip_suffix(']')).is_some_and(|n| inodes.contains(n))
    })
}

fn listening_inodes(port: u16) -> BTreeSet<String> {
    // Columns of /proc/net/tcp: number, local address, remote address, state (0A listens), …, inode.
    const LISTENS: &str = "0A";
    let mut out = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        for line in text.lines().skip(1) {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let local = columns.get(1).and_then(|address| address.rsplit(':').next());
            let here = local.and_then(|hex| u16::from_str_radix(hex, 16).ok()) == Some(port);
            if here && columns.get(3) == Some(&LISTENS) {
                out.extend(columns.get(9).map(|inode| (*inode).to_owned()));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_of_ours_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listens(Pid::this(), port));
        drop(listener);
        assert!(!listens(Pid::this(), port));
    }
}
