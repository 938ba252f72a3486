//! Nodes that are proposed to be added: each holds one replica, and is where that helps.

use super::{Change, Waiter};
use crate::claim;
use crate::id::{DeviceType, Label};
use crate::job::JobSpec;
use crate::node::{Device, DeviceKind, ENGINE_LABEL, NodeSpec};
use crate::placement::{Limits, together};
use crate::resources::Gpus;
use crate::sharing::Sharing;
use crate::state::State;
use crate::topology::Level;
use std::cmp::Reverse;
use std::collections::BTreeMap;

impl Waiter<'_> {
    /// So many nodes for one replica each.
    pub(super) fn added(&self, state: &State, count: u16) -> Change {
        let name = self.spec.constraints.node.clone();
        let mut spec = node_for(self.spec);
        if let Some(level) = self.spec.constraints.topology.required {
            [spec.region, spec.zone, spec.rack] = self.domain_for(state, level, &spec);
        }
        Change::AddNodes { count, name, spec: Box::new(spec) }
    }

    /// Where a node helps most that has to be in one domain with others: where the job's other replicas are, or else
    /// where there is room for most of them; where there is none yet, in a new one.
    fn domain_for(&self, state: &State, level: Level, spec: &NodeSpec) -> [Option<Label>; 3] {
        let held = claim::nodes(state);
        let limits = Limits { held, siblings: self.siblings(), ..Limits::default() };
        let rooms = together::choices(state, self.spec, level, self.wanted.len(), &limits);
        let most = rooms.iter().max_by_key(|room| (room.count, Reverse(&room.domain)));
        if let Some(room) = most {
            return room.domain.names().map(Option::<&Label>::cloned);
        }
        let (new, at) = (Label::new("added").ok(), Level::Region as usize - level as usize);
        let mut names = spec.names().map(Option::<&Label>::cloned);
        names[at] = names[at].take().or(new);
        names
    }
}

/// The labels of such a node once a container engine is there.
pub(super) fn with_engine(labels: &BTreeMap<Label, Label>) -> Option<BTreeMap<Label, Label>> {
    let (key, value) = (Label::new(ENGINE_LABEL).ok()?, Label::new("docker").ok()?);
    let mut labels = labels.clone();
    labels.insert(key, value);
    Some(labels)
}

/// A node that holds just one replica.
fn node_for(spec: &JobSpec) -> NodeSpec {
    let (ask, wish) = (&spec.resources, &spec.constraints);
    let gpus = match ask.gpu {
        Gpus::None => 0,
        Gpus::Milli(_) => 1,
        Gpus::Whole(n) => n,
    };
    let any = || DeviceType::new("GPU").expect("a valid name");
    let device = |i: u16, kind: DeviceKind| Device {
        uuid: format!("added-{i}").into(),
        kind,
        device_type: ask.device_types.first().cloned().unwrap_or_else(any),
        memory: ask.gpu_memory.max(1 << 30),
        island: 0,
        numa: None,
        mig_profile: ask.mig_profile.clone(),
        healthy: true,
        // Such a node can give a part as well as a whole GPU.
        sharing: Sharing::Mps,
    };
    let gpu = (0..gpus).map(|i| device(i, DeviceKind::Gpu));
    let tpu = (0..ask.tpu).map(|i| device(gpus + i, DeviceKind::Tpu));
    NodeSpec {
        host: "added".into(),
        ports: None,
        cpu_milli: ask.cpu_milli,
        memory: ask.memory,
        disk: ask.disk,
        devices: gpu.chain(tpu).collect(),
        labels: with_engine(&wish.labels).filter(|_| spec.needs_engine()).unwrap_or_else(|| wish.labels.clone()),
        region: wish.region.clone(),
        zone: wish.zone.clone(),
        rack: wish.rack.clone(),
        cost_per_hour: Default::default(),
        simulated: true,
    }
}
