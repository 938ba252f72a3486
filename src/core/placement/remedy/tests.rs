//! Faults two at a time: both come back as reasons with their counts, and undoing what
//! the remedy names, and nothing else, lets the job run.

use super::nodes::with_engine;
use super::*;
use crate::budget::{Kind, Window};
use crate::command::DeviceFault;
use crate::id::{NodeName, TenantId};
use crate::job::JobState;
use crate::node::{Cordon, Device, Drain};
use crate::plan::{Intent, draft, plan};
use crate::reason::Reason;
use crate::sim::Rng;
use crate::testing;
use std::collections::BTreeSet;

/// Something that is in the way of a job that asks for two GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Quota,
    QuotaOfType,
    QuotaOfCpu,
    QuotaOfMemory,
    DayBudget,
    MonthBudget,
    Cordoned,
    Draining,
    Suspect,
    Unknown,
    Down,
    Quarantine,
}

impl Fault {
    const ALL: [Fault; 12] = [
        Fault::Quota,
        Fault::QuotaOfType,
        Fault::QuotaOfCpu,
        Fault::QuotaOfMemory,
        Fault::DayBudget,
        Fault::MonthBudget,
        Fault::Cordoned,
        Fault::Draining,
        Fault::Suspect,
        Fault::Unknown,
        Fault::Down,
        Fault::Quarantine,
    ];

    /// Its token, how many nodes it is about, and which change undoes it: faults of one number are undone together.
    fn told(self) -> (Reason, u32, u8) {
        match self {
            Fault::Quota | Fault::QuotaOfType | Fault::QuotaOfCpu | Fault::QuotaOfMemory => {
                (Reason::ExceedsMaxQuota, 0, 0)
            }
            Fault::DayBudget => (Reason::BudgetExhausted, 0, 1),
            Fault::MonthBudget => (Reason::BudgetExhausted, 0, 2),
            Fault::Cordoned | Fault::Draining => (Reason::NodeCordoned, 1, 3),
            Fault::Suspect | Fault::Unknown | Fault::Down => (Reason::NodeDown, 1, 4),
            Fault::Quarantine => (Reason::DeviceFault, 1, 5),
        }
    }

    /// What it makes of the tenant's quota.
    fn limits(self, quota: &mut Quota) {
        let mut budgets = quota.budgets.as_deref().cloned().unwrap_or_default();
        let h100 = crate::id::DeviceType::new("H100-80G").unwrap();
        match self {
            Fault::Quota => quota.gpu_milli = Some(1_000),
            Fault::QuotaOfType => {
                quota.types.insert(h100, crate::tenant::Share { gpu_milli: 1_000, ..Default::default() });
            }
            Fault::QuotaOfCpu => quota.cpu_milli = Some(500),
            Fault::QuotaOfMemory => quota.memory = Some(1 << 20),
            Fault::DayBudget => budgets.set(Kind::GpuHours, Window::Day, 1_000),
            Fault::MonthBudget => budgets.set(Kind::GpuHours, Window::Month, 1_000),
            _ => {}
        }
        quota.budgets = budgets.some();
    }

    /// What happens to the node.
    fn happens(self, state: &mut State, on: &Node) {
        let cordon = |drain| Intent::Cordon {
            node: on.name.clone(),
            cordon: Some(Cordon { by: "me".into(), reason: "fans".into(), at_ms: 0, drain }),
        };
        let becomes = |to| Intent::NodeStates(vec![(on.no, on.incarnation, to)]);
        let broken = |device: &Device| DeviceFault {
            uuid: device.uuid.clone(),
            fault: crate::fault::Fault::Xid(79),
            simulated: true,
        };
        let intent = match self {
            Fault::Cordoned => cordon(None),
            Fault::Draining => cordon(Some(Drain { within_ms: None, force: false })),
            Fault::Suspect => becomes(NodeState::Suspect),
            Fault::Unknown => becomes(NodeState::Unknown),
            Fault::Down => becomes(NodeState::Down),
            // All but one.
            Fault::Quarantine => {
                let faults = on.spec.devices[1..].iter().map(broken).collect();
                Intent::Faults { node: on.name.clone(), incarnation: None, faults }
            }
            _ => return,
        };
        testing::run(state, intent);
    }
}

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

