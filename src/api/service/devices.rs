//! Single devices: a fault that is made up for a device that is played, a device that an
//! operator wants left alone, and one that is taken back. What follows from a fault is
//! the core's to say.

use super::nodes::NodeBody;
use super::{Call, Service};
use crate::api::convert::answer::time;
use crate::api::error::Failure;
use nf_core::command::DeviceFault;
use nf_core::fault::{self, Fault, Quarantine};
use nf_core::id::NodeName;
use nf_core::node::Node;
use nf_core::plan::Intent;
use nf_core::reason::{Reason, Refusal};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// Why a device gets no work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuarantineBody {
    /// The worst that was seen: `Xid79`, `Ecc`, `Lost` or `ByHand`.
    pub why: String,
    /// The same in words.
    pub detail: String,
    pub since: String,
    /// When a fault was last seen.
    pub last: String,
    /// Faults that were reported.
    pub times: u32,
    /// When it ends by itself; null: with nf node heal.
    pub ends: Option<String>,
    /// What runs on the device may go on until its replacement is Ready.
    pub serves: bool,
    /// The fault was made up for a device that is played.
    pub simulated: bool,
}

impl From<&Quarantine> for QuarantineBody {
    fn from(q: &Quarantine) -> Self {
        Self {
            why: q.fault.to_string(),
            detail: fault::meaning(q.fault).into(),
            since: time(q.since_ms),
            last: time(q.last_ms),
            times: q.times,
            ends: q.ends_ms().map(time),
            serves: q.serves(),
            simulated: q.simulated,
        }
    }
}

/// `Healthy`, `Quarantined`, or `Unhealthy` as its agent registered it.
pub fn health(node: &Node, device: u16) -> &'static str {
    match (node.quarantine_of(device), node.spec.devices.get(usize::from(device))) {
        (Some(_), _) => "Quarantined",
        (None, Some(device)) if device.healthy => "Healthy",
        (None, _) => "Unhealthy",
    }
}

impl Service {
    /// A fault of a device. What no operator can know is only made up, for nodes that are simulated.
    pub async fn fault(&self, call: &Call, node: NodeName, device: &str, fault: Fault) -> Result<NodeBody, Failure> {
        let (uuid, simulated) = self.device(call, &node, device).await?;
        if fault != Fault::Hand && !simulated {
            let detail = format!(
                "node {node} is real: its agent tells its faults; without a fault the device is left alone by your word"
            );
            return Err(Refusal::field(Reason::Forbidden, "fault", detail).into());
        }
        let faults = vec![DeviceFault { uuid, fault, simulated }];
        let intent = Intent::Faults { node: node.clone(), incarnation: None, faults };
        self.changed_node(call, node, intent).await
    }

    /// Takes a device back.
    pub async fn heal(&self, call: &Call, node: NodeName, device: &str) -> Result<NodeBody, Failure> {
        let (uuid, _) = self.device(call, &node, device).await?;
        let intent = Intent::Heal { node: node.clone(), uuid, by: "operator".into() };
        self.changed_node(call, node, intent).await
    }

    /// The uuid of the device of that position or uuid, and whether its node is simulated.
    async fn device(&self, call: &Call, node: &NodeName, device: &str) -> Result<(Arc<str>, bool), Failure> {
        let state = self.read(call).await?.state;
        let missing =
            || Refusal::field(Reason::NotFound, "node_id", format!("no node {node}; nf get nodes lists them"));
        let row = state.node_named(node).ok_or_else(missing)?;
        let at = device.parse::<usize>().ok();
        let found = row.spec.devices.iter().enumerate().find(|(i, d)| at == Some(*i) || *d.uuid == *device);
        let none = || {
            let detail = format!("node {node} has no such device; nf get gpus lists them by number and uuid");
            Refusal::field(Reason::NotFound, "device", detail)
        };
        Ok((found.ok_or_else(none)?.1.uuid.clone(), row.spec.simulated))
    }
}
