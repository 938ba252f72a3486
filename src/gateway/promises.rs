//! How services keep their promises, as metric families: read when somebody scrapes,
//! so that nothing has to be kept in step and a series goes with its model.

use super::Desks;
use super::desk::Desk;
use crate::telemetry::{Metrics, OTHER};
use nf_core::slo::Count;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec, Opts};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// Adds the families. They end with the gateway.
pub fn publish(metrics: &Metrics, desks: &Arc<Desks>) {
    let published = families().map(|(ratio, requests)| {
        let descriptions = ratio.desc().into_iter().chain(requests.desc()).cloned().collect();
        metrics.publish(Box::new(Promises { desks: Arc::downgrade(desks), descriptions }))
    });
    if let Ok(Err(error)) | Err(error) = published {
        tracing::warn!(%error, "nf_slo_requests_total and nf_slo_attainment_ratio are not told here");
    }
}

fn families() -> prometheus::Result<(GaugeVec, IntCounterVec)> {
    let ratio = Opts::new(
        "nf_slo_attainment_ratio",
        "Part of the last hour's requests at this gateway that was answered without a server's error and in the promised time.",
    );
    let requests = Opts::new(
        "nf_slo_requests_total",
        "Requests at this gateway by what became of the promise: good, slow or failed.",
    );
    Ok((GaugeVec::new(ratio, &["tenant", "model"])?, IntCounterVec::new(requests, &["tenant", "model", "result"])?))
}

struct Promises {
    desks: Weak<Desks>,
    descriptions: Vec<Desc>,
}

impl Promises {
    /// Hour and ever, by tenant and model; those without a name are one sum.
    fn kept(&self) -> BTreeMap<(String, String), (Count, Count)> {
        let mut kept: BTreeMap<_, (Count, Count)> = BTreeMap::new();
        let Some(desks) = self.desks.upgrade() else { return kept };
        let (mut hour_of_others, ever_of_others) = (Count::default(), desks.others.ever());
        for ((tenant, model), desk) in desks.of().iter() {
            let (hour, ever) = Desk::kept(desk);
            match desk.named() {
                true => drop(kept.insert((tenant.to_string(), model.to_string()), (hour, ever))),
                false => hour_of_others = hour_of_others.and(hour),
            }
        }
        if ever_of_others.requests() > 0 {
            let others = kept.entry((OTHER.to_owned(), OTHER.to_owned())).or_default();
            *others = (others.0.and(hour_of_others), others.1.and(ever_of_others));
        }
        kept
    }
}

impl Collector for Promises {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok((ratio, requests)) = families() else { return Vec::new() };
        for ((tenant, model), (hour, ever)) in self.kept() {
            if let Some(part) = hour.attained_ppm() {
                ratio.with_label_values(&[&tenant, &model]).set(part as f64 / 1e6);
            }
            for (result, count) in [("good", ever.good), ("slow", ever.slow), ("failed", ever.failed)] {
                requests.with_label_values(&[tenant.as_str(), &model, result]).inc_by(count);
            }
        }
        let all = ratio.collect().into_iter().chain(requests.collect());
        all.filter(|family| !family.get_metric().is_empty()).collect()
    }
}