/// A node that could run the job and, with both faults, doesn't.
fn broken(rng: &mut Rng, faults: [Fault; 2]) -> (State, JobSpec) {
    let mut state = State::new();
    let gpus = rng.between(2, 8) as u16;
    testing::run(&mut state, testing::register("n1", testing::node_spec(gpus)));
    // Others that are full.
    for i in 0..rng.below(6) {
        let name = format!("full{i}");
        testing::run(&mut state, testing::register(&name, testing::node_spec(2)));
        let mut spec = testing::job_spec("other", Gpus::Whole(2));
        spec.constraints.node = Some(node(&name));
        let quota = Quota { gpu_milli: Some(1_000_000), ..Quota::default() };
        testing::run(&mut state, Intent::SetQuota { tenant: spec.tenant.clone(), quota });
        testing::run(&mut state, testing::schedule(&name, spec));
    }
    let mut spec = testing::job_spec("t1", Gpus::Whole(2));
    (spec.resources.cpu_milli, spec.resources.memory) = (1_000, 1 << 30);
    let mut quota = Quota { gpu_milli: Some(100_000), ..Quota::default() };
    faults.iter().for_each(|fault| fault.limits(&mut quota));
    testing::run(&mut state, Intent::SetQuota { tenant: spec.tenant.clone(), quota });
    for fault in faults {
        let on = state.node_named(&node("n1")).unwrap().clone();
        fault.happens(&mut state, &on);
    }
    (state, spec)
}

fn undo(state: &mut State, change: &Change) {
    let now = |state: &State, tenant: &TenantId| state.tenant_named(tenant).unwrap().quota.clone();
    let intent = match change {
        Change::Quota { tenant, quota } => {
            let budgets = now(state, tenant).budgets;
            Intent::SetQuota { tenant: tenant.clone(), quota: Quota { budgets, ..(**quota).clone() } }
        }
        Change::Budget { tenant, kind, window, most } => {
            let mut quota = now(state, tenant);
            let mut budgets = quota.budgets.as_deref().cloned().unwrap_or_default();
            budgets.set(*kind, *window, *most);
            quota.budgets = budgets.some();
            Intent::SetQuota { tenant: tenant.clone(), quota }
        }
        Change::Uncordon(node) => Intent::Cordon { node: node.clone(), cordon: None },
        Change::Return(name) => {
            let node = state.node_named(name).unwrap();
            Intent::NodeStates(vec![(node.no, node.incarnation, NodeState::Ready)])
        }
        Change::Heal { node, device } => {
            let uuid = state.node_named(node).unwrap().spec.devices[usize::from(*device)].uuid.clone();
            Intent::Heal { node: node.clone(), uuid, by: "operator".into() }
        }
        Change::Engine(name) => {
            let mut spec = (*state.node_named(name).unwrap().spec).clone();
            spec.labels = with_engine(&spec.labels).unwrap();
            testing::register(name.as_str(), spec)
        }
        Change::LetIn(_) | Change::SoftSharing { .. } | Change::AddNodes { .. } => {
            unreachable!("no hardware is missing, whole GPUs are asked for, and nobody has to approve")
        }
    };
    testing::run(state, intent);
}

#[test]
fn twelve_faults_two_at_a_time_come_back_as_reasons_and_as_what_to_do() {
    let pairs = Fault::ALL.iter().flat_map(|a| Fault::ALL.map(|b| [*a, b]));
    for (seed, faults) in pairs.enumerate() {
        let mut rng = Rng::new(seed as u64);
        let (mut state, spec) = broken(&mut rng, faults);
        testing::run(&mut state, testing::schedule("r1", spec.clone()));
        let job = state.jobs().values().next_back().unwrap().clone();
        assert_eq!(job.state(), JobState::Pending, "{faults:?}");
        let reasons = super::super::explain::blockers(&state, &job);
        for (reason, nodes, _) in faults.map(Fault::told) {
            let said = reasons.iter().find(|blocker| blocker.reason == reason);
            let count = said.unwrap_or_else(|| panic!("{faults:?}: {reason} is not in {reasons:?}")).nodes;
            assert_eq!(count, nodes, "{faults:?}");
        }
        let changes = for_job(&state, &job, &[0]).unwrap_or_else(|| panic!("{faults:?}: nothing helps"));
        let needed: BTreeSet<u8> = faults.iter().map(|fault| fault.told().2).collect();
        assert_eq!(changes.len(), needed.len(), "{faults:?}: {changes:?}");
        for change in &changes {
            assert!(draft(&state, &spec).picks.is_empty(), "{faults:?}: {change} was not needed");
            undo(&mut state, change);
        }
        testing::run(&mut state, Intent::PlaceWaiting);
        assert_eq!(state.job(job.no).unwrap().state(), JobState::Admitted, "{faults:?}: {changes:?}");
    }
}

