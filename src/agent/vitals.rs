//! How the GPUs of this machine do, for `/metrics`: how busy and how warm they are, and what of
//! their memory is in use, looked at every few seconds. A GPU that is not answered for has no
//! numbers, rather than old ones. Nothing is decided by them.

use crate::telemetry::Metrics;
use prometheus::{GaugeVec, Opts};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Between two looks. NVML's own window for how busy a GPU is spans up to a second.
const PERIOD: Duration = Duration::from_secs(10);

/// A driver that takes longer to answer hangs.
const LIMIT: Duration = Duration::from_secs(5);

/// How one GPU does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vitals {
    /// Part of the last moment in which something ran on it, from 0 to 1; None where its driver can't say (MIG).
    pub busy: Option<f64>,
    /// Bytes of its memory.
    pub used: u64,
    pub celsius: Option<u32>,
}

/// Each GPU's, where it was answered for.
type Seen = Vec<(Arc<str>, Option<Vitals>)>;

/// The families.
#[derive(Clone)]
struct Gauges {
    busy: GaugeVec,
    used: GaugeVec,
    celsius: GaugeVec,
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
            of(&self.busy, vitals.and_then(|v| v.busy));
            of(&self.used, vitals.map(|v| v.used as f64));
            of(&self.celsius, vitals.and_then(|v| v.celsius).map(f64::from));
        }
    }
}

/// Looks at `uuids`, the node's real GPUs, until `ended` is true. Must be called on a runtime.
///
/// # Errors
/// When the families are there already.
pub fn follow(
    node: &str,
    uuids: Vec<Arc<str>>,
    metrics: &Metrics,
    ended: watch::Receiver<bool>,
) -> prometheus::Result<()> {
    follow_by(node, uuids, metrics, ended, super::nvml::vitals)
}

fn follow_by(
    node: &str,
    uuids: Vec<Arc<str>>,
    metrics: &Metrics,
    mut ended: watch::Receiver<bool>,
    look: impl Fn(&[Arc<str>]) -> Seen + Send + Sync + 'static,
) -> prometheus::Result<()> {
    let gauges = Gauges::publish(node, metrics)?;
    if uuids.is_empty() {
        return Ok(());
    }
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
                Ok(seen) => gauges.set(&seen.unwrap_or(none)),
                Err(_) => {
                    gauges.set(&none);
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_gpu_that_is_not_answered_for_has_no_numbers() {
        let metrics = Metrics::new("1", "x");
        let vitals = Vitals { busy: Some(0.25), used: 3 << 30, celsius: None };
        let (_end, ended) = watch::channel(false);
        let look = move |uuids: &[Arc<str>]| vec![(uuids[0].clone(), Some(vitals)), (uuids[1].clone(), None)];
        follow_by("n1", vec!["GPU-1".into(), "GPU-2".into()], &metrics, ended, look).unwrap();
        let there = async {
            while !metrics.render().contains("nf_gpu_memory_used_bytes{gpu=\"GPU-1\",node=\"n1\"} 3221225472") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), there).await.unwrap();
        let text = metrics.render();
        assert!(text.contains("nf_gpu_utilization_ratio{gpu=\"GPU-1\",node=\"n1\"} 0.25"), "{text}");
        assert!(!text.contains("GPU-2") && !text.contains("nf_gpu_temperature_celsius{"), "{text}");
    }

    #[test]
    fn numbers_of_a_gpu_that_fell_silent_go() {
        let metrics = Metrics::new("1", "x");
        let gauges = Gauges::publish("n1", &metrics).unwrap();
        let warm = Vitals { busy: None, used: 1, celsius: Some(61) };
        gauges.set(&[("GPU-1".into(), Some(warm))]);
        assert!(metrics.render().contains("nf_gpu_temperature_celsius{gpu=\"GPU-1\",node=\"n1\"} 61"));
        gauges.set(&[("GPU-1".into(), None)]);
        assert!(!metrics.render().contains("GPU-1"));
    }
}
