//! Placement tried on a list of nodes without a group: requests come one by one, are
//! placed by the daemon's own search on the daemon's own index, and never leave. The
//! mix of requests is given, or learnt from those that arrive. It knows no files and
//! no protocol.

use super::{Limits, Pick, Policy, place, place_one};
use crate::id::{DeviceType, Incarnation, Label, ModelId, NodeName, NodeNo, TenantId, VersionId};
use crate::job::JobSpec;
use crate::node::{Device, DeviceKind, DrainState, Node, NodeKind, NodeSpec, NodeState};
use crate::resources::Resources;
use crate::sharing::Sharing;
use crate::state::{State, WORKLOAD};
use crate::topology::Topology;
use std::sync::Arc;

/// A node to place on. All its devices are alike and in one island.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrialNode {
    pub cpu_milli: u64,
    /// Bytes.
    pub memory: u64,
    pub gpus: u16,
    /// None: not known, so only requests that name no type run there.
    pub device_type: Option<DeviceType>,
    pub place: Whereabouts,
}

/// The place in the list of the first node with which all have more CPU or memory than can be counted, and so more could
/// be placed on than can be booked.
pub fn beyond_count(nodes: &[TrialNode]) -> Option<usize> {
    let (mut cpu_milli, mut memory) = (Some(0u64), Some(0u64));
    nodes.iter().position(|node| {
        cpu_milli = cpu_milli.and_then(|all| all.checked_add(node.cpu_milli));
        memory = memory.and_then(|all| all.checked_add(node.memory));
        cpu_milli.is_none() || memory.is_none()
    })
}

/// Where a node is, as far as that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    pub region: Option<Label>,
    pub zone: Option<Label>,
    pub rack: Option<Label>,
}

/// Memory of a device, of which the lists say nothing; only its parts matter.
const DEVICE_MEMORY: u64 = 80 << 30;
/// Arrivals after which the tables are made anew, when the mix is known: room changes.
const REFRESH: u64 = 512;

/// The nodes, and what is placed on them.
#[derive(Clone, Debug)]
pub struct Trial {
    state: State,
    template: JobSpec,
    learns: bool,
    /// Arrivals until the next refresh.
    due: u64,
    fresh: bool,
    last: Vec<Pick>,
}

impl Trial {
    /// Empty nodes; the place in the list is a node's number in answers.
    pub fn new(nodes: &[TrialNode], policy: Policy) -> Self {
        let mut state = State::default();
        state.meta.placement = policy.into();
        for (i, node) in nodes.iter().enumerate() {
            state.put_node(register(NodeNo(i as u32), node));
        }
        let name = "trial";
        let tenant = TenantId::new(name).expect("a valid name");
        let model = ModelId::new(name).expect("a valid name");
        let version = VersionId::new(name).expect("a valid name");
        let template = JobSpec::plain(tenant, model, version, Resources::default());
        Self { state, template, learns: true, due: 0, fresh: false, last: Vec::new() }
    }

    /// More nodes, numbered on.
    pub fn add(&mut self, nodes: &[TrialNode]) {
        let first = self.state.nodes().len();
        for (i, node) in nodes.iter().enumerate() {
            self.state.put_node(register(NodeNo((first + i) as u32), node));
        }
        self.fresh = false;
    }

    /// Says that the workload holds `times` requests like this. The mix is then no longer
    /// learnt from arrivals.
    pub fn expect(&mut self, ask: &Resources, times: u64) {
        self.state.mix.add(ask, times);
        self.learns = false;
        self.fresh = false;
    }

    /// Makes the tables from what is known now.
    pub fn refresh(&mut self) {
        self.state.make_rules(if self.learns { WORKLOAD } else { 1 });
        self.due = if self.learns { self.state.until_rules } else { REFRESH };
        self.fresh = true;
    }

    /// Places a request for good; None when it fits nowhere.
    pub fn place(&mut self, ask: &Resources) -> Option<Pick> {
        self.arrive(ask, 1);
        let pick = place_one(&self.state, &self.template, &Limits::default())?;
        self.take(vec![pick]).pop()
    }

    /// Places so many alike for good, all of them or none, in domains as they are wanted; none when they do not fit.
    pub fn place_gang(&mut self, ask: &Resources, replicas: u16, topology: Topology) -> Vec<Pick> {
        self.arrive(ask, replicas.into());
        let mut spec = JobSpec { replicas, gang: true, ..self.template.clone() };
        spec.constraints.topology = topology;
        let wanted: Vec<u16> = (0..replicas).collect();
        let picks = place(&self.state, &spec, &wanted, Limits::default());
        self.take(picks.into_iter().map(|(_, pick)| pick).collect())
    }

    /// Such requests are next.
    fn arrive(&mut self, ask: &Resources, times: u64) {
        if self.learns {
            self.state.mix.add(ask, times);
        }
        if !self.fresh || self.due == 0 {
            self.refresh();
        }
        self.due -= 1;
        self.template.resources.clone_from(ask);
        self.last.clear();
        self.state.stand(&self.template);
    }

    fn take(&mut self, picks: Vec<Pick>) -> Vec<Pick> {
        picks.iter().for_each(|pick| self.state.book(&self.template, 0, &pick.alloc));
        self.last.clone_from(&picks);
        picks
    }

    /// Takes the last placement back, once.
    pub fn undo(&mut self) {
        for pick in std::mem::take(&mut self.last) {
            self.state.unbook(&self.template, 0, &pick.alloc);
        }
    }

    /// The state that is placed on.
    pub fn state(&self) -> &State {
        &self.state
    }
}

fn register(no: NodeNo, node: &TrialNode) -> Node {
    let device = |i: u16| Device {
        uuid: format!("{no}-{i}").into(),
        kind: DeviceKind::Gpu,
        device_type: node.device_type.clone().unwrap_or_else(unknown),
        memory: DEVICE_MEMORY,
        island: 0,
        numa: None,
        mig_profile: None,
        healthy: true,
        sharing: Sharing::Simulated,
    };
    let spec = NodeSpec {
        host: "".into(),
        ports: None,
        cpu_milli: node.cpu_milli,
        memory: node.memory,
        disk: 0,
        devices: (0..node.gpus).map(device).collect(),
        labels: Default::default(),
        region: node.place.region.clone(),
        zone: node.place.zone.clone(),
        rack: node.place.rack.clone(),
        cost_per_hour: Default::default(),
        simulated: true,
    };
    Node {
        no,
        name: NodeName::new(&no.to_string()).expect("a letter and digits"),
        kind: NodeKind::Worker,
        incarnation: Incarnation(1),
        spec: Arc::new(spec),
        state: NodeState::Ready,
        cordon: None,
        drain: DrainState::None,
        quarantine: Default::default(),
        since_ms: 0,
    }
}

/// Of nodes whose type is not said.
fn unknown() -> DeviceType {
    DeviceType::new("type-not-said").expect("a valid name")
}