#[test]
fn a_gang_is_told_of_as_many_nodes_as_it_needs() {
    let mut state = State::new();
    for i in 0..6 {
        let name = format!("n{i}");
        testing::run(&mut state, testing::register(&name, testing::node_spec(1)));
        let cordon = Cordon { by: "me".into(), reason: "fans".into(), at_ms: 0, drain: None };
        testing::run(&mut state, Intent::Cordon { node: node(&name), cordon: Some(cordon) });
    }
    let mut spec = JobSpec { replicas: 4, gang: true, ..testing::job_spec("t1", Gpus::Whole(1)) };
    spec.tenant = TenantId::new("t1").unwrap();
    let quota = Quota { gpu_milli: Some(100_000), ..Quota::default() };
    testing::run(&mut state, Intent::SetQuota { tenant: spec.tenant.clone(), quota });
    let changes = remedy(&state, &spec, &[0, 1, 2, 3]).unwrap();
    assert_eq!(changes.len(), 4, "{changes:?}");
    assert!(changes.iter().all(|change| matches!(change, Change::Uncordon(_))), "{changes:?}");
}

#[test]
fn hardware_is_proposed_when_nothing_else_helps() {
    let mut state = State::new();
    testing::run(&mut state, testing::register("n1", testing::node_spec(4)));
    let mut spec = testing::job_spec("t1", Gpus::Whole(6));
    spec.replicas = 3;
    let changes = remedy(&state, &spec, &[0, 1, 2]).unwrap();
    let said: Vec<String> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(said, ["raise the quota: nf quota set t1 --gpus 18", "add 3 nodes with 6 × GPU"]);
    changes.iter().for_each(|change| make(&mut state, change));
    assert_eq!(remedy(&state, &spec, &[0, 1, 2]), Some(Vec::new()));
}

#[test]
fn in_a_tree_the_quota_is_raised_by_what_is_missing_above() {
    let mut state = State::new();
    testing::run(&mut state, testing::register("n1", testing::node_spec(8)));
    let id = |name: &str| TenantId::new(name).unwrap();
    let quota = |gpus: u64, parent: Option<&str>| Quota {
        gpu_milli: Some(gpus * 1000),
        parent: parent.map(id),
        ..Quota::default()
    };
    for (name, row) in [("org", quota(0, None)), ("t1", quota(1, Some("org"))), ("t2", quota(2, Some("org")))] {
        testing::run(&mut state, Intent::SetQuota { tenant: id(name), quota: row });
    }
    let spec = testing::job_spec("t1", Gpus::Whole(4));
    let changes = remedy(&state, &spec, &[0]).unwrap();
    assert_eq!(changes, [Change::Quota { tenant: id("t1"), quota: Box::new(quota(2, Some("org"))) }]);
}

/// What `explain` proposes for a job.
fn told(state: &State, request: &str) -> Vec<Change> {
    let job = state.job_of(&crate::id::RequestId::new(request).unwrap()).unwrap();
    let wanted: Vec<u16> = (0..job.spec.replicas).collect();
    for_job(state, job, &wanted).unwrap_or_else(|| panic!("{request}: nothing known would do"))
}

/// One node of eight GPUs with a service of so many on it, and these jobs behind it.
fn behind(held: u16, quota: u64, asks: &[(&str, u16)]) -> State {
    let mut state = State::new();
    testing::run(&mut state, testing::register("n1", testing::node_spec(8)));
    for (tenant, gpus) in [("t1", quota), ("other", 64)] {
        let quota = Quota { gpu_milli: Some(gpus * 1000), ..Quota::default() };
        testing::run(&mut state, Intent::SetQuota { tenant: TenantId::new(tenant).unwrap(), quota });
    }
    if held > 0 {
        testing::run(&mut state, testing::schedule("held", testing::job_spec("other", Gpus::Whole(held))));
    }
    for (request, gpus) in asks {
        testing::run(&mut state, testing::schedule(request, testing::job_spec("t1", Gpus::Whole(*gpus))));
    }
    state
}

