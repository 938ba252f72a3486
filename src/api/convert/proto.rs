//! The same border for gRPC: messages straight into core types and views into
//! messages, without JSON between. In proto3 an empty string or a zero is an
//! absent field. It does not call anything.

use super::answer::{Freshness, JobRow, WhyBody, whole};
use super::node::{MAX_DEVICES, Registration};
use super::schedule::{PRIORITY, Schedule, approver, runtime};
use super::value;
use nf_core::autoscaler::Steps;
use nf_core::id::{DeviceType, Label, ModelId, NameError, NodeName, RequestId, TenantId, VersionId};
use nf_core::job::{Arrangement, Constraints, JobSpec, MAX_REPLICAS, Restart, device_types};
use nf_core::model_budget::ModelBudget;
use nf_core::node::MAX_NUMA_NODES;
use nf_core::plan::Queueing;
use nf_core::reason::{Blocker, Reason, Refusal};
use nf_core::resources::{Gpus, Resources};
use nf_core::scaling::Scaling;
use nf_core::sharing::Sharing;
use nf_core::slo::MOST_ERRORS_PPM;
use nf_core::topology::{Level, Topology};
use nf_core::view::{JobView, PlaceView, ReplicaView};
use nf_proto::v1;
use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU16;

/// Most labels and device types in one message.
const MAX_ITEMS: usize = super::json::MAX_ITEMS;

/// A name that must be there.
///
/// # Errors
/// The field, absent or no name.
pub fn name<T>(field: &str, text: &str, new: fn(&str) -> Result<T, NameError>) -> Result<T, Refusal> {
    new(text).map_err(|error| match text.is_empty() {
        true => Refusal::invalid(field, format!("{field} is missing")),
        false => Refusal::invalid(field, error.to_string()),
    })
}

/// None for an empty text.
pub fn maybe<T>(field: &str, text: &str, new: fn(&str) -> Result<T, NameError>) -> Result<Option<T>, Refusal> {
    if text.is_empty() { Ok(None) } else { name(field, text, new).map(Some) }
}

fn at<T>(field: &str, result: Result<T, String>) -> Result<T, Refusal> {
    result.map_err(|text| Refusal::invalid(field, format!("{field}: {text}")))
}

fn enumeration<T>(field: &str, number: i32, known: Result<T, prost::UnknownEnumValue>) -> Result<T, Refusal> {
    known.map_err(|_| Refusal::invalid(field, format!("{field}: {number} is not a known value")))
}

/// Reads a schedule request.
///
/// # Errors
/// The first field at fault.
pub fn schedule(m: v1::ScheduleRequest) -> Result<(Schedule, Option<String>), Refusal> {
    let queueing = match enumeration("queue", m.queue, v1::Queue::try_from(m.queue))? {
        v1::Queue::Unspecified | v1::Queue::Wait => Queueing::Wait,
        v1::Queue::Never => Queueing::Never,
    };
    if m.replicas > u32::from(MAX_REPLICAS) {
        return Err(Refusal::invalid("replicas", format!("1 to {MAX_REPLICAS}, not {}", m.replicas)));
    }
    if !PRIORITY.contains(&i64::from(m.priority)) {
        return Err(Refusal::invalid("priority", format!("-1000 to 1000, not {}", m.priority)));
    }
    let spec = JobSpec {
        tenant: name("tenant_id", &m.tenant_id, TenantId::new)?,
        model: name("model_id", &m.model_id, ModelId::new)?,
        version: name("model_version", &m.model_version, VersionId::new)?,
        resources: m.resources.map(resources).transpose()?.unwrap_or_default(),
        replicas: m.replicas.max(1) as u16,
        gang: m.gang,
        constraints: m.constraints.map(constraints).transpose()?.unwrap_or_default(),
        priority: m.priority as i16,
        runtime: runtime(m.prefetch),
        manifest: None,
        evidence: None,
        asked_by: None,
        data_classes: Vec::new(),
        self_limiting: false,
        budget: ModelBudget::default(),
        below: None,
        approved_by: match m.approved_by.as_str() {
            "" => None,
            text => Some(at("approved_by", approver(text))?),
        },
        scaling: m.scaling.map(scaling).transpose()?,
    };
    let check_plan = match m.check_plan.as_str() {
        "" => None,
        text => Some(at("check_plan", value::digest(text))?),
    };
    let request = maybe("request_id", &m.request_id, RequestId::new)?;
    let key = (!m.idempotency_key.is_empty()).then_some(m.idempotency_key);
    Ok((Schedule { spec, queueing, check_plan, request, dry_run: false }, key))
}

