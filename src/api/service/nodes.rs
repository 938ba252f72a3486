//! Use cases about nodes and what they hold: register one to be played here,
//! list them, cordon them, sum them up. It does not run anything.

use super::{Call, Service, freshness};
use crate::api::convert::amounts::{Amounts, Sum};
use crate::api::convert::answer::{Freshness, time, whole};
use crate::api::convert::node::Registration;
use crate::api::error::Failure;
use crate::exchange::Vitals;
use nf_core::command::{Answer, Mode};
use nf_core::etag;
use nf_core::id::{Digest16, Incarnation, NodeName, NodeNo};
use nf_core::node::{Cordon, DeviceKind, Node, NodeKind, NodeState, PortRange};
use nf_core::plan::Intent;
use nf_core::played::PORTS;
use nf_core::quota;
use nf_core::reason::{Reason, Refusal};
use nf_core::sharing::Sharing;
use nf_core::state::State;
use nf_core::view;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use utoipa::ToSchema;

/// Times that ports are chosen for a node before its caller is told that others were quicker.
const PORT_TRIES: u32 = 16;

/// A registered node's name and whether the group knew it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    pub name: NodeName,
    pub new: bool,
    pub index: u64,
    pub simulation: bool,
}

/// A device of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceBody {
    pub index: u16,
    pub uuid: String,
    /// `gpu` or `tpu`.
    pub kind: String,
    pub device_type: String,
    /// Bytes.
    pub memory: u64,
    /// Devices with the same number share fast links.
    pub island: u16,
    /// The NUMA node that it hangs on; absent where nobody said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa: Option<u16>,
    pub mig_profile: Option<String>,
    /// What keeps replicas that share it to their parts: `none`, `mps`, `simulated`, or `mig` where it is divided into
    /// slices.
    pub sharing: String,
    /// The slices that are made of it, each as profile and first part of memory, such as `3g.40gb@4`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slices: Vec<String>,
    /// Parts of its memory, of eight, that are in no slice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_parts: Option<u32>,
    /// As its agent registered it.
    pub healthy: bool,
    /// `Healthy`, `Quarantined` or `Unhealthy`; only a healthy one gets work.
    pub health: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<super::devices::QuarantineBody>,
    /// Thousandths that are held.
    pub used_milli: u16,
    /// How it does now; only where that was asked for, and where its driver answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vitals: Option<VitalsBody>,
}

/// How a device does, as its driver says; null where it does not say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VitalsBody {
    /// Part of the last moment in which something ran on it, 0 to 1.
    pub utilization: Option<f64>,
    /// Bytes.
    pub memory_used: u64,
    pub temperature_celsius: Option<u32>,
    /// Programs that compute on it.
    pub processes: Option<u32>,
    /// Memory errors since its driver was loaded that could not be corrected.
    pub ecc_errors: Option<u64>,
}

impl From<Vitals> for VitalsBody {
    fn from(vitals: Vitals) -> Self {
        Self {
            utilization: vitals.busy_milli.map(|milli| f64::from(milli) / 1000.0),
            memory_used: vitals.used,
            temperature_celsius: vitals.celsius,
            processes: vitals.processes,
            ecc_errors: vitals.ecc_errors,
        }
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeBody {
    pub node_id: String,
    /// `member`, `worker` or `played`.
    pub kind: String,
    pub state: String,
    /// What is behind it, where there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<String>,
    pub schedulable: bool,
    /// `None`, `Draining`, `Blocked` (something has nowhere to go, and runs on) or `Drained`.
    pub drain: String,
    /// When what is left on it stops, replaced or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_deadline: Option<String>,
    /// What cannot be replaced elsewhere stops at once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drain_force: bool,
    /// What becomes of its replicas while it is drained; the first of them, where it has many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaving: Vec<super::drain::LeavingBody>,
    /// Why it takes no new work.
    pub cordon_reason: Option<String>,
    /// Who said so, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordon_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordon_at: Option<String>,
    /// Of its cordon, for `If-Match`.
    pub etag: String,
    pub simulated: bool,
    pub host: String,
    pub region: Option<String>,
    pub zone: Option<String>,
    pub rack: Option<String>,
    pub labels: std::collections::BTreeMap<String, String>,
    pub incarnation: u64,
    /// When the state last changed.
    pub since: String,
    pub total: Amounts,
    pub reserved: Amounts,
    pub free: Amounts,
    /// Replicas that hold something here.
    pub replicas: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceBody>,
    /// In a list, the list says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simulation: Option<bool>,
}

/// A tenant, its quota and its use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TenantBody {
    pub tenant_id: String,
    /// Its own limits.
    pub quota: super::tenants::QuotaBody,
    /// Its nominal GPUs: its own limit, or the group's default.
    pub gpu_quota: f64,
    /// GPUs that it holds beyond those; their owners may have them back.
    pub borrowed: f64,
    /// Jobs that may wait at once.
    pub waiting_quota: u32,
    pub used: super::tenants::UseBody,
    /// Jobs that live.
    pub jobs: u32,
    /// Jobs of which a replica waits.
    pub waiting: u32,
    /// Of its quota, for `If-Match`.
    pub etag: String,
    /// In a list, the list says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simulation: Option<bool>,
}

impl TenantBody {
    /// As an answer of its own.
    pub fn alone(self, state: &State) -> Self {
        Self { simulation: Some(state.meta().mode == Mode::Simulation), ..self }
    }
}

/// What the cluster has and who holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResourcesAnswer {
    pub total: Amounts,
    pub reserved: Amounts,
    /// Free on nodes that take work.
    pub free: Amounts,
    pub nodes: Vec<NodeBody>,
    pub tenants: Vec<TenantBody>,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}

