//! The connections of a process, by what they are for and which key exchange they have: what is open
//! now, what was made, and what failed because the two ends' modes do not fit. Bounded. It holds no
//! connection; each holds its own entry.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Other ends with an entry of their own; those past it share one.
const MOST: usize = 1_000;
const OTHER: &str = "other";
/// The same refusal is told to the log again after so long.
const AGAIN: Duration = Duration::from_secs(60);

/// What a link is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Between members and workers.
    #[default]
    Peer,
    /// Callers of the public port.
    Public,
    Store,
    Vault,
    /// Whoever signs tokens.
    Issuer,
    /// Whoever collects traces.
    Collector,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Peer => "peer",
            Kind::Public => "public",
            Kind::Store => "store",
            Kind::Vault => "vault",
            Kind::Issuer => "issuer",
            Kind::Collector => "collector",
        }
    }
}

/// Which end asked for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    In,
    Out,
}

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Way::In => "in",
            Way::Out => "out",
        }
    }
}

/// Connections that are open and have all of this in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub kind: Kind,
    pub way: Way,
    /// The name in the other end's certificate, or the host that was asked; empty where nobody says a name.
    pub with: String,
    /// As in "X25519MLKEM768"; [`super::NONE`] for plain text.
    pub group: String,
}

#[derive(Debug, Default)]
struct Known {
    open: BTreeMap<Row, u64>,
    made: BTreeMap<(Kind, Way, String), u64>,
    refused: BTreeMap<(Kind, Way), Refused>,
}

/// Handshakes that failed because the modes do not fit.
#[derive(Debug)]
struct Refused {
    count: u64,
    last: String,
    told: Instant,
}

/// See the module's text. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Links(Arc<Mutex<Known>>);

/// An open connection's entry.
pub struct Open {
    links: Links,
    row: Row,
}

impl Open {
    pub fn group(&self) -> &str {
        &self.row.group
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut known = self.links.known();
        if let Some(count) = known.open.get_mut(&self.row) {
            *count -= 1;
            if *count == 0 {
                known.open.remove(&self.row);
            }
        }
    }
}

impl Links {
    /// The connections of this process to servers outside the group, of which there is one set.
    pub fn outside() -> &'static Links {
        static OUTSIDE: LazyLock<Links> = LazyLock::new(Links::default);
        &OUTSIDE
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a connection, for as long as what is returned lives.
    pub fn opened(&self, mut row: Row) -> Open {
        let mut known = self.known();
        if known.open.len() >= MOST && !known.open.contains_key(&row) {
            row.with = OTHER.to_owned();
        }
        *known.open.entry(row.clone()).or_default() += 1;
        *known.made.entry((row.kind, row.way, row.group.clone())).or_default() += 1;
        drop(known);
        Open { links: self.clone(), row }
    }

    /// Counts a link that failed because the modes do not fit, and tells the log: once a minute what comes
    /// from others, who could say many things, and what is new of our own.
    pub fn refused(&self, kind: Kind, way: Way, with: &str, text: &str) {
        let last = format!("{with}: {text}");
        let mut known = self.known();
        let now = Instant::now();
        let fresh = match known.refused.get_mut(&(kind, way)) {
            Some(refused) => {
                refused.count += 1;
                let fresh = (way == Way::Out && refused.last != last) || now.duration_since(refused.told) >= AGAIN;
                refused.last = last.clone();
                if fresh {
                    refused.told = now;
                }
                fresh
            }
            None => {
                known.refused.insert((kind, way), Refused { count: 1, last: last.clone(), told: now });
                true
            }
        };
        drop(known);
        match fresh {
            true => tracing::warn!(link = kind.name(), way = way.name(), "{last}"),
            false => tracing::debug!(link = kind.name(), way = way.name(), "{last}"),
        }
    }

    /// What is open now, and how often.
    pub fn open(&self) -> Vec<(Row, u64)> {
        self.known().open.iter().map(|(row, count)| (row.clone(), *count)).collect()
    }

    /// How many connections there were since the start, those that are open included.
    pub fn made(&self) -> Vec<(Kind, Way, String, u64)> {
        let known = self.known();
        known.made.iter().map(|((kind, way, group), count)| (*kind, *way, group.clone(), *count)).collect()
    }

    /// How many links failed because the modes do not fit, and what was said of the last one.
    pub fn refusals(&self) -> Vec<(Kind, Way, u64, String)> {
        let known = self.known();
        known.refused.iter().map(|((kind, way), r)| (*kind, *way, r.count, r.last.clone())).collect()
    }

