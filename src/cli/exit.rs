//! How a command ends: the exit codes of CONVENTIONS.md, and an error that carries
//! one. A text says what happened, why, and the next command. It knows no command.

use crate::api::error::codes;
use nf_core::reason::Reason;
use serde_json::Value;
use std::fmt;
use std::process::ExitCode;

/// Exit codes; 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Failed = 1,
    Usage = 2,
    /// Accepted, but it can't be placed now.
    Queued = 3,
    NotFound = 4,
    Conflict = 5,
    Denied = 6,
    /// No leader, or no member answers.
    Unreachable = 7,
    WaitRanOut = 8,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// An end other than success. An empty text means that all was said already.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// A failure as an error to return with `?`.
pub fn fail(exit: Exit, text: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Failure { exit, text: text.into() })
}

/// The exit that an error carries.
pub fn of(error: &anyhow::Error) -> Option<Exit> {
    error.downcast_ref::<Failure>().map(|failure| failure.exit)
}

/// The exit for an answer that is an error (RFC 9457): that of its reason, in the one
/// table there is. Without a reason that we know (a proxy spoke, or a newer member), the
/// status must do.
pub fn exit_of(status: u16, reason: &str) -> Exit {
    if let Some(reason) = Reason::from_token(reason) {
        return numbered(codes(reason).exit);
    }
    match status {
        400 | 405 | 413 | 415 => Exit::Usage,
        401 | 403 | 422 | 429 => Exit::Denied,
        404 => Exit::NotFound,
        409 | 410 | 412 => Exit::Conflict,
        502..=504 => Exit::Unreachable,
        _ => Exit::Failed,
    }
}

fn numbered(code: u8) -> Exit {
    let all = [Exit::Usage, Exit::Queued, Exit::NotFound, Exit::Conflict, Exit::Denied, Exit::Unreachable];
    all.into_iter().find(|exit| *exit as u8 == code).unwrap_or(Exit::Failed)
}

/// An RFC 9457 answer as a failure, with the next command where one helps.
pub fn problem(status: u16, body: &Value) -> anyhow::Error {
    let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default();
    let reason = text("reason");
    let exit = exit_of(status, reason);
    let detail = [text("detail"), text("title"), "no further detail"].into_iter().find(|t| !t.is_empty());
    let mut out = format!("{}: {}", if reason.is_empty() { "refused" } else { reason }, detail.unwrap_or_default());
    if !text("field").is_empty() {
        out.push_str(&format!(" (field {})", text("field")));
    }
    if let Some(hint) = hint(reason) {
        out.push_str(&format!("\n  try: {hint}"));
    }
    fail(exit, out)
}

/// What to type next.
fn hint(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "NotFound" => "nf get jobs, nf get nodes or nf get tenants list what there is",
        "NoLeader" | "Timeout" => "nf get members shows who leads; the same command again is safe",
        "QuotaExceeded" | "QueueFull" => "nf quota get TENANT shows the limits, nf quota set raises them",
        "NoCapacity" => "nf get nodes shows what is free; without --no-queue the job would wait",
        "IdempotencyConflict" => "choose another --name, or repeat the request unchanged",
        "PlanChanged" => "nf plan again, then run with the new digest",
        "StaleIndex" => "the same command again: it reads what is there now",
        "Unauthenticated" | "TenantClaimInvalid" => {
            "NF_TOKEN=$(nf token create --keys DIR/tokens --subject NAME --tenant TENANT --role operator)"
        }
        "Forbidden" => "a token with the role: nf token create --keys DIR/tokens --role ROLE …",
        "NotCaughtUp" | "NotVoter" => "nf get members shows who may lead",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_what_why_and_what_next() {
        let body = serde_json::json!({"reason":"QuotaExceeded","detail":"t1 has 2 GPUs","field":"resources.gpu"});
        let error = problem(429, &body);
        let failure = error.downcast_ref::<Failure>().unwrap();
        assert_eq!(failure.exit, Exit::Denied);
        assert!(failure.text.contains("t1 has 2 GPUs (field resources.gpu)") && failure.text.contains("nf quota"));
    }

    #[test]
    fn each_kind_of_answer_has_its_code() {
        let answers = [
            (400, "", 2),
            (503, "NoCapacity", 3),
            (404, "", 4),
            (409, "", 5),
            (403, "", 6),
            (503, "NoLeader", 7),
            (500, "", 1),
        ];
        for (status, reason, code) in answers {
            assert_eq!(exit_of(status, reason) as u8, code, "{status} {reason}");
        }
    }

    #[test]
    fn every_reason_ends_as_the_one_table_says() {
        for reason in Reason::ALL {
            let row = codes(*reason);
            assert_eq!(exit_of(row.http, reason.token()) as u8, row.exit, "{reason}");
        }
    }
}
