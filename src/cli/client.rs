//! Speaks REST to any member. It tries them all and waits out an election. A call that
//! may have been done is asked again only where that can't do it twice: a read, or a
//! schedule call, which its key or its name tells apart. It does not know what else the
//! calls mean.

use super::context::Context;
use super::exit::{Exit, fail, problem};
use crate::outgoing::{self, Options};
use crate::pqc::{Kind, Policy};
use crate::security::Secret;
use anyhow::Result;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::Value;
use std::time::{Duration, Instant};

/// One call, all its tries together.
const PATIENCE: Duration = Duration::from_secs(15);
/// One try; longer than an election, so that a parked call gets its answer.
const ONE_TRY: Duration = Duration::from_secs(10);
/// Between rounds over all members.
const PAUSE: Duration = Duration::from_millis(150);
/// Items asked for at once, and pages read at most.
const PAGE: usize = 500;
const PAGES: usize = 200;

/// A client of one group.
#[derive(Clone, Debug)]
pub struct Client {
    addrs: Vec<String>,
    token: Option<Secret>,
    options: Options,
    http: outgoing::Client<Full<Bytes>>,
}

/// A whole list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// The answer without its items: index, simulation, and a `next_token` when there is more than we read.
    pub envelope: Value,
    pub items: Vec<Value>,
}

/// What one try brought.
enum Try {
    Answer(StatusCode, Value),
    /// A member spoke, and did nothing.
    Again(String),
    /// Nobody is there: nothing was sent.
    Away(String),
    /// It was sent, and nobody says what became of it.
    Unknown(String),
}

impl Client {
    pub fn new(context: &Context) -> Result<Self> {
        // Which key exchange a caller may have the member says. Plain http is the operator's to choose, but with a
        // token it does not leave this machine.
        let (policy, authorities) = (Policy::default(), context.ca.clone());
        let options = Options { kind: Kind::Public, policy, plain: context.token.is_none(), allow: None, authorities };
        let http = outgoing::Client::new(&options).map_err(|text| fail(Exit::Usage, format!("NF_CA: {text}")))?;
        Ok(Self { addrs: context.addrs.clone(), token: context.token.clone(), options, http })
    }

    /// A gRPC connection to one member.
    pub fn channel(&self, addr: &str) -> Result<tonic::transport::Channel> {
        outgoing::channel(&self.options, addr).map_err(|text| fail(Exit::Usage, text))
    }

    /// What a call shows besides its request.
    pub fn bearer(&self) -> Option<String> {
        self.token.as_ref().map(|token| format!("Bearer {}", token.reveal()))
    }

    /// One try at one member, whatever it says.
    pub async fn at(
        &self,
        method: Method,
        addr: &str,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<(StatusCode, Value), String> {
        match self.once(&method, addr, path, body, (None, None), limit).await {
            Try::Answer(status, body) => Ok((status, body)),
            Try::Again(why) | Try::Away(why) | Try::Unknown(why) => Err(why),
        }
    }

    pub fn addrs(&self) -> &[String] {
        &self.addrs
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, None, None).await.map(|(_, body)| body)
    }

    /// A changing call under a fresh key.
    pub async fn change(&self, method: Method, path: &str, body: Value) -> Result<(StatusCode, Value)> {
        let key = uuid::Uuid::now_v7().simple().to_string();
        self.call(method, path, Some(body), Some(&key)).await
    }

    /// A changing call that holds only while the object's ETag is `seen`.
    pub async fn change_seen(
        &self,
        method: Method,
        path: &str,
        body: Value,
        seen: Option<&str>,
    ) -> Result<(StatusCode, Value)> {
        let key = uuid::Uuid::now_v7().simple().to_string();
        self.send(method, path, Some(body), Some(&key), seen).await
    }

    /// Every item of a list.
    pub async fn list(&self, path: &str) -> Result<Vec<Value>> {
        Ok(self.listing(path).await?.items)
    }

