//! A schedule request, from JSON or from its parts, as the core understands it.
//! Its meaning is fixed here, so its digest is computed here, too.

use super::json::{Field, Object};
use super::value;
use nf_core::autoscaler::Steps;
use nf_core::command::Submission;
use nf_core::id::{DeviceType, Digest16, Label, ModelId, NodeName, RequestId, TenantId, VersionId};
use nf_core::job::{Arrangement, Constraints, Evidence, JobSpec, MAX_REPLICAS, Restart, Runtime, device_types};
use nf_core::model_budget::ModelBudget;
use nf_core::plan::{Intent, Queueing};
use nf_core::reason::Refusal;
use nf_core::resources::{Gpus, Resources};
use nf_core::scaling::Scaling;
use nf_core::slo::MOST_ERRORS_PPM;
use nf_core::topology::{Level, Topology};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;

/// Priorities that callers may ask for.
pub const PRIORITY: std::ops::RangeInclusive<i64> = -1000..=1000;
/// Longest Idempotency-Key and approver.
pub const MAX_KEY: usize = 255;

/// What a caller asked for, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub spec: JobSpec,
    pub queueing: Queueing,
    pub check_plan: Option<Digest16>,
    /// The caller's own id for it.
    pub request: Option<RequestId>,
    pub dry_run: bool,
}

/// Reads a schedule request from an object's fields.
///
/// # Errors
/// The first field at fault.
pub fn from_json(map: &Map<String, Value>) -> Result<Schedule, Refusal> {
    let mut top = Object::top(map);
    let schedule = from_object(&mut top)?;
    top.finish()?;
    Ok(schedule)
}

/// The same from an object that has fields of its own besides.
pub fn from_object(top: &mut Object<'_>) -> Result<Schedule, Refusal> {
    let tenant = top.need("tenant_id")?.name(TenantId::new)?;
    let model = top.need("model_id")?.name(ModelId::new)?;
    let version = top.need("model_version")?.name(VersionId::new)?;
    let mut resources = top.get("resources").map(|f| resources(&f)).transpose()?.unwrap_or_default();
    let (constraints, extra) = top.get("constraints").map(|f| constraints(&f)).transpose()?.unwrap_or_default();
    merge_types(&mut resources, extra.device_types)?;
    let own = top.integer("priority", *PRIORITY.start(), *PRIORITY.end())?;
    let priority = match (own, extra.priority) {
        (Some(a), Some(b)) if a != b => {
            return Err(Refusal::invalid("constraints.priority", "priority is given twice, and differs"));
        }
        (own, inner) => own.or(inner).unwrap_or(0) as i16,
    };
    let replicas = top.integer("replicas", 1, i64::from(MAX_REPLICAS))?.unwrap_or(1) as u16;
    let gang = top.boolean("gang")?.unwrap_or(false);
    let words = [("wait", Queueing::Wait), ("never", Queueing::Never)];
    let queueing = top.get("queue").map(|f| f.word(&words)).transpose()?.unwrap_or_default();
    let check_plan = top.get("check_plan").map(|f| value::digest(f.text()?).map_err(|e| f.refuse(e))).transpose()?;
    let request = top.name("request_id", RequestId::new)?;
    let approved_by = top.get("approved_by").map(|f| approver(f.text()?).map_err(|e| f.refuse(e))).transpose()?;
    let dry_run = top.boolean("dry_run")?.unwrap_or(false);
    let scaling = top.get("scaling").map(|f| scaling(&f, replicas)).transpose()?;
    let runtime = runtime(top.boolean("prefetch")?.unwrap_or(false));
    let spec = JobSpec {
        tenant,
        model,
        version,
        resources,
        replicas,
        gang,
        constraints,
        priority,
        runtime,
        manifest: None,
        evidence: None,
        asked_by: None,
        data_classes: Vec::new(),
        self_limiting: false,
        budget: ModelBudget::default(),
        below: None,
        approved_by,
        scaling,
    };
    Ok(Schedule { spec, queueing, check_plan, request, dry_run })
}

/// What runs the job as far as its caller says; the rest is its manifest's.
pub fn runtime(prefetch: bool) -> Runtime {
    if prefetch { Runtime::Prefetch } else { Runtime::Simulated }
}

/// A person's name: anything printable, since identity providers differ.
pub fn approver(text: &str) -> Result<Arc<str>, String> {
    if text.is_empty() || text.len() > MAX_KEY || text.chars().any(char::is_control) {
        return Err(format!("1 to {MAX_KEY} printable characters"));
    }
    Ok(text.into())
}

