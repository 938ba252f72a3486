//! The shapes of request bodies, for the OpenAPI document only: requests are
//! read by hand in `convert`, which a test holds against these.

#![allow(dead_code)]

use serde::Deserialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A number, or the same as text.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Quantity {
    Number(f64),
    Text(String),
}

/// `"A|B"` or a list.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Types {
    Text(String),
    List(Vec<String>),
}

/// What to schedule. A number such as 6.0 is accepted where a whole one is wanted.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleRequest {
    /// Whose work it is.
    #[schema(pattern = "^[a-z0-9][a-z0-9_-]{0,62}$")]
    pub tenant_id: String,
    pub model_id: String,
    pub model_version: String,
    pub resources: Option<ResourcesRequest>,
    pub constraints: Option<ConstraintsRequest>,
    #[schema(minimum = 1, maximum = 1024)]
    pub replicas: Option<u32>,
    /// All replicas at once, or none.
    pub gang: Option<bool>,
    #[schema(minimum = -1000, maximum = 1000)]
    pub priority: Option<i32>,
    /// `wait` (unless said) or `never`: refuse what can't run now.
    pub queue: Option<String>,
    /// Digest of a plan; refused when planning again gives another.
    pub check_plan: Option<String>,
    /// Chosen by the client, and its tenant's own; a retry returns the same job.
    pub request_id: Option<String>,
    pub approved_by: Option<String>,
    /// Makes it a service: its number of replicas follows its load.
    pub scaling: Option<ScalingRequest>,
    /// Runs nothing: brings the version's files to the node that `constraints.node` names, verified, and keeps them in its
    /// cache until the job is stopped. Neither resources nor replicas with it.
    pub prefetch: Option<bool>,
    pub dry_run: Option<bool>,
}

/// Between which bounds, and on what terms, the number of replicas follows the load.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScalingRequest {
    /// 1 unless said; 0 lets it sleep when nobody asks.
    pub min: Option<u32>,
    #[schema(minimum = 1, maximum = 1024)]
    pub max: u32,
    /// Requests that one replica serves at once; each member's gateway gives it so many at most. 8 unless said.
    pub concurrency: Option<u32>,
    /// Bound on the time until a request starts to be served: seconds, or a span; 2s unless said.
    #[schema(inline)]
    pub max_wait: Option<Quantity>,
    /// How long a replica takes to start, until that has been seen; 30s unless said.
    #[schema(inline)]
    pub cold_start: Option<Quantity>,
    /// A replica is kept for so long after the last request, where min is 0; 10m unless said.
    #[schema(inline)]
    pub idle: Option<Quantity>,
    /// Decisions are told and not carried out.
    pub advisory: Option<bool>,
    /// So many replicas more at most within `step_within`; no limit unless said.
    #[schema(minimum = 1, maximum = 65535)]
    pub step_up: Option<u32>,
    /// So many fewer at most; no limit unless said.
    #[schema(minimum = 1, maximum = 65535)]
    pub step_down: Option<u32>,
    /// The stretch of time that steps are for: seconds, or a span; 1m unless said.
    #[schema(inline)]
    pub step_within: Option<Quantity>,
}

/// Another number of replicas.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleRequest {
    #[schema(minimum = 0, maximum = 1024)]
    pub replicas: u32,
}

/// Another version, and how it takes the place of the present one.
#[derive(Deserialize, ToSchema)]
pub struct RolloutRequest {
    pub model_version: String,
    #[serde(flatten)]
    pub how: RollbackRequest,
}

