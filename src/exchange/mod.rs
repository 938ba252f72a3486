//! What members and workers tell each other outside the log: registrations, beats
//! and their leases, slices of desired state, reports, log tails.
//!
//! A [`Hub`] lives on each member; agents in the same process use it directly, all
//! others through `service` on the peer port. Nothing here is remembered beyond the
//! process. It does not know what an agent does with a slice, nor what the leader
//! concludes from a silence.

mod beats;
pub mod client;
pub mod dial;
mod feed;
pub mod group;
pub mod life;
pub mod logs;
pub mod message;
mod service;
pub mod sights;
#[cfg(test)]
pub mod testing;
pub mod vitals;
pub mod vouch;
pub mod wire;

pub use beats::Heard;
pub use dial::{Address, Dial, Plain};
pub use group::Group;
pub use logs::{LogSource, LogStream};
pub use message::{
    Beat, BeatAnswer, Error, LogQuery, NodeReports, NodeStart, Registered, Registration, Slice, Slices, TOLD,
};
pub use service::{Caller, Identify};
pub use sights::{Advice, Lookout, Panorama, Seen, Sight};
pub use vitals::Vitals;
pub use vouch::{Vouched, Voucher};
pub use wire::{NODES as MAX_NODES, REPORTS as MAX_REPORTS};

use beats::{Loads, Rounds};
use client::Peers;
use feed::Feed;
use futures::stream::{self, StreamExt};
use nf_core::command::{Answer, DeviceFault};
use nf_core::id::{MemberId, NodeName, NodeNo};
use nf_core::node::NodeKind;
use nf_core::plan::Intent;
use nf_core::reason::{Reason, Refusal};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long another member may take to say what its gateway sees.
const LOOK: Duration = Duration::from_millis(500);
/// How long a registration or a report may wait for the group.
const SUBMIT: Duration = Duration::from_secs(5);
/// Intents of one message that are submitted at a time.
const SUBMITTING: usize = 64;
/// Changes are gathered for this long before a listener is told.
const COALESCE: Duration = Duration::from_millis(20);
/// A stream with nothing to say says so this often, so that its listener knows that it lives.
const IDLE: Duration = Duration::from_secs(2);
/// Messages that wait for a slow listener.
const UNSENT: usize = 8;

/// What a hub is started with.
#[derive(Clone)]
pub struct Options {
    /// Length of the lease that a beat renews.
    pub lease: Duration,
    /// How to reach the other members.
    pub dial: Arc<dyn Dial>,
    /// A monitoring system that knows services' load, too.
    pub monitor: Option<sights::Ask>,
}

impl Default for Options {
    fn default() -> Self {
        Self { lease: Duration::from_secs(45), dial: Arc::new(Plain), monitor: None }
    }
}

/// A member's end of all that is told outside the log.
#[derive(Clone)]
pub struct Hub {
    group: Arc<dyn Group>,
    heard: Heard,
    loads: Loads,
    vitals: vitals::Told,
    rounds: Rounds,
    peers: Peers,
    /// Length of the lease that a beat renews.
    lease: Duration,
    sources: logs::Sources,
    post: sights::Post,
    monitor: Option<sights::Ask>,
}

impl Hub {
    /// Must be called on a runtime; its task ends with the last clone.
    pub fn new(group: impl Group, options: Options) -> Self {
        Self::on(Arc::new(group), options)
    }

    /// Like [`Hub::new`], for a group that others hold, too.
    pub fn on(group: Arc<dyn Group>, options: Options) -> Self {
        let heard = Heard::default();
        let peers = Peers::new(options.dial);
        let (loads, vitals) = (Loads::default(), vitals::Told::default());
        let told = (loads.clone(), vitals.clone());
        let rounds = Rounds::start(group.clone(), peers.clone(), heard.clone(), told, options.lease);
        Self {
            group,
            heard,
            loads,
            vitals,
            rounds,
            peers,
            lease: options.lease,
            sources: logs::Sources::default(),
            post: sights::Post::default(),
            monitor: options.monitor,
        }
    }

    pub fn group(&self) -> &Arc<dyn Group> {
        &self.group
    }

    /// What the leader's loop reads: when each node was last heard.
    pub fn beats(&self) -> Heard {
        self.heard.clone()
    }

    /// The node service, for the peer port. `identify` says who makes a call.
    pub fn serve(&self, identify: Identify) -> tonic::service::Routes {
        service::routes(self.clone(), identify)
    }

    /// Makes nodes known to the group; one answer each, in order.
    ///
    /// # Errors
    /// When the group did not answer for one of them: all may be tried again.
    pub async fn register(&self, nodes: Vec<Registration>) -> Result<Vec<Registered>, Error> {
        let calls = stream::iter(nodes.into_iter().map(|node| self.register_one(node)));
        calls.buffered(SUBMITTING).collect::<Vec<_>>().await.into_iter().collect()
    }