fn scaling(m: v1::Scaling) -> Result<Scaling, Refusal> {
    let usual = Scaling::default();
    let small = |field: &str, n: u32| {
        u16::try_from(n).map_err(|_| Refusal::invalid(field, format!("{field}: at most {}, not {n}", u16::MAX)))
    };
    let or = |n: u32, usual: u32| if n == 0 { usual } else { n };
    Ok(Scaling {
        min: small("scaling.min", m.min)?,
        max: small("scaling.max", m.max)?,
        concurrency: small("scaling.concurrency", or(m.concurrency, usual.concurrency.into()))?,
        wait_ms: or(m.max_wait_ms, usual.wait_ms),
        cold_start_ms: or(m.cold_start_ms, usual.cold_start_ms),
        idle_ms: or(m.idle_ms, usual.idle_ms),
        advisory: m.advisory,
        steps: Steps {
            up: NonZeroU16::new(small("scaling.step_up", m.step_up)?),
            down: NonZeroU16::new(small("scaling.step_down", m.step_down)?),
            within_ms: or(m.step_within_ms, usual.steps.within_ms),
        },
    })
}

fn resources(m: v1::Resources) -> Result<Resources, Refusal> {
    if m.device_types.len() > MAX_ITEMS {
        return Err(Refusal::invalid("resources.device_types", format!("at most {MAX_ITEMS}")));
    }
    let types = m.device_types.iter().map(|t| name("resources.device_types", t, DeviceType::new));
    let mig_profile = maybe("resources.mig_profile", &m.mig_profile, DeviceType::new)?;
    let gpu = at("resources.gpu", value::milli(m.gpu).and_then(Gpus::from_milli))?;
    Ok(Resources {
        gpu: gpu.or_slice(mig_profile.as_ref()),
        gpu_memory: at("resources.gpu_memory_bytes", value::plain_bytes(m.gpu_memory_bytes))?,
        device_types: device_types(types.collect::<Result<_, _>>()?),
        mig_profile,
        tpu: match m.tpu {
            0..=1024 => m.tpu as u16,
            more => return Err(Refusal::invalid("resources.tpu", format!("at most 1024, not {more}"))),
        },
        cpu_milli: at("resources.cpu", value::milli(m.cpu))?,
        memory: at("resources.memory_bytes", value::plain_bytes(m.memory_bytes))?,
        disk: at("resources.disk_bytes", value::plain_bytes(m.disk_bytes))?,
    })
}

/// Labels, each checked as key and as value.
fn labels(field: &str, map: &HashMap<String, String>) -> Result<BTreeMap<Label, Label>, Refusal> {
    if map.len() > MAX_ITEMS {
        return Err(Refusal::invalid(field, format!("at most {MAX_ITEMS} labels, not {}", map.len())));
    }
    map.iter().map(|(k, v)| Ok((name(field, k, Label::new)?, name(field, v, Label::new)?))).collect()
}

fn level(field: &str, number: i32) -> Result<Option<Level>, Refusal> {
    Ok(match enumeration(field, number, v1::TopologyLevel::try_from(number))? {
        v1::TopologyLevel::Unspecified => None,
        v1::TopologyLevel::Rack => Some(Level::Rack),
        v1::TopologyLevel::Zone => Some(Level::Zone),
        v1::TopologyLevel::Region => Some(Level::Region),
    })
}

