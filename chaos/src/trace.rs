//! The public GPU cluster trace ("openb"), where it is at hand. It is read by
//! column name, never copied into the project, and its absence is said loudly.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// One request of the trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    pub name: String,
    pub cpu_milli: u64,
    pub memory_mib: u64,
    pub gpus: u64,
    /// Per GPU; below 1000 only with one GPU.
    pub gpu_milli: u64,
    pub gpu_models: Vec<String>,
}

impl Pod {
    /// As the body of POST /schedule.
    pub fn body(&self, tenant: &str, request_id: &str) -> Value {
        let mut resources = json!({ "cpu": self.cpu_milli as f64 / 1000.0, "mem": format!("{}MiB", self.memory_mib) });
        if self.gpus > 0 {
            resources["gpu"] = json!((self.gpus * self.gpu_milli) as f64 / 1000.0);
            if !self.gpu_models.is_empty() {
                resources["device_type"] = json!(self.gpu_models);
            }
        }
        json!({ "tenant_id": tenant, "model_id": "openb", "model_version": "v1",
                "request_id": request_id, "resources": resources })
    }
}

/// Where the trace is: beside the clone that this is run in, or where NF_TRACES says.
pub fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("NF_TRACES").map_or("../shared/traces".into(), PathBuf::from);
    folder.join("openb_pod_list_default.csv").exists().then_some(folder)
}

/// The requests of a pod list.
pub fn pods(file: &Path) -> Result<Vec<Pod>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Vec<Pod>> {
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().context("an empty file")?.split(',').collect();
    let column = |name: &str| header.iter().position(|h| *h == name).with_context(|| format!("no column {name}"));
    let (name, cpu, memory) = (column("name")?, column("cpu_milli")?, column("memory_mib")?);
    let (gpus, milli) = (column("num_gpu")?, column("gpu_milli")?);
    // Some published variants have no gpu_spec.
    let spec = column("gpu_spec").ok();
    let mut out = Vec::new();
    for line in lines.filter(|l| !l.is_empty()) {
        let cells: Vec<&str> = line.split(',').collect();
        ensure!(cells.len() == header.len(), "{} cells where the header has {}: {line}", cells.len(), header.len());
        let models = spec.map(|i| cells[i]).unwrap_or_default();
        out.push(Pod {
            name: cells[name].to_owned(),
            cpu_milli: cells[cpu].parse()?,
            memory_mib: cells[memory].parse()?,
            gpus: cells[gpus].parse()?,
            gpu_milli: cells[milli].parse()?,
            gpu_models: models.split('|').filter(|m| !m.is_empty()).map(str::to_owned).collect(),
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_name_and_fractions_stay_fractions() {
        let text = "gpu_milli,name,cpu_milli,memory_mib,num_gpu,gpu_spec\n460,p1,6000,12288,1,V100M16|V100M32\n";
        let pods = parse(text).unwrap();
        let body = pods[0].body("t1", "r1");
        assert_eq!(body["resources"]["gpu"], 0.46);
        assert_eq!(body["resources"]["device_type"], json!(["V100M16", "V100M32"]));
        assert_eq!(body["resources"]["mem"], "12288MiB");
        assert!(parse("name\nx,y\n").is_err());
    }
}
