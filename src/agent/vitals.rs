//! How the GPUs of this machine do, for `/metrics` and for the group's members: how busy and how warm they are, what
//! of their memory is in use and by how many programs, and its errors, looked at every few seconds. A GPU that is not
//! answered for has no numbers, rather than old ones. Nothing is decided by them.

use crate::exchange::{Vitals, vitals};
use crate::telemetry::Metrics;
use prometheus::{GaugeVec, Opts};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Between two looks. NVML's own window for how busy a GPU is spans up to a second.
const PERIOD: Duration = Duration::from_secs(10);

/// A driver that takes longer to answer hangs.
const LIMIT: Duration = Duration::from_secs(5);

/// Each GPU's, where it was answered for.
type Seen = Vec<(Arc<str>, Option<Vitals>)>;
/// The last look's, of those that were answered for.
pub type Latest = watch::Receiver<Arc<[Vitals]>>;

/// The families.
#[derive(Clone)]
struct Gauges {
    busy: GaugeVec,
    used: GaugeVec,
    celsius: GaugeVec,
    processes: GaugeVec,
    ecc_errors: GaugeVec,
    node: String,
}

impl Gauges {
    fn publish(node: &str, metrics: &Metrics) -> prometheus::Result<Self> {
        let gauge = |name, help| {
            let gauge = GaugeVec::new(Opts::new(name, help), &["node", "gpu"])?;
            metrics.publish(Box::new(gauge.clone())).map(|()| gauge)
        };
        Ok(Self {
            busy: gauge(
                "nf_gpu_utilization_ratio",
                "Part of the last moment in which a program ran on a GPU, as its driver says.",
            )?,
            used: gauge("nf_gpu_memory_used_bytes", "Memory of a GPU that is in use, as its driver says.")?,
            celsius: gauge("nf_gpu_temperature_celsius", "How warm a GPU is, as its driver says.")?,
            processes: gauge("nf_gpu_processes", "Programs that compute on a GPU, as its driver says.")?,
            ecc_errors: gauge(
                "nf_gpu_ecc_errors",
                "Memory errors of a GPU since its driver was loaded that could not be corrected.",
            )?,
            node: node.to_owned(),
        })
    }

    fn set(&self, seen: &[(Arc<str>, Option<Vitals>)]) {
        for (gpu, vitals) in seen {
            let of = |gauge: &GaugeVec, value: Option<f64>| {
                let labels = [self.node.as_str(), gpu.as_ref()];
                match value {
                    Some(value) => gauge.with_label_values(&labels).set(value),
                    // There was none before, either.
                    None => drop(gauge.remove_label_values(&labels)),
                }
            };
            let vitals = vitals.as_ref();
            of(&self.busy, vitals.and_then(|v| v.busy_milli).map(|milli| f64::from(milli) / 1000.0));
            of(&self.used, vitals.map(|v| v.used as f64));
            of(&self.celsius, vitals.and_then(|v| v.celsius).map(f64::from));
            of(&self.processes, vitals.and_then(|v| v.processes).map(f64::from));
            of(&self.ecc_errors, vitals.and_then(|v| v.ecc_errors).map(|errors| errors as f64));
        }
    }
}

/// Looks at `uuids`, the node's real GPUs, until `ended` is true, and lets others have what it saw last. Must be called
/// on a runtime.
///
/// # Errors
/// When the families are there already.
pub fn follow(
    node: &str,
    uuids: Vec<Arc<str>>,
    metrics: &Metrics,
    ended: watch::Receiver<bool>,
) -> prometheus::Result<Latest> {
    follow_by(node, uuids, metrics, ended, super::nvml::vitals)
}

fn follow_by(
    node: &str,
    uuids: Vec<Arc<str>>,
    metrics: &Metrics,
    mut ended: watch::Receiver<bool>,
    look: impl Fn(&[Arc<str>]) -> Seen + Send + Sync + 'static,
) -> prometheus::Result<Latest> {
    let gauges = Gauges::publish(node, metrics)?;
    let (latest, last) = watch::channel(Arc::from([]));
    if uuids.is_empty() {
        return Ok(last);
    }
    let saw = move |seen: Seen| {
        gauges.set(&seen);
        latest.send_replace(seen.into_iter().filter_map(|(_, vitals)| vitals).take(vitals::GPUS).collect());
    };
    let (uuids, look) = (Arc::<[_]>::from(uuids), Arc::new(look));
    tokio::spawn(async move {
        loop {
            let (uuids, look) = (uuids.clone(), look.clone());
            let none: Seen = uuids.iter().map(|uuid| (uuid.clone(), None)).collect();
            let mut looked = tokio::task::spawn_blocking(move || look(&uuids));
            let seen = tokio::select! {
                _ = ended.wait_for(|ended| *ended) => return,
                seen = tokio::time::timeout(LIMIT, &mut looked) => seen,
            };
            match seen {
                Ok(seen) => saw(seen.unwrap_or(none)),
                Err(_) => {
                    saw(none);
                    // A driver that hangs has one thread of ours, and no second look.
                    tokio::select! {
                        _ = ended.wait_for(|ended| *ended) => return,
                        _ = looked => {}
                    }
                }
            }
            tokio::select! {
                _ = ended.wait_for(|ended| *ended) => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    });
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_gpu_that_is_not_answered_for_has_no_numbers() {
        let metrics = Metrics::new("1", "x");
        let vitals = Vitals {
            uuid: "GPU-1".into(),
            busy_milli: Some(250),
            used: 3 << 30,
            celsius: None,
            processes: Some(2),
            ecc_errors: Some(0),
        };
        let (_end, ended) = watch::channel(false);
        let seen = vitals.clone();
        let look = move |uuids: &[Arc<str>]| vec![(uuids[0].clone(), Some(seen.clone())), (uuids[1].clone(), None)];
        let last = follow_by("n1", vec!["GPU-1".into(), "GPU-2".into()], &metrics, ended, look).unwrap();
        let there = async {
            while !metrics.render().contains("nf_gpu_memory_used_bytes{gpu=\"GPU-1\",node=\"n1\"} 3221225472") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), there).await.unwrap();
        let text = metrics.render();
        assert!(text.contains("nf_gpu_utilization_ratio{gpu=\"GPU-1\",node=\"n1\"} 0.25"), "{text}");
        assert!(text.contains("nf_gpu_processes{gpu=\"GPU-1\",node=\"n1\"} 2"), "{text}");
        assert!(text.contains("nf_gpu_ecc_errors{gpu=\"GPU-1\",node=\"n1\"} 0"), "{text}");
        assert!(!text.contains("GPU-2") && !text.contains("nf_gpu_temperature_celsius{"), "{text}");
        assert_eq!(**last.borrow(), [vitals], "and the group is told the same");
    }

    #[test]
    fn numbers_of_a_gpu_that_fell_silent_go() {
        let metrics = Metrics::new("1", "x");
        let gauges = Gauges::publish("n1", &metrics).unwrap();
        let warm = Vitals { used: 1, celsius: Some(61), ..Vitals::default() };
        gauges.set(&[("GPU-1".into(), Some(warm))]);
        assert!(metrics.render().contains("nf_gpu_temperature_celsius{gpu=\"GPU-1\",node=\"n1\"} 61"));
        gauges.set(&[("GPU-1".into(), None)]);
        assert!(!metrics.render().contains("GPU-1"));
    }
}