/// `{"min":0,"max":8,"concurrency":4,"max_wait":"2s","cold_start":"30s","idle":"10m","advisory":false,
/// "step_up":4,"step_down":1,"step_within":"1m"}`.
fn scaling(field: &Field<'_>, replicas: u16) -> Result<Scaling, Refusal> {
    let mut o = field.object()?;
    let most = i64::from(u16::MAX);
    let usual = Scaling::default();
    let whole = |n: Option<i64>, usual: u16| n.map_or(usual, |n| n as u16);
    let min = whole(o.integer("min", 0, most)?, usual.min);
    let max = o.need("max")?.integer(1, most)? as u16;
    let concurrency = whole(o.integer("concurrency", 1, most)?, usual.concurrency);
    let mut time = |key: &'static str, usual: u32| -> Result<u32, Refusal> {
        let Some(f) = o.get(key) else { return Ok(usual) };
        u32::try_from(span(&f)?).map_err(|_| f.refuse("at most a day"))
    };
    let wait_ms = time("max_wait", usual.wait_ms)?;
    let cold_start_ms = time("cold_start", usual.cold_start_ms)?;
    let idle_ms = time("idle", usual.idle_ms)?;
    let within_ms = time("step_within", usual.steps.within_ms)?;
    let advisory = o.boolean("advisory")?.unwrap_or(false);
    let mut step = |key: &'static str| o.integer(key, 1, most).map(|n| NonZeroU16::new(n.unwrap_or(0) as u16));
    let steps = Steps { up: step("step_up")?, down: step("step_down")?, within_ms };
    o.finish()?;
    let scaling = Scaling { min, max, concurrency, wait_ms, cold_start_ms, idle_ms, advisory, steps };
    scaling.check(replicas, false)?;
    Ok(scaling)
}

/// `{"replicas":3}`.
///
/// # Errors
/// The field at fault.
pub fn scale(map: &Map<String, Value>) -> Result<u16, Refusal> {
    let mut top = Object::top(map);
    let replicas = top.need("replicas")?.integer(0, i64::from(MAX_REPLICAS))? as u16;
    top.finish()?;
    Ok(replicas)
}

fn resources(field: &Field<'_>) -> Result<Resources, Refusal> {
    let mut o = field.object()?;
    let gpu = match o.get("gpu") {
        None => Gpus::None,
        Some(f) => Gpus::from_milli(f.milli()?).map_err(|text| f.refuse(text))?,
    };
    let gpu_memory = o.bytes("gpu_memory")?.unwrap_or(0);
    let types = o.get("device_type").map(|f| type_list(&f)).transpose()?.unwrap_or_default();
    let mig_profile = o.name("mig_profile", DeviceType::new)?;
    let gpu = gpu.or_slice(mig_profile.as_ref());
    let tpu = o.integer("tpu", 0, 1024)?.unwrap_or(0) as u16;
    let cpu_milli = o.milli("cpu")?.unwrap_or(0);
    let memory = o.bytes("mem")?.unwrap_or(0);
    let disk = o.bytes("disk")?.unwrap_or(0);
    o.finish()?;
    Ok(Resources { gpu, gpu_memory, device_types: device_types(types), mig_profile, tpu, cpu_milli, memory, disk })
}

/// `"A|B"` or `["A","B"]`.
fn type_list(field: &Field<'_>) -> Result<Vec<DeviceType>, Refusal> {
    match field.value {
        Value::Array(_) => field.list()?.iter().map(|item| item.name(DeviceType::new)).collect(),
        _ => value::device_types(field.text()?).map_err(|text| field.refuse(text)),
    }
}

/// What may stand among the constraints and belongs elsewhere.
#[derive(Default)]
struct Extra {
    device_types: Vec<DeviceType>,
    priority: Option<i64>,
}

/// A part of all requests, in millionths.
fn error_rate(field: &Field<'_>) -> Result<u32, Refusal> {
    let ppm = u32::try_from(field.micro()?).ok().filter(|ppm| (1..=MOST_ERRORS_PPM).contains(ppm));
    ppm.ok_or_else(|| field.refuse("more than 0 and at most 0.2, such as 0.01"))
}

