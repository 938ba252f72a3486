//! A tenant and its nominal quota. It does not know what the tenant uses; the
//! ledger does.

use crate::id::{TenantId, TenantNo};
use serde::{Deserialize, Serialize};

/// Limits of one tenant. `None` means no limit of that kind, except for GPUs,
/// where it means the group's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Thousandths of a GPU.
    pub gpu_milli: Option<u64>,
    /// Thousandths of a CPU.
    pub cpu_milli: Option<u64>,
    /// Bytes of host memory.
    pub memory: Option<u64>,
    /// Whole TPUs.
    pub tpu: Option<u64>,
    /// Most jobs of the tenant that may wait at once.
    pub waiting: Option<u32>,
}

/// A tenant exists once it is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    pub no: TenantNo,
    pub id: TenantId,
    pub quota: Quota,
    pub created_ms: u64,
}