    /// The key exchange with a peer: of a connection that this process made, else of one that it took.
    pub fn with_peer(&self, name: &str) -> Option<String> {
        let known = self.known();
        let fits = |row: &&Row, way| row.kind == Kind::Peer && row.way == way && row.with == name;
        let found = |way| known.open.keys().find(|row| fits(row, way));
        found(Way::Out).or_else(|| found(Way::In)).map(|row| row.group.clone())
    }
}

/// The families of metrics of some links, read when somebody scrapes.
pub struct Families {
    links: Vec<Links>,
    descriptions: Vec<Desc>,
}

impl Families {
    /// # Errors
    /// None that the tests would not see: the names are constants.
    pub fn new(links: Vec<Links>) -> prometheus::Result<Self> {
        let (open, made, refused) = families()?;
        let all = [open.desc(), made.desc(), refused.desc()].concat();
        let descriptions = all.into_iter().cloned().collect();
        Ok(Self { links, descriptions })
    }
}

fn families() -> prometheus::Result<(IntGaugeVec, IntCounterVec, IntCounterVec)> {
    let open =
        Opts::new("nf_tls_open_connections", "Connections that are open, by key-exchange group; none: plain text.");
    let made = Opts::new("nf_tls_dialed_total", "Connections that this process made, by key-exchange group.");
    let refused =
        Opts::new("nf_tls_refused_total", "Links that failed because the ends have no key exchange in common.");
    Ok((
        IntGaugeVec::new(open, &["kind", "direction", "kx_group"])?,
        IntCounterVec::new(made, &["kind", "kx_group"])?,
        IntCounterVec::new(refused, &["kind", "direction"])?,
    ))
}

impl Collector for Families {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok((open, made, refused)) = families() else { return Vec::new() };
        for links in &self.links {
            for (row, count) in links.open() {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                open.with_label_values(&[row.kind.name(), row.way.name(), &row.group]).add(count);
            }
            // Those that came in are in nf_tls_connections_total.
            for (kind, _, group, count) in links.made().into_iter().filter(|(_, way, ..)| *way == Way::Out) {
                made.with_label_values(&[kind.name(), group.as_str()]).inc_by(count);
            }
            for (kind, way, count, _) in links.refusals() {
                refused.with_label_values(&[kind.name(), way.name()]).inc_by(count);
            }
        }
        let all = open.collect().into_iter().chain(made.collect()).chain(refused.collect());
        all.filter(|family| !family.get_metric().is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(way: Way, with: &str, group: &str) -> Row {
        Row { kind: Kind::Peer, way, with: with.to_owned(), group: group.to_owned() }
    }

    #[test]
    fn what_is_open_is_listed_as_long_as_it_lives() {
        let links = Links::default();
        let first = links.opened(row(Way::In, "n2", "X25519"));
        let both =
            (links.opened(row(Way::Out, "n2", "X25519MLKEM768")), links.opened(row(Way::Out, "n2", "X25519MLKEM768")));
        assert_eq!(links.with_peer("n2").as_deref(), Some("X25519MLKEM768"), "its own connection counts first");
        assert_eq!(links.open().iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1, 2]);
        drop(both);
        assert_eq!(links.with_peer("n2").as_deref(), Some("X25519"));
        drop(first);
        assert!(links.open().is_empty() && links.with_peer("n2").is_none());
    }

    #[test]
    fn the_list_is_bounded() {
        let links = Links::default();
        let held: Vec<Open> = (0..MOST + 50).map(|n| links.opened(row(Way::In, &format!("w{n}"), "X25519"))).collect();
        let open = links.open();
        assert_eq!(open.len(), MOST + 1);
        assert_eq!(open.iter().find(|(row, _)| row.with == OTHER).map(|(_, count)| *count), Some(50));
        drop(held);
        assert!(links.open().is_empty());
    }

    #[test]
    fn metrics_are_of_all_links_together() {
        let (peers, outside) = (Links::default(), Links::default());
        let _open =
            (peers.opened(row(Way::Out, "n2", "X25519MLKEM768")), outside.opened(row(Way::Out, "x", "X25519MLKEM768")));
        peers.refused(Kind::Peer, Way::In, "127.0.0.1", "no");
        peers.refused(Kind::Peer, Way::In, "127.0.0.1", "no");
        let registry = prometheus::Registry::new();
        registry.register(Box::new(Families::new(vec![peers, outside]).unwrap())).unwrap();
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            "nf_tls_open_connections{direction=\"out\",kind=\"peer\",kx_group=\"X25519MLKEM768\"} 2",
            "nf_tls_dialed_total{kind=\"peer\",kx_group=\"X25519MLKEM768\"} 2",
            "nf_tls_refused_total{direction=\"in\",kind=\"peer\"} 2",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
