//! Connections to replicas, each for one request at a time. Whoever has the request drives
//! the connection in its own task: another task for that would have to be woken twice for
//! each request, which is what a small one would pay most for. A connection whose answer has
//! come is kept for the next request. It does not know whose request it is.

use axum::body::Bytes;
use axum::http::{Request, response};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long an idle connection is kept, and how often those are looked at.
const IDLE: Duration = Duration::from_secs(15);
/// Idle connections to one replica.
const KEPT: usize = 1024;

/// Why there is no answer.
#[derive(Debug)]
pub enum Fault {
    /// Nothing was sent.
    Unreachable(String),
    /// Something was sent, or may have been.
    Broken(String),
}

type Parked = HashMap<Arc<str>, Vec<(Instant, Line)>>;

/// The idle connections. Clones share them.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Parked>>);

/// One connection.
struct Line {
    sender: SendRequest<Full<Bytes>>,
    io: Pin<Box<Connection<TokioIo<TcpStream>, Full<Bytes>>>>,
    /// It is closed; it must not be driven any more.
    over: bool,
}

/// What became of a request on one connection.
enum Sent {
    Answered(response::Parts, Incoming, Line),
    /// The connection was closed before; here it is back.
    Unsent(Request<Full<Bytes>>),
    Broken(String),
}

impl Lines {
    /// Must be called on a runtime; its task ends with the last clone.
    pub fn new() -> Self {
        let lines = Self::default();
        let weak = Arc::downgrade(&lines.0);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(IDLE).await;
                let Some(parked) = weak.upgrade() else { return };
                Lines(parked).sweep();
            }
        });
        lines
    }

    fn parked(&self) -> MutexGuard<'_, Parked> {
        // Whole connections are put in and taken out: a panic leaves none half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sweep(&self) {
        let fresh = |(since, line): &mut (Instant, Line)| since.elapsed() < IDLE && line.is_open();
        self.parked().retain(|_, lines| {
            lines.retain_mut(fresh);
            !lines.is_empty()
        });
    }

    /// The one that was used last: others may grow old.
    fn take(&self, address: &str) -> Option<Line> {
        self.parked().get_mut(address)?.pop().map(|(_, line)| line)
    }

    fn keep(&self, address: Arc<str>, line: Line) {
        let mut parked = self.parked();
        let lines = parked.entry(address).or_default();
        if lines.len() < KEPT {
            lines.push((Instant::now(), line));
        }
    }

    /// Sends a request, with its path alone as URI, to `host:port`.
    ///
    /// # Errors
    /// [`Fault`]; whether it may be sent elsewhere depends on the case.
    pub async fn send(
        &self,
        address: &Arc<str>,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(response::Parts, Coming), Fault> {
        // Each look takes one away, so this ends.
        while let Some(mut line) = self.take(address) {
            if !line.is_open() {
                continue;
            }
            match line.send(request).await {
                Sent::Unsent(back) => request = back,
                sent => return self.answered(address, sent),
            }
        }
        let line = Line::open(address).await.map_err(Fault::Unreachable)?;
        self.answered(address, line.send(request).await)
    }

    fn answered(&self, address: &Arc<str>, sent: Sent) -> Result<(response::Parts, Coming), Fault> {
        match sent {
            Sent::Answered(parts, body, line) => {
                let mut coming = Coming { body, line: Some(line), home: self.clone(), address: address.clone() };
                coming.settle();
                Ok((parts, coming))
            }
            Sent::Unsent(_) => Err(Fault::Unreachable("the connection was closed at once".to_owned())),
            Sent::Broken(error) => Err(Fault::Broken(error)),
        }
    }
}

impl Line {
    async fn open(address: &str) -> Result<Self, String> {
        let connected = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
        let stream = connected.map_err(|_| format!("{address}: no connection within {CONNECT:?}"))?;
        let stream = stream.map_err(|error| format!("{address}: {error}"))?;
        // Small requests must not wait for the acknowledgement of the one before (Nagle).
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let (sender, io) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        Ok(Self { sender, io: Box::pin(io), over: false })
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        // How it ended shows in the answer.
        self.over = self.over || self.io.as_mut().poll(cx).is_ready();
    }

    /// Whether the replica has not closed it meanwhile.
    fn is_open(&mut self) -> bool {
        // Nobody is to be woken: whoever uses it next looks again.
        self.drive(&mut Context::from_waker(Waker::noop()));
        !self.over && self.sender.is_ready()
    }