/// A part of all requests, in millionths; 0 is none.
fn error_rate(part: f64) -> Result<Option<u32>, Refusal> {
    let field = "constraints.error_rate";
    match at(field, value::micro(part))? {
        0 => Ok(None),
        ppm if ppm <= MOST_ERRORS_PPM.into() => Ok(Some(ppm as u32)),
        _ => Err(Refusal::invalid(field, "at most 0.2, such as 0.01".to_owned())),
    }
}

fn constraints(m: v1::Constraints) -> Result<Constraints, Refusal> {
    let arrangement = v1::Arrangement::try_from(m.arrangement);
    let restart = v1::Restart::try_from(m.restart);
    let most = 10 * 366 * 86_400_000;
    if m.max_run_time_ms > most {
        return Err(Refusal::invalid("constraints.max_run_time_ms", format!("at most {most}")));
    }
    Ok(Constraints {
        latency_ms: (m.latency_ms > 0).then_some(m.latency_ms),
        error_ppm: error_rate(m.error_rate)?,
        region: maybe("constraints.region", &m.region, Label::new)?,
        zone: maybe("constraints.zone", &m.zone, Label::new)?,
        rack: maybe("constraints.rack", &m.rack, Label::new)?,
        labels: labels("constraints.labels", &m.labels)?,
        arrangement: match enumeration("constraints.arrangement", m.arrangement, arrangement)? {
            v1::Arrangement::Unspecified => Arrangement::Any,
            v1::Arrangement::Pack => Arrangement::Pack,
            v1::Arrangement::Spread => Arrangement::Spread,
        },
        same_island: m.same_island,
        max_cost_per_hour: m
            .max_cost_per_hour
            .map(|cost| at("constraints.max_cost_per_hour", value::micro(cost)))
            .transpose()?,
        node: maybe("constraints.node", &m.node, NodeName::new)?,
        exclusive: m.exclusive,
        preemptible: m.preemptible,
        restart: match enumeration("constraints.restart", m.restart, restart)? {
            v1::Restart::Unspecified | v1::Restart::Always => Restart::Always,
            v1::Restart::OnFailure => Restart::OnFailure,
            v1::Restart::Never => Restart::Never,
        },
        max_run_ms: (m.max_run_time_ms > 0).then_some(m.max_run_time_ms),
        stay: m.stay,
        checkpoint_ms: (m.checkpoint_grace_ms > 0).then_some(m.checkpoint_grace_ms),
        max_unavailable: m
            .max_unavailable
            .map(|n| u16::try_from(n).map_err(|_| Refusal::invalid("constraints.max_unavailable", "at most 1024")))
            .transpose()?,
        topology: Topology {
            required: level("constraints.topology_required", m.topology_required)?,
            preferred: level("constraints.topology_preferred", m.topology_preferred)?,
        },
    })
}

/// Reads a registration.
///
/// # Errors
/// The first field at fault.
pub fn registration(m: v1::RegisterNodeRequest) -> Result<Registration, Refusal> {
    let most = MAX_DEVICES as u32;
    if m.gpus.unwrap_or(0) > most || m.tpus > most {
        return Err(Refusal::invalid("gpus", format!("at most {most} devices of a kind")));
    }
    let sized = |field: &str, bytes: u64| match bytes {
        0 => Ok(None),
        bytes => at(field, value::plain_bytes(bytes)).map(Some),
    };
    Ok(Registration {
        name: maybe("node_id", &m.node_id, NodeName::new)?,
        gpus: m.gpus.map(|n| n as u16),
        tpus: m.tpus as u16,
        device_type: maybe("device_type", &m.device_type, DeviceType::new)?,
        gpu_memory: sized("gpu_memory_bytes", m.gpu_memory_bytes)?,
        cpu_milli: match at("cpu", value::milli(m.cpu))? {
            0 => None,
            milli => Some(milli),
        },
        memory: sized("memory_bytes", m.memory_bytes)?,
        disk: sized("disk_bytes", m.disk_bytes)?,
        labels: labels("labels", &m.labels)?,
        region: maybe("region", &m.region, Label::new)?,
        zone: maybe("zone", &m.zone, Label::new)?,
        rack: maybe("rack", &m.rack, Label::new)?,
        cost_per_hour: m.cost_per_hour.map(|cost| at("cost_per_hour", value::micro(cost))).transpose()?,
        sharing: match m.sharing.as_str() {
            "" => None,
            text => Some(at("sharing", Sharing::named(text).ok_or_else(|| "none, mps, mig or simulated".to_owned()))?),
        },
        numa_nodes: m.numa_nodes.map(numa_nodes).transpose()?,
    })
}