/// Does what was told, and nothing else; the job runs then.
fn helps(mut state: State, request: &str) {
    for change in told(&state, request) {
        match &change {
            Change::AddNodes { count, name, spec } => (0..*count).for_each(|i| {
                let name = name.as_ref().map_or_else(|| format!("added{i}"), ToString::to_string);
                testing::run(&mut state, testing::register(&name, (**spec).clone()));
            }),
            change => undo(&mut state, change),
        }
    }
    while !plan(&state, &Intent::PlaceWaiting).unwrap().commands.is_empty() {
        testing::run(&mut state, Intent::PlaceWaiting);
    }
    let job = state.job_of(&crate::id::RequestId::new(request).unwrap()).unwrap();
    assert!(job.replicas.iter().all(|replica| replica.allocation().is_some()), "{request} waits still");
}

#[test]
fn who_is_behind_others_is_told_what_helps_all_of_them() {
    let count = |state: &State, request| match &told(state, request)[..] {
        [Change::AddNodes { count, .. }] => *count,
        other => panic!("{request}: {other:?}"),
    };
    let state = behind(1, 64, &[("first", 8), ("second", 8), ("third", 8)]);
    assert_eq!([count(&state, "first"), count(&state, "second"), count(&state, "third")], [1, 2, 3]);
    ["first", "second", "third"].iter().for_each(|request| helps(state.clone(), request));
}

/// One pass places at most 512 replicas; who is behind more of them waits for all of them.
#[test]
fn who_is_behind_more_than_one_pass_places_is_told_what_helps_all_of_them() {
    let mut state = behind(8, 4096, &[]);
    for i in 0..132 {
        let replicas = if i == 131 { 1 } else { 4 };
        let spec = JobSpec { replicas, ..testing::job_spec("t1", Gpus::Whole(2)) };
        testing::run(&mut state, testing::schedule(&format!("r{i}"), spec));
    }
    let spec = testing::job_spec("t1", Gpus::Whole(8));
    testing::run(&mut state, testing::schedule("last", spec));
    // 525 replicas of two GPUs each go first.
    helps(state, "last");
}

#[test]
fn where_only_kept_room_is_in_the_way_it_is_told_so() {
    let state = behind(4, 64, &[("large", 8), ("small", 2)]);
    let [Change::AddNodes { count: 1, spec, .. }] = &told(&state, "small")[..] else {
        panic!("{:?}", told(&state, "small"))
    };
    // Too small for the one ahead, which would have it otherwise.
    assert_eq!(spec.devices.len(), 2);
    helps(state, "small");
}

#[test]
fn a_quota_is_to_be_raised_for_those_ahead_too() {
    let mut state = behind(0, 1, &[("first", 1), ("second", 3), ("third", 2)]);
    testing::run(&mut state, testing::register("n2", testing::node_spec(8)));
    let raised = |request| match &told(&state, request)[..] {
        [Change::Quota { quota, .. }] => quota.gpu_milli,
        other => panic!("{request}: {other:?}"),
    };
    assert_eq!((raised("second"), raised("third")), (Some(4_000), Some(6_000)));
    ["second", "third"].iter().for_each(|request| helps(state.clone(), request));
}

#[test]
fn a_container_engine_and_a_node_that_is_named_are_told_of() {
    let mut state = behind(0, 64, &[]);
    let docker = JobSpec { runtime: Runtime::Docker, ..testing::job_spec("t1", Gpus::Whole(1)) };
    testing::run(&mut state, testing::schedule("docker", docker));
    assert_eq!(told(&state, "docker"), [Change::Engine(node("n1"))]);
    helps(state.clone(), "docker");
    let mut pinned = testing::job_spec("t1", Gpus::Whole(1));
    pinned.constraints.node = Some(node("n7"));
    testing::run(&mut state, testing::schedule("pinned", pinned));
    assert_eq!(told(&state, "pinned")[0].to_string(), "add node n7 with 1 × GPU");
    helps(state, "pinned");
}