/// All nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    pub items: Vec<NodeBody>,
    /// For the next page; null on the last one.
    pub next_token: Option<String>,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}

impl NodeBody {
    pub fn new(state: &State, node: &Node, devices: bool) -> Self {
        let used = state.ledger().node(node.no).cloned().unwrap_or_default();
        let (total, held) = (Sum::total(node), Sum::held(node, &used));
        let text = |label: &Option<nf_core::id::Label>| label.as_ref().map(ToString::to_string);
        let device = |(i, d): (usize, &nf_core::node::Device)| DeviceBody {
            index: i as u16,
            uuid: d.uuid.to_string(),
            kind: if d.kind == DeviceKind::Gpu { "gpu".into() } else { "tpu".into() },
            device_type: d.device_type.to_string(),
            memory: d.memory,
            island: d.island,
            numa: d.numa,
            mig_profile: d.mig_profile.as_ref().map(ToString::to_string),
            sharing: d.sharing.name().into(),
            slices: match d.sharing {
                Sharing::Mig => {
                    let made = view::slices(state, node.no, i as u16);
                    made.iter().map(|slice| slice.words(d.device_type.as_str())).collect()
                }
                _ => Vec::new(),
            },
            free_parts: (d.sharing == Sharing::Mig)
                .then(|| used.devices.get(i).copied().unwrap_or_default().slices.free()),
            healthy: d.healthy,
            health: super::devices::health(node, i as u16).into(),
            quarantine: node.quarantine_of(i as u16).map(Into::into),
            used_milli: used.devices.get(i).map_or(0, |held| held.milli),
            vitals: None,
        };
        Self {
            node_id: node.name.to_string(),
            kind: match node.kind {
                NodeKind::Member(_) => "member".into(),
                NodeKind::Worker => "worker".into(),
                NodeKind::Played(_) => "played".into(),
            },
            state: node.state.name().into(),
            state_reason: None,
            schedulable: node.cordon.is_none(),
            drain: node.drain.name().into(),
            drain_deadline: node.cordon.as_ref().and_then(Cordon::deadline_ms).map(time),
            drain_force: node.cordon.as_ref().and_then(|c| c.drain).is_some_and(|drain| drain.force),
            leaving: if devices { super::drain::leaving(state, node) } else { Vec::new() },
            etag: etag::cordon(node).to_string(),
            cordon_reason: node.cordon.as_ref().map(|c| c.reason.to_string()),
            cordon_by: node.cordon.as_ref().map(|c| c.by.to_string()),
            cordon_at: node.cordon.as_ref().map(|c| time(c.at_ms)),
            simulated: node.spec.simulated,
            host: node.spec.host.to_string(),
            region: text(&node.spec.region),
            zone: text(&node.spec.zone),
            rack: text(&node.spec.rack),
            labels: node.spec.labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            incarnation: node.incarnation.0,
            since: time(node.since_ms),
            total: total.into(),
            reserved: held.into(),
            free: total.minus(held).into(),
            replicas: used.replicas.len() as u32,
            devices: match devices {
                true => node.spec.devices.iter().enumerate().map(device).collect(),
                false => Vec::new(),
            },
            simulation: None,
        }
    }
}