fn numa_nodes(count: u32) -> Result<u16, Refusal> {
    let few = u16::try_from(count).ok().filter(|count| (1..=MAX_NUMA_NODES).contains(count));
    few.ok_or_else(|| Refusal::invalid("numa_nodes", format!("1 to {MAX_NUMA_NODES}, or leave it out")))
}

pub fn blocker(b: &Blocker) -> v1::Blocker {
    v1::Blocker {
        reason: b.reason.token().to_owned(),
        detail: b.detail.clone(),
        nodes: b.nodes,
        permanent: b.permanent,
    }
}

pub fn place(p: &PlaceView) -> v1::Place {
    let device = |d: &nf_core::view::DeviceView| v1::HeldDevice {
        uuid: d.uuid.to_string(),
        index: u32::from(d.index),
        device_type: d.device_type.to_string(),
        milli: u32::from(d.milli),
        kept: d.keeper(),
    };
    v1::Place {
        node: p.node.to_string(),
        devices: p.devices.iter().map(device).collect(),
        address: p.address.clone().unwrap_or_default(),
        simulated: p.simulated,
    }
}

pub fn placement(replica: u16, p: &PlaceView, why: Option<&WhyBody>) -> v1::ReplicaPlacement {
    v1::ReplicaPlacement {
        replica: u32::from(replica),
        place: Some(place(p)),
        why: why.map(WhyBody::line).unwrap_or_default(),
    }
}

fn token(reason: Option<Reason>) -> String {
    reason.map(|r| r.token().to_owned()).unwrap_or_default()
}

fn replica(r: &ReplicaView) -> v1::Replica {
    v1::Replica {
        no: u32::from(r.no),
        generation: r.generation,
        restarts: u32::from(r.restarts),
        model_version: r.version.to_string(),
        status: r.status.to_string(),
        why: token(r.why),
        place: r.place.as_ref().map(place),
        choice: r.choice.as_ref().map(|choice| WhyBody::from(choice).line()).unwrap_or_default(),
        other: r.other.as_ref().map(|copy| v1::ReplicaCopy {
            generation: copy.generation,
            status: copy.status.to_string(),
            why: copy.why.token().to_owned(),
            place: copy.place.as_ref().map(place),
            saves_until_ms: copy.saves_until_ms.unwrap_or(0),
        }),
        saves_until_ms: r.saves_until_ms.unwrap_or(0),
    }
}

pub fn job(view: &JobView, simulation: bool) -> v1::Job {
    let spec = &view.spec;
    let line = |t: &nf_core::job::Transition| v1::Transition {
        at_ms: t.at_ms,
        state: t.state.name().to_owned(),
        why: token(t.why),
    };
    v1::Job {
        request_id: view.request.to_string(),
        tenant_id: view.tenant.to_string(),
        model_id: view.model.to_string(),
        model_version: view.version.to_string(),
        state: view.state.name().to_owned(),
        priority: i32::from(spec.priority),
        resources: Some(resources_out(&spec.resources)),
        constraints: Some(constraints_out(&spec.constraints)),
        gang: spec.gang,
        replicas: view.replicas.iter().map(replica).collect(),
        reasons: view.blockers.iter().map(blocker).collect(),
        position: view.position.unwrap_or(0),
        history: view.history.iter().map(line).collect(),
        created_ms: view.created_ms,
        changed_ms: view.changed_ms,
        simulation,
        rollout: view.rollout.as_deref().map(super::rollout::put),
        may_preempt_from_ms: view.may_preempt_from_ms.unwrap_or(0),
    }
}

