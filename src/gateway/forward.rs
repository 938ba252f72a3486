//! One request to one replica, up to the beginning of its answer. What belongs to one
//! connection stays with it, and the caller's token stays here.

use super::answer::{Answer, PATIENCE, Unread};
use super::desk::Seat;
use super::refusal::Refused;
use crate::telemetry::traces::{self, Side};
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, Method, Request, Uri, header};
use axum::response::Response;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::Duration;
use tracing::Instrument;

/// Replicas that are tried when one can't be reached.
pub const TRIES: usize = 3;
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a replica may take until its answer begins.
const BEGIN: Duration = Duration::from_secs(600);
/// How long an idle connection to a replica is kept. Model servers close theirs after five seconds (uvicorn,
/// llama.cpp): who lets go first never sends a request into a connection that is just being closed; and a
/// replica that drains waits for its connections.
const IDLE: Duration = Duration::from_secs(3);

/// A machine that lost its power says nothing any more, while a model may think for minutes: after so much silence its
/// kernel is asked, so often, and so many times in vain; nor may what we send wait for longer than that.
const PROBE: (Duration, Duration, u32) = (Duration::from_secs(5), Duration::from_secs(5), 3);
const GONE: Duration = Duration::from_secs(20);

/// Connections to replicas, and answers on their way.
pub struct Replicas {
    client: hyper_util::client::legacy::Client<HttpConnector, Body>,
    unread: Unread,
}

impl Replicas {
    /// Must be called on a runtime.
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        let (after, every, times) = PROBE;
        connector.set_keepalive(Some(after));
        connector.set_keepalive_interval(Some(every));
        connector.set_keepalive_retries(Some(times));
        connector.set_tcp_user_timeout(Some(GONE));
        let mut client = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
        // Without a timer an idle connection is closed only when the next request to the same replica looks for one.
        let client = client.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).build(connector);
        Self { client, unread: Unread::new(PATIENCE) }
    }
}

/// A request without its body.
pub struct Head {
    pub method: Method,
    /// Path and query at the replica.
    pub path: String,
    pub headers: HeaderMap,
}

/// Belongs to one connection (RFC 9110, section 7.6.1), or is between the caller and us.
const KEPT_HERE: [HeaderName; 12] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HOST,
    header::CONTENT_LENGTH,
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    // Its 100 has been given: the body is here.
    header::EXPECT,
];

fn passed(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let mut out = headers.clone();
    for name in KEPT_HERE.iter().chain(&named) {
        out.remove(name);
    }
    out.remove(super::TENANT);
    out
}

/// Sends the request. The seat is kept until the answer's last byte.
pub async fn pass_on(
    Replicas { client, unread }: &Replicas,
    head: &Head,
    body: Bytes,
    seat: Seat,
) -> Result<Response, Refused> {
    let uri: Uri = format!("http://{}{}", seat.address, head.path)
        .parse()
        .map_err(|e: axum::http::uri::InvalidUri| Refused::Bad { field: "path", detail: e.to_string() })?;
    let mut request = Request::new(Body::from(body));
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = passed(&head.headers);
    let span = traces::part("replica", Side::Client);
    traces::hand_on(&span, request.headers_mut());
    let answer = match tokio::time::timeout(BEGIN, client.request(request)).instrument(span.clone()).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) if error.is_connect() => {
            seat.shun();
            traces::failed(&span, "Unreachable");
            return Err(Refused::Unreachable(error.to_string()));
        }
        // It may have begun to work: trying again could do it twice.
        Ok(Err(error)) => {
            traces::failed(&span, "Broken");
            return Err(Refused::Broken(error.to_string()));
        }
        Err(_) => {
            traces::failed(&span, "Silent");
            return Err(Refused::Broken(format!("no answer began within {BEGIN:?}")));
        }
    };
    seat.reached();
    let (parts, incoming) = answer.into_parts();
    traces::answered(&span, parts.status);
    if parts.status.is_server_error() {
        seat.failed();
    }
    let headers = passed(&parts.headers);
    // Beside chunks a length says nothing (RFC 9112, section 6.3).
    let chunked = parts.headers.contains_key(header::TRANSFER_ENCODING);
    let length = parts.headers.get(header::CONTENT_LENGTH).filter(|_| !chunked).cloned();
    let said = length.as_ref().and_then(|value| value.to_str().ok()?.parse().ok());
    let nothing = head.method == Method::HEAD || matches!(parts.status.as_u16(), 204 | 304);
    let left = if nothing { Some(0) } else { said };
    // A stream of events is there for its caller from its first piece on, anything else when it is whole.
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let streams = kind.starts_with("text/event-stream");
    let answer = Answer::new(Body::new(incoming).into_data_stream(), seat, left, streams, span);
    let mut response = Response::new(Body::from_stream(unread.follow(answer)));
    *response.status_mut() = parts.status;
    *response.headers_mut() = headers;
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    Ok(response)
}
