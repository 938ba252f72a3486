//! The nodes that a member plays: registered by hand in simulation, they have no
//! process of their own. The member watches the state for nodes that are its to play
//! and runs an agent for each, also after its own restart. It does not register them.

use super::{AgentConfig, Execute, LocalLink, NodeRegistration, Outcome};
use crate::exchange::{Hub, Registration};
use nf_core::id::{Incarnation, MemberId, NodeName};
use nf_core::node::{Node, NodeKind, NodeSpec};
use nf_core::state::State;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

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
    executor: Arc<dyn Execute>,
    task: JoinHandle<Outcome>,
}

impl Drop for Playing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs until `stop` is true or the member stops.
pub async fn run(config: PlayedConfig, mut stop: watch::Receiver<bool>) {
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        () = play(&config) => {}
    }
}

async fn play(config: &PlayedConfig) {
    let mut applied = config.hub.group().watch();
    let mut playing: BTreeMap<NodeName, Playing> = BTreeMap::new();
    let (_keep, never) = watch::channel(false);
    let mut seen = None;
    loop {
        let state = applied.borrow_and_update().state.clone();
        let mut whole = true;
        if !seen.as_ref().is_some_and(|seen| state.nodes().ptr_eq(seen)) {
            playing.retain(|name, _| mine(&state, config.me, name).is_some());
            for node in state.nodes().values().filter(|node| node.kind == NodeKind::Played(config.me)) {
                whole &= look_after(config, &mut playing, node, &never).await;
            }
            seen = whole.then(|| state.nodes().clone());
        }
        drop(state);
        tokio::time::sleep(COALESCE).await;
        tokio::select! {
            changed = applied.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if !whole => {}
        }
    }
}

fn mine<'a>(state: &'a State, me: MemberId, name: &NodeName) -> Option<&'a Arc<Node>> {
    state.node_named(name).filter(|node| node.kind == NodeKind::Played(me))
}

/// Starts the node's agent, or starts it again when somebody registered the node anew.
/// False when its executor could not be opened.
async fn look_after(
    config: &PlayedConfig,
    playing: &mut BTreeMap<NodeName, Playing>,
    node: &Node,
    never: &watch::Receiver<bool>,
) -> bool {
    let running = playing.get(&node.name);
    if running.is_some_and(|p| p.incarnation >= node.incarnation && p.spec == node.spec && !p.task.is_finished()) {
        return true;
    }
    let executor = match running {
        Some(playing) => playing.executor.clone(),
        None => match open(config, &node.name).await {
            Ok(executor) => executor,
            Err(error) => {
                tracing::error!(node = %node.name, %error, "this node cannot be played; trying again");
                return false;
            }
        },
    };
    let incarnation = config.incarnation.max(node.incarnation);
    let registration = Registration { node: node.name.clone(), kind: node.kind, incarnation, spec: node.spec.clone() };
    let agent = AgentConfig {
        nodes: vec![NodeRegistration { registration, executor: executor.clone() }],
        link: Arc::new(LocalLink(config.hub.clone())),
        beat_every: config.beat_every,
        kill_budget: config.kill_budget,
    };
    let task = tokio::spawn(super::run(agent, never.clone()));
    playing.insert(node.name.clone(), Playing { incarnation, spec: node.spec.clone(), executor, task });
    true
}

async fn open(config: &PlayedConfig, node: &NodeName) -> io::Result<Arc<dyn Execute>> {
    let (open, node) = (config.open.clone(), node.clone());
    tokio::task::spawn_blocking(move || open(&node)).await.map_err(io::Error::other)?
}
