//! Why the autoscaler decided as it did: the tokens of the common vocabulary that
//! are about scaling. It does not know how a decision is made.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A stable token; its spelling is part of the API. Append, never insert: the order is part of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Why {
    /// Requests take longer than they should, though nobody waits.
    LatencyExceeded,
    /// What runs and waits needs more replicas.
    QueueDepth,
    /// What will run one cold start from now needs more replicas.
    Forecast,
    /// A burst: everything that is allowed at once.
    Panic,
    /// Fewer replicas carry the load.
    Idle,
    WakeFromZero,
    ResizeUp,
    ResizeDown,
    /// More were wanted than the service's maximum or the tenant's quota allows.
    QuotaLimit,
    /// More were wanted than the budget allows.
    BudgetLimit,
    MissingSignal,
    StaleSignal,
    /// Nothing to do, or too early to go down.
    Stabilizing,
    AdvisoryOnly,
    /// Somebody asked for this number.
    Asked,
}

impl Why {
    /// Every token, for tests and documents.
    pub const ALL: [Why; 15] = [
        Why::LatencyExceeded,
        Why::QueueDepth,
        Why::Forecast,
        Why::Panic,
        Why::Idle,
        Why::WakeFromZero,
        Why::ResizeUp,
        Why::ResizeDown,
        Why::QuotaLimit,
        Why::BudgetLimit,
        Why::MissingSignal,
        Why::StaleSignal,
        Why::Stabilizing,
        Why::AdvisoryOnly,
        Why::Asked,
    ];

    pub fn token(self) -> &'static str {
        match self {
            Why::LatencyExceeded => "LatencyExceeded",
            Why::QueueDepth => "QueueDepth",
            Why::Forecast => "Forecast",
            Why::Panic => "Panic",
            Why::Idle => "Idle",
            Why::WakeFromZero => "WakeFromZero",
            Why::ResizeUp => "ResizeUp",
            Why::ResizeDown => "ResizeDown",
            Why::QuotaLimit => "QuotaLimit",
            Why::BudgetLimit => "BudgetLimit",
            Why::MissingSignal => "MissingSignal",
            Why::StaleSignal => "StaleSignal",
            Why::Stabilizing => "Stabilizing",
            Why::AdvisoryOnly => "AdvisoryOnly",
            Why::Asked => "Asked",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.token())
    }
}
