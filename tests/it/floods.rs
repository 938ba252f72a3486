//! Clients that keep others out, against the product's own port and routes: they flood HTTP/2 frame by frame, say
//! nothing, begin what they never end, or send more than is read. Each is let go while somebody else is served.

use crate::surface::Surface;
use futures::TryFutureExt as _;
use nf_proto::v1;
use nf_proto::v1::scheduler_service_client::SchedulerServiceClient;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A flood that is not let go after so many frames is let be.
const FRAMES: u32 = 200_000;
/// Sooner than a client that answers no probe is let go for that.
const LIMIT: Duration = Duration::from_secs(20);
/// A good client's call may take so long in a flood, on a busy machine.
const SERVED: Duration = Duration::from_secs(5);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `GET /health`, by the static table, and an authority.
const CALL: &[u8] = &[0x82, 0x86, 0x04, 7, b'/', b'h', b'e', b'a', b'l', b't', b'h', 0x41, 1, b'x'];

fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), body].concat()
}

/// A client of HTTP/2 that has shaken hands.
async fn shaken(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

/// Sends the frames of each round until the server is done with it; the last frame that it said, if it was.
async fn flood(stream: TcpStream, round: fn(u32) -> Vec<u8>) -> Option<u8> {
    let (mut from, mut to) = stream.into_split();
    let writing = tokio::spawn(async move {
        for batch in 0..FRAMES / 100 {
            let bytes: Vec<u8> = (0..100).flat_map(|n| round(batch * 100 + n)).collect();
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // It was not let go: it stays for as long as it is looked at.
        std::future::pending::<()>().await;
    });
    let reading = async {
        let mut last = None;
        while let Some((kind, _, _)) = next(&mut from).await {
            last = Some(kind);
            if kind == GOAWAY {
                break;
            }
        }
        last
    };
    let told = tokio::time::timeout(LIMIT, reading).await;
    writing.abort();
    told.ok().flatten()
}

/// The kind, flags and stream of the next frame; None at the end.
async fn next(from: &mut (impl AsyncReadExt + Unpin)) -> Option<(u8, u8, u32)> {
    let mut head = [0; 9];
    from.read_exact(&mut head).await.ok()?;
    let mut body = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    from.read_exact(&mut body).await.ok()?;
    Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]])))
}

/// A call that is taken back at once.
fn takes_back(n: u32) -> Vec<u8> {
    let stream = 2 * n + 1;
    let ask = frame(HEADERS, END_STREAM | END_HEADERS, stream, CALL);
    [ask, frame(RESET, 0, stream, &8u32.to_be_bytes())].concat()
}

/// A head that goes on and on.
fn goes_on(n: u32) -> Vec<u8> {
    match n {
        0 => frame(HEADERS, END_STREAM, 1, CALL),
        n if n % 2 == 0 => frame(CONTINUATION, 0, 1, &[]),
        _ => frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b']),
    }
}

/// The head of a call of gRPC without its end.
fn rpc(stream: u32, path: &str) -> Vec<u8> {
    let mut head = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    head.extend(path.bytes());
    head.extend([0x41, 1, b'x', 0x0f, 0x10, 16]);
    head.extend(b"application/grpc");
    head.extend([0, 2]);
    head.extend(b"te");
    head.push(8);
    head.extend(b"trailers");
    frame(HEADERS, END_HEADERS, stream, &head)
}

/// Files for the sockets of both ends; as many as the product asks for, where it may.
fn open_many() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(1 << 16).max(soft), hard).unwrap();
}