fn constraints(field: &Field<'_>) -> Result<(Constraints, Extra), Refusal> {
    let mut o = field.object()?;
    let latency_ms = o.integer("latency_ms", 1, i64::from(u32::MAX))?.map(|ms| ms as u32);
    let error_ppm = o.get("error_rate").map(|f| error_rate(&f)).transpose()?;
    let (region, zone) = (o.name("region", Label::new)?, o.name("zone", Label::new)?);
    let rack = o.name("rack", Label::new)?;
    let labels = o.get("labels").map(|f| labels(&f)).transpose()?.unwrap_or_default();
    let arrangement = arrangement(&mut o, field)?;
    let same_island = o.boolean("same_island")?.unwrap_or(false);
    let levels = Level::ALL.map(|level| (level.name(), level));
    let mut level = |key| o.get(key).map(|f| f.word(&levels)).transpose();
    let topology = Topology { required: level("topology_required")?, preferred: level("topology_preferred")? };
    let max_cost_per_hour = o.get("max_cost_per_hour").map(|f| f.micro()).transpose()?;
    let node = o.name("node", NodeName::new)?;
    let exclusive = o.boolean("exclusive")?.unwrap_or(false);
    let preemptible = o.boolean("preemptible")?.unwrap_or(false);
    let words = [("always", Restart::Always), ("on_failure", Restart::OnFailure), ("never", Restart::Never)];
    let restart = o.get("restart").map(|f| f.word(&words)).transpose()?.unwrap_or_default();
    let max_run_ms = o.get("max_run_time").map(|f| span(&f)).transpose()?;
    let stay = o.boolean("stay")?.unwrap_or(false);
    let checkpoint_ms = o.get("checkpoint_grace").map(|f| short(&f)).transpose()?;
    let max_unavailable = o.integer("max_unavailable", 0, i64::from(MAX_REPLICAS))?.map(|n| n as u16);
    let device_types = o.get("device_type").map(|f| type_list(&f)).transpose()?.unwrap_or_default();
    let priority = o.integer("priority", *PRIORITY.start(), *PRIORITY.end())?;
    o.finish()?;
    let constraints = Constraints {
        latency_ms,
        region,
        zone,
        rack,
        labels,
        arrangement,
        same_island,
        max_cost_per_hour,
        node,
        exclusive,
        preemptible,
        restart,
        max_run_ms,
        stay,
        checkpoint_ms,
        max_unavailable,
        topology,
        error_ppm,
    };
    Ok((constraints, Extra { device_types, priority }))
}

/// `"arrangement": "spread"`, or the short `"spread": true`.
fn arrangement(o: &mut Object<'_>, field: &Field<'_>) -> Result<Arrangement, Refusal> {
    let words = [("any", Arrangement::Any), ("pack", Arrangement::Pack), ("spread", Arrangement::Spread)];
    let named = o.get("arrangement").map(|f| f.word(&words)).transpose()?;
    let spread = o.boolean("spread")?.unwrap_or(false).then_some(Arrangement::Spread);
    let pack = o.boolean("pack")?.unwrap_or(false).then_some(Arrangement::Pack);
    let mut said = [named, spread, pack].into_iter().flatten();
    let first = said.next();
    if said.any(|other| Some(other) != first) {
        return Err(field.refuse("spread and pack exclude each other"));
    }
    Ok(first.unwrap_or_default())
}

/// Labels, each checked as key and as value.
pub fn labels(field: &Field<'_>) -> Result<BTreeMap<Label, Label>, Refusal> {
    let each = |(key, value): (&str, Field<'_>)| {
        let key = Label::new(key).map_err(|error| value.refuse(error))?;
        Ok((key, value.name(Label::new)?))
    };
    field.entries()?.into_iter().map(each).collect()
}

/// Seconds as a number, or a span such as `10m`.
pub(super) fn span(field: &Field<'_>) -> Result<u64, Refusal> {
    let ms = match field.value {
        Value::Number(number) => value::seconds(number.as_f64().unwrap_or(f64::NAN)),
        _ => value::span(field.text()?),
    };
    ms.map_err(|text| field.refuse(text))
}

/// A span of at most 49 days.
pub(super) fn short(field: &Field<'_>) -> Result<u32, Refusal> {
    u32::try_from(span(field)?).map_err(|_| field.refuse("at most 49 days"))
}

