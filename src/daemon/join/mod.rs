//! Joining by token, and renewing what was given then: what is said on those two doors of
//! the peer port, and the side that asks. Each connection carries one question. It does not
//! decide who may join: the log does.

mod renew;
mod serve;

pub use renew::keep;
pub use serve::{Desk, Doors};

use super::form::Group;
use crate::pqc::Policy;
use crate::security::join::{Applicant, Token, client};
use crate::security::link;
use crate::security::tls::{self, Credentials, PeerTls};
use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use nf_core::command::Mode;
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// The longest question or answer.
const MAX_BODY: usize = 64 << 10;
/// Connecting, asking and being answered, all together.
const PATIENCE: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(5);
/// Who asks has so long for the head of the question, and so long for its body.
const SAYING: Duration = Duration::from_secs(3);

/// What a machine says that would join.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JoinRequest {
    id: String,
    secret: String,
    node: String,
    /// PKCS #10, as PEM.
    request: String,
}

/// What a worker says that would stay.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RenewRequest {
    request: String,
}

/// What both are given.
#[derive(Clone, Serialize, Deserialize)]
pub struct Admitted {
    pub cluster: String,
    pub simulation: bool,
    /// The worker's certificate and what is between it and the authority, as PEM.
    pub certificate: String,
    /// The authorities, as PEM.
    pub authority: String,
    pub members: Vec<Member>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    pub peer: String,
}

impl Admitted {
    pub fn mode(&self) -> Mode {
        if self.simulation { Mode::Simulation } else { Mode::Production }
    }

    /// The group, as if its public port had told of it.
    pub fn members(&self) -> String {
        self.members.iter().map(|m| format!("{}={}", m.name, m.peer)).collect::<Vec<_>>().join(",")
    }
}

/// A member's answer that is none of the above.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refused {
    pub status: u16,
    pub reason: String,
    pub detail: String,
}

impl Refused {
    /// Whether another member may answer otherwise: each counts for itself who came too often.
    fn is_its_own(&self) -> bool {
        self.status >= 500 || self.status == 429
    }
}

/// Whether somebody was left before anything was told them, for want of the right authority.
pub fn is_distrust(error: &anyhow::Error) -> bool {
    let tls = |e: &std::io::Error| e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()).is_some();
    error.chain().filter_map(|e| e.downcast_ref::<std::io::Error>()).any(tls)
}

/// One question to one member.
async fn ask(
    to: &str,
    policy: Policy,
    tls: Arc<ClientConfig>,
    name: ServerName<'static>,
    path: &str,
    body: &impl Serialize,
) -> Result<Admitted> {
    let asked = async {
        let stream = tokio::time::timeout(CONNECT, TcpStream::connect(to)).await.context("no connection in time")??;
        let stream = link::shake(policy, tls, name, stream).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let body = Full::new(Bytes::from(serde_json::to_vec(body)?));
        let request = http::Request::post(path).header("host", "member.nf").header("content-type", "application/json");
        let answer = sender.send_request(request.body(body)?).await?;
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), MAX_BODY).collect().await.map_err(|e| anyhow!(e))?.to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&bytes).context("the answer is none of a member's");
        }
        let said: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let text = |key: &str| said.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Err(Refused { status: status.as_u16(), reason: text("reason"), detail: text("detail") }.into())
    };
    tokio::time::timeout(PATIENCE, asked).await.context("no answer in time")?.with_context(|| to.to_owned())
}

/// The first answer that `take` can use and that is not one member's own trouble.
async fn ask_each<T>(
    members: &[(String, ServerName<'static>)],
    policy: Policy,
    tls: impl Fn() -> Arc<ClientConfig>,
    path: &str,
    body: &impl Serialize,
    take: impl Fn(Admitted) -> Result<T>,
) -> Result<T> {
    let mut last = anyhow!("no member to ask");
    for (to, name) in members {
        match ask(to, policy, tls(), name.clone(), path, body).await.and_then(&take) {
            Ok(taken) => return Ok(taken),
            Err(error) if error.downcast_ref::<Refused>().is_some_and(|refused| !refused.is_its_own()) => {
                return Err(error);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Joins as `node` by the token, through one of the peer addresses `to`: the group's answer, and what to keep.
/// Its key is in `dir` before anybody is asked, and the next try takes the same.
///
/// # Errors
/// Why no member let it in. Nothing secret was told to whom the token's authority does not vouch for.
pub async fn join(
    token: &Token,
    node: &str,
    to: &[String],
    dir: &Path,
    policy: Policy,
) -> Result<(Admitted, Credentials)> {
    let applicant = Applicant::kept(dir)?;
    let tls = client(token.authority, policy)?;
    let body = JoinRequest {
        id: token.id.to_string(),
        secret: token.secret_text(),
        node: node.to_owned(),
        request: applicant.request()?,
    };
    // Its certificate is judged by the authority alone: which member this is nobody knows yet.
    let name = ServerName::try_from("member.nf").context("a name")?;
    let members: Vec<_> = to.iter().map(|to| (to.clone(), name.clone())).collect();
    let known = |authorities: &[CertificateDer<'static>]| {
        authorities.iter().any(|cert| tls::key_digest(cert) == Some(token.authority))
    };
    let take = |admitted: Admitted| {
        let credentials = accept(&admitted, node, &applicant, known)?;
        Ok((admitted, credentials))
    };
    ask_each(&members, policy, || tls.clone(), "/join", &body, take).await
}

/// What was given, if it is of use: for this name and key, and under authorities that `known` knows.
fn accept(
    admitted: &Admitted,
    node: &str,
    applicant: &Applicant,
    known: impl Fn(&[CertificateDer<'static>]) -> bool,
) -> Result<Credentials> {
    if !known(&tls::certificates(&admitted.authority, "the authorities")?) {
        bail!("the member told of other authorities than it was trusted by");
    }
    let credentials =
        Credentials { authority: admitted.authority.clone(), cert: admitted.certificate.clone(), key: applicant.key() };
    PeerTls::new(&credentials, &admitted.cluster, node)?.replace(&credentials, UnixTime::now())?;
    Ok(credentials)
}

/// The members that settings name, for a worker that was let in by token.
pub fn told(settings: &crate::config::Settings) -> Option<Group> {
    let members = &settings.members.value;
    let one = |(place, m): (usize, &crate::config::parse::Member)| (place as u64 + 1, m.name.clone(), m.peer.clone());
    let list: Vec<_> = members.iter().enumerate().map(one).collect();
    (!list.is_empty()).then(|| Group::of(list))
}

#[cfg(test)]
mod tests;
