//! Vault or OpenBao as the one that says whose signatures count: asks its transit engine
//! whether a signature is by the configured key, and for that key's public half. Vault's
//! refusals and its absence are told apart: what it refuses stays refused, what it cannot
//! answer is asked again, and never let pass. It does not know what is signed.

use super::encoding::to_base64;
use super::json;
use super::signing::{Evidence, KeyRing};
use crate::outgoing::{Client, Fault, Options};
use crate::secret::Secret;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use nf_core::reason::{Reason, Refusal, printable};
use serde_json::{Value, json};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The longest answer that is read: a key with all its versions fits many times.
const MAX_ANSWER: usize = 1 << 20;
/// The longest token file that is read.
const MAX_TOKEN: u64 = 16 << 10;

/// Who we are to Vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    Given(Secret),
    /// Read anew for each question, since Vault's agent keeps it fresh.
    File(PathBuf),
}

/// Where the key is.
#[derive(Clone, Debug)]
pub struct Place {
    /// `VAULT_ADDR`, http(s).
    pub url: String,
    /// Where the transit engine is mounted.
    pub mount: String,
    pub key: String,
    pub token: Token,
    /// One question may take so long.
    pub patience: Duration,
}

/// See the module's text. Cloning shares its connections.
#[derive(Clone, Debug)]
pub struct Vault {
    client: Client<Full<Bytes>>,
    place: Place,
}

fn wrong(field: &str, text: impl fmt::Display) -> Refusal {
    Refusal::field(Reason::ConfigInvalid, field, format!("{field}: {text}"))
}

fn away(text: impl fmt::Display) -> Refusal {
    let text = format!("Vault cannot say whether the signature counts ({text}); nothing is deployed, try again");
    Refusal::field(Reason::VerifierUnavailable, "model_version", text)
}

/// A part of a path of Vault's API.
fn name(field: &str, text: &str, slash: bool) -> Result<(), Refusal> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c) || (slash && c == '/');
    match !text.is_empty() && text.len() <= 128 && text.chars().all(fine) && !text.contains("..") {
        true => Ok(()),
        false => Err(wrong(field, "letters, digits and - _ . are wanted")),
    }
}

impl Vault {
    /// # Errors
    /// `ConfigInvalid` with the setting that cannot be used. Nothing is asked yet.
    pub fn new(place: Place, options: &Options) -> Result<Self, Refusal> {
        name("NF_VAULT_KEY", &place.key, false)?;
        name("NF_VAULT_MOUNT", &place.mount, true)?;
        let uri: http::Uri = place.url.parse().map_err(|e| wrong("VAULT_ADDR", e))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.authority().is_none() {
            return Err(wrong("VAULT_ADDR", "http:// or https:// and a host are wanted"));
        }
        if place.url.contains('@') || uri.query().is_some() {
            return Err(wrong("VAULT_ADDR", "holds a name, a password or a query; the token goes into VAULT_TOKEN"));
        }
        let client = Client::new(options).map_err(|e| wrong("VAULT_CACERT", e))?;
        let url = place.url.trim_end_matches('/').to_owned();
        let vault = Self { client, place: Place { url, ..place } };
        vault.token().map_err(|text| wrong("VAULT_TOKEN", text))?;
        Ok(vault)
    }

    /// What a verdict names as the signer.
    pub fn key_id(&self, version: u64) -> String {
        format!("vault:{}/{}:v{version}", self.place.mount, self.place.key)
    }

    fn token(&self) -> Result<HeaderValue, String> {
        let text = match &self.place.token {
            Token::Given(text) => text.reveal().to_owned(),
            Token::File(path) => {
                let told = |e: std::io::Error| format!("{}: {e}", path.display());
                let file = std::fs::File::open(path).map_err(told)?;
                std::io::read_to_string(std::io::Read::take(file, MAX_TOKEN)).map_err(told)?
            }
        };
        let mut value = HeaderValue::from_str(text.trim()).map_err(|_| "holds what no token has".to_owned())?;
        value.set_sensitive(true);
        if value.is_empty() { Err("is empty".into()) } else { Ok(value) }
    }

