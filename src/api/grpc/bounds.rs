//! What a caller of gRPC may take from others. tonic reads a message to its end before it calls a method, so no method
//! can say how long that may take; and who need not say who they are hold streams of their own. It knows neither who
//! calls nor what is asked.

use crate::api::error::Failure;
use crate::api::places::{Caller, Places};
use axum::body::{Body, BodyDataStream, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures::Stream;
use http_body_util::BodyExt;
use nf_core::reason::{Reason, Refusal};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use tonic::Status;

/// How long a message may take to arrive, as a body of REST.
const MESSAGE: Duration = Duration::from_secs(10);
/// How long a conversation about our descriptors may take: the caller says one thing after another.
const CONVERSATION: Duration = Duration::from_secs(60);
/// Streams of health and reflection, which are open to strangers: so many, whatever else is open.
pub const OPEN_STREAMS: usize = 64;
/// One address has at most this part of them: who may be a stranger may be one who keeps others out.
const SHARE: usize = 8;

const HEALTH: &str = "/grpc.health.v1.Health/Watch";
const REFLECTION: &str = "/grpc.reflection.";

/// Before each call.
#[derive(Clone)]
pub struct Bounds {
    message: Duration,
    conversation: Duration,
    open: Places,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { message: MESSAGE, conversation: CONVERSATION, open: Places::new(OPEN_STREAMS, SHARE) }
    }
}

/// Lets the call's message be late no longer than it may, and counts streams that are open to all.
pub async fn bounded(State(bounds): State<Bounds>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let conversation = path.starts_with(REFLECTION);
    let permit = match conversation || path == HEALTH {
        false => None,
        true => match bounds.open.take(from(&request)) {
            Some(place) => Some(place),
            None => return full().into_http(),
        },
    };
    let within = if conversation { bounds.conversation } else { bounds.message };
    let request = request.map(|body| if body.is_end_stream() { body } else { timed(body, within) });
    let response = next.run(request).await;
    match permit {
        None => response,
        // Its place is free again when the answer has ended, or nobody reads it any more.
        Some(permit) => response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _held = &permit;
                frame
            }))
        }),
    }
}

/// Whoever is not known to come from somewhere shares the places of one address.
fn from(request: &Request) -> IpAddr {
    request.extensions().get::<Caller>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |caller| caller.0)
}

fn full() -> Status {
    let each = OPEN_STREAMS / SHARE;
    let detail = format!(
        "{OPEN_STREAMS} streams of health and reflection may be open here, {each} from one address, and all are; \
         end one, or ask another member"
    );
    Failure::new(Reason::TooManyRequests, detail).into()
}

fn timed(body: Body, within: Duration) -> Body {
    let late = Box::pin(tokio::time::sleep(within));
    Body::from_stream(Timed { body: body.into_data_stream(), within, late })
}

/// A message that ends in time, or with the reason why it did not.
struct Timed {
    body: BodyDataStream,
    within: Duration,
    late: Pin<Box<Sleep>>,
}

