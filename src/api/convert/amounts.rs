//! What a node, or all of them, have of each kind of resource: summed in the core's
//! units, told in those of people. It does not decide anything.

use super::answer::whole;
use nf_core::ledger::NodeUse;
use nf_core::node::{DeviceKind, Node};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Amounts of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Amounts {
    pub gpu: f64,
    pub tpu: u64,
    pub cpu: f64,
    /// Bytes.
    pub mem: u64,
    /// Bytes.
    pub disk: u64,
}

/// Amounts in the core's units, so that sums are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub gpu_milli: u64,
    pub tpu: u64,
    pub cpu_milli: u64,
    pub memory: u64,
    pub disk: u64,
}

impl Sum {
    pub fn plus(self, other: Self) -> Self {
        Self {
            gpu_milli: self.gpu_milli.saturating_add(other.gpu_milli),
            tpu: self.tpu.saturating_add(other.tpu),
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            memory: self.memory.saturating_add(other.memory),
            disk: self.disk.saturating_add(other.disk),
        }
    }

    pub fn minus(self, other: Self) -> Self {
        Self {
            gpu_milli: self.gpu_milli.saturating_sub(other.gpu_milli),
            tpu: self.tpu.saturating_sub(other.tpu),
            cpu_milli: self.cpu_milli.saturating_sub(other.cpu_milli),
            memory: self.memory.saturating_sub(other.memory),
            disk: self.disk.saturating_sub(other.disk),
        }
    }

    pub fn total(node: &Node) -> Self {
        let count = |kind| {
            let usable =
                node.spec.devices.iter().enumerate().filter(|(i, d)| d.kind == kind && node.may_use(*i as u16));
            usable.count() as u64
        };
        Self {
            gpu_milli: count(DeviceKind::Gpu) * 1000,
            tpu: count(DeviceKind::Tpu),
            cpu_milli: node.spec.cpu_milli,
            memory: node.spec.memory,
            disk: node.spec.disk,
        }
    }

    pub fn held(node: &Node, used: &NodeUse) -> Self {
        let milli = |kind| {
            let of_kind = node.spec.devices.iter().zip(&used.devices).filter(|(d, _)| d.kind == kind);
            of_kind.map(|(_, held)| u64::from(held.milli)).sum::<u64>()
        };
        Self {
            gpu_milli: milli(DeviceKind::Gpu),
            tpu: milli(DeviceKind::Tpu) / 1000,
            cpu_milli: used.cpu_milli,
            memory: used.memory,
            disk: used.disk,
        }
    }
}

impl From<Sum> for Amounts {
    fn from(s: Sum) -> Self {
        Self { gpu: whole(s.gpu_milli), tpu: s.tpu, cpu: whole(s.cpu_milli), mem: s.memory, disk: s.disk }
    }
}