impl NodeBody {
    /// With how its devices do.
    fn with(mut self, vitals: Option<&Vec<Vitals>>) -> Self {
        for told in vitals.into_iter().flatten() {
            if let Some(device) = self.devices.iter_mut().find(|device| *device.uuid == *told.uuid) {
                device.vitals = Some(told.clone().into());
            }
        }
        self
    }
}

fn types_held(state: &State, tenant: nf_core::id::TenantNo) -> std::collections::BTreeMap<String, f64> {
    state.ledger().types_of(tenant).map(|(kind, milli)| (kind.to_string(), whole(milli))).collect()
}

/// The tenant's row.
pub fn tenant_body(state: &State, tenant: &nf_core::tenant::Tenant) -> TenantBody {
    let used = state.ledger().tenant(tenant.no);
    TenantBody {
        tenant_id: tenant.id.to_string(),
        quota: (&tenant.quota).into(),
        gpu_quota: whole(quota::gpu_limit(state, tenant.no)),
        borrowed: whole(match tenant.quota.parent {
            Some(_) => used.gpu_milli.saturating_sub(quota::gpu_limit(state, tenant.no)),
            None => 0,
        }),
        waiting_quota: quota::waiting_limit(&tenant.quota),
        used: super::tenants::UseBody { device_types: types_held(state, tenant.no), ..used.into() },
        jobs: used.jobs,
        waiting: used.waiting,
        etag: etag::quota(tenant).to_string(),
        simulation: None,
    }
}

/// Sums a state up. `tenant` limits whose use is listed; totals are the cluster's.
pub fn summary(state: &State, tenant: Option<&nf_core::id::TenantId>, read: Freshness) -> ResourcesAnswer {
    let (mut total, mut held, mut free) = (Sum::default(), Sum::default(), Sum::default());
    for node in state.nodes().values() {
        let used = state.ledger().node(node.no).cloned().unwrap_or_default();
        let (has, holds) = (Sum::total(node), Sum::held(node, &used));
        total = total.plus(has);
        held = held.plus(holds);
        if node.takes_work() {
            free = free.plus(has.minus(holds));
        }
    }
    let listed = state.tenants().values().filter(|t| tenant.is_none_or(|only| *only == t.id));
    ResourcesAnswer {
        total: total.into(),
        reserved: held.into(),
        free: free.into(),
        nodes: state.nodes().values().map(|node| NodeBody::new(state, node, false)).collect(),
        tenants: listed.map(|t| tenant_body(state, t)).collect(),
        simulation: state.meta().mode == Mode::Simulation,
        read,
    }
}

/// The nodes of a page, and the token of the next one.
pub(super) fn page_of(
    state: &State,
    only: Option<NodeState>,
    page: super::list::NumberPage,
) -> (Vec<&Node>, Option<String>) {
    let after = page.after.map_or(NodeNo(0), |no| NodeNo(no as u32));
    let rest = state.nodes().range((Bound::Excluded(after), Bound::Unbounded));
    let wanted = rest.filter(|(_, node)| only.is_none_or(|wanted| wanted == node.state));
    let mut nodes: Vec<&Node> = wanted.map(|(_, node)| &**node).take(page.per_page + 1).collect();
    let more = nodes.len() > page.per_page;
    nodes.truncate(page.per_page);
    let next = nodes.last().filter(|_| more).map(|node| page.token(u64::from(node.no.0)));
    (nodes, next)
}

impl Service {
    /// What the cluster has and who holds it.
    pub async fn resources(&self, call: &Call) -> Result<ResourcesAnswer, Failure> {
        let view = self.read(call).await?;
        let (tenant, wide) = (call.tenant.clone(), call.who.wide());
        let mut answer = super::off_thread(move || summary(&view.state, tenant.as_ref(), freshness(&view))).await?;
        if !wide {
            // A tenant sees the cluster's sums and its own use, not the machines.
            answer.nodes.clear();
        }
        answer.tenants = answer.tenants.into_iter().map(|body| super::tenants::told(call, body)).collect();
        Ok(answer)
    }

