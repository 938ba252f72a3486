//! Asks a Prometheus, where there is one (`PROM_URL`), for the load of every service: how
//! many requests wait and run inside the replicas, and how long they took. Replicas are
//! found there by the labels that `/sd/prometheus` gives them. What it says, and that it
//! says nothing, is told; what follows is decided elsewhere.

use crate::exchange::sights::{Ask, Measured};
use crate::models::{profile, profiles};
use nf_core::autoscaler::signal::Reading;
use nf_core::autoscaler::source::Load;
use nf_core::id::{ModelId, TenantId};
use prometheus_http_query::response::InstantVector;
use prometheus_http_query::{Client, Error};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long all questions of one look may take together.
const PATIENCE: Duration = Duration::from_secs(2);
/// Services of one answer that are taken in.
const SERVICES: usize = 4096;

type Loads = BTreeMap<(TenantId, ModelId), Load>;

/// One PromQL expression each.
struct Questions {
    waiting: String,
    running: String,
    p95: String,
}

impl Questions {
    /// By the names that model servers' profiles give to their series, ours among them.
    fn of_profiles() -> Self {
        let known: Vec<_> = profiles().filter_map(|name| profile(name)?.metrics.as_ref()).collect();
        // A selector with labels is no name; agents read those.
        let names = |pick: fn(&crate::models::Metrics) -> Option<&String>, end: &str| {
            let plain = known.iter().filter_map(|metrics| pick(metrics)).filter(|name| !name.contains('{'));
            plain.map(|name| format!("{name}{end}")).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join("|")
        };
        let sum = |names: String| format!("sum by (tenant, model) ({{__name__=~\"{names}\"}})");
        let latency = names(|m| m.latency.as_ref(), "_bucket");
        Self {
            waiting: sum(names(|m| m.waiting.as_ref(), "")),
            running: sum(names(|m| m.running.as_ref(), "")),
            p95: format!(
                "histogram_quantile(0.95, sum by (tenant, model, le) (rate({{__name__=~\"{latency}\"}}[1m]))) * 1000"
            ),
        }
    }
}

/// Asks the Prometheus at `url` whenever the leader looks at the services.
///
/// # Errors
/// When the URL can't be one.
pub fn asking(url: &str) -> Result<Ask, String> {
    let http = reqwest::Client::builder().timeout(PATIENCE).redirect(reqwest::redirect::Policy::none());
    let http = http.no_proxy().build().map_err(|e| e.to_string())?;
    let client = Client::from(http, url).map_err(|e| format!("PROM_URL: {e}"))?;
    let questions = Arc::new(Questions::of_profiles());
    Ok(Arc::new(move || {
        let (client, questions) = (client.clone(), questions.clone());
        Box::pin(async move {
            match tokio::time::timeout(PATIENCE, ask(&client, &questions)).await {
                Ok(Ok(loads)) => Measured::Said(loads),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "Prometheus (PROM_URL) does not say; nothing is scaled down meanwhile");
                    Measured::Silent
                }
                Err(_) => {
                    tracing::warn!("Prometheus (PROM_URL) does not answer in time; nothing is scaled down meanwhile");
                    Measured::Silent
                }
            }
        })
    }))
}

async fn ask(client: &Client, questions: &Questions) -> Result<Loads, Error> {
    let ask = async |question: &str| {
        let answer = client.query(question).get().await?;
        Ok::<_, Error>(answer.data().as_vector().cloned().unwrap_or_default())
    };
    let (waiting, running, p95) =
        tokio::try_join!(ask(&questions.waiting), ask(&questions.running), ask(&questions.p95))?;
    let mut loads = Loads::new();
    add(&mut loads, &waiting, |load, milli| load.waiting_m = milli);
    add(&mut loads, &running, |load, milli| load.running_m = milli);
    add(&mut loads, &p95, |load, milli| load.p95_ms = milli / 1000);
    Ok(loads)
}

/// Takes in the samples that are numbers of a service; NaN, absurd ones and foreign series are none.
fn add(loads: &mut Loads, samples: &[InstantVector], set: fn(&mut Load, u64)) {
    for sample in samples {
        let label = |name: &str| sample.metric().get(name).map(String::as_str).unwrap_or_default();
        let (Ok(tenant), Ok(model)) = (TenantId::new(label("tenant")), ModelId::new(label("model"))) else { continue };
        let Some(milli) = Reading::from_f64(sample.sample().value()).known() else { continue };
        if loads.len() < SERVICES || loads.contains_key(&(tenant.clone(), model.clone())) {
            set(loads.entry((tenant, model)).or_default(), milli);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::routing::any;
    use std::sync::Mutex;

    /// A server that answers every question with the text that was put there last.
    async fn answering() -> (String, Arc<Mutex<String>>) {
        let text = Arc::new(Mutex::new(String::new()));
        let said = text.clone();
        let router = Router::new().fallback(any(move || {
            let said = said.lock().unwrap().clone();
            async move { ([("content-type", "application/json")], said) }
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (url, text)
    }

    fn vector(value: &str) -> String {
        let metric = r#"{"tenant":"t1","model":"m1"}"#;
        let other = r#"{"tenant":"../x","model":"m1"}"#;
        let (one, two) = (format!(r#"[1,"{value}"]"#), r#"[1,"9"]"#);
        let result = format!(r#"[{{"metric":{metric},"value":{one}}},{{"metric":{other},"value":{two}}}]"#);
        format!(r#"{{"status":"success","data":{{"resultType":"vector","result":{result}}}}}"#)
    }

    #[tokio::test]
    async fn numbers_are_taken_and_garbage_is_silence() {
        let (url, said) = answering().await;
        let ask = asking(&url).unwrap();
        *said.lock().unwrap() = vector("7");
        let key = (TenantId::new("t1").unwrap(), ModelId::new("m1").unwrap());
        let load = Load { waiting_m: 7_000, running_m: 7_000, arrived: 0, p95_ms: 7 };
        assert_eq!(ask().await, Measured::Said([(key, load)].into()));
        for nothing in ["NaN", "-3", "+Inf", "1e300"] {
            *said.lock().unwrap() = vector(nothing);
            assert_eq!(ask().await, Measured::Said(Loads::new()), "{nothing}");
        }
        for garbage in ["", "<html>", "{}", "[]", r#"{"status":"error","errorType":"x","error":"y"}"#] {
            *said.lock().unwrap() = garbage.to_owned();
            assert_eq!(ask().await, Measured::Silent, "{garbage}");
        }
    }

    #[tokio::test]
    async fn who_does_not_listen_is_silent() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        assert_eq!(asking(&url).unwrap()().await, Measured::Silent);
        assert!(asking("no url").is_err());
    }

    #[test]
    fn questions_name_every_profile() {
        let questions = Questions::of_profiles();
        for name in ["vllm:num_requests_waiting", "sglang:num_queue_reqs", "nf_model_requests_waiting"] {
            assert!(questions.waiting.contains(name), "{}", questions.waiting);
        }
        assert!(questions.p95.contains("vllm:e2e_request_latency_seconds_bucket"));
    }
}
