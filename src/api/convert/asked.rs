//! What a job asks for, told back as it was understood.

use super::answer::whole;
use nf_core::job::{Arrangement, Constraints, Restart};
use nf_core::resources::Resources;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// What one replica asks for, as it was understood.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResourcesBody {
    pub gpu: f64,
    /// Bytes of each device.
    pub gpu_memory: u64,
    pub device_type: Vec<String>,
    pub mig_profile: Option<String>,
    pub tpu: u16,
    pub cpu: f64,
    /// Bytes.
    pub mem: u64,
    /// Bytes.
    pub disk: u64,
}

impl Eq for ResourcesBody {}

impl From<&Resources> for ResourcesBody {
    fn from(r: &Resources) -> Self {
        Self {
            gpu: whole(r.gpu.milli()),
            gpu_memory: r.gpu_memory,
            device_type: r.device_types.iter().map(ToString::to_string).collect(),
            mig_profile: r.mig_profile.as_ref().map(ToString::to_string),
            tpu: r.tpu,
            cpu: whole(r.cpu_milli),
            mem: r.memory,
            disk: r.disk,
        }
    }
}

/// Where and how a job may run, as it was understood.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConstraintsBody {
    pub latency_ms: Option<u32>,
    /// Part of the requests that may end with a server's error.
    #[serde(default)]
    pub error_rate: Option<f64>,
    pub region: Option<String>,
    pub zone: Option<String>,
    pub rack: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// `pack` or `spread`.
    pub arrangement: String,
    pub same_island: bool,
    pub max_cost_per_hour: Option<f64>,
    pub node: Option<String>,
    pub exclusive: bool,
    pub preemptible: bool,
    /// `always`, `on_failure` or `never`.
    pub restart: String,
    /// Seconds.
    pub max_run_time: Option<f64>,
    /// Never moved only so that others have room.
    #[serde(default)]
    pub stay: bool,
    /// Seconds that its program may take to save its state before it is stopped for the sake of others.
    #[serde(default)]
    pub checkpoint_grace: Option<f64>,
    /// So many of its replicas may be missing at once by others' will; null: any number.
    #[serde(default)]
    pub max_unavailable: Option<u16>,
    /// `rack`, `zone` or `region`: all replicas in one, or they wait.
    #[serde(default)]
    pub topology_required: Option<String>,
    /// The same where it can be; else in as few as can be.
    #[serde(default)]
    pub topology_preferred: Option<String>,
}

impl Eq for ConstraintsBody {}

impl From<&Constraints> for ConstraintsBody {
    fn from(c: &Constraints) -> Self {
        let text = |label: &Option<nf_core::id::Label>| label.as_ref().map(ToString::to_string);
        Self {
            latency_ms: c.latency_ms,
            error_rate: c.error_ppm.map(|ppm| f64::from(ppm) / 1e6),
            region: text(&c.region),
            zone: text(&c.zone),
            rack: text(&c.rack),
            labels: c.labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            arrangement: match c.arrangement {
                Arrangement::Any => "any".into(),
                Arrangement::Pack => "pack".into(),
                Arrangement::Spread => "spread".into(),
            },
            same_island: c.same_island,
            max_cost_per_hour: c.max_cost_per_hour.map(|micro| micro as f64 / 1e6),
            node: c.node.as_ref().map(ToString::to_string),
            exclusive: c.exclusive,
            preemptible: c.preemptible,
            restart: match c.restart {
                Restart::Always => "always".into(),
                Restart::OnFailure => "on_failure".into(),
                Restart::Never => "never".into(),
            },
            max_run_time: c.max_run_ms.map(whole),
            stay: c.stay,
            checkpoint_grace: c.checkpoint_ms.map(|ms| whole(ms.into())),
            max_unavailable: c.max_unavailable,
            topology_required: c.topology.required.map(|level| level.name().to_owned()),
            topology_preferred: c.topology.preferred.map(|level| level.name().to_owned()),
        }
    }
}

/// Between which bounds a service's number of replicas follows its load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScalingBody {
    pub min: u16,
    pub max: u16,
    /// Requests that one replica serves at once; each member's gateway gives it so many at most.
    pub concurrency: u16,
    /// Bound on the time until a request starts to be served.
    pub max_wait_ms: u32,
    pub cold_start_ms: u32,
    /// A replica is kept for so long after the last request, where `min` is 0.
    pub idle_ms: u32,
    /// Decisions are told and not carried out.
    pub advisory: bool,
    /// So many replicas more at most within `step_within_ms`; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_up: Option<u16>,
    /// So many fewer at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_down: Option<u16>,
    pub step_within_ms: u32,
}

impl From<&nf_core::scaling::Scaling> for ScalingBody {
    fn from(scaling: &nf_core::scaling::Scaling) -> Self {
        let nf_core::scaling::Scaling { min, max, concurrency, wait_ms, cold_start_ms, idle_ms, advisory, steps } =
            *scaling;
        Self {
            min,
            max,
            concurrency,
            max_wait_ms: wait_ms,
            cold_start_ms,
            idle_ms,
            advisory,
            step_up: steps.up.map(Into::into),
            step_down: steps.down.map(Into::into),
            step_within_ms: steps.within_ms,
        }
    }
}
