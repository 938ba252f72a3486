//! A seeded world for the core: members with lossy disks under a small Raft, the
//! real proposer, apply, control loop and reconciler, clients that never give up,
//! and nodes that come and go. First everything breaks (safety: nothing wrong may
//! ever be seen), then everything heals (liveness: all must settle). The same
//! seed gives the same trace. It is test equipment, not part of the product.

mod client;
mod disk;
mod member;
pub mod mixed;
mod net;
mod oracle;
mod raft;
mod rng;
mod shell;
mod worker;
mod world;

pub use rng::Rng;
pub use world::unplaced;

/// Milliseconds since the epoch when a simulation begins.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// What kind of world.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// 3 or 5; chosen by the seed when None.
    pub members: Option<usize>,
    /// How long things break, in virtual milliseconds; 0 means the default.
    pub faults_ms: u64,
    /// Planted bug: members acknowledge entries before these are synced.
    pub ack_before_sync: bool,
    /// Planted bug: the proposer's writes are not pinned to its term.
    pub unpinned: bool,
    /// Prints each event.
    pub verbose: bool,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub seed: u64,
    /// Of every event in order; equal seeds give equal traces.
    pub trace_hash: u64,
    pub virtual_ms: u64,
    pub events: u64,
    pub members: usize,
    /// Log entries, and how many of them were superseded.
    pub entries: usize,
    pub superseded: u64,
    /// Replicas that got a replacement elsewhere, and replacements that took over.
    pub moves: u64,
    pub taken_over: u64,
    /// Rollouts that came to rest.
    pub rolled: u64,
    /// Replicas of versions about people that were stopped when a consent ended.
    pub withdrawn: u64,
    /// Replicas that gave way to others, and those of services with a disruption budget that were told to stop.
    pub gave_way: u64,
    pub told: u64,
    /// Jobs that wait for a budget in the end.
    pub unpaid: usize,
    /// Requests answered with a job.
    pub acked: usize,
    pub live: usize,
    pub terms: u64,
    pub crashes: u64,
    /// What must never happen, and did. Empty in a sound run.
    pub violations: Vec<String>,
}

/// Runs the world of `seed` to its end, or to the first violation.
pub fn run(seed: u64, options: &Options) -> Report {
    world::World::new(seed, options).run()
}
