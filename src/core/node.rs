//! A node: a place to run. What it has, where it is, how it is; three separate
//! fields say state, schedulable and drain. It does not know what runs on it.

mod stored;

use crate::fault::Quarantine;
use crate::id::{DeviceType, Incarnation, Label, MemberId, NodeName, NodeNo};
use crate::sharing::Sharing;
use crate::topology::Names;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The label that an agent gives its node while it reaches a container engine there; the
/// value is the engine's kind. Without it a node gets no containers.
pub const ENGINE_LABEL: &str = "container-engine";

/// Whether a node with these labels reaches a container engine.
pub fn has_engine(labels: &BTreeMap<Label, Label>) -> bool {
    labels.keys().any(|key| key.as_str() == ENGINE_LABEL)
}

/// The most NUMA nodes of a machine that Linux knows.
pub const MAX_NUMA_NODES: u16 = 1024;

/// GPU or TPU; decides which ask of a job a device can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DeviceKind {
    Gpu,
    Tpu,
}

/// One device of a node. Its position in [`NodeSpec::devices`] is its index everywhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "stored::Device", into = "stored::Device")]
pub struct Device {
    pub uuid: Arc<str>,
    pub kind: DeviceKind,
    pub device_type: DeviceType,
    /// Bytes.
    pub memory: u64,
    /// Devices with the same number share fast links (NVLink).
    pub island: u16,
    /// The part of the machine's memory and CPUs that is near to it, by the kernel's number. None: nobody said.
    pub numa: Option<u16>,
    /// Set when the device is a MIG slice of this profile.
    pub mig_profile: Option<DeviceType>,
    pub healthy: bool,
    /// What keeps those who share it to their parts.
    pub sharing: Sharing,
}

/// First and last port that replicas on the node may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }
}

/// What a node has. Reported by its agent at registration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Host name or address at which its replicas are reached.
    pub host: Arc<str>,
    /// None: replicas get no port (they do not listen).
    pub ports: Option<PortRange>,
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes.
    pub disk: u64,
    pub devices: Vec<Device>,
    pub labels: BTreeMap<Label, Label>,
    pub region: Option<Label>,
    pub zone: Option<Label>,
    pub rack: Option<Label>,
    /// Price of one device of a type per hour, in millionths of the currency unit.
    pub cost_per_hour: BTreeMap<DeviceType, u64>,
    /// Its devices and replicas are played, not real.
    pub simulated: bool,
}

impl NodeSpec {
    /// Where it says that it is.
    pub fn names(&self) -> Names<'_> {
        [self.region.as_ref(), self.zone.as_ref(), self.rack.as_ref()]
    }
}

/// `host:port`, as in a URL: an IPv6 address gets the brackets that it lacks.
pub fn address(host: &str, port: u16) -> String {
    match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// Who runs the node's agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NodeKind {
    /// The agent inside a member.
    Member(MemberId),
    /// A process without a vote.
    Worker,
    /// Played by that member, in simulation only.
    Played(MemberId),
}

/// Liveness, as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NodeState {
    Ready,
    /// Beats are late; nothing changes yet.
    Suspect,
    /// Silent; no new replicas, its replicas may still serve.
    Unknown,
    /// Given up: its allocations are released.
    Down,
    /// Emptied by an operator: its silence is expected. Ends with the cordon.
    Maintenance,
}

impl NodeState {
    pub fn name(self) -> &'static str {
        match self {
            NodeState::Ready => "Ready",
            NodeState::Suspect => "Suspect",
            NodeState::Unknown => "Unknown",
            NodeState::Down => "Down",
            NodeState::Maintenance => "Maintenance",
        }
    }
}

/// Why a node takes no new work, and who said so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cordon {
    pub by: Arc<str>,
    pub reason: Arc<str>,
    pub at_ms: u64,
    /// What runs there is to go elsewhere, too.
    pub drain: Option<Drain>,
}

/// How a node is emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Drain {
    /// So long after the cordon, what is still there stops, replaced or not. None: never.
    pub within_ms: Option<u64>,
    /// What can't be replaced elsewhere now stops at once.
    pub force: bool,
}

impl Cordon {
    /// Log time at which patience ends.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.drain.and_then(|drain| drain.within_ms).map(|within| self.at_ms.saturating_add(within))
    }
}

/// How far a drain has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DrainState {
    #[default]
    None,
    Draining,
    /// Something has nowhere to go; it goes on running.
    Blocked,
    /// Nothing is held there.
    Drained,
}

impl DrainState {
    pub fn name(self) -> &'static str {
        match self {
            DrainState::None => "None",
            DrainState::Draining => "Draining",
            DrainState::Blocked => "Blocked",
            DrainState::Drained => "Drained",
        }
    }
}

/// A registered node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub no: NodeNo,
    pub name: NodeName,
    pub kind: NodeKind,
    pub incarnation: Incarnation,
    pub spec: Arc<NodeSpec>,
    pub state: NodeState,
    pub cordon: Option<Cordon>,
    pub drain: DrainState,
    /// Devices that get no work, by uuid: positions may change when the node registers again.
    pub quarantine: BTreeMap<Arc<str>, Quarantine>,
    /// When `state` last changed.
    pub since_ms: u64,
}

impl Node {
    /// New replicas may be placed here.
    pub fn takes_work(&self) -> bool {
        self.state == NodeState::Ready && self.cordon.is_none()
    }

    /// The same, or its beats are only late: most such nodes are heard of again in a moment.
    pub fn may_take_work(&self) -> bool {
        matches!(self.state, NodeState::Ready | NodeState::Suspect) && self.cordon.is_none()
    }

    /// Whether new work may use the device.
    pub fn may_use(&self, device: u16) -> bool {
        let device = self.spec.devices.get(usize::from(device));
        device.is_some_and(|device| device.healthy && !self.quarantine.contains_key(&device.uuid))
    }

    /// Some of its devices get no work.
    pub fn has_faults(&self) -> bool {
        !self.quarantine.is_empty() || self.spec.devices.iter().any(|device| !device.healthy)
    }

    /// Why the device gets no work.
    pub fn quarantine_of(&self, device: u16) -> Option<&Quarantine> {
        self.quarantine.get(&self.spec.devices.get(usize::from(device))?.uuid)
    }

    /// Whether one of the devices is in a state in which nothing on it can go on.
    pub fn any_broken(&self, devices: impl IntoIterator<Item = u16>) -> bool {
        devices.into_iter().filter_map(|device| self.quarantine_of(device)).any(|known| !known.serves())
    }

    /// What runs there is to go elsewhere.
    pub fn is_draining(&self) -> bool {
        self.cordon.as_ref().is_some_and(|cordon| cordon.drain.is_some())
    }
}
