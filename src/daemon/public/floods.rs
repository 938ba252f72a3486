//! Clients that speak HTTP/2 frame by frame, to flood: each is let go, while somebody else is served.

use super::*;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

/// A flood that is not let go after so many frames is let be.
const FRAMES: u32 = 200_000;
/// Sooner than a client that answers no probe is let go for that.
const LIMIT: Duration = Duration::from_secs(20);
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `GET / http`, of the static table, and an authority.
const CALL: &[u8] = &[0x82, 0x84, 0x86, 0x41, 1, b'x'];

fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), body].concat()
}

/// A server, and a client that has shaken hands with it.
async fn flooder(bounds: Bounds) -> (std::net::SocketAddr, TcpStream, watch::Sender<bool>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (end, ended) = watch::channel(false);
    let router = Router::new().route("/", get(|| async { "here" }));
    let served = tokio::spawn(serve(Port { bounds, ..tests::plain() }, listener, router, ended));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    (address, stream, end, served)
}

/// Sends the frames of each round until the server is done with it; the last frame that it said, if it was.
async fn flood(stream: TcpStream, limit: Duration, round: fn(u32) -> Vec<u8>) -> Option<u8> {
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
        let (mut head, mut last) = ([0; 9], None);
        while from.read_exact(&mut head).await.is_ok() {
            let mut body = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            last = Some(head[3]);
            if from.read_exact(&mut body).await.is_err() || head[3] == GOAWAY {
                break;
            }
        }
        last
    };
    let told = tokio::time::timeout(limit, reading).await;
    writing.abort();
    told.ok().flatten()
}

async fn good(address: std::net::SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
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

/// Floods a server of these bounds for so long, and looks that somebody else is served meanwhile.
async fn told(bounds: Bounds, limit: Duration, round: fn(u32) -> Vec<u8>) -> Option<u8> {
    let (address, stream, end, served) = flooder(bounds).await;
    let flooding = tokio::spawn(flood(stream, limit, round));
    assert!(good(address).await.ends_with("here"), "others are served meanwhile");
    let told = flooding.await.unwrap();
    end.send_replace(true);
    served.await.unwrap();
    told
}

/// As if there were none.
const NONE: Bounds = Bounds { streams: 128, resets: (usize::MAX, usize::MAX), head: u32::MAX };
/// How long it is looked at that a flood is let be without bounds.
const CONTROL: Duration = Duration::from_secs(3);

#[tokio::test]
async fn who_takes_back_what_it_asks_is_let_go() {
    assert_eq!(told(BOUNDS, LIMIT, takes_back).await, Some(GOAWAY));
    assert_ne!(told(NONE, CONTROL, takes_back).await, Some(GOAWAY), "it is the bound that does it");
}

#[tokio::test]
async fn who_never_ends_a_head_is_let_go() {
    assert_eq!(told(BOUNDS, LIMIT, goes_on).await, Some(GOAWAY));
    assert_ne!(told(NONE, CONTROL, goes_on).await, Some(GOAWAY), "it is the bound that does it");
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused_with_its_reason() {
    let (address, idle, end, served) = flooder(BOUNDS).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let long = format!("GET / HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "a".repeat(BOUNDS.head as usize));
    // Its connection ends with the answer: the rest of it may not be wanted any more.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    drop(idle);
    end.send_replace(true);
    served.await.unwrap();
}