    /// A list, page by page, at most [`PAGES`] × [`PAGE`] items, with what the last page said beside them.
    pub async fn listing(&self, path: &str) -> Result<Listing> {
        let mut out = Listing::default();
        let mut token: Option<String> = None;
        for _ in 0..PAGES {
            let join = if path.contains('?') { '&' } else { '?' };
            let next = token.as_deref().map(|t| format!("&next_token={}", escape(t))).unwrap_or_default();
            let mut page = self.get(&format!("{path}{join}per_page={PAGE}{next}")).await?;
            if let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) {
                out.items.extend(items);
            }
            token = page.get("next_token").and_then(Value::as_str).filter(|t| !t.is_empty()).map(str::to_owned);
            out.envelope = page;
            if token.is_none() {
                break;
            }
        }
        Ok(out)
    }

    /// One call, tried on every member until one answers or the patience ends.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        key: Option<&str>,
    ) -> Result<(StatusCode, Value)> {
        self.send(method, path, body, key, None).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        key: Option<&str>,
        seen: Option<&str>,
    ) -> Result<(StatusCode, Value)> {
        let end = Instant::now() + PATIENCE;
        let mut rounds = 0;
        loop {
            let mut said = Vec::new();
            let mut spoke = false;
            for addr in &self.addrs {
                let left = end.saturating_duration_since(Instant::now()).min(ONE_TRY);
                match self.once(&method, addr, path, body.as_ref(), (key, seen), left).await {
                    Try::Answer(status, body) if status.is_success() => return Ok((status, body)),
                    Try::Answer(status, body) => return Err(problem(status.as_u16(), &body)),
                    Try::Unknown(why) if !may_repeat(&method, path) => return Err(unknown(addr, &why)),
                    Try::Again(why) => {
                        spoke = true;
                        said.push(format!("{addr}: {why}"));
                    }
                    Try::Away(why) | Try::Unknown(why) => said.push(format!("{addr}: {why}")),
                }
            }
            rounds += 1;
            // Members that refuse connections three rounds long are not there.
            if Instant::now() >= end || (!spoke && rounds >= 3) {
                let text = format!(
                    "no member answered: {}\n  try: nf dev starts a group here; --addr or NF_ADDR name another",
                    said.join("; ")
                );
                return Err(fail(Exit::Unreachable, text));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn once(
        &self,
        method: &Method,
        addr: &str,
        path: &str,
        body: Option<&Value>,
        (key, seen): (Option<&str>, Option<&str>),
        left: Duration,
    ) -> Try {
        let seen = seen.map(|seen| format!("\"{seen}\""));
        let extra = [("idempotency-key", key), ("if-match", seen.as_deref())];
        let asked = async {
            let response = self.ask(method.clone(), addr, path, body, &extra).await?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|e| Try::Unknown(root(&e)))?.to_bytes();
            Ok::<_, Try>((status, body))
        };
        let answered = tokio::time::timeout(left.max(Duration::from_millis(1)), asked).await;
        match answered.unwrap_or_else(|_| Err(Try::Unknown("operation timed out".to_owned()))) {
            Ok((status, body)) => told(status, serde_json::from_slice(&body).unwrap_or(Value::Null)),
            Err(end) => end,
        }
    }

    /// A page of the audit trail from an entry on, and where the next one begins.
    pub async fn audit_page(&self, from: u64) -> Result<(String, Option<u64>)> {
        let response = self.stream(&format!("/audit?from={from}&per_page=5000")).await?;
        let next = response.headers().get("x-nf-audit-next").and_then(|next| next.to_str().ok()?.parse().ok());
        let page = response.into_body().collect().await?.to_bytes();
        Ok((String::from_utf8(page.into())?, next))
    }

    async fn ask(
        &self,
        method: Method,
        addr: &str,
        path: &str,
        body: Option<&Value>,
        extra: &[(&'static str, Option<&str>)],
    ) -> Result<Response<Incoming>, Try> {
        let mut request = Request::builder().method(method).uri(format!("{addr}{path}"));
        if let Some(bearer) = self.bearer() {
            request = request.header(AUTHORIZATION, bearer);
        }
        for (name, value) in extra.iter().filter_map(|(name, value)| Some((*name, (*value)?))) {
            request = request.header(HeaderName::from_static(name), value);
        }
        let body = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                serde_json::to_vec(body).map_err(|e| Try::Away(e.to_string()))?
            }
            None => Vec::new(),
        };
        let request = request.body(Full::new(Bytes::from(body))).map_err(|e| Try::Away(e.to_string()))?;
        self.http.send(request).await.map_err(|e| {
            let sent = !outgoing::never_came(&*e);
            if sent { Try::Unknown(root(&*e)) } else { Try::Away(root(&*e)) }
        })
    }

    /// A body that is read as it comes, from the first member that answers.
    pub async fn stream(&self, path: &str) -> Result<Response<Incoming>> {
        let mut said = Vec::new();
        for addr in &self.addrs {
            match self.ask(Method::GET, addr, path, None, &[]).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => {
                    let status = response.status().as_u16();
                    let body = response.into_body().collect().await.map(http_body_util::Collected::to_bytes);
                    let body = body.ok().and_then(|body| serde_json::from_slice(&body).ok());
                    return Err(problem(status, &body.unwrap_or(Value::Null)));
                }
                Err(Try::Away(text) | Try::Unknown(text)) => said.push(format!("{addr}: {text}")),
                Err(_) => {}
            }
        }
        Err(fail(Exit::Unreachable, format!("no member answered: {}\n  try: nf get members", said.join("; "))))
    }
}

