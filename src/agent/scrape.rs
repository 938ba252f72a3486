//! Reads a replica's own metrics: how many requests it works on, how many wait in it,
//! and how long they took. Which series say so is data of its manifest or profile. It
//! does not know what follows from them.

use crate::models::{Histogram, Metrics, sum};
use nf_core::autoscaler::signal::Reading;

/// The most bytes of a page of metrics that are read.
const PAGE: usize = 1 << 20;

/// What one page said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub running_m: Option<u64>,
    pub waiting_m: Option<u64>,
    /// Requests answered, ever.
    pub answered: Option<u64>,
    /// Of those since the page before.
    pub p95_ms: Option<u64>,
}

/// One replica's page, read again and again.
pub(super) struct Scrape {
    client: reqwest::Client,
    url: String,
    metrics: Metrics,
    latency: Option<Histogram>,
}

impl Scrape {
    /// None when the metrics name nothing that is wanted.
    pub(super) fn new(client: reqwest::Client, base: &str, metrics: &Metrics) -> Option<Self> {
        let named = metrics.running.is_some() || metrics.waiting.is_some() || metrics.latency.is_some();
        let url = format!("{base}{}", metrics.path);
        named.then(|| Self { client, url, metrics: metrics.clone(), latency: None })
    }

    /// None when there is no page, or none of the series is on it.
    pub(super) async fn read(&mut self) -> Option<Said> {
        let text = page(&self.client, &self.url).await?;
        Some(self.said(&text)).filter(|said| *said != Said::default())
    }

    fn said(&mut self, text: &str) -> Said {
        // NaN, a negative or an absurd number is no number.
        let count = |name: &Option<String>| Reading::from_f64(sum(text, name.as_deref()?)?).known();
        let latency = self.metrics.latency.as_deref().and_then(|name| Histogram::read(text, name));
        let answered = latency.as_ref().and_then(|now| Reading::from_f64(now.count()).known());
        let p95 = latency.as_ref().zip(self.latency.as_ref()).and_then(|(now, before)| now.p95_since(before));
        self.latency = latency;
        Said {
            running_m: count(&self.metrics.running),
            waiting_m: count(&self.metrics.waiting),
            answered: answered.map(|milli| milli / 1000),
            // Seconds; in thousandths they are milliseconds.
            p95_ms: p95.and_then(|seconds| Reading::from_f64(seconds).known()),
        }
    }
}

/// What stands there; None for what is no text, or more than any page of metrics is.
pub(super) async fn page(client: &reqwest::Client, url: &str) -> Option<String> {
    let mut answer = client.get(url).send().await.ok()?.error_for_status().ok()?;
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.ok()? {
        if bytes.len() + piece.len() > PAGE {
            return None;
        }
        bytes.extend_from_slice(&piece);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_what_its_series_say_and_nothing_else() {
        let name = |text: &str| Some(text.to_owned());
        let metrics = Metrics {
            path: "/metrics".into(),
            running: name("vllm:num_requests_running"),
            waiting: name("vllm:num_requests_waiting"),
            latency: name("vllm:e2e_request_latency_seconds"),
        };
        let mut scrape = Scrape::new(reqwest::Client::new(), "http://127.0.0.1:1", &metrics).unwrap();
        let page = |running: &str, fast: u32, all: u32| {
            format!(
                "vllm:num_requests_running{{model_name=\"m\"}} {running}\nvllm:num_requests_waiting{{model_name=\"m\"}} 2\n\
                 vllm:e2e_request_latency_seconds_bucket{{le=\"0.5\"}} {fast}\n\
                 vllm:e2e_request_latency_seconds_bucket{{le=\"1.0\"}} {all}\n\
                 vllm:e2e_request_latency_seconds_bucket{{le=\"+Inf\"}} {all}\n"
            )
        };
        let first = Said { running_m: Some(3_000), waiting_m: Some(2_000), answered: Some(10), p95_ms: None };
        assert_eq!(scrape.said(&page("3.0", 10, 10)), first);
        let later = scrape.said(&page("NaN", 10, 20));
        assert_eq!((later.running_m, later.answered, later.p95_ms), (None, Some(20), Some(975)));
        assert_eq!(scrape.said("<html>502</html>"), Said::default());
        let silent = Metrics { running: None, waiting: None, latency: None, ..metrics };
        assert!(Scrape::new(reqwest::Client::new(), "", &silent).is_none());
    }
}
