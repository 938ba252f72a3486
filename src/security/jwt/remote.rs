//! Keeps a verifier's keys those of a JWKS at a URL: fetched in the background, bounded in
//! size and time, asked for again when a token names a key that is not known (but not for each
//! such token), and kept for a while when the issuer is away. Redirects are not followed. It
//! does not know who hears of failures.

use super::keys::MAX_JWKS;
use super::{Keys, Verifier};
use crate::pqc::{self, Kind, Links, Mismatch, Policy, Row, Side, Way};
use nf_core::reason::{Reason, Refusal};
use reqwest::Url;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

/// The longest head of an answer.
const MAX_HEAD: usize = 16 << 10;

/// When keys are asked for, and for how long they count.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// One question may take so long.
    pub answer: Duration,
    /// Keys are asked for again after so long,
    pub fresh: Duration,
    /// at the latest so long after a failure, and never sooner than that after the last question.
    pub pause: Duration,
    /// Keys count for so long after the issuer gave them last.
    pub stale: Duration,
}

impl Default for Times {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self { answer: secs(5), fresh: secs(600), pause: secs(30), stale: secs(3600) }
    }
}

/// Where a JWKS is, and by which authorities its server is known.
pub struct Remote {
    url: Url,
    tls: Option<TlsConnector>,
    policy: Policy,
    times: Times,
}

fn wrong(text: impl Into<String>) -> Refusal {
    Refusal::field(Reason::ConfigInvalid, "NF_JWKS", text)
}

impl Remote {
    /// `authorities` in PEM: no other ones count, since whoever serves the keys says who everybody is.
    ///
    /// # Errors
    /// `ConfigInvalid` with what is wrong with the URL, or missing beside it.
    pub fn new(
        url: &str,
        authorities: Option<&str>,
        production: bool,
        times: Times,
        policy: Policy,
    ) -> Result<Self, Refusal> {
        let parsed = Url::parse(url).map_err(|e| wrong(format!("is no URL: {e}")))?;
        let host = parsed.host_str().unwrap_or_default();
        let local = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
        let tls = match (parsed.scheme(), authorities) {
            ("https", Some(pem)) => Some(connector(pem, policy)?),
            ("https", None) => {
                return Err(wrong("is https, so NF_JWKS_CA must name the authorities (PEM) of its server"));
            }
            ("http", _) if production => {
                return Err(wrong("is http, by which anybody on the way could say who everybody is; use https"));
            }
            ("http", _) if local => None,
            ("http", _) => return Err(wrong("is http and not on this machine; use https")),
            (other, _) => return Err(wrong(format!("is {other}: a path, file:// or https:// is wanted"))),
        };
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(wrong("holds a name or password; keys that sign tokens are public"));
        }
        Ok(Self { url: parsed, tls, policy, times })
    }

    /// Follows the keys until it is dropped. `tell` hears what is wrong, each time, and None when all is well.
    pub async fn run(self, verifier: Arc<Verifier>, tell: impl Fn(Option<&str>) + Send) {
        let (mut last, mut good) = (Vec::new(), None);
        loop {
            let asked = Instant::now();
            let outcome = self.keys().await;
            let well = outcome.is_ok();
            match outcome {
                Ok((bytes, keys)) => {
                    // The same keys keep what they have verified.
                    if bytes != last || good.is_none() {
                        verifier.replace(keys);
                        last = bytes;
                    }
                    good = Some(asked);
                    tell(None);
                }
                Err(text) => {
                    if good.is_some_and(|good| good.elapsed() >= self.times.stale) {
                        good = None;
                        verifier.replace(Keys::none());
                    }
                    tell(Some(&text));
                }
            }
            let next = if well { self.times.fresh } else { self.times.pause };
            tokio::select! {
                () = tokio::time::sleep_until(asked + next) => {}
                () = verifier.misses.notified() => tokio::time::sleep_until(asked + self.times.pause).await,
            }
        }
    }

    async fn keys(&self) -> Result<(Vec<u8>, Keys), String> {
        let late = |_| format!("{} did not answer within {:?}", self.url, self.times.answer);
        let bytes = tokio::time::timeout(self.times.answer, self.fetch()).await.map_err(late)?;
        let bytes = bytes.map_err(|e| format!("{}: {e}", self.url))?;
        let keys = Keys::parse(self.url.as_str(), &bytes).map_err(|refusal| refusal.to_string())?;
        Ok((bytes, keys))
    }

    async fn fetch(&self) -> io::Result<Vec<u8>> {
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port_or_known_default().unwrap_or(443);
        let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
        let opened = |group: String| {
            Links::outside().opened(Row { kind: Kind::Issuer, way: Way::Out, with: host.to_owned(), group })
        };
        match &self.tls {
            None => {
                let _open = opened(pqc::NONE.to_owned());
                self.ask(stream).await
            }
            Some(tls) => {
                let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(io::Error::other)?;
                let stream = tls.connect(name, stream).await.map_err(|error| self.judged(host, error))?;
                let _open = opened(pqc::group(stream.get_ref().1));
                self.ask(stream).await
            }
        }
    }

    fn judged(&self, host: &str, error: io::Error) -> io::Error {
        let error = self.policy.judge(Side::World, None, error);
        if let Some(mismatch) = Mismatch::of(&error) {
            Links::outside().refused(Kind::Issuer, Way::Out, host, &mismatch.to_string());
        }
        error
    }

    /// HTTP/1.0, so that the end of the answer is the end of the connection.
    async fn ask(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<Vec<u8>> {
        let host = authority(&self.url);
        let query = self.url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let path = format!("{}{query}", self.url.path());
        let head =
            format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: application/json\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        stream.flush().await?;
        let most = (MAX_HEAD + MAX_JWKS + 1) as u64;
        let mut answer = Vec::new();
        match stream.take(most).read_to_end(&mut answer).await {
            Ok(_) => {}
            // Servers that hang up without a word of TLS are many; a length says whether all is there.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(e) => return Err(e),
        }
        body(&answer).map_err(|text| io::Error::new(io::ErrorKind::InvalidData, text))
    }
}