/// How one version takes the place of another.
#[derive(Deserialize, ToSchema)]
pub struct RollbackRequest {
    /// Copies beyond the wanted number, at a time; 1 unless said.
    #[schema(maximum = 64)]
    pub surge: Option<u32>,
    /// Replicas that may be missing at a time, where there is no room for a surge; 1 unless said.
    #[schema(maximum = 64)]
    pub unavailable: Option<u32>,
    /// true: one replica first; 1 to 99: that percentage of replicas and requests first.
    #[schema(value_type = Option<Object>)]
    pub canary: Option<serde_json::Value>,
    /// The rest follows the canary by itself after the window.
    pub auto_promote: Option<bool>,
    /// How long the new version is watched, as canary and once it is everywhere: seconds, or such as 5m.
    #[schema(value_type = Option<String>)]
    pub window: Option<serde_json::Value>,
    /// How long a copy of the new version may take to become ready: seconds, or such as 10m.
    #[schema(value_type = Option<String>)]
    pub ready_within: Option<serde_json::Value>,
}

/// What one replica asks for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourcesRequest {
    /// Whole devices, or a part of one in steps of 0.001.
    #[schema(inline)]
    pub gpu: Option<Quantity>,
    /// Of each device: bytes, or a size such as `16GB`.
    #[schema(inline)]
    pub gpu_memory: Option<Quantity>,
    /// Any of these: `"A|B"` or a list.
    #[schema(inline)]
    pub device_type: Option<Types>,
    pub mig_profile: Option<String>,
    pub tpu: Option<u32>,
    #[schema(inline)]
    pub cpu: Option<Quantity>,
    /// Bytes, or a size: GB is 10^9, GiB is 2^30.
    #[schema(inline)]
    pub mem: Option<Quantity>,
    #[schema(inline)]
    pub disk: Option<Quantity>,
}

/// Where and how a job may run.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConstraintsRequest {
    pub latency_ms: Option<u32>,
    /// Part of the requests that may end with a server's error, such as 0.01; up to 0.2.
    pub error_rate: Option<f64>,
    pub region: Option<String>,
    pub zone: Option<String>,
    pub rack: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
    /// `pack` (unless said) or `spread`.
    pub arrangement: Option<String>,
    pub spread: Option<bool>,
    pub pack: Option<bool>,
    /// All devices of a replica share one NVLink island.
    pub same_island: Option<bool>,
    pub max_cost_per_hour: Option<f64>,
    /// Exactly this node.
    pub node: Option<String>,
    /// Never two copies at once, also when a node is cut off.
    pub exclusive: Option<bool>,
    pub preemptible: Option<bool>,
    /// `always` (unless said), `on_failure` or `never`.
    pub restart: Option<String>,
    /// Seconds, or a span such as `10m`, that it may run in all; what it waits between two places does not count.
    #[schema(inline)]
    pub max_run_time: Option<Quantity>,
    /// Never moved only so that others have room.
    pub stay: Option<bool>,
    /// How long its program may save its state, from SIGUSR1 on, before it is stopped for the sake of others: seconds,
    /// or a span such as `30s`, up to the policy's `max_grace`.
    #[schema(inline)]
    pub checkpoint_grace: Option<Quantity>,
    /// So many of its replicas may be missing at once by others' will (preemption, quotas, drains, rollouts); absent:
    /// any number. 0: none.
    #[schema(maximum = 1024)]
    pub max_unavailable: Option<u16>,
    /// `rack`, `zone` or `region`: all replicas in one of that kind, whichever it is, or they wait.
    pub topology_required: Option<String>,
    /// The same if there is one with room for all of them; else in as few as can be. Narrower than what is required.
    pub topology_preferred: Option<String>,
    #[schema(inline)]
    pub device_type: Option<Types>,
    #[schema(minimum = -1000, maximum = 1000)]
    pub priority: Option<i32>,
}

/// A schedule request pinned to a node.
#[derive(Deserialize, ToSchema)]
pub struct LaunchRequest {
    /// The member's own node when absent.
    pub node_id: Option<String>,
    #[serde(flatten)]
    pub schedule: ScheduleRequest,
}