/// What an answer is: an end, or worth another try.
fn told(status: StatusCode, body: Value) -> Try {
    let reason = body.get("reason").and_then(Value::as_str).unwrap_or_default();
    match (status.as_u16(), reason) {
        (502..=504, "NoLeader" | "Draining") => Try::Again(reason.to_owned()),
        (502..=504, "Timeout") => {
            let detail = body.get("detail").and_then(Value::as_str);
            Try::Unknown(detail.map_or_else(|| reason.to_owned(), |detail| format!("{reason}: {detail}")))
        }
        // A proxy spoke.
        (502..=504, "") => Try::Unknown(status.to_string()),
        _ => Try::Answer(status, body),
    }
}

/// Whether doing it twice is doing it once: a job has a name, or the call's key gives it one, and stays stopped.
fn may_repeat(method: &Method, path: &str) -> bool {
    match *method {
        Method::GET => true,
        Method::POST => matches!(path, "/schedule" | "/node/launch"),
        Method::DELETE => path.starts_with("/schedule/"),
        _ => false,
    }
}

fn unknown(addr: &str, why: &str) -> anyhow::Error {
    let text = format!("{addr}: {why}\n  it may have been done: look with nf get before you ask again");
    fail(Exit::Unreachable, text)
}

/// The innermost cause, which is what helps: "connection refused".
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

/// A value that can stand in a path or query.
pub fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A member that answers each request with `answer` and ends the connection; and how many it had.
    async fn member(answer: String) -> (String, Arc<AtomicUsize>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = format!("http://{}", listener.local_addr().unwrap());
        let had = Arc::new(AtomicUsize::new(0));
        let counted = had.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                counted.fetch_add(1, Ordering::SeqCst);
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (addr, had)
    }

    fn says(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    /// How a call ends where the first member answers with `first`, and how often the second one was asked.
    async fn ends(method: Method, path: &str, first: String) -> (Result<StatusCode, Option<Exit>>, usize) {
        let (broken, _) = member(first).await;
        let (whole, had) = member(says("200 OK", "{}")).await;
        let context = Context { addrs: vec![broken, whole], ..Context::default() };
        let ended = Client::new(&context).unwrap().change(method, path, Value::Null).await;
        (ended.map(|(status, _)| status).map_err(|e| exit::of(&e)), had.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn what_may_have_been_done_is_not_done_again() {
        let dies = String::new;
        let waited = || says("504 Gateway Timeout", r#"{"reason":"Timeout"}"#);
        for first in [dies, waited] {
            let unknown = (Err(Some(Exit::Unreachable)), 0);
            assert_eq!(ends(Method::DELETE, "/tenants/t1", first()).await, unknown);
            assert_eq!(ends(Method::POST, "/node/register", first()).await, unknown);
            // A job has a name.
            assert_eq!(ends(Method::POST, "/schedule", first()).await, (Ok(StatusCode::OK), 1));
            assert_eq!(ends(Method::DELETE, "/schedule/r1", first()).await, (Ok(StatusCode::OK), 1));
        }
        let leaderless = says("503 Service Unavailable", r#"{"reason":"NoLeader"}"#);
        assert_eq!(ends(Method::DELETE, "/tenants/t1", leaderless).await, (Ok(StatusCode::OK), 1), "it did nothing");
    }

    #[tokio::test]
    async fn where_nobody_is_nothing_was_done() {
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (whole, had) = member(says("200 OK", "{}")).await;
        let context = Context { addrs: vec![format!("http://{gone}"), whole], ..Context::default() };
        let done = Client::new(&context).unwrap().change(Method::DELETE, "/tenants/t1", Value::Null).await;
        assert_eq!((done.unwrap().0, had.load(Ordering::SeqCst)), (StatusCode::OK, 1));
    }
}
