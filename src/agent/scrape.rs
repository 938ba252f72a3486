//! Reads a replica's own metrics: how many requests it works on, how many wait in it,
//! how long they took, and how full a language model's cache is. Which series say so is data of its manifest or profile. It
//! does not know what follows from them.

use crate::models::{Histogram, Metrics, most, sum};
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
    /// Part of the KV cache that is in use, in thousandths.
    pub kv_m: Option<u64>,
    /// 95th percentile of the time to the first token since the page before.
    pub first_token_ms: Option<u64>,
}

/// One replica's page, read again and again.
pub(super) struct Scrape {
    client: reqwest::Client,
    url: String,
    metrics: Metrics,
    latency: Option<Histogram>,
    first_token: Option<Histogram>,
}

impl Scrape {
    /// None when the metrics name nothing that is wanted.
    pub(super) fn new(client: reqwest::Client, base: &str, metrics: &Metrics) -> Option<Self> {
        let Metrics { running, waiting, latency, kv_cache, first_token, .. } = metrics;
        let named = [running, waiting, latency, kv_cache, first_token].into_iter().any(Option::is_some);
        let url = format!("{base}{}", metrics.path);
        named.then(|| Self { client, url, metrics: metrics.clone(), latency: None, first_token: None })
    }

    /// None when there is no page, or none of the series is on it.
    pub(super) async fn read(&mut self) -> Option<Said> {
        let text = page(&self.client, &self.url).await?;
        Some(self.said(&text)).filter(|said| *said != Said::default())
    }

    fn said(&mut self, text: &str) -> Said {
        // NaN, a negative or an absurd number is no number.
        let count = |name: &Option<String>| Reading::from_f64(sum(text, name.as_deref()?)?).known();
        let read = |name: &Option<String>| name.as_deref().and_then(|name| Histogram::read(text, name));
        let (latency, first_token) = (read(&self.metrics.latency), read(&self.metrics.first_token));
        let answered = latency.as_ref().and_then(|now| Reading::from_f64(now.count()).known());
        let kv = self.metrics.kv_caches().find_map(|name| most(text, name)).filter(|part| (0.0..=1.0).contains(part));
        Said {
            running_m: count(&self.metrics.running),
            waiting_m: count(&self.metrics.waiting),
            answered: answered.map(|milli| milli / 1000),
            p95_ms: p95_ms(&mut self.latency, latency),
            kv_m: kv.and_then(|part| Reading::from_f64(part).known()),
            first_token_ms: p95_ms(&mut self.first_token, first_token),
        }
    }
}

/// Of what was measured between both pages; the later one is kept for the next time.
fn p95_ms(before: &mut Option<Histogram>, now: Option<Histogram>) -> Option<u64> {
    let p95 = now.as_ref().zip(before.as_ref()).and_then(|(now, before)| now.p95_since(before));
    *before = now;
    // Seconds; in thousandths they are milliseconds.
    p95.and_then(|seconds| Reading::from_f64(seconds).known())
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
            ..Metrics::default()
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
        let first = Said { running_m: Some(3_000), waiting_m: Some(2_000), answered: Some(10), ..Said::default() };
        assert_eq!(scrape.said(&page("3.0", 10, 10)), first);
        let later = scrape.said(&page("NaN", 10, 20));
        assert_eq!((later.running_m, later.answered, later.p95_ms), (None, Some(20), Some(975)));
        assert_eq!(scrape.said("<html>502</html>"), Said::default());
        let silent = Metrics { running: None, waiting: None, latency: None, ..metrics };
        assert!(Scrape::new(reqwest::Client::new(), "", &silent).is_none());
    }

    #[test]
    fn a_language_models_cache_and_first_tokens_are_read_under_the_names_of_every_release() {
        let metrics = crate::models::profile("vllm").and_then(|profile| profile.metrics.clone()).unwrap();
        let metrics = Metrics { running: None, waiting: None, latency: None, ..metrics };
        let mut scrape = Scrape::new(reqwest::Client::new(), "", &metrics).expect("they alone are worth a look");
        let page = |kv: &str, slow: u32, all: u32| {
            format!(
                "{kv}\nvllm:time_to_first_token_seconds_bucket{{le=\"0.5\",model_name=\"m\"}} {}\n\
                 vllm:time_to_first_token_seconds_bucket{{le=\"2.5\",model_name=\"m\"}} {all}\n\
                 vllm:time_to_first_token_seconds_bucket{{le=\"+Inf\",model_name=\"m\"}} {all}\n",
                all - slow
            )
        };
        let now = "vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.91";
        assert_eq!(
            scrape.said(&page(now, 0, 10)),
            Said { kv_m: Some(910), ..Said::default() },
            "the fuller one counts"
        );
        let before = "vllm:gpu_cache_usage_perc{model_name=\"m\"} 0.5";
        let said = scrape.said(&page(before, 10, 20));
        assert_eq!((said.kv_m, said.first_token_ms), (Some(500), Some(2_400)));
        for absurd in ["vllm:kv_cache_usage_perc NaN", "vllm:kv_cache_usage_perc -1", "vllm:kv_cache_usage_perc 91"] {
            assert_eq!(scrape.said(absurd).kv_m, None, "{absurd}");
        }
    }
}
