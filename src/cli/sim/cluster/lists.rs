//! The same question without a group: requests of a list come to the nodes of a list, one
//! after another and for good; who found no place tries again with the nodes that are added.

use super::{Cluster, Kind};
use crate::cli::exit::{Exit, fail};
use crate::cli::sim::place::{read, workload};
use nf_core::id::DeviceType;
use nf_core::placement::Policy;
use nf_core::placement::trial::{Trial, TrialNode, Whereabouts};
use nf_core::resources::{Resources, parse_bytes};
use nf_core::whatif::{MOST, TOLD};
use serde_json::{Value, json};
use std::path::Path;

/// Of a node whose CPUs and memory are not said: more than its GPUs' jobs will want.
const CPU_OF_EACH_GPU: u64 = 32_000;
const MEMORY_OF_EACH_GPU: u64 = 256 << 30;

impl Cluster {
    pub(super) fn on_lists(&self, nodes: &Path, requests: &Path) -> anyhow::Result<Value> {
        let (nodes, requests) = (read(nodes, workload::nodes)?, read(requests, workload::requests)?);
        let added = self.added().map_err(|why| fail(Exit::Usage, why))?;
        Ok(try_both(&nodes, &requests, &added))
    }

    fn added(&self) -> Result<Vec<TrialNode>, String> {
        let memory = self.mem.as_deref().map(parse_bytes).transpose().map_err(|e| format!("--mem: {e}"))?;
        let mut out = Vec::new();
        for Kind { count, device_type, gpus } in &self.add_nodes {
            let device_type = DeviceType::new(device_type).map_err(|e| format!("--add-nodes: {e}"))?;
            let each = u64::from(*gpus);
            let node = TrialNode {
                cpu_milli: self.cpu.map_or(each * CPU_OF_EACH_GPU, |cpus| (cpus * 1000.0) as u64),
                memory: memory.unwrap_or(each * MEMORY_OF_EACH_GPU),
                gpus: *gpus,
                device_type: Some(device_type),
                place: Whereabouts::default(),
            };
            out.extend(std::iter::repeat_n(node, usize::from(*count)));
        }
        match out.len() <= MOST {
            true => Ok(out),
            false => Err(format!("--add-nodes: at most {MOST} nodes in all, not {}", out.len())),
        }
    }
}

/// In the words that the group answers with.
fn try_both(nodes: &[TrialNode], requests: &[Resources], added: &[TrialNode]) -> Value {
    let mut trial = Trial::new(nodes, Policy::Fragmentation);
    requests.iter().for_each(|ask| trial.expect(ask, 1));
    let waiting: Vec<usize> = (0..requests.len()).filter(|i| trial.place(&requests[*i]).is_none()).collect();
    trial.add(added);
    let mut jobs = Vec::new();
    let mut would_start = 0;
    for i in &waiting {
        let Some(pick) = trial.place(&requests[*i]) else { continue };
        would_start += 1;
        if jobs.len() < TOLD {
            let node = pick.alloc.node.0 as usize;
            let name = match node.checked_sub(nodes.len()) {
                Some(new) => format!("added-{}", new + 1),
                None => format!("node-{}", node + 1),
            };
            let request = format!("request-{}", i + 1);
            jobs.push(json!({ "tenant_id": "-", "request_id": request, "replicas": 1, "waiting": 0, "nodes": [name] }));
        }
    }
    json!({
        "waiting": waiting.len(), "would_start": would_start, "would_wait": waiting.len() - would_start,
        "jobs": jobs, "simulation": true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::resources::Gpus;

    fn node(gpus: u16) -> TrialNode {
        TrialNode { cpu_milli: 64_000, memory: 1 << 40, gpus, device_type: None, place: Whereabouts::default() }
    }

    #[test]
    fn who_found_no_place_tries_again_with_what_is_added() {
        let ask = |n| Resources { gpu: Gpus::Whole(n), ..Resources::default() };
        let requests = [ask(2), ask(2), ask(1), ask(8)];
        let none = try_both(&[node(2)], &requests, &[]);
        assert_eq!((&none["waiting"], &none["would_start"]), (&json!(3), &json!(0)));
        let seen = try_both(&[node(2)], &requests, &[node(2), node(4)]);
        assert_eq!((&seen["waiting"], &seen["would_start"], &seen["would_wait"]), (&json!(3), &json!(2), &json!(1)));
        let who: Vec<&str> =
            seen["jobs"].as_array().unwrap().iter().map(|job| job["request_id"].as_str().unwrap()).collect();
        assert_eq!(who, ["request-2", "request-3"]);
        assert!(
            seen["jobs"].as_array().unwrap().iter().all(|job| job["nodes"][0].as_str().unwrap().starts_with("added-"))
        );
    }
}
