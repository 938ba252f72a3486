//! What defragmentation wins on a group that the public "openb" trace has filled and
//! churned: GPUs usable per replica moved, and GPUs that the arrivals after it get. The
//! trace is not ours to ship; where it is absent the test says so and passes.

// Helpers of tests are tests: a panic in them is a failed test with a line number.
#![allow(clippy::unwrap_used)]

use nf_core::apply::{BatchOutcome, apply_batch};
use nf_core::command::{Batch, Command, Report, ReportKind};
use nf_core::defrag;
use nf_core::id::{DeviceType, JobNo, NodeNo, RequestId, TenantId};
use nf_core::job::{Copy, Phase, Stage, device_types};
use nf_core::node::{Device, NodeSpec};
use nf_core::plan::{Intent, Queueing, plan};
use nf_core::reason::Reason;
use nf_core::resources::{Gpus, Resources};
use nf_core::sim::Rng;
use nf_core::state::State;
use nf_core::tenant::Quota;
use nf_core::{invariants, testing};
use std::collections::BTreeSet;
use std::path::PathBuf;

fn traces() -> Option<PathBuf> {
    let found = std::env::var_os("NF_TRACES").map_or("../../../shared/traces".into(), PathBuf::from);
    found.join("openb_node_list_gpu_node.csv").exists().then_some(found)
}

/// The lines of a table, each as a look-up by column.
fn table(text: &str) -> Vec<impl Fn(&str) -> String> {
    let mut lines = text.lines();
    let header: Vec<String> = lines.next().unwrap().trim().split(',').map(str::to_owned).collect();
    let line = |line: &str| {
        let fields: Vec<String> = line.trim().split(',').map(str::to_owned).collect();
        let header = header.clone();
        move |name: &str| fields[header.iter().position(|column| column == name).unwrap()].clone()
    };
    lines.map(line).collect()
}

fn node_of(row: &impl Fn(&str) -> String) -> NodeSpec {
    let mut spec = testing::node_spec(row("gpu").parse().unwrap());
    spec.ports = None;
    spec.cpu_milli = row("cpu_milli").parse().unwrap();
    spec.memory = row("memory_mib").parse::<u64>().unwrap() << 20;
    let device = |device: Device| Device { island: 0, device_type: DeviceType::new(&row("model")).unwrap(), ..device };
    spec.devices = spec.devices.into_iter().map(device).collect();
    spec
}

fn ask_of(row: &impl Fn(&str) -> String) -> Resources {
    let (count, milli): (u16, u16) = (row("num_gpu").parse().unwrap(), row("gpu_milli").parse().unwrap());
    let gpu = match (count, milli) {
        (0, _) => Gpus::None,
        (1, milli) if milli < 1000 => Gpus::Milli(milli),
        (count, _) => Gpus::Whole(count),
    };
    let types = row("gpu_spec");
    let types = types.split('|').filter(|name| !name.is_empty()).map(|name| DeviceType::new(name).unwrap());
    Resources {
        gpu,
        cpu_milli: row("cpu_milli").parse().unwrap(),
        memory: row("memory_mib").parse::<u64>().unwrap() << 20,
        device_types: device_types(types.collect()),
        ..Resources::default()
    }
}

/// A group, and jobs that come and go.
struct World {
    state: State,
    rng: Rng,
    asks: Vec<Resources>,
    live: Vec<RequestId>,
    arrived: u32,
}

impl World {
    fn entry(&mut self, commands: Vec<Command>) {
        let batch = Batch { base: self.state.meta().base, at_ms: 1, commands, ..Batch::default() };
        assert!(matches!(apply_batch(&mut self.state, &batch), BatchOutcome::Applied(_)));
    }

    /// The agents of some nodes do what they should, and say so.
    fn settle(&mut self, nodes: BTreeSet<NodeNo>) {
        let mut commands = Vec::new();
        for node in nodes.iter().filter_map(|no| self.state.node(*no)) {
            let mut reports = Vec::new();
            for (job, replica, r) in self.state.replicas_on(node.no) {
                let Some((generation, _, copy)) = r.copy_on(node.no) else { continue };
                let kind = match copy {
                    Copy::Going(why) => ReportKind::Ended { ok: true, why },
                    Copy::Own(Phase::Stopping { why, .. }) => ReportKind::Ended { ok: true, why: *why },
                    Copy::Own(Phase::Held { stage: Stage::Ready, .. }) => continue,
                    _ => ReportKind::Stage(Stage::Ready),
                };
                reports.push(Report { job: job.no, replica, generation, kind });
            }
            if !reports.is_empty() {
                commands.push(Command::Reports { node: node.no, incarnation: node.incarnation, reports });
            }
        }
        self.entry(commands);
    }

