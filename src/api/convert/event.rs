//! Events as clients see them: one flat shape for all kinds, so that a reader
//! needs no union. It does not know where events come from.

use super::answer::{JobRow, time};
use nf_core::claim;
use nf_core::event::{Event, EventKind, TenantEvent};
use nf_core::id::TenantId;
use nf_proto::v1;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something that happened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventBody {
    /// Counts without gaps.
    pub seq: u64,
    pub at: String,
    /// `job`, `replica`, `move`, `node`, `cordon`, `drain`, `device`, `tenant`, `member`, `level`, `policy`,
    /// `gave_way`, `scaled`, `rollout`.
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its uuid, for events of a single device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The state before; absent for something new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// The job as it is now; only on `GET /schedule?watch=true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobRow>,
    pub simulation: bool,
}

impl EventBody {
    /// As it is told to a tenant; None: to somebody who sees every tenant's.
    pub fn new(event: &Event, simulation: bool, reader: Option<&TenantId>) -> Self {
        let blank = Self { seq: event.seq, at: time(event.at_ms), simulation, ..Self::default() };
        match &event.kind {
            EventKind::Job { request, tenant, from, to, why, .. } => Self {
                kind: "job".into(),
                request_id: Some(request.to_string()),
                tenant_id: Some(tenant.to_string()),
                from: from.map(|state| state.name().into()),
                to: Some(to.name().into()),
                why: why.map(|reason| reason.token().into()),
                ..blank
            },
            EventKind::Replica { request, tenant, replica, generation, node, ok, why } => Self {
                kind: "replica".into(),
                request_id: Some(request.to_string()),
                tenant_id: Some(tenant.to_string()),
                node: Some(node.to_string()),
                to: Some(if *ok { "Stopped".into() } else { "Failed".into() }),
                why: Some(why.token().into()),
                replica: Some(*replica),
                generation: Some(generation.0),
                ..blank
            },
            EventKind::Node { node, from, to } => Self {
                kind: "node".into(),
                node: Some(node.to_string()),
                from: from.map(|state| state.name().into()),
                to: Some(to.name().into()),
                ..blank
            },
            EventKind::Cordon { node, by, reason } => Self {
                kind: "cordon".into(),
                node: Some(node.to_string()),
                to: Some(if by.is_some() { "Cordoned".into() } else { "Schedulable".into() }),
                why: reason.as_ref().map(ToString::to_string),
                ..blank
            },
            EventKind::Tenant { tenant, what } => Self {
                kind: "tenant".into(),
                tenant_id: Some(tenant.to_string()),
                to: Some(match what {
                    TenantEvent::Created => "Created".into(),
                    TenantEvent::QuotaSet => "QuotaSet".into(),
                    TenantEvent::Deleted => "Deleted".into(),
                }),
                ..blank
            },
            EventKind::Member { name, version } => {
                Self { kind: "member".into(), node: Some(name.to_string()), to: Some(version.to_string()), ..blank }
            }
            EventKind::GaveWay { request, tenant, replica, priority, node, to, of, to_priority, why } => Self {
                kind: "gave_way".into(),
                request_id: Some(request.to_string()),
                tenant_id: Some(tenant.to_string()),
                node: Some(node.to_string()),
                replica: Some(*replica),
                to: Some(claim::named(to, of, reader).to_owned()),
                why: Some(format!("{why}: priority {priority} gives way to {to_priority}")),
                ..blank
            },
            EventKind::Placement { policy, version } => Self {
                kind: "policy".into(),
                to: Some(policy.name().into()),
                why: Some(format!("version {version}")),
                ..blank
            },
            EventKind::Scaled { request, tenant, from, to, why, .. } => Self {
                kind: "scaled".into(),
                request_id: Some(request.to_string()),
                tenant_id: Some(tenant.to_string()),
                from: Some(from.to_string()),
                to: Some(to.to_string()),
                why: Some(why.token().into()),
                ..blank
            },
            EventKind::Rollout { request, tenant, from, to, course, .. } => Self {
                kind: "rollout".into(),
                request_id: Some(request.to_string()),
                tenant_id: Some(tenant.to_string()),
                from: Some(from.to_string()),
                to: Some(to.to_string()),
                why: Some(match (course.word(), course.phase(), course.why()) {
                    (word, Some("reverting"), Some(why)) => format!("{word}, reverting: {why}"),
                    (word, _, Some(why)) => format!("{word}: {why}"),
                    (word, Some(phase), None) => format!("{word}, {phase}"),
                    (word, None, None) => word.to_owned(),
                }),
                ..blank
            },
            EventKind::Level { to } => Self { kind: "level".into(), to: Some(to.to_string()), ..blank },
            EventKind::Move { request, tenant, replica, generation, from, to, why } => Self {
                kind: "move".into(),
                request_id: Some(request.to_string()),
                tenant_id: Some(tenant.to_string()),
                node: Some(to.to_string()),
                from: Some(from.to_string()),
                to: Some(to.to_string()),
                why: Some(why.token().into()),
                replica: Some(*replica),
                generation: Some(generation.0),
                ..blank
            },
            EventKind::Device { node, uuid, fault } => Self {
                kind: "device".into(),
                node: Some(node.to_string()),
                device: Some(uuid.to_string()),
                to: Some(if fault.is_some() { "Quarantined".into() } else { "Healthy".into() }),
                why: fault.map(|fault| fault.to_string()),
                ..blank
            },
            EventKind::Drain { node, to } => {
                Self { kind: "drain".into(), node: Some(node.to_string()), to: Some(to.name().into()), ..blank }
            }
        }
    }

    /// The same for gRPC.
    pub fn into_proto(self, at_ms: u64) -> v1::WatchResponse {
        v1::WatchResponse {
            seq: self.seq,
            at_ms,
            kind: self.kind,
            request_id: self.request_id.unwrap_or_default(),
            tenant_id: self.tenant_id.unwrap_or_default(),
            node: self.node.unwrap_or_default(),
            from: self.from.unwrap_or_default(),
            to: self.to.unwrap_or_default(),
            why: self.why.unwrap_or_default(),
            replica: u32::from(self.replica.unwrap_or(0)),
            generation: self.generation.unwrap_or(0),
            device: self.device.unwrap_or_default(),
            simulation: self.simulation,
        }
    }
}
