//! `nf_model_deploys_total`: jobs that were made, by tenant and model. Found without
//! a lock; the first models have a series of their own, the rest share one. It does
//! not know how a job is made.

use crate::telemetry::{MAX_MODELS, Metrics, OTHER};
use arc_swap::ArcSwap;
use nf_core::id::{ModelId, TenantId};
use nf_core::state::State;
use prometheus::IntCounter;
use std::collections::HashMap;

type Key = (TenantId, ModelId);

/// See the module's text.
pub struct Deploys {
    metrics: Metrics,
    own: ArcSwap<HashMap<Key, IntCounter>>,
    other: IntCounter,
}

impl Deploys {
    pub fn new(metrics: Metrics) -> Self {
        let other = metrics.model_deploys.with_label_values(&[OTHER, OTHER]);
        Self { metrics, own: ArcSwap::default(), other }
    }

    pub fn count(&self, tenant: &TenantId, model: &ModelId) {
        let key = (tenant.clone(), model.clone());
        let own = self.own.load();
        match own.get(&key) {
            Some(counter) => counter.inc(),
            None if own.len() < MAX_MODELS => self.add(key).inc(),
            None => self.other.inc(),
        }
    }

    fn add(&self, key: Key) -> IntCounter {
        let made = self.metrics.model_deploys.with_label_values(&[key.0.as_str(), key.1.as_str()]);
        self.own.rcu(|own| {
            let mut next = HashMap::clone(own);
            next.insert(key.clone(), made.clone());
            next
        });
        made
    }

    /// Series of tenants that are no more go, and make room for others.
    pub fn prune(&self, state: &State) {
        let gone: Vec<Key> =
            self.own.load().keys().filter(|(tenant, _)| state.tenant_named(tenant).is_none()).cloned().collect();
        for key in gone {
            self.own.rcu(|own| {
                let mut next = HashMap::clone(own);
                next.remove(&key);
                next
            });
            let _ = self.metrics.model_deploys.remove_label_values(&[key.0.as_str(), key.1.as_str()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_past_the_bound_share_a_series() {
        let metrics = Metrics::new("v", "c");
        let deploys = Deploys::new(metrics.clone());
        let tenant = TenantId::new("t1").unwrap();
        for i in 0..500 {
            deploys.count(&tenant, &ModelId::new(&format!("m{i}")).unwrap());
        }
        deploys.count(&tenant, &ModelId::new("m0").unwrap());
        let text = metrics.render();
        let other = format!("nf_model_deploys_total{{model=\"other\",tenant=\"other\"}} {}", 500 - MAX_MODELS);
        assert!(
            text.contains(&other) && text.contains("nf_model_deploys_total{model=\"m0\",tenant=\"t1\"} 2"),
            "{text}"
        );
        deploys.prune(&State::new());
        let left = metrics.render().lines().filter(|l| l.starts_with("nf_model_deploys_total{")).count();
        assert_eq!(left, 1);
    }
}
