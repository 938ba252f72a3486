//! What comes between the word that a program should stop and TERM: clients hear of it,
//! and the requests that are under way are waited for. The program's own metrics count
//! them where its manifest names such, else the open connections to its port do. It
//! signals nobody, and knows no deadline.

use crate::agent::post::Post;
use crate::agent::record::Record;
use crate::agent::scrape::page;
use crate::models::{Drain, Metrics, sum};
use std::fs;
use std::time::Duration;

/// How long clients have to hear that a replica drains before its requests are counted.
const LEAD: Duration = Duration::from_secs(1);
/// Between two looks at how many requests a draining replica has.
const COUNT: Duration = Duration::from_millis(250);
/// Looks in a row that did not say it after which its metrics are not asked any more.
const DEAF: u32 = 8;
/// Looks that have to say that there is none: a gauge may lag behind what has just come in.
const IDLE: u32 = 2;

/// A program's requests, on their way out.
pub(super) struct Leaving {
    client: reqwest::Client,
    /// Where its server is.
    url: String,
    drain: Drain,
    counts: Counts,
}

/// What says how many requests are under way.
enum Counts {
    /// The sum of these series on that page; a server with too much to do may leave that
    /// unanswered, and then its connections say it.
    Metrics {
        page: String,
        names: Vec<String>,
        door: Option<Door>,
    },
    Connections(Door),
    /// Only its own end, or the deadline: it was told, and knows itself what it has to do.
    Nothing,
}

impl Counts {
    fn of(record: &Record, drain: &Drain, port: u16) -> Self {
        let named = |m: &Metrics| m.running.iter().chain(&m.waiting).cloned().collect::<Vec<String>>();
        let metrics = record.metrics.as_ref().map(|m| (m, named(m))).filter(|(_, names)| !names.is_empty());
        let door = record.process.map(|process| Door { pid: process.pid, port: record.listens.unwrap_or(port) });
        match (metrics, door) {
            (Some((metrics, names)), door) => Counts::Metrics { page: metrics.path.clone(), names, door },
            (None, Some(door)) if drain.path.is_none() => Counts::Connections(door),
            (None, _) => Counts::Nothing,
        }
    }
}

impl Leaving {
    pub(super) fn of(post: &Post, record: &Record, url: String, port: u16) -> Self {
        let drain = record.drain.clone().unwrap_or_default();
        let counts = Counts::of(record, &drain, port);
        Self { client: post.shared.client.clone(), url, drain, counts }
    }

    /// Tells the program, and waits until it has no request; says how that was seen.
    pub(super) async fn over(self) -> &'static str {
        // Clients first: a program that has been told may refuse whoever has not heard yet.
        tokio::time::sleep(LEAD).await;
        if let Some(path) = &self.drain.path
            && let Err(error) = self.client.post(format!("{}{path}", self.url)).send().await
            // One that is only slow has requests to finish.
            && error.is_connect()
        {
            return "it does not answer";
        }
        match &self.counts {
            Counts::Metrics { page, names, door } => match (self.counted(page, names).await, door) {
                (true, _) => "no request is left",
                (false, Some(door)) => door.closed().await,
                (false, None) => std::future::pending().await,
            },
            Counts::Connections(door) => door.closed().await,
            // Nobody can say that it has no request.
            Counts::Nothing => std::future::pending().await,
        }
    }

    /// Whether its metrics came to say that no request is left; if not, they don't say how many there are.
    async fn counted(&self, at: &str, names: &[String]) -> bool {
        let (mut deaf, mut idle) = (0, 0);
        while deaf < DEAF {
            let text = page(&self.client, &format!("{}{at}", self.url)).await;
            let left = text.and_then(|text| names.iter().filter_map(|name| sum(&text, name)).reduce(|a, b| a + b));
            match left {
                Some(left) if left <= 0.0 => (deaf, idle) = (0, idle + 1),
                Some(_) => (deaf, idle) = (0, 0),
                None => deaf += 1,
            }
            if idle == IDLE {
                return true;
            }
            tokio::time::sleep(COUNT).await;
        }
        false
    }
}

/// Where connections to a program end: its port, in the network that this process sees.
#[derive(Clone, Copy)]
struct Door {
    pid: u32,
    port: u16,
}

impl Door {
    async fn closed(self) -> &'static str {
        loop {
            match tokio::task::spawn_blocking(move || self.open()).await {
                Ok(Some(0)) => return "no connection is open",
                Ok(Some(_)) => tokio::time::sleep(COUNT).await,
                // Where that can't be seen, it may have requests until its time is over.
                Ok(None) | Err(_) => std::future::pending().await,
            }
        }
    }

    /// None where it can't be seen.
    fn open(self) -> Option<usize> {
        let table = |name: &str| fs::read_to_string(format!("/proc/{}/net/{name}", self.pid));
        // A kernel without IPv6 has no second table.
        let (four, six) = (table("tcp").ok()?, table("tcp6").unwrap_or_default());
        Some(open_to(&four, self.port) + open_to(&six, self.port))
    }
}

/// Established connections to a port, in one of the kernel's tables.
fn open_to(table: &str, port: u16) -> usize {
    const ESTABLISHED: &str = "01";
    let is_one = |line: &&str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = fields.next().and_then(|address| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok());
        local == Some(port) && fields.nth(1) == Some(ESTABLISHED)
    };
    table.lines().skip(1).filter(is_one).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn connections_to_a_port_are_counted_and_those_from_it_are_not() {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = door.local_addr().unwrap();
        let here = Door { pid: std::process::id(), port: address.port() };
        assert_eq!(here.open(), Some(0), "one that listens is none");
        // Also those that nobody has taken yet: their requests are under way.
        let clients: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert_eq!(here.open(), Some(3));
        let theirs = clients[0].local_addr().unwrap().port();
        assert_eq!(Door { port: theirs, ..here }.open(), Some(1), "from the other end it is one, too");
        let taken: Vec<_> = clients.iter().map(|_| door.accept().unwrap()).collect();
        drop(clients);
        assert_eq!(here.open(), Some(0), "their clients have gone");
        drop(taken);
        assert_eq!(Door { pid: u32::MAX, ..here }.open(), None);
    }

    proptest! {
        #[test]
        fn whatever_the_kernel_says_is_read(text in "(?s).{0,200}", port in any::<u16>()) {
            let _ = open_to(&text, port);
        }
    }
}
