//! Nodes as somebody sees them who runs work there and does not look after them: enough to say where it shall be, and
//! nothing of whose work is there already.

use super::nodes::page_of;
use super::{Call, Service, freshness};
use crate::api::convert::amounts::{Amounts, Sum};
use crate::api::convert::answer::Freshness;
use crate::api::error::Failure;
use crate::api::service::list::NumberPage;
use nf_core::command::Mode;
use nf_core::node::{Node, NodeState};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// A node for those who may ask to be placed on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OutlineBody {
    pub node_id: String,
    pub state: String,
    pub schedulable: bool,
    pub simulated: bool,
    pub region: Option<String>,
    pub zone: Option<String>,
    pub rack: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// Types of its devices.
    pub device_types: BTreeSet<String>,
    /// What it has, whoever holds it.
    pub total: Amounts,
}

/// Nodes for those who may ask to be placed on them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OutlineList {
    pub items: Vec<OutlineBody>,
    /// For the next page; null on the last one.
    pub next_token: Option<String>,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}

impl From<&Node> for OutlineBody {
    fn from(node: &Node) -> Self {
        let text = |label: &Option<nf_core::id::Label>| label.as_ref().map(ToString::to_string);
        Self {
            node_id: node.name.to_string(),
            state: node.state.name().into(),
            schedulable: node.cordon.is_none(),
            simulated: node.spec.simulated,
            region: text(&node.spec.region),
            zone: text(&node.spec.zone),
            rack: text(&node.spec.rack),
            labels: node.spec.labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            device_types: node.spec.devices.iter().map(|device| device.device_type.to_string()).collect(),
            total: Sum::total(node).into(),
        }
    }
}

impl Service {
    /// All nodes, in outline.
    ///
    /// # Errors
    /// When the state can't be read in time.
    pub async fn outlines(
        &self,
        call: &Call,
        only: Option<NodeState>,
        page: NumberPage,
    ) -> Result<OutlineList, Failure> {
        let view = self.read(call).await?;
        let make = move || {
            let (nodes, next_token) = page_of(&view.state, only, page);
            OutlineList {
                items: nodes.into_iter().map(OutlineBody::from).collect(),
                next_token,
                simulation: view.state.meta().mode == Mode::Simulation,
                read: freshness(&view),
            }
        };
        super::off_thread(make).await
    }
}
