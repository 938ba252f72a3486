//! Lists of nodes and requests from CSV files, and the order in which requests arrive.
//! It knows the columns of the public "openb" trace; it does not place anything.

use super::ask::gpus;
use crate::agent::virtual_nodes;
use nf_core::id::DeviceType;
use nf_core::job::device_types;
use nf_core::placement::trial::{TrialNode, Whereabouts, beyond_count};
use nf_core::resources::{MAX_BYTES, MAX_DEVICES, Resources, WHOLE};
use nf_core::sim::Rng;

/// Most requests in a list, and in what is played of it.
const MOST: usize = 1 << 22;

/// The nodes of a list with the header `sn,cpu_milli,memory_mib,gpu,model`.
///
/// # Errors
/// A text that names the line and the column at fault.
pub fn nodes(text: &str) -> Result<Vec<TrialNode>, String> {
    let node = |node: virtual_nodes::VirtualNode| TrialNode {
        cpu_milli: node.cpu_milli,
        memory: node.memory,
        gpus: node.gpus,
        device_type: node.device_type,
        place: Whereabouts::default(),
    };
    let nodes: Vec<TrialNode> = virtual_nodes::parse(text)?.into_iter().map(node).collect();
    if nodes.iter().all(|node| node.gpus == 0) {
        return Err("no node has a GPU, so there is nothing to allocate".to_owned());
    }
    if let Some(at) = beyond_count(&nodes) {
        return Err(format!(
            "cpu_milli or memory_mib: with node {} of the list they have more than can be counted",
            at + 1
        ));
    }
    Ok(nodes)
}

/// The requests of a list with the columns `cpu_milli,memory_mib,num_gpu,gpu_milli` and,
/// where there is one, `gpu_spec` (types, `A|B`); further columns are not read.
///
/// # Errors
/// A text that names the line and the column at fault.
pub fn requests(text: &str) -> Result<Vec<Resources>, String> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (_, header) = lines.next().ok_or("the list is empty; its first line names the columns")?;
    let columns: Vec<&str> = header.trim().trim_start_matches('\u{feff}').split(',').map(str::trim).collect();
    let find = |name: &str| columns.iter().position(|column| *column == name);
    let column = |name: &'static str| {
        let missing = || format!("line 1: no column \"{name}\"; it needs cpu_milli,memory_mib,num_gpu,gpu_milli");
        find(name).map(|at| (name, at)).ok_or_else(missing)
    };
    let (cpu, memory, count, milli) =
        (column("cpu_milli")?, column("memory_mib")?, column("num_gpu")?, column("gpu_milli")?);
    let spec = find("gpu_spec");
    let mut out = Vec::new();
    for (number, line) in lines {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let at = |what: &str, why: String| format!("line {}: {what}: {why}", number + 1);
        let number = |(name, at_column): (&'static str, usize), most: u64| {
            let value = fields.get(at_column).and_then(|text| text.parse::<u64>().ok()).filter(|value| *value <= most);
            value.ok_or_else(|| at(name, format!("a number from 0 to {most}")))
        };
        let gpu = gpus(number(count, MAX_DEVICES.into())?, number(milli, WHOLE.into())?);
        let types = spec.and_then(|column| fields.get(column)).copied().unwrap_or_default();
        let types: Result<Vec<_>, _> = types.split('|').filter(|name| !name.is_empty()).map(DeviceType::new).collect();
        out.push(Resources {
            gpu: gpu.map_err(|why| at("gpu_milli", why))?,
            cpu_milli: number(cpu, MAX_BYTES)?,
            memory: number(memory, MAX_BYTES >> 20)? << 20,
            device_types: device_types(types.map_err(|e| at("gpu_spec", e.to_string()))?),
            ..Resources::default()
        });
        if out.len() > MOST {
            return Err(format!("at most {MOST} requests; split the list"));
        }
    }
    match out.iter().any(|ask| ask.gpu.milli() > 0) {
        true => Ok(out),
        false => Err("no request asks for a GPU, so nothing would ever be allocated".to_owned()),
    }
}

/// The list in the order of the seed, with requests drawn again or left out at random
/// until `target` thousandths of GPUs are asked for. Indexes into the list.
pub fn arrivals(list: &[Resources], target: u64, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    let mut order: Vec<u32> = (0..list.len() as u32).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, rng.below(i as u64 + 1) as usize);
    }
    let milli = |i: u32| list[i as usize].gpu.milli();
    let mut asked: u64 = order.iter().map(|i| milli(*i)).sum();
    while asked < target && order.len() < MOST {
        let drawn = rng.below(list.len() as u64) as u32;
        asked += milli(drawn);
        order.push(drawn);
    }
    while order.len() > 1 {
        let out = rng.below(order.len() as u64) as usize;
        if asked - milli(order[out]) < target {
            break;
        }
        asked -= milli(order.remove(out));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::resources::Gpus;

    const LIST: &str =
        "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\na,100,1,1,500,\nb,200,1,2,1000,V|A\nc,300,1,0,0,\n";

    #[test]
    fn requests_are_read_by_the_names_of_columns() {
        let list = requests(LIST).unwrap();
        assert_eq!(list.iter().map(|r| r.gpu).collect::<Vec<_>>(), [Gpus::Milli(500), Gpus::Whole(2), Gpus::None]);
        assert_eq!(list[1].device_types.iter().map(|t| t.as_str()).collect::<Vec<_>>(), ["A", "V"]);
        assert!(requests("cpu_milli\n1\n").unwrap_err().contains("no column \"memory_mib\""));
        let bad = requests("cpu_milli,memory_mib,num_gpu,gpu_milli\n1,1,2,500\n").unwrap_err();
        assert!(bad.starts_with("line 2: gpu_milli: 500"), "{bad}");
    }

    #[test]
    fn arrivals_are_the_same_for_a_seed_and_reach_the_target() {
        let list = requests(LIST).unwrap();
        for target in [1_000, 2_500, 40_000] {
            let order = arrivals(&list, target, 7);
            let asked: u64 = order.iter().map(|i| list[*i as usize].gpu.milli()).sum();
            assert!(asked >= target && asked < target + 2_000, "{asked} for {target}");
            assert_eq!(order, arrivals(&list, target, 7));
        }
    }
}
