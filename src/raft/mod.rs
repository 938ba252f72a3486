//! Consensus: one replicated log, one state, on every member.
//!
//! [`Replica`] is all that the rest of the program sees; openraft stays behind it. This module
//! does not know what intents mean, who asks, or which jobs run.
//!
//! A write: `replica` → (on a follower `service` of the leader) → `proposer` → `log_store` and
//! `network` → `state_machine`, which answers. A read: `replica` → `reads`.

mod calls;
mod campaign;
pub mod clock;
pub mod encoding;
mod history;
mod leadership;
mod listener;
pub mod log_store;
mod marks;
mod membership;
mod network;
mod options;
mod peers;
pub mod proposer;
mod reads;
mod relief;
mod replica;
mod service;
mod shared;
mod soundness;
mod start;
pub mod state_machine;
mod status;
pub mod types;
mod upkeep;
pub mod wire;

pub use leadership::follow as follow_leadership;
pub use listener::{Aside, PeerInfo};
pub use nf_core::id::MemberId;
pub use options::{Hooks, Options, Timing, Tuning};
pub use replica::Replica;
pub use shared::Lost;
pub use start::{config as openraft_config, start, wall_clock_ms};
pub use state_machine::Applied;
pub use status::{Electorate, MemberStatus, Role, Status};

use std::sync::Arc;

use nf_core::reason::Refusal;
use nf_core::state::State;

use crate::storage;

/// openraft's types on tokio, as the product runs them.
type Core = types::Types<openraft::impls::TokioRuntime>;
type Raft = openraft::Raft<Core, state_machine::StateMachine<storage::state_db::StateDb>>;

/// A member as agreed by the group.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    id: MemberId,
    /// The name in its certificate, a DNS label.
    name: String,
    /// `host:port` of its peer listener.
    peer: String,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Reflects every write that was answered before the read began.
    Linearizable,
    /// What this member has applied, at once.
    Stale,
}

/// A state to read from, and how it stands to the group.
#[derive(Clone, Debug)]
pub struct View {
    pub state: Arc<State>,
    /// Log index of the last applied entry.
    pub index: u64,
    pub known_leader: Option<MemberId>,
    /// Milliseconds since this member last heard from a leader (0 on the leader).
    pub last_contact_ms: u64,
}

impl View {
    /// The state to plan on: as if an entry came now, by this member's clock.
    pub fn now(&self) -> State {
        self.state.at(start::wall_clock_ms())
    }
}

/// Why a call got no answer. A refusal is an answer and not among these, but for changes of the
/// group, which have no other way to say it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing was done.
    #[error("no leader is known; an election takes about half a second")]
    NoLeader { retry_after_ms: u64 },
    /// The outcome is unknown; submitting the same intent again is safe.
    #[error("the deadline passed before the group answered")]
    Timeout,
    #[error("this member is shutting down")]
    Stopping,
    /// What is on this member's disk; others may have it whole.
    #[error("this member can't read what it keeps on its disk; its log says why")]
    Unreadable,
    #[error("{0}")]
    Refused(Refusal),
}

/// When to try again after [`Error::NoLeader`], in milliseconds.
const RETRY_AFTER_MS: u64 = 500;

const NO_LEADER: Error = Error::NoLeader { retry_after_ms: RETRY_AFTER_MS };

/// Why a member does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The text names the file and what to do.
    #[error("{0}")]
    Storage(#[from] storage::Error),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Config(String),
    #[error("the member's thread ended while it was starting")]
    Thread,
}
