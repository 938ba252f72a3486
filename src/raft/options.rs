//! What a member is started with. Defaults are what production runs; tests turn some of it down.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::MemberId;
use crate::security::tls::PeerTls;
use crate::storage::fatal::Fatal;

/// Everything [`super::start`] needs.
pub struct Options {
    /// Holds nothing else; locked while the member runs.
    pub data_dir: PathBuf,
    pub cluster: String,
    pub id: MemberId,
    /// A DNS label, the one in the certificate.
    pub name: String,
    /// Bound by the caller, so that a taken port is its error to report.
    pub listener: TcpListener,
    pub tls: PeerTls,
    pub timing: Timing,
    pub tuning: Tuning,
    pub hooks: Hooks,
    /// This member's clock, milliseconds since the epoch; [`super::wall_clock_ms`] but in tests.
    pub wall: Arc<dyn Fn() -> u64 + Send + Sync>,
    pub fatal: Fatal,
    /// Services of others on the peer port; their calls carry a [`super::PeerInfo`].
    pub services: Option<tonic::service::Routes>,
    /// Takes the connections on the peer port that are not for its services; None: they are dropped.
    pub aside: Option<super::Aside>,
}

/// Elections. A follower campaigns after `election_max` + random(`election_min`..`election_max`)
/// of silence: the first part is the leader's lease, which openraft takes from the maximum.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(250),
            election_max: Duration::from_millis(450),
        }
    }
}

/// When rows are flushed and checkpoints taken, and how much log stays behind one.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Log written since the last flush of the rows.
    pub flush_bytes: u64,
    /// Commands applied since the last flush.
    pub flush_commands: u64,
    pub flush_every: Duration,
    /// Entries applied since the last checkpoint.
    pub snapshot_entries: u64,
    /// Log written since the last checkpoint: few entries may be large.
    pub snapshot_bytes: u64,
    /// Entries kept behind a checkpoint, so that a short absence needs no snapshot.
    pub keep_entries: u64,
    /// Entries are purged in steps of at least this many.
    pub purge_entries: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            flush_bytes: 16 << 20,
            flush_commands: 25_000,
            flush_every: Duration::from_secs(30),
            snapshot_entries: 50_000,
            snapshot_bytes: 1 << 30,
            keep_entries: 10_000,
            purge_entries: 4_096,
        }
    }
}

/// Where measurements go.
#[derive(Clone)]
pub struct Hooks {
    /// Duration of each sync of the log.
    pub fsync: Arc<dyn Fn(Duration) + Send + Sync>,
    /// Bytes that were added to the log since the last time.
    pub logged: Arc<dyn Fn(u64) + Send + Sync>,
    /// Duration of each local proposal, from the call to the answer.
    pub propose: Arc<dyn Fn(Duration) + Send + Sync>,
    /// Time to plan each entry.
    pub plan: Arc<dyn Fn(Duration) + Send + Sync>,
    /// From being elected until the term's first entry is applied and calls are taken.
    pub established: Arc<dyn Fn(Duration) + Send + Sync>,
    /// Entries that did something else than was planned; anything but silence is a bug.
    pub diverged: Arc<dyn Fn(u64) + Send + Sync>,
    /// That member's state is not ours at the same log index. Told again with each answer of it.
    pub differs: Arc<dyn Fn(MemberId, u64) + Send + Sync>,
    /// This member was in the group before, and its data is gone: it must stop.
    pub wiped: Arc<dyn Fn() + Send + Sync>,
    /// Key-exchange group of each connection that was accepted from a peer.
    pub accepted: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            fsync: Arc::new(|_| {}),
            logged: Arc::new(|_| {}),
            propose: Arc::new(|_| {}),
            plan: Arc::new(|_| {}),
            established: Arc::new(|_| {}),
            diverged: Arc::new(|_| {}),
            differs: Arc::new(|_, _| {}),
            wiped: Arc::new(|| {}),
            accepted: Arc::new(|_| {}),
        }
    }
}
