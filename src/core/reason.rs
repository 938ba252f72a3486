//! One vocabulary for waiting, refusing and erring: the tokens users see in
//! REST, gRPC, CLI and metrics. It does not know HTTP or gRPC codes.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// A stable token; its spelling is part of the API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Reason { $($(#[$doc])* $name),+ }
        impl Reason {
            /// Every token, for tests and documents.
            pub const ALL: &[Reason] = &[$(Reason::$name),+];
            pub fn token(self) -> &'static str {
                match self { $(Reason::$name => stringify!($name)),+ }
            }
            /// The reason of that spelling.
            pub fn from_token(token: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.token() == token)
            }
        }
    };
}

// The order is part of the log format: append, never insert.
reasons! {
    // Waiting: quota.
    WaitingForQuota, ExceedsMaxQuota, BudgetExhausted,
    // Waiting: capacity.
    Resources, NoMatchingDevice, BadConstraints, Priority, NodeDown, NodeCordoned, FragmentedCapacity,
    FractionNotEnforced,
    // Waiting: gang and topology.
    NotEnoughForGang, TopologyPlacementFailed,
    // Waiting: in progress.
    WaitingForPreemptedJobs, WaitingForReplicasReady, PreemptionDelayNotElapsed, NoLeader,
    // Waiting: held.
    OnHold, BeginTime, Dependency,
    /// A replica failed and its next start is a little later.
    Backoff,
    // Refusals.
    InvalidArgument, UnknownField, TooLarge, Timeout, NotFound, Conflict, IdempotencyConflict, StaleIndex,
    PlanChanged, QuotaExceeded, QueueFull, NoCapacity, IndexCompacted, UnsupportedMediaType, MethodNotAllowed,
    Unauthenticated, Forbidden, NodeIdentityMismatch, JoinTokenInvalid, ConfigInvalid, ModelNotFound,
    NotVoter, NotCaughtUp, FeatureLevel, NotSupported, Internal, TooManyRequests, Draining,
    // Why a replica ended.
    ArtifactMismatch, RuntimeFailed, ReadyTimeout, ExitedNonZero, PortTaken, NodeFailure, NodeDrain, DeviceFault,
    Preempted, QuotaReclaimed, ScaledDown, Defragmentation, MaxRunTime, StoppedByUser,
    /// Its program ended by itself and said that all is well (exit 0).
    Completed,
    // Refusals, continued.
    /// The model store does not answer.
    StoreUnavailable,
    // Evidence: who signed what (SECURITY: bad input and its answer).
    SignatureRequired, SignatureInvalid, SignatureUnsupported, SignatureBindingMismatch, HybridSignatureIncomplete,
    /// The two ML-DSA verifiers differ: an alarm, not only a refusal.
    VerifierDisagreement,
    KeyVersionRetired, VerifierUnavailable, NoTrustRoot,
    /// The tenant in a token is absent, empty, or no tenant's name.
    TenantClaimInvalid,
    // Why a replica ended, continued.
    /// It must never run twice, and its node has no guard that would see to that.
    NoGuard,
    /// It was ready, and then did not answer any more.
    LivenessFailed,
    // Approvals (P3).
    ApprovalRequired, ApprovalSelf, ApprovalExpired, ApprovalMismatch,
    /// A token without a `jti`, which could not be revoked, in production.
    TokenIdRequired,
    // Why a replica ended, continued: containers.
    /// The node's container engine is not there, does not answer, or is too old.
    EngineUnavailable,
    /// The engine does not have the image, and a tag alone is not pulled.
    ImageMissing,
    /// The engine could not bring the image from its registry.
    ImagePullFailed,
    // Consents (P1): none, or none any more.
    ConsentRequired, ConsentRevoked,
    // Rollouts.
    /// A replica goes from one version to another.
    Rollout,
    /// A new version breaks what its service promises: errors, or latency.
    PromiseBroken,
    // Model stores elsewhere.
    /// A store's address, or where it sends us, is none that may be called.
    StoreUrlForbidden,
    /// More bytes than there may ever be.
    ArtifactTooLarge,
    // Voluntary disruption.
    /// A service has as many replicas missing as it lets be missing at once.
    DisruptionBudget,
    // Refusals, continued.
    /// The caller took too long to send what it began.
    BodyTimeout,
    // What a version's signature and manifest allow, continued.
    /// A signature said that nothing so old runs any more.
    VersionTooOld,
    /// More was asked for than the version's manifest says that it may take (P6).
    LatencyBudgetExceeded, MemoryBudgetExceeded,
    /// The group counts this launch no more: another took its place, or its job was over, while its node was away.
    Replaced,
    // Refusals, continued.
    /// One tenant has as much of a gateway as one may: requests, or memory for their bodies.
    TenantLimit,
    /// The store gave a node other bytes of a version than its manifest says, and nobody has released it since (P7); or
    /// so many versions of the tenant's are in that state that no more findings can be kept. Of a replica: its node's
    /// own copy went bad.
    ModelCopyCorrupt,
    /// A key signed the version of which the operator has not said whose it is, so that nobody can tell its owner from
    /// who approved it (P3).
    SignerUnknown,
}

impl Reason {
    /// A node looked at the bytes of a version and found others than its manifest says: in the store, or in its own copy.
    pub fn is_of_bytes(self) -> bool {
        matches!(self, Reason::ArtifactMismatch | Reason::ModelCopyCorrupt)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.token())
    }
}

/// What stands in place of a secret.
pub const REDACTED: &str = "<REDACTED>";

/// The beginning of a text that somebody else wrote, fit to be repeated: at most `most`
/// characters of it, with everything escaped that could move a cursor or forge a line.
pub fn printable(text: &str, most: usize) -> String {
    let mut shown: String = text.chars().take(most).flat_map(char::escape_debug).collect();
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

/// A refusal is a normal reply with its numbers, not an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub reason: Reason,
    /// What happened, why, and what to do next.
    pub detail: String,
    /// Path of the field at fault, e.g. `resources.gpu`.
    pub field: Option<String>,
}

impl Refusal {
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), field: None }
    }

    pub fn field(reason: Reason, field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), field: Some(field.into()) }
    }

    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::field(Reason::InvalidArgument, field, detail)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

/// One blocker of a waiting job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Blocker {
    pub reason: Reason,
    /// What blocks, with its numbers, and what would lift it.
    pub detail: String,
    /// How many nodes it rules out; 0 when it is not about nodes.
    pub nodes: u32,
    /// Only a change of quota or hardware can lift it.
    pub permanent: bool,
}
