//! How many requests each tenant has at this gateway, as a metric family: read when
//! somebody scrapes, so that a series goes with its tenant's last request.

use super::shares::Shares;
use crate::telemetry::{MAX_TENANTS, Metrics, OTHER};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts};
use std::cmp::Reverse;
use std::sync::{Arc, Weak};

/// Adds the family. It ends with the gateway.
pub fn publish(metrics: &Metrics, shares: &Arc<Shares>) {
    let published = family().map(|family| {
        let descriptions = family.desc().into_iter().cloned().collect();
        metrics.publish(Box::new(Tenants { shares: Arc::downgrade(shares), descriptions }))
    });
    if let Ok(Err(error)) | Err(error) = published {
        tracing::warn!(%error, "nf_gateway_tenant_requests is not told here");
    }
}

fn family() -> prometheus::Result<IntGaugeVec> {
    let help = "Requests of each tenant that this gateway holds or that are with a replica.";
    IntGaugeVec::new(Opts::new("nf_gateway_tenant_requests", help), &["tenant"])
}

struct Tenants {
    shares: Weak<Shares>,
    descriptions: Vec<Desc>,
}

impl Collector for Tenants {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (Some(shares), Ok(family)) = (self.shares.upgrade(), family()) else { return Vec::new() };
        let mut requests = shares.requests();
        requests.retain(|(_, requests)| *requests > 0);
        requests.sort_by_key(|(_, requests)| Reverse(*requests));
        for (i, (tenant, requests)) in requests.iter().enumerate() {
            let tenant = if i < MAX_TENANTS { tenant.as_str() } else { OTHER };
            family.with_label_values(&[tenant]).add(i64::from(*requests));
        }
        family.collect().into_iter().filter(|family| !family.get_metric().is_empty()).collect()
    }
}
