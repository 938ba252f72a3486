//! Speaks REST to any member. It tries them all, waits out an election, and sends
//! each changing call with one Idempotency-Key, so that a second try can't do it
//! twice. It does not know what the calls mean.

use super::context::Context;
use super::exit::{Exit, fail, problem};
use anyhow::Result;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::time::{Duration, Instant};

/// One call, all its tries together.
const PATIENCE: Duration = Duration::from_secs(15);
/// One try; longer than an election, so that a parked call gets its answer.
const ONE_TRY: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(2);
/// Between rounds over all members.
const PAUSE: Duration = Duration::from_millis(150);
/// Items asked for at once, and pages read at most.
const PAGE: usize = 500;
const PAGES: usize = 200;

/// A client of one group.
#[derive(Clone, Debug)]
pub struct Client {
    addrs: Vec<String>,
    token: Option<String>,
    http: reqwest::Client,
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
    /// Worth another try, elsewhere or later.
    Again(String),
}

impl Client {
    pub fn new(context: &Context) -> Result<Self> {
        let http = reqwest::Client::builder().connect_timeout(CONNECT).no_proxy().build()?;
        Ok(Self { addrs: context.addrs.clone(), token: context.token.clone(), http })
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
                    Ok(Try::Answer(status, body)) if status.is_success() => return Ok((status, body)),
                    Ok(Try::Answer(status, body)) => return Err(problem(status.as_u16(), &body)),
                    Ok(Try::Again(why)) => {
                        spoke = true;
                        said.push(format!("{addr}: {why}"));
                    }
                    Err(error) => said.push(format!("{addr}: {}", root(&error))),
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
    ) -> Result<Try, reqwest::Error> {
        let mut request = self.request(method.clone(), addr, path).timeout(left.max(Duration::from_millis(1)));
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if let Some(seen) = seen {
            request = request.header("if-match", format!("\"{seen}\""));
        }
        let response = request.send().await?;
        let status = response.status();
        let text = response.text().await?;
        let body: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        let reason = body.get("reason").and_then(Value::as_str).unwrap_or_default();
        let again = matches!(status.as_u16(), 502..=504) && matches!(reason, "NoLeader" | "Timeout" | "Draining" | "");
        match again {
            true => Ok(Try::Again(if reason.is_empty() { status.to_string() } else { reason.to_owned() })),
            false => Ok(Try::Answer(status, body)),
        }
    }

    fn request(&self, method: Method, addr: &str, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{addr}{path}"));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// A body that is read as it comes, from the first member that answers.
    pub async fn stream(&self, path: &str) -> Result<reqwest::Response> {
        let mut said = Vec::new();
        for addr in &self.addrs {
            match self.request(Method::GET, addr, path).send().await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => {
                    let status = response.status().as_u16();
                    let body = response.json().await.unwrap_or(Value::Null);
                    return Err(problem(status, &body));
                }
                Err(error) => said.push(format!("{addr}: {}", root(&error))),
            }
        }
        Err(fail(Exit::Unreachable, format!("no member answered: {}\n  try: nf get members", said.join("; "))))
    }
}

/// The innermost cause, which is what helps: "connection refused".
fn root(error: &dyn std::error::Error) -> String {
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
