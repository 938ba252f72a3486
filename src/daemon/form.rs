//! Forms the group or joins it, and tells it who this member is. Every step may
//! be repeated: a member that was killed in between simply does them again.

use super::identity::Me;
use super::wiped;
use crate::config::Settings;
use crate::config::parse::Member;
use crate::outgoing;
use crate::raft::{self, Replica};
use crate::secret::Secret;
use crate::storage;
use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use nf_core::apply::{LEVELS, level_of_all};
use nf_core::command::{self, Answer};
use nf_core::id::MemberId;
use nf_core::plan::Intent;
use nf_core::reason::Reason;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// One intent's time.
const SUBMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);
/// How long the first questions to the group to join may take.
const JOIN: Duration = Duration::from_secs(30);
/// One of them.
const ANSWER: Duration = Duration::from_secs(5);
/// The longest answer that is read: a list of members.
const MAX_ANSWER: usize = 1 << 20;

/// The group's first entry, written by the first founder on a fresh directory.
pub async fn initialize(replica: &Replica, me: &Me, founders: &[Member]) -> Result<()> {
    let first = founders.first().is_some_and(|member| member.name == me.name.as_str());
    if !first || !replica.status().members.is_empty() {
        return Ok(());
    }
    let member = |(place, m): (usize, &Member)| {
        // An address of port 0 was bound to a real one, which only this member knows.
        let peer = if m.name == me.name.as_str() { me.peer.clone() } else { m.peer.clone() };
        (MemberId(place as u64 + 1), m.name.clone(), peer)
    };
    let members: Vec<_> = founders.iter().enumerate().map(member).collect();
    tracing::info!(members = members.len(), "forming a new group");
    Ok(replica.initialize(members).await?)
}

/// The group's name and mode, then this member's own row. Returns once both are committed.
pub async fn introduce(replica: &Replica, me: &Me, settings: &Settings) -> Result<()> {
    let mode = command::Mode::from(settings.mode());
    loop {
        let state = replica.applied().state;
        let known = state.meta().cluster.clone();
        if !known.is_empty() && *known != *me.cluster {
            bail!("this is a member of group {known}, not {}: see NF_CLUSTER", me.cluster);
        }
        // Each would let in what the other must not: a simulated process in a production group above all.
        if !known.is_empty() && state.meta().mode != mode {
            bail!(
                "the group's mode was fixed when it was formed, and is not that of this process: see NEURAL_FABRIC_MODE"
            );
        }
        if !known.is_empty() && state.meta().default_gpu_milli != settings.max_tenant_gpus.value {
            tracing::warn!(
                here = settings.max_tenant_gpus.value / 1000,
                group = state.meta().default_gpu_milli / 1000,
                "MAX_TENANT_GPUS counts when a group is formed; this one keeps its own. nf quota set gives one tenant another"
            );
        }
        let intent = match known.is_empty() {
            true => Intent::Init {
                cluster: me.cluster.as_str().into(),
                mode,
                default_gpu_milli: settings.max_tenant_gpus.value,
            },
            false => Intent::Member(command::Member {
                id: me.id,
                name: me.name.clone(),
                api: me.api.as_str().into(),
                peer: me.peer.as_str().into(),
                min_level: *LEVELS.start(),
                max_level: *LEVELS.end(),
                version: env!("CARGO_PKG_VERSION").into(),
            }),
        };
        let done = known.is_empty();
        match replica.submit(intent, Instant::now() + SUBMIT).await {
            Err(raft::Error::NoLeader { .. } | raft::Error::Timeout) => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(error.into()),
            Ok(reply) => match reply.result {
                Ok(Answer::Done | Answer::Count(_)) if !done => {
                    if mode == command::Mode::Simulation {
                        finalize(replica).await;
                    }
                    return key_trail(replica).await;
                }
                // Ours, or another founder's that was a moment earlier.
                Ok(_) => caught_up(replica, reply.index).await,
                // Another founder said it at the same moment.
                Err(refusal) if done && refusal.reason == Reason::Conflict => tokio::time::sleep(PAUSE).await,
                Err(refusal) => bail!("the group refused this member: {refusal}"),
            },
        }
    }
}

/// A development group writes what all of its members can read at once; in production a person says when
/// (`nf cluster upgrade`), since there is no way back.
async fn finalize(replica: &Replica) {
    let members: Vec<_> = replica.status().members.iter().map(|member| member.id).collect();
    let state = replica.applied().state;
    // Whoever has not said yet what it runs comes here itself.
    let Ok((to, _)) = level_of_all(&state, &members) else { return };
    if to > state.meta().level {
        let raised = replica.submit(Intent::RaiseLevel { to, members }, Instant::now() + SUBMIT).await;
        if let Err(error) = raised {
            tracing::warn!(%error, to, "the feature level was not raised; the next member that starts asks again");
        }
    }
}

/// The key by which ids of tokens are in the trail. The first that the group hears of stays; without one it goes on,
/// and the next member that starts asks again.
async fn key_trail(replica: &Replica) -> Result<()> {
    if replica.applied().state.trail_key().is_some() {
        return Ok(());
    }
    let mut key = [0; 32];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| anyhow!("the system has no randomness"))?;
    if let Err(error) = replica.submit(Intent::KeyTrail(key), Instant::now() + SUBMIT).await {
        tracing::warn!(%error, "the audit trail has no key of its own yet; ids of tokens are in it as digests");
    }
    Ok(())
}

