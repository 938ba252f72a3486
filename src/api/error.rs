//! One table from each reason to its HTTP status, gRPC code and exit code, and
//! the two shapes in which a failed call is told: problem+json (RFC 9457) and
//! google.rpc details. It does not know why a call failed.

use super::convert::answer::{Policies, policies};
use crate::raft;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nf_core::audit::Check;
use nf_core::reason::{Reason, Refusal};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tonic::Code;
use tonic_types::{ErrorDetails, StatusExt};
use utoipa::ToSchema;

/// How one reason is told on each surface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    pub http: u16,
    pub grpc: Code,
    /// Of `nf`, as CONVENTIONS lists them.
    pub exit: u8,
}

/// The table. It has no default arm, so a new reason does not compile without its row.
pub fn codes(reason: Reason) -> Codes {
    use Reason as R;
    let (http, grpc, exit) = match reason {
        // Reasons of waiting: an error only where a caller would not wait.
        R::WaitingForQuota | R::ExceedsMaxQuota | R::BudgetExhausted => (429, Code::ResourceExhausted, 3),
        R::Resources | R::NoMatchingDevice | R::BadConstraints | R::Priority | R::NodeDown | R::NodeCordoned => {
            (503, Code::ResourceExhausted, 3)
        }
        R::FragmentedCapacity | R::FractionNotEnforced | R::NotEnoughForGang | R::TopologyPlacementFailed => {
            (503, Code::ResourceExhausted, 3)
        }
        R::WaitingForPreemptedJobs
        | R::WaitingForReplicasReady
        | R::PreemptionDelayNotElapsed
        | R::DisruptionBudget => (503, Code::ResourceExhausted, 3),
        R::OnHold | R::BeginTime | R::Dependency | R::Backoff => (503, Code::ResourceExhausted, 3),
        R::NoLeader | R::NotCaughtUp | R::Draining | R::StoreUnavailable | R::VerifierUnavailable => {
            (503, Code::Unavailable, 7)
        }
        R::Timeout => (504, Code::DeadlineExceeded, 7),
        // What the caller sent.
        R::InvalidArgument | R::UnknownField | R::ConfigInvalid | R::StoreUrlForbidden => {
            (400, Code::InvalidArgument, 2)
        }
        R::TooLarge => (413, Code::InvalidArgument, 2),
        R::BodyTimeout => (408, Code::DeadlineExceeded, 7),
        R::UnsupportedMediaType => (415, Code::InvalidArgument, 2),
        R::MethodNotAllowed => (405, Code::Unimplemented, 2),
        R::NotSupported => (501, Code::Unimplemented, 2),
        R::NotFound | R::ModelNotFound => (404, Code::NotFound, 4),
        // What does not agree with what is.
        R::IdempotencyConflict => (409, Code::AlreadyExists, 5),
        R::StaleIndex | R::PlanChanged => (409, Code::Aborted, 5),
        R::Conflict | R::NotVoter | R::FeatureLevel => (409, Code::FailedPrecondition, 5),
        R::ModelCopyCorrupt => (409, Code::DataLoss, 6),
        R::IndexCompacted => (410, Code::OutOfRange, 5),
        // What may not be.
        R::Unauthenticated | R::TenantClaimInvalid | R::TokenIdRequired | R::JoinTokenInvalid => {
            (401, Code::Unauthenticated, 6)
        }
        R::Forbidden | R::NodeIdentityMismatch => (403, Code::PermissionDenied, 6),
        R::ArtifactMismatch | R::SignatureRequired | R::SignatureInvalid | R::SignatureUnsupported => {
            (422, Code::FailedPrecondition, 6)
        }
        R::SignatureBindingMismatch | R::HybridSignatureIncomplete | R::VerifierDisagreement => {
            (422, Code::FailedPrecondition, 6)
        }
        R::KeyVersionRetired | R::NoTrustRoot | R::ArtifactTooLarge => (422, Code::FailedPrecondition, 6),
        R::ApprovalRequired | R::ApprovalSelf | R::ApprovalExpired | R::ApprovalMismatch => {
            (403, Code::PermissionDenied, 6)
        }
        R::SignerUnknown | R::ConsentRequired | R::ConsentRevoked => (403, Code::PermissionDenied, 6),
        R::QuotaExceeded | R::QueueFull => (429, Code::ResourceExhausted, 6),
        R::NoCapacity => (503, Code::ResourceExhausted, 3),
        R::TooManyRequests | R::TenantLimit => (429, Code::ResourceExhausted, 7),
        R::Internal => (500, Code::Internal, 1),
        // Why a replica ended; told in views, and as an error only by `nf run --wait`.
        R::RuntimeFailed | R::ReadyTimeout | R::ExitedNonZero | R::PortTaken | R::NodeFailure => {
            (500, Code::Internal, 1)
        }
        R::DeviceFault | R::NoGuard | R::LivenessFailed => (500, Code::Internal, 1),
        R::EngineUnavailable | R::ImageMissing | R::ImagePullFailed => (500, Code::Internal, 1),
        R::NodeDrain | R::Preempted | R::QuotaReclaimed | R::ScaledDown | R::Defragmentation => (409, Code::Aborted, 1),
        R::MaxRunTime | R::StoppedByUser | R::Completed | R::Replaced => (409, Code::Aborted, 1),
        R::VersionTooOld | R::LatencyBudgetExceeded | R::MemoryBudgetExceeded => (422, Code::FailedPrecondition, 6),
        R::Rollout | R::PromiseBroken => (409, Code::Aborted, 1),
    };
    Codes { http, grpc, exit }
}

