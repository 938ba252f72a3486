//! `nf slo`: what services promise and how they keep it.

use super::client::{Client, escape};
use super::exit::{Exit, fail};
use super::kinds::Kind;
use super::output::{self, Column, at, col, state, wide};
use super::{Global, say};
use clap::Args;
use serde_json::Value;

#[derive(Debug, Args)]
pub struct Slo {
    /// One service, as nf get services names it: TENANT/MODEL
    service: Option<String>,
    /// Only this tenant's
    #[arg(long, conflicts_with = "service")]
    tenant: Option<String>,
}

const COLUMNS: &[Column] = &[
    col("TENANT", |v| at(v, "tenant_id")),
    col("MODEL", |v| at(v, "model_id")),
    col("STATE", |v| state(&at(v, "state"))),
    col("PROMISED", |v| format!("{} ms", at(v, "target.latency_ms"))),
    col("P95", |v| with_unit(v, "p95_ms")),
    col("5M", |v| percent(v, 0)),
    col("1H", |v| percent(v, 2)),
    col("3D", |v| percent(v, 4)),
    col("BUDGET LEFT", |v| share(v.get("error_budget_left"))),
    col("WOULD DO", would_do),
    wide("QUEUE", |v| at(v, "queue")),
    wide("RUNNING", |v| at(v, "running")),
    wide("KV CACHE", |v| share(v.get("autoscaler").and_then(|a| a.get("kv_cache_usage")))),
    wide("FIRST TOKEN", |v| with_unit(v, "autoscaler.first_token_ms")),
];

const WINDOWS: &[Column] = &[
    col("WINDOW", |v| at(v, "window")),
    col("REQUESTS", |v| at(v, "requests")),
    col("GOOD", |v| at(v, "good")),
    col("SLOW", |v| at(v, "slow")),
    col("FAILED", |v| at(v, "failed")),
    col("ATTAINED", |v| share(v.get("attainment"))),
    col("BURN RATE", |v| at(v, "burn_rate")),
];

fn with_unit(v: &Value, path: &str) -> String {
    match at(v, path).as_str() {
        "-" => "-".to_owned(),
        ms => format!("{ms} ms"),
    }
}

fn share(ratio: Option<&Value>) -> String {
    ratio.and_then(Value::as_f64).map_or_else(|| "-".to_owned(), |ratio| format!("{:.2} %", ratio * 100.0))
}

fn percent(v: &Value, window: usize) -> String {
    share(v.get("windows").and_then(|windows| windows.get(window)?.get("attainment")))
}

fn would_do(v: &Value) -> String {
    let Some(advice) = v.get("autoscaler").filter(|advice| !advice.is_null()) else { return "-".to_owned() };
    let told = if at(advice, "advisory") == "true" { " (advice)" } else { "" };
    match (at(advice, "current"), at(advice, "desired")) {
        (current, desired) if current == desired => format!("stay at {current}{told}"),
        (current, desired) => format!("{current} to {desired}{told}"),
    }
}

fn name(v: &Value) -> String {
    format!("{}/{}", at(v, "tenant_id"), at(v, "model_id"))
}

impl Slo {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let Some(service) = &self.service else { return self.all(global, &client).await };
        let Some((tenant, model)) = service.split_once('/') else {
            let text = format!("{service}: name a service as TENANT/MODEL\n  try: nf get services");
            return Err(fail(Exit::Usage, text));
        };
        let value = read(&client, tenant, model).await?;
        output::put(&output::object(global.style(), &value, &name(&value), || page(global, &value))?);
        silent(&value);
        Ok(())
    }

    async fn all(&self, global: &Global, client: &Client) -> anyhow::Result<()> {
        let (envelope, items) = all(client, self.tenant.as_deref()).await?;
        output::put(&output::listing(global.style(), &envelope, &items, COLUMNS, name)?);
        match items.first() {
            Some(first) => silent(first),
            None => say(Kind::Services.hint()),
        }
        Ok(())
    }
}

/// Every service, or every one of a tenant, as GET /slo tells of it; and what the list of them says of itself.
pub(super) async fn all(client: &Client, tenant: Option<&str>) -> anyhow::Result<(Value, Vec<Value>)> {
    let query = tenant.iter().map(|tenant| format!("?tenant_id={}", escape(tenant))).collect::<String>();
    let list = client.listing(&format!("{}{query}", Kind::Services.path())).await?;
    let mut items = Vec::new();
    for service in &list.items {
        items.push(read(client, &at(service, "tenant_id"), &at(service, "model_id")).await?);
    }
    Ok((list.envelope, items))
}

