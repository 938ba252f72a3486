//! What the autoscaler says, with everything it looked at, small enough for the
//! log: a decision can be explained and played again from its own record. It does
//! not know how it was reached.

use super::why::Why;
use serde::{Deserialize, Serialize};

/// No record of a decision is larger.
pub const RECORD_BYTES: usize = 512;

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
    /// For log and journal, at most [`RECORD_BYTES`].
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a struct of integers always encodes")
    }

    /// None for bytes that are no record.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match postcard::take_from_bytes(bytes) {
            Ok((decision, [])) => Some(decision),
            _ => None,
        }
    }

    pub fn changes(&self) -> bool {
        self.desired != self.before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_record_fits() {
        let inputs = Inputs {
            at_ms: u64::MAX,
            ready: Some(u32::MAX),
            starting: Some(u32::MAX),
            queue_m: Some(u64::MAX),
            running_m: Some(u64::MAX),
            arrivals_m: Some(u64::MAX),
            p95_ms: Some(u64::MAX),
            rate_m: u64::MAX,
            ahead_m: u64::MAX,
            season_m: u64::MAX,
            service_ms: u64::MAX,
            cold_start_ms: u64::MAX,
            need: u32::MAX,
            held: u32::MAX,
            backlog: u32::MAX,
            wanted: u32::MAX,
            care: u16::MAX,
        };
        let decision = Decision { desired: u32::MAX, before: u32::MAX, why: Why::AdvisoryOnly, inputs };
        let bytes = decision.encode();
        assert!(bytes.len() <= RECORD_BYTES, "{}", bytes.len());
        assert_eq!(Decision::decode(&bytes), Some(decision));
        assert_eq!(Decision::decode(&bytes[..bytes.len() - 1]), None);
    }
}