    async fn register_one(&self, node: Registration) -> Result<Registered, Error> {
        let Registration { node: name, kind, incarnation, spec } = node;
        let intent = Intent::Register { name, kind, incarnation, spec };
        let reply = self.submit(intent).await?;
        Ok(match reply.result {
            Ok(answer) => Registered::At { index: reply.index, new: matches!(answer, Answer::Node { new: true, .. }) },
            Err(refusal) if refusal.field.as_deref() == Some("incarnation") => Registered::Superseded,
            Err(refusal) => Registered::Refused(refusal),
        })
    }

    async fn submit(&self, intent: Intent) -> Result<nf_core::plan::Reply, Error> {
        let reply = self.group.submit(intent, Instant::now() + SUBMIT).await;
        reply.map_err(|error| Error::Unavailable(error.to_string()))
    }

    /// Tells the leader that nodes are alive.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when no leader could confirm itself in time.
    pub async fn beat(&self, beats: Vec<Beat>) -> Result<BeatAnswer, Error> {
        self.rounds.beat(beats, false).await
    }

    /// Tells the group what became of replicas. Returns the index that reflects it.
    ///
    /// # Errors
    /// When not all were committed: all may be told again.
    pub async fn report(&self, reports: Vec<NodeReports>) -> Result<u64, Error> {
        let intents = reports.into_iter().flat_map(|NodeReports { node, incarnation, reports, purged: copies }| {
            let purged = Intent::Purged { node: node.clone(), incarnation, copies: copies.clone() };
            let said = (!reports.is_empty()).then_some(Intent::Reports { node, incarnation, reports });
            said.into_iter().chain((!copies.is_empty()).then_some(purged))
        });
        let calls = intents.map(|intent| self.submit(intent));
        let replies: Vec<_> = stream::iter(calls).buffered(SUBMITTING).collect().await;
        let mut index = 0;
        for reply in replies {
            let reply = reply?;
            // Told again later, rather than at once and for ever.
            reply.result.map_err(Error::Refused)?;
            index = index.max(reply.index);
        }
        Ok(index)
    }

    /// Tells the group what was seen of a node's devices.
    ///
    /// # Errors
    /// When it was not committed: it may be told again.
    pub async fn faults(&self, node: NodeStart, faults: Vec<DeviceFault>) -> Result<(), Error> {
        let NodeStart { node, incarnation } = node;
        let reply = self.submit(Intent::Faults { node, incarnation: Some(incarnation), faults }).await?;
        reply.result.map(drop).map_err(Error::Refused)
    }

    /// Lets the gateway of this process be asked for what it sees.
    pub fn look_out(&self, lookout: Lookout) {
        self.post.man(lookout);
    }

    /// What the leader's look at the services came to, for whoever asks what is seen here; None when
    /// this member leads no more.
    pub fn advise(&self, advice: Option<Vec<Advice>>) {
        self.post.advise(advice);
    }

    /// What all members' gateways see now.
    pub async fn sights(&self) -> Panorama {
        let status = self.group.status();
        let asked = status.members.iter().map(|member| async move {
            let seen = match member.id == status.id {
                true => self.post.look(),
                false => self.sights_of(member.id).await,
            };
            (member.id, seen)
        });
        let monitor = async {
            match &self.monitor {
                Some(ask) => ask().await,
                None => sights::Measured::Nobody,
            }
        };
        let (measured, asked) = tokio::join!(monitor, futures::future::join_all(asked));
        let mut panorama = Panorama { told: self.loads.fresh(), measured, ..Panorama::default() };
        for (member, seen) in asked {
            match seen {
                Ok(seen) => panorama.seen.push((member, seen)),
                Err(_) => panorama.silent.push(member),
            }
        }
        panorama
    }

    async fn sights_of(&self, member: MemberId) -> Result<Seen, Error> {
        let client = self.peers.member(&*self.group, member)?;
        let late = |_| Error::Unavailable("no answer in time".into());
        tokio::time::timeout(LOOK, client.sights()).await.map_err(late)?
    }

    /// How nodes' GPUs do, by the leader's word.
    ///
    /// # Errors
    /// When it is not known or does not answer.
    pub async fn vitals(&self) -> Result<Vec<(NodeNo, Vec<Vitals>)>, Error> {
        let status = self.group.status();
        let leader = status.leader.ok_or_else(|| Error::Unavailable("no leader is known".into()))?;
        if leader == status.id {
            return Ok(self.vitals.fresh());
        }
        let client = self.peers.member(&*self.group, leader)?;
        let late = |_| Error::Unavailable("no answer in time".into());
        tokio::time::timeout(LOOK, client.vitals()).await.map_err(late)?
    }