async fn caught_up(replica: &Replica, index: u64) {
    let mut applied = replica.watch();
    let there = applied.wait_for(|applied| applied.index >= index);
    // Not caught up in time: the next round asks again.
    let _ = tokio::time::timeout(SUBMIT, there).await;
}

/// A question to the first member that answers it.
pub async fn ask(settings: &Settings, path: &str, body: Option<&Value>) -> Result<Value> {
    let (addrs, token) = (&settings.join.value, settings.token.value.as_ref());
    let http = outgoing::Client::new(&settings.group_link()).map_err(|text| anyhow!("NF_CA: {text}"))?;
    let end = Instant::now() + JOIN;
    let mut said = String::new();
    while Instant::now() < end {
        for addr in addrs {
            let base = if addr.contains("://") { addr.clone() } else { format!("http://{addr}") };
            let url = format!("{}{path}", base.trim_end_matches('/'));
            let request = question(&url, token.map(Secret::reveal), body)?;
            match tokio::time::timeout(ANSWER, answered(&http, request)).await {
                Ok(Ok((status, body))) if status.is_success() => {
                    return serde_json::from_slice(&body).with_context(|| url);
                }
                Ok(Ok((status, body))) if status.is_client_error() => {
                    if matches!(status.as_u16(), 401 | 403) {
                        bail!(
                            "{url}: {status}: the group asks who calls; set NF_TOKEN (nf token create; a worker's role is \
                         node, a new member's admin)"
                        );
                    }
                    bail!("{url}: {status}: {}", String::from_utf8_lossy(&body));
                }
                Ok(Ok((status, _))) => said = format!("{url}: {status}"),
                Ok(Err(text)) => said = format!("{url}: {text}"),
                Err(_) => said = format!("{url}: no answer within {ANSWER:?}"),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    bail!("no member of the group to join answered: {said}; see NF_JOIN")
}

fn question(url: &str, token: Option<&str>, body: Option<&Value>) -> Result<Request<Full<Bytes>>> {
    let mut request = Request::builder().uri(url);
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = match body {
        Some(body) => {
            let request = request.method(Method::POST).header(CONTENT_TYPE, "application/json");
            request.body(Full::new(Bytes::from(serde_json::to_vec(body)?)))
        }
        None => request.body(Full::default()),
    };
    request.with_context(|| format!("{url}: see NF_JOIN"))
}

async fn answered(
    http: &outgoing::Client<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), String> {
    let innermost = |error: &(dyn std::error::Error + 'static)| {
        std::iter::successors(Some(error), |error| error.source()).last().map_or_else(String::new, ToString::to_string)
    };
    let answer = http.send(request).await.map_err(|error| innermost(&*error))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|error| innermost(&*error))?;
    Ok((status, body.to_bytes()))
}

/// The group, as a process outside of it is told.
pub struct Group {
    /// (id, name, peer) of each member.
    pub members: Vec<(u64, String, String)>,
    /// An id that nobody had.
    next_id: u64,
}

impl Group {
    /// As somebody else told of it.
    pub fn of(members: Vec<(u64, String, String)>) -> Self {
        let next_id = members.iter().map(|(id, ..)| *id).max().unwrap_or(0) + 1;
        Self { members, next_id }
    }
}

pub async fn group(settings: &Settings) -> Result<Group> {
    let answer = ask(settings, "/cluster/members?consistency=stale", None).await?;
    let list = answer.get("items").unwrap_or(&answer).as_array().cloned().unwrap_or_default();
    let one = |m: &Value| {
        let text = |key: &str| m.get(key).and_then(Value::as_str).map(str::to_owned);
        Some((m.get("id")?.as_u64()?, text("name")?, text("peer")?))
    };
    let members: Vec<_> = list.iter().filter_map(one).collect();
    let group = Group::of(members);
    let next_id = answer.get("next_id").and_then(Value::as_u64).unwrap_or(group.next_id);
    Ok(Group { next_id, ..group })
}

/// The number of a member that joins: the one on its disk, or one that nobody had. Only
/// a member without data asks the group, which may be away when the others start.
pub async fn joining_id(settings: &Settings) -> Result<MemberId> {
    let there = storage::identity::read(&settings.data().join("raft"))?;
    if let Some(there) = there {
        return Ok(MemberId(settings.member_id.value.unwrap_or(there.member)));
    }
    let group = group(settings).await?;
    let (name, wanted) = (settings.name(), settings.member_id.value);
    match group.members.iter().find(|(id, known, _)| *known == name || Some(*id) == wanted) {
        Some((id, ..)) => Err(wiped::refusal(settings, MemberId(*id))),
        None => Ok(MemberId(wanted.unwrap_or(group.next_id))),
    }
}

/// Asks the group to take this member in as a learner.
pub async fn join(settings: &Settings, me: &Me) -> Result<()> {
    let body = json!({ "id": me.id.0, "name": me.name.as_str(), "peer": me.peer });
    ask(settings, "/cluster/members", Some(&body)).await?;
    tracing::info!(id = me.id.0, "the group took this member in as a learner; nf cluster promote makes it vote");
    Ok(())
}
