//! Emptying a node: what a drain does or would do about each of its replicas, and the
//! calls that begin one or give a silent node up. Which replica goes where is decided
//! in the core, on the leader.

use super::nodes::NodeBody;
use super::{Call, Service};
use crate::api::convert::answer::{ReasonBody, reasons, time, whole};
use crate::api::error::Failure;
use nf_core::command::Mode;
use nf_core::id::{Digest16, NodeName};
use nf_core::moves::{self, Outlook};
use nf_core::node::{Cordon, Drain, DrainState, Node};
use nf_core::plan::Intent;
use nf_core::reason::{Reason, Refusal};
use nf_core::state::State;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// What becomes of one replica of a node that is drained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LeavingBody {
    pub tenant_id: String,
    pub request_id: String,
    pub replica: u16,
    /// Where its replacement is, or would be placed now.
    pub to: Option<String>,
    /// It stops before its replacement starts: it must not run twice, or the operator said so.
    pub stops_first: bool,
    /// It has begun to move.
    pub under_way: bool,
    /// Seconds that its program may take to save its state before it is stopped.
    pub checkpoint_grace: f64,
    /// Until when it does, once it was told to go.
    pub saves_until: Option<String>,
    /// Why it stays where it is.
    pub reasons: Vec<ReasonBody>,
}

impl From<&Outlook> for LeavingBody {
    fn from(look: &Outlook) -> Self {
        Self {
            tenant_id: look.tenant.to_string(),
            request_id: look.request.to_string(),
            replica: look.replica,
            to: look.to.as_ref().map(ToString::to_string),
            stops_first: look.stops_first,
            under_way: look.under_way,
            checkpoint_grace: whole(look.grace_ms.into()),
            saves_until: look.saves_until_ms.map(time),
            reasons: reasons(&look.blockers),
        }
    }
}

/// A drain, begun or only looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DrainBody {
    #[serde(flatten)]
    pub node: NodeBody,
    pub dry_run: bool,
}

/// What the caller of a drain wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainCall {
    pub node: NodeName,
    pub reason: Arc<str>,
    pub drain: Drain,
    pub dry_run: bool,
    /// Only if the cordon is still this one.
    pub seen: Option<Digest16>,
}

/// What becomes of the replicas of a node that is drained; nothing of others.
pub fn leaving(state: &State, node: &Node) -> Vec<LeavingBody> {
    match node.is_draining() && node.drain != DrainState::Drained {
        true => moves::outlook(state, node.no).iter().map(LeavingBody::from).collect(),
        false => Vec::new(),
    }
}

impl Service {
    /// Empties a node, or says what that would do.
    pub async fn drain(&self, call: &Call, wanted: DrainCall) -> Result<DrainBody, Failure> {
        let DrainCall { node, reason, drain, dry_run, seen } = wanted;
        let cordon = Cordon { by: call.who.name().into(), reason, at_ms: 0, drain: Some(drain) };
        if dry_run {
            return self.look_at_drain(call, &node, cordon).await;
        }
        let intent = match seen {
            None => Intent::Cordon { node: node.clone(), cordon: Some(cordon) },
            Some(seen) => Intent::CordonIf { node: node.clone(), cordon: Some(cordon), seen },
        };
        Ok(DrainBody { node: self.changed_node(call, node, intent).await?, dry_run: false })
    }

    /// On a copy of the state, through the same code.
    async fn look_at_drain(&self, call: &Call, node: &NodeName, cordon: Cordon) -> Result<DrainBody, Failure> {
        let state = self.read(call).await?.state;
        let node = node.clone();
        let look = move || {
            let drained = moves::with_cordon(&state, &node, cordon)?;
            let row = drained.node_named(&node)?;
            let simulation = Some(drained.meta().mode == Mode::Simulation);
            Some(NodeBody { simulation, ..NodeBody::new(&drained, row, true) })
        };
        let body = super::off_thread(look).await?;
        let missing = || Refusal::field(Reason::NotFound, "node_id", "no such node; nf get nodes lists them");
        Ok(DrainBody { node: body.ok_or_else(missing)?, dry_run: true })
    }

    /// Gives up a node that is silent: an operator knows that it is dead.
    pub async fn give_up(&self, call: &Call, node: NodeName) -> Result<NodeBody, Failure> {
        let intent = Intent::GiveUp { node: node.clone() };
        self.changed_node(call, node, intent).await
    }

    /// Commits a change of a node, and shows the node as it is then.
    pub(super) async fn changed_node(&self, call: &Call, node: NodeName, intent: Intent) -> Result<NodeBody, Failure> {
        let (_, index) = self.commit(call, intent).await?;
        self.applied_past(index.saturating_sub(1), call.deadline).await;
        let state = self.replica.applied().state;
        let missing = || Refusal::field(Reason::NotFound, "node_id", format!("no node {node}"));
        let node = state.node_named(&node).ok_or_else(missing)?;
        let simulation = Some(state.meta().mode == Mode::Simulation);
        Ok(NodeBody { simulation, ..NodeBody::new(&state, node, true) })
    }
}