/// A node to be played by the member that takes the call.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// Made up when absent.
    pub node_id: Option<String>,
    /// 1 when absent.
    #[schema(maximum = 1024)]
    pub gpus: Option<u32>,
    #[schema(maximum = 1024)]
    pub tpus: Option<u32>,
    pub device_type: Option<String>,
    #[schema(inline)]
    pub gpu_memory: Option<Quantity>,
    #[schema(inline)]
    pub cpu: Option<Quantity>,
    #[schema(inline)]
    pub mem: Option<Quantity>,
    #[schema(inline)]
    pub disk: Option<Quantity>,
    pub labels: Option<BTreeMap<String, String>>,
    pub region: Option<String>,
    pub zone: Option<String>,
    pub rack: Option<String>,
    /// Price of one device per hour.
    pub cost_per_hour: Option<f64>,
    /// What is said to keep replicas that share a GPU to their parts: `none`, `mps`, `mig` or `simulated` (unless said).
    pub sharing: Option<String>,
    /// So many NUMA nodes share its devices evenly, in their order; of none anything is known when absent.
    #[schema(minimum = 1, maximum = 1024)]
    pub numa_nodes: Option<u32>,
}

/// Nodes to add in thought.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WhatIfRequest {
    pub add_nodes: Vec<AddedNodes>,
}

/// So many nodes of one kind.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddedNodes {
    /// 1 when absent.
    #[schema(maximum = 4096)]
    pub count: Option<u32>,
    #[schema(maximum = 1024)]
    pub gpus: Option<u32>,
    #[schema(maximum = 1024)]
    pub tpus: Option<u32>,
    pub device_type: Option<String>,
    #[schema(inline)]
    pub gpu_memory: Option<Quantity>,
    #[schema(inline)]
    pub cpu: Option<Quantity>,
    #[schema(inline)]
    pub mem: Option<Quantity>,
    #[schema(inline)]
    pub disk: Option<Quantity>,
    pub labels: Option<BTreeMap<String, String>>,
    pub region: Option<String>,
    pub zone: Option<String>,
    pub rack: Option<String>,
    /// Price of one device per hour.
    pub cost_per_hour: Option<f64>,
    /// What is said to keep replicas that share a GPU to their parts: `none`, `mps`, `mig` or `simulated` (unless said).
    pub sharing: Option<String>,
    /// So many NUMA nodes share its devices evenly, in their order; of none anything is known when absent.
    #[schema(minimum = 1, maximum = 1024)]
    pub numa_nodes: Option<u32>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CordonRequest {
    pub reason: Option<String>,
}

