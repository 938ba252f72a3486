//! Asks a Prometheus, where there is one (`PROM_URL`), for the load of every service: how
//! many requests wait and run inside the replicas, and how long they took. Replicas are
//! found there by the labels that `/sd/prometheus` gives them. What it says, and that it
//! says nothing, is told; what follows is decided elsewhere.

use crate::exchange::sights::{Ask, Measured};
use crate::models::{profile, profiles};
use nf_core::autoscaler::signal::Reading;
use nf_core::autoscaler::source::Series;
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

type Loads = BTreeMap<(TenantId, ModelId), Series>;

/// One PromQL expression each.
struct Questions {
    waiting: String,
    running: String,
    p95: String,
    /// How many replicas the sums are of. A comparison leaves out what is NaN, or below zero.
    waiting_of: String,
    running_of: String,
    /// Seconds since the oldest of the samples.
    age: String,
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
        let (waiting, running) = (names(|m| m.waiting.as_ref(), ""), names(|m| m.running.as_ref(), ""));
        // What drains answers its last requests, and is none of the replicas that the sums should be of.
        let sum = |names: &str| format!("sum by (tenant, model) ({{__name__=~\"{names}\",draining=\"\"}} >= 0)");
        let of = |names: &str| {
            let one = format!("{{__name__=~\"{names}\",draining=\"\"}} >= 0");
            format!("count by (tenant, model) (count by (tenant, model, instance) ({one}))")
        };
        // The time of a sample has no name: one metric at a time, or two of one replica would be the same series.
        let both: BTreeSet<&str> = waiting.split('|').chain(running.split('|')).filter(|n| !n.is_empty()).collect();
        let times: Vec<String> = both.iter().map(|name| format!("timestamp({name}{{draining=\"\"}})")).collect();
        let latency = names(|m| m.latency.as_ref(), "_bucket");
        Self {
            p95: format!(
                "histogram_quantile(0.95, sum by (tenant, model, le) (rate({{__name__=~\"{latency}\"}}[1m]))) * 1000"
            ),
            age: format!("time() - min by (tenant, model) ({})", times.join(" or ")),
            waiting_of: of(&waiting),
            running_of: of(&running),
            waiting: sum(&waiting),
            running: sum(&running),
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
    let Questions { waiting, running, p95, waiting_of, running_of, age } = questions;
    let (waiting, running, p95, waiting_of, running_of, age) =
        tokio::try_join!(ask(waiting), ask(running), ask(p95), ask(waiting_of), ask(running_of), ask(age))?;
    let mut loads = Loads::new();
    add(&mut loads, &waiting, |series, milli| series.waiting_m = Some(milli));
    add(&mut loads, &running, |series, milli| series.running_m = Some(milli));
    add(&mut loads, &p95, |series, milli| series.p95_ms = Some(milli / 1000));
    add(&mut loads, &age, |series, milli| series.age_ms = Some(milli));
    add(&mut loads, &waiting_of, |series, milli| series.replicas = whole(milli));
    // Of two sums the one of fewer replicas says how much is known; where there is one alone, it does.
    add(&mut loads, &running_of, |series, milli| {
        series.replicas = if series.replicas == 0 { whole(milli) } else { series.replicas.min(whole(milli)) };
    });
    Ok(loads)
}

fn whole(milli: u64) -> u32 {
    u32::try_from(milli / 1000).unwrap_or(u32::MAX)
}

/// Takes in the samples that are numbers of a service; NaN, absurd ones and foreign series are none.
fn add(loads: &mut Loads, samples: &[InstantVector], set: fn(&mut Series, u64)) {
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
        let seven = Some(7_000);
        let series = Series { waiting_m: seven, running_m: seven, p95_ms: Some(7), replicas: 7, age_ms: seven };
        assert_eq!(ask().await, Measured::Said([(key, series)].into()));
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
        assert!(
            questions.age.contains("timestamp(llamacpp:requests_processing{draining=\"\"}) or timestamp("),
            "{}",
            questions.age
        );
        assert!(questions.running_of.contains("instance"), "{}", questions.running_of);
    }
}
