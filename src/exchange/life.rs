//! What a replica has been through on its node, as its agent tells whoever asks: each step
//! with its time, what it waits for, and the deadlines of a stop. It goes the way that logs
//! go, so any member can tell it and nothing of it is replicated.

use super::message::Error;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The most steps of one launch that are kept: a replica may be NotReady and Ready again for ever.
pub const STEPS: usize = 32;
/// The longest answer that is read.
pub const MAX_BYTES: usize = 64 << 10;

/// One launch. Times are milliseconds since 1970 by its node's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    pub generation: u32,
    /// The last [`STEPS`], oldest first.
    pub steps: Vec<Step>,
    /// What must be so before it can be started, while that is not so.
    #[serde(default)]
    pub waits: Option<String>,
    #[serde(default)]
    pub stop: Option<Stop>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Scheduled, Downloading, Verifying, Starting, Ready, NotReady, Draining, Stopped or Failed.
    pub status: String,
    pub at_ms: u64,
    /// Why it stops, stopped or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A stop that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    pub since_ms: u64,
    /// Requests that are under way have until then, at most.
    pub term_ms: u64,
    pub kill_ms: u64,
}

impl Life {
    /// The same status again is no step.
    pub fn step(&mut self, status: &str, at_ms: u64, why: Option<&str>) {
        if self.steps.last().is_some_and(|last| last.status == status) {
            return;
        }
        if self.steps.len() >= STEPS {
            // How it began is worth more than when it was NotReady.
            self.steps.remove(STEPS / 2);
        }
        self.steps.push(Step { status: status.to_owned(), at_ms, why: why.map(str::to_owned) });
    }
}

pub fn encode(lives: &[Life]) -> Bytes {
    serde_json::to_vec(lives).unwrap_or_default().into()
}

/// # Errors
/// An older agent answers with lines of a log.
pub fn decode(bytes: &[u8]) -> Result<Vec<Life>, Error> {
    let older = |_| Error::Unavailable("its agent is of a build that does not tell this".into());
    serde_json::from_slice(bytes).map_err(older)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_life_keeps_its_beginning_and_its_end() {
        let mut life = Life { generation: 3, ..Life::default() };
        for (status, at) in [("Scheduled", 1), ("Starting", 2), ("Starting", 3)] {
            life.step(status, at, None);
        }
        for at in 0..100 {
            life.step(if at % 2 == 0 { "Ready" } else { "NotReady" }, 10 + at, None);
        }
        life.step("Draining", 200, Some("NodeDrain"));
        assert_eq!(life.steps.len(), STEPS);
        assert_eq!((life.steps[1].status.as_str(), life.steps[1].at_ms), ("Starting", 2));
        assert_eq!(life.steps.last().unwrap().why.as_deref(), Some("NodeDrain"));
        let many = vec![life; 8];
        let bytes = encode(&many);
        assert!(bytes.len() < MAX_BYTES, "{}", bytes.len());
        assert_eq!(decode(&bytes).unwrap(), many);
        assert!(decode(b"2026-01-01T00:00:00Z nf: ready\n").is_err());
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