    async fn send(mut self, request: Request<Full<Bytes>>) -> Sent {
        let mut answer = pin!(self.sender.try_send_request(request));
        let (io, over) = (&mut self.io, &mut self.over);
        let answered = poll_fn(|cx| {
            // First what the answer comes by.
            *over = *over || io.as_mut().poll(cx).is_ready();
            match answer.as_mut().poll(cx) {
                Poll::Pending if *over => Poll::Ready(None),
                other => other.map(Some),
            }
        });
        match answered.await {
            Some(Ok(answer)) => {
                let (parts, body) = answer.into_parts();
                Sent::Answered(parts, body, self)
            }
            Some(Err(mut error)) => match error.take_message() {
                Some(request) => Sent::Unsent(request),
                None => Sent::Broken(error.into_error().to_string()),
            },
            None => Sent::Broken("the replica closed the connection".to_owned()),
        }
    }
}

/// The body of an answer, with the connection that it comes by.
pub struct Coming {
    body: Incoming,
    /// None once the body is whole: it is kept for the next request then, or closed.
    line: Option<Line>,
    home: Lines,
    address: Arc<str>,
}

impl Coming {
    /// The next piece; None after the last one.
    pub async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            let frame = poll_fn(|cx| {
                if let Some(line) = &mut self.line {
                    line.drive(cx);
                }
                Pin::new(&mut self.body).poll_frame(cx)
            });
            match frame.await {
                Some(Ok(frame)) => {
                    self.settle();
                    // Trailers belong to one connection.
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Some(Err(error)) => {
                    self.line = None;
                    return Some(Err(error));
                }
                None => {
                    self.release();
                    return None;
                }
            }
        }
    }

    /// Who sends an answer on may stop asking after its last byte.
    fn settle(&mut self) {
        if self.body.is_end_stream() {
            self.release();
        }
    }

    fn release(&mut self) {
        if let Some(mut line) = self.line.take()
            && line.is_open()
        {
            self.home.keep(self.address.clone(), line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Method;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::watch;

    /// A replica that answers so many requests on each connection, with these bytes, and closes it then.
    /// Tells how many connections were opened, and how many closed.
    async fn replica(each: usize, answer: &'static str) -> (Arc<str>, watch::Receiver<(usize, usize)>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string().into();
        let (seen, told) = watch::channel((0, 0));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                seen.send_modify(|(opened, _)| *opened += 1);
                let (mut held, mut left) = (Vec::new(), each);
                while left > 0 && stream.read_buf(&mut held).await.is_ok_and(|n| n > 0) {
                    if held.ends_with(b"\r\n\r\n") {
                        held.clear();
                        left -= 1;
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                }
                drop(stream);
                seen.send_modify(|(_, closed)| *closed += 1);
            }
        });
        (address, told)
    }

    fn request(method: Method) -> Request<Full<Bytes>> {
        let request = Request::builder().method(method).uri("/x").header("host", "replica");
        request.body(Full::new(Bytes::new())).unwrap()
    }

    async fn ask(lines: &Lines, address: &Arc<str>, method: Method) -> Result<Vec<u8>, Fault> {
        let (parts, mut coming) = lines.send(address, request(method)).await?;
        assert_eq!(parts.status, 200);
        let mut body = Vec::new();
        while let Some(piece) = coming.next().await {
            body.extend_from_slice(&piece.map_err(|error| Fault::Broken(error.to_string()))?);
        }
        Ok(body)
    }

    #[tokio::test]
    async fn a_connection_is_kept_for_the_next_request_whatever_ends_its_answer() {
        for (answer, method, body) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", Method::GET, &b"hello"[..]),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
                Method::GET,
                b"hello",
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", Method::HEAD, b""),
        ] {
            let (address, told) = replica(usize::MAX, answer).await;
            let lines = Lines::new();
            for _ in 0..3 {
                assert_eq!(ask(&lines, &address, method.clone()).await.unwrap(), body);
            }
            assert_eq!(*told.borrow(), (1, 0), "{answer}");
        }
    }

    #[tokio::test]
    async fn one_that_the_replica_has_closed_is_not_used_again() {
        let (address, mut told) = replica(1, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        let lines = Lines::new();
        for n in 1..=3 {
            assert_eq!(ask(&lines, &address, Method::GET).await.unwrap(), b"ok");
            told.wait_for(|(_, closed)| *closed == n).await.unwrap();
            // Its end has to arrive here, too.
            let open = || lines.parked().values_mut().flatten().any(|(_, line)| line.is_open());
            let gone = async {
                while open() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
        }
        assert_eq!(told.borrow().0, 3);
    }

    #[tokio::test]
    async fn who_can_not_be_reached_and_who_breaks_off_are_told_apart() {
        let lines = Lines::new();
        let (address, mut told) = replica(1, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok").await;
        let cut = ask(&lines, &address, Method::GET).await;
        assert!(matches!(cut, Err(Fault::Broken(_))), "{cut:?}");
        told.wait_for(|(_, closed)| *closed == 1).await.unwrap();
        let nobody = ask(&lines, &"127.0.0.1:1".into(), Method::GET).await;
        assert!(matches!(nobody, Err(Fault::Unreachable(_))), "{nobody:?}");
    }
}