impl Stream for Timed {
    type Item = Result<Bytes, axum::BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.body).poll_next(cx);
        // Who always has one more byte to say is late all the same.
        let late = match read {
            Poll::Ready(None) => false,
            Poll::Ready(Some(_)) => this.late.deadline() <= Instant::now(),
            Poll::Pending => this.late.as_mut().poll(cx).is_ready(),
        };
        if late {
            let detail = format!("the message did not arrive within {:?}; send it again", this.within);
            let status = Status::from(Failure::from(Refusal::field(Reason::BodyTimeout, "body", detail)));
            return Poll::Ready(Some(Err(status.into())));
        }
        read.map(|chunk| chunk.map(|read| read.map_err(Into::into)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::routing::post;
    use futures::StreamExt as _;
    use tower::ServiceExt as _;

    fn short() -> Bounds {
        let brief = Duration::from_millis(50);
        Bounds { message: brief, conversation: 2 * brief, open: Places::new(2, 2) }
    }

    /// Reads what it is sent to the end, and says how that ended.
    fn reader(bounds: Bounds) -> Router {
        async fn read(body: Body) -> String {
            match axum::body::to_bytes(body, 1 << 20).await {
                Ok(bytes) => format!("{} bytes", bytes.len()),
                Err(error) => Status::from_error(error.into()).code().to_string(),
            }
        }
        let layer = axum::middleware::from_fn_with_state(bounds, bounded);
        Router::new().fallback(post(read)).layer(layer)
    }

    async fn told(router: &Router, path: &str, body: Body) -> Response {
        let request = Request::post(path).body(body).unwrap();
        tokio::time::timeout(Duration::from_secs(20), router.clone().oneshot(request)).await.unwrap().unwrap()
    }

    async fn text(response: Response) -> String {
        String::from_utf8(axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_message_that_stays_away_or_never_ends_is_its_callers_time_out() {
        let router = reader(short());
        let late = tonic::Code::DeadlineExceeded.to_string();
        let byte = || Ok::<_, std::io::Error>("x");
        let stays = || Body::from_stream(futures::stream::iter([byte()]).chain(futures::stream::pending()));
        let drips = || {
            Body::from_stream(futures::stream::repeat_with(byte).then(|byte| async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                byte
            }))
        };
        for path in ["/x", REFLECTION] {
            assert_eq!(text(told(&router, path, stays()).await).await, late, "{path}");
            assert_eq!(text(told(&router, path, drips()).await).await, late, "{path}");
        }
        assert_eq!(text(told(&router, "/x", Body::from("whole")).await).await, "5 bytes");
    }

    #[tokio::test]
    async fn streams_that_are_open_to_all_have_places_of_their_own() {
        let router = reader(short());
        let first = told(&router, HEALTH, Body::empty()).await;
        let from = |address: &str| {
            let mut request = Request::post(HEALTH).body(Body::empty()).unwrap();
            request.extensions_mut().insert(Caller(address.parse().unwrap()));
            router.clone().oneshot(request)
        };
        let another = from("192.0.2.7").await.unwrap();
        assert!(!another.headers().contains_key("grpc-status"), "one address leaves places for others");
        assert!(from("192.0.2.8").await.unwrap().headers().contains_key("grpc-status"), "and now all are taken");
        drop(another);
        let second = told(&router, HEALTH, Body::empty()).await;
        assert_eq!(second.headers()["grpc-status"], (tonic::Code::ResourceExhausted as i32).to_string());
        assert_eq!(text(told(&router, "/x", Body::empty()).await).await, "0 bytes", "calls are none of them");
        drop(first);
        assert!(!told(&router, HEALTH, Body::empty()).await.headers().contains_key("grpc-status"));
    }

    #[tokio::test]
    async fn each_address_has_its_own_share_of_the_streams_and_no_others() {
        let router = reader(Bounds::default());
        let ask = |address: String, path: &'static str| {
            let mut request = Request::post(path).body(Body::empty()).unwrap();
            request.extensions_mut().insert(Caller(address.parse().unwrap()));
            router.clone().oneshot(request)
        };
        let (share, paths) = (OPEN_STREAMS / SHARE, [HEALTH, REFLECTION]);
        let mut held = Vec::new();
        for network in 0..SHARE {
            for n in 0..share {
                let answer = ask(format!("192.0.2.{network}"), paths[n % 2]).await.unwrap();
                assert!(!answer.headers().contains_key("grpc-status"), "stream {n} of address {network}");
                held.push(answer);
            }
            for path in paths {
                let over = ask(format!("192.0.2.{network}"), path).await.unwrap();
                assert!(over.headers().contains_key("grpc-status"), "address {network} has its share already");
            }
        }
        assert_eq!(held.len(), OPEN_STREAMS);
        assert!(
            ask("198.51.100.1".into(), HEALTH).await.unwrap().headers().contains_key("grpc-status"),
            "all are taken"
        );
        held.pop();
        assert!(!ask("198.51.100.1".into(), HEALTH).await.unwrap().headers().contains_key("grpc-status"));
    }
}