/// A call that did not do what it was asked, with all that its caller is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub refusal: Refusal,
    pub retry_after_ms: Option<u64>,
    /// Public address of the leader, when another member answered.
    pub leader_hint: Option<String>,
    /// What P1 to P7 said, where one of them is why.
    pub checks: Option<Box<[Check; 7]>>,
}

impl Failure {
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Refusal::new(reason, detail).into()
    }

    pub fn codes(&self) -> Codes {
        codes(self.refusal.reason)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let busy = matches!(codes(refusal.reason).http, 429 | 503 | 504);
        // A second: what is full or absent now is rarely so for longer, and few callers make no herd.
        Self { refusal, retry_after_ms: busy.then_some(1000), leader_hint: None, checks: None }
    }
}

impl From<raft::Error> for Failure {
    fn from(error: raft::Error) -> Self {
        let text = error.to_string();
        match error {
            raft::Error::NoLeader { retry_after_ms } => {
                let detail = format!("{text}; retry, or ask another member (nf cluster members)");
                Self { retry_after_ms: Some(retry_after_ms), ..Self::new(Reason::NoLeader, detail) }
            }
            raft::Error::Timeout => {
                let detail =
                    format!("{text}; the outcome is unknown: retry with the same request_id or Idempotency-Key");
                Self::new(Reason::Timeout, detail)
            }
            raft::Error::Stopping => Self::new(Reason::Draining, format!("{text}; ask another member")),
            raft::Error::Unreadable => Self::new(Reason::Internal, format!("{text}; ask another member")),
            raft::Error::Refused(refusal) => refusal.into(),
        }
    }
}

/// An error, as RFC 9457 shapes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:neural-fabric:reason:` and the reason.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    /// Stable token, such as `QuotaExceeded`.
    pub reason: String,
    /// What happened, why, and what to do next.
    pub detail: String,
    /// Names this call in the member's log.
    pub call_id: String,
    /// Whether the group simulates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simulation: Option<bool>,
    /// Path of the field at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Where the leader can be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader_hint: Option<String>,
    /// What P1 to P7 said of what was refused, where one of them stopped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policies: Option<Policies>,
}

/// A new name for a call.
pub fn call_id() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

/// Logs what is the member's own fault, once, here.
fn log(failure: &Failure, call_id: &str) {
    let (reason, detail) = (failure.refusal.reason, failure.refusal.detail.as_str());
    if failure.codes().http == 500 {
        tracing::error!(call_id, %reason, detail, "call failed");
    } else {
        tracing::debug!(call_id, %reason, detail, "call refused");
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let call_id = call_id();
        log(&failure, &call_id);
        let status = failure.codes().http;
        let title = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Error");
        let Failure { refusal, retry_after_ms, leader_hint, checks } = failure;
        Self {
            kind: format!("urn:neural-fabric:reason:{}", refusal.reason),
            title: title.to_owned(),
            status,
            reason: refusal.reason.token().to_owned(),
            detail: refusal.detail,
            call_id,
            simulation: None,
            field: refusal.field,
            retry_after_ms,
            leader_hint,
            policies: checks.as_deref().map(policies),
        }
    }
}

impl Problem {
    /// The same problem, from a member that knows whether its group simulates.
    pub fn told_by(self, simulation: bool) -> Self {
        Self { simulation: Some(simulation), ..self }
    }

