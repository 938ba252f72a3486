//! A tenant and its nominal quota. It does not know what the tenant uses; the
//! ledger does.

use crate::budget::Budgets;
use crate::id::{DeviceType, TenantId, TenantNo};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Limits of one tenant. `None` means no limit of that kind, except for GPUs,
/// where it means the group's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Thousandths of a GPU: the nominal number, of which below a parent some may be lent, and more borrowed.
    pub gpu_milli: Option<u64>,
    /// Thousandths of a CPU.
    pub cpu_milli: Option<u64>,
    /// Bytes of host memory.
    pub memory: Option<u64>,
    /// Whole TPUs.
    pub tpu: Option<u64>,
    /// Most jobs of the tenant that may wait at once.
    pub waiting: Option<u32>,
    /// The tenant above it in the tree, from whose other children it may borrow.
    pub parent: Option<TenantId>,
    /// Most thousandths of a GPU beyond the nominal ones; None: whatever is not used.
    pub borrow_milli: Option<u64>,
    /// Most of the unused nominal ones that others may borrow; None: all.
    pub lend_milli: Option<u64>,
    /// What it and those below it may use over time; None: no limit.
    pub budgets: Option<Box<Budgets>>,
    /// Limits of single device types, beside those of all GPUs.
    pub types: BTreeMap<DeviceType, Share>,
    /// Its jobs get parts of devices on which nothing keeps anybody to a part.
    pub soft_sharing: bool,
}

/// What a tenant has of something, in thousandths of a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The nominal number.
    pub gpu_milli: u64,
    /// Most beyond it; None: whatever is not used.
    pub borrow_milli: Option<u64>,
    /// Most of the unused nominal ones that others may borrow; None: all.
    pub lend_milli: Option<u64>,
}

/// A tenant exists once it is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    pub no: TenantNo,
    pub id: TenantId,
    pub quota: Quota,
    pub created_ms: u64,
}
