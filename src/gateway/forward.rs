//! One request to one replica, and its answer back, piece by piece as it comes. What
//! belongs to one connection stays with it, and the caller's token stays here.

use super::desk::Seat;
use super::refusal::Refused;
use crate::telemetry::traces::{self, Side};
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, Method, Request, Uri, header};
use axum::response::Response;
use futures::StreamExt;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::Duration;
use tracing::{Instrument, Span};

/// Replicas that are tried when one can't be reached.
pub const TRIES: usize = 3;
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a replica may take until its answer begins.
const BEGIN: Duration = Duration::from_secs(600);
/// How long a replica may be silent in the middle of its answer.
const STALL: Duration = Duration::from_secs(300);
/// How long an idle connection to a replica is kept. Model servers close theirs after five seconds (uvicorn,
/// llama.cpp): who lets go first never sends a request into a connection that is just being closed; and a
/// replica that drains waits for its connections.
const IDLE: Duration = Duration::from_secs(3);

/// Connections to replicas.
pub type Client = hyper_util::client::legacy::Client<HttpConnector, Body>;

pub fn client() -> Client {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_nodelay(true);
    let mut client = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
    // Without a timer an idle connection is closed only when the next request to the same replica looks for one.
    client.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).build(connector)
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
pub async fn pass_on(client: &Client, head: &Head, body: Bytes, seat: Seat) -> Result<Response, Refused> {
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
    let length = parts.headers.get(header::CONTENT_LENGTH).cloned();
    let said = length.as_ref().and_then(|value| value.to_str().ok()?.parse().ok());
    let nothing = head.method == Method::HEAD || matches!(parts.status.as_u16(), 204 | 304);
    let left = if nothing { Some(0) } else { said };
    // A stream of events is there for its caller from its first piece on, anything else when it is whole.
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let streams = kind.starts_with("text/event-stream");
    let answer =
        Answer { pieces: Body::new(incoming).into_data_stream(), seat: Some(seat), left, streams, _span: span };
    let mut response = Response::new(Body::from_stream(counted(answer.begin())));
    *response.status_mut() = parts.status;
    *response.headers_mut() = headers;
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    Ok(response)
}

/// An answer on its way.
struct Answer {
    pieces: axum::body::BodyDataStream,
    /// None once the answer is complete, or broken.
    seat: Option<Seat>,
    /// Bytes still to come, where the replica says how many there are.
    left: Option<u64>,
    streams: bool,
    /// Lasts as long as the answer does.
    _span: Span,
}

impl Answer {
    fn begin(mut self) -> Self {
        self.end_if_whole();
        self
    }

    fn passes(&mut self, piece: &Bytes) {
        if let Some(seat) = self.seat.as_ref().filter(|_| self.streams) {
            seat.begun();
        }
        self.left = self.left.map(|left| left.saturating_sub(piece.len() as u64));
        self.end_if_whole();
    }

    /// Who sends the answer on stops asking after its last byte: the end of a known length shows there, or never.
    fn end_if_whole(&mut self) {
        if self.left == Some(0) {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Some(seat) = self.seat.take() {
            seat.answered();
        }
    }
}

/// The pieces as they come; the seat counts the answer when the last one has come, or is
/// given up with the stream by a caller who went away.
fn counted(answer: Answer) -> impl futures::Stream<Item = Result<Bytes, axum::Error>> + Send {
    futures::stream::unfold(answer, |mut answer| async move {
        let next = tokio::time::timeout(STALL, answer.pieces.next()).await;
        let stalled = |_| Some(Err(axum::Error::new(std::io::Error::from(std::io::ErrorKind::TimedOut))));
        match next.unwrap_or_else(stalled) {
            Some(Ok(piece)) => {
                answer.passes(&piece);
                Some((Ok(piece), answer))
            }
            Some(Err(error)) => {
                if let Some(seat) = answer.seat.take() {
                    seat.failed();
                }
                Some((Err(error), answer))
            }
            None => {
                answer.end();
                None
            }
        }
    })
}