    /// All nodes with their devices, and with `vitals` how those do.
    pub async fn nodes(
        &self,
        call: &Call,
        only: Option<NodeState>,
        page: super::list::NumberPage,
        vitals: bool,
    ) -> Result<NodeList, Failure> {
        let told = match self.vitals.as_ref().filter(|_| vitals) {
            Some(ask) => ask().await.unwrap_or_default(),
            None => Vec::new(),
        };
        let told: BTreeMap<NodeNo, Vec<Vitals>> = told.into_iter().collect();
        let view = self.read(call).await?;
        let fault = self.network_fault(&view.state);
        let make = move || {
            let state = &view.state;
            let (nodes, next_token) = page_of(state, only, page);
            NodeList {
                next_token,
                items: nodes
                    .into_iter()
                    .map(|n| {
                        NodeBody { state_reason: silence(n, &fault), ..NodeBody::new(state, n, true) }
                            .with(told.get(&n.no))
                    })
                    .collect(),
                simulation: state.meta().mode == Mode::Simulation,
                read: freshness(&view),
            }
        };
        super::off_thread(make).await
    }

    /// Registers a node that this member plays. Simulation only: in production a
    /// node speaks for itself, with its certificate.
    pub async fn register_node(&self, call: &Call, wanted: Registration) -> Result<Registered, Failure> {
        if self.mode(call).await? == Mode::Production {
            // Whatever token the caller has: a token says who somebody is, and not that they are this machine.
            let detail = "in production a node registers itself, by the certificate that has its name, where members talk to one \
                          another: nf cluster join --token, then nf serve, on that machine";
            return Err(Refusal::field(Reason::NodeIdentityMismatch, "node_id", detail).into());
        }
        let name = match &wanted.name {
            Some(name) => name.clone(),
            None => made_up(),
        };
        let mut tries = 0;
        loop {
            tries += 1;
            match self.register_once(call, &wanted, name.clone()).await {
                // Another call was given the same ports at the same moment: it has others free.
                Err(failure) if failure.refusal.field.as_deref() == Some("ports") && tries < PORT_TRIES => {}
                done => return done,
            }
        }
    }

    async fn register_once(&self, call: &Call, wanted: &Registration, name: NodeName) -> Result<Registered, Failure> {
        // Another member may have registered it a moment ago.
        let read = self.read(call).await?;
        let (state, index, simulation) = (read.state, read.index, true);
        let known = state.node_named(&name).cloned();
        let own = NodeKind::Played(self.replica.status().id);
        let run_elsewhere = |node: &Node| match node.kind {
            // A player that is gone is taken over from.
            NodeKind::Played(_) => node.kind != own && node.state == NodeState::Ready,
            _ => true,
        };
        if let Some(node) = known.as_ref().filter(|node| run_elsewhere(node)) {
            return agrees(node, wanted, simulation, index);
        }
        let ports = match &known {
            Some(node) => node.spec.ports,
            None => {
                let host = self.info.host.clone();
                let range = self.info.ports;
                // It tries to bind some of them.
                super::off_thread(move || free_ports(&state, &host, range, unused)).await?
            }
        };
        let incarnation = known.as_ref().map_or(Incarnation(1), |node| node.incarnation);
        let spec = Arc::new(wanted.spec(&name, &self.info.host, ports));
        // Its player registers it, too, and counts its starts: saying the same again must not race with that.
        if known.is_some_and(|node| node.state == NodeState::Ready && node.spec == spec) {
            return Ok(Registered { name, new: false, index, simulation });
        }
        let intent = Intent::Register { name: name.clone(), kind: own, incarnation, spec };
        let (answer, index) = self.commit(call, intent).await?;
        Ok(Registered { name, new: matches!(answer, Answer::Node { new: true, .. }), index, simulation })
    }

    /// Keeps new work off a node, or lets it back on.
    /// `seen`: only if the cordon is still that one.
    pub async fn cordon(
        &self,
        call: &Call,
        node: NodeName,
        reason: Option<Arc<str>>,
        seen: Option<Digest16>,
    ) -> Result<NodeBody, Failure> {
        let cordon = reason.map(|reason| Cordon { by: call.who.name().into(), reason, at_ms: 0, drain: None });
        let intent = match seen {
            None => Intent::Cordon { node: node.clone(), cordon },
            Some(seen) => Intent::CordonIf { node: node.clone(), cordon, seen },
        };
        self.changed_node(call, node, intent).await
    }
}

/// Why a silent node is not given up.
fn silence(node: &Node, fault: &Option<String>) -> Option<String> {
    fault.clone().filter(|_| matches!(node.state, NodeState::Suspect | NodeState::Unknown))
}