/// Without a field: the device is left alone by the caller's word.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultRequest {
    /// Number of an error report of NVIDIA's driver; simulated nodes only.
    pub xid: Option<u16>,
    /// `lost` or `ecc`; simulated nodes only.
    pub fault: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    pub reason: Option<String>,
    /// After so long, such as `10m`, what is left stops, replaced or not; never unless said.
    #[schema(inline)]
    pub deadline: Option<Quantity>,
    /// What cannot be replaced elsewhere now stops at once.
    pub force: Option<bool>,
    /// Only say what would become of each replica.
    pub dry_run: Option<bool>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DefragRequest {
    /// Only say what would move.
    pub dry_run: Option<bool>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantRequest {
    pub tenant_id: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// The token's `jti`.
    pub id: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenRequest {
    /// Chosen by the caller, in 32 hexadecimal digits: sending it twice makes one token.
    pub id: String,
    /// SHA-256 of the secret, in 64 hexadecimal digits: the secret itself is not told.
    pub secret_sha256: String,
    /// The only node that may join with it; without, any that is not known yet.
    pub node_id: Option<String>,
    /// How long it counts: seconds, or a span; 1h unless said, 24h at most.
    #[schema(inline)]
    pub ttl: Option<Quantity>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApproveRequest {
    pub tenant_id: String,
    pub model_id: String,
    pub model_version: String,
    /// Of the manifest, in 64 hexadecimal digits.
    pub sha256: String,
    /// How long it counts: seconds, or a span; 24h unless said, which is also the most.
    #[schema(inline)]
    pub ttl: Option<Quantity>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DisapproveRequest {
    pub tenant_id: String,
    pub model_id: String,
    pub model_version: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    pub tenant_id: String,
    pub model_id: String,
    pub model_version: String,
    /// Of the manifest that was looked at, in 64 hexadecimal digits, as `/quarantine` has it.
    pub sha256: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsentRequest {
    pub tenant_id: String,
    /// The signed envelope (DSSE), as text.
    pub statement: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DissentRequest {
    pub tenant_id: String,
    /// The statement's SHA-256, in 64 hexadecimal digits.
    pub statement: String,
}

/// Limits; what is absent or null has none of its own.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuotaRequest {
    #[schema(inline)]
    pub gpu: Option<Quantity>,
    pub tpu: Option<u64>,
    #[schema(inline)]
    pub cpu: Option<Quantity>,
    #[schema(inline)]
    pub mem: Option<Quantity>,
    /// Most jobs that may wait at once.
    pub waiting: Option<u32>,
    /// The tenant above it in the tree.
    pub parent: Option<String>,
    /// Most GPUs beyond `gpu` that it may borrow.
    #[schema(inline)]
    pub borrow: Option<Quantity>,
    /// Most of its unused GPUs that others may borrow.
    #[schema(inline)]
    pub lend: Option<Quantity>,
    /// GPU-hours that it and those below it may use.
    pub gpu_hours: Option<BudgetRequest>,
    /// Money that they may use, in the unit of the nodes' prices.
    pub money: Option<BudgetRequest>,
    /// Limits of single device types, by name; without `gpu` their sum is that of all GPUs.
    pub device_types: Option<std::collections::BTreeMap<String, TypeRequest>>,
    /// Its jobs may have parts of GPUs that nothing keeps anybody to; not, unless said.
    pub soft_sharing: Option<bool>,
}

/// Limits of one device type.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TypeRequest {
    #[schema(inline)]
    pub gpu: Quantity,
    /// Most beyond `gpu` that it may borrow.
    #[schema(inline)]
    pub borrow: Option<Quantity>,
    /// Most of its unused ones that others may borrow.
    #[schema(inline)]
    pub lend: Option<Quantity>,
}

/// A limit for each UTC day, week from Monday, or month; what is absent or null has none.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BudgetRequest {
    #[schema(inline)]
    pub day: Option<Quantity>,
    #[schema(inline)]
    pub week: Option<Quantity>,
    #[schema(inline)]
    pub month: Option<Quantity>,
}

/// How places are compared; what is absent is as the named policy has it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyRequest {
    /// `fragmentation`, `best-fit`, `spread`, `cost`, `latency` or `random`.
    pub policy: String,
    pub weights: Option<WeightsRequest>,
    pub preemption: Option<PreemptionRequest>,
    /// Answer what the policy would be, and set nothing.
    pub dry_run: Option<bool>,
}

/// What one point of each term of a score counts.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightsRequest {
    #[schema(maximum = 1000)]
    pub fragmentation: Option<u32>,
    #[schema(maximum = 1000)]
    pub topology: Option<u32>,
    #[schema(maximum = 1000)]
    pub cost: Option<u32>,
}

/// When a job that said `preemptible` gives way to one of higher priority.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PreemptionRequest {
    pub enabled: Option<bool>,
    /// Seconds, or a span such as `10m`.
    #[schema(inline)]
    pub min_run: Option<Quantity>,
    /// How long a job waits before it makes others give way; as above, 0 for not at all.
    #[schema(inline)]
    pub delay: Option<Quantity>,
    /// The longest time to save its state that a program which has to go may ask for.
    #[schema(inline)]
    pub max_grace: Option<Quantity>,
}

/// A member that wants to join.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberRequest {
    /// The next free number when absent.
    pub id: Option<u64>,
    pub name: String,
    /// Member-to-member address, `host:port`.
    pub peer: String,
}

/// The end of a rolling upgrade.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpgradeRequest {
    /// Only say what it would come to.
    pub dry_run: Option<bool>,
}

/// Where leadership should go: `member` or `region`, one of them.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// Name or number.
    pub member: Option<String>,
    pub region: Option<String>,
    pub tenant_id: Option<String>,
    /// True unless said otherwise.
    pub dry_run: Option<bool>,
}
