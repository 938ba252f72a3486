//! How nodes' GPUs do, as their agents say with each beat: for people, never for the log. The leader keeps the last word
//! of each node; whoever is asked asks the leader.

use nf_core::id::NodeNo;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// GPUs, or slices of them, of which one node tells.
pub const GPUS: usize = 256;
/// The longest name of a GPU that is kept.
pub const MAX_UUID: usize = 128;
/// What was said longer ago says nothing of now.
const OLD: Duration = Duration::from_secs(30);

/// How one GPU does, or one slice. None: its driver does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vitals {
    pub uuid: Arc<str>,
    /// Thousandths of the last moment in which something ran on it.
    pub busy_milli: Option<u16>,
    /// Bytes of its memory that are in use.
    pub used: u64,
    pub celsius: Option<u32>,
    /// Programs that compute on it.
    pub processes: Option<u32>,
    /// Memory errors since its driver was loaded that could not be corrected.
    pub ecc_errors: Option<u64>,
}

/// The last word of each node.
#[derive(Clone, Debug, Default)]
pub(super) struct Told(Arc<Mutex<BTreeMap<NodeNo, (Instant, Vec<Vitals>)>>>);

impl Told {
    pub(super) fn note(&self, node: NodeNo, at: Instant, vitals: &[Vitals]) {
        let mut told = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let known = match vitals {
            [] => told.remove(&node).is_some(),
            vitals => told.insert(node, (at, vitals.to_vec())).is_some(),
        };
        // Who comes makes room: nodes that have gone are told of by nobody.
        if !known {
            told.retain(|_, (at, _)| at.elapsed() < OLD);
        }
    }

    /// What was said lately, by node.
    pub(super) fn fresh(&self) -> Vec<(NodeNo, Vec<Vitals>)> {
        let mut told = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        told.retain(|_, (at, _)| at.elapsed() < OLD);
        told.iter().map(|(node, (_, vitals))| (*node, vitals.clone())).collect()
    }
}
