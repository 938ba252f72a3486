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

/// One line of a job's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    pub at_ms: u64,
    pub state: JobState,
    pub why: Option<Reason>,
}