    fn nodes_of(&self, no: JobNo) -> BTreeSet<NodeNo> {
        let replicas = self.state.job(no).map(|job| job.replicas.clone()).unwrap_or_default();
        replicas.iter().flat_map(|r| r.allocations().map(|alloc| alloc.node)).collect()
    }

    /// One more of the trace's requests; it is lost where it does not fit.
    fn arrive(&mut self) {
        self.arrived += 1;
        let mut spec = testing::job_spec("t1", Gpus::None);
        spec.resources = self.rng.pick(&self.asks).clone();
        let request = format!("r{}", self.arrived);
        let Intent::Schedule { submission, .. } = testing::schedule(&request, spec) else { unreachable!() };
        let intent = Intent::Schedule { submission, queueing: Queueing::Never, check_plan: None };
        let Ok(planned) = plan(&self.state, &intent) else { return };
        self.entry(planned.commands);
        let request = RequestId::new(&request).unwrap();
        let nodes = self.nodes_of(self.state.job_of(&request).unwrap().no);
        self.settle(nodes);
        self.live.push(request);
    }

    fn leave(&mut self) {
        let request = self.live.swap_remove(self.rng.below(self.live.len() as u64) as usize);
        let no = self.state.job_of(&request).unwrap().no;
        let nodes = self.nodes_of(no);
        self.entry(vec![Command::Stop { job: no, why: Reason::StoppedByUser }]);
        self.settle(nodes);
    }

    fn allocated(&self) -> u64 {
        let tenant = self.state.tenant_named(&TenantId::new("t1").unwrap()).unwrap().no;
        self.state.ledger().tenant(tenant).gpu_milli
    }
}

fn thousandths(milli: i64) -> String {
    format!("{}.{:03}", milli / 1000, milli % 1000)
}

#[test]
fn a_churned_openb_group_wins_gpus_for_each_replica_that_moves() {
    let Some(folder) = traces() else {
        testing::skipped("the openb trace is not here");
        return;
    };
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let asks: Vec<Resources> = table(&read("openb_pod_list_default.csv")).iter().map(ask_of).collect();
    let mut world = World { state: State::new(), rng: Rng::new(42), asks, live: vec![], arrived: 0 };
    let quota = Quota { gpu_milli: Some(u64::MAX), ..Quota::default() };
    testing::run(&mut world.state, Intent::SetQuota { tenant: TenantId::new("t1").unwrap(), quota });
    let mut capacity = 0;
    for (i, row) in table(&read("openb_node_list_gpu_node.csv")).iter().enumerate() {
        let spec = node_of(row);
        capacity += 1000 * spec.devices.len() as u64;
        testing::run(&mut world.state, testing::register(&format!("n{i}"), spec));
    }
    // Filled, then for a while as many come as go.
    while world.allocated() * 100 < capacity * 88 && world.arrived < 12_000 {
        world.arrive();
    }
    for _ in 0..4_000 {
        world.leave();
        while world.allocated() * 100 < capacity * 88 && world.rng.below(4) > 0 {
            world.arrive();
        }
    }
    let before = defrag::plan(&world.state).unwrap();
    let (mut moved, mut rounds) = (0, 0);
    let running = world.live.len();
    for _ in 0..8 {
        let steps = defrag::plan(&world.state).unwrap().steps;
        if steps.is_empty() {
            break;
        }
        let nodes = steps.iter().flat_map(|step| [step.from, step.to.alloc.node]).collect::<BTreeSet<_>>();
        moved += steps.len();
        rounds += 1;
        let commands = plan(&world.state, &Intent::Defragment).unwrap().commands;
        world.entry(commands);
        // The replacement is ready, then what it replaced is gone.
        world.settle(nodes.clone());
        world.settle(nodes);
    }
    let after = defrag::plan(&world.state).unwrap();
    assert_eq!((after.under_way, invariants::check(&world.state)), (0, vec![]));
    let won = after.usable_milli - before.usable_milli;
    println!(
        "{running} jobs, {} of {} GPUs idle, usable {} before and {} after {moved} moves in {rounds} rounds: {} GPU a move",
        before.idle_milli / 1000,
        capacity / 1000,
        before.usable_milli / 1000,
        after.usable_milli / 1000,
        thousandths(won / moved.max(1) as i64)
    );
    assert!(moved > 0 && won > 0, "{won} by {moved} moves");
}
