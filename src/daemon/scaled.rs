//! What the leader's looks at the services came to, as metric families. They are of the
//! leader alone: a member that leads no more takes back all that it has told, and a
//! service that is gone takes its series along.

use crate::controller::Look;
use crate::telemetry::{MAX_MODELS, Metrics, OTHER};
use nf_core::autoscaler::Why;
use prometheus::GaugeVec;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

type Name = (String, String);

/// What is told of one service; several jobs of it are added up.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    current: i64,
    recommended: i64,
    /// Of the oldest signal.
    age_ms: Option<u64>,
    /// Of language models: the part of their caches in use, and the time to a first token.
    kv_m: Option<u64>,
    first_token_ms: Option<u64>,
}

/// See the module.
pub struct Scaled {
    metrics: Metrics,
    /// Services with series, and the labels of decisions that were counted.
    known: Mutex<BTreeMap<Name, BTreeSet<(&'static str, Why)>>>,
}

impl Scaled {
    pub fn new(metrics: &Metrics) -> Self {
        Self { metrics: metrics.clone(), known: Mutex::default() }
    }

    /// The looks at all services there are; none when there is none, or this member leads no more.
    pub fn tell(&self, looks: &[Look]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sums: BTreeMap<Name, Sum> = BTreeMap::new();
        for look in looks {
            let own = (look.tenant.to_string(), look.model.to_string());
            // First come stays named, so that no count moves from one series to another.
            let named = known.contains_key(&own) || known.len() < MAX_MODELS;
            let name = if named { own } else { (OTHER.to_owned(), OTHER.to_owned()) };
            let sum = sums.entry(name.clone()).or_default();
            sum.current += i64::from(look.current);
            sum.recommended += i64::from(look.decision.desired);
            sum.age_ms = sum.age_ms.max(look.signals.age_ms);
            sum.kv_m = sum.kv_m.max(look.signals.kv_cache.known());
            sum.first_token_ms = sum.first_token_ms.max(look.signals.first_token_ms.known().map(|m| m / 1000));
            let counted = (direction(look), look.why());
            known.entry(name.clone()).or_default().insert(counted);
            self.metrics.autoscale_decisions.with_label_values(&decision(&name, counted)).inc();
        }
        for ((tenant, model), sum) in &sums {
            let (tenant, model) = (tenant.as_str(), model.as_str());
            let replicas = |kind| self.metrics.autoscale_replicas.with_label_values(&[tenant, model, kind]);
            replicas("current").set(sum.current);
            replicas("recommended").set(sum.recommended);
            for (family, milli) in self.levels().into_iter().zip([sum.age_ms, sum.kv_m, sum.first_token_ms]) {
                match milli {
                    Some(milli) => family.with_label_values(&[tenant, model]).set(milli as f64 / 1e3),
                    None => drop(family.remove_label_values(&[tenant, model])),
                }
            }
        }
        known.retain(|name, counted| {
            let there = sums.contains_key(name);
            if !there {
                self.forget(name, counted);
            }
            there
        });
    }

    /// What is known of services, in thousandths: the age of signals, caches in use, times to first tokens.
    fn levels(&self) -> [&GaugeVec; 3] {
        let metrics = &self.metrics;
        [&metrics.autoscale_signal_age, &metrics.autoscale_kv_cache, &metrics.autoscale_first_token]
    }

