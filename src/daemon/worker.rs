//! A worker: an agent without a vote, served by any member.

use super::links::TlsDial;
use super::{Extras, Stop, form, identity::Me, nodes, write_ready};
use crate::agent::executor::Executor;
use crate::agent::{self, AgentConfig, RemoteLink, incarnation};
use crate::config::Settings;
use anyhow::{Result, anyhow};
use nf_core::id::MemberId;
use nf_core::node::NodeKind;
use std::sync::Arc;
use tokio::sync::watch;

pub async fn run(settings: &Settings, extras: &Extras) -> Result<()> {
    let mut stop = Stop::new(extras.stop_with_parent)?;
    let members = form::group(&settings.join.value).await?.members;
    // A worker has no number; it serves nothing, so its addresses are names only.
    let me = Me::new(settings, MemberId(0), settings.public(), settings.peer())?;
    let names = members.iter().map(|(_, name, peer)| (peer.clone(), name.clone())).collect();
    let peers: Vec<String> = members.iter().map(|(.., peer)| peer.clone()).collect();
    let dial = TlsDial { tls: me.tls.clone(), names };
    let link = RemoteLink::new(&me.cluster, &peers, &dial).map_err(|e| anyhow!("{e}; see NF_JOIN"))?;
    let dir = me.data.join("node");
    let incarnation = tokio::task::spawn_blocking(move || incarnation::next(&dir)).await??;
    let store = nodes::store(settings, &me.data)?;
    let executor = Executor::open(nodes::executor_config(settings, &me.data, &me.name, store))?;
    let spec = nodes::own_spec(settings, &me)?;
    let node = nodes::own(&me, NodeKind::Worker, incarnation, spec, Arc::new(executor.clone()));
    let config = AgentConfig { beat_every: settings.beat.value, ..AgentConfig::new(vec![node], Arc::new(link)) };
    let (end, ended) = watch::channel(false);
    let mut agent = tokio::spawn(agent::run(config, ended));
    write_ready(extras.ready_file.as_ref(), &members.first().map(|m| m.2.clone()).unwrap_or_default())?;
    tracing::info!(node = %me.name, members = peers.join(","), "working");
    let outcome = tokio::select! {
        outcome = &mut agent => match outcome? {
            agent::Outcome::Superseded => Err(anyhow!("another process runs node {} now; this one ends", me.name)),
            agent::Outcome::Stopped => Ok(()),
        },
        why = stop.asked() => { tracing::info!(why, "stopping"); Ok(()) }
    };
    end.send_replace(true);
    executor.shutdown_keeping_replicas();
    outcome
}