fn made_up() -> NodeName {
    // The last digits of a version 7 UUID are the random ones.
    let digits = uuid::Uuid::now_v7().simple().to_string();
    NodeName::new(&format!("node-{}", &digits[22..])).expect("hexadecimal digits are a valid name")
}

/// A node that is run elsewhere tells what it has; a call can only agree.
fn agrees(node: &Node, wanted: &Registration, simulation: bool, index: u64) -> Result<Registered, Failure> {
    let gpus = node.spec.devices.iter().filter(|d| d.kind == DeviceKind::Gpu).count();
    if wanted.gpus.is_none_or(|n| usize::from(n) == gpus) {
        return Ok(Registered { name: node.name.clone(), new: false, index, simulation });
    }
    let detail =
        format!("node {} is run elsewhere and has {gpus} GPUs; choose another node_id, or leave gpus out", node.name);
    Err(Refusal::field(Reason::Conflict, "gpus", detail).into())
}

/// Whether nobody listens there: another group on the same machine may.
fn unused(port: u16) -> bool {
    std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// The first ports of `range` on this host that no other node was given and that
/// are all `unused`; None when there are none.
fn free_ports(state: &State, host: &str, range: Option<PortRange>, unused: impl Fn(u16) -> bool) -> Option<PortRange> {
    let range = range?;
    let on_host = state.nodes().values().filter(|n| *n.spec.host == *host);
    let taken: BTreeSet<(u16, u16)> = on_host.filter_map(|n| n.spec.ports).map(|p| (p.first, p.last)).collect();
    let starts = (u32::from(range.first)..=u32::from(range.last)).step_by(usize::from(PORTS));
    let ranges = starts.map(|first| (first, first + u32::from(PORTS) - 1));
    let mut ranges = ranges.filter(|(_, last)| *last <= u32::from(range.last)).map(|(f, l)| (f as u16, l as u16));
    let free = |(first, last): &(u16, u16)| !taken.iter().any(|(f, l)| f <= last && first <= l);
    ranges.find(|range| free(range) && (range.0..=range.1).all(&unused)).map(|(first, last)| PortRange { first, last })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::testing::{register, run};

    #[test]
    fn each_gpu_has_its_own_vitals_and_none_where_nobody_says() {
        let mut state = State::new();
        run(&mut state, register("n1", nf_core::testing::node_spec(2)));
        let node = state.node(NodeNo(1)).unwrap();
        let told = |uuid: &str| Vitals { uuid: uuid.into(), busy_milli: Some(250), used: 7, ..Vitals::default() };
        let body = NodeBody::new(&state, node, true).with(Some(&vec![told("GPU-0001"), told("gone")]));
        let seen =
            |device: usize| body.devices[device].vitals.as_ref().map(|v| (v.utilization, v.memory_used, v.processes));
        assert_eq!((seen(0), seen(1)), (None, Some((Some(0.25), 7, None))));
    }

    #[test]
    fn played_nodes_on_one_host_get_ports_of_their_own() {
        let mut state = State::new();
        let mut seen = BTreeSet::new();
        let range = Some(PortRange { first: 31_500, last: 31_999 });
        for i in 0..20 {
            let name = NodeName::new(&format!("n{i}")).unwrap();
            let ports = free_ports(&state, "127.0.0.1", range, |_| true);
            if let Some(range) = ports {
                assert!(seen.insert(range.first), "given twice: {range:?}");
            }
            let spec = Registration::default().spec(&name, "127.0.0.1", ports);
            run(&mut state, register(name.as_str(), spec));
        }
        assert_eq!(seen.len(), 15, "500 ports, 32 for each");
        assert_eq!(free_ports(&state, "127.0.0.1", None, |_| true), None);
    }

    #[test]
    fn sums_are_the_ledgers() {
        let mut state = State::new();
        run(&mut state, register("n1", nf_core::testing::node_spec(8)));
        let spec = nf_core::testing::job_spec("t1", nf_core::resources::Gpus::Milli(500));
        run(&mut state, nf_core::testing::schedule("r1", spec));
        let answer = summary(&state, None, Freshness::default());
        assert_eq!((answer.total.gpu, answer.reserved.gpu, answer.free.gpu), (8.0, 0.5, 7.5));
        assert_eq!(answer.tenants.len(), 1);
        assert_eq!(answer.tenants[0].used.gpu, 0.5);
    }
}
