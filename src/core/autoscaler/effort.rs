//! Whether more replicas make requests quicker: what the guards of latency try is given
//! up when it changes nothing. It does not know what is tried, nor why requests are slow.

use serde::{Deserialize, Serialize};

/// So many steps that make no request quicker are enough.
const VAIN_STEPS: u32 = 4;

/// Steps, and what came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effort {
    /// How quick requests were, in milliseconds, when a step had helped last.
    at_ms: Option<u64>,
    vain: u32,
}

impl Effort {
    /// Whether one more step is worth it while requests take `ms` at the quickest: a tenth less than before is a help.
    pub fn step(&mut self, ms: u64) -> bool {
        if self.at_ms.is_none_or(|before| ms <= before.saturating_mul(9) / 10) {
            *self = Self { at_ms: Some(ms), vain: 0 };
        } else {
            self.vain = self.vain.saturating_add(1);
        }
        !self.is_vain()
    }

    /// They are quick enough: what was in vain was not.
    pub fn forgive(&mut self) {
        self.vain = 0;
    }

    /// It can't be mended, for all that is known.
    pub fn give_up(&mut self, ms: u64) {
        *self = Self { at_ms: Some(ms), vain: VAIN_STEPS };
    }

    pub fn is_vain(&self) -> bool {
        self.vain >= VAIN_STEPS
    }

    /// No step was made yet.
    pub fn is_new(&self) -> bool {
        self.at_ms.is_none()
    }
}
