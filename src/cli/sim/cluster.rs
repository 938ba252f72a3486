//! `nf sim cluster`: what more nodes would change for the jobs that wait, in the group or on lists.

mod lists;

use super::super::output::{self, Column, at, col};
use super::super::{Global, say};
use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Cluster {
    /// Nodes to add in thought, such as 4xH100-80G:8 (count, device type, GPUs of each)
    #[arg(long, required = true, value_name = "NxTYPE:GPUS", value_delimiter = ',', value_parser = kind)]
    add_nodes: Vec<Kind>,
    /// CPUs of each
    #[arg(long, value_parser = cpus)]
    cpu: Option<f64>,
    /// Memory of each, such as 512GiB
    #[arg(long)]
    mem: Option<String>,
    /// Memory of each GPU, such as 80GB
    #[arg(long)]
    gpu_memory: Option<String>,
    /// Instead of the group: CSV with the columns sn,cpu_milli,memory_mib,gpu,model
    #[arg(long, value_name = "FILE", requires = "requests")]
    nodes: Option<PathBuf>,
    /// And who came, in this order: CSV with the columns cpu_milli,memory_mib,num_gpu,gpu_milli and gpu_spec
    #[arg(long, value_name = "FILE", requires = "nodes", conflicts_with = "gpu_memory")]
    requests: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Kind {
    count: u16,
    device_type: String,
    gpus: u16,
}

fn kind(text: &str) -> Result<Kind, String> {
    let wrong = || "a number, a type and GPUs of each, such as 4xH100-80G:8".to_owned();
    let (count, rest) = text.split_once('x').ok_or_else(wrong)?;
    let (device_type, gpus) = rest.rsplit_once(':').ok_or_else(wrong)?;
    let number = |text: &str| text.parse().ok().filter(|number| *number > 0).ok_or_else(wrong);
    Ok(Kind { count: number(count)?, device_type: device_type.to_owned(), gpus: number(gpus)? })
}

fn cpus(text: &str) -> Result<f64, String> {
    let cpus = text.parse::<f64>().ok().filter(|cpus| (0.0..=1e6).contains(cpus));
    cpus.ok_or_else(|| "a number of CPUs, such as 96".to_owned())
}

const COLUMNS: &[Column] = &[
    col("TENANT", |v| at(v, "tenant_id")),
    col("JOB", |v| at(v, "request_id")),
    col("WOULD RUN", |v| at(v, "replicas")),
    col("WOULD WAIT", |v| at(v, "waiting")),
    col("ON", |v| {
        let nodes = v.get("nodes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        nodes.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
    }),
];

impl Cluster {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let answer = match (&self.nodes, &self.requests) {
            (Some(nodes), Some(requests)) => self.on_lists(nodes, requests)?,
            _ => self.in_group(global).await?,
        };
        show(global, &answer)
    }

    async fn in_group(&self, global: &Global) -> anyhow::Result<Value> {
        let of = |kind: &Kind| {
            let mut node = json!({ "count": kind.count, "device_type": kind.device_type, "gpus": kind.gpus });
            let more = [("mem", &self.mem), ("gpu_memory", &self.gpu_memory)];
            more.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?))).for_each(|(key, value)| {
                node[key] = json!(value);
            });
            if let Some(cpu) = self.cpu {
                node["cpu"] = json!(cpu);
            }
            node
        };
        let body = json!({ "add_nodes": self.add_nodes.iter().map(of).collect::<Vec<_>>() });
        let (_, answer) = global.client()?.call(Method::POST, "/cluster/what-if", Some(body), None).await?;
        Ok(answer)
    }
}

fn show(global: &Global, answer: &Value) -> anyhow::Result<()> {
    let jobs = answer.get("jobs").and_then(Value::as_array).cloned().unwrap_or_default();
    match global.for_people() {
        true if jobs.is_empty() => {}
        true => output::put(&output::list(global.style(), &jobs, COLUMNS, |v| at(v, "request_id"))?),
        false => output::put(&output::object(global.style(), answer, "cluster", String::new)?),
    }
    if global.for_people() {
        let of = |field: &str| at(answer, field);
        say(format!(
            "{} of {} jobs that wait would start with them; {} would wait all the same",
            of("would_start"),
            of("waiting"),
            of("would_wait")
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_nodes_are_a_number_a_type_and_gpus() {
        let expected = Kind { count: 4, device_type: "H100-80G".to_owned(), gpus: 8 };
        assert_eq!(kind("4xH100-80G:8"), Ok(expected));
        for bad in ["", "4", "4xH100", "xH100:8", "0xH100:8", "4xH100:0", "4xH100:-1", "99999xH100:8"] {
            assert!(kind(bad).is_err(), "{bad}");
        }
    }
}