    /// A response that was made of a problem by code that knows no member, made again by one that does.
    pub fn complete(mut response: Response, simulation: bool) -> Response {
        match response.extensions_mut().remove::<Self>() {
            Some(problem) => problem.told_by(simulation).into_response(),
            None => response,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).expect("strings and numbers always serialize");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(ms) = self.retry_after_ms {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).max(1)));
        }
        if self.status == 401 {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer error=\"invalid_token\""));
        }
        if let Ok(value) = HeaderValue::from_str(&self.call_id) {
            headers.insert("x-nf-call-id", value);
        }
        if self.simulation.is_none() {
            response.extensions_mut().insert(self);
        }
        response
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}

/// The domain in `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "neuralfabric";

impl From<Failure> for tonic::Status {
    fn from(failure: Failure) -> Self {
        let call_id = call_id();
        log(&failure, &call_id);
        let code = failure.codes().grpc;
        let Failure { refusal, retry_after_ms, leader_hint, checks } = failure;
        let mut metadata = std::collections::HashMap::from([("call_id".to_owned(), call_id)]);
        metadata.extend(refusal.field.clone().map(|field| ("field".to_owned(), field)));
        metadata.extend(leader_hint.map(|hint| ("leader_hint".to_owned(), hint)));
        metadata.extend(checks.as_deref().map(policies).unwrap_or_default());
        let mut details = ErrorDetails::with_error_info(refusal.reason.token(), DOMAIN, metadata);
        if let Some(field) = refusal.field.filter(|_| code == Code::InvalidArgument) {
            details.add_bad_request_violation(field, refusal.detail.clone());
        }
        let quota = [Reason::QuotaExceeded, Reason::QueueFull, Reason::TooManyRequests, Reason::TenantLimit];
        if quota.contains(&refusal.reason) {
            details.add_quota_failure_violation(refusal.reason.token(), refusal.detail.clone());
        }
        if let Some(ms) = retry_after_ms {
            details.set_retry_info(Some(Duration::from_millis(ms)));
        }
        tonic::Status::with_error_details(code, refusal.detail, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_row_that_agrees_with_itself() {
        for reason in Reason::ALL {
            let row = codes(*reason);
            assert!(
                StatusCode::from_u16(row.http).is_ok_and(|s| s.is_client_error() || s.is_server_error()),
                "{reason}"
            );
            assert_ne!(row.grpc, Code::Ok, "{reason}");
            assert!((1..=8).contains(&row.exit), "{reason}");
            match row.http {
                400 | 413 | 415 => assert_eq!((row.grpc, row.exit), (Code::InvalidArgument, 2), "{reason}"),
                401 => assert_eq!((row.grpc, row.exit), (Code::Unauthenticated, 6), "{reason}"),
                403 => assert_eq!((row.grpc, row.exit), (Code::PermissionDenied, 6), "{reason}"),
                404 => assert_eq!((row.grpc, row.exit), (Code::NotFound, 4), "{reason}"),
                422 => assert_eq!(row.grpc, Code::FailedPrecondition, "{reason}"),
                429 => assert_eq!(row.grpc, Code::ResourceExhausted, "{reason}"),
                500 => assert_eq!((row.grpc, row.exit), (Code::Internal, 1), "{reason}"),
                _ => {}
            }
        }
        assert_eq!(codes(Reason::NoLeader), Codes { http: 503, grpc: Code::Unavailable, exit: 7 });
    }

    #[test]
    fn busy_answers_say_when_to_come_back() {
        for reason in Reason::ALL.iter().filter(|r| matches!(codes(**r).http, 429 | 503)) {
            let response = Failure::new(*reason, "later").into_response();
            assert!(response.headers().contains_key(header::RETRY_AFTER), "{reason}");
        }
    }

    #[test]
    fn a_status_carries_the_token_the_field_and_the_delay() {
        let status = tonic::Status::from(Failure::from(Refusal::invalid("resources.gpu", "not a number")));
        let details = status.get_error_details();
        assert_eq!(details.error_info().map(|i| i.reason.as_str()), Some("InvalidArgument"));
        assert_eq!(details.bad_request().map(|b| b.field_violations[0].field.as_str()), Some("resources.gpu"));
        let status = tonic::Status::from(Failure::from(raft::Error::NoLeader { retry_after_ms: 250 }));
        let delay = status.get_error_details().retry_info().and_then(|r| r.retry_delay);
        assert_eq!(delay, Some(Duration::from_millis(250)));
    }
}
