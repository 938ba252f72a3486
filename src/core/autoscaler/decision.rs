//! What the autoscaler says, with everything it looked at: a decision can be explained
//! and played again from its inputs. It does not know how it was reached.

use super::signal::Gap;
use super::why::Why;
use serde::{Deserialize, Serialize};

/// What a decision was made from. Rates and counts are thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    pub at_ms: u64,
    pub ready: Option<u32>,
    pub starting: Option<u32>,
    pub queue_m: Option<u64>,
    pub running_m: Option<u64>,
    pub arrivals_m: Option<u64>,
    pub p95_ms: Option<u64>,
    /// Of language models: the part of their caches in use, thousandths, and the time to a first token.
    pub kv_m: Option<u64>,
    pub first_token_ms: Option<u64>,
    /// What comes now, and one cold start from now.
    pub rate_m: u64,
    pub ahead_m: u64,
    pub season_m: u64,
    /// As learned.
    pub service_ms: u64,
    pub cold_start_ms: u64,
    /// What the load, the hold and the backlog want.
    pub need: u32,
    pub held: u32,
    pub backlog: u32,
    /// What was wanted before limits.
    pub wanted: u32,
    /// Which way of being careful.
    pub care: u16,
    /// What the signals lacked.
    pub gap: Option<Gap>,
    /// Step limits allowed a part of the way at most.
    #[serde(default)]
    pub paced: bool,
}

/// How many replicas there shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    pub desired: u32,
    /// What was desired before.
    pub before: u32,
    pub why: Why,
    pub inputs: Inputs,
}

impl Decision {
    /// The reason for people: its token, what the signals lacked, and whether step limits held it back.
    pub fn because(&self) -> String {
        let Inputs { gap, paced, wanted, .. } = self.inputs;
        let gap = gap.map(|gap| format!("{}: {gap}", self.why)).unwrap_or_else(|| self.why.to_string());
        if paced { format!("{gap} (step limits: {wanted} are wanted)") } else { gap }
    }
}
