//! The nodes that a member plays: registered by hand in simulation, they have no
//! process of their own. The member watches the state for nodes that are its to play
//! and runs one agent for all of them, also after its own restart, so that a thousand
//! cost one beat a second and one stream. It does not register them.

use super::{AgentConfig, CHANGES, Change, Execute, LocalLink, NodeRegistration};
use crate::exchange::{Hub, Registration};
use nf_core::id::{Incarnation, MemberId, NodeName};
use nf_core::node::{Node, NodeKind, NodeSpec};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Changes of the nodes are gathered for this long.
const COALESCE: Duration = Duration::from_millis(20);
/// Pause before a node whose executor could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Makes what runs a played node's replicas. May block briefly; called once per node.
pub type OpenExecutor = Arc<dyn Fn(&NodeName) -> io::Result<Arc<dyn Execute>> + Send + Sync>;

/// What the player is started with.
#[derive(Clone)]
pub struct PlayedConfig {
    pub me: MemberId,
    /// This start of the member; its played nodes start with it.
    pub incarnation: Incarnation,
    pub hub: Hub,
    pub open: OpenExecutor,
    pub beat_every: Duration,
    pub kill_budget: Duration,
}

/// A node that is played now.
struct Playing {
    incarnation: Incarnation,
    spec: Arc<NodeSpec>,
}

/// Executors once opened are kept, also when their node leaves: one at a time may hold its folder.
type Executors = BTreeMap<NodeName, Arc<dyn Execute>>;

/// Runs until `stop` is true or the member stops.
pub async fn run(config: PlayedConfig, mut stop: watch::Receiver<bool>) {
    let (to_agent, changes) = mpsc::channel(CHANGES);
    let agent = AgentConfig {
        nodes: Vec::new(),
        changes: Some(changes),
        described: None,
        vitals: None,
        link: Arc::new(LocalLink(config.hub.clone())),
        beat_every: config.beat_every,
        kill_budget: config.kill_budget,
    };
    let (_keep, never) = watch::channel(false);
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        _ = super::run(agent, never) => {}
        () = play(&config, &to_agent) => {}
    }
}

/// Tells the agent which nodes it is to play. Returns when the group's handle stops.
async fn play(config: &PlayedConfig, to_agent: &mpsc::Sender<Change>) {
    let mut applied = config.hub.group().watch();
    let mut playing: BTreeMap<NodeName, Playing> = BTreeMap::new();
    let mut executors = Executors::new();
    let mut seen = None;
    loop {
        let nodes = applied.borrow_and_update().state.nodes().clone();
        let mut whole = true;
        if !seen.as_ref().is_some_and(|seen| nodes.ptr_eq(seen)) {
            let mine: BTreeMap<_, _> =
                nodes.values().filter(|node| node.kind == NodeKind::Played(config.me)).map(|n| (&n.name, n)).collect();
            let left: Vec<NodeName> = playing.keys().filter(|name| !mine.contains_key(name)).cloned().collect();
            for name in left {
                playing.remove(&name);
                if to_agent.send(Change::Leave(name)).await.is_err() {
                    return;
                }
            }
            for node in mine.into_values() {
                match look_after(config, &mut playing, &mut executors, node).await {
                    Ok(None) => {}
                    Ok(Some(join)) => {
                        if to_agent.send(Change::Join(join)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        tracing::error!(node = %node.name, %error, "this node cannot be played; trying again");
                        whole = false;
                    }
                }
            }
            seen = whole.then(|| nodes.clone());
        }
        drop(nodes);
        tokio::time::sleep(COALESCE).await;
        tokio::select! {
            changed = applied.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if !whole => {}
        }
    }
}

/// What the agent should be told of a node: nothing when it plays this very registration.
async fn look_after(
    config: &PlayedConfig,
    playing: &mut BTreeMap<NodeName, Playing>,
    executors: &mut Executors,
    node: &Node,
) -> io::Result<Option<NodeRegistration>> {
    let running = playing.get(&node.name);
    if running.is_some_and(|p| p.incarnation >= node.incarnation && p.spec == node.spec) {
        return Ok(None);
    }
    let executor = match executors.get(&node.name) {
        Some(executor) => executor.clone(),
        None => {
            let opened = open(config, &node.name).await?;
            executors.insert(node.name.clone(), opened.clone());
            opened
        }
    };
    let incarnation = config.incarnation.max(node.incarnation);
    let registration = Registration { node: node.name.clone(), kind: node.kind, incarnation, spec: node.spec.clone() };
    playing.insert(node.name.clone(), Playing { incarnation, spec: node.spec.clone() });
    Ok(Some(NodeRegistration { registration, executor }))
}

async fn open(config: &PlayedConfig, node: &NodeName) -> io::Result<Arc<dyn Execute>> {
    let (open, node) = (config.open.clone(), node.clone());
    tokio::task::spawn_blocking(move || open(&node)).await.map_err(io::Error::other)?
}
