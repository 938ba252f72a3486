//! How services keep their promises, as metric families: read when somebody scrapes,
//! so that nothing has to be kept in step and a series goes with its model.

use super::Desks;
use super::desk::Desk;
use super::table::Table;
use crate::telemetry::{Metrics, OTHER};
use nf_core::slo::Count;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec, Opts};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use tokio::sync::watch;

/// Adds the families. They end with the gateway.
pub fn publish(metrics: &Metrics, desks: &Arc<Desks>, tables: watch::Receiver<Arc<Table>>) {
    let published = families().map(|Families { ratio, target, requests }| {
        let all = ratio.desc().into_iter().chain(target.desc()).chain(requests.desc());
        let descriptions = all.cloned().collect();
        metrics.publish(Box::new(Promises { desks: Arc::downgrade(desks), tables, descriptions }))
    });
    if let Ok(Err(error)) | Err(error) = published {
        tracing::warn!(%error, "nf_slo_requests_total, nf_slo_attainment_ratio and nf_slo_target_ratio are not told here");
    }
}

struct Families {
    ratio: GaugeVec,
    target: GaugeVec,
    requests: IntCounterVec,
}

fn families() -> prometheus::Result<Families> {
    let ratio = Opts::new(
        "nf_slo_attainment_ratio",
        "Part of the last hour's requests at this gateway that was answered without a server's error and in the promised time.",
    );
    let requests = Opts::new(
        "nf_slo_requests_total",
        "Requests at this gateway by what became of the promise: good, slow or failed.",
    );
    let target = Opts::new(
        "nf_slo_target_ratio",
        "Part of the requests that may fail at most, where a service promises that (kind: errors).",
    );
    Ok(Families {
        ratio: GaugeVec::new(ratio, &["tenant", "model"])?,
        target: GaugeVec::new(target, &["tenant", "model", "kind"])?,
        requests: IntCounterVec::new(requests, &["tenant", "model", "result"])?,
    })
}

/// How one model's promise was kept.
#[derive(Default)]
struct Kept {
    hour: Count,
    ever: Count,
    /// What it promises of errors.
    error_ppm: Option<u32>,
}

struct Promises {
    desks: Weak<Desks>,
    tables: watch::Receiver<Arc<Table>>,
    descriptions: Vec<Desc>,
}

impl Promises {
    /// By tenant and model; those without a name are one sum.
    fn kept(&self) -> BTreeMap<(String, String), Kept> {
        let mut kept: BTreeMap<_, Kept> = BTreeMap::new();
        let Some(desks) = self.desks.upgrade() else { return kept };
        let (mut hour_of_others, ever_of_others) = (Count::default(), desks.others.ever());
        let table = self.tables.borrow().clone();
        // What adding up takes, no request has to wait for.
        let all: Vec<_> = desks.of().iter().map(|(name, desk)| (name.clone(), desk.clone())).collect();
        for ((tenant, model), desk) in all {
            let (hour, ever) = Desk::kept(&desk);
            if !desk.named() {
                hour_of_others = hour_of_others.and(hour);
            } else if let Some(entry) = table.entry(&tenant, &model) {
                let error_ppm = entry.error_ppm;
                kept.insert((tenant.to_string(), model.to_string()), Kept { hour, ever, error_ppm });
            }
        }
        if ever_of_others.requests() > 0 {
            let others = kept.entry((OTHER.to_owned(), OTHER.to_owned())).or_default();
            (others.hour, others.ever) = (others.hour.and(hour_of_others), others.ever.and(ever_of_others));
        }
        kept
    }
}

impl Collector for Promises {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(Families { ratio, target, requests }) = families() else { return Vec::new() };
        for ((tenant, model), Kept { hour, ever, error_ppm }) in self.kept() {
            if let Some(ppm) = error_ppm {
                target.with_label_values(&[tenant.as_str(), &model, "errors"]).set(f64::from(ppm) / 1e6);
            }
            if let Some(part) = hour.attained_ppm() {
                ratio.with_label_values(&[&tenant, &model]).set(part as f64 / 1e6);
            }
            for (result, count) in [("good", ever.good), ("slow", ever.slow), ("failed", ever.failed)] {
                requests.with_label_values(&[tenant.as_str(), &model, result]).inc_by(count);
            }
        }
        let all = ratio.collect().into_iter().chain(target.collect()).chain(requests.collect());
        all.filter(|family| !family.get_metric().is_empty()).collect()
    }
}
