//! How far a job has come, in the words of people.

use crate::reason::Reason;
use serde::{Deserialize, Serialize};

/// A job's state, in the words of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum JobState {
    Pending,
    Admitted,
    Starting,
    Running,
    Draining,
    Succeeded,
    Failed,
    Cancelled,
    Preempted,
    Lost,
}

impl JobState {
    pub const ALL: &[JobState] = &[
        JobState::Pending,
        JobState::Admitted,
        JobState::Starting,
        JobState::Running,
        JobState::Draining,
        JobState::Succeeded,
        JobState::Failed,
        JobState::Cancelled,
        JobState::Preempted,
        JobState::Lost,
    ];

    pub fn name(self) -> &'static str {
        match self {
            JobState::Pending => "Pending",
            JobState::Admitted => "Admitted",
            JobState::Starting => "Starting",
            JobState::Running => "Running",
            JobState::Draining => "Draining",
            JobState::Succeeded => "Succeeded",
            JobState::Failed => "Failed",
            JobState::Cancelled => "Cancelled",
            JobState::Preempted => "Preempted",
            JobState::Lost => "Lost",
        }
    }

    pub fn is_final(self) -> bool {
        self >= JobState::Succeeded
    }
}

/// For how long a job has run: while it was Running, one of its replicas served. What it waited between two places, after
/// a fault or for others, was no running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// Until it last stopped running, in milliseconds.
    before_ms: u64,
    /// Log time since which it runs.
    since_ms: Option<u64>,
}

impl Ran {
    /// It runs, or does not, from then on.
    pub(super) fn note(&mut self, at_ms: u64, runs: bool) {
        match (self.since_ms, runs) {
            (None, true) => self.since_ms = Some(at_ms),
            (Some(_), false) => *self = Self { before_ms: self.until_ms(at_ms), since_ms: None },
            _ => {}
        }
    }

    /// Milliseconds until then.
    pub fn until_ms(self, at_ms: u64) -> u64 {
        let now = self.since_ms.map_or(0, |since| at_ms.saturating_sub(since));
        self.before_ms.saturating_add(now)
    }

    /// When it will have run for so long: log time where it runs, and else how long it still may. True where it runs.
    pub fn over(self, most_ms: u64) -> (u64, bool) {
        let left = most_ms.saturating_sub(self.before_ms);
        self.since_ms.map_or((left, false), |since| (since.saturating_add(left), true))
    }

    /// Whether it ever ran.
    pub fn ever(self) -> bool {
        self != Self::default()
    }
}

/// One line of a job's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    pub at_ms: u64,
    pub state: JobState,
    pub why: Option<Reason>,
}