async fn read(client: &Client, tenant: &str, model: &str) -> anyhow::Result<Value> {
    client.get(&format!("/slo/{}/{}", escape(tenant), escape(model))).await
}

/// A number without some of its parts is said to be one.
fn silent(value: &Value) {
    let silent = value.get("silent").and_then(Value::as_array).filter(|silent| !silent.is_empty());
    if let Some(silent) = silent {
        let ids: Vec<String> = silent.iter().map(Value::to_string).collect();
        say(format!("member {} did not answer: what its gateway counted is missing here", ids.join(", ")));
    }
}

fn page(global: &Global, value: &Value) -> String {
    let stated = if at(value, "target.stated") == "true" { "as its job states" } else { "where none is stated" };
    let objective = share(value.get("target").and_then(|target| target.get("objective")));
    let windows = value.get("windows").and_then(Value::as_array).cloned().unwrap_or_default();
    let table = output::list(global.style(), &windows, WINDOWS, |v| at(v, "window")).unwrap_or_default();
    let why = value.get("autoscaler").and_then(|a| a.get("why")?.as_array().cloned()).unwrap_or_default();
    let why: Vec<&str> = why.iter().filter_map(Value::as_str).collect();
    let gap = value.get("autoscaler").and_then(|a| a.get("gap")?.as_str());
    let gap = gap.map(|gap| format!(" ({gap})")).unwrap_or_default();
    let because = if why.is_empty() { String::new() } else { format!(": {}{gap}", why.join(", ")) };
    let (tokens, errors) = (tokens(value), errors(value));
    format!(
        "{}  {}  {} of {} ready\npromised      {objective} within {} ms, {stated}\n{errors}p95           {} in the last 5 minutes\nnow           {} wait, {} run\n{tokens}budget left   {} of three days'\nwould do      {}{because}\n\n{table}",
        name(value),
        at(value, "state"),
        at(value, "ready"),
        at(value, "replicas"),
        at(value, "target.latency_ms"),
        with_unit(value, "p95_ms"),
        at(value, "queue"),
        at(value, "running"),
        share(value.get("error_budget_left")),
        would_do(value),
    )
}

/// What is promised of errors alone, where something is.
fn errors(value: &Value) -> String {
    let Some(most) = value.get("target").and_then(|target| target.get("error_rate")).filter(|rate| rate.is_number())
    else {
        return String::new();
    };
    let of = |window: usize| share(value.get("windows").and_then(|windows| windows.get(window)?.get("error_rate")));
    format!(
        "errors        {} in the last 5 minutes, {} in the last hour, at most {}\n",
        of(0),
        of(2),
        share(Some(most))
    )
}

/// What language models alone tell.
fn tokens(value: &Value) -> String {
    let cache = share(value.get("autoscaler").and_then(|advice| advice.get("kv_cache_usage")));
    match (cache.as_str(), with_unit(value, "autoscaler.first_token_ms").as_str()) {
        ("-", "-") => String::new(),
        (cache, first) => format!("tokens        first after {first} (p95), {cache} of the KV cache in use\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_known_is_a_dash_and_never_a_zero() {
        let nothing = json!({ "windows": [{ "attainment": null }], "error_budget_left": null, "autoscaler": null });
        assert_eq!((percent(&nothing, 0), percent(&nothing, 4)), ("-".to_owned(), "-".to_owned()));
        assert_eq!((would_do(&nothing), with_unit(&nothing, "p95_ms")), ("-".to_owned(), "-".to_owned()));
        let known = json!({ "windows": [{ "attainment": 0.9512 }], "autoscaler": { "current": 1, "desired": 2, "advisory": true } });
        assert_eq!((percent(&known, 0), would_do(&known)), ("95.12 %".to_owned(), "1 to 2 (advice)".to_owned()));
        assert_eq!((tokens(&nothing), tokens(&known)), (String::new(), String::new()));
        assert_eq!(errors(&nothing), "");
        let erring = json!({ "target": { "error_rate": 0.01 }, "windows": [{ "error_rate": 0.002 }, {}, { "error_rate": null }] });
        assert_eq!(errors(&erring), "errors        0.20 % in the last 5 minutes, - in the last hour, at most 1.00 %\n");
        let told = json!({ "autoscaler": { "kv_cache_usage": 0.91, "first_token_ms": null } });
        assert_eq!(tokens(&told), "tokens        first after - (p95), 91.00 % of the KV cache in use\n");
    }
}