fn resources_out(r: &Resources) -> v1::Resources {
    v1::Resources {
        gpu: whole(r.gpu.milli()),
        gpu_memory_bytes: r.gpu_memory,
        device_types: r.device_types.iter().map(ToString::to_string).collect(),
        mig_profile: r.mig_profile.as_ref().map(ToString::to_string).unwrap_or_default(),
        tpu: u32::from(r.tpu),
        cpu: whole(r.cpu_milli),
        memory_bytes: r.memory,
        disk_bytes: r.disk,
    }
}

fn level_out(level: Option<Level>) -> v1::TopologyLevel {
    match level {
        None => v1::TopologyLevel::Unspecified,
        Some(Level::Rack) => v1::TopologyLevel::Rack,
        Some(Level::Zone) => v1::TopologyLevel::Zone,
        Some(Level::Region) => v1::TopologyLevel::Region,
    }
}

fn constraints_out(c: &Constraints) -> v1::Constraints {
    let text = |label: &Option<Label>| label.as_ref().map(ToString::to_string).unwrap_or_default();
    let arrangement = match c.arrangement {
        Arrangement::Any => v1::Arrangement::Unspecified,
        Arrangement::Pack => v1::Arrangement::Pack,
        Arrangement::Spread => v1::Arrangement::Spread,
    };
    let restart = match c.restart {
        Restart::Always => v1::Restart::Always,
        Restart::OnFailure => v1::Restart::OnFailure,
        Restart::Never => v1::Restart::Never,
    };
    v1::Constraints {
        latency_ms: c.latency_ms.unwrap_or(0),
        error_rate: c.error_ppm.map_or(0.0, |ppm| f64::from(ppm) / 1e6),
        region: text(&c.region),
        zone: text(&c.zone),
        rack: text(&c.rack),
        labels: c.labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        arrangement: arrangement.into(),
        same_island: c.same_island,
        max_cost_per_hour: c.max_cost_per_hour.map(|micro| micro as f64 / 1e6),
        node: c.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        exclusive: c.exclusive,
        preemptible: c.preemptible,
        restart: restart.into(),
        max_run_time_ms: c.max_run_ms.unwrap_or(0),
        stay: c.stay,
        checkpoint_grace_ms: c.checkpoint_ms.unwrap_or(0),
        max_unavailable: c.max_unavailable.map(u32::from),
        topology_required: level_out(c.topology.required).into(),
        topology_preferred: level_out(c.topology.preferred).into(),
    }
}

pub fn read(f: &Freshness) -> v1::ReadInfo {
    v1::ReadInfo {
        index: f.index,
        known_leader: f.known_leader,
        last_contact_ms: f.last_contact_ms,
        event_index: f.event_index,
    }
}

/// A list's row; times are those of the core, since the row's own are text.
pub fn row(row: JobRow, created_ms: u64, changed_ms: u64) -> v1::JobRow {
    v1::JobRow {
        request_id: row.request_id,
        tenant_id: row.tenant_id,
        model_id: row.model_id,
        model_version: row.model_version,
        state: row.state,
        priority: i32::from(row.priority),
        replicas: u32::from(row.replicas),
        ready: u32::from(row.ready),
        nodes: row.nodes,
        gpu: row.gpu,
        created_ms,
        changed_ms,
    }
}

pub fn amounts(a: super::amounts::Amounts) -> v1::Amounts {
    v1::Amounts { gpu: a.gpu, tpu: a.tpu, cpu: a.cpu, memory_bytes: a.mem, disk_bytes: a.disk }
}