    /// Asks, and gives the status and the body of the answer.
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<(StatusCode, Vec<u8>), String> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.place.url))
            .header("x-vault-token", self.token()?)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(body.map(|body| body.to_string()).unwrap_or_default()))
            .map_err(|e| e.to_string())?;
        let asked = async {
            let told = |e: &(dyn std::error::Error + 'static)| match Fault::below(e) {
                Some(fault) => fault.to_string(),
                None => "the connection broke".to_owned(),
            };
            let answer = self.client.send(request).await.map_err(|e| told(e.as_ref()))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            Ok((status, body.map_err(|_| "its answer is cut off or too long".to_owned())?.to_bytes().to_vec()))
        };
        let late = |_| format!("no answer within {:?}", self.place.patience);
        tokio::time::timeout(self.place.patience, asked).await.map_err(late)?
    }

    /// Whether Vault takes the signature for the key's. Gives the version that made it.
    ///
    /// # Errors
    /// `SignatureInvalid` and `KeyVersionRetired` as Vault says, `NoTrustRoot` when it has no such key,
    /// `VerifierUnavailable` when it says nothing, and the refusals of evidence that is none of Vault's.
    pub async fn verify(&self, message: &[u8], evidence: &Evidence) -> Result<u64, Refusal> {
        let Evidence::Vault { version, signature, encoded } = evidence else {
            let text = "is not one that Vault made (vault:vN:…)";
            return Err(Refusal::field(Reason::SignatureUnsupported, "signature", text));
        };
        // ECDSA as JWS is two numbers of the curve's size, without padding; whatever else is, Vault reads as it is.
        let jws = matches!(signature.len(), 64 | 96 | 132) && !encoded.contains('=');
        let body = json!({
            "input": to_base64(message),
            "signature": format!("vault:v{version}:{encoded}"),
            "marshaling_algorithm": if jws { "jws" } else { "asn1" },
        });
        let path = format!("/v1/{}/verify/{}", self.place.mount, self.place.key);
        let (status, answer) = self.ask(Method::POST, &path, Some(body)).await.map_err(away)?;
        self.verdict(status, &answer, *version)
    }

    /// A bad signature comes with 200, so that the status alone says nothing.
    fn verdict(&self, status: StatusCode, answer: &[u8], version: u64) -> Result<u64, Refusal> {
        let parsed = json::parse(answer).ok();
        match (status.as_u16(), parsed.as_ref().and_then(|v| v.pointer("/data/valid")).and_then(Value::as_bool)) {
            (200, Some(true)) => Ok(version),
            (200, Some(false)) => {
                let text = format!("Vault says that key {} did not make it over this manifest", self.place.key);
                Err(Refusal::field(Reason::SignatureInvalid, "signature", text))
            }
            (400, _) => Err(self.told(&errors(parsed.as_ref()), version)),
            (404, _) => Err(self.absent(&errors(parsed.as_ref()))),
            (403, _) => Err(away("it refuses our token: 403")),
            (status, _) => Err(away(format!("it answers {status}"))),
        }
    }

    /// What a 400 means, by Vault's own words.
    fn told(&self, errors: &str, version: u64) -> Refusal {
        if errors.contains("too old") {
            let text =
                format!("made with version {version} of key {}, which Vault has retired; sign again", self.place.key);
            return Refusal::field(Reason::KeyVersionRetired, "signature", text);
        }
        if errors.contains("key not found") {
            return self.absent(errors);
        }
        Refusal::field(Reason::SignatureInvalid, "signature", format!("Vault refuses it: {errors}"))
    }

    fn absent(&self, errors: &str) -> Refusal {
        let text = format!(
            "Vault has no transit key {} at {} ({errors}), so nothing can be trusted; see NF_VAULT_KEY and NF_VAULT_MOUNT",
            self.place.key, self.place.mount
        );
        Refusal::field(Reason::NoTrustRoot, "model_version", text)
    }

    /// The key's public half, all versions, as Vault gives it; to be kept for when it is away.
    ///
    /// # Errors
    /// As [`Vault::verify`].
    pub async fn public(&self) -> Result<Vec<u8>, Refusal> {
        let path = format!("/v1/{}/keys/{}", self.place.mount, self.place.key);
        let (status, answer) = self.ask(Method::GET, &path, None).await.map_err(away)?;
        match status.as_u16() {
            200 => {}
            404 => return Err(self.absent(&errors(json::parse(&answer).ok().as_ref()))),
            403 => return Err(away("it refuses our token: 403")),
            status => return Err(away(format!("it answers {status}"))),
        }
        ring(&answer).map_err(|refusal| away(refusal.detail))?;
        Ok(answer)
    }

    /// Whether Vault would verify: alive, unsealed, our token counts, the key is there. Says which versions count.
    ///
    /// # Errors
    /// A sentence on what is wrong.
    pub async fn health(&self) -> Result<String, String> {
        let (status, _) = self.ask(Method::GET, "/v1/sys/health", None).await?;
        match status.as_u16() {
            // Vault's words for a standby that works.
            200 | 429 | 472 | 473 => {}
            501 => return Err("is not initialised".into()),
            503 => return Err("is sealed".into()),
            status => return Err(format!("answers {status}")),
        }
        let answer = self.public().await.map_err(|refusal| refusal.detail)?;
        let ring = ring(&answer).map_err(|refusal| refusal.detail)?;
        let oldest = ring.oldest_version().unwrap_or(1);
        Ok(format!("key {}, {} versions, from {oldest} on they count", self.place.key, ring.keys().len()))
    }
}

/// The keys of Vault's answer, for a verdict without it.
///
/// # Errors
/// `ConfigInvalid` with what is wrong with the answer.
pub fn ring(answer: &[u8]) -> Result<KeyRing, Refusal> {
    let mut ring = KeyRing::default();
    ring.add_file("Vault's key", answer)?;
    if ring.is_empty() { Err(wrong("Vault's key", "has no version")) } else { Ok(ring) }
}

/// Vault's `errors`, fit to be repeated.
fn errors(answer: Option<&Value>) -> String {
    let list = answer.and_then(|answer| answer.get("errors")).and_then(Value::as_array);
    let texts: Vec<&str> = list.into_iter().flatten().filter_map(Value::as_str).collect();
    if texts.is_empty() { "without a word".into() } else { printable(&texts.join("; "), 200) }
}

#[cfg(test)]
mod tests;
