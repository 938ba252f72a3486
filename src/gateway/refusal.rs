//! What callers of models are told when their request got no answer, in the shape
//! that OpenAI's clients read, with our own reason as its code.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use nf_core::id::ModelId;
use nf_core::reason::Reason;
use std::time::Duration;

/// Seconds after which a refused caller may come again.
const RETRY_AFTER: &str = "1";

/// Why a request got no answer.
#[derive(Debug)]
pub enum Refused {
    Bad {
        field: &'static str,
        detail: String,
    },
    TooLarge(usize),
    NoModel(ModelId),
    /// As many wait as may.
    Full {
        held: u32,
    },
    /// The bodies of other requests take all the memory that they may.
    Crowded,
    /// Those of the same tenant take as much as is left for others.
    TenantBodies {
        kib: u32,
    },
    /// The same tenant has as many requests here as it may.
    TenantCalls {
        most: u32,
    },
    /// The body did not come in time.
    Slow(Duration),
    /// It waited for as long as one may.
    Late(Duration),
    /// Nothing was sent.
    Unreachable(String),
    /// Something was sent, and no answer came.
    Broken(String),
    Stopping,
    /// This member has not heard from its group since it started.
    Behind,
}

impl Refused {
    pub fn reason(&self) -> Reason {
        self.told().1
    }

    fn told(&self) -> (StatusCode, Reason, String) {
        match self {
            Refused::Bad { field, detail } => {
                (StatusCode::BAD_REQUEST, Reason::InvalidArgument, format!("{field}: {detail}"))
            }
            Refused::TooLarge(most) => {
                (StatusCode::PAYLOAD_TOO_LARGE, Reason::TooLarge, format!("the body: at most {most} bytes"))
            }
            Refused::NoModel(model) => {
                let detail = format!("no job of this tenant runs model {model}; nf get services lists them");
                (StatusCode::NOT_FOUND, Reason::ModelNotFound, detail)
            }
            Refused::Full { held } => {
                let detail = format!("{held} requests wait for a replica of this model already; come again");
                (StatusCode::TOO_MANY_REQUESTS, Reason::TooManyRequests, detail)
            }
            Refused::Crowded => {
                let detail = "other requests' bodies take all the memory that this member has for them; come again";
                (StatusCode::TOO_MANY_REQUESTS, Reason::TooManyRequests, detail.to_owned())
            }
            Refused::TenantBodies { kib } => {
                let detail = format!(
                    "bodies of this tenant's requests take {kib} KiB here, as much as is left for all others; come again"
                );
                (StatusCode::TOO_MANY_REQUESTS, Reason::TenantLimit, detail)
            }
            Refused::TenantCalls { most } => {
                let detail = format!("this tenant has {most} requests at this member, as many as it may; come again");
                (StatusCode::TOO_MANY_REQUESTS, Reason::TenantLimit, detail)
            }
            Refused::Slow(time) => {
                let detail = format!("the body did not come within {} s", time.as_secs());
                (StatusCode::REQUEST_TIMEOUT, Reason::BodyTimeout, detail)
            }
            Refused::Late(hold) => {
                let detail =
                    format!("no replica of this model had room within {} s; nf get jobs says why", hold.as_secs());
                (StatusCode::SERVICE_UNAVAILABLE, Reason::WaitingForReplicasReady, detail)
            }
            Refused::Unreachable(error) => {
                let detail =
                    format!("no replica of this model could be reached ({error}); nothing was done, come again");
                (StatusCode::SERVICE_UNAVAILABLE, Reason::NodeDown, detail)
            }
            Refused::Broken(error) => {
                let detail = format!("the replica gave no answer ({error}); it may have worked on the request");
                (StatusCode::BAD_GATEWAY, Reason::RuntimeFailed, detail)
            }
            Refused::Behind => {
                let detail =
                    "this member has not caught up with its group since it started; ask another, or come again";
                (StatusCode::SERVICE_UNAVAILABLE, Reason::NoLeader, detail.to_owned())
            }
            Refused::Stopping => {
                (StatusCode::SERVICE_UNAVAILABLE, Reason::Draining, "this member is stopping; ask another".to_owned())
            }
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, reason, message) = self.told();
        let kind = if status.is_client_error() { "invalid_request_error" } else { "server_error" };
        let error = serde_json::json!({ "message": message, "type": kind, "param": null, "code": reason.token() });
        let body = serde_json::json!({ "error": error }).to_string();
        let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            let value = header::HeaderValue::from_static(RETRY_AFTER);
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        // For who keeps the record of refusals.
        response.extensions_mut().insert(reason);
        response
    }
}