impl Surface {
    /// One good client, as often as it can until `until`; the longest that a call took.
    async fn serves(&self, until: Instant) -> Duration {
        let mut longest = Duration::ZERO;
        for n in 0.. {
            let began = Instant::now();
            let body =
                json!({"tenant_id": "good", "model_id": "m", "model_version": "v", "request_id": format!("r{n}")});
            let schedule = || self.http.post(format!("{}/schedule", self.urls[0])).json(&body).send();
            // Where places are short a connection that is idle may be closed: who finds it so asks once more.
            let schedule = schedule().or_else(|_| schedule());
            let answer = tokio::time::timeout(SERVED, schedule).await.expect("in time").expect("an answer");
            assert!(answer.status().is_success(), "{}", answer.status());
            let fresh = reqwest::Client::builder().no_proxy().build().unwrap();
            let health = tokio::time::timeout(SERVED, fresh.get(format!("{}/health", self.urls[0])).send()).await;
            assert_eq!(health.expect("in time").expect("an answer").status(), 200);
            longest = longest.max(began.elapsed());
            if Instant::now() > until {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        longest
    }
}

async fn let_go(round: fn(u32) -> Vec<u8>) {
    let group = Surface::start(1, || None).await;
    let flooding = tokio::spawn(flood(shaken(group.address()).await, round));
    group.serves(Instant::now() + Duration::from_secs(1)).await;
    assert_eq!(flooding.await.unwrap(), Some(GOAWAY));
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_back_what_it_asks_is_let_go() {
    let_go(takes_back).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_ends_a_head_is_let_go() {
    let_go(goes_on).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_too_long_is_refused_with_its_reason() {
    let group = Surface::start(1, || None).await;
    let mut stream = TcpStream::connect(group.address()).await.unwrap();
    let long = format!("GET /health HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "a".repeat(16 << 10));
    // Its connection ends with the answer: the rest of it may not be wanted any more.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_grpc_whose_message_never_ends_does() {
    let group = Surface::start(1, || None).await;
    let mut stream = shaken(group.address()).await;
    let paths = [
        "/neuralfabric.v1.SchedulerService/Schedule",
        "/neuralfabric.v1.SchedulerService/Watch",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    ];
    let mut open = std::collections::BTreeSet::new();
    for (n, path) in (0..).zip(paths.iter().cycle().take(100)) {
        let id = 2 * n + 1;
        open.insert(id);
        stream.write_all(&rpc(id, path)).await.unwrap();
        // The length of a message, as far as it goes.
        stream.write_all(&frame(DATA, 0, id, &[0, 0])).await.unwrap();
    }
    let began = Instant::now();
    let (mut from, _to) = stream.split();
    let ended = async {
        while !open.is_empty() {
            let (kind, flags, id) = next(&mut from).await.expect("the connection stays");
            if kind == RESET || matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                open.remove(&id);
            }
        }
    };
    let good = group.serves(Instant::now() + Duration::from_secs(2));
    let (ended, _) = tokio::join!(tokio::time::timeout(LIMIT, ended), good);
    assert!(ended.is_ok(), "{open:?} are open after {:?}", began.elapsed());
    group.stop().await;
}

/// Sends more than is read, and reads meanwhile, since it may be told before it has said all; the beginning of the answer.
/// Empty when it was let go without one, as somebody's who said nothing yet may be where places are short.
async fn oversized(address: SocketAddr) -> String {
    let (mut from, mut to) = TcpStream::connect(address).await.unwrap().into_split();
    let body = vec![b' '; 3 << 20];
    let head = format!(
        "POST /schedule HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let says = async {
        // Whoever has heard enough takes no more.
        let _ = to.write_all(head.as_bytes()).await;
        let _ = to.write_all(&body).await;
    };
    let hears = async {
        let mut told = vec![0; "HTTP/1.1 413".len()];
        let read = tokio::time::timeout(LIMIT, from.read_exact(&mut told)).await.expect("an answer or an end");
        read.map(|_| String::from_utf8_lossy(&told).into_owned()).unwrap_or_default()
    };
    tokio::join!(says, hears).1
}

/// The same, once more where it was let go.
async fn is_too_large(address: SocketAddr) -> bool {
    for _ in 0..3 {
        match oversized(address).await {
            told if told.is_empty() => {}
            told => return told == "HTTP/1.1 413",
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_grpc_has_the_same_bound_as_a_body() {
    use neural_fabric::api::convert::json::MAX_BODY;
    use prost::Message as _;
    let group = Surface::start(1, || None).await;
    let channel = tonic::transport::Endpoint::from_shared(group.urls[0].clone()).unwrap().connect().await.unwrap();
    let mut client = SchedulerServiceClient::new(channel);
    let of_length = |length: usize| {
        let message = |n: usize| v1::GetRequest { request_id: "x".repeat(n), ..Default::default() };
        let more = message(length).encoded_len() - length;
        let message = message(length - more);
        assert_eq!(message.encoded_len(), length);
        message
    };
    let longest = client.get(of_length(MAX_BODY)).await.unwrap_err();
    assert_eq!(longest.code(), tonic::Code::InvalidArgument, "it is read, and is no name: {longest}");
    let longer = client.get(of_length(MAX_BODY + 1)).await.unwrap_err();
    assert_eq!(longer.code(), tonic::Code::OutOfRange, "{longer}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_so_many_calls_at_a_time_and_no_more() {
    const MOST: u32 = 128;
    let group = Surface::start(1, || None).await;
    let mut stream = shaken(group.address()).await;
    for n in 0..=MOST {
        stream.write_all(&rpc(2 * n + 1, "/neuralfabric.v1.SchedulerService/Schedule")).await.unwrap();
    }
    let (mut from, _to) = stream.split();
    let first_reset = async {
        loop {
            let (kind, _, id) = next(&mut from).await.expect("the connection stays");
            if kind == RESET {
                return id;
            }
        }
    };
    let refused = tokio::time::timeout(LIMIT, first_reset).await.expect("one of them is refused");
    assert_eq!(refused, 2 * MOST + 1, "the last, and none before");
    group.serves(Instant::now()).await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_good_client_is_served_beside_everybody_who_keeps_others_out() {
    open_many();
    let group = Surface::start(1, || None).await;
    let address = group.address();
    let mut idle = Vec::new();
    for n in 0..1000 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let begun: &[u8] = [b"".as_slice(), b"P", b"PRI * HTTP/2.0\r\n"][n % 3];
        stream.write_all(begun).await.unwrap();
        idle.push(stream);
    }
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let mut stream = shaken(address).await;
        for n in 0..100 {
            stream.write_all(&rpc(2 * n + 1, "/neuralfabric.v1.SchedulerService/Schedule")).await.unwrap();
        }
        stalled.push(stream);
    }
    let resets = tokio::spawn(async move {
        for _ in 0..5 {
            assert_eq!(flood(shaken(address).await, takes_back).await, Some(GOAWAY));
        }
    });
    let until = Instant::now() + Duration::from_secs(12);
    let big = async {
        while Instant::now() < until {
            assert!(is_too_large(address).await);
        }
    };
    let (longest, ()) = tokio::join!(group.serves(until), big);
    resets.await.unwrap();
    // By then who said nothing, or not all of a greeting, has been let go.
    for mut stream in idle {
        let mut rest = Vec::new();
        let told = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await;
        assert!(told.is_ok(), "a silent client is kept");
    }
    println!("the longest that the good client waited: {longest:?}");
    let health: Value = group.http.get(format!("{}/health", group.urls[0])).send().await.unwrap().json().await.unwrap();
    assert_eq!(health["status"], "ok");
    drop(stalled);
    group.stop().await;
}