    /// What this member says of `nodes` where no leader answers.
    pub fn vouch(&self, nodes: &[NodeStart]) -> Voucher {
        let state = self.group.watch().borrow().state.clone();
        Voucher::of(self.group.status(), &state, nodes, self.lease)
    }

    /// What each member says of `nodes` that can be reached, this one first.
    pub async fn vouchers(&self, nodes: &[NodeStart]) -> Vec<Voucher> {
        let own = self.vouch(nodes);
        let others = own.electorate.sets.iter().flatten().filter(|id| **id != own.member).collect::<BTreeSet<_>>();
        let asked = others.into_iter().map(|id| async move {
            let client = self.peers.member(&*self.group, *id).ok()?;
            tokio::time::timeout(vouch::ASKED, client.vouch(nodes)).await.ok()?.ok()
        });
        let others = futures::future::join_all(asked).await;
        std::iter::once(own).chain(others.into_iter().flatten()).collect()
    }

    /// The slices of `nodes`: all of them first, then what changes. Ends when the receiver is dropped.
    pub fn watch(&self, nodes: Vec<NodeStart>) -> mpsc::Receiver<Slices> {
        let (to_listener, slices) = mpsc::channel(UNSENT);
        tokio::spawn(feed(self.group.watch(), Feed::new(nodes), to_listener));
        slices
    }

    /// Lets an agent of this process answer for the logs of `nodes`, until the handle is dropped.
    pub fn attach_logs(&self, nodes: impl IntoIterator<Item = NodeName>, source: LogSource) -> logs::Attached {
        self.sources.attach_local(nodes, source)
    }

    /// The log of a replica, or what it has been through, from whichever process runs it.
    pub fn logs(&self, query: LogQuery) -> LogStream {
        if let Some(log) = self.sources.read(&query) {
            return log;
        }
        let hub = self.clone();
        let elsewhere = async move {
            match hub.logs_elsewhere(&query).await {
                Ok(log) => log,
                Err(error) => stream::once(async move { Err(error) }).boxed(),
            }
        };
        stream::once(elsewhere).flatten().boxed()
    }

    /// Asks the other members, since any of them may serve the node's agent.
    async fn logs_elsewhere(&self, query: &LogQuery) -> Result<LogStream, Error> {
        let state = self.group.watch().borrow().state.clone();
        let kind = state.node_named(&query.node).map(|node| node.kind);
        drop(state);
        let kind = kind.ok_or_else(|| {
            let detail = format!("no node {}; nf get nodes lists them", query.node);
            Error::Refused(Refusal::field(Reason::NotFound, "node_id", detail))
        })?;
        let status = self.group.status();
        let asked: Vec<MemberId> = match kind {
            NodeKind::Member(id) | NodeKind::Played(id) => vec![id],
            NodeKind::Worker => status.members.iter().map(|member| member.id).collect(),
        };
        let mut outcome = Error::Unavailable(format!("no agent of node {} is connected to a member", query.node));
        for id in asked.into_iter().filter(|id| *id != status.id) {
            let client = self.peers.member(&*self.group, id)?;
            match tokio::time::timeout(SUBMIT, client.read_logs(query)).await {
                Ok(Ok(log)) => return Ok(log),
                Ok(Err(error)) if error.is_not_found() => {}
                Ok(Err(error)) => outcome = error,
                Err(_) => outcome = Error::Unavailable(format!("member {id} did not answer")),
            }
        }
        Err(outcome)
    }

    /// Only what agents connected to this member answer, for a member that asks.
    fn logs_here(&self, query: &LogQuery) -> Result<LogStream, Error> {
        let missing = || Error::not_found(format!("no agent of node {} is connected to this member", query.node));
        self.sources.read(query).ok_or_else(missing)
    }
}

/// Sends a listener what changes, at most every [`COALESCE`].
async fn feed(
    mut applied: tokio::sync::watch::Receiver<crate::raft::Applied>,
    mut feed: Feed,
    to: mpsc::Sender<Slices>,
) {
    loop {
        // Nothing of the old state is held while a slow listener is waited for.
        let messages = feed.advance(&applied.borrow_and_update().clone());
        for message in messages {
            if to.send(message).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(COALESCE).await;
        let quiet = tokio::select! {
            changed = applied.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
            () = tokio::time::sleep(IDLE) => true,
            () = to.closed() => return,
        };
        if quiet && to.send(Slices::default()).await.is_err() {
            return;
        }
    }
}