fn merge_types(resources: &mut Resources, extra: Vec<DeviceType>) -> Result<(), Refusal> {
    let extra = device_types(extra);
    if extra.is_empty() || extra == resources.device_types {
        return Ok(());
    }
    if !resources.device_types.is_empty() {
        let detail = "device types are given in resources, too, and differ";
        return Err(Refusal::invalid("constraints.device_type", detail));
    }
    resources.device_types = extra;
    Ok(())
}

/// Which job a call means, and who chose its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    pub request: RequestId,
    /// The client chose it, so a retry may come after minutes.
    pub keyed: bool,
}

/// The job's id: derived from the Idempotency-Key, chosen by the client, or minted here.
///
/// # Errors
/// A key that is too long, or a key and an id at once.
pub fn naming(tenant: &TenantId, request: Option<&RequestId>, key: Option<&str>) -> Result<Naming, Refusal> {
    match (request, key) {
        (Some(_), Some(_)) => {
            let detail = "give request_id or an Idempotency-Key, not both: each alone makes a retry safe";
            Err(Refusal::invalid("request_id", detail))
        }
        (Some(request), None) => Ok(Naming { request: request.clone(), keyed: true }),
        (None, Some(key)) if key.is_empty() || key.len() > MAX_KEY => {
            Err(Refusal::invalid("Idempotency-Key", format!("1 to {MAX_KEY} bytes, not {}", key.len())))
        }
        // A job has one id. That it is of the key, and whose, is in it, so no id that a client chose comes out alike.
        (None, Some(key)) => {
            let digest = Digest16::of(&[b"idempotency-key", tenant.as_str().as_bytes(), key.as_bytes()]);
            let request = RequestId::new(&format!("k{digest}")).expect("hexadecimal digits are a valid id");
            Ok(Naming { request, keyed: true })
        }
        (None, None) => {
            let minted = uuid::Uuid::now_v7().simple().to_string();
            let request = RequestId::new(&minted).expect("hexadecimal digits are a valid id");
            Ok(Naming { request, keyed: false })
        }
    }
}

/// What a model store says of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    pub runtime: Runtime,
    /// SHA-256 of the manifest.
    pub manifest: [u8; 32],
    /// Whose signature was verified, where signatures are asked for.
    pub evidence: Option<Evidence>,
    /// What kinds of data the version holds.
    pub data_classes: Vec<Label>,
    /// Its program keeps to its part of a GPU by itself.
    pub self_limiting: bool,
    /// What it may take (P6).
    pub budget: ModelBudget,
}

impl ModelFacts {
    /// Says in the spec what the version is.
    pub fn put(self, spec: &mut JobSpec) {
        // What is only brought to its node runs as nothing.
        if !spec.is_prefetch() {
            spec.runtime = self.runtime;
        }
        spec.manifest = Some(self.manifest);
        spec.evidence = self.evidence;
        spec.data_classes = self.data_classes;
        spec.self_limiting = self.self_limiting;
        spec.budget = self.budget;
    }
}

/// Of what was asked, by names and without what was left out: a later build, whose requests know more fields, makes the
/// same of the same request, so that a retry across an upgrade is no conflict.
fn digest(intent: &Intent) -> Digest16 {
    let mut said = serde_json::to_value(intent).expect("fields with names");
    leave_out(&mut said);
    Digest16::of(&[b"schedule", said.to_string().as_bytes()])
}

/// Takes out fields that say nothing. Not those that are empty objects: such a one may be all that a variant has.
fn leave_out(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(leave_out);
            map.retain(|_, value| !matches!(value, Value::Null | Value::Bool(false)) && *value != Value::Array(vec![]));
        }
        Value::Array(items) => items.iter_mut().for_each(leave_out),
        _ => {}
    }
}

impl Schedule {
    /// The intent. The digest covers what the caller said and not what the store
    /// adds, so that publishing a model between two tries makes no conflict.
    pub fn into_intent(self, naming: Naming, facts: Option<ModelFacts>) -> Intent {
        let Naming { request, keyed } = naming;
        let submission = Submission { request, body: Digest16([0; 16]), keyed, spec: Arc::new(self.spec) };
        let mut intent = Intent::Schedule { submission, queueing: self.queueing, check_plan: self.check_plan };
        let digest = digest(&intent);
        if let Intent::Schedule { submission, .. } = &mut intent {
            submission.body = digest;
            if let (Some(facts), Some(spec)) = (facts, Arc::get_mut(&mut submission.spec)) {
                facts.put(spec);
            }
        }
        intent
    }
}