    fn forget(&self, name: &Name, counted: &BTreeSet<(&'static str, Why)>) {
        let (tenant, model) = (name.0.as_str(), name.1.as_str());
        for kind in ["current", "recommended"] {
            let _ = self.metrics.autoscale_replicas.remove_label_values(&[tenant, model, kind]);
        }
        for family in self.levels() {
            let _ = family.remove_label_values(&[tenant, model]);
        }
        for counted in counted {
            let _ = self.metrics.autoscale_decisions.remove_label_values(&decision(name, *counted));
        }
    }
}

fn direction(look: &Look) -> &'static str {
    match look.decision.desired.cmp(&look.current.into()) {
        Ordering::Greater => "up",
        Ordering::Less => "down",
        Ordering::Equal => "hold",
    }
}

/// Values of the labels of `nf_autoscale_decisions_total`.
fn decision<'a>((tenant, model): &'a Name, (direction, why): (&'static str, Why)) -> [&'a str; 4] {
    [tenant, model, direction, why.token()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::autoscaler::{Decision, Inputs, Reading, Signals};
    use nf_core::id::{ModelId, TenantId};

    fn look(model: &str, current: u16, desired: u32, age_ms: Option<u64>) -> Look {
        let (tenant, model) = (TenantId::new("t1").unwrap(), ModelId::new(model).unwrap());
        let decision = Decision { desired, before: current.into(), why: Why::QueueDepth, inputs: Inputs::default() };
        let signals = Signals { age_ms, ..Signals::default() };
        Look { tenant, model, current, decision, advisory: false, signals }
    }

    fn told(metrics: &Metrics) -> Vec<String> {
        let text = metrics.render();
        text.lines().filter(|line| line.starts_with("nf_autoscale")).map(str::to_owned).collect()
    }

    #[test]
    fn a_service_that_is_gone_and_a_leader_that_is_none_take_their_series_along() {
        let metrics = Metrics::new("test", "test");
        let scaled = Scaled::new(&metrics);
        scaled.tell(&[look("m1", 1, 3, Some(1_500)), look("m1", 2, 2, Some(200)), look("m2", 1, 1, None)]);
        let all = told(&metrics);
        for line in [
            r#"nf_autoscale_replicas{kind="current",model="m1",tenant="t1"} 3"#,
            r#"nf_autoscale_replicas{kind="recommended",model="m1",tenant="t1"} 5"#,
            r#"nf_autoscale_signal_age_seconds{model="m1",tenant="t1"} 1.5"#,
            r#"nf_autoscale_decisions_total{direction="up",model="m1",reason="QueueDepth",tenant="t1"} 1"#,
        ] {
            assert!(all.contains(&line.to_owned()), "{all:?}");
        }
        scaled.tell(&[look("m2", 1, 1, None)]);
        let left = told(&metrics);
        assert!(left.len() == 3 && left.iter().all(|line| line.contains("m2")), "{left:?}");
        scaled.tell(&[]);
        assert_eq!(told(&metrics), Vec::<String>::new());
        // It leads again, and counts from nothing.
        scaled.tell(&[look("m1", 1, 3, None)]);
        assert!(told(&metrics).iter().any(|line| line.ends_with("\"t1\"} 1")));
    }

    #[test]
    fn what_language_models_tell_is_shown_for_as_long_as_they_do() {
        let metrics = Metrics::new("test", "test");
        let scaled = Scaled::new(&metrics);
        let mut first = look("m1", 1, 2, None);
        (first.signals.kv_cache, first.signals.first_token_ms) = (Reading::of_milli(910), Reading::of(340));
        scaled.tell(&[first]);
        let all = told(&metrics);
        for line in [
            r#"nf_autoscale_kv_cache_usage_ratio{model="m1",tenant="t1"} 0.91"#,
            r#"nf_autoscale_first_token_seconds{model="m1",tenant="t1"} 0.34"#,
        ] {
            assert!(all.contains(&line.to_owned()), "{all:?}");
        }
        scaled.tell(&[look("m1", 2, 2, None)]);
        assert!(told(&metrics).iter().all(|line| !line.contains("kv_cache") && !line.contains("first_token")));
    }

    #[test]
    fn however_many_services_there_are_their_series_are_bounded() {
        let metrics = Metrics::new("test", "test");
        let scaled = Scaled::new(&metrics);
        let looks: Vec<Look> = (0..MAX_MODELS + 20).map(|n| look(&format!("m{n}"), 1, 1, None)).collect();
        for _ in 0..3 {
            scaled.tell(&looks);
        }
        let current = told(&metrics).into_iter().filter(|line| line.contains("kind=\"current\""));
        let current: Vec<String> = current.collect();
        assert_eq!(current.len(), MAX_MODELS + 1);
        assert!(current.iter().any(|line| line.contains("model=\"other\"") && line.ends_with(" 20")), "{current:?}");
    }
}