/// Host and port, as a request names them.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn connector(pem: &str, policy: Policy) -> Result<TlsConnector, Refusal> {
    let bad = |e: &dyn std::fmt::Display| Refusal::field(Reason::ConfigInvalid, "NF_JWKS_CA", e.to_string());
    let mut roots = RootCertStore::empty();
    let certs = crate::security::tls::certificates(pem, "NF_JWKS_CA").map_err(|e| bad(&e))?;
    if certs.is_empty() {
        return Err(bad(&"holds no certificate"));
    }
    for cert in certs {
        roots.add(cert).map_err(|e| bad(&e))?;
    }
    let config = ClientConfig::builder_with_provider(policy.provider(Side::World))
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(&e))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The body of a whole answer that says 200.
fn body(answer: &[u8]) -> Result<Vec<u8>, String> {
    let end = answer.windows(4).take(MAX_HEAD).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or("the answer has no end of its head")?;
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| "the answer's head is no text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let (version, rest) = status.split_once(' ').unwrap_or_default();
    if !["HTTP/1.0", "HTTP/1.1"].contains(&version) || rest.split(' ').next() != Some("200") {
        return Err(format!("the answer is {}", nf_core::reason::printable(status, 80)));
    }
    let body = &answer[end + 4..];
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { return Err("the answer's head is malformed".into()) };
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("the answer to an HTTP/1.0 question is in chunks".into());
        }
        let length = name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>());
        match length {
            None => {}
            Some(Ok(length)) if length == body.len() => {}
            Some(_) => return Err("the answer was cut off, or is longer than it says".into()),
        }
    }
    if body.len() > MAX_JWKS {
        return Err(format!("the answer is longer than {MAX_JWKS} bytes"));
    }
    Ok(body.to_vec())
}

#[cfg(test)]
mod tests;
